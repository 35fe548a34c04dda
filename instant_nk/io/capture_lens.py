"""Lenses: from a raw, distorted image to the pinhole image that all later stages work on.

Distortion is Brown-Conrady (OpenCV's k1, k2, p1, p2, k3). The undistorted image keeps the raw one's size; its intrinsics are those of
the largest axis-aligned rectangle of undistorted space that the raw image fills, stretched to that size. So every pixel of it has
a source, and none of its border would be taken for background. A skew in K is taken out in the same way.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from instant_nk.errors import DataError

ROWS_PER_STEP = 256
"""Rows resampled at a time, which bounds memory."""


@dataclass(frozen=True)
class Lens:
    """How one camera's raw images become pinhole images.

    Attributes:
        raw_K: intrinsics of the raw image, f64 [3, 3].
        distortion: k1, k2, p1, p2, k3, f64 [5].
        raw_size: width and height of the raw image.
        K: intrinsics of the result, f64 [3, 3].
        size: width and height of the result.
        straight: nothing is resampled but for the size.
    """

    raw_K: np.ndarray
    distortion: np.ndarray
    raw_size: tuple[int, int]
    K: np.ndarray
    size: tuple[int, int]
    straight: bool

    @property
    def identity(self) -> bool:
        return self.straight and self.size == self.raw_size


def make_lens(K: np.ndarray, distortion: np.ndarray, size: tuple[int, int], max_side: int | None, where: str) -> Lens:
    """Lens of a camera whose results' longer side is at most `max_side` pixels.

    Raises:
        DataError: the distortion folds the image over itself, so that it cannot be taken out.
    """
    straight = not np.any(distortion) and K[0, 1] == 0
    pinhole = K if straight else _pinhole(K, distortion, size, where)
    factor = 1.0 if max_side is None else min(1.0, max_side / max(size))
    smaller = tuple(max(1, round(s * factor)) for s in size)
    stretch = np.diag([smaller[0] / size[0], smaller[1] / size[1], 1.0])
    return Lens(K, distortion, size, stretch @ pinhole, smaller, straight)


def distort(x: np.ndarray, y: np.ndarray, distortion: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distorted normalised image coordinates of ideal ones."""
    k1, k2, p1, p2, k3 = distortion
    r2 = x * x + y * y
    radial = 1 + r2 * (k1 + r2 * (k2 + r2 * k3))
    return x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x), y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y


def undistort(xd: np.ndarray, yd: np.ndarray, distortion: np.ndarray, iterations: int = 50) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ideal normalised coordinates of distorted ones by Newton's method.

    Returns:
        x, y, and bool: converged to a place where the distortion does not fold.
    """
    k1, k2, p1, p2, k3 = distortion
    x, y = xd.copy(), yd.copy()
    for _ in range(iterations):
        u, v = distort(x, y, distortion)
        r2 = x * x + y * y
        radial = 1 + r2 * (k1 + r2 * (k2 + r2 * k3))
        slope = 2 * (k1 + r2 * (2 * k2 + 3 * r2 * k3))
        xx = radial + x * x * slope + 2 * p1 * y + 6 * p2 * x
        xy = x * y * slope + 2 * p1 * x + 2 * p2 * y
        yy = radial + y * y * slope + 6 * p1 * y + 2 * p2 * x
        det = xx * yy - xy * xy
        safe = np.where(np.abs(det) < 1e-9, 1e-9, det)
        x = x - (yy * (u - xd) - xy * (v - yd)) / safe
        y = y - (xx * (v - yd) - xy * (u - xd)) / safe
    u, v = distort(x, y, distortion)
    return x, y, (np.abs(u - xd) < 1e-8) & (np.abs(v - yd) < 1e-8) & (det > 0) & (xx > 0)


def _pinhole(K: np.ndarray, distortion: np.ndarray, size: tuple[int, int], where: str) -> np.ndarray:
    """Intrinsics of the largest undistorted rectangle that the raw image fills, at the raw size."""
    width, height = size
    across, down = np.linspace(0, width, 129), np.linspace(0, height, 129)
    edges = [(np.zeros(129), down), (np.full(129, float(width)), down), (across, np.zeros(129)), (across, np.full(129, float(height)))]
    u, v = np.stack([e[0] for e in edges]), np.stack([e[1] for e in edges])
    yd = (v - K[1, 2]) / K[1, 1]
    xd = (u - K[0, 2] - K[0, 1] * yd) / K[0, 0]
    with np.errstate(all="ignore"):
        x, y, sound = undistort(xd, yd, distortion)
    left, right, top, bottom = x[0].max(), x[1].min(), y[2].max(), y[3].min()
    if not sound.all() or not left < right or not top < bottom:
        raise DataError(
            f"{where}: the distortion k1, k2, p1, p2, k3 = {np.asarray(distortion).tolist()} folds the image over itself before its border and cannot be taken out. "
            "Check the coefficients and the focal length, or undistort the images first."
        )
    fx, fy = width / (right - left), height / (bottom - top)
    return np.array([[fx, 0, -left * fx], [0, fy, -top * fy], [0, 0, 1.0]])


def _source(lens: Lens, K: np.ndarray, cols: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Raw pixel coordinates [rows, cols] of places (u, v) = (cols, rows) in the image of a pinhole camera `K`."""
    x = ((cols - K[0, 2]) / K[0, 0])[None]
    y = ((rows - K[1, 2]) / K[1, 1])[:, None]
    xd, yd = distort(*np.broadcast_arrays(x, y), lens.distortion)
    return lens.raw_K[0, 0] * xd + lens.raw_K[0, 1] * yd + lens.raw_K[0, 2], lens.raw_K[1, 1] * yd + lens.raw_K[1, 2]


