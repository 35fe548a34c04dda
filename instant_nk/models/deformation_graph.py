"""Building an embedded deformation graph on a mesh: nodes spread by geodesic distance, anchors that never bleed across a gap.

Distances between surface points and nodes run along the surface, so a hand that touches a hip shares no node with it. The
influence of an anchor then falls off with straight distance, `w ~ (1 - (|x - g| / r)^2)^3`, the definition shared with the neural part.
"""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass
from functools import partial
from types import ModuleType

import numpy as np
from scipy import sparse
from scipy.sparse import csgraph
from scipy.spatial import cKDTree

from instant_nk.errors import DataError
from instant_nk.geometry import surface
from instant_nk.io.graph import Graph
from instant_nk.kernels._threads import over_rows

NODE_AREA = 1.5  # area served by one node of a farthest-point set with covering radius s, in units of s^2 (measured on bodies of several shapes)
BRIDGE_WEIGHT = 0.003  # stiffness of links between components: a loose part follows its neighbours until evidence says otherwise
LONG_RANGE_WEIGHT = 0.05  # stiffness of links of the coarser levels, relative to links between neighbours
CLOUD_POINTS = 20000  # of a point cloud used to lay out its graph
FACING = 0.3  # cosine between the normals of linked points of a cloud: less belongs to the other side of something thin
WORTH_COMPILING = 25_000_000  # vertices times nodes from which on loading numba pays: scipy takes two seconds there, a first compilation ten
LEVEL_RATIO = 4  # each coarser level keeps a quarter of the nodes: twice the spacing


@dataclass(frozen=True)
class _Reach:
    """Nodes that vertices of the refined surface can reach, nearest first, of equals the one with the lower number; -1 where there are fewer.

    Attributes:
        nearest: of each vertex, i64 [V, C].
        levels: of the vertices of the first nodes, among these alone, ever more of them, i64 [size, C].
    """

    nearest: np.ndarray
    levels: list[np.ndarray]


def automatic_spacing(vertices: np.ndarray, faces: np.ndarray, max_nodes: int) -> float:
    """Node spacing at which about `max_nodes` nodes cover the surface, in the vertices' unit."""
    return _spacing(surface.face_areas(vertices, faces).sum(), max_nodes)


def _spacing(area: float, max_nodes: int) -> float:
    return float(np.sqrt(area / (NODE_AREA * max_nodes)))


def build(
    vertices: np.ndarray, faces: np.ndarray, spacing: float | None = None, max_nodes: int = 400, anchors: int = 6, neighbours: int = 6, device: str = "cpu"
) -> Graph:
    """An embedded deformation graph that covers a mesh: every vertex lies within `spacing`, along the surface, of a node.

    Args:
        vertices: canonical mesh, scene units, [V, 3]; duplicates along texture seams are joined for connectivity.
        faces: [T, 3].
        spacing: covering distance in scene units; None: from the surface area and `max_nodes`.
        anchors: K, nodes that move one vertex.
        neighbours: edges per node, at least.
        device: where the nodes nearest to each vertex are looked for: "cpu", or a GPU that can run Triton. The graph is the same, but for nodes that only rounding makes equally far.

    Raises:
        DataError: the mesh has no area or is not finite.
    """
    vertices = np.asarray(vertices, np.float64)
    if not np.isfinite(vertices).all():
        raise DataError("deformation graph: the canonical mesh has vertices that are not finite. Re-run stage 'canonical'.")
    area = surface.face_areas(vertices, faces).sum() if len(faces) else 0.0
    if area <= 0:
        raise DataError("deformation graph: the canonical mesh has no area. Re-run stage 'canonical' or give another canonical.mesh.")
    limit = spacing if spacing is not None else _spacing(area, max_nodes)
    welded, joined, welded_of = surface.weld(vertices, np.asarray(faces, np.int64))
    fine, fine_faces, _ = surface.refine(welded, joined, 0.6 * limit)
    used = np.zeros(len(fine), bool)
    used[fine_faces.ravel()] = True
    paths = _paths(fine, fine_faces, len(fine) if spacing is not None else max_nodes)
    part = surface.components(len(fine), fine_faces)
    chosen, _ = _farthest_points(paths, fine, part, used, limit, None if spacing is not None else max_nodes)
    return _assemble(paths, fine, part, chosen, welded_of, vertices, limit, anchors, neighbours, device=device)


