"""Parts that came to lie wrongly in one frame: found where the observation contradicts the moved surface, and looked for at other orientations.

A round head that turns by 80 degrees between two frames, or a forearm that twists while it swings, fits its observation nearly as well without having
turned: closest points and colour gradients find the nearest orientation, and stay. What tells is colour that is nowhere near. Around such a place
the graph is cut where few links are in the way; what is cut off is taken as it was one frame earlier and brought onto the observation as a rigid body
from many orientations. The fit that the best of these lead to is kept if more of the observation is explained by it.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy import sparse
from scipy.sparse import csgraph
from torch import Tensor

from instant_nk.fitting.correspondences import Target, Trail, welsch
from instant_nk.fitting.deformation_solver import Body, Pose
from instant_nk.fitting.registration import BRIDGE, Fit, Options, Pictures, disagreement, judge, register_near
from instant_nk.fitting.rigid_alignment import misfit, orientations, settled
from instant_nk.geometry.neighbours import NearestPoints, evenly
from instant_nk.geometry.rotations import so3_exp, so3_log
from instant_nk.log import fields

logger = logging.getLogger(__name__)

COLOUR = 4.0  # node spacings that one unit of colour difference counts as: shading changes less than a quarter of a unit
FAR = 1.5  # node spacings, colour counted in, from which on a point of the surface is nowhere near what was observed
LEAST = 0.004  # share of such points that is worth a search
RISE = 1.2  # so many times those of the frame before: what a search did not find there, it will not find here
SUSPECT = 0.12  # share of a node's points that lie so, from which on the node does
SEEDS = 2  # places that are searched, the largest first,
TINY = 0.001  # if they hold this share of the points
PARTS = 4  # ways to cut a part off around each
GROWING = 4  # times that a part takes in what moves with it
NEAR = 2.0  # node spacings from it within which observed points may be its own
AGREED = 0.8  # share of a node's points that must lie on the observation, for it to be taken in
MOST = 0.85  # share of the nodes that a part has at most
WINDOW = 12  # nodes on either side among which a cut must be the easiest
SURFACE = 800  # points that stand for a part, or the whole, where orientations are compared
FEWEST = 12  # points of a part, and of what was observed of it, that are worth a look
OTHER = 1.0  # node spacings by which an orientation must move a part, in the median, to be another one
ROUNDING = 1e-6  # of a share: one that was kept in single precision decides as it did
ROUNDS = 3  # parts that are looked for in a frame, one after the other
TRIED = 3  # orientations that are carried through to a fit
CONTRADICTION = 0.5  # how much a point that is contradicted adds to a fit's disagreement with the observation
GAIN = 0.004  # by which that must fall for another fit to be kept


@dataclass(frozen=True)
class Sightings:
    """An observation as the colours that were seen and where.

    Attributes:
        target: the observation, its search with colours that count as much as here.
        index: search by position and colour alone.
        spacing: of the nodes.
    """

    target: Target
    index: NearestPoints
    spacing: float

    @staticmethod
    def of(body: Body, target: Target) -> Sightings:
        scale = COLOUR * body.spacing
        joint = torch.cat([target.points, scale * target.colours, target.normal_scale * target.normals], 1)
        return Sightings(replace(target, colour_scale=scale, index=NearestPoints(joint), trail=Trail()), NearestPoints(joint[:, :6]), body.spacing)

    def misfit(self, points: Tensor, colours: Tensor) -> float:
        """How badly points of those colours [N, 3] lie on what was seen: 0 on it, 1 farther than a few node spacings."""
        return float(1 - welsch(self.nearest(points, colours)[0], self.spacing).mean())

    def nearest(self, points: Tensor, colours: Tensor) -> tuple[Tensor, Tensor]:
        """Distance, colour counted in, from points of those colours [N, 3] to the nearest that was seen, and which that is, [N] each."""
        distance, index = self.index.query(torch.cat([points, self.target.colour_scale * colours], 1))
        return distance[:, 0], index[:, 0]


Placing = tuple[Tensor, Tensor, Tensor]  # a part's nodes, bool [M], and the rotation and translation from the frame before


def contradicted(body: Body, pose: Pose, seen: Sightings) -> Tensor:
    """Which points of the moved surface have nothing like them near them in the observation, bool [N]; beyond the rim of what was observed, none."""
    distance, nearest = seen.nearest(body.warp(pose), body.colours)
    return (distance > FAR * seen.spacing) & seen.target.usable[nearest]


def contradiction(body: Body, pose: Pose, target: Target) -> float:
    """Share of the moved surface's points that are `contradicted`."""
    with torch.no_grad():
        return _share(body, pose, Sightings.of(body, target))


