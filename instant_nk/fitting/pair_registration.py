"""Registration of two surfaces on their own: one is moved onto the other, whatever their unit, without a capture around them."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import numpy as np
import torch

from instant_nk.fitting import meshing
from instant_nk.fitting.correspondences import Target
from instant_nk.fitting.deformation_solver import Body, Pose, edge_weights, has_triton, load_loops, loops_are_loaded, orthonormal, step, warp
from instant_nk.fitting.registration import (
    LOST_RIGIDITY,
    Fit,
    Options,
    judge,
    move_coarsely,
    placed,
    register_near,
    rehearsals,
    surface_evidence,
)
from instant_nk.fitting.rigid_alignment import POINTS, align
from instant_nk.geometry import spaces, surface
from instant_nk.geometry.depth_map import SeenSpace
from instant_nk.geometry.neighbours import evenly
from instant_nk.geometry.surface import Samples
from instant_nk.io.graph import Graph
from instant_nk.io.observation import Observation
from instant_nk.io.surface_file import Surface
from instant_nk.kernels._threads import beside
from instant_nk.kernels.ahead import compile_side_by_side
from instant_nk.models import deformation_graph

GREY = 0.5
GRAPH_FACES = 150_000  # a finer mesh is thinned to this before nodes are spread over it, which from there on takes less time than to spread them at once,
GRAPH_FACES_PLAIN = 40_000  # and without compiled loops to this
EMPTY_ITERATIONS = 10
PAIR = replace(Options().for_noise(0), momentum=0.75)  # a pair has farther to go; frames of a sequence are better off without (docs/decisions.md)
LEAST_COVERAGE = 0.6  # share of one surface that the other must explain: two partial views overlap by less than two frames of a whole subject


@dataclass(frozen=True)
class PairSettings:
    """What may be chosen; the defaults fit any size and unit.

    Attributes:
        max_nodes: nodes of the deformation graph.
        node_spacing: distance between them as a fraction of the source's longest side; None: from `max_nodes` (always so for point clouds).
        anchors: nodes that move one point; neighbours: edges per node.
        max_points: points of either surface the solver looks at.
        options: the solver's.
        colours: compare colours where both surfaces have them.
        align: bring the source onto the target as one rigid body first, trying many orientations where it is far off; not for frames of one
            camera, where the rest of the scene would be taken for the subject.
    """

    max_nodes: int = 400
    node_spacing: float | None = None
    anchors: int = 6
    neighbours: int = 6
    max_points: int = 6000
    options: Options = PAIR
    colours: bool = True
    align: bool = True


@dataclass(frozen=True)
class PairFit:
    """A moved source and how well it agrees with the target; lengths in the target's unit.

    Attributes:
        moved: the source's points, in order, with its faces and colours, where the target is.
        residual: median distance between the two surfaces along their normals, where they agree.
        target_coverage: share of the target that the moved source explains.
        source_coverage: share of the source that found its place on the target, of what the target could show.
        rigidity: mean as-rigid-as-possible error of the graph's edges.
        spacing: distance between the graph's nodes, `nodes` their number.
        converged: one of the two is explained by the other, and the source is bent rather than crumpled.
    """

    moved: Surface
    residual: float
    target_coverage: float
    source_coverage: float
    rigidity: float
    spacing: float
    nodes: int
    converged: bool


def register_pair(source: Surface, target: Surface, settings: PairSettings, device: str = "cpu", seed: int = 0) -> PairFit:
    """Move `source` onto `target` non-rigidly.

    Both may be meshes or oriented point clouds; they must be in the same unit, the pose may differ. Neither needs to be whole, but one
    should show what the other shows.
    """
    load_loops()  # most of a pair's time is its preparation on the host
    scene_from_world = spaces.similarity_from_box(surface.box(source.points))
    points, goal = (spaces.transform_points(scene_from_world, x.points) for x in (source, target))
    coloured = settings.colours and source.colours is not None and target.colours is not None
    options = settings.options
    where = graph_device(device)
    if where != "cpu":
        _rehearse_graph(settings, where)
    growing = beside(_graph, source, points, settings, where)
    try:
        observed, own = (_samples(x, there, coloured, settings.max_points, seed) for x, there in ((target, goal), (source, points)))
        observed = _observe(target, goal, observed)
        whole = _placing(own, observed, settings, device, seed) if settings.align else None
    except Exception:
        growing.result()  # says better what is wrong with the source, if that is what is wrong
        raise
    graph = growing.result()
    body = Body.from_samples(graph, own, device)
    compile_side_by_side(rehearsals(body, options), torch.device(device), ("registration", device, *_sizes(body)))
    prepared = Target.from_observation(observed, settings.max_points, options.colour * body.spacing, options.normal * body.spacing, device, seed)
    with torch.no_grad():
        rest = Pose.identity(body)
        start = rest if whole is None else rest.moved(*whole, body.nodes)
        fit = register_near(body, move_coarsely(body, start, prepared, options), prepared, options)
    world_from_scene = spaces.invert_similarity(scene_from_world)
    if target.seen is not None:
        fit = _leave_empty_space(body, fit, prepared, target.seen, world_from_scene, options)
    return _result(source, points, graph, body, prepared, fit, world_from_scene)


def graph_device(device: str) -> str:
    """Where a graph's nearest nodes are looked for in a registration on `device`: there, if Triton serves it, or on the CPU."""
    return device if has_triton(torch.empty(0, device=device)) else "cpu"


