"""The hash encoding in Triton: one kernel gathers, one scatters; nothing is kept between them, rows are computed anew.

Two neighbouring lanes share a point, one for either side of its cell along x. Their rows differ in the lowest bits alone (the
hash multiplies x by 1), so that a warp's gather or scatter of 16 points meets about 20 memory sectors where one lane per
point would meet 32 twice. A program serves `LEVELS` levels of a block of points, and all blocks of a group of levels run before
the next group: the rows in use (4 MiB a level by default) stay in the L2 cache. Sums are float32 whatever the table is.
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from instant_nk.kernels import _backend
from instant_nk.kernels.hash_encoding.spec import PRIMES, HashSpec

POINTS = 128  # per program
LEVELS = 4  # levels per program: four levels of two float32 channels fill a memory sector of the output
WARPS = 4


@triton.jit
def _load_pair(base, index, live, more, PACKED: tl.constexpr):
    """Two consecutive values as float32, in one access when their address is even; the second is 0 without `more`."""
    if PACKED and base.dtype.element_ty == tl.float32:
        bits = tl.load((base + index).to(tl.pointer_type(tl.int64)), mask=live, other=0)
        first = bits.to(tl.int32).to(tl.float32, bitcast=True)
        second = (bits >> 32).to(tl.int32).to(tl.float32, bitcast=True)
    elif PACKED:
        bits = tl.load((base + index).to(tl.pointer_type(tl.int32)), mask=live, other=0)
        first = bits.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
        second = (bits >> 16).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
    else:
        first = tl.load(base + index, mask=live, other=0).to(tl.float32)
        second = tl.load(base + index + 1, mask=live & more, other=0).to(tl.float32)
    return first, second


@triton.jit
def _add_pair(base, index, first, second, live, more, VECTOR: tl.constexpr):
    """Add two consecutive float32 atomically; sm_90 has one instruction for both."""
    if VECTOR:
        tl.inline_asm_elementwise(
            "{.reg .pred p; setp.ne.b32 p, $4, 0; @p red.relaxed.gpu.global.add.v2.f32 [$1], {$2, $3}; mov.u32 $0, 0;}",
            "=r,l,f,f,r",
            [(base + index).to(tl.int64), first, second, live.to(tl.int32)],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )
    else:
        tl.atomic_add(base + index, first, mask=live, sem="relaxed")
        tl.atomic_add(base + index + 1, second, mask=live & more, sem="relaxed")


@triton.jit
def _cell(x, n, live, axis, cells, DIMS: tl.constexpr):
    """Cell index along one axis and the fractional position in it; a point outside takes the border cell."""
    position = tl.load(x + n * DIMS + axis, mask=live, other=0.0) * cells
    index = tl.minimum(tl.maximum(tl.floor(position), 0.0), cells - 1.0)
    return index.to(tl.int32).to(tl.uint32), position - index


@triton.jit
def _join(dense, a, b):
    """Two axes' parts of a row: a sum where every corner is stored, an xor where they are hashed."""
    return tl.where(dense, a + b, a ^ b)


@triton.jit
def _side(bit: tl.constexpr, fraction):
    """Interpolation weight of the near (0) or far (1) side of the cell."""
    if bit:
        return fraction
    else:
        return 1.0 - fraction


@triton.jit
def _sum_lanes(value, POINTS: tl.constexpr):
    """Sum over the two lanes of each point, given back to both."""
    total = tl.sum(tl.reshape(value, [POINTS, 2]), axis=1, keep_dims=True)
    return tl.reshape(tl.broadcast_to(total, [POINTS, 2]), [POINTS * 2])


@triton.jit
def _store_pair(base, index, first, second, side, live, more, POINTS: tl.constexpr):
    """Sum each channel over the two lanes; either lane writes one."""
    first, second = _sum_lanes(first, POINTS), _sum_lanes(second, POINTS)
    tl.store(base + index + side, tl.where(side == 0, first, second), mask=live & ((side == 0) | more))


