"""Registration on a GPU: the same motion as on the CPU, and a failure that nobody waited for is told."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from instant_nk.errors import NumericalError
from instant_nk.fitting import repeated
from instant_nk.fitting.correspondences import Target
from instant_nk.fitting.deformation_solver import Body, Pose
from instant_nk.fitting.registration import Options, register_from
from instant_nk.models import deformation_graph
from tests.unit.shapes import bent, mesh_of, observed, tube

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def fit_on(device: str, **changed: float):
    options = Options(**changed)
    vertices, faces = tube()
    graph = deformation_graph.build(vertices, faces, max_nodes=240)  # enough for a coarse level
    body = Body.from_mesh(graph, mesh_of(vertices, faces), 2000, device)
    observation = observed(bent(vertices, np.radians(30)), faces, vertices, coloured=True)
    target = Target.from_observation(observation, 2000, options.colour * body.spacing, options.normal * body.spacing, device)
    return register_from(body, [Pose.identity(body)], target, options)


@pytest.mark.parametrize("record", [False, True])
def test_both_devices_find_the_same_motion(record, monkeypatch):
    monkeypatch.setattr(repeated, "RECORD", record)
    fits = [fit_on(device) for device in ("cpu", "cuda")]
    assert all(fit.converged for fit in fits)
    difference = (fits[0].pose.translations - fits[1].pose.translations.cpu()).norm(dim=1)
    assert float(difference.max()) < 1e-3 and float(difference.median()) < 1e-5


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_step_that_is_not_finite_is_told(device):
    with pytest.raises(NumericalError):
        fit_on(device, tangential=math.nan)
