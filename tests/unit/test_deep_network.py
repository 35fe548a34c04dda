"""The deep network: the layers it stands for, its gradients, what it refuses. (Triton's: test_kernels_triton_interpreted.py.)"""

import pytest
import torch

from instant_nk.errors import BackendError
from instant_nk.kernels import deep_network
from instant_nk.kernels.deep_network import reference
from instant_nk.models.mlp import DeepMlp
from tests import parity
from tests.unit.neural_fixtures import stir


def inputs(*sizes):
    return [value.double().requires_grad_() for value in next(iter(parity.deep_network_cases(*sizes).values())).floats.values()]


def test_it_is_the_layers_of_the_module():
    mlp = DeepMlp(9, 7, 3).double()
    stir(mlp, 0.5)
    near, features = torch.randn(40, 4, dtype=torch.float64), torch.randn(40, 5, dtype=torch.float64)
    torch.testing.assert_close(mlp(near, features), mlp.layers(torch.cat([near, features], -1)))


def test_a_mixed_network_and_a_shift_of_zero_stay_near():
    mlp = DeepMlp(9, 7, 3, may_mix=True)
    stir(mlp, 0.5)
    near, features = torch.randn(40, 4), torch.randn(40, 5)
    exact = mlp(near, features)
    torch.testing.assert_close(mlp(near, features, torch.zeros(40, 7)), exact)
    mlp.mixed = True
    assert 1e-5 < (mlp(near, features) - exact).norm() / exact.norm() < 0.03


def test_gradients_of_the_reference_agree_with_finite_differences():
    assert torch.autograd.gradcheck(reference.network, inputs(3, 4, 3, 5, 2))


@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize("samples", [0, 1, 63, 1000])
def test_float32_agrees_with_float64(samples, strided):
    for case in parity.deep_network_cases(samples).values():
        parity.check(case, "cpu", "auto", strided)


def test_a_network_too_wide_for_triton_is_named():
    sizes = [value.detach().float() for value in inputs(2, 4, 3, 80, 2)]
    assert deep_network.network(*sizes).shape == (2, 2)
    assert deep_network.rehearsals(4, 3, 80, 2, "cpu", True, True, True) == []
    pytest.importorskip("triton")
    with parity.backend("triton"), pytest.raises(BackendError, match="deep_network: .*it takes 1 to 64 hidden, got 80"):
        deep_network.network(*sizes)


def test_a_wrong_shape_is_named():
    near, features, *weights = inputs(4, 4, 3, 5, 2)
    with pytest.raises(ValueError, match=r"deep_network: first_weight must have shape \[hidden, 6\]; got \[5, 7\]"):
        deep_network.network(near[:, :3], features, *weights)
