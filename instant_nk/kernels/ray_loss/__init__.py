"""What rendered rays owe their images: colour, coverage, and the error that PSNR is of, each a mean over the rays.

One pass over the rays where plain torch takes some forty-five. First-order differentiable in rendered colour and opacity; a second derivative is
refused (the reference backend alone has it).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from instant_nk.kernels import _backend, _checks
from instant_nk.kernels.ahead import Call
from instant_nk.kernels.ray_loss import reference

OP = "ray_loss"


def means(rgb: Tensor, opacity: Tensor, target: Tensor, alpha: Tensor, background: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Huber loss (delta 0.1) of colour over the same background, times ten; binary cross-entropy of opacity, kept within [0.001, 0.999]; squared error over black.

    Args:
        rgb: rendered colour premultiplied by opacity. Float [rays, 3].
        opacity: rendered. Float [rays].
        target: observed straight colour; a constant. Float [rays, 3].
        alpha: observed coverage; a constant. Float [rays].
        background: colour behind both; a constant. Float [rays, 3].

    Returns:
        three tensors []; the last carries no gradient.
    """
    rays = len(rgb)
    _checks.tensor(OP, "rgb", rgb, ("rays", 3))
    _checks.tensor(OP, "opacity", opacity, (rays,), like=rgb)
    _checks.tensor(OP, "target", target, (rays, 3), like=rgb)
    _checks.tensor(OP, "alpha", alpha, (rays,), like=rgb)
    _checks.tensor(OP, "background", background, (rays, 3), like=rgb)
    if not rays or _backend.choose(OP, rgb, opacity, target, alpha, background) == "reference":
        return reference.means(rgb, opacity, target, alpha, background)
    return _Means.apply(rgb, opacity, target, alpha, background)


def rehearsals(device: torch.device | str) -> list[Call]:
    """One launch, on a single ray, of each Triton kernel behind `means` and its gradients: see `kernels.ahead`."""
    inputs = torch.zeros(1, 3, device=device), torch.zeros(1, device=device), torch.zeros(1, 3, device=device), torch.zeros(1, device=device)

    def both() -> None:
        from instant_nk.kernels.ray_loss import triton as ops

        ops.means(*inputs, inputs[0])
        ops.means_grad(*inputs, inputs[0], *torch.zeros(2, device=device))

    return [both]


class _Means(Function):
    @staticmethod
    def forward(ctx: Any, rgb: Tensor, opacity: Tensor, target: Tensor, alpha: Tensor, background: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        from instant_nk.kernels.ray_loss import triton as ops

        ctx.save_for_backward(rgb, opacity, target, alpha, background)
        colour, mask, error = ops.means(rgb, opacity, target, alpha, background)
        ctx.mark_non_differentiable(error)
        return colour, mask, error

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_colour: Tensor, to_mask: Tensor, _: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        from instant_nk.kernels.ray_loss import triton as ops

        return *ops.means_grad(*ctx.saved_tensors, to_colour, to_mask), None, None, None
