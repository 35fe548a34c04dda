"""Registration on a GPU: the same motion as on the CPU, and a failure that nobody waited for is told."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree

from instant_nk.errors import NumericalError
from instant_nk.fitting import conjugate_gradients_triton, repeated
from instant_nk.fitting.correspondences import Target
from instant_nk.fitting.deformation_solver import Body, Pose
from instant_nk.fitting.registration import Fit, Guide, Options, register_from, settle
from instant_nk.models import deformation_graph
from tests import registration_parity
from tests.unit.shapes import bent, mesh_of, observed, tube

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def fit_on(device: str, **changed: float) -> tuple[Fit, float]:
    """A bent tube registered, and how far its nodes are from where they went."""
    options = Options(**changed)
    vertices, faces = tube()
    graph = deformation_graph.build(vertices, faces, max_nodes=240)  # enough for a coarse level
    body = Body.from_mesh(graph, mesh_of(vertices, faces), 2000, device)
    goal = bent(vertices, np.radians(30))
    observation = observed(goal, faces, vertices, coloured=True)
    target = Target.from_observation(observation, 2000, options.colour * body.spacing, options.normal * body.spacing, device)
    fit = register_from(body, [Pose.identity(body)], target, options)
    of = cKDTree(vertices).query(graph.node_positions)[1]
    return fit, float(np.linalg.norm(graph.node_positions + fit.pose.translations.cpu().numpy() - goal[of], axis=1).mean())


@pytest.fixture
def finely(monkeypatch):
    """Steps solved so well that devices can be compared; what was recorded with another tolerance is forgotten, before and after."""
    repeated.forget()
    monkeypatch.setattr(conjugate_gradients_triton, "TOLERANCE", registration_parity.FINE)
    yield
    repeated.forget()


@pytest.mark.parametrize("record", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.6])
def test_both_devices_find_the_same_motion(record, momentum, monkeypatch, finely):
    monkeypatch.setattr(repeated, "RECORD", record)
    fits = [fit_on(device, momentum=momentum)[0] for device in ("cpu", "cuda")]
    assert all(fit.converged for fit in fits)
    difference = (fits[0].pose.translations - fits[1].pose.translations.cpu()).norm(dim=1)
    assert float(difference.max()) < 1e-3 and float(difference.median()) < 1e-5


@pytest.mark.parametrize("momentum", [0.0, 0.6])
def test_steps_that_are_solved_roughly_end_as_near(momentum):
    (_, exactly), (fit, roughly) = (fit_on(device, momentum=momentum) for device in ("cpu", "cuda"))
    assert fit.converged and roughly < 1.03 * exactly


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_step_that_is_not_finite_is_told(device):
    with pytest.raises(NumericalError):
        fit_on(device, tangential=math.nan)


@pytest.mark.parametrize("nodes, points, programs", [(9, 150, None), (60, 3000, None), (60, 3000, 1), (200, 700, 8), (900, 3000, None)])
@pytest.mark.parametrize("twice, seen", [(False, 1.0), (True, 0.3)])
def test_a_step_agrees_with_the_cpu(nodes, points, programs, twice, seen):
    registration_parity.check_step("cuda", nodes, points, programs, twice, seen)


@pytest.mark.parametrize("nodes, points, apart", [(9, 150, 0.5), (60, 3000, 0.5), (60, 3000, 2.0)])
def test_evidence_agrees_with_the_cpu(nodes, points, apart):
    registration_parity.check_evidence("cuda", nodes, points, apart)


@pytest.mark.parametrize("rows, columns", [(2, 3), (5, 40), (1000, 900), (700, 1000)])
def test_soft_assignment_agrees_with_the_cpu(rows, columns):
    registration_parity.check_transport("cuda", rows, columns)


def test_nearest_rotations_agree_with_the_cpu():
    registration_parity.check_rotations("cuda")


def test_frames_settle_as_on_the_cpu():
    fits = []
    for device in ("cpu", "cuda"):
        vertices, faces = tube()
        body = Body.from_mesh(deformation_graph.build(vertices, faces, max_nodes=240), mesh_of(vertices, faces), 2000, device)
        options = Options()
        lengths = options.colour * body.spacing, options.normal * body.spacing
        target = Target.from_observation(observed(bent(vertices, np.radians(10)), faces, vertices, coloured=True), 2000, *lengths, device)
        wanted = torch.from_numpy(bent(body.points.cpu().numpy(), np.radians(9))).to(device)
        fits.append(settle(body, Pose.identity(body), target, Guide(wanted, torch.full_like(wanted[:, 0], 0.5)), options))
    difference = (fits[0].pose.translations - fits[1].pose.translations.cpu()).norm(dim=1)
    assert float(fits[0].pose.translations.norm(dim=1).max()) > 0.05
    assert float(difference.max()) < 1e-3 and float(difference.median()) < 1e-5


@pytest.mark.parametrize("along, around, limit", [(12, 8, 0.4), (60, 24, 0.3), (60, 24, 3.0)])
def test_the_nearest_nodes_are_those_found_on_the_cpu(along, around, limit):
    registration_parity.check_nearest_nodes("cuda", along, around, limit)


def test_of_nodes_as_near_the_first_is_the_nearest():
    registration_parity.check_equally_near_nodes("cuda")


def test_a_pair_that_is_prepared_on_a_gpu_has_the_same_graph():
    vertices, faces = tube(along=60, around=24)
    graphs = [deformation_graph.build(vertices, faces, max_nodes=300, device=device) for device in ("cpu", "cuda")]
    for name, value in vars(graphs[0]).items():
        assert np.array_equal(value, getattr(graphs[1], name)), name