def on_nodes(vertices: np.ndarray, faces: np.ndarray, node_positions: np.ndarray, anchors: int = 6, neighbours: int = 6) -> Graph:
    """The graph of nodes given by somebody else (an ED folder): anchors, radii and edges are made for them, positions are kept.

    Each node acts at the surface vertex nearest to it.
    """
    vertices = np.asarray(vertices, np.float64)
    nodes = np.asarray(node_positions, np.float64)
    welded, joined, welded_of = surface.weld(vertices, np.asarray(faces, np.int64))
    spacing = float(np.median(cKDTree(nodes).query(nodes, k=2)[0][:, 1])) if len(nodes) > 1 else automatic_spacing(vertices, faces, 1)
    fine, fine_faces, _ = surface.refine(welded, joined, 0.6 * max(spacing, 0.02 * automatic_spacing(vertices, faces, 1)))
    paths = _paths(fine, fine_faces, len(nodes))
    part = surface.components(len(fine), fine_faces)
    chosen = cKDTree(fine).query(nodes)[1]
    return _assemble(paths, fine, part, chosen, welded_of, vertices, spacing, anchors, neighbours, nodes)


def on_points(points: np.ndarray, normals: np.ndarray, max_nodes: int = 400, anchors: int = 6, neighbours: int = 6, device: str = "cpu") -> Graph:
    """The graph of an oriented point cloud: distances run along links between near points that face the same way, so that thin sheets and
    touching limbs stay apart as far as points alone can tell.

    Args:
        points: [V, 3]; normals: unit, [V, 3].
        device: see `build`.

    Returns:
        the graph; `vertex_anchors` and `vertex_weights` are those of the points.
    """
    points, normals = np.asarray(points, np.float64), np.asarray(normals, np.float64)
    pick = np.arange(len(points))
    if len(points) > CLOUD_POINTS:
        pick = np.random.default_rng(0).permutation(len(points))[:CLOUD_POINTS]
    thin, facing = points[pick], normals[pick]
    paths = _point_links(thin, facing)
    part = csgraph.connected_components(paths, directed=False)[1]
    chosen, covering = _farthest_points(paths, thin, part, np.ones(len(thin), bool), 0.0, min(max_nodes, len(thin)))
    limit = max(float(covering.max()), 1e-6 * float(np.linalg.norm(np.ptp(thin, axis=0))), 1e-30)
    nearest = cKDTree(np.concatenate([thin, 0.5 * limit * facing], 1)).query(np.concatenate([points, 0.5 * limit * normals], 1))[1]
    return _assemble(paths, thin, part, chosen, nearest, points, limit, anchors, neighbours, device=device)


def _point_links(points: np.ndarray, normals: np.ndarray, neighbours: int = 10, least: float = 0.005) -> sparse.csr_matrix:
    """Distances between each point and its nearest ones that face the same way, symmetric, [N, N].

    Crumbs of less than `least` of the points, which no surface is made of, are tied to the nearest point outside.
    """
    n = len(points)
    tree = cKDTree(points)
    distance, near = tree.query(points, k=min(neighbours + 1, n))
    distance, near = distance.reshape(n, -1)[:, 1:], near.reshape(n, -1)[:, 1:]
    rows = np.repeat(np.arange(n), near.shape[1])
    keep = (normals[rows] * normals[near.ravel()]).sum(1) > FACING
    links = sparse.coo_matrix((np.maximum(distance.ravel()[keep], 1e-12), (rows[keep], near.ravel()[keep])), shape=(n, n)).tocsr()
    links = links.maximum(links.T)
    part = csgraph.connected_components(links, directed=False)[1]
    size = np.bincount(part)
    if (size >= least * n).all() or not (size >= least * n).any():
        return links
    large, crumbs = np.flatnonzero(size[part] >= least * n), np.flatnonzero(size[part] < least * n)
    distance, found = cKDTree(points[large]).query(points[crumbs])
    ties = sparse.coo_matrix((np.maximum(distance, 1e-12), (crumbs, large[found])), shape=(n, n)).tocsr()
    return links.maximum(ties).maximum(ties.T).tocsr()


def coarsen(graph: Graph, count: int, spacing: float, anchors: int = 4, neighbours: int = 6) -> tuple[Graph, np.ndarray]:
    """A coarser graph of about `count` of the nodes, whose `vertices` are the nodes of `graph`: it moves them as they move the mesh.

    Distances run along the surface links of `graph`, so limbs that touch stay apart at every level.

    Args:
        spacing: that of `graph`.

    Returns:
        the coarse graph (`vertex_anchors` and `vertex_weights` are those of the fine nodes), and the fine index of each of its nodes.
    """
    positions = graph.node_positions.astype(np.float64)
    m = len(positions)
    links = graph.edges[graph.edge_weights >= 0.5]  # neither bridges nor long range
    length = np.maximum(surface.lengths(positions[links[:, 0]] - positions[links[:, 1]]), 1e-12)
    paths, part = _linked(m, links, length), surface.components(m, links)
    chosen, covering = _farthest_points(paths, positions, part, np.ones(m, bool), 0.0, count)
    limit = max(float(covering.max()), spacing)
    return _assemble(paths, positions, part, chosen, np.arange(m), positions, limit, anchors, neighbours), chosen


