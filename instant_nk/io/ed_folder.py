"""The ED folder: node motion as text files, the interchange with external trackers.

`node.txt` holds M x 3 canonical node positions in world units; `accumAffine/Frame_%03d.txt`, numbered by absolute frame, holds M
row-major 3x4 matrices `[A|t]`, canonical -> live, accumulated and not node-centred: a node goes to `A g + t`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from instant_nk.errors import DataError
from instant_nk.geometry.spaces import scale_of, transform_points
from instant_nk.io import artifact


@dataclass(frozen=True)
class NodeMotion:
    """Motion of graph nodes in world units.

    Attributes:
        node_positions: canonical, f64 [M, 3].
        frames: absolute, ascending.
        affine: `[A|t]` canonical -> live, not node-centred, f64 [F, M, 3, 4].
    """

    node_positions: np.ndarray
    frames: tuple[int, ...]
    affine: np.ndarray


def numbers(path: Path, wanted: str, count: int | None = None) -> np.ndarray:
    """All numbers of a text file, whatever its line layout.

    Raises:
        DataError: missing, not numbers, not finite, or not `count` of them.
    """
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); wanted {wanted}.") from None
    try:
        values = np.array(text.replace(",", " ").split(), np.float64)
    except ValueError as error:
        raise DataError(f"{path}: {error}; wanted {wanted}.") from None
    if count is not None and len(values) != count:
        raise DataError(f"{path}: wanted {count} numbers ({wanted}), got {len(values)}.")
    if not np.isfinite(values).all():
        raise DataError(f"{path}: holds values that are not finite; wanted {wanted}.")
    return values


def frame_path(folder: Path, frame: int) -> Path:
    return folder / "accumAffine" / f"Frame_{frame:03d}.txt"


def load_nodes(folder: Path | str) -> np.ndarray:
    """`node.txt`: canonical node positions in world units, f64 [M, 3].

    Raises:
        DataError: missing, empty, or not a multiple of three numbers.
    """
    path = Path(folder) / "node.txt"
    values = numbers(path, "M x 3 node positions in world units")
    if not len(values) or len(values) % 3:
        raise DataError(f"{path}: wanted 3 numbers per node, got {len(values)} numbers.")
    return values.reshape(-1, 3)


def available_frames(folder: Path | str) -> list[int]:
    """Absolute frame numbers for which the folder has a motion file, ascending."""
    found = (re.fullmatch(r"Frame_(\d+)\.txt", path.name) for path in (Path(folder) / "accumAffine").glob("Frame_*.txt"))
    return sorted(int(match[1]) for match in found if match)


def load(folder: Path | str, frames: list[int]) -> NodeMotion:
    """Read an ED folder's motion at the given frames.

    Raises:
        DataError: a file is missing (all missing frames are named) or has a wrong number count.
    """
    folder = Path(folder)
    nodes = load_nodes(folder)
    names = {frame: next((p for p in (frame_path(folder, frame), folder / "accumAffine" / f"Frame_{frame}.txt") if p.is_file()), None) for frame in frames}
    missing = [frame for frame, path in names.items() if path is None]
    if missing:
        have = available_frames(folder)
        span = f"it has {have[0]}..{have[-1]}" if have else "it has none"
        raise DataError(f"{folder}/accumAffine: no Frame_%03d.txt for frames {missing} ({span}). Set frames.first and frames.count to what the tracker covers.")
    m = len(nodes)
    affine = [numbers(names[frame], f"12 per node for M={m} nodes of node.txt: row-major [A|t]", 12 * m).reshape(m, 3, 4) for frame in frames]
    return NodeMotion(nodes, tuple(frames), np.stack(affine))


def save(folder: Path | str, motion: NodeMotion) -> None:
    """Write an ED folder; each file whole or not at all. 17 digits, so that reading gives the same doubles."""
    folder = Path(folder)
    with artifact.atomic(folder / "node.txt") as aside:
        np.savetxt(aside, motion.node_positions, "%.17g")
    for frame, affine in zip(motion.frames, motion.affine):
        with artifact.atomic(frame_path(folder, frame)) as aside:
            np.savetxt(aside, affine.reshape(-1, 12), "%.17g")


def to_scene(motion: NodeMotion, scene_from_world: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Node-centred rigid motion in scene units.

    The linear part is projected onto SO(3); the live position of every node is kept exactly.

    Returns:
        node positions f64 [M, 3], rotations f64 [F, M, 3, 3], translations f64 [F, M, 3].
    """
    turn = scene_from_world[:3, :3] / scale_of(scene_from_world)
    nodes = transform_points(scene_from_world, motion.node_positions)
    live = np.einsum("fmij,mj->fmi", motion.affine[..., :3], motion.node_positions) + motion.affine[..., 3]
    return nodes, _nearest_rotation(turn @ motion.affine[..., :3] @ turn.T), transform_points(scene_from_world, live) - nodes


def from_scene(node_positions: np.ndarray, rotations: np.ndarray, translations: np.ndarray, frames: list[int], world_from_scene: np.ndarray) -> NodeMotion:
    """World-unit, not node-centred matrices of node-centred scene motion; inverse of `to_scene`."""
    turn = world_from_scene[:3, :3] / scale_of(world_from_scene)
    nodes = transform_points(world_from_scene, node_positions)
    live = transform_points(world_from_scene, np.asarray(node_positions, np.float64) + translations)
    linear = turn @ np.asarray(rotations, np.float64) @ turn.T
    offset = live - np.einsum("fmij,mj->fmi", linear, nodes)
    return NodeMotion(nodes, tuple(int(f) for f in frames), np.concatenate([linear, offset[..., None]], -1))


def _nearest_rotation(matrix: np.ndarray) -> np.ndarray:
    u, _, vt = np.linalg.svd(matrix)
    sign = np.sign(np.linalg.det(u @ vt))
    u = u.copy()
    u[..., 2] *= np.where(sign == 0, 1, sign)[..., None]
    return u @ vt
