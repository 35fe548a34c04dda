"""Volume rendering: known answers, invariants, gradients, messages."""

import pytest
import torch

from instant_nk.kernels import volume_rendering
from instant_nk.kernels.volume_rendering import reference
from tests import parity


def test_one_opaque_sample_hides_everything_behind_it():
    weights, transmittance = volume_rendering.render_weights(torch.tensor([0.5, 1.0, 0.7, 0.25]), torch.tensor([0, 0, 0, 2]), 3)
    assert weights.tolist() == [0.5, 0.5, 0.0, 0.25]
    assert transmittance.tolist() == [1.0, 0.5, 0.0, 1.0]


def test_weights_and_remaining_light_of_a_ray_sum_to_one():
    rays = parity.packed_rays(500, 40, torch.Generator().manual_seed(0))
    alphas = torch.rand(500)
    weights, transmittance = volume_rendering.render_weights(alphas, rays, 40)
    opacity = volume_rendering.accumulate(weights, None, rays, 40)[:, 0]
    left = torch.ones(40).scatter_reduce(0, rays, transmittance * (1 - alphas), "amin")
    torch.testing.assert_close(opacity + left, torch.ones(40))


def test_a_ray_without_samples_accumulates_nothing():
    sums = volume_rendering.accumulate(torch.tensor([0.5]), torch.tensor([[1.0, 2.0]]), torch.tensor([1]), 3)
    assert sums.tolist() == [[0, 0], [0.5, 1.0], [0, 0]]


def test_the_gradient_is_exact_where_alpha_is_one():
    """d w_2 / d a_1 = -a_2 whatever a_1 is; a division by 1 - a_1 would give NaN."""
    alphas = torch.tensor([1.0, 0.5], requires_grad=True)
    weights, _ = volume_rendering.render_weights(alphas, torch.tensor([0, 0]), 1)
    weights[1].backward()
    assert alphas.grad.tolist() == [-0.5, 0.0]


def test_gradients_of_the_reference_agree_with_finite_differences():
    rays = torch.tensor([0, 0, 0, 1, 3, 3])
    alphas = torch.tensor([0.2, 1.0, 0.3, 0.9, 0.0, 0.4], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a: reference.render_weights(a, rays, 4), (alphas,))
    values = torch.randn(6, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda w, v: reference.accumulate(w, v, rays, 4), (alphas, values))


@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize(("samples", "rays"), [(0, 0), (0, 5), (1, 1), (63, 7), (1000, 90), (700, 2)])
def test_the_cpu_backend_agrees_with_the_reference(samples, rays, strided):
    for case in parity.volume_rendering_cases(samples, rays).values():
        parity.check(case, "cpu", "auto", strided)


def test_a_compiled_backend_refuses_a_second_derivative():
    pytest.importorskip("numba")
    alphas = torch.rand(4, requires_grad=True)
    weights, _ = volume_rendering.render_weights(alphas, torch.tensor([0, 0, 1, 1]), 2)
    (slope,) = torch.autograd.grad(weights.square().sum(), alphas, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


def test_a_wrong_shape_is_named():
    with pytest.raises(ValueError, match=r"volume_rendering: values must have shape \[3, channels\]; got \[4, 2\]"):
        volume_rendering.accumulate(torch.rand(3), torch.rand(4, 2), torch.zeros(3, dtype=torch.int64), 1)
    with pytest.raises(TypeError, match="volume_rendering: ray_indices must be int64; got int32"):
        volume_rendering.render_weights(torch.rand(3), torch.zeros(3, dtype=torch.int32), 1)
