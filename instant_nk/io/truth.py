"""Reading the true animation that a capture may carry in `gt/`, for scoring only: no stage but the report opens it.

`gt/mesh_%04d.ply`, numbered by frame, all with the same faces; `gt/visibility.npz` holds `n_views` [frames, vertices]: how many
training cameras see each vertex.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from instant_nk.errors import DataError
from instant_nk.geometry.evaluation import Truth


def load(capture: Path | str, frames: Iterable[int]) -> Truth | None:
    """The truth at those of `frames` that it covers, or None where the capture has none.

    Raises:
        DataError: a mesh cannot be read, the topology changes, or the visibility does not fit.
    """
    import trimesh

    folder = Path(capture) / "gt"
    files = {int(match[1]): path for path in sorted(folder.glob("mesh_*.ply")) if (match := re.fullmatch(r"mesh_(\d+)", path.stem))}
    wanted = [frame for frame in sorted(set(frames)) if frame in files]
    if not wanted:
        return None
    meshes = []
    for frame in wanted:
        try:
            meshes.append(trimesh.load(files[frame], process=False, force="mesh"))
        except (ValueError, OSError, IndexError, KeyError) as error:
            raise DataError(f"{files[frame]}: the true mesh cannot be read ({error}). Restore it, or remove {folder} to run without ground truth.") from None
        if len(meshes[-1].vertices) != len(meshes[0].vertices) or not np.array_equal(meshes[-1].faces, meshes[0].faces):
            raise DataError(f"{files[frame]}: its faces differ from those of {files[wanted[0]].name}; the true meshes must share one topology.")
    vertices = np.stack([np.asarray(mesh.vertices, np.float64) for mesh in meshes])
    truth = Truth(tuple(wanted), vertices, np.asarray(meshes[0].faces, np.int64), _n_views(folder, sorted(files), wanted, vertices.shape[1]))
    if not len(truth.seen_faces()) or not all(len(truth.seen_faces(i)) for i in range(len(wanted))):
        raise DataError(f"{folder}/visibility.npz: no face of the true mesh is seen by a training camera; nothing could be scored.")
    return truth


def _n_views(folder: Path, all_frames: list[int], wanted: list[int], count: int) -> np.ndarray | None:
    """Rows of `visibility.npz` at the wanted frames, or None where the file is absent."""
    path = folder / "visibility.npz"
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as archive:
            n_views = archive["n_views"]
    except (ValueError, OSError, KeyError) as error:
        raise DataError(f"{path}: cannot be read ({error}); wanted an array 'n_views' [frames, vertices].") from None
    if n_views.shape != (len(all_frames), count):
        raise DataError(f"{path}: 'n_views' must be [frames={len(all_frames)}, vertices={count}], got {list(n_views.shape)}.")
    return n_views[[all_frames.index(frame) for frame in wanted]]
