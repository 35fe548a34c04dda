"""How step sizes, levels and annealing change over training; pure functions of the step."""

from __future__ import annotations


def learning_rate(step: int, steps: int) -> float:
    """Factor on the step size: linear warm-up over 3 %, constant to three quarters, then exponential to 3 %.

    Late, because short trainings carve their surface until the end.
    """
    warm = max(1, int(0.03 * steps))
    if step < warm:
        return (step + 1) / warm
    decay = max(0.0, (step - 0.75 * steps) / (0.25 * steps))
    return 0.03**decay


def open_levels(step: int, steps: int, levels: int) -> int:
    """Levels of the hash grid in use: half at the start, all after 30 % of the steps."""
    first = max(1, levels // 2)
    return min(levels, first + int((levels - first) * step / max(0.3 * steps, 1)))


def anneal(step: int, steps: int) -> float:
    """Cosine annealing of NeuS: 0 -> 1 over the first 20 %."""
    return min(1.0, step / max(0.2 * steps, 1))
