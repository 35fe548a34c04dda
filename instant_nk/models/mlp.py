"""A network of one hidden layer with its input derivative in closed form, so that normals need no second backward pass."""

from __future__ import annotations

import torch
from torch import Tensor, nn

SMOOTHING = 1e-3  # of the activation's corner: its derivative stays continuous, so curvature and eikonal terms are defined


def activation(a: Tensor) -> tuple[Tensor, Tensor]:
    """Squareplus, a smooth ReLU: (a + sqrt(a^2 + s)) / 2 (Barron 2021), and its derivative."""
    root = torch.sqrt(a * a + SMOOTHING)
    return 0.5 * (a + root), 0.5 * (1 + a / root)


class Mlp(nn.Module):
    """inputs -> hidden (squareplus) -> outputs.

    Args:
        scale: factor on the initial output weights; small values start the network near zero.
    """

    def __init__(self, inputs: int, hidden: int, outputs: int, scale: float = 1.0):
        super().__init__()
        self.first = nn.Linear(inputs, hidden)
        self.last = nn.Linear(hidden, outputs)
        with torch.no_grad():
            self.last.weight.mul_(scale)
            self.last.bias.mul_(scale)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(activation(self.first(x))[0])

    def with_gradient(self, x: Tensor, outputs: int = 1) -> tuple[Tensor, Tensor]:
        """All outputs [N, O] and the gradient [N, outputs, inputs] of the first `outputs` of them with respect to x."""
        hidden, slope = activation(self.first(x))
        weight = self.last.weight[:outputs]
        if outputs == 1:
            return self.last(hidden), ((slope * weight) @ self.first.weight)[:, None]
        return self.last(hidden), (slope[:, None] * weight) @ self.first.weight


class DeepMlp(nn.Module):
    """inputs -> hidden -> hidden -> outputs with ReLU."""

    def __init__(self, inputs: int, hidden: int, outputs: int):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, outputs))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)
