"""The neural signed distance field: a coarse distance grid from the visual hull plus a learned correction on a hash grid.

sdf(x) = hull(x) + mlp([x, enc(x)])_0. The correction starts near zero, so that training begins at the hull and carves.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from instant_nk.kernels import hash_encoding
from instant_nk.kernels.ahead import Call
from instant_nk.kernels.hash_encoding import HashSpec
from instant_nk.models.encoding import HashEncoding
from instant_nk.models.mlp import Mlp

HULL_MARGIN = 12  # voxels around a hull's box that are looked at: distances are exact to two thirds of them, and training looks for the surface in fewer


def hull_distance(occupied: np.ndarray) -> np.ndarray:
    """Signed distance to a visual hull at the corners of its voxels, slightly smoothed; far outside the hull's box (HULL_MARGIN), an estimate.

    Args:
        occupied: bool [R, R, R] over [-1, 1]^3, axes x, y, z.

    Returns:
        f32 [R + 1, R + 1, R + 1], scene units, negative inside.
    """
    from scipy.ndimage import distance_transform_edt, gaussian_filter

    size, near = 2.0 / occupied.shape[0], _box_around(occupied)
    part = occupied[tuple(slice(*ends) for ends in near)]
    inside = distance_transform_edt(part)
    outside = distance_transform_edt(~part) if part.any() else np.full(part.shape, part.shape[0], float)
    voxels = gaussian_filter(np.where(part, 0.5 - inside, outside - 0.5) * size, 0.7)
    away = [np.maximum(np.maximum(low - np.arange(n), np.arange(n) - (high - 1)), 0) * size for n, (low, high) in zip(occupied.shape, near)]
    voxels = np.pad(voxels, [(low, n - high) for n, (low, high) in zip(occupied.shape, near)], mode="edge")
    voxels += np.sqrt(away[0][:, None, None] ** 2 + away[1][:, None] ** 2 + away[2] ** 2)
    padded = np.pad(voxels, 1, mode="edge")
    corners = sum(padded[i : i + voxels.shape[0] + 1, j : j + voxels.shape[1] + 1, k : k + voxels.shape[2] + 1] for i in (0, 1) for j in (0, 1) for k in (0, 1))
    return (corners / 8).astype(np.float32)


def _box_around(occupied: np.ndarray) -> list[tuple[int, int]]:
    """First and last-plus-one voxel of each axis of the hull's box with its margin; of the whole grid where there is no hull."""
    if not occupied.any():
        return [(0, n) for n in occupied.shape]
    ends = []
    for axis, n in enumerate(occupied.shape):
        used = np.flatnonzero(occupied.any(tuple(a for a in range(3) if a != axis)))
        ends.append((max(0, used[0] - HULL_MARGIN), min(n, used[-1] + 1 + HULL_MARGIN)))
    return ends


class SdfField(nn.Module):
    """Signed distance in scene units, negative inside, with geometry features for the colour network.

    Args:
        spec: hash grid of the correction.
        hidden: width of the network.
        hull_resolution: cells per axis of the fixed coarse distance grid.
    """

    def __init__(self, spec: HashSpec, hidden: int, hull_resolution: int):
        super().__init__()
        self.encoding = HashEncoding(spec)
        self.mlp = Mlp(3 + spec.width, hidden, 1, scale=0.1)
        cells = hull_resolution
        self.base_spec = HashSpec(3, 1, int(np.ceil(np.log2((cells + 1) ** 3))), ((cells,) * 3,))
        self.register_buffer("base", torch.zeros(self.base_spec.table_rows, 1))

    def start_from(self, corners: np.ndarray) -> None:
        """Make the zero level of a `hull_distance`, f32 [R + 1, R + 1, R + 1], the starting surface."""
        self.base.copy_(torch.from_numpy(corners.transpose(2, 1, 0).reshape(-1, 1)))  # the table runs x fastest

    def forward(self, x: Tensor) -> Tensor:
        """Signed distance [N] at scene points [N, 3]."""
        base = hash_encoding.encode((x + 1) * 0.5, self.base, self.base_spec)
        return (base + self.mlp.of_points(x, self.encoding(x)))[:, 0]

    def with_gradient(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Signed distance [N], its gradient [N, 3] and the encoding's features [N, L*F]; all differentiable once."""
        base, base_jacobian = hash_encoding.encode_with_jacobian((x + 1) * 0.5, self.base, self.base_spec, scale=0.5)
        features, jacobian = self.encoding.with_jacobian(x)
        out, slope = self.mlp.along_space(x, features, jacobian)
        return (base + out)[:, 0], base_jacobian[..., 0] + slope[:, 0], features

    def rehearsals(self, to_table: bool, to_x: bool) -> list[Call]:
        """What `forward`, `with_gradient` and the latter's gradients launch: see `kernels.ahead`."""
        device = self.base.device
        fixed = hash_encoding.rehearsals(self.base_spec, device, False) + hash_encoding.rehearsals(self.base_spec, device, True, False, to_x)
        learned = self.encoding.rehearsals(False) + self.encoding.rehearsals(True, to_table, to_x)
        values = self.mlp.rehearsals(3, False, False, False, gradient=False)
        return fixed + learned + values + self.mlp.rehearsals(3, to_x, to_table or to_x, self.mlp.first.weight.requires_grad)

    def describe(self) -> dict[str, Any]:
        """What is needed to build the same module again."""
        return {"spec": self.encoding.spec.to_json(), "hidden": self.mlp.first.out_features, "hull_resolution": self.base_spec.resolutions[0][0]}

    @staticmethod
    def build(description: dict[str, Any]) -> SdfField:
        return SdfField(HashSpec.from_json(description["spec"]), description["hidden"], description["hull_resolution"])


class Sharpness(nn.Module):
    """`inv_std` of the SDF-to-alpha logistic, exp(10 v), learned (Wang et al. 2021)."""

    def __init__(self, initial: float):
        super().__init__()
        self.v = nn.Parameter(torch.tensor(np.log(initial) / 10, dtype=torch.float32))

    def forward(self) -> Tensor:
        return torch.exp(10 * self.v)
