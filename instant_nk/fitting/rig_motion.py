"""Motion of graph nodes from a rig: what the rig's surface does where a node lies is what the node does; optionally refined by the solver."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from instant_nk.errors import DataError
from instant_nk.fitting import lost_parts
from instant_nk.fitting.correspondences import Target
from instant_nk.fitting.deformation_solver import Body, Pose
from instant_nk.fitting.registration import Fit, Options, Pictures, disagreement, judge, register_from, register_near
from instant_nk.geometry import surface
from instant_nk.io.ed_folder import NodeMotion
from instant_nk.io.rig import Rig

SAMPLES = 30000  # places of the rig's surface among which a node's is chosen
NORMAL_LENGTH = 0.05  # of the rig's diagonal: what a difference of one between unit normals counts, so that a hand on a hip stays a hand
FAR = 0.1  # of the diagonal: a rig whose surface is this far from the nodes is elsewhere, in another pose or in another unit


def node_motion(rig: Rig, canonical_frame: int, nodes: np.ndarray, normals: np.ndarray) -> NodeMotion:
    """Motion of nodes that hang on a rig's surface.

    Args:
        rig: must hold the canonical frame too.
        nodes: canonical positions, world units, f64 [M, 3]; normals: of the canonical surface there, [M, 3].

    Returns:
        `[A|t]` of every node at every frame of the rig; the identity at the canonical frame.

    Raises:
        DataError: the rig's surface at the canonical frame is not where the nodes are.
    """
    face, bary = _bind(rig, rig.posed(canonical_frame), nodes, normals)
    corner = rig.faces[face]
    weights = sum(rig.weights[corner[:, c]].multiply(bary[:, c : c + 1]) for c in range(3)).tocsr()
    matrices = np.stack([(weights @ m.reshape(-1, 16)).reshape(-1, 4, 4) for m in rig.matrices])
    rest = rig.frames.index(canonical_frame)
    back = np.linalg.inv(matrices[rest])
    if rig.offsets is not None:
        offsets = (rig.offsets[:, corner] * bary[None, :, :, None]).sum(2)
        back = np.tile(back, (len(matrices), 1, 1, 1))
        back[..., :3, 3] += offsets - offsets[rest]
    return NodeMotion(nodes, rig.frames, (matrices @ back)[..., :3, :])


def _bind(rig: Rig, posed: np.ndarray, nodes: np.ndarray, normals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Face [M] and barycentric coordinates [M, 3] of the rig's surface nearest to each node among places that face the same way."""
    from scipy.spatial import cKDTree

    face, bary = surface.sample(posed, rig.faces, SAMPLES)
    points = surface.blend(posed, rig.faces[face], bary)
    facing = surface.face_normals(posed, rig.faces)[face]
    diagonal = float(np.linalg.norm(np.ptp(posed, axis=0)))
    length = NORMAL_LENGTH * diagonal
    pick = cKDTree(np.concatenate([points, length * facing], 1)).query(np.concatenate([nodes, length * normals], 1))[1]
    away = float(np.median(np.linalg.norm(points[pick] - nodes, axis=1)))
    if away > FAR * diagonal:
        low, high, own = nodes.min(0), nodes.max(0), np.stack([posed.min(0), posed.max(0)])
        raise DataError(
            f"registration.folder: at the canonical frame the rig's surface is {away:.4g} from the canonical surface (median), {away / diagonal:.0%} of its diagonal: "
            f"the rig spans {own.round(3).tolist()}, the nodes {[low.round(3).tolist(), high.round(3).tolist()]}. It must be in the capture's world "
            "coordinates and unit; rig_fps and rig_first_frame must say which frame is which."
        )
    return face[pick], bary[pick]


def refine(
    body: Body,
    poses: dict[int, Pose],
    canonical_frame: int,
    observe: Callable[[int], Target],
    options: Options,
    pictures: Callable[[int], Pictures] | None = None,
    known: dict[int, Fit] | None = None,
    done: Callable[[dict[int, Fit]], None] | None = None,
) -> dict[int, Fit]:
    """Register every frame from the pose given for it; frames do not depend on one another.

    Args:
        poses: given pose of each frame.
        canonical_frame: stays at rest, as for `register_sequence`.
        observe, pictures, known, done: as for `register_sequence`.

    Returns:
        fits by frame. Where the solver finds nothing that agrees better with the observation, the given pose is kept.
    """
    fits = dict(known or {})
    for frame, given in poses.items():
        if frame in fits:
            continue
        if frame == canonical_frame:
            fits[frame] = lost_parts.judged(body, Pose.identity(body), observe(frame))
            continue
        target, seen = observe(frame), pictures(frame) if pictures else None
        fit = register_near(body, given, target, options, seen)
        if not fit.converged:
            again = register_from(body, [given], target, options, seen)
            with torch.no_grad():
                candidates = [again, fit, judge(body, given, target)] if not again.converged else [again]
            fit = min(candidates, key=lambda f: disagreement(body, f.pose, target))
        fits[frame] = replace(fit, contradicted=lost_parts.contradiction(body, fit.pose, target))
        if done:
            done(fits)
    return fits
