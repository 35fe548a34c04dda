"""Volume rendering in Triton: one warp walks one ray, a chunk of samples at a time. `reference.py` is the definition."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from instant_nk.kernels import _backend
from instant_nk.kernels._triton_memory import launched, number, number_of
from instant_nk.kernels.volume_rendering import reference

CHUNK = 32  # samples of a ray at once
SAMPLES = 256  # samples per program where rays do not matter
LEAST_LIGHT = tl.constexpr(reference.LEAST_LIGHT)


@triton.jit
def _then(m_late, c_late, m_early, c_early):
    """The affine map `late` followed by `early`, for a scan from far to near."""
    return m_early * m_late, c_early + m_early * c_late


@launched()
def _weights_kernel(alphas, starts, weights, transmittance, CHUNK: tl.constexpr):
    ray = tl.program_id(0)
    start, end = tl.load(starts + ray), tl.load(starts + ray + 1)
    lane = tl.arange(0, CHUNK)
    carry = 1.0
    for first in range(start, end, CHUNK):
        i = first + lane
        inside = i < end
        before = tl.load(alphas + i - 1, mask=inside & (i > start), other=0.0)
        clear = carry * tl.cumprod(1.0 - before, axis=0)
        tl.store(transmittance + i, clear, mask=inside)
        tl.store(weights + i, clear * tl.load(alphas + i, mask=inside, other=0.0), mask=inside)
        carry = tl.sum(tl.where(lane == CHUNK - 1, clear, 0.0))


@launched()
def _weights_grad_kernel(alphas, transmittance, starts, grad_weights, grad_transmittance, grad_alphas, CHUNK: tl.constexpr):
    ray = tl.program_id(0)
    start, end = tl.load(starts + ray), tl.load(starts + ray + 1)
    lane = tl.arange(0, CHUNK)
    carry = 0.0
    chunks = (end - start + CHUNK - 1) // CHUNK
    for back in range(chunks):
        i = start + (chunks - 1 - back) * CHUNK + lane
        inside, behind = i < end, i + 1 < end
        a = tl.load(alphas + i + 1, mask=behind, other=1.0)
        c = a * tl.load(grad_weights + i + 1, mask=behind, other=0.0) + tl.load(grad_transmittance + i + 1, mask=behind, other=0.0)
        m, c = tl.associative_scan((1.0 - a, c), 0, _then, reverse=True)
        light = c + m * carry  # d loss / d (light that passes sample i), per unit of that light
        g = tl.load(grad_weights + i, mask=inside, other=0.0)
        tl.store(grad_alphas + i, tl.load(transmittance + i, mask=inside, other=0.0) * (g - light), mask=inside)
        carry = tl.sum(tl.where(lane == 0, light, 0.0))


@launched()
def _accumulate_kernel(weights, values, starts, sums, CHANNELS: tl.constexpr, WIDTH: tl.constexpr, CHUNK: tl.constexpr):
    ray = tl.program_id(0).to(tl.int64)
    start, end = tl.load(starts + ray), tl.load(starts + ray + 1)
    channel = tl.arange(0, WIDTH)[None, :]
    total = tl.zeros([CHUNK, WIDTH], tl.float32)
    for first in range(start, end, CHUNK):
        i = first + tl.arange(0, CHUNK)[:, None]
        inside = (i < end) & (channel < CHANNELS)
        total += tl.load(weights + i, mask=i < end, other=0.0) * tl.load(values + i * CHANNELS + channel, mask=inside, other=0.0)
    tl.store(sums + ray * CHANNELS + channel, tl.sum(total, axis=0, keep_dims=True), mask=channel < CHANNELS)


@launched(do_not_specialize=["n_samples"])
def _accumulate_grad_kernel(
    weights, values, rays, grad, grad_weights, grad_values, n_samples, CHANNELS: tl.constexpr, WIDTH: tl.constexpr, SAMPLES: tl.constexpr
):
    i = tl.program_id(0).to(tl.int64) * SAMPLES + tl.arange(0, SAMPLES)[:, None]
    channel = tl.arange(0, WIDTH)[None, :]
    inside = (i < n_samples) & (channel < CHANNELS)
    ray = tl.load(rays + i, mask=i < n_samples, other=0)
    g = tl.load(grad + ray * CHANNELS + channel, mask=inside, other=0.0)
    v = tl.load(values + i * CHANNELS + channel, mask=inside, other=0.0)
    w = tl.load(weights + i, mask=i < n_samples, other=0.0)
    tl.store(grad_values + i * CHANNELS + channel, g * w, mask=inside)
    tl.store(grad_weights + i, tl.sum(g * v, axis=1, keep_dims=True), mask=i < n_samples)


@triton.jit
def _rise(here, there, sharp):
    """Opacity between two distances along a ray."""
    before = tl.sigmoid(here * sharp)
    return tl.minimum(tl.maximum((before - tl.sigmoid(there * sharp)) / (before + 1e-5), 0.0), 1.0)


@launched(do_not_specialize=["sharp", "sharp_at", "least"])  # a number lies anywhere, aligned or not
def _visible_kernel(sdf, starts, keep, sharp, sharp_at, least, SHARP: tl.constexpr, CHUNK: tl.constexpr):
    ray = tl.program_id(0)
    start, end = tl.load(starts + ray), tl.load(starts + ray + 1)
    sharp = number(sharp, sharp_at, SHARP)
    lane = tl.arange(0, CHUNK)
    carry = 1.0
    for first in range(start, end, CHUNK):
        i = first + lane
        inside = i < end
        here = tl.load(sdf + i, mask=inside, other=0.0)
        alpha = _rise(here, tl.where(i + 1 < end, tl.load(sdf + i + 1, mask=i + 1 < end, other=0.0), here), sharp)
        before = tl.where(i > start, _rise(tl.load(sdf + i - 1, mask=inside & (i > start), other=0.0), here, sharp), 0.0)
        clear = carry * tl.cumprod(1.0 - before, axis=0)
        tl.store(keep + i, ((clear * alpha > least) & (clear > LEAST_LIGHT)).to(tl.uint8), mask=inside)
        carry = tl.sum(tl.where(lane == CHUNK - 1, clear, 0.0))


@launched(do_not_specialize=["samples"])
def _beside_kernel(keep, rays, wide, samples, SAMPLES: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * SAMPLES + tl.arange(0, SAMPLES)
    first, last = (i > 0) & (i < samples), i + 1 < samples
    ray = tl.load(rays + i, mask=i < samples, other=-1)
    earlier = (tl.load(keep + i - 1, mask=first, other=0) != 0) & (tl.load(rays + i - 1, mask=first, other=-1) == ray)
    later = (tl.load(keep + i + 1, mask=last, other=0) != 0) & (tl.load(rays + i + 1, mask=last, other=-1) == ray)
    tl.store(wide + i, ((tl.load(keep + i, mask=i < samples, other=0) != 0) | earlier | later).to(tl.uint8), mask=i < samples)


def visible(sdf: Tensor, ray_indices: Tensor, n_rays: int, inv_std: float | Tensor, least: float) -> Tensor:
    """As `reference.visible`."""
    samples = len(sdf)
    keep, wide = (torch.empty(samples, dtype=torch.bool, device=sdf.device).view(torch.uint8) for _ in range(2))
    if samples and n_rays:
        value, at, in_memory = number_of(inv_std, sdf)
        rays = ray_indices.contiguous()
        with _backend.on(sdf):
            _visible_kernel[(n_rays,)](sdf.contiguous(), _starts(rays, n_rays), keep, value, at, least, SHARP=in_memory, CHUNK=CHUNK, num_warps=1)
            _beside_kernel[(triton.cdiv(samples, SAMPLES),)](keep, rays, wide, samples, SAMPLES=SAMPLES)
    return wide.view(torch.bool)


def _starts(ray_indices: Tensor, n_rays: int) -> Tensor:
    """First sample of every ray, and the end: int64 [rays + 1]."""
    return torch.searchsorted(ray_indices.contiguous(), torch.arange(n_rays + 1, device=ray_indices.device))


def render_weights(alphas: Tensor, ray_indices: Tensor, n_rays: int) -> tuple[Tensor, Tensor]:
    """As `reference.render_weights`."""
    weights, transmittance = torch.empty(len(alphas), device=alphas.device), torch.empty(len(alphas), device=alphas.device)
    if n_rays:
        with _backend.on(alphas):
            _weights_kernel[(n_rays,)](alphas.contiguous(), _starts(ray_indices, n_rays), weights, transmittance, CHUNK=CHUNK, num_warps=1)
    return weights, transmittance


def render_weights_grad(alphas: Tensor, transmittance: Tensor, ray_indices: Tensor, n_rays: int, grad_weights: Tensor, grad_transmittance: Tensor) -> Tensor:
    """Gradient of the alphas by a reverse scan of affine maps: no division, so exact at alpha = 1."""
    grad_alphas = torch.empty(len(alphas), device=alphas.device)
    if n_rays:
        inputs = alphas.contiguous(), transmittance, _starts(ray_indices, n_rays), grad_weights.contiguous(), grad_transmittance.contiguous()
        with _backend.on(alphas):
            _weights_grad_kernel[(n_rays,)](*inputs, grad_alphas, CHUNK=CHUNK, num_warps=1)
    return grad_alphas


def accumulate(weights: Tensor, values: Tensor, ray_indices: Tensor, n_rays: int) -> Tensor:
    """As `reference.accumulate`."""
    channels = values.shape[1]
    sums = torch.empty(n_rays, channels, device=weights.device)
    if n_rays and channels:
        with _backend.on(weights):
            _accumulate_kernel[(n_rays,)](
                weights.contiguous(), values.contiguous(), _starts(ray_indices, n_rays), sums,
                CHANNELS=channels, WIDTH=triton.next_power_of_2(channels), CHUNK=CHUNK, num_warps=1,
            )  # fmt: skip
    return sums


def accumulate_grad(weights: Tensor, values: Tensor, ray_indices: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of weights [samples] and values [samples, channels]."""
    samples, channels = values.shape
    grad_weights, grad_values = torch.empty(samples, device=weights.device), torch.empty(samples, channels, device=weights.device)
    if samples:
        with _backend.on(weights):
            _accumulate_grad_kernel[(triton.cdiv(samples, SAMPLES),)](
                weights.contiguous(), values.contiguous(), ray_indices.contiguous(), grad.contiguous(), grad_weights, grad_values, samples,
                CHANNELS=channels, WIDTH=triton.next_power_of_2(channels), SAMPLES=SAMPLES,
            )  # fmt: skip
    return grad_weights, grad_values
