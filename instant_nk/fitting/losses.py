"""Loss terms shared by the canonical, observation and window fields."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def photometric(rgb: Tensor, opacity: Tensor, target: Tensor, alpha: Tensor, background: Tensor) -> Tensor:
    """Huber loss of rendered against observed colour, both over the same random background [R, 3].

    Args:
        rgb: rendered colour premultiplied by opacity [R, 3].
        target: observed straight colour [R, 3].
    """
    seen = rgb + (1 - opacity)[:, None] * background
    wanted = target * alpha[:, None] + (1 - alpha)[:, None] * background
    return F.huber_loss(seen, wanted, delta=0.1) * 10


def mask(opacity: Tensor, alpha: Tensor) -> Tensor:
    """Binary cross-entropy between opacity and mask coverage."""
    return F.binary_cross_entropy(opacity.clamp(1e-3, 1 - 1e-3), alpha)


def eikonal(gradient: Tensor) -> Tensor:
    """(|grad sdf| - 1)^2 of each point, [N]."""
    return (torch.linalg.vector_norm(gradient, dim=-1) - 1) ** 2
