"""Images of a capture: decoding, masks, and the 8-bit RGBA images (straight alpha = mask) that later stages read.

An image that already is an 8-bit RGBA PNG and needs nothing done stays where it is; any other is converted once.
"""

from __future__ import annotations

import logging
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
from PIL import ExifTags, Image

from instant_nk.config import DatasetConfig
from instant_nk.errors import DataError
from instant_nk.io import artifact, capture_lens, capture_video
from instant_nk.io import capture_layout as layouts
from instant_nk.io.capture_cameras import IMAGE_SUFFIXES, VIDEO_SUFFIXES, RawCamera
from instant_nk.io.capture_layout import View
from instant_nk.io.capture_lens import Lens

log = logging.getLogger(__name__)

MASK_LEVEL = 26
"""Alpha (of 255) from which a pixel counts as subject: a tenth covered, so that parts thinner than a pixel are seen."""

DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
EIGHT_BIT = {"RGBA", "RGB", "L", "LA", "P", "PA", "1", "CMYK", "YCbCr"}
SIXTEEN_BIT = {"I;16", "I;16B", "I;16L", "I"}
Size = tuple[int, int]
UNREAD, IN_PLACE, CONVERTED = 0, 1, 2


def open_image(path: Path) -> Image.Image:
    """A fully decoded image.

    Raises:
        DataError: missing, truncated, not an image, or stored rotated.
    """
    try:
        with Image.open(path) as image:
            image.load()
            _check_upright(image, path)
            return image
    except FileNotFoundError:
        raise DataError(f"{path}: the image is missing.") from None
    except DECODE_ERRORS as error:
        raise _unreadable(path, error) from None


def image_size(path: Path) -> Size:
    """Width and height in pixels, from the file's header.

    Raises:
        DataError: not an image, or stored rotated.
    """
    try:
        with Image.open(path) as image:
            _check_upright(image, path)
            return image.size
    except DECODE_ERRORS as error:
        raise _unreadable(path, error) from None


def _check_upright(image: Image.Image, path: Path) -> None:
    """Refuse an image that its EXIF wants turned or mirrored: its pixels would be read as stored, and camera and masks may be those of what viewers show.

    TIFF passes: there the decoder turns pixels and size alike.
    """
    if image.format == "TIFF":
        return
    try:
        orientation = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)  # not PNG's own, which decodes the image
    except DECODE_ERRORS:
        return  # a tag that nobody can read turns nothing
    if orientation in range(2, 9):
        raise DataError(
            f"{path}: the image is stored rotated (EXIF orientation {orientation}). Write the pixels upright, or clear the tag if the lens fits them as stored."
        )


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(f"{path}: the image is truncated or not an image ({error}). Copy or export it again.")


def seems_whole(path: Path) -> bool:
    """Whether an image file ends as its format wants; reads its first and last bytes only."""
    with open(path, "rb") as handle:
        head = handle.read(8)
        handle.seek(max(-16, -os.fstat(handle.fileno()).st_size), os.SEEK_END)
        tail = handle.read()
    if head == b"\x89PNG\r\n\x1a\n":
        return tail[-8:-4] == b"IEND"
    return b"\xff\xd9" in tail if head[:2] == b"\xff\xd8" else len(head) == 8


def is_plain_rgba(path: Path) -> bool:
    """Whether a file is a PNG of 8-bit RGBA."""
    with open(path, "rb") as handle:
        head = handle.read(26)
    return head[:8] == b"\x89PNG\r\n\x1a\n" and head[24:26] == b"\x08\x06"


def has_alpha(image: Image.Image) -> bool:
    return image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info


def to_rgba(image: Image.Image, path: Path) -> np.ndarray:
    """Any 8- or 16-bit image as u8 [H, W, 4]; grey and palette are expanded, 16-bit values keep their upper byte.

    Raises:
        DataError: floating-point (HDR) images, which have no 8-bit meaning.
    """
    if image.mode in SIXTEEN_BIT:
        grey = (np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8)
        return np.dstack([grey, grey, grey, np.full_like(grey, 255)])
    if image.mode not in EIGHT_BIT:
        raise DataError(f"{path}: images of mode '{image.mode}' are not supported; wanted 8- or 16-bit RGBA, RGB, grey or palette. Convert it to 8-bit PNG.")
    return np.asarray(image.convert("RGBA"))


