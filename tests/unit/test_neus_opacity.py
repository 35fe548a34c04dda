"""Opacity, normal and excess of samples: known values, gradients, what is refused. (Planes: test_renderer.py; Triton's: test_kernels_triton_interpreted.py.)"""

import pytest
import torch

from instant_nk.kernels import neus_opacity
from instant_nk.kernels.neus_opacity import reference
from tests import parity


def test_the_excess_is_zero_for_unit_gradients_and_has_a_gradient_at_zero_length():
    gradient = torch.nn.functional.normalize(torch.randn(50, 3), dim=1)
    _, normals, excess = neus_opacity.opacities(torch.zeros(50), gradient, gradient, torch.ones(50), 30.0)
    assert excess.mean() < 1e-10 and torch.allclose(normals, gradient)
    odd = torch.tensor([[3.0, 0, 0], [0, 0, 0]], requires_grad=True)
    _, normals, excess = neus_opacity.opacities(torch.zeros(2), odd, torch.ones(2, 3), torch.ones(2), 30.0)
    assert excess.mean().item() == pytest.approx(2.5) and torch.equal(normals, torch.tensor([[1.0, 0, 0], [0, 0, 0]]))
    (normals.sum() + excess.sum()).backward()
    assert torch.isfinite(odd.grad).all()


@pytest.mark.parametrize("kind", ["sharpness learnt", "sharpness fixed", "directions turned"])
def test_gradients_of_the_reference_agree_with_finite_differences(kind):
    case = parity.neus_opacity_cases(11)[kind]
    inputs = {name: value.double().requires_grad_(name in case.wrt) for name, value in case.floats.items()}
    others = {name: value.double() if torch.is_tensor(value) else value for name, value in case.others.items()}
    assert torch.autograd.gradcheck(lambda *values: reference.opacities(**dict(zip(inputs, values)), **others), tuple(inputs.values()))


@pytest.mark.parametrize("samples", [0, 1, 500])
def test_float32_agrees_with_float64(samples):
    for case in parity.neus_opacity_cases(samples).values():
        parity.check(case, "cpu", "auto")


def test_a_wrong_shape_is_named():
    row = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"neus_opacity: lengths must have shape \[2\]; got \[3\]"):
        neus_opacity.opacities(torch.zeros(2), row, row, torch.zeros(3), 1.0)


def test_a_sharpness_per_sample_is_refused():
    """The reference would spread it over the samples, a kernel would read the first."""
    row = torch.zeros(2, 3)
    for numbers, name in (((torch.ones(2), 1.0), "inv_std"), ((1.0, torch.ones(2)), "anneal")):
        with pytest.raises(ValueError, match=rf"neus_opacity: {name} must have shape \[\]; got \[2\]"):
            neus_opacity.opacities(torch.zeros(2), row, row, torch.zeros(2), *numbers)
