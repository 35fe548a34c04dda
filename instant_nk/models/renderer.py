"""From signed distances along rays to colour, opacity, depth and normal (NeuS weights, packed samples)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from instant_nk.kernels.volume_rendering import accumulate, render_weights


def neus_alpha(sdf: Tensor, cos: Tensor, lengths: Tensor, inv_std: float | Tensor, anneal: float = 1.0) -> Tensor:
    """Opacity [N] of samples from SDF at their midpoints (Wang et al. 2021, equation 13, with the annealed cosine).

    Args:
        sdf: scene units [N].
        cos: viewing direction . SDF gradient [N]; negative where the ray enters.
        lengths: sample lengths [N].
        inv_std: sharpness of the logistic.
        anneal: 0 at the start of training, 1 at the end.
    """
    slope = -(F.relu(0.5 - 0.5 * cos) * (1 - anneal) + F.relu(-cos) * anneal)
    half = slope * lengths * 0.5
    before = torch.sigmoid((sdf - half) * inv_std)
    after = torch.sigmoid((sdf + half) * inv_std)
    return ((before - after + 1e-5) / (before + 1e-5)).clamp(0, 1)


def visible_samples(sdf: Tensor, ray_indices: Tensor, n_rays: int, inv_std: float | Tensor, threshold: float) -> Tensor:
    """Mask [N] of samples whose weight can exceed `threshold`, from distances alone: neighbours along the ray give the slope."""
    same = ray_indices[1:] == ray_indices[:-1]
    forward = torch.where(same, sdf[1:], sdf[:-1])
    before = torch.sigmoid(sdf * inv_std)
    after = torch.cat([torch.sigmoid(forward * inv_std), before[-1:]]) if len(sdf) else before
    alpha = ((before - after) / (before + 1e-5)).clamp(0, 1)
    weights, transmittance = render_weights(alpha, ray_indices, n_rays)
    keep = (weights > threshold) & (transmittance > 1e-3)
    # the neighbours too: the slope there decides how much of the step a sample takes
    wide = keep.clone()
    wide[1:] |= keep[:-1] & same
    wide[:-1] |= keep[1:] & same
    return wide


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
