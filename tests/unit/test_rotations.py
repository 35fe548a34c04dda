import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from instant_nk.geometry.rotations import project_to_so3, skew, so3_exp, so3_log

angles = st.floats(-3.0, 3.0)


@settings(max_examples=60, deadline=None)
@given(angles, angles, angles)
def test_the_logarithm_undoes_the_exponential(x, y, z):
    omega = torch.tensor([x, y, z], dtype=torch.float64)
    omega = omega * min(1.0, 3.1 / max(float(omega.norm()), 1e-9))
    torch.testing.assert_close(so3_log(so3_exp(omega)), omega, atol=1e-7, rtol=1e-7)


def test_the_exponential_is_a_rotation_by_the_vector_about_itself():
    omega = torch.tensor([[0.0, 0.0, math.pi / 2], [0.0, 0.0, 0.0], [1e-5, 0, 0]], dtype=torch.float64)
    rotation = so3_exp(omega)
    torch.testing.assert_close(rotation[0] @ torch.tensor([1.0, 0, 0], dtype=torch.float64), torch.tensor([0.0, 1, 0], dtype=torch.float64), atol=1e-12, rtol=0)
    assert torch.equal(rotation[1], torch.eye(3, dtype=torch.float64))
    torch.testing.assert_close(rotation @ rotation.transpose(-1, -2), torch.eye(3, dtype=torch.float64).expand(3, 3, 3), atol=1e-14, rtol=0)
    torch.testing.assert_close(rotation[2, 2, 1], torch.tensor(1e-5, dtype=torch.float64), atol=1e-15, rtol=0)


def test_the_exponential_is_smooth_where_the_series_takes_over():
    size = torch.tensor([0.99e-2, 1.01e-2], dtype=torch.float64)
    direction = torch.nn.functional.normalize(torch.tensor([1.0, 2.0, -1.0], dtype=torch.float64), dim=0)
    for angle in size:
        expected = torch.matrix_exp(skew(angle * direction))
        torch.testing.assert_close(so3_exp(angle * direction), expected, atol=1e-13, rtol=0)


def test_half_turns_have_a_logarithm():
    for axis in torch.eye(3, dtype=torch.float64):
        omega = so3_log(so3_exp(math.pi * axis))
        torch.testing.assert_close(omega.abs(), math.pi * axis, atol=1e-7, rtol=0)


def test_projection_gives_the_nearest_rotation_and_never_a_mirror():
    rotation = so3_exp(torch.tensor([0.3, -1.0, 0.5], dtype=torch.float64))
    torch.testing.assert_close(project_to_so3(2.5 * rotation), rotation, atol=1e-12, rtol=0)
    mirror = project_to_so3(torch.diag(torch.tensor([1.0, 1.0, -0.1], dtype=torch.float64)))
    assert float(torch.linalg.det(mirror)) > 0.999
    batch = project_to_so3(torch.randn(7, 3, 3, dtype=torch.float64))
    torch.testing.assert_close(batch @ batch.transpose(-1, -2), torch.eye(3, dtype=torch.float64).expand(7, 3, 3), atol=1e-12, rtol=0)
    assert (torch.linalg.det(batch) > 0).all()
