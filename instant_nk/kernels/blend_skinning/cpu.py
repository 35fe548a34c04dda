"""Blend skinning and its inverse as compiled CPU loops (numba), float32; `reference.py` is the definition."""

from __future__ import annotations

import numpy as np
import torch
from numba import njit
from torch import Tensor

from instant_nk.kernels._loop import loop
from instant_nk.kernels._threads import over_rows
from instant_nk.kernels.blend_skinning.reference import LEAST_DETERMINANT, LEAST_STEP

ONE = np.float32(1)
TINY = np.finfo(np.float32).tiny


@njit(inline="always")
def _weigh(x, anchors, nodes, radii, w, d, q):
    """Weights w_k, d_k = ds_k/dx / S and q_k = max(1 - |x - g_k|^2/r_k^2, 0) of one point; returns S (0 when out of reach)."""
    total, nearest, least = np.float32(0), 0, np.float32(np.inf)
    for k in range(len(anchors)):
        node = anchors[k]
        squared = np.float32(0)
        for a in range(3):
            away = x[a] - nodes[node, a]
            squared += away * away
        if squared < least:
            nearest, least = k, squared
        q[k] = max(ONE - squared / (radii[node] * radii[node]), np.float32(0))
        w[k] = q[k] * q[k] * q[k]
        total += w[k]
    reached = total > TINY
    for k in range(len(anchors)):
        node = anchors[k]
        w[k] = w[k] / total if reached else np.float32(k == nearest)
        factor = np.float32(-6) * q[k] * q[k] / (radii[node] * radii[node] * total) if reached else np.float32(0)
        for a in range(3):
            d[k, a] = factor * (x[a] - nodes[node, a])
    return total if reached else np.float32(0)


@njit(inline="always")
def _carry(x, anchors, nodes, rotation, translation, w, y_k, y):
    """The point as each anchor alone carries it, y_k, and their blend y."""
    for a in range(3):
        y[a] = 0
    for k in range(len(anchors)):
        node = anchors[k]
        for a in range(3):
            carried = nodes[node, a] + translation[node, a]
            for b in range(3):
                carried += rotation[node, a, b] * (x[b] - nodes[node, b])
            y_k[k, a] = carried
            y[a] += w[k] * carried


@njit(inline="always")
def _jacobian(anchors, rotation, w, d, y_k, y, jacobian):
    for a in range(3):
        for b in range(3):
            total = np.float32(0)
            for k in range(len(anchors)):
                total += w[k] * rotation[anchors[k], a, b] + (y_k[k, a] - y[a]) * d[k, b]
            jacobian[a, b] = total


@njit(inline="always")
def _solve(m, r, out):
    """out = m^-1 r with the determinant held away from zero."""
    c00, c01, c02 = m[1, 1] * m[2, 2] - m[1, 2] * m[2, 1], m[0, 2] * m[2, 1] - m[0, 1] * m[2, 2], m[0, 1] * m[1, 2] - m[0, 2] * m[1, 1]
    c10, c11, c12 = m[1, 2] * m[2, 0] - m[1, 0] * m[2, 2], m[0, 0] * m[2, 2] - m[0, 2] * m[2, 0], m[0, 2] * m[1, 0] - m[0, 0] * m[1, 2]
    c20, c21, c22 = m[1, 0] * m[2, 1] - m[1, 1] * m[2, 0], m[0, 1] * m[2, 0] - m[0, 0] * m[2, 1], m[0, 0] * m[1, 1] - m[0, 1] * m[1, 0]
    determinant = m[0, 0] * c00 + m[0, 1] * c10 + m[0, 2] * c20
    if abs(determinant) < LEAST_DETERMINANT:
        determinant = -np.float32(LEAST_DETERMINANT) if determinant < 0 else np.float32(LEAST_DETERMINANT)
    out[0] = (c00 * r[0] + c01 * r[1] + c02 * r[2]) / determinant
    out[1] = (c10 * r[0] + c11 * r[1] + c12 * r[2]) / determinant
    out[2] = (c20 * r[0] + c21 * r[1] + c22 * r[2]) / determinant


