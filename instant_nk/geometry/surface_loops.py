"""The steps of `surface.py` that every surface goes through, as compiled CPU loops (numba); numpy's there define what is right.

Everything is added up in numpy's order, so that both find the same to the bit. What numpy sorts is counted here: vertices by place, sides by their ends.
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np
from numba import njit, uint32

from instant_nk.kernels._loop import loop
from instant_nk.kernels._threads import over_rows

DIGIT = 12  # bits by which places are sorted at a time: a surface is ten million cells wide, two digits


@loop(error_model="numpy")
def weld(vertices, faces, cell):
    """What `surface.weld` does with f64 vertices whose places are rounded to `cell`; instead of those that are kept, which they are."""
    place = np.empty((3, len(vertices)), np.int64)
    for v in range(len(vertices)):
        for axis in range(3):
            place[axis, v] = np.int64(np.rint(vertices[v, axis] / cell))
    order = _by_place(place)
    first, of, size = np.empty(len(vertices), np.int64), np.empty(len(vertices), np.int64), 0
    for i in range(len(order)):
        v, before = order[i], order[max(i - 1, 0)]
        if i == 0 or place[0, v] != place[0, before] or place[1, v] != place[1, before] or place[2, v] != place[2, before]:
            first[size] = v
            size += 1
        of[v] = size - 1
    joined, kept = np.empty((len(faces), 3), np.int64), 0
    for t in range(len(faces)):
        a, b, c = of[faces[t, 0]], of[faces[t, 1]], of[faces[t, 2]]
        if a != b and b != c and c != a:
            joined[kept, 0], joined[kept, 1], joined[kept, 2] = a, b, c
            kept += 1
    return first[:size], joined[:kept], of


@njit
def _by_place(place):
    """Columns of i64 [3, N] in lexicographic order, i64 [N]; equals stay in theirs."""
    order, other = np.arange(place.shape[1]), np.empty(place.shape[1], np.int64)
    for axis in range(2, -1, -1):
        row, shift = place[axis], 0
        low = high = row[0]
        for value in row:
            low, high = min(low, value), max(high, value)
        while (high - low) >> shift:
            start = np.zeros((1 << DIGIT) + 1, np.int64)
            for v in order:
                start[((row[v] - low) >> shift & ((1 << DIGIT) - 1)) + 1] += 1
            for digit in range(1 << DIGIT):
                start[digit + 1] += start[digit]
            for v in order:
                digit = (row[v] - low) >> shift & ((1 << DIGIT) - 1)
                other[start[digit]] = v
                start[digit] += 1
            order, other = other, order
            shift += DIGIT
    return order


@loop()
def components(count, faces):
    """`surface.components`: of vertices that are joined, all come to hang on the first."""
    above = np.arange(count)
    for t in range(len(faces)):
        for side in range(faces.shape[1] - 1):
            a, b = _top(faces[t, side], above), _top(faces[t, side + 1], above)
            above[max(a, b)] = min(a, b)
    label = 0
    for v in range(count):
        if above[v] == v:
            above[v] = label
            label += 1
        else:
            above[v] = above[above[v]]
    return above


@njit
def _top(v, above):
    while above[v] != v:
        above[v] = above[above[v]]
        v = above[v]
    return v


@njit(inline="always")
def _cross(vertices, faces, t):
    a, b, c = faces[t, 0], faces[t, 1], faces[t, 2]
    ux, uy, uz = vertices[b, 0] - vertices[a, 0], vertices[b, 1] - vertices[a, 1], vertices[b, 2] - vertices[a, 2]
    vx, vy, vz = vertices[c, 0] - vertices[a, 0], vertices[c, 1] - vertices[a, 1], vertices[c, 2] - vertices[a, 2]
    return uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx


@loop()
def face_areas(vertices, faces):
    areas = np.empty(len(faces))
    for t in range(len(faces)):
        x, y, z = _cross(vertices, faces, t)
        areas[t] = 0.5 * math.sqrt(x * x + y * y + z * z)
    return areas


@loop()
def vertex_normals(vertices, faces):
    """`surface.vertex_normals`: what the first corners of all faces add, then what the second and the third do."""
    sums = np.zeros((3, len(vertices), 3))
    for t in range(len(faces)):
        cross = _cross(vertices, faces, t)
        for corner in range(3):
            for axis in range(3):
                sums[corner, faces[t, corner], axis] += cross[axis]
    normals = np.zeros((len(vertices), 3))
    for v in range(len(vertices)):
        x, y, z = sums[0, v, 0] + sums[1, v, 0] + sums[2, v, 0], sums[0, v, 1] + sums[1, v, 1] + sums[2, v, 1], sums[0, v, 2] + sums[1, v, 2] + sums[2, v, 2]
        length = math.sqrt(x * x + y * y + z * z)
        if length > 0:
            normals[v, 0], normals[v, 1], normals[v, 2] = x / length, y / length, z / length
    return normals


@loop()
def long_sides(vertices, faces, longest):
    """Lengths of the sides of faces [T, 3], side i from corner i to the next, and whether one of a face's is longer than that, bool [T]."""
    length, split = np.empty((len(faces), 3)), np.zeros(len(faces), np.bool_)
    for t in range(len(faces)):
        for side in range(3):
            a, b = faces[t, side], faces[t, (side + 1) % 3]
            x, y, z = vertices[a, 0] - vertices[b, 0], vertices[a, 1] - vertices[b, 1], vertices[a, 2] - vertices[b, 2]
            length[t, side] = math.sqrt(x * x + y * y + z * z)
            split[t] |= length[t, side] > longest
    return length, split


