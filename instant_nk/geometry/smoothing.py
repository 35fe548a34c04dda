"""Trajectories smoothed over time, as much as they themselves show to be noise. numpy and scipy, no files.

Whittaker smoothing: of trajectories y find x that minimises `sum_t w_t |x_t - y_t|^2 + strength sum_t |x_{t-1} - 2 x_t + x_{t+1}|^2`.
The strength is the one that foretells best what it has not seen: with each frame left out in turn (for a linear smoother S that is
`(y_t - x_t) / (1 - S_tt)`), its squared error is least. Motion that changes within a frame or two foretells itself badly from its
neighbours, and then nothing is smoothed. (E. T. Whittaker 1923; P. Craven and G. Wahba 1979, Smoothing noisy data with spline functions.)

Motion that turns back at every frame, as a dance filmed at two pictures a beat, is to trajectories the same as noise: its mean foretells it
best. The surfaces know better: noise leaves them as near to what was observed as they were fitted, so smoothing that carries
them off it smooths motion (`across`).
"""

from __future__ import annotations

import numpy as np

from instant_nk.geometry import surface

LEAST_FRAMES = 6  # of weight 1: fewer say too little of how they move
STRENGTHS = 10.0 ** np.arange(-2, 2.01, 0.25)
JUDGED_FRAMES, JUDGED_POINTS = 256, 4000  # that the strength is found on, evenly spread
COLUMNS = 1 << 14  # coordinates smoothed at once
ACROSS_SHARE = 0.98  # of the vertices, whose shift across the surface is to stay below
ACROSS_LIMIT = 4.0  # times the median distance to the observed surface; the root mean square of normal noise is 1.5 times its median
FIXED = 1e6  # weight of a frame that stays where it is


def strength(trajectories: np.ndarray, weights: np.ndarray) -> float:
    """The strength at which frames that are left out are foretold best; 0 where the least that is tried is best, or usual frames are few.

    Args:
        trajectories: [F, V, 3].
        weights: of the frames, [F]: 1 as usual, less for a doubtful one, `FIXED` for one that stays.
    """
    start = (len(trajectories) - min(len(trajectories), JUDGED_FRAMES)) // 2
    points = np.linspace(0, trajectories.shape[1] - 1, min(trajectories.shape[1], JUDGED_POINTS)).astype(int)
    y, w = (values[start : start + JUDGED_FRAMES] for values in (trajectories[:, points].astype(np.float64), weights))
    judged = w == 1
    if np.count_nonzero(judged) < LEAST_FRAMES:
        return 0.0
    bend = np.diff(np.eye(len(y)), 2, axis=0)
    errors = []
    for value in STRENGTHS:
        kept = np.linalg.solve(np.diag(w) + value * bend.T @ bend, np.diag(w))
        left_out = (y - np.tensordot(kept, y, 1))[judged] / (1 - np.diag(kept)[judged])[:, None, None]
        errors.append(float((left_out**2).sum(-1).mean()))
    best = int(np.argmin(errors))
    return float(STRENGTHS[best]) if best else 0.0


def smooth(trajectories: np.ndarray, strength: float, weights: np.ndarray) -> np.ndarray:
    """Smoothed trajectories [F, V, 3], of the same type."""
    from scipy.linalg import solveh_banded

    count = len(trajectories)
    if strength == 0 or count < 3:
        return trajectories.copy()
    bend = np.zeros((3, count))  # upper bands of D^T D, D the second difference
    for offset, values in ((0, (1.0, 4.0, 1.0)), (1, (-2.0, -2.0)), (2, (1.0,))):
        for place, value in enumerate(values):
            bend[2 - offset, place + offset : count - 2 + place + offset] += value
    bands = strength * bend
    bands[2] += weights
    flat, result = trajectories.reshape(count, -1), np.empty_like(trajectories).reshape(count, -1)
    for start in range(0, flat.shape[1], COLUMNS):
        part = slice(start, start + COLUMNS)
        result[:, part] = solveh_banded(bands, weights[:, None] * flat[:, part].astype(np.float64), check_finite=False)
    return result.reshape(trajectories.shape)


def across(before: np.ndarray, after: np.ndarray, faces: np.ndarray, frames: np.ndarray) -> float:
    """How far vertices were moved across the surface, root mean square over frames: what ACROSS_SHARE of them stay below, the vertices' unit.

    Args:
        before: surfaces, [F, V, 3].
        after: the same moved, [F, V, 3].
        faces: i [T, 3]; vertices of none are left out.
        frames: rows that are judged, JUDGED_FRAMES of them, evenly spread, where there are more.
    """
    used = np.unique(faces)
    if not len(used) or not len(frames):
        return 0.0
    frames = frames[np.linspace(0, len(frames) - 1, min(len(frames), JUDGED_FRAMES)).astype(int)]
    total = np.zeros(len(used))
    for frame in frames:
        normals = surface.vertex_normals(before[frame].astype(np.float64), faces)[used]
        total += ((after[frame, used] - before[frame, used]) * normals).sum(-1) ** 2
    return float(np.quantile(np.sqrt(total / len(frames)), ACROSS_SHARE))
