"""What the nodes of a graph hold, as compiled CPU loops (numba): weights, radii and links; numpy in `deformation_graph.py` defines what is right.

Sums run in numpy's order, so both find the same to the bit.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from instant_nk.kernels._loop import loop


@njit(inline="always")
def apart(a, b):
    x, y, z = a[0] - b[0], a[1] - b[1], a[2] - b[2]
    return math.sqrt(x * x + y * y + z * z)


@njit
def share_out(relative, point, anchors, nodes, weights):
    """`deformation_graph.skinning_weights` of one point from the distances of its anchors in units of their radii."""
    total = 0.0
    for i in range(len(anchors)):
        share = max(1 - relative[i] * relative[i], 0.0)
        weights[i] = share * share * share
        total += weights[i]
    if total > 1e-12:
        for i in range(len(anchors)):
            weights[i] /= total
    else:
        closest = 0
        for i in range(1, len(anchors)):
            if apart(point, nodes[anchors[i]]) < apart(point, nodes[anchors[closest]]):
                closest = i
        weights[:] = 0.0
        weights[closest] = 1.0


@loop(error_model="numpy")
def skin(points, anchors, nodes, radii, weights, first, last):
    relative = np.empty(anchors.shape[1])
    for p in range(first, last):
        for i in range(anchors.shape[1]):
            relative[i] = apart(points[p], nodes[anchors[p, i]]) / radii[anchors[p, i]]
        share_out(relative, points[p], anchors[p], nodes, weights[p])


@loop()
def extents(fine, positions, nearest, anchors, k):
    """How far from vertices that a node anchors the first node lies that they leave out: the upper median, f64 [M], -1 where no vertex leaves one
    out; and how far the vertices lie to which it is the nearest, at most, f64 [M]."""
    m = len(positions)
    start, need, dropped = np.zeros(m + 1, np.int64), np.zeros(m), np.empty(len(fine))
    for v in range(len(fine)):
        need[anchors[v, 0]] = max(need[anchors[v, 0]], apart(fine[v], positions[anchors[v, 0]]))
        if nearest[v, k] >= 0:
            dropped[v] = apart(fine[v], positions[nearest[v, k]])
            for i in range(k):
                start[anchors[v, i] + 1] += 1
    for node in range(m):
        start[node + 1] += start[node]
    of, place = np.empty(start[m]), start[:-1].copy()
    for v in range(len(fine)):
        if nearest[v, k] >= 0:
            for i in range(k):
                of[place[anchors[v, i]]] = dropped[v]
                place[anchors[v, i]] += 1
    middle = np.full(m, -1.0)
    for node in range(m):
        if start[node + 1] > start[node]:
            middle[node] = _ranked(of[start[node] : start[node + 1]], (start[node + 1] - start[node]) // 2)
    return middle, need


@njit
def _ranked(values, rank):
    """The value that comes at a rank when they are in order, as which they are left by half (Hoare); numba takes five seconds to compile `np.partition`."""
    low, high = 0, len(values) - 1
    while low < high:
        pivot, i, j = values[(low + high) // 2], low, high
        while i <= j:
            while values[i] < pivot:
                i += 1
            while values[j] > pivot:
                j -= 1
            if i <= j:
                values[i], values[j] = values[j], values[i]
                i += 1
                j -= 1
        if rank <= j:
            high = j
        elif rank >= i:
            low = i
        else:
            break
    return values[rank]


@loop()
def strongest(pairs, weight, nodes):
    """Pairs of nodes i <= j, each once, sorted, i64 [U, 2], and the largest weight that any of those given has, f64 [U]."""
    start, count = np.zeros(nodes + 1, np.int64), np.zeros(nodes + 1, np.int64)
    for p in range(len(pairs)):
        start[max(pairs[p, 0], pairs[p, 1]) + 1] += 1
        count[min(pairs[p, 0], pairs[p, 1]) + 1] += 1
    for node in range(nodes):
        start[node + 1] += start[node]
        count[node + 1] += count[node]
    by_high, place = np.empty(len(pairs), np.int64), start[:-1].copy()
    for p in range(len(pairs)):
        high = max(pairs[p, 0], pairs[p, 1])
        by_high[place[high]] = p
        place[high] += 1
    other, best, place = np.empty(len(pairs), np.int64), np.empty(len(pairs)), count[:-1].copy()
    for p in by_high:
        low, high = min(pairs[p, 0], pairs[p, 1]), max(pairs[p, 0], pairs[p, 1])
        at = place[low]
        if at > count[low] and other[at - 1] == high:
            best[at - 1] = max(best[at - 1], weight[p])
        else:
            other[at], best[at] = high, weight[p]
            place[low] += 1
    unique, size = np.empty((len(pairs), 2), np.int64), 0
    for low in range(nodes):
        for at in range(count[low], place[low]):
            unique[size, 0], unique[size, 1], best[size] = low, other[at], best[at]
            size += 1
    return unique[:size].copy(), best[:size].copy()