def judged(body: Body, pose: Pose, target: Target) -> Fit:
    """A pose that nobody fitted, with what of it is contradicted: at the canonical frame that is how far observed colours differ from the surface's own."""
    with torch.no_grad():
        return replace(judge(body, pose, target), contradicted=contradiction(body, pose, target))


def search(body: Body, fit: Fit, before: Pose, share_before: float, target: Target, options: Options, pictures: Pictures | None) -> Fit:
    """The fit, or a better one in which a part lies otherwise; either with the share of its surface that is contradicted.

    Args:
        before: the pose of the frame before, in which parts have their shape.
        share_before: of the surface that was contradicted there.
    """
    with torch.no_grad():
        seen = Sightings.of(body, target)
        fit = replace(fit, contradicted=_share(body, fit.pose, seen))
        for _ in range(ROUNDS):
            if fit.contradicted < max(LEAST, RISE * share_before) - ROUNDING:
                break
            other = _with_a_part_elsewhere(body, fit, before, seen, target, options, pictures)
            if other is None:
                break
            logger.info("a part lies otherwise: %s", fields(contradicted_before=fit.contradicted, contradicted=other.contradicted))
            fit = other
        return fit


def _with_a_part_elsewhere(body: Body, fit: Fit, before: Pose, seen: Sightings, target: Target, options: Options, pictures: Pictures | None) -> Fit | None:
    """A better fit that one part at another orientation leads to; None where none does."""

    def refit(pose: Pose, pictures: Pictures | None) -> Fit:
        other = register_near(body, pose, target, options, pictures)
        return replace(other, contradicted=_share(body, other.pose, seen))

    found = [refit(pose, None) for pose in _other_orientations(body, fit.pose, before, seen)]
    if not found:
        return None
    best = min(found, key=lambda other: _badness(body, other, target))
    if _badness(body, best, target) >= _badness(body, fit, target):
        return None
    other = refit(best.pose, pictures)
    return other if improves(body, other, fit, target) else None


def improves(body: Body, other: Fit, fit: Fit, target: Target) -> bool:
    """Whether another fit explains so much more of an observation that it is to be kept; both know what of them is contradicted."""
    with torch.no_grad():
        return other.converged >= fit.converged and _badness(body, other, target) < _badness(body, fit, target) - GAIN


def _badness(body: Body, fit: Fit, target: Target) -> float:
    return disagreement(body, fit.pose, target) + CONTRADICTION * fit.contradicted


def _share(body: Body, pose: Pose, seen: Sightings) -> float:
    return float(contradicted(body, pose, seen).double().mean())


def _other_orientations(body: Body, pose: Pose, before: Pose, seen: Sightings) -> list[Pose]:
    """The most promising poses in which one part lies otherwise, best first."""
    few = evenly(len(body.points), SURFACE, body.points.device)
    thin, ranked = seen.target.thinned(SURFACE), []
    wrong = contradicted(body, pose, seen)
    for part in _parts(body, wrong):
        for placing in _placings(body, pose, before, torch.as_tensor(part, device=wrong.device), seen):
            for placed in (placing, _grown(body, before, *placing, seen)):
                other = _with_part(body, pose, before, *placed)
                live, normals = body.warp(other)[few], body.warp_normals(other)[few]
                worse = misfit(live, normals, body.colours[few], thin, body.spacing) + CONTRADICTION * _share(body, other, seen)
                ranked.append((worse, placed))
    return [_with_part(body, pose, before, *placed) for placed in _best_few(body, before, ranked)]


