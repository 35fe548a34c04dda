"""Registration of two surfaces on their own: one is moved onto the other, whatever their unit, without a capture around them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from instant_nk.fitting import meshing
from instant_nk.fitting.correspondences import Target
from instant_nk.fitting.deformation_solver import Body, Pose, edge_weights, load_loops, orthonormal, step, warp
from instant_nk.fitting.registration import (
    LOST_RIGIDITY,
    Fit,
    Options,
    judge,
    move_coarsely,
    placed,
    register_from,
    register_near,
    rehearsals,
    surface_evidence,
)
from instant_nk.geometry import spaces, surface
from instant_nk.geometry.depth_map import SeenSpace
from instant_nk.io.graph import Graph
from instant_nk.io.mesh import Mesh
from instant_nk.io.observation import Observation
from instant_nk.io.surface_file import Surface
from instant_nk.kernels._threads import beside
from instant_nk.kernels.ahead import compile_side_by_side
from instant_nk.models import deformation_graph

GREY = 0.5
GRAPH_FACES = 40000  # a finer mesh is thinned to this before nodes are spread over it: a few hundred nodes need no more
EMPTY_ITERATIONS = 10
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
    options: Options = Options()
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
    observed = beside(_observe, target, goal, coloured, settings.max_points, seed)
    graph = _graph(source, points, settings)
    body = _body(graph, source, points, coloured, settings.max_points, device, seed)
    compile_side_by_side(rehearsals(body, settings.options), torch.device(device), ("registration", device, *_sizes(body)))
    options = settings.options
    prepared = Target.from_observation(observed.result(), settings.max_points, options.colour * body.spacing, options.normal * body.spacing, device, seed)
    rest = Pose.identity(body)
    if settings.align:
        fit = register_from(body, [rest], prepared, options)
    else:
        with torch.no_grad():
            fit = register_near(body, move_coarsely(body, rest, prepared, options), prepared, options)
    world_from_scene = spaces.invert_similarity(scene_from_world)
    if target.seen is not None:
        fit = _leave_empty_space(body, fit, prepared, target.seen, world_from_scene, options)
    return _result(source, points, graph, body, prepared, fit, world_from_scene)


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


def _graph(source: Surface, points: np.ndarray, settings: PairSettings) -> Graph:
    if source.faces is None:
        return deformation_graph.on_points(points, source.normals, settings.max_nodes, settings.anchors, settings.neighbours)
    spacing = None if settings.node_spacing is None else 2.0 * settings.node_spacing
    if len(source.faces) <= GRAPH_FACES:
        return deformation_graph.build(points, source.faces, spacing, settings.max_nodes, settings.anchors, settings.neighbours)
    welded, joined, _ = surface.weld(points, source.faces)
    thin, thin_faces = meshing.decimate(welded, joined, GRAPH_FACES)
    graph = deformation_graph.build(thin, thin_faces, spacing, settings.max_nodes, settings.anchors, settings.neighbours)
    return _hang(graph, thin, surface.vertex_normals(thin, thin_faces), points, source.normals)


def _hang(graph: Graph, vertices: np.ndarray, normals: np.ndarray, points: np.ndarray, facing: np.ndarray) -> Graph:
    """The graph of a thinned mesh with the whole one's points on it: each takes the anchors of the nearest vertex that faces the same way."""
    from scipy.spatial import cKDTree

    length = 0.5 * graph.spacing
    nearest = cKDTree(np.concatenate([vertices, length * normals], 1)).query(np.concatenate([points, length * facing], 1))[1]
    anchors = graph.vertex_anchors[nearest]
    weights = deformation_graph.skinning_weights(points, anchors, graph.node_positions.astype(np.float64), graph.node_radii.astype(np.float64))
    return replace(graph, vertex_anchors=anchors, vertex_weights=weights.astype(np.float32))


def _colours(given: Surface, coloured: bool) -> np.ndarray:
    return given.colours if coloured else np.full((len(given.points), 3), GREY)


def _body(graph: Graph, source: Surface, points: np.ndarray, coloured: bool, max_points: int, device: str, seed: int) -> Body:
    colours = _colours(source, coloured)
    if source.faces is not None:
        f32 = (x.astype(np.float32) for x in (source.normals, colours))
        return Body.from_mesh(graph, Mesh(points.astype(np.float32), source.faces.astype(np.int32), *f32), max_points, device, seed)
    pick = spread(points, max_points, seed)
    anchors, weights = graph.vertex_anchors[pick].astype(np.int64), graph.vertex_weights[pick].astype(np.float64)
    return Body.from_points(graph, points[pick], source.normals[pick], colours[pick], anchors, weights, device)


def _observe(target: Surface, points: np.ndarray, coloured: bool, max_points: int, seed: int) -> Observation:
    """Points spread evenly over the target, those next to an open edge marked."""
    colours, normals = _colours(target, coloured), target.normals
    if target.faces is None:
        pick = spread(points, max_points, seed)
        points, normals, colours, boundary = points[pick], normals[pick], colours[pick], np.zeros(len(pick), bool)
    else:
        open_edge = _open_edge(points, target.faces) if target.open is None else target.open
        face, bary = surface.sample(points, target.faces, max_points, seed)
        corner = target.faces[face]
        boundary = open_edge[corner].any(1)
        points, normals, colours = (surface.blend(x, corner, bary) for x in (points, normals, colours))
        normals = normals / np.maximum(surface.lengths(normals)[:, None], 1e-12)
    n = len(points)
    f32 = (x.astype(np.float32) for x in (points, normals, colours))
    return Observation(*f32, np.ones(n, np.float32), np.ones(n, np.int32), boundary)


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
    anchors = torch.as_tensor(graph.vertex_anchors.astype(np.int64), device=body.nodes.device)
    weights = torch.as_tensor(graph.vertex_weights.astype(np.float64), device=body.nodes.device)
    live = warp(torch.as_tensor(points, device=body.nodes.device), anchors, weights, body.nodes, fit.pose).cpu().numpy()
    moved = spaces.transform_points(world_from_scene, live)
    if source.faces is not None:
        result = Surface.of_mesh(moved, source.faces, source.colours)
    else:
        turn = torch.einsum("nk,nkij->nij", weights, fit.pose.rotations[anchors]).cpu().numpy()
        normals = np.einsum("nij,nj->ni", turn, source.normals)
        result = Surface(moved, normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12), None, source.colours)
    unit = spaces.scale_of(world_from_scene)
    found = _source_coverage(body, fit.pose, target)
    explained = max(found, fit.coverage) > LEAST_COVERAGE and fit.rigidity < LOST_RIGIDITY * body.spacing
    lengths = {"residual": unit * fit.residual, "rigidity": unit * fit.rigidity, "spacing": unit * body.spacing}
    return PairFit(result, target_coverage=fit.coverage, source_coverage=found, nodes=len(body.nodes), converged=bool(explained), **lengths)


def _source_coverage(body: Body, pose: Pose, target: Target) -> float:
    """Share of the source that lies on the target, of what the target could show: points that come to rest at its open edge do not count."""
    live, normals, _ = placed(body, pose)
    there = target.nearest(target.features(live, normals, body.colours))
    shown = target.usable[there]
    near = (live - target.points[there]).norm(dim=-1) <= 0.5 * body.spacing
    return float((shown & near & ((normals * target.normals[there]).sum(-1) >= 0.3)).sum() / shown.sum().clamp_min(1))
