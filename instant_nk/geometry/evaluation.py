"""How good a result is against the truth: surfaces, tracks, jitter, folds and pictures. Pure functions on NumPy arrays, any unit.

Definitions. *Chamfer*: mean of the two one-way mean point-to-surface distances. *Tracking error*: points of the true
surface at the first frame are fixed to the nearest place of the predicted mesh and followed; a point that the mesh did not
cover at the first frame (2 % of the diagonal or farther) costs 2 % or more. *Jitter*: second difference over time of
predicted minus true tracks. *Folded*: pairs of neighbouring faces whose normals disagree by more than 120 degrees and did
not in the first frame. Only true surface that a training camera sees is scored. Lengths are in per cent of the diagonal of
the truth's box over the clip.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from instant_nk.geometry import surface

SAMPLES = 12000  # spread evenly by area, so that means are steadier than those of as many random points
COVERED = 0.02  # of the diagonal: farther away at the first frame, a point does not belong to the mesh
FSCORE_AT = 0.005  # of the diagonal
FOLDED_BELOW = -0.5  # cosine between neighbouring faces' normals
MASK_MARGIN = 5  # pixels by which the true mask is dilated for the foreground's PSNR


# Closest points on a mesh


class ClosestPoint:
    """Exact closest points on a triangle mesh.

    Large triangles are cut into small cells. The nearest cell's triangle bounds the distance; every cell whose bounding
    sphere reaches within that bound is a candidate, so that no nearer triangle is missed.

    Args:
        vertices: [V, 3].
        faces: integer [T, 3], at least one.
    """

    def __init__(self, vertices: np.ndarray, faces: np.ndarray):
        from scipy.spatial import cKDTree

        self.corners = np.asarray(vertices, np.float64)[faces]
        self.centres, self.radii, self.owner = _cells(self.corners)
        self.tree = cKDTree(self.centres)
        a, b, c = self.corners.transpose(1, 2, 0)  # x, y, z apart: much faster than rows of three
        self.table = np.stack([*a, *(b - a), *(c - a)])

    def query(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Closest points [N, 3], their faces i64 [N] and barycentric coordinates f64 [N, 3]."""
        points = np.asarray(points, np.float64)
        parts = np.array_split(points, max(1, -(-len(points) // 4096)))
        with ThreadPoolExecutor() as pool:  # NumPy and the tree let other threads run while they compute
            found = list(pool.map(self._query, parts))
        face, weights = (np.concatenate(values) for values in zip(*found))
        return (self.corners[face] * weights[..., None]).sum(1), face, weights

    def _query(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        n = len(points)
        first = self.owner[self.tree.query(points, k=4 if self.tree.n > 3 else 1)[1].reshape(n, -1)]
        squared, _, _ = self._distances(np.repeat(points, first.shape[1], 0), first.reshape(-1))
        bound = np.sqrt(squared.reshape(n, -1).min(1)) * (1 + 1e-9) + 1e-300
        cells = self.tree.query_ball_point(points, bound + self.radii.max(), return_sorted=False)
        counts = np.fromiter((len(c) for c in cells), np.int64, n)
        row, cell = np.repeat(np.arange(n), counts), np.concatenate(cells).astype(np.int64)
        gap = points[row] - self.centres[cell]
        near = np.einsum("ij,ij->i", gap, gap) <= (bound[row] + self.radii[cell]) ** 2
        row, face = row[near], self.owner[cell[near]]
        squared, v, w = self._distances(points[row], face)
        starts = np.searchsorted(row, np.arange(n))
        nearest = np.minimum.reduceat(squared, starts)
        hits = np.flatnonzero(squared == nearest[row])
        best = hits[np.searchsorted(row[hits], np.arange(n))]
        return face[best], np.stack([np.maximum(1 - v[best] - w[best], 0), v[best], w[best]], 1)

    def _distances(self, points: np.ndarray, face: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Squared distance of points [P, 3] to triangles [P], and the closest place's weights of the second and third corner.

        The foot of the perpendicular where it lies inside, otherwise the nearest of the three edges' closest points.
        """
        ax, ay, az, bx, by, bz, cx, cy, cz = self.table[:, face]  # corner a, edges ab and ac
        px, py, pz = points[:, 0] - ax, points[:, 1] - ay, points[:, 2] - az
        bb, bc, cc = bx * bx + by * by + bz * bz, bx * cx + by * cy + bz * cz, cx * cx + cy * cy + cz * cz
        pb, pc = px * bx + py * by + pz * bz, px * cx + py * cy + pz * cz
        area = bb * cc - bc * bc
        safe = np.where(area > 1e-14 * bb * cc, area, np.nan)  # a sliver has no inside: comparisons with NaN are false
        v, w = (cc * pb - bc * pc) / safe, (bb * pc - bc * pb) / safe
        outside = np.flatnonzero(~((v >= 0) & (w >= 0) & (v + w <= 1)))
        bb, bc, cc, pb, pc = (x[outside] for x in (bb, bc, cc, pb, pc))
        along_b, along_c = np.clip(pb / np.maximum(bb, 1e-300), 0, 1), np.clip(pc / np.maximum(cc, 1e-300), 0, 1)
        across = np.clip((pc - pb - bc + bb) / np.maximum(bb - 2 * bc + cc, 1e-300), 0, 1)
        zero = np.zeros(len(outside))
        vs, ws = np.stack([along_b, zero, 1 - across]), np.stack([zero, along_c, across])
        cost = vs * vs * bb + ws * ws * cc + 2 * (vs * ws * bc - vs * pb - ws * pc)
        edge = (cost.argmin(0), np.arange(len(outside)))
        v[outside], w[outside] = vs[edge], ws[edge]
        dx, dy, dz = px - v * bx - w * cx, py - v * by - w * cy, pz - v * bz - w * cz
        return dx * dx + dy * dy + dz * dz, v, w


def _cells(corners: np.ndarray, wanted: int = 8000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Triangles [T, 3, 3] cut into cells of like size, about `wanted` or as many as there are triangles: centres [C, 3], radii [C], triangle of each cell [C]."""
    longest = np.linalg.norm(corners - np.roll(corners, 1, axis=1), axis=-1).max(1)
    area = 0.5 * np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
    cell = max(2.2 * np.sqrt(area.sum() / max(wanted, len(corners))), longest.max() / 64, 1e-300)
    pieces = np.clip(np.ceil(longest / cell), 1, 64).astype(int)
    centres, radii, owner = [], [], []
    for n in np.unique(pieces):
        own = np.flatnonzero(pieces == n)
        steps = np.add.outer(np.arange(n), np.arange(n))
        upright, inverted = np.argwhere(steps < n) + 1 / 3, np.argwhere(steps < n - 1) + 2 / 3
        uv = np.concatenate([upright, inverted]) / n
        a, ab, ac = corners[own, 0], corners[own, 1] - corners[own, 0], corners[own, 2] - corners[own, 0]
        centres.append((a[:, None] + uv[:, 0, None] * ab[:, None] + uv[:, 1, None] * ac[:, None]).reshape(-1, 3))
        spread = np.linalg.norm(corners[own] - corners[own].mean(1, keepdims=True), axis=-1).max(1) / n
        radii.append(np.repeat(spread, len(uv)))
        owner.append(np.repeat(own, len(uv)))
    return np.concatenate(centres), np.concatenate(radii) * (1 + 1e-9), np.concatenate(owner)


# Surfaces and tracks


@dataclass(frozen=True)
class Truth:
    """The true animation.

    Attributes:
        frames: absolute frame numbers, ascending.
        vertices: f64 [F, V, 3]; vertex i is one point of the surface throughout.
        faces: i64 [T, 3].
        n_views: training cameras that see each vertex [F, V], or None where unknown: then everything counts.
    """

    frames: tuple[int, ...]
    vertices: np.ndarray
    faces: np.ndarray
    n_views: np.ndarray | None = None

    @property
    def diagonal(self) -> float:
        """Diagonal of the box around the whole clip."""
        points = self.vertices.reshape(-1, 3)
        return float(np.linalg.norm(points.max(0) - points.min(0)))

    def seen_faces(self, index: int | None = None) -> np.ndarray:
        """Indices of the faces whose three vertices a training camera sees: at frame `index`, or in at least half of the frames."""
        if self.n_views is None:
            return np.arange(len(self.faces))
        seen = self.n_views[index] > 0 if index is not None else (self.n_views > 0).mean(0) >= 0.5
        return np.flatnonzero(seen[self.faces].all(1))


def _place(vertices: np.ndarray, faces: np.ndarray, face: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Positions [N, 3] of surface points given by face and barycentric coordinates."""
    return surface.blend(vertices, faces[face], weights)


def surface_distances(
    vertices: np.ndarray, faces: np.ndarray, true_vertices: np.ndarray, true_faces: np.ndarray, scored: np.ndarray | None = None, samples: int = SAMPLES
) -> tuple[np.ndarray, np.ndarray]:
    """Distances of points of the true surface to the predicted one [N], and of the predicted one to the true [N].

    Args:
        scored: indices of the true faces that are sampled; None: all. The way back measures to all of them.
    """
    chosen = true_faces if scored is None else true_faces[scored]
    face, weights = surface.sample(true_vertices, chosen, samples, seed=1)
    true_points = _place(true_vertices, chosen, face, weights)
    face, weights = surface.sample(vertices, faces, samples, seed=2)
    points = _place(vertices, faces, face, weights)
    to_prediction = np.linalg.norm(ClosestPoint(vertices, faces).query(true_points)[0] - true_points, axis=1)
    to_truth = np.linalg.norm(ClosestPoint(true_vertices, true_faces).query(points)[0] - points, axis=1)
    return to_prediction, to_truth


def chamfer(to_prediction: np.ndarray, to_truth: np.ndarray) -> float:
    """Mean of both one-way means, in the distances' unit."""
    return float((to_prediction.mean() + to_truth.mean()) / 2)


def fscore(to_prediction: np.ndarray, to_truth: np.ndarray, threshold: float) -> float:
    """Harmonic mean of the shares of both surfaces within `threshold` of the other, in [0, 1]."""
    recall, precision = (to_prediction < threshold).mean(), (to_truth < threshold).mean()
    return float(2 * precision * recall / max(precision + recall, 1e-9))


def folded_pairs(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Which pairs of faces that share an edge are folded, in each frame: [N, V, 3] -> bool [N, pairs]."""
    sides = np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]), axis=1)
    owner = np.tile(np.arange(len(faces)), 3)
    order = np.lexsort((sides[:, 1], sides[:, 0]))
    sides, owner = sides[order], owner[order]
    _, start, count = np.unique(sides, axis=0, return_index=True, return_counts=True)
    first = start[count == 2]
    left, right = owner[first], owner[first + 1]
    result = np.zeros((len(vertices), len(first)), bool)
    for i, positions in enumerate(vertices):
        normals = surface.face_normals(positions, faces)
        result[i] = (normals[left] * normals[right]).sum(1) < FOLDED_BELOW
    return result


def flipped_fraction(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Share of neighbouring face pairs folded now and not in the first frame, per frame [N]; [N, V, 3] in frame order."""
    folded = folded_pairs(vertices, faces)
    return (folded & ~folded[:1]).mean(1) if folded.shape[1] else np.zeros(len(vertices))


def acceleration(tracks: np.ndarray) -> np.ndarray:
    """Length of the second difference over time of tracks [N, P, 3], per inner frame and point [N - 2, P]."""
    return np.linalg.norm(tracks[2:] - 2 * tracks[1:-1] + tracks[:-2], axis=-1)


def score_animation(vertices: np.ndarray, faces: np.ndarray, truth: Truth, samples: int = SAMPLES) -> dict[str, float | list[float | None] | None]:
    """Scores of an animated mesh against the truth.

    Args:
        vertices: predicted positions at `truth.frames` [F, V, 3], the truth's unit.
        faces: i [T, 3].

    Returns:
        numbers over the clip, and the same per frame under `per_frame`: lists as long as `truth.frames`, None where a frame has no value.
    """
    vertices, diagonal = np.asarray(vertices, np.float64), truth.diagonal
    percent = 100 / diagonal
    chamfers, fscores = [], []
    for i in range(len(truth.frames)):
        distances = surface_distances(vertices[i], faces, truth.vertices[i], truth.faces, truth.seen_faces(i), samples)
        chamfers.append(chamfer(*distances) * percent)
        fscores.append(fscore(*distances, FSCORE_AT * diagonal))
    tracks, true_tracks, normals, covered = follow(vertices, faces, truth, samples)
    errors = np.linalg.norm(tracks - true_tracks, axis=-1)
    across = np.abs(((tracks - true_tracks) * normals).sum(-1))[1:][:, covered] * percent
    along = np.sqrt(np.maximum((errors[1:][:, covered] * percent) ** 2 - across**2, 0))
    errors = np.where(covered, errors, np.maximum(errors, COVERED * diagonal)) * percent
    later = errors[1:] if len(errors) > 1 else np.zeros((1, 1))
    jitter = acceleration(tracks - true_tracks)[:, covered].mean(1) * percent if len(tracks) > 2 and covered.any() else np.zeros(0)
    folds = flipped_fraction(vertices, faces)
    return {
        "chamfer_pct": float(np.mean(chamfers)),
        "chamfer_worst_pct": float(np.max(chamfers)),
        "fscore_0p5": float(np.mean(fscores)),
        "track_mean_pct": float(later.mean()),
        "track_median_pct": float(np.median(later)),
        "track_p95_pct": float(np.percentile(later, 95)),
        "track_along_pct": float(along.mean()) if along.size else None,
        "track_across_pct": float(across.mean()) if across.size else None,
        "coverage": float(covered.mean()),
        "jitter_pct": float(jitter.mean()) if len(jitter) else None,
        "flipped_fraction": float(folds.mean()),
        "motion_mean_pct": float(np.linalg.norm(true_tracks[1:] - true_tracks[:1], axis=-1).mean() * percent) if len(tracks) > 1 else 0.0,
        "per_frame": {
            "chamfer_pct": chamfers,
            "fscore_0p5": fscores,
            "track_mean_pct": [None, *errors[1:].mean(1).tolist()],
            "jitter_pct": [None, *jitter.tolist(), None][: len(truth.frames)] if len(jitter) else [None] * len(truth.frames),
            "flipped_fraction": folds.tolist(),
        },
    }


def follow(vertices: np.ndarray, faces: np.ndarray, truth: Truth, samples: int = SAMPLES) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Points of the true surface of the first frame, followed by the prediction and by the truth.

    Returns:
        predicted tracks [F, P, 3], true tracks [F, P, 3], the true surface's unit normals there [F, P, 3], which points the prediction covered at the
        first frame bool [P].
    """
    chosen = truth.faces[truth.seen_faces()]
    face, weights = surface.sample(truth.vertices[0], chosen, samples, seed=0)
    start = _place(truth.vertices[0], chosen, face, weights)
    closest, on_face, on_weights = ClosestPoint(vertices[0], faces).query(start)
    covered = np.linalg.norm(closest - start, axis=1) < COVERED * truth.diagonal
    tracks = np.stack([_place(v, faces, on_face, on_weights) for v in vertices])
    true_tracks = np.stack([_place(v, chosen, face, weights) for v in truth.vertices])
    return tracks, true_tracks, np.stack([surface.face_normals(v, chosen)[face] for v in truth.vertices]), covered


# Pictures


def on_white(image: np.ndarray) -> np.ndarray:
    """RGBA [H, W, 4] in [0, 1], straight alpha, over white: [H, W, 3]."""
    return image[..., :3] * image[..., 3:] + (1 - image[..., 3:])


def psnr(image: np.ndarray, reference: np.ndarray, mask: np.ndarray | None = None) -> float:
    """Peak signal-to-noise ratio in dB of values in [0, 1], 100 dB at most; within `mask` [H, W] where given."""
    error = (image - reference) ** 2
    return float(-10 * np.log10(max((error if mask is None else error[mask]).mean(), 1e-10)))


def ssim(image: np.ndarray, reference: np.ndarray) -> float:
    """Structural similarity of [H, W, 3] in [0, 1]: 7 x 7 windows, mean over pixels and channels."""
    from skimage.metrics import structural_similarity

    return float(structural_similarity(image, reference, channel_axis=-1, data_range=1))


def score_picture(image: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """PSNR on white, PSNR within the reference's mask dilated by 5 pixels, SSIM and silhouette IoU of RGBA pictures [H, W, 4] in [0, 1]."""
    from scipy.ndimage import binary_dilation

    mask = binary_dilation(reference[..., 3] > 0, iterations=MASK_MARGIN)
    a, b = on_white(image), on_white(reference)
    return {
        "psnr_db": psnr(a, b),
        "fg_psnr_db": psnr(a, b, mask) if mask.any() else psnr(a, b),
        "ssim": ssim(a, b),
        "silhouette_iou": silhouette_iou(image[..., 3], reference[..., 3]),
    }


def silhouette_iou(alpha: np.ndarray, reference: np.ndarray) -> float:
    """Intersection over union of two masks (above one half); 1 when both are empty."""
    a, b = alpha > 0.5, reference > 0.5
    union = (a | b).sum()
    return float((a & b).sum() / union) if union else 1.0


def mean_of(scores: Sequence[dict[str, float]], name: str) -> float | None:
    """Mean of one score over pictures, None when there are none."""
    return float(np.mean([s[name] for s in scores])) if scores else None
