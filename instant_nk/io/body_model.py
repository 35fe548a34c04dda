"""Parametric bodies of the SMPL family: a model file the user supplies and pose parameters per frame, read as a rig. Nothing is ever unpickled.

Model (.npz): `v_template` [V, 3], `f` [T, 3], `weights` [V, J], `J_regressor` [J, V], `kintree_table` [2, J] (parents in row 0); optional
`shapedirs` [V, 3, B] and `posedirs` [V, 3, 9 (J - 1)]. Poses (.npz): `poses` [N, 3 J] axis-angle (fewer joints: the rest stay straight), optional
`betas` [B], `trans` [N, 3], and `mocap_framerate` (or `mocap_frame_rate`) in poses per second.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy import sparse
from scipy.spatial.transform import Rotation, Slerp

from instant_nk.errors import DataError
from instant_nk.io.rig import Rig, key_times

CONVERT = (
    "Pickled models are not read, because unpickling runs whatever the file says. Where you trust it, convert it once: "
    "python -c \"import pickle, sys, numpy as np; d = pickle.load(open(sys.argv[1], 'rb'), encoding='latin1'); "
    "np.savez(sys.argv[2], **{k: d[k].toarray() if hasattr(d[k], 'toarray') else np.array(d[k], float) for k in "
    "('v_template', 'f', 'weights', 'J_regressor', 'kintree_table', 'shapedirs', 'posedirs')})\" MODEL.pkl MODEL.npz"
)
TOP_WEIGHTS = 1e-6  # skinning weights below this are zeros of the file format


def _load(path: Path | str, key: str, wanted: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Numeric arrays of an .npz; those that would need unpickling are left out unless wanted.

    Raises:
        DataError: missing, pickled, unreadable, or without a wanted array.
    """
    path = Path(path)
    if path.suffix.lower() in (".pkl", ".pickle"):
        raise DataError(f"{key}: {path}: {CONVERT}")
    if not path.is_file():
        raise DataError(f"{key}: {path}: no such file. Wanted an .npz with {', '.join(wanted)}.")
    arrays = {}
    try:
        with np.load(path, allow_pickle=False) as archive:
            for name in archive.files:
                try:
                    arrays[name] = archive[name]
                except ValueError:  # an object array
                    if name in wanted:
                        raise DataError(f"{key}: {path}: '{name}' is pickled inside the .npz. {CONVERT}") from None
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{key}: {path}: not a readable .npz ({error}). Wanted arrays {', '.join(wanted)}.") from None
    missing = [name for name in wanted if name not in arrays]
    if missing:
        raise DataError(f"{key}: {path}: lacks {', '.join(missing)}; it has {', '.join(arrays) or 'nothing'}.")
    return arrays


def _shaped(path: Path | str, arrays: dict, name: str, shape: tuple[int | None, ...]) -> np.ndarray:
    """An array as f64, after checking its shape (None: any length) and values."""
    value = arrays[name]
    if value.dtype.kind not in "fiu" or value.ndim != len(shape) or any(n is not None and n != m for n, m in zip(shape, value.shape)):
        raise DataError(
            f"{path}: '{name}' must be numbers [{', '.join('any' if n is None else str(n) for n in shape)}], got {value.dtype} {list(value.shape)}."
        )
    if not np.isfinite(value).all():
        raise DataError(f"{path}: '{name}' holds values that are not finite.")
    return value.astype(np.float64)


def _parents(path: Path | str, table: np.ndarray, joints: int) -> list[int]:
    """Parent of each joint, -1 for the root; every parent comes before its children."""
    first = table[0].astype(np.int64)
    parents = [-1, *(int(p) for p in first[1:])]
    wrong = [j for j in range(1, joints) if not 0 <= parents[j] < j]
    if wrong:
        raise DataError(f"{path}: 'kintree_table': joint {wrong[0]} has parent {parents[wrong[0]]}; wanted an earlier joint.")
    return parents


