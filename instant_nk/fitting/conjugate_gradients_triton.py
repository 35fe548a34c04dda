"""Solution of the solver's block-sparse system by conjugate gradients, in one Triton launch, double precision.

Preconditioned by the nodes' own blocks. Every program has some of the nodes, and all wait for each other at two places a round, so none may be left
out: they are launched together or not at all. Sums run in the same order at every call. `deformation_solver._solve` is the definition.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from instant_nk.kernels import _backend
from instant_nk.kernels._triton_memory import launched, multiprocessors

if TYPE_CHECKING:
    from instant_nk.fitting.deformation_solver import Body

TILE = 4  # nodes whose rows of the matrix are multiplied side by side,
ENTRIES = 32  # and blocks of each
TOLERANCE = 1e-3  # of the residual, in the preconditioner's norm, at which a step is near enough: registrations end no better with 1e-6
ROUNDS = 1000  # products at most; what is found by then still lowers the energy


@triton.jit
def _meet(counter, arrived, PROGRAMS: tl.constexpr):
    """All programs wait here until `arrived` have come; what each wrote before, the others see behind."""
    tl.debug_barrier()
    if PROGRAMS > 1:
        seen = tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu") + 1
        while seen < arrived:  # looking is cheaper than counting: only the last look has to order what follows
            seen = tl.load(counter, volatile=True)
        tl.atomic_add(counter, 0, sem="acquire", scope="gpu")
        tl.debug_barrier()


@triton.jit
def _total(partial, PROGRAMS: tl.constexpr, ROOM: tl.constexpr):
    """What all programs found, added up in their order."""
    at = tl.arange(0, ROOM)
    return tl.sum(tl.load(partial + at, mask=at < PROGRAMS, other=0.0, cache_modifier=".cg"), 0)


@triton.jit
def _inverse(a, b, c, d, e, f):
    """Of symmetric matrices [[a, b, c], [b, d, e], [c, e, f]]: the same six entries."""
    p, q, r = d * f - e * e, c * e - b * f, b * e - c * d
    s = 1.0 / (a * p + b * q + c * r)
    return s * p, s * q, s * r, s * (a * f - c * c), s * (b * c - a * e), s * (a * d - b * b)


@triton.jit
def _invert_own(block, result, live, t0, t1, t2, t3, t4, t5):
    """Inverse of symmetric 6 x 6 blocks with t added to their diagonals, by halves (Schur)."""
    p00, p01, p02 = tl.load(block, mask=live, other=1.0) + t0, tl.load(block + 1, mask=live, other=0.0), tl.load(block + 2, mask=live, other=0.0)
    p11, p12 = tl.load(block + 7, mask=live, other=1.0) + t1, tl.load(block + 8, mask=live, other=0.0)
    p22 = tl.load(block + 14, mask=live, other=1.0) + t2
    q00, q01, q02 = tl.load(block + 3, mask=live, other=0.0), tl.load(block + 4, mask=live, other=0.0), tl.load(block + 5, mask=live, other=0.0)
    q10, q11, q12 = tl.load(block + 9, mask=live, other=0.0), tl.load(block + 10, mask=live, other=0.0), tl.load(block + 11, mask=live, other=0.0)
    q20, q21, q22 = tl.load(block + 15, mask=live, other=0.0), tl.load(block + 16, mask=live, other=0.0), tl.load(block + 17, mask=live, other=0.0)
    i00, i01, i02, i11, i12, i22 = _inverse(p00, p01, p02, p11, p12, p22)
    x00, x01, x02 = i00 * q00 + i01 * q10 + i02 * q20, i00 * q01 + i01 * q11 + i02 * q21, i00 * q02 + i01 * q12 + i02 * q22
    x10, x11, x12 = i01 * q00 + i11 * q10 + i12 * q20, i01 * q01 + i11 * q11 + i12 * q21, i01 * q02 + i11 * q12 + i12 * q22
    x20, x21, x22 = i02 * q00 + i12 * q10 + i22 * q20, i02 * q01 + i12 * q11 + i22 * q21, i02 * q02 + i12 * q12 + i22 * q22
    s00 = tl.load(block + 21, mask=live, other=1.0) + t3 - (q00 * x00 + q10 * x10 + q20 * x20)
    s01 = tl.load(block + 22, mask=live, other=0.0) - (q00 * x01 + q10 * x11 + q20 * x21)
    s02 = tl.load(block + 23, mask=live, other=0.0) - (q00 * x02 + q10 * x12 + q20 * x22)
    s11 = tl.load(block + 28, mask=live, other=1.0) + t4 - (q01 * x01 + q11 * x11 + q21 * x21)
    s12 = tl.load(block + 29, mask=live, other=0.0) - (q01 * x02 + q11 * x12 + q21 * x22)
    s22 = tl.load(block + 35, mask=live, other=1.0) + t5 - (q02 * x02 + q12 * x12 + q22 * x22)
    j00, j01, j02, j11, j12, j22 = _inverse(s00, s01, s02, s11, s12, s22)
    y00, y01, y02 = -(x00 * j00 + x01 * j01 + x02 * j02), -(x00 * j01 + x01 * j11 + x02 * j12), -(x00 * j02 + x01 * j12 + x02 * j22)
    y10, y11, y12 = -(x10 * j00 + x11 * j01 + x12 * j02), -(x10 * j01 + x11 * j11 + x12 * j12), -(x10 * j02 + x11 * j12 + x12 * j22)
    y20, y21, y22 = -(x20 * j00 + x21 * j01 + x22 * j02), -(x20 * j01 + x21 * j11 + x22 * j12), -(x20 * j02 + x21 * j12 + x22 * j22)
    i00, i01, i02 = i00 - (y00 * x00 + y01 * x01 + y02 * x02), i01 - (y00 * x10 + y01 * x11 + y02 * x12), i02 - (y00 * x20 + y01 * x21 + y02 * x22)
    i11, i12 = i11 - (y10 * x10 + y11 * x11 + y12 * x12), i12 - (y10 * x20 + y11 * x21 + y12 * x22)
    i22 = i22 - (y20 * x20 + y21 * x21 + y22 * x22)
    _row(result, i00, i01, i02, y00, y01, y02, live)
    _row(result + 6, i01, i11, i12, y10, y11, y12, live)
    _row(result + 12, i02, i12, i22, y20, y21, y22, live)
    _row(result + 18, y00, y10, y20, j00, j01, j02, live)
    _row(result + 24, y01, y11, y21, j01, j11, j12, live)
    _row(result + 30, y02, y12, y22, j02, j12, j22, live)


@triton.jit
def _row(at, v0, v1, v2, v3, v4, v5, live):
    tl.store(at, v0, mask=live)
    tl.store(at + 1, v1, mask=live)
    tl.store(at + 2, v2, mask=live)
    tl.store(at + 3, v3, mask=live)
    tl.store(at + 4, v4, mask=live)
    tl.store(at + 5, v5, mask=live)


@triton.jit
def _precondition(inverse, r, z, first, last, TILE: tl.constexpr):
    """z = D^-1 r of a program's own nodes; returns r . z."""
    product = tl.zeros((), tl.float64)
    for start in range(first, last, TILE):
        n, a = start + tl.arange(0, TILE)[:, None], tl.arange(0, 8)[None]
        live = (n < last) & (a < 6)
        value = tl.zeros((TILE, 8), tl.float64)
        for b in tl.static_range(6):
            value += tl.load(inverse + n * 36 + a * 6 + b, mask=live, other=0.0) * tl.load(r + n * 6 + b, mask=n < last, other=0.0)
        tl.store(z + n * 6 + a, value, mask=live, cache_modifier=".cg")
        product += tl.sum(tl.sum(value * tl.load(r + n * 6 + a, mask=live, other=0.0), 1), 0)
    return product


