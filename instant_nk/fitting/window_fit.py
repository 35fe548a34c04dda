"""Train the field of one window: residual, colour and refined node motion, from the images of its frames."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from instant_nk.config import FieldConfig
from instant_nk.fitting import ray_samples
from instant_nk.fitting.monitor import middle_view, side_by_side
from instant_nk.fitting.ray_samples import Room, Samples, find
from instant_nk.fitting.rays import Batch, PixelSource
from instant_nk.fitting.trainer import PLAIN, How, Interruptible, Trainer
from instant_nk.kernels import ray_loss
from instant_nk.kernels.ahead import Call
from instant_nk.kernels.neus_opacity import opacities
from instant_nk.models.renderer import composite
from instant_nk.models.rig_correction import RigCorrection
from instant_nk.models.window_field import LiveSamples, WindowField

STEP_CELLS = 0.4  # sample spacing in cells of the live grid
KEEP_WEIGHT = 5e-4
MOTION_RATE = 0.2  # step size of node motion relative to the residual's; both in scene units
GAIN_RATE = 2.0  # of the cameras' gains, relative to the residual's
POSE_RATE = 0.1  # of the cameras' turns (radians) and shifts (scene units)
LIGHT_RATE = 10.0  # of the frames' colour codes
LIGHT_WEIGHT = 1e-4
KEPT_STRAIN = 0.9  # share of the registered motion's strains that refinement keeps at no cost
FOLLOW_EVERY = 100  # steps after which the live grid is laid anew around the refined motion


class WindowFit(Trainer):
    """Training state of one window; `step` advances it, `run` trains to the end and resumes what was interrupted.

    Args:
        field: the window's field, fresh.
        source: pixels of the window's frames.
        grid_resolution: cells per axis of the live grid.
        how: see `Trainer`.
    """

    NOTED = ("rigidity", "residual")
    ADVICE = "Lower field.learning_rate or check registration in the report."

    def __init__(
        self, config: FieldConfig, field: WindowField, source: PixelSource, grid_resolution: int, device: str, seed: int, title: str, how: How = PLAIN
    ):
        self.config, self.field, self.device = config, field, device
        self.grid_resolution = grid_resolution
        rate = config.learning_rate
        groups = [
            {"params": [field.residual.encoding.table], "lr": rate * 5, "eps": 1e-15},
            {"params": [*field.residual.mlp.parameters(), *field.colour.parameters()], "lr": rate},
        ]
        if config.refine_motion:
            groups.append({"params": [field.motion.turn, field.motion.shift], "lr": rate * MOTION_RATE})
        modules = nn.ModuleDict({"residual": field.residual, "colour": field.colour, "motion": field.motion})
        self.rig = RigCorrection(len(source.cameras.K), config.exposure, config.refine_poses).to(device) if config.exposure or config.refine_poses else None
        if self.rig:
            modules["rig"] = self.rig
        if config.exposure:
            groups.append({"params": [self.rig.log_gain], "lr": rate * GAIN_RATE})
        if config.refine_poses:
            groups.append({"params": [self.rig.turn, self.rig.shift], "lr": rate * POSE_RATE})
        if field.light:
            modules["light"] = field.light
            groups.append({"params": field.light.parameters(), "lr": rate * LIGHT_RATE})
        super().__init__(title, source, config.steps, config.samples_per_step, modules, groups, torch.Generator(device).manual_seed(seed), config.ema, how)
        self.unconverged = torch.zeros((), device=device)
        # What registration strained, bent joints above all, costs little: against the whole of it, refinement would straighten limbs and slide the skin.
        self.registered = KEPT_STRAIN * field.skeleton.strains(field.motion.rotations, field.motion.translations)
        self.follow()

    def follow(self) -> None:
        """Lay the live grid around the motion as it is now."""
        self.space = self.field.live_space(self.grid_resolution)
        self.followed = self.done

    def prepare(self) -> None:
        if self.config.refine_motion and self.done % FOLLOW_EVERY == 0 and self.followed != self.done:
            self.follow()

    def key(self) -> Hashable:
        return self.followed

    def find(self, batch: Batch, jitter: Tensor, room: Room | None) -> Samples:
        origins, directions = batch.origins, batch.directions
        if self.config.refine_poses:
            with torch.no_grad():
                origins, directions = self.rig.rays(origins, directions, batch.camera)
        return find(
            origins, directions, batch.frame, jitter, self.space.occupied, STEP_CELLS * 2 / self.grid_resolution,
            lambda x, frame: self.field.quick_sdf(self.space, x, frame, padded=room is not None), self.field.inv_std, KEEP_WEIGHT, room,
        )  # fmt: skip

    def lesson(self, samples: Samples, batch: Batch, background: Tensor, numbers: Mapping[str, Any]) -> dict[str, Tensor]:
        config, field = self.config, self.field
        rotations, translations = field.motion()
        points, directions = samples.points, samples.directions
        if config.refine_poses:  # once more, here where gradients reach the poses
            origins, directions = self.rig.rays(batch.origins[samples.row], batch.directions[samples.row], batch.camera[samples.row])
            points = origins + directions * samples.middle[:, None]
        live = field.at(self.space, points, samples.frame, samples.seed, directions, rotations, translations)
        alpha, _, excess = opacities(live.sdf, live.gradient, directions, samples.lengths, field.inv_std)
        alpha = torch.where(live.converged, alpha, 0)
        seen = composite(alpha, live.rgb, torch.zeros_like(live.gradient), samples.middle, samples.ray, samples.rays)
        rgb, opacity = seen.rgb[: len(batch.rgb)], seen.opacity[: len(batch.rgb)]
        if config.exposure:
            rgb = rgb * self.rig.gains()[batch.camera]
        colour_loss, mask_loss, error = ray_loss.means(rgb, opacity, batch.rgb, batch.alpha, background)
        rigidity = field.skeleton.rigidity(rotations, translations, self.registered)
        loss = (
            colour_loss
            + config.mask_weight * mask_loss
            + config.rigidity_weight * rigidity
            + self._regularity(live, excess, samples)
            + (LIGHT_WEIGHT * field.light.penalty() if field.light else 0.0)
        )  # fmt: skip
        loss.backward()
        self.unconverged.lerp_(samples.mean((~live.converged).float()), 0.05)
        return {
            "loss": loss.detach(),
            "mse": error,
            "rigidity": rigidity.detach(),
            "residual": samples.mean(live.residual.detach().abs().mean(-1)) / field.residual.bound,
        }

    def _regularity(self, live: LiveSamples, excess: Tensor, samples: Samples) -> Tensor:
        """Small, smooth in time, elastic and unit-gradient: what the residual owes; lengths in units of its bound."""
        config, field = self.config, self.field
        bound = field.residual.bound
        earlier = field.residual_at(live.canonical.detach(), (samples.frame - 1).clamp_min(0))
        loss = config.residual_weight * samples.mean((live.residual**2).sum(-1)) / bound**2
        loss = loss + config.temporal_weight * samples.mean(((live.residual - earlier) ** 2).sum(-1)) / bound**2
        loss = loss + config.elastic_weight * samples.mean((live.stretch**2).sum((-1, -2)))
        loss = loss + config.eikonal_weight * samples.mean(excess)
        if config.refine_motion and field.frames > 2:
            correction = field.motion.shift * field.motion.free
            jolt = correction[2:] - 2 * correction[1:-1] + correction[:-2]
            loss = loss + config.temporal_weight * (jolt**2).sum(-1).mean() / bound**2
        return loss

    def picture(self) -> np.ndarray:
        return side_by_side(self.source, self.field, self.space, self.field.posed(), middle_view(self.source))

    def rehearsals(self) -> list[Call]:
        return self.field.rehearsals() + ray_samples.rehearsals(self.grid_resolution, self.device, False)

    def extra(self) -> dict[str, Tensor]:
        return {"unconverged": self.unconverged}

    def resumed(self, extra: dict[str, Tensor]) -> None:
        self.unconverged.copy_(extra["unconverged"])
        self.follow()

    def kept(self) -> None:
        if self.config.refine_motion:
            self.follow()  # so that a resumed run marches through the same grid

    def run(self, partial: Path, header: dict[str, Any]) -> None:
        """Train to the end (see `Trainer.train`), checkpointing to `partial` every `checkpoint_every` steps."""
        self.train(Interruptible(partial, self.config.checkpoint_every, header))
