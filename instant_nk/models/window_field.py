"""The field of one window of frames: canonical surface seen through graph warp and residual, with colour."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instant_nk.kernels import hash_encoding
from instant_nk.kernels.hash_encoding import HashSpec
from instant_nk.models.colour_field import ColourField
from instant_nk.models.residual_field import ResidualField
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
    ):
        super().__init__()
        self.sdf, self.colour, self.residual, self.motion = sdf, colour, residual, motion
        self.skeleton, self.inv_std, self.canonical_index = skeleton, inv_std, canonical_index
        self.sdf.requires_grad_(False)
        self.frames = motion.translations.shape[0]
        cells = round(len(canonical_grid) ** (1 / 3)) - 1
        self.grid_spec = HashSpec(3, 1, int(np.ceil(np.log2((cells + 1) ** 3))), ((cells,) * 3,))
        self.register_buffer("grid", canonical_grid, persistent=False)

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
    def quick_sdf(self, space: LiveSpace, x: Tensor, frame: Tensor) -> tuple[Tensor, Tensor]:
        """Signed distance [N] by the first-order inverse, and the seed vertex [N] it came from (the nearer patch of two)."""
        vertex = space.seed(x, frame, 0)
        valid = vertex >= 0
        vertex = vertex.clamp_min(0)
        distance = torch.where(valid, self._quick(space, x, frame, vertex), torch.ones_like(x[:, 0]))
        second = space.seed(x, frame, 1)
        rows = (second >= 0).nonzero()[:, 0]
        if len(rows):
            other = self._quick(space, x[rows], frame[rows], second[rows])
            nearer = other < distance[rows]  # the union of both patches is where the smaller distance is
            distance[rows] = torch.minimum(other, distance[rows])
            vertex[rows] = torch.where(nearer, second[rows], vertex[rows])
        return distance, vertex

    def _quick(self, space: LiveSpace, x: Tensor, frame: Tensor, vertex: Tensor) -> Tensor:
        canonical = space.guess(x, frame, vertex)
        distance = self._grid_sdf(canonical)
        near = (distance.abs() < 2 * self.residual.bound + 4 / self.inv_std).nonzero()[:, 0]  # elsewhere the residual cannot matter
        canonical, frame = canonical[near], frame[near]
        distance[near] = self._grid_sdf(canonical + self.residual_at(canonical, frame))
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
        residual, stretch = self.residual.with_jacobian(canonical, self.tau(frame))
        residual, stretch = residual * ramp[:, None], stretch * ramp[:, None, None]
        sdf, gradient, features = self.sdf.with_gradient(canonical + residual)
        gradient = gradient + (stretch.transpose(-1, -2) @ gradient[..., None])[..., 0]
        eye = torch.eye(3, device=x.device)
        usable = torch.linalg.det(jacobian).abs() > 0.05
        jacobian = torch.where(usable[:, None, None], jacobian, eye)
        gradient = torch.linalg.solve(jacobian.transpose(-1, -2), gradient)
        normals = F.normalize(gradient, dim=-1)
        rgb = self.colour(canonical + residual, normals, directions, features)
        return LiveSamples(sdf, gradient, rgb, residual, stretch, canonical, converged & usable)
