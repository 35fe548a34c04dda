"""Registration of one frame: rigid alignment, then annealed non-rigid Gauss-Newton from closest points and image evidence."""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from instant_nk.fitting.correspondences import Cloud, Target, closest_both_ways, planes, point_areas, pull, soft_displacement
from instant_nk.fitting.deformation_solver import (
    Body,
    Evidence,
    Pose,
    compiled,
    edge_weights,
    has_triton,
    nearest_rotations,
    orthonormal,
    rigidity_errors,
    small_matmul,
    step,
    wholeness,
)
from instant_nk.fitting.frame_images import FrameImages, Views
from instant_nk.fitting.image_evidence import Appearance, Shell, Sight, add_colours, add_silhouettes, look
from instant_nk.fitting.repeated import repeat
from instant_nk.fitting.rigid_alignment import aligned, misfit
from instant_nk.geometry.neighbours import NearestPoints, evenly
from instant_nk.geometry.rotations import so3_exp
from instant_nk.kernels.ahead import Call
from instant_nk.models.deformation_graph import LONG_RANGE_WEIGHT

PLACED = 0.5  # progress from which the surface is near enough that parts which lie at each other are rivals, and not merely on their way
LOST_COVERAGE = 0.75  # share of observed points that must be explained
BRIDGE = 0.5 * LONG_RANGE_WEIGHT  # links weaker than this, relative to the strongest, only tie components together
NOISE = (0.008, 0.028)  # node spacings: at the first observed surfaces are as good as exact, at the second as noisy as those that the options are for
EXACT_SOFTENING = 0.5  # of links, where surfaces are exact; then they are half as stiff
PLAIN_TANGENTIAL = 0.65  # added to `Options.tangential` where colours say nothing at all,
PLAIN_SURFACE = 1.3  # and to `Options.surface_weight`
LOST_RIGIDITY = 1.2  # mean edge error, in spacings, at which the surface is crumpled rather than bent


@dataclass(frozen=True)
class Options:
    """Settings of the solver; lengths are in node spacings, so that no scale enters.

    Attributes:
        iterations: Gauss-Newton iterations per frame.
        rigidity: weight of rigidity against data at the end of the annealing.
        rigidity_start: its weight at the beginning.
        softening: strain beyond which an edge's rigidity gives way,
        softening_start: the same when the annealing begins,
        coarse_softening: and on the coarse level: a link that gives way while the motion is still unknown lets a limb slide along itself.
        max_distance: longest correspondence at the start.
        min_cosine: normal gate.
        tangential: weight of the sliding directions of a correspondence relative to its normal direction.
        surface_weight: of the observed surface while images are asked as well.
        momentum: share of the last step that is added before the next, while closest points are followed.
        colour: length one unit of colour difference counts as in the search.
        coarse_points: observed points that the coarse level is matched with.
        settling_iterations: iterations of `settle`.
    """

    iterations: int = 8
    rigidity: float = 0.2
    rigidity_start: float = 1.0
    coarse_start: float = 30.0
    softening: float = 0.3
    softening_start: float = 0.5
    coarse_softening: float = 2.0
    max_distance: float = 4.0
    min_cosine: float = 0.3
    tangential: float = 0.05
    surface_weight: float = 0.5
    momentum: float = 0.0
    colour: float = 1.0
    normal: float = 0.6
    soft_iterations: int = 12
    soft_points: int = 1000
    soft_start: float = 3.0
    soft_end: float = 0.5
    soft_rigidity: float = 0.1
    coarse_points: int = 2400
    coarse_iterations: int = 8
    coarse_rigidity: float = 0.1
    image_iterations: int = 10
    image_level: int = 2
    settling_iterations: int = 4
    image_weight: float = 1.0
    intensity_length: float = 0.25
    silhouette_weight: float = 1.0

    def colour_weight(self, spacing: float) -> float:
        """Weight of a squared difference of colour against a squared length of the surface, at an `image_weight` of one."""
        return (self.intensity_length * spacing / 0.05) ** 2

    def for_noise(self, noise: float) -> Options:
        """These, for observed surfaces that lie so many node spacings from the canonical one at its own frame, where nothing has moved.

        Noise is answered by stiff parts and joints; without it, gentle bending everywhere is what was seen.
        """
        share = min(max((noise - NOISE[0]) / (NOISE[1] - NOISE[0]), 0.0), 1.0) if math.isfinite(noise) else 1.0

        def between(exact: float, noisy: float) -> float:
            return exact ** (1 - share) * noisy**share

        return replace(
            self, rigidity=self.rigidity * between(0.5, 1.0), softening=between(EXACT_SOFTENING, self.softening),
            coarse_softening=between(EXACT_SOFTENING, self.coarse_softening),
        )  # fmt: skip

    def for_plain(self, plainness: float) -> Options:
        """These, for a subject of which colours tell that share nothing (`image_evidence.plainness`).

        Where images cannot say how a surface slides, noise in them and rigidity decide; that it stays with the nearest observed point is the
        better guess. Squared: on a subject with texture nearly everywhere images are to be believed.
        """
        share = plainness**2
        return replace(self, tangential=self.tangential + PLAIN_TANGENTIAL * share, surface_weight=self.surface_weight + PLAIN_SURFACE * share)


