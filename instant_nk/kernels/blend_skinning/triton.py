"""Blend skinning and its inverse in Triton: one lane a point, a loop over its anchors. `reference.py` is the definition.

What a node does to points near it is packed in a row of 16 floats per frame and node: R (9), g + t (3), g (3), 1 / r^2. Sums over
anchors run once, unnormalised, over displacements u_k = y_k - y_0 from where the nearest anchor alone would carry the point: with
S = sum s_k, G = sum ds_k/dx and u = sum s_k u_k / S, y = y_0 + u and J = (sum s_k R_k + sum u_k ds_k^T - u G^T) / S. At the rim of the
last node's reach ds_k / S has no bound, but the u_k it multiplies are then exactly 0.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from instant_nk.kernels import _backend
from instant_nk.kernels._triton_memory import launched, load3, load_pair, store3, vector_atomics
from instant_nk.kernels.blend_skinning.reference import LEAST_DETERMINANT, LEAST_STEP

POINTS = 128  # per program
COPIES = 16  # of the motion's gradient at most, that take turns at receiving additions,
COPIED_ROWS = 1 << 17  # as long as there are no more rows than this
TINY = tl.constexpr(torch.finfo(torch.float32).tiny)
FLOOR = tl.constexpr(LEAST_DETERMINANT)
HALVED = tl.constexpr(LEAST_STEP)


@triton.jit
def _load_node(nodes, row, live):
    """R (9), g + t (3), g (3), 1 / r^2 of one row."""
    at = row * 16
    a, b = load_pair(nodes, at, live)
    c, d = load_pair(nodes, at + 2, live)
    e, f = load_pair(nodes, at + 4, live)
    g, h = load_pair(nodes, at + 6, live)
    i, j = load_pair(nodes, at + 8, live)
    k, m = load_pair(nodes, at + 10, live)
    n, o = load_pair(nodes, at + 12, live)
    p, q = load_pair(nodes, at + 14, live)
    return a, b, c, d, e, f, g, h, i, j, k, m, n, o, p, q


@triton.jit
def _moved(x0, x1, x2, a0, a1, a2, r00, r01, r02, r10, r11, r12, r20, r21, r22, h0, h1, h2):
    """Displacement u_k = R_k (x - g_k) + g_k + t_k - x of a point by one node, with a = x - g_k and h = g_k + t_k."""
    u0 = r00 * a0 + r01 * a1 + r02 * a2 + (h0 - x0)
    u1 = r10 * a0 + r11 * a1 + r12 * a2 + (h1 - x1)
    u2 = r20 * a0 + r21 * a1 + r22 * a2 + (h2 - x2)
    return u0, u1, u2


@triton.jit
def _evaluate(x0, x1, x2, anchors, first, base, nodes, live, KNN: tl.constexpr):
    """Blend of one point per lane under the weights of the radii.

    Returns the displacement (3), the Jacobian (9), S (0 out of reach), G / S (3) and the nearest anchor's number.
    """
    zero = x0 * 0
    total, least, nearest = zero, zero + float("inf"), zero.to(tl.int32)
    u0, u1, u2, g0, g1, g2 = zero, zero, zero, zero, zero, zero
    j00, j01, j02, j10, j11, j12, j20, j21, j22 = zero, zero, zero, zero, zero, zero, zero, zero, zero
    for k in range(KNN):
        row = base + tl.load(anchors + first + k, mask=live, other=0)
        p0, p1 = load_pair(nodes, row * 16 + 12, live)
        p2, reach = load_pair(nodes, row * 16 + 14, live)
        squared = (x0 - p0) * (x0 - p0) + (x1 - p1) * (x1 - p1) + (x2 - p2) * (x2 - p2)
        nearest = tl.where(squared < least, k, nearest)
        least = tl.minimum(least, squared)
    row = base + tl.load(anchors + first + nearest, mask=live, other=0)
    n00, n01, n02, n10, n11, n12, n20, n21, n22, h0, h1, h2, p0, p1, p2, reach = _load_node(nodes, row, live)
    y0, y1, y2 = _moved(x0, x1, x2, x0 - p0, x1 - p1, x2 - p2, n00, n01, n02, n10, n11, n12, n20, n21, n22, h0, h1, h2)
    for k in range(KNN):
        row = base + tl.load(anchors + first + k, mask=live, other=0)
        r00, r01, r02, r10, r11, r12, r20, r21, r22, h0, h1, h2, p0, p1, p2, reach = _load_node(nodes, row, live)
        a0, a1, a2 = x0 - p0, x1 - p1, x2 - p2
        q = tl.maximum(1.0 - (a0 * a0 + a1 * a1 + a2 * a2) * reach, 0.0)
        s = q * q * q
        slope = -6.0 * q * q * reach
        d0, d1, d2 = slope * a0, slope * a1, slope * a2
        v0, v1, v2 = _moved(x0, x1, x2, a0, a1, a2, r00, r01, r02, r10, r11, r12, r20, r21, r22, h0, h1, h2)
        v0, v1, v2 = v0 - y0, v1 - y1, v2 - y2
        total += s
        u0, u1, u2 = u0 + s * v0, u1 + s * v1, u2 + s * v2
        g0, g1, g2 = g0 + d0, g1 + d1, g2 + d2
        j00, j01, j02 = j00 + s * r00 + v0 * d0, j01 + s * r01 + v0 * d1, j02 + s * r02 + v0 * d2
        j10, j11, j12 = j10 + s * r10 + v1 * d0, j11 + s * r11 + v1 * d1, j12 + s * r12 + v1 * d2
        j20, j21, j22 = j20 + s * r20 + v2 * d0, j21 + s * r21 + v2 * d1, j22 + s * r22 + v2 * d2
    out = total <= TINY  # of every node's reach: the nearest anchor alone
    scale = 1.0 / tl.where(out, 1.0, total)
    u0, u1, u2, g0, g1, g2 = u0 * scale, u1 * scale, u2 * scale, g0 * scale, g1 * scale, g2 * scale
    j00, j01, j02 = j00 * scale - u0 * g0, j01 * scale - u0 * g1, j02 * scale - u0 * g2
    j10, j11, j12 = j10 * scale - u1 * g0, j11 * scale - u1 * g1, j12 * scale - u1 * g2
    j20, j21, j22 = j20 * scale - u2 * g0, j21 * scale - u2 * g1, j22 * scale - u2 * g2
    u0, u1, u2 = tl.where(out, y0, y0 + u0), tl.where(out, y1, y1 + u1), tl.where(out, y2, y2 + u2)
    j00, j01, j02 = tl.where(out, n00, j00), tl.where(out, n01, j01), tl.where(out, n02, j02)
    j10, j11, j12 = tl.where(out, n10, j10), tl.where(out, n11, j11), tl.where(out, n12, j12)
    j20, j21, j22 = tl.where(out, n20, j20), tl.where(out, n21, j21), tl.where(out, n22, j22)
    g0, g1, g2 = tl.where(out, 0.0, g0), tl.where(out, 0.0, g1), tl.where(out, 0.0, g2)
    return u0, u1, u2, j00, j01, j02, j10, j11, j12, j20, j21, j22, tl.where(out, 0.0, total), g0, g1, g2, nearest


@launched(do_not_specialize=["n_points", "n_nodes"])
def _blend_kernel(
    points,
    anchors,
    weights,
    nodes,
    frames,
    out,
    jacobians,
    n_points,
    n_nodes,
    KNN: tl.constexpr,
    GIVEN: tl.constexpr,
    JACOBIAN: tl.constexpr,
    POINTS: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64) * POINTS + tl.arange(0, POINTS)
    live = n < n_points
    x0, x1, x2 = load3(points, n, live)
    base = tl.load(frames + n, mask=live, other=0) * n_nodes
    if GIVEN:
        y0, y1, y2 = x0 * 0, x0 * 0, x0 * 0
        for k in range(KNN):
            w = tl.load(weights + n * KNN + k, mask=live, other=0.0)
            row = base + tl.load(anchors + n * KNN + k, mask=live, other=0)
            r00, r01, r02, r10, r11, r12, r20, r21, r22, h0, h1, h2, p0, p1, p2, reach = _load_node(nodes, row, live)
            a0, a1, a2 = x0 - p0, x1 - p1, x2 - p2
            y0 += w * (r00 * a0 + r01 * a1 + r02 * a2 + h0)
            y1 += w * (r10 * a0 + r11 * a1 + r12 * a2 + h1)
            y2 += w * (r20 * a0 + r21 * a1 + r22 * a2 + h2)
    else:
        u0, u1, u2, j00, j01, j02, j10, j11, j12, j20, j21, j22, total, g0, g1, g2, nearest = _evaluate(x0, x1, x2, anchors, n * KNN, base, nodes, live, KNN)
        y0, y1, y2 = x0 + u0, x1 + u1, x2 + u2
        if JACOBIAN:
            store3(jacobians, n * 3, j00, j01, j02, live)
            store3(jacobians, n * 3 + 1, j10, j11, j12, live)
            store3(jacobians, n * 3 + 2, j20, j21, j22, live)
    store3(out, n, y0, y1, y2, live)


@launched(do_not_specialize=["n_points", "n_nodes", "iterations"])
def _newton_kernel(
    target, guess, anchors, nodes, frames, canonical, converged, n_points, n_nodes, iterations, tolerance, KNN: tl.constexpr, POINTS: tl.constexpr
):
    n = tl.program_id(0).to(tl.int64) * POINTS + tl.arange(0, POINTS)
    live = n < n_points
    y0, y1, y2 = load3(target, n, live)
    t0, t1, t2 = load3(guess, n, live)
    base = tl.load(frames + n, mask=live, other=0) * n_nodes
    zero = y0 * 0
    best, damping = zero + float("inf"), zero + 1.0
    b0, b1, b2, s0, s1, s2, p0, p1, p2 = t0, t1, t2, t0, t1, t2, zero, zero, zero  # best point, start and full length of the step
    open_ = live
    round_ = 0
    while round_ <= iterations and tl.max(open_.to(tl.int32), axis=0) > 0:
        t0, t1, t2 = s0 + damping * p0, s1 + damping * p1, s2 + damping * p2
        u0, u1, u2, j00, j01, j02, j10, j11, j12, j20, j21, j22, total, g0, g1, g2, nearest = _evaluate(t0, t1, t2, anchors, n * KNN, base, nodes, open_, KNN)
        o0, o1, o2 = y0 - t0 - u0, y1 - t1 - u1, y2 - t2 - u2
        distance = tl.sqrt(o0 * o0 + o1 * o1 + o2 * o2)
        better = open_ & (distance < best)
        best = tl.where(better, distance, best)
        b0, b1, b2 = tl.where(better, t0, b0), tl.where(better, t1, b1), tl.where(better, t2, b2)
        open_ = open_ & (best > tolerance) & (damping > HALVED)
        c00, c01, c02 = j11 * j22 - j12 * j21, j02 * j21 - j01 * j22, j01 * j12 - j02 * j11
        c10, c11, c12 = j12 * j20 - j10 * j22, j00 * j22 - j02 * j20, j02 * j10 - j00 * j12
        c20, c21, c22 = j10 * j21 - j11 * j20, j01 * j20 - j00 * j21, j00 * j11 - j01 * j10
        determinant = j00 * c00 + j01 * c10 + j02 * c20
        held = tl.where(determinant < 0, -FLOOR, FLOOR)
        inverse = 1.0 / tl.where(tl.abs(determinant) < FLOOR, held, determinant)
        p0 = tl.where(better, (c00 * o0 + c01 * o1 + c02 * o2) * inverse, p0)
        p1 = tl.where(better, (c10 * o0 + c11 * o1 + c12 * o2) * inverse, p1)
        p2 = tl.where(better, (c20 * o0 + c21 * o1 + c22 * o2) * inverse, p2)
        s0, s1, s2 = tl.where(better, t0, s0), tl.where(better, t1, s1), tl.where(better, t2, s2)
        damping = tl.where(better, tl.minimum(2.0 * damping, 1.0), 0.5 * damping)
        round_ += 1
    store3(canonical, n, b0, b1, b2, live)
    tl.store(converged + n, (best <= tolerance).to(tl.uint8), mask=live)


@triton.jit
def _add4(base, index, a, b, c, d, live, VECTOR: tl.constexpr):
    """Add four consecutive floats atomically, the first at a multiple of four; sm_90 has one instruction for all."""
    if VECTOR:
        tl.inline_asm_elementwise(
            "{.reg .pred p; setp.ne.b32 p, $6, 0; @p red.relaxed.gpu.global.add.v4.f32 [$1], {$2, $3, $4, $5}; mov.u32 $0, 0;}",
            "=r,l,f,f,f,f,r",
            [(base + index).to(tl.int64), a, b, c, d, live.to(tl.int32)],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )
    else:
        tl.atomic_add(base + index, a, mask=live, sem="relaxed")
        tl.atomic_add(base + index + 1, b, mask=live, sem="relaxed")
        tl.atomic_add(base + index + 2, c, mask=live, sem="relaxed")
        tl.atomic_add(base + index + 3, d, mask=live, sem="relaxed")


@launched(do_not_specialize=["n_points", "n_nodes", "copies"])
def _grad_kernel(
    points, anchors, weights, nodes, frames, grad_live, grad_jacobian, to_points, to_weights, to_motion, n_points, n_nodes, copies,
    KNN: tl.constexpr, GIVEN: tl.constexpr, JACOBIAN: tl.constexpr, MOTION: tl.constexpr, VECTOR: tl.constexpr, POINTS: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0).to(tl.int64) * POINTS + tl.arange(0, POINTS)
    live = n < n_points
    x0, x1, x2 = load3(points, n, live)
    e0, e1, e2 = load3(grad_live, n, live)  # cotangent of the blended point
    base = tl.load(frames + n, mask=live, other=0) * n_nodes
    zero = x0 * 0
    c0, c1, c2, total, g0, g1, g2 = zero, zero, zero, zero + 1.0, zero, zero, zero
    if not GIVEN:
        u0, u1, u2, j00, j01, j02, j10, j11, j12, j20, j21, j22, total, g0, g1, g2, nearest = _evaluate(x0, x1, x2, anchors, n * KNN, base, nodes, live, KNN)
    if JACOBIAN:
        m00, m01, m02 = load3(grad_jacobian, n * 3, live)
        m10, m11, m12 = load3(grad_jacobian, n * 3 + 1, live)
        m20, m21, m22 = load3(grad_jacobian, n * 3 + 2, live)
        e0 -= m00 * g0 + m01 * g1 + m02 * g2
        e1 -= m10 * g0 + m11 * g1 + m12 * g2
        e2 -= m20 * g0 + m21 * g1 + m22 * g2
    scale = 1.0 / tl.where(total > 0, total, 1.0)
    for k in range(KNN):
        anchor = tl.load(anchors + n * KNN + k, mask=live, other=0)
        row = base + anchor
        r00, r01, r02, r10, r11, r12, r20, r21, r22, h0, h1, h2, p0, p1, p2, reach = _load_node(nodes, row, live)
        a0, a1, a2 = x0 - p0, x1 - p1, x2 - p2
        v0, v1, v2 = _moved(x0, x1, x2, a0, a1, a2, r00, r01, r02, r10, r11, r12, r20, r21, r22, h0, h1, h2)
        if GIVEN:
            w = tl.load(weights + n * KNN + k, mask=live, other=0.0)
            tl.store(to_weights + n * KNN + k, e0 * (x0 + v0) + e1 * (x1 + v1) + e2 * (x2 + v2), mask=live)
            t0, t1, t2 = w * e0, w * e1, w * e2
        else:
            q = tl.maximum(1.0 - (a0 * a0 + a1 * a1 + a2 * a2) * reach, 0.0)
            q = tl.where(total > 0, q, 0.0)
            # rounded correctly: a single anchor's weight is 1 and not almost 1, or d_k - w_k G below would not vanish
            w = tl.where(total > 0, tl.div_rn(q * q * q, tl.where(total > 0, total, 1.0)), (nearest == k).to(tl.float32))
            slope = -6.0 * q * q * reach * scale
            d0, d1, d2 = slope * a0, slope * a1, slope * a2
            t0, t1, t2 = w * e0, w * e1, w * e2  # cotangent of y_k
            # y_k enters the weights' cotangent up to a term common to all k, which the weights' derivative cancels: u_k - u serves
            to_weight = e0 * (v0 - u0) + e1 * (v1 - u1) + e2 * (v2 - u2)
            if JACOBIAN:
                t0 += m00 * d0 + m01 * d1 + m02 * d2
                t1 += m10 * d0 + m11 * d1 + m12 * d2
                t2 += m20 * d0 + m21 * d1 + m22 * d2
                to_weight += m00 * r00 + m01 * r01 + m02 * r02 + m10 * r10 + m11 * r11 + m12 * r12 + m20 * r20 + m21 * r21 + m22 * r22
                f0 = m00 * (v0 - u0) + m10 * (v1 - u1) + m20 * (v2 - u2)  # cotangent of d_k = ds_k/dx / S
                f1 = m01 * (v0 - u0) + m11 * (v1 - u1) + m21 * (v2 - u2)
                f2 = m02 * (v0 - u0) + m12 * (v1 - u1) + m22 * (v2 - u2)
                fd = f0 * d0 + f1 * d1 + f2 * d2
                bend = 24.0 * q * reach * reach * scale * (a0 * f0 + a1 * f1 + a2 * f2)
                c0 += slope * f0 + bend * a0 - g0 * fd
                c1 += slope * f1 + bend * a1 - g1 * fd
                c2 += slope * f2 + bend * a2 - g2 * fd
            c0 += to_weight * (d0 - w * g0)
            c1 += to_weight * (d1 - w * g1)
            c2 += to_weight * (d2 - w * g2)
        c0 += r00 * t0 + r10 * t1 + r20 * t2
        c1 += r01 * t0 + r11 * t1 + r21 * t2
        c2 += r02 * t0 + r12 * t1 + r22 * t2
        if MOTION:
            q00, q01, q02, q10, q11, q12, q20, q21, q22 = t0 * a0, t0 * a1, t0 * a2, t1 * a0, t1 * a1, t1 * a2, t2 * a0, t2 * a1, t2 * a2
            if JACOBIAN:
                q00, q01, q02 = q00 + w * m00, q01 + w * m01, q02 + w * m02
                q10, q11, q12 = q10 + w * m10, q11 + w * m11, q12 + w * m12
                q20, q21, q22 = q20 + w * m20, q21 + w * m21, q22 + w * m22
            felt = live & ((w != 0) | (t0 != 0) | (t1 != 0) | (t2 != 0))
            at = (row * copies + (n & (copies - 1))) * 12  # neighbouring points move with the same nodes: their additions take turns
            _add4(to_motion, at, q00, q01, q02, q10, felt, VECTOR)
            _add4(to_motion, at + 4, q11, q12, q20, q21, felt, VECTOR)
            _add4(to_motion, at + 8, q22, t0, t1, t2, felt, VECTOR)
    store3(to_points, n, c0, c1, c2, live)


def _packed(nodes: Tensor, radii: Tensor | None, rotations: Tensor, translations: Tensor) -> Tensor:
    """One row of 16 floats per frame and node."""
    frames = len(rotations)
    positions = nodes.expand(frames, -1, -1)
    reach = (torch.ones_like(nodes[:, 0]) if radii is None else radii**-2).expand(frames, -1)[..., None]
    return torch.cat([rotations.flatten(2), positions + translations, positions, reach], 2).contiguous()


def _launch(points: Tensor) -> tuple[tuple[int], dict[str, int]]:
    return (triton.cdiv(len(points), POINTS),), {"POINTS": POINTS}


def blend(
    points: Tensor, anchors: Tensor, weights: Tensor | None, nodes: Tensor, radii: Tensor | None, rotations: Tensor, translations: Tensor,
    frames: Tensor, with_jacobian: bool,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Live points and, on demand, Jacobians; with `weights` None they follow from `radii`."""
    live = torch.empty(len(points), 3, device=points.device)
    jacobians = torch.empty(len(points), 3, 3, device=points.device) if with_jacobian else None
    grid, constants = _launch(points)
    if len(points):
        packed = _packed(nodes, radii, rotations, translations)
        given = None if weights is None else weights.contiguous()
        with _backend.on(points):
            _blend_kernel[grid](
                points.contiguous(), anchors.contiguous(), given, packed, frames.contiguous(), live, jacobians, len(points), len(nodes),
                KNN=anchors.shape[1], GIVEN=weights is not None, JACOBIAN=with_jacobian, **constants,
            )  # fmt: skip
    return live, jacobians


