"""NeuS opacity in Triton: one lane a sample, everything in registers. `reference.py` is the definition."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from instant_nk.kernels import _backend
from instant_nk.kernels._triton_memory import launched, load3, number, number_of, store3

SAMPLES = 128  # per program


@triton.jit
def _logistics(sdf, cos, length, sharp, anneal):
    """Half the change of distance along the sample, and the logistic before and behind it."""
    slope = -(tl.maximum(0.5 - 0.5 * cos, 0.0) * (1.0 - anneal) + tl.maximum(-cos, 0.0) * anneal)
    half = slope * length * 0.5
    return half, tl.sigmoid((sdf - half) * sharp), tl.sigmoid((sdf + half) * sharp)


@launched(do_not_specialize=["samples", "sharp", "anneal", "sharp_at", "anneal_at"])  # numbers lie anywhere, aligned or not
def _opacity_kernel(
    sdf, gradient, directions, lengths, sharp, sharp_at, anneal, anneal_at, alpha, normals, excess, samples, SHARP: tl.constexpr, ANNEAL: tl.constexpr, SAMPLES: tl.constexpr
):  # fmt: skip
    n = tl.program_id(0).to(tl.int64) * SAMPLES + tl.arange(0, SAMPLES)
    live = n < samples
    sharp, anneal = number(sharp, sharp_at, SHARP), number(anneal, anneal_at, ANNEAL)
    gx, gy, gz = load3(gradient, n, live)
    dx, dy, dz = load3(directions, n, live)
    _, before, after = _logistics(
        tl.load(sdf + n, mask=live, other=0.0), gx * dx + gy * dy + gz * dz, tl.load(lengths + n, mask=live, other=0.0), sharp, anneal
    )
    share = (before - after + 1e-5) / (before + 1e-5)
    tl.store(alpha + n, tl.minimum(tl.maximum(share, 0.0), 1.0), mask=live)
    long = tl.sqrt(gx * gx + gy * gy + gz * gz)
    scale = 1.0 / tl.maximum(long, 1e-12)
    store3(normals, n, gx * scale, gy * scale, gz * scale, live)
    tl.store(excess + n, (long - 1.0) * (long - 1.0), mask=live)


@launched(do_not_specialize=["samples", "sharp", "anneal", "sharp_at", "anneal_at"])  # numbers lie anywhere, aligned or not
def _opacity_grad_kernel(
    sdf, gradient, directions, lengths, sharp, sharp_at, anneal, anneal_at, to_alpha, to_normals, to_excess, to_sdf, to_gradient, to_sharp, to_directions, samples,
    SHARP: tl.constexpr, ANNEAL: tl.constexpr, LEARNT: tl.constexpr, TURNED: tl.constexpr, SAMPLES: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    n = program * SAMPLES + tl.arange(0, SAMPLES)
    live = n < samples
    sharp, anneal = number(sharp, sharp_at, SHARP), number(anneal, anneal_at, ANNEAL)
    gx, gy, gz = load3(gradient, n, live)
    dx, dy, dz = load3(directions, n, live)
    distance, length = tl.load(sdf + n, mask=live, other=0.0), tl.load(lengths + n, mask=live, other=0.0)
    cos = gx * dx + gy * dy + gz * dz
    half, before, after = _logistics(distance, cos, length, sharp, anneal)
    base = before + 1e-5
    share = (before - after + 1e-5) / base
    e = tl.where((share >= 0.0) & (share <= 1.0), tl.load(to_alpha + n, mask=live, other=0.0), 0.0) / base
    e_before, e_after = e * (1.0 - share) * before * (1.0 - before), -e * after * (1.0 - after)  # of the logistics' arguments
    tl.store(to_sdf + n, sharp * (e_before + e_after), mask=live)
    e_slope = sharp * (e_after - e_before) * length * 0.5
    e_cos = e_slope * (tl.where(cos < 1.0, 0.5, 0.0) * (1.0 - anneal) + tl.where(cos < 0.0, 1.0, 0.0) * anneal)
    if LEARNT:
        tl.store(to_sharp + program, tl.sum(tl.where(live, e_before * (distance - half) + e_after * (distance + half), 0.0)))
    if TURNED:
        store3(to_directions, n, e_cos * gx, e_cos * gy, e_cos * gz, live)
    long = tl.sqrt(gx * gx + gy * gy + gz * gz)
    scale = 1.0 / tl.maximum(long, 1e-12)
    ex, ey, ez = load3(to_normals, n, live)
    nx, ny, nz = gx * scale, gy * scale, gz * scale
    along = 2.0 * (long - 1.0) * tl.load(to_excess + n, mask=live, other=0.0) - scale * (nx * ex + ny * ey + nz * ez)
    store3(to_gradient, n, e_cos * dx + scale * ex + along * nx, e_cos * dy + scale * ey + along * ny, e_cos * dz + scale * ez + along * nz, live)


def opacities(
    sdf: Tensor, gradient: Tensor, directions: Tensor, lengths: Tensor, inv_std: float | Tensor, anneal: float | Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """As `reference.opacities`."""
    samples, device = len(sdf), sdf.device
    alpha, normals, excess = torch.empty(samples, device=device), torch.empty(samples, 3, device=device), torch.empty(samples, device=device)
    if samples:
        inputs = sdf.contiguous(), gradient.contiguous(), directions.contiguous(), lengths.contiguous()
        numbers, at = number_of(inv_std, sdf), number_of(anneal, sdf)
        with _backend.on(sdf):
            _opacity_kernel[(triton.cdiv(samples, SAMPLES),)](
                *inputs, *numbers[:2], *at[:2], alpha, normals, excess, samples, SHARP=numbers[2], ANNEAL=at[2], SAMPLES=SAMPLES
            )
    return alpha, normals, excess


def opacities_grad(
    sdf: Tensor, gradient: Tensor, directions: Tensor, lengths: Tensor, inv_std: float | Tensor, anneal: float | Tensor,
    to_alpha: Tensor, to_normals: Tensor, to_excess: Tensor, learnt: bool, turned: bool,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:  # fmt: skip
    """Gradients of sdf [samples], gradient [samples, 3], where it is `learnt` inv_std [], and where they are `turned` directions [samples, 3]."""
    samples, device = len(sdf), sdf.device
    programs = triton.cdiv(samples, SAMPLES)
    to_sdf, to_gradient = torch.empty(samples, device=device), torch.empty(samples, 3, device=device)
    to_sharp = torch.empty(programs, device=device) if learnt else to_sdf
    to_directions = torch.empty(samples, 3, device=device) if turned else to_gradient
    if samples:
        inputs = sdf.contiguous(), gradient.contiguous(), directions.contiguous(), lengths.contiguous()
        numbers, at = number_of(inv_std, sdf), number_of(anneal, sdf)
        with _backend.on(sdf):
            _opacity_grad_kernel[(programs,)](
                *inputs, *numbers[:2], *at[:2], to_alpha.contiguous(), to_normals.contiguous(), to_excess.contiguous(), to_sdf, to_gradient, to_sharp, to_directions, samples,
                SHARP=numbers[2], ANNEAL=at[2], LEARNT=learnt, TURNED=turned, SAMPLES=SAMPLES,
            )  # fmt: skip
    return to_sdf, to_gradient, to_sharp.sum() if learnt else None, to_directions if turned else None
