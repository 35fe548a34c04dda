"""Volume rendering of packed samples: transmittance, weights, and sums along rays.

Samples of all rays are concatenated, ray after ray and near to far within each; `ray_indices` names every sample's ray.
First-order differentiable in alphas, weights and values; exact where an alpha is 1.
"""

from __future__ import annotations

from torch import Tensor

from instant_nk.kernels import _checks
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
    return reference.render_weights(alphas, ray_indices, n_rays)


def accumulate(weights: Tensor, values: Tensor | None, ray_indices: Tensor, n_rays: int) -> Tensor:
    """Sum over each ray of weight times value: composited colour, depth, or opacity.

    Args:
        weights: Float [samples].
        values: what is summed, Float [samples, channels]; None sums the weights alone (the ray's opacity).
        ray_indices: ray of each sample, ascending, in [0, n_rays). Int64 [samples].
        n_rays: number of rays, with or without samples.

    Returns:
        Float [rays, channels] (one channel when `values` is None); zero for rays without samples.
    """
    _checks.tensor(OP, "weights", weights, ("samples",))
    if values is not None:
        _checks.tensor(OP, "values", values, (weights.shape[0], "channels"), like=weights)
    _checks.tensor(OP, "ray_indices", ray_indices, (weights.shape[0],), _checks.INTEGERS, like=weights)
    return reference.accumulate(weights, values, ray_indices, n_rays)
