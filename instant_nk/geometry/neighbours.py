"""Nearest neighbours in Euclidean space: a k-d tree on the CPU, tiles of brute force on the GPU; same answer.

A tile is one matrix product, `|a - b|^2 = |a|^2 - 2 a.b + |b|^2`, in double precision: in single precision the cancellation
confuses neighbours that are close to each other, and `torch.cdist` without the product is far slower (`benchmarks.kernels --only neighbours`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

TILE = 1 << 26  # distances held at once on the GPU: 512 MiB


def evenly(count: int, wanted: int, device: torch.device) -> Tensor:
    """`wanted` of `count` rows, evenly spread, i64; all when there are no more."""
    return torch.linspace(0, count - 1, min(wanted, count), dtype=torch.float64).round().long().to(device)


@dataclass(eq=False)
class NearestPoints:
    """An index over `reference` points that answers k-nearest queries.

    Attributes:
        reference: [N, D]; D may be more than 3 (position joined with scaled colour).
    """

    reference: Tensor
    tree: Any = field(default=None, init=False, repr=False)

    def query(self, points: Tensor, k: int = 1, bound: float = float("inf")) -> tuple[Tensor, Tensor]:
        """Distances and indices of the k nearest reference points, nearest first.

        Args:
            points: [Q, D].
            bound: distances above it come back as infinity, with index 0.

        Returns:
            distances [Q, k], indices i64 [Q, k].
        """
        if self.reference.device.type == "cpu":
            if self.tree is None:
                from scipy.spatial import cKDTree

                self.tree = cKDTree(self.reference.numpy())
            distance, index = self.tree.query(points.numpy(), k=k, distance_upper_bound=bound, workers=torch.get_num_threads())
            distance = torch.from_numpy(distance).to(points.dtype).reshape(len(points), k)
            index = torch.from_numpy(index.astype("int64")).reshape(len(points), k)
        else:
            distance, index = nearest_by_tiles(points, self.reference, min(k, len(self.reference)))
            distance = torch.where(distance <= bound, distance, torch.full_like(distance, float("inf")))
        return distance, torch.where(distance.isfinite(), index, torch.zeros_like(index))


def nearest_by_tiles(points: Tensor, reference: Tensor, k: int, tile: int = TILE) -> tuple[Tensor, Tensor]:
    """Distances [Q, k] and indices i64 [Q, k] of the k nearest of `reference` [N, D] to `points` [Q, D], nearest first; any device."""
    if not len(points) or not k:
        return points.new_zeros(len(points), k), torch.zeros(len(points), k, dtype=torch.int64, device=points.device)
    centre = reference.mean(0, dtype=torch.float64)
    fixed = reference.double() - centre
    squares = fixed.square().sum(1)
    indices = []
    for rows in (points.double() - centre).split(max(1, tile // len(reference))):
        relative = torch.addmm(squares, rows, fixed.T, alpha=-2)  # without |rows|^2, which ranks nothing
        indices.append(relative.argmin(1, keepdim=True) if k == 1 else relative.topk(k, largest=False).indices)
    index = torch.cat(indices)
    return (points[:, None] - reference[index]).norm(dim=-1), index
