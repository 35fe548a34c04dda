"""What rays owe their images: known values, gradients, what is refused. (Triton's: test_kernels_triton_interpreted.py.)"""

import pytest
import torch

from instant_nk.kernels import ray_loss
from instant_nk.kernels.ray_loss import reference
from tests import parity


def test_the_right_picture_costs_nothing_over_any_background():
    target, alpha, background = torch.rand(20, 3), torch.rand(20), torch.rand(20, 3)
    colour, _, error = ray_loss.means(target * alpha[:, None], alpha, target, alpha, background)
    assert colour.item() == pytest.approx(0, abs=1e-6) and error.item() == pytest.approx(0, abs=1e-6)


def test_a_missing_subject_costs_what_the_background_differs_from_it():
    """Huber with corner 0.1, times ten: a difference of 0.5 in every channel costs 10 * 0.1 * (0.5 - 0.05)."""
    black, white = torch.zeros(4, 3), torch.ones(4, 3)
    colour, _, error = ray_loss.means(black, torch.zeros(4), white * 0.5, torch.ones(4), white)
    assert colour.item() == pytest.approx(0.45) and error.item() == pytest.approx(0.25)


def test_the_mask_term_is_small_when_right_large_when_wrong_and_never_infinite():
    alpha, black = torch.tensor([0.0, 1.0]), torch.zeros(2, 3)
    assert ray_loss.means(black, alpha, black, alpha, black)[1].item() == pytest.approx(1e-3, rel=0.01)
    assert ray_loss.means(black, 1 - alpha, black, alpha, black)[1].item() == pytest.approx(6.9, rel=0.01)


def test_gradients_of_the_reference_agree_with_finite_differences():
    case = parity.ray_loss_cases(9)["ray loss"]
    inputs = {name: value.double() for name, value in case.floats.items()}
    free = [inputs.pop(name).requires_grad_() for name in ("rgb", "opacity")]
    assert torch.autograd.gradcheck(lambda rgb, opacity: reference.means(rgb, opacity, **inputs)[:2], free)


@pytest.mark.parametrize("rays", [1, 500])
def test_float32_agrees_with_float64(rays):
    for case in parity.ray_loss_cases(rays).values():
        parity.check(case, "cpu", "auto")


def test_a_wrong_shape_is_named():
    row = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"ray_loss: alpha must have shape \[2\]; got \[3\]"):
        ray_loss.means(row, torch.zeros(2), row, torch.zeros(3), row)