@triton.jit
def _forward_kernel(
    x, table, layout, features, jacobian, n_points, open_levels,
    DIMS: tl.constexpr, F: tl.constexpr, WIDTH: tl.constexpr, MASK: tl.constexpr,
    JACOBIAN: tl.constexpr, POINTS: tl.constexpr, LEVELS: tl.constexpr,
):  # fmt: skip
    lane = tl.arange(0, POINTS * 2)
    n = tl.program_id(0).to(tl.int64) * POINTS + (lane >> 1)
    side = lane & 1
    live = n < n_points
    channel = tl.program_id(2) * 2
    more = side * 0 + channel + 1 < F
    sign = tl.where(side == 0, -1.0, 1.0)
    for i in range(LEVELS):
        level = tl.program_id(1) * LEVELS + i
        if level < open_levels:
            entry = layout + level * (2 * DIMS + 2)
            c0, c1, c2 = tl.load(entry).to(tl.float32), tl.load(entry + 1).to(tl.float32), tl.load(entry + 2).to(tl.float32)
            m1, m2 = tl.load(entry + DIMS + 1).to(tl.uint32), tl.load(entry + DIMS + 2).to(tl.uint32)
            offset, dense = tl.load(entry + 2 * DIMS), tl.load(entry + 2 * DIMS + 1) != 0
            j0, f0 = _cell(x, n, live, 0, c0, DIMS)
            j1, f1 = _cell(x, n, live, 1, c1, DIMS)
            j2, f2 = _cell(x, n, live, 2, c2, DIMS)
            j0, k1, k2 = j0 + side.to(tl.uint32), j1 * m1, j2 * m2
            if DIMS == 4:
                c3, m3 = tl.load(entry + 3).to(tl.float32), tl.load(entry + DIMS + 3).to(tl.uint32)
                j3, f3 = _cell(x, n, live, 3, c3, DIMS)
                k3 = j3 * m3
            near = tl.zeros([POINTS * 2], tl.float32)
            ua, ub, ua1, ub1, ua2, ub2, ua3, ub3 = near, near, near, near, near, near, near, near
            for corner in tl.static_range(1 << (DIMS - 1)):
                row = _join(dense, j0, _join(dense, k1 + m1 * (corner & 1), k2 + m2 * ((corner >> 1) & 1)))
                w1, w2 = _side(corner & 1, f1), _side((corner >> 1) & 1, f2)
                if DIMS == 4:
                    row = _join(dense, row, k3 + m3 * (corner >> 2))
                    w3 = _side(corner >> 2, f3)
                    w23, w13, w12 = w2 * w3, w1 * w3, w1 * w2
                else:
                    w23, w13 = w2, w1
                index = ((row & MASK).to(tl.int32) + offset) * F + channel
                va, vb = _load_pair(table, index, live, more, F % 2 == 0)
                w = w1 * w23
                ua += w * va
                ub += w * vb
                if JACOBIAN:
                    s1, s2 = 2.0 * (corner & 1) - 1.0, 2.0 * ((corner >> 1) & 1) - 1.0
                    ua1 += s1 * w23 * va
                    ub1 += s1 * w23 * vb
                    ua2 += s2 * w13 * va
                    ub2 += s2 * w13 * vb
                    if DIMS == 4:
                        s3 = 2.0 * (corner >> 2) - 1.0
                        ua3 += s3 * w12 * va
                        ub3 += s3 * w12 * vb
            w0 = tl.where(side == 0, 1.0 - f0, f0)
            column = level * F + channel
            _store_pair(features, n * WIDTH + column, w0 * ua, w0 * ub, side, live, more, POINTS)
            if JACOBIAN:
                at = n * (DIMS * WIDTH) + column
                _store_pair(jacobian, at, sign * c0 * ua, sign * c0 * ub, side, live, more, POINTS)
                _store_pair(jacobian, at + WIDTH, w0 * c1 * ua1, w0 * c1 * ub1, side, live, more, POINTS)
                _store_pair(jacobian, at + 2 * WIDTH, w0 * c2 * ua2, w0 * c2 * ub2, side, live, more, POINTS)
                if DIMS == 4:
                    _store_pair(jacobian, at + 3 * WIDTH, w0 * c3 * ua3, w0 * c3 * ub3, side, live, more, POINTS)