@dataclass(frozen=True)
class Fit:
    """Result of registering one frame.

    Attributes:
        pose: nodes' motion.
        residual: median distance of moved surface points to the observed surface, caller's unit.
        coverage: share of observed points explained by the moved surface.
        rigidity: mean as-rigid-as-possible edge error within components, caller's unit.
        converged: the fit explains the observation.
        contradicted: share of surface points that have nothing like them near them in the observation (`lost_parts`).
    """

    pose: Pose
    residual: float
    coverage: float
    rigidity: float
    converged: bool
    contradicted: float = 0.0


def placed(body: Body, pose: Pose) -> tuple[Tensor, Tensor, Tensor]:
    """Live surface points [N, 3], their normals [N, 3] and their wholeness [N]."""
    if has_triton(body.points):
        from instant_nk.fitting import evidence_triton

        return evidence_triton.place(body, pose)[:3]
    return body.warp(pose), body.warp_normals(pose), wholeness(body, pose)


def surface_evidence(body: Body, pose: Pose, target: Target, options: Options, progress: float | Tensor, share: float = 1.0) -> Evidence:
    """Evidence of the observed surface at this pose; `progress` in [0, 1] anneals the gates and the kernel, `share` is a factor on its weight."""
    if has_triton(body.points):
        from instant_nk.fitting import evidence_triton

        evidence, heaviness = Evidence.none(body), share * len(body.nodes) / len(body.points)
        given = options.max_distance * body.spacing, options.min_cosine, options.tangential, heaviness, PLACED, progress
        evidence_triton.add_surface(evidence, body, pose, target, *given)
        return evidence
    live, normals = body.warp(pose), body.warp_normals(pose)
    reach = options.max_distance * body.spacing * (1 - 0.7 * progress)
    matches = closest_both_ways(live, normals, body.colours, target, reach, options.min_cosine, padded=live.is_cuda)
    evidence = Evidence.none(body)
    if not len(matches.source):
        return evidence
    whole = wholeness(body, pose) * (share * len(body.nodes) / len(body.points))
    if isinstance(progress, Tensor):
        whole = torch.where(progress >= PLACED, whole * body.probes.certainty(live, normals, body.spacing, False), whole)
    elif progress >= PLACED:
        whole = whole * body.probes.certainty(live, normals, body.spacing, compiled(live))
    pull(evidence, live, normals, target, matches, whole, 0.05 * body.spacing, 1 + 2 * (1 - progress), options.tangential)
    return evidence


def assign_softly(body: Body, pose: Pose, target: Target, options: Options, spacing: float) -> Pose:
    """Coarse alignment by annealed optimal transport, which sees past the nearest surface: fast limbs and crossing legs.

    Args:
        spacing: the length in which the blur is measured (the fine graph's, on whichever level this runs).
    """
    pick, there = evenly(len(body.points), options.soft_points, body.points.device), target.evenly(options.soft_points)
    goal = Cloud(target.points[there], target.normals[there], target.colours[there], point_areas(target.points[there]))
    blurs = torch.logspace(math.log10(options.soft_start), math.log10(options.soft_end), options.soft_iterations).tolist()
    given = replace(body, coarse=None), pick, goal, options, spacing
    return Pose(*repeat(_assign_once, (pose.rotations, pose.translations), [(sigma,) for sigma in blurs], given))


def _assign_once(
    rotations: Tensor, translations: Tensor, sigma: float | Tensor, body: Body, pick: Tensor, goal: Cloud, options: Options, spacing: float
) -> tuple[Tensor, Tensor]:
    pose = Pose(rotations, translations)
    live, normals, whole = (part[pick] for part in placed(body, pose))
    displacement, share = soft_displacement(Cloud(live, normals, body.colours[pick], point_areas(live)), goal, sigma * spacing)
    evidence = Evidence.none(body)
    evidence.add_positions(pick, -displacement, whole * share * (len(body.nodes) / len(pick)))
    rigidity = options.soft_rigidity * (sigma / options.soft_end) ** 2
    pose, _ = step(body, pose, evidence, edge_weights(body, pose, rigidity, options.coarse_softening))
    return pose.rotations, pose.translations