def write_png(path: Path, image: np.ndarray) -> None:
    """Write u8 [H, W, 4] or u16 [H, W] as PNG, whole or not at all."""
    with artifact.atomic(path) as aside:
        Image.fromarray(image).save(aside, format="PNG", compress_level=3)


# Masks: where they come from, and what they say.


@dataclass(frozen=True)
class MaskRule:
    """Where a view's masks come from.

    Attributes:
        kind: `alpha`: the images' own; `files`: separate images; `colour`: a plain backdrop; `plates`: clean plates.
        folder: kind files: folder of the masks; None: `mask_path` in the json.
        beside: kind files: folder of the images that have the masks' relative names.
        colour: kind colour: the backdrop, f32 [3] in 0..255.
        tolerance: colour distance above which a pixel is subject.
        plates: kind plates: the plate of each camera, by camera name.
        frame_folders: kind files, of videos: name of the folder of each frame's masks below `folder`, where masks are images.
    """

    kind: Literal["alpha", "files", "colour", "plates"]
    folder: Path | None = None
    beside: Path | None = None
    colour: np.ndarray | None = None
    tolerance: float = 0.0
    plates: dict[str, Path] = field(default_factory=dict)
    frame_folders: dict[int, str] = field(default_factory=dict)

    def file(self, view: View, camera: RawCamera, frame: int) -> Path | None:
        """The file that holds the mask (or clean plate) of an image; None when none is needed."""
        if self.kind == "plates":
            return self.plates[camera.name]
        if self.kind != "files":
            return None
        if self.folder is None:
            return view.file(camera, frame, "mask_path")
        image = view.file(camera, frame)
        wanted = self.folder / os.path.relpath(image, self.beside)
        if view.video:  # a video of masks, or a folder of masks per frame
            options = [wanted.with_suffix(s) for s in VIDEO_SUFFIXES]
            of_frame = self.folder / self.frame_folders.get(frame, str(frame)) / os.path.relpath(image, self.beside)
            options += [of_frame.with_suffix(s) for s in IMAGE_SUFFIXES]
        else:
            options = [wanted, *(wanted.with_suffix(s) for s in IMAGE_SUFFIXES)]
        return next((o for o in options if o.is_file()), wanted)


def find_masks(settings: DatasetConfig, root: Path, view: View, used: Sequence[RawCamera], frames: Sequence[int]) -> MaskRule:
    """Decide where a view's masks come from: `dataset.background`, `mask_path`, a masks folder, or alpha.

    Raises:
        DataError: there are no masks; says what can be done.
    """
    if isinstance(settings.background, list):
        return MaskRule("colour", colour=np.array(settings.background, np.float32), tolerance=settings.background_tolerance)
    if isinstance(settings.background, str):
        return MaskRule("plates", plates=_find_plates(root, settings.background, used), tolerance=settings.background_tolerance)
    if any("mask_path" in files for c in used for files in c.files.values()):
        return MaskRule("files")
    images = [p for c in used for p in [view.file(c, frames[0])] if p is not None and p.is_file()]
    beside, folder = _masks_folder(root, view, used)
    if folder.is_dir():
        return MaskRule("files", folder=folder, beside=beside, frame_folders=layouts.digit_folders(folder, view.path) if view.video else {})
    for path in images:
        image = capture_video.first_picture(path) if view.video else open_image(path)
        if has_alpha(image) and to_rgba(image, path)[..., 3].min() < 255:
            return MaskRule("alpha")
    if not images:
        return MaskRule("alpha")
    if view.video:
        raise DataError(
            f"{view.folder}: the videos have no masks: no alpha channel, or one that is opaque everywhere (looked at the first picture). Give one of: a folder {folder} with a mask video "
            "per camera, named like it, or with mask images <frame>/<camera>.png; 'mask_path' in the json; dataset.background: [r, g, b] of a plain backdrop; "
            "dataset.background: a folder of clean plates, one image per camera."
        )
    raise DataError(
        f"{view.folder}: the images have no masks: no alpha channel, or one that is opaque everywhere (looked at frame {frames[0]}). Give one of: RGBA images whose alpha is the mask; "
        f"a folder {folder} with the images' relative names; dataset.background: [r, g, b] of a plain backdrop; dataset.background: a folder of clean plates, one image per camera."
    )


