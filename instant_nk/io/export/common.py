"""What the exporters share: the checks at their doors, frame times, normals and colour conversion."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from instant_nk.errors import ConfigError, ContractError
from instant_nk.geometry import surface
from instant_nk.io.mesh import Animation


def check_animation(animation: Animation, path: Path | str) -> None:
    """Refuse what no format can hold, before anything is written.

    Raises:
        ContractError: no faces, no frames, frames out of order, an index out of range, or a position that is not finite; names the file asked for.
    """
    v = animation.vertices
    if v.ndim != 3 or v.shape[2] != 3:
        raise ContractError(f"{path}: cannot export: vertices must be [N, V, 3], got {list(v.shape)}. Re-run stage 'mesh'.")
    if not len(animation.faces):
        raise ContractError(f"{path}: cannot export: the mesh has zero faces. Look at 2_canonical, then re-run stages 'canonical' to 'mesh'.")
    if not len(v):
        raise ContractError(f"{path}: cannot export: the animation has zero frames. Re-run stage 'mesh'.")
    if len(animation.frames) != len(v):
        raise ContractError(f"{path}: cannot export: {len(animation.frames)} frame numbers for {len(v)} frames of vertices. Re-run stage 'mesh'.")
    if (np.diff(animation.frames) <= 0).any():
        raise ContractError(f"{path}: cannot export: frame numbers must ascend, got {animation.frames.tolist()}. Re-run stage 'mesh'.")
    if animation.faces.min() < 0 or animation.faces.max() >= v.shape[1]:
        raise ContractError(
            f"{path}: cannot export: faces must index V={v.shape[1]} vertices; got {animation.faces.min()}..{animation.faces.max()}. Re-run stage 'mesh'."
        )
    broken = animation.frames[~np.isfinite(v).all((1, 2))]
    if len(broken):
        raise ContractError(f"{path}: cannot export: vertices are not finite in frames {broken.tolist()}. Re-run stage 'mesh'.")


def check_frames(animation: Animation, wanted: list[int] | tuple[int, ...], path: Path | str) -> None:
    """Refuse an animation that lacks frames of the sequence.

    Raises:
        ContractError: lists every missing frame.
    """
    missing = sorted(set(wanted) - set(animation.frames.tolist()))
    if missing:
        raise ContractError(f"{path}: frames {missing} of the sequence are missing from the animation. Re-run stage 'mesh' for their windows.")


def check_fps(fps: float) -> None:
    if not (math.isfinite(fps) and fps > 0):
        raise ConfigError(f"fps: wanted a number of frames per second above zero, got {fps!r}. Set report.fps.")


def frame_times(frames: np.ndarray, fps: float) -> np.ndarray:
    """Seconds since the first frame, f32 [N].

    The smallest distance between frame numbers lasts 1/fps; a gap in the numbers keeps its length.
    """
    check_fps(fps)
    frames = np.asarray(frames, np.int64)
    step = int(np.diff(frames).min()) if len(frames) > 1 else 1
    return ((frames - frames[0]) / (step * fps)).astype(np.float32)


def stand(up: np.ndarray) -> list[float] | None:
    """Unit quaternion (x, y, z, w) that turns the capture's up to +y, which glTF calls up; None where it is up already.

    A capture that is z-up then comes back to its world coordinates in Blender, whose importer turns +y to +z.
    """
    x, y, z = (float(a) for a in np.asarray(up, np.float64) / np.linalg.norm(up))
    if y > 1 - 1e-9:
        return None
    quaternion = np.array([-z, 0.0, x, 1 + y]) if y > -1 + 1e-9 else np.array([1.0, 0.0, 0.0, 0.0])
    return (quaternion / np.linalg.norm(quaternion)).tolist()


def unit_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Area-weighted vertex normals of exact unit length, as formats ask for, f32 [V, 3]; +z where no face has area."""
    normals = surface.vertex_normals(vertices, faces)
    return np.where(normals.any(1, keepdims=True), normals, [0.0, 0.0, 1.0]).astype(np.float32)


def linear_from_srgb(colours: np.ndarray) -> np.ndarray:
    """sRGB in [0, 1] to linear light in [0, 1] (IEC 61966-2-1)."""
    c = np.clip(colours, 0, 1)
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def bytes_from_colours(colours: np.ndarray) -> np.ndarray:
    """sRGB in [0, 1] to sRGB in 0..255, u8."""
    return np.round(np.clip(colours, 0, 1) * 255).astype(np.uint8)
