"""Ray marching in plain torch: the definition of correct."""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK = 1 << 18  # trial samples held at once: the scratch stays in cache on a CPU and small on a GPU


def march(
    origins: Tensor, directions: Tensor, occupancy: Tensor, step: float, jitter: Tensor | None, near: float, grid_index: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Packed samples (ray_indices, t_starts, t_ends) at t0 + (k + jitter) step whose midpoint cell is occupied.

    Only the steps inside the bounding box of each grid's occupied cells are tried; that changes no result.
    """
    rays, device = origins.shape[0], origins.device
    jitter = origins.new_zeros(rays) if jitter is None else jitter
    grids = occupancy[None] if grid_index is None else occupancy
    grid = torch.zeros(rays, dtype=torch.int64, device=device) if grid_index is None else grid_index

    enter, leave = _box_interval(origins, directions, origins.new_tensor(-1.0), origins.new_tensor(1.0))
    enter = enter.clamp(min=near)
    first, count = _steps_near_occupied(origins, directions, grids, grid, enter, leave, step, jitter)

    hit = torch.nonzero(count)[:, 0]
    longest = int(count.max()) if rays else 0
    pieces = [
        _march_chunk(part, origins, directions, grids, grid, enter, leave, step, jitter, first, longest)
        for part in hit.split(max(1, CHUNK // max(longest, 1)))
        if len(part)
    ]
    if not pieces:
        return torch.zeros(0, dtype=torch.int64, device=device), origins.new_zeros(0), origins.new_zeros(0)
    ray_indices, t_starts = (torch.cat(column) for column in zip(*pieces, strict=True))
    return ray_indices, t_starts, t_starts + step


def padded(ray_indices: Tensor, t_starts: Tensor, t_ends: Tensor, rays: int, step: float, room: int, padding: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What `march` gave, cut or filled to `room` samples; and how many samples rays up to each one have together [rays]."""
    ends = torch.bincount(ray_indices, minlength=rays).cumsum(0)
    kept = int((ends[ray_indices] <= room).sum())
    ray = rays + torch.arange(room, device=ray_indices.device) // padding
    start, end = t_starts.new_zeros(room), t_starts.new_full((room,), step)
    for whole, part in ((ray, ray_indices), (start, t_starts), (end, t_ends)):
        whole[:kept] = part[:kept]
    return ray, start, end, ends


def _box_interval(origins: Tensor, directions: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Distances at which each ray enters and leaves the box [low, high] (slab method); leave < enter is a miss."""
    tiny = torch.finfo(directions.dtype).tiny
    safe = torch.where(directions.abs() < tiny, torch.full_like(directions, tiny), directions)
    a, b = (low - origins) / safe, (high - origins) / safe
    return torch.minimum(a, b).amax(1), torch.maximum(a, b).amin(1)


def _steps_near_occupied(
    origins: Tensor, directions: Tensor, grids: Tensor, grid: Tensor, enter: Tensor, leave: Tensor, step: float, jitter: Tensor
) -> tuple[Tensor, Tensor]:
    """First step index and number of steps per ray inside the occupied cells' bounding box, one step wider at both ends."""
    cells = grids.shape[-1]
    low, high = [], []
    for axis in (1, 2, 3):
        used = grids.any(dim=tuple(a for a in (3, 2, 1) if a != axis))
        low.append(used.byte().argmax(1))
        high.append(torch.where(used.any(1), cells - used.byte().flip(1).argmax(1), low[-1]))
    low, high = (torch.stack(ends, 1)[grid].to(origins.dtype) * (2 / cells) - 1 for ends in (low, high))
    t_first, t_last = _box_interval(origins, directions, low, high)
    first = ((t_first - enter) / step - jitter - 1.5).clamp(min=0).floor()
    last = ((torch.minimum(t_last, leave) - enter) / step - jitter + 1.5).floor()
    empty = (t_last < t_first) | (high <= low).any(1)
    count = torch.where(empty, 0, (last - first + 1).clamp(min=0))
    return first, count.to(torch.int64)


def _march_chunk(
    part: Tensor, origins: Tensor, directions: Tensor, grids: Tensor, grid: Tensor, enter: Tensor, leave: Tensor,
    step: float, jitter: Tensor, first: Tensor, longest: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Rays `part`, `longest` steps each as a dense [rays, steps] block; returns the kept samples' rays and starts."""
    cells = grids.shape[-1]
    steps = first[part, None] + torch.arange(longest, device=part.device)
    t_starts = enter[part, None] + (steps + jitter[part, None]) * step
    middle = t_starts + 0.5 * step
    cell = grid[part, None].to(torch.int32) * cells
    for axis in range(3):
        scaled = torch.addcmul((origins[part, axis, None] + 1) * (cells / 2), directions[part, axis, None] * (cells / 2), middle)
        if axis:
            cell = cell * cells
        cell = cell + scaled.to(torch.int32).clamp_(0, cells - 1)
    kept = grids.view(-1)[cell.view(-1)].view(cell.shape) & (middle < leave[part, None])
    row, column = torch.nonzero(kept, as_tuple=True)
    return part[row], t_starts[row, column]