def _placings(body: Body, pose: Pose, before: Pose, inside: Tensor, seen: Sightings) -> list[Placing]:
    """Where a part alone, as a rigid body, lies well on the observation, and otherwise than now; the best few."""
    live = body.warp(pose)
    owner = NearestPoints(live).query(seen.target.points)[1][:, 0]
    own = _points_of(body, inside)
    mine, theirs = torch.nonzero(own)[:, 0], torch.nonzero(own[owner] & seen.target.usable)[:, 0]
    if min(len(mine), len(theirs)) < FEWEST:
        return []
    pick = mine[evenly(len(mine), SURFACE, mine.device)]
    shape, normals, colours = body.warp(before)[pick], body.warp_normals(before)[pick], body.colours[pick]
    found = []
    for turn, shift in orientations(shape, normals, colours, seen.target.only(theirs), body.spacing):
        there = shape @ turn.T + shift
        if (there - live[pick]).norm(dim=1).median() > OTHER * body.spacing:
            found.append((seen.misfit(there, colours), (inside, turn, shift)))
    return _best_few(body, before, found)


def _best_few(body: Body, before: Pose, found: list[tuple[float, Placing]]) -> list[Placing]:
    """The TRIED placings of least misfit that differ from each other, best first."""
    kept: list[Placing] = []
    for _, placing in sorted(found, key=lambda one: one[0]):
        if len(kept) < TRIED and all(_differ(body, before, placing, earlier) for earlier in kept):
            kept.append(placing)
    return kept


def _points_of(body: Body, inside: Tensor) -> Tensor:
    """Points that hang mostly on the nodes that are `inside`, bool [N]."""
    return (inside.double()[body.anchors] * body.weights).sum(1) > 0.5


