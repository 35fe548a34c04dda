"""Surfaces that users bring for registration: triangle meshes and oriented point clouds, read in the file's own vertex order and written as PLY."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from instant_nk.errors import ConfigError, DataError
from instant_nk.geometry import surface
from instant_nk.geometry.depth_map import SeenSpace
from instant_nk.io import artifact, ply_file

MESH_SUFFIXES = (".ply", ".obj", ".stl", ".off", ".glb")
TYPE_NAME = {"<f8": "double", "<f4": "float", "|u1": "uchar"}


@dataclass(frozen=True)
class Surface:
    """A triangle mesh or an oriented point cloud, in the file's units.

    Attributes:
        points: f64 [V, 3], in the file's order.
        normals: unit, outward, f64 [V, 3].
        faces: i64 [T, 3]; None for a point cloud.
        colours: sRGB in [0, 1], f64 [V, 3]; None where the file has none.
        open: where the surface may go on beyond what was seen, bool [V]; None: at the mesh's open edges.
        seen: what the camera that saw this surface saw to be empty, in the same space; None: nobody knows.
    """

    points: np.ndarray
    normals: np.ndarray
    faces: np.ndarray | None = None
    colours: np.ndarray | None = None
    open: np.ndarray | None = None
    seen: SeenSpace | None = None

    @staticmethod
    def of_mesh(vertices: np.ndarray, faces: np.ndarray, colours: np.ndarray | None = None) -> Surface:
        """A mesh with normals from its faces; vertices duplicated along seams share theirs."""
        vertices, faces = np.asarray(vertices, np.float64), np.asarray(faces, np.int64)
        welded, joined, of = surface.weld(vertices, faces)
        return Surface(vertices, surface.vertex_normals(welded, joined)[of], faces, colours)


def load(path: Path | str) -> Surface:
    """Read a mesh (.ply, .obj, .stl, .off, .glb) or an oriented point cloud (.ply without faces, with nx ny nz).

    Raises:
        DataError: missing, unreadable, empty, not finite, or points without normals.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file. Wanted a mesh ({', '.join(MESH_SUFFIXES)}) or a .ply of points with normals.")
    if path.suffix.lower() not in MESH_SUFFIXES:
        raise DataError(f"{path}: surfaces are read from {', '.join(MESH_SUFFIXES)}, got '{path.suffix}'.")
    read = {".obj": _read_obj, ".ply": _read_ply}.get(path.suffix.lower(), _read_other)
    try:
        points, normals, faces, colours = read(path)
    except Exception as error:  # a broken file makes readers raise anything
        raise DataError(f"{path}: the surface cannot be read ({type(error).__name__}: {error}). Write the file anew.") from None
    if not len(points) or not np.isfinite(points).all():
        raise DataError(f"{path}: {'has no vertices' if not len(points) else 'has vertices that are not finite'}. Write the file anew.")
    if faces is None:
        return Surface(points, _checked(normals, path), None, colours)
    if faces.min() < 0 or faces.max() >= len(points):
        raise DataError(f"{path}: its faces index vertices {faces.min()}..{faces.max()}, it has {len(points)}. Write the file anew.")
    result = Surface.of_mesh(points, faces, colours)
    if surface.face_areas(points, faces).sum() <= 0:
        raise DataError(f"{path}: its faces have no area. Write the file anew.")
    return result


def _checked(normals: np.ndarray | None, path: Path) -> np.ndarray:
    """Unit normals of a point cloud."""
    if normals is None:
        raise DataError(
            f"{path}: has neither faces nor normals. Give a mesh, or points with nx ny nz that face outwards (any point cloud tool estimates them)."
        )
    length = np.linalg.norm(normals, axis=1, keepdims=True)
    if not np.isfinite(length).all() or (length < 1e-9).any():
        raise DataError(
            f"{path}: {int((~(length >= 1e-9)).sum())} of its {len(normals)} normals are zero or not finite. Remove those points or estimate their normals."
        )
    return normals / length


