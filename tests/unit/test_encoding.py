"""The hash encoding over scene space: derivatives per scene unit, closed levels, time."""

import torch

from instant_nk.models.encoding import HashEncoding
from tests.unit.neural_fixtures import SPEC, SPEC_IN_TIME, slope, stir


def encoding(spec):
    made = HashEncoding(spec).double()
    stir(made, 1.0)
    return made


def points(count=40):
    return torch.rand(count, 3, dtype=torch.float64) * 1.9 - 0.95


def test_the_jacobian_is_the_derivative_by_scene_coordinates():
    made, x = encoding(SPEC), points()
    features, jacobian = made.with_jacobian(x)
    assert jacobian.shape == (40, 3, SPEC.width)
    torch.testing.assert_close(features, made(x))
    torch.testing.assert_close(jacobian.transpose(1, 2), slope(made, x), atol=1e-6, rtol=1e-6)


def test_with_time_the_jacobian_is_still_spatial():
    made, x, tau = encoding(SPEC_IN_TIME), points(), torch.rand(40, dtype=torch.float64)
    features, jacobian = made.with_jacobian(x, tau)
    torch.testing.assert_close(features, made(x, tau))
    torch.testing.assert_close(jacobian.transpose(1, 2), slope(lambda p: made(p, tau), x), atol=1e-6, rtol=1e-6)
    assert not torch.allclose(made(x, tau), made(x, 1 - tau))


def test_closed_levels_are_zero_and_open_ones_unchanged():
    made, x = encoding(SPEC), points()
    everything = made(x)
    made.open_levels = 2
    width = 2 * SPEC.features
    for features in (made(x), made.with_jacobian(x)[0]):
        assert torch.equal(features[:, :width], everything[:, :width])
        assert not features[:, width:].any()
    assert not made.with_jacobian(x)[1][..., width:].any()


def test_fresh_features_are_small_enough_not_to_move_a_surface():
    made = HashEncoding(SPEC)
    features = made(torch.rand(100, 3) * 2 - 1)
    assert 0 < features.abs().max() <= 1e-4
    assert made.width == features.shape[1] == SPEC.width
