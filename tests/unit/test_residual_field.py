"""The residual deformation: zero when fresh, bounded always, with an exact Jacobian."""

import torch

from instant_nk.models.residual_field import ResidualField
from tests.unit.neural_fixtures import SPEC_IN_TIME, slope, stir


def inputs(count=80, dtype=torch.float32):
    return torch.rand(count, 3, dtype=dtype) * 1.8 - 0.9, torch.rand(count, dtype=dtype)


def test_a_fresh_residual_and_its_jacobian_are_exactly_zero():
    field, (x, tau) = ResidualField(SPEC_IN_TIME, 16, 0.05), inputs()
    assert not field(x, tau).any()
    displacement, jacobian = field.with_jacobian(x, tau)
    assert not displacement.any() and not jacobian.any()


def test_a_fresh_residual_can_learn():
    field, (x, tau) = ResidualField(SPEC_IN_TIME, 16, 0.05), inputs()
    field(x, tau).sum().backward()
    assert field.mlp.last.weight.grad.abs().max() > 0
    with torch.no_grad():
        field.mlp.last.weight -= field.mlp.last.weight.grad
    field(x, tau).sum().backward()
    assert field.encoding.table.grad.abs().max() > 0


def test_the_displacement_never_exceeds_its_bound():
    field, (x, tau) = ResidualField(SPEC_IN_TIME, 16, 0.05), inputs()
    stir(field, 50.0)
    largest = field(x, tau).abs().max()
    assert 0.049 < largest <= 0.05


def test_the_jacobian_agrees_with_finite_differences():
    field = ResidualField(SPEC_IN_TIME, 16, 0.3).double()
    stir(field, 0.5)
    x, tau = inputs(dtype=torch.float64)
    displacement, jacobian = field.with_jacobian(x, tau)
    torch.testing.assert_close(displacement, field(x, tau))
    torch.testing.assert_close(jacobian, slope(lambda p: field(p, tau), x), atol=1e-7, rtol=1e-6)
    assert jacobian.abs().max() > 0.01


def test_the_displacement_changes_with_time():
    field, (x, tau) = ResidualField(SPEC_IN_TIME, 16, 0.3), inputs()
    stir(field, 0.5)
    assert (field(x, tau) - field(x, 1 - tau)).abs().mean() > 1e-3


def test_a_description_and_the_state_build_the_same_field():
    field, (x, tau) = ResidualField(SPEC_IN_TIME, 16, 0.05), inputs()
    stir(field, 0.5)
    again = ResidualField.build(field.describe())
    again.load_state_dict(field.state_dict())
    assert torch.equal(again(x, tau), field(x, tau)) and again.describe() == field.describe()
