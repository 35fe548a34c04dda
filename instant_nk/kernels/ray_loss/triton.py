"""The rays' losses in Triton: one lane a ray. Programs write partial sums, so the result has the same bits every time. `reference.py` is the definition."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from instant_nk.kernels import _backend
from instant_nk.kernels._triton_memory import launched, load3, store3
from instant_nk.kernels.ray_loss import reference

RAYS = 128  # per program
DELTA, LEAST = tl.constexpr(reference.DELTA), tl.constexpr(reference.LEAST)


@triton.jit
def _huber(error):
    size = tl.abs(error)
    return tl.where(size < DELTA, 0.5 * error * error, DELTA * (size - 0.5 * DELTA))


@triton.jit
def _square3(x, y, z):
    return x * x + y * y + z * z


@launched(do_not_specialize=["rays"])
def _means_kernel(rgb, opacity, target, alpha, background, sums, rays, RAYS: tl.constexpr):
    program = tl.program_id(0).to(tl.int64)
    n = program * RAYS + tl.arange(0, RAYS)
    live = n < rays
    a, o = tl.load(alpha + n, mask=live, other=0.0), tl.load(opacity + n, mask=live, other=0.0)
    r, g, b = load3(rgb, n, live)
    tr, tg, tb = load3(target, n, live)
    br, bg, bb = load3(background, n, live)
    r, g, b = r - tr * a, g - tg * a, b - tb * a
    tl.store(sums + program * 3 + 2, tl.sum(tl.where(live, _square3(r, g, b), 0.0)) / (3.0 * rays))
    behind = a - o
    colour = _huber(r + behind * br) + _huber(g + behind * bg) + _huber(b + behind * bb)
    tl.store(sums + program * 3, tl.sum(tl.where(live, colour, 0.0)) / (3.0 * DELTA * rays))
    o = tl.minimum(tl.maximum(o, LEAST), 1.0 - LEAST)
    tl.store(sums + program * 3 + 1, -tl.sum(tl.where(live, a * tl.log(o) + (1.0 - a) * tl.log(1.0 - o), 0.0)) / rays)


@launched(do_not_specialize=["rays", "to_colour", "to_mask"])  # numbers lie anywhere, aligned or not
def _means_grad_kernel(rgb, opacity, target, alpha, background, to_colour, to_mask, to_rgb, to_opacity, rays, RAYS: tl.constexpr):
    n = tl.program_id(0).to(tl.int64) * RAYS + tl.arange(0, RAYS)
    live = n < rays
    colour = tl.load(to_colour) / (3.0 * DELTA * rays)
    mask = tl.load(to_mask) / rays
    a, o = tl.load(alpha + n, mask=live, other=0.0), tl.load(opacity + n, mask=live, other=0.5)
    r, g, b = load3(rgb, n, live)
    tr, tg, tb = load3(target, n, live)
    br, bg, bb = load3(background, n, live)
    behind = a - o
    er = colour * tl.minimum(tl.maximum(r - tr * a + behind * br, -DELTA), DELTA)
    eg = colour * tl.minimum(tl.maximum(g - tg * a + behind * bg, -DELTA), DELTA)
    eb = colour * tl.minimum(tl.maximum(b - tb * a + behind * bb, -DELTA), DELTA)
    store3(to_rgb, n, er, eg, eb, live)
    within = (o >= LEAST) & (o <= 1.0 - LEAST)
    tl.store(to_opacity + n, tl.where(within, mask * (o - a) / tl.where(within, o * (1.0 - o), 1.0), 0.0) - (er * br + eg * bg + eb * bb), mask=live)


def means(rgb: Tensor, opacity: Tensor, target: Tensor, alpha: Tensor, background: Tensor) -> tuple[Tensor, ...]:
    """As `reference.means`."""
    rays = len(rgb)
    inputs = [value.contiguous() for value in (rgb, opacity, target, alpha, background)]
    sums = torch.empty(triton.cdiv(rays, RAYS), 3, device=rgb.device)
    with _backend.on(rgb):
        _means_kernel[(len(sums),)](*inputs, sums, rays, RAYS=RAYS)
    return sums.sum(0).unbind()


def means_grad(rgb: Tensor, opacity: Tensor, target: Tensor, alpha: Tensor, background: Tensor, to_colour: Tensor, to_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of rgb [rays, 3] and opacity [rays]."""
    rays = len(rgb)
    inputs = [value.contiguous() for value in (rgb, opacity, target, alpha, background, to_colour, to_mask)]
    to_rgb, to_opacity = torch.empty(rays, 3, device=rgb.device), torch.empty(rays, device=rgb.device)
    with _backend.on(rgb):
        _means_grad_kernel[(triton.cdiv(rays, RAYS),)](*inputs, to_rgb, to_opacity, rays, RAYS=RAYS)
    return to_rgb, to_opacity