def blend_grad(
    points: Tensor, anchors: Tensor, weights: Tensor | None, nodes: Tensor, radii: Tensor | None, rotations: Tensor, translations: Tensor,
    frames: Tensor, grad_live: Tensor, grad_jacobian: Tensor | None, motion: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:  # fmt: skip
    """Gradients to points, weights (None unless given), rotations and translations (None unless `motion`)."""
    to_points = torch.empty(len(points), 3, device=points.device)
    to_weights = None if weights is None else torch.empty(anchors.shape, device=points.device)
    rows = rotations.shape[0] * len(nodes)
    copies = max(1, min(COPIES, 1 << max(0, (COPIED_ROWS // max(rows, 1)).bit_length() - 1)))
    to_motion = torch.zeros(rows, copies, 12, device=points.device) if motion else None
    grid, constants = _launch(points)
    if len(points):
        packed = _packed(nodes, radii, rotations, translations)
        given, grad_jacobian = (None if t is None else t.contiguous() for t in (weights, grad_jacobian))
        with _backend.on(points):
            _grad_kernel[grid](
                points.contiguous(), anchors.contiguous(), given, packed, frames.contiguous(), grad_live.contiguous(), grad_jacobian,
                to_points, to_weights, to_motion, len(points), len(nodes), copies,
                KNN=anchors.shape[1], GIVEN=weights is not None, JACOBIAN=grad_jacobian is not None, MOTION=motion, VECTOR=vector_atomics(points.device), **constants,
            )  # fmt: skip
    if not motion:
        return to_points, to_weights, None, None
    to_rotations, to_translations = to_motion.sum(1).split([9, 3], 1)
    return to_points, to_weights, to_rotations.reshape(rotations.shape), to_translations.reshape(translations.shape)


def newton(
    live: Tensor, guess: Tensor, anchors: Tensor, nodes: Tensor, radii: Tensor, rotations: Tensor, translations: Tensor, frames: Tensor,
    iterations: int, tolerance: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """As `reference.newton`; a block of points stops when all of its points have."""
    canonical = torch.empty(len(live), 3, device=live.device)
    converged = torch.empty(len(live), dtype=torch.bool, device=live.device)
    grid, constants = _launch(live)
    if len(live):
        packed = _packed(nodes, radii, rotations, translations)
        with _backend.on(live):
            _newton_kernel[grid](
                live.contiguous(), guess.contiguous(), anchors.contiguous(), packed, frames.contiguous(), canonical, converged.view(torch.uint8),
                len(live), len(nodes), iterations, tolerance, KNN=anchors.shape[1], **constants,
            )  # fmt: skip
    return canonical, converged
