"""Correspondences between the moved canonical surface and an observation: closest compatible points, both ways, gated and robust."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from instant_nk.geometry.neighbours import NearestPoints
from instant_nk.io.observation import Observation


@dataclass
class Target:
    """An observation prepared for matching: tensors f64 on one device and its search index.

    Attributes:
        points, normals, colours: [P, 3].
        confidence: [P].
        usable: False on the boundary of what was observed, bool [P].
        colour_scale: length that one unit of colour difference counts as in the joint search; 0: colours are ignored.
        normal_scale: the same for normals.
    """

    points: Tensor
    normals: Tensor
    colours: Tensor
    confidence: Tensor
    usable: Tensor
    colour_scale: float
    normal_scale: float
    index: NearestPoints

    @staticmethod
    def from_observation(observation: Observation, max_points: int, colour_scale: float, normal_scale: float, device: str = "cpu", seed: int = 0) -> Target:
        """At most `max_points` observed points, in random order: any prefix or stride of them is a fair sample."""
        keep = np.random.default_rng(seed).permutation(len(observation.points))[:max_points]

        def real(x: np.ndarray) -> Tensor:
            return torch.as_tensor(x[keep].astype(np.float64), device=device)

        points, colours = real(observation.points), real(observation.colours)
        usable = torch.as_tensor(~observation.boundary[keep], device=device)
        normals = real(observation.normals)
        joint = NearestPoints(torch.cat([points, colour_scale * colours, normal_scale * normals], 1))
        return Target(points, normals, colours, real(observation.confidence), usable, colour_scale, normal_scale, joint)

    def thinned(self, count: int) -> Target:
        """At most `count` of the points, evenly drawn."""
        if len(self.points) <= count:
            return self
        keep = torch.linspace(0, len(self.points) - 1, count, dtype=torch.float64).round().long().to(self.points.device)
        arrays = (self.points, self.normals, self.colours, self.confidence, self.usable)
        return Target(*(x[keep] for x in arrays), self.colour_scale, self.normal_scale, NearestPoints(self.index.reference[keep]))

    def features(self, points: Tensor, normals: Tensor, colours: Tensor) -> Tensor:
        """Coordinates [N, 9] in which the search for the closest compatible point runs."""
        return torch.cat([points, self.colour_scale * colours, self.normal_scale * normals], 1)


@dataclass(frozen=True)
class Matches:
    """Pairs of a body point and an observed point.

    Attributes:
        source: index of the body point, i64 [Q]; target: index of the observed point, i64 [Q].
        weight: confidence of the pair before the robust kernel, [Q].
        forward: number of leading pairs found from source to target; the rest was found the other way.
    """

    source: Tensor
    target: Tensor
    weight: Tensor
    forward: int


def closest_both_ways(points: Tensor, normals: Tensor, colours: Tensor, target: Target, max_distance: float, min_cosine: float) -> Matches:
    """Closest compatible points from the moved surface to the observation and back.

    The search runs in position joined with colour. A pair is dropped where normals differ by more than `acos(min_cosine)`,
    where it is longer than `max_distance`, or where it lands on the boundary of what was observed.
    """
    joint = target.features(points, normals, colours)
    pairs = []
    there = target.index.query(joint)[1][:, 0]
    pairs.append((torch.arange(len(points), device=points.device), there))
    back = NearestPoints(joint).query(target.index.reference)[1][:, 0]
    pairs.append((back, torch.arange(len(target.points), device=points.device)))
    sources, targets, weights = [], [], []
    balance = len(points) / max(len(target.points), 1)  # both directions weigh the same whatever the numbers of points
    for (s, t), share in zip(pairs, (1.0, balance)):
        near = (points[s] - target.points[t]).norm(dim=-1) <= max_distance
        keep = near & ((normals[s] * target.normals[t]).sum(-1) >= min_cosine) & target.usable[t]
        sources.append(s[keep])
        targets.append(t[keep])
        weights.append(0.5 * share * target.confidence[t[keep]])
    return Matches(torch.cat(sources), torch.cat(targets), torch.cat(weights), len(sources[0]))


def welsch(distance: Tensor, scale: float) -> Tensor:
    """Weight of a residual under Welsch's kernel, `exp(-distance^2 / (2 scale^2))`."""
    return torch.exp(-0.5 * (distance / scale) ** 2)


