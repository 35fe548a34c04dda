"""The rays' losses in plain torch: the definition of correct, for any float dtype and any order of derivative."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

DELTA = 0.1  # of the Huber loss: up to here the square, beyond the distance
LEAST = 1e-3  # and most, 1 - LEAST, that an opacity counts as: the logarithm stays finite


def means(rgb: Tensor, opacity: Tensor, target: Tensor, alpha: Tensor, background: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Means of colour loss, mask loss and squared error."""
    seen = rgb + (1 - opacity)[:, None] * background
    wanted = target * alpha[:, None] + (1 - alpha)[:, None] * background
    mask = F.binary_cross_entropy(opacity.clamp(LEAST, 1 - LEAST), alpha)
    return F.huber_loss(seen, wanted, delta=DELTA) / DELTA, mask, ((rgb - target * alpha[:, None]).detach() ** 2).mean()
