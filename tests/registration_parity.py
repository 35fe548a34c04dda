"""Registration's Triton kernels beside what defines them: on a GPU, and through Triton's interpreter on the CPU."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor

from instant_nk.fitting import (
    conjugate_gradients_triton,
    correspondences,
    deformation_solver,
    evidence_triton,
    nearest_rotation_triton,
    registration,
    rivals,
    solver_triton,
    transport_triton,
)
from instant_nk.fitting.correspondences import Cloud, Target
from instant_nk.fitting.deformation_solver import Body, Evidence, Gather, Pose
from instant_nk.fitting.registration import Options
from instant_nk.geometry.rotations import project_to_so3, so3_exp
from instant_nk.io.graph import Graph
from instant_nk.models import deformation_graph, nearest_nodes_triton
from tests.unit.shapes import bent, mesh_of, observed, tube

FINE = 1e-6  # to which a system is solved to be compared
SINGLE = 1e-6  # lengths and weights that are a kernel's arguments arrive in single precision


def agree(found: Tensor, wanted: Tensor, tolerance: float) -> None:
    """Within `tolerance` of the largest value."""
    if not wanted.numel():
        assert found.shape == wanted.shape
        return
    error = (found.cpu() - wanted).abs().max() / wanted.abs().max().clamp_min(1e-30)
    assert torch.isfinite(found).all() and float(error) <= tolerance, float(error)


def hung_twice(body: Body, graph: Graph, device: str) -> Body:
    """The body whose points name their first anchor twice, as anchors of small components are filled up."""
    anchors, weights, *surface = (x.cpu().numpy().copy() for x in (body.anchors, body.weights, body.points, body.normals, body.colours))
    anchors[:, -1], weights[:, -1] = anchors[:, 0], 0.3
    return Body.from_points(graph, *surface, anchors, weights, device)


class Case:
    """A tube that has been moved somehow, on the CPU and as the kernels want it on a device."""

    def __init__(self, device: str, nodes: int, points: int, twice: bool = False):
        self.vertices, self.faces = tube(along=12, around=8)
        graph = deformation_graph.build(self.vertices, self.faces, max_nodes=nodes)

        def hung(device: str) -> Body:
            body = Body.from_mesh(graph, mesh_of(self.vertices, self.faces), points, device)
            return hung_twice(body, graph, device) if twice else body

        self.device, self.body = device, hung("cpu")
        self.there = hung(device) if device == "cuda" else self._with_gather()
        self.random = torch.Generator().manual_seed(nodes)
        m = len(self.body.nodes)
        self.pose = Pose(so3_exp(0.3 * self.normal(m, 3)), 0.05 * self.normal(m, 3))

    def _with_gather(self) -> Body:
        p = self.body.pattern
        found = deformation_solver._gather(len(self.body.nodes), *(x.numpy() for x in (p.blocks, self.body.edge, p.edge_block, p.diagonal)))
        gather = Gather(*(torch.from_numpy(np.ascontiguousarray(x)) for x in found))
        return dataclasses.replace(self.body, pattern=dataclasses.replace(p, gather=gather))

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.random, dtype=torch.float64)

    def put(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(t.to(self.device) for t in tensors)

    def moved(self) -> Pose:
        return Pose(*self.put(self.pose.rotations, self.pose.translations))


def residual(body: Body, blocks: Tensor, rhs: Tensor, twists: Tensor) -> float:
    """What a solution leaves of the right-hand side, both measured by the inverse of the nodes' own blocks."""
    a, b = body.pattern.blocks.unbind(1)
    dense = blocks.new_zeros(len(rhs), len(rhs), 6, 6)
    dense[b, a] = blocks.mT
    dense[a, b] = blocks
    own = torch.linalg.inv(blocks[body.pattern.diagonal])
    left = rhs - torch.einsum("mnij,nj->mi", dense, twists.cpu())
    return float(((left[:, None] @ own @ left[..., None]).sum() / (rhs[:, None] @ own @ rhs[..., None]).sum()).sqrt())


