"""A camera path around a subject, within the directions from which a rig has seen it. NumPy, world space, OpenCV axes."""

from __future__ import annotations

import numpy as np

OPEN_GAP_DEG = 100.0  # a rig with a wider hole than this in azimuth is not circled, but swept to and fro


def up_direction(c2w: np.ndarray) -> np.ndarray:
    """The world's up as the cameras hold it: the mean of their upward axes, unit [3]."""
    up = -np.asarray(c2w, np.float64)[:, :3, 1].mean(0)
    length = np.linalg.norm(up)
    return up / length if length > 1e-6 else np.array([0.0, 1.0, 0.0])


def up_axis(c2w: np.ndarray) -> np.ndarray:
    """The world axis nearest to `up_direction`: one of +x, -x, +y, ..., f64 [3]."""
    up = up_direction(c2w)
    axis = np.zeros(3)
    axis[np.abs(up).argmax()] = np.sign(up[np.abs(up).argmax()])
    return axis


def look_at(eye: np.ndarray, target: np.ndarray, up: np.ndarray) -> np.ndarray:
    """Camera-to-world f64 [4, 4] of a camera at `eye` that looks at `target`."""
    forward = np.asarray(target, np.float64) - eye
    forward /= np.linalg.norm(forward)
    right = np.cross(forward, up)
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3, :3] = np.stack([right, np.cross(forward, right), forward], 1)
    pose[:3, 3] = eye
    return pose


def orbit(c2w: np.ndarray, centre: np.ndarray, count: int) -> np.ndarray:
    """Poses f64 [count, 4, 4] around `centre` at the rig's typical distance and height.

    A full circle where the rig surrounds the subject; otherwise a sweep there and back between its outermost cameras.

    Args:
        c2w: the rig, [C, 4, 4].
        centre: what is looked at, [3].
    """
    x, y, _ = _axes(c2w)
    offset = np.asarray(c2w, np.float64)[:, :3, 3] - centre
    return _around(c2w, centre, _azimuths(np.arctan2(offset @ y, offset @ x), count))


def turntable(c2w: np.ndarray, centre: np.ndarray, count: int) -> np.ndarray:
    """Poses f64 [count, 4, 4] in a full circle around `centre`, from the rig's first camera on, whatever the rig has seen; see `orbit`."""
    x, y, _ = _axes(c2w)
    offset = np.asarray(c2w[0], np.float64)[:3, 3] - centre
    return _around(c2w, centre, np.arctan2(offset @ y, offset @ x) + 2 * np.pi * np.arange(count) / count)


def _axes(c2w: np.ndarray) -> np.ndarray:
    """Two directions across the rig's up, and up, f64 [3, 3]."""
    up = up_direction(c2w)
    across = np.eye(3)[np.abs(up).argmin()]
    x = np.cross(across, up) / np.linalg.norm(np.cross(across, up))
    return np.stack([x, np.cross(up, x), up])


def _around(c2w: np.ndarray, centre: np.ndarray, azimuth: np.ndarray) -> np.ndarray:
    """Poses that look at `centre` from the given angles, at the rig's typical distance and height."""
    x, y, up = _axes(c2w)
    offset = np.asarray(c2w, np.float64)[:, :3, 3] - centre
    distance = np.median(np.linalg.norm(offset, axis=1))
    height = np.clip(np.median(offset @ up) / distance, -0.7, 0.7)
    flat = np.sqrt(1 - height**2)
    eyes = centre + distance * (flat * (np.cos(azimuth)[:, None] * x + np.sin(azimuth)[:, None] * y) + height * up)
    return np.stack([look_at(eye, centre, up) for eye in eyes])


def _azimuths(seen: np.ndarray, count: int) -> np.ndarray:
    """Angles of the path [count], radians, from those of the rig's cameras."""
    ordered = np.sort(seen)
    gaps = np.diff(ordered, append=ordered[0] + 2 * np.pi)
    widest = int(gaps.argmax())
    phase = 2 * np.pi * np.arange(count) / count
    if len(seen) > 2 and np.degrees(gaps[widest]) < OPEN_GAP_DEG:
        return seen[0] + phase
    start, extent = ordered[(widest + 1) % len(ordered)], 2 * np.pi - gaps[widest]
    if extent < 0.2:  # one camera, or all side by side: look around a little
        start, extent = start + extent / 2 - 0.25, 0.5
    return start + extent * (0.5 - 0.5 * np.cos(phase))


def _half_extent(points: np.ndarray, poses: np.ndarray) -> np.ndarray:
    """How far the points reach from the picture's centre, across and down, as tangents of angles, over all poses: [2]."""
    extent = np.full(2, 1e-9)
    for pose in poses:
        local = (points - pose[:3, 3]) @ pose[:3, :3]
        extent = np.maximum(extent, (np.abs(local[:, :2]) / np.maximum(local[:, 2:], 1e-9)).max(0))
    return extent


def framing(points: np.ndarray, poses: np.ndarray, size: tuple[int, int], fill: float = 0.92) -> np.ndarray:
    """Intrinsics f64 [3, 3] with the longest focal length that keeps all points within `fill` of pictures of (width, height) taken from the poses."""
    focal = 0.5 * fill / float((_half_extent(points, poses) / np.array(size)).max())
    return np.array([[focal, 0, size[0] / 2], [0, focal, size[1] / 2], [0, 0, 1]])


def snug_size(points: np.ndarray, poses: np.ndarray, longest: int) -> tuple[int, int]:
    """Even width and height in pixels of pictures that are as tall for their width as what they show, at most 1:2 or 2:1."""
    extent = _half_extent(points, poses)
    share = np.maximum(extent / extent.max(), 0.5)
    width, height = (max(2, int(round(longest * s / 2)) * 2) for s in share)
    return width, height


def frame_order(frames: int, count: int) -> np.ndarray:
    """Which of `frames` each of `count` pictures shows: to and fro, one frame per picture, or evenly spread where the clip is longer."""
    if frames >= count or frames == 1:
        return np.round(np.linspace(0, frames - 1, count)).astype(int) if frames > 1 else np.zeros(count, int)
    step = np.arange(count) % (2 * frames - 2)
    return np.where(step < frames, step, 2 * frames - 2 - step)
