"""Hash encoding: known answers, invariants, gradients to second order, agreement of backends, messages."""

import pytest
import torch

from instant_nk.kernels import hash_encoding
from instant_nk.kernels.hash_encoding import HashSpec, reference
from tests import parity, tolerances


def test_a_level_is_dense_exactly_when_its_corners_fit_the_table():
    spec = HashSpec(3, 2, 9, ((7, 7, 7), (8, 7, 7)))
    assert spec.dense == (True, False)
    assert spec.offsets == (0, 512) and spec.table_rows == 1024


def test_resolutions_grow_geometrically_and_time_keeps_its_own():
    spec = HashSpec.geometric(3, 2, 10, 4, 16, times=(2, 2, 5))
    assert spec.resolutions == ((4, 4, 4, 2), (8, 8, 8, 2), (16, 16, 16, 5))


def test_a_dense_level_interpolates_its_corners_with_x_fastest():
    spec = HashSpec(3, 1, 10, ((2, 3, 4),))
    table = torch.arange(spec.table_rows, dtype=torch.float64)[:, None]
    corner = torch.tensor([[0.5, 1 / 3, 0.25]], dtype=torch.float64)  # corner (1, 1, 1): row 1 + 3 * 1 + 12 * 1
    middle = corner + torch.tensor([[0.25, 0.0, 0.0]], dtype=torch.float64)
    assert hash_encoding.encode(corner, table, spec).item() == pytest.approx(16)
    assert hash_encoding.encode(middle, table, spec).item() == pytest.approx(16.5)


def test_a_hashed_row_is_its_blocks_hash_and_its_place_in_the_block():
    spec = HashSpec(3, 1, 10, ((40, 40, 40),))
    rows, _, _ = reference.corners(torch.tensor([[3.5 / 40, 4.5 / 40, 7.5 / 40]]), spec, 0)
    block = (1 ^ (2 * 2654435761) ^ (3 * 805459861)) % 128
    assert rows[0, 0] == 8 * block + 1 + 0 + 4
    assert rows[0, 2] == rows[0, 0] + 2  # one step along y, in the same block
    assert rows[0, 1] == 8 * ((2 ^ (2 * 2654435761) ^ (3 * 805459861)) % 128) + 0 + 0 + 4  # one step along x, in the next


def test_the_corners_of_a_block_lie_side_by_side():
    spec = HashSpec(4, 1, 12, ((40, 40, 40, 20),))
    rows, _, _ = reference.corners(torch.tensor([[4.5 / 40, 8.5 / 40, 20.5 / 40, 6.5 / 20]]), spec, 0)
    assert rows[0, 0] % 16 == 0 and torch.equal(rows[0], rows[0, 0] + torch.arange(16))


def test_a_constant_table_encodes_to_the_constant_with_no_slope():
    spec = parity.hash_spec(4)
    features, jacobian = hash_encoding.encode_with_jacobian(torch.rand(50, 4), torch.full((spec.table_rows, 2), 3.0), spec)
    torch.testing.assert_close(features, torch.full_like(features, 3.0))
    assert float(jacobian.abs().max()) < 1e-3


@pytest.mark.parametrize("x", [0.0, 1.0])
def test_the_corners_of_the_cube_are_inside(x):
    spec = parity.hash_spec(3)
    found = hash_encoding.encode(torch.full((1, 3), x), torch.ones(spec.table_rows, 2), spec)
    torch.testing.assert_close(found, torch.ones_like(found))


def test_closed_levels_are_zero_and_receive_no_gradient():
    spec = parity.hash_spec(3)
    table = torch.randn(spec.table_rows, 2, requires_grad=True)
    features = hash_encoding.encode(torch.rand(20, 3), table, spec, open_levels=2)
    assert bool((features[:, 4:] == 0).all()) and bool((features[:, :4] != 0).any())
    (gradient,) = torch.autograd.grad(features.sum(), table)
    assert bool((gradient[spec.offsets[2] :] == 0).all())


