"""Correspondences between the moved canonical surface and an observation: closest compatible points, both ways, gated and robust."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from instant_nk.errors import NumericalError
from instant_nk.fitting.deformation_solver import Evidence, arrays, compiled, has_triton, in_memory, loops
from instant_nk.geometry.neighbours import NearestPoints, evenly
from instant_nk.io.observation import Observation
from instant_nk.kernels._threads import each

ROOM = 1024  # an observation's points are padded to a multiple of it on a GPU
FAR = 100.0  # scene units: where padding lies


@dataclass
class Target:
    """An observation prepared for matching: tensors f64 on one device and its search index.

    Attributes:
        points, normals, colours: [P, 3].
        confidence: [P].
        usable: False on the boundary of what was observed, bool [P].
        colour_scale: length that one unit of colour difference counts as in the joint search; 0: colours are ignored.
        normal_scale: the same for normals.
        number: of points that were observed, f64 []; count: the same, known to the host. They come first; the rest, on a GPU, is padding far
            away that is not usable, so that frames have the same shapes (`repeated.py`).
    """

    points: Tensor
    normals: Tensor
    colours: Tensor
    confidence: Tensor
    usable: Tensor
    colour_scale: float
    normal_scale: float
    number: Tensor
    index: NearestPoints
    count: int = field(compare=False)
    trail: Trail = field(default_factory=lambda: Trail(), repr=False, compare=False)

    @staticmethod
    def from_observation(observation: Observation, max_points: int, colour_scale: float, normal_scale: float, device: str = "cpu", seed: int = 0) -> Target:
        """At most `max_points` observed points, in random order: any prefix or stride of them is a fair sample.

        Raises:
            NumericalError: there is no point, or a point, normal or colour is not finite.
        """
        if not len(observation.points):
            raise NumericalError("registration: the observation holds no points. Re-run stage 'observation' or mend the given surface.")
        if not all(np.isfinite(x).all() for x in (observation.points, observation.normals, observation.colours)):
            raise NumericalError("registration: the observation holds values that are not finite. Re-run stage 'observation' or mend the given surface.")
        keep = np.random.default_rng(seed).permutation(len(observation.points))[:max_points]

        padding = -len(keep) % ROOM if torch.device(device).type == "cuda" else 0

        def put(x: np.ndarray, beyond: float = 0.0) -> Tensor:
            padded = np.full((len(keep) + padding, *x.shape[1:]), beyond, x.dtype)  # np.pad takes longer than all else here
            padded[: len(keep)] = x[keep]
            return torch.as_tensor(padded, device=device)

        points, normals, colours = (put(x.astype(np.float64), b) for x, b in ((observation.points, FAR), (observation.normals, 0), (observation.colours, 0)))
        joint = NearestPoints(torch.cat([points, colour_scale * colours, normal_scale * normals], 1))
        confidence, usable = put(observation.confidence.astype(np.float64)), put(~observation.boundary, False)
        return Target(points, normals, colours, confidence, usable, colour_scale, normal_scale, _number(keep, device), joint, len(keep))

    def evenly(self, count: int) -> Tensor:
        """Indices of `count` of the observed points, evenly drawn; of all when there are no more."""
        return evenly(self.count, count, self.points.device)

    def thinned(self, count: int) -> Target:
        """At most `count` of the points, evenly drawn."""
        if len(self.points) <= count:
            return self
        return self.only(self.evenly(count))

    def only(self, keep: Tensor) -> Target:
        """Those points whose indices are given, i64 [Q]."""
        parts = (self.points, self.normals, self.colours, self.confidence, self.usable)
        return Target(
            *(x[keep] for x in parts), self.colour_scale, self.normal_scale, _number(keep, keep.device), NearestPoints(self.index.reference[keep]), len(keep)
        )

    def features(self, points: Tensor, normals: Tensor, colours: Tensor) -> Tensor:
        """Coordinates [N, 9] in which the search for the closest compatible point runs."""
        if compiled(points):
            there, facing, shade = arrays(points, normals, colours)
            return torch.from_numpy(np.concatenate([there, self.colour_scale * shade, self.normal_scale * facing], 1))
        return torch.cat([points, self.colour_scale * colours, self.normal_scale * normals], 1)

    def nearest(self, joint: Tensor) -> Tensor:
        """The observed point nearest to each of `joint` [N, 9], all of a body's points in order, i64 [N]."""
        if compiled(joint):
            return torch.from_numpy(self.trail.ahead(*arrays(joint, self.index.reference)))
        return self.index.query(joint)[1][:, 0]


