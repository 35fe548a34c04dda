"""Occupancy grids over [-1, 1]^3: which cells can hold visible surface."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def cell_centres(resolution: int, device: torch.device | str = "cpu") -> Tensor:
    """Centres of all cells [R^3, 3], z fastest, so that `.reshape(R, R, R)` of per-cell values has axes x, y, z."""
    axis = (torch.arange(resolution, device=device, dtype=torch.float32) + 0.5) * (2 / resolution) - 1
    return torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)


def dilate(grid: Tensor, cells: int = 1) -> Tensor:
    """Bool grid [..., R, R, R] grown by `cells` in every direction."""
    shape = grid.shape
    grown = F.max_pool3d(grid.reshape(-1, 1, *shape[-3:]).float(), 2 * cells + 1, stride=1, padding=cells)
    return (grown > 0.5).reshape(shape)


@torch.no_grad()
def near_surface(sdf: Callable[[Tensor], Tensor], candidates: Tensor, margin: float, chunk: int = 1 << 17) -> Tensor:
    """Cells of `candidates` (bool [R, R, R]) whose centre lies within half a cell's diagonal plus `margin` of the surface."""
    resolution = candidates.shape[0]
    rows = candidates.reshape(-1).nonzero()[:, 0]
    centres = cell_centres(resolution, candidates.device)[rows]
    distance = torch.cat([sdf(part) for part in centres.split(chunk)]) if len(rows) else centres[:, 0]
    result = torch.zeros(resolution**3, dtype=torch.bool, device=candidates.device)
    result[rows[distance.abs() < 3**0.5 / resolution + margin]] = True
    return result.reshape(candidates.shape)
