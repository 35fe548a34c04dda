"""Ray marching in Triton: one warp a ray, a chunk of steps at a time; one pass counts, a second writes. `reference.py` is the definition."""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from instant_nk.kernels import _backend
from instant_nk.kernels._triton_memory import launched

CHUNK = 64  # steps of a ray at once


@triton.jit
def _slab(origin, direction, enter, leave):
    """Cut [enter, leave] to the ray's stay in [-1, 1] along one axis."""
    direction = tl.where(tl.abs(direction) < 1.1754944e-38, 1.1754944e-38, direction)
    a, b = (-1.0 - origin) / direction, (1.0 - origin) / direction
    return tl.maximum(enter, tl.minimum(a, b)), tl.minimum(leave, tl.maximum(a, b))


@triton.jit
def _cell(base, slope, middle, CELLS: tl.constexpr):
    return tl.minimum(tl.maximum((base + slope * middle).to(tl.int32), 0), CELLS - 1)


@launched(do_not_specialize=["room"])
def _march_kernel(
    origins,
    directions,
    grids,
    grid_index,
    jitter,
    counts,
    ends,
    t_starts,
    ray_indices,
    step,
    near,
    room,
    CELLS: tl.constexpr,
    FILL: tl.constexpr,
    CHUNK: tl.constexpr,
):
    ray = tl.program_id(0).to(tl.int64)
    kept = 0
    if FILL:
        kept = tl.where(tl.load(ends + ray) > room, 0, tl.load(counts + ray))
    if kept > 0 or not FILL:
        ox, oy, oz = tl.load(origins + ray * 3), tl.load(origins + ray * 3 + 1), tl.load(origins + ray * 3 + 2)
        dx, dy, dz = tl.load(directions + ray * 3), tl.load(directions + ray * 3 + 1), tl.load(directions + ray * 3 + 2)
        offset = tl.load(jitter + ray)
        grid = grids + tl.load(grid_index + ray) * (CELLS * CELLS * CELLS)
        enter, leave = _slab(ox, dx, float("-inf"), float("inf"))
        enter, leave = _slab(oy, dy, enter, leave)
        enter, leave = _slab(oz, dz, enter, leave)
        enter = tl.maximum(enter, near)
        half: tl.constexpr = CELLS / 2
        x, y, z = (ox + 1.0) * half, (oy + 1.0) * half, (oz + 1.0) * half
        dx, dy, dz = dx * half, dy * half, dz * half
        steps = tl.minimum(tl.maximum((leave - enter) / step - offset + 1.5, 0.0), 1e9).to(tl.int32)
        at = (tl.load(ends + ray) - kept) if FILL else kept
        total = 0
        for first in range(0, steps, CHUNK):
            t = enter + ((first + tl.arange(0, CHUNK)).to(tl.float32) + offset) * step
            middle = t + 0.5 * step
            inside = middle < leave
            cell = (_cell(x, dx, middle, CELLS) * CELLS + _cell(y, dy, middle, CELLS)) * CELLS + _cell(z, dz, middle, CELLS)
            keep = tl.load(grid + cell, mask=inside, other=0).to(tl.int32)
            if FILL:
                place = at + total + tl.cumsum(keep, axis=0) - keep
                tl.store(t_starts + place, t, mask=keep != 0)
                tl.store(ray_indices + place, ray, mask=keep != 0)
            total += tl.sum(keep)
        if not FILL:
            tl.store(counts + ray, total)


def march(
    origins: Tensor, directions: Tensor, occupancy: Tensor, step: float, jitter: Tensor | None, near: float, grid_index: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """As `reference.march`. The number of samples decides the size of the output, so the host waits for it once."""
    rays, device = len(origins), origins.device
    if not rays:
        return torch.empty(0, dtype=torch.int64, device=device), torch.empty(0, device=device), torch.empty(0, device=device)
    launch, ends = _counted(origins, directions, occupancy, step, jitter, near, grid_index)
    total = int(ends[-1])
    t_starts, ray_indices = torch.empty(total, device=device), torch.empty(total, dtype=torch.int64, device=device)
    launch(t_starts, ray_indices, total)
    return ray_indices, t_starts, t_starts + step


def march_padded(
    origins: Tensor, directions: Tensor, occupancy: Tensor, step: float, jitter: Tensor | None, near: float, grid_index: Tensor | None, room: int, padding: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `reference.padded`; the host waits for nothing."""
    rays, device = len(origins), origins.device
    t_starts = torch.zeros(room, device=device)
    ray_indices = rays + torch.arange(room, device=device) // padding
    ends = torch.zeros(0, dtype=torch.int64, device=device)
    if rays:
        launch, ends = _counted(origins, directions, occupancy, step, jitter, near, grid_index)
        launch(t_starts, ray_indices, room)
    return ray_indices, t_starts, t_starts + step, ends


def _counted(
    origins: Tensor, directions: Tensor, occupancy: Tensor, step: float, jitter: Tensor | None, near: float, grid_index: Tensor | None
) -> tuple[Callable[[Tensor, Tensor, int], None], Tensor]:
    """What writes the samples once there is room for them, and how many rays up to each one have together [rays]."""
    rays, device = len(origins), origins.device
    jitter = torch.zeros(rays, device=device) if jitter is None else jitter.contiguous()
    grid_index = torch.zeros(rays, dtype=torch.int64, device=device) if grid_index is None else grid_index.contiguous()
    inputs = origins.contiguous(), directions.contiguous(), occupancy.contiguous().view(torch.uint8), grid_index, jitter
    counts = torch.empty(rays, dtype=torch.int64, device=device)
    constants = {"CELLS": occupancy.shape[-1], "CHUNK": CHUNK, "num_warps": 1}
    with _backend.on(origins):
        _march_kernel[(rays,)](*inputs, counts, None, None, None, step, near, 0, FILL=False, **constants)
    ends = counts.cumsum(0)

    def launch(t_starts: Tensor, ray_indices: Tensor, room: int) -> None:
        with _backend.on(origins):
            _march_kernel[(rays,)](*inputs, counts, ends, t_starts, ray_indices, step, near, room, FILL=True, **constants)

    return launch, ends
