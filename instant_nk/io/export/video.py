"""mp4 video through the ffmpeg that imageio-ffmpeg carries, and small GIF previews."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
from PIL import Image

from instant_nk.errors import ContractError
from instant_nk.io import artifact
from instant_nk.io.export.common import check_fps


def _even(image: np.ndarray) -> np.ndarray:
    """The image with even width and height, as H.264 asks: an odd last row or column is repeated."""
    return np.pad(image, ((0, image.shape[0] % 2), (0, image.shape[1] % 2), (0, 0)), mode="edge")


def write_video(path: Path | str, frames: Iterable[np.ndarray], fps: float, quality: float = 8.0) -> None:
    """Write RGB images u8 [H, W, 3] as H.264 mp4 that browsers play, whole or not at all.

    Args:
        frames: read one at a time, so they may come from a generator; all of one size.
        quality: 1 (small) to 10 (best).

    Raises:
        ContractError: no frames, a frame of another size or type, or the disk is full.
    """
    import imageio_ffmpeg  # here, so that pictures need no ffmpeg

    path = Path(path)
    check_fps(fps)
    frames = iter(frames)
    first = next(frames, None)
    if first is None:
        raise ContractError(f"{path}: a video needs at least one frame; got none.")
    _check(path, 0, first, first.shape)
    height, width = _even(first).shape[:2]
    with artifact.atomic(path) as aside:
        options = {"fps": fps, "quality": quality, "macro_block_size": 2, "ffmpeg_log_level": "fatal", "output_params": ["-movflags", "+faststart"]}
        writer = imageio_ffmpeg.write_frames(str(aside), (width, height), **options)
        writer.send(None)
        try:
            for written, frame in enumerate(itertools.chain([first], frames), 1):
                _check(path, written - 1, frame, first.shape)
                writer.send(np.ascontiguousarray(_even(frame)))
        finally:
            writer.close()
        _check_whole(imageio_ffmpeg, aside, written)


def _check_whole(ffmpeg: ModuleType, path: Path, frames: int) -> None:
    """The writer hides ffmpeg's exit code: a full disk at the last block shows only in the file."""
    try:
        readable = ffmpeg.count_frames_and_secs(str(path))[0]
    except (RuntimeError, OSError):
        readable = 0
    if readable != frames:
        raise OSError(f"ffmpeg stored {readable} of {frames} frames (is the disk full?)")


def _check(path: Path, i: int, frame: np.ndarray, shape: tuple[int, ...]) -> None:
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or frame.shape != shape:
        raise ContractError(f"{path}: frame {i} of the video must be uint8 [{shape[0]}, {shape[1]}, 3], got {frame.dtype} {list(frame.shape)}.")


def write_gif(path: Path | str, frames: Sequence[np.ndarray], fps: float, largest: int = 1_000_000) -> None:
    """Write RGB images u8 [H, W, 3] as a GIF without end, of at most `largest` bytes, whole or not at all.

    Where it would be larger, every second picture is left out, as long as eight or more stay and five or more are shown
    per second; then pictures are made smaller.

    Raises:
        ContractError: no frames, a frame of another size or type, or the disk is full.
    """
    path = Path(path)
    check_fps(fps)
    if not len(frames):
        raise ContractError(f"{path}: a GIF needs at least one frame; got none.")
    for i, frame in enumerate(frames):
        _check(path, i, frame, frames[0].shape)
    pictures, factor = [Image.fromarray(frame) for frame in frames], 1.0
    while len(data := _gif(pictures, fps, factor)) > largest and factor * max(pictures[0].size) > 16:
        if len(pictures) >= 16 and fps >= 10:
            pictures, fps = pictures[::2], fps / 2
        else:
            factor *= max(0.5, min(0.9, (largest / len(data)) ** 0.5))
    with artifact.atomic(path) as aside:
        aside.write_bytes(data)


def _gif(pictures: list[Image.Image], fps: float, factor: float) -> bytes:
    """One palette for all pictures: colours do not flicker, and unchanged pixels cost nothing."""
    size = tuple(max(1, round(n * factor)) for n in pictures[0].size)
    scaled = [picture.resize(size, Image.Resampling.LANCZOS) if factor < 1 else picture for picture in pictures]
    palette = _palette(np.stack([np.asarray(picture) for picture in scaled[:: max(1, len(scaled) // 12)]]))
    shown = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in scaled]
    out = io.BytesIO()
    shown[0].save(out, "GIF", save_all=True, append_images=shown[1:], duration=round(1000 / fps), loop=0, optimize=False)
    return out.getvalue()


def _palette(some: np.ndarray) -> Image.Image:
    """256 colours that cover those of the pictures u8 [N, H, W, 3]; every colour counts once, or a plain background would take most, and it stays exact."""
    background = some[0, 0, 0]
    distinct = np.unique(some.reshape(-1, 3) & 0xFC, axis=0)
    chosen = Image.fromarray(distinct[None]).quantize(255, dither=Image.Dither.NONE).getpalette()[: 3 * 255]
    palette = Image.new("P", (1, 1))
    palette.putpalette(chosen + background.tolist() * (256 - len(chosen) // 3))
    return palette