@triton.jit
def _backward_kernel(
    x, table, layout, grad_features, grad_jacobian, grad_table, grad_x, n_points, open_levels,
    DIMS: tl.constexpr, F: tl.constexpr, WIDTH: tl.constexpr, MASK: tl.constexpr, HAS_FEATURES: tl.constexpr, HAS_JACOBIAN: tl.constexpr,
    TO_TABLE: tl.constexpr, TO_X: tl.constexpr, VECTOR: tl.constexpr, POINTS: tl.constexpr, LEVELS: tl.constexpr,
):  # fmt: skip
    lane = tl.arange(0, POINTS * 2)
    n = tl.program_id(0).to(tl.int64) * POINTS + (lane >> 1)
    side = lane & 1
    live = n < n_points
    channel = tl.program_id(2) * 2
    more = side * 0 + channel + 1 < F
    sign = tl.where(side == 0, -1.0, 1.0)
    zero = tl.zeros([POINTS * 2], tl.float32)
    x0, x1, x2, x3 = zero, zero, zero, zero  # gradient of the position, this lane's share
    for i in range(LEVELS):
        level = tl.program_id(1) * LEVELS + i
        if level < open_levels:
            entry = layout + level * (2 * DIMS + 2)
            c0, c1, c2 = tl.load(entry).to(tl.float32), tl.load(entry + 1).to(tl.float32), tl.load(entry + 2).to(tl.float32)
            m1, m2 = tl.load(entry + DIMS + 1).to(tl.uint32), tl.load(entry + DIMS + 2).to(tl.uint32)
            offset, dense = tl.load(entry + 2 * DIMS), tl.load(entry + 2 * DIMS + 1) != 0
            j0, f0 = _cell(x, n, live, 0, c0, DIMS)
            j1, f1 = _cell(x, n, live, 1, c1, DIMS)
            j2, f2 = _cell(x, n, live, 2, c2, DIMS)
            j0, k1, k2 = j0 + side.to(tl.uint32), j1 * m1, j2 * m2
            w0, s0 = tl.where(side == 0, 1.0 - f0, f0), sign * c0
            if DIMS == 4:
                c3, m3 = tl.load(entry + 3).to(tl.float32), tl.load(entry + DIMS + 3).to(tl.uint32)
                j3, f3 = _cell(x, n, live, 3, c3, DIMS)
                k3 = j3 * m3
            ga, gb = zero, zero
            if HAS_FEATURES:
                ga, gb = _load_pair(grad_features, n * WIDTH + level * F + channel, live, more, F % 2 == 0)
            if HAS_JACOBIAN:
                at = n * (DIMS * WIDTH) + level * F + channel
                ja0, jb0 = _load_pair(grad_jacobian, at, live, more, F % 2 == 0)
                ja1, jb1 = _load_pair(grad_jacobian, at + WIDTH, live, more, F % 2 == 0)
                ja2, jb2 = _load_pair(grad_jacobian, at + 2 * WIDTH, live, more, F % 2 == 0)
                if DIMS == 4:
                    ja3, jb3 = _load_pair(grad_jacobian, at + 3 * WIDTH, live, more, F % 2 == 0)
            for corner in tl.static_range(1 << (DIMS - 1)):
                row = _join(dense, j0, _join(dense, k1 + m1 * (corner & 1), k2 + m2 * ((corner >> 1) & 1)))
                w1, w2 = _side(corner & 1, f1), _side((corner >> 1) & 1, f2)
                s1, s2 = c1 * (2.0 * (corner & 1) - 1.0), c2 * (2.0 * ((corner >> 1) & 1) - 1.0)
                if DIMS == 4:
                    row = _join(dense, row, k3 + m3 * (corner >> 2))
                    w3 = _side(corner >> 2, f3)
                    s3 = c3 * (2.0 * (corner >> 2) - 1.0)
                else:
                    w3, s3 = 1.0, 0.0
                w = w1 * w2 * w3
                d1, d2 = s1 * w2 * w3, w1 * s2 * w3  # derivatives of w along y and z
                index = ((row & MASK).to(tl.int32) + offset) * F + channel
                if TO_TABLE:
                    ta, tb = w * w0 * ga, w * w0 * gb
                    if HAS_JACOBIAN:
                        ta += w * s0 * ja0 + w0 * (d1 * ja1 + d2 * ja2)
                        tb += w * s0 * jb0 + w0 * (d1 * jb1 + d2 * jb2)
                        if DIMS == 4:
                            ta += w0 * w1 * w2 * s3 * ja3
                            tb += w0 * w1 * w2 * s3 * jb3
                    _add_pair(grad_table, index, ta, tb, live, more, VECTOR)
                if TO_X:
                    va, vb = _load_pair(table, index, live, more, F % 2 == 0)
                    if HAS_FEATURES:
                        pull = va * ga + vb * gb
                        x0 += s0 * w * pull
                        x1 += w0 * d1 * pull
                        x2 += w0 * d2 * pull
                        if DIMS == 4:
                            x3 += w0 * (w1 * w2 * s3) * pull
                    if HAS_JACOBIAN:
                        p0, p1, p2 = va * ja0 + vb * jb0, va * ja1 + vb * jb1, va * ja2 + vb * jb2
                        x0 += s0 * (d1 * p1 + d2 * p2)
                        x1 += s0 * d1 * p0 + w0 * (s1 * s2 * w3) * p2
                        x2 += s0 * d2 * p0 + w0 * (s1 * s2 * w3) * p1
                        if DIMS == 4:
                            p3 = va * ja3 + vb * jb3
                            x0 += s0 * (w1 * w2 * s3) * p3
                            x1 += w0 * (s1 * w2 * s3) * p3
                            x2 += w0 * (w1 * s2 * s3) * p3
                            x3 += s0 * (w1 * w2 * s3) * p0 + w0 * ((s1 * w2 * s3) * p1 + (w1 * s2 * s3) * p2)
    if TO_X:
        # One partial sum per group of levels and pair of channels; adding them up afterwards is cheaper than atomics, and exact in order.
        part = (tl.program_id(1) * tl.num_programs(2) + tl.program_id(2)).to(tl.int64)
        at = (part * n_points + n) * DIMS
        _store_pair(grad_x, at, x0, x1, side, live, side < 2, POINTS)
        _store_pair(grad_x, at + 2, x2, x3, side, live, side < 2 * (DIMS - 3), POINTS)


