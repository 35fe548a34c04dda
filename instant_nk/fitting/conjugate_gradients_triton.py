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
def _invert(a):
    """Inverses of symmetric positive definite 6 x 6 matrices in [TILE, 8, 8], identity beyond, by Gauss and Jordan: few wide operations compile sooner than many."""
    row, column = tl.arange(0, 8)[None, :, None], tl.arange(0, 8)[None, None, :]
    for k in range(6):
        along, down = tl.sum(tl.where(row == k, a, 0.0), 1)[:, None, :], tl.sum(tl.where(column == k, a, 0.0), 2)[:, :, None]
        pivot = 1.0 / tl.sum(tl.where(column == k, along, 0.0), 2)[:, :, None]
        swept = a - down * along * pivot
        a = tl.where(row == k, tl.where(column == k, pivot, along * pivot), tl.where(column == k, -down * pivot, swept))
    return a


@triton.jit
def _precondition(inverse, r, z, first, last, TILE: tl.constexpr):
    """z = D^-1 r of a program's own nodes; returns r . z."""
    product = tl.zeros((), tl.float64)
    for start in range(first, last, TILE):
        n, a, b = start + tl.arange(0, TILE)[:, None], tl.arange(0, 8)[None], tl.arange(0, 8)[None, None]
        live = (n < last) & (a < 6)
        inside = live[:, :, None] & (b < 6)
        block = tl.load(inverse + n[:, :, None] * 36 + a[:, :, None] * 6 + b, mask=inside, other=0.0)
        value = tl.sum(block * tl.load(r + n[:, :, None] * 6 + b, mask=(n < last)[:, :, None] & (b < 6), other=0.0), 2)
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
    for start in range(first, last, TILE):
        n = start + tl.arange(0, TILE)
        own = tl.load(diagonal + n, mask=n < last, other=0)[:, None, None] * 36
        a, b = part[None, :, None], part[None, None, :]
        at, inside = a * 6 + b, (n < last)[:, None, None] & (a < 6) & (b < 6)
        upper = tl.where(a <= b, at, b * 6 + a)  # below the diagonal a block of its own holds whatever it holds
        block = tl.load(blocks + own + upper, mask=inside, other=0.0)
        tl.store(inverse + n[:, None, None] * 36 + at, _invert(tl.where(a == b, tl.where(inside, block + added[None, :, None], 1.0), block)), mask=inside)
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
