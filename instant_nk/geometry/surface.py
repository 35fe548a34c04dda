"""Triangle surfaces: normals, areas, uniform sampling, edges, components, refinement and geodesic distances. NumPy arrays, any unit."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import NamedTuple

import numpy as np
from scipy import sparse
from scipy.sparse import csgraph


def lengths(vectors: np.ndarray) -> np.ndarray:
    """Euclidean lengths of vectors [..., 3]: what `np.linalg.norm` finds along the last axis, in a sixth of its time."""
    x, y, z = (vectors[..., axis] for axis in range(3))
    return np.sqrt(x * x + y * y + z * z)


def box(points: np.ndarray) -> np.ndarray:
    """Lowest and highest corner of the box around points [N, 3], [2, 3]."""
    columns = np.ascontiguousarray(points.T)  # down columns of three numpy is many times slower
    return np.stack([columns.min(1), columns.max(1)])


def _loops(*values: np.ndarray) -> ModuleType | None:
    """The same in compiled loops, for double precision and where numba is loaded already: loading it takes longer than they save."""
    if sys.modules.get("numba") is None or any(x.dtype != np.float64 for x in values):
        return None
    from instant_nk.geometry import surface_loops

    return surface_loops


def _checked(count: int, faces: np.ndarray) -> np.ndarray:
    """Faces of so many vertices for compiled loops, which read whatever lies where a wrong number points.

    Raises:
        IndexError: a face names a vertex that is not there.
    """
    if len(faces) and (faces.min() < 0 or faces.max() >= count):
        raise IndexError(f"faces index vertices {faces.min()}..{faces.max()}, there are {count}")
    return np.ascontiguousarray(faces, np.int64)


def face_areas(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Area of each triangle, [T]."""
    if loops := _loops(vertices):
        return loops.face_areas(np.ascontiguousarray(vertices), _checked(len(vertices), faces))
    return 0.5 * lengths(_face_cross(vertices, faces))


def face_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Unit normal of each triangle, outward for counter-clockwise faces, [T, 3]; zero where degenerate."""
    return _unit(_face_cross(vertices, faces))


def vertex_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Unit area-weighted normal of each vertex, [V, 3]; zero where no face has area."""
    if loops := _loops(vertices):
        return loops.vertex_normals(np.ascontiguousarray(vertices), _checked(len(vertices), faces))
    cross = _face_cross(vertices, faces)
    total = np.zeros_like(vertices, dtype=np.float64)
    for corner in range(3):
        for axis in range(3):
            total[:, axis] += np.bincount(faces[:, corner], cross[:, axis], len(vertices))
    return _unit(total)


