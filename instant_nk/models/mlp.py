"""A network of one hidden layer with its input derivative in closed form, so that normals need no second backward pass."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from instant_nk.kernels import deep_network, field_network
from instant_nk.kernels.ahead import Call
from instant_nk.kernels.field_network import activation


class Network(nn.Module):
    """What networks share: their matrix products may be computed in bfloat16, where the result need not be finer.

    Attributes:
        may_mix: whether bfloat16, 8 bits of mantissa, is fine enough for what this network says.
        mixed: whether it is used now; inputs and outputs are float32 either way.
    """

    def __init__(self, may_mix: bool):
        super().__init__()
        self.may_mix, self.mixed = may_mix, False

    def precision(self, x: Tensor) -> AbstractContextManager:
        """Within, matrix products run as `mixed` says."""
        return torch.autocast(x.device.type, torch.bfloat16, enabled=self.mixed)


def set_mixed(modules: nn.Module, on: bool) -> None:
    """Let all networks among the modules that allow it compute in bfloat16, or none."""
    for module in modules.modules():
        if isinstance(module, Network):
            module.mixed = on and module.may_mix


class Mlp(Network):
    """inputs -> hidden (squareplus) -> outputs.

    Args:
        scale: factor on the initial output weights; small values start the network near zero.
        may_mix: see `Network`. A signed distance must not: 8 bits of it are a visible step of the surface.
    """

    def __init__(self, inputs: int, hidden: int, outputs: int, scale: float = 1.0, may_mix: bool = False):
        super().__init__(may_mix)
        self.first = nn.Linear(inputs, hidden)
        self.last = nn.Linear(hidden, outputs)
        with torch.no_grad():
            self.last.weight.mul_(scale)
            self.last.bias.mul_(scale)

    def forward(self, x: Tensor) -> Tensor:
        with self.precision(x):
            return self.last(activation(self.first(x))[0]).to(x.dtype)

    def with_gradient(self, x: Tensor, outputs: int = 1) -> tuple[Tensor, Tensor]:
        """All outputs [N, O] and the gradient [N, outputs, inputs] of the first `outputs` of them with respect to x."""
        with self.precision(x):
            hidden, slope = activation(self.first(x))
            weight = self.last.weight[:outputs]
            gradient = ((slope * weight) @ self.first.weight)[:, None] if outputs == 1 else (slope[:, None] * weight) @ self.first.weight
            return self.last(hidden).to(x.dtype), gradient.to(x.dtype)

    def along_space(self, x: Tensor, features: Tensor, jacobian: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs [N, O] of the inputs [x, features] and their spatial gradient [N, O, 3]; differentiable once.

        Args:
            x: points [N, 3], or points and times [N, 4].
            features: functions of the point [N, K].
            jacobian: their spatial derivative [N, 3, K].
        """
        if not self.mixed:
            return field_network.network(x, features, jacobian, self.first.weight, self.first.bias, self.last.weight, self.last.bias)
        out, slope = self.with_gradient(torch.cat([x, features], -1), self.last.out_features)
        return out, slope[..., :3] + torch.einsum("nok,ndk->nod", slope[..., x.shape[1] :], jacobian)

    def of_points(self, x: Tensor, features: Tensor) -> Tensor:
        """Outputs [N, O] of the inputs [x, features], as `along_space`'s; differentiable once."""
        if not self.mixed:
            return field_network.values(x, features, self.first.weight, self.first.bias, self.last.weight, self.last.bias)
        return self(torch.cat([x, features], -1))

    def rehearsals(self, points: int, to_x: bool, to_features: bool, to_weights: bool, gradient: bool = True) -> list[Call]:
        """What `along_space` of points with `points` columns launches, and its gradients: see `kernels.ahead`. Without `gradient`: `of_points`."""
        sizes = self.first.in_features - points, self.first.out_features, self.last.out_features
        return field_network.rehearsals(points, *sizes, self.first.weight.device, to_x, to_features, to_weights, gradient)


class DeepMlp(Network):
    """inputs -> hidden -> hidden -> outputs with ReLU."""

    def __init__(self, inputs: int, hidden: int, outputs: int, may_mix: bool = False):
        super().__init__(may_mix)
        self.layers = nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, outputs))

    def forward(self, near: Tensor, features: Tensor, shift: Tensor | None = None) -> Tensor:
        """Outputs [N, O] of the inputs [near, features]; `shift` [N, hidden] is added before the first activation."""
        if not self.mixed and shift is None:
            return deep_network.network(near, features, *self.parameters())
        with self.precision(near):
            first = self.layers[0](torch.cat([near, features], -1))
            return self.layers[1:](first if shift is None else first + shift).to(near.dtype)

    def rehearsals(self, near: int, to_near: bool, to_features: bool, to_weights: bool) -> list[Call]:
        """What inputs with `near` columns before the features launch, and their gradients: see `kernels.ahead`."""
        weight, outputs = self.layers[0].weight, self.layers[-1].out_features
        return deep_network.rehearsals(near, weight.shape[1] - near, len(weight), outputs, weight.device, to_near, to_features, to_weights)
