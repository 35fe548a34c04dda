"""The field network in Triton: a program walks tiles of samples and keeps the weights' gradients in registers. `reference.py` is the definition.

p = W1 [x, f] + b1, s = a'(p), t_d = W1x_d + W1f J_d the change of p along axis d, and gradient_od = W2_o . (s t_d). With the cotangents e_o of
the outputs and c_od of the gradient:

    c_d = sum_o c_od W2_o    to_p = s sum_o e_o W2_o + a''(p) sum_d c_d t_d
    df = to_p W1f    dx = to_p W1x    dJ_d = (s c_d) W1f    dW2_o = sum_n e_o a + sum_d c_od s t_d
    dW1f = sum_n to_p f^T + sum_d (s c_d) J_d^T    dW1x_d = sum_n to_p x_d + s c_d    db1 = sum_n to_p    db2 = sum_n e

Where there is one output the factors W2 and c_d change places, and the three products of matrices per axis become one.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from instant_nk.kernels import _backend
from instant_nk.kernels._triton_memory import launched, multiprocessors
from instant_nk.kernels.field_network.reference import SMOOTHING

PRECISION = "tf32x3"  # of matrix products: three passes of the tensor cores keep nearly all of float32; "ieee" keeps all, without tensor cores
LEAST_K = 16  # columns of features
# Samples at once, warps, and programs per multiprocessor (the interpreter's only ones), up to 32 hidden units and up to 64; above, twice the warps.
FORWARD = {32: (64, 4, 8), 64: (128, 4, 4)}
FROZEN = {32: (32, 2, 8), 64: (64, 4, 4)}  # backward without the weights' gradients,
LEARNED = {32: (32, 2, 8), 64: (16, 4, 4)}  # and with them, which are held in registers


@triton.jit
def _activate(p, SMOOTHING: tl.constexpr):
    """Squareplus, its first and its second derivative."""
    root = tl.sqrt(p * p + SMOOTHING)
    slope = 0.5 * (1.0 + p / root)
    return 0.5 * (p + root), slope, 0.5 * SMOOTHING / (root * root * root)


@triton.jit
def _row(base, index, inside):
    """One float per hidden unit, as a row [1, hidden]."""
    return tl.load(base + index, mask=inside, other=0.0)[None, :]


@triton.jit
def _column(base, index, live):
    """One float per sample, as a column [tile, 1]."""
    return tl.load(base + index, mask=live, other=0.0)[:, None]


@triton.jit
def _hidden(f, x, first_weight, first_bias, weight, r, live, h, inside, column, POINTS: tl.constexpr, PRECISION: tl.constexpr):
    """What enters the activation, [tile, hidden]."""
    p = tl.dot(f, tl.trans(weight), input_precision=PRECISION) + _row(first_bias, h, inside)
    for axis in tl.static_range(POINTS):
        p += _column(x, r * POINTS + axis, live) * _row(first_weight, column + axis, inside)
    return p


@launched(do_not_specialize=["samples"])
def _network_kernel(
    x, features, jacobian, first_weight, first_bias, last_weight, last_bias, outputs, gradient, samples,
    POINTS: tl.constexpr, K: tl.constexpr, HIDDEN: tl.constexpr, OUTPUTS: tl.constexpr, WIDTH_K: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr,
    GRADIENT: tl.constexpr, SMOOTHING: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    h, k, r = tl.arange(0, WIDTH), tl.arange(0, WIDTH_K), tl.arange(0, TILE)
    inside, column = h < HIDDEN, h * (POINTS + K)
    weight = tl.load(first_weight + column[:, None] + POINTS + k[None, :], mask=inside[:, None] & (k < K)[None, :], other=0.0)
    for tile in range(tl.program_id(0), tl.cdiv(samples, TILE), tl.num_programs(0)):
        start = tl.zeros([], tl.int64) + tile * TILE
        live = r < samples - start
        there = live[:, None] & (k < K)[None, :]
        f = tl.load(features + start * K + (r[:, None] * K + k[None, :]), mask=there, other=0.0)
        p = _hidden(f, x + start * POINTS, first_weight, first_bias, weight, r, live, h, inside, column, POINTS, PRECISION)
        a, s, _ = _activate(p, SMOOTHING)
        for o in range(OUTPUTS):
            w = _row(last_weight + o * HIDDEN, h, inside)
            tl.store(outputs + start * OUTPUTS + (r * OUTPUTS + o), tl.sum(a * w, axis=1) + tl.load(last_bias + o), mask=live)
            if GRADIENT:
                q = s * w
                g = tl.dot(q, weight, input_precision=PRECISION)
                for axis in range(3):
                    j = tl.load(jacobian + start * (3 * K) + (r[:, None] * (3 * K) + axis * K + k[None, :]), mask=there, other=0.0)
                    slope = tl.sum(j * g, axis=1) + tl.sum(q * _row(first_weight, column + axis, inside), axis=1)
                    tl.store(gradient + start * (3 * OUTPUTS) + (r * (3 * OUTPUTS) + o * 3 + axis), slope, mask=live)


@launched(do_not_specialize=["samples"])
def _network_grad_kernel(
    x, features, jacobian, first_weight, first_bias, last_weight, grad_outputs, grad_gradient, to_x, to_features, to_jacobian, to_weights, samples,
    POINTS: tl.constexpr, K: tl.constexpr, HIDDEN: tl.constexpr, OUTPUTS: tl.constexpr, WIDTH_K: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr,
    X: tl.constexpr, FEATURES: tl.constexpr, JACOBIAN: tl.constexpr, WEIGHTS: tl.constexpr,
    GRADIENT: tl.constexpr, SMOOTHING: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    h, k, r, few = tl.arange(0, WIDTH), tl.arange(0, WIDTH_K), tl.arange(0, TILE), tl.arange(0, 16)
    inside, column = h < HIDDEN, h * (POINTS + K)
    weight = tl.load(first_weight + column[:, None] + POINTS + k[None, :], mask=inside[:, None] & (k < K)[None, :], other=0.0)
    sum_features = tl.zeros([WIDTH, WIDTH_K], tl.float32)
    sum_points = tl.zeros([WIDTH, 16], tl.float32)  # columns of x, then of the bias
    sum_last = tl.zeros([WIDTH, 16], tl.float32)
    for tile in range(tl.program_id(0), tl.cdiv(samples, TILE), tl.num_programs(0)):
        start = tl.zeros([], tl.int64) + tile * TILE
        live = r < samples - start
        there = live[:, None] & (k < K)[None, :]
        at, at_jacobian = r[:, None] * K + k[None, :], r[:, None] * (3 * K) + k[None, :]
        f = tl.load(features + start * K + at, mask=there, other=0.0)
        p = _hidden(f, x + start * POINTS, first_weight, first_bias, weight, r, live, h, inside, column, POINTS, PRECISION)
        a, s, bend = _activate(p, SMOOTHING)
        if GRADIENT:
            to_s = tl.zeros([TILE, WIDTH], tl.float32)
            given = grad_gradient + start * (3 * OUTPUTS)
            if OUTPUTS == 1:  # the cotangent meets the Jacobian before the weights: one product for all axes
                w = _row(last_weight, h, inside)
                v, t = tl.zeros([TILE, WIDTH_K], tl.float32), tl.zeros([TILE, WIDTH], tl.float32)
                for axis in tl.static_range(3):
                    e = _column(given, r * 3 + axis, live)
                    v += e * tl.load(jacobian + start * (3 * K) + axis * K + at_jacobian, mask=there, other=0.0)
                    t += e * _row(first_weight, column + axis, inside)
                t = tl.dot(v, tl.trans(weight), t, input_precision=PRECISION)
                to_s = t * w
                c = s * w
                if JACOBIAN:
                    g = tl.dot(c, weight, input_precision=PRECISION)
                    for axis in tl.static_range(3):
                        tl.store(to_jacobian + start * (3 * K) + axis * K + at_jacobian, _column(given, r * 3 + axis, live) * g, mask=there)
                if WEIGHTS:
                    turned = tl.trans(c)
                    sum_features = tl.dot(turned, v, sum_features, input_precision=PRECISION)
                    e = tl.load(given + (r[:, None] * 3 + few[None, :]), mask=live[:, None] & (few < 3)[None, :], other=0.0)
                    sum_points = tl.dot(turned, e, sum_points, input_precision=PRECISION)
                    one = tl.where(live[:, None] & (few == 0)[None, :], 1.0, 0.0)
                    sum_last = tl.dot(tl.trans(s * t), one, sum_last, input_precision=PRECISION)
            else:
                for axis in range(3):
                    j = tl.load(jacobian + start * (3 * K) + axis * K + at_jacobian, mask=there, other=0.0)
                    t = tl.dot(j, tl.trans(weight), input_precision=PRECISION) + _row(first_weight, column + axis, inside)
                    c = tl.zeros([TILE, WIDTH], tl.float32)
                    for o in tl.static_range(OUTPUTS):
                        c += _column(given, r * (3 * OUTPUTS) + o * 3 + axis, live) * _row(last_weight + o * HIDDEN, h, inside)
                    to_s += c * t
                    c *= s
                    if JACOBIAN:
                        tl.store(to_jacobian + start * (3 * K) + axis * K + at_jacobian, tl.dot(c, weight, input_precision=PRECISION), mask=there)
                    if WEIGHTS:
                        turned = tl.trans(c)
                        sum_features = tl.dot(turned, j, sum_features, input_precision=PRECISION)
                        one = tl.where(live[:, None] & (few == axis)[None, :], 1.0, 0.0)
                        sum_points = tl.dot(turned, one, sum_points, input_precision=PRECISION)
                        e = tl.load(given + (r[:, None] * (3 * OUTPUTS) + few[None, :] * 3 + axis), mask=live[:, None] & (few < OUTPUTS)[None, :], other=0.0)
                        sum_last = tl.dot(tl.trans(s * t), e, sum_last, input_precision=PRECISION)
        to_a = tl.zeros([TILE, WIDTH], tl.float32)
        for o in tl.static_range(OUTPUTS):
            to_a += _column(grad_outputs + start * OUTPUTS, r * OUTPUTS + o, live) * _row(last_weight + o * HIDDEN, h, inside)
        to_p = to_a * s
        if GRADIENT:
            to_p += to_s * bend
        if FEATURES:
            tl.store(to_features + start * K + at, tl.dot(to_p, weight, input_precision=PRECISION), mask=there)
        if X:
            for axis in range(POINTS):
                tl.store(to_x + start * POINTS + (r * POINTS + axis), tl.sum(to_p * _row(first_weight, column + axis, inside), axis=1), mask=live)
        if WEIGHTS:
            turned = tl.trans(to_p)
            point = tl.load(x + start * POINTS + (r[:, None] * POINTS + few[None, :]), mask=live[:, None] & (few < POINTS)[None, :], other=0.0)
            point = tl.where(live[:, None] & (few == POINTS)[None, :], 1.0, point)
            sum_features = tl.dot(turned, f, sum_features, input_precision=PRECISION)
            sum_points = tl.dot(turned, point, sum_points, input_precision=PRECISION)
            e = tl.load(grad_outputs + start * OUTPUTS + (r[:, None] * OUTPUTS + few[None, :]), mask=live[:, None] & (few < OUTPUTS)[None, :], other=0.0)
            sum_last = tl.dot(tl.trans(a), e, sum_last, input_precision=PRECISION)
    if WEIGHTS:  # a row per hidden unit: its row of W1, its bias, its column of W2
        row = to_weights + (tl.program_id(0) * HIDDEN + h)[:, None] * (POINTS + K + 1 + OUTPUTS)
        tl.store(row + POINTS + k[None, :], sum_features, mask=inside[:, None] & (k < K)[None, :])
        tl.store(row + tl.where(few < POINTS, few, POINTS + K)[None, :], sum_points, mask=inside[:, None] & (few <= POINTS)[None, :])
        tl.store(row + (POINTS + K + 1) + few[None, :], sum_last, mask=inside[:, None] & (few < OUTPUTS)[None, :])


def _launch(x: Tensor, features: Tensor, first_weight: Tensor, last_weight: Tensor, plan: dict[int, tuple[int, int, int]]) -> tuple[tuple[int], dict[str, Any]]:
    hidden = len(first_weight)
    tile, warps, programs = plan[32 if hidden <= 32 else 64]
    constants = {"POINTS": x.shape[1], "K": features.shape[1], "HIDDEN": hidden, "OUTPUTS": len(last_weight), "TILE": tile}
    constants |= {"WIDTH_K": max(LEAST_K, triton.next_power_of_2(features.shape[1])), "WIDTH": max(16, triton.next_power_of_2(hidden))}
    constants |= {"SMOOTHING": SMOOTHING, "PRECISION": PRECISION, "num_warps": warps if hidden <= 64 else 2 * warps, "num_stages": 1}
    return (min(triton.cdiv(len(x), tile), programs * multiprocessors(x.device)),), constants


def network(
    x: Tensor, features: Tensor, jacobian: Tensor | None, first_weight: Tensor, first_bias: Tensor, last_weight: Tensor, last_bias: Tensor
) -> tuple[Tensor, Tensor | None]:
    """As `reference.network`; without a Jacobian the outputs alone."""
    outputs = torch.empty(len(x), len(last_weight), device=x.device)
    gradient = None if jacobian is None else torch.empty(len(x), len(last_weight), 3, device=x.device)
    if len(x):
        grid, constants = _launch(x, features, first_weight, last_weight, FORWARD)
        inputs = _contiguous(x, features, jacobian, first_weight, first_bias, last_weight, last_bias)
        with _backend.on(x):
            _network_kernel[grid](*inputs, outputs, gradient, len(x), GRADIENT=jacobian is not None, **constants)
    return outputs, gradient


def network_grad(
    x: Tensor, features: Tensor, jacobian: Tensor | None, first_weight: Tensor, first_bias: Tensor, last_weight: Tensor,
    grad_outputs: Tensor, grad_gradient: Tensor | None, wanted: tuple[bool, bool, bool], weights: bool,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """Gradients of the seven arguments of `network`: of x, features and Jacobian those `wanted`, of the four weights all or none."""
    found = [torch.empty(t.shape, device=x.device) if want else None for t, want in zip((x, features, jacobian), wanted, strict=True)]
    columns, outputs = first_weight.shape[1], len(last_weight)
    grid, constants = _launch(x, features, first_weight, last_weight, LEARNED if weights else FROZEN)
    partial = torch.empty(*grid, len(first_weight), columns + 1 + outputs, device=x.device) if weights else None
    if len(x):
        inputs = _contiguous(x, features, jacobian, first_weight, first_bias, last_weight, grad_outputs, grad_gradient)
        with _backend.on(x):
            _network_grad_kernel[grid](
                *inputs, *found, partial, len(x),
                X=wanted[0], FEATURES=wanted[1], JACOBIAN=wanted[2], WEIGHTS=weights, GRADIENT=jacobian is not None, **constants,
            )  # fmt: skip
    if not weights:
        return *found, None, None, None, None
    to_first, to_bias, to_last = partial.sum(0).split([columns, 1, outputs], 1)  # one partial sum per program: the order is fixed
    return *found, to_first, to_bias[:, 0], to_last.T, grad_outputs.sum(0)


def _contiguous(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if t is None else t.contiguous() for t in tensors]
