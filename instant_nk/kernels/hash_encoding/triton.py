"""The hash encoding in Triton: one kernel gathers, one scatters; nothing is kept between them, rows are computed anew.

What decides the time is the number of 32-byte sectors that the L2 cache is asked for (docs/kernels.md), hence:
- Four neighbouring lanes share a point, one for each corner of its cell across x and y. Blocks of hashed rows lie side by side
  (`HashSpec`), so that a warp's access to the four corners of 8 points meets 18 sectors, where one lane a point meets 32; of half
  precision, with a whole block in a sector, the corners' neighbours along z are then in the L1.
- Channels are served in pairs, one access each; a program serves four consecutive pairs of the output row, one sector in all.
- All points pass through one group of levels before the next: the rows in use, 4 MiB a level by default, stay in the L2.
- Additions to a small coarse level are spread over several copies of it, since one sector takes one addition at a time.
Sums are float32 whatever the table is.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from instant_nk.kernels import _backend
from instant_nk.kernels._triton_memory import gather_pair, launched, load_pair, vector_atomics
from instant_nk.kernels.hash_encoding.spec import PRIMES, HashSpec

SCALES = True  # the Jacobian's scale and number of axes are arguments of `forward` and `backward`
LANES = tl.constexpr(4)  # per point
POINTS = 64  # per program; half as many where positions have a gradient, for the registers
WARPS = 4
PAIRS = 4  # pairs of channels per program: a sector of the output
COPIED_ROWS = 1 << 18  # a coarse level is copied up to this many rows when gradients are added to it,
COPIES = 16  # and at most so many times,
COPY_FROM = 4096  # where there are points enough to collide


@triton.jit
def _add_pair(base, index, first, second, live, VECTOR: tl.constexpr):
    """Add two consecutive float32 atomically, the first at an even index; sm_90 has one instruction for both."""
    if VECTOR:
        tl.inline_asm_elementwise(
            "{.reg .pred p; setp.ne.b32 p, $4, 0; @p red.relaxed.gpu.global.add.v2.f32 [$1], {$2, $3}; mov.u32 $0, 0;}",
            "=r,l,f,f,r",
            [(base + index).to(tl.int64), first, second, live.to(tl.int32)],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )
    else:
        tl.atomic_add(base + index, first, mask=live, sem="relaxed")
        tl.atomic_add(base + index + 1, second, mask=live, sem="relaxed")


@triton.jit
def _sum_lanes(value, POINTS: tl.constexpr):
    """Sum over the lanes of each point, given back to all of them."""
    total = tl.sum(tl.reshape(value, [POINTS, LANES]), axis=1, keep_dims=True)
    return tl.reshape(tl.broadcast_to(total, [POINTS, LANES]), [POINTS * LANES])


@triton.jit
def _own(side, v0, v1, v2, v3):
    """Each lane's own one of four values."""
    return tl.where(side < 2, tl.where(side == 0, v0, v1), tl.where(side == 2, v2, v3))


@triton.jit
def _store_sector(base, index, column, side, live, a0, b0, a1, b1, a2, b2, a3, b3, WIDTH: tl.constexpr, POINTS: tl.constexpr):
    """Sum four pairs of channels over the lanes of each point; every lane stores one of the pairs, past the rows in the cache."""
    a0, b0, a1, b1 = _sum_lanes(a0, POINTS), _sum_lanes(b0, POINTS), _sum_lanes(a1, POINTS), _sum_lanes(b1, POINTS)
    a2, b2, a3, b3 = _sum_lanes(a2, POINTS), _sum_lanes(b2, POINTS), _sum_lanes(a3, POINTS), _sum_lanes(b3, POINTS)
    part = side[:, None] * 2 + tl.arange(0, 2)[None, :]
    tl.store(
        base + index[:, None] + column + part,
        tl.join(_own(side, a0, a1, a2, a3), _own(side, b0, b1, b2, b3)),
        mask=live[:, None] & (column + part < WIDTH),
        eviction_policy="evict_first",
    )


