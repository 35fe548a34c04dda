"""Ray marching through an occupancy grid into packed samples. Not differentiable: sample positions carry no gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from instant_nk.kernels import _backend, _checks
from instant_nk.kernels.ray_sampling import reference

OP = "ray_sampling"


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
    with torch.no_grad():
        return ops.march(origins, directions, occupancy, step, jitter, near, grid_index)