@dataclass(frozen=True)
class Cloud:
    """Points with what makes them distinguishable, for soft assignment.

    Attributes:
        points, normals, colours: [N, 3]; area: surface area each point stands for, [N].
    """

    points: Tensor
    normals: Tensor
    colours: Tensor
    area: Tensor


NORMAL_SPREAD = 0.5  # soft assignment: scale of (1 - cosine) between normals
COLOUR_SPREAD = 0.2  # soft assignment: standard deviation of colour differences between the same point at two frames
OUTLIER = 0.4  # soft assignment: share of a full match at which a point counts as half matched; what has no partner must be allowed to stay alone


def _affinity(a: Cloud, b: Cloud, sigma: float) -> Tensor:
    """Kernel [Na, Nb] that sums to about one along a row where b is the same surface as a.

    All terms of the exponent are halved squared distances, (1 - n.m) / s = |n - m|^2 / 2s of unit normals among them: one product gives their sum.
    """
    middle = b.points.mean(0)
    one, other = (torch.cat([(c.points - middle) / sigma, c.normals / NORMAL_SPREAD**0.5, c.colours / COLOUR_SPREAD], 1) for c in (a, b))
    halves = [-0.5 * side.square().sum(1) for side in (one, other)]
    size = torch.log(b.area / (2 * math.pi * sigma**2))
    return torch.addmm(halves[1] + size, one, other.T).add_(halves[0][:, None]).exp_()


def _balance(kernel: Tensor, ratio: Tensor, rounds: int = 6) -> tuple[Tensor, Tensor]:
    """Row and column scalings that let every point give and take its own area at most (Sinkhorn with an outlier bin).

    Args:
        kernel: [Na, Nb], share of row point's area that goes to column point.
        ratio: area of row point over area of column point, as [Na] and [Nb] factors would give: kernel[i, j] area_i / area_j is the share of j taken.
    """
    column = torch.ones_like(kernel[0])
    for _ in range(rounds):
        row = 1 / (kernel @ column + OUTLIER)
        column = 1 / (ratio * (row @ kernel) + OUTLIER)
    row = 1 / (kernel @ column + OUTLIER)
    return row, column


def soft_displacement(source: Cloud, target: Cloud, sigma: float) -> tuple[Tensor, Tensor]:
    """Where optimal transport with blur `sigma` wants each source point to go, and how much of the point is matched.

    Mass is balanced both ways, so that extremities are pulled and no region is claimed twice; the same transport of the source
    onto itself is taken off, which removes the shrinking that averaging over a blur otherwise causes.

    Returns:
        displacements [N, 3], matched shares in [0, 1] [N].
    """
    mean, share = _transported(source, target, sigma, source.area.mean() / target.area.clamp_min(1e-30))
    own_mean, _ = _transported(source, source, sigma, torch.ones_like(source.area))
    return mean - own_mean, share.clamp_max(1.0)


def _transported(source: Cloud, target: Cloud, sigma: float, ratio: Tensor) -> tuple[Tensor, Tensor]:
    """Mean place [N, 3] where balanced mass of each source point goes, and how much of it goes anywhere [N]; `ratio` as in `_balance`."""
    kernel = _affinity(source, target, sigma)
    row, column = _balance(kernel, ratio)
    sums = row[:, None] * (kernel @ (column[:, None] * torch.cat([torch.ones_like(column)[:, None], target.points], 1)))
    return sums[:, 1:] / sums[:, :1].clamp_min(1e-12), sums[:, 0]


def point_areas(points: Tensor, neighbours: int = 8) -> Tensor:
    """Surface area each of many scattered points stands for, from the distance to its k-th neighbour, [N]."""
    k = min(neighbours, len(points) - 1)
    distance = NearestPoints(points).query(points, k + 1)[0][:, k]
    return math.pi * distance.square() / max(k, 1)
