"""The deep network in plain torch: the definition of correct, for any float dtype and any order of derivative."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def network(
    near: Tensor, features: Tensor, first_weight: Tensor, first_bias: Tensor, middle_weight: Tensor, middle_bias: Tensor, last_weight: Tensor, last_bias: Tensor
) -> Tensor:
    """out = W3 relu(W2 relu(W1 [near, features] + b1) + b2) + b3."""
    first = F.relu(F.linear(torch.cat([near, features], -1), first_weight, first_bias))
    return F.linear(F.relu(F.linear(first, middle_weight, middle_bias)), last_weight, last_bias)
