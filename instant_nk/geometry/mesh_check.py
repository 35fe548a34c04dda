"""Whether an animated mesh is one that tools accept: closed, of one piece, consistently oriented, without collapsed faces."""

from __future__ import annotations

import numpy as np
from scipy import sparse
from scipy.sparse import csgraph

from instant_nk.geometry import surface

NO_AREA = 1e-6  # of the median face's area: a face below it has no direction


def check(vertices: np.ndarray, faces: np.ndarray) -> dict[str, int]:
    """What is wrong with a mesh; all zero but for `components` when it is sound.

    Args:
        vertices: positions at every frame, [N, V, 3], any unit.
        faces: one topology, i [T, 3].

    Returns:
        open_edges: edges of one face only; overshared_edges: of three or more; turned_edges: of two faces that disagree
        which side is outside; components: pieces; inside_out_components: closed pieces whose faces look inwards in the
        first frame; pinched_vertices: where the surface touches itself in a point only, so that their faces form more than one fan; degenerate_faces: faces without area, in the worst frame; unused_vertices: vertices without a face.
    """
    start, end = faces[:, [0, 1, 2]].ravel().astype(np.int64), faces[:, [1, 2, 0]].ravel().astype(np.int64)
    key = np.minimum(start, end) << 32 | np.maximum(start, end)
    _, edge, count = np.unique(key, return_inverse=True, return_counts=True)
    forward = np.bincount(edge, start < end, minlength=len(count))
    piece = surface.components(vertices.shape[1], faces)
    closed = np.ones(piece.max() + 1, bool)
    closed[piece[start[count[edge] != 2]]] = False
    return {
        "open_edges": int((count == 1).sum()),
        "overshared_edges": int((count > 2).sum()),
        "turned_edges": int(((count == 2) & (forward != 1)).sum()),
        "components": len(np.unique(piece[faces[:, 0]])),
        "inside_out_components": int((closed & (_volumes(vertices[0], faces, piece) < 0)).sum()),
        "pinched_vertices": _pinched(vertices.shape[1], faces, edge),
        "degenerate_faces": max(_without_area(frame, faces) for frame in vertices),
        "unused_vertices": int(vertices.shape[1] - len(np.unique(faces))),
    }


def _pinched(vertices: int, faces: np.ndarray, edge: np.ndarray) -> int:
    """Vertices whose corners are not all joined through faces that share an edge at the vertex; `edge` is the undirected edge after each corner, [3 T]."""
    corner = np.arange(3 * len(faces))
    before = corner + np.where(corner % 3 == 0, 2, -1)  # the corner whose edge ends here
    vertex = faces.ravel().astype(np.int64)
    key = np.concatenate([vertex << 32 | edge, vertex << 32 | edge[before]])  # a corner belongs to the two edges at its vertex
    slot = np.unique(key, return_inverse=True)[1]
    links = sparse.coo_matrix((np.ones(len(slot), np.int8), (np.tile(corner, 2), len(corner) + slot)), (2 * len(slot),) * 2)
    fan = csgraph.connected_components(links, directed=False)[1][: len(corner)]
    fans = np.unique(vertex << 32 | fan) >> 32
    return int((np.bincount(fans, minlength=vertices) > 1).sum())


def _volumes(vertices: np.ndarray, faces: np.ndarray, piece: np.ndarray) -> np.ndarray:
    """Signed volume of every piece [P], positive where faces look outwards; it means something for closed pieces alone."""
    a, b, c = (vertices[faces].astype(np.float64) - vertices.mean(0, dtype=np.float64)).transpose(1, 0, 2)
    return np.bincount(piece[faces[:, 0]], (a * np.cross(b, c)).sum(1) / 6, minlength=piece.max() + 1)


def _without_area(vertices: np.ndarray, faces: np.ndarray) -> int:
    areas = surface.face_areas(vertices, faces)
    return int((areas <= NO_AREA * np.median(areas)).sum())
