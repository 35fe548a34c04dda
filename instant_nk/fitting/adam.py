"""Adam (Kingma and Ba 2015) by torch's own function. `torch.optim.Adam` is the same behind a class whose first use imports torch's compiler: seconds in every job."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim.adam import adam


class Adam:
    """Fused Adam over groups of parameters.

    Args:
        groups: each with its `params` and `lr`, and `eps` where it is not 1e-8.

    Attributes:
        param_groups: the groups; step sizes may be changed between steps.
        state: of each parameter that has had a gradient: `step`, `exp_avg` and `exp_avg_sq`, by its number in the order of the groups.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], betas: tuple[float, float]):
        self.param_groups = [{"eps": 1e-8, **group, "params": list(group["params"])} for group in groups]
        self.betas = betas
        self.state: dict[int, dict[str, Tensor]] = {}

    @torch.no_grad()
    def step(self) -> None:
        """Move every parameter that has a gradient."""
        number = 0
        for group in self.param_groups:
            moved = [(number + i, p) for i, p in enumerate(group["params"]) if p.grad is not None]
            number += len(group["params"])
            states = [self._state(index, parameter) for index, parameter in moved]
            adam(
                [p for _, p in moved], [p.grad for _, p in moved],
                [s["exp_avg"] for s in states], [s["exp_avg_sq"] for s in states], [], [s["step"] for s in states],
                fused=True, amsgrad=False, beta1=self.betas[0], beta2=self.betas[1], lr=group["lr"], weight_decay=0.0, eps=group["eps"], maximize=False,
            )  # fmt: skip

    def _state(self, index: int, parameter: Tensor) -> dict[str, Tensor]:
        if index not in self.state:
            zeros = [torch.zeros_like(parameter, memory_format=torch.preserve_format) for _ in range(2)]
            self.state[index] = {"step": torch.zeros((), device=parameter.device), "exp_avg": zeros[0], "exp_avg_sq": zeros[1]}
        return self.state[index]

    def clear(self) -> None:
        """Forget all gradients."""
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None
