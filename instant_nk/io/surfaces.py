"""The artifact of modes that do not track: a surface per frame, each with its own vertices and faces, world units."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from instant_nk.errors import ContractError
from instant_nk.io import artifact

FORMAT = 1
KIND = "surfaces"


@dataclass(frozen=True)
class FrameSurface:
    """One frame's surface.

    Attributes:
        vertices: f32 [V, 3], world units; faces: i32 [T, 3]; colours: sRGB in [0, 1], f32 [V, 3].
    """

    vertices: np.ndarray
    faces: np.ndarray
    colours: np.ndarray


def save(path: Path, surfaces: dict[int, FrameSurface], header: dict[str, Any]) -> None:
    """Write surfaces by absolute frame, one after the other in common arrays."""
    parts = [surfaces[frame] for frame in sorted(surfaces)]
    artifact.save_npz(
        path,
        header | {"artifact": KIND, "format": FORMAT},
        frames=np.array(sorted(surfaces), np.int32),
        vertices=np.concatenate([part.vertices for part in parts]),
        faces=np.concatenate([part.faces for part in parts]),
        colours=np.concatenate([part.colours for part in parts]),
        vertex_counts=np.array([len(part.vertices) for part in parts], np.int64),
        face_counts=np.array([len(part.faces) for part in parts], np.int64),
    )


def load(path: Path) -> dict[int, FrameSurface]:
    """Read surfaces written by `save`, by absolute frame.

    Raises:
        ContractError: missing, truncated, of another kind, or arrays that do not fit together.
    """
    _, arrays = artifact.load_npz(path, KIND, FORMAT)
    missing = [name for name in ("frames", "vertices", "faces", "colours", "vertex_counts", "face_counts") if name not in arrays]
    if missing:
        raise ContractError(f"{path}: lacks {missing}. Re-run stage 'mesh'.")
    f, v, t = len(arrays["frames"]), len(arrays["vertices"]), len(arrays["faces"])
    for name, shape, dtype in (
        ("frames", (f,), np.int32), ("vertices", (v, 3), np.float32), ("faces", (t, 3), np.int32), ("colours", (v, 3), np.float32),
        ("vertex_counts", (f,), np.int64), ("face_counts", (f,), np.int64),
    ):  # fmt: skip
        artifact.check_array(path, name, arrays[name], shape, dtype)
    if arrays["vertex_counts"].sum() != v or arrays["face_counts"].sum() != t:
        raise ContractError(f"{path}: the frames' counts do not add up to {v} vertices and {t} faces. Re-run stage 'mesh'.")
    corners, triangles = np.cumsum(arrays["vertex_counts"])[:-1], np.cumsum(arrays["face_counts"])[:-1]
    parts = (np.split(arrays["vertices"], corners), np.split(arrays["faces"], triangles), np.split(arrays["colours"], corners))
    return {int(frame): FrameSurface(*part) for frame, *part in zip(arrays["frames"], *parts)}