def rehearsals(body: Body, options: Options) -> list[Call]:
    """Calls that launch the kernels of a registration on either level, for `kernels.ahead`; they need no observation."""

    def once(level: Body) -> None:
        level, rest, ones = replace(level, coarse=None), Pose.identity(level), torch.ones_like(level.whole)
        own, number = torch.cat([level.points, level.colours, level.normals], 1), ones.sum()
        itself = Target(level.points, level.normals, level.colours, ones, ones > 0, 1.0, 1.0, number, NearestPoints(own), len(ones))
        pick = evenly(len(ones), options.soft_points, ones.device)
        goal = Cloud(level.points[pick], level.normals[pick], level.colours[pick], ones[pick])
        _assign_once(rest.rotations, rest.translations, level.spacing, level, pick, goal, options, level.spacing)
        _match_once(rest.rotations, rest.translations, rest.rotations, rest.translations, 1.0, options.rigidity, options.softening, level, itself, options)
        nearest_rotations(rest.rotations)

    return [functools.partial(once, level) for level in ([body] if body.coarse is None else [body, body.coarse.body])]


def match_closely(body: Body, pose: Pose, target: Target, options: Options, iterations: int, start: float, end: float) -> Pose:
    """Closest points both ways while the rigidity weight falls from `start` to `end`, and links give way sooner."""
    progress = [i / max(iterations - 1, 1) for i in range(iterations)]

    def rigidity(p: float) -> float:
        return math.exp(math.log(start) + (math.log(end) - math.log(start)) * min(p / 0.7, 1.0))

    rows = [(p, rigidity(p), options.softening_start + p * (options.softening - options.softening_start)) for p in progress]
    state = pose.rotations, pose.translations, pose.rotations, pose.translations
    return Pose(*repeat(_match_once, state, rows, (replace(body, coarse=None), target, options))[:2])