def apply(lens: Lens, image: np.ndarray) -> np.ndarray:
    """Undistort (bilinear) and downscale (area average) a raw image u8 [H, W, 4]; colours are weighted with alpha."""
    if not lens.straight:
        full_K = np.diag([lens.raw_size[0] / lens.size[0], lens.raw_size[1] / lens.size[1], 1.0]) @ lens.K
        image = _resample(lens, full_K, image)
    if lens.size != lens.raw_size:
        image = np.asarray(Image.fromarray(image).resize(lens.size, Image.Resampling.BOX))
    return image


def _resample(lens: Lens, K: np.ndarray, image: np.ndarray) -> np.ndarray:
    """A raw image as a pinhole camera `K` sees it, bilinear, alpha-weighted.

    The map is exact at the corners of small cells and bilinear within, which is off by a twentieth of a pixel for strong lenses:
    Pillow then resamples ten times faster than numpy.
    """
    height, width = image.shape[:2]
    side = max(height, width)
    cell = 4 if side < 128 else 8 if side < 512 else 16 if side < 2048 else 32
    cols, rows = (np.unique(np.append(np.arange(0, end, cell), end)) for end in (width, height))
    u, v = _source(lens, K, cols, rows)
    corners = np.stack([u, v], -1)
    quads = np.concatenate([corners[:-1, :-1], corners[1:, :-1], corners[1:, 1:], corners[:-1, 1:]], -1)  # north-west, then round the south
    mesh = [
        ((int(cols[j]), int(rows[i]), int(cols[j + 1]), int(rows[i + 1])), tuple(quads[i, j].tolist()))
        for i in range(len(rows) - 1)
        for j in range(len(cols) - 1)
    ]
    return np.asarray(Image.fromarray(image).transform((width, height), Image.Transform.MESH, mesh, Image.Resampling.BILINEAR))


def apply_to_depth(lens: Lens, depth: np.ndarray) -> np.ndarray:
    """Depth along the optical axis [H, W] of a raw image, as the pinhole image sees it: the nearest value, never a mixture."""
    result = np.empty((lens.size[1], lens.size[0]), depth.dtype)
    for start in range(0, lens.size[1], ROWS_PER_STEP):
        rows = np.arange(start, min(start + ROWS_PER_STEP, lens.size[1]))
        u, v = _source(lens, lens.K, np.arange(lens.size[0]) + 0.5, rows + 0.5)
        result[rows] = depth[np.clip(v.astype(np.intp), 0, depth.shape[0] - 1), np.clip(u.astype(np.intp), 0, depth.shape[1] - 1)]
    return result
