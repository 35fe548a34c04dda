"""Compact skinned GLB: graph nodes as joints, a few bytes per joint and frame instead of all vertices.

The graph's warp is linear blend skinning, which viewers do on their own: x_live = sum_k w_k (R_k (x - g_k) + g_k + t_k)
with joint k at g_k + t_k turned by R_k and inverse bind matrix "translate by -g_k". The residual field and the limit of four
joints per vertex (what all viewers read) are absorbed by fitting joints and weights to the animation's vertices, in turns:
each joint is solved in closed form with the others held (weighted Procrustes, as in smooth skinning decomposition), and
each vertex's weights by least squares on the simplex. The file is written only when it repeats the animation within a
stated bound.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from instant_nk.errors import ContractError
from instant_nk.geometry.texture import Texture
from instant_nk.io.export.common import check_animation, frame_times, stand, unit_normals
from instant_nk.io.export.glb import add_surface, node_offset
from instant_nk.io.export.gltf import VERTEX_DATA, Document
from instant_nk.io.graph import Graph
from instant_nk.io.mesh import Animation

logger = logging.getLogger(__name__)

INFLUENCES = 4  # three.js and most engines read no more
ROUNDS = 3  # joints, weights, joints, ...
SWEEPS = 4  # over all joints in a round
WEIGHT_ANCHORING = 1e-4  # pull of a vertex's weights towards the graph's, where motion leaves them open
ANCHORING = 1e-3  # pull towards the frame's rigid motion, against joints whose few vertices leave a rotation open


def strongest(joints: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The (at most) four largest influences of each vertex, strongest first; weights below 1e-4 become 0, rows sum to 1."""
    order = np.argsort(-weights, axis=1)[:, :INFLUENCES]
    share = np.take_along_axis(weights, order, 1)
    share /= share.sum(1, keepdims=True)
    share[share < 1e-4] = 0
    return np.take_along_axis(joints, order, 1), share / share.sum(1, keepdims=True)


