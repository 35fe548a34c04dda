"""Looking at a training while it runs: a preview picture beside the output, and scalars and images for TensorBoard."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from instant_nk.errors import BackendError
from instant_nk.fitting.ray_render import Field, Space, render_rays
from instant_nk.fitting.rays import PixelSource
from instant_nk.io import artifact
from instant_nk.layout import Job

SIDE = 200  # pixels of a preview's longer side, so that looking costs little
RAYS = 8192  # rendered at once


class Monitor:
    """Writes what a training shows.

    Args:
        preview: where the picture goes.
        every_s: seconds between pictures; 0: none.
        board: folder of TensorBoard's events; None: none.

    Raises:
        BackendError: TensorBoard is asked for and not installed.
    """

    def __init__(self, preview: Path, every_s: float, board: Path | None):
        self.preview, self.every_s, self.last = preview, every_s, time.monotonic()
        preview.unlink(missing_ok=True)  # an earlier run's
        self.board = None
        if board:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                raise BackendError(
                    "runtime.tensorboard needs the package tensorboard, which is not installed. pip install tensorboard, or leave it false."
                ) from None
            self.board = SummaryWriter(board)

    @staticmethod
    def of(job: Job, output: Path, title: str) -> Monitor:
        """The monitor of a job that will write `output`: `{output}.preview.png` beside it, events under `tensorboard/{title}`."""
        runtime = job.config.runtime
        return Monitor(output.with_suffix(".preview.png"), runtime.preview_every_s, job.paths.root / "tensorboard" / title if runtime.tensorboard else None)

    def note(self, step: int, values: dict[str, float]) -> None:
        """Scalars of a step."""
        if self.board:
            for name, value in values.items():
                self.board.add_scalar(name, value, step)

    def due(self) -> bool:
        """Whether it is time for a picture."""
        return bool(self.every_s) and time.monotonic() - self.last >= self.every_s

    def show(self, step: int, picture: np.ndarray) -> None:
        """Replace the preview, u8 [H, W, 3]."""
        from PIL import Image

        self.last = time.monotonic()
        with artifact.atomic(self.preview) as aside:
            Image.fromarray(picture).save(aside)
        if self.board:
            self.board.add_image("preview", picture, step, dataformats="HWC")

    def close(self) -> None:
        """Flush the events."""
        if self.board:
            self.board.close()


@torch.no_grad()
def side_by_side(source: PixelSource, field: Field, space: Space, posed: tuple[Tensor, ...], view: int) -> np.ndarray:
    """One training view and the rendering beside it, on white, u8 [H, 2 W, 3]; of the view, the pixels that are trained on.

    Args:
        view: frame index times the number of cameras, plus the camera.
    """
    rows = (source.views == view).nonzero()[:, 0]
    pixels = source.pixels[rows].long()
    low, high = pixels.amin(0), pixels.amax(0)
    every = max(1, -(-int((high - low).max() + 1) // SIDE))
    rows = rows[((pixels - low) % every == 0).all(1)]
    pixels, rgba = (source.pixels[rows].long() - low) // every, source.colours[rows].float() / 255
    cameras, frame = len(source.cameras.K), view // len(source.cameras.K)
    camera = torch.full((len(rows),), view % cameras, device=rows.device)
    origins, directions = source.cameras.rays(camera, source.pixels[rows].float() + 0.5)
    axis = source.cameras.c2w[view % cameras, :3, 2]
    parts = []
    for o, d in zip(origins.split(RAYS), directions.split(RAYS)):
        seen = render_rays(field, space, posed, torch.full((len(o),), frame, device=o.device), o, d, axis)
        parts.append(seen.rgb + (1 - seen.opacity)[:, None])
    pictures = torch.ones(2, *((high - low).flip(0) // every + 1).tolist(), 3, device=rows.device)
    for picture, colours in zip(pictures, (rgba[:, :3] * rgba[:, 3:] + 1 - rgba[:, 3:], torch.cat(parts))):
        picture[pixels[:, 1], pixels[:, 0]] = colours
    return (torch.cat(list(pictures), 1).clamp(0, 1) * 255).round().byte().cpu().numpy()


def middle_view(source: PixelSource) -> int:
    """A view of the middle frame that has pixels: what a preview shows."""
    cameras, frames = len(source.cameras.K), int(source.views.max()) // len(source.cameras.K) + 1
    wanted = frames // 2 * cameras
    views = torch.unique(source.views)
    return int(views[(views - wanted).abs().argmin()])
