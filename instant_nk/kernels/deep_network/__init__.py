"""A small network of two hidden layers with ReLU over a point's own numbers and its features, in one pass over the samples.

First-order differentiable in all eight arguments; a second derivative is refused (the reference backend alone has it).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from instant_nk.kernels import _backend, _checks
from instant_nk.kernels.ahead import Call
from instant_nk.kernels.deep_network import reference

OP = "deep_network"
LARGEST = {"near": 15, "features": 64, "hidden": 64, "outputs": 16}  # what one Triton program holds
SHARED = {32: 150 << 10, 64: 200 << 10}  # bytes of a multiprocessor's shared memory that the backward pass takes, by the number of features


def network(
    near: Tensor, features: Tensor, first_weight: Tensor, first_bias: Tensor, middle_weight: Tensor, middle_bias: Tensor, last_weight: Tensor, last_bias: Tensor
) -> Tensor:
    """Outputs of relu(relu([near, features] W1 + b1) W2 + b2) W3 + b3.

    Args:
        near: a point's own numbers: position, normal, direction. Float [samples, near].
        features: its encoding. Float [samples, features].
        first_weight: W1, columns of `near` before those of the features. Float [hidden, near + features].
        first_bias, middle_bias: Float [hidden].
        middle_weight: W2. Float [hidden, hidden].
        last_weight: W3. Float [outputs, hidden].
        last_bias: Float [outputs].

    Returns:
        Float [samples, outputs].
    """
    _checks.tensor(OP, "near", near, ("samples", "near"))
    _checks.tensor(OP, "features", features, (len(near), "features"), like=near)
    _checks.tensor(OP, "first_weight", first_weight, ("hidden", near.shape[1] + features.shape[1]), like=near)
    hidden = len(first_weight)
    _checks.tensor(OP, "first_bias", first_bias, (hidden,), like=near)
    _checks.tensor(OP, "middle_weight", middle_weight, (hidden, hidden), like=near)
    _checks.tensor(OP, "middle_bias", middle_bias, (hidden,), like=near)
    _checks.tensor(OP, "last_weight", last_weight, ("outputs", hidden), like=near)
    _checks.tensor(OP, "last_bias", last_bias, (len(last_weight),), like=near)
    inputs = near, features, first_weight, first_bias, middle_weight, middle_bias, last_weight, last_bias
    odd = _odd(near.shape[1], features.shape[1], hidden, len(last_weight), near.device)
    if _backend.choose(OP, *inputs, problem=odd) == "reference":
        return reference.network(*inputs)
    return _Network.apply(*inputs)


def _odd(near: int, features: int, hidden: int, outputs: int, device: torch.device) -> str | None:
    """What about the sizes, or the GPU, Triton's code cannot take."""
    sizes = {"near": near, "features": features, "hidden": hidden, "outputs": outputs}
    large = next((f"it takes 1 to {LARGEST[name]} {name}, got {size}" for name, size in sizes.items() if not 0 < size <= LARGEST[name]), None)
    if large or device.type != "cuda":
        return large
    has, needs = torch.cuda.get_device_properties(device).shared_memory_per_block_optin, SHARED[32 if features <= 32 else 64]
    return None if has >= needs else f"its backward pass takes {needs >> 10} KiB of shared memory, this GPU has {has >> 10}"


def rehearsals(
    near: int, features: int, hidden: int, outputs: int, device: torch.device | str, to_near: bool, to_features: bool, to_weights: bool
) -> list[Call]:
    """One launch, on a single sample, of each Triton kernel behind a network and the gradients it will be asked for: see `kernels.ahead`."""
    if _odd(near, features, hidden, outputs, torch.device(device)):
        return []

    def inputs() -> list[Tensor]:
        shapes = (1, near), (1, features), (hidden, near + features), (hidden,), (hidden, hidden), (hidden,), (outputs, hidden), (outputs,)
        return [torch.zeros(shape, device=device) for shape in shapes]

    def forward() -> None:
        from instant_nk.kernels.deep_network import triton as ops

        ops.network(*inputs())

    def backward() -> None:
        from instant_nk.kernels.deep_network import triton as ops

        ops.network_grad(*inputs()[:-1], torch.zeros(1, outputs, device=device), (to_near, to_features), to_weights)

    return [forward, backward] if to_near or to_features or to_weights else [forward]


class _Network(Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> Tensor:
        from instant_nk.kernels.deep_network import triton as ops

        ctx.save_for_backward(*inputs[:-1])
        return ops.network(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        from instant_nk.kernels.deep_network import triton as ops

        wanted = ctx.needs_input_grad
        found = ops.network_grad(*ctx.saved_tensors, grad_outputs, wanted[:2], any(wanted[2:]))
        return tuple(gradient if want else None for gradient, want in zip(found, wanted, strict=True))