def _masks_folder(root: Path, view: View, used: Sequence[RawCamera]) -> tuple[Path, Path]:
    """An image folder, and the folder whose masks have the names that images have below it."""
    folder = Path(os.path.normpath(view.folder))
    if folder != Path(os.path.normpath(root)):
        return folder, layouts.masks_beside(folder)
    tops = {PurePosixPath(os.path.normpath(names["file_path"])).parts[0] for c in used for names in c.files.values()}
    if len(tops) == 1 and not any(view.frame_folders.values()) and "images" in (top := tops.pop()):
        return folder / top, layouts.masks_beside(folder / top)  # the json names files from the capture's root on
    return folder, folder / ("masks_test" if view.path.stem.endswith("test") else "masks")


def _find_plates(root: Path, name: str, cameras: Sequence[RawCamera]) -> dict[str, Path]:
    folder = next((f for f in (root / name, Path(name)) if f.is_dir()), None)
    if folder is None:
        raise DataError(
            f"dataset.background: no folder of clean plates at {root / name} or {Path(name).absolute()}. Give [r, g, b], or a folder with one image per camera."
        )
    plates, missing = {}, []
    for camera in cameras:
        stem = PurePosixPath(camera.name).with_suffix("")
        plate = next((p for s in IMAGE_SUFFIXES for p in (folder / f"{stem}{s}", folder / f"{stem.name}{s}") if p.is_file()), None)
        if plate is None:
            missing.append(f"{stem}.png")
        else:
            plates[camera.name] = plate
    if missing:
        raise DataError(f"{folder}: {len(missing)} clean plates are missing: {', '.join(missing)}. Wanted one image per camera, named like it.")
    return plates


def read_mask(path: Path, size: Size) -> np.ndarray:
    """A mask file as alpha u8 [H, W]: its own alpha, or its grey value; label images (palette, two-valued, or of small numbers only) count above zero."""
    image = open_image(path)
    if image.size != size:
        raise DataError(f"{path}: the mask has {_by(image.size)} pixels, its image {_by(size)}.")
    if image.mode in ("P", "1"):
        return np.where(np.asarray(image) > 0, np.uint8(255), np.uint8(0))
    if image.mode in ("LA", "RGBA"):
        alpha = np.asarray(image.getchannel("A"))
        if alpha.min() < 255:
            return alpha
    grey = to_rgba(image, path)[..., :3].max(-1) if image.mode not in SIXTEEN_BIT else _sixteen_bit_mask(image)
    labels = grey.max() < MASK_LEVEL or ((grey == 0) | (grey == grey.max())).all()
    return np.where(grey > 0, np.uint8(255), np.uint8(0)) if labels else grey


def _sixteen_bit_mask(image: Image.Image) -> np.ndarray:
    values = np.asarray(image).astype(np.int64)
    return values.astype(np.uint8) if values.max() <= 255 else (values >> 8).clip(0, 255).astype(np.uint8)


def difference_mask(rgb: np.ndarray, backdrop: np.ndarray, tolerance: float) -> np.ndarray:
    """Alpha u8 [H, W]: 255 where a pixel u8 [H, W, 3] is farther than `tolerance` from the backdrop, freed of single pixels (majority of 3x3)."""
    difference = rgb.astype(np.float32) - backdrop
    subject = np.einsum("hwc,hwc->hw", difference, difference) > tolerance**2
    padded = np.pad(subject, 1, mode="edge").astype(np.uint8)
    rows = padded[:-2] + padded[1:-1] + padded[2:]
    votes = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]
    return np.where(votes >= 5, np.uint8(255), np.uint8(0))


