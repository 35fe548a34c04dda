"""Volume rendering in plain torch: the definition of correct, for any float dtype and any order of derivative."""

from __future__ import annotations

import torch
from torch import Tensor


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


def _position_in_ray(ray_indices: Tensor, n_rays: int) -> Tensor:
    """How many samples of the same ray come before each sample, int64 [samples]."""
    counts = torch.bincount(ray_indices, minlength=n_rays)
    starts = counts.cumsum(0) - counts
    return torch.arange(len(ray_indices), device=ray_indices.device) - starts[ray_indices]
