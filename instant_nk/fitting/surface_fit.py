"""Fit a neural surface (signed distance, colour, sharpness) to the images of one frame, starting from its visual hull."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from instant_nk.fitting import ray_samples, schedules
from instant_nk.fitting.monitor import middle_view, side_by_side
from instant_nk.fitting.ray_samples import Room, Samples, find
from instant_nk.fitting.rays import Batch, PixelSource
from instant_nk.fitting.trainer import PLAIN, How, Interruptible, Trainer
from instant_nk.kernels import ray_loss
from instant_nk.kernels.ahead import Call, compiling
from instant_nk.kernels.hash_encoding import HashSpec
from instant_nk.kernels.neus_opacity import opacities
from instant_nk.models.colour_field import ColourField
from instant_nk.models.live_field import LiveColours, LiveGrid
from instant_nk.models.occupancy import dilate, near_surface
from instant_nk.models.renderer import composite
from instant_nk.models.sdf_field import SdfField, Sharpness, hull_distance

STEP_CELLS = 0.4  # sample spacing in occupancy cells
GRID_EVERY = 40  # steps between updates of the occupancy grid
KEEP_WEIGHT = 3e-4  # samples lighter than this are not trained on
GIVEN_POINTS = 4096  # points of a given mesh that each step is held to


@dataclass(frozen=True)
class GivenSurface:
    """Oriented points of a mesh made by another reconstructor, scene space: the SDF is held to them. Both f32 [P, 3]."""

    points: Tensor
    normals: Tensor


@dataclass(frozen=True)
class SurfaceFitConfig:
    """What a fit needs to know; the canonical and the observation section both provide it."""

    steps: int
    samples_per_step: int
    spec: HashSpec
    hidden: int
    occupancy_resolution: int
    learning_rate: float
    eikonal_weight: float
    mask_weight: float
    initial_inv_std: float = 64.0
    ema: float = 0.0


@dataclass
class Surface:
    """A fitted neural surface of one frame."""

    sdf: SdfField
    colour: ColourField
    sharpness: Sharpness
    occupied: Tensor
    history: dict[str, list[float]] = field(default_factory=dict)


class NeusFit(Trainer):
    """Training of signed distance, colour and sharpness by volume rendering; subclasses say of what, and at which frames.

    Args:
        source: where rays come from, or what makes that, which is done while kernels are compiled.
        sdf: trained with its `encoding` and every other parameter; called by `distance` and `surface_at`.
        candidates: cells that may hold surface, bool [G, G, G], or [F, G, G, G] for the frames of the source.
        how: see `Trainer`.
    """

    NOTED = ("eikonal", "inv_std")
    ADVICE = "Lower the learning rate or check the images."

    def __init__(
        self,
        config: SurfaceFitConfig,
        source: PixelSource | Callable[[], PixelSource],
        sdf: nn.Module,
        width: int,
        candidates: Tensor,
        device: str,
        seed: int,
        title: str,
        how: How,
    ):
        self.config, self.device, self.sdf, self.candidates = config, device, sdf, candidates
        self.colour = ColourField(width, config.hidden).to(device)
        self.sharpness = Sharpness(config.initial_inv_std).to(device)
        others = [parameter for name, parameter in sdf.named_parameters() if name != "encoding.table"]
        groups = [
            {"params": [sdf.encoding.table], "lr": config.learning_rate, "eps": 1e-15},
            {"params": [*others, *self.colour.parameters()], "lr": config.learning_rate * 0.2},
            {"params": self.sharpness.parameters(), "lr": 1e-3},
        ]
        modules = nn.ModuleDict({"sdf": sdf, "colour": self.colour, "sharpness": self.sharpness})
        super().__init__(title, source, config.steps, config.samples_per_step, modules, groups, torch.Generator(device).manual_seed(seed), config.ema, how)
        self.occupied = torch.zeros_like(candidates)
        with compiling(self.rehearsals(), self.trained[0].device, self.alike()):
            self.source = source() if callable(source) else source
        self.update_grid()

    def rehearsals(self) -> list[Call]:
        return self.colour.rehearsals() + ray_samples.rehearsals(self.occupied.shape[-1], self.device, True)

    def alike(self) -> Hashable:
        return type(self), self.config, self.trained[0].device

    def distance(self, points: Tensor, frame: Tensor) -> Tensor:
        """Signed distance [N] at scene points [N, 3], at the source's frame indices [N]."""
        raise NotImplementedError

    def surface_at(self, points: Tensor, frame: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Signed distance [N], its gradient [N, 3] and features for the colour network."""
        raise NotImplementedError

    def further_loss(self) -> Tensor | float:
        """What else the fit owes."""
        return 0.0

    @torch.no_grad()
    def update_grid(self) -> None:
        """Find anew the cells that hold surface, where a recorded step looks for them."""
        margin = min(3.0 / float(self.sharpness()), 2.0 / self.config.occupancy_resolution)
        if self.candidates.ndim == 3:
            self.occupied.copy_(near_surface(lambda x: self.distance(x, x.new_zeros(len(x), dtype=torch.long)), self.candidates, margin))
            return
        for f, candidates in enumerate(self.candidates):
            self.occupied[f] = near_surface(lambda x, f=f: self.distance(x, x.new_full((len(x),), f, dtype=torch.long)), candidates, margin)

    def prepare(self) -> None:
        self.sdf.encoding.open_levels = schedules.open_levels(self.done, self.config.steps, self.config.spec.levels)
        if self.done and self.done % GRID_EVERY == 0:
            self.update_grid()

    def numbers(self) -> dict[str, float]:
        return super().numbers() | {"anneal": schedules.anneal(self.done, self.config.steps)}

    def key(self) -> Hashable:
        return self.sdf.encoding.open_levels

    def find(self, batch: Batch, jitter: Tensor, room: Room | None) -> Samples:
        return find(
            batch.origins, batch.directions, batch.frame, jitter, self.occupied, STEP_CELLS * 2 / self.config.occupancy_resolution,
            lambda x, frame: (self.distance(x, frame), None), self.sharpness(), KEEP_WEIGHT, room,
        )  # fmt: skip

    def lesson(self, samples: Samples, batch: Batch, background: Tensor, numbers: Mapping[str, Any]) -> dict[str, Tensor]:
        config = self.config
        sdf, gradient, features = self.surface_at(samples.points, samples.frame)
        inv_std = self.sharpness()
        alpha, normals, excess = opacities(sdf, gradient, samples.directions, samples.lengths, inv_std, numbers["anneal"])
        rgb = self.colour(samples.points, normals, samples.directions, features)
        seen = composite(alpha, rgb, normals, samples.middle, samples.ray, samples.rays)
        rgb, opacity = seen.rgb[: len(batch.rgb)], seen.opacity[: len(batch.rgb)]
        colour_loss, mask_loss, error = ray_loss.means(rgb, opacity, batch.rgb, batch.alpha, background)
        eikonal = samples.mean(excess) if len(sdf) else colour_loss * 0
        loss = colour_loss + config.mask_weight * mask_loss + config.eikonal_weight * eikonal + self.further_loss()
        loss.backward()
        return {"loss": loss.detach(), "mse": error, "eikonal": eikonal.detach(), "inv_std": inv_std.detach()}

    def picture(self) -> np.ndarray:
        grid = LiveGrid(self.occupied if self.occupied.ndim == 4 else self.occupied[None])
        return side_by_side(self.source, _Shown(self), grid, (), middle_view(self.source))

    def extra(self) -> dict[str, Tensor]:
        return {"occupied": self.occupied}

    def resumed(self, extra: dict[str, Tensor]) -> None:
        self.occupied.copy_(extra["occupied"])

    def training(self, state: Interruptible | None = None) -> Iterator[None]:
        """See `Trainer.training`; at the end all levels are opened and the surface's cells found."""
        yield from super().training(state)
        self.sdf.encoding.open_levels = self.config.spec.levels
        self.update_grid()


class _Shown:
    """A fit in progress as what renders (`ray_render.Field`)."""

    def __init__(self, fit: NeusFit):
        self.fit, self.inv_std = fit, fit.sharpness()

    def quick_sdf(self, space: LiveGrid, x: Tensor, frame: Tensor) -> tuple[Tensor, Tensor]:
        return self.fit.distance(x, frame), frame

    def at(self, space: LiveGrid, x: Tensor, frame: Tensor, seed: Tensor, directions: Tensor) -> LiveColours:
        sdf, gradient, features = self.fit.surface_at(x, frame)
        rgb = self.fit.colour(x, torch.nn.functional.normalize(gradient, dim=-1), directions, features)
        return LiveColours(sdf, gradient, rgb, torch.ones_like(sdf, dtype=torch.bool))


class SurfaceFit(NeusFit):
    """Training state of one frame's surface; `step` advances it, `run` trains to the end.

    Args:
        source: pixels of the frame, or what reads them.
        hull: its visual hull, bool [R, R, R] over [-1, 1]^3.
        distance: `hull_distance` of the hull, where it is known already.
        given: a surface that is known already; then only colour and the SDF around it are learned.
        how: see `Trainer`.
    """

    def __init__(
        self,
        config: SurfaceFitConfig,
        source: PixelSource | Callable[[], PixelSource],
        hull: np.ndarray,
        device: str,
        seed: int,
        title: str,
        given: GivenSurface | None = None,
        how: How = PLAIN,
        distance: np.ndarray | None = None,
    ):
        torch.manual_seed(seed)
        self.given = given
        sdf = SdfField(config.spec, config.hidden, hull.shape[0]).to(device)
        sdf.start_from(hull_distance(hull) if distance is None else distance)
        if given is not None:
            how = replace(how, recorded=False)  # each step draws points of the given surface, and a recording may not
        super().__init__(config, source, sdf, config.spec.width, candidates_of(hull, config.occupancy_resolution, device), device, seed, title, how)

    def rehearsals(self) -> list[Call]:
        return super().rehearsals() + self.sdf.rehearsals(to_table=True, to_x=False)

    def distance(self, points: Tensor, frame: Tensor) -> Tensor:
        return self.sdf(points)

    def surface_at(self, points: Tensor, frame: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.sdf.with_gradient(points)

    def further_loss(self) -> Tensor | float:
        """Distance and normal disagreement at the given surface's points."""
        if self.given is None:
            return 0.0
        rows = torch.randint(len(self.given.points), (GIVEN_POINTS,), generator=self.generator, device=self.device)
        sdf, gradient, _ = self.sdf.with_gradient(self.given.points[rows])
        return 50 * sdf.abs().mean() + 0.1 * (gradient - self.given.normals[rows]).abs().mean()

    def run(self, state: Interruptible | None = None) -> Surface:
        """Train to the end and return the surface."""
        self.train(state)
        return self.surface()

    def surface(self) -> Surface:
        """What was trained."""
        return Surface(self.sdf, self.colour, self.sharpness, self.occupied, self.history)


def candidates_of(hull: np.ndarray, resolution: int, device: str) -> Tensor:
    """Cells that may hold the surface: those of a visual hull and their neighbours, bool [G, G, G]."""
    return dilate(_resample(torch.from_numpy(hull).to(device), resolution), 1)


def _resample(grid: Tensor, resolution: int) -> Tensor:
    """Bool grid at another resolution; a cell is true where any part of it was."""
    if grid.shape[0] == resolution:
        return grid
    if grid.shape[0] % resolution == 0:
        k = grid.shape[0] // resolution
        return grid.reshape(resolution, k, resolution, k, resolution, k).any(5).any(3).any(1)
    ratio = grid.shape[0] / resolution
    rows = ((torch.arange(resolution, device=grid.device) + 0.5) * ratio).long()
    return dilate(grid, math.ceil(ratio / 2))[rows][:, rows][:, :, rows]
