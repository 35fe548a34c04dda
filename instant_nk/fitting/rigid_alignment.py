"""Rigid alignment of a moved surface to an observation: robust point-to-plane steps, from one start or from many."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from instant_nk.fitting.correspondences import Target, closest_both_ways, planes, welsch
from instant_nk.fitting.deformation_solver import Body, Pose, nearest_rotations
from instant_nk.fitting.repeated import repeat
from instant_nk.geometry.neighbours import NearestPoints, evenly
from instant_nk.geometry.rotations import so3_exp

POINTS = 400  # of the surface and of the observation, enough for six unknowns
TURNS_DEG = (60.0, 120.0, 180.0, 240.0, 300.0)  # about each principal axis
ORIENTING = 8  # iterations from each orientation
HOPELESS = 0.4  # misfit above which other orientations are tried


def misfit(points: Tensor, normals: Tensor, colours: Tensor, target: Target, scale: float) -> float:
    """How badly surface and observation agree, both ways: 0 on top of each other, 1 farther than a few `scale` everywhere."""
    joint = target.features(points, normals, colours)
    there = target.index.query(joint)[0][:, 0]
    back = NearestPoints(joint).query(target.index.reference[target.usable])[0][:, 0]
    return float(1 - 0.5 * (welsch(there, scale).mean() + welsch(back, scale).mean()))


def _iterate(points: Tensor, normals: Tensor, colours: Tensor, target: Target, scale: float, iterations: int) -> tuple[Tensor, Tensor]:
    """Rotation [3, 3] and translation [3] that bring the points onto the target."""
    start = torch.eye(3, dtype=points.dtype, device=points.device), torch.zeros_like(points[0]), torch.ones((), dtype=torch.bool, device=points.device)
    return repeat(_iterate_once, start, [()] * iterations, (points, normals, colours, target, scale))[:2]


def _iterate_once(
    turn: Tensor, shift: Tensor, active: Tensor, points: Tensor, normals: Tensor, colours: Tensor, target: Target, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """One step of `_iterate`; `active` says, on the device, whether it has yet to arrive."""
    waits = not points.is_cuda  # a GPU goes on without being asked whether it has arrived, and then stays where it is
    if waits and not active:
        return turn, shift, active
    live, live_normals = points @ turn.T + shift, normals @ turn.T
    matches = closest_both_ways(live, live_normals, colours, target, math.inf, 0.0, padded=not waits)
    active = active & (len(matches.source) >= 12 if matches.kept is None else matches.kept.sum() >= 12)
    if waits and not active:
        return turn, shift, active
    rows, residual = planes(live, live_normals, target, matches)
    distance = (live[matches.source] - target.points[matches.target]).norm(dim=-1)
    weight = matches.weight * welsch(distance, 2.0 * matches.median(distance) + 1e-9 * scale)
    if matches.kept is not None:
        weight = torch.where(matches.kept, weight, 0.0)
    centre = live.mean(0)
    jacobian = torch.cat([torch.linalg.cross(live[matches.source] - centre, rows), rows], 1)
    normal = jacobian.T @ (weight[:, None] * jacobian)
    # A little damping: a ball may spin and a tube may slide without any resistance.
    normal = normal + torch.diag(1e-3 * normal.diagonal() + 1e-12 * normal.diagonal().max() + 1e-300)
    factor = torch.linalg.cholesky_ex(normal)[0]
    twist = torch.cholesky_solve(-(jacobian.T @ (weight * residual))[:, None], factor)[:, 0]
    omega = twist[:3] * (0.5 / twist[:3].norm().clamp_min(1e-12)).clamp_max(1.0)
    step = so3_exp(omega)
    moved = step @ (shift - centre) + centre + twist[3:]
    small = (twist[3:].norm() < 1e-3 * scale) & (omega.norm() < 1e-3)
    return torch.where(active, step @ turn, turn), torch.where(active, moved, shift), active & ~small


def align(points: Tensor, normals: Tensor, colours: Tensor, target: Target, scale: float, iterations: int = 8) -> tuple[Tensor, Tensor]:
    """Rotation [3, 3] and translation [3] that bring a surface onto an observation as one rigid body.

    Where it ends far off, other orientations and the observation's centre are tried.

    Args:
        points, normals, colours: some POINTS of the surface, [N, 3] each; target: as many that were observed.
        scale: a distance that few such points of one surface exceed, caller's unit.
    """

    def result(points: Tensor, normals: Tensor) -> tuple[float, Tensor, Tensor]:
        turn, shift = _iterate(points, normals, colours, target, scale, iterations)
        return misfit(points @ turn.T + shift, normals @ turn.T, colours, target, scale), turn, shift

    best, turn, shift = result(points, normals)
    if best > HOPELESS:
        for first, offset in _starts(points, target.points[target.usable]):
            score, second, rest = result(points @ first.T + offset, normals @ first.T)
            if score < best:
                best, turn, shift = score, second @ first, second @ offset + rest
    return nearest_rotations(turn), shift


def settled(points: Tensor, normals: Tensor, colours: Tensor, target: Target, scale: float) -> tuple[Tensor, Tensor]:
    """Rotation [3, 3] and translation [3] by which a rigid surface comes to lie on an observation nearby.

    Args:
        points, normals, colours: of the surface, [N, 3] each; POINTS of them, and as many of the target's, are looked at.
        scale: as for `align`.
    """
    return _settled(points, normals, colours, target, scale, [(_no_turn(points), torch.zeros_like(points[0]))])[0]


def orientations(points: Tensor, normals: Tensor, colours: Tensor, target: Target, scale: float) -> list[tuple[Tensor, Tensor]]:
    """As `settled`, from many orientations, its own first; where each of them leads."""
    goal = target.thinned(POINTS)
    starts = _starts(points[evenly(len(points), POINTS, points.device)], goal.points[goal.usable])
    return _settled(points, normals, colours, target, scale, [(_no_turn(points), torch.zeros_like(points[0])), *starts])


def _no_turn(points: Tensor) -> Tensor:
    return torch.eye(3, dtype=points.dtype, device=points.device)


def _settled(points: Tensor, normals: Tensor, colours: Tensor, target: Target, scale: float, starts: list) -> list[tuple[Tensor, Tensor]]:
    pick, goal = evenly(len(points), POINTS, points.device), target.thinned(POINTS)
    found = []
    for first, offset in starts:
        turn, shift = _iterate(points[pick] @ first.T + offset, normals[pick] @ first.T, colours[pick], goal, scale, ORIENTING)
        found.append((nearest_rotations((turn @ first)[None])[0], turn @ offset + shift))
    return found


def aligned(body: Body, pose: Pose, target: Target) -> Pose:
    """The pose moved as one rigid body onto the target."""
    pick = evenly(len(body.points), POINTS, body.points.device)
    scale = body.spacing * max(1.0, (len(body.nodes) / POINTS) ** 0.5)  # so few points lie no closer than that even where the surfaces are one
    surface = body.warp(pose)[pick], body.warp_normals(pose)[pick], body.colours[pick]
    return pose.moved(*align(*surface, target.thinned(POINTS), scale), body.nodes)


def _starts(points: Tensor, goal: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Rotations about the surface's principal axes and those that bring the axes of both together, all onto the goal's centre."""
    centre, middle = points.mean(0), goal.median(0).values
    axes = torch.linalg.eigh((points - centre).T @ (points - centre)).eigenvectors
    goal_axes = torch.linalg.eigh((goal - middle).T @ (goal - middle)).eigenvectors
    turns = [torch.eye(3, dtype=points.dtype, device=points.device)]
    turns += [so3_exp(math.radians(angle) * axes[:, axis]) for axis in (2, 1, 0) for angle in TURNS_DEG]
    for signs in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
        flip = torch.tensor([signs[0], signs[1], 1.0], dtype=points.dtype, device=points.device)
        turn = goal_axes * flip @ axes.T
        turns.append(turn if float(torch.linalg.det(turn)) > 0 else goal_axes * (flip * torch.tensor([1.0, 1.0, -1.0], device=flip.device)) @ axes.T)
    return [(turn, middle - turn @ centre) for turn in turns]
