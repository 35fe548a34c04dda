"""The graph of links along a surface, farthest points and nearest nodes on it, as compiled CPU loops (numba), for surfaces on which rows of
distances to every vertex, one per node, would take most of the time. `surface.py` and `models/deformation_graph.py` have the same in numpy and
scipy, which defines what is right.

A distance is the least sum of lengths over all paths, added up from the source on, so it does not depend on the order in which vertices are
visited. They wait in buckets of about equal distance, which costs less than a heap: the few that are visited early are visited again.
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np
from numba import njit

from instant_nk.geometry.search_tree import keep
from instant_nk.kernels._loop import loop
from instant_nk.kernels._threads import LEAST, each, over_rows
from instant_nk.kernels._threads import count as threads

BUCKETS = 4096  # at most
WIDTH = 0.25  # of a bucket, in mean lengths of a link
MARGIN = 1e-9  # of the limit: far more than the rounding of a path's length, far less than what makes a difference in time
LEAST_NODES = 32  # nodes worth a thread of their own


@njit
def _queue(vertices, lengths, farthest):
    """An empty queue of vertices that wait in buckets up to a distance: i32 [V + B] before and after each in its circle, the last B stand for
    the buckets, -1 for a vertex that does not wait; and the buckets of a unit of distance."""
    width = max(WIDTH * lengths.mean(), farthest / (BUCKETS - 1)) if len(lengths) else 1.0
    buckets = min(BUCKETS, 1 + int(farthest / width)) if width < np.inf else 1
    before = np.full(vertices + buckets, -1, np.int32)
    before[vertices:] = np.arange(vertices, vertices + buckets)
    return before, before.copy(), 1.0 / width


@njit(inline="always")
def _leave(vertex, before, after):
    after[before[vertex]], before[after[vertex]] = after[vertex], before[vertex]
    after[vertex] = -1


@njit(inline="always")
def _enter(vertex, bucket, before, after):
    last = before[bucket]
    after[last], before[bucket] = vertex, vertex
    before[vertex], after[vertex] = last, bucket


@njit
def _spread(source, start, links, lengths, bound, distance, queue, touched):
    """Shortest paths from a vertex, no longer than `bound` [V], to where they are shorter than `distance`, which they replace; returns how many
    of those vertices had none before, the first of `touched`."""
    before, after, scale = queue
    first, room = len(distance), len(after) - len(distance) - 1
    distance[source], touched[0], count = 0.0, source, 1
    _enter(source, first, before, after)
    bucket = end = first
    while bucket <= end:
        here = after[bucket]
        if here == bucket:
            bucket += 1
            continue
        _leave(here, before, after)
        for i in range(start[here], start[here + 1]):
            there, length = links[i], distance[here] + lengths[i]
            known = distance[there]
            if length < known and length <= bound[there]:
                distance[there] = length
                place = first + int(min(length * scale, room))
                if known == np.inf:
                    touched[count] = there
                    count += 1
                if after[there] >= 0:
                    if place == first + int(min(known * scale, room)):
                        continue
                    _leave(there, before, after)
                _enter(there, place, before, after)
                end = max(end, place)
    return count


@loop()
def farthest(start, links, lengths, distance, limit, most):
    """Vertices chosen one by one, each farthest from those before it (of equals the first), until all lie within `limit` or there are `most`.

    Args:
        start, links, lengths: the graph by rows (CSR), symmetric.
        distance: f64 [V], from those that are chosen already, finite; overwritten.
    """
    vertices = len(distance)
    chosen, touched, bound = np.empty(most, np.int64), np.empty(vertices, np.int32), np.full(vertices, np.inf)
    queue = _queue(vertices, lengths, distance.max())
    block = 1 + int(math.sqrt(vertices))
    most_in = np.full(1 + (vertices - 1) // block, np.inf)  # distances only shrink, so one of a block that is out of date is too large
    for count in range(most):
        while True:
            at = most_in.argmax()
            far = at * block + distance[at * block : (at + 1) * block].argmax()
            if distance[far] == most_in[at]:
                break
            most_in[at] = distance[far]
        if distance[far] <= limit:
            return chosen[:count]
        chosen[count] = far
        _spread(far, start, links, lengths, bound, distance, queue, touched)
    return chosen


def nearest(start, links, lengths, nodes: np.ndarray, places: np.ndarray, limit: float, count: int, prefixes: list[int]) -> tuple[np.ndarray, list[np.ndarray]]:
    """The `count` nodes nearest to each vertex within `limit`, nearest first, of equals the one with the lower number; -1 where there are fewer.

    Each thread has a slab of the nodes and a table of its own. A path ends where it is longer than that to `count` others: all beyond is
    nearer to them too. So a node near the end of the order, with many about it, is soon done.

    Args:
        start, links, lengths: the graph by rows (CSR), symmetric.
        nodes: their vertices, i64 [M]; places: where they lie, [M, 3].
        prefixes: ascending; for each, only the first so many nodes are looked at, from their own vertices.

    Returns:
        i64 [V, count], and i64 [prefix, count] for each of `prefixes`.
    """
    shares = min(threads(), max(1, min(len(nodes) // LEAST_NODES, (len(start) - 1) // LEAST)))
    slabs = np.array_split(np.argsort(places[:, np.ptp(places, axis=0).argmax()], kind="stable"), shares)
    tables = [None] * shares

    def fill(share: int) -> None:
        tables[share] = _tables(np.sort(slabs[share]), start, links, lengths, nodes, limit, count, np.array([*prefixes, len(nodes)]))

    each([partial(fill, share) for share in range(shares)])
    for one, *others in zip(*tables):
        over_rows(len(one[0]), partial(_merge, one, others))
    *early, (_, whole) = tables[0]
    return whole, [index for _, index in early]


@loop()
def _tables(mine, start, links, lengths, nodes, limit, count, ends):
    """Distances, f64, and nodes, i64, after those of `mine` before each of `ends`: at the vertices of all nodes before it, at the last at all vertices."""
    vertices = len(start) - 1
    near, index = np.full((vertices, count), np.inf), np.full((vertices, count), -1, np.int64)
    distance, bound, touched = np.full(vertices, np.inf), np.full(vertices, limit), np.empty(vertices, np.int32)
    queue = _queue(vertices, lengths, limit)
    result, done = [], 0
    for end in ends:
        while done < len(mine) and mine[done] < end:
            node = mine[done]
            for vertex in touched[: _spread(nodes[node], start, links, lengths, bound, distance, queue, touched)]:
                keep(near[vertex], index[vertex], distance[vertex], node)
                bound[vertex] = min(limit, near[vertex, count - 1] + MARGIN * limit)
                distance[vertex] = np.inf
            done += 1
        result.append((near[nodes[:end]], index[nodes[:end]]) if end < len(nodes) else (near, index))
    return result


def _merge(one: tuple[np.ndarray, np.ndarray], others: list[tuple[np.ndarray, np.ndarray]], first: int, last: int) -> None:
    """Put what other shares found into the table of one, rows first to last."""
    for other in others:
        _put(*one, *other, first, last)


@loop()
def _put(near, index, other_near, other_index, first, last):
    for row in range(first, last):
        for i in range(near.shape[1]):
            if other_index[row, i] < 0:
                break
            keep(near[row], index[row], other_near[row, i], other_index[row, i])


def distance_graph(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`surface.distance_graph` by rows (CSR): i32 [V + 1] first links, i32 [L] their other ends, ascending, f64 [L] lengths.

    Args:
        vertices: f64 [V, 3]; faces: i64 [T, 3].
    """
    start, end, opposite = _sides(len(vertices), faces)
    one, other, length = np.empty(len(end), np.int32), np.empty(len(end), np.int32), np.empty(len(end))
    over_rows(len(vertices), partial(_links, vertices, start, end, opposite, one, other, length))
    return _by_rows(len(vertices), one, other, length)


