"""Ray marching as compiled CPU loops (numba), float32; `reference.py` is the definition."""

from __future__ import annotations

import numpy as np
import torch
from numba import njit
from torch import Tensor

from instant_nk.kernels._loop import loop
from instant_nk.kernels._threads import over_rows

ONE = np.float32(1)


@njit(inline="always")
def _interval(origin, direction, near):
    """Entry to and exit from [-1, 1]^3."""
    enter, leave = np.float32(-np.inf), np.float32(np.inf)
    for axis in range(3):
        d = direction[axis]
        if abs(d) < np.finfo(np.float32).tiny:
            d = np.finfo(np.float32).tiny
        a, b = (np.float32(-1) - origin[axis]) / d, (np.float32(1) - origin[axis]) / d
        enter, leave = max(enter, min(a, b)), min(leave, max(a, b))
    return max(enter, near), leave


@njit(inline="always")
def _cell(base, slope, middle, cells):
    return min(max(np.int64(base + slope * middle), 0), cells - 1)


@loop()
def _march(first, last, origins, directions, grids, grid_index, step, jitter, near, counts, starts, t_starts, ray_indices, fill):
    """Count the kept samples of every ray, or, with `fill`, write them from `starts` on."""
    cells = grids.shape[1]
    half = np.float32(cells) / np.float32(2)
    for r in range(first, last):
        if fill and counts[r] == 0:
            continue
        enter, leave = _interval(origins[r], directions[r], near)
        grid = grids[grid_index[r]]
        x, y, z = (origins[r, 0] + ONE) * half, (origins[r, 1] + ONE) * half, (origins[r, 2] + ONE) * half
        dx, dy, dz = directions[r, 0] * half, directions[r, 1] * half, directions[r, 2] * half
        kept, k = 0, np.float32(0)
        while True:
            t = enter + (k + jitter[r]) * step
            middle = t + np.float32(0.5) * step
            if not middle < leave:
                break
            if grid[_cell(x, dx, middle, cells), _cell(y, dy, middle, cells), _cell(z, dz, middle, cells)]:
                if fill:
                    t_starts[starts[r] + kept] = t
                    ray_indices[starts[r] + kept] = r
                kept += 1
            k += ONE
        counts[r] = kept


def march(
    origins: Tensor, directions: Tensor, occupancy: Tensor, step: float, jitter: Tensor | None, near: float, grid_index: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """As `reference.march`: one pass counts, a second writes."""
    rays = len(origins)
    grids = (occupancy[None] if grid_index is None else occupancy).contiguous().numpy()
    grid_index = torch.zeros(rays, dtype=torch.int64) if grid_index is None else grid_index
    jitter = torch.zeros(rays) if jitter is None else jitter
    inputs = (origins.contiguous().numpy(), directions.contiguous().numpy(), grids, grid_index.contiguous().numpy())
    inputs += (np.float32(step), jitter.contiguous().numpy(), np.float32(near))
    counts = np.zeros(rays, np.int64)
    starts = np.zeros(rays, np.int64)
    over_rows(rays, lambda a, b: _march(a, b, *inputs, counts, starts, np.empty(0, np.float32), np.empty(0, np.int64), False))
    starts[1:] = counts[:-1].cumsum()
    total = int(counts.sum())
    t_starts, ray_indices = torch.empty(total), torch.empty(total, dtype=torch.int64)
    out = t_starts.numpy(), ray_indices.numpy()
    over_rows(rays, lambda a, b: _march(a, b, *inputs, counts, starts, *out, True))
    return ray_indices, t_starts, t_starts + step