def _by_node(body: Body, points: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """What hangs on each node, and how much of that are the given points bool [N]; sums of weights, [M] each."""
    both = torch.stack([body.weights, body.weights * points[:, None]], -1).reshape(-1, 2)
    return tuple(body.nodes.new_zeros(len(body.nodes), 2).index_add_(0, body.anchors.reshape(-1), both).cpu().numpy().T)


def _grown(body: Body, before: Pose, inside: Tensor, turn: Tensor, shift: Tensor, seen: Sightings) -> Placing:
    """A part with all that hangs together with it and lies on the observation when it moves likewise; and where that settles."""
    shape, normals = body.warp(before), body.warp_normals(before)
    edge = body.edge.cpu().numpy()
    for _ in range(GROWING):
        off = seen.target.index.query(seen.target.features(shape @ turn.T + shift, normals @ turn.T, body.colours))[0][:, 0]
        total, good = _by_node(body, off < body.spacing)
        fits = good > AGREED * total
        kept = fits[edge].all(1)
        links = sparse.csr_matrix((np.ones(kept.sum()), tuple(edge[kept].T)), shape=(len(fits), len(fits)))
        label = csgraph.connected_components(links, False)[1]
        counts = np.bincount(label[inside.cpu().numpy() & fits], minlength=label.max() + 1)
        if counts.max(initial=0) * 2 < int(inside.sum()):
            break
        inside = torch.as_tensor((label == counts.argmax()) & fits, device=inside.device)
        mine = torch.nonzero(_points_of(body, inside))[:, 0]
        away = NearestPoints(shape[mine] @ turn.T + shift).query(seen.target.points)[0][:, 0]
        theirs = torch.nonzero((away < NEAR * body.spacing) & seen.target.usable)[:, 0]
        if min(len(mine), len(theirs)) < FEWEST:
            break
        more, rest = settled(shape[mine] @ turn.T + shift, normals[mine] @ turn.T, body.colours[mine], seen.target.only(theirs), body.spacing)
        turn, shift = more @ turn, more @ shift + rest
    return inside, turn, shift


def _differ(body: Body, before: Pose, one: Placing, other: Placing) -> bool:
    """Whether two orientations carry the nodes that both move to other places."""
    both = one[0] & other[0]
    if not both.any():
        return True
    nodes = (body.nodes + before.translations)[both]
    return bool(((nodes @ one[1].T + one[2]) - (nodes @ other[1].T + other[2])).norm(dim=1).median() > OTHER * body.spacing)


def _with_part(body: Body, pose: Pose, before: Pose, inside: Tensor, turn: Tensor, shift: Tensor) -> Pose:
    """The pose, with a part as it was `before` and moved from there; neighbours within a spacing follow by a share that falls to nothing."""
    gap = torch.cdist(body.nodes, body.nodes[inside]).amin(1)
    share = (1 - gap / body.spacing).clamp_min(0)[:, None]
    there = (body.nodes + before.translations) @ turn.T + shift - body.nodes
    turned = turn @ before.rotations @ pose.rotations.transpose(-1, -2)
    return Pose(so3_exp(share * so3_log(turned)) @ pose.rotations, pose.translations + share * (there - pose.translations))


def _parts(body: Body, wrong: Tensor) -> list[np.ndarray]:
    """Sets of nodes, bool [M] each, around the places where points are `wrong`, that few links tie to the rest."""
    nodes, edge, stiffness = len(body.nodes), body.edge.cpu().numpy(), body.stiffness.cpu().numpy()
    total, bad = _by_node(body, wrong)
    length = (body.nodes[body.edge[:, 0]] - body.nodes[body.edge[:, 1]]).norm(dim=1).cpu().numpy()
    length = np.where(stiffness < BRIDGE * stiffness.max(initial=0), length + length.sum(), length)  # another component comes after all of this one
    links = sparse.csr_matrix((length, (edge[:, 0], edge[:, 1])), shape=(nodes, nodes))
    suspects = np.flatnonzero(bad > SUSPECT * total)
    label = csgraph.connected_components(links[suspects][:, suspects], False)[1]
    seeds = sorted((suspects[label == i] for i in range(label.max(initial=-1) + 1)), key=lambda seed: -bad[seed].sum())
    parts = []
    for seed in seeds[:SEEDS]:
        if bad[seed].sum() >= TINY * len(wrong):
            order = np.argsort(csgraph.dijkstra(links, False, seed).min(0), kind="stable")
            for count in _easy_cuts(order, edge, stiffness, len(seed)):
                part = np.zeros(nodes, bool)
                part[order[:count]] = True
                parts.append(part)
    return parts


def _easy_cuts(order: np.ndarray, edge: np.ndarray, stiffness: np.ndarray, least: int) -> list[int]:
    """How many nodes, in this order, to take so that little stiffness ties them to the rest for what they have among them (conductance)."""
    nodes = len(order)
    rank = np.empty(nodes, np.int64)
    rank[order] = np.arange(nodes)
    ends = np.sort(rank[edge], axis=1)
    tied = np.zeros(nodes + 1)
    np.add.at(tied, ends[:, 0], stiffness)
    np.subtract.at(tied, ends[:, 1], stiffness)
    held = np.zeros(nodes)
    np.add.at(held, ends.reshape(-1), stiffness.repeat(2))
    held = held.cumsum()
    cut = (tied[:-1].cumsum() / np.maximum(np.minimum(held, held[-1] - held), 1e-9))[: int(MOST * nodes)]
    local = [i for i in range(max(4, least - 1), len(cut)) if cut[i] == cut[max(0, i - WINDOW) : i + WINDOW + 1].min()]
    return [i + 1 for i in sorted(local, key=lambda i: cut[i])[:PARTS]]
