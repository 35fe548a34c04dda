"""The normal matrix's part from surface points as a Triton kernel: a program gathers one 6 x 6 block, so that nothing is added atomically."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from instant_nk.kernels import _backend

LANES = 32  # pairs of anchors looked at side by side


@triton.jit
def _point_blocks(first, left, right, arm, weights, hessian, blocks, KNN: tl.constexpr, LANES: tl.constexpr):
    u = tl.program_id(0)
    begin, end = tl.load(first + u), tl.load(first + u + 1)
    zero = tl.zeros((LANES,), tl.float64)
    a00, a01, a02, a10, a11, a12, a20, a21, a22 = zero, zero, zero, zero, zero, zero, zero, zero, zero
    b00, b01, b02, b10, b11, b12, b20, b21, b22 = zero, zero, zero, zero, zero, zero, zero, zero, zero
    c00, c01, c02, c10, c11, c12, c20, c21, c22 = zero, zero, zero, zero, zero, zero, zero, zero, zero
    d00, d01, d02, d11, d12, d22 = zero, zero, zero, zero, zero, zero
    for q in range(begin, end, LANES):
        at = q + tl.arange(0, LANES)
        valid = at < end
        i, j = tl.load(left + at, mask=valid, other=0), tl.load(right + at, mask=valid, other=0)
        w = tl.load(weights + i, mask=valid, other=0.0) * tl.load(weights + j, mask=valid, other=0.0)
        h = hessian + (i // KNN) * 9
        h00, h01, h02 = w * tl.load(h), w * tl.load(h + 1), w * tl.load(h + 2)
        h11, h12, h22 = w * tl.load(h + 4), w * tl.load(h + 5), w * tl.load(h + 8)
        ax, ay, az = tl.load(arm + 3 * i), tl.load(arm + 3 * i + 1), tl.load(arm + 3 * i + 2)
        bx, by, bz = tl.load(arm + 3 * j), tl.load(arm + 3 * j + 1), tl.load(arm + 3 * j + 2)
        # m = H S_b', S the matrix of the cross product with the arm; then S_a m, S_a H, m and H are the block's quarters
        m00, m01, m02 = h02 * by - h01 * bz, h00 * bz - h02 * bx, h01 * bx - h00 * by
        m10, m11, m12 = h12 * by - h11 * bz, h01 * bz - h12 * bx, h11 * bx - h01 * by
        m20, m21, m22 = h22 * by - h12 * bz, h02 * bz - h22 * bx, h12 * bx - h02 * by
        a00, a01, a02 = a00 + ay * m20 - az * m10, a01 + ay * m21 - az * m11, a02 + ay * m22 - az * m12
        a10, a11, a12 = a10 + az * m00 - ax * m20, a11 + az * m01 - ax * m21, a12 + az * m02 - ax * m22
        a20, a21, a22 = a20 + ax * m10 - ay * m00, a21 + ax * m11 - ay * m01, a22 + ax * m12 - ay * m02
        b00, b01, b02 = b00 + ay * h02 - az * h01, b01 + ay * h12 - az * h11, b02 + ay * h22 - az * h12
        b10, b11, b12 = b10 + az * h00 - ax * h02, b11 + az * h01 - ax * h12, b12 + az * h02 - ax * h22
        b20, b21, b22 = b20 + ax * h01 - ay * h00, b21 + ax * h11 - ay * h01, b22 + ax * h12 - ay * h02
        c00, c01, c02, c10, c11, c12, c20, c21, c22 = c00 + m00, c01 + m01, c02 + m02, c10 + m10, c11 + m11, c12 + m12, c20 + m20, c21 + m21, c22 + m22
        d00, d01, d02, d11, d12, d22 = d00 + h00, d01 + h01, d02 + h02, d11 + h11, d12 + h12, d22 + h22
    o = blocks + u.to(tl.int64) * 36
    _store(o, a00, a01, a02, b00, b01, b02)
    _store(o + 6, a10, a11, a12, b10, b11, b12)
    _store(o + 12, a20, a21, a22, b20, b21, b22)
    _store(o + 18, c00, c01, c02, d00, d01, d02)
    _store(o + 24, c10, c11, c12, d01, d11, d12)
    _store(o + 30, c20, c21, c22, d02, d12, d22)


@triton.jit
def _store(row, v0, v1, v2, v3, v4, v5):
    tl.store(row, tl.sum(v0, 0))
    tl.store(row + 1, tl.sum(v1, 0))
    tl.store(row + 2, tl.sum(v2, 0))
    tl.store(row + 3, tl.sum(v3, 0))
    tl.store(row + 4, tl.sum(v4, 0))
    tl.store(row + 5, tl.sum(v5, 0))


def point_blocks(first: Tensor, left: Tensor, right: Tensor, arm: Tensor, weights: Tensor, hessian: Tensor) -> Tensor:
    """What the points say, as upper blocks f64 [U, 6, 6]; arguments as in `solver_loops.point_blocks`."""
    blocks = torch.empty(len(first) - 1, 6, 6, dtype=torch.float64, device=arm.device)
    inputs = (first, left, right, arm.contiguous(), weights.contiguous(), hessian.contiguous())
    with _backend.on(arm):
        _point_blocks[(len(blocks),)](*inputs, blocks, KNN=weights.shape[1], LANES=LANES, num_warps=1)
    return blocks