def _read_ply(path: Path) -> tuple:
    columns, faces = ply_file.read(path)

    def together(names: tuple[str, ...]) -> np.ndarray | None:
        return np.stack([columns[name] for name in names], 1) if set(names) <= set(columns) else None

    colours = together(("red", "green", "blue"))
    if colours is not None and len(colours) and colours.max() > 1:  # bytes; else they are in [0, 1] already
        colours = colours / 255
    return together(("x", "y", "z")), together(("nx", "ny", "nz")), faces, colours


def _read_other(path: Path) -> tuple:
    import trimesh

    loaded = trimesh.load(path, process=False, maintain_order=True, force="mesh")
    colours = np.asarray(loaded.visual.vertex_colors, np.float64)[:, :3] / 255 if loaded.visual.kind == "vertex" else None
    return np.asarray(loaded.vertices, np.float64), None, np.asarray(loaded.faces, np.int64), colours


def obj_vertices(path: Path) -> np.ndarray:
    """Positions of an OBJ's vertices in the file's order, f64 [V, 3], whatever faces there are."""
    lines = (line.split() for line in path.read_text(errors="replace").splitlines())
    return np.array([words[1:4] for words in lines if words[:1] == ["v"]], np.float64).reshape(-1, 3)


def _read_obj(path: Path) -> tuple:
    """Vertices in the file's order, polygons cut into fans; texture and normal indices are left out, because they would split vertices."""
    rows, corners = [], []
    for line in path.read_text(errors="replace").splitlines():
        kind, *values = line.split() or [""]
        if kind == "v":
            rows.append([float(x) for x in values[:6]])
        elif kind == "f":
            polygon = [int(x.split("/")[0]) for x in values]
            polygon = [i - 1 if i > 0 else len(rows) + i for i in polygon]
            corners += [(polygon[0], polygon[i], polygon[i + 1]) for i in range(1, len(polygon) - 1)]
    if not corners:
        raise ValueError("it has no faces")
    table = np.array([row[:3] for row in rows], np.float64).reshape(-1, 3)
    coloured = bool(rows) and all(len(row) == 6 for row in rows)
    return table, None, np.array(corners, np.int64), np.array([row[3:] for row in rows], np.float64) if coloured else None


def save(path: Path | str, result: Surface) -> None:
    """Write a binary PLY with normals, colours and faces where there are any; whole or not at all.

    Positions are float32 where that keeps a millionth of the size, float64 for small things far from the origin.
    """
    path = Path(path)
    if path.suffix.lower() != ".ply":
        raise ConfigError(f"{path}: surfaces are written as .ply, got '{path.suffix}'.")
    near = np.abs(result.points).max() <= 16 * max(float(np.ptp(result.points, axis=0).max()), 1e-300)
    fields = [(name, "<f4" if near else "<f8") for name in "xyz"] + [(name, "<f4") for name in ("nx", "ny", "nz")]
    if result.colours is not None:
        fields += [(name, "u1") for name in ("red", "green", "blue")]
    table = np.empty(len(result.points), fields)
    for k in range(3):
        table["xyz"[k]] = result.points[:, k]
        table[("nx", "ny", "nz")[k]] = result.normals[:, k]
        if result.colours is not None:
            table[("red", "green", "blue")[k]] = np.round(255 * result.colours[:, k].clip(0, 1))
    properties = "".join(f"property {TYPE_NAME[table.dtype[name].str]} {name}\n" for name in table.dtype.names)
    header = f"ply\nformat binary_little_endian 1.0\nelement vertex {len(table)}\n{properties}"
    triangles = np.zeros(0, [("count", "u1"), ("corner", "<i4", 3)])
    if result.faces is not None:
        triangles = np.empty(len(result.faces), triangles.dtype)
        triangles["count"], triangles["corner"] = 3, result.faces
        header += f"element face {len(triangles)}\nproperty list uchar int vertex_indices\n"
    with artifact.atomic(path) as aside, open(aside, "wb") as handle:
        handle.write((header + "end_header\n").encode())
        handle.write(table.tobytes())
        handle.write(triangles.tobytes())
