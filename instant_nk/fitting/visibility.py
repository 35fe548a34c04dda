"""Which cameras see which vertices, and what colour they see there."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from instant_nk.geometry import spaces
from instant_nk.geometry.cameras import project
from instant_nk.geometry.rasterize import visible_in_views
from instant_nk.io.dataset import Dataset

MAX_SIDE = 256  # visibility is decided on images no larger than this; finer pixels change nothing at vertex scale


def seen_by(dataset: Dataset, vertices: np.ndarray, faces: np.ndarray, device: str = "cpu") -> np.ndarray:
    """Whether each training camera sees each vertex, bool [C, V].

    Args:
        vertices: scene (live) space, f32 [V, 3].
        faces: i32 [T, 3].
    """
    points, triangles = torch.from_numpy(vertices).float().to(device), torch.from_numpy(faces).to(device)
    w2c = torch.from_numpy(np.linalg.inv(spaces.transform_poses(dataset.scene_from_world, dataset.cameras.c2w)))
    scales = np.minimum(1.0, MAX_SIDE / dataset.cameras.sizes.max(1))
    K = torch.from_numpy(np.stack([np.diag([s, s, 1.0]) for s in scales]) @ dataset.cameras.K)
    sizes = [(max(1, round(float(w))), max(1, round(float(h)))) for w, h in dataset.cameras.sizes * scales[:, None]]
    return visible_in_views(points, triangles, w2c, K, sizes).cpu().numpy()


def observed_colours(dataset: Dataset, frame: int, vertices: np.ndarray, normals: np.ndarray, seen: np.ndarray, device: str = "cpu") -> np.ndarray:
    """Mean colour [V, 3] that the cameras of `seen` [C, V] observe at each vertex, head-on views counting most; grey where none does."""
    points, n, sees = (torch.from_numpy(x).to(device) for x in (vertices.astype(np.float32), normals.astype(np.float32), seen))
    poses = torch.from_numpy(spaces.transform_poses(dataset.scene_from_world, dataset.cameras.c2w)).float()
    total, weights = torch.zeros_like(points), torch.zeros_like(points[:, 0])
    for c in range(len(dataset.cameras)):
        if not seen[c].any():
            continue
        pixels, _ = project(points, torch.linalg.inv(poses[c]).to(device), torch.from_numpy(dataset.cameras.K[c]).float().to(device))
        colour, alpha = sample_image(torch.from_numpy(dataset.image(c, frame)).to(device), pixels)
        towards = torch.nn.functional.normalize(poses[c, :3, 3].to(device) - points, dim=-1)
        weight = sees[c] * (towards * n).sum(-1).clamp_min(0) ** 2 * (alpha > 0.9)
        total += colour * weight[:, None]
        weights += weight
    return torch.where(weights[:, None] > 1e-3, total / weights.clamp_min(1e-3)[:, None], 0.5).cpu().numpy()


def sample_image(rgba: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Bilinear straight colour [N, 3] and alpha [N] of an 8-bit RGBA image [H, W, 4] at pixel positions [N, 2]; zero outside."""
    height, width = rgba.shape[:2]
    image = rgba.float() / 255
    premultiplied = torch.cat([image[..., :3] * image[..., 3:], image[..., 3:]], -1).permute(2, 0, 1)[None]
    grid = (pixels / pixels.new_tensor([width, height]) * 2 - 1)[None, None]
    values = torch.nn.functional.grid_sample(premultiplied, grid, align_corners=False)[0, :, 0].T
    return values[:, :3] / values[:, 3:].clamp_min(1e-6), values[:, 3]
