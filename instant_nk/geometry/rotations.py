"""Rotations in 3-D: exponential and logarithm of so(3), projection onto SO(3), skew matrices. Any float dtype, any batch shape."""

from __future__ import annotations

import torch
from torch import Tensor


def skew(v: Tensor) -> Tensor:
    """Matrix of the cross product: `skew(v) @ x = v x x`.

    Args:
        v: [..., 3].

    Returns:
        [..., 3, 3].
    """
    x, y, z = v.unbind(-1)
    zero = torch.zeros_like(x)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).reshape(*v.shape[:-1], 3, 3)


def turn(matrices: Tensor, vectors: Tensor) -> Tensor:
    """M x of each pair, for millions of small ones: a library's batched product takes over a millisecond for a million on any GPU.

    Args:
        matrices: [..., 3, 3].
        vectors: [..., 3].

    Returns:
        [..., 3].
    """
    return (matrices * vectors[..., None, :]).sum(-1)


def so3_exp(omega: Tensor) -> Tensor:
    """Rotation matrix of a rotation vector (axis times angle in radians), by Rodrigues' formula.

    Smooth and exact at zero: the coefficients switch to their Taylor series below 1e-2 rad.

    Args:
        omega: [..., 3].

    Returns:
        [..., 3, 3].
    """
    squared = (omega * omega).sum(-1)[..., None, None]
    small = squared < 1e-4
    safe = torch.where(small, torch.ones_like(squared), squared)
    angle = safe.sqrt()
    first = torch.where(small, 1 - squared / 6 + squared**2 / 120, angle.sin() / angle)
    second = torch.where(small, 0.5 - squared / 24 + squared**2 / 720, (1 - angle.cos()) / safe)
    k = skew(omega)
    return torch.eye(3, dtype=omega.dtype, device=omega.device) + first * k + second * (k @ k)


def so3_log(rotation: Tensor) -> Tensor:
    """Rotation vector of a rotation matrix, angle in [0, pi]; inverse of `so3_exp`, also near pi.

    Goes through the unit quaternion, whose largest component is found first, so that no angle is badly conditioned.

    Args:
        rotation: [..., 3, 3], orthonormal.

    Returns:
        [..., 3].
    """
    m = rotation
    trace = m.diagonal(dim1=-2, dim2=-1).sum(-1)
    xx, yy, zz = m[..., 0, 0], m[..., 1, 1], m[..., 2, 2]
    # Each row is the quaternion (w, x, y, z) times four times one of its components; the row with the largest one is exact.
    candidates = torch.stack(
        [
            torch.stack([1 + trace, m[..., 2, 1] - m[..., 1, 2], m[..., 0, 2] - m[..., 2, 0], m[..., 1, 0] - m[..., 0, 1]], -1),
            torch.stack([m[..., 2, 1] - m[..., 1, 2], 1 + xx - yy - zz, m[..., 0, 1] + m[..., 1, 0], m[..., 0, 2] + m[..., 2, 0]], -1),
            torch.stack([m[..., 0, 2] - m[..., 2, 0], m[..., 0, 1] + m[..., 1, 0], 1 - xx + yy - zz, m[..., 1, 2] + m[..., 2, 1]], -1),
            torch.stack([m[..., 1, 0] - m[..., 0, 1], m[..., 0, 2] + m[..., 2, 0], m[..., 1, 2] + m[..., 2, 1], 1 - xx - yy + zz], -1),
        ],
        -2,
    )
    best = torch.stack([1 + trace, 1 + xx - yy - zz, 1 - xx + yy - zz, 1 - xx - yy + zz], -1).argmax(-1)
    quaternion = candidates.gather(-2, best[..., None, None].expand(*best.shape, 1, 4)).squeeze(-2)
    quaternion = quaternion / quaternion.norm(dim=-1, keepdim=True)
    quaternion = torch.where(quaternion[..., :1] < 0, -quaternion, quaternion)
    w, v = quaternion[..., :1], quaternion[..., 1:]
    sine = v.norm(dim=-1, keepdim=True)
    small = sine < 1e-6
    angle = 2 * torch.atan2(sine, w)
    return torch.where(small, 2 * v, angle / torch.where(small, torch.ones_like(sine), sine) * v)


def project_to_so3(matrix: Tensor) -> Tensor:
    """The rotation nearest to a matrix in the Frobenius norm (Kabsch), never a reflection.

    Args:
        matrix: [..., 3, 3].

    Returns:
        [..., 3, 3].
    """
    u, _, vt = torch.linalg.svd(matrix)
    sign = torch.linalg.det(u @ vt).sign()
    scale = torch.ones_like(matrix[..., 0])
    scale[..., 2] = torch.where(sign == 0, torch.ones_like(sign), sign)
    return (u * scale[..., None, :]) @ vt
