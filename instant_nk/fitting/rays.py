"""Training rays: the pixels near the subject, kept compactly, drawn at random."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from instant_nk.fitting.lookahead import in_order
from instant_nk.geometry.cameras import Cameras
from instant_nk.io.dataset import Dataset

MOST_READERS = 8  # threads that read images: more would only hold more images
MASK_MARGIN = 0.025  # of the image's longer side: how far outside its mask a pixel still teaches where the subject is not


@dataclass
class Batch:
    """R rays with what they should see.

    Attributes:
        origins, directions: scene (live) space [R, 3].
        rgb: straight sRGB [R, 3].
        alpha: mask coverage [R].
        frame: index into the source's frames, i64 [R]; camera: index of the camera, i64 [R].
    """

    origins: Tensor
    directions: Tensor
    rgb: Tensor
    alpha: Tensor
    frame: Tensor
    camera: Tensor


class PixelSource:
    """Pixels inside or near the masks of some frames, all training cameras, as 8-bit colour.

    Memory is bounded whatever the capture's size: 12 bytes a kept pixel, on `device`, at most `max_pixels` of them. Images are
    read `threads` at a time, and frames outside `frames` never.

    Args:
        dataset: where images come from.
        frames: absolute frames.
        max_pixels: most pixels kept; where the images hold more, an even random share of each.
        device: where rays are made.
        threads: that read images; beside a training, one is best.
    """

    def __init__(self, dataset: Dataset, frames: list[int], max_pixels: int, device: str | torch.device = "cpu", threads: int = 1):
        share, generator = max_pixels // (len(frames) * len(dataset.cameras)), np.random.default_rng(0)

        self.cameras = Cameras.from_world(dataset.cameras.c2w, dataset.cameras.K, dataset.scene_from_world, device)
        which = [(c, frame) for frame in frames for c in range(len(dataset.cameras))]
        colours, pixels, views = [], [], []
        for view, (colour, place) in enumerate(in_order(lambda item: _near_subject(dataset.image(*item)), which, min(threads, MOST_READERS))):
            if len(colour) > share:
                kept = generator.choice(len(colour), share, replace=False)
                colour, place = colour[kept], place[kept]
            colours.append(colour)
            pixels.append(place)
            views.append(np.full(len(colour), view, np.int32))
        self.colours = torch.from_numpy(np.concatenate(colours)).to(device)
        self.pixels = torch.from_numpy(np.concatenate(pixels)).to(device)
        self.views = torch.from_numpy(np.concatenate(views)).to(device)
        self.device = device

    def __len__(self) -> int:
        return len(self.colours)

    def draw(self, rays: int, generator: torch.Generator) -> Tensor:
        """Numbers of `rays` pixels, drawn with replacement, i64 [rays]."""
        return torch.randint(len(self), (rays,), generator=generator, device=self.device)

    def batch(self, rows: Tensor) -> Batch:
        """The rays of pixels by their numbers."""
        view = self.views[rows].long()
        frame, camera = view // len(self.cameras.K), view % len(self.cameras.K)
        origins, directions = self.cameras.rays(camera, self.pixels[rows].float() + 0.5)
        rgba = self.colours[rows].float() / 255
        return Batch(origins, directions, rgba[:, :3], rgba[:, 3], frame, camera)


def _near_subject(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Colours u8 [N, 4] and places (x, y) i16 [N, 2] of an image's pixels inside its mask or near it, row by row."""
    from scipy.ndimage import maximum_filter

    margin = max(2, round(MASK_MARGIN * max(image.shape[:2])))
    near = np.flatnonzero(maximum_filter(image[..., 3] > 0, 2 * margin + 1))
    rows, columns = np.divmod(near, image.shape[1])
    whole = np.ascontiguousarray(image).view(np.uint32).reshape(-1)  # four bytes at once: several times faster than rows of four
    return whole[near].view(np.uint8).reshape(-1, 4), np.stack([columns, rows], 1).astype(np.int16)
