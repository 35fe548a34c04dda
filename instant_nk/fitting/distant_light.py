"""What a light that stays where it is does to the brightness of a surface that turns in it.

Distant light of any shape makes a matt surface nearly as bright as a quadratic of its normal (spherical harmonics up to order two: Ramamoorthi and
Hanrahan 2001, Basri and Jacobs 2003). Eight numbers for a whole frame and one for its exposure, found from all points at once, so they follow the light
and not a point that slides.
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
    """Brightness of each point now over that at rest, as far as the frame's exposure and one distant light explain it, [N].

    With `l` the light's numbers and `h` the harmonics, that is `exposure (1 + h(live) l) / (1 + h(rest) l)`: Gauss-Newton on `l` (fitted as a linear
    system, with the ratio on both sides, it would be drawn to a light that leaves all in the dark).

    Args:
        ratio: brightness seen now over brightness seen at rest, [N]; weight: how far it counts, [N].
        live, rest: unit normals now and at rest, [N, 3].
    """
    now, before = harmonics(live), harmonics(rest)
    ratio = ratio.clamp(*RANGE)
    weight = (weight / weight.mean().clamp_min(1e-30)).clamp_max(2.0)
    counts, light = weight > 0, now.new_zeros(now.shape[1])
    exposure = median_of(ratio, counts).nan_to_num(1.0)
    ridge = RIDGE * len(weight) * torch.ones_like(now[0])
    held = torch.diag(torch.cat([ridge, 1e-9 * ridge[:1]]))  # the exposure may be anything
    for _ in range(ROUNDS):
        below, lit = _lit(light, now, before)
        left = ratio - exposure * lit
        usual = 1.5 * median_of(left.abs(), counts).nan_to_num(0.0) + STEADY
        robust = weight * torch.exp(-0.5 * (left / (2.0 * usual)).square())
        slope = torch.cat([exposure * (now - lit[:, None] * before) / below[:, None], lit[:, None]], 1)
        weighted = robust[:, None] * slope
        pull = weighted.T @ left - torch.cat([ridge * light, torch.zeros_like(ridge[:1])])
        step = torch.cholesky_solve(pull[:, None], torch.linalg.cholesky_ex(slope.T @ weighted + held)[0])[:, 0]
        light, exposure = light + step[:-1], exposure + step[-1]
    return exposure * _lit(light, now, before)[1]


def _lit(light: Tensor, now: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
    """How bright a light makes the points at rest, and how much brighter now, [N] each."""
    below = (1 + before @ light).clamp_min(DARK)
    return below, (1 + now @ light).clamp_min(DARK) / below
