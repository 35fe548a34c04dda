"""The three primitives of the hash encoding as compiled CPU loops (numba): no intermediates, one pass over the points.

Levels are independent, also in the table, so that threads share them without atomics. About eight times faster than
the torch reference; `reference.py` is the definition. The number of axes D and of channels F reach the compiler as the
lengths of tuples, which makes them constants; the machine code is cached on disk.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from instant_nk.kernels._loop import loop
from instant_nk.kernels._threads import each, over_rows
from instant_nk.kernels.hash_encoding.spec import PRIMES, HashSpec

_compile = loop(fastmath=True, error_model="numpy")
_inline = njit(fastmath=True, inline="always")


@_inline
def _cell(x, n, cells, offset, dense, mask, rows, axis, slope):
    """Rows of the corners; axis[d, b] and slope[d, b]: the factor of the weight and its derivative for corner bit b."""
    a0 = b0 = a1 = b1 = a2 = b2 = a3 = b3 = 0  # what either corner along an axis adds to the row
    stride = 1
    for d in range(len(cells)):
        r = cells[d]
        p = x[n, d] * np.float32(r)
        i = min(max(int(np.floor(p)), 0), r - 1)
        f = p - np.float32(i)
        axis[d, 0] = np.float32(1) - f
        axis[d, 1] = f
        slope[d, 0] = -np.float32(r)
        slope[d, 1] = np.float32(r)
        if dense:
            a = i * stride
            b = a + stride
            stride *= r + 1
        else:
            a = (((i >> 1) * PRIMES[d]) << len(cells)) + ((i & 1) << d)
            b = ((((i + 1) >> 1) * PRIMES[d]) << len(cells)) + (((i + 1) & 1) << d)
        if d == 0:
            a0, b0 = a, b
        elif d == 1:
            a1, b1 = a, b
        elif d == 2:
            a2, b2 = a, b
        else:
            a3, b3 = a, b
    for c in range(1 << len(cells)):
        r0 = b0 if c & 1 else a0
        r1 = b1 if c & 2 else a1
        r2 = b2 if c & 4 else a2
        r3 = b3 if c & 8 else a3
        if dense:
            rows[c] = offset + r0 + r1 + r2 + r3
        else:
            rows[c] = offset + ((r0 ^ r1 ^ r2 ^ r3) & mask)


@_inline
def _weights(cells, axis, slope, w, dw):
    for c in range(1 << len(cells)):
        product = np.float32(1)
        for d in range(len(cells)):
            product *= axis[d, (c >> d) & 1]
        w[c] = product
        for e in range(len(cells)):
            product = slope[e, (c >> e) & 1]
            for d in range(len(cells)):
                if d != e:
                    product *= axis[d, (c >> d) & 1]
            dw[e, c] = product


@_compile
def _forward(x, table, cells, channels, offset, dense, mask, level, features, jacobian, with_jacobian):
    D, F, C = len(cells), len(channels), 1 << len(cells)
    rows, w, dw = np.empty(C, np.int64), np.empty(C, np.float32), np.empty((D, C), np.float32)
    axis, slope = np.empty((D, 2), np.float32), np.empty((D, 2), np.float32)
    for n in range(x.shape[0]):
        _cell(x, n, cells, offset, dense, mask, rows, axis, slope)
        _weights(cells, axis, slope, w, dw)
        for f in range(F):
            total = np.float32(0)
            for c in range(C):
                total += w[c] * table[rows[c], f]
            features[n, level * F + f] = total
        if with_jacobian:
            for d in range(D):
                for f in range(F):
                    total = np.float32(0)
                    for c in range(C):
                        total += dw[d, c] * table[rows[c], f]
                    jacobian[n, d, level * F + f] = total


@_compile
def _table_grad(x, cells, channels, offset, dense, mask, level, g, gj, with_features, with_jacobian, result):
    D, F, C = len(cells), len(channels), 1 << len(cells)
    rows, w, dw = np.empty(C, np.int64), np.empty(C, np.float32), np.empty((D, C), np.float32)
    axis, slope = np.empty((D, 2), np.float32), np.empty((D, 2), np.float32)
    for n in range(x.shape[0]):
        _cell(x, n, cells, offset, dense, mask, rows, axis, slope)
        _weights(cells, axis, slope, w, dw)
        for c in range(C):
            for f in range(F):
                total = np.float32(0)
                if with_features:
                    total += w[c] * g[n, level * F + f]
                if with_jacobian:
                    for d in range(D):
                        total += dw[d, c] * gj[n, d, level * F + f]
                result[rows[c], f] += total


@_compile
def _position_grad(x, table, cells, channels, offset, dense, mask, level, g, gj, with_features, with_jacobian, result):
    D, F, C = len(cells), len(channels), 1 << len(cells)
    rows, w, dw = np.empty(C, np.int64), np.empty(C, np.float32), np.empty((D, C), np.float32)
    axis, slope = np.empty((D, 2), np.float32), np.empty((D, 2), np.float32)
    for n in range(x.shape[0]):
        _cell(x, n, cells, offset, dense, mask, rows, axis, slope)
        _weights(cells, axis, slope, w, dw)
        for c in range(C):
            if with_features:
                pull = np.float32(0)
                for f in range(F):
                    pull += table[rows[c], f] * g[n, level * F + f]
                for d in range(D):
                    result[n, d] += dw[d, c] * pull
            if with_jacobian:
                for e in range(D):
                    pull = np.float32(0)
                    for f in range(F):
                        pull += table[rows[c], f] * gj[n, e, level * F + f]
                    for d in range(D):
                        if d != e:
                            product = slope[d, (c >> d) & 1] * slope[e, (c >> e) & 1]
                            for a in range(D):
                                if a != d and a != e:
                                    product *= axis[a, (c >> a) & 1]
                            result[n, d] += product * pull


def _level(spec: HashSpec, level: int) -> tuple[Any, ...]:
    """cells, channels, offset, dense, mask, level: what every loop needs to know of a level."""
    return spec.resolutions[level], (0,) * spec.features, spec.offsets[level], spec.dense[level], (1 << spec.log2_table_size) - 1, level


def _array(tensor: Tensor | None, dims: int = 2) -> np.ndarray:
    return np.empty((0,) * dims, np.float32) if tensor is None else tensor.detach().contiguous().numpy()


def forward(x: Tensor, table: Tensor, spec: HashSpec, open_levels: int, with_jacobian: bool) -> tuple[Tensor, Tensor | None]:
    """As `reference.forward`, float32."""
    new = torch.empty if open_levels == spec.levels else torch.zeros
    features = new(len(x), spec.width)
    jacobian = new(len(x), spec.dims, spec.width) if with_jacobian else None
    xs, tab, y, j = _array(x), _array(table), features.numpy(), _array(jacobian, 3)
    each([lambda level=level: _forward(xs, tab, *_level(spec, level), y, j, with_jacobian) for level in range(open_levels)])
    return features, jacobian


def table_grad(x: Tensor, spec: HashSpec, open_levels: int, grad_features: Tensor | None, grad_jacobian: Tensor | None) -> Tensor:
    """As `reference.table_grad`, float32."""
    result = torch.zeros(spec.table_rows, spec.features)
    xs, g, gj, out = _array(x), _array(grad_features), _array(grad_jacobian, 3), result.numpy()
    flags = grad_features is not None, grad_jacobian is not None
    each([lambda level=level: _table_grad(xs, *_level(spec, level), g, gj, *flags, out) for level in range(open_levels)])
    return result


def position_grad(x: Tensor, table: Tensor, spec: HashSpec, open_levels: int, grad_features: Tensor | None, grad_jacobian: Tensor | None) -> Tensor:
    """As `reference.position_grad`, float32."""
    result = torch.zeros(x.shape)
    xs, tab, g, gj, out = _array(x), _array(table), _array(grad_features), _array(grad_jacobian, 3), result.numpy()
    flags = grad_features is not None, grad_jacobian is not None

    def piece(a: int, b: int) -> None:
        for level in range(open_levels):
            _position_grad(xs[a:b], tab, *_level(spec, level), g[a:b], gj[a:b], *flags, out[a:b])

    over_rows(len(xs), piece)
    return result