def _rehearse_graph(settings: PairSettings, device: str) -> None:
    """Launch once here what a graph launches beside this thread, whose own first launches would not be safe against it (`kernels.ahead`)."""
    from instant_nk.models import nearest_nodes_triton

    count = 1 + max(settings.anchors, settings.neighbours)
    one_link = np.array([0, 1, 2]), np.array([1, 0]), np.ones(2)
    call = functools.partial(nearest_nodes_triton.nearest, *one_link, np.arange(2), 3.0, count, [1], device)
    compile_side_by_side([call], torch.device(device), ("nearest nodes", device, count))


def _placing(source: Samples, target: Observation, settings: PairSettings, device: str, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotation [3, 3] and translation [3] that bring a few points of the source onto as many of the target."""
    pick = evenly(len(source.points), POINTS, torch.device("cpu")).numpy()
    points, *facing = (x[pick] for x in source[:3])
    scale, options = _scale(points, settings), settings.options
    few = Target.from_observation(target, POINTS, options.colour * scale, options.normal * scale, device, seed)
    with torch.no_grad():
        return align(*(torch.as_tensor(x, device=device) for x in (points, *facing)), few, scale)


def _scale(points: np.ndarray, settings: PairSettings) -> float:
    """What to expect of the graph's node spacing before there is a graph, and no less than the distance that nine in ten of these points [N, 3] keep below."""
    from scipy.spatial import cKDTree

    apart = cKDTree(points).query(points, k=2)[0][:, 1] if len(points) > 1 else np.zeros(1)
    apart = max(float(np.quantile(apart[apart > 0], 0.9)) if (apart > 0).any() else 0.0, 1e-3)  # of a source of length two
    return max(apart, 2.0 * settings.node_spacing) if settings.node_spacing else apart * max(1.0, (POINTS / settings.max_nodes) ** 0.5)


def _sizes(body: Body) -> tuple[int, ...]:
    """What of a body decides which kernels a registration needs: anchors of a point and probes around it, and the powers of two that hold its other sizes."""
    own = len(body.nodes), len(body.points) + len(body.edge), len(body.probes.pick)
    return body.anchors.shape[1], body.probes.near.shape[1], *(n.bit_length() for n in own), *(_sizes(body.coarse.body) if body.coarse else ())


def _leave_empty_space(body: Body, fit: Fit, target: Target, seen: SeenSpace, world_from_scene: np.ndarray, options: Options) -> Fit:
    """The fit without parts where the camera saw nothing: they are drawn to the nearest surface it saw, all else as before.

    Closest points alone leave a folded sleeve spread out beside the shirt: nothing observed lies there, so nothing pulls.
    """
    pose, margin = fit.pose, body.spacing * spaces.scale_of(world_from_scene)
    with torch.no_grad():
        for _ in range(EMPTY_ITERATIONS):
            evidence = surface_evidence(body, pose, target, options, 1.0)
            live = body.warp(pose)
            wrong = np.flatnonzero(seen.empty(spaces.transform_points(world_from_scene, live.cpu().numpy()), margin))
            index = torch.as_tensor(wrong, device=live.device)
            there = target.index.query(target.features(live, body.warp_normals(pose), body.colours)[index])[1][:, 0]
            weight = live.new_full((len(index),), len(body.nodes) / len(body.points))
            evidence.add_positions(index, live[index] - target.points[there], weight)
            pose, _ = step(body, pose, evidence, edge_weights(body, pose, options.rigidity, options.softening))
        return judge(body, orthonormal(pose), target)


def _graph(source: Surface, points: np.ndarray, settings: PairSettings, device: str = "cpu") -> Graph:
    if source.faces is None:
        return deformation_graph.on_points(points, source.normals, settings.max_nodes, settings.anchors, settings.neighbours, device)
    spacing = None if settings.node_spacing is None else 2.0 * settings.node_spacing
    most = GRAPH_FACES if loops_are_loaded() else GRAPH_FACES_PLAIN
    if len(source.faces) <= most:
        return deformation_graph.build(points, source.faces, spacing, settings.max_nodes, settings.anchors, settings.neighbours, device)
    welded, joined, _ = surface.weld(points, source.faces)
    thin, thin_faces = meshing.decimate(welded, joined, most)
    graph = deformation_graph.build(thin, thin_faces, spacing, settings.max_nodes, settings.anchors, settings.neighbours, device)
    return _hang(graph, thin, surface.vertex_normals(thin, thin_faces), points, source.normals)


def _hang(graph: Graph, vertices: np.ndarray, normals: np.ndarray, points: np.ndarray, facing: np.ndarray) -> Graph:
    """The graph of a thinned mesh with the whole one's points on it: each takes the anchors of the nearest vertex that faces the same way."""
    from scipy.spatial import cKDTree

    length = 0.5 * graph.spacing
    nearest = cKDTree(np.concatenate([vertices, length * normals], 1)).query(np.concatenate([points, length * facing], 1))[1]
    anchors = graph.vertex_anchors[nearest]
    weights = deformation_graph.skinning_weights(points, anchors, graph.node_positions.astype(np.float64), graph.node_radii.astype(np.float64))
    return replace(graph, vertex_anchors=anchors, vertex_weights=weights.astype(np.float32))


def _observe(target: Surface, points: np.ndarray, seen: Samples) -> Observation:
    """Samples of the target, whose own points lie at `points`, as an observation: those next to an open edge are marked."""
    boundary = np.zeros(len(seen.points), bool)
    if target.faces is not None:
        open_edge = _open_edge(points, target.faces) if target.open is None else target.open
        boundary = open_edge[seen.corner].any(1)
    n = len(boundary)
    return Observation(*(x.astype(np.float32) for x in seen[:3]), np.ones(n, np.float32), np.ones(n, np.int32), boundary)


def _samples(of: Surface, points: np.ndarray, coloured: bool, count: int, seed: int) -> Samples:
    """Points spread evenly over a surface whose own lie at `points`."""
    colours = of.colours if coloured else np.full((len(of.points), 3), GREY)
    if of.faces is not None:
        return Samples.of_mesh(points, of.normals, colours, of.faces, count, seed)
    pick = spread(points, count, seed)
    return Samples(*(np.asarray(x[pick], np.float64) for x in (points, of.normals, colours)), pick[:, None])


def _open_edge(points: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Vertices at an edge of one face only, seams apart, bool [V]."""
    welded, joined, of = surface.weld(points, faces)
    return surface.boundary_vertices(welded, joined)[of]


def spread(points: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    """Indices of about `count` of the points, one per cell of a grid, so that dense places do not outweigh sparse ones; all when there are no more."""
    if len(points) <= count:
        return np.arange(len(points))
    order = np.random.default_rng(seed).permutation(len(points))
    place = (points[order] - points.min(0)) / np.ptp(points, axis=0).max()
    low, high = 0.0, 1.0
    for _ in range(16):
        cell = 0.5 * (low + high)
        first = np.unique(np.floor(place / cell).astype(np.int64), axis=0, return_index=True)[1]
        if 0.9 * count <= len(first) <= count:
            break
        low, high = (cell, high) if len(first) > count else (low, cell)
    return np.sort(order[first])


def _result(source: Surface, points: np.ndarray, graph: Graph, body: Body, target: Target, fit: Fit, world_from_scene: np.ndarray) -> PairFit:
    """The whole source carried by the fitted nodes, back in the target's unit, and how well that explains either surface."""
    found = _source_coverage(body, fit.pose, target)
    pose = Pose(fit.pose.rotations.cpu(), fit.pose.translations.cpu())  # to carry the vertices here takes less time than to send them there and back
    anchors = torch.from_numpy(graph.vertex_anchors.astype(np.int64))
    nodes, weights = (torch.from_numpy(x.astype(np.float64)) for x in (graph.node_positions, graph.vertex_weights))
    live = warp(torch.from_numpy(points), anchors, weights, nodes, pose).numpy()
    moved = spaces.transform_points(world_from_scene, live)
    if source.faces is not None:
        result = Surface.of_mesh(moved, source.faces, source.colours)
    else:
        turn = torch.einsum("nk,nkij->nij", weights, pose.rotations[anchors]).numpy()
        normals = np.einsum("nij,nj->ni", turn, source.normals)
        result = Surface(moved, normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12), None, source.colours)
    unit, found = spaces.scale_of(world_from_scene), float(found)
    explained = max(found, fit.coverage) > LEAST_COVERAGE and fit.rigidity < LOST_RIGIDITY * body.spacing
    lengths = {"residual": unit * fit.residual, "rigidity": unit * fit.rigidity, "spacing": unit * body.spacing}
    return PairFit(result, target_coverage=fit.coverage, source_coverage=found, nodes=len(body.nodes), converged=bool(explained), **lengths)


def _source_coverage(body: Body, pose: Pose, target: Target) -> torch.Tensor:
    """Share [] of the source that lies on the target, of what the target could show: points that come to rest at its open edge do not count."""
    live, normals, _ = placed(body, pose)
    there = target.nearest(target.features(live, normals, body.colours))
    shown = target.usable[there]
    near = (live - target.points[there]).norm(dim=-1) <= 0.5 * body.spacing
    return (shown & near & ((normals * target.normals[there]).sum(-1) >= 0.3)).sum() / shown.sum().clamp_min(1)