@cache
def _layout(spec: HashSpec, device: torch.device) -> Tensor:
    """Per level: cells of every axis, the factor of its index in the row (stride or prime), offset, dense. Int32 [levels, 2 D + 2]."""
    rows = []
    for cells, offset, dense in zip(spec.resolutions, spec.offsets, spec.dense, strict=True):
        strides = [1]
        for c in cells[:-1]:
            strides.append(strides[-1] * (c + 1))
        rows.append([*cells, *(strides if dense else PRIMES[: spec.dims]), offset, int(dense)])
    return torch.tensor(rows, dtype=torch.int64).to(torch.int32).to(device)


def _constants(spec: HashSpec) -> dict[str, int]:
    return {"DIMS": spec.dims, "F": spec.features, "WIDTH": spec.width, "MASK": (1 << spec.log2_table_size) - 1}


def _grid(points: int, spec: HashSpec, open_levels: int) -> tuple[int, int, int]:
    return triton.cdiv(points, POINTS), triton.cdiv(open_levels, LEVELS), (spec.features + 1) // 2


@cache
def _vector_atomics(device: torch.device, features: int) -> bool:
    return device.type == "cuda" and features % 2 == 0 and torch.cuda.get_device_capability(device) >= (9, 0)


def forward(x: Tensor, table: Tensor, spec: HashSpec, open_levels: int, with_jacobian: bool) -> tuple[Tensor, Tensor | None]:
    """As `reference.forward`, float32."""
    x, table = x.contiguous(), table.contiguous()
    new = torch.empty if open_levels == spec.levels else torch.zeros
    features = new(len(x), spec.width, device=x.device)
    jacobian = new(len(x), spec.dims, spec.width, device=x.device) if with_jacobian else None
    if len(x) and open_levels:
        with _backend.on(x):
            _forward_kernel[_grid(len(x), spec, open_levels)](
                x, table, _layout(spec, x.device), features, jacobian, len(x), open_levels,
                **_constants(spec), JACOBIAN=with_jacobian, POINTS=POINTS, LEVELS=LEVELS, num_warps=WARPS,
            )  # fmt: skip
    return features, jacobian


def backward(
    x: Tensor, table: Tensor | None, spec: HashSpec, open_levels: int, grad_features: Tensor | None, grad_jacobian: Tensor | None,
    to_table: bool, to_x: bool,
) -> tuple[Tensor | None, Tensor | None]:  # fmt: skip
    """`reference.table_grad` and `reference.position_grad` in one pass, float32."""
    grid = _grid(len(x), spec, open_levels)
    grad_table = torch.zeros(spec.table_rows, spec.features, device=x.device) if to_table else None
    partial = torch.empty(grid[1] * grid[2], len(x), spec.dims, device=x.device) if to_x else None
    x, table, grad_features, grad_jacobian = (None if t is None else t.contiguous() for t in (x, table, grad_features, grad_jacobian))
    if len(x) and open_levels:
        with _backend.on(x):
            _backward_kernel[grid](
                x, table, _layout(spec, x.device), grad_features, grad_jacobian, grad_table, partial, len(x), open_levels,
                **_constants(spec), HAS_FEATURES=grad_features is not None, HAS_JACOBIAN=grad_jacobian is not None, TO_TABLE=to_table, TO_X=to_x,
                VECTOR=_vector_atomics(x.device, spec.features), POINTS=POINTS, LEVELS=LEVELS, num_warps=WARPS,
            )  # fmt: skip
    return grad_table, None if partial is None else partial.sum(0)


def table_grad(x: Tensor, spec: HashSpec, open_levels: int, grad_features: Tensor | None, grad_jacobian: Tensor | None) -> Tensor:
    """As `reference.table_grad`, float32."""
    return backward(x, None, spec, open_levels, grad_features, grad_jacobian, True, False)[0]


def position_grad(x: Tensor, table: Tensor, spec: HashSpec, open_levels: int, grad_features: Tensor | None, grad_jacobian: Tensor | None) -> Tensor:
    """As `reference.position_grad`, float32."""
    return backward(x, table, spec, open_levels, grad_features, grad_jacobian, False, True)[1]
