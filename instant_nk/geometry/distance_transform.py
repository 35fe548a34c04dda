"""Exact Euclidean distance transforms of many masks at once, on any device: scipy's, for which pixels need not leave the GPU."""

from __future__ import annotations

import torch
from torch import Tensor

PAIRS_PER_CHUNK = 1 << 27  # pairs of pixels of one row compared at once: 512 MiB


def distance_to_false(masks: Tensor) -> Tensor:
    """Distance of each pixel's centre to that of the nearest False pixel, in pixels; 0 on False pixels.

    First along columns, then the least of all sums along rows (Saito and Toriwaki 1994).

    Args:
        masks: bool [C, H, W].

    Returns:
        f32 [C, H, W]; where a mask has no False pixel, more than any distance within the image.
    """
    count, height, width = masks.shape
    if not masks.numel():
        return masks.float()
    far = height + width
    row = torch.arange(height, device=masks.device)[:, None]
    above = row - torch.where(masks, -far, row).cummax(1).values
    below = torch.where(masks, height + far, row).flip(1).cummin(1).values.flip(1) - row
    along = torch.minimum(above, below).clamp_max(far).float().square().reshape(-1, width)  # [C H, W]
    column = torch.arange(width, device=masks.device, dtype=torch.float32)
    across = (column[:, None] - column).square()
    parts = [(across + rows[:, None]).amin(2) for rows in along.split(max(1, PAIRS_PER_CHUNK // width**2))]
    return torch.cat(parts).sqrt().reshape(count, height, width)
