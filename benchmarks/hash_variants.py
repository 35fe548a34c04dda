"""Variants of the hash encoding's kernels that were tried; docs/kernels.md says what was predicted and what was measured.

Each experiment answers one question: how many lanes should share a point, should hashed rows lie in blocks or in lines (each corner
hashed by itself, as Müller et al. have it), is a two-float atomic worth its assembly, do runs of samples in one cell pay for being
summed in registers first, does sorting help, what do the levels cost one by one, and which shape of a program is best. `scatter` and `gather` here are bare loops over the table, without the production kernels' extras.
"""

from __future__ import annotations

import itertools
from functools import partial

import torch
import triton
import triton.language as tl

from instant_nk.kernels import hash_encoding
from instant_nk.kernels._triton_memory import load_pair
from instant_nk.kernels.hash_encoding import triton as production

N = 1 << 20


@triton.jit
def _parts(x, n, live, entry, DIMS: tl.constexpr, BLOCKS: tl.constexpr):
    """First row and kind of the level; per axis what the near and the far corner add to the row, and the fraction in the cell."""
    p0, p1, p2, p3 = production._position(x, n, live, DIMS)
    offset, dense = tl.load(entry + 2 * DIMS) >> 1, (tl.load(entry + 2 * DIMS) & 1) != 0
    alone = dense | (not BLOCKS)  # a corner hashed by itself adds its index times a prime, as it adds its index times a stride where all are stored
    n0, f0, r0, c0 = production._cell(p0, 0, entry, alone, DIMS)
    n1, f1, r1, c1 = production._cell(p1, 1, entry, alone, DIMS)
    n2, f2, r2, c2 = production._cell(p2, 2, entry, alone, DIMS)
    n3, f3, r3 = n2 * 0, f2 * 0, r2 * 0.0
    if DIMS == 4:
        n3, f3, r3, c3 = production._cell(p3, 3, entry, alone, DIMS)
    return offset, dense, n0, f0, r0, n1, f1, r1, n2, f2, r2, n3, f3, r3


@triton.jit
def _step(dense, row, weight, bit, near, far, fraction):
    """Row and weight with one axis more, on its near (0) or far (1) side."""
    return production._join(dense, row, tl.where(bit != 0, far, near)), weight * tl.where(bit != 0, fraction, 1.0 - fraction)


@triton.jit
def _corner(x, n, live, entry, b0, b1, b2, b3, DIMS: tl.constexpr, BLOCKS: tl.constexpr, MASK: tl.constexpr):
    """Row and weight of one corner of each lane's cell; what corners share is computed once, as the compiler sees."""
    offset, dense, n0, f0, r0, n1, f1, r1, n2, f2, r2, n3, f3, r3 = _parts(x, n, live, entry, DIMS, BLOCKS)
    row, w = _step(dense, n0 * 0, r0 * 0.0 + 1.0, b0, n0, f0, r0)
    row, w = _step(dense, row, w, b1, n1, f1, r1)
    row, w = _step(dense, row, w, b2, n2, f2, r2)
    if DIMS == 4:
        row, w = _step(dense, row, w, b3, n3, f3, r3)
    return (row & MASK).to(tl.int32) + offset, w


