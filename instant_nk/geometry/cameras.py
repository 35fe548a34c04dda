"""Cameras in scene space: rays through pixels and projection. OpenCV axes; pixel (row 0, column 0) has its centre at (0.5, 0.5)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from instant_nk.geometry import spaces


@dataclass
class Cameras:
    """Camera poses and intrinsics as tensors on one device, scene space.

    Attributes:
        c2w: camera-to-scene, OpenCV axes, f32 [C, 4, 4].
        K: intrinsics in pixels, f32 [C, 3, 3].
    """

    c2w: Tensor
    K: Tensor

    @staticmethod
    def from_world(c2w: np.ndarray, K: np.ndarray, scene_from_world: np.ndarray, device: str | torch.device = "cpu") -> Cameras:
        """Tensors from world poses [C, 4, 4] and intrinsics [C, 3, 3]."""
        poses = spaces.transform_poses(scene_from_world, c2w)
        return Cameras(torch.tensor(poses, dtype=torch.float32, device=device), torch.tensor(np.asarray(K), dtype=torch.float32, device=device))

    def rays(self, camera: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Origins and unit directions [N, 3] through pixel positions.

        Args:
            camera: index of each ray's camera, i64 [N].
            pixels: (x, y) in pixels, [N, 2]; centres are at half-integers.
        """
        K, c2w = self.K[camera], self.c2w[camera]
        x = (pixels[:, 0] - K[:, 0, 2]) / K[:, 0, 0]
        y = (pixels[:, 1] - K[:, 1, 2]) / K[:, 1, 1]
        x = x - K[:, 0, 1] / K[:, 0, 0] * y
        local = torch.stack([x, y, torch.ones_like(x)], -1)
        directions = torch.nn.functional.normalize((c2w[:, :3, :3] @ local[..., None])[..., 0], dim=-1)
        return c2w[:, :3, 3], directions


def project(points: Tensor, w2c: Tensor, K: Tensor) -> tuple[Tensor, Tensor]:
    """Pixel positions [..., 2] and depth along the optical axis [...] of points [..., 3].

    Args:
        w2c: scene-to-camera [4, 4].
        K: intrinsics [3, 3].
    """
    local = points @ w2c[:3, :3].T + w2c[:3, 3]
    image = local @ K.T
    depth = local[..., 2]
    return image[..., :2] / depth.clamp_min(1e-9)[..., None], depth
