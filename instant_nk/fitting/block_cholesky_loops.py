"""The compiled loops (numba) of `block_cholesky`: fronts are dense, row-major, lower triangle."""

from __future__ import annotations

import numpy as np
from numba import njit

from instant_nk.kernels._loop import loop

SIZE = 6
TILE = 252  # columns worked on at a time: a number that the compiler knows, so that it sees what overlaps


@loop(fastmath={"contract"})
def eliminate(
    fronts, nodes, row_start, width, block, place, flipped, block_start, children, child_start, within, within_start,
    factor_start, front_start, update_start, values, factor, work,
):  # fmt: skip
    """Assemble and eliminate `fronts` in order; False where a pivot is not positive."""
    for f in fronts:
        rows = row_start[f + 1] - row_start[f]
        n, pivots = SIZE * rows, SIZE * width[f]
        front = work[front_start[f] : front_start[f] + n * n].reshape(n, n)
        for i in range(n):
            for j in range(i + 1):
                front[i, j] = 0.0
        for e in range(block_start[f], block_start[f + 1]):
            i, j, value = SIZE * (place[e] // rows), SIZE * (place[e] % rows), values[block[e]]
            for a in range(SIZE):
                for b in range(SIZE):
                    front[i + a, j + b] = value[b, a] if flipped[e] else value[a, b]
        for c in range(child_start[f], child_start[f + 1]):
            _extend(children[c], row_start, width, within, within_start, update_start, work, front)
        panel = factor[factor_start[f] : factor_start[f + 1]].reshape(n, pivots)
        if not _partial(front, panel, pivots):
            return False
        left = n - pivots
        # The remains move to where the children's were; rows go upwards in memory, so that none is overwritten before it is read.
        update = work[update_start[f] : update_start[f] + left * left].reshape(left, left)
        for i in range(left):
            for j in range(i + 1):
                update[i, j] = front[pivots + i, pivots + j]
    return True


@njit(inline="always")
def _extend(child, row_start, width, within, within_start, update_start, work, front):
    count = row_start[child + 1] - row_start[child] - width[child]
    size = SIZE * count
    update = work[update_start[child] : update_start[child] + size * size].reshape(size, size)
    where = within[within_start[child] : within_start[child + 1]]
    for i in range(count):
        for j in range(i + 1):
            to_i, to_j = SIZE * where[i], SIZE * where[j]
            if j < i:
                for a in range(SIZE):
                    for b in range(SIZE):
                        front[to_i + a, to_j + b] += update[SIZE * i + a, SIZE * j + b]
            else:
                for a in range(SIZE):
                    for b in range(a + 1):
                        front[to_i + a, to_j + b] += update[SIZE * i + a, SIZE * j + b]


@njit(inline="always")
def _partial(front, panel, pivots):
    """Eliminate the first `pivots` columns; their factor goes to `panel` [n, pivots]."""
    n = len(front)
    turned = np.empty(SIZE * TILE)
    for k in range(0, pivots, SIZE):
        if not _column(front, turned, k):
            return False
    for i in range(n):
        for j in range(min(i + 1, pivots)):
            panel[i, j] = front[i, j]
    return True


@njit(inline="always")
def _column(front, turned, k):
    """Eliminate the six columns from k on, and take what they explain off the rest; False where a pivot is not positive."""
    n = len(front)
    d = front[k : k + SIZE, k : k + SIZE]
    for j in range(SIZE):
        value = d[j, j]
        for p in range(j):
            value -= d[j, p] * d[j, p]
        if not value > 0.0:
            return False
        d[j, j] = np.sqrt(value)
        for i in range(j + 1, SIZE):
            value = d[i, j]
            for p in range(j):
                value -= d[i, p] * d[j, p]
            d[i, j] = value / d[j, j]
    a0, a1, a2, a3, a4, a5 = 1 / d[0, 0], 1 / d[1, 1], 1 / d[2, 2], 1 / d[3, 3], 1 / d[4, 4], 1 / d[5, 5]
    for i in range(k + SIZE, n):
        row = front[i]
        x0 = row[k] * a0
        x1 = (row[k + 1] - x0 * d[1, 0]) * a1
        x2 = (row[k + 2] - x0 * d[2, 0] - x1 * d[2, 1]) * a2
        x3 = (row[k + 3] - x0 * d[3, 0] - x1 * d[3, 1] - x2 * d[3, 2]) * a3
        x4 = (row[k + 4] - x0 * d[4, 0] - x1 * d[4, 1] - x2 * d[4, 2] - x3 * d[4, 3]) * a4
        x5 = (row[k + 5] - x0 * d[5, 0] - x1 * d[5, 1] - x2 * d[5, 2] - x3 * d[5, 3] - x4 * d[5, 4]) * a5
        row[k], row[k + 1], row[k + 2], row[k + 3], row[k + 4], row[k + 5] = x0, x1, x2, x3, x4, x5
    for low in range(k + SIZE, n, TILE):
        for j in range(min(TILE, n - low)):
            for p in range(SIZE):
                turned[p * TILE + j] = front[low + j, k + p]
        for i in range(low, n, 3):  # three rows share what is loaded; a node's own block is filled whole
            stop = min(low + TILE, i + SIZE - i % SIZE)
            _take_off(front[i, low:stop], front[i + 1, low:stop], front[i + 2, low:stop], front[i, k:], front[i + 1, k:], front[i + 2, k:], turned)
    return True


@njit(inline="always")
def _take_off(first, second, third, x, y, z, turned):
    """Slices begin at their own zero: with indices that might be negative nothing is vectorised."""
    x0, x1, x2, x3, x4, x5 = x[0], x[1], x[2], x[3], x[4], x[5]
    y0, y1, y2, y3, y4, y5 = y[0], y[1], y[2], y[3], y[4], y[5]
    z0, z1, z2, z3, z4, z5 = z[0], z[1], z[2], z[3], z[4], z[5]
    for j in range(len(first)):
        u0, u1, u2 = turned[j], turned[TILE + j], turned[2 * TILE + j]
        u3, u4, u5 = turned[3 * TILE + j], turned[4 * TILE + j], turned[5 * TILE + j]
        first[j] -= x0 * u0 + x1 * u1 + x2 * u2 + x3 * u3 + x4 * u4 + x5 * u5
        second[j] -= y0 * u0 + y1 * u1 + y2 * u2 + y3 * u3 + y4 * u4 + y5 * u5
        third[j] -= z0 * u0 + z1 * u1 + z2 * u2 + z3 * u3 + z4 * u4 + z5 * u5


@loop(fastmath={"contract"})
def substitute(nodes, row_start, width, factor_start, factor, x):
    """Forwards and backwards through the fronts; x [M, 6] holds the right-hand side and then the solution."""
    fronts = len(width)
    for f in range(fronts):
        at, n, pivots = row_start[f], SIZE * (row_start[f + 1] - row_start[f]), SIZE * width[f]
        panel = factor[factor_start[f] : factor_start[f + 1]].reshape(n, pivots)
        y = np.empty(pivots)
        for i in range(n):
            node, a = nodes[at + i // SIZE], i % SIZE
            value = x[node, a]
            if i < pivots:
                for j in range(i):
                    value -= panel[i, j] * y[j]
                y[i] = value / panel[i, i]
                x[node, a] = y[i]
            else:
                for j in range(pivots):
                    value -= panel[i, j] * y[j]
                x[node, a] = value
    for f in range(fronts - 1, -1, -1):
        at, n, pivots = row_start[f], SIZE * (row_start[f + 1] - row_start[f]), SIZE * width[f]
        panel = factor[factor_start[f] : factor_start[f + 1]].reshape(n, pivots)
        y = np.zeros(pivots)
        for i in range(n - 1, pivots - 1, -1):
            value = x[nodes[at + i // SIZE], i % SIZE]
            for j in range(pivots):
                y[j] += panel[i, j] * value
        for i in range(pivots - 1, -1, -1):
            node, a = nodes[at + i // SIZE], i % SIZE
            value = (x[node, a] - y[i]) / panel[i, i]
            x[node, a] = value
            for j in range(i):
                y[j] += panel[i, j] * value