def check_step(device: str, nodes: int, points: int, programs: int | None = None, twice: bool = False, seen: float = 1.0) -> None:
    """Edge weights, normal equations, their solution, and the line search along it; `seen` is the share of the points that have evidence."""
    case = Case(device, nodes, points, twice)
    body, there, pose = case.body, case.there, case.pose
    half, force = case.normal(points, 3, 3), 0.1 * case.normal(points, 3)
    dark = body.points[:, 0] > torch.quantile(body.points[:, 0], seen)
    half[dark], force[dark] = 0.0, 0.0
    evidence = Evidence(half @ half.mT, force)
    given = Evidence(*case.put(evidence.hessian, evidence.gradient))
    weight = deformation_solver.edge_weights(body, pose, 0.1, 0.5)
    (on_device,) = case.put(weight)
    there_too = (torch.tensor(value, dtype=torch.float64, device=device) for value in (0.1, 0.5))
    for given_as in ((0.1, 0.5), tuple(there_too)):
        agree(solver_triton.edge_weights(there, case.moved(), *given_as), weight, 1e-12)
    blocks, rhs = deformation_solver._normal_equations(body, pose, evidence, weight)
    found = solver_triton.normal_equations(there, case.moved(), given, on_device)
    agree(found[0], blocks, 1e-12)
    agree(found[1], rhs, 1e-12)
    own = body.pattern.diagonal[:, None], torch.arange(6), torch.arange(6)
    scale = blocks[own].mean(0)
    blocks[own] += deformation_solver.DAMPING * scale + 1e-12 * scale.max()
    twists = deformation_solver._solve(body, blocks, rhs)
    rough = conjugate_gradients_triton.solve(there, *found, deformation_solver.DAMPING, programs)
    assert residual(body, blocks, rhs, rough) < 2 * conjugate_gradients_triton.TOLERANCE
    solved = conjugate_gradients_triton.solve(there, *found, deformation_solver.DAMPING, programs, FINE)
    assert residual(body, blocks, rhs, solved) < 2 * FINE
    if seen == 1.0:  # what nothing sees is nearly free, and the residual says little of it
        agree(solved, twists, 1e-4)
    assert torch.equal(rough, conjugate_gradients_triton.solve(there, *found, deformation_solver.DAMPING, programs))
    for factor in (1.0, 30.0, -1.0):  # downhill; too far, so that it is cut; uphill, where no step is taken
        wanted, length = deformation_solver._search_line(body, pose, evidence, weight, factor * twists, 4)
        rotations, translations, taken = solver_triton.search_line(there, case.moved(), given, on_device, *case.put(factor * twists), 4)
        assert float(taken) == float(length)
        agree(rotations, wanted.rotations, 1e-12)
        agree(translations, wanted.translations, 1e-12)
    sick = twists.clone()
    sick[0, 4] = torch.nan
    assert solver_triton.search_line(there, case.moved(), given, on_device, *case.put(sick), 4)[0].isnan().all()
    assert float(conjugate_gradients_triton.solve(there, found[0], 0 * found[1], deformation_solver.DAMPING, programs).abs().max()) == 0
    assert conjugate_gradients_triton.solve(there, -found[0], found[1], deformation_solver.DAMPING, programs).isnan().any()
    assert conjugate_gradients_triton.solve(there, found[0], torch.nan * found[1], deformation_solver.DAMPING, programs).isnan().all()


def check_evidence(device: str, nodes: int, points: int, apart: float) -> None:
    """Placing, partners, gates, rivals and the pull; `apart` node spacings make points rivals that are, in a tube, not."""
    case, options = Case(device, nodes, points), Options()
    body, there, pose = case.body, case.there, case.pose
    live, normals, whole, _ = evidence_triton.place(there, case.moved())
    agree(live, body.warp(pose), 1e-12)
    agree(normals, body.warp_normals(pose), 1e-12)
    agree(whole, deformation_solver.wholeness(body, pose), SINGLE)
    seen = observed(bent(case.vertices, np.radians(60)), case.faces, case.vertices, points - 20, coloured=True)
    seen.boundary[::7] = True
    target, goal = (Target.from_observation(seen, points, options.colour * body.spacing, options.normal * body.spacing, on) for on in ("cpu", device))
    kept = rivals.APART, rivals.CLOSER
    rivals.APART, rivals.CLOSER = apart, 0.9  # no tie where nothing is bent
    try:
        for progress in (0.0, 0.6, 1.0):
            wanted = registration.surface_evidence(body, pose, target, options, progress, 0.7)
            longest, heaviness = options.max_distance * body.spacing, 0.7 * len(body.nodes) / points
            for number in (progress, torch.tensor(progress, dtype=torch.float64, device=device)):
                found = Evidence(*case.put(torch.zeros(points, 3, 3).double(), torch.zeros(points, 3).double()))
                evidence_triton.add_surface(
                    found, there, case.moved(), goal, longest, options.min_cosine, options.tangential, heaviness, registration.PLACED, number
                )
                agree(found.hessian, wanted.hessian, SINGLE)
                agree(found.gradient, wanted.gradient, SINGLE)
    finally:
        rivals.APART, rivals.CLOSER = kept


