"""The deep network in Triton: a program walks tiles of samples and keeps the weights' gradients in registers. `reference.py` is the definition.

Nothing of hidden width is kept or written: the backward passes compute both layers again. The first bias is one more column of the
point's own numbers, which is 1 for every sample. With the cotangents e of the outputs:

    to_p2 = (p2 > 0) e W3    to_p1 = (p1 > 0) to_p2 W2    to_near, to_features = to_p1 W1
    dW3 = e^T relu(p2)    dW2 = to_p2^T relu(p1)    dW1 = to_p1^T [near, 1, features]
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from instant_nk.kernels import _backend
from instant_nk.kernels._triton_memory import launched, multiprocessors

PRECISION = "tf32x3"  # of matrix products: as in `field_network`
LEAST_K = 32  # columns of features
# Samples at once, warps, and programs per multiprocessor (the interpreter's only ones):
FORWARD = 64, 4, 4
LOWER = 32, 4, 4  # backward: gradients of the inputs and of the first layer's weights,
LOWER_WIDE = 128, 8, 2  # where a multiprocessor has shared memory for it, and up to 32 features,
WIDE_SHARED = 220 << 10
UPPER = 32, 4, 4  # and of the other layers'


@triton.jit
def _near(near, r, few, live, NEAR: tl.constexpr):
    """A point's own numbers and, in the column behind them, 1: [tile, 16]."""
    own = tl.load(near + (r[:, None] * NEAR + few[None, :]), mask=live[:, None] & (few < NEAR)[None, :], other=0.0)
    return tl.where((few == NEAR)[None, :], 1.0, own)


@triton.jit
def _weights(first_weight, first_bias, middle_weight, middle_bias, h, k, few, NEAR: tl.constexpr, K: tl.constexpr, HIDDEN: tl.constexpr, WIDTH: tl.constexpr):
    """W1's columns of the features [hidden, k] and of `near` and the bias [hidden, 16], W2 [hidden, hidden], b2 [1, hidden]."""
    inside, column = h < HIDDEN, h[:, None] * (NEAR + K)
    of_features = tl.load(first_weight + column + NEAR + k[None, :], mask=inside[:, None] & (k < K)[None, :], other=0.0)
    of_near = tl.load(first_weight + column + few[None, :], mask=inside[:, None] & (few < NEAR)[None, :], other=0.0)
    bias = tl.load(first_bias + h, mask=inside, other=0.0)[:, None]
    of_near = tl.where((few == NEAR)[None, :], bias, of_near)
    g = tl.arange(0, WIDTH)
    middle = tl.load(middle_weight + h[:, None] * HIDDEN + g[None, :], mask=inside[:, None] & (g < HIDDEN)[None, :], other=0.0)
    return of_features, of_near, middle, tl.load(middle_bias + h, mask=inside, other=0.0)[None, :]


@triton.jit
def _layers(f, own, of_features, of_near, middle, bias, PRECISION: tl.constexpr):
    """What leaves both hidden layers, [tile, hidden]."""
    p = tl.dot(own, tl.trans(of_near), input_precision=PRECISION)
    first = tl.maximum(tl.dot(f, tl.trans(of_features), p, input_precision=PRECISION), 0.0)
    return first, tl.maximum(tl.dot(first, tl.trans(middle), input_precision=PRECISION) + bias, 0.0)


