"""Ray marching through an occupancy grid into packed samples. Not differentiable: sample positions carry no gradient."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from instant_nk.kernels import _backend, _checks
from instant_nk.kernels.ahead import Call
from instant_nk.kernels.ray_sampling import reference

OP = "ray_sampling"
PADDING = 32  # padded samples per ray of their own: a kernel walks a ray at a time


def march(
    origins: Tensor,
    directions: Tensor,
    occupancy: Tensor,
    step: float,
    jitter: Tensor | None = None,
    near: float = 0.0,
    grid_index: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Samples at even steps along each ray through the box [-1, 1]^3, kept where the grid is occupied.

    Sample k of a ray covers [t0 + (k + jitter) step, t0 + (k + jitter + 1) step], where t0 is the larger of `near` and
    the distance at which the ray enters the box. It is kept when its midpoint lies inside the box and in an occupied cell.

    Args:
        origins: ray origins, scene (or live) space. Float [rays, 3].
        directions: unit directions. Float [rays, 3].
        occupancy: cells of [-1, 1]^3, axes x, y, z. Bool [G, G, G], or [grids, G, G, G] with `grid_index`.
        step: sample spacing along the ray, scene units.
        jitter: offset of each ray's samples in steps, in [0, 1). Float [rays]; None for zero.
        near: least distance from the origin, scene units.
        grid_index: which grid each ray marches through, so that one call serves rays of several frames. Int64 [rays].

    Returns:
        ray_indices int64 [samples], t_starts [samples], t_ends [samples]: ray after ray, near to far.
    """
    ops = _ops_for(origins, directions, occupancy, step, jitter, grid_index)
    with torch.no_grad():
        return ops.march(origins, directions, occupancy, step, jitter, near, grid_index)


def march_padded(
    origins: Tensor,
    directions: Tensor,
    occupancy: Tensor,
    step: float,
    room: int,
    jitter: Tensor | None = None,
    near: float = 0.0,
    grid_index: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`march` into room for a fixed number of samples; on a GPU the host does not wait for how many there are.

    The first ray whose samples do not all fit, and every ray behind it, is left out. What remains of the room is padding: samples of length
    `step` at the origin, on rays numbered from `rays` on, PADDING samples each.

    Args:
        room: samples to make; the other arguments are those of `march`.

    Returns:
        ray_indices int64 [room], t_starts [room], t_ends [room]; and int64 [rays], the samples that rays up to each one have together:
        a ray is left out where that is more than `room`.
    """
    ops = _ops_for(origins, directions, occupancy, step, jitter, grid_index)
    if room < 1:
        raise ValueError(f"{OP}: room must be a positive number of samples; got {room}.")
    with torch.no_grad():
        if hasattr(ops, "march_padded"):
            return ops.march_padded(origins, directions, occupancy, step, jitter, near, grid_index, room, PADDING)
        return reference.padded(*ops.march(origins, directions, occupancy, step, jitter, near, grid_index), len(origins), step, room, PADDING)


def rehearsals(cells: int, device: torch.device | str) -> list[Call]:
    """A march of a single ray through an empty grid of `cells` per axis, which launches each Triton kernel: see `kernels.ahead`."""
    origin, direction = torch.zeros(1, 3, device=device), torch.ones(1, 3, device=device)
    empty = torch.zeros(cells, cells, cells, dtype=torch.bool, device=device)

    def padded() -> None:
        from instant_nk.kernels.ray_sampling import triton as ops

        ops.march_padded(origin, direction, empty, 0.5, None, 0.0, None, PADDING, PADDING)

    return [padded]


def _ops_for(origins: Tensor, directions: Tensor, occupancy: Tensor, step: float, jitter: Tensor | None, grid_index: Tensor | None) -> ModuleType:
    """The backend's module, once the arguments have been checked."""
    _checks.tensor(OP, "origins", origins, ("rays", 3))
    rays = origins.shape[0]
    _checks.tensor(OP, "directions", directions, (rays, 3), (origins.dtype,), like=origins)
    cells = occupancy.shape[-1]
    grid_shape = (cells, cells, cells) if grid_index is None else ("grids", cells, cells, cells)
    _checks.tensor(OP, "occupancy", occupancy, grid_shape, (torch.bool,), like=origins)
    if jitter is not None:
        _checks.tensor(OP, "jitter", jitter, (rays,), (origins.dtype,), like=origins)
    if grid_index is not None:
        _checks.tensor(OP, "grid_index", grid_index, (rays,), _checks.INTEGERS, like=origins)
    if not step > 0:
        raise ValueError(f"{OP}: step must be a positive distance in scene units; got {step}.")
    backend = _backend.choose(OP, origins, directions)
    if backend == "triton":
        from instant_nk.kernels.ray_sampling import triton as ops
    elif backend == "numba":
        from instant_nk.kernels.ray_sampling import cpu as ops
    else:
        ops = reference
    return ops
