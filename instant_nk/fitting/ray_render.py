"""What rays see of a window's field or of a fit in progress, without gradients."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from instant_nk.kernels.neus_opacity import opacities
from instant_nk.kernels.ray_sampling import march
from instant_nk.kernels.volume_rendering import visible
from instant_nk.models.renderer import Rendered, composite

STEP_CELLS = 0.4  # sample spacing in cells of the occupancy grid
KEEP_WEIGHT = 1e-3  # samples lighter than this are not shaded


class Space(Protocol):
    """Which cells hold surface at each frame: bool [F, G, G, G]."""

    occupied: Tensor

    @property
    def resolution(self) -> int: ...


class Field(Protocol):
    """What renders: `WindowField`, `LiveField`, or a fit on its way to one."""

    @property
    def inv_std(self) -> float | Tensor: ...

    def quick_sdf(self, space: Any, x: Tensor, frame: Tensor) -> tuple[Tensor, Tensor]: ...

    def at(self, space: Any, x: Tensor, frame: Tensor, seed: Tensor, directions: Tensor, *posed: Tensor) -> Any: ...


@torch.no_grad()
def render_rays(field: Field, space: Space, posed: tuple[Tensor, ...], frame: Tensor, origins: Tensor, directions: Tensor, axis: Tensor) -> Rendered:
    """Colour, opacity, depth and normal of rays.

    Args:
        posed: what `field.posed()` says.
        frame: index of each ray's frame, i64 [R].
        origins, directions: live scene space [R, 3].
        axis: optical axis of the camera [3], along which depth is measured.
    """
    rays = len(origins)
    jitter = torch.full((rays,), 0.5, device=origins.device)
    ray, start, end = march(origins, directions, space.occupied, STEP_CELLS * 2 / space.resolution, jitter, grid_index=frame)
    middle = (start + end) * 0.5
    points = origins[ray] + directions[ray] * middle[:, None]
    sdf, seed = field.quick_sdf(space, points, frame[ray])
    keep = visible(sdf, ray, rays, field.inv_std, KEEP_WEIGHT).nonzero()[:, 0]
    ray, middle, lengths, points, seed = ray[keep], middle[keep], (end - start)[keep], points[keep], seed[keep]
    live = field.at(space, points, frame[ray], seed, directions[ray], *posed)
    alpha, normals, _ = opacities(live.sdf, live.gradient, directions[ray], lengths, field.inv_std)
    alpha = torch.where(live.converged, alpha, 0)
    along = middle * (directions[ray] @ axis)  # distance along the ray -> depth along the optical axis
    return composite(alpha, live.rgb, normals, along, ray, rays)
