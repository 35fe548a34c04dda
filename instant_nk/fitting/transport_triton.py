"""Soft assignment of `correspondences` as Triton kernels, kernel values in single precision as on the CPU; the torch code there is the definition."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from instant_nk.kernels import _backend
from instant_nk.kernels._triton_memory import launched, load3

if TYPE_CHECKING:
    from instant_nk.fitting.correspondences import Cloud

ROWS = 16  # points of a program,
COLUMNS = 64  # and partners it looks at side by side


@triton.jit
def _apart(square, one, n, other, m, own, theirs, factor):
    """`square` and the squared distances between rows n of one array [N, 3] and rows m of another, times `factor`."""
    x, y, z = load3(one, n, own)
    a, b, c = load3(other, m, theirs)
    dx, dy, dz = x[:, None] - a[None], y[:, None] - b[None], z[:, None] - c[None]
    return square + factor * (dx * dx + dy * dy + dz * dz)


@launched(do_not_specialize=["rows", "others", "width", "blur"])
def _affinity(
    points, normals, colours, area, there, facing, shades, their_area, blur, kernel, rows, others, width, facing_factor, shade_factor,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Share of row points that would go to column points, f32: [0] to the target's, [1] to their own cloud's."""
    itself = tl.program_id(2) == 1
    columns = tl.where(itself, rows, others)
    if itself:
        there, facing, shades, their_area = points, normals, colours, area
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    m = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    own, theirs, sigma = n < rows, m < columns, tl.load(blur)
    half = tl.zeros((ROWS, COLUMNS), tl.float64)
    half = _apart(half, points, n, there, m, own, theirs, 0.5 / (sigma * sigma))
    half = _apart(half, normals, n, facing, m, own, theirs, facing_factor)
    half = _apart(half, colours, n, shades, m, own, theirs, shade_factor)
    size = tl.load(their_area + m, mask=theirs, other=1.0) / (6.283185307179586 * sigma * sigma)
    value = tl.exp(-half.to(tl.float32)) * size.to(tl.float32)[None]
    at = kernel + tl.program_id(2).to(tl.int64) * rows * width + n[:, None] * width + m[None]
    tl.store(at, value, mask=own[:, None] & theirs[None])


@launched(do_not_specialize=["rows", "others", "width"])
def _balance_rows(kernel, row, column, rows, others, width, outlier, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    which = tl.program_id(1)
    columns = tl.where(which == 1, rows, others)
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, columns, COLUMNS):
        m = start + tl.arange(0, COLUMNS)
        inside = (n < rows)[:, None] & (m < columns)[None]
        value = tl.load(kernel + which.to(tl.int64) * rows * width + n[:, None] * width + m[None], mask=inside, other=0.0)
        total += value * tl.load(column + which * width + m, mask=m < columns, other=0.0)[None]
    tl.store(row + which * rows + n, 1 / (tl.sum(total, 1) + outlier), mask=n < rows)


