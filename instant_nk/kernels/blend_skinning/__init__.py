"""Blend skinning: points carried by the weighted rigid motion of their K anchor nodes, and the way back.

x_live = sum_k w_k (R_k (x - g_k) + g_k + t_k). Anchors are the nodes that may move a point; the weights are compact,
w_k ~ max(1 - (|x - g_k| / r_k)^2, 0)^3, and smooth. Forward ops are first-order differentiable in every float argument;
`inverse` in the live point, the rotations and the translations (implicit function theorem), and it refuses a second derivative.
"""

from __future__ import annotations

from torch import Tensor

from instant_nk.kernels import _checks
from instant_nk.kernels.blend_skinning import reference

OP = "blend_skinning"


def skinning_weights(points: Tensor, anchors: Tensor, node_positions: Tensor, node_radii: Tensor) -> Tensor:
    """Influence of each anchor on each canonical point; rows sum to 1.

    A point outside the radius of all its anchors follows the nearest one alone.

    Args:
        points: canonical space. Float [points, 3].
        anchors: node indices. Int64 [points, knn].
        node_positions: canonical space. Float [nodes, 3].
        node_radii: reach of each node, scene units. Float [nodes].

    Returns:
        Float [points, knn].
    """
    _check_graph(points, "points", anchors, node_positions, node_radii)
    return reference.skinning_weights(points, anchors, node_positions, node_radii)


def blend(points: Tensor, anchors: Tensor, weights: Tensor, node_positions: Tensor, rotations: Tensor, translations: Tensor, frame_index: Tensor) -> Tensor:
    """Live position of canonical points under given skinning weights.

    Args:
        points: canonical space. Float [points, 3].
        anchors: node indices. Int64 [points, knn].
        weights: rows sum to 1. Float [points, knn].
        node_positions: canonical space. Float [nodes, 3].
        rotations: motion of the nodes. Float [frames, nodes, 3, 3].
        translations: Float [frames, nodes, 3].
        frame_index: row of `rotations` for each point. Int64 [points].

    Returns:
        Live space, Float [points, 3].
    """
    _check_graph(points, "points", anchors, node_positions, None)
    _checks.tensor(OP, "weights", weights, tuple(anchors.shape), like=points)
    _check_motion(points, node_positions, rotations, translations, frame_index)
    return reference.blend(points, anchors, weights, node_positions, rotations, translations, frame_index)


def blend_with_jacobian(
    points: Tensor, anchors: Tensor, node_positions: Tensor, node_radii: Tensor, rotations: Tensor, translations: Tensor, frame_index: Tensor
) -> tuple[Tensor, Tensor]:
    """Live position of canonical points and its derivative d live / d canonical, the change of the weights included.

    Args: as `skinning_weights` and `blend`.

    Returns:
        live [points, 3] and jacobian [points, 3 (live), 3 (canonical)].
    """
    _check_graph(points, "points", anchors, node_positions, node_radii)
    _check_motion(points, node_positions, rotations, translations, frame_index)
    return reference.blend_with_jacobian(points, anchors, node_positions, node_radii, rotations, translations, frame_index)


def inverse(
    live: Tensor,
    guess: Tensor,
    anchors: Tensor,
    node_positions: Tensor,
    node_radii: Tensor,
    rotations: Tensor,
    translations: Tensor,
    frame_index: Tensor,
    iterations: int = 8,
    tolerance: float = 1e-5,
) -> tuple[Tensor, Tensor]:
    """Canonical point that the blend carries to each live point: damped Newton with fixed anchors from `guess`.

    Args:
        live: live space. Float [points, 3].
        guess: first canonical estimate, e.g. the nearest node's inverse motion. Float [points, 3]; carries no gradient.
        anchors: nodes of the guess's neighbourhood, kept throughout. Int64 [points, knn].
        node_positions, node_radii, rotations, translations, frame_index: as above.
        iterations: most Newton steps per point.
        tolerance: accepted distance |blend(canonical) - live|, scene units.

    Returns:
        canonical [points, 3], the best point found, and converged bool [points]. Where not converged the gradient is zero.
    """
    _check_graph(live, "live", anchors, node_positions, node_radii)
    _checks.tensor(OP, "guess", guess, tuple(live.shape), like=live)
    _check_motion(live, node_positions, rotations, translations, frame_index)
    return reference.inverse(live, guess, anchors, node_positions, node_radii, rotations, translations, frame_index, iterations, tolerance)


def _check_graph(points: Tensor, name: str, anchors: Tensor, node_positions: Tensor, node_radii: Tensor | None) -> None:
    _checks.tensor(OP, name, points, ("points", 3))
    _checks.tensor(OP, "anchors", anchors, (points.shape[0], "knn"), _checks.INTEGERS, like=points)
    _checks.tensor(OP, "node_positions", node_positions, ("nodes", 3), like=points)
    if node_radii is not None:
        _checks.tensor(OP, "node_radii", node_radii, (node_positions.shape[0],), like=points)


def _check_motion(points: Tensor, node_positions: Tensor, rotations: Tensor, translations: Tensor, frame_index: Tensor) -> None:
    nodes = node_positions.shape[0]
    _checks.tensor(OP, "rotations", rotations, ("frames", nodes, 3, 3), like=points)
    _checks.tensor(OP, "translations", translations, (rotations.shape[0], nodes, 3), like=points)
    _checks.tensor(OP, "frame_index", frame_index, (points.shape[0],), _checks.INTEGERS, like=points)
