"""Captures of one video per camera: decoded once, into the same 8-bit RGBA images that folders of images become."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from instant_nk.errors import DataError
from instant_nk.io import artifact, capture_lens, capture_video
from instant_nk.io.capture_cameras import VIDEO_SUFFIXES, RawCamera
from instant_nk.io.capture_images import Images, MaskRule, Size, has_alpha, open_image, seems_whole, to_rgba, write_png
from instant_nk.io.capture_layout import View

DECODED_FORMAT = 2  # raise it when the same video gives other images
MASK_MIDDLE = 128
"""Grey value of a mask video from which a pixel is subject: compression leaves no value exact."""


class Films(Images):
    """Images of cameras that are videos. `decode` writes a camera's images below `cache`; `read` then finds them there.

    A folder of decoded images is named by everything that decides what they look like, so a later run with another box, or one that
    was killed, uses what is there.

    Args:
        cache: folder for the decoded images.
        For the others see `Images`.
    """

    def __init__(
        self, view: View, cameras: Sequence[RawCamera], frames: Sequence[int], rule: MaskRule, max_side: int | None, cache: Path, optional: bool = False
    ):
        self.cache = cache
        self._names: dict[int, str] = {}
        super().__init__(view, cameras, frames, rule, max_side, None, optional)

    def _raw_size(self, path: Path) -> Size:
        return capture_video.first_picture(path).size

    def missing(self, with_depth: bool = False) -> list[str]:
        """Every video, and every video or image of a mask, that should be there and is not."""
        found = []
        for camera in self.cameras:
            video = self.view.file(camera, self.frames[0])
            if not self._exists(video):
                found += [] if self.optional else [str(video)]
            elif self.rule.kind == "files":
                masks = dict.fromkeys(self.rule.file(self.view, camera, frame) for frame in self.frames)
                found += [f"{camera.name} (the json names no mask)" if m is None else str(m) for m in masks if m is None or not self._exists(m)]
        return found

    def lengths(self) -> dict[str, int]:
        """Pictures in each camera's video, by file name; absent held-out videos are left out."""
        files = [path for camera in self.cameras for path in [self.source(camera, self.frames[0])] if path is not None]
        return {str(path): capture_video.frame_count(path) for path in files}

    def check_lengths(self, all_asked: bool) -> None:
        """Refuse videos that end before the last frame used, and where all frames are asked for also those that hold more than others.

        Raises:
            DataError: names every video whose length is not that of most.
        """
        lengths = self.lengths()
        if not lengths:
            return
        counts = list(lengths.values())
        usual = max(set(counts), key=counts.count)
        short = {path: n for path, n in lengths.items() if n <= self.frames[-1]}
        odd = {path: n for path, n in lengths.items() if n != usual} if all_asked else {}
        if named := short | odd:
            listed = "\n  ".join(f"{path}: {n}" for path, n in sorted(named.items()))
            least = min(counts)
            raise DataError(
                f"{self.view.path}: the videos hold different numbers of pictures, most of them {usual}:\n  {listed}\n"
                f"Picture n of every video must be of the same moment. If they begin together, frames.count (from the first frame: {least}) uses what all have; "
                "otherwise cut them to begin and end together, or export those cut short again."
            )

    def whole(self, index: int, frame: int) -> Path:
        """Where the image of a camera at a frame is kept."""
        return self.folder(index) / f"{frame:06d}.png"

    def undecoded(self, index: int, frames: Sequence[int]) -> list[int]:
        """The frames whose images are not there yet; none for a video that is absent and may be."""
        if self.source(self.cameras[index], self.frames[0]) is None:
            return []
        return [frame for frame in frames if not self._there(index, frame)]

    def _there(self, index: int, frame: int) -> bool:
        path = self.whole(index, frame)
        return path.is_file() and seems_whole(path)

    def decode(self, index: int, frames: Sequence[int], done: Callable[[], None] = lambda: None) -> None:
        """Decode a camera's video and write its images at `frames`, ascending, as later stages read them; those that are there stay.

        Args:
            done: called after each picture.

        Raises:
            DataError: the video or its mask ends too soon, has another size than stated, or is damaged.
        """
        wanted = self.undecoded(index, frames)
        if not wanted:
            return
        camera, lens = self.cameras[index], self.lenses[index]
        path = self.view.file(camera, wanted[0])
        self._check_size(path, lens.raw_size, "'w' and 'h' of the json say" if camera.size else "its first picture has")
        form = "rgba" if self.rule.kind == "alpha" else "rgb24"
        for frame, picture, mask in zip(wanted, capture_video.pictures(path, wanted, lens.raw_size, form), self._masks(camera, wanted, lens.raw_size)):
            rgba = self._masked(camera, frame, Image.fromarray(picture), path) if mask is None else self._cut(picture, mask)
            write_png(self.whole(index, frame), capture_lens.apply(lens, rgba))
            done()

    def _check_size(self, path: Path, size: Size, says: str) -> None:
        found = capture_video.first_picture(path)
        if found.size != size:
            raise DataError(f"{path}: the video has {found.size[0]}x{found.size[1]} pixels, but {says} {size[0]}x{size[1]}.")
        if self.rule.kind == "alpha" and not has_alpha(found):
            raise DataError(f"{path}: the video has no alpha channel, but masks come from alpha. Export it like the others, or give masks to all.")

    def _masks(self, camera: RawCamera, frames: Sequence[int], size: Size) -> Iterator[np.ndarray | None]:
        """Alpha u8 [H, W] at each frame from the camera's mask video; None where masks do not come as a video."""
        path = self.rule.file(self.view, camera, frames[0]) if self.rule.kind == "files" else None
        if path is None or path.suffix.lower() not in VIDEO_SUFFIXES:
            return itertools.repeat(None)
        found = capture_video.first_picture(path).size
        if found != size:
            raise DataError(f"{path}: the mask video has {found[0]}x{found[1]} pixels, its camera's {size[0]}x{size[1]}.")
        return (np.where(grey[..., 0] >= MASK_MIDDLE, np.uint8(255), np.uint8(0)) for grey in capture_video.pictures(path, frames, size, "gray"))

    @staticmethod
    def _cut(picture: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """A picture u8 [H, W, 3] with its mask as alpha."""
        rgba = np.empty((*mask.shape, 4), np.uint8)
        np.multiply(picture, (mask > 0)[..., None], out=rgba[..., :3])
        rgba[..., 3] = mask
        return rgba

    def folder(self, index: int) -> Path:
        """The folder of a camera's images."""
        if index not in self._names:
            camera, lens = self.cameras[index], self.lenses[index]
            masks = dict.fromkeys(self.rule.file(self.view, camera, frame) for frame in self.frames) if self.rule.kind in ("files", "plates") else {}
            rule = [self.rule.kind, self.rule.tolerance, None if self.rule.colour is None else self.rule.colour.tolist()]
            optics = [lens.raw_K.tolist(), lens.distortion.tolist(), lens.raw_size, lens.size]
            made_from = [_stamp(path) for path in (self.view.file(camera, self.frames[0]), *masks)]
            stem = str(PurePosixPath(camera.name).with_suffix("")).replace("/", "_")
            self._names[index] = f"{stem}-{artifact.config_hash([DECODED_FORMAT, camera.name, made_from, rule, optics])[:8]}"
        return self.cache / self._names[index]

    def read(self, index: int, frame: int) -> np.ndarray:
        """Image of camera `index` as later stages will see it, u8 [H, W, 4]; decoded now where `decode` has not been called."""
        self.decode(index, [frame])
        path = self.whole(index, frame)
        return to_rgba(open_image(path), path)

    def location(self, index: int, frame: int, root: Path) -> str | None:
        """Where later stages find an image: relative to the folder that `cache` lies in."""
        return str(self.whole(index, frame).relative_to(self.cache.parent))


def _stamp(path: Path) -> list:
    """What tells a file from its next version."""
    stat = path.stat()
    return [path.name, stat.st_size, stat.st_mtime_ns]