@loop()
def _sides(vertices, faces):
    """Sides of all faces, sorted by their lower end, the other and the corner of the face they begin at: where each vertex's begin, and i32 [3 T]
    their higher ends and the corners opposite."""
    start = np.zeros(vertices + 1, np.int32)
    for t in range(len(faces)):
        for corner in range(3):
            start[min(faces[t, corner], faces[t, (corner + 1) % 3]) + 1] += 1
    for v in range(vertices):
        start[v + 1] += start[v]
    place, end, opposite = start[:-1].copy(), np.empty(3 * len(faces), np.int32), np.empty(3 * len(faces), np.int32)
    for corner in range(3):
        second, third = (corner + 1) % 3, (corner + 2) % 3
        for t in range(len(faces)):
            low, high = min(faces[t, corner], faces[t, second]), max(faces[t, corner], faces[t, second])
            i = place[low]
            while i > start[low] and end[i - 1] > high:
                end[i], opposite[i] = end[i - 1], opposite[i - 1]
                i -= 1
            end[i], opposite[i] = high, faces[t, third]
            place[low] += 1
    return start, end, opposite


@loop()
def _links(vertices, start, end, opposite, one, other, length, first, last):
    """Ends and length of the link that each side adds, of vertices first to last: the edge, or the diagonal across it where a side before is the same."""
    for a in range(first, last):
        for i in range(start[a], start[a + 1]):
            b, c = end[i], opposite[i]
            if i == start[a] or b != end[i - 1]:
                one[i], other[i], length[i] = a, b, _apart(vertices[a], vertices[b])
            else:
                d = opposite[i - 1]
                one[i], other[i], length[i] = c, d, _unfolded(vertices[a], vertices[b], vertices[d], vertices[c])


