"""Which samples along rays a step computes: marched through occupied cells, and of those the ones that can be seen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from instant_nk.kernels import neus_opacity, ray_loss, ray_sampling, volume_rendering
from instant_nk.kernels.ahead import Call
from instant_nk.kernels.ray_sampling import PADDING, march, march_padded
from instant_nk.kernels.volume_rendering import visible
from instant_nk.models import renderer

Distances = Callable[[Tensor, Tensor], tuple[Tensor, Tensor | None]]


@dataclass(frozen=True)
class Room:
    """How many samples a step has place for, whatever its rays meet: then no size depends on the data, and the host never waits for one."""

    marched: int
    kept: int


@dataclass(frozen=True)
class Samples:
    """N samples, ray after ray and near to far.

    With a `Room`, N is its `kept`: the first samples are those of rays that fit, and the rest is padding at places where everything is finite, on rays of its own.

    Attributes:
        ray: which composited ray, i64 [N], ascending; row: which of the R given rays, i64 [N]: the same but for padding.
        points: live scene space [N, 3]; directions: unit [N, 3]; frame: i64 [N].
        middle: distance from the ray's origin [N]; lengths: [N].
        seed: what the distances said besides, [N], or None.
        rays: number of composited rays, R or more: rays from R on hold padding.
        marched, kept: samples that the rays met and that can be seen, as numbers, or with a `Room` as tensors []: they may be more than there was place for.
        valid: bool [N]; None: all count.
        fits: rays whose samples all are here, bool [R]; a ray that does not fit has none. None: all.
    """

    ray: Tensor
    row: Tensor
    points: Tensor
    directions: Tensor
    frame: Tensor
    middle: Tensor
    lengths: Tensor
    seed: Tensor | None
    rays: int
    marched: int | Tensor
    kept: int | Tensor
    valid: Tensor | None = None
    fits: Tensor | None = None

    def mean(self, values: Tensor) -> Tensor:
        """Mean of a value per sample [N] over the samples that count."""
        if self.valid is None:
            return values.mean()
        return torch.where(self.valid, values, 0).sum() / self.valid.sum().clamp_min(1)

    def shown(self, alpha: Tensor) -> Tensor:
        """Coverage [R] that rays should show: none where a ray has no samples for want of room, so that it teaches nothing."""
        return alpha if self.fits is None else torch.where(self.fits, alpha, 0)


def rehearsals(cells: int, device: str, learnt: bool) -> list[Call]:
    """What finding samples, compositing them and comparing them with images launches: see `kernels.ahead`.

    Args:
        cells: of the occupancy grid, per axis.
        learnt: whether the sharpness is.
    """
    return (
        ray_sampling.rehearsals(cells, device)
        + volume_rendering.rehearsals(renderer.CHANNELS, device, learnt)
        + neus_opacity.rehearsals(device, learnt)
        + ray_loss.rehearsals(device)
    )


@torch.no_grad()
def find(
    origins: Tensor,
    directions: Tensor,
    frame: Tensor,
    jitter: Tensor,
    occupied: Tensor,
    spacing: float,
    distances: Distances,
    inv_std: float | Tensor,
    least: float,
    room: Room | None = None,
) -> Samples:
    """Samples of rays that can weigh more than `least`.

    Args:
        origins, directions: scene space [R, 3]; frame: i64 [R]; jitter: in [0, 1) [R].
        occupied: bool [G, G, G], or [F, G, G, G] for rays of several frames.
        spacing: of the samples, scene units.
        distances: signed distance [N], quick and near enough to tell what can be seen, and a seed [N] or None, of points [N, 3] at frames [N].
        inv_std: sharpness of the surface.
        room: None: as many samples as there are; the host then waits for their numbers.
    """
    grid = frame if occupied.ndim == 4 else None
    if room is None:
        ray, start, end = march(origins, directions, occupied, spacing, jitter, grid_index=grid)
        points, at = origins[ray] + directions[ray] * ((start + end) * 0.5)[:, None], frame[ray]
        distance, seed = distances(points, at)
        kept = visible(distance, ray, len(origins), inv_std, least).nonzero()[:, 0]
        middle, lengths, row = ((start + end) * 0.5)[kept], (end - start)[kept], ray[kept]
        return Samples(row, row, points[kept], directions[row], at[kept], middle, lengths, _of(seed, kept), len(origins), len(ray), len(kept))
    return _find_padded(origins, directions, frame, jitter, occupied, spacing, distances, inv_std, least, room, grid)


def _find_padded(
    origins: Tensor, directions: Tensor, frame: Tensor, jitter: Tensor, occupied: Tensor, spacing: float,
    distances: Distances, inv_std: float | Tensor, least: float, room: Room, grid: Tensor | None,
) -> Samples:  # fmt: skip
    """`find` where every size is known beforehand."""
    rays, device = len(origins), origins.device
    ray, start, end, ends = march_padded(origins, directions, occupied, spacing, room.marched, jitter, grid_index=grid)
    given, middle = ray.clamp_max(rays - 1), (start + end) * 0.5
    points, at = origins[given] + directions[given] * middle[:, None], frame[given]
    distance, seed = distances(points, at)
    seen = visible(distance, ray, rays + room.marched // PADDING + 1, inv_std, least) & (ray < rays)
    count = seen.sum()
    rows = seen.nonzero_static(size=room.kept, fill_value=0)[:, 0]  # padding repeats the first sample
    row, number = given[rows], torch.arange(room.kept, device=device)
    cut = torch.where(count > room.kept, row[-1], rays)  # the first ray that has lost samples: it and all behind it are left out
    valid = (number < count) & (row < cut)
    fits = (ends <= room.marched) & (torch.arange(rays, device=device) < cut)
    own = torch.where(valid, row, rays + number // PADDING)
    return Samples(
        own, row, points[rows], directions[row], at[rows], middle[rows], (end - start)[rows], _of(seed, rows),
        rays + room.kept // PADDING + 1, ends[-1], count, valid, fits,
    )  # fmt: skip


def _of(seed: Tensor | None, rows: Tensor) -> Tensor | None:
    return None if seed is None else seed[rows]