@triton.jit
def _scatter_kernel(
    x, layout, grad, out, n_points,
    DIMS: tl.constexpr, WIDTH: tl.constexpr, MASK: tl.constexpr, MODE: tl.constexpr, BLOCKS: tl.constexpr, SIZE: tl.constexpr, LEVELS: tl.constexpr,
):  # fmt: skip
    """MODE: one = one lane a point; pair = two lanes, along x; square = four lanes, across x and y; four = four lanes (side, channel) with scalar
    atomics; and as pair: scalar = scalar atomics, half = half2 atomics, store = plain stores, none = no memory.
    """
    lane = tl.arange(0, SIZE)
    LANES: tl.constexpr = 1 if MODE == "one" else 4 if MODE == "four" or MODE == "square" else 2
    n = tl.program_id(0).to(tl.int64) * (SIZE // LANES) + lane // LANES
    live = n < n_points
    for i in range(LEVELS):
        level = tl.program_id(1) * LEVELS + i
        entry = layout + level * (2 * DIMS + 4)
        ga, gb = load_pair(grad, n * WIDTH + level * 2, live)
        LANE_SIDES: tl.constexpr = 1 if MODE == "one" else 4 if MODE == "square" else 2
        for corner in tl.static_range((1 << DIMS) // LANE_SIDES):
            if MODE == "one":
                bits = lane * 0 + corner
            elif MODE == "square":
                bits = (lane & 3) + 4 * corner
            elif MODE == "four":
                bits = ((lane >> 1) & 1) + 2 * corner
            else:
                bits = (lane & 1) + 2 * corner
            row, v = _corner(x, n, live, entry, bits & 1, bits & 2, bits & 4, bits & 8, DIMS, BLOCKS, MASK)
            index = row * 2
            if MODE == "one" or MODE == "pair" or MODE == "square":
                production._add_pair(out, index, v * ga, v * gb, live, True)
            elif MODE == "four":
                tl.atomic_add(out + index + (lane & 1), v * tl.where((lane & 1) == 0, ga, gb), mask=live, sem="relaxed")
            elif MODE == "scalar":
                production._add_pair(out, index, v * ga, v * gb, live, False)
            elif MODE == "half":
                a = (v * ga).to(tl.float16).to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF
                b = (v * gb).to(tl.float16).to(tl.int16, bitcast=True).to(tl.int32) << 16
                tl.inline_asm_elementwise(
                    "{.reg .pred p; setp.ne.b32 p, $3, 0; @p red.relaxed.gpu.global.add.noftz.f16x2 [$1], $2; mov.u32 $0, 0;}",
                    "=r,l,r,r",
                    [(out + index).to(tl.int64), a | b, live.to(tl.int32)],
                    dtype=tl.int32,
                    is_pure=False,
                    pack=1,
                )
            elif MODE == "store":
                bits = (v * ga).to(tl.int32, bitcast=True).to(tl.int64) << 32
                tl.store((out + index).to(tl.pointer_type(tl.int64)), bits | (v * gb).to(tl.int32, bitcast=True).to(tl.int64), mask=live)
            else:
                tl.store(out + index, v * ga * gb, mask=live & (v * ga == 12345.678))


@triton.jit
def _runs_kernel(
    x, layout, grad, out, n_points, DIMS: tl.constexpr, WIDTH: tl.constexpr, MASK: tl.constexpr, RUN: tl.constexpr, SIZE: tl.constexpr, LEVELS: tl.constexpr
):
    """Two lanes serve RUN consecutive points; additions to one row in a row are summed in registers first."""
    lane = tl.arange(0, SIZE)
    first = (tl.program_id(0).to(tl.int64) * (SIZE // 2) + (lane >> 1)) * RUN
    CORNERS: tl.constexpr = 1 << (DIMS - 1)
    for i in range(LEVELS):
        level = tl.program_id(1) * LEVELS + i
        entry = layout + level * (2 * DIMS + 4)
        for corner in tl.static_range(CORNERS):
            held = tl.full([SIZE], -1, tl.int32)
            a, b = tl.zeros([SIZE], tl.float32), tl.zeros([SIZE], tl.float32)
            bits = (lane & 1) + 2 * corner
            for r in tl.static_range(RUN):
                n = first + r
                live = n < n_points
                ga, gb = load_pair(grad, n * WIDTH + level * 2, live)
                index, weight = _corner(x, n, live, entry, bits & 1, bits & 2, bits & 4, bits & 8, DIMS, True, MASK)
                v = tl.where(live, weight, 0.0)
                leave = index != held
                production._add_pair(out, held * 2, a, b, leave & (held >= 0), True)
                a, b = tl.where(leave, 0.0, a) + v * ga, tl.where(leave, 0.0, b) + v * gb
                held = index
            production._add_pair(out, held * 2, a, b, held >= 0, True)


@triton.jit
def _gather_kernel(
    x, layout, table, out, n_points,
    DIMS: tl.constexpr, WIDTH: tl.constexpr, MASK: tl.constexpr, LANES: tl.constexpr, BLOCKS: tl.constexpr, SIZE: tl.constexpr, LEVELS: tl.constexpr,
):  # fmt: skip
    """One, two or four lanes a point; the result is stored by channel, without regard for who stores it."""
    lane = tl.arange(0, SIZE)
    n = tl.program_id(0).to(tl.int64) * (SIZE // LANES) + lane // LANES
    live = n < n_points
    for i in range(LEVELS):
        level = tl.program_id(1) * LEVELS + i
        entry = layout + level * (2 * DIMS + 4)
        ua, ub = tl.zeros([SIZE], tl.float32), tl.zeros([SIZE], tl.float32)
        for corner in tl.static_range((1 << DIMS) // LANES):
            bits = lane % LANES + LANES * corner
            row, v = _corner(x, n, live, entry, bits & 1, bits & 2, bits & 4, bits & 8, DIMS, BLOCKS, MASK)
            va, vb = load_pair(table, row * 2, live)
            ua += v * va
            ub += v * vb
        if LANES > 1:
            tl.store(out + n * WIDTH + level * 2 + (lane & 1), ua + ub, mask=live)
        else:
            tl.store(out + n * WIDTH + level * 2, ua, mask=live)
            tl.store(out + n * WIDTH + level * 2 + 1, ub, mask=live)


def _launch(kernel, x, spec: hash_encoding.HashSpec, values, out, lanes: float, size: int, levels: int, warps: int, **variant):
    """Run a kernel that gives each point `lanes` of a program's `size` lanes; returns what it wrote to."""
    constants = {"DIMS": spec.dims, "WIDTH": spec.width, "MASK": (1 << spec.log2_table_size) - 1, "SIZE": size, "LEVELS": min(levels, spec.levels)}
    grid = triton.cdiv(len(x), int(size / lanes)), triton.cdiv(spec.levels, levels)
    kernel[grid](x, production._layout(spec, x.device, False)[0], values, out, len(x), **constants, **variant, num_warps=warps)
    return out


def scatter(x, grad, spec, mode: str, size: int = 256, levels: int = 4, warps: int = 4, out=None, blocks: bool = True):
    dtype = torch.float16 if mode == "half" else torch.float32
    out = torch.zeros(spec.table_rows, 2, device=x.device, dtype=dtype) if out is None else out
    return _launch(_scatter_kernel, x, spec, grad, out, {"one": 1, "four": 4, "square": 4}.get(mode, 2), size, levels, warps, MODE=mode, BLOCKS=blocks)


def runs(x, grad, spec, run: int, size: int = 256, levels: int = 4, warps: int = 4):
    return _launch(_runs_kernel, x, spec, grad, torch.zeros(spec.table_rows, 2, device=x.device), 2 / run, size, levels, warps, RUN=run)


def gather(x, table, spec, lanes: int, size: int = 256, levels: int = 4, warps: int = 4, blocks: bool = True):
    return _launch(_gather_kernel, x, spec, table, torch.empty(len(x), spec.width, device=x.device), lanes, size, levels, warps, LANES=lanes, BLOCKS=blocks)


def morton_order(x: torch.Tensor, bits: int = 9) -> torch.Tensor:
    """Points in the order of a space-filling curve over their first three coordinates."""
    code = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    cell = (x[:, :3] * (1 << bits)).long().clamp(0, (1 << bits) - 1)
    for bit, axis in itertools.product(range(bits), range(3)):
        code |= ((cell[:, axis] >> bit) & 1) << (3 * bit + axis)
    return code.int().argsort()


def main(table) -> None:
    """Time every experiment and append it to the results."""
    from benchmarks.kernels import POINTS, isotropic

    for dims in (3, 4):
        spec = isotropic(dims)
        for kind, points in POINTS.items():
            experiment(table, spec, points(N, dims, "cuda"), f"2^20 {dims}-D {kind}")


def experiment(table, spec: hash_encoding.HashSpec, x: torch.Tensor, shape: str) -> None:
    """All variants on one set of points; those that should agree with the production kernel are checked first."""
    weights = torch.rand(spec.table_rows, 2, device="cuda") - 0.5
    grad = torch.randn(N, spec.width, device="cuda")
    truth = production.table_grad(x, spec, spec.levels, grad, None)

    def add(name: str, variant: str, call, exact: bool = False, dtype: str = "float32") -> None:
        if exact:
            error = float((call() - truth).norm() / truth.norm())
            assert error < 1e-4, f"{name} {variant}: relative error {error:.1e}"
        table.add(name, variant, shape, dtype, N, call)

    for mode in ("square", "pair", "scalar", "one", "four", "half", "store", "none"):
        add("scatter", mode, partial(scatter, x, grad, spec, mode), exact=mode in ("square", "pair", "scalar", "one", "four"))
    for mode in ("square", "pair", "half"):
        add("scatter, rows in lines", mode, partial(scatter, x, grad, spec, mode, blocks=False))
    for lanes, name in ((2, "2 lanes"), (4, "4 lanes")):
        for values in (weights, weights.half()):
            dtype = str(values.dtype).removeprefix("torch.")
            add("gather", name, partial(gather, x, values, spec, lanes), dtype=dtype)
            add("gather, rows in lines", name, partial(gather, x, values, spec, lanes, blocks=False), dtype=dtype)
    for run in (2, 4, 8):
        add("scatter runs", str(run), partial(runs, x, grad, spec, run), exact=True)
    for shape_of in ((1, 256, 4), (2, 256, 4), (8, 256, 4), (16, 256, 4), (4, 128, 4), (4, 512, 4), (4, 512, 8), (4, 64, 2), (4, 1024, 8)):
        levels, size, warps = shape_of
        label = f"L{levels} S{size} W{warps}"
        add("scatter pair", label, partial(scatter, x, grad, spec, "pair", size, levels, warps))
        add("gather 2 lanes", label, partial(gather, x, weights, spec, 2, size, levels, warps))
    add("gather 2 lanes", "L4 S256 W4", partial(gather, x, weights, spec, 2))
    add("gather 1 lane", "L4 S256 W4", partial(gather, x, weights, spec, 1))
    add("morton order", "sort", partial(morton_order, x))
    sorted_x = x[morton_order(x)].contiguous()
    add("scatter sorted", "pair", partial(scatter, sorted_x, grad, spec, "pair"))
    add("scatter sorted", "runs 4", partial(runs, sorted_x, grad, spec, 4))
    add("gather sorted", "2 lanes", partial(gather, sorted_x, weights, spec, 2))
    add("zero the table", "torch.zeros", partial(torch.zeros, spec.table_rows, 2, device="cuda"))
    for level in range(0, spec.levels, 3):
        single = hash_encoding.HashSpec(spec.dims, 2, 19, (spec.resolutions[level],))
        name, out, thin = f"one level of {spec.resolutions[level][0]}", torch.zeros(single.table_rows, 2, device="cuda"), grad[:, :2].contiguous()
        add(name, "scatter pair", partial(scatter, x, thin, single, "pair", levels=1, out=out))
        add(name, "scatter runs 4", partial(runs, x, thin, single, 4, levels=1))
        add(name, "gather", partial(gather, x, weights, single, 2, levels=1))
