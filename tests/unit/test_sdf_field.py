"""The neural signed distance field: it starts at the visual hull, its gradient is exact, and it can be built again."""

import numpy as np
import pytest
import torch

from instant_nk.models.sdf_field import SdfField, Sharpness, hull_distance
from tests.unit.neural_fixtures import SPEC, ball, slope, stir, surface_field, voxels


def block(resolution=32):
    """A box that is different along every axis and off-centre: x in [0, 0.25], y in [-0.5, 0.25], z in [-0.75, 0.75]."""
    occupied = np.zeros((resolution,) * 3, bool)
    cells = [round((edge + 1) * resolution / 2) for edge in (0, 0.25, -0.5, 0.25, -0.75, 0.75)]
    occupied[cells[0] : cells[1], cells[2] : cells[3], cells[4] : cells[5]] = True
    return occupied


def test_the_hull_distance_is_negative_inside_and_positive_outside():
    occupied = block()
    distance = hull_distance(occupied)
    assert distance.shape == (33, 33, 33) and distance.dtype == np.float32
    whole = np.pad(occupied, 1)
    corners = np.stack([whole[i : i + 33, j : j + 33, k : k + 33] for i in (0, 1) for j in (0, 1) for k in (0, 1)])
    assert (distance[corners.all(0)] < 0).all()
    assert (distance[~corners.any(0)] > 0).all()


def test_the_hull_distance_of_a_ball_is_that_of_the_ball_within_a_voxel():
    axis = torch.linspace(-1, 1, 33)
    corners = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
    error = np.abs(hull_distance(voxels(ball)).ravel() - ball(corners).numpy())
    assert error[ball(corners).abs().numpy() < 0.3].max() < 2 / 32
    assert error[ball(corners).abs().numpy() < 0.05].mean() < 0.5 / 32


def test_the_hull_distance_near_the_hull_is_that_of_the_whole_grid_and_grows_beyond():
    from scipy.ndimage import distance_transform_edt, gaussian_filter

    rng = np.random.default_rng(0)
    for occupied in (block(64), rng.random((40, 40, 40)) > 0.999):
        n = len(occupied)
        whole = np.where(occupied, 0.5 - distance_transform_edt(occupied), distance_transform_edt(~occupied) - 0.5) * 2 / n
        whole = np.pad(gaussian_filter(whole, 0.7), 1, mode="edge")
        wanted = sum(whole[i : i + n + 1, j : j + n + 1, k : k + n + 1] for i in (0, 1) for j in (0, 1) for k in (0, 1)) / 8
        found, near = hull_distance(occupied), wanted < 4 * 2 / n
        np.testing.assert_allclose(found[near], wanted[near], atol=1e-6)
        assert (found > wanted - 2 / n).all() and (found < 2 * wanted + 12 * 2 / n).all()


def test_an_empty_hull_is_outside_everywhere_and_a_full_one_inside():
    assert (hull_distance(np.zeros((8, 8, 8), bool)) > 0).all()
    assert (hull_distance(np.ones((8, 8, 8), bool)) < 0).all()


def test_a_fresh_field_is_the_hulls_distance_with_its_axes_in_order():
    field = SdfField(SPEC, 16, 32)
    field.start_from(hull_distance(block()))
    inside = torch.tensor([[0.12, -0.1, 0.0], [0.12, -0.3, 0.6], [0.12, 0.1, -0.6]])
    outside = torch.tensor([[-0.15, -0.1, 0.0], [0.12, 0.45, 0.0], [0.4, 0.1, 0.0], [0.12, -0.7, 0.0], [0.6, 0.1, 0.12], [0.0, 0.0, 0.95]])
    assert (field(inside) < 0).all() and (field(outside) > 0).all()
    with torch.no_grad():
        for parameter in field.mlp.parameters():
            parameter.zero_()
    index = torch.tensor([[3, 20, 7], [16, 16, 16], [32, 0, 5], [18, 12, 30]])
    expected = torch.from_numpy(hull_distance(block()))[index[:, 0], index[:, 1], index[:, 2]]
    torch.testing.assert_close(field(index / 16 - 1), expected, atol=1e-6, rtol=0)


def test_the_initial_correction_moves_the_surface_by_less_than_a_tenth_of_the_box():
    x = torch.rand(1000, 3) * 2 - 1
    field = SdfField(SPEC, 64, 32)  # no hull: the base is zero
    assert field(x).abs().max() < 0.2


def test_the_gradient_agrees_with_finite_differences():
    field = surface_field(ball)
    stir(field.encoding, 0.3)
    stir(field.mlp, 0.3)
    field, x = field.double(), torch.rand(60, 3, dtype=torch.float64) * 1.8 - 0.9
    sdf, gradient, features = field.with_gradient(x)
    torch.testing.assert_close(sdf, field(x))
    torch.testing.assert_close(features, field.encoding(x))
    torch.testing.assert_close(gradient, slope(field, x), atol=1e-6, rtol=1e-6)


def test_in_single_precision_the_gradient_is_that_of_double_precision():
    field = surface_field(ball)
    stir(field.encoding, 0.3)
    stir(field.mlp, 0.3)
    x = torch.rand(200, 3) * 1.8 - 0.9
    single = field.with_gradient(x)[1]
    double = field.double().with_gradient(x.double())[1]
    torch.testing.assert_close(single.double(), double, atol=2e-4, rtol=2e-4)


def test_an_eikonal_loss_has_exact_gradients_for_the_table_and_the_network():
    field = surface_field(ball).double()
    stir(field.encoding, 0.3)
    x = torch.rand(30, 3, dtype=torch.float64) * 1.8 - 0.9

    def loss():
        return ((field.with_gradient(x)[1].norm(dim=1) - 1) ** 2).mean()

    parameters = [field.encoding.table, field.mlp.first.weight, field.mlp.last.weight]
    for parameter, gradient in zip(parameters, torch.autograd.grad(loss(), parameters)):
        flat = gradient.abs().argmax().item()
        row = tuple(int(i) for i in np.unravel_index(flat, parameter.shape))
        values = []
        for step in (1e-5, -2e-5):
            with torch.no_grad():
                parameter[row] += step
                values.append(loss())
        torch.testing.assert_close(gradient[row], (values[0] - values[1]) / 2e-5, rtol=1e-4, atol=1e-8)


def test_a_description_and_the_state_build_the_same_field():
    field, x = surface_field(ball), torch.rand(50, 3) * 2 - 1
    again = SdfField.build(field.describe())
    again.load_state_dict(field.state_dict())
    assert torch.equal(again(x), field(x))
    assert again.describe() == field.describe()


@pytest.mark.parametrize("initial", [1.0, 64.0, 2000.0])
def test_sharpness_starts_where_it_is_told(initial):
    sharpness = Sharpness(initial)
    assert sharpness().item() == pytest.approx(initial, rel=1e-5)
    sharpness().backward()
    assert sharpness.v.grad.item() == pytest.approx(10 * initial, rel=1e-5)
