"""Volume rendering in plain torch: the definition of correct, for any float dtype and any order of derivative."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

LEAST_LIGHT = 1e-3  # transmittance behind which nothing is seen
Weights = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]


def render_weights(alphas: Tensor, ray_indices: Tensor, n_rays: int) -> tuple[Tensor, Tensor]:
    """Weights w_i = alpha_i T_i and transmittance T_i = prod_{j<i} (1 - alpha_j), per ray.

    The products are a segmented scan by doubling: after pass d every sample holds the product over its 2^d nearest
    predecessors. Products, unlike sums of logarithms, stay exact at alpha = 1, and so do their derivatives.
    """
    position = _position_in_ray(ray_indices, n_rays)
    clear = torch.cat([alphas.new_ones(min(1, len(alphas))), 1 - alphas[:-1]])
    transmittance = torch.where(position == 0, torch.ones_like(alphas), clear)
    longest = int(position.max()) + 1 if len(alphas) else 0
    reach = 1
    while reach < longest:
        earlier = torch.where(position[reach:] >= reach, transmittance[:-reach], 1.0)
        transmittance = torch.cat([transmittance[:reach], transmittance[reach:] * earlier])
        reach *= 2
    return alphas * transmittance, transmittance


def accumulate(weights: Tensor, values: Tensor, ray_indices: Tensor, n_rays: int) -> Tensor:
    """Sum of w_i v_i over the samples of each ray, [rays, channels]."""
    terms = weights[:, None] * values
    return terms.new_zeros(n_rays, terms.shape[1]).index_add(0, ray_indices, terms)


def visible(sdf: Tensor, ray_indices: Tensor, n_rays: int, inv_std: float | Tensor, least: float, weights_of: Weights) -> Tensor:
    """Mask of samples that can weigh more than `least`, and of those beside them; `weights_of` is `render_weights` by any backend."""
    same = ray_indices[1:] == ray_indices[:-1]
    forward = torch.where(same, sdf[1:], sdf[:-1])
    before = torch.sigmoid(sdf * inv_std)
    after = torch.cat([torch.sigmoid(forward * inv_std), before[-1:]]) if len(sdf) else before
    alpha = ((before - after) / (before + 1e-5)).clamp(0, 1)
    weights, transmittance = weights_of(alpha, ray_indices, n_rays)
    keep = (weights > least) & (transmittance > LEAST_LIGHT)
    # the neighbours too: the slope there decides how much of the step a sample takes
    wide = keep.clone()
    wide[1:] |= keep[:-1] & same
    wide[:-1] |= keep[1:] & same
    return wide


def _position_in_ray(ray_indices: Tensor, n_rays: int) -> Tensor:
    """How many samples of the same ray come before each sample, int64 [samples]."""
    counts = torch.bincount(ray_indices, minlength=n_rays)
    starts = counts.cumsum(0) - counts
    return torch.arange(len(ray_indices), device=ray_indices.device) - starts[ray_indices]
