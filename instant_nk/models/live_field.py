"""Fields of a window that know no canonical surface: signed distance and colour in live space, as a function of time.

Three ways to say when (`field.dyna_mode`), behind one interface: `time` hashes space and time together, `fourier` gives every
point a Fourier series over the window, `latent` joins a code of the frame to a 3-D encoding. None of them says where a
surface point of one frame is in another: they draw pictures and yield a surface per frame, but no tracked mesh.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instant_nk.kernels import hash_encoding
from instant_nk.kernels.ahead import Call
from instant_nk.kernels.hash_encoding import HashSpec
from instant_nk.models.colour_field import ColourField
from instant_nk.models.encoding import HashEncoding
from instant_nk.models.mlp import Mlp
from instant_nk.models.sdf_field import Sharpness, hull_distance

CODE = 16  # width of a frame's code in `latent`
SHADES = 4  # Fourier series per point for the colour network, in `fourier`


class LiveSdf(nn.Module):
    """Signed distance of live points at the frames of a window: distance to the frame's visual hull plus a learned correction.

    Args:
        spec: hash grid of the correction, 3-D; `time` adds an axis.
        hidden: width of the network.
        frames: in the window.
        hull_resolution: cells per axis of the fixed distance grids.
    """

    mode = ""

    def __init__(self, spec: HashSpec, hidden: int, frames: int, hull_resolution: int):
        super().__init__()
        self.spec, self.hidden, self.frames = spec, hidden, frames
        cells, steps = hull_resolution, max(frames - 1, 1)
        rows = (cells + 1) ** 3 * (steps + 1)
        self.base_spec = HashSpec(4, 1, math.ceil(math.log2(rows)), ((cells, cells, cells, steps),))
        self.register_buffer("base", torch.zeros(self.base_spec.table_rows, 1))

    @property
    def width(self) -> int:
        """Of the features for the colour network."""
        raise NotImplementedError

    def rehearsals(self) -> list[Call]:
        """What `forward`, `with_gradient` and the latter's gradients launch: see `kernels.ahead`."""
        device = self.base.device
        fixed = hash_encoding.rehearsals(self.base_spec, device, False) + hash_encoding.rehearsals(self.base_spec, device, True, axes=3)
        return fixed + self.encoding.rehearsals(False) + self.encoding.rehearsals(True, True)

    def correction(self, x: Tensor, frame: Tensor) -> Tensor:
        """[N], what training adds to the hull's distance."""
        raise NotImplementedError

    def correction_with_gradient(self, x: Tensor, frame: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same [N], its spatial gradient [N, 3] and features for the colour network [N, width]."""
        raise NotImplementedError

    def set_hulls(self, occupied: list[np.ndarray]) -> None:
        """Make the distances to these visual hulls (bool [R, R, R], one per frame) the starting surfaces."""
        grids = [hull_distance(hull).transpose(2, 1, 0).reshape(-1, 1) for hull in occupied]  # the table runs x fastest, time slowest
        grids = grids if len(grids) > 1 else grids * 2
        self.base.zero_()
        values = torch.from_numpy(np.concatenate(grids))
        self.base[: len(values)].copy_(values)

    def tau(self, frame: Tensor) -> Tensor:
        """Position of a frame index within the window, [0, 1]."""
        return frame.float() / max(self.frames - 1, 1)

    def _when(self, x: Tensor, frame: Tensor) -> Tensor:
        return torch.cat([(x + 1) * 0.5, self.tau(frame)[:, None]], -1)

    def forward(self, x: Tensor, frame: Tensor) -> Tensor:
        """Signed distance [N] at live points [N, 3] of frames i64 [N]."""
        return hash_encoding.encode(self._when(x, frame), self.base, self.base_spec)[:, 0] + self.correction(x, frame)

    def with_gradient(self, x: Tensor, frame: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Signed distance [N], its spatial gradient [N, 3] and features [N, width]; all differentiable once."""
        base, jacobian = hash_encoding.encode_with_jacobian(self._when(x, frame), self.base, self.base_spec, axes=3, scale=0.5)
        correction, gradient, features = self.correction_with_gradient(x, frame)
        return base[:, 0] + correction, jacobian[..., 0] + gradient, features

    def describe(self) -> dict[str, Any]:
        """What is needed to build the same module again."""
        return {"mode": self.mode, "spec": self.spec.to_json(), "hidden": self.hidden, "frames": self.frames, "hull": self.base_spec.resolutions[0][0]}


class TimeSdf(LiveSdf):
    """correction = mlp([x, tau, enc4(x, tau)]): space and time in one grid, without anything shared between frames."""

    mode = "time"

    def __init__(self, spec: HashSpec, hidden: int, frames: int, hull_resolution: int):
        super().__init__(spec, hidden, frames, hull_resolution)
        times = tuple(max(1, round((frames - 1) * (level + 1) / spec.levels)) for level in range(spec.levels))
        resolutions = tuple((*cells, time) for cells, time in zip(spec.resolutions, times))
        self.encoding = HashEncoding(HashSpec(4, spec.features, spec.log2_table_size, resolutions))
        self.mlp = Mlp(4 + spec.width, hidden, 1, scale=0.1)

    @property
    def width(self) -> int:
        return self.spec.width

    def correction(self, x: Tensor, frame: Tensor) -> Tensor:
        tau = self.tau(frame)
        return self.mlp.of_points(torch.cat([x, tau[:, None]], -1), self.encoding(x, tau))[:, 0]

    def correction_with_gradient(self, x: Tensor, frame: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        tau = self.tau(frame)
        features, jacobian = self.encoding.with_jacobian(x, tau)
        out, slope = self.mlp.along_space(torch.cat([x, tau[:, None]], -1), features, jacobian)
        return out[:, 0], slope[:, 0], features

    def rehearsals(self) -> list[Call]:
        networks = self.mlp.rehearsals(4, False, True, True) + self.mlp.rehearsals(4, False, False, False, gradient=False)
        return super().rehearsals() + networks


class FourierSdf(LiveSdf):
    """correction = sum_k c_k(x) b_k(t), b = (1, cos, sin, cos 2, ...) over the window, c = mlp([x, enc3(x)]); features likewise.

    As many terms as frames, so that any change over the window can be said.
    """

    mode = "fourier"

    def __init__(self, spec: HashSpec, hidden: int, frames: int, hull_resolution: int):
        super().__init__(spec, hidden, frames, hull_resolution)
        self.terms = 2 * (frames // 2) + 1
        self.encoding = HashEncoding(spec)
        self.mlp = Mlp(3 + spec.width, hidden, (1 + SHADES) * self.terms, scale=0.1)

    @property
    def width(self) -> int:
        return self.spec.width + SHADES

    def basis(self, frame: Tensor) -> Tensor:
        """b(t) of frame indices [N], [N, terms]; the period is the window and the step after it."""
        angle = frame.float()[:, None] * (2 * math.pi / self.frames) * torch.arange(1, self.terms // 2 + 1, device=frame.device)
        return torch.cat([torch.ones_like(frame, dtype=torch.float32)[:, None], torch.cos(angle), torch.sin(angle)], -1)

    def correction(self, x: Tensor, frame: Tensor) -> Tensor:
        return (self.mlp(torch.cat([x, self.encoding(x)], -1))[:, : self.terms] * self.basis(frame)).sum(-1)

    def correction_with_gradient(self, x: Tensor, frame: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        features, jacobian = self.encoding.with_jacobian(x)
        basis = self.basis(frame)
        out, slope = self.mlp.with_gradient(torch.cat([x, features], -1), outputs=self.terms)
        series = (out.reshape(len(x), 1 + SHADES, self.terms) * basis[:, None]).sum(-1)
        slope = (slope * basis[..., None]).sum(1)
        return series[:, 0], slope[:, :3] + torch.einsum("ndk,nk->nd", jacobian, slope[:, 3:]), torch.cat([features, series[:, 1:]], -1)


class LatentSdf(LiveSdf):
    """correction = mlp([x, code_t, enc3(x)]) with a learned code per frame."""

    mode = "latent"

    def __init__(self, spec: HashSpec, hidden: int, frames: int, hull_resolution: int):
        super().__init__(spec, hidden, frames, hull_resolution)
        self.encoding = HashEncoding(spec)
        self.codes = nn.Parameter(torch.randn(frames, CODE) * 0.1)
        self.mlp = Mlp(3 + CODE + spec.width, hidden, 1, scale=0.1)

    @property
    def width(self) -> int:
        return self.spec.width + CODE

    def correction(self, x: Tensor, frame: Tensor) -> Tensor:
        return self.mlp(torch.cat([x, self.codes[frame], self.encoding(x)], -1))[:, 0]

    def correction_with_gradient(self, x: Tensor, frame: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        features, jacobian = self.encoding.with_jacobian(x)
        codes = self.codes[frame]
        out, slope = self.mlp.with_gradient(torch.cat([x, codes, features], -1))
        gradient = slope[:, 0, :3] + torch.einsum("ndk,nk->nd", jacobian, slope[:, 0, 3 + CODE :])
        return out[:, 0], gradient, torch.cat([features, codes], -1)


MODES: dict[str, type[LiveSdf]] = {made.mode: made for made in (TimeSdf, FourierSdf, LatentSdf)}


@dataclass
class LiveGrid:
    """Which cells hold surface at each frame: bool [F, G, G, G]."""

    occupied: Tensor

    @property
    def resolution(self) -> int:
        return self.occupied.shape[-1]


@dataclass
class LiveColours:
    """What the field says at live points: sdf [N], its gradient [N, 3], rgb [N, 3], converged bool [N] (always)."""

    sdf: Tensor
    gradient: Tensor
    rgb: Tensor
    converged: Tensor


class LiveField(nn.Module):
    """A window's surface and colour in live space; renders as `WindowField` does and carries nothing from frame to frame.

    Args:
        occupied: cells near the surface at each frame, bool [F, G, G, G].
    """

    def __init__(self, sdf: LiveSdf, colour: ColourField, sharpness: Sharpness, occupied: Tensor):
        super().__init__()
        self.sdf, self.colour, self.sharpness = sdf, colour, sharpness
        self.register_buffer("occupied", occupied)

    @property
    def frames(self) -> int:
        return self.sdf.frames

    @property
    def inv_std(self) -> Tensor:
        return self.sharpness()

    def live_space(self, resolution: int) -> LiveGrid:
        """Its own cells, whatever the resolution asked for: they are as fine as it was trained with."""
        return LiveGrid(self.occupied)

    def posed(self) -> tuple[()]:
        """There is no motion."""
        return ()

    @torch.no_grad()
    def quick_sdf(self, space: LiveGrid, x: Tensor, frame: Tensor) -> tuple[Tensor, Tensor]:
        """Signed distance [N] and the frame in place of a seed."""
        return self.sdf(x, frame), frame

    def at(self, space: LiveGrid, x: Tensor, frame: Tensor, seed: Tensor, directions: Tensor) -> LiveColours:
        """Distance, gradient and colour at live points."""
        sdf, gradient, features = self.sdf.with_gradient(x, frame)
        rgb = self.colour(x, F.normalize(gradient, dim=-1), directions, features)
        return LiveColours(sdf, gradient, rgb, torch.ones_like(sdf, dtype=torch.bool))

    def describe(self) -> dict[str, Any]:
        return {"sdf": self.sdf.describe(), "colour": self.colour.describe(), "cells": self.occupied.shape[-1]}

    @staticmethod
    def build(description: dict[str, Any]) -> LiveField:
        said = description["sdf"]
        sdf = MODES[said["mode"]](HashSpec.from_json(said["spec"]), said["hidden"], said["frames"], said["hull"])
        cells = description["cells"]
        occupied = torch.zeros(said["frames"], cells, cells, cells, dtype=torch.bool)
        return LiveField(sdf, ColourField.build(description["colour"]), Sharpness(1.0), occupied)
