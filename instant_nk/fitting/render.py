"""Pictures of the live subject from any camera, through the trained windows."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from instant_nk import layout
from instant_nk.fitting import window_files
from instant_nk.geometry.cameras import Cameras
from instant_nk.io.dataset import Dataset
from instant_nk.kernels.ray_sampling import march
from instant_nk.models.live_field import LiveField, LiveGrid
from instant_nk.models.renderer import Rendered, composite, neus_alpha, visible_samples
from instant_nk.models.warp import LiveSpace
from instant_nk.models.window_field import WindowField

RAYS = 8192  # rendered at once
STEP_CELLS = 0.4


class Renderer:
    """Renders frames of a sequence; keeps one window's field in memory at a time.

    Args:
        job: names the results folder, the device and, by `field.window_frames` and `field.overlap`, the trained windows.
        windows: names of the trained windows, where they are known from the results themselves.
    """

    def __init__(self, job: layout.Job, dataset: Dataset, windows: list[str] | None = None):
        self.paths, self.dataset, self.device = job.paths, dataset, job.device
        self.windows = windows or window_files.windows_of(dataset.frames, job.config.field)
        self.window: str | None = None

    def window_of(self, frame: int) -> str:
        """The window in which `frame` lies deepest."""
        return window_files.deepest(self.windows, frame)

    def open(self, frame: int) -> tuple[WindowField | LiveField, LiveSpace | LiveGrid, int]:
        """Field, live space and index of a frame."""
        window = self.window_of(frame)
        if window != self.window:
            self.field, cells = window_files.open_window(self.paths, self.dataset, window, self.device)
            self.posed, self.space, self.window = self.field.posed(), self.field.live_space(cells), window
        return self.field, self.space, window_files.window_frames(self.dataset, window).index(frame)

    @torch.no_grad()
    def render(self, c2w: np.ndarray, K: np.ndarray, size: tuple[int, int], frame: int) -> dict[str, np.ndarray]:
        """One picture.

        Args:
            c2w: camera-to-world, OpenCV axes, f64 [4, 4].
            K: intrinsics in pixels [3, 3]; size: width, height.

        Returns:
            `rgb` straight sRGB f32 [H, W, 3], `alpha` f32 [H, W], `depth` along the optical axis in world units f32 [H, W]
            (0 where nothing is seen), `normal` unit in world axes f32 [H, W, 3].
        """
        field, space, index = self.open(frame)
        cameras = Cameras.from_world(c2w[None], K[None], self.dataset.scene_from_world, self.device)
        width, height = size
        y, x = torch.meshgrid(torch.arange(height, device=self.device), torch.arange(width, device=self.device), indexing="ij")
        pixels = torch.stack([x, y], -1).reshape(-1, 2).float() + 0.5
        parts = []
        for part in pixels.split(RAYS):
            origins, directions = cameras.rays(torch.zeros(len(part), dtype=torch.long, device=self.device), part)
            parts.append(self._rays(field, space, index, origins, directions, cameras.c2w[0, :3, 2]))
        rgb, opacity, depth, normal = (
            torch.cat([getattr(p, name) for p in parts]).reshape(height, width, *tail)
            for name, tail in (("rgb", (3,)), ("opacity", ()), ("depth", ()), ("normal", (3,)))
        )
        safe = opacity.clamp_min(1e-4)
        world = np.linalg.inv(self.dataset.scene_from_world[:3, :3] / self.dataset.scale)
        normal = torch.nn.functional.normalize(normal, dim=-1).cpu().numpy() @ world.T.astype(np.float32)
        return {
            "rgb": (rgb / safe[..., None]).clamp(0, 1).cpu().numpy(),
            "alpha": opacity.clamp(0, 1).cpu().numpy(),
            "depth": torch.where(opacity > 0.5, depth / safe / self.dataset.scale, 0).cpu().numpy(),
            "normal": normal,
        }

    def _rays(self, field: WindowField | LiveField, space: LiveSpace | LiveGrid, index: int, origins: Tensor, directions: Tensor, axis: Tensor) -> Rendered:
        rays = len(origins)
        frames = torch.full((rays,), index, device=self.device)
        jitter = torch.full((rays,), 0.5, device=self.device)
        ray, start, end = march(origins, directions, space.occupied, STEP_CELLS * 2 / space.resolution, jitter, grid_index=frames)
        middle = (start + end) * 0.5
        points = origins[ray] + directions[ray] * middle[:, None]
        sdf, vertex = field.quick_sdf(space, points, frames[ray])
        keep = visible_samples(sdf, ray, rays, field.inv_std, 1e-3).nonzero()[:, 0]
        ray, middle, lengths, points, vertex = ray[keep], middle[keep], (end - start)[keep], points[keep], vertex[keep]
        live = field.at(space, points, frames[ray], vertex, directions[ray], *self.posed)
        alpha = neus_alpha(live.sdf, (directions[ray] * live.gradient).sum(-1), lengths, field.inv_std)
        alpha = torch.where(live.converged, alpha, 0)
        along = middle * (directions[ray] @ axis)  # distance along the ray -> depth along the optical axis
        return composite(alpha, live.rgb, torch.nn.functional.normalize(live.gradient, dim=-1), along, ray, rays)
