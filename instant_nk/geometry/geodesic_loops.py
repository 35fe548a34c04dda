"""Farthest points and nearest nodes on the graph of links along a surface, as compiled CPU loops (numba), for surfaces on which rows of
distances to every vertex, one per node, would take most of the time. `models/deformation_graph.py` has the same in numpy and scipy, which
defines what is right.

A distance is the least sum of lengths over all paths, added up from the source on, so it does not depend on the order in which vertices are
visited. They wait in buckets of about equal distance, which costs less than a heap: the few that are visited early are visited again.
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np
from numba import njit, uint32

from instant_nk.geometry.search_tree import keep  # numba looks at this file's date only: changed there, touch this one
from instant_nk.kernels._loop import loop
from instant_nk.kernels._threads import LEAST, each, over_rows
from instant_nk.kernels._threads import count as threads

BUCKETS = 4096  # at most
WIDTH = 0.25  # of a bucket, in mean lengths of a link
MARGIN = 1e-9  # of the limit: far more than the rounding of a path's length, far less than what makes a difference in time
LEAST_NODES = 32  # nodes worth a thread of their own
GONE, FRESH = np.uint32(0xFFFFFFFF), np.uint32(0xFFFFFFFE)  # instead of what comes after a vertex in the queue: it does not wait; it never did


@njit
def _queue(vertices, lengths, farthest):
    """An empty queue of vertices that wait in buckets up to a distance: u32 [V + B, 2] before and after each in its circle, the last B stand for
    the buckets; the first bucket, how many there are beside it, and the buckets of a unit of distance."""
    width = WIDTH * lengths.mean() if len(lengths) else 1.0
    if farthest < np.inf:
        width = max(width, farthest / (BUCKETS - 1))
    buckets = min(BUCKETS, 1 + int(min(farthest / width, BUCKETS)))
    ring = np.full((vertices + buckets, 2), GONE, np.uint32)
    for b in range(vertices, vertices + buckets):
        ring[b] = b
    return ring, uint32(vertices), float(buckets - 1), 1.0 / width


@njit(inline="always")
def _leave(vertex, ring):
    before, after = ring[vertex, 0], ring[vertex, 1]
    ring[before, 1], ring[after, 0] = after, before
    ring[vertex, 1] = GONE


@njit(inline="always")
def _enter(vertex, bucket, ring):
    last = ring[bucket, 0]
    ring[last, 1], ring[bucket, 0] = vertex, vertex
    ring[vertex, 0], ring[vertex, 1] = last, bucket


@njit
def _spread(source, start, links, lengths, distance, queue, touched):
    """Shortest paths from a vertex to where they are shorter than `distance`, which they replace; returns how many of those vertices were FRESH
    in the queue, the first of `touched`. Numbers without a sign are looked up faster."""
    ring, first, room, scale = queue
    distance[source], touched[0], count = 0.0, source, uint32(1)
    _enter(source, first, ring)
    bucket = end = first
    while bucket <= end:
        here = ring[bucket, 1]
        if here == bucket:
            bucket = uint32(bucket + uint32(1))
            continue
        _leave(here, ring)
        so_far = distance[here]
        for i in range(start[here], start[here + uint32(1)]):
            there, length = links[i], so_far + lengths[i]
            known = distance[there]
            if length < known:
                distance[there] = length
                place = uint32(first + uint32(min(length * scale, room)))
                if ring[there, 1] == FRESH:
                    touched[count] = there
                    count = uint32(count + uint32(1))
                elif ring[there, 1] != GONE:
                    if place == uint32(first + uint32(min(known * scale, room))):
                        continue
                    _leave(there, ring)
                _enter(there, place, ring)
                end = max(end, place)
    return count


@loop()
def outermost(vertices, part, used, parts):
    """Of the used vertices of each of so many parts the one farthest from their middle (of equals the first), i64; -1 where none is used."""
    middle, size = np.zeros((parts, 3)), np.zeros(parts)
    for v in range(len(vertices)):
        if used[v]:
            for axis in range(3):
                middle[part[v], axis] += vertices[v, axis]
            size[part[v]] += 1
    found, largest = np.full(parts, -1), np.full(parts, -1.0)
    for v in range(len(vertices)):
        if used[v]:
            x, y, z = middle[part[v], 0] / size[part[v]], middle[part[v], 1] / size[part[v]], middle[part[v], 2] / size[part[v]]
            x, y, z = vertices[v, 0] - x, vertices[v, 1] - y, vertices[v, 2] - z
            away = math.sqrt(x * x + y * y + z * z)
            if away > largest[part[v]]:
                found[part[v]], largest[part[v]] = v, away
    return found


@loop()
def farthest(start, links, lengths, first, used, limit, most):
    """Vertices chosen one by one, each farthest from those before it (of equals the first), until all used ones lie within `limit` or there are `most`.

    Args:
        start, links, lengths: the graph by rows (CSR), symmetric.
        first: those that are chosen already, i64; used: bool [V], of which each can be reached from them.

    Returns:
        all that are chosen, i64, and the distance of each used vertex to the nearest of them, f64 [V], of others 0.
    """
    vertices = len(used)
    distance, touched = np.full(vertices, np.inf), np.empty(vertices, np.uint32)
    chosen, queue = np.empty(most, np.int64), _queue(vertices, lengths, np.inf)
    for count in range(len(first)):
        chosen[count] = first[count]
        _spread(uint32(first[count]), start, links, lengths, distance, queue, touched)
    widest = 0.0
    for v in range(vertices):
        distance[v] = distance[v] if used[v] else 0.0
        widest = max(widest, distance[v])
    queue = _queue(vertices, lengths, widest)
    block = 1 + int(math.sqrt(vertices))
    most_in = np.full(1 + (vertices - 1) // block, np.inf)  # distances only shrink, so one of a block that is out of date is too large
    for count in range(len(first), most):
        while True:
            at = most_in.argmax()
            far = at * block + distance[at * block : (at + 1) * block].argmax()
            if distance[far] == most_in[at]:
                break
            most_in[at] = distance[far]
        if distance[far] <= limit:
            return chosen[:count], distance
        chosen[count] = far
        _spread(uint32(far), start, links, lengths, distance, queue, touched)
    return chosen, distance


def nearest(start, links, lengths, nodes: np.ndarray, places: np.ndarray, limit: float, count: int, prefixes: list[int]) -> tuple[np.ndarray, list[np.ndarray]]:
    """The `count` nodes nearest to each vertex within `limit`, nearest first, of equals the one with the lower number; -1 where there are fewer.

    Each thread has a slab of the nodes and a table of its own, of the vertices it gets to. A path ends where it is longer than that to `count`
    others: all beyond is nearer to them too. So a node near the end of the order, with many about it, is soon done.

    Args:
        start, links, lengths: the graph by rows (CSR), symmetric.
        nodes: their vertices, i64 [M]; places: where they lie, [M, 3].
        prefixes: ascending; for each, only the first so many nodes are looked at, from their own vertices.

    Returns:
        i64 [V, count], and i64 [prefix, count] for each of `prefixes`.
    """
    vertices, ends = len(start) - 1, [*prefixes, len(nodes)]
    shares = min(threads(), max(1, min(len(nodes) // LEAST_NODES, vertices // LEAST)))
    slabs = np.array_split(np.argsort(places[:, np.ptp(places, axis=0).argmax()], kind="stable"), shares)
    row_of = np.full((shares, vertices), -1, np.int32)
    near, index = np.empty((shares, vertices, count)), np.empty((shares, vertices, count), np.int32)
    early = np.full((shares, sum(prefixes), count), np.inf), np.full((shares, sum(prefixes), count), -1, np.int32)

    def fill(share: int) -> None:
        mine = row_of[share], near[share], index[share], early[0][share], early[1][share]
        _fill(np.sort(slabs[share]), start, links, lengths, nodes, limit, np.array(ends), *mine)

    each([partial(fill, share) for share in range(shares)])
    whole, levels = np.empty((vertices, count), np.int64), np.empty((sum(prefixes), count), np.int64)
    over_rows(vertices, partial(_merge, row_of, near, index, whole))
    _merge(np.broadcast_to(np.arange(len(levels), dtype=np.int32), (shares, len(levels))).copy(), *early, levels, 0, len(levels))
    return whole, np.split(levels, np.cumsum(prefixes)[:-1]) if prefixes else []


@loop()
def _fill(mine, start, links, lengths, nodes, limit, ends, row_of, near, index, early_near, early_index):
    """Distances and names of those of `mine` that are nearest to each vertex it gets to, whose row is noted in `row_of`; and as they were when
    only nodes before each of `ends` but the last had been seen, at these nodes' vertices, one after the other."""
    vertices, count = len(start) - 1, near.shape[1]
    touched, queue = np.empty(vertices, np.uint32), _queue(vertices, lengths, limit)
    ring, beyond = queue[0], limit * (1 + MARGIN)
    ring[:vertices, 1] = FRESH
    distance = np.full(vertices, beyond)  # of a vertex that a path has not come to: what it must stay below to matter there
    size = done = written = 0
    for end in ends:
        while done < len(mine) and mine[done] < end:
            node = mine[done]
            for vertex in touched[: _spread(uint32(nodes[node]), start, links, lengths, distance, queue, touched)]:
                row = row_of[vertex]
                if row < 0:
                    row_of[vertex] = row = size
                    near[row], index[row] = np.inf, -1
                    size += 1
                if distance[vertex] <= limit:
                    keep(near[row], index[row], distance[vertex], node)
                distance[vertex], ring[vertex, 1] = min(beyond, near[row, count - 1] + MARGIN * limit), FRESH
            done += 1
        if end < len(nodes):
            for i in range(end):
                row = row_of[nodes[i]]
                if row >= 0:
                    early_near[written + i], early_index[written + i] = near[row], index[row]
            written += end


@loop()
def _merge(row_of, near, index, result, first, last):
    """The names nearest to each vertex, first to last, in the tables of all shares."""
    shares, count = len(row_of), result.shape[1]
    best = np.empty(count)
    for vertex in range(first, last):
        best[:], result[vertex] = np.inf, -1
        for share in range(shares):
            row = row_of[share, vertex]
            if row >= 0:
                for i in range(count):
                    if index[share, row, i] < 0:
                        break
                    keep(best, result[vertex], near[share, row, i], np.int64(index[share, row, i]))