def _farthest_points(
    paths: sparse.csr_matrix, vertices: np.ndarray, part: np.ndarray, used: np.ndarray, limit: float, max_nodes: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Vertices chosen one by one, each farthest from those before it, until all lie within `limit`; one at least per component.

    The order is itself a hierarchy: any prefix is an even, coarser covering.

    Returns:
        the vertices i64 [M], and the distance of those that are used to the nearest of them, f64 [V].
    """
    size = np.bincount(part[used])  # of each component, whose vertices need not all be used
    labels = np.flatnonzero(size)
    most = len(vertices) if max_nodes is None else max(max_nodes, len(labels))
    if loops := _loops_for(len(vertices), len(vertices) if max_nodes is None else max_nodes):
        chosen = loops.outermost(np.ascontiguousarray(vertices), part.astype(np.int64), used, len(size))[labels]
        return loops.farthest(*_rows(paths), chosen, used, limit, most)
    chosen = []
    for label in labels:
        members = np.flatnonzero((part == label) & used)
        centre = vertices[members].mean(0)
        chosen.append(members[surface.lengths(vertices[members] - centre).argmax()])
    distance = np.where(used, surface.covering(paths, np.array(chosen)), 0.0)
    while True:
        far = int(distance.argmax())
        if distance[far] <= limit or len(chosen) >= most:
            return np.array(chosen), distance
        chosen.append(far)
        distance = np.minimum(distance, surface.geodesic(paths, np.array([far]), limit=distance[far])[0])


def _loops_for(vertices: int, nodes: int) -> ModuleType | None:
    """Compiled loops where numba is loaded already, or worth loading: scipy fills a row of all vertices for every node. The graph is the same."""
    if sys.modules.get("numba") is None and (vertices * nodes < WORTH_COMPILING or importlib.util.find_spec("numba") is None):
        return None
    from instant_nk.geometry import geodesic_loops

    return geodesic_loops


def _node_loops() -> ModuleType | None:
    """Compiled loops for what the nodes hold, where numba is loaded already: they save too little to load it."""
    if sys.modules.get("numba") is None:
        return None
    from instant_nk.models import deformation_graph_loops

    return deformation_graph_loops


def _paths(vertices: np.ndarray, faces: np.ndarray, nodes: int) -> sparse.csr_matrix:
    """Graph of links along the surface, over which `nodes` nodes are to be spread."""
    if not _loops_for(len(vertices), nodes):
        return surface.distance_graph(vertices, faces)
    from instant_nk.geometry import surface_loops

    start, links, lengths = surface_loops.distance_graph(np.ascontiguousarray(vertices), np.ascontiguousarray(faces))
    return sparse.csr_matrix((lengths, links, start), shape=(len(vertices),) * 2)


def _linked(nodes: int, links: np.ndarray, length: np.ndarray) -> sparse.csr_matrix:
    """Graph of links [E, 2], each given once, with their lengths."""
    if not _loops_for(nodes, nodes):
        upper = sparse.coo_matrix((length, (links[:, 0], links[:, 1])), shape=(nodes, nodes))
        return (upper + upper.T).tocsr()
    from instant_nk.geometry import surface_loops

    start, other, length = surface_loops.by_rows(nodes, links[:, 0].copy(), links[:, 1].copy(), length)
    return sparse.csr_matrix((length, other, start), shape=(nodes, nodes))


def _rows(paths: sparse.csr_matrix) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The links by rows, numbers without a sign: compiled loops look them up faster."""
    return paths.indptr.astype(np.uint32), paths.indices.astype(np.uint32), paths.data


def _reach(paths, nodes: np.ndarray, places: np.ndarray, limit: float, count: int, levels: list[int], device: str = "cpu") -> _Reach:
    """The `count` nodes nearest to each vertex within geodesic distance `limit`, on coarser levels too: the first nodes are an even, coarser covering."""
    if device != "cpu":
        from instant_nk.models import nearest_nodes_triton

    if device != "cpu" and nearest_nodes_triton.fits(paths.shape[0], 1 + len(levels), count):
        return _Reach(*nearest_nodes_triton.nearest(*_rows(paths), nodes, limit, count, levels, device))
    if loops := _loops_for(paths.shape[0], len(nodes)):
        return _Reach(*loops.nearest(*_rows(paths), np.asarray(nodes, np.int64), places, limit, count, levels))
    parts = []
    block = max(1, int(2e7 // paths.shape[0]))  # so that memory stays bounded
    for start in range(0, len(nodes), block):
        distance = surface.geodesic(paths, nodes[start : start + block], limit=limit)
        node, vertex = np.nonzero(np.isfinite(distance))
        parts.append((vertex, node + start, distance[node, vertex]))
    vertex, node, distance = (np.concatenate(x) for x in zip(*parts))
    order = np.lexsort((node, distance, vertex))
    vertex, node = vertex[order], node[order]

    def table(inside: np.ndarray) -> np.ndarray:
        at, rank = vertex[inside], np.arange(inside.sum())
        rank -= np.searchsorted(at, at)
        result = np.full((paths.shape[0], count), -1, np.int64)
        result[at[rank < count], rank[rank < count]] = node[inside][rank < count]
        return result

    return _Reach(table(node >= 0), [table(node < size)[nodes[:size]] for size in levels])


def _assemble(paths, fine, part, chosen, welded_of, vertices, limit, anchors, neighbours, positions=None, device="cpu") -> Graph:
    positions = fine[chosen] if positions is None else positions
    m = len(positions)
    k = min(anchors, m)
    reach = _reach(paths, chosen, positions, 4.0 * limit, 1 + max(k, neighbours), _levels(m, neighbours), device)
    fine_anchors, fine_near = _nearest_anchors(reach, fine, positions, k)
    radii = _radii(fine, positions, fine_anchors, reach, k, limit)
    vertex_anchors = fine_anchors[welded_of]
    weights = skinning_weights(vertices, vertex_anchors, positions, radii)
    pairs, stiffness = _edges(reach, chosen, fine_near, positions, part[chosen], neighbours)
    return Graph(
        node_positions=positions.astype(np.float32),
        node_radii=radii.astype(np.float32),
        edges=pairs.astype(np.int32).reshape(-1, 2),
        edge_weights=stiffness.astype(np.float32),
        vertex_anchors=vertex_anchors.astype(np.int32),
        vertex_weights=weights.astype(np.float32),
    )


def _nearest_anchors(reach: _Reach, fine: np.ndarray, positions: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k geodesically nearest nodes of each vertex [V, k], and of those the two nearest (repeated if there is one) [V, 2].

    A vertex that reaches fewer (a small component) is filled up with the node farthest away in space, whose weight is zero by the formula.
    """
    result = reach.nearest[:, :k].copy()
    lonely = np.flatnonzero(result[:, 0] < 0)
    if len(lonely):  # given nodes may miss a component altogether: it hangs on the nearest node in space
        result[lonely, 0] = cKDTree(positions).query(fine[lonely])[1]
    near = np.where(result[:, :2] < 0, result[:, :1], result[:, :2]) if k > 1 else np.repeat(result, 2, 1)
    rows = np.flatnonzero(result[:, -1] < 0)
    for block in np.array_split(rows, max(1, len(rows) * len(positions) // 4_000_000)):
        far = surface.lengths(fine[block, None] - positions).argmax(1)
        result[block] = np.where(result[block] < 0, far[:, None], result[block])
    return result, near


def _radii(fine: np.ndarray, positions: np.ndarray, anchors: np.ndarray, reach: _Reach, k: int, limit: float) -> np.ndarray:
    """Radius of each node: where the first node left out by the vertices it anchors lies, so that leaving it out is nearly continuous.

    Never so small that a vertex nearest to the node falls outside.
    """
    if loops := _node_loops():
        middle, need = loops.extents(np.ascontiguousarray(fine), positions, reach.nearest, anchors, k)
    else:
        middle, need = _extents(fine, positions, anchors, reach, k)
    return np.maximum(np.clip(np.where(middle < 0, 1.6 * limit, middle), 1.2 * limit, 2.0 * limit), 1.25 * need)


def _extents(fine: np.ndarray, positions: np.ndarray, anchors: np.ndarray, reach: _Reach, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each node: how far away the first node lies that vertices it anchors leave out (upper median, -1 where none does), and the farthest vertex
    to which it is the nearest."""
    m = len(positions)
    full = np.flatnonzero(reach.nearest[:, k] >= 0)
    dropped = surface.lengths(fine[full] - positions[reach.nearest[full, k]])
    order = np.argsort(dropped)
    owner = anchors[full[order]].ravel()
    by_owner = np.argsort(owner.astype(np.min_scalar_type(m)), kind="stable")  # then by length; numbers of 16 bits are sorted by counting
    count = np.bincount(owner, minlength=m)
    has = count > 0
    middle = np.full(m, -1.0)
    middle[has] = dropped[order[by_owner[(np.cumsum(count) - count + count // 2)[has]] // k]]
    need = np.zeros(m)
    np.maximum.at(need, anchors[:, 0], surface.lengths(fine - positions[anchors[:, 0]]))
    return middle, need


def skinning_weights(points: np.ndarray, anchors: np.ndarray, node_positions: np.ndarray, node_radii: np.ndarray) -> np.ndarray:
    """Influence of each anchor on a point: `(1 - (|x - g| / r)^2)^3` clamped at zero, rows normalised; all zero: the nearest anchor gets 1.

    The kernel's formula in numpy, so that building a graph need not load torch.

    Args:
        points: [N, 3].
        anchors: [N, K].

    Returns:
        [N, K].
    """
    if loops := _node_loops():
        weights, given = np.empty(anchors.shape), [np.ascontiguousarray(x, np.float64) for x in (points, node_positions, node_radii)]
        over_rows(len(points), partial(loops.skin, given[0], np.ascontiguousarray(anchors, np.int64), *given[1:], weights))
        return weights
    distance = surface.lengths(points[:, None] - node_positions.take(anchors, 0))
    share = np.clip(1 - (distance / node_radii[anchors]) ** 2, 0, None)
    weights = share * share * share
    total = weights.cumsum(1)[:, -1:]  # in order, however many there are
    alone = np.eye(anchors.shape[1])[distance.argmin(1)]
    return np.where(total > 1e-12, weights / np.maximum(total, 1e-12), alone)


def _edges(reach: _Reach, chosen: np.ndarray, near: np.ndarray, positions: np.ndarray, part: np.ndarray, neighbours: int) -> tuple[np.ndarray, np.ndarray]:
    """Node pairs and stiffness: surface neighbours, coarser levels for long range, and weak bridges between components."""
    own = np.full(len(near), -1)
    own[chosen] = np.arange(len(positions))
    own = own[chosen] == np.arange(len(positions))  # of given nodes that share a vertex, the last one has its links
    links = [(near[near[:, 0] != near[:, 1]], 1.0)]  # nodes whose regions touch
    links.append((_knn_pairs(reach.nearest[chosen], own, neighbours), 1.0))
    links += [(_knn_pairs(level, own[: len(level)], neighbours), LONG_RANGE_WEIGHT) for level in reach.levels]
    links.append((_bridges(positions, part), BRIDGE_WEIGHT))
    pairs = np.concatenate([p for p, _ in links])
    weight = np.concatenate([np.full(len(p), w) for p, w in links])
    if loops := _node_loops():
        return loops.strongest(pairs, weight, len(positions))
    unique, inverse = surface.unique_pairs(pairs.min(1), pairs.max(1))
    best = np.zeros(len(unique))
    np.maximum.at(best, inverse, weight)
    return unique, best


def _levels(nodes: int, neighbours: int) -> list[int]:
    """How many of the nodes, in farthest-point order, make up each coarser level that links run on, ascending."""
    sizes, size = [], nodes // LEVEL_RATIO
    while size > 2 * neighbours:
        sizes.insert(0, size)
        size //= LEVEL_RATIO
    return sizes


def _knn_pairs(nearest: np.ndarray, rows: np.ndarray, k: int) -> np.ndarray:
    """Pairs i, j where j is among the k nearest of i.

    Args:
        nearest: of each node, itself among them, i64 [M, C]; -1 where there are fewer.
        rows: nodes that have neighbours of their own, bool [M].
    """
    other = (nearest >= 0) & (nearest != np.arange(len(nearest))[:, None]) & rows[:, None]
    a, slot = np.nonzero(other & (np.cumsum(other, axis=1) <= k))
    return np.stack([a, nearest[a, slot]], 1)


def _bridges(positions: np.ndarray, part: np.ndarray) -> np.ndarray:
    """Pairs that tie each component to the others: every node of all but the largest component to its two nearest nodes elsewhere."""
    labels, sizes = np.unique(part, return_counts=True)
    pairs = []
    for label in labels[np.argsort(-sizes, kind="stable")][1:]:
        inside, outside = np.flatnonzero(part == label), np.flatnonzero(part != label)
        k = min(2, len(outside))
        found = cKDTree(positions[outside]).query(positions[inside], k=k)[1].reshape(len(inside), k)
        pairs.append(np.stack([np.repeat(inside, k), outside[found.ravel()]], 1))
    return np.concatenate(pairs) if pairs else np.zeros((0, 2), np.int64)