def test_the_level_mask_scales_features_and_jacobian_alike():
    spec, mask = parity.hash_spec(3), torch.tensor([1.0, 1.0, 0.5, 0.0])
    x, table = torch.rand(20, 3), torch.randn(parity.hash_spec(3).table_rows, 2)
    plain, masked = hash_encoding.encode_with_jacobian(x, table, spec), hash_encoding.encode_with_jacobian(x, table, spec, mask)
    for a, b in zip(plain, masked, strict=True):
        torch.testing.assert_close(a * mask.repeat_interleave(2), b)


@pytest.mark.parametrize("create_graph", [False, True])
def test_asking_for_the_positions_gradient_does_not_compute_the_tables(monkeypatch, create_graph):
    spec = parity.hash_spec(3)
    x, table = torch.rand(5, 3, dtype=torch.float64, requires_grad=True), torch.randn(spec.table_rows, 2, dtype=torch.float64, requires_grad=True)
    features = hash_encoding.encode(x, table, spec).sum() + sum(out.sum() for out in hash_encoding.encode_with_jacobian(x, table, spec))
    (expected,) = torch.autograd.grad(features, x, retain_graph=True)
    monkeypatch.setattr(reference, "table_grad", None)
    (found,) = torch.autograd.grad(features, x, create_graph=create_graph, retain_graph=True)
    assert torch.equal(found, expected)
    with pytest.raises(TypeError):
        features.backward()


@pytest.mark.parametrize("dims", [3, 4])
def test_gradients_of_the_reference_agree_with_finite_differences_to_second_order(dims):
    spec = HashSpec(dims, 2, 4, ((2,) * dims, (5,) * dims))
    x = parity.points_off_borders(2, spec).double().requires_grad_()
    table = torch.randn(spec.table_rows, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, t: hash_encoding.encode_with_jacobian(x, t, spec), (x, table))
    assert torch.autograd.gradcheck(lambda x, t: hash_encoding.encode(x, t, spec), (x, table))
    assert torch.autograd.gradgradcheck(lambda x, t: hash_encoding.encode(x, t, spec), (x, table))


@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize("points", [0, 1, 63, 1000])
@pytest.mark.parametrize(("dims", "features"), [(3, 2), (4, 2), (3, 1), (4, 4)])
def test_the_cpu_backend_agrees_with_the_reference(points, dims, features, strided):
    for case in parity.hash_encoding_cases(points, dims, features).values():
        parity.check(case, "cpu", "auto", strided)


def test_open_levels_agree_with_the_reference():
    for case in parity.hash_encoding_cases(63, 3, open_levels=3).values():
        parity.check(case, "cpu", "auto")


def test_points_on_cell_borders_have_the_reference_features():
    """The encoding is continuous: on a border either cell gives the same features, though not the same slope."""
    spec = parity.hash_spec(3)
    x = torch.randint(0, 31, (200, 3)) / 30
    table = torch.randn(spec.table_rows, 2)
    truth = reference.forward(x.double(), table.double(), spec, spec.levels, False)[0]
    found = hash_encoding.encode(x, table, spec)
    assert float((found - truth).norm() / truth.norm()) < tolerances.HASH


def test_a_wrong_argument_is_named():
    spec = parity.hash_spec(3)
    with pytest.raises(ValueError, match=r"hash_encoding: x must be \[N, 3\], got \[5, 4\]"):
        hash_encoding.encode(torch.rand(5, 4), torch.rand(spec.table_rows, 2), spec)
    with pytest.raises(TypeError, match="x must be float32 or float64, got torch.float16"):
        hash_encoding.encode(torch.rand(5, 3).half(), torch.rand(spec.table_rows, 2), spec)
    with pytest.raises(ValueError, match="dims must be 3 or 4, got 2"):
        HashSpec(2, 2, 10, ((4, 4),))
