"""Where one part of the moved surface lies at another, so that an observed point may belong to either.

Where legs cross or an arm rests on the trunk, the closest point is as likely the other part's: both are drawn to the one surface that can be seen,
and through each other. What such points say of the surface counts for less, the more the nearer another part is; rigidity, images and the other
frames then decide.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from instant_nk.geometry.neighbours import NearestPoints, evenly
from instant_nk.kernels._threads import over_rows

PROBES = 1000  # points that stand for the surface
ROWS = 250  # of them that are worth a thread of their own
NEIGHBOURS = 4  # probes that a point takes its value from
APART = 2.0  # node spacings between two points at rest from which on they belong to different parts,
REACH = 2.0  # and within which, live, they are rivals,
CLOSER = 2.0  # if they were farther apart by this factor, so that a patch which is bent or pressed together is not its own rival,
COSINE = 0.3  # if their normals agree this well: an observed point could be matched to either
LEAST = 0.02  # weight of a point where another part lies right at it


@dataclass(frozen=True)
class Probes:
    """Some of a body's surface points, which stand for the others where all pairs are looked at.

    Attributes:
        pick: which of the N points, i64 [S].
        rest: where they lie at the canonical frame, [S, 3].
        near, share: probes around each point and their shares of its value, i64 [N, 4] and [N, 4].
    """

    pick: Tensor
    rest: Tensor
    near: Tensor
    share: Tensor

    @staticmethod
    def build(points: Tensor, spacing: float) -> Probes:
        """Probes among points [N, 3] that are spread evenly; `spacing` of the nodes."""
        pick = evenly(len(points), PROBES, points.device)
        rest = points[pick]
        distance, near = NearestPoints(rest).query(points, min(NEIGHBOURS, len(rest)))
        share = 1 / (distance + 1e-3 * spacing)
        return Probes(pick, rest, near, share / share.sum(1, keepdim=True))

    def certainty(self, live: Tensor, normals: Tensor, spacing: float, compiled: bool) -> Tensor:
        """Weight of each point in [LEAST, 1], [N]: the squared distance to the nearest rival, in units of its reach.

        Args:
            live, normals: of the moved surface points, [N, 3].
            compiled: by numba's loops on the CPU.
        """
        if compiled:
            live, normals, rest, pick, near, share = (t.contiguous().numpy() for t in (live, normals, self.rest, self.pick, self.near, self.share))
            nearest = _compiled_nearest(live[pick], normals[pick], rest, REACH * spacing, APART * spacing)
            weight = (nearest / (REACH * spacing) ** 2).clip(LEAST, 1.0)
            return torch.from_numpy(np.einsum("nk,nk->n", weight[near], share))
        nearest = _nearest(live[self.pick], normals[self.pick], self.rest, REACH * spacing, APART * spacing)
        weight = (nearest / (REACH * spacing) ** 2).clamp(LEAST, 1.0)
        return (weight[self.near] * self.share).sum(1)


def _nearest(live: Tensor, normals: Tensor, rest: Tensor, reach: float, apart: float) -> Tensor:
    """Squared distance [S] of each point to its nearest rival, at most `reach` squared."""
    now, before = _squares(live), _squares(rest)
    rival = (before > apart**2) & (before > CLOSER**2 * now) & (normals @ normals.T >= COSINE)
    return torch.where(rival, now, reach**2).amin(1).clamp_max(reach**2)


def _squares(points: Tensor) -> Tensor:
    """Squared distances between all pairs, [S, S], without what a product of matrices would lose."""
    x, y, z = points.unbind(1)
    return (x[:, None] - x).square() + (y[:, None] - y).square() + (z[:, None] - z).square()


def _compiled_nearest(live: np.ndarray, normals: np.ndarray, rest: np.ndarray, reach: float, apart: float) -> np.ndarray:
    """`_nearest` by a sweep along the longest axis."""
    from instant_nk.fitting import solver_loops

    axis = int(np.ptp(live, axis=0).argmax()) if len(live) else 0
    order = np.argsort(live[:, axis], kind="stable")
    x, n, r, result = live[order], normals[order], rest[order], np.empty(len(live))
    over_rows(len(x), lambda first, last: solver_loops.nearest_rival(first, last, x, n, r, axis, reach**2, apart**2, CLOSER**2, COSINE, result), ROWS)
    back = np.empty_like(result)
    back[order] = result
    return back
