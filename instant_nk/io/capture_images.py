"""Images of a capture: decoding, masks, undistortion and downscaling to 8-bit RGBA with straight alpha as mask."""

from __future__ import annotations

import logging
import struct
from pathlib import Path

import numpy as np
from PIL import Image

from instant_nk.errors import DataError
from instant_nk.io import artifact

log = logging.getLogger(__name__)

MASK_LEVEL = 26
"""Alpha (of 255) from which a pixel counts as subject: a tenth covered, so that parts thinner than a pixel are seen."""

DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
EIGHT_BIT = {"RGBA", "RGB", "L", "LA", "P", "PA", "1", "CMYK", "YCbCr"}
SIXTEEN_BIT = {"I;16", "I;16B", "I;16L", "I"}


def open_image(path: Path) -> Image.Image:
    """A fully decoded image.

    Raises:
        DataError: missing, truncated, or not an image.
    """
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except FileNotFoundError:
        raise DataError(f"{path}: the image is missing.") from None
    except DECODE_ERRORS as error:
        raise DataError(f"{path}: the image is truncated or not an image ({error}). Copy or export it again.") from None


def image_size(path: Path) -> tuple[int, int]:
    """Width and height in pixels, from the file's header."""
    try:
        with Image.open(path) as image:
            return image.size
    except DECODE_ERRORS as error:
        raise DataError(f"{path}: the image is truncated or not an image ({error}). Copy or export it again.") from None


def is_plain_rgba(path: Path) -> bool:
    """Whether a file is a PNG of 8-bit RGBA, which later stages read in place."""
    with open(path, "rb") as handle:
        head = handle.read(26)
    return head[:8] == b"\x89PNG\r\n\x1a\n" and head[24:26] == b"\x08\x06"


def to_rgba(image: Image.Image, path: Path) -> np.ndarray:
    """Any 8- or 16-bit image as u8 [H, W, 4]; grey and palette are expanded, 16-bit grey keeps its upper byte.

    Raises:
        DataError: floating-point (HDR) images, which have no 8-bit meaning.
    """
    if image.mode in SIXTEEN_BIT:
        grey = (np.asarray(image, np.uint32) >> 8).clip(0, 255).astype(np.uint8)
        return np.dstack([grey, grey, grey, np.full_like(grey, 255)])
    if image.mode not in EIGHT_BIT:
        raise DataError(f"{path}: images of mode '{image.mode}' are not supported; wanted 8- or 16-bit RGBA, RGB, grey or palette. Convert it to 8-bit PNG.")
    return np.asarray(image.convert("RGBA"))


def write_png(path: Path, image: np.ndarray) -> None:
    """Write u8 [H, W, 4] or u16 [H, W] as PNG, whole or not at all."""
    with artifact.atomic(path) as aside:
        Image.fromarray(image).save(aside, format="PNG", compress_level=3)
