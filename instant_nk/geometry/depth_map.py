"""A depth map as a surface: pixels put back into space, joined where the surface goes on, with normals towards the camera. Camera space, OpenCV axes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from instant_nk.geometry import surface

STEEPEST = 8.0  # a larger step between neighbouring pixels, in pixel widths at that depth, is an occlusion (a surface seen at more than 83 degrees)
SMOOTHING = 5  # pixels over which depth is averaged before normals are taken: sensors are noisy, surfaces smooth
CRUMB = 0.005  # pieces of less than this share of the pixels are noise at edges


@dataclass(frozen=True)
class SeenSpace:
    """What a depth camera saw to be empty: all space before the surfaces it saw. Camera space.

    Attributes:
        depth: along the optical axis, holes filled with what lies behind, 0 where nothing is known, [H, W].
        K: intrinsics in pixels, [3, 3].
    """

    depth: np.ndarray
    K: np.ndarray

    def empty(self, points: np.ndarray, margin: float) -> np.ndarray:
        """Points [N, 3] that lie before what was seen by more than `margin`, bool [N]; False outside the picture."""
        height, width = self.depth.shape
        image = points @ self.K.T
        ahead = image[:, 2] > 0
        column, row = np.floor(image[:, :2] / np.where(ahead, image[:, 2], 1)[:, None]).astype(np.int64).T
        inside = ahead & (column >= 0) & (row >= 0) & (column < width) & (row < height)
        return inside & (self.depth[row.clip(0, height - 1), column.clip(0, width - 1)] > points[:, 2] + margin)


def back_project(depth: np.ndarray, K: np.ndarray) -> np.ndarray:
    """Points [H, W, 3] of a depth map [H, W]; the centre of the first pixel is (0.5, 0.5)."""
    height, width = depth.shape
    u, v = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    y = (v - K[1, 2]) / K[1, 1]
    x = (u - K[0, 2] - K[0, 1] * y) / K[0, 0]
    return np.stack([x * depth, y * depth, depth], -1)


def to_mesh(depth: np.ndarray, K: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The seen surface as a mesh: a vertex per pixel, quads of neighbouring pixels without an occlusion between them as two triangles.

    Args:
        depth: along the optical axis, any unit, [H, W]; K: intrinsics in pixels [3, 3]; valid: pixels to use, bool [H, W].

    Returns:
        vertices f64 [V, 3], faces i64 [T, 3] facing the camera, unit normals f64 [V, 3], flat pixel index of each vertex i64 [V].
    """
    points = back_project(np.where(valid, depth, 0.0), K)
    index = np.arange(depth.size).reshape(depth.shape)
    a, b, c, d = index[:-1, :-1], index[:-1, 1:], index[1:, :-1], index[1:, 1:]
    flat, good = points[..., 2].ravel(), valid.ravel()
    triangles = np.concatenate([np.stack([x.ravel() for x in corner], 1) for corner in ((a, c, b), (b, c, d))])
    corner_depth = flat[triangles]
    keep = good[triangles].all(1) & (np.ptp(corner_depth, axis=1) < STEEPEST * corner_depth.min(1) / min(K[0, 0], K[1, 1]))
    triangles = _without_crumbs(triangles[keep], depth.size)
    pixels = np.unique(triangles)
    normals = _normals(points, valid).reshape(-1, 3)[pixels]
    return points.reshape(-1, 3)[pixels], np.searchsorted(pixels, triangles), normals, pixels


def goes_on(depth: np.ndarray, K: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Whether the surface may go on beyond each of its pixels, unseen, bool [V].

    True at the image's border, next to something nearer (which hides the rest), next to a hole of the sensor, and next to a pixel of about the same depth
    that is not part of the surface (the mask ends there). False inside, and where the neighbours lie behind: there the surface ends, or turns away.
    The shadow of a structured-light sensor counts as what lies behind it.

    Args:
        depth: of the whole image, 0 where unknown, [H, W]; pixels: flat indices of the surface's pixels, i64 [V].
    """
    height, width = depth.shape
    behind = np.pad(filled(depth), 1)
    own = np.zeros((height + 2, width + 2), bool)
    own[1 + pixels // width, 1 + pixels % width] = True
    step = STEEPEST * depth.ravel()[pixels] / min(K[0, 0], K[1, 1])
    result = np.zeros(len(pixels), bool)
    for row, column in [(i, j) for i in range(3) for j in range(3) if (i, j) != (1, 1)]:
        place = (row + pixels // width, column + pixels % width)
        result |= ~own[place] & (behind[place] < depth.ravel()[pixels] + step)
    return result


def filled(depth: np.ndarray) -> np.ndarray:
    """The depth map with unknown pixels as far as the farthest of the four known ones nearest to them in their row and column."""
    result = depth.copy()
    for turned, out in ((depth, result), (depth[:, ::-1], result[:, ::-1]), (depth.T, result.T), (depth[::-1].T, result[::-1].T)):
        last = np.maximum.accumulate(np.where(turned > 0, np.arange(turned.shape[1]), -1), axis=1)
        before = np.where(last >= 0, np.take_along_axis(turned, np.maximum(last, 0), 1), 0)
        np.maximum(out, np.where(turned > 0, 0, before), out=out)
    return result


def _without_crumbs(triangles: np.ndarray, count: int) -> np.ndarray:
    """Triangles of all but the smallest connected pieces."""
    if not len(triangles):
        return triangles
    part = surface.components(count, triangles)
    used = np.unique(triangles)
    size = np.bincount(part[used], minlength=part.max() + 1)
    return triangles[size[part[triangles[:, 0]]] >= CRUMB * len(used)]


def _normals(points: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Unit normals towards the camera from the smoothed depth map's slopes, [H, W, 3]."""
    from scipy.ndimage import uniform_filter

    share = uniform_filter(valid.astype(np.float64), SMOOTHING)
    smooth = np.stack([uniform_filter(points[..., k] * valid, SMOOTHING) for k in range(3)], -1) / np.maximum(share, 1e-9)[..., None]
    smooth = np.where(valid[..., None], smooth, np.nan)

    def slope(axis: int) -> np.ndarray:
        """Central difference, one-sided next to what is not valid."""
        ahead, behind = (np.roll(smooth, shift, axis) for shift in (-1, 1))
        edge = [slice(None)] * 3
        edge[axis] = -1
        ahead[tuple(edge)] = np.nan
        edge[axis] = 0
        behind[tuple(edge)] = np.nan
        forward, backward = ahead - smooth, smooth - behind
        return np.where(np.isnan(forward), np.nan_to_num(backward), np.where(np.isnan(backward), forward, 0.5 * (forward + backward)))

    normal = np.cross(slope(0), slope(1))
    length = np.linalg.norm(normal, axis=-1, keepdims=True)
    towards = -points / np.maximum(np.linalg.norm(points, axis=-1, keepdims=True), 1e-12)
    normal = np.where(length > 0, normal / np.maximum(length, 1e-30), towards)
    return np.where((normal * towards).sum(-1, keepdims=True) < 0, -normal, normal)
