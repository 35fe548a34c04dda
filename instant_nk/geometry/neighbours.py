"""Nearest neighbours in Euclidean space: a k-d tree on the CPU, blocked brute force on the GPU; same answer."""

from __future__ import annotations

import torch
from torch import Tensor


class NearestPoints:
    """An index over `reference` points that answers k-nearest queries.

    Args:
        reference: [N, D]; D may be more than 3 (position joined with scaled colour).
        block: rows of queries compared at once on the GPU, times N bounds the memory.
    """

    def __init__(self, reference: Tensor, block: int = 4096):
        self.reference, self.block = reference, block
        self.tree = None
        if reference.device.type == "cpu":
            from scipy.spatial import cKDTree

            self.tree = cKDTree(reference.numpy())

    def query(self, points: Tensor, k: int = 1, bound: float = float("inf")) -> tuple[Tensor, Tensor]:
        """Distances and indices of the k nearest reference points, nearest first.

        Args:
            points: [Q, D].
            bound: distances above it come back as infinity, with index 0.

        Returns:
            distances [Q, k], indices i64 [Q, k].
        """
        if self.tree is not None:
            distance, index = self.tree.query(points.numpy(), k=k, distance_upper_bound=bound, workers=torch.get_num_threads())
            distance = torch.from_numpy(distance).to(points.dtype).reshape(len(points), k)
            index = torch.from_numpy(index.astype("int64")).reshape(len(points), k)
        else:
            k = min(k, len(self.reference))
            exact = "donot_use_mm_for_euclid_dist"
            parts = [torch.cdist(chunk, self.reference, compute_mode=exact).topk(k, largest=False) for chunk in points.split(self.block)]
            distance = torch.cat([p.values for p in parts]) if parts else points.new_zeros(0, k)
            index = torch.cat([p.indices for p in parts]) if parts else torch.zeros(0, k, dtype=torch.int64, device=points.device)
            distance = torch.where(distance <= bound, distance, torch.full_like(distance, float("inf")))
        return distance, torch.where(distance.isfinite(), index, torch.zeros_like(index))
