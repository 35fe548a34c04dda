"""The field network: its derivative along space, its gradients, what it refuses. (Triton's: test_kernels_triton_interpreted.py.)"""

import pytest
import torch

from instant_nk.errors import BackendError
from instant_nk.kernels import field_network
from instant_nk.kernels.field_network import reference
from instant_nk.models.mlp import Mlp
from tests import parity
from tests.unit.neural_fixtures import slope, stir

NAMES = "x", "features", "jacobian", "first_weight", "first_bias", "last_weight", "last_bias"


def inputs(samples, points, features, hidden, outputs, dtype=torch.float64):
    case = parity.field_network_cases(samples, points, features, hidden, outputs)[f"network of {outputs} outputs"]
    return [case.floats[name].to(dtype).requires_grad_() for name in NAMES]


@pytest.mark.parametrize(("points", "outputs"), [(3, 1), (4, 1), (3, 3), (4, 3)])
def test_the_gradient_agrees_with_finite_differences_along_space(points, outputs):
    """Features that depend on x and on time, with their true Jacobian."""
    x, *_, w1, b1, w2, b2 = (t.detach() for t in inputs(50, points, 5, 8, outputs))
    mix = torch.randn(points, 5, dtype=torch.float64)

    def through(at):
        features = torch.sin(at @ mix)
        jacobian = torch.cos(at @ mix)[:, None] * mix[:3]
        return field_network.network(at, features, jacobian, w1, b1, w2, b2)

    _, gradient = through(x)
    assert gradient.shape == (50, outputs, 3)
    torch.testing.assert_close(gradient, slope(lambda at: through(at)[0], x)[..., :3], atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize(("points", "outputs"), [(3, 1), (4, 3)])
def test_gradients_of_the_reference_agree_with_finite_differences(points, outputs):
    assert torch.autograd.gradcheck(reference.network, inputs(3, points, 5, 6, outputs))


@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize("samples", [0, 1, 63, 1000])
@pytest.mark.parametrize(("points", "features", "hidden", "outputs"), [(3, 32, 64, 1), (4, 12, 20, 3)])
def test_float32_agrees_with_float64(samples, points, features, hidden, outputs, strided):
    for case in parity.field_network_cases(samples, points, features, hidden, outputs).values():
        parity.check(case, "cpu", "auto", strided)


@pytest.mark.parametrize(("points", "outputs"), [(3, 1), (4, 3)])
def test_it_is_the_gradient_of_the_whole_input_taken_along_space(points, outputs):
    x, features, jacobian, *weights = inputs(40, points, 6, 7, outputs)
    mlp = Mlp(points + 6, 7, outputs).double()
    mlp.load_state_dict(dict(zip(("first.weight", "first.bias", "last.weight", "last.bias"), weights)))
    out, whole = mlp.with_gradient(torch.cat([x, features], -1), outputs)
    found, gradient = mlp.along_space(x, features, jacobian)
    torch.testing.assert_close(found, out)
    torch.testing.assert_close(gradient, whole[..., :3] + torch.einsum("nok,ndk->nod", whole[..., points:], jacobian))


def test_a_mixed_network_computes_in_bfloat16_and_stays_near():
    x, features, jacobian, *_ = inputs(40, 4, 6, 7, 3, torch.float32)
    mlp = Mlp(10, 7, 3, may_mix=True)
    stir(mlp, 0.5)
    exact = mlp.along_space(x, features, jacobian)
    mlp.mixed = True
    for found, wanted in zip(mlp.along_space(x, features, jacobian), exact):
        assert found.dtype == torch.float32 and 1e-5 < (found - wanted).norm() / wanted.norm() < 0.03


@pytest.mark.parametrize(("points", "outputs"), [(3, 1), (4, 3)])
def test_the_values_alone_are_those_with_the_gradient(points, outputs):
    x, features, jacobian, *weights = inputs(40, points, 6, 7, outputs)
    torch.testing.assert_close(field_network.values(x, features, *weights), field_network.network(x, features, jacobian, *weights)[0])


def test_a_network_too_wide_for_triton_is_named():
    sizes = [t.detach().float() for t in inputs(2, 3, 6, 256, 1)]
    assert field_network.network(*sizes)[0].shape == (2, 1)
    pytest.importorskip("triton")
    with parity.backend("triton"), pytest.raises(BackendError, match="field_network: .*it takes 1 to 128 hidden, got 256"):
        field_network.network(*sizes)


def test_a_wrong_shape_is_named():
    x, features, jacobian, *weights = inputs(4, 3, 6, 7, 1)
    with pytest.raises(ValueError, match=r"field_network: jacobian must have shape \[4, 3, 6\]; got \[4, 6, 3\]"):
        field_network.network(x, features, jacobian.transpose(1, 2), *weights)
    with pytest.raises(ValueError, match=r"field_network: x must have shape \[samples, 3 or 4\]; got \[4, 2\]"):
        field_network.network(x[:, :2], features, jacobian, *weights)
    with pytest.raises(ValueError, match=r"field_network: first_weight must have shape \[hidden, 10\]; got \[7, 9\]"):
        field_network.network(torch.cat([x, x[:, :1]], 1), features, jacobian, *weights)
