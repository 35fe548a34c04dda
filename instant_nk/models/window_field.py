"""The field of one window of frames: canonical surface seen through graph warp and residual, with colour."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instant_nk.kernels import blend_skinning, hash_encoding, live_gradient
from instant_nk.kernels.ahead import Call
from instant_nk.kernels.hash_encoding import HashSpec
from instant_nk.models.colour_field import ColourField
from instant_nk.models.residual_field import ResidualField
from instant_nk.models.rig_correction import FrameColour
from instant_nk.models.sdf_field import SdfField
from instant_nk.models.warp import LiveSpace, NodeMotion, Skeleton, to_canonical


@dataclass
class LiveSamples:
    """What the field says at live points.

    Attributes:
        sdf: [N]; gradient: of the live SDF [N, 3]; rgb: [N, 3].
        residual: [N, 3]; stretch: the residual's Jacobian [N, 3, 3].
        canonical: coarse canonical point x' [N, 3]; converged: bool [N].
    """

    sdf: Tensor
    gradient: Tensor
    rgb: Tensor
    residual: Tensor
    stretch: Tensor
    canonical: Tensor
    converged: Tensor


class WindowField(nn.Module):
    """Everything of a window that renders: frozen canonical SDF, residual, colour, node motion.

    Args:
        canonical_index: index of the canonical frame in the window, or None; there the residual is zero by construction.
        canonical_grid: the canonical SDF at the corners of a regular grid, x fastest [R^3, 1]: where samples are only looked for,
            reading it is much cheaper than the network.
        light: colour that changes over time; None: it does not.
    """

    def __init__(
        self,
        sdf: SdfField,
        colour: ColourField,
        residual: ResidualField,
        motion: NodeMotion,
        skeleton: Skeleton,
        inv_std: float,
        canonical_index: int | None,
        canonical_grid: Tensor,
        light: FrameColour | None = None,
    ):
        super().__init__()
        self.light = light
        self.sdf, self.colour, self.residual, self.motion = sdf, colour, residual, motion
        self.skeleton, self.inv_std, self.canonical_index = skeleton, inv_std, canonical_index
        self.sdf.requires_grad_(False)
        self.frames = motion.translations.shape[0]
        cells = round(len(canonical_grid) ** (1 / 3)) - 1
        self.grid_spec = HashSpec(3, 1, int(np.ceil(np.log2((cells + 1) ** 3))), ((cells,) * 3,))
        self.register_buffer("grid", canonical_grid, persistent=False)

    def rehearsals(self) -> list[Call]:
        """What `quick_sdf`, `at`, `residual_at` and their gradients launch: see `kernels.ahead`."""
        device = self.grid.device
        still = self.sdf.rehearsals(to_table=False, to_x=True) + hash_encoding.rehearsals(self.grid_spec, device, False)
        warp = blend_skinning.rehearsals(self.skeleton.anchors.shape[1], device)
        return self.residual.rehearsals() + still + self.colour.rehearsals() + warp + live_gradient.rehearsals(device)

    @torch.no_grad()
    def live_space(self, resolution: int) -> LiveSpace:
        """The live grid around the motion as it is now, `resolution` cells per axis."""
        return LiveSpace(self.skeleton, *self.motion(), resolution)

    def posed(self) -> tuple[Tensor, Tensor]:
        """The motion's rotations and translations now: what `at` wants."""
        return self.motion()

    def tau(self, frame: Tensor) -> Tensor:
        """Position of a frame index within the window, [0, 1]."""
        return frame.float() / max(self.frames - 1, 1)

    def ramp(self, frame: Tensor) -> Tensor:
        """Factor on the residual [N]: zero at the canonical frame, one elsewhere."""
        if self.canonical_index is None:
            return torch.ones_like(frame, dtype=torch.float32)
        return (frame != self.canonical_index).float()

    def residual_at(self, canonical: Tensor, frame: Tensor) -> Tensor:
        """Residual displacement [N, 3] at coarse canonical points and frame indices [N]."""
        return self.residual(canonical, self.tau(frame)) * self.ramp(frame)[:, None]

    @torch.no_grad()
    def quick_sdf(self, space: LiveSpace, x: Tensor, frame: Tensor, padded: bool = False) -> tuple[Tensor, Tensor]:
        """Signed distance [N] by the first-order inverse, and the seed vertex [N] it came from (the nearer patch of two).

        Args:
            padded: compute more than is needed rather than make the host wait for how much that is.
        """
        vertex, second = space.seed(x, frame, 0), space.seed(x, frame, 1)
        rows = torch.arange(len(x), device=x.device) if padded else (second >= 0).nonzero()[:, 0]
        other = second[rows]
        seeds = torch.cat([vertex, other])
        distances = self._quick(space, torch.cat([x, x[rows]]), torch.cat([frame, frame[rows]]), seeds, len(x) if padded else None)
        distance, nearest = distances[: len(x)].clone(), vertex.clamp_min(0)
        first, further = distance[rows], distances[len(x) :]
        distance[rows] = torch.minimum(further, first)  # the union of both patches is where the smaller distance is
        nearest[rows] = torch.where(further < first, other, nearest[rows])
        return distance, nearest

    def _quick(self, space: LiveSpace, x: Tensor, frame: Tensor, vertex: Tensor, most: int | None) -> Tensor:
        """Distances from one seed each, 1 without one. Those of points near the surface are refined; with `most`, of the first so many of them."""
        known, vertex = vertex >= 0, vertex.clamp_min(0)
        canonical = space.guess(x, frame, vertex)
        distance = torch.where(known & space.belongs(x, frame, canonical), self._grid_sdf(canonical), 1.0)
        near = distance.abs() < 2 * self.residual.bound + 4 / self.inv_std  # elsewhere neither the residual nor the guess's error matters
        near = (near.nonzero() if most is None else near.nonzero_static(size=most, fill_value=0))[:, 0]
        x, frame = x[near], frame[near]
        canonical, _, converged = to_canonical(space, x, frame, vertex[near], *self.motion())
        own = converged & space.belongs(x, frame, canonical)  # what `at` will find to be nothing must not hide what lies behind it
        distance[near] = torch.where(own, self._grid_sdf(canonical + self.residual_at(canonical, frame)), 1.0)
        return distance

    def _grid_sdf(self, canonical: Tensor) -> Tensor:
        inside = canonical.clamp(-1, 1)
        return hash_encoding.encode((inside + 1) * 0.5, self.grid, self.grid_spec)[:, 0]

    def at(self, space: LiveSpace, x: Tensor, frame: Tensor, vertex: Tensor, directions: Tensor, rotations: Tensor, translations: Tensor) -> LiveSamples:
        """Distance, gradient and colour at live points, differentiable in residual, colour and motion.

        Args:
            x: live points [N, 3]; frame: index in the window [N]; vertex: seed [N]; directions: unit, live [N, 3].
            rotations, translations: the motion's value for this step.
        """
        canonical, jacobian, converged = to_canonical(space, x, frame, vertex, rotations, translations)
        ramp = self.ramp(frame)
        residual, stretch = self.residual.with_jacobian(canonical, self.tau(frame), ramp)
        sdf, gradient, features = self.sdf.with_gradient(canonical + residual)
        gradient, usable = live_gradient.carry(gradient, stretch, jacobian)
        normals = F.normalize(gradient, dim=-1)
        rgb = self.colour(canonical + residual, normals, directions, features, self.light(frame) if self.light else None)
        return LiveSamples(sdf, gradient, rgb, residual, stretch, canonical, converged & usable & space.belongs(x, frame, canonical.detach()))
