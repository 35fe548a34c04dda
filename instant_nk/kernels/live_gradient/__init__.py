"""The gradient of a canonical signed distance, seen in live space: through the residual deformation and the graph's warp.

With x' = W^-1(x) the coarse canonical point and sdf(x' + r(x')), the gradient with respect to the live point x is
J^-T (I + S)^T g, where J = dW/dx', S = dr/dx' and g is the canonical gradient. First-order differentiable in g and S;
a second derivative is refused (the reference backend alone has it), and J carries none.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from instant_nk.kernels import _backend, _checks
from instant_nk.kernels.ahead import Call
from instant_nk.kernels.live_gradient import reference

OP = "live_gradient"


def carry(gradient: Tensor, stretch: Tensor, jacobian: Tensor) -> tuple[Tensor, Tensor]:
    """J^-T (I + S)^T g of each sample, and whether J is far enough from singular; elsewhere J is taken for the identity.

    Args:
        gradient: g, canonical. Float [samples, 3].
        stretch: S, the residual's derivative [out, in]. Float [samples, 3, 3].
        jacobian: J, the warp's derivative [live, canonical]; a constant. Float [samples, 3, 3].

    Returns:
        live gradient [samples, 3] and usable, bool [samples].
    """
    _checks.tensor(OP, "gradient", gradient, ("samples", 3))
    _checks.tensor(OP, "stretch", stretch, (len(gradient), 3, 3), like=gradient)
    _checks.tensor(OP, "jacobian", jacobian, (len(gradient), 3, 3), like=gradient)
    jacobian = jacobian.detach()
    if _backend.choose(OP, gradient, stretch, jacobian) == "reference":
        return reference.carry(gradient, stretch, jacobian)
    return _Carry.apply(gradient, stretch, jacobian)


def rehearsals(device: torch.device | str) -> list[Call]:
    """One launch, on a single sample, of each Triton kernel behind `carry` and its gradients: see `kernels.ahead`."""
    vector, matrix = torch.zeros(1, 3, device=device), torch.zeros(1, 3, 3, device=device)

    def forward() -> None:
        from instant_nk.kernels.live_gradient import triton as ops

        ops.carry(vector, matrix, matrix)

    def backward() -> None:
        from instant_nk.kernels.live_gradient import triton as ops

        ops.carry_grad(vector, matrix, matrix, vector)

    return [forward, backward]


class _Carry(Function):
    @staticmethod
    def forward(ctx: Any, gradient: Tensor, stretch: Tensor, jacobian: Tensor) -> tuple[Tensor, Tensor]:
        from instant_nk.kernels.live_gradient import triton as ops

        ctx.save_for_backward(gradient, stretch, jacobian)
        carried, usable = ops.carry(gradient, stretch, jacobian)
        ctx.mark_non_differentiable(usable)
        return carried, usable

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, Tensor, None]:
        from instant_nk.kernels.live_gradient import triton as ops

        return *ops.carry_grad(*ctx.saved_tensors, grad), None