@launched(do_not_specialize=["nodes", "rounds"])
def _conjugate_gradients(
    blocks, rhs, diagonal, row_start, entry, column, x, r, z, q, p, inverse, partial, counter, nodes, damping, tolerance, rounds,
    PROGRAMS: tl.constexpr, ROOM: tl.constexpr, TILE: tl.constexpr, ENTRIES: tl.constexpr,
):  # fmt: skip
    """Solve (A + damping) x = rhs by conjugate gradients, preconditioned by the nodes' own blocks; every program has some of the nodes.

    A direction is made where it is multiplied, from z and the direction before, which lies in the other half of `p`: two meetings a round suffice.
    """
    program, unknowns = tl.program_id(0), 6 * nodes
    each = tl.cdiv(nodes, PROGRAMS)
    first = program * each
    last = tl.minimum(first + each, nodes)
    part = tl.arange(0, 8)
    sums = tl.zeros((8,), tl.float64)
    for start in range(0, nodes, 64):
        n = start + tl.arange(0, 64)
        at = tl.load(diagonal + n, mask=n < nodes, other=0)
        sums += tl.sum(tl.load(blocks + at[:, None] * 36 + 7 * part[None], mask=(n < nodes)[:, None] & (part < 6)[None], other=0.0), 0)
    scale = sums / nodes  # per unknown kind: rotations and translations have different units
    added = damping * scale + 1e-12 * tl.max(scale, 0) + 1e-300
    t0, t1, t2 = tl.sum(tl.where(part == 0, added, 0.0), 0), tl.sum(tl.where(part == 1, added, 0.0), 0), tl.sum(tl.where(part == 2, added, 0.0), 0)
    t3, t4, t5 = tl.sum(tl.where(part == 3, added, 0.0), 0), tl.sum(tl.where(part == 4, added, 0.0), 0), tl.sum(tl.where(part == 5, added, 0.0), 0)
    for start in range(first, last, TILE):
        n = start + tl.arange(0, TILE)
        own = tl.load(diagonal + n, mask=n < last, other=0)
        _invert_own(blocks + own * 36, inverse + n * 36, n < last, t0, t1, t2, t3, t4, t5)
        n, a = n[:, None], part[None]
        live = (n < last) & (a < 6)
        tl.store(r + n * 6 + a, tl.load(rhs + n * 6 + a, mask=live, other=0.0), mask=live)
        tl.store(x + n * 6 + a, tl.zeros((TILE, 8), tl.float64), mask=live)
        tl.store(p + n * 6 + a, tl.zeros((TILE, 8), tl.float64), mask=live, cache_modifier=".cg")
    tl.debug_barrier()
    tl.store(partial + program, _precondition(inverse, r, z, first, last, TILE), cache_modifier=".cg")
    _meet(counter, PROGRAMS, PROGRAMS)
    left = _total(partial, PROGRAMS, ROOM)
    goal, beta = tolerance * tolerance * left, left * 0.0
    done = tl.zeros((), tl.int32)
    while (done < rounds) & (left > goal):
        before, after = p + (done % 2) * unknowns, p + ((done + 1) % 2) * unknowns
        product = tl.zeros((), tl.float64)
        for start in range(first, last, TILE):
            n = start + tl.arange(0, TILE)
            begin, end = tl.load(row_start + n, mask=n < last, other=0), tl.load(row_start + n + 1, mask=n < last, other=0)
            total = tl.zeros((TILE, ENTRIES, 8), tl.float64)
            for offset in range(0, tl.max(end - begin, 0), ENTRIES):
                e = begin[:, None] + offset + tl.arange(0, ENTRIES)[None]
                valid = e < end[:, None]
                there, code = tl.load(column + e, mask=valid, other=0), tl.load(entry + e, mask=valid, other=0)
                block, flipped, a = blocks + (code // 2)[:, :, None] * 36, (code % 2)[:, :, None] == 1, part[None, None]
                inside = valid[:, :, None] & (a < 6)
                for b in tl.static_range(6):
                    along = tl.load(z + there * 6 + b, mask=valid, other=0.0, cache_modifier=".cg")
                    along += beta * tl.load(before + there * 6 + b, mask=valid, other=0.0, cache_modifier=".cg")
                    total += tl.load(block + tl.where(flipped, b * 6 + a, a * 6 + b), mask=inside, other=0.0) * along[:, :, None]
            n, a = n[:, None], part[None]
            live = (n < last) & (a < 6)
            own = tl.load(z + n * 6 + a, mask=live, other=0.0, cache_modifier=".cg")
            own += beta * tl.load(before + n * 6 + a, mask=live, other=0.0, cache_modifier=".cg")
            value = tl.sum(total, 1) + added[None] * own
            tl.store(after + n * 6 + a, own, mask=live, cache_modifier=".cg")
            tl.store(q + n * 6 + a, value, mask=live)
            product += tl.sum(tl.sum(own * value, 1), 0)
        tl.store(partial + ROOM + program, product, cache_modifier=".cg")
        _meet(counter, (2 * done + 2) * PROGRAMS, PROGRAMS)
        curvature = _total(partial + ROOM, PROGRAMS, ROOM)
        alpha = tl.where(curvature > 0, left / curvature, float("nan"))
        for start in range(first, last, TILE):
            n, a = start + tl.arange(0, TILE)[:, None], part[None]
            live, at = (n < last) & (a < 6), n * 6 + a
            tl.store(x + at, tl.load(x + at, mask=live, other=0.0) + alpha * tl.load(after + at, mask=live, other=0.0, cache_modifier=".cg"), mask=live)
            tl.store(r + at, tl.load(r + at, mask=live, other=0.0) - alpha * tl.load(q + at, mask=live, other=0.0), mask=live)
        tl.debug_barrier()
        tl.store(partial + program, _precondition(inverse, r, z, first, last, TILE), cache_modifier=".cg")
        _meet(counter, (2 * done + 3) * PROGRAMS, PROGRAMS)
        now = _total(partial, PROGRAMS, ROOM)
        beta, left = now / left, now
        done += 1
    if (left != left) | (left < 0):  # not positive definite, or not finite from the start
        for start in range(first, last, TILE):
            n, a = start + tl.arange(0, TILE)[:, None], part[None]
            tl.store(x + n * 6 + a, tl.full((TILE, 8), float("nan"), tl.float64), mask=(n < last) & (a < 6))


def _power_below(count: int) -> int:
    """The largest power of two that is not larger: kernels are compiled for few numbers of programs."""
    return 1 << (count.bit_length() - 1)


def solve(body: Body, blocks: Tensor, rhs: Tensor, damping: float, programs: int | None = None, tolerance: float | None = None) -> Tensor:
    """Twists [M, 6] that solve the block system with its diagonal raised by `damping` as in `deformation_solver.step`.

    Not a number where a direction is met along which the matrix is not positive definite.

    Args:
        programs: that share the nodes and wait for each other; None: as many as the device runs side by side for certain.
        tolerance: of the residual; None: TOLERANCE.
    """
    gather, m = body.pattern.gather, len(body.nodes)
    programs = programs or min(triton.next_power_of_2(triton.cdiv(m, TILE)), _power_below(multiprocessors(rhs.device)))
    x, r, z, q = (torch.empty_like(rhs) for _ in range(4))
    p, inverse = rhs.new_empty(2, m, 6), rhs.new_empty(m, 6, 6)
    room = max(triton.next_power_of_2(programs), 2)
    partial, counter = rhs.new_empty(2, room), torch.zeros(1, dtype=torch.int32, device=rhs.device)
    together = {"launch_cooperative_grid": True} if programs > 1 else {}
    with _backend.on(rhs):
        _conjugate_gradients[(programs,)](
            blocks, rhs, body.pattern.diagonal, gather.row_start, gather.entry, gather.column, x, r, z, q, p, inverse, partial, counter,
            m, damping, TOLERANCE if tolerance is None else tolerance, ROUNDS, PROGRAMS=programs, ROOM=room, TILE=TILE, ENTRIES=ENTRIES, **together,
        )  # fmt: skip
    return x
