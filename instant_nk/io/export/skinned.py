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
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from instant_nk.errors import ContractError
from instant_nk.geometry.texture import Texture
from instant_nk.io.export.common import check_animation, frame_times, unit_normals
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


def fit_weights(
    rest: np.ndarray, target: np.ndarray, joints: np.ndarray, start: np.ndarray, centres: np.ndarray, rotations: np.ndarray, translations: np.ndarray
) -> np.ndarray:
    """Weights [V, K] on the simplex that best explain the target with the joints as they move, near `start` where they are open."""
    result = np.empty_like(start)
    for chunk in np.array_split(np.arange(len(rest)), -(-len(rest) // 1000)):
        k = joints[chunk]
        places = np.einsum("nvkij,vkj->vkni", rotations[:, k], rest[chunk][:, None] - centres[k]) + (centres[k] + translations[:, k]).transpose(1, 2, 0, 3)
        gap = (places - target[:, chunk].transpose(1, 0, 2)[:, None]).reshape(*k.shape, -1)  # weights sum to 1, so the target moves inside
        gram = gap @ gap.transpose(0, 2, 1)
        trace = np.einsum("vkk->v", gram)[:, None, None]
        gram += WEIGHT_ANCHORING * trace * np.eye(k.shape[1])
        pull = WEIGHT_ANCHORING * trace[..., 0] * start[chunk]
        step = 1 / np.maximum(np.linalg.norm(gram, axis=(1, 2)), 1e-30)[:, None]
        w = ahead = start[chunk]
        for i in range(100):  # accelerated projected gradient
            before, w = w, _on_simplex(ahead - step * (np.einsum("vkl,vl->vk", gram, ahead) - pull))
            ahead = w + i / (i + 3) * (w - before)
        result[chunk] = w
    return result


def _procrustes(covariance: np.ndarray) -> np.ndarray:
    """Rotations R that maximise trace(R C) for covariances C = sum p q^T, [N, 3, 3]."""
    u, _, vt = np.linalg.svd(covariance)
    flip = np.ones((len(u), 3))
    flip[:, 2] = np.sign(np.linalg.det(u @ vt))
    return np.einsum("nji,nj,nkj->nik", vt, flip, u)


def _rigid(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Rotation of the best rigid motion of points [V, 3] onto [N, V, 3]: [N, 3, 3]."""
    return _procrustes(np.einsum("vi,nvj->nij", source - source.mean(0), target - target.mean(1, keepdims=True)))


def rigid_start(rest: np.ndarray, target: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All joints moved by the best rigid motion of the whole, per frame: rotations [N, M, 3, 3], translations [N, M, 3]."""
    whole = _rigid(rest, target)
    translations = np.einsum("nij,mj->nmi", whole, centres - rest.mean(0)) + target.mean(1)[:, None] - centres
    return np.repeat(whole[:, None], len(centres), 1), translations


def fit_joints(
    rest: np.ndarray, target: np.ndarray, joints: np.ndarray, weights: np.ndarray, centres: np.ndarray, rotations: np.ndarray, translations: np.ndarray
) -> None:
    """Improve `rotations` and `translations` in place so that skinning `rest` [V, 3] repeats `target` [N, V, 3]."""
    whole, flat, share = _rigid(rest, target), joints.ravel(), weights.ravel()
    used = np.flatnonzero(share > 0)
    used = used[np.argsort(flat[used], kind="stable")]
    members = np.split(used, np.searchsorted(flat[used], np.arange(1, len(centres))))
    moved = skin(rest, joints, weights, centres, rotations, translations)
    for _ in range(SWEEPS):
        for k, slots in enumerate(members):
            if not len(slots):
                continue
            vertex, w = slots // joints.shape[1], share[slots]
            own = w[:, None] * _moved(rest[vertex], centres[k], rotations[:, k], translations[:, k])
            others = moved[:, vertex] - own
            rotations[:, k], place = _solve_joint(rest[vertex] - centres[k], w, target[:, vertex] - others, whole)
            translations[:, k] = place - centres[k]
            moved[:, vertex] = others + w[:, None] * _moved(rest[vertex], centres[k], rotations[:, k], translations[:, k])


def _solve_joint(point: np.ndarray, w: np.ndarray, wanted: np.ndarray, whole: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """R, t that minimise sum |w (R p + t) - q|^2 over the joint's vertices: [N, 3, 3], [N, 3]."""
    total = (w**2).sum()
    p_mean = (w[:, None] ** 2 * point).sum(0) / total
    q_mean = np.einsum("v,nvi->ni", w, wanted) / total
    p = point - p_mean
    covariance = np.einsum("v,vi,nvj->nij", w, p, wanted - w[:, None] * q_mean[:, None])
    size = (w**2 * (p**2).sum(1)).sum() + 1e-12 * total
    rotation = _procrustes(covariance + ANCHORING * size * whole.transpose(0, 2, 1))
    return rotation, q_mean - rotation @ p_mean


def _moved(points: np.ndarray, centre: np.ndarray, rotation: np.ndarray, translation: np.ndarray) -> np.ndarray:
    """Points [P, 3] under one joint at all frames, [N, P, 3]."""
    return np.einsum("nij,pj->npi", rotation, points - centre) + (centre + translation)[:, None]


def skin(rest: np.ndarray, joints: np.ndarray, weights: np.ndarray, centres: np.ndarray, rotations: np.ndarray, translations: np.ndarray) -> np.ndarray:
    """Linear blend skinning at all frames, [N, V, 3]: what a viewer computes from the file."""
    result = np.zeros((len(rotations), *rest.shape))
    for slot in range(joints.shape[1]):
        k = joints[:, slot]
        result += weights[:, slot, None] * (np.einsum("nvij,vj->nvi", rotations[:, k], rest - centres[k]) + (centres[k] + translations[:, k]))
    return result


def decompose(rest: np.ndarray, target: np.ndarray, graph: Graph, centres: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Four joints and weights per vertex, and the joints' rotations and translations, that repeat the target."""
    rotations, translations = rigid_start(rest, target, centres)
    joints, weights = graph.vertex_anchors.astype(np.int64), graph.vertex_weights.astype(np.float64)
    fit_joints(rest, target, joints, weights, centres, rotations, translations)
    for _ in range(ROUNDS):
        weights = fit_weights(rest, target, joints, weights, centres, rotations, translations)
        joints, weights = strongest(joints, weights)
        fit_joints(rest, target, joints, weights, centres, rotations, translations)
    return joints, weights.astype(np.float32).astype(np.float64), rotations, translations


def export_skinned_glb(
    animation: Animation,
    path: Path | str,
    fps: float,
    graph: Graph,
    rest: np.ndarray,
    world_from_scene: np.ndarray,
    texture: Texture | None = None,
    bound_pct: float = 0.5,
) -> dict[str, float | bool]:
    """Write the animation as a skinned .glb, if skinning repeats it well enough; an older file is removed if not.

    Args:
        graph: nodes, anchors and weights of the canonical mesh, scene units.
        rest: canonical vertices in world units, f32 [V, 3].
        world_from_scene: similarity that brings the nodes to world units, [4, 4].
        bound_pct: largest 99th percentile of the vertices' distance to the animation, in percent of the diagonal of its box.

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
    target = animation.vertices.astype(np.float64) - offset
    joints, weights, rotations, translations = decompose(base.astype(np.float64), target, graph, centres)
    distance = np.linalg.norm(skin(base.astype(np.float64), joints, weights, centres, rotations, translations) - target, axis=2)
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
    _add_joints(document, centres, offset, times, rotations, centres + translations)
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


def _add_joints(document: Document, centres: np.ndarray, offset: np.ndarray, times: np.ndarray, rotations: np.ndarray, positions: np.ndarray) -> None:
    """Node 0 is the mesh, node 1 the root of the joints, node 2 + k joint k; the offset from the world's origin sits in node 1."""
    m = len(centres)
    inverse_bind = np.tile(np.eye(4, dtype=np.float32), (m, 1, 1))
    inverse_bind[:, 3, :3] = -centres  # column-major: the translation is the last row here
    root = {"name": "graph", "children": list(range(2, 2 + m))} | ({"translation": offset.tolist()} if offset.any() else {})
    nodes = [{"name": f"node_{k:04d}", "translation": centres[k].tolist()} for k in range(m)]
    document.json |= {
        "skins": [{"joints": list(range(2, 2 + m)), "skeleton": 1, "inverseBindMatrices": document.add(inverse_bind)}],
        "nodes": [{"name": "animated_mesh", "mesh": 0, "skin": 0}, root, *nodes],
        "scenes": [{"nodes": [0, 1]}],
        "scene": 0,
    }
    quaternions = Rotation.from_matrix(rotations.reshape(-1, 3, 3)).as_quat().reshape(len(times), m, 4)
    for i in range(1, len(times)):  # the short way between frames
        quaternions[i] *= np.where((quaternions[i] * quaternions[i - 1]).sum(1, keepdims=True) < 0, -1, 1)
    key_times = document.add(times, bounds=True)
    samplers, channels = [], []
    for k in range(m):
        for name, values in (("translation", positions[:, k]), ("rotation", quaternions[:, k])):
            channels.append({"sampler": len(samplers), "target": {"node": 2 + k, "path": name}})
            samplers.append({"input": key_times, "output": document.add(values.astype(np.float32)), "interpolation": "LINEAR"})
    document.json["animations"] = [{"name": "frames", "samplers": samplers, "channels": channels}]
