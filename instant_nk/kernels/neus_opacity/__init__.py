"""What rendering wants of a sample, from its signed distance and gradient: opacity (NeuS), unit normal, and how far the gradient is from unit length.

One pass over the samples where plain torch takes some seventy. First-order differentiable in distance, gradient, directions and sharpness; a
second derivative is refused (the reference backend alone has it).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from instant_nk.kernels import _backend, _checks
from instant_nk.kernels.ahead import Call
from instant_nk.kernels.neus_opacity import reference

OP = "neus_opacity"


def opacities(
    sdf: Tensor, gradient: Tensor, directions: Tensor, lengths: Tensor, inv_std: float | Tensor, anneal: float | Tensor = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Opacity of samples from the signed distance at their midpoints (Wang et al. 2021, equation 13, with the annealed cosine).

    Args:
        sdf: signed distance, scene units. Float [samples].
        gradient: of the signed distance, in the space that the directions live in. Float [samples, 3].
        directions: unit viewing directions. Float [samples, 3].
        lengths: of the samples, scene units; a constant. Float [samples].
        inv_std: sharpness of the logistic. A number, or a tensor [].
        anneal: 0 at the start of training, where every sample counts, 1 at the end, where only what faces the ray does; a constant. A number, or a tensor [].

    Returns:
        opacity in [0, 1] [samples], unit normal [samples, 3], (|gradient| - 1)^2 [samples].
    """
    _checks.tensor(OP, "sdf", sdf, ("samples",))
    _checks.tensor(OP, "gradient", gradient, (len(sdf), 3), like=sdf)
    _checks.tensor(OP, "directions", directions, (len(sdf), 3), like=sdf)
    _checks.tensor(OP, "lengths", lengths, (len(sdf),), like=sdf)
    _checks.number(OP, "inv_std", inv_std, like=sdf)
    _checks.number(OP, "anneal", anneal, like=sdf)
    if _backend.choose(OP, sdf, gradient, directions, lengths) == "reference":
        return reference.opacities(sdf, gradient, directions, lengths, inv_std, anneal)
    return _Opacities.apply(sdf, gradient, directions, lengths, inv_std, anneal)


def rehearsals(device: torch.device | str, learnt: bool) -> list[Call]:
    """One launch, on a single sample, of each Triton kernel behind `opacities` and its gradients, with a sharpness that is `learnt` or fixed: see `kernels.ahead`."""
    one, row = torch.zeros(1, device=device), torch.ones(1, 3, device=device)

    def both() -> None:
        from instant_nk.kernels.neus_opacity import triton as ops

        for anneal in (torch.ones((), device=device), 1.0) if learnt else (1.0,):
            inputs = one, row, row, one, torch.ones((), device=device) if learnt else 1.0, anneal
            ops.opacities(*inputs)
            ops.opacities_grad(*inputs, one, row, one, learnt, False)

    return [both]


class _Opacities(Function):
    @staticmethod
    def forward(
        ctx: Any, sdf: Tensor, gradient: Tensor, directions: Tensor, lengths: Tensor, inv_std: float | Tensor, anneal: float | Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        from instant_nk.kernels.neus_opacity import triton as ops

        tensors = [value if isinstance(value, Tensor) else None for value in (inv_std, anneal)]
        ctx.save_for_backward(sdf, gradient, directions, lengths, *tensors)
        ctx.numbers = [None if isinstance(value, Tensor) else value for value in (inv_std, anneal)]
        return ops.opacities(sdf, gradient, directions, lengths, inv_std, anneal)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_alpha: Tensor, to_normals: Tensor, to_excess: Tensor) -> tuple[Tensor | None, ...]:
        from instant_nk.kernels.neus_opacity import triton as ops

        *samples, inv_std, anneal = ctx.saved_tensors
        inv_std, anneal = (number if tensor is None else tensor for tensor, number in zip((inv_std, anneal), ctx.numbers))
        found = ops.opacities_grad(*samples, inv_std, anneal, to_alpha, to_normals, to_excess, ctx.needs_input_grad[4], ctx.needs_input_grad[2])
        return found[0], found[1], found[3], None, found[2], None
