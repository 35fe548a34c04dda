"""Registration of one frame: rigid alignment, then annealed non-rigid Gauss-Newton from closest points and image evidence."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from instant_nk.fitting.correspondences import Cloud, Matches, Target, closest_both_ways, point_areas, soft_displacement, welsch
from instant_nk.fitting.deformation_solver import Body, Evidence, Pose, edge_weights, orthonormal, rigidity_errors, step
from instant_nk.fitting.image_evidence import Appearance, FrameImages, Shell, Views, add_colours, add_silhouettes, look
from instant_nk.geometry.rotations import so3_exp


@dataclass(frozen=True)
class Options:
    """Settings of the solver; lengths are in node spacings, so that no scale enters.

    Attributes:
        iterations: Gauss-Newton iterations per frame.
        rigidity: weight of rigidity against data at the end of the annealing.
        rigidity_start: factor on it at the beginning.
        softening: strain beyond which an edge's rigidity gives way.
        max_distance: longest correspondence at the start.
        min_cosine: normal gate.
        tangential: weight of the sliding directions of a correspondence relative to its normal direction.
        colour: length one unit of colour difference counts as in the search.
    """

    iterations: int = 8
    rigidity: float = 0.1
    rigidity_start: float = 1.0
    coarse_start: float = 30.0
    softening: float = 0.5
    max_distance: float = 4.0
    min_cosine: float = 0.3
    tangential: float = 0.05
    colour: float = 1.0
    normal: float = 0.3
    soft_iterations: int = 12
    soft_points: int = 1000
    soft_start: float = 3.0
    soft_end: float = 0.5
    soft_rigidity: float = 0.1
    coarse_iterations: int = 8
    coarse_rigidity: float = 0.1
    image_iterations: int = 12
    image_level: int = 2
    image_weight: float = 1.0
    intensity_length: float = 0.15
    silhouette_weight: float = 1.0


@dataclass(frozen=True)
class Fit:
    """Result of registering one frame.

    Attributes:
        pose: nodes' motion.
        residual: median distance of moved surface points to the observed surface, caller's unit.
        coverage: share of observed points explained by the moved surface.
        rigidity: mean as-rigid-as-possible edge error, caller's unit.
        converged: the fit explains the observation.
    """

    pose: Pose
    residual: float
    coverage: float
    rigidity: float
    converged: bool


def align_rigidly(body: Body, pose: Pose, target: Target, iterations: int = 8) -> Pose:
    """The pose moved as one rigid body onto the target by robust point-to-plane steps."""
    for _ in range(iterations):
        live, normals = body.warp(pose), body.warp_normals(pose)
        matches = closest_both_ways(live, normals, body.colours, target, float("inf"), 0.0)
        if len(matches.source) < 12:
            return pose
        rows, residual = _planes(live, normals, target, matches)
        distance = (live[matches.source] - target.points[matches.target]).norm(dim=-1)
        weight = matches.weight * welsch(distance, 2.0 * float(distance.median()) + 1e-9 * body.spacing)
        centre = live.mean(0)
        arm = live[matches.source] - centre
        jacobian = torch.cat([torch.linalg.cross(arm, rows), rows], 1)
        normal = jacobian.T @ (weight[:, None] * jacobian)
        normal = normal + torch.diag(1e-3 * normal.diagonal() + 1e-12)
        twist = torch.linalg.solve(normal, -(jacobian.T @ (weight * residual)))
        rotation = so3_exp(twist[:3])
        pose = pose.moved(rotation, centre + twist[3:] - rotation @ centre, body.nodes)
        if float(twist[3:].norm()) < 1e-3 * body.spacing and float(twist[:3].norm()) < 1e-3:
            break
    return pose


def _planes(live: Tensor, normals: Tensor, target: Target, matches: Matches) -> tuple[Tensor, Tensor]:
    """Directions and signed distances of the symmetric point-to-plane residual."""
    rows = normals[matches.source] + target.normals[matches.target]
    rows = rows / rows.norm(dim=-1, keepdim=True).clamp_min(1e-9)
    return rows, (rows * (live[matches.source] - target.points[matches.target])).sum(-1)


def surface_evidence(body: Body, pose: Pose, target: Target, options: Options, progress: float) -> Evidence:
    """Evidence of the observed surface at this pose; `progress` in [0, 1] anneals the gates and the kernel."""
    live, normals = body.warp(pose), body.warp_normals(pose)
    reach = options.max_distance * body.spacing * (1 - 0.7 * progress)
    matches = closest_both_ways(live, normals, body.colours, target, reach, options.min_cosine)
    evidence = Evidence.none(body)
    if not len(matches.source):
        return evidence
    difference = live[matches.source] - target.points[matches.target]
    distance = difference.norm(dim=-1)
    scale = max(2.0 * float(distance.median()), 0.05 * body.spacing) * (1 + 2 * (1 - progress))
    weight = matches.weight * welsch(distance, scale) * (len(body.nodes) / len(body.points))
    rows, residual = _planes(live, normals, target, matches)
    evidence.add_directions(matches.source, rows, residual, weight)
    evidence.add_positions(matches.source, difference, options.tangential * weight)
    return evidence


def _evenly(count: int, wanted: int) -> Tensor:
    """`wanted` of `count` rows, evenly spread; all when there are no more."""
    return torch.linspace(0, count - 1, min(wanted, count), dtype=torch.float64).round().long()


def assign_softly(body: Body, pose: Pose, target: Target, options: Options, spacing: float) -> Pose:
    """Coarse alignment by annealed optimal transport, which sees past the nearest surface: fast limbs and crossing legs.

    Args:
        spacing: the length in which the blur is measured (the fine graph's, on whichever level this runs).
    """
    pick, there = (_evenly(len(x.points), options.soft_points).to(body.points.device) for x in (body, target))
    goal = Cloud(target.points[there], target.normals[there], target.colours[there], point_areas(target.points[there]))
    for sigma in torch.logspace(math.log10(options.soft_start), math.log10(options.soft_end), options.soft_iterations).tolist():
        live = body.warp(pose)[pick]
        cloud = Cloud(live, body.warp_normals(pose)[pick], body.colours[pick], point_areas(live))
        displacement, share = soft_displacement(cloud, goal, sigma * spacing)
        evidence = Evidence.none(body)
        evidence.add_positions(pick, -displacement, share * (len(body.nodes) / len(pick)))
        rigidity = options.soft_rigidity * (sigma / options.soft_end) ** 2
        pose, _ = step(body, pose, evidence, edge_weights(body, pose, rigidity, options.softening))
    return pose


def match_closely(body: Body, pose: Pose, target: Target, options: Options, iterations: int, start: float, end: float) -> Pose:
    """Closest points both ways while the rigidity weight falls from `start` to `end`."""
    for i in range(iterations):
        progress = i / max(iterations - 1, 1)
        rigidity = math.exp(math.log(start) + (math.log(end) - math.log(start)) * min(progress / 0.7, 1.0))
        evidence = surface_evidence(body, pose, target, options, progress)
        pose, _ = step(body, pose, evidence, edge_weights(body, pose, rigidity, options.softening))
    return pose


def move_coarsely(body: Body, pose: Pose, target: Target, options: Options) -> Pose:
    """Large motion, on the coarse level where there is one."""
    if body.coarse is None:
        return assign_softly(body, pose, target, options, body.spacing)
    level = body.coarse.placed(body, pose)
    increment = assign_softly(level, Pose.identity(level), target, options, body.spacing)
    increment = match_closely(level, increment, target, options, options.coarse_iterations, options.coarse_start, options.coarse_rigidity)
    return body.coarse.carry(level, increment, body, pose)


@dataclass(frozen=True)
class Pictures:
    """The images of one frame and what is needed to compare the moved surface with them."""

    views: Views
    images: FrameImages
    shell: Shell
    appearance: Appearance


def refine_with_images(body: Body, pose: Pose, target: Target, pictures: Pictures, options: Options) -> Pose:
    """Surface, colours and silhouettes together, from the coarsest pyramid level to the finest."""
    sight = look(body, pictures.shell, pose, pictures.views)
    count = options.image_iterations
    per_point = len(body.nodes) / len(body.points)
    for i in range(count):
        if i == count // 2:
            sight = look(body, pictures.shell, pose, pictures.views)
        level = max(0, options.image_level - i * (options.image_level + 1) // count)
        evidence = surface_evidence(body, pose, target, options, 1.0)
        exchange = (options.image_weight * options.intensity_length * body.spacing / 0.05) ** 2
        add_colours(evidence, body, pose, pictures.views, sight, pictures.images, pictures.appearance, level, exchange * per_point)
        add_silhouettes(evidence, body, pose, pictures.views, sight, pictures.images, options.silhouette_weight * per_point, 0.5 * body.spacing)
        pose, _ = step(body, pose, evidence, edge_weights(body, pose, options.rigidity, options.softening))
    return pose


def register(body: Body, pose: Pose, target: Target, options: Options, pictures: Pictures | None = None) -> Fit:
    """Register one frame from a starting pose."""
    pose = move_coarsely(body, pose, target, options)
    pose = match_closely(body, pose, target, options, options.iterations, options.rigidity_start, options.rigidity)
    if pictures is not None and options.image_iterations:
        pose = refine_with_images(body, pose, target, pictures, options)
    return judge(body, orthonormal(pose), target)


def judge(body: Body, pose: Pose, target: Target) -> Fit:
    """How well a pose explains an observation, and whether that is good enough to go on from."""
    live, normals = body.warp(pose), body.warp_normals(pose)
    matches = closest_both_ways(live, normals, body.colours, target, 0.5 * body.spacing, 0.3)
    backward = matches.target[matches.forward :]
    coverage = len(backward) / max(int(target.usable.sum()), 1)
    _, residual = _planes(live, normals, target, matches)
    residual = float(residual.abs().median()) if len(residual) else float("inf")
    forward, reverse = rigidity_errors(body, pose)
    rigidity = float((forward.norm(dim=-1) + reverse.norm(dim=-1)).mean() / 2) if len(forward) else 0.0
    return Fit(pose, residual, coverage, rigidity, coverage > 0.7 and rigidity < 0.5 * body.spacing)
