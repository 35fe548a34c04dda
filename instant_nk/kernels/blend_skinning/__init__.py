"""Blend skinning: points carried by the weighted rigid motion of their K anchor nodes, and the way back.

x_live = sum_k w_k (R_k (x - g_k) + g_k + t_k). Anchors are the nodes that may move a point; the weights are compact,
w_k ~ max(1 - (|x - g_k| / r_k)^2, 0)^3, and smooth. First-order differentiable in points, weights, rotations and
translations, `inverse` in live points, rotations and translations (implicit function theorem); a second derivative is
refused. Node positions and radii are constants of the graph: where they require a gradient, the reference serves.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from instant_nk.kernels import _backend, _checks
from instant_nk.kernels.ahead import Call
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
    compiled = _compiled(points, weights, rotations, translations, constants=(node_positions,))
    if compiled is None:
        return reference.blend(points, anchors, weights, node_positions, rotations, translations, frame_index)
    return _Blend.apply(points, weights, rotations, translations, anchors, node_positions, None, frame_index, False, compiled)[0]


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
    compiled = _compiled(points, rotations, translations, constants=(node_positions, node_radii))
    if compiled is None:
        return reference.blend_with_jacobian(points, anchors, node_positions, node_radii, rotations, translations, frame_index)
    return _Blend.apply(points, None, rotations, translations, anchors, node_positions, node_radii, frame_index, True, compiled)


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
    compiled = _compiled(live, guess, rotations, translations, constants=(node_positions.detach(), node_radii.detach()))
    graph = (anchors, node_positions, node_radii, frame_index)
    return _Inverse.apply(live, rotations, translations, guess, *graph, iterations, tolerance, compiled)


def rehearsals(knn: int, device: str) -> list[Call]:
    """One launch, on a single point, of each Triton kernel behind an inverse that is differentiated in the motion: see `kernels.ahead`."""
    point, rotations = torch.zeros(1, 3, device=device), torch.eye(3, device=device).expand(1, 1, 3, 3)
    graph = torch.zeros(1, knn, dtype=torch.int64, device=device), point, torch.ones(1, device=device)  # anchors, nodes, radii
    motion = rotations, point[None], torch.zeros(1, dtype=torch.int64, device=device)

    def newton() -> None:
        from instant_nk.kernels.blend_skinning import triton as ops

        ops.newton(point, point, *graph, *motion, 1, 1e-5)

    def blend() -> None:
        from instant_nk.kernels.blend_skinning import triton as ops

        ops.blend(point, graph[0], None, *graph[1:], *motion, True)

    def gradient() -> None:
        from instant_nk.kernels.blend_skinning import triton as ops

        ops.blend_grad(point, graph[0], None, *graph[1:], *motion, point, None, True)

    return [newton, blend, gradient]


def _compiled(*tensors: Tensor, constants: tuple[Tensor, ...]) -> ModuleType | None:
    """The backend's module of forwards and gradients; None for the reference, which leaves the gradients to autograd."""
    if any(t.requires_grad for t in constants):
        return None
    backend = _backend.choose(OP, *tensors, *constants)
    if backend == "triton":
        from instant_nk.kernels.blend_skinning import triton as module
    elif backend == "numba":
        from instant_nk.kernels.blend_skinning import cpu as module
    else:
        module = None
    return module


class _Blend(Function):
    """Points under given weights, or under the weights that follow from the radii, with the Jacobian on demand."""

    @staticmethod
    def forward(ctx: Any, points, weights, rotations, translations, anchors, nodes, radii, frames, with_jacobian, ops):
        ctx.save_for_backward(points, weights, rotations, translations, anchors, nodes, radii, frames)
        ctx.ops = ops
        ctx.set_materialize_grads(False)
        return ops.blend(points, anchors, weights, nodes, radii, rotations, translations, frames, with_jacobian)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_live: Tensor | None, grad_jacobian: Tensor | None):
        points, weights, rotations, translations, anchors, nodes, radii, frames = ctx.saved_tensors
        grad_live = torch.zeros_like(points) if grad_live is None else grad_live
        motion = ctx.needs_input_grad[2] or ctx.needs_input_grad[3]
        gradients = ctx.ops.blend_grad(points, anchors, weights, nodes, radii, rotations, translations, frames, grad_live, grad_jacobian, motion)
        return *gradients, *(None,) * 6


class _Inverse(Function):
    """Newton forwards; backwards the implicit function theorem: dx = J^-1 (d live - d blend at fixed x)."""

    @staticmethod
    def forward(ctx: Any, live, rotations, translations, guess, anchors, nodes, radii, frames, iterations, tolerance, ops):
        newton = reference.newton if ops is None else ops.newton
        canonical, converged = newton(live, guess, anchors, nodes, radii, rotations, translations, frames, iterations, tolerance)
        ctx.save_for_backward(canonical, converged, rotations, translations, anchors, nodes, radii, frames)
        ctx.mark_non_differentiable(converged)
        return canonical, converged

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Tensor):
        canonical, converged, rotations, translations, anchors, nodes, radii, frames = ctx.saved_tensors
        with torch.enable_grad():
            motion = [t.detach().requires_grad_(needed) for t, needed in zip((rotations, translations), ctx.needs_input_grad[1:3], strict=True)]
            live, jacobian = blend_with_jacobian(canonical, anchors, nodes, radii, *motion, frames)
            to_live = torch.where(converged[:, None], reference.solve_step(jacobian.detach().transpose(1, 2), gradient), 0.0)
            moving = [t for t in motion if t.requires_grad]
            to_moving = iter(torch.autograd.grad(live, moving, -to_live)) if moving else iter(())
        return to_live, *(next(to_moving) if t.requires_grad else None for t in motion), *(None,) * 8


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
