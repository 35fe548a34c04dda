"""Train a window's field without a canonical surface: `field.dyna_mode` time, fourier or latent."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from instant_nk.config import FieldConfig
from instant_nk.fitting.rays import PixelSource
from instant_nk.fitting.surface_fit import NeusFit, SurfaceFitConfig, candidates_of
from instant_nk.fitting.trainer import PLAIN, How, Interruptible
from instant_nk.kernels.ahead import Call
from instant_nk.kernels.hash_encoding import HashSpec
from instant_nk.models.live_field import MODES, LatentSdf, LiveField

EIKONAL_WEIGHT = 0.05  # as the canonical surface's: here the field itself is the surface
CODE_WEIGHT = 1e-4


@dataclasses.dataclass(frozen=True)
class Fineness:
    """How fine the field is: as the canonical stage's, so that modes are compared at equal size."""

    spec: HashSpec
    hidden: int
    occupancy_resolution: int


class LiveFit(NeusFit):
    """Training state of one window; `run` trains to the end and resumes what was interrupted.

    Args:
        source: pixels of the window's frames.
        hulls: visual hull of each frame, bool [R, R, R] over [-1, 1]^3.
        how: see `Trainer`.
    """

    ADVICE = "Lower field.learning_rate or check the images."

    def __init__(
        self, config: FieldConfig, fineness: Fineness, source: PixelSource, hulls: list[np.ndarray], device: str, seed: int, title: str, how: How = PLAIN
    ):
        torch.manual_seed(seed)
        self.checkpoint_every = config.checkpoint_every
        sdf = MODES[config.dyna_mode](fineness.spec, fineness.hidden, len(hulls), hulls[0].shape[0]).to(device)
        sdf.set_hulls(hulls)
        candidates = torch.stack([candidates_of(hull, fineness.occupancy_resolution, device) for hull in hulls])
        fit = SurfaceFitConfig(
            config.steps, config.samples_per_step, fineness.spec, fineness.hidden, fineness.occupancy_resolution,
            config.learning_rate * 5, EIKONAL_WEIGHT, config.mask_weight, ema=config.ema,
        )  # fmt: skip
        super().__init__(fit, source, sdf, sdf.width, candidates, device, seed, title, how)

    def rehearsals(self) -> list[Call]:
        return super().rehearsals() + self.sdf.rehearsals()

    def distance(self, points: Tensor, frame: Tensor) -> Tensor:
        return self.sdf(points, frame)

    def surface_at(self, points: Tensor, frame: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.sdf.with_gradient(points, frame)

    def further_loss(self) -> Tensor | float:
        """Small codes, so that frames stay near each other."""
        return CODE_WEIGHT * (self.sdf.codes**2).sum(-1).mean() if isinstance(self.sdf, LatentSdf) else 0.0

    def run(self, partial: Path, header: dict[str, Any]) -> LiveField:
        """Train to the end, checkpointing to `partial` every `checkpoint_every` steps."""
        self.train(Interruptible(partial, self.checkpoint_every, header))
        return LiveField(self.sdf, self.colour, self.sharpness, self.occupied)
