"""Triangle meshes that users give in world coordinates: read, checked, and brought into scene space."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from instant_nk.errors import DataError
from instant_nk.geometry import spaces, surface
from instant_nk.io.dataset import Dataset

logger = logging.getLogger(__name__)

MOST_OUTSIDE = 0.02  # share of vertices that may lie outside the capture's box


def load(path: Path, key: str, dataset: Dataset, frame: int) -> tuple[np.ndarray, np.ndarray]:
    """Vertices f32 [V, 3] in scene space and faces i32 [T, 3] of a mesh, welded and facing outwards.

    Args:
        key: configuration key that names the file, for messages.
        frame: at which the subject has this shape, for messages.

    Raises:
        DataError: no such file, not readable, no faces, not finite, or outside the capture's box.
    """
    vertices, faces = _read(path, key)
    vertices, faces, _ = surface.weld(vertices, faces)
    scene = spaces.transform_points(dataset.scene_from_world, vertices)
    outside = float((np.abs(scene) > 1).any(1).mean())
    if outside > MOST_OUTSIDE:
        low, high = vertices.min(0), vertices.max(0)
        raise DataError(
            f"{key}: {path}: {100 * outside:.0f} % of its vertices lie outside the capture's box "
            f"{dataset.box.round(4).tolist()}; the mesh spans {low.round(4).tolist()}..{high.round(4).tolist()}. It must be in the capture's world coordinates, at frame {frame}."
        )
    corner = scene[faces] - scene.mean(0)  # seen from the middle, so that a hole does not turn the sign
    if np.einsum("td,td->", corner[:, 0], np.cross(corner[:, 1], corner[:, 2])) < 0:
        logger.warning("%s: %s faces inwards; its faces are turned round", key, path)
        faces = faces[:, ::-1]
    return scene.astype(np.float32), np.ascontiguousarray(faces, np.int32)


def _read(path: Path, key: str) -> tuple[np.ndarray, np.ndarray]:
    import trimesh

    if not path.is_file():
        raise DataError(f"{key}: {path}: no such file. Give a .ply or .obj in world coordinates.")
    try:
        mesh = trimesh.load(path, process=False, force="mesh")
        vertices, faces = np.asarray(mesh.vertices, np.float64), np.asarray(mesh.faces, np.int64)
    except Exception as error:  # a broken file makes trimesh's readers raise anything
        raise DataError(f"{key}: {path}: the mesh cannot be read ({type(error).__name__}: {error}). Give a whole .ply or .obj in world coordinates.") from None
    if not len(faces):
        raise DataError(f"{key}: {path}: wanted a triangle mesh, found no faces.")
    if not np.isfinite(vertices).all() or faces.min() < 0 or faces.max() >= len(vertices):
        raise DataError(f"{key}: {path}: has vertices that are not finite, or faces that index vertices it does not have. Write the mesh anew.")
    return vertices, faces