@loop()
def boundary_vertices(vertices, faces):
    """`surface.boundary_vertices` of so many vertices."""
    start, end, _ = sides(vertices, faces)
    result = np.zeros(vertices, np.bool_)
    for a in range(vertices):
        for i in range(start[a], start[a + 1]):
            if (i == start[a] or end[i - 1] != end[i]) and (i + 1 == start[a + 1] or end[i + 1] != end[i]):
                result[a] = result[end[i]] = True
    return result


@loop()
def sides(vertices, faces):
    """Sides of all faces, sorted by their lower end, the higher one and the corner of the face they begin at: where each vertex's begin,
    i32 [V + 1], and i32 [3 T] their higher ends and the corners opposite. Sorted by the higher end first: counting leaves equals in order."""
    low_start, high_start = np.zeros(vertices + 1, np.int32), np.zeros(vertices + 1, np.int32)
    for t in range(len(faces)):
        for corner in range(3):
            a, b = faces[t, corner], faces[t, (corner + 1) % 3]
            low_start[min(a, b) + 1] += 1
            high_start[max(a, b) + 1] += 1
    for v in range(vertices):
        low_start[v + 1] += low_start[v]
        high_start[v + 1] += high_start[v]
    low, across, place = np.empty(3 * len(faces), np.int32), np.empty(3 * len(faces), np.int32), high_start[:-1].copy()
    for corner in range(3):
        for t in range(len(faces)):
            a, b = faces[t, corner], faces[t, (corner + 1) % 3]
            i = place[max(a, b)]
            low[i], across[i] = min(a, b), faces[t, (corner + 2) % 3]
            place[max(a, b)] += 1
    end, opposite, place = np.empty(3 * len(faces), np.int32), np.empty(3 * len(faces), np.int32), low_start[:-1].copy()
    for v in range(vertices):
        for i in range(high_start[v], high_start[v + 1]):
            at = place[low[i]]
            end[at], opposite[at] = v, across[i]
            place[low[i]] += 1
    return low_start, end, opposite


def distance_graph(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`surface.distance_graph` by rows (CSR): i32 [V + 1] first links, i32 [L] their other ends, ascending, f64 [L] lengths.

    Args:
        vertices: f64 [V, 3]; faces: i64 [T, 3].
    """
    start, end, opposite = sides(len(vertices), faces)
    one, other, length = np.empty(len(end), np.int32), np.empty(len(end), np.int32), np.empty(len(end))
    over_rows(len(vertices), partial(_links, vertices, start, end, opposite, one, other, length))
    return by_rows(len(vertices), one, other, length)


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
def by_rows(vertices, one, other, length):
    """Links both ways by rows (CSR), columns ascending; of several between the same two the shortest, of a vertex with itself none."""
    first = np.zeros(vertices + 1, np.uint32)  # without a sign, numbers are looked up in half the time
    for i in range(len(one)):
        if one[i] != other[i]:
            first[one[i] + 1] += 1
            first[other[i] + 1] += 1
    for v in range(vertices):
        first[v + 1] += first[v]
    row, across, place = np.empty(first[-1], np.uint32), np.empty(first[-1]), first[:-1].copy()
    for i in range(len(one)):
        if one[i] != other[i]:
            a, b = uint32(one[i]), uint32(other[i])
            row[place[a]], across[place[a]] = b, length[i]
            row[place[b]], across[place[b]] = a, length[i]
            place[a] += uint32(1)
            place[b] += uint32(1)
    links, lengths, place = np.empty(first[-1], np.int32), np.empty(first[-1]), first[:-1].copy()
    for v in range(vertices):  # a vertex is put into the rows of those it is linked with: so columns come in order
        for i in range(first[v], first[v + 1]):
            at = place[row[i]]
            if at > first[row[i]] and links[at - uint32(1)] == v:
                lengths[at - uint32(1)] = min(lengths[at - uint32(1)], across[i])
            else:
                links[at], lengths[at] = v, across[i]
                place[row[i]] += uint32(1)
    start, size = np.zeros(vertices + 1, np.int32), 0
    for v in range(vertices):
        for i in range(first[v], place[v]):
            links[size], lengths[size] = links[i], lengths[i]
            size += 1
        start[v + 1] = size
    return start, links[:size], lengths[:size]