@njit
def _apart(a, b):
    x, y, z = a[0] - b[0], a[1] - b[1], a[2] - b[2]
    return max(math.sqrt(x * x + y * y + z * z), 1e-12)


@njit
def _unfolded(a, b, c, d):
    """`surface._unfolded` of one edge, 1e-12 at least."""
    x, y, z = b[0] - a[0], b[1] - a[1], b[2] - a[2]
    length = max(math.sqrt(x * x + y * y + z * z), 1e-30)
    x, y, z = x / length, y / length, z / length
    cx, cy = _flat(c[0] - a[0], c[1] - a[1], c[2] - a[2], x, y, z)
    dx, dy = _flat(d[0] - a[0], d[1] - a[1], d[2] - a[2], x, y, z)
    crossing = (cx * dy + dx * cy) / (cy + dy) if cy + dy > 0 else (cx + dx) / 2
    crossing = min(max(crossing, 0.0), length)
    return max(math.hypot(crossing - cx, cy) + math.hypot(crossing - dx, dy), 1e-12)


@njit
def _flat(px, py, pz, x, y, z):
    """How far a point lies along a unit vector, and beside it."""
    along = px * x + py * y + pz * z
    px, py, pz = px - along * x, py - along * y, pz - along * z
    return along, math.sqrt(px * px + py * py + pz * pz)


@loop()
def _by_rows(vertices, one, other, length):
    """Links both ways by rows (CSR), columns ascending; of several between the same two the shortest, of a vertex with itself none."""
    first = np.zeros(vertices + 1, np.int32)
    for i in range(len(one)):
        first[one[i] + 1] += 1
        first[other[i] + 1] += 1
    for v in range(vertices):
        first[v + 1] += first[v]
    links, lengths, end = np.empty(2 * len(one), np.int32), np.empty(2 * len(one)), first[:-1].copy()
    for i in range(len(one)):
        if one[i] != other[i]:
            _insert(one[i], other[i], length[i], first, end, links, lengths)
            _insert(other[i], one[i], length[i], first, end, links, lengths)
    start, size = np.zeros(vertices + 1, np.int32), 0
    for v in range(vertices):
        for i in range(first[v], end[v]):
            links[size], lengths[size] = links[i], lengths[i]
            size += 1
        start[v + 1] = size
    return start, links[:size].copy(), lengths[:size].copy()


@njit
def _insert(row, column, length, first, end, links, lengths):
    i = end[row]
    while i > first[row] and links[i - 1] > column:
        i -= 1
    if i > first[row] and links[i - 1] == column:
        lengths[i - 1] = min(lengths[i - 1], length)
        return
    for j in range(end[row], i, -1):
        links[j], lengths[j] = links[j - 1], lengths[j - 1]
    links[i], lengths[i] = column, length
    end[row] += 1
