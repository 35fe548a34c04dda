"""A small network over encoded points, with the spatial derivative of its outputs: one hidden layer, in one pass over the samples.

The inputs are a point (and its time) and features of that point whose spatial derivative is known, so the derivative of the outputs
follows in closed form. First-order differentiable in all seven arguments; a second derivative is refused (the reference backend alone has it).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from instant_nk.kernels import _backend, _checks
from instant_nk.kernels.ahead import Call
from instant_nk.kernels.field_network import reference
from instant_nk.kernels.field_network.reference import activation

__all__ = ["activation", "network", "rehearsals", "values"]

OP = "field_network"
LARGEST = {"hidden": 128, "features": 64, "outputs": 16}  # what one Triton program holds


def network(
    x: Tensor, features: Tensor, jacobian: Tensor, first_weight: Tensor, first_bias: Tensor, last_weight: Tensor, last_bias: Tensor
) -> tuple[Tensor, Tensor]:
    """Outputs of squareplus(W1 [x, features] + b1) W2 + b2 and their derivative along the three axes of space.

    Args:
        x: points and, optionally, their times, which are not differentiated along. Float [samples, 3 or 4].
        features: functions of x. Float [samples, features].
        jacobian: their derivative along each axis. Float [samples, 3, features].
        first_weight: W1, columns of x before those of the features. Float [hidden, 3 or 4 + features].
        first_bias: Float [hidden].
        last_weight: W2. Float [outputs, hidden].
        last_bias: Float [outputs].

    Returns:
        outputs [samples, outputs] and gradient [samples, outputs, 3], per unit of x.
    """
    _check(x, features, jacobian, first_weight, first_bias, last_weight, last_bias)
    inputs = x, features, jacobian, first_weight, first_bias, last_weight, last_bias
    if _backend.choose(OP, *inputs, problem=_odd(features, last_weight)) == "reference":
        return reference.network(*inputs)
    return _Network.apply(*inputs)


def values(x: Tensor, features: Tensor, first_weight: Tensor, first_bias: Tensor, last_weight: Tensor, last_bias: Tensor) -> Tensor:
    """The outputs of `network` alone, [samples, outputs], where their derivative is not wanted. Arguments as there."""
    _check(x, features, None, first_weight, first_bias, last_weight, last_bias)
    inputs = x, features, first_weight, first_bias, last_weight, last_bias
    if _backend.choose(OP, *inputs, problem=_odd(features, last_weight)) == "reference":
        return reference.values(*inputs)
    return _Network.apply(x, features, None, *inputs[2:])[0]


def _check(x: Tensor, features: Tensor, jacobian: Tensor | None, first_weight: Tensor, first_bias: Tensor, last_weight: Tensor, last_bias: Tensor) -> None:
    _checks.tensor(OP, "x", x, ("samples", "3 or 4"))
    if x.shape[1] not in (3, 4):
        raise ValueError(f"{OP}: x must have shape [samples, 3 or 4]; got {list(x.shape)}.")
    _checks.tensor(OP, "features", features, (len(x), "features"), like=x)
    if jacobian is not None:
        _checks.tensor(OP, "jacobian", jacobian, (len(x), 3, features.shape[1]), like=x)
    _checks.tensor(OP, "first_weight", first_weight, ("hidden", x.shape[1] + features.shape[1]), like=x)
    _checks.tensor(OP, "first_bias", first_bias, (len(first_weight),), like=x)
    _checks.tensor(OP, "last_weight", last_weight, ("outputs", len(first_weight)), like=x)
    _checks.tensor(OP, "last_bias", last_bias, (len(last_weight),), like=x)


def _odd(features: Tensor, last_weight: Tensor) -> str | None:
    """What about the sizes Triton's code cannot take."""
    sizes = {"hidden": last_weight.shape[1], "features": features.shape[1], "outputs": len(last_weight)}
    return next((f"it takes 1 to {LARGEST[name]} {name}, got {size}" for name, size in sizes.items() if not 0 < size <= LARGEST[name]), None)


def rehearsals(
    points: int, features: int, hidden: int, outputs: int, device: torch.device | str, to_x: bool, to_features: bool, to_weights: bool, gradient: bool = True
) -> list[Call]:
    """One launch, on a single sample, of each Triton kernel behind a network and the gradients it will be asked for: see `kernels.ahead`.

    Args:
        points: columns of x, 3 or 4.
        to_features: whether features and Jacobian are differentiated.
        gradient: of `network`; otherwise of `values`.
    """

    def inputs() -> tuple[Tensor, ...]:
        shapes = (1, points), (1, features), (1, 3, features), (hidden, points + features), (hidden,), (outputs, hidden), (outputs,)
        made = [torch.zeros(shape, device=device) for shape in shapes]
        return tuple(made) if gradient else (*made[:2], None, *made[3:])

    def forward() -> None:
        from instant_nk.kernels.field_network import triton as ops

        ops.network(*inputs())

    def backward() -> None:
        from instant_nk.kernels.field_network import triton as ops

        cotangents = torch.zeros(1, outputs, device=device), torch.zeros(1, outputs, 3, device=device) if gradient else None
        ops.network_grad(*inputs()[:-1], *cotangents, (to_x, to_features, to_features and gradient), to_weights)

    return [forward, backward] if to_x or to_features or to_weights else [forward]


class _Network(Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Tensor | None) -> tuple[Tensor, Tensor | None]:
        from instant_nk.kernels.field_network import triton as ops

        ctx.save_for_backward(*inputs[:-1])
        return ops.network(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_outputs: Tensor, grad_gradient: Tensor | None) -> tuple[Tensor | None, ...]:
        from instant_nk.kernels.field_network import triton as ops

        wanted = ctx.needs_input_grad
        found = ops.network_grad(*ctx.saved_tensors, grad_outputs, grad_gradient, wanted[:3], any(wanted[3:]))
        return tuple(gradient if want else None for gradient, want in zip(found, wanted, strict=True))
