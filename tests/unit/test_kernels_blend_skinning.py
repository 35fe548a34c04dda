"""Blend skinning: known answers, invariants, gradients, the inverse, messages."""

import pytest
import torch

from instant_nk.kernels import blend_skinning
from instant_nk.kernels.blend_skinning import reference
from tests import parity

GRAPH = ("anchors", "node_positions", "node_radii")
MOTION = ("rotations", "translations", "frame_index")


def double(inputs):
    return {name: value.double() if value.is_floating_point() else value for name, value in inputs.items()}


def test_weights_sum_to_one_and_vanish_outside_the_radius():
    inputs = parity.skinning_inputs(200)
    weights = blend_skinning.skinning_weights(inputs["points"], *(inputs[n] for n in GRAPH))
    torch.testing.assert_close(weights.sum(1), torch.ones(200))
    away = (inputs["points"][:, None] - inputs["node_positions"][inputs["anchors"]]).norm(dim=2)
    outside = away > inputs["node_radii"][inputs["anchors"]]
    alone = outside.all(1)
    assert bool(alone.any()) and bool((weights[outside & ~alone[:, None]] == 0).all())


def test_a_point_out_of_reach_follows_its_nearest_anchor_alone():
    nodes = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    weights = blend_skinning.skinning_weights(torch.tensor([[5.0, 0.0, 0.0]]), torch.tensor([[0, 1]]), nodes, torch.ones(2))
    assert weights.tolist() == [[0.0, 1.0]]


def test_a_rigid_motion_of_all_nodes_moves_every_point_rigidly():
    inputs = parity.skinning_inputs(100)
    turn, shift = torch.matrix_exp(torch.tensor([[0.0, -0.7, 0.2], [0.7, 0.0, -0.1], [-0.2, 0.1, 0.0]])), torch.tensor([0.1, -0.2, 0.3])
    nodes = inputs["node_positions"]
    motion = turn.expand(1, len(nodes), 3, 3), (nodes @ turn.T + shift - nodes)[None], torch.zeros(100, dtype=torch.int64)
    live, jacobian = blend_skinning.blend_with_jacobian(inputs["points"], *(inputs[n] for n in GRAPH), *motion)
    torch.testing.assert_close(live, inputs["points"] @ turn.T + shift, rtol=0, atol=1e-5)
    torch.testing.assert_close(jacobian, turn.expand(100, 3, 3), rtol=0, atol=1e-4)


def test_the_jacobian_is_the_derivative_of_the_blend():
    inputs = double(parity.skinning_inputs(12))
    rest = [inputs[n] for n in (*GRAPH, *MOTION)]
    points = inputs["points"].clone().requires_grad_()
    live, jacobian = reference.blend_with_jacobian(points, *rest)
    rows = torch.stack([torch.autograd.grad(live[:, a].sum(), points, retain_graph=True)[0] for a in range(3)], 1)
    torch.testing.assert_close(jacobian, rows)


def test_gradients_of_the_reference_agree_with_finite_differences():
    inputs = double(parity.skinning_inputs(4, nodes=6, knn=3, frames=2))
    floats = [inputs[n].requires_grad_() for n in ("points", "node_positions", "node_radii", "rotations", "translations")]

    def blend(points, nodes, radii, rotations, translations):
        return reference.blend_with_jacobian(points, inputs["anchors"], nodes, radii, rotations, translations, inputs["frame_index"])

    assert torch.autograd.gradcheck(blend, floats)


def test_implicit_gradients_of_the_inverse_agree_with_finite_differences():
    inputs = double(parity.skinning_inputs(4, nodes=6, knn=3, frames=2))
    live = reference.blend_with_jacobian(inputs["points"], *(inputs[n] for n in (*GRAPH, *MOTION)))[0]
    graph = [inputs[n] for n in GRAPH]

    def inverse(y, rotations, translations):
        return blend_skinning.inverse(y, inputs["points"], *graph, rotations, translations, inputs["frame_index"], iterations=30, tolerance=1e-13)[0]

    assert torch.autograd.gradcheck(inverse, (live.requires_grad_(), inputs["rotations"].requires_grad_(), inputs["translations"].requires_grad_()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_inverse_undoes_the_blend(dtype):
    inputs = {k: v.to(dtype) if v.is_floating_point() else v for k, v in parity.skinning_inputs(2000, nodes=120, knn=6).items()}
    inside = inputs["points"].abs().amax(1) < 1
    rest = [inputs[n] for n in (*GRAPH, *MOTION)]
    live, jacobian = blend_skinning.blend_with_jacobian(inputs["points"], *rest)
    canonical, converged = blend_skinning.inverse(live, live, *rest, iterations=12)
    assert float(converged[inside].float().mean()) > 0.99
    again, _ = blend_skinning.blend_with_jacobian(canonical, *rest)
    assert float((again - live).norm(dim=1)[converged].max()) < 2e-5
    unfolded = converged & inside & (torch.linalg.det(jacobian) > 0.2)
    assert float((canonical - inputs["points"]).norm(dim=1)[unfolded].median()) < 1e-5


def test_a_point_that_cannot_be_reached_is_said_not_to_converge_and_carries_no_gradient():
    """Two nodes pull apart: live points in the gap belong to no canonical point of this neighbourhood within two steps."""
    inputs = parity.skinning_inputs(50)
    rest = [inputs[n] for n in GRAPH]
    live = (inputs["points"] + 3).requires_grad_()
    canonical, converged = blend_skinning.inverse(live, inputs["points"], *rest, *(inputs[n] for n in MOTION), iterations=0)
    assert not bool(converged.any()) and torch.equal(canonical, inputs["points"])
    canonical.sum().backward()
    assert bool((live.grad == 0).all())


@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize("points", [0, 1, 63, 2500])
@pytest.mark.parametrize("knn", [1, 4, 6])
def test_the_cpu_backend_agrees_with_the_reference(points, knn, strided):
    for case in parity.blend_skinning_cases(points, knn).values():
        parity.check(case, "cpu", "auto", strided)


def test_points_are_shared_among_threads_without_a_change(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    for case in parity.blend_skinning_cases(5000).values():
        parity.check(case, "cpu", "auto")


def test_a_compiled_backend_refuses_a_second_derivative():
    pytest.importorskip("numba")
    inputs = parity.skinning_inputs(5)
    live, _ = blend_skinning.blend_with_jacobian(inputs["points"].requires_grad_(), *(inputs[n] for n in (*GRAPH, *MOTION)))
    (slope,) = torch.autograd.grad(live.square().sum(), inputs["points"], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


def test_a_wrong_argument_is_named():
    inputs = parity.skinning_inputs(5)
    with pytest.raises(ValueError, match=r"blend_skinning: node_radii must have shape \[40\]; got \[39\]"):
        blend_skinning.skinning_weights(inputs["points"], inputs["anchors"], inputs["node_positions"], inputs["node_radii"][:-1])
    with pytest.raises(TypeError, match="anchors must be int64; got int32"):
        blend_skinning.skinning_weights(inputs["points"], inputs["anchors"].int(), inputs["node_positions"], inputs["node_radii"])