@launched(do_not_specialize=["rows", "others", "width", "mean_area"])
def _balance_columns(kernel, row, column, mean_area, their_area, rows, others, width, outlier, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    which = tl.program_id(1)
    columns = tl.where(which == 1, rows, others)
    m = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    total = tl.zeros((COLUMNS, ROWS), tl.float32)
    for start in range(0, rows, COLUMNS):
        n = start + tl.arange(0, COLUMNS)
        inside = (n < rows)[:, None] & (m < columns)[None]
        value = tl.load(kernel + which.to(tl.int64) * rows * width + n[:, None] * width + m[None], mask=inside, other=0.0)
        total += value * tl.load(row + which * rows + n, mask=n < rows, other=0.0)[:, None]
    area = tl.maximum(tl.load(their_area + m, mask=m < others, other=1.0), 1e-30)
    ratio = tl.where(which == 1, 1.0, tl.load(mean_area) / area).to(tl.float32)
    tl.store(column + which * width + m, 1 / (ratio * tl.sum(total, 0) + outlier), mask=m < columns)


@launched(do_not_specialize=["rows", "others", "width"])
def _carry(kernel, row, column, points, there, shift, share, rows, others, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Where the balanced mass of each point goes, less where it goes within its own cloud, [N, 3], and how much goes to the target, at most 1, [N]."""
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    own = n < rows
    ox, oy, oz = load3(points, n, own)
    nothing = tl.zeros((ROWS,), tl.float64)
    x, y, z, matched = nothing, nothing, nothing, nothing
    for which in tl.static_range(2):
        columns = rows if which == 1 else others
        goal = points if which == 1 else there
        none = tl.zeros((ROWS, COLUMNS), tl.float64)
        sx, sy, sz, mass = none, none, none, none
        for start in range(0, columns, COLUMNS):
            m = start + tl.arange(0, COLUMNS)
            inside = own[:, None] & (m < columns)[None]
            at = kernel + which * rows * width + n[:, None] * width + m[None]
            value = tl.load(at, mask=inside, other=0.0) * tl.load(column + which * width + m, mask=m < columns, other=0.0)[None]
            a, b, c = load3(goal, m, m < columns)
            mass += value
            sx, sy, sz = sx + value * (a[None] - ox[:, None]), sy + value * (b[None] - oy[:, None]), sz + value * (c[None] - oz[:, None])
        whole = tl.sum(mass, 1)
        scaled = tl.load(row + which * rows + n, mask=own, other=0.0)
        least = tl.maximum(scaled * whole, 1e-12)
        sign = -1.0 if which == 1 else 1.0
        x, y, z = x + sign * scaled * tl.sum(sx, 1) / least, y + sign * scaled * tl.sum(sy, 1) / least, z + sign * scaled * tl.sum(sz, 1) / least
        if which == 0:
            matched = scaled * whole
    tl.store(shift + 3 * n, x, mask=own)
    tl.store(shift + 3 * n + 1, y, mask=own)
    tl.store(shift + 3 * n + 2, z, mask=own)
    tl.store(share + n, tl.minimum(matched, 1.0), mask=own)


def displacement(
    source: Cloud, target: Cloud, sigma: Tensor, rounds: int, outlier: float, normal_spread: float, colour_spread: float
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """See `correspondences.soft_displacement`, whose constants the last four are."""
    n, p = len(source.area), len(target.area)
    width = max(n, p)
    single = {"dtype": torch.float32, "device": source.points.device}
    kernel, row, column = torch.empty(2, n, width, **single), torch.empty(2, n, **single), torch.ones(2, width, **single)
    shift, share = torch.empty_like(source.points), torch.empty_like(source.area)
    sizes, tile = (n, p, width), {"ROWS": ROWS, "COLUMNS": COLUMNS}
    own, goal = ((c.points.contiguous(), c.normals.contiguous(), c.colours.contiguous(), c.area.contiguous()) for c in (source, target))
    mean_area, down, across = source.area.mean(), (triton.cdiv(n, ROWS), 2), (triton.cdiv(width, ROWS), 2)
    with _backend.on(shift):
        _affinity[(triton.cdiv(n, ROWS), triton.cdiv(width, COLUMNS), 2)](
            *own, *goal, sigma, kernel, *sizes, 0.5 / normal_spread, 0.5 / colour_spread**2, **tile
        )  # fmt: skip
        for _ in range(rounds):
            _balance_rows[down](kernel, row, column, *sizes, outlier, **tile)
            _balance_columns[across](kernel, row, column, mean_area, goal[3], *sizes, outlier, **tile)
        _balance_rows[down](kernel, row, column, *sizes, outlier, **tile)
        _carry[down[:1]](kernel, row, column, own[0], goal[0], shift, share, *sizes, **tile)
    return shift, share


@launched(do_not_specialize=["count"])
def _lay_areas(points, area, count, factor, NEIGHBOURS: tl.constexpr, ROOM: tl.constexpr, ABREAST: tl.constexpr):
    n = tl.program_id(0)
    x, y, z = tl.load(points + 3 * n), tl.load(points + 3 * n + 1), tl.load(points + 3 * n + 2)
    room = tl.arange(0, ROOM)
    nearest = tl.where(room <= NEIGHBOURS, float("inf"), -1.0).to(tl.float64)  # slots that are not needed are never the worst
    for start in range(0, count, ABREAST):
        m = start + tl.arange(0, ABREAST)
        a, b, c = load3(points, m, m < count)
        square = tl.where(m < count, (a - x) * (a - x) + (b - y) * (b - y) + (c - z) * (c - z), float("inf"))
        for _ in range(NEIGHBOURS + 1):  # the nearest of these and of those before, one after the other
            least, place = tl.min(square, 0), tl.argmin(square, 0)
            worst, at = tl.max(nearest, 0), tl.argmax(nearest, 0)
            nearest = tl.where(room == at, tl.minimum(least, worst), nearest)
            square = tl.where(tl.arange(0, ABREAST) == place, float("inf"), square)
    tl.store(area + n, factor * tl.max(nearest, 0))


def point_areas(points: Tensor, neighbours: int) -> Tensor:
    """See `correspondences.point_areas`."""
    points, area = points.contiguous(), torch.empty_like(points[:, 0])
    with _backend.on(area):
        _lay_areas[(len(points),)](
            points, area, len(points), math.pi / max(neighbours, 1), NEIGHBOURS=neighbours, ROOM=triton.next_power_of_2(neighbours + 1), ABREAST=1024
        )  # fmt: skip
    return area