def vertex_areas(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """A third of the area of each vertex's triangles, [V]."""
    area = face_areas(vertices, faces) / 3
    return sum(np.bincount(faces[:, corner], area, len(vertices)) for corner in range(3))


def _face_cross(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    a, b, c = (vertices.take(faces[:, i], 0).astype(np.float64, copy=False) for i in range(3))
    return np.cross(b - a, c - a)


def _unit(vectors: np.ndarray) -> np.ndarray:
    length = lengths(vectors)[..., None]
    return np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 0)


def edges(faces: np.ndarray) -> np.ndarray:
    """Undirected edges i < j of a triangle mesh, each once, sorted, [E, 2]."""
    found = _edge_counts(faces)[0]
    return found[found[:, 0] != found[:, 1]]


def _edge_counts(faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Undirected edges i <= j, each once, sorted, [E, 2], and of how many corners' sides each is one, i64 [E]."""
    following = faces[:, [1, 2, 0]]
    found, inverse = unique_pairs(np.minimum(faces, following).ravel(), np.maximum(faces, following).ravel())
    return found.astype(faces.dtype), np.bincount(inverse)


def unique_pairs(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of numbers [P] of 31 bits, each once, sorted, i64 [U, 2], and where each of those given is among them, i64 [P]."""
    key, inverse = np.unique(low.astype(np.int64) << 32 | high, return_inverse=True)  # sorting numbers is much faster than sorting rows
    return np.stack([key >> 32, key & 0xFFFFFFFF], 1), inverse


def boundary_vertices(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """True for vertices on an edge that belongs to one face only, bool [V]."""
    if loops := _loops():
        return loops.boundary_vertices(len(vertices), _checked(len(vertices), faces))
    unique, count = _edge_counts(faces)
    result = np.zeros(len(vertices), bool)
    result[unique[count == 1].ravel()] = True
    return result


def weld(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Join vertices at the same position (texture seams duplicate them), so that connectivity is that of the surface.

    Returns:
        welded vertices [W, 3], faces into them without degenerate ones [T', 3], and each original vertex's welded index [V].
    """
    low, high = box(vertices)
    diagonal = np.linalg.norm(high - low)
    cell = max(float(diagonal), 1e-30) * 1e-7
    if (loops := _loops(vertices)) and np.isfinite(diagonal):
        first, joined, of = loops.weld(np.ascontiguousarray(vertices), _checked(len(vertices), faces), cell)
        return vertices[first], joined, of
    place = np.round(vertices / cell).astype(np.int64)
    order = np.lexsort(place.T[::-1])
    new, place = np.ones(len(vertices), bool), place.take(order, 0)
    new[1:] = (place[1:] != place[:-1]).any(1)
    first, inverse = order[new], np.empty(len(vertices), np.int64)
    inverse[order] = np.cumsum(new) - 1
    welded = inverse[faces]
    keep = (welded[:, 0] != welded[:, 1]) & (welded[:, 1] != welded[:, 2]) & (welded[:, 2] != welded[:, 0])
    return vertices[first], welded[keep], inverse


def components(count: int, faces: np.ndarray) -> np.ndarray:
    """Connected component of each of `count` vertices, numbered by first vertex, i64 [V]; instead of faces, edges [E, 2] will do."""
    if loops := _loops():
        return loops.components(count, _checked(count, faces))
    pairs = np.concatenate([faces[:, [i, i + 1]] for i in range(faces.shape[1] - 1)])
    graph = sparse.coo_matrix((np.ones(len(pairs), np.int8), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    return csgraph.connected_components(graph, directed=False)[1].astype(np.int64)


def sample(vertices: np.ndarray, faces: np.ndarray, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """`count` points spread evenly over the surface: stratified by area along the face list, so coverage is better than random.

    Returns:
        face index of each point i64 [N], barycentric coordinates f64 [N, 3].
    """
    rng = np.random.default_rng(seed)
    cumulative = np.cumsum(face_areas(vertices, faces))
    position = (np.arange(count) + rng.random(count)) / count * cumulative[-1]
    face = np.minimum(np.searchsorted(cumulative, position, side="right"), len(faces) - 1)
    u, v = rng.random((2, count))
    root = np.sqrt(u)
    return face, np.stack([1 - root, root * (1 - v), root * v], 1)


def blend(values: np.ndarray, corners: np.ndarray, barycentric: np.ndarray) -> np.ndarray:
    """Values [V, D] of vertices at points of faces, [N, D].

    Args:
        corners: vertices of each point's face, [N, 3]; barycentric: [N, 3].
    """
    first, second, third = (barycentric[:, i, None] * values.take(corners[:, i], 0) for i in range(3))
    return first + second + third


class Samples(NamedTuple):
    """Points of a surface, and which of its vertices each has to do with.

    Attributes:
        points, normals, colours: f64 [N, 3] each, normals unit.
        corner: of a mesh the vertices of the point's face, of a cloud the point itself, i64 [N, C].
    """

    points: np.ndarray
    normals: np.ndarray
    colours: np.ndarray
    corner: np.ndarray

    @staticmethod
    def of_mesh(vertices: np.ndarray, normals: np.ndarray, colours: np.ndarray, faces: np.ndarray, count: int, seed: int = 0) -> Samples:
        """`count` points spread evenly over a mesh whose vertices have these normals and colours, [V, 3] each."""
        vertices, normals, colours = (np.asarray(x, np.float64) for x in (vertices, normals, colours))
        face, barycentric = sample(vertices, faces, count, seed)
        corner = faces[face]
        points, normals, colours = (blend(x, corner, barycentric) for x in (vertices, normals, colours))
        return Samples(points, normals / np.maximum(lengths(normals)[:, None], 1e-12), colours, corner)


def refine(vertices: np.ndarray, faces: np.ndarray, longest: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Split edges longer than `longest` at their midpoints until none is left; the original vertices come first.

    Returns:
        vertices [V', 3], faces [T', 3], and for each vertex the nearest original vertex it was split from i64 [V'].
    """
    vertices, faces = np.asarray(vertices, np.float64), np.asarray(faces, np.int64)
    origin, done = np.arange(len(vertices)), []
    while True:
        length, long = _long_sides(vertices, faces, longest)
        split = np.flatnonzero(long)
        done.append(faces.take(np.flatnonzero(~long), 0))
        if not len(split):
            return vertices, np.concatenate(done), origin
        # Marks belong to edges, so both faces at an edge split at the same midpoint and no crack opens.
        faces, length = faces[split], length[split]
        following, marked = faces[:, [1, 2, 0]], length > longest
        pairs, inverse = unique_pairs(np.minimum(faces, following)[marked], np.maximum(faces, following)[marked])
        midpoint = np.full(faces.shape, -1)
        midpoint[marked] = len(vertices) + inverse
        vertices = np.concatenate([vertices, vertices[pairs].mean(1)])
        origin = np.concatenate([origin, origin[pairs[:, 0]]])
        faces = _split_marked(faces, midpoint, np.where(marked, length, -1).argmax(1))


def _long_sides(vertices: np.ndarray, faces: np.ndarray, longest: float) -> tuple[np.ndarray, np.ndarray]:
    """Lengths of faces' sides [T, 3], side i from corner i to the next, and which faces have one longer than `longest`, bool [T]."""
    if loops := _loops():
        return loops.long_sides(np.ascontiguousarray(vertices), _checked(len(vertices), faces), longest)
    length = lengths(vertices.take(faces, 0) - vertices.take(faces[:, [1, 2, 0]], 0))
    return length, (length > longest).any(1)


def _split_marked(faces: np.ndarray, midpoint: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Faces divided at the midpoints given per side (-1: none), side `first`, which has one, first."""
    rows = np.arange(len(faces))
    order = (first[:, None] + np.arange(3)) % 3
    f, m = faces[rows[:, None], order], midpoint[rows[:, None], order]  # side 0 is now the one to split first
    parts = []
    a, b, c, ab, bc, ca = *f.T, *m.T
    for corner, opposite, side in ((a, c, ca), (b, c, bc)):
        near = np.stack([corner, ab, opposite], 1) if corner is a else np.stack([ab, corner, opposite], 1)
        single = side < 0
        parts.append(near[single])
        s, o, x, k = side[~single], opposite[~single], corner[~single], ab[~single]
        if corner is a:
            parts += [np.stack([x, k, s], 1), np.stack([k, o, s], 1)]
        else:
            parts += [np.stack([k, x, s], 1), np.stack([k, s, o], 1)]
    return np.concatenate(parts)


def distance_graph(vertices: np.ndarray, faces: np.ndarray) -> sparse.csr_matrix:
    """Graph whose shortest paths approximate geodesics: mesh edges, and across each edge the unfolded diagonal.

    The diagonals let paths leave the mesh's edge directions, which takes most of the metrication error away.
    """
    faces = np.asarray(faces, np.int64)
    vertices = np.asarray(vertices, np.float64)
    pairs = edges(faces)
    length = lengths(vertices[pairs[:, 0]] - vertices[pairs[:, 1]])
    half = np.concatenate([faces[:, [0, 1, 2]], faces[:, [1, 2, 0]], faces[:, [2, 0, 1]]])  # edge (a, b) and the opposite corner
    ends = np.sort(half[:, :2], axis=1)
    order = np.lexsort((ends[:, 1], ends[:, 0]))
    ends, opposite = ends[order], half[order, 2]
    same = np.flatnonzero((ends[1:] == ends[:-1]).all(1))
    a, b, c, d = ends[same, 0], ends[same, 1], opposite[same], opposite[same + 1]
    diagonal = _unfolded(vertices[a], vertices[b], vertices[c], vertices[d])
    rows = np.concatenate([pairs[:, 0], c])
    cols = np.concatenate([pairs[:, 1], d])
    values = np.maximum(np.concatenate([length, diagonal]), 1e-12)
    keep = rows != cols
    rows, cols, values = np.minimum(rows, cols)[keep], np.maximum(rows, cols)[keep], values[keep]
    order = np.lexsort((values, cols, rows))  # the shortest of several links between the same two comes first
    rows, cols, values = rows[order], cols[order], values[order]
    first = np.ones(len(rows), bool)
    first[1:] = (rows[1:] != rows[:-1]) | (cols[1:] != cols[:-1])
    upper = sparse.coo_matrix((values[first], (rows[first], cols[first])), shape=(len(vertices),) * 2).tocsr()
    return (upper + upper.T).tocsr()


def _unfolded(a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray) -> np.ndarray:
    """Distance of c and d after both triangles on edge ab are laid flat; the way along the edge where the flat line misses it."""
    along = b - a
    length = np.maximum(lengths(along), 1e-30)
    along = along / length[:, None]
    flat = []
    for p in (c, d):
        x = ((p - a) * along).sum(1)
        flat.append((x, lengths((p - a) - x[:, None] * along)))
    (cx, cy), (dx, dy) = flat
    crossing = np.divide(cx * dy + dx * cy, cy + dy, out=(cx + dx) / 2, where=cy + dy > 0).clip(0, length)
    return np.hypot(crossing - cx, cy) + np.hypot(crossing - dx, dy)


def geodesic(graph: sparse.csr_matrix, sources: np.ndarray, limit: float = np.inf) -> np.ndarray:
    """Geodesic distance over a symmetric graph from each source vertex to every vertex, f64 [S, V]; infinite beyond `limit` or on another component."""
    return csgraph.dijkstra(graph, directed=True, indices=sources, limit=limit)  # links run both ways already: told so, scipy does not search twice


def covering(graph: sparse.csr_matrix, sources: np.ndarray) -> np.ndarray:
    """Geodesic distance over a symmetric graph from each vertex to the nearest source vertex, f64 [V]; infinite on a component without one."""
    return csgraph.dijkstra(graph, directed=True, indices=sources, min_only=True)
