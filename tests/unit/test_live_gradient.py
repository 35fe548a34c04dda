"""The gradient seen in live space: known answers, its own gradients, what it refuses. (Triton's: test_kernels_triton_interpreted.py.)"""

import pytest
import torch

from instant_nk.kernels import live_gradient
from instant_nk.kernels.live_gradient import reference
from tests import parity


def test_it_is_the_gradient_of_the_composed_map():
    """sdf(x' + r(x')) with x' = W^-1(x), all linear: the gradient with respect to x by autograd."""
    warp = torch.eye(3, dtype=torch.float64) + 0.2 * torch.randn(3, 3, dtype=torch.float64)
    stretch, g = 0.3 * torch.randn(3, 3, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    live = torch.randn(3, dtype=torch.float64, requires_grad=True)
    canonical = torch.linalg.solve(warp, live)
    (wanted,) = torch.autograd.grad(g @ (canonical + stretch @ canonical), live)
    found, usable = live_gradient.carry(g[None], stretch[None], warp[None])
    torch.testing.assert_close(found[0], wanted)
    assert usable.tolist() == [True]


def test_where_the_warp_is_singular_the_gradient_stays_and_is_marked():
    g = torch.randn(4, 3)
    found, usable = live_gradient.carry(g, torch.zeros(4, 3, 3), torch.zeros(4, 3, 3))
    assert torch.equal(found, g) and not usable.any()


def test_gradients_of_the_reference_agree_with_finite_differences():
    inputs = [value.double().requires_grad_() for value in parity.live_gradient_cases(13)["live gradient"].floats.values()]
    assert torch.autograd.gradcheck(lambda g, s: reference.carry(g, s, inputs[2].detach())[0], inputs[:2])


@pytest.mark.parametrize("samples", [0, 1, 500])
def test_float32_agrees_with_float64(samples):
    for case in parity.live_gradient_cases(samples).values():
        parity.check(case, "cpu", "auto")


def test_a_wrong_shape_is_named():
    with pytest.raises(ValueError, match=r"live_gradient: stretch must have shape \[2, 3, 3\]; got \[3, 3\]"):
        live_gradient.carry(torch.zeros(2, 3), torch.zeros(3, 3), torch.zeros(2, 3, 3))