def _number(rows: np.ndarray | Tensor, device: str | torch.device) -> Tensor:
    return torch.tensor(len(rows), dtype=torch.float64, device=device)


@dataclass(frozen=True)
class Matches:
    """Pairs of a body point and an observed point.

    Attributes:
        source: index of the body point, i64 [Q]; target: index of the observed point, i64 [Q].
        weight: confidence of the pair before the robust kernel, [Q].
        forward: number of leading pairs found from source to target; the rest was found the other way.
        kept: which pairs count, bool [Q]; None: all. So a GPU need not wait for their number.
    """

    source: Tensor
    target: Tensor
    weight: Tensor
    forward: int
    kept: Tensor | None = None

    def median(self, values: Tensor) -> Tensor:
        """Median of a value per pair over those that count, []; not a number where none does."""
        return median_of(values, self.kept)


def median_of(values: Tensor, kept: Tensor | None) -> Tensor:
    """Median [] of those values [Q] that are kept, bool [Q] (None: all), without asking how many there are; not a number where there is none."""
    if kept is None:
        return values.median() if len(values) else values.new_tensor(math.nan)
    middle = (kept.sum() - 1).clamp_min(0) // 2
    return torch.where(kept, values, math.nan).sort().values.gather(0, middle[None])[0]


def closest_both_ways(
    points: Tensor, normals: Tensor, colours: Tensor, target: Target, max_distance: float, min_cosine: float, padded: bool = False
) -> Matches:
    """Closest compatible points from the moved surface to the observation and back.

    The search runs in position joined with colour. A pair is dropped where normals differ by more than `acos(min_cosine)`,
    where it is longer than `max_distance`, or where it lands on the boundary of what was observed.

    Args:
        padded: on a GPU, leave dropped pairs in their place, without weight (`Matches.kept`).
    """
    joint = target.features(points, normals, colours)
    if compiled(joint):
        return _compiled_closest(joint, points, normals, target, max_distance, min_cosine)
    if has_triton(joint):
        from instant_nk.fitting import evidence_triton

        there, back = evidence_triton.partners(joint.T.contiguous(), target.index.reference.T.contiguous()).long().split([len(joint), len(target.points)])
    else:
        there, back = target.nearest(joint), NearestPoints(joint).query(target.index.reference)[1][:, 0]
    pairs = (torch.arange(len(points), device=points.device), there), (back, torch.arange(len(target.points), device=points.device))
    sources, targets, weights, kept = [], [], [], []
    balance = len(points) / target.number  # both directions weigh the same whatever the numbers of points
    for (s, t), share in zip(pairs, (1.0, balance)):
        near = (points[s] - target.points[t]).norm(dim=-1) <= max_distance
        keep = near & ((normals[s] * target.normals[t]).sum(-1) >= min_cosine) & target.usable[t]
        if padded:
            kept.append(keep)
        else:
            s, t = s[keep], t[keep]
        sources.append(s)
        targets.append(t)
        weights.append(0.5 * share * target.confidence[t])
    pairs = torch.cat(sources), torch.cat(targets), torch.cat(weights), len(sources[0])
    return Matches(*pairs, torch.cat(kept)) if padded else Matches(*pairs)


def _compiled_closest(joint: Tensor, points: Tensor, normals: Tensor, target: Target, max_distance: float, min_cosine: float) -> Matches:
    """`closest_both_ways` in compiled loops, which go on from the partners that were found last."""
    body, there = arrays(joint, target.index.reference)
    partners = target.trail.partners(body, there)
    sides = arrays(points, normals, target.points, target.normals, target.usable, target.confidence)
    room = len(body) + len(there)
    source, goal, weight = np.empty(room, np.int64), np.empty(room, np.int64), np.empty(room)
    balance = len(body) / max(len(there), 1)  # both directions weigh the same whatever the numbers of points
    forward = count = 0
    for by_target, share in ((False, 1.0), (True, balance)):
        forward, more = count, (source[count:], goal[count:], weight[count:])
        count += loops().gate(by_target, partners[by_target], *sides, max_distance, min_cosine, share, *more)
    return Matches(*(torch.from_numpy(x[:count]) for x in (source, goal, weight)), forward)


