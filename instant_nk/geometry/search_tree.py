"""A tree of boxes over points that move a little between searches, as compiled CPU loops (numba), double precision.

Registration searches the same two clouds some thirty times, each time moved by a fraction of the spacing. So the tree is laid once and its
boxes are fitted again, and a search starts from what the last one found: hardly anything is left to look at. The answer is exact and does not
depend on where a search starts: the nearest point, and of equally near ones the one with the lowest index.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from instant_nk.kernels._loop import loop
from instant_nk.kernels._threads import over_rows

WIDTH = 8  # children of a box, tested side by side
LEAF = 16  # points of a leaf at most, compared side by side
STACK = 128


class SearchTree:
    """An index over `points` [N, D] that answers nearest-neighbour queries.

    Args:
        points: f64 [N, D], N >= 1.
    """

    def __init__(self, points: np.ndarray):
        n, self.dim = points.shape
        self.levels = 1
        while WIDTH**self.levels * LEAF < n:
            self.levels += 1
        self.leaves = WIDTH**self.levels
        self.edges = np.arange(self.leaves + 1) * n // self.leaves
        self.order = np.arange(n)
        _sort(np.ascontiguousarray(points), self.order, self.edges)
        self.first = np.array([(WIDTH**level - 1) // (WIDTH - 1) for level in range(self.levels + 1)])  # number of the first box of each level
        self.low = np.full((int(self.first[-1]), self.dim, WIDTH), np.inf)
        self.high = np.full_like(self.low, -np.inf)
        self.packed = np.full((self.leaves, self.dim, LEAF), np.inf)
        self.fit(points)

    def fit(self, points: np.ndarray) -> None:
        """The same points at other places: boxes follow, the tree's branches stay."""
        _fit(np.ascontiguousarray(points), self.order, self.edges, self.first, self.packed, self.low, self.high)

    def query(self, queries: np.ndarray, k: int = 1, guess: np.ndarray | None = None, visit: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Squared distances [Q, k] and indices i64 [Q, k] of the k nearest points (k <= N), nearest first.

        Args:
            queries: f64 [Q, D].
            guess: index of a point near each query, i64 [Q]; for k = 1 only.
            visit: the queries in an order in which neighbours follow each other, i64 [Q]: many points do not fit a cache.
        """
        queries = np.ascontiguousarray(queries)
        squared, index = np.full((len(queries), k), np.inf), np.full((len(queries), k), -1, np.int64)
        guess = guess if guess is not None else np.empty(0, np.int64)
        place = self._place() if len(guess) else guess
        tree = (self.order, self.edges, self.first, self.levels, self.packed, self.low, self.high)
        visit = visit if visit is not None else np.arange(len(queries))
        over_rows(len(queries), lambda a, b: _search(visit[a:b], queries, *tree, guess, place, squared, index))
        return squared, index

    def _place(self) -> np.ndarray:
        """Leaf and slot of each point as one number, i64 [N]."""
        leaf = np.repeat(np.arange(self.leaves), np.diff(self.edges))
        place = np.empty(len(self.order), np.int64)
        place[self.order] = leaf * LEAF + np.arange(len(self.order)) - self.edges[leaf]
        return place


@loop()
def _sort(points, order, edges):
    """Reorder so that every leaf's points lie together: ranges are halved at their middle along their longest side."""
    dim = points.shape[1]
    first, last = np.empty(64, np.int64), np.empty(64, np.int64)
    first[0], last[0], top = 0, len(edges) - 1, 1
    while top:
        top -= 1
        a, b = first[top], last[top]
        if b - a < 2 or edges[b] - edges[a] < 2:
            continue
        best, longest = 0, -1.0
        for d in range(dim):
            low, high = np.inf, -np.inf
            for i in range(edges[a], edges[b]):
                low, high = min(low, points[order[i], d]), max(high, points[order[i], d])
            if high - low > longest:
                best, longest = d, high - low
        middle = (a + b) // 2
        _select(points, order, edges[a], edges[b], edges[middle], best)
        first[top], last[top] = a, middle
        first[top + 1], last[top + 1] = middle, b
        top += 2


@loop()
def _select(points, order, low, high, rank, d):
    """Order so that what stands before `rank` is at most as large along d as what stands behind (Hoare)."""
    high -= 1
    while low < high:
        pivot = points[order[(low + high) // 2], d]
        i, j = low, high
        while i <= j:
            while points[order[i], d] < pivot:
                i += 1
            while points[order[j], d] > pivot:
                j -= 1
            if i <= j:
                order[i], order[j] = order[j], order[i]
                i += 1
                j -= 1
        if rank <= j:
            high = j
        elif rank >= i:
            low = i
        else:
            return


@loop()
def _fit(points, order, edges, first, packed, low, high):
    dim, levels = points.shape[1], len(first) - 1
    for leaf in range(len(edges) - 1):
        box, child = first[levels - 1] + leaf // WIDTH, leaf % WIDTH
        for d in range(dim):
            smallest, largest = np.inf, -np.inf
            for i in range(edges[leaf], edges[leaf + 1]):
                value = points[order[i], d]
                packed[leaf, d, i - edges[leaf]] = value
                smallest, largest = min(smallest, value), max(largest, value)
            low[box, d, child], high[box, d, child] = smallest, largest
    for level in range(levels - 2, -1, -1):
        for box in range(first[level], first[level + 1]):
            for child in range(WIDTH):
                inner = first[level + 1] + (box - first[level]) * WIDTH + child
                for d in range(dim):
                    low[box, d, child], high[box, d, child] = low[inner, d].min(), high[inner, d].max()


@njit(inline="always")
def keep(squared, index, value, name):
    """Put a candidate in its place among the k best."""
    slot = len(squared) - 1
    if value > squared[slot] or (value == squared[slot] and name >= index[slot]):
        return
    while slot > 0 and (value < squared[slot - 1] or (value == squared[slot - 1] and name < index[slot - 1])):
        squared[slot], index[slot] = squared[slot - 1], index[slot - 1]
        slot -= 1
    squared[slot], index[slot] = value, name


@loop()
def _search(visit, queries, order, edges, first, levels, packed, low, high, guess, place, squared, index):
    dim, k = queries.shape[1], squared.shape[1]
    waiting, at, level_of = np.empty(STACK), np.empty(STACK, np.int64), np.empty(STACK, np.int64)
    near, apart = np.empty(WIDTH), np.empty(LEAF)
    for n in visit:
        best, found = squared[n], index[n]
        if len(guess):
            leaf, slot = place[guess[n]] // LEAF, place[guess[n]] % LEAF
            total = 0.0
            for d in range(dim):
                away = queries[n, d] - packed[leaf, d, slot]
                total += away * away
            best[0], found[0] = total, guess[n]
        waiting[0], at[0], level_of[0], top = 0.0, 0, 0, 1
        while top:
            top -= 1
            if waiting[top] > best[k - 1]:
                continue
            level, inside = level_of[top], at[top]
            if level == levels:
                for j in range(LEAF):
                    apart[j] = 0.0
                for d in range(dim):
                    q, row = queries[n, d], packed[inside, d]
                    for j in range(LEAF):
                        away = q - row[j]
                        apart[j] += away * away
                for j in range(edges[inside + 1] - edges[inside]):
                    if apart[j] <= best[k - 1]:
                        name = order[edges[inside] + j]
                        if k > 1 or name != found[0]:
                            keep(best, found, apart[j], name)
                continue
            box = first[level] + inside
            for j in range(WIDTH):
                near[j] = 0.0
            for d in range(dim):
                q, least, most = queries[n, d], low[box, d], high[box, d]
                for j in range(WIDTH):
                    away = max(max(least[j] - q, q - most[j]), 0.0)
                    near[j] += away * away
            begin = top
            for j in range(WIDTH):  # farthest at the bottom of the stack
                if near[j] <= best[k - 1]:
                    slot = top
                    while slot > begin and waiting[slot - 1] < near[j]:
                        waiting[slot], at[slot], level_of[slot] = waiting[slot - 1], at[slot - 1], level_of[slot - 1]
                        slot -= 1
                    waiting[slot], at[slot], level_of[slot] = near[j], inside * WIDTH + j, level + 1
                    top += 1
