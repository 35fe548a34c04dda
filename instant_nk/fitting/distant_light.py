"""What a light that stays where it is does to the brightness of a surface that turns in it.

Distant light of any shape makes a matt surface nearly as bright as a quadratic of its normal (spherical harmonics up to order two: Ramamoorthi and
Hanrahan 2001, Basri and Jacobs 2003). Eight numbers for a whole frame, found from all points at once, so they follow the light and not a point that slides.
"""

from __future__ import annotations

import torch
from torch import Tensor

from instant_nk.fitting.correspondences import median_of

ROUNDS = 3  # of fitting, each with less weight for points whose brightness has other reasons
RIDGE = 1e-3  # towards an even light, of a point's usual weight: where nothing turns, nothing is learnt
STEADY = 1e-3  # share of brightness that is never an outlier
DARK = 0.2  # brightness, of the even light's, below which a side is not thought to lie
RANGE = (0.4, 2.5)  # of brightness now over brightness at rest that is believed of a point


def harmonics(normals: Tensor) -> Tensor:
    """The eight spherical harmonics of orders one and two at unit normals [N, 3], not normalised, [N, 8]."""
    x, y, z = normals.unbind(-1)
    return torch.stack([x, y, z, x * y, y * z, x * z, x * x - y * y, 3 * z * z - 1], -1)


def relit(ratio: Tensor, weight: Tensor, live: Tensor, rest: Tensor) -> Tensor:
    """Brightness of each point now over that at rest, as far as one distant light explains it, [N].

    With `l` the light's numbers and `h` the harmonics, `(1 + h(live) l) = ratio (1 + h(rest) l)`, which is linear in `l`.

    Args:
        ratio: brightness seen now over brightness seen at rest, [N]; weight: how far it counts, [N].
        live, rest: unit normals now and at rest, [N, 3].
    """
    now, before = harmonics(live), harmonics(rest)
    ratio = ratio.clamp(*RANGE)
    rows, goal = now - ratio[:, None] * before, ratio - 1
    weight = (weight / weight.mean().clamp_min(1e-30)).clamp_max(2.0)
    counts, robust = weight > 0, weight
    ridge = RIDGE * len(weight) * torch.eye(rows.shape[1], dtype=rows.dtype, device=rows.device)
    light = rows.new_zeros(rows.shape[1])
    for _ in range(ROUNDS):
        weighted = robust[:, None] * rows
        factor = torch.linalg.cholesky_ex(rows.T @ weighted + ridge)[0]
        light = torch.cholesky_solve((weighted.T @ goal)[:, None], factor)[:, 0]
        left = (goal - rows @ light).abs()
        usual = 1.5 * median_of(left, counts).nan_to_num(0.0) + STEADY
        robust = weight * torch.exp(-0.5 * (left / (2.0 * usual)).square())
    return (1 + now @ light).clamp_min(DARK) / (1 + before @ light).clamp_min(DARK)