class Trail:
    """Which partners two clouds had when they were last searched: where the next search begins, without a say in what it finds."""

    def __init__(self):
        self.goal = None  # tree over the observation
        self.known: dict[int, tuple] = {}  # by the body's number of points: tree over them, partners on either side

    def partners(self, body: np.ndarray, there: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Nearest observed point of each of the body's points and the reverse, i64 [N] and [P]."""
        from instant_nk.geometry.search_tree import SearchTree

        if len(body) in self.known:
            tree, ahead, back = self.known[len(body)]
            tree.fit(body)
        else:
            tree, ahead, back = SearchTree(body), None, None
        goal = self._goal(there)
        ahead, back = goal.query(body, 1, ahead, tree.order)[1][:, 0], tree.query(there, 1, back, goal.order)[1][:, 0]
        self.known[len(body)] = tree, ahead, back
        return ahead, back

    def ahead(self, body: np.ndarray, there: np.ndarray) -> np.ndarray:
        """Nearest observed point of each of the body's points alone, i64 [N]."""
        tree, ahead, _ = self.known.get(len(body), (None, None, None))
        return self._goal(there).query(body, 1, ahead, tree and tree.order)[1][:, 0]

    def _goal(self, there: np.ndarray) -> Any:
        from instant_nk.geometry.search_tree import SearchTree

        if self.goal is None:
            self.goal = SearchTree(there)
        return self.goal


def planes(live: Tensor, normals: Tensor, target: Target, matches: Matches) -> tuple[Tensor, Tensor]:
    """Directions [Q, 3] and signed distances [Q] of the symmetric point-to-plane residual."""
    if compiled(live):
        rows, residual, _ = (torch.from_numpy(x) for x in _compiled_planes(live, normals, target, matches))
        return rows, residual
    rows = normals[matches.source] + target.normals[matches.target]
    rows = rows / rows.norm(dim=-1, keepdim=True).clamp_min(1e-9)
    return rows, (rows * (live[matches.source] - target.points[matches.target])).sum(-1)


def _compiled_planes(live: Tensor, normals: Tensor, target: Target, matches: Matches) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`planes`, and the lengths of the pairs [Q]."""
    count = len(matches.source)
    result = np.empty((count, 3)), np.empty(count), np.empty(count)
    loops().pair_planes(*arrays(matches.source, matches.target, live, normals, target.points, target.normals), *result)
    return result


def pull(
    evidence: Evidence, live: Tensor, normals: Tensor, target: Target, matches: Matches, whole: Tensor, least_scale: float, widening: float, tangential: float
) -> None:
    """Add the matches to the evidence: point-to-plane terms and, `tangential` times as heavy, point-to-point ones, under Welsch's kernel.

    Args:
        whole: weight of each of the body's points, [N].
        least_scale: the kernel's scale is twice the median distance, at least this; `widening` times that in any case.
    """
    if compiled(live):
        rows, residual, distance = _compiled_planes(live, normals, target, matches)
        scale = max(2.0 * float(np.partition(distance, (len(distance) - 1) // 2)[(len(distance) - 1) // 2]), least_scale) * widening
        source, goal, moved, there, share, given = arrays(matches.source, matches.target, live, target.points, matches.weight, whole)
        sums = evidence.hessian.numpy(), evidence.gradient.numpy()
        loops().pull(source, goal, moved, there, rows, residual, distance, scale, share, given, tangential, *sums)
        return
    difference = live[matches.source] - target.points[matches.target]
    distance = difference.norm(dim=-1)
    scale = (2.0 * matches.median(distance)).clamp_min(least_scale) * widening
    weight = matches.weight * whole[matches.source] * welsch(distance, scale)
    if matches.kept is not None:
        weight = torch.where(matches.kept, weight, 0.0)
    rows, residual = planes(live, normals, target, matches)
    evidence.add_directions(matches.source, rows, residual, weight)
    evidence.add_positions(matches.source, difference, tangential * weight)


def welsch(distance: Tensor, scale: float | Tensor) -> Tensor:
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
ROUNDS = 6  # of balancing rows and columns
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


def _balance(kernel: Tensor, ratio: Tensor, rounds: int = ROUNDS) -> tuple[Tensor, Tensor]:
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
    if compiled(source.points):
        return _compiled_displacement(source, target, sigma)
    if has_triton(source.points):
        from instant_nk.fitting import transport_triton

        return transport_triton.displacement(source, target, in_memory(sigma, source.area), ROUNDS, OUTLIER, NORMAL_SPREAD, COLOUR_SPREAD)
    mean, share = _transported(source, target, sigma, source.area.mean() / target.area.clamp_min(1e-30))
    own_mean, _ = _transported(source, source, sigma, torch.ones_like(source.area))
    return mean - own_mean, share.clamp_max(1.0)


def _transported(source: Cloud, target: Cloud, sigma: float, ratio: Tensor) -> tuple[Tensor, Tensor]:
    """Mean place [N, 3] where balanced mass of each source point goes, and how much of it goes anywhere [N]; `ratio` as in `_balance`."""
    kernel = _affinity(source, target, sigma)
    row, column = _balance(kernel, ratio)
    sums = row[:, None] * (kernel @ (column[:, None] * torch.cat([torch.ones_like(column)[:, None], target.points], 1)))
    return sums[:, 1:] / sums[:, :1].clamp_min(1e-12), sums[:, 0]


def _compiled_displacement(source: Cloud, target: Cloud, sigma: float) -> tuple[Tensor, Tensor]:
    """`soft_displacement` in compiled loops and single precision, both transports side by side."""
    middle = target.points.mean(0)
    one, other = (_features(cloud, middle, sigma) for cloud in (source, target))
    own = np.ones(len(source.area)), source.area.numpy()
    goal = (source.area.mean() / target.area.clamp_min(1e-30)).numpy(), target.area.numpy()
    found: list = [None, None]

    def transport(which: int, features: np.ndarray, ratio: np.ndarray, area: np.ndarray) -> None:
        found[which] = _compiled_transport(one, features, ratio, area, sigma)

    each([partial(transport, 0, other, *goal), partial(transport, 1, one, *own)])
    (mean, share), (own_mean, _) = found
    shift = sigma * (mean.astype(np.float64) - own_mean)
    return torch.from_numpy(shift), torch.from_numpy(share.astype(np.float64)).clamp_max(1.0)


def _features(cloud: Cloud, middle: Tensor, sigma: float) -> np.ndarray:
    """Coordinates f32 [N, 9] in which half the squared distance is the exponent of `_affinity`; the first three are places around `middle`."""
    points, normals, colours = arrays(cloud.points - middle, cloud.normals, cloud.colours)
    return np.concatenate([points / sigma, normals / NORMAL_SPREAD**0.5, colours / COLOUR_SPREAD], 1).astype(np.float32)


def _compiled_transport(one: np.ndarray, other: np.ndarray, ratio: np.ndarray, area: np.ndarray, sigma: float) -> tuple[np.ndarray, np.ndarray]:
    """`_transported` in units of sigma around the common middle, f32."""
    rows, columns = len(one), len(other)
    kernel, row, column = np.empty((rows, columns), np.float32), np.empty(rows, np.float32), np.empty(columns, np.float32)
    share, mean = np.empty(rows, np.float32), np.empty((rows, 3), np.float32)
    turned, run = np.ascontiguousarray(other.T), loops()
    run.affinity(one, turned, np.log(np.maximum(area, 1e-30) / (2 * math.pi * sigma**2)).astype(np.float32), kernel)
    run.balance(kernel, ratio.astype(np.float32), np.float32(OUTLIER), ROUNDS, row, column)
    run.carried(kernel, row, column, turned[:3], share, mean)
    return mean, share


def point_areas(points: Tensor, neighbours: int = 8) -> Tensor:
    """Surface area each of many scattered points stands for, from the distance to its k-th neighbour, [N]."""
    k = min(neighbours, len(points) - 1)
    if compiled(points):
        from instant_nk.geometry.search_tree import SearchTree

        reference = arrays(points)[0]
        return math.pi / max(k, 1) * torch.from_numpy(SearchTree(reference).query(reference, k + 1)[0][:, k])
    if has_triton(points):
        from instant_nk.fitting import transport_triton

        return transport_triton.point_areas(points, k)
    distance = NearestPoints(points).query(points, k + 1)[0][:, k]
    return math.pi * distance.square() / max(k, 1)
