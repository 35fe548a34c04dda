"""Blend skinning in plain torch: the definition of correct."""

from __future__ import annotations

import torch
from torch import Tensor

LEAST_DETERMINANT = 1e-3  # of the Jacobian in a Newton step; the blend of rotations has 1 where it does not fold
LEAST_STEP = 1 / 64  # a Newton step damped further than this has met a fold: more halving does not help


def skinning_weights(points: Tensor, anchors: Tensor, node_positions: Tensor, node_radii: Tensor) -> Tensor:
    """w_k = s_k / sum_j s_j with s_k = max(1 - (|x - g_k| / r_k)^2, 0)^3; nearest anchor alone where all s_k are 0."""
    return _weights_and_slopes(points, anchors, node_positions, node_radii)[0]


def blend(points: Tensor, anchors: Tensor, weights: Tensor, node_positions: Tensor, rotations: Tensor, translations: Tensor, frame_index: Tensor) -> Tensor:
    """sum_k w_k (R_k (x - g_k) + g_k + t_k)."""
    _, carried = _carry(points, anchors, node_positions, rotations, translations, frame_index)
    return (weights[..., None] * carried).sum(1)


def blend_with_jacobian(
    points: Tensor, anchors: Tensor, node_positions: Tensor, node_radii: Tensor, rotations: Tensor, translations: Tensor, frame_index: Tensor
) -> tuple[Tensor, Tensor]:
    """Live points y = sum_k w_k y_k and dy/dx = sum_k w_k R_k + sum_k y_k (dw_k/dx)^T, with y_k the point carried by node k."""
    weights, slopes = _weights_and_slopes(points, anchors, node_positions, node_radii)
    rotation, carried = _carry(points, anchors, node_positions, rotations, translations, frame_index)
    live = (weights[..., None] * carried).sum(1)
    turned = (weights[..., None] * rotation.flatten(2)).sum(1).view(-1, 3, 3)
    return live, turned + (carried - live[:, None]).transpose(1, 2) @ slopes


def newton(
    live: Tensor, guess: Tensor, anchors: Tensor, node_positions: Tensor, node_radii: Tensor, rotations: Tensor, translations: Tensor,
    frame_index: Tensor, iterations: int, tolerance: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """x with blend(x) = live: damped Newton on the points still open.

    A step that does not lower the residual is halved, a good one doubles the next.

    Returns:
        The best point found for each live point, and whether its residual is within tolerance.
    """
    canonical = guess.detach().clone()
    error = torch.full_like(live[:, 0], torch.inf)
    open_ = torch.arange(len(live), device=live.device)
    start, step = canonical.clone(), torch.zeros_like(canonical)
    damping = torch.ones_like(error)
    for remaining in range(iterations, -1, -1):
        trial = start + damping[:, None] * step
        at, jacobian = blend_with_jacobian(trial, anchors[open_], node_positions, node_radii, rotations, translations, frame_index[open_])
        off = live[open_] - at
        distance = off.norm(dim=1)
        better = distance < error[open_]
        canonical[open_[better]], error[open_[better]] = trial[better], distance[better]
        going = ~(error[open_] <= tolerance) & (damping > LEAST_STEP)
        if remaining == 0 or not bool(going.any()):
            break
        start = torch.where(better[:, None], trial, start)[going]
        step = torch.where(better[:, None], solve_step(jacobian, off), step)[going]
        damping = torch.where(better, (2 * damping).clamp(max=1), 0.5 * damping)[going]
        open_ = open_[going]
    return canonical, error <= tolerance


def solve_step(matrix: Tensor, right: Tensor) -> Tensor:
    """matrix^-1 right for [N, 3, 3] by cross products; the determinant is held away from zero, so that steps stay finite."""
    a, b, c = matrix.unbind(2)
    bc = torch.linalg.cross(b, c)
    determinant = (a * bc).sum(1)
    held = torch.where(determinant < 0, -LEAST_DETERMINANT, LEAST_DETERMINANT).to(determinant)
    determinant = torch.where(determinant.abs() < LEAST_DETERMINANT, held, determinant)
    x = (right * bc).sum(1)
    y = (right * torch.linalg.cross(c, a)).sum(1)
    z = (right * torch.linalg.cross(a, b)).sum(1)
    return torch.stack([x, y, z], 1) / determinant[:, None]


def _weights_and_slopes(points: Tensor, anchors: Tensor, node_positions: Tensor, node_radii: Tensor) -> tuple[Tensor, Tensor]:
    """Weights [points, knn], and ds_k/dx / sum_j s_j [points, knn, 3]: what the Jacobian needs of their derivative.

    With dw_k/dx = (ds_k/dx - w_k sum_j ds_j/dx) / sum_j s_j, sum_k y_k dw_k/dx = sum_k (y_k - y) ds_k/dx / sum_j s_j.
    """
    away = points[:, None] - node_positions[anchors]
    squared = (away * away).sum(2)
    inverse_radius = 1 / node_radii[anchors] ** 2
    inside = (1 - squared * inverse_radius).clamp(min=0)
    strength = inside**3
    total = strength.sum(1, keepdim=True)
    # A total below the smallest normal number would overflow when divided by; such a point is outside for all purposes.
    reached = total > torch.finfo(total.dtype).tiny
    total = torch.where(reached, total, 1.0)
    nearest = torch.nn.functional.one_hot(squared.argmin(1), squared.shape[1]).to(strength) if squared.shape[0] else strength
    weights = torch.where(reached, strength / total, nearest)
    slopes = torch.where(reached, -6 * inside**2 * inverse_radius / total, 0.0)[..., None] * away
    return weights, slopes


def _carry(points: Tensor, anchors: Tensor, node_positions: Tensor, rotations: Tensor, translations: Tensor, frame_index: Tensor) -> tuple[Tensor, Tensor]:
    """Rotation of each anchor [points, knn, 3, 3] and the point as that anchor alone would carry it [points, knn, 3]."""
    nodes = node_positions.shape[0]
    at_frame = frame_index[:, None] * nodes + anchors
    rotation = rotations.flatten(0, 1)[at_frame]
    position = node_positions[anchors]
    away = points[:, None] - position
    carried = (rotation @ away[..., None])[..., 0] + position + translations.flatten(0, 1)[at_frame]
    return rotation, carried
