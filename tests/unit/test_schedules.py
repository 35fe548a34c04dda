"""Schedules at their ends."""

import pytest

from instant_nk.fitting import schedules


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