def check_transport(device: str, rows: int, columns: int) -> None:
    """Areas of points, and where soft assignment wants them; the share they are matched to says how much that matters."""
    case = Case(device, 8, rows + columns)
    body, bend = case.body, torch.from_numpy(bent(case.body.points.numpy(), np.radians(40)))
    areas = [correspondences.point_areas(points, min(8, len(points) - 1)) for points in (body.points[:rows], bend[rows:])]
    for points, area in zip((body.points[:rows], bend[rows:]), areas):
        agree(transport_triton.point_areas(*case.put(points), min(8, len(points) - 1)), area, SINGLE)
    one = Cloud(body.points[:rows], body.normals[:rows], body.colours[:rows], areas[0])
    other = Cloud(bend[rows:], body.normals[rows:], body.colours[rows:], areas[1])
    at, to = (Cloud(*case.put(c.points, c.normals, c.colours, c.area)) for c in (one, other))
    for sigma in (0.8, 0.2, 0.05):
        wanted, share = correspondences.soft_displacement(one, other, sigma)
        constants = correspondences.ROUNDS, correspondences.OUTLIER, correspondences.NORMAL_SPREAD, correspondences.COLOUR_SPREAD
        shift, matched = transport_triton.displacement(at, to, torch.tensor(sigma, dtype=torch.float64, device=device), *constants)
        agree(matched, share, 1e-5)
        agree(matched[:, None] * shift, share[:, None] * wanted, 1e-5)


def check_rotations(device: str) -> None:
    """The rotation nearest to a matrix: to any, to one that is nearly a rotation, to reflections, flat ones and tiny ones; of nothing it is none at all."""
    random = torch.Generator().manual_seed(0)
    any_, axes = torch.randn(70, 3, 3, generator=random, dtype=torch.float64), 2 * torch.randn(70, 3, generator=random, dtype=torch.float64)
    rotations = so3_exp(axes)
    flat = any_ * torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64)
    for matrix in (any_, -any_, 1e-9 * any_, flat, rotations, rotations + 1e-8 * any_):
        found = nearest_rotation_triton.project_to_so3(matrix.to(device)).cpu()
        agree(found, project_to_so3(matrix), 1e-11)
        agree(found @ found.mT, torch.eye(3).double().expand_as(found), 1e-14)
    agree(nearest_rotation_triton.project_to_so3(rotations[0].to(device)), rotations[0], 1e-14)
    agree(nearest_rotation_triton.project_to_so3(0 * rotations.to(device)), torch.eye(3).double().expand_as(rotations), 1e-14)
    assert nearest_rotation_triton.project_to_so3(torch.nan * rotations.to(device)).isnan().all()


def check_nearest_nodes(device: str, along: int, around: int, limit: float) -> None:
    """The nodes nearest to each vertex of a rough tube beside a part that none can reach, also among the first few of them."""
    vertices, faces = tube(along=along, around=around)
    random = np.random.default_rng(0)
    vertices = np.concatenate([vertices + 0.01 * random.normal(size=vertices.shape), [[9.0, 0, 0], [9, 1, 0], [9, 0, 1]]])
    paths = deformation_graph._paths(vertices, np.concatenate([faces, [[len(vertices) - 3, len(vertices) - 2, len(vertices) - 1]]]), 1)
    nodes = random.permutation(len(vertices) - 3)[: len(vertices) // 4]
    levels = [len(nodes) // 4, len(nodes) // 2]
    wanted = deformation_graph._reach(paths, nodes, vertices[nodes], limit, 5, levels)
    found = nearest_nodes_triton.nearest(*deformation_graph._rows(paths), nodes, limit, 5, levels, device)
    assert (wanted.nearest[-1] == -1).all() and (wanted.nearest[:-3, 0] >= 0).mean() > 0.9
    for one, other in zip([wanted.nearest, *wanted.levels], [found[0], *found[1]], strict=True):
        assert one.dtype == other.dtype and np.array_equal(one, other)


def check_equally_near_nodes(device: str) -> None:
    """Two nodes as far from one vertex, and one behind it: the lower number wins, which is learnt in the last round before the host asks."""
    far = 2 * nearest_nodes_triton.TOGETHER  # steps from one node to the vertex, and the length of the only one from the other
    chain = np.stack([np.arange(far), np.arange(far) + 1], 1)
    links = np.concatenate([chain, [[far + 1, far], [far, far + 2]]])
    paths = deformation_graph._linked(far + 3, links, np.concatenate([np.ones(far), [float(far), 1.0]]))
    for nodes in ([0, far + 1], [far + 1, 0]):
        found = nearest_nodes_triton.nearest(*deformation_graph._rows(paths), np.array(nodes), 10.0 * far, 1, [], device)[0]
        assert found[far, 0] == found[far + 2, 0] == 0
