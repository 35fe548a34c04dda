"""Volume rendering of packed samples: transmittance, weights, and sums along rays.

Samples of all rays are concatenated, ray after ray and near to far within each; `ray_indices` names every sample's ray.
First-order differentiable in alphas, weights and values, exact where an alpha is 1; a second derivative is refused
(the reference backend alone has it).
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from instant_nk.kernels import _backend, _checks
from instant_nk.kernels.ahead import Call
from instant_nk.kernels.volume_rendering import reference

OP = "volume_rendering"


def render_weights(alphas: Tensor, ray_indices: Tensor, n_rays: int) -> tuple[Tensor, Tensor]:
    """Weight of each sample in its ray's colour, and the light that still reaches it.

    weights_i = alpha_i * T_i with T_i = prod_{j<i} (1 - alpha_j) over the earlier samples of the same ray.

    Args:
        alphas: opacity of each sample, in [0, 1]. Float [samples].
        ray_indices: ray of each sample, ascending, in [0, n_rays). Int64 [samples].
        n_rays: number of rays, with or without samples.

    Returns:
        weights [samples] and transmittance [samples].
    """
    _checks.tensor(OP, "alphas", alphas, ("samples",))
    _checks.tensor(OP, "ray_indices", ray_indices, (alphas.shape[0],), _checks.INTEGERS, like=alphas)
    compiled = _compiled(alphas)
    if compiled is None:
        return reference.render_weights(alphas, ray_indices, n_rays)
    return _RenderWeights.apply(alphas, ray_indices, n_rays, compiled)


def visible(sdf: Tensor, ray_indices: Tensor, n_rays: int, inv_std: float | Tensor, least: float) -> Tensor:
    """Samples whose weight can exceed `least`, told from distances alone: the next sample of the ray gives the slope. And their neighbours along the ray.

    Args:
        sdf: signed distance at each sample, scene units. Float [samples].
        ray_indices: ray of each sample, ascending, in [0, n_rays). Int64 [samples].
        n_rays: number of rays, with or without samples.
        inv_std: sharpness of the surface. A number, or a tensor [].
        least: weight, in [0, 1].

    Returns:
        Bool [samples]; carries no gradient.
    """
    _checks.tensor(OP, "sdf", sdf, ("samples",))
    _checks.tensor(OP, "ray_indices", ray_indices, (sdf.shape[0],), _checks.INTEGERS, like=sdf)
    _checks.number(OP, "inv_std", inv_std, like=sdf)
    with torch.no_grad():
        if _backend.choose(OP, sdf) == "triton":
            from instant_nk.kernels.volume_rendering import triton as ops

            return ops.visible(sdf, ray_indices, n_rays, inv_std, least)
        return reference.visible(sdf, ray_indices, n_rays, inv_std, least, render_weights)


def accumulate(weights: Tensor, values: Tensor | None, ray_indices: Tensor, n_rays: int) -> Tensor:
    """Sum over each ray of weight times value: composited colour, depth, or opacity.

    Args:
        weights: Float [samples].
        values: what is summed, Float [samples, channels], taken to the weights' dtype; None sums the weights alone (the ray's opacity).
        ray_indices: ray of each sample, ascending, in [0, n_rays). Int64 [samples].
        n_rays: number of rays, with or without samples.

    Returns:
        Float [rays, channels] (one channel when `values` is None); zero for rays without samples.
    """
    _checks.tensor(OP, "weights", weights, ("samples",))
    values = torch.ones_like(weights)[:, None] if values is None else values.to(weights.dtype)
    _checks.tensor(OP, "values", values, (weights.shape[0], "channels"), like=weights)
    _checks.tensor(OP, "ray_indices", ray_indices, (weights.shape[0],), _checks.INTEGERS, like=weights)
    compiled = _compiled(weights, values)
    if compiled is None:
        return reference.accumulate(weights, values, ray_indices, n_rays)
    return _Accumulate.apply(weights, values, ray_indices, n_rays, compiled)


def rehearsals(channels: int, device: torch.device | str, learnt: bool) -> list[Call]:
    """One launch, on a single sample, of each Triton kernel behind compositing `channels` and its gradients, and behind `visible`: see `kernels.ahead`.

    Args:
        learnt: whether `visible` is told the sharpness as a tensor.
    """
    alpha, ray, values = torch.zeros(1, device=device), torch.zeros(1, dtype=torch.int64, device=device), torch.zeros(1, channels, device=device)

    def weights() -> None:
        from instant_nk.kernels.volume_rendering import triton as ops

        ops.render_weights(alpha, ray, 1)
        ops.render_weights_grad(alpha, alpha, ray, 1, alpha, alpha)

    def sums() -> None:
        from instant_nk.kernels.volume_rendering import triton as ops

        ops.accumulate(alpha, values, ray, 1)
        ops.accumulate_grad(alpha, values, ray, values)

    def seen() -> None:
        from instant_nk.kernels.volume_rendering import triton as ops

        ops.visible(alpha, ray, 1, torch.ones((), device=device) if learnt else 1.0, 0.5)

    return [weights, sums, seen]


def _compiled(*tensors: Tensor) -> ModuleType | None:
    """The backend's module of forwards and gradients; None for the reference, which leaves the gradients to autograd."""
    backend = _backend.choose(OP, *tensors)
    if backend == "triton":
        from instant_nk.kernels.volume_rendering import triton as module
    elif backend == "numba":
        from instant_nk.kernels.volume_rendering import cpu as module
    else:
        module = None
    return module


class _RenderWeights(Function):
    @staticmethod
    def forward(ctx: Any, alphas: Tensor, ray_indices: Tensor, n_rays: int, ops: ModuleType) -> tuple[Tensor, Tensor]:
        weights, transmittance = ops.render_weights(alphas, ray_indices, n_rays)
        ctx.save_for_backward(alphas, transmittance, ray_indices)
        ctx.n_rays, ctx.ops = n_rays, ops
        return weights, transmittance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_weights: Tensor, grad_transmittance: Tensor) -> tuple[Tensor | None, ...]:
        alphas, transmittance, ray_indices = ctx.saved_tensors
        return ctx.ops.render_weights_grad(alphas, transmittance, ray_indices, ctx.n_rays, grad_weights, grad_transmittance), None, None, None


class _Accumulate(Function):
    @staticmethod
    def forward(ctx: Any, weights: Tensor, values: Tensor, ray_indices: Tensor, n_rays: int, ops: ModuleType) -> Tensor:
        ctx.save_for_backward(weights, values, ray_indices)
        ctx.ops = ops
        return ops.accumulate(weights, values, ray_indices, n_rays)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weights, values, ray_indices = ctx.saved_tensors
        return *ctx.ops.accumulate_grad(weights, values, ray_indices, grad), None, None, None
