"""A depth map as a surface: pixels put back into space, joined where the surface goes on, with normals towards the camera. Camera space, OpenCV axes."""

from __future__ import annotations

import numpy as np

from instant_nk.geometry import surface

STEEPEST = 8.0  # a larger step between neighbouring pixels, in pixel widths at that depth, is an occlusion (a surface seen at more than 83 degrees)
SMOOTHING = 5  # pixels over which depth is averaged before normals are taken: sensors are noisy, surfaces smooth
CRUMB = 0.005  # pieces of less than this share of the pixels are noise at edges


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
