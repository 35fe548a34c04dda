"""NeuS opacity in plain torch: the definition of correct, for any float dtype and any order of derivative."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def opacities(
    sdf: Tensor, gradient: Tensor, directions: Tensor, lengths: Tensor, inv_std: float | Tensor, anneal: float | Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Opacity, unit normal and squared excess of the gradient's length."""
    alpha = alpha_of(sdf, (directions * gradient).sum(-1), lengths, inv_std, anneal)
    return alpha, F.normalize(gradient, dim=-1), (torch.linalg.vector_norm(gradient, dim=-1) - 1) ** 2


def alpha_of(sdf: Tensor, cos: Tensor, lengths: Tensor, inv_std: float | Tensor, anneal: float | Tensor = 1.0) -> Tensor:
    """Opacity [N] of samples from distance and cosine between direction and gradient, negative where the ray enters (Wang et al. 2021, equation 13)."""
    slope = -(F.relu(0.5 - 0.5 * cos) * (1 - anneal) + F.relu(-cos) * anneal)
    half = slope * lengths * 0.5
    before = torch.sigmoid((sdf - half) * inv_std)
    after = torch.sigmoid((sdf + half) * inv_std)
    return ((before - after + 1e-5) / (before + 1e-5)).clamp(0, 1)
