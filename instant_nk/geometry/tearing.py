"""Skin between parts that touched at rest and come apart: found by how far it stretches, cut, and the wounds closed. numpy, no files.

Where limbs touch, a reconstruction makes one surface of them; when they part, it hangs between them as a web. Real skin stretches to twice
its length at a joint, to three times at most; a web to five or ten times.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

SHORTEST = 0.01  # of the diagonal at rest: shorter edges are noise, however much they stretch
STRAINED = 0.75  # of the limit: what stretches so far and hangs together with what is torn is of the web too
SHREDS = 4  # rounds of cutting off faces that hang by one side
RARE = 0.02  # share of the frames in which an edge must be torn; in one at least
CRUMB = 0.01  # share of all faces up to which a piece that is left between webs goes with them
LONGEST_WOUND = 400  # edges of a hole that is still closed


def torn_faces(rest: np.ndarray, faces: np.ndarray, frames: Iterable[np.ndarray], count: int, limit: float) -> np.ndarray:
    """Faces to be cut, bool [T]: those with an edge that is torn in some frames, what is strained beside them, and the shreds that would be left.

    Args:
        rest: vertices as they were reconstructed, [V, 3]; faces: i [T, 3].
        frames: their places at each of `count` frames, [V, 3], in the same unit.
        limit: times its length at rest beyond which an edge is torn.
    """
    cut, strained = stretched(rest, faces, frames, count, (limit, STRAINED * limit))
    if not cut.any():
        return cut
    place = np.flatnonzero(strained)
    of_web = _pieces(faces[place], len(rest))
    cut[place[np.isin(of_web, of_web[cut[place]])]] = True
    for _ in range(SHREDS):
        cut |= _wound_sides(faces, cut) >= 2
    piece, whole = _pieces(faces[~cut], len(rest)), _pieces(faces, len(rest))
    # A piece that was one of its own before is none of a web's.
    small = np.bincount(piece)[piece] <= CRUMB * len(faces)
    cut[np.flatnonzero(~cut)[small & (np.bincount(whole)[whole][~cut] > CRUMB * len(faces))]] = True
    return cut


def stretched(rest: np.ndarray, faces: np.ndarray, frames: Iterable[np.ndarray], count: int, limits: tuple[float, ...]) -> np.ndarray:
    """For each limit, faces with an edge that is often longer than so many times its length at rest, bool [L, T]; arguments as of `torn_faces`."""
    sides = np.stack([faces, np.roll(faces, -1, axis=1)], -1)  # [T, 3, 2]
    length = np.linalg.norm(rest[sides[..., 0]] - rest[sides[..., 1]], axis=-1)
    most = [np.maximum(limit * length, SHORTEST * np.linalg.norm(np.ptp(rest, axis=0))) for limit in limits]
    found = np.zeros((len(limits), *length.shape), np.int64)
    for vertices in frames:
        live = np.linalg.norm(vertices[sides[..., 0]] - vertices[sides[..., 1]], axis=-1)
        found += np.stack([live > longest for longest in most])
    return (found >= max(1, np.ceil(RARE * count))).any(2)


def _wound_sides(faces: np.ndarray, cut: np.ndarray) -> np.ndarray:
    """How many sides of each face that stays border on what is cut, [T]."""
    sides = np.stack([faces, np.roll(faces, -1, axis=1)], -1).astype(np.int64)
    key, back = sides[..., 0] << 32 | sides[..., 1], sides[..., 1] << 32 | sides[..., 0]
    return np.isin(back, key[cut]).sum(1) * ~cut


def _pieces(faces: np.ndarray, vertices: int) -> np.ndarray:
    """Number of the connected piece of each face, [T]."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    if not len(faces):
        return np.zeros(0, np.int64)
    pairs = np.concatenate([faces[:, :2], faces[:, 1:]])
    label = connected_components(coo_matrix((np.ones(len(pairs)), pairs.T), (vertices, vertices)), directed=False)[1][faces[:, 0]]
    return np.unique(label, return_inverse=True)[1]


def without(rest: np.ndarray, faces: np.ndarray, cut: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The faces that stay, and what closes the holes that cutting leaves.

    A hole is closed by triangles between its own vertices, the shortest ways across first. One with a knot (a vertex passed twice)
    or of more than `LONGEST_WOUND` edges stays open.

    Returns:
        faces that stay, i [S, 3]; those that close holes, i [C, 3].
    """
    kept = faces[~cut]
    directed = np.concatenate([kept[:, [0, 1]], kept[:, [1, 2]], kept[:, [2, 0]]])
    present = set(map(tuple, directed.tolist()))
    lost = faces[cut]
    # An edge of a cut face whose other side stays is the edge of a wound; the closing triangle runs as the cut face did.
    wound = [tuple(edge) for edge in np.concatenate([lost[:, [0, 1]], lost[:, [1, 2]], lost[:, [2, 0]]]).tolist() if (edge[1], edge[0]) in present]
    following: dict[int, list[int]] = {}
    for a, b in wound:
        following.setdefault(a, []).append(b)
    knots = {a for a, ways in following.items() if len(ways) > 1}
    caps: list[tuple[int, int, int]] = []
    unused = {a for a in following if a not in knots}
    while unused:
        start = min(unused)
        loop = [start]
        while (ahead := following.get(loop[-1], [])) and loop[-1] not in knots and ahead[0] != start and len(loop) <= len(wound):
            loop.append(ahead[0])
        closed = bool(ahead) and ahead[0] == start and not knots & set(loop)
        unused -= set(loop)
        if closed and 3 <= len(loop) <= LONGEST_WOUND:
            caps += _close(loop, rest, present)
    return kept, np.array(caps, faces.dtype).reshape(-1, 3)


def _close(loop: list[int], rest: np.ndarray, present: set[tuple[int, int]]) -> list[tuple[int, int, int]]:
    """Triangles over a loop of vertices, cutting off the corner with the shortest way across until three are left; no edge is made that is there already."""
    loop, triangles = list(loop), []
    while len(loop) > 3:
        points = rest[loop]
        across = np.linalg.norm(np.roll(points, 1, 0) - np.roll(points, -1, 0), axis=1)
        order = np.argsort(across, kind="stable")
        free = [i for i in order if (loop[i - 1], loop[(i + 1) % len(loop)]) not in present and (loop[(i + 1) % len(loop)], loop[i - 1]) not in present]
        if not free:
            return []
        i = free[0]
        a, b, c = loop[i - 1], loop[i], loop[(i + 1) % len(loop)]
        triangles.append((a, b, c))
        present |= {(a, c), (c, a)}
        del loop[i]
    return [*triangles, tuple(loop)]
