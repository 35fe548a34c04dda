"""The small networks: input derivatives in closed form agree with finite differences and can be differentiated again."""

import pytest
import torch

from instant_nk.models.mlp import DeepMlp, Mlp, activation
from tests.unit.neural_fixtures import slope, stir


def network(inputs=5, hidden=7, outputs=4):
    made = Mlp(inputs, hidden, outputs).double()
    stir(made, 0.7)
    return made


def test_the_activation_is_a_smooth_relu():
    value, derivative = activation(torch.tensor([-30.0, 0.0, 30.0], dtype=torch.float64))
    torch.testing.assert_close(value, torch.tensor([0.0, 0.5 * 1e-3**0.5, 30.0], dtype=torch.float64), atol=1e-4, rtol=0)
    torch.testing.assert_close(derivative, torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64), atol=1e-6, rtol=0)
    a = torch.linspace(-0.3, 0.3, 61, dtype=torch.float64)[:, None]
    torch.testing.assert_close(activation(a)[1], slope(lambda x: activation(x)[0][:, 0], a), atol=1e-8, rtol=0)


@pytest.mark.parametrize("outputs", [1, 3, 4])
def test_the_gradient_agrees_with_finite_differences(outputs):
    made, x = network(), torch.randn(50, 5, dtype=torch.float64)
    values, gradient = made.with_gradient(x, outputs)
    torch.testing.assert_close(values, made(x))
    assert gradient.shape == (50, outputs, 5)
    torch.testing.assert_close(gradient, slope(made, x)[:, :outputs], atol=1e-8, rtol=1e-6)


def test_a_loss_on_the_gradient_trains_every_weight_of_it():
    """An eikonal term: its derivative by each parameter agrees with finite differences."""
    made, x = network(outputs=1), torch.randn(20, 5, dtype=torch.float64)
    parameters = list(made.parameters())

    def loss():
        return ((made.with_gradient(x)[1].norm(dim=-1) - 1) ** 2).mean()

    ours = torch.autograd.grad(loss(), parameters, allow_unused=True)
    assert ours[3] is None  # the last bias moves no gradient
    for parameter, gradient in zip(parameters[:3], ours[:3]):
        row = (0,) * parameter.dim()
        with torch.no_grad():
            parameter[row] += 1e-6
            above = loss()
            parameter[row] -= 2e-6
            below = loss()
            parameter[row] += 1e-6
        torch.testing.assert_close(gradient[row], (above - below) / 2e-6, atol=1e-8, rtol=1e-5)


def test_scale_zero_starts_at_exactly_zero_but_can_learn():
    made, x = Mlp(5, 7, 3, scale=0.0), torch.randn(10, 5)
    values, gradient = made.with_gradient(x, 3)
    assert not values.any() and not gradient.any()
    made(x).sum().backward()
    assert made.last.weight.grad.abs().min() > 0


def test_a_network_of_no_points_returns_no_points():
    values, gradient = Mlp(5, 7, 1).with_gradient(torch.zeros(0, 5))
    assert values.shape == (0, 1) and gradient.shape == (0, 1, 5)
    assert DeepMlp(5, 7, 3)(torch.zeros(0, 2), torch.zeros(0, 3)).shape == (0, 3)
