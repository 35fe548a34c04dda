"""The live gradient in Triton: one lane a sample, everything in registers. `reference.py` is the definition."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from instant_nk.kernels import _backend
from instant_nk.kernels._triton_memory import launched, load3, store3
from instant_nk.kernels.live_gradient.reference import LEAST_DETERMINANT

SAMPLES = 128  # per program
LEAST = tl.constexpr(LEAST_DETERMINANT)


@triton.jit
def _cofactors(jacobian, n, live):
    """Columns b x c, c x a, a x b of the cofactor matrix over the determinant, the identity's where that is small; and where it is not."""
    a0, b0, c0 = load3(jacobian, n * 3, live)
    a1, b1, c1 = load3(jacobian, n * 3 + 1, live)
    a2, b2, c2 = load3(jacobian, n * 3 + 2, live)
    p0, p1, p2 = b1 * c2 - b2 * c1, b2 * c0 - b0 * c2, b0 * c1 - b1 * c0
    q0, q1, q2 = c1 * a2 - c2 * a1, c2 * a0 - c0 * a2, c0 * a1 - c1 * a0
    r0, r1, r2 = a1 * b2 - a2 * b1, a2 * b0 - a0 * b2, a0 * b1 - a1 * b0
    determinant = a0 * p0 + a1 * p1 + a2 * p2
    usable = tl.abs(determinant) > LEAST
    scale = 1.0 / tl.where(usable, determinant, 1.0)
    p0, p1, p2 = tl.where(usable, p0 * scale, 1.0), tl.where(usable, p1 * scale, 0.0), tl.where(usable, p2 * scale, 0.0)
    q0, q1, q2 = tl.where(usable, q0 * scale, 0.0), tl.where(usable, q1 * scale, 1.0), tl.where(usable, q2 * scale, 0.0)
    r0, r1, r2 = tl.where(usable, r0 * scale, 0.0), tl.where(usable, r1 * scale, 0.0), tl.where(usable, r2 * scale, 1.0)
    return p0, p1, p2, q0, q1, q2, r0, r1, r2, usable


@launched(do_not_specialize=["samples"])
def _carry_kernel(gradient, stretch, jacobian, carried, usables, samples, SAMPLES: tl.constexpr):
    n = tl.program_id(0).to(tl.int64) * SAMPLES + tl.arange(0, SAMPLES)
    live = n < samples
    g0, g1, g2 = load3(gradient, n, live)
    s00, s01, s02 = load3(stretch, n * 3, live)
    s10, s11, s12 = load3(stretch, n * 3 + 1, live)
    s20, s21, s22 = load3(stretch, n * 3 + 2, live)
    h0, h1, h2 = g0 + s00 * g0 + s10 * g1 + s20 * g2, g1 + s01 * g0 + s11 * g1 + s21 * g2, g2 + s02 * g0 + s12 * g1 + s22 * g2
    p0, p1, p2, q0, q1, q2, r0, r1, r2, usable = _cofactors(jacobian, n, live)
    store3(carried, n, p0 * h0 + q0 * h1 + r0 * h2, p1 * h0 + q1 * h1 + r1 * h2, p2 * h0 + q2 * h1 + r2 * h2, live)
    tl.store(usables + n, usable.to(tl.uint8), mask=live)


@launched(do_not_specialize=["samples"])
def _carry_grad_kernel(gradient, stretch, jacobian, grad, to_gradient, to_stretch, samples, SAMPLES: tl.constexpr):
    n = tl.program_id(0).to(tl.int64) * SAMPLES + tl.arange(0, SAMPLES)
    live = n < samples
    e0, e1, e2 = load3(grad, n, live)
    p0, p1, p2, q0, q1, q2, r0, r1, r2, usable = _cofactors(jacobian, n, live)
    h0, h1, h2 = p0 * e0 + p1 * e1 + p2 * e2, q0 * e0 + q1 * e1 + q2 * e2, r0 * e0 + r1 * e1 + r2 * e2  # cotangent of (I + S)^T g
    g0, g1, g2 = load3(gradient, n, live)
    store3(to_stretch, n * 3, g0 * h0, g0 * h1, g0 * h2, live)
    store3(to_stretch, n * 3 + 1, g1 * h0, g1 * h1, g1 * h2, live)
    store3(to_stretch, n * 3 + 2, g2 * h0, g2 * h1, g2 * h2, live)
    s00, s01, s02 = load3(stretch, n * 3, live)
    s10, s11, s12 = load3(stretch, n * 3 + 1, live)
    s20, s21, s22 = load3(stretch, n * 3 + 2, live)
    t0, t1, t2 = s00 * h0 + s01 * h1 + s02 * h2, s10 * h0 + s11 * h1 + s12 * h2, s20 * h0 + s21 * h1 + s22 * h2
    store3(to_gradient, n, h0 + t0, h1 + t1, h2 + t2, live)


def carry(gradient: Tensor, stretch: Tensor, jacobian: Tensor) -> tuple[Tensor, Tensor]:
    """As `reference.carry`."""
    samples = len(gradient)
    carried, usable = torch.empty(samples, 3, device=gradient.device), torch.empty(samples, dtype=torch.bool, device=gradient.device)
    if samples:
        inputs = gradient.contiguous(), stretch.contiguous(), jacobian.contiguous()
        with _backend.on(gradient):
            _carry_kernel[(triton.cdiv(samples, SAMPLES),)](*inputs, carried, usable.view(torch.uint8), samples, SAMPLES=SAMPLES)
    return carried, usable


def carry_grad(gradient: Tensor, stretch: Tensor, jacobian: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of gradient [samples, 3] and stretch [samples, 3, 3]."""
    samples = len(gradient)
    to_gradient, to_stretch = torch.empty(samples, 3, device=grad.device), torch.empty(samples, 3, 3, device=grad.device)
    if samples:
        inputs = gradient.contiguous(), stretch.contiguous(), jacobian.contiguous(), grad.contiguous()
        with _backend.on(gradient):
            _carry_grad_kernel[(triton.cdiv(samples, SAMPLES),)](*inputs, to_gradient, to_stretch, samples, SAMPLES=SAMPLES)
    return to_gradient, to_stretch