@triton.jit
def _store_scaled(base, index, column, side, live, scale, a0, b0, a1, b1, a2, b2, a3, b3, WIDTH: tl.constexpr, POINTS: tl.constexpr):
    """`_store_sector` of `scale` times the values."""
    a0, b0, a1, b1, a2, b2, a3, b3 = a0 * scale, b0 * scale, a1 * scale, b1 * scale, a2 * scale, b2 * scale, a3 * scale, b3 * scale
    _store_sector(base, index, column, side, live, a0, b0, a1, b1, a2, b2, a3, b3, WIDTH, POINTS)


@triton.jit
def _among(live, side, pair, open_pairs):
    """Lanes that serve a point and, of it, a pair of an open level."""
    return live & (side * 0 + pair < open_pairs)


@triton.jit
def _level(layout, pair, F: tl.constexpr, LEVELS: tl.constexpr, DIMS: tl.constexpr):
    """Entry of the level that a pair of channels belongs to, and the pair's first channel in it."""
    return layout + tl.minimum(pair * 2 // F, LEVELS - 1) * (2 * DIMS + 4), pair * 2 % F


@triton.jit
def _position(x, n, live, DIMS: tl.constexpr):
    """Coordinates of each lane's point; the fourth repeats the third in 3-D."""
    at = x + n * DIMS
    return (
        tl.load(at, mask=live, other=0.0),
        tl.load(at + 1, mask=live, other=0.0),
        tl.load(at + 2, mask=live, other=0.0),
        tl.load(at + DIMS - 1, mask=live, other=0.0),
    )


@triton.jit
def _cell(position, axis: tl.constexpr, entry, dense, DIMS: tl.constexpr):
    """Along one axis: what the near and the far corner add to the row, the fraction in the cell, cells; outside, the border cell's."""
    cells = tl.load(entry + axis).to(tl.float32)
    factor = tl.load(entry + DIMS + axis).to(tl.uint32)
    scaled = position * cells
    index = tl.minimum(tl.maximum(tl.floor(scaled), 0.0), cells - 1.0)
    at = index.to(tl.int32).to(tl.uint32)
    block, odd = (at >> 1) * (factor << DIMS), at & 1  # of a hashed level: the row of the block, and on which side of it the corner lies
    far_hashed = tl.where(odd != 0, block + (factor << DIMS), block + (1 << axis))
    near = tl.where(dense, at * factor, block + (odd << axis))
    far = tl.where(dense, (at + 1) * factor, far_hashed)
    return near, far, scaled - index, cells


@triton.jit
def _join(dense, a, b):
    """Two axes' parts of a row: a sum where every corner is stored, an xor where they are hashed."""
    return tl.where(dense, a + b, a ^ b)


@triton.jit
def _cells(p0, p1, p2, p3, entry, side, DIMS: tl.constexpr):
    """First row of the level and whether it is dense; this lane's corner across x and y: what it adds to the row, its weights w and
    their slopes s; along z and t, of which the fourth axis repeats the third in 3-D, `_cell`.
    """
    offset, dense = tl.load(entry + 2 * DIMS) >> 1, (tl.load(entry + 2 * DIMS) & 1) != 0
    n0, f0, r0, c0 = _cell(p0, 0, entry, dense, DIMS)
    n1, f1, r1, c1 = _cell(p1, 1, entry, dense, DIMS)
    n2, f2, r2, c2 = _cell(p2, 2, entry, dense, DIMS)
    n3, f3, r3, c3 = n2, f2, r2, c2
    if DIMS == 4:
        n3, f3, r3, c3 = _cell(p3, 3, entry, dense, DIMS)
    x, y = (side & 1) != 0, (side & 2) != 0
    base = _join(dense, tl.where(x, f0, n0), tl.where(y, f1, n1))
    w0, s0, w1, s1 = tl.where(x, r0, 1.0 - r0), tl.where(x, c0, -c0), tl.where(y, r1, 1.0 - r1), tl.where(y, c1, -c1)
    return offset, dense, base, w0, s0, w1, s1, n2, f2, r2, c2, n3, f3, r3, c3


@triton.jit
def _corner(dense, base, n2, f2, r2, n3, f3, r3, corner: tl.constexpr, DIMS: tl.constexpr):
    """Row of this lane's corner on the near (0) or far (1) side along z (lowest bit) and t, and its weights along them."""
    if corner & 1:
        row, w2, w3 = _join(dense, base, f2), r2, 1.0
    else:
        row, w2, w3 = _join(dense, base, n2), 1.0 - r2, 1.0
    if DIMS == 4:
        if corner >> 1:
            row, w3 = _join(dense, row, f3), r3
        else:
            row, w3 = _join(dense, row, n3), 1.0 - r3
    return row, w2, w3


@triton.jit
def _gather(
    p0,
    p1,
    p2,
    p3,
    table,
    layout,
    side,
    live,
    pair,
    open_pairs,
    F: tl.constexpr,
    LEVELS: tl.constexpr,
    DIMS: tl.constexpr,
    MASK: tl.constexpr,
    SLOPES: tl.constexpr,
    PTX: tl.constexpr,
):
    """This lane's share of one pair of channels and, with SLOPES, of its derivatives along each axis."""
    live = _among(live, side, pair, open_pairs)
    entry, channel = _level(layout, pair, F, LEVELS, DIMS)
    offset, dense, base, w0, s0, w1, s1, n2, f2, r2, c2, n3, f3, r3, c3 = _cells(p0, p1, p2, p3, entry, side, DIMS)
    zero = r2 * 0.0
    ua, ub, ua2, ub2, ua3, ub3 = zero, zero, zero, zero, zero, zero
    for corner in tl.static_range(1 << (DIMS - 2)):
        row, w2, w3 = _corner(dense, base, n2, f2, r2, n3, f3, r3, corner, DIMS)
        va, vb = gather_pair(table, ((row & MASK).to(tl.int32) + offset) * F + channel, live, PTX)
        w = w2 * w3
        ua += w * va
        ub += w * vb
        if SLOPES:
            e2 = (2.0 * (corner & 1) - 1.0) * w3
            ua2 += e2 * va
            ub2 += e2 * vb
            if DIMS == 4:
                e3 = (2.0 * (corner >> 1) - 1.0) * w2
                ua3 += e3 * va
                ub3 += e3 * vb
    w01, x0, x1 = w0 * w1, s0 * w1, w0 * s1
    x2, x3 = w01 * c2, w01 * c3
    return w01 * ua, w01 * ub, x0 * ua, x0 * ub, x1 * ua, x1 * ub, x2 * ua2, x2 * ub2, x3 * ua3, x3 * ub3


@triton.jit
def _along(d0, d1, d2, d3, a0, b0, a1, b1, a2, b2, a3, b3, DIMS: tl.constexpr):
    """Derivative of a pair of channels along a direction."""
    a, b = d0 * a0 + d1 * a1 + d2 * a2, d0 * b0 + d1 * b1 + d2 * b2
    if DIMS == 4:
        a, b = a + d3 * a3, b + d3 * b3
    return a, b


@launched(do_not_specialize=["n_points", "open_pairs", "scale"])
def _forward_kernel(
    x, table, layout, direction, features, jacobian, n_points, open_pairs, scale,
    F: tl.constexpr, LEVELS: tl.constexpr, DIMS: tl.constexpr, MASK: tl.constexpr, JACOBIAN: tl.constexpr, AXES: tl.constexpr, ALONG: tl.constexpr,
    PTX: tl.constexpr, POINTS: tl.constexpr,
):  # fmt: skip
    """Features, with JACOBIAN `scale` times their derivatives along the first AXES too; with ALONG the derivative along a direction of each point instead."""
    WIDTH: tl.constexpr = LEVELS * F
    lane = tl.arange(0, POINTS * LANES)
    n = tl.program_id(0).to(tl.int64) * POINTS + lane // LANES
    side = lane % LANES
    live = n < n_points
    pair = tl.program_id(1) * 4
    p0, p1, p2, p3 = _position(x, n, live, DIMS)
    SLOPES: tl.constexpr = JACOBIAN or ALONG
    a, b, pa0, pb0, pa1, pb1, pa2, pb2, pa3, pb3 = _gather(p0, p1, p2, p3, table, layout, side, live, pair, open_pairs, F, LEVELS, DIMS, MASK, SLOPES, PTX)
    c, d, qa0, qb0, qa1, qb1, qa2, qb2, qa3, qb3 = _gather(p0, p1, p2, p3, table, layout, side, live, pair + 1, open_pairs, F, LEVELS, DIMS, MASK, SLOPES, PTX)
    e, f, ra0, rb0, ra1, rb1, ra2, rb2, ra3, rb3 = _gather(p0, p1, p2, p3, table, layout, side, live, pair + 2, open_pairs, F, LEVELS, DIMS, MASK, SLOPES, PTX)
    g, h, sa0, sb0, sa1, sb1, sa2, sb2, sa3, sb3 = _gather(p0, p1, p2, p3, table, layout, side, live, pair + 3, open_pairs, F, LEVELS, DIMS, MASK, SLOPES, PTX)
    if ALONG:
        d0, d1, d2, d3 = _position(direction, n, live, DIMS)
        a, b = _along(d0, d1, d2, d3, pa0, pb0, pa1, pb1, pa2, pb2, pa3, pb3, DIMS)
        c, d = _along(d0, d1, d2, d3, qa0, qb0, qa1, qb1, qa2, qb2, qa3, qb3, DIMS)
        e, f = _along(d0, d1, d2, d3, ra0, rb0, ra1, rb1, ra2, rb2, ra3, rb3, DIMS)
        g, h = _along(d0, d1, d2, d3, sa0, sb0, sa1, sb1, sa2, sb2, sa3, sb3, DIMS)
    _store_sector(features, n * WIDTH, pair * 2, side, live, a, b, c, d, e, f, g, h, WIDTH, POINTS)
    if JACOBIAN:
        at = n * (AXES * WIDTH)
        _store_scaled(jacobian, at, pair * 2, side, live, scale, pa0, pb0, qa0, qb0, ra0, rb0, sa0, sb0, WIDTH, POINTS)
        _store_scaled(jacobian, at + WIDTH, pair * 2, side, live, scale, pa1, pb1, qa1, qb1, ra1, rb1, sa1, sb1, WIDTH, POINTS)
        _store_scaled(jacobian, at + 2 * WIDTH, pair * 2, side, live, scale, pa2, pb2, qa2, qb2, ra2, rb2, sa2, sb2, WIDTH, POINTS)
        if AXES == 4:
            _store_scaled(jacobian, at + 3 * WIDTH, pair * 2, side, live, scale, pa3, pb3, qa3, qb3, ra3, rb3, sa3, sb3, WIDTH, POINTS)


@triton.jit
def _cotangents(
    direction, grad_jacobian, scale, n, live, column, ga, gb, axis,
    MODE: tl.constexpr, WIDTH: tl.constexpr, DIMS: tl.constexpr, AXES: tl.constexpr, PTX: tl.constexpr,
):  # fmt: skip
    """Cotangent of a pair of channels' derivative along one axis: given, or the features' cotangent times a direction."""
    if MODE == "given":
        a, b = gather_pair(grad_jacobian, n * (AXES * WIDTH) + axis * WIDTH + column, live, PTX)
        a, b = a * scale, b * scale
    else:
        d = tl.load(direction + n * DIMS + axis, mask=live, other=0.0)
        a, b = d * ga, d * gb
    return a, b


@triton.jit
def _scatter(
    p0, p1, p2, p3, table, layout, direction, grad_jacobian, scale, grad_table, n, side, live, pair, open_pairs, ga, gb, x0, x1, x2, x3,
    F: tl.constexpr, LEVELS: tl.constexpr, DIMS: tl.constexpr, MASK: tl.constexpr, FEATURES: tl.constexpr, JACOBIAN: tl.constexpr, AXES: tl.constexpr,
    TO_TABLE: tl.constexpr, TO_X: tl.constexpr, VECTOR: tl.constexpr, PTX: tl.constexpr,
):  # fmt: skip
    """Send the cotangents of one pair of channels to the table and, gathering anew, to this lane's share of the position's gradient."""
    live = _among(live, side, pair, open_pairs)
    WIDTH: tl.constexpr = LEVELS * F
    entry, channel = _level(layout, pair, F, LEVELS, DIMS)
    offset, dense, base, w0, s0, w1, s1, n2, f2, r2, c2, n3, f3, r3, c3 = _cells(p0, p1, p2, p3, entry, side, DIMS)
    w01, zero = w0 * w1, r2 * 0.0
    if TO_TABLE:  # where this point's additions go: the level itself, or one of its copies
        copies, rows = tl.load(entry + 2 * DIMS + 2), tl.load(entry + 2 * DIMS + 3)
        target = tl.load(entry + 2 * DIMS + 1) + (n.to(tl.int32) & (copies - 1)) * rows
    # Cotangent of this lane's corner where z and t are not differentiated, and its own derivatives along x (per s0) and y (per s1).
    ca, cb, xa, xb, ya, yb = zero, zero, zero, zero, zero, zero
    if FEATURES:
        ca, cb, xa, xb, ya, yb = w01 * ga, w01 * gb, w1 * ga, w1 * gb, w0 * ga, w0 * gb
    ka2, kb2, ka3, kb3 = zero, zero, zero, zero
    if JACOBIAN != "none":  # cotangents of the slopes, with their cells
        ja0, jb0 = _cotangents(direction, grad_jacobian, scale, n, live, pair * 2, ga, gb, 0, JACOBIAN, WIDTH, DIMS, AXES, PTX)
        ja1, jb1 = _cotangents(direction, grad_jacobian, scale, n, live, pair * 2, ga, gb, 1, JACOBIAN, WIDTH, DIMS, AXES, PTX)
        ja2, jb2 = _cotangents(direction, grad_jacobian, scale, n, live, pair * 2, ga, gb, 2, JACOBIAN, WIDTH, DIMS, AXES, PTX)
        ka0, kb0, ka1, kb1, ka2, kb2 = s0 * ja0, s0 * jb0, s1 * ja1, s1 * jb1, c2 * ja2, c2 * jb2
        ca, cb = ca + w1 * ka0 + w0 * ka1, cb + w1 * kb0 + w0 * kb1
        xa, xb, ya, yb = xa + ka1, xb + kb1, ya + ka0, yb + kb0
        if AXES == 4:
            ja3, jb3 = _cotangents(direction, grad_jacobian, scale, n, live, pair * 2, ga, gb, 3, JACOBIAN, WIDTH, DIMS, AXES, PTX)
            ka3, kb3 = c3 * ja3, c3 * jb3
    u0, u1, u2, u3 = zero, zero, zero, zero
    for corner in tl.static_range(1 << (DIMS - 2)):
        row, w2, w3 = _corner(dense, base, n2, f2, r2, n3, f3, r3, corner, DIMS)
        row = (row & MASK).to(tl.int32)
        s2, s3 = 2.0 * (corner & 1) - 1.0, 2.0 * (corner >> 1) - 1.0
        w, e2, e3 = w2 * w3, s2 * w3, s3 * w2  # weight along z and t, and its slopes per cell
        ha, hb = e2 * ka2, e2 * kb2  # what the slopes along z and t ask of the corner's row, but for w01
        if JACOBIAN != "none" and AXES == 4:
            ha, hb = ha + e3 * ka3, hb + e3 * kb3
        if TO_TABLE:
            _add_pair(grad_table, (row + target) * F + channel, w * ca + w01 * ha, w * cb + w01 * hb, live, VECTOR)
        if TO_X:
            va, vb = gather_pair(table, (row + offset) * F + channel, live, PTX)
            h = va * ha + vb * hb
            u0 += w * (va * xa + vb * xb) + w1 * h
            u1 += w * (va * ya + vb * yb) + w0 * h
            r = va * ca + vb * cb
            u2 += e2 * r
            if DIMS == 4:
                u3 += e3 * r
                if JACOBIAN != "none":
                    v01 = (s2 * s3) * w01
                    u3 += v01 * (va * ka2 + vb * kb2)
                    if AXES == 4:
                        u2 += v01 * (va * ka3 + vb * kb3)
    if TO_X:
        x0, x1, x2 = x0 + s0 * u0, x1 + s1 * u1, x2 + c2 * u2
        if DIMS == 4:
            x3 += c3 * u3
    return x0, x1, x2, x3


@launched(do_not_specialize=["n_points", "open_pairs", "scale"])
def _backward_kernel(
    x, table, layout, direction, grad_features, grad_jacobian, grad_table, grad_x, n_points, open_pairs, scale,
    F: tl.constexpr, LEVELS: tl.constexpr, DIMS: tl.constexpr, MASK: tl.constexpr, FEATURES: tl.constexpr, JACOBIAN: tl.constexpr, AXES: tl.constexpr,
    TO_TABLE: tl.constexpr, TO_X: tl.constexpr, VECTOR: tl.constexpr, PTX: tl.constexpr, POINTS: tl.constexpr,
):  # fmt: skip
    """Gradients of <grad_features, features> + <cotangent, Jacobian> to the table and the positions.

    FEATURES: whether the first term is there. JACOBIAN: "none"; "given" by `scale` times grad_jacobian, of the first AXES; "along", direction x grad_features.
    """
    WIDTH: tl.constexpr = LEVELS * F
    lane = tl.arange(0, POINTS * LANES)
    n = tl.program_id(0).to(tl.int64) * POINTS + lane // LANES
    side = lane % LANES
    live = n < n_points
    pair = tl.program_id(1) * 4
    zero = tl.zeros([POINTS * LANES], tl.float32)
    a, b, c, d, e, f, g, h = zero, zero, zero, zero, zero, zero, zero, zero
    if FEATURES or JACOBIAN == "along":  # the whole sector at once
        at = n * WIDTH + pair * 2
        a, b = load_pair(grad_features, at, _among(live, side, pair, open_pairs))
        c, d = load_pair(grad_features, at + 2, _among(live, side, pair + 1, open_pairs))
        e, f = load_pair(grad_features, at + 4, _among(live, side, pair + 2, open_pairs))
        g, h = load_pair(grad_features, at + 6, _among(live, side, pair + 3, open_pairs))
    x0, x1, x2, x3 = zero, zero, zero, zero
    p0, p1, p2, p3 = _position(x, n, live, DIMS)
    x0, x1, x2, x3 = _scatter(
        p0, p1, p2, p3, table, layout, direction, grad_jacobian, scale, grad_table, n, side, live, pair, open_pairs, a, b, x0, x1, x2, x3,
        F, LEVELS, DIMS, MASK, FEATURES, JACOBIAN, AXES, TO_TABLE, TO_X, VECTOR, PTX)  # fmt: skip
    x0, x1, x2, x3 = _scatter(
        p0, p1, p2, p3, table, layout, direction, grad_jacobian, scale, grad_table, n, side, live, pair + 1, open_pairs, c, d, x0, x1, x2, x3,
        F, LEVELS, DIMS, MASK, FEATURES, JACOBIAN, AXES, TO_TABLE, TO_X, VECTOR, PTX)  # fmt: skip
    x0, x1, x2, x3 = _scatter(
        p0, p1, p2, p3, table, layout, direction, grad_jacobian, scale, grad_table, n, side, live, pair + 2, open_pairs, e, f, x0, x1, x2, x3,
        F, LEVELS, DIMS, MASK, FEATURES, JACOBIAN, AXES, TO_TABLE, TO_X, VECTOR, PTX)  # fmt: skip
    x0, x1, x2, x3 = _scatter(
        p0, p1, p2, p3, table, layout, direction, grad_jacobian, scale, grad_table, n, side, live, pair + 3, open_pairs, g, h, x0, x1, x2, x3,
        F, LEVELS, DIMS, MASK, FEATURES, JACOBIAN, AXES, TO_TABLE, TO_X, VECTOR, PTX)  # fmt: skip
    if TO_X:
        # One partial sum per group of levels: adding them up afterwards is cheaper than atomics, and the same at every run.
        at = (tl.program_id(1).to(tl.int64) * n_points + n) * DIMS + side
        x0, x1 = _sum_lanes(x0, POINTS), _sum_lanes(x1, POINTS)
        x2, x3 = _sum_lanes(x2, POINTS), _sum_lanes(x3, POINTS)
        tl.store(grad_x + at, _own(side, x0, x1, x2, x3), mask=live & (side < DIMS))


def _copies(spec: HashSpec, level: int) -> int:
    """How many copies of a level take turns at receiving additions: a power of two."""
    copies = 1
    while 2 * copies <= COPIES and 2 * copies * spec.level_rows[level] <= COPIED_ROWS:
        copies *= 2
    return copies


@cache
def _layout(spec: HashSpec, device: torch.device, copied: bool) -> tuple[Tensor, tuple[tuple[int, int], ...], int]:
    """What the kernels know of each level.

    Returns:
        Int32 [levels, 2 D + 4]: cells of every axis, the factor of its index in the row (stride or prime), twice the offset plus 1 if
        dense, and for additions the offset, copies and rows; then (level, offset) of the levels with copies; then the rows that take additions.
    """
    entries, apart, end = [], [], spec.table_rows
    for level, (cells, offset, dense, rows) in enumerate(zip(spec.resolutions, spec.offsets, spec.dense, spec.level_rows, strict=True)):
        strides = [1]
        for c in cells[:-1]:
            strides.append(strides[-1] * (c + 1))
        copies, target = _copies(spec, level) if copied else 1, offset
        if copies > 1:
            apart.append((level, end))
            target, end = end, end + copies * rows
        entries.append([*cells, *(strides if dense else PRIMES[: spec.dims]), 2 * offset + dense, target, copies, rows])
    return torch.tensor(entries, dtype=torch.int64).to(torch.int32).to(device), tuple(apart), end


def _constants(spec: HashSpec, points: int = POINTS) -> dict[str, int]:
    mask = (1 << spec.log2_table_size) - 1
    return {"F": spec.features, "LEVELS": spec.levels, "DIMS": spec.dims, "MASK": mask, "POINTS": points, "num_warps": WARPS}


def _grid(count: int, spec: HashSpec, points: int = POINTS) -> tuple[int, int]:
    return triton.cdiv(count, points), triton.cdiv(spec.width // 2, PAIRS)


def _contiguous(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    return tuple(None if t is None else t.contiguous() for t in tensors)


def _padded(tensor: Tensor | None, features: int) -> Tensor | None:
    """A zero channel added to each level of [..., L*F]: the kernels serve channels in pairs."""
    if tensor is None:
        return None
    levels = tensor.unflatten(-1, (-1, features))
    return torch.nn.functional.pad(levels, (0, 1)).flatten(-2)


def _unpadded(tensor: Tensor | None, features: int) -> Tensor | None:
    """The inverse of `_padded`."""
    return None if tensor is None else tensor.unflatten(-1, (-1, features + 1))[..., :features].flatten(-2)


def _forward(
    x: Tensor, table: Tensor, spec: HashSpec, open_levels: int, direction: Tensor | None, with_jacobian: bool, axes: int | None = None, scale: float = 1.0
) -> tuple[Tensor, Tensor | None]:
    axes = axes if axes and with_jacobian else spec.dims  # without a Jacobian all callers share one compiled kernel
    if spec.features % 2:
        even = replace(spec, features=spec.features + 1)
        outputs = _forward(x, _padded(table, spec.features), even, open_levels, direction, with_jacobian, axes, scale)
        return _unpadded(outputs[0], spec.features), _unpadded(outputs[1], spec.features)
    features = torch.empty(len(x), spec.width, device=x.device)
    jacobian = torch.empty(len(x), axes, spec.width, device=x.device) if with_jacobian else None
    x, table, direction = _contiguous(x, table, direction)
    if len(x):
        with _backend.on(x):
            _forward_kernel[_grid(len(x), spec)](
                x, table, _layout(spec, x.device, False)[0], direction, features, jacobian, len(x), open_levels * spec.features // 2, scale,
                JACOBIAN=with_jacobian, AXES=axes, ALONG=direction is not None, PTX=x.is_cuda, **_constants(spec),
            )  # fmt: skip
    return features, jacobian


def forward(
    x: Tensor, table: Tensor, spec: HashSpec, open_levels: int, with_jacobian: bool, axes: int | None = None, scale: float = 1.0
) -> tuple[Tensor, Tensor | None]:
    """As `reference.forward`, float32; of the Jacobian the first `axes`, times `scale`."""
    return _forward(x, table, spec, open_levels, None, with_jacobian, axes, scale)


def along(x: Tensor, table: Tensor, spec: HashSpec, open_levels: int, direction: Tensor) -> Tensor:
    """Derivative of the features along each point's direction [N, D]: [N, L*F], float32."""
    return _forward(x, table, spec, open_levels, direction, False)[0]


def backward(
    x: Tensor, table: Tensor | None, spec: HashSpec, open_levels: int, grad_features: Tensor | None, grad_jacobian: Tensor | None,
    to_table: bool, to_x: bool, direction: Tensor | None = None, scale: float = 1.0,
) -> tuple[Tensor | None, Tensor | None]:  # fmt: skip
    """`reference.table_grad` and `reference.position_grad` in one pass, float32.

    Args:
        grad_jacobian: of the Jacobian's first axes, [N, axes, L*F].
        direction: [N, D]; then the gradients are those of <grad_features, derivative of the features along it>.
        scale: what the Jacobian was multiplied by.
    """
    if spec.features % 2:
        even = replace(spec, features=spec.features + 1)
        table, grad_features, grad_jacobian = (_padded(t, spec.features) for t in (table, grad_features, grad_jacobian))
        grad_table, grad_x = backward(x, table, even, open_levels, grad_features, grad_jacobian, to_table, to_x, direction, scale)
        return _unpadded(grad_table, spec.features), grad_x
    layout, apart, rows = _layout(spec, x.device, to_table and len(x) >= COPY_FROM)
    mode = "along" if direction is not None else "none" if grad_jacobian is None else "given"
    points = POINTS // 2 if to_x else POINTS
    grid = _grid(len(x), spec, points)
    sums = torch.zeros(rows, spec.features, device=x.device) if to_table else None
    partial = torch.empty(grid[1], len(x), spec.dims, device=x.device) if to_x else None
    x, table, direction, grad_features, grad_jacobian = _contiguous(x, table, direction, grad_features, grad_jacobian)
    if len(x):
        with _backend.on(x):
            _backward_kernel[grid](
                x, table, layout, direction, grad_features, grad_jacobian, sums, partial, len(x), open_levels * spec.features // 2, scale,
                FEATURES=grad_features is not None and direction is None, JACOBIAN=mode, AXES=grad_jacobian.shape[1] if mode == "given" else spec.dims,
                TO_TABLE=to_table, TO_X=to_x, VECTOR=vector_atomics(x.device), PTX=x.is_cuda, **_constants(spec, points),
            )  # fmt: skip
    for level, start in apart:
        own = slice(spec.offsets[level], spec.offsets[level] + spec.level_rows[level])
        copies = sums[start : start + _copies(spec, level) * spec.level_rows[level]]
        torch.sum(copies.view(-1, spec.level_rows[level], spec.features), 0, out=sums[own])
    return None if sums is None else sums[: spec.table_rows], None if partial is None else partial.sum(0)


def table_grad(x: Tensor, spec: HashSpec, open_levels: int, grad_features: Tensor | None, grad_jacobian: Tensor | None) -> Tensor:
    """As `reference.table_grad`, float32."""
    return backward(x, None, spec, open_levels, grad_features, grad_jacobian, True, False)[0]


def position_grad(x: Tensor, table: Tensor, spec: HashSpec, open_levels: int, grad_features: Tensor | None, grad_jacobian: Tensor | None) -> Tensor:
    """As `reference.position_grad`, float32."""
    return backward(x, table, spec, open_levels, grad_features, grad_jacobian, False, True)[1]
