"""The rotation nearest to each of many 3 x 3 matrices as a Triton kernel, double precision; `geometry.rotations.project_to_so3` is the definition.

A batched singular value decomposition takes a GPU longer than a step of the solver. The nearest rotation's quaternion is the eigenvector of the
largest eigenvalue of a symmetric 4 x 4 matrix (Horn 1987), which is never a reflection; squared again and again, the matrix becomes a projection onto it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from instant_nk.kernels import _backend
from instant_nk.kernels._triton_memory import launched

ROWS = 64  # matrices of a program
SQUARINGS = 32  # enough where the two largest eigenvalues differ by a billionth; where they do not, either rotation is as near as the other


@launched(do_not_specialize=["count"])
def _project(matrix, rotation, count, SQUARINGS: tl.constexpr, ROWS: tl.constexpr):
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    live, m, r = n < count, matrix + n * 9, rotation + n * 9
    m0, m1, m2 = tl.load(m, mask=live, other=1.0), tl.load(m + 1, mask=live, other=0.0), tl.load(m + 2, mask=live, other=0.0)
    m3, m4, m5 = tl.load(m + 3, mask=live, other=0.0), tl.load(m + 4, mask=live, other=1.0), tl.load(m + 5, mask=live, other=0.0)
    m6, m7, m8 = tl.load(m + 6, mask=live, other=0.0), tl.load(m + 7, mask=live, other=0.0), tl.load(m + 8, mask=live, other=1.0)
    a, b, c, d = m0 + m4 + m8, m7 - m5, m2 - m6, m3 - m1
    e, f, g = m0 - m4 - m8, m1 + m3, m2 + m6
    h, i, j = m4 - m0 - m8, m5 + m7, m8 - m0 - m4
    shift = tl.sqrt(a * a + e * e + h * h + j * j + 2 * (b * b + c * c + d * d + f * f + g * g + i * i)) + 1e-300  # so that no eigenvalue is negative
    a, e, h, j = a + shift, e + shift, h + shift, j + shift
    for _ in range(SQUARINGS):
        size = 1 / (a + e + h + j)
        a, b, c, d, e, f, g, h, i, j = a * size, b * size, c * size, d * size, e * size, f * size, g * size, h * size, i * size, j * size
        a, b, c, d, e, f, g, h, i, j = (
            a * a + b * b + c * c + d * d, a * b + b * e + c * f + d * g, a * c + b * f + c * h + d * i, a * d + b * g + c * i + d * j,
            b * b + e * e + f * f + g * g, b * c + e * f + f * h + g * i, b * d + e * g + f * i + g * j,
            c * c + f * f + h * h + i * i, c * d + f * g + h * i + i * j, d * d + g * g + i * i + j * j,
        )  # fmt: skip
    # Every column is the eigenvector by one of its parts; that of the largest part is the most exact.
    largest = tl.maximum(tl.maximum(a, e), tl.maximum(h, j))
    w, x, y, z = d, g, i, j
    w, x, y, z = tl.where(h == largest, c, w), tl.where(h == largest, f, x), tl.where(h == largest, h, y), tl.where(h == largest, i, z)
    w, x, y, z = tl.where(e == largest, b, w), tl.where(e == largest, e, x), tl.where(e == largest, f, y), tl.where(e == largest, g, z)
    w, x, y, z = tl.where(a == largest, a, w), tl.where(a == largest, b, x), tl.where(a == largest, c, y), tl.where(a == largest, d, z)
    size = 1 / tl.sqrt(w * w + x * x + y * y + z * z)
    w, x, y, z = w * size, x * size, y * size, z * size
    tl.store(r, 1 - 2 * (y * y + z * z), mask=live)
    tl.store(r + 1, 2 * (x * y - w * z), mask=live)
    tl.store(r + 2, 2 * (x * z + w * y), mask=live)
    tl.store(r + 3, 2 * (x * y + w * z), mask=live)
    tl.store(r + 4, 1 - 2 * (x * x + z * z), mask=live)
    tl.store(r + 5, 2 * (y * z - w * x), mask=live)
    tl.store(r + 6, 2 * (x * z - w * y), mask=live)
    tl.store(r + 7, 2 * (y * z + w * x), mask=live)
    tl.store(r + 8, 1 - 2 * (x * x + y * y), mask=live)


def project_to_so3(matrix: Tensor) -> Tensor:
    """The rotation nearest to each matrix [..., 3, 3], f64."""
    matrix = matrix.contiguous()
    result, count = torch.empty_like(matrix), matrix.numel() // 9
    with _backend.on(matrix):
        _project[(triton.cdiv(count, ROWS),)](matrix, result, count, SQUARINGS=SQUARINGS, ROWS=ROWS)
    return result
