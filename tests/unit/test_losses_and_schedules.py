"""Loss terms with known values, and schedules at their ends."""

import pytest
import torch

from instant_nk.fitting import losses, schedules


def test_the_right_picture_costs_nothing_over_any_background():
    target, alpha, background = torch.rand(20, 3), torch.rand(20), torch.rand(20, 3)
    assert losses.photometric(target * alpha[:, None], alpha, target, alpha, background).item() == pytest.approx(0, abs=1e-6)


def test_a_missing_subject_costs_what_the_background_differs_from_it():
    """Huber with corner 0.1, times ten: a difference of 0.5 in every channel costs 10 * 0.1 * (0.5 - 0.05)."""
    black, white = torch.zeros(4, 3), torch.ones(4, 3)
    cost = losses.photometric(black, torch.zeros(4), white * 0.5, torch.ones(4), white)
    assert cost.item() == pytest.approx(0.45)


def test_the_mask_term_is_small_when_right_large_when_wrong_and_never_infinite():
    alpha = torch.tensor([0.0, 1.0])
    assert losses.mask(alpha, alpha).item() == pytest.approx(1e-3, rel=0.01)
    assert losses.mask(1 - alpha, alpha).item() == pytest.approx(6.9, rel=0.01)


def test_the_eikonal_term_is_zero_for_unit_gradients_and_has_a_gradient_at_zero_length():
    assert losses.eikonal(torch.nn.functional.normalize(torch.randn(50, 3), dim=1)).mean().item() < 1e-10
    assert losses.eikonal(torch.tensor([[3.0, 0, 0], [0, 0, 0]])).mean().item() == pytest.approx(2.5)
    flat = torch.zeros(2, 3, requires_grad=True)
    losses.eikonal(flat).mean().backward()
    assert torch.isfinite(flat.grad).all()


@pytest.mark.parametrize("steps", [1, 8, 700])
def test_step_sizes_rise_stay_and_fall_to_three_percent(steps):
    factors = [schedules.learning_rate(step, steps) for step in range(steps)]
    assert all(0 < f <= 1 for f in factors)
    if steps == 700:
        assert factors[0] == pytest.approx(1 / 21) and factors[20:526] == [1.0] * 506
        assert factors[-1] == pytest.approx(0.03 ** (174 / 175)) and factors == factors[:526] + sorted(factors[526:], reverse=True)


@pytest.mark.parametrize("levels", [1, 2, 8])
def test_levels_open_from_half_to_all(levels):
    opened = [schedules.open_levels(step, 100, levels) for step in range(100)]
    assert opened[0] == max(1, levels // 2) and opened[30:] == [levels] * 70 and opened == sorted(opened)


def test_annealing_ends_after_a_fifth():
    assert schedules.anneal(0, 100) == 0 and schedules.anneal(10, 100) == 0.5 and schedules.anneal(20, 100) == schedules.anneal(99, 100) == 1
    assert schedules.anneal(0, 1) == 0
