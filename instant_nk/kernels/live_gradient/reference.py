"""The live gradient in plain torch: the definition of correct, for any float dtype and any order of derivative."""

from __future__ import annotations

import torch
from torch import Tensor

LEAST_DETERMINANT = 0.05  # of the warp's Jacobian: where it squeezes space to less, its inverse says nothing


def carry(gradient: Tensor, stretch: Tensor, jacobian: Tensor) -> tuple[Tensor, Tensor]:
    """J^-T (g + S^T g) by cross products of J's columns: J^-T = [b x c, c x a, a x b] / det J."""
    moved = gradient + (stretch * gradient[..., None]).sum(-2)
    a, b, c = jacobian.unbind(-1)
    bc, ca, ab = torch.linalg.cross(b, c), torch.linalg.cross(c, a), torch.linalg.cross(a, b)
    determinant = (a * bc).sum(-1)
    usable = determinant.abs() > LEAST_DETERMINANT
    carried = (torch.stack([bc, ca, ab], -1) * moved[..., None, :]).sum(-1) / torch.where(usable, determinant, 1)[:, None]
    return torch.where(usable[:, None], carried, moved), usable
