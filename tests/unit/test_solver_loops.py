"""The compiled loops of the registration against the torch code that defines them, and the sparse factorisation against a dense one."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from instant_nk.fitting import correspondences, deformation_solver, registration
from instant_nk.fitting.block_cholesky import BlockCholesky
from instant_nk.fitting.deformation_solver import Body, Evidence, Pose, apply_twists
from instant_nk.geometry.search_tree import SearchTree
from instant_nk.models import deformation_graph
from tests.unit.shapes import mesh_of, observed, tube

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def body():
    vertices, faces = tube()
    return Body.from_mesh(deformation_graph.build(vertices, faces, max_nodes=60), mesh_of(vertices, faces), 3000)


@pytest.fixture(scope="module")
def pose(body):
    torch.manual_seed(0)
    return apply_twists(Pose.identity(body), 0.2 * torch.randn(len(body.nodes), 6, dtype=torch.float64))


def evidence_at(body, pose):
    torch.manual_seed(1)
    evidence = Evidence.none(body)
    index = torch.randint(len(body.points), (4000,))
    rows, weight = torch.randn(4000, 3, dtype=torch.float64), torch.rand(4000, dtype=torch.float64)
    evidence.add_directions(index, rows, torch.randn(4000, dtype=torch.float64), weight)
    evidence.add_positions(index[:900], torch.randn(900, 3, dtype=torch.float64), weight[:900])
    return evidence


def results(body, pose):
    """Everything that has both a compiled and a torch form."""
    evidence = evidence_at(body, pose)
    torch.manual_seed(2)
    twists = 0.1 * torch.randn(len(body.nodes), 6, dtype=torch.float64)
    twists[0] = 0
    weight = deformation_solver.edge_weights(body, pose, 0.7, 0.5)
    blocks, rhs = deformation_solver._normal_equations(body, pose, evidence, weight)
    trial = apply_twists(pose, twists)
    return {
        "warp": body.warp(pose), "normals": body.warp_normals(pose), "wholeness": deformation_solver.wholeness(body, pose), "hessian": evidence.hessian,
        "gradient": evidence.gradient, "edges": weight, "errors": torch.cat(deformation_solver.rigidity_errors(body, pose)), "blocks": blocks, "rhs": rhs,
        "rotations": trial.rotations, "translations": trial.translations, "rigidity": deformation_solver.rigidity_energy(body, trial, weight),
        "energy": deformation_solver._evidence_energy(body, trial, evidence, body.warp(pose)),
    }  # fmt: skip


def test_every_loop_does_what_torch_defines(body, pose, monkeypatch):
    compiled = results(body, pose)
    monkeypatch.setattr(deformation_solver, "compiled", lambda tensor: False)
    defined = results(body, pose)
    for name, value in defined.items():
        assert torch.allclose(compiled[name], value, rtol=1e-10, atol=1e-12 * float(value.abs().max())), name


def test_matches_are_those_of_the_definition_also_after_the_body_moved(body, pose, monkeypatch):
    vertices, faces = tube()
    target = correspondences.Target.from_observation(observed(vertices, faces, vertices, coloured=True), 1500, 0.1, 0.05)
    for k in range(3):  # the second and third search begin from the partners of the one before
        live = body.warp(pose) + 0.01 * k
        found = correspondences.closest_both_ways(live, body.warp_normals(pose), body.colours, target, 0.3, 0.3)
        with monkeypatch.context() as m:
            m.setattr(correspondences, "compiled", lambda tensor: False)
            wanted = correspondences.closest_both_ways(live, body.warp_normals(pose), body.colours, target, 0.3, 0.3)
        assert found.forward == wanted.forward and len(found.source) > 500
        for name in ("source", "target", "weight"):
            assert torch.equal(getattr(found, name), getattr(wanted, name))


def test_the_nearest_observed_points_are_those_of_the_definition_before_and_after_a_search(body, pose, monkeypatch):
    vertices, faces = tube()
    target = correspondences.Target.from_observation(observed(vertices, faces, vertices, coloured=True), 1500, 0.1, 0.05)
    joint = target.features(body.warp(pose), body.warp_normals(pose), body.colours)
    first = target.nearest(joint)
    correspondences.closest_both_ways(body.warp(pose) + 0.3, body.warp_normals(pose), body.colours, target, 0.3, 0.3)
    again = target.nearest(joint)
    monkeypatch.setattr(correspondences, "compiled", lambda tensor: False)
    assert torch.equal(first, target.nearest(joint)) and torch.equal(first, again) and len(first.unique()) > 500


def test_evidence_of_matches_is_that_of_the_definition(body, pose, monkeypatch):
    vertices, faces = tube()
    target = correspondences.Target.from_observation(observed(vertices, faces, vertices, coloured=True), 1500, 0.1, 0.05)
    live, normals = body.warp(pose), body.warp_normals(pose)
    matches = correspondences.closest_both_ways(live, normals, body.colours, target, 0.5, 0.0)
    sums = []
    for compiled in (True, False):
        monkeypatch.setattr(correspondences, "compiled", lambda tensor, compiled=compiled: compiled)
        evidence = Evidence.none(body)
        correspondences.pull(evidence, live, normals, target, matches, body.whole, 0.01, 1.5, 0.05)
        sums.append(evidence)
    assert torch.allclose(sums[0].hessian, sums[1].hessian, rtol=1e-10, atol=1e-12)
    assert torch.allclose(sums[0].gradient, sums[1].gradient, rtol=1e-10, atol=1e-12)


def test_soft_assignment_in_single_precision_is_that_in_double(body, monkeypatch):
    torch.manual_seed(3)
    clouds = []
    for shift in (0.0, 0.1):
        points = body.points[:700] + shift
        clouds.append(correspondences.Cloud(points, body.normals[:700], body.colours[:700], correspondences.point_areas(points)))
    for sigma in (0.5, 0.1):
        found, share = correspondences.soft_displacement(*clouds, sigma)
        with monkeypatch.context() as m:
            m.setattr(correspondences, "compiled", lambda tensor: False)
            wanted, wanted_share = correspondences.soft_displacement(*clouds, sigma)
        assert float((found - wanted).abs().max()) < 1e-5 * sigma and float((share - wanted_share).abs().max()) < 1e-5


def test_the_pattern_of_the_normal_matrix_is_that_of_the_definition():
    """Nodes without points, points on one node alone, anchors without weight, anchors named twice, edges given either way round."""
    rng = np.random.default_rng(0)
    for m, n, k in ((1, 5, 1), (12, 40, 4), (300, 500, 6), (12, 0, 4)):
        anchors, weights = rng.integers(0, m, (n, k)), rng.random((n, k)).round(1) * (rng.random((n, k)) < 0.7)
        edge = rng.integers(0, m, (2 * m, 2))
        found, wanted = deformation_solver.loops().pattern(m, anchors, weights, edge), deformation_solver._sorted_pattern(m, anchors, weights, edge)
        assert all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_points_take_the_anchors_and_weights_of_the_definition():
    """Distances that are equal among them, fewer different candidates than anchors, and points that no candidate reaches."""
    rng = np.random.default_rng(0)
    points, nodes, radii = rng.integers(0, 4, (3000, 3)).astype(float), rng.integers(0, 4, (40, 3)).astype(float), rng.integers(1, 3, 40).astype(float)
    candidates = rng.integers(0, np.where(np.arange(3000) % 3 == 0, 4, 40)[:, None], (3000, 18))
    wanted = deformation_solver._point_anchors(points, candidates, nodes, radii, 6)
    found = np.empty((3000, 6), np.int64), np.empty((3000, 6))
    deformation_solver.loops().point_anchors(0, 3000, points, candidates, nodes, radii, *found)
    assert all(np.array_equal(a, b) for a, b in zip(found, wanted))


def test_points_hang_on_the_coarse_nodes_of_the_definition():
    """More and fewer of these than are kept, and sums that are equal among them; fewer places than are kept."""
    rng = np.random.default_rng(0)
    for m, coarse, k in ((40, 20, 6), (40, 4, 6), (40, 20, 1)):
        anchors, weights, above = rng.integers(0, m, (500, k)), rng.integers(0, 4, (500, k)) / 4 + 0.25, rng.integers(0, coarse, (m, 4))
        given = anchors, weights, above, rng.integers(1, 3, (m, 4)) / 4
        assert all(np.array_equal(a, b) for a, b in zip(deformation_solver.loops().compose(*given, 6), deformation_solver._compose_numpy(*given, 6)))


def test_the_pattern_by_rows_and_blocks_is_that_of_the_definition():
    rng = np.random.default_rng(0)
    for m, n, k in ((1, 5, 1), (12, 40, 4), (300, 500, 6)):
        edge = rng.integers(0, m, (2 * m, 2))
        blocks, edge_block, diagonal = deformation_solver._pattern(m, rng.integers(0, m, (n, k)), np.ones((n, k)), edge)[3:6]
        given = m, blocks, edge, edge_block, diagonal
        assert all(
            a.dtype == b.dtype and np.array_equal(a, b)
            for a, b in zip(deformation_solver.loops().gather(*given), deformation_solver._gather(*given), strict=True)
        )


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("m", [1, 2, 9, 150])
def test_the_sparse_factorisation_solves_what_a_dense_one_solves(m, threads):
    rng = np.random.default_rng(m)
    pairs = np.sort(rng.integers(0, m, (3 * m, 2)), axis=1)
    blocks = np.unique(np.concatenate([pairs, np.stack([np.arange(m)] * 2, 1)]), axis=0)
    values = rng.normal(size=(len(blocks), 6, 6))
    own = blocks[:, 0] == blocks[:, 1]
    values[own] = values[own] + values[own].transpose(0, 2, 1) + 100 * np.eye(6)
    dense = np.zeros((m, 6, m, 6))
    dense[blocks[:, 1], :, blocks[:, 0]] = values.transpose(0, 2, 1)
    dense[blocks[:, 0], :, blocks[:, 1]] = values
    right = rng.normal(size=(m, 6))
    plan = BlockCholesky.analyse(m, blocks, threads)
    assert np.allclose(plan.solve(values, right).ravel(), np.linalg.solve(dense.reshape(6 * m, 6 * m), right.ravel()), rtol=1e-10, atol=1e-13)
    assert np.array_equal(plan.solve(values, right), BlockCholesky.analyse(m, blocks, 1).solve(values, right))
    values[own] -= 300 * np.eye(6)
    assert plan.solve(values, right) is None


@pytest.mark.parametrize("n, d, k", [(1, 3, 1), (5, 9, 3), (17, 9, 1), (900, 9, 1), (900, 3, 9)])
def test_the_tree_finds_the_nearest_points_wherever_it_starts(n, d, k):
    rng = np.random.default_rng(n)
    points = rng.normal(size=(n, d))
    points[n // 2 :] = np.round(points[n // 2 :], 1)  # some points coincide
    tree = SearchTree(points)
    for _ in range(2):
        queries = points[rng.integers(0, n, 60)] + 0.1 * rng.normal(size=(60, d))
        squared = ((queries[:, None] - points) ** 2).sum(-1)
        wanted = np.sort(squared, axis=1)[:, :k]
        found, index = tree.query(queries, k)
        assert np.allclose(found, wanted) and np.allclose(np.take_along_axis(squared, index, 1), wanted)
        assert all(len(set(row)) == k for row in index.tolist())
        if k == 1:
            assert np.array_equal(tree.query(queries, 1, rng.integers(0, n, 60))[1], index)
        points = points + 0.3 * rng.normal(size=points.shape)
        tree.fit(points)


def test_pairs_left_in_their_place_say_what_the_kept_ones_say(body, pose, monkeypatch):
    """The GPU's way, on the CPU."""
    monkeypatch.setattr(correspondences, "compiled", lambda tensor: False)
    vertices, faces = tube()
    target = correspondences.Target.from_observation(observed(vertices, faces, vertices, coloured=True), 1500, 0.1, 0.05)
    live, normals, sums = body.warp(pose), body.warp_normals(pose), []
    for padded in (False, True):
        matches = correspondences.closest_both_ways(live, normals, body.colours, target, 0.1, 0.5, padded=padded)
        evidence = Evidence.none(body)
        correspondences.pull(evidence, live, normals, target, matches, body.whole, 0.01, 1.5, 0.05)
        sums.append((len(matches.source), evidence))
    assert sums[0][0] < sums[1][0]
    assert torch.allclose(sums[0][1].hessian, sums[1][1].hessian) and torch.allclose(sums[0][1].gradient, sums[1][1].gradient)


