"""PLY sequence: one binary little-endian file per frame with normals, sRGB colours and per-vertex quality."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from instant_nk.io import artifact
from instant_nk.io.export.common import bytes_from_colours, check_animation, unit_normals
from instant_nk.io.mesh import Animation
from instant_nk.log import progress

logger = logging.getLogger(__name__)

VERTEX = np.dtype(
    [
        *((name, "<f4") for name in ("x", "y", "z", "nx", "ny", "nz")),
        *((name, "u1") for name in ("red", "green", "blue")),
        ("sdf_residual", "<f4"), ("cycle_error", "<f4"), ("n_views", "<i4"),
    ]
)  # fmt: skip
FACE = np.dtype([("count", "u1"), ("vertex_indices", "<i4", 3)])
TYPE_NAME = {"<f4": "float", "|u1": "uchar", "<i4": "int"}


def _header(vertices: int, faces: int, frame: int) -> bytes:
    properties = "\n".join(f"property {TYPE_NAME[VERTEX[name].str]} {name}" for name in VERTEX.names)
    return (
        f"ply\nformat binary_little_endian 1.0\ncomment instant-nk frame {frame}, world units\n"
        f"element vertex {vertices}\n{properties}\nelement face {faces}\nproperty list uchar int vertex_indices\nend_header\n"
    ).encode()


def _table(animation: Animation, i: int) -> np.ndarray:
    """The vertex element of the i-th frame."""
    vertices = animation.vertices[i]
    table = np.empty(len(vertices), VERTEX)
    normals = unit_normals(vertices, animation.faces)
    for k in range(3):
        table["xyz"[k]] = vertices[:, k]
        table[("nx", "ny", "nz")[k]] = normals[:, k]
        table[("red", "green", "blue")[k]] = bytes_from_colours(animation.colours[:, k])
    for name in ("sdf_residual", "cycle_error", "n_views"):
        table[name] = getattr(animation, name)[i]
    return table


def export_ply_sequence(animation: Animation, folder: Path | str) -> None:
    """Write `folder/{frame:06d}.ply` for every frame; the folder appears whole or not at all.

    Vertex properties: position (world units, exact float32), unit normal, sRGB colour, and the quality of the frame:
    `sdf_residual` and `cycle_error` (world units), `n_views` (training cameras that see the vertex).

    Raises:
        ContractError: the animation cannot be exported, or the disk is full.
    """
    check_animation(animation, folder)
    with artifact.atomic_folder(folder, r"\d{6,}\.ply") as aside:
        for i in progress(list(range(len(animation.frames))), "export ply", logger):
            write_frame(aside / f"{int(animation.frames[i]):06d}.ply", animation, i)


def write_frame(path: Path, animation: Animation, i: int) -> None:
    """Write the i-th frame of an animation to `path`."""
    faces = np.empty(len(animation.faces), FACE)
    faces["count"], faces["vertex_indices"] = 3, animation.faces
    with open(path, "wb") as handle:
        handle.write(_header(animation.vertices.shape[1], len(faces), int(animation.frames[i])))
        handle.write(_table(animation, i).tobytes())
        handle.write(faces.tobytes())
