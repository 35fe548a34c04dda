"""Rigs: skinned meshes with joint transforms per frame, read from glTF 2.0 (.glb, .gltf) in world coordinates.

A vertex moves to `sum_j w_j M_j (v + offset)`, M_j the joint's global transform times its inverse bind matrix. A mesh that hangs on an animated
node without a skin counts as one joint.
"""

from __future__ import annotations

import base64
import json
import logging
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
from scipy import sparse
from scipy.spatial.transform import Rotation, Slerp

from instant_nk.errors import DataError

logger = logging.getLogger(__name__)

COMPONENT = {5120: "i1", 5121: "u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
WIDTH = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT2": 4, "MAT3": 9, "MAT4": 16}
UNREADABLE = ("KHR_draco_mesh_compression", "EXT_meshopt_compression")
TRIANGLES = 4
UNEVEN = 0.1
"""Deviation of a key distance from the median, as a share of it, above which keys are not one per frame: a key left out doubles it."""


@dataclass(frozen=True)
class Rig:
    """A skinned mesh at some frames, world units.

    Attributes:
        vertices: as bound to the joints, f64 [V, 3].
        faces: i64 [T, 3].
        weights: of J joints, rows sum to 1, sparse f64 [V, J].
        frames: absolute.
        matrices: joint motion, f64 [F, J, 4, 4].
        offsets: added to the vertices before the joints move them (pose corrections of a body model), f64 [F, V, 3]; None: nothing.
    """

    vertices: np.ndarray
    faces: np.ndarray
    weights: sparse.csr_matrix
    frames: tuple[int, ...]
    matrices: np.ndarray
    offsets: np.ndarray | None = None

    def posed(self, frame: int) -> np.ndarray:
        """Vertices at an absolute frame, f64 [V, 3]."""
        i = self.frames.index(frame)
        points = self.vertices if self.offsets is None else self.vertices + self.offsets[i]
        blended = (self.weights @ self.matrices[i].reshape(-1, 16)).reshape(-1, 4, 4)
        return np.einsum("vij,vj->vi", blended[:, :3, :3], points) + blended[:, :3, 3]


def key_times(frames: Sequence[int], keys: np.ndarray, first: int, fps: float | None, path: Path) -> np.ndarray:
    """Animation time of each frame, f64 [F].

    Args:
        keys: times of the animation's keys, ascending.
        first: absolute frame at the first key.
        fps: frames per second; None: a key per frame.

    Raises:
        DataError: the animation does not cover a frame.
    """
    since = np.asarray(frames, np.int64) - first
    last = len(keys) - 1 if fps is None else (keys[-1] - keys[0]) * fps
    outside = [f for f, s in zip(frames, since) if s < 0 or s > last + (0 if fps is None else 0.5)]
    if outside:
        how = f"{len(keys)} keys, one per frame" if fps is None else f"{keys[-1] - keys[0]:.4g} s at {fps:g} frames per second"
        raise DataError(
            f"{path}: the animation covers frames {first} to {first + int(last + 1e-6)} ({how}), wanted also {outside[:5]}{'…' if len(outside) > 5 else ''}. "
            "Set registration.rig_fps or rig_first_frame, or frames.first and frames.count."
        )
    return keys[since] if fps is None else np.minimum(keys[0] + since / fps, keys[-1])


# The container


@dataclass(frozen=True)
class _File:
    path: Path
    json: dict[str, Any]
    buffers: list[bytes]

    def array(self, index: int) -> np.ndarray:
        """An accessor's values as f64 [count, width]."""
        a = self.json["accessors"][index]
        dtype, width = np.dtype(COMPONENT[a["componentType"]]), WIDTH[a["type"]]
        values = np.zeros((a["count"], width)) if "bufferView" not in a else self._view(a["bufferView"], a.get("byteOffset", 0), dtype, a["count"], width)
        if "sparse" in a:
            s = a["sparse"]
            where, what = s["indices"], s["values"]
            rows = self._view(where["bufferView"], where.get("byteOffset", 0), np.dtype(COMPONENT[where["componentType"]]), s["count"], 1)[:, 0].astype(int)
            values = values.copy()
            values[rows] = self._view(what["bufferView"], what.get("byteOffset", 0), dtype, s["count"], width)
        if a.get("normalized") and dtype.kind in "iu":
            values = np.maximum(values / np.iinfo(dtype).max, -1.0)
        return values

    def _view(self, index: int, offset: int, dtype: np.dtype, count: int, width: int) -> np.ndarray:
        view = self.json["bufferViews"][index]
        data, start = self.buffers[view["buffer"]], view.get("byteOffset", 0) + offset
        stride = view.get("byteStride") or dtype.itemsize * width
        if count and start + (count - 1) * stride + dtype.itemsize * width > len(data):
            raise ValueError(f"bufferView {index} reaches beyond its buffer of {len(data)} bytes; the file is truncated")
        table = np.ndarray((count, width), dtype, data, start, (stride, dtype.itemsize))
        return table.astype(np.float64)


def _open(path: Path) -> _File:
    data = path.read_bytes()
    binary = b""
    if data[:4] == b"glTF":
        length, position, chunks = struct.unpack("<I", data[8:12])[0], 12, {}
        if length > len(data):
            raise ValueError(f"it is truncated: wanted {length} bytes, got {len(data)}")
        while position + 8 <= length:
            size, kind = struct.unpack("<II", data[position : position + 8])
            chunks[kind] = data[position + 8 : position + 8 + size]
            position += 8 + size
        document, binary = json.loads(chunks[0x4E4F534A]), chunks.get(0x004E4942, b"")
    else:
        document = json.loads(data)
    packed = [name for name in document.get("extensionsRequired", []) if name in UNREADABLE]
    if packed:
        raise ValueError(f"it is compressed with {packed[0]}; export it without compression")
    buffers = []
    for buffer in document.get("buffers", []):
        uri = buffer.get("uri")
        if uri is None:
            buffers.append(binary)
        elif uri.startswith("data:"):
            buffers.append(base64.b64decode(uri.partition(",")[2]))
        else:
            buffers.append((path.parent / unquote(uri)).read_bytes())
    return _File(path, document, buffers)


# Animation


def _sample(times: np.ndarray, values: np.ndarray, how: str, at: np.ndarray, rotation: bool) -> np.ndarray:
    """A channel's values at the times `at`, [F, width]; quaternions along the shortest arc."""
    if how == "CUBICSPLINE":
        return _spline(times, values.reshape(len(times), 3, -1), at, rotation)
    if how == "STEP":
        return values[np.searchsorted(times, at + _rounding(times, at), side="right").clip(1) - 1]
    at = at.clip(times[0], times[-1])
    if len(times) == 1:
        return np.repeat(values, len(at), 0)
    if rotation:
        return Slerp(times, Rotation.from_quat(values))(at).as_quat()
    return np.stack([np.interp(at, times, column) for column in values.T], 1)


def _rounding(times: np.ndarray, at: np.ndarray) -> float:
    """How much before a key a time still means that key: keys are float32, times are computed. Far less than between keys, or frames."""
    distances = np.concatenate([np.diff(np.unique(t)) for t in (times, at)])
    least = float(distances.min()) if len(distances) else 0.0
    return max(2e-6, 1e-3 * least, float(np.spacing(np.float32(np.abs(times).max()))))


def _check_even(keys: np.ndarray, path: Path) -> None:
    """Refuse keys that cannot be one per frame.

    Raises:
        DataError: their distances differ.
    """
    gaps = np.diff(keys)
    if len(gaps) and np.abs(gaps - np.median(gaps)).max() > UNEVEN * np.median(gaps):
        raise DataError(
            f"{path}: the animation's {len(keys)} keys lie {gaps.min():.4g} to {gaps.max():.4g} s apart, wanted even distances, a key per frame (exporters "
            "leave out keys that change nothing). Set registration.rig_fps (frames of the capture per second of the animation), or export a key per frame."
        )


def _spline(times: np.ndarray, values: np.ndarray, at: np.ndarray, rotation: bool) -> np.ndarray:
    """Hermite spline of keys [K, (in-tangent, value, out-tangent), width]."""
    at = at.clip(times[0], times[-1])
    i = (np.searchsorted(times, at, side="right") - 1).clip(0, max(len(times) - 2, 0))
    j = np.minimum(i + 1, len(times) - 1)
    span = np.maximum(times[j] - times[i], 1e-12)[:, None]
    s = (at - times[i])[:, None] / span
    result = (2 * s**3 - 3 * s**2 + 1) * values[i, 1] + (s**3 - 2 * s**2 + s) * span * values[i, 2]
    result += (3 * s**2 - 2 * s**3) * values[j, 1] + (s**3 - s**2) * span * values[j, 0]
    return result / np.linalg.norm(result, axis=1, keepdims=True) if rotation else result


def _channels(file: _File, animation: dict) -> dict[tuple[int, str], tuple]:
    """Times, values and interpolation of each animated (node, path)."""
    found = {}
    for channel in animation["channels"]:
        node, where = channel["target"].get("node"), channel["target"]["path"]
        if node is None or where == "weights":
            continue
        sampler = animation["samplers"][channel["sampler"]]
        found[node, where] = (file.array(sampler["input"])[:, 0], file.array(sampler["output"]), sampler.get("interpolation", "LINEAR"))
    return found


def _local(node: dict, index: int, channels: dict, at: np.ndarray) -> np.ndarray:
    """A node's transform to its parent at each time, [F, 4, 4]."""
    if "matrix" in node:
        return np.tile(np.array(node["matrix"], np.float64).reshape(4, 4).T, (len(at), 1, 1))

    def part(name: str, rest: list[float]) -> np.ndarray:
        if (index, name) in channels:
            return _sample(*channels[index, name], at, name == "rotation")
        return np.tile(np.array(node.get(name, rest), np.float64), (len(at), 1))

    result = np.tile(np.eye(4), (len(at), 1, 1))
    result[:, :3, :3] = Rotation.from_quat(part("rotation", [0, 0, 0, 1])).as_matrix() * part("scale", [1, 1, 1])[:, None, :]
    result[:, :3, 3] = part("translation", [0, 0, 0])
    return result


def _globals(nodes: list[dict], channels: dict, at: np.ndarray) -> np.ndarray:
    """Every node's transform to the world at each time, [N, F, 4, 4]."""
    result = np.zeros((len(nodes), len(at), 4, 4))
    children = {child for node in nodes for child in node.get("children", [])}
    queue = [(i, np.eye(4)) for i in range(len(nodes)) if i not in children]
    while queue:
        i, above = queue.pop()
        result[i] = above @ _local(nodes[i], i, channels, at)
        queue += [(child, result[i]) for child in nodes[i].get("children", [])]
    return result


# Mesh


def _primitive(file: _File, primitive: dict) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Vertices [V, 3], faces [T, 3], joints i64 [V, K] and weights [V, K] (K may be 0)."""
    attributes = primitive["attributes"]
    vertices = file.array(attributes["POSITION"])
    index = file.array(primitive["indices"])[:, 0].astype(np.int64) if "indices" in primitive else np.arange(len(vertices))
    sets = [i for i in range(8) if f"JOINTS_{i}" in attributes and f"WEIGHTS_{i}" in attributes]
    joints = np.concatenate([np.zeros((len(vertices), 0)), *(file.array(attributes[f"JOINTS_{i}"]) for i in sets)], 1).astype(np.int64)
    weights = np.concatenate([np.zeros((len(vertices), 0)), *(file.array(attributes[f"WEIGHTS_{i}"]) for i in sets)], 1)
    return vertices, index[: len(index) // 3 * 3].reshape(-1, 3), joints, weights


def _assemble(file: _File, placed: np.ndarray, frames: tuple[int, ...]) -> Rig:
    """All meshes of the file as one rig."""
    document = file.json
    vertices, faces, rows, columns, shares, matrices = [], [], [], [], [], []
    count = joint_count = 0
    for i, node in enumerate(document.get("nodes", [])):
        if "mesh" not in node:
            continue
        skin = document["skins"][node["skin"]] if "skin" in node else None
        own = _joint_matrices(file, skin, placed) if skin else placed[i][None]
        used = False
        for primitive in document["meshes"][node["mesh"]]["primitives"]:
            if primitive.get("mode", TRIANGLES) != TRIANGLES:
                continue
            points, triangles, joints, weights = _primitive(file, primitive)
            if skin is None:
                joints, weights = np.zeros((len(points), 1), np.int64), np.ones((len(points), 1))
            if joints.size and joints.max() >= len(own):
                raise ValueError(f"mesh {node['mesh']} names joint {joints.max()}, its skin has {len(own)}")
            if not weights.size or (weights.sum(1) <= 0).any():
                raise ValueError(f"mesh {node['mesh']} has a skin but vertices without weights")
            vertices.append(points)
            faces.append(triangles + count)
            rows.append(np.repeat(np.arange(len(points)) + count, joints.shape[1]))
            columns.append(joints.ravel() + joint_count)
            shares.append((weights / weights.sum(1, keepdims=True)).ravel())
            count += len(points)
            used = True
        if used:
            matrices.append(own)
            joint_count += len(own)
    if not count:
        raise ValueError("it holds no triangle mesh")
    weight = sparse.coo_matrix((np.concatenate(shares), (np.concatenate(rows), np.concatenate(columns))), shape=(count, joint_count)).tocsr()
    return Rig(np.concatenate(vertices), np.concatenate(faces), weight, frames, np.concatenate(matrices).transpose(1, 0, 2, 3))


def _joint_matrices(file: _File, skin: dict, placed: np.ndarray) -> np.ndarray:
    """Global transform times inverse bind matrix of a skin's joints, [J, F, 4, 4]."""
    own = placed[skin["joints"]]
    if "inverseBindMatrices" not in skin:
        return own
    bind = file.array(skin["inverseBindMatrices"]).reshape(-1, 4, 4).transpose(0, 2, 1)
    return own @ bind[: len(own), None]


def load_gltf(path: Path | str, frames: Sequence[int], first: int, fps: float | None = None) -> Rig:
    """Read a rig at the given frames, from the file's first animation.

    Args:
        first: absolute frame at the animation's first key.
        fps: frames of the capture per second of the animation; None: a key per frame.

    Raises:
        DataError: not a glTF file, no mesh or animation in it, compressed, keys not evenly spaced where `fps` is None, or the animation does not cover a frame.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"registration.folder: {path}: no such file. Wanted a .glb or .gltf with a skinned mesh in world coordinates.")
    try:
        file = _open(path)
        animations = file.json.get("animations") or []
        if not animations:
            raise ValueError("it holds no animation")
        if len(animations) > 1:
            logger.info("%s: the first of %d animations is used", path, len(animations))
        channels = _channels(file, animations[0])
        if not channels:
            raise ValueError("its animation moves no node")
        keys = np.unique(np.concatenate([times for times, _, _ in channels.values()]).round(6))
        if fps is None:
            _check_even(keys, path)
        at = key_times(frames, keys, first, fps, path)
        rig = _assemble(file, _globals(file.json["nodes"], channels, at), tuple(int(f) for f in frames))
    except DataError:
        raise
    except (ValueError, KeyError, IndexError, TypeError, OSError, struct.error) as error:
        raise DataError(f"{path}: not a rig ({type(error).__name__}: {error}). Wanted glTF 2.0 with a skinned mesh and an animation.") from None
    if not (np.isfinite(rig.vertices).all() and np.isfinite(rig.matrices).all()):
        raise DataError(f"{path}: the rig holds values that are not finite. Export it anew.")
    return rig