@launched(do_not_specialize=["samples"])
def _network_kernel(
    near, features, first_weight, first_bias, middle_weight, middle_bias, last_weight, last_bias, outputs, samples,
    NEAR: tl.constexpr, K: tl.constexpr, HIDDEN: tl.constexpr, OUTPUTS: tl.constexpr, WIDTH_K: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    h, k, r, few = tl.arange(0, WIDTH), tl.arange(0, WIDTH_K), tl.arange(0, TILE), tl.arange(0, 16)
    of_features, of_near, middle, bias = _weights(first_weight, first_bias, middle_weight, middle_bias, h, k, few, NEAR, K, HIDDEN, WIDTH)
    for tile in range(tl.program_id(0), tl.cdiv(samples, TILE), tl.num_programs(0)):
        start = tl.zeros([], tl.int64) + tile * TILE
        live = r < samples - start
        f = tl.load(features + start * K + (r[:, None] * K + k[None, :]), mask=live[:, None] & (k < K)[None, :], other=0.0)
        own = _near(near + start * NEAR, r, few, live, NEAR)
        _, second = _layers(f, own, of_features, of_near, middle, bias, PRECISION)
        for o in range(OUTPUTS):
            w = tl.load(last_weight + o * HIDDEN + h, mask=h < HIDDEN, other=0.0)[None, :]
            tl.store(outputs + start * OUTPUTS + (r * OUTPUTS + o), tl.sum(second * w, axis=1) + tl.load(last_bias + o), mask=live)


@launched(do_not_specialize=["samples"])
def _network_grad_kernel(
    near, features, first_weight, first_bias, middle_weight, middle_bias, last_weight, grad_outputs, to_near, to_features, to_lower, to_upper, samples,
    NEAR: tl.constexpr, K: tl.constexpr, HIDDEN: tl.constexpr, OUTPUTS: tl.constexpr, WIDTH_K: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr,
    OWN: tl.constexpr, FEATURES: tl.constexpr, LOWER: tl.constexpr, UPPER: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """OWN, FEATURES: gradients of the inputs; LOWER: of W1 and b1; UPPER: of W2, b2 and W3."""
    h, k, r, few = tl.arange(0, WIDTH), tl.arange(0, WIDTH_K), tl.arange(0, TILE), tl.arange(0, 16)
    inside = h < HIDDEN
    of_features, of_near, middle, bias = _weights(first_weight, first_bias, middle_weight, middle_bias, h, k, few, NEAR, K, HIDDEN, WIDTH)
    if LOWER:
        sum_features = tl.zeros([WIDTH, WIDTH_K], tl.float32)
        sum_near = tl.zeros([WIDTH, 16], tl.float32)  # columns of `near`, then of the bias
    if UPPER:
        sum_middle = tl.zeros([WIDTH, WIDTH], tl.float32)
        sum_bias = tl.zeros([1, WIDTH], tl.float32)
        sum_last = tl.zeros([WIDTH, 16], tl.float32)
    for tile in range(tl.program_id(0), tl.cdiv(samples, TILE), tl.num_programs(0)):
        start = tl.zeros([], tl.int64) + tile * TILE
        live = r < samples - start
        there = live[:, None] & (k < K)[None, :]
        at = r[:, None] * K + k[None, :]
        f = tl.load(features + start * K + at, mask=there, other=0.0)
        own = _near(near + start * NEAR, r, few, live, NEAR)
        first, second = _layers(f, own, of_features, of_near, middle, bias, PRECISION)
        given = grad_outputs + start * OUTPUTS
        to_second = tl.zeros([TILE, WIDTH], tl.float32)
        for o in tl.static_range(OUTPUTS):
            e = tl.load(given + r * OUTPUTS + o, mask=live, other=0.0)[:, None]
            to_second += e * tl.load(last_weight + o * HIDDEN + h, mask=inside, other=0.0)[None, :]
        to_second = tl.where(second > 0, to_second, 0.0)
        if UPPER:
            e = tl.load(given + (r[:, None] * OUTPUTS + few[None, :]), mask=live[:, None] & (few < OUTPUTS)[None, :], other=0.0)
            sum_last = tl.dot(tl.trans(second), e, sum_last, input_precision=PRECISION)
            sum_middle = tl.dot(tl.trans(to_second), first, sum_middle, input_precision=PRECISION)
            sum_bias += tl.sum(to_second, axis=0, keep_dims=True)
        if OWN or FEATURES or LOWER:
            to_first = tl.where(first > 0, tl.dot(to_second, middle, input_precision=PRECISION), 0.0)
        if FEATURES:
            tl.store(to_features + start * K + at, tl.dot(to_first, of_features, input_precision=PRECISION), mask=there)
        if OWN:
            pulled = tl.dot(to_first, of_near, input_precision=PRECISION)
            tl.store(to_near + start * NEAR + (r[:, None] * NEAR + few[None, :]), pulled, mask=live[:, None] & (few < NEAR)[None, :])
        if LOWER:
            turned = tl.trans(to_first)
            sum_features = tl.dot(turned, f, sum_features, input_precision=PRECISION)
            sum_near = tl.dot(turned, own, sum_near, input_precision=PRECISION)
    if LOWER:  # a row per hidden unit: its row of W1 and bias
        row = to_lower + (tl.program_id(0) * HIDDEN + h)[:, None] * (NEAR + K + 1)
        tl.store(row + NEAR + k[None, :], sum_features, mask=inside[:, None] & (k < K)[None, :])
        tl.store(row + tl.where(few < NEAR, few, NEAR + K)[None, :], sum_near, mask=inside[:, None] & (few <= NEAR)[None, :])
    if UPPER:  # its row of W2, its column of W3; and after all of these the bias
        row = to_upper + (tl.program_id(0) * (HIDDEN + 1) + h)[:, None] * (HIDDEN + OUTPUTS)
        g = tl.arange(0, WIDTH)[None, :]
        tl.store(row + g, sum_middle, mask=inside[:, None] & (g < HIDDEN))
        tl.store(row + HIDDEN + few[None, :], sum_last, mask=inside[:, None] & (few < OUTPUTS)[None, :])
        tl.store(to_upper + (tl.program_id(0) * (HIDDEN + 1) + HIDDEN) * (HIDDEN + OUTPUTS) + g, sum_bias, mask=g < HIDDEN)


@cache
def _wide(device: torch.device, features: int) -> bool:
    roomy = device.type != "cuda" or torch.cuda.get_device_properties(device).shared_memory_per_block_optin >= WIDE_SHARED
    return roomy and features <= 32


def _launch(near: Tensor, features: Tensor, last_weight: Tensor, tile: int, warps: int, programs: int) -> tuple[tuple[int], dict[str, Any]]:
    outputs, hidden = last_weight.shape
    constants = {"NEAR": near.shape[1], "K": features.shape[1], "HIDDEN": hidden, "OUTPUTS": outputs, "TILE": tile}
    constants |= {"WIDTH_K": max(LEAST_K, triton.next_power_of_2(features.shape[1])), "WIDTH": max(16, triton.next_power_of_2(hidden))}
    count = min(triton.cdiv(len(near), tile), programs * multiprocessors(near.device))
    return (count,), constants | {"PRECISION": PRECISION, "num_warps": warps, "num_stages": 1}


def network(near: Tensor, features: Tensor, *weights: Tensor) -> Tensor:
    """As `reference.network`."""
    outputs = torch.empty(len(near), len(weights[-1]), device=near.device)
    if len(near):
        grid, constants = _launch(near, features, weights[-2], *FORWARD)
        with _backend.on(near):
            _network_kernel[grid](*(t.contiguous() for t in (near, features, *weights)), outputs, len(near), **constants)
    return outputs


def network_grad(
    near: Tensor, features: Tensor, first_weight: Tensor, first_bias: Tensor, middle_weight: Tensor, middle_bias: Tensor, last_weight: Tensor,
    grad_outputs: Tensor, wanted: tuple[bool, bool], weights: bool,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """Gradients of the eight arguments of `network`: of `near` and features those `wanted`, of the six weights all or none.

    Two passes, each with a part of the weights' gradients in its registers: for all of them at once there is no room.
    """
    found = [torch.empty(t.shape, device=near.device) if want else None for t, want in zip((near, features), wanted, strict=True)]
    (hidden, columns), outputs = first_weight.shape, len(last_weight)
    inputs = [t.contiguous() for t in (near, features, first_weight, first_bias, middle_weight, middle_bias, last_weight, grad_outputs)]
    grid, constants = _launch(near, features, last_weight, *(LOWER_WIDE if _wide(near.device, features.shape[1]) else LOWER))
    lower = torch.empty(*grid, hidden, columns + 1, device=near.device) if weights else None
    if len(near):
        with _backend.on(near):
            _network_grad_kernel[grid](*inputs, *found, lower, None, len(near), OWN=wanted[0], FEATURES=wanted[1], LOWER=weights, UPPER=False, **constants)
    if not weights:
        return *found, *(None,) * 6
    grid, constants = _launch(near, features, last_weight, *UPPER)
    upper = torch.empty(*grid, hidden + 1, hidden + outputs, device=near.device)
    if len(near):
        with _backend.on(near):
            _network_grad_kernel[grid](*inputs, None, None, None, upper, len(near), OWN=False, FEATURES=False, LOWER=False, UPPER=True, **constants)
    to_first, to_bias = lower.sum(0).split([columns, 1], 1)  # one partial sum per program: the order is fixed
    to_middle, to_last = upper[:, :hidden].sum(0).split([hidden, outputs], 1)
    return *found, to_first, to_bias[:, 0], to_middle, upper[:, hidden, :hidden].sum(0), to_last.T, grad_outputs.sum(0)