@loop()
def _blend(first, last, points, anchors, nodes, radii, rotations, translations, frames, weights, live, jacobians, given, with_jacobian):
    """Live points; the weights are read when `given`, else written. Jacobians on demand."""
    knn = anchors.shape[1]
    d, q, y_k = np.empty((knn, 3), np.float32), np.empty(knn, np.float32), np.empty((knn, 3), np.float32)
    for n in range(first, last):
        if not given:
            _weigh(points[n], anchors[n], nodes, radii, weights[n], d, q)
        _carry(points[n], anchors[n], nodes, rotations[frames[n]], translations[frames[n]], weights[n], y_k, live[n])
        if with_jacobian:
            _jacobian(anchors[n], rotations[frames[n]], weights[n], d, y_k, live[n], jacobians[n])


@loop()
def _newton(first, last, live, guess, anchors, nodes, radii, rotations, translations, frames, iterations, tolerance, canonical, converged):
    knn = anchors.shape[1]
    w, d, q, y_k = np.empty(knn, np.float32), np.empty((knn, 3), np.float32), np.empty(knn, np.float32), np.empty((knn, 3), np.float32)
    y, off, step, jacobian = np.empty(3, np.float32), np.empty(3, np.float32), np.zeros(3, np.float32), np.empty((3, 3), np.float32)
    start, trial = np.empty(3, np.float32), np.empty(3, np.float32)
    for n in range(first, last):
        rotation, translation = rotations[frames[n]], translations[frames[n]]
        best, damping = np.float32(np.inf), ONE
        for a in range(3):
            start[a], step[a], canonical[n, a] = guess[n, a], np.float32(0), guess[n, a]
        for _ in range(iterations + 1):
            for a in range(3):
                trial[a] = start[a] + damping * step[a]
            _weigh(trial, anchors[n], nodes, radii, w, d, q)
            _carry(trial, anchors[n], nodes, rotation, translation, w, y_k, y)
            squared = np.float32(0)
            for a in range(3):
                off[a] = live[n, a] - y[a]
                squared += off[a] * off[a]
            distance = np.sqrt(squared)
            better = distance < best
            if better:
                best = distance
                for a in range(3):
                    canonical[n, a] = trial[a]
            if best <= tolerance or damping <= LEAST_STEP:
                break
            if better:
                _jacobian(anchors[n], rotation, w, d, y_k, y, jacobian)
                _solve(jacobian, off, step)
                for a in range(3):
                    start[a] = trial[a]
                damping = min(np.float32(2) * damping, ONE)
            else:
                damping *= np.float32(0.5)
        converged[n] = best <= tolerance


@loop()
def _grad(points, anchors, nodes, radii, rotations, translations, frames, weights, given, g_live, g_jacobian, with_jacobian,
          to_points, to_weights, to_rotations, to_translations, motion):  # fmt: skip
    """Gradients of <g_live, y> + <g_jacobian, J>; to the weights when they are given, through them to the points when not."""
    n_points, knn = anchors.shape
    d, q, y_k, w = np.zeros((knn, 3), np.float32), np.empty(knn, np.float32), np.empty((knn, 3), np.float32), np.empty(knn, np.float32)
    y, along, spread = np.empty(3, np.float32), np.empty(3, np.float32), np.empty(3, np.float32)
    up, to_slope = np.empty(3, np.float32), np.empty(3, np.float32)
    for n in range(n_points):
        x, ids, frame, g, gj = points[n], anchors[n], frames[n], g_live[n], g_jacobian[n if with_jacobian else 0]
        rotation, translation = rotations[frame], translations[frame]
        if given:
            w[:] = weights[n]
            total = np.float32(0)
        else:
            total = _weigh(x, ids, nodes, radii, w, d, q)
        _carry(x, ids, nodes, rotation, translation, w, y_k, y)
        for a in range(3):
            along[a] = 0  # sum_k d_k
            for k in range(knn):
                along[a] += d[k, a]
        for a in range(3):
            spread[a] = g[a]  # cotangent of y: g - gJ sum_k d_k
            if with_jacobian:
                for b in range(3):
                    spread[a] -= gj[a, b] * along[b]
            to_points[n, a] = 0
        for k in range(knn):
            node = ids[k]
            to_weight, slope_dot = np.float32(0), np.float32(0)
            for a in range(3):
                up[a] = w[k] * spread[a]  # cotangent of y_k
                to_weight += spread[a] * y_k[k, a]
                to_slope[a] = 0  # cotangent of d_k: gJ^T (y_k - y)
                if with_jacobian:
                    for b in range(3):
                        up[a] += gj[a, b] * d[k, b]
                        to_weight += gj[a, b] * rotation[node, a, b]
                        to_slope[a] += gj[b, a] * (y_k[k, b] - y[b])
            if given:
                to_weights[n, k] = to_weight
            for a in range(3):
                for b in range(3):
                    to_points[n, b] += rotation[node, a, b] * up[a]
            if motion:
                for a in range(3):
                    to_translations[frame, node, a] += up[a]
                    for b in range(3):
                        to_rotations[frame, node, a, b] += up[a] * (x[b] - nodes[node, b])
                        if with_jacobian:
                            to_rotations[frame, node, a, b] += w[k] * gj[a, b]
            if total > 0:
                inverse_square = ONE / (radii[node] * radii[node])
                reach = np.float32(0)
                for a in range(3):
                    slope_dot += d[k, a] * to_slope[a]
                    reach += (x[a] - nodes[node, a]) * to_slope[a]
                for a in range(3):
                    away = x[a] - nodes[node, a]
                    curve = np.float32(-6) * q[k] * q[k] * inverse_square * to_slope[a] + np.float32(24) * q[k] * inverse_square * inverse_square * away * reach
                    to_points[n, a] += to_weight * (d[k, a] - w[k] * along[a]) + curve / total - along[a] * slope_dot


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().contiguous().numpy()


