"""From opacities and colours along rays to what the rays see (packed samples)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from instant_nk.kernels.volume_rendering import accumulate, render_weights

CHANNELS = 8  # that `composite` sums: colour, normal, distance, one


@dataclass
class Rendered:
    """What rays see: sums of samples by weight, so all but the opacity are premultiplied by it.

    Attributes:
        rgb: sRGB [R, 3].
        opacity: [R].
        depth: of the distances given [R].
        normal: [R, 3].
    """

    rgb: Tensor
    opacity: Tensor
    depth: Tensor
    normal: Tensor


def composite(alpha: Tensor, rgb: Tensor, normals: Tensor, distances: Tensor, ray_indices: Tensor, n_rays: int) -> Rendered:
    """Sums of colour, opacity, distance and normal along rays."""
    weights, _ = render_weights(alpha, ray_indices, n_rays)
    sums = accumulate(weights, torch.cat([rgb, normals, distances[:, None], torch.ones_like(distances)[:, None]], -1), ray_indices, n_rays)
    return Rendered(sums[:, :3], sums[:, 7], sums[:, 6], sums[:, 3:6])
