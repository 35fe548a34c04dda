"""Video files: how many pictures one holds, and the pictures one after the other, through the ffmpeg that imageio-ffmpeg carries."""

from __future__ import annotations

import functools
import io
import logging
import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
from PIL import Image

from instant_nk.errors import DataError

log = logging.getLogger(__name__)

MP4_STARTS = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")  # what files of the MP4 and QuickTime family begin with, behind a length
DECODER_THREADS = "2"  # of one video; several are decoded side by side
CHANNELS = {"rgb24": 3, "rgba": 4, "gray": 1}


def frame_count(path: Path) -> int:
    """Number of pictures of a video: from the index of an MP4 or QuickTime file, by decoding where an edit list cuts it; of other kinds by reading through.

    Raises:
        DataError: missing, truncated, or without a video stream.
    """
    try:
        stat = os.stat(path)
    except OSError as error:
        raise DataError(f"{path}: the video cannot be read ({error.strerror}).") from None
    return _count(path, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(4096)
def _count(path: Path, size: int, changed_ns: int) -> int:
    """`frame_count`, remembered as long as the file stays the same."""
    with open(path, "rb") as handle:
        count = _indexed_count(handle, size, path) if handle.read(8)[4:] in MP4_STARTS else None
    count = _stream_count(path) if count is None else count
    if not count:
        raise DataError(f"{path}: the video holds no pictures. Export it again.")
    return count


def _indexed_count(handle: BinaryIO, size: int, path: Path) -> int | None:
    """Pictures of the first video track of an MP4 or QuickTime file; None where there is no such index (fragmented files)."""
    top = dict(_boxes(handle, 0, size))
    whole = all(end <= size for _, end in top.values())
    if not whole or b"moov" not in top:
        cut = "ends in the middle of its pictures" if not whole else "lacks its index ('moov'), which recorders write last"
        raise DataError(f"{path}: the video is truncated: it {cut}. Copy it again.")
    inside = list(_boxes(handle, *top[b"moov"]))
    if any(kind == b"mvex" for kind, _ in inside):
        return None
    for track in (span for kind, span in inside if kind == b"trak"):
        media = dict(_boxes(handle, *_within(handle, track, b"mdia")))
        handle.seek(media[b"hdlr"][0] + 8)
        if handle.read(4) == b"vide":
            table = dict(_boxes(handle, *_within(handle, media[b"minf"], b"stbl")))
            count = _number(handle, table[b"stsz"], 8, 4)
            first = _number(handle, table[b"ctts"], 12, 4, signed=True) if b"ctts" in table else 0
            clocks = _clock(handle, dict(inside)[b"mvhd"]), _clock(handle, media[b"mdhd"])
            return _stream_count(path, decode=True) if _is_cut(_edits(handle, track), first, count, *clocks) else count
    raise DataError(f"{path}: there is no video stream in the file.")


def _is_cut(edits: list[tuple[int, int]], first: int, count: int, movie: tuple[int, int], media: tuple[int, int]) -> bool:
    """Whether an edit list leaves out some of a track's `count` pictures, as cutting without encoding anew does.

    Args:
        edits: as `_edits` gives them.
        first: time of the first picture, in the track's ticks.
        movie, media: ticks per second, and duration in ticks.
    """
    if len(edits) != 1:
        return bool(edits)
    shown, start = edits[0]
    left = media[1] + first - start  # of the track, from where it begins to be shown; half a picture less is rounding
    return start > first or shown * media[0] < (left - 0.5 * media[1] / max(count, 1)) * movie[0]


def _edits(handle: BinaryIO, track: tuple[int, int]) -> list[tuple[int, int]]:
    """Parts of a track that are shown: duration in the movie's ticks and first time in the track's; what only delays the track is left out."""
    boxes = dict(_boxes(handle, *track))
    lists = dict(_boxes(handle, *boxes[b"edts"])) if b"edts" in boxes else {}
    if b"elst" not in lists:
        return []
    span = lists[b"elst"]
    wide = 8 if _number(handle, span, 0, 1) else 4
    entries = range(8, 8 + (2 * wide + 4) * _number(handle, span, 4, 4), 2 * wide + 4)
    return [(_number(handle, span, at, wide), start) for at in entries if (start := _number(handle, span, at + wide, wide, signed=True)) >= 0]


def _clock(handle: BinaryIO, span: tuple[int, int]) -> tuple[int, int]:
    """Ticks per second and duration in ticks of a movie or media header."""
    wide = 8 if _number(handle, span, 0, 1) else 4
    return _number(handle, span, 4 + 2 * wide, 4), _number(handle, span, 8 + 2 * wide, wide)


def _number(handle: BinaryIO, span: tuple[int, int], offset: int, length: int, signed: bool = False) -> int:
    """A big-endian integer within a box."""
    handle.seek(span[0] + offset)
    return int.from_bytes(handle.read(length), "big", signed=signed)


def _boxes(handle: BinaryIO, start: int, end: int) -> Iterator[tuple[bytes, tuple[int, int]]]:
    """Kind of each box between two offsets, and where its content begins and should end."""
    while start + 8 <= end:
        handle.seek(start)
        length, kind, content = int.from_bytes(handle.read(4), "big"), handle.read(4), start + 8
        if length == 1:
            length, content = int.from_bytes(handle.read(8), "big"), start + 16
        stop = end if length == 0 else start + max(length, 8)
        yield kind, (content, stop)
        start = stop


def _within(handle: BinaryIO, span: tuple[int, int], *kinds: bytes) -> tuple[int, int]:
    """Offsets of a nested box."""
    for kind in kinds:
        span = dict(_boxes(handle, *span))[kind]
    return span


def _ffmpeg() -> str:
    import imageio_ffmpeg

    return imageio_ffmpeg.get_ffmpeg_exe()


def _stream_count(path: Path, decode: bool = False) -> int:
    """Pictures counted by reading the file through, without or with decoding; what a decoder complains of is logged when the pictures are used."""
    how = ["-fps_mode", "passthrough"] if decode else ["-c", "copy"]
    command = [_ffmpeg(), "-v", "error", "-nostdin", "-i", str(path), "-map", "0:v:0", *how, "-f", "null", "-progress", "pipe:1", "-"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
    if done.returncode or (done.stderr.strip() and not decode):
        raise DataError(f"{path}: the video is truncated or not a video ({_first_line(done.stderr)}). Copy or export it again.")
    return max((int(line[6:]) for line in done.stdout.splitlines() if line.startswith("frame=")), default=0)


def first_picture(path: Path) -> Image.Image:
    """The first picture of a video, with alpha where the video has it; tells its size as it is to be shown.

    Raises:
        DataError: no picture can be decoded.
    """
    command = [_ffmpeg(), "-v", "error", "-nostdin", "-i", str(path), "-map", "0:v:0", "-frames:v", "1"]
    command += ["-f", "image2pipe", "-c:v", "png", "-compression_level", "0", "-pred", "none", "pipe:1"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True)
    if not done.stdout:
        raise DataError(f"{path}: the video is truncated or not a video ({_first_line(done.stderr.decode(errors='replace'))}). Copy or export it again.")
    image = Image.open(io.BytesIO(done.stdout))
    image.load()
    return image


def pictures(path: Path, frames: Sequence[int], size: tuple[int, int], form: Literal["rgb24", "rgba", "gray"]) -> Iterator[np.ndarray]:
    """Pictures of a video, decoded one after the other from the first on, u8 [H, W, channels].

    Args:
        frames: which pictures, counted from zero, ascending.
        size: width and height.

    Raises:
        DataError: the video ends before the last of them.
    """
    command = [_ffmpeg(), "-v", "error", "-nostdin", "-threads", DECODER_THREADS, "-i", str(path), "-map", "0:v:0", "-fps_mode", "passthrough"]
    command += ["-frames:v", str(frames[-1] + 1), "-sws_flags", "bicubic+accurate_rnd+full_chroma_int", "-f", "rawvideo", "-pix_fmt", form, "pipe:1"]
    length, wanted, ended = size[0] * size[1] * CHANNELS[form], set(frames), False
    with tempfile.TemporaryFile() as said, subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=said, bufsize=length) as process:
        try:
            for number in range(frames[-1] + 1):
                data = process.stdout.read(length)
                if len(data) < length:
                    ended = True
                    process.wait()
                    raise DataError(
                        f"{path}: the video is truncated or damaged: it holds {number} pictures, but frame {frames[-1]} is asked for ({_read(said)}). "
                        "Copy or export it again, or set frames.count to what it holds."
                    )
                if number in wanted:
                    yield np.frombuffer(data, np.uint8).reshape(size[1], size[0], CHANNELS[form])
        finally:
            process.kill()  # all that is wanted was read, or nothing more will be
            process.wait()
            if not ended and (words := _read(said)) != NOTHING_SAID:  # here, because who has the last picture does not ask for another
                log.warning("%s: the decoder says: %s. Look at the pictures around it.", path, words)


NOTHING_SAID = "the decoder says nothing"


def _read(said: BinaryIO) -> str:
    said.seek(0)
    return _first_line(said.read().decode(errors="replace"))


def _first_line(text: str) -> str:
    """The first of ffmpeg's complaints, without the address it puts before it."""
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[0].rpartition("] ")[2].strip() if lines else NOTHING_SAID