def _by(size: Size) -> str:
    return f"{size[0]}x{size[1]}"


# The images of a view, ready for later stages.


class Images:
    """Images of some cameras of a view: read, checked and, where something must be done to them, converted once.

    Args:
        view: where the files lie.
        cameras: which of the view's cameras; an optional one of unknown size is left out, with a log line.
        frames: which frames.
        rule: where masks come from.
        max_side: longer side of the results at most, pixels.
        store: folder that converted images are written to, as `{frame}/{camera}.png`; None: nothing is written.
        optional: an image may be absent (held-out views).
    """

    def __init__(
        self, view: View, cameras: Sequence[RawCamera], frames: Sequence[int], rule: MaskRule, max_side: int | None, store: Path | None, optional: bool = False
    ):
        self.view, self.frames, self.rule, self.store, self.optional = view, list(frames), rule, store, optional
        self._folders: dict[str, set[str]] = {}
        known = [(camera, lens) for camera in cameras for lens in [self._lens(camera, max_side)] if lens is not None]
        self.cameras, self.lenses = [camera for camera, _ in known], [lens for _, lens in known]
        stems = [str(PurePosixPath(c.name).with_suffix("")) for c in self.cameras]
        unique = len(set(stems)) == len(stems)
        self.stored = [f"{stem if unique else camera.name}.png" for stem, camera in zip(stems, self.cameras)]
        self._row = {frame: row for row, frame in enumerate(self.frames)}
        self._state = np.zeros((len(self.frames), len(self.cameras)), np.int8)  # UNREAD, IN_PLACE or CONVERTED

    def __len__(self) -> int:
        return len(self.cameras)

    def _lens(self, camera: RawCamera, max_side: int | None) -> Lens | None:
        """A camera's lens; the size of its images may come from a frame that is not used. None: nothing tells the size, and the camera is optional."""
        size = camera.size
        if size is None:
            path = next((p for t in (*self.frames, *self.view.frame_folders) for p in [self.source(camera, t)] if p is not None), None)
            if path is None:
                unknown = f"{camera.where}: the image size is unknown: no image exists and the json gives no 'w' and 'h'"
                if not self.optional:
                    raise DataError(f"{unknown}. Add them.")
                log.warning("%s. This held-out camera is left out; add them to have it rendered.", unknown)
                return None
            size = self._raw_size(path)
        return capture_lens.make_lens(camera.K(size), camera.distortion, size, max_side, camera.where)

    def _raw_size(self, path: Path) -> Size:
        return image_size(path)

    def source(self, camera: RawCamera, frame: int) -> Path | None:
        """The raw image, or None when there is no such file."""
        path = self.view.file(camera, frame)
        return path if path is not None and self._exists(path) else None

    def _exists(self, path: Path) -> bool:
        """Whether a file exists, from listings of whole folders."""
        folder = str(path.parent)
        if folder not in self._folders:
            try:
                with os.scandir(folder) as items:
                    self._folders[folder] = {i.name for i in items if i.is_file()}
            except (FileNotFoundError, NotADirectoryError):
                self._folders[folder] = set()
        return path.name in self._folders[folder]

    def missing(self, with_depth: bool = False) -> list[str]:
        """Every file that should be there and is not: images, masks, depth maps; a wholly missing frame is named once."""
        result = []
        for frame in self.frames:
            lacking = []
            for camera in self.cameras:
                image = self.source(camera, frame)
                wanted = [] if image is None and self.optional else [self.view.file(camera, frame)]
                if image is not None and self.rule.kind == "files":
                    wanted.append(self.rule.file(self.view, camera, frame))
                if with_depth:
                    wanted.append(self.view.file(camera, frame, "depth_path"))
                lacking += [
                    f"{camera.name} at frame {frame} (the json names no file)" if p is None else str(p) for p in wanted if p is None or not self._exists(p)
                ]
            whole = len(lacking) == len(self.cameras) > 1 and self.view.frame_folders.get(frame, str(frame))
            result += (
                [f"{self.view.folder / self.view.frame_folders.get(frame, str(frame))}{os.sep} (all {len(lacking)} images of frame {frame})"]
                if whole
                else lacking
            )
        return result

    def read(self, index: int, frame: int) -> np.ndarray:
        """Image of camera `index` as later stages will see it, u8 [H, W, 4]; the first call checks the file and converts it.

        Raises:
            DataError: unreadable, of another size, or without its mask; names the file.
        """
        if self._state[self._row[frame], index] != UNREAD:
            done = self._result(index, frame)
            return to_rgba(open_image(done), done)
        camera, lens = self.cameras[index], self.lenses[index]
        path = self.view.file(camera, frame)
        image = open_image(path)
        if image.size != lens.raw_size:
            stated = "'w' and 'h' of the json say" if camera.size else "the camera's first image has"
            raise DataError(f"{path}: the image has {_by(image.size)} pixels, but {stated} {_by(lens.raw_size)}. All images of a camera must have one size.")
        in_place = self.rule.kind == "alpha" and lens.identity and is_plain_rgba(path)
        rgba = self._masked(camera, frame, image, path)
        if not in_place:
            rgba = capture_lens.apply(lens, rgba)
        if in_place:
            self._state[self._row[frame], index] = IN_PLACE
        elif self.store is not None:
            write_png(self.store / str(frame) / self.stored[index], rgba)
            self._state[self._row[frame], index] = CONVERTED
        return rgba

    def _result(self, index: int, frame: int) -> Path:
        """The file later stages read."""
        if self._state[self._row[frame], index] == CONVERTED:
            return self.store / str(frame) / self.stored[index]
        return self.view.file(self.cameras[index], frame)

    def _masked(self, camera: RawCamera, frame: int, image: Image.Image, path: Path) -> np.ndarray:
        """A raw image u8 [H, W, 4] with its mask as alpha."""
        if self.rule.kind == "alpha":
            if not has_alpha(image):
                raise DataError(f"{path}: the image has no alpha channel, but masks come from alpha. Export it as RGBA like the others.")
            return to_rgba(image, path)
        rgba = to_rgba(image, path).copy()
        mask_file = self.rule.file(self.view, camera, frame)
        if self.rule.kind == "files":
            rgba[..., 3] = read_mask(mask_file, image.size)
        else:
            backdrop = self.rule.colour
            if self.rule.kind == "plates":
                plate = open_image(mask_file)
                if plate.size != image.size:
                    raise DataError(f"{mask_file}: the clean plate has {_by(plate.size)} pixels, the camera's images {_by(image.size)}.")
                backdrop = to_rgba(plate, mask_file)[..., :3].astype(np.float32)
            rgba[..., 3] = difference_mask(rgba[..., :3], backdrop, self.rule.tolerance)
        rgba[rgba[..., 3] == 0] = 0
        return rgba

    def location(self, index: int, frame: int, root: Path) -> str | None:
        """Where later stages find an image that `read` has seen: relative to `root` when it was converted, else absolute; None where there is none."""
        state = self._state[self._row[frame], index]
        if state == UNREAD:
            return None
        path = self._result(index, frame)
        return str(path.relative_to(root)) if state == CONVERTED else str(path.resolve())

    def read_depth(self, index: int, frame: int, root: Path) -> str:
        """Check a camera's 16-bit depth map; returns where later stages find it: in place, or as an undistorted or downscaled copy."""
        camera, lens = self.cameras[index], self.lenses[index]
        path = self.view.file(camera, frame, "depth_path")
        image = open_image(path)
        if image.mode not in SIXTEEN_BIT:
            raise DataError(
                f"{path}: a depth map must be a 16-bit grey PNG, got mode '{image.mode}'. Export whole millimetres, or state 'integer_depth_scale'."
            )
        if image.size != lens.raw_size:
            raise DataError(f"{path}: the depth map has {_by(image.size)} pixels, its camera's images {_by(lens.raw_size)}.")
        if lens.identity or self.store is None:
            return str(path.resolve())
        target = self.store.with_name("depth") / str(frame) / self.stored[index]
        write_png(target, capture_lens.apply_to_depth(lens, np.asarray(image).astype(np.uint16)))
        return str(target.relative_to(root))
