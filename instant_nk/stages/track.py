"""Trajectories of given points: each is tied to the closest place on the animated surface and carried with it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from instant_nk.errors import ConfigError, ContractError, DataError
from instant_nk.geometry.evaluation import ClosestPoint
from instant_nk.io import artifact, ply_file, surface_file
from instant_nk.io import mesh as mesh_io
from instant_nk.io.mesh import Animation
from instant_nk.layout import Paths

FORMAT = 1
FAR = 0.05  # of the box's diagonal: a point farther from the surface is probably in other units or axes


@dataclass(frozen=True)
class Tracks:
    """Trajectories of P points over N frames, world units.

    Attributes:
        frames: absolute frame numbers, i32 [N].
        points: f32 [N, P, 3].
        face: the triangle each point is tied to, i32 [P].
        barycentric: where on it, f32 [P, 3].
        distance: how far the given point was from the surface, f32 [P].
        n_views: training cameras that see the place (the least of its triangle's corners), i32 [N, P].
    """

    frames: np.ndarray
    points: np.ndarray
    face: np.ndarray
    barycentric: np.ndarray
    distance: np.ndarray
    n_views: np.ndarray


def follow(animation: Animation, points: np.ndarray, frame: int | None = None) -> Tracks:
    """Carry points with the surface.

    A point off the surface keeps its place relative to the triangle it is tied to, so that at `frame` the trajectory
    passes exactly through it.

    Args:
        points: world positions at `frame`, [P, 3].
        frame: absolute frame the points belong to; None: the first.

    Raises:
        ConfigError: the animation has no such frame.
    """
    frames = animation.frames.tolist()
    frame = frames[0] if frame is None else frame
    if frame not in frames:
        raise ConfigError(f"--frame {frame}: the animation has frames {frames[0]}..{frames[-1]} ({len(frames)} in all). Give one of them.")
    row = frames.index(frame)
    points = np.asarray(points, np.float64)
    closest, face, barycentric = ClosestPoint(animation.vertices[row], animation.faces).query(points)
    corners = animation.vertices[:, animation.faces[face]].astype(np.float64)  # [N, P, 3 corners, 3]
    axes = _triangle_axes(corners)
    local = np.einsum("pij,pj->pi", axes[row], points - closest)
    moved = np.einsum("npkj,pk->npj", corners, barycentric) + np.einsum("npij,pi->npj", axes, local)
    return Tracks(
        animation.frames.copy(),
        moved.astype(np.float32),
        face.astype(np.int32),
        barycentric.astype(np.float32),
        np.linalg.norm(points - closest, axis=1).astype(np.float32),
        animation.n_views[:, animation.faces[face]].min(2).astype(np.int32),
    )


def _triangle_axes(corners: np.ndarray) -> np.ndarray:
    """Rows: a unit axis along the first edge, one in the triangle's plane, and its normal, [..., 3, 3]."""
    along = corners[..., 1, :] - corners[..., 0, :]
    normal = np.cross(along, corners[..., 2, :] - corners[..., 0, :])
    along, normal = (v / np.maximum(np.linalg.norm(v, axis=-1, keepdims=True), 1e-30) for v in (along, normal))
    return np.stack([along, np.cross(normal, along), normal], -2)


def read_points(path: Path) -> np.ndarray:
    """Points f64 [P, 3] of a .ply or .obj (its vertices, in the file's order), or of a text file with three numbers per line.

    Raises:
        DataError: missing, unreadable, empty, or not [P, 3] finite numbers.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file of points. Wanted .ply, .obj, or text with x y z on every line.")
    try:
        if path.suffix.lower() == ".ply":
            columns, _ = ply_file.read(path)
            points = np.stack([columns[name] for name in "xyz"], 1)
        elif path.suffix.lower() == ".obj":
            points = surface_file.obj_vertices(path)
        else:
            points = np.loadtxt(path, delimiter="," if path.suffix.lower() == ".csv" else None, ndmin=2)
    except Exception as error:  # a broken file makes readers raise anything
        raise DataError(f"{path}: not a readable file of points ({error}). Wanted .ply, .obj, or text with x y z on every line.") from None
    if points.ndim != 2 or points.shape[1] != 3 or not len(points) or not np.isfinite(points).all():
        raise DataError(f"{path}: wanted at least one point of three finite numbers, got {list(points.shape)}.")
    return points


def save(path: Path, tracks: Tracks) -> None:
    """Write trajectories as `.npz` (all arrays) or `.csv` (frame, point, x, y, z, n_views; world units)."""
    if path.suffix == ".npz":
        artifact.save_npz(path, artifact.make_header("tracks", FORMAT, "mesh"), **vars(tracks))
    elif path.suffix == ".csv":
        n, p = tracks.points.shape[:2]
        table = np.concatenate(
            [np.repeat(tracks.frames, p)[:, None], np.tile(np.arange(p), n)[:, None], tracks.points.reshape(-1, 3), tracks.n_views.reshape(-1, 1)], 1
        )
        with artifact.atomic(path) as aside, open(aside, "w") as handle:
            handle.write("frame,point,x,y,z,n_views\n")
            handle.write(("%d,%d,%.9g,%.9g,%.9g,%d\n" * len(table)) % tuple(table.ravel().tolist()))
    else:
        raise ConfigError(f"{path}: trajectories are written as .npz or .csv, got '{path.suffix}'.")


def load(path: Path) -> Tracks:
    """Read trajectories written as `.npz`."""
    _, arrays = artifact.load_npz(path, "tracks", FORMAT)
    if set(arrays) != set(Tracks.__dataclass_fields__):
        raise ContractError(f"{path}: wanted {sorted(Tracks.__dataclass_fields__)}, got {sorted(arrays)}. Run `instant-nk track` again.")
    return Tracks(**arrays)


def run_track(paths: Paths, points_file: Path, output: Path, frame: int | None = None) -> str:
    """Follow the points of a file through a sequence's animation and write their trajectories.

    Returns:
        one line that says what was written, and a warning where points lie far from the surface.
    """
    animation = mesh_io.load_animation(paths.animation)
    tracks = follow(animation, read_points(points_file), frame)
    save(output, tracks)
    diagonal = float(np.linalg.norm(np.ptp(animation.vertices, axis=(0, 1))))
    far = int((tracks.distance > FAR * diagonal).sum())
    said = f"{output}: {tracks.points.shape[1]} points, frames {tracks.frames[0]} to {tracks.frames[-1]}, median distance to the surface {np.median(tracks.distance):.4g}"
    if far:
        said += f"\nwarning: {far} points lie farther than {FAR:.0%} of the box's diagonal from the surface; points must be world coordinates at frame --frame"
    return said
