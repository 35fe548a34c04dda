"""Farthest points and limited shortest paths over a graph of links, as compiled CPU loops (numba), for surfaces on which rows of distances
to every vertex, one per node, would take most of the time. `models/deformation_graph.py` has the same in scipy, which defines what is right.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush, heapreplace

import numpy as np
from numba import njit

from instant_nk.kernels._loop import loop


@njit
def _spread(source, start, links, lengths, limit, distance, touched):
    """Shortest paths from a vertex, no longer than `limit`, to where they are shorter than `distance`, which they replace; `touched` gets those vertices."""
    distance[source] = 0.0
    touched.append(source)
    heap = [(0.0, source)]
    while heap:
        far, here = heappop(heap)
        if far > distance[here]:
            continue
        for i in range(start[here], start[here + 1]):
            there, length = links[i], far + lengths[i]
            if length < distance[there] and length <= limit:
                if distance[there] == np.inf:
                    touched.append(there)
                distance[there] = length
                heappush(heap, (length, there))


@loop()
def farthest(start, links, lengths, distance, limit, most):
    """Vertices chosen one by one, each farthest from those before it (of equals the first), until all lie within `limit` or there are `most`.

    Args:
        start, links, lengths: the graph by rows (CSR), symmetric.
        distance: f64 [V], from those that are chosen already; overwritten.
    """
    heap = [(-distance[v], np.int64(v)) for v in range(len(distance))]
    heapify(heap)
    chosen, touched = np.empty(most, np.int64), [np.int64(0)]
    for count in range(most):
        while -heap[0][0] > distance[heap[0][1]]:  # distances only shrink, so an entry that is out of date stands too high
            heapreplace(heap, (-distance[heap[0][1]], heap[0][1]))
        if -heap[0][0] <= limit:
            return chosen[:count]
        chosen[count] = heap[0][1]
        _spread(chosen[count], start, links, lengths, np.inf, distance, touched)
        touched.clear()
    return chosen


@loop()
def reach(start, links, lengths, nodes, limit):
    """Nodes within `limit` of each vertex, nearest first, of equals the one with the lower number: i64 [V + 1] first entries, i64 [Q] nodes, f64 [Q] distances."""
    vertices = len(start) - 1
    distance, count = np.full(vertices, np.inf), np.zeros(vertices + 1, np.int64)
    size, room = 0, 64 * vertices
    at, whose, far = np.empty(room, np.int64), np.empty(room, np.int64), np.empty(room)
    touched = [np.int64(0)]
    touched.clear()
    for node in range(len(nodes)):
        _spread(nodes[node], start, links, lengths, limit, distance, touched)
        if size + len(touched) > room:
            room = 2 * room + len(touched)
            at, whose, far = _longer(at, room), _longer(whose, room), _longer(far, room)
        for vertex in touched:
            at[size], whose[size], far[size] = vertex, node, distance[vertex]
            size += 1
            count[vertex + 1] += 1
            distance[vertex] = np.inf
        touched.clear()
    first = np.cumsum(count)
    place, node_of, distance_of = first[:-1].copy(), np.empty(size, np.int64), np.empty(size)
    for i in range(size):  # nodes come in order, so equals stay in it
        vertex = at[i]
        begin, j = first[vertex], place[vertex]
        place[vertex] += 1
        while j > begin and distance_of[j - 1] > far[i]:
            node_of[j], distance_of[j] = node_of[j - 1], distance_of[j - 1]
            j -= 1
        node_of[j], distance_of[j] = whose[i], far[i]
    return first, node_of, distance_of


@njit
def _longer(values, room):
    result = np.empty(room, values.dtype)
    result[: len(values)] = values
    return result