def _arrays(*tensors: Tensor) -> tuple[np.ndarray, ...]:
    return tuple(_array(t) for t in tensors)


def blend(
    points: Tensor, anchors: Tensor, weights: Tensor | None, nodes: Tensor, radii: Tensor | None, rotations: Tensor, translations: Tensor,
    frames: Tensor, with_jacobian: bool,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Live points and, on demand, Jacobians; with `weights` None they follow from `radii`."""
    n, given = len(points), weights is not None
    live, jacobians = torch.empty(n, 3), torch.empty(n if with_jacobian else 0, 3, 3)
    weights = weights if given else torch.empty(anchors.shape)
    radii = radii if radii is not None else torch.empty(0)
    arrays = *_arrays(points, anchors, nodes, radii, rotations, translations, frames, weights), live.numpy(), jacobians.numpy()
    over_rows(n, lambda a, b: _blend(a, b, *arrays, given, with_jacobian))
    return live, jacobians if with_jacobian else None


def blend_grad(
    points: Tensor, anchors: Tensor, weights: Tensor | None, nodes: Tensor, radii: Tensor | None, rotations: Tensor, translations: Tensor,
    frames: Tensor, grad_live: Tensor, grad_jacobian: Tensor | None, motion: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:  # fmt: skip
    """Gradients to points, weights (None unless given), rotations and translations (None unless `motion`)."""
    given = weights is not None
    to_points, to_weights = torch.empty(len(points), 3), torch.empty(anchors.shape if given else (0, 0))
    to_rotations, to_translations = (torch.zeros(t.shape if motion else (0,) * t.dim()) for t in (rotations, translations))
    weights = weights if given else torch.empty(0, 0)
    radii = radii if radii is not None else torch.empty(0)
    with_jacobian = grad_jacobian is not None
    grad_jacobian = grad_jacobian if with_jacobian else torch.zeros(1, 3, 3)
    _grad(
        *_arrays(points, anchors, nodes, radii, rotations, translations, frames, weights), given, *_arrays(grad_live, grad_jacobian), with_jacobian,
        to_points.numpy(), to_weights.numpy(), to_rotations.numpy(), to_translations.numpy(), motion,
    )  # fmt: skip
    return to_points, to_weights if given else None, to_rotations if motion else None, to_translations if motion else None


def newton(
    live: Tensor, guess: Tensor, anchors: Tensor, nodes: Tensor, radii: Tensor, rotations: Tensor, translations: Tensor, frames: Tensor,
    iterations: int, tolerance: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """As `reference.newton`."""
    canonical, converged = torch.empty(len(live), 3), torch.empty(len(live), dtype=torch.bool)
    arrays = _arrays(live, guess, anchors, nodes, radii, rotations, translations, frames)
    over_rows(len(live), lambda a, b: _newton(a, b, *arrays, iterations, np.float32(tolerance), canonical.numpy(), converged.numpy()))
    return canonical, converged