def load(model: Path | str, poses: Path | str, frames: Sequence[int], first: int, fps: float | None = None) -> Rig:
    """The body at the given frames, in the poses' world.

    Args:
        first: absolute frame of the first pose.
        fps: frames of the capture per second; needs the poses' own rate. None: a pose per frame.

    Raises:
        DataError: a file is missing, pickled or unsound, or the poses do not cover a frame.
    """
    body = _load(model, "registration.folder", ("v_template", "f", "weights", "J_regressor", "kintree_table"))
    clip = _load(poses, "registration.rig_poses", ("poses",))
    vertices = _shaped(model, body, "v_template", (None, 3))
    v = len(vertices)
    faces = _shaped(model, body, "f", (None, 3)).astype(np.int64)
    weights = _shaped(model, body, "weights", (v, None))
    j = weights.shape[1]
    regressor = _shaped(model, body, "J_regressor", (j, v))
    parents = _parents(model, _shaped(model, body, "kintree_table", (2, j)), j)
    if faces.min() < 0 or faces.max() >= v or (weights.sum(1) <= 0).any():
        raise DataError(f"{model}: 'f' must index V={v} vertices, and every vertex needs a weight above zero.")
    rotations, shift = _at_frames(poses, clip, j, frames, first, fps)
    shaped = vertices + _shape(model, body, poses, clip, v)
    matrices = _pose(rotations, regressor @ shaped, parents)
    matrices[..., :3, 3] += shift[:, None]
    offsets = None
    if "posedirs" in body:
        bends = (rotations[:, 1:] - np.eye(3)).reshape(len(rotations), -1)
        offsets = np.einsum("vik,fk->fvi", _shaped(model, body, "posedirs", (v, 3, 9 * (j - 1))), bends)
    weights = np.where(weights < TOP_WEIGHTS, 0, weights)
    weights = sparse.csr_matrix(weights / weights.sum(1, keepdims=True))
    return Rig(shaped, faces, weights, tuple(int(f) for f in frames), matrices, offsets)


def _shape(model: Path | str, body: dict, poses: Path | str, clip: dict, v: int) -> np.ndarray:
    """Displacement of the template by the subject's shape, [V, 3]."""
    if "betas" not in clip:
        return np.zeros((v, 3))
    betas = clip["betas"]
    betas = _shaped(poses, {"betas": betas[0] if betas.ndim == 2 else betas}, "betas", (None,))
    if "shapedirs" not in body:
        if np.any(betas):
            raise DataError(f"{poses}: has 'betas', but {model} has no 'shapedirs' to apply them to.")
        return np.zeros((v, 3))
    directions = _shaped(model, body, "shapedirs", (v, 3, None))
    used = min(len(betas), directions.shape[2])  # a model with more directions than the fit used leaves the others at zero
    if np.any(betas[used:]):
        raise DataError(f"{poses}: has {len(betas)} betas, {model} has {directions.shape[2]} shape directions.")
    return directions[..., :used] @ betas[:used]


def _at_frames(path: Path | str, clip: dict, joints: int, frames: Sequence[int], first: int, fps: float | None) -> tuple[np.ndarray, np.ndarray]:
    """Joint rotations [F, J, 3, 3] and root shift [F, 3]."""
    poses = _shaped(path, clip, "poses", (None, None))
    n, width = poses.shape
    if width % 3 or width // 3 > joints or not n:
        raise DataError(f"{path}: 'poses' must be [N, 3 J] with at most J={joints} joints of the model, got {[n, width]}.")
    trans = _shaped(path, clip, "trans", (n, 3)) if "trans" in clip else np.zeros((n, 3))
    rate = next((float(clip[name]) for name in ("mocap_framerate", "mocap_frame_rate") if name in clip), None)
    if fps is not None and rate is None:
        raise DataError(
            f"{path}: registration.rig_fps is set, but the poses do not say their own rate ('mocap_framerate'). Leave rig_fps null for a pose per frame."
        )
    keys = np.arange(n) / (rate or 1.0)
    at = key_times(frames, keys, first, fps, Path(path))
    vectors = np.zeros((n, joints, 3))
    vectors[:, : width // 3] = poses.reshape(n, -1, 3)
    matrices = [
        (Slerp(keys, Rotation.from_rotvec(vectors[:, k]))(at) if n > 1 else Rotation.from_rotvec(np.repeat(vectors[:, k], len(at), 0))).as_matrix()
        for k in range(joints)
    ]
    return np.stack(matrices, 1), np.stack([np.interp(at, keys, trans[:, k]) for k in range(3)], 1)


def _pose(rotations: np.ndarray, places: np.ndarray, parents: list[int]) -> np.ndarray:
    """Joint matrices [F, J, 4, 4]: each joint turns about its place at rest, carried by its parents."""
    f, j = rotations.shape[:2]
    placed = np.tile(np.eye(4), (f, j, 1, 1))
    for k, parent in enumerate(parents):
        local = np.tile(np.eye(4), (f, 1, 1))
        local[:, :3, :3], local[:, :3, 3] = rotations[:, k], places[k] - (places[parent] if parent >= 0 else 0)
        placed[:, k] = local if parent < 0 else placed[:, parent] @ local
    result = placed.copy()
    result[..., :3, 3] -= np.einsum("fjik,jk->fji", placed[..., :3, :3], places)
    return result