def test_the_line_search_without_waiting_takes_the_same_step(body, pose, monkeypatch):
    evidence = evidence_at(body, pose)
    weight = deformation_solver.edge_weights(body, pose, 0.7, 0.5)
    for scale in (1.0, -1.0):  # uphill no step is taken
        twists = scale * deformation_solver._solve(body, *damped(body, pose, evidence, weight))
        monkeypatch.setattr(deformation_solver, "_solve", lambda *_, twists=twists: twists)
        after, length = deformation_solver.step(body, pose, evidence, weight)
        other, other_length = deformation_solver._search_line(body, pose, evidence, weight, twists, 4)
        monkeypatch.undo()
        assert length == float(other_length)
        assert torch.allclose(after.rotations, other.rotations) and torch.allclose(after.translations, other.translations)


def damped(body, pose, evidence, weight):
    blocks, rhs = deformation_solver._normal_equations(body, pose, evidence, weight)
    blocks[body.pattern.diagonal] += 0.01 * torch.eye(6, dtype=torch.float64)
    return blocks, rhs


def test_without_numba_the_definition_serves_the_cpu(tmp_path):
    """In a process of its own, in which numba cannot be imported; the other one tells the compiled loops' motion."""
    code = """
import sys
without = sys.argv[2] == "without"
if without:
    sys.modules["numba"] = None
import numpy as np
from instant_nk.fitting.correspondences import Target
from instant_nk.fitting.deformation_solver import Body, Pose
from instant_nk.fitting.registration import Options, register_from
from instant_nk.models import deformation_graph
from tests.unit.shapes import bent, mesh_of, observed, tube
vertices, faces = tube()
body = Body.from_mesh(deformation_graph.build(vertices, faces, max_nodes=40), mesh_of(vertices, faces), 400)
assert (body.pattern.plan is None) == without
observation = observed(bent(vertices, np.radians(20)), faces, vertices, coloured=True)
target = Target.from_observation(observation, 400, Options.colour * body.spacing, Options.normal * body.spacing)
fit = register_from(body, [Pose.identity(body)], target, Options())
assert fit.converged
np.save(sys.argv[1], fit.pose.translations.numpy())
"""
    for name in ("with", "without"):
        done = subprocess.run([sys.executable, "-c", code, str(tmp_path / f"{name}.npy"), name], capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, done.stderr
    compiled, defined = np.load(tmp_path / "with.npy"), np.load(tmp_path / "without.npy")
    assert np.abs(defined).max() > 0.05 and np.allclose(compiled, defined, atol=1e-5)


def test_a_body_for_a_gpu_loads_no_compiled_loops():
    """A machine that never compiled them would wait many seconds, to save a fraction of one."""
    code = """
import sys
from instant_nk.fitting.deformation_solver import Body
from instant_nk.models import deformation_graph
from tests.unit.shapes import mesh_of, tube
vertices, faces = tube()
graph = deformation_graph.build(vertices, faces, max_nodes=240)
body = Body.from_mesh(graph, mesh_of(vertices, faces), 400, "meta")
assert body.pattern.gather is not None and body.coarse is not None and "numba" not in sys.modules
Body.from_mesh(graph, mesh_of(vertices, faces), 400)
assert "numba" in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


class Questions(TorchDispatchMode):
    """Names every operation by which a host asks a device for a value: a recording may not hold one."""

    def __init__(self):
        super().__init__()
        self.asked = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero, torch.ops.aten.masked_select, torch.ops.aten.equal):
            self.asked.append(str(func))
        return func(*args, **(kwargs or {}))


def test_a_step_the_gpus_way_asks_the_device_nothing(monkeypatch):
    vertices, faces = tube()
    body = Body.from_mesh(deformation_graph.build(vertices, faces, max_nodes=60), mesh_of(vertices, faces), 800)
    body = dataclasses.replace(body, pattern=dataclasses.replace(body.pattern, plan=None))
    target = correspondences.Target.from_observation(observed(vertices, faces, vertices, coloured=True), 900, 0.1, 0.05)
    for module in (correspondences, deformation_solver):
        monkeypatch.setattr(module, "compiled", lambda tensor: False)
    padded = correspondences.closest_both_ways
    monkeypatch.setattr(registration, "closest_both_ways", lambda *given, **_: padded(*given, padded=True))
    with Questions() as questions:
        body.points[0, 0].item()
        assert len(questions.asked) == 1
        # Rows beyond the first are replays on a GPU; here every row runs, with its numbers as tensors.
        monkeypatch.setattr(registration, "repeat", lambda work, state, rows, given: work(*state, *torch.tensor(rows, dtype=torch.float64)[1], *given))
        pose = registration.assign_softly(body, Pose.identity(body), target, registration.Options(), body.spacing)
        pose = registration.match_closely(body, pose, target, registration.Options(), 4, 1.0, 0.1)
    assert questions.asked == ["aten._local_scalar_dense.default"] and bool(pose.rotations.isfinite().all())


def test_points_that_lie_in_one_place_do_not_spoil_the_others():
    """Their area is zero, as of a block of depth pixels that failed."""
    rng = np.random.default_rng(0)
    points = torch.from_numpy(np.concatenate([rng.normal(size=(200, 3)), np.zeros((20, 3))]))
    normals, colours = torch.nn.functional.normalize(torch.from_numpy(rng.normal(size=(220, 3))), dim=-1), torch.from_numpy(rng.random((220, 3)))
    areas = correspondences.point_areas(points)
    assert float(areas[-20:].max()) == 0
    one = correspondences.Cloud(points, normals, colours, areas)
    other = correspondences.Cloud(points + 0.1, normals, colours, areas)
    shift, share = correspondences.soft_displacement(one, other, 0.5)
    assert torch.isfinite(shift).all() and torch.isfinite(share).all()
