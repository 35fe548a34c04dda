"""Colour of canonical points: a valid colour for any input, the same network from its description."""

import torch

from instant_nk.models.colour_field import ColourField
from tests.unit.neural_fixtures import stir


def inputs(count=100):
    unit = torch.nn.functional.normalize(torch.randn(2, count, 3), dim=-1)
    return torch.rand(count, 3) * 2 - 1, unit[0], unit[1], torch.randn(count, 6)


def test_colours_lie_between_black_and_white_whatever_the_weights():
    field = ColourField(6, 16)
    stir(field, 30.0)
    rgb = field(*inputs())
    assert rgb.shape == (100, 3) and rgb.min() >= 0 and rgb.max() <= 1


def test_colour_depends_on_position_normal_direction_and_features():
    field, arguments = ColourField(6, 16), [a.requires_grad_() for a in inputs()]
    field(*arguments).sum().backward()
    assert all(a.grad.abs().max() > 0 for a in arguments)


def test_a_description_and_the_state_build_the_same_field():
    field, arguments = ColourField(6, 16), inputs()
    again = ColourField.build(field.describe())
    again.load_state_dict(field.state_dict())
    assert torch.equal(again(*arguments), field(*arguments))