def _match_once(
    rotations: Tensor, translations: Tensor, rotations_before: Tensor, translations_before: Tensor,
    progress: float | Tensor, rigidity: float | Tensor, softening: float | Tensor, body: Body, target: Target, options: Options,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    pose = Pose(rotations, translations)
    if options.momentum:
        pose = _onward(pose, Pose(rotations_before, translations_before), options.momentum)
    evidence = surface_evidence(body, pose, target, options, progress)
    pose, _ = step(body, pose, evidence, edge_weights(body, pose, rigidity, softening))
    return pose.rotations, pose.translations, rotations, translations


def _onward(pose: Pose, before: Pose, share: float) -> Pose:
    """Where the step from `before` leads when a share of it is added (Nesterov 1983): closest points creep, each step much like the last.

    Rotations go on by that share of the sine of the angle they turned, so that a node which turned far is not flung round.
    """
    turned = small_matmul(pose.rotations, before.rotations.transpose(-1, -2))
    sine = 0.5 * torch.stack([turned[:, 2, 1] - turned[:, 1, 2], turned[:, 0, 2] - turned[:, 2, 0], turned[:, 1, 0] - turned[:, 0, 1]], -1)
    return Pose(small_matmul(so3_exp(share * sine), pose.rotations), pose.translations + share * (pose.translations - before.translations))


def move_coarsely(body: Body, pose: Pose, target: Target, options: Options) -> Pose:
    """Large motion, on the coarse level where there is one."""
    if body.coarse is None:
        return assign_softly(body, pose, target, options, body.spacing)
    level, few = body.coarse.placed(body, pose), target.thinned(options.coarse_points)
    increment = assign_softly(level, Pose.identity(level), few, options, body.spacing)
    holding = replace(options, softening_start=options.coarse_softening, softening=options.coarse_softening)
    increment = match_closely(level, increment, few, holding, options.coarse_iterations, options.coarse_start, options.coarse_rigidity)
    return body.coarse.carry(level, increment, body, pose)


@dataclass(frozen=True)
class Pictures:
    """The images of one frame and what is needed to compare the moved surface with them."""

    views: Views
    images: FrameImages
    shell: Shell
    appearance: Appearance

    def at(self, level: int) -> Pictures:
        """These with one level of the pyramid alone."""
        return replace(self, images=self.images.at(level), appearance=self.appearance.at(level))


def refine_with_images(body: Body, pose: Pose, target: Target, pictures: Pictures, options: Options) -> Pose:
    """Surface, colours and silhouettes together, from the coarsest pyramid level to the finest; what is seen is looked up twice."""
    count = options.image_iterations
    levels = [max(0, options.image_level - i * (options.image_level + 1) // count) for i in range(count)]
    for half in (levels[: count // 2], levels[count // 2 :]):
        if not half:
            continue
        sight = look(body, pictures.shell, pose, pictures.views)
        shown = replace(body, coarse=None, whole=body.whole * sight.shown())
        for level, same in itertools.groupby(half):
            at = pictures.at(level)
            given = shown, target, at.views, sight, at.images, at.appearance, options
            pose = Pose(*repeat(_refine_once, (pose.rotations, pose.translations), [()] * len(list(same)), given))
    return pose


def _refine_once(
    rotations: Tensor, translations: Tensor, body: Body, target: Target, views: Views, sight: Sight, images: FrameImages, appearance: Appearance,
    options: Options,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    pose, per_point = Pose(rotations, translations), len(body.nodes) / len(body.points)
    evidence = surface_evidence(body, pose, target, options, 1.0, options.surface_weight)
    add_colours(evidence, body, pose, views, sight, images, appearance, 0, options.image_weight**2 * options.colour_weight(body.spacing) * per_point)
    add_silhouettes(evidence, body, pose, views, sight, images, options.silhouette_weight * per_point, 0.5 * body.spacing)
    pose, _ = step(body, pose, evidence, edge_weights(body, pose, options.rigidity, options.softening))
    return pose.rotations, pose.translations


@dataclass(frozen=True)
class Guide:
    """Where the sequence as a whole wants the surface points of one frame.

    Attributes:
        positions: [N, 3].
        weight: [N], 1: as much as an observation of the point.
    """

    positions: Tensor
    weight: Tensor


def settle(body: Body, pose: Pose, target: Target, guide: Guide, options: Options) -> Fit:
    """A fit near a pose that was found before, between the surface observed and what all frames together say of this one.

    Images are not asked again: what they said is in the pose, and nearly all of it in the guide.
    """
    with torch.no_grad():
        given = replace(body, coarse=None), target, guide, options
        pose = Pose(*repeat(_settle_once, (pose.rotations, pose.translations), [()] * options.settling_iterations, given))
        return judge(body, orthonormal(pose), target)


def _settle_once(rotations: Tensor, translations: Tensor, body: Body, target: Target, guide: Guide, options: Options) -> tuple[Tensor, Tensor]:
    pose = Pose(rotations, translations)
    evidence = surface_evidence(body, pose, target, options, 1.0)
    weight = guide.weight * wholeness(body, pose) * (len(body.nodes) / len(body.points))
    evidence.add_positions(torch.arange(len(body.points), device=weight.device), body.warp(pose) - guide.positions, weight)
    pose, _ = step(body, pose, evidence, edge_weights(body, pose, options.rigidity, options.softening))
    return pose.rotations, pose.translations


def register_from(body: Body, starts: list[Pose], target: Target, options: Options, pictures: Pictures | None = None) -> Fit:
    """Register one frame from the most promising of several starting poses.

    Each start is aligned rigidly and moved on the coarse level; the one that agrees best with the observation is carried on.
    """
    with torch.no_grad():
        pose = best_of(body, [move_coarsely(body, aligned(body, start, target), target, options) for start in starts], target)
        return register_near(body, pose, target, options, pictures)


def register_near(body: Body, pose: Pose, target: Target, options: Options, pictures: Pictures | None = None) -> Fit:
    """A fit in the neighbourhood of a pose: closest points, then images."""
    with torch.no_grad():
        pose = match_closely(body, pose, target, options, options.iterations, options.rigidity_start, options.rigidity)
        if pictures is not None and options.image_iterations:
            pose = refine_with_images(body, pose, target, pictures, options)
        return judge(body, orthonormal(pose), target)


def best_of(body: Body, poses: list[Pose], target: Target) -> Pose:
    """The pose that agrees best with the observation."""
    return poses[0] if len(poses) == 1 else min(poses, key=lambda pose: disagreement(body, pose, target))


def disagreement(body: Body, pose: Pose, target: Target) -> float:
    """Misfit of a pose in [0, 1], at the scale of half a node spacing."""
    live, normals, _ = placed(body, pose)
    return misfit(live, normals, body.colours, target, 0.5 * body.spacing)


def judge(body: Body, pose: Pose, target: Target) -> Fit:
    """How well a pose explains an observation, and whether that is good enough to go on from."""
    live, normals, _ = placed(body, pose)
    matches = closest_both_ways(live, normals, body.colours, target, 0.5 * body.spacing, 0.3)
    coverage = (len(matches.source) - matches.forward) / max(int(target.usable.sum()), 1)
    _, residual = planes(live, normals, target, matches)
    residual = float(residual.abs().median()) if len(residual) else float("inf")
    rigidity = _crumpling(body, pose)
    return Fit(pose, residual, coverage, rigidity, coverage > LOST_COVERAGE and rigidity < LOST_RIGIDITY * body.spacing)


def _crumpling(body: Body, pose: Pose) -> float:
    """Mean error of the edges within components: two parts that move apart are not crumpled."""
    if not len(body.edge):
        return 0.0
    within = body.stiffness >= BRIDGE * body.stiffness.max()
    forward, reverse = (error[within].norm(dim=-1) for error in rigidity_errors(body, pose))
    return float((forward + reverse).mean() / 2)