def _attributes(joints: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """JOINTS_0 u16 [V, 4] and WEIGHTS_0 f32 [V, 4]; where a weight is 0 the joint is 0, as glTF asks."""
    missing = ((0, 0), (0, INFLUENCES - joints.shape[1]))
    return np.pad(np.where(weights > 0, joints, 0), missing).astype(np.uint16), np.pad(weights, missing).astype(np.float32)


def _on_simplex(w: np.ndarray) -> np.ndarray:
    """The nearest non-negative weights that sum to 1, row by row."""
    ordered = -np.sort(-w, axis=1)
    excess = (ordered.cumsum(1) - 1) / np.arange(1, w.shape[1] + 1)
    last = (ordered > excess).sum(1, keepdims=True) - 1
    return np.maximum(w - np.take_along_axis(excess, last, 1), 0)


@dataclass
class Joints:
    """Joint motion over N frames; a point x of joint k moves to R (x - centre) + place.

    Attributes:
        centres: positions at rest, f64 [M, 3].
        rotations: f64 [M, N, 3, 3].
        places: positions at every frame, f64 [M, N, 3].
    """

    centres: np.ndarray
    rotations: np.ndarray
    places: np.ndarray

    @staticmethod
    def rigid(rest: np.ndarray, target: np.ndarray, centres: np.ndarray) -> Joints:
        """All joints moved by each frame's best rigid motion of the whole."""
        whole = _rigid(rest, target)
        places = (centres - rest.mean(0)) @ whole.transpose(0, 2, 1) + target.mean(0)[:, None]
        return Joints(centres, np.repeat(whole[None], len(centres), 0), np.ascontiguousarray(places.transpose(1, 0, 2)))

    def move(self, k: int, points: np.ndarray) -> np.ndarray:
        """Points [P, 3] under joint k at all frames, [P, N, 3]."""
        turned = (points - self.centres[k]) @ self.rotations[k].reshape(-1, 3).T
        return turned.reshape(len(points), -1, 3) + self.places[k]

    def move_each(self, k: np.ndarray, points: np.ndarray) -> np.ndarray:
        """Each point [P, 3] under its own joint [P] at all frames, [P, N, 3]."""
        turned = self.rotations[k].reshape(len(k), -1, 3) @ (points - self.centres[k])[:, :, None]
        return turned.reshape(len(k), -1, 3) + self.places[k]


def _procrustes(covariance: np.ndarray) -> np.ndarray:
    """Rotations R that maximise trace(R C) for covariances C = sum p q^T, [N, 3, 3]."""
    u, _, vt = np.linalg.svd(covariance)
    flip = np.ones((len(u), 3))
    flip[:, 2] = np.sign(np.linalg.det(u @ vt))
    return np.einsum("nji,nj,nkj->nik", vt, flip, u)


def _rigid(rest: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Rotation of the best rigid motion of points [V, 3] onto [V, N, 3] at every frame: [N, 3, 3]."""
    centred = target - target.mean(0)
    covariance = (rest - rest.mean(0)).T @ centred.reshape(len(rest), -1)
    return _procrustes(covariance.reshape(3, -1, 3).transpose(1, 0, 2))


def skin(rest: np.ndarray, joints: np.ndarray, weights: np.ndarray, motion: Joints) -> np.ndarray:
    """Linear blend skinning at all frames, [V, N, 3]: what a viewer computes from the file."""
    result = np.zeros((len(rest), motion.places.shape[1], 3))
    for part in _parts(len(rest)):
        for slot in range(joints.shape[1]):
            result[part] += weights[part, slot, None, None] * motion.move_each(joints[part, slot], rest[part])
    return result


def _parts(count: int) -> list[np.ndarray]:
    return np.array_split(np.arange(count), max(1, -(-count // 1000)))


def fit_weights(rest: np.ndarray, target: np.ndarray, joints: np.ndarray, start: np.ndarray, motion: Joints) -> np.ndarray:
    """Weights [V, K] on the simplex that best explain the target with the joints as they move, near `start` where they are open."""
    result = np.empty_like(start)
    for part in _parts(len(rest)):
        k = joints[part]
        places = np.stack([motion.move_each(k[:, slot], rest[part]) for slot in range(k.shape[1])], 1)
        gap = (places - target[part][:, None]).reshape(*k.shape, -1)  # weights sum to 1, so the target moves inside
        gram = gap @ gap.transpose(0, 2, 1)
        trace = np.einsum("vkk->v", gram)[:, None, None]
        gram += WEIGHT_ANCHORING * trace * np.eye(k.shape[1])
        pull = WEIGHT_ANCHORING * trace[..., 0] * start[part]
        step = 1 / np.maximum(np.linalg.norm(gram, axis=(1, 2)), 1e-30)[:, None]
        w = ahead = start[part]
        for i in range(100):  # accelerated projected gradient
            before, w = w, _on_simplex(ahead - step * ((gram @ ahead[..., None])[..., 0] - pull))
            ahead = w + i / (i + 3) * (w - before)
        result[part] = w
    return result


def fit_joints(rest: np.ndarray, target: np.ndarray, joints: np.ndarray, weights: np.ndarray, motion: Joints) -> None:
    """Improve the joints' motion in place so that skinning `rest` [V, 3] repeats `target` [V, N, 3]."""
    whole, flat, share = _rigid(rest, target), joints.ravel(), weights.ravel()
    used = np.flatnonzero(share > 0)
    used = used[np.argsort(flat[used], kind="stable")]
    members = np.split(used, np.searchsorted(flat[used], np.arange(1, len(motion.centres))))
    gap = target - skin(rest, joints, weights, motion)
    for _ in range(SWEEPS):
        for k, slots in enumerate(members):
            if not len(slots):
                continue
            vertex, w = slots // joints.shape[1], share[slots]
            wanted = gap[vertex] + w[:, None, None] * motion.move(k, rest[vertex])
            motion.rotations[k], motion.places[k] = _solve_joint(rest[vertex] - motion.centres[k], w, wanted, whole)
            gap[vertex] = wanted - w[:, None, None] * motion.move(k, rest[vertex])


def _solve_joint(point: np.ndarray, w: np.ndarray, wanted: np.ndarray, whole: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """R [N, 3, 3] and t [N, 3] that minimise sum |w (R p + t) - q|^2 over the joint's vertices, for q = wanted [P, N, 3]."""
    total = (w**2).sum()
    p_mean = w**2 @ point / total
    flat = wanted.reshape(len(wanted), -1)
    q_mean = (w @ flat / total).reshape(-1, 3)
    p = point - p_mean
    covariance = ((w[:, None] * p).T @ flat).reshape(3, -1, 3).transpose(1, 0, 2)  # sum w^2 p = 0, so q needs no centring
    size = w**2 @ (p**2).sum(1) + 1e-12 * total
    rotation = _procrustes(covariance + ANCHORING * size * whole.transpose(0, 2, 1))
    return rotation, q_mean - rotation @ p_mean


def decompose(rest: np.ndarray, target: np.ndarray, graph: Graph, centres: np.ndarray) -> tuple[np.ndarray, np.ndarray, Joints]:
    """Four joints and weights per vertex, and the joints' motion, that repeat the target [V, N, 3]."""
    motion = Joints.rigid(rest, target, centres)
    joints, weights = graph.vertex_anchors.astype(np.int64), graph.vertex_weights.astype(np.float64)
    fit_joints(rest, target, joints, weights, motion)
    for _ in range(ROUNDS):
        weights = fit_weights(rest, target, joints, weights, motion)
        joints, weights = strongest(joints, weights)
        fit_joints(rest, target, joints, weights, motion)
    return joints, weights.astype(np.float32).astype(np.float64), motion


def export_skinned_glb(
    animation: Animation,
    path: Path | str,
    fps: float,
    graph: Graph,
    rest: np.ndarray,
    world_from_scene: np.ndarray,
    texture: Texture | None = None,
    bound_pct: float = 0.5,
    up: tuple[float, float, float] = (0.0, 1.0, 0.0),
) -> dict[str, float | bool]:
    """Write the animation as a skinned .glb, if skinning repeats it well enough; an older file is removed if not.

    Args:
        graph: nodes, anchors and weights of the canonical mesh, scene units.
        rest: canonical vertices in world units, f32 [V, 3].
        world_from_scene: similarity that brings the nodes to world units, [4, 4].
        bound_pct: largest 99th percentile of the vertices' distance to the animation, in percent of the diagonal of its box.
        up: the world's up.

    Returns:
        `skinned_error_mean_pct`, `skinned_error_p99_pct`, `skinned_error_max_pct` (of the diagonal), `skinned_bound_pct`, and `skinned_written`.

    Raises:
        ContractError: the graph does not belong to this mesh, the animation cannot be exported, or the disk is full.
    """
    path = Path(path)
    check_animation(animation, path)
    times = frame_times(animation.frames, fps)
    if len(graph.vertex_anchors) != animation.vertices.shape[1] or rest.shape != animation.vertices.shape[1:]:
        raise ContractError(
            f"{path}: the graph holds {len(graph.vertex_anchors)} vertices and the rest shape {len(rest)}, the animation {animation.vertices.shape[1]}. "
            "Re-run stages 'graph' to 'mesh'."
        )
    offset = node_offset(animation.vertices)
    centres = graph.node_positions @ world_from_scene[:3, :3].T + world_from_scene[:3, 3] - offset
    base = (rest.astype(np.float64) - offset).astype(np.float32)
    target = np.ascontiguousarray((animation.vertices.astype(np.float64) - offset).transpose(1, 0, 2))  # [V, N, 3]: a vertex's frames lie together
    joints, weights, motion = decompose(base.astype(np.float64), target, graph, centres)
    distance = np.linalg.norm(skin(base.astype(np.float64), joints, weights, motion) - target, axis=2)
    percent = 100 * distance / max(float(np.linalg.norm(np.ptp(target, axis=(0, 1)))), 1e-30)
    p99 = float(np.quantile(percent, 0.99))
    numbers = {
        "skinned_error_mean_pct": float(percent.mean()), "skinned_error_p99_pct": p99, "skinned_error_max_pct": float(percent.max()),
        "skinned_bound_pct": bound_pct, "skinned_written": p99 <= bound_pct,
    }  # fmt: skip
    if p99 > bound_pct:
        path.unlink(missing_ok=True)
        logger.warning("no %s: skinning misses the animation by %.3g %% of the diagonal at the 99th percentile, more than %.3g %%", path.name, p99, bound_pct)
        return numbers
    document = Document()
    _add_mesh(document, animation, base, joints, weights, texture)
    _add_joints(document, motion, offset, times)
    document.add_scene([0, 1], 1, stand(up))  # a skinned mesh stays a root: its joints say where it is
    document.json["meshes"][0]["extras"] = {"frames": animation.frames.tolist(), "fps": fps, "error_p99_pct": p99}
    document.write(path)
    return numbers


def _add_mesh(document: Document, animation: Animation, base: np.ndarray, joints: np.ndarray, weights: np.ndarray, texture: Texture | None) -> None:
    primitive, source = add_surface(document, animation.colours, animation.faces, texture)
    joint_index, share = _attributes(joints, weights)
    primitive["attributes"] |= {
        "POSITION": document.add(base[source], VERTEX_DATA, bounds=True),
        "NORMAL": document.add(unit_normals(base, animation.faces)[source], VERTEX_DATA),
        "JOINTS_0": document.add(joint_index[source], VERTEX_DATA),
        "WEIGHTS_0": document.add(share[source], VERTEX_DATA),
    }
    document.json["meshes"] = [{"name": "surface", "primitives": [primitive]}]


def _add_joints(document: Document, motion: Joints, offset: np.ndarray, times: np.ndarray) -> None:
    """Node 0 is the mesh, node 1 the root of the joints, node 2 + k joint k; the offset from the world's origin sits in node 1."""
    centres = motion.centres
    m = len(centres)
    inverse_bind = np.tile(np.eye(4, dtype=np.float32), (m, 1, 1))
    inverse_bind[:, 3, :3] = -centres  # column-major: the translation is the last row here
    root = {"name": "graph", "children": list(range(2, 2 + m))} | ({"translation": offset.tolist()} if offset.any() else {})
    nodes = [{"name": f"node_{k:04d}", "translation": centres[k].tolist()} for k in range(m)]
    document.json |= {
        "skins": [{"joints": list(range(2, 2 + m)), "skeleton": 1, "inverseBindMatrices": document.add(inverse_bind)}],
        "nodes": [{"name": "animated_mesh", "mesh": 0, "skin": 0}, root, *nodes],
    }
    quaternions = Rotation.from_matrix(motion.rotations.reshape(-1, 3, 3)).as_quat().reshape(m, len(times), 4)
    for i in range(1, len(times)):  # the short way between frames
        quaternions[:, i] *= np.where((quaternions[:, i] * quaternions[:, i - 1]).sum(1, keepdims=True) < 0, -1, 1)
    key_times = document.add(times, bounds=True)
    samplers, channels = [], []
    for k in range(m):
        for name, values in (("translation", motion.places[k]), ("rotation", quaternions[k])):
            channels.append({"sampler": len(samplers), "target": {"node": 2 + k, "path": name}})
            samplers.append({"input": key_times, "output": document.add(values.astype(np.float32)), "interpolation": "LINEAR"})
    document.json["animations"] = [{"name": "frames", "samplers": samplers, "channels": channels}]
