"""Frames of a depth camera: colour, depth, intrinsics and an optional mask, read as the surface the camera saw."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from instant_nk.errors import DataError
from instant_nk.geometry import depth_map
from instant_nk.geometry.depth_map import SeenSpace
from instant_nk.io.capture_images import MASK_LEVEL, SIXTEEN_BIT, open_image, read_mask, to_rgba
from instant_nk.io.surface_file import Surface

INTRINSICS = "3x3 or 4x4 numbers as text, or json with 'K', with fx, fy, cx, cy, or with fl_x, fl_y, cx, cy"


@dataclass(frozen=True)
class Frame:
    """What a depth camera saw, in its own space (OpenCV axes).

    Attributes:
        surface: a vertex per used pixel.
        pixels: flat index of each vertex's pixel, i64 [V].
        size: width and height of the images.
    """

    surface: Surface
    pixels: np.ndarray
    size: tuple[int, int]


def read_intrinsics(path: Path | str) -> np.ndarray:
    """Intrinsics f64 [3, 3], pixels.

    Raises:
        DataError: missing, not of a known form, or without a positive focal length.
    """
    path = Path(path)
    try:
        text = path.read_text()
        K = _from_json(json.loads(text)) if text.lstrip()[:1] in ("{", "[") else np.array(text.replace(",", " ").split(), np.float64)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: the intrinsics cannot be read ({type(error).__name__}: {error}). Wanted {INTRINSICS}.") from None
    if K.size not in (9, 16):
        raise DataError(f"{path}: wanted {INTRINSICS}; got {K.size} numbers.")
    K = K.reshape(3, 3) if K.size == 9 else K.reshape(4, 4)[:3, :3]
    if not (np.isfinite(K).all() and K[0, 0] > 0 and K[1, 1] > 0 and np.allclose(K[2], [0, 0, 1]) and abs(K[1, 0]) < 1e-9):
        raise DataError(f"{path}: not intrinsics: {K.round(3).tolist()}. Wanted [[fx, s, cx], [0, fy, cy], [0, 0, 1]] with fx, fy above zero.")
    return K


def _from_json(value: dict | list) -> np.ndarray:
    if isinstance(value, list):
        return np.array(value, np.float64)
    if "K" in value:
        return np.array(value["K"], np.float64)
    fx = value["fx"] if "fx" in value else value["fl_x"]
    fy = value.get("fy", value.get("fl_y", fx))
    return np.array([[fx, 0, value["cx"]], [0, fy, value["cy"]], [0, 0, 1]], np.float64)


def read_depth(path: Path, depth_scale: float) -> np.ndarray:
    """Depth along the optical axis, f64 [H, W]; 0 where unknown. A unit of the result is `depth_scale` units of the file."""
    image = open_image(path)
    if image.mode not in SIXTEEN_BIT:
        raise DataError(f"{path}: a depth map must be a 16-bit grey PNG, got mode '{image.mode}'. Export whole millimetres, or give --depth-scale.")
    return np.asarray(image).astype(np.float64) / depth_scale


def load(colour: Path | str, depth: Path | str, K: np.ndarray, mask: Path | str | None = None, depth_scale: float = 1000.0) -> Frame:
    """Read a frame.

    Args:
        mask: image whose bright (or opaque) pixels are the subject; None: the colour image's alpha, or everything with a depth.
        depth_scale: depth units of the file per unit of the result; 1000: millimetres to metres.

    Raises:
        DataError: a file is missing or unreadable, sizes differ, or nothing is left to see.
    """
    colour, depth = Path(colour), Path(depth)
    image = open_image(colour)
    far, rgba = read_depth(depth, depth_scale), to_rgba(image, colour)
    if far.shape != rgba.shape[:2]:
        raise DataError(
            f"{depth}: the depth map has {far.shape[1]}x{far.shape[0]} pixels, {colour} has {image.width}x{image.height}. Align depth to colour first."
        )
    alpha = rgba[..., 3] if mask is None else read_mask(Path(mask), image.size)
    valid = (far > 0) & (alpha >= MASK_LEVEL)
    vertices, faces, normals, pixels = depth_map.to_mesh(far, K, valid)
    if not len(faces):
        raise DataError(
            f"{depth}: no surface is left of {int((far > 0).sum())} pixels with a depth, {int(valid.sum())} of them inside the mask. Look at both images."
        )
    colours, goes_on = rgba.reshape(-1, 4)[pixels, :3] / 255.0, depth_map.goes_on(far, K, pixels)
    return Frame(Surface(vertices, normals, faces, colours, goes_on, SeenSpace(depth_map.filled(far), K)), pixels, image.size)
