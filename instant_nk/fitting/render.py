"""Pictures of the live subject from any camera, through the trained windows."""

from __future__ import annotations

import numpy as np
import torch

from instant_nk import layout
from instant_nk.fitting import window_files
from instant_nk.fitting.ray_render import render_rays
from instant_nk.geometry.cameras import Cameras
from instant_nk.io.dataset import Dataset
from instant_nk.models.live_field import LiveField, LiveGrid
from instant_nk.models.warp import LiveSpace
from instant_nk.models.window_field import WindowField

RAYS = 8192  # rendered at once,
ON_GPU = 4  # and so many times that there, where a step takes little longer for more


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
        for part in pixels.split(RAYS * (ON_GPU if pixels.is_cuda else 1)):
            origins, directions = cameras.rays(torch.zeros(len(part), dtype=torch.long, device=self.device), part)
            frames = torch.full((len(part),), index, device=self.device)
            parts.append(render_rays(field, space, self.posed, frames, origins, directions, cameras.c2w[0, :3, 2]))
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
