"""The field network in plain torch: the definition of correct, for any float dtype and any order of derivative."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SMOOTHING = 1e-3  # of the activation's corner: its derivative stays continuous, so curvature and eikonal terms are defined


def activation(a: Tensor) -> tuple[Tensor, Tensor]:
    """Squareplus, a smooth ReLU: (a + sqrt(a^2 + s)) / 2 (Barron 2021), and its derivative."""
    root = torch.sqrt(a * a + SMOOTHING)
    return 0.5 * (a + root), 0.5 * (1 + a / root)


def network(
    x: Tensor, features: Tensor, jacobian: Tensor, first_weight: Tensor, first_bias: Tensor, last_weight: Tensor, last_bias: Tensor
) -> tuple[Tensor, Tensor]:
    """out = W2 a(p) + b2 with p = W1 [x, f] + b1, and by the chain rule gradient_od = g_od + sum_k J_dk g_ok with g_o = (W2_o * a'(p)) W1."""
    hidden, slope = activation(F.linear(torch.cat([x, features], -1), first_weight, first_bias))
    if len(last_weight) == 1:
        direct = ((slope * last_weight) @ first_weight)[:, None]
        through = torch.einsum("nk,ndk->nd", direct[:, 0, x.shape[1] :], jacobian)[:, None]
    else:
        direct = (slope[:, None] * last_weight) @ first_weight
        through = torch.einsum("nok,ndk->nod", direct[..., x.shape[1] :], jacobian)
    return F.linear(hidden, last_weight, last_bias), direct[..., :3] + through


def values(x: Tensor, features: Tensor, first_weight: Tensor, first_bias: Tensor, last_weight: Tensor, last_bias: Tensor) -> Tensor:
    """out of `network`."""
    return F.linear(activation(F.linear(torch.cat([x, features], -1), first_weight, first_bias))[0], last_weight, last_bias)
