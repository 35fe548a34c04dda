"""Correspondences between the moved canonical surface and an observation: closest compatible points, both ways, gated and robust."""

from __future__ import annotations

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
    """

    points: Tensor
    normals: Tensor
    colours: Tensor
    confidence: Tensor
    usable: Tensor
    colour_scale: float
    index: NearestPoints

    @staticmethod
    def from_observation(observation: Observation, max_points: int, colour_scale: float, device: str = "cpu", seed: int = 0) -> Target:
        """At most `max_points` observed points, drawn evenly."""
        count = len(observation.points)
        keep = np.arange(count)
        if count > max_points:
            keep = np.sort(np.random.default_rng(seed).choice(count, max_points, replace=False))

        def real(x: np.ndarray) -> Tensor:
            return torch.as_tensor(x[keep].astype(np.float64), device=device)

        points, colours = real(observation.points), real(observation.colours)
        usable = torch.as_tensor(~observation.boundary[keep], device=device)
        joint = torch.cat([points, colour_scale * colours], 1)
        return Target(points, real(observation.normals), colours, real(observation.confidence), usable, colour_scale, NearestPoints(joint))


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
    joint = torch.cat([points, target.colour_scale * colours], 1)
    pairs = []
    there = target.index.query(joint)[1][:, 0]
    pairs.append((torch.arange(len(points), device=points.device), there))
    back = NearestPoints(joint).query(torch.cat([target.points, target.colour_scale * target.colours], 1))[1][:, 0]
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
