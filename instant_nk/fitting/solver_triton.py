"""A Gauss-Newton step of `deformation_solver` as Triton kernels, double precision; the torch code there is the definition.

Eight launches instead of some 350: the normal matrix is gathered block by block, so that nothing is added atomically, and the halved steps of the
line search are tried at once; between the two stand `conjugate_gradients_triton`. Sums run in the same order at every call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from instant_nk.fitting.deformation_solver import in_memory
from instant_nk.kernels import _backend
from instant_nk.kernels._triton_memory import launched, load3, store3

if TYPE_CHECKING:
    from instant_nk.fitting.deformation_solver import Body, Evidence, Pose

LANES = 32  # pairs of anchors, or edges, looked at side by side
ROWS = 64  # points, nodes or edges of a program


@triton.jit
def _turned(rotations, node, x, y, z, live):
    """R x of each node's rotation."""
    r = rotations + node * 9
    a = tl.load(r, mask=live, other=0.0) * x + tl.load(r + 1, mask=live, other=0.0) * y + tl.load(r + 2, mask=live, other=0.0) * z
    b = tl.load(r + 3, mask=live, other=0.0) * x + tl.load(r + 4, mask=live, other=0.0) * y + tl.load(r + 5, mask=live, other=0.0) * z
    c = tl.load(r + 6, mask=live, other=0.0) * x + tl.load(r + 7, mask=live, other=0.0) * y + tl.load(r + 8, mask=live, other=0.0) * z
    return a, b, c


@triton.jit
def _edge(edge, e, nodes, rotations, translations, live):
    """R_i rest, R_j rest, both residuals and the squared length at rest of each edge."""
    i, j = tl.load(edge + 2 * e, mask=live, other=0), tl.load(edge + 2 * e + 1, mask=live, other=0)
    ix, iy, iz = load3(nodes, i, live)
    jx, jy, jz = load3(nodes, j, live)
    x, y, z = jx - ix, jy - iy, jz - iz
    ix, iy, iz = load3(translations, i, live)
    jx, jy, jz = load3(translations, j, live)
    u, v, w = x + jx - ix, y + jy - iy, z + jz - iz
    px, py, pz = _turned(rotations, i, x, y, z, live)
    qx, qy, qz = _turned(rotations, j, x, y, z, live)
    return px, py, pz, qx, qy, qz, px - u, py - v, pz - w, u - qx, v - qy, w - qz, x * x + y * y + z * z


@launched(do_not_specialize=["count", "rigidity", "softening"])
def _relax_edges(edge, nodes, rotations, translations, stiffness, rigidity, softening, weight, count, ROWS: tl.constexpr):
    e = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    live = e < count
    px, py, pz, qx, qy, qz, fx, fy, fz, bx, by, bz, square = _edge(edge, e, nodes, rotations, translations, live)
    strain = 0.5 * (fx * fx + fy * fy + fz * fz + bx * bx + by * by + bz * bz) / tl.maximum(square, 1e-20)
    give = tl.load(softening)
    ease = 1 + strain / (give * give)
    tl.store(weight + e, tl.load(rigidity) * tl.load(stiffness + e, mask=live, other=0.0) / (ease * ease), mask=live)


def edge_weights(body: Body, pose: Pose, rigidity: float | Tensor, softening: float | Tensor) -> Tensor:
    """See `deformation_solver.edge_weights`."""
    weight = torch.empty_like(body.stiffness)
    with _backend.on(weight):
        _relax_edges[(triton.cdiv(len(weight), ROWS),)](
            body.edge, body.nodes, pose.rotations.contiguous(), pose.translations.contiguous(), body.stiffness, in_memory(rigidity, weight), in_memory(softening, weight), weight, len(weight),
            ROWS=ROWS,
        )  # fmt: skip
    return weight


@launched(do_not_specialize=["count"])
def _lay_arms(points, anchors, nodes, rotations, arm, count, KNN: tl.constexpr, ROWS: tl.constexpr):
    """`R_k (x - g_k)`, [N, K, 3]."""
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    live = n < count
    x, y, z = load3(points, n, live)
    for k in range(KNN):  # not unrolled: it runs as fast, and Triton's search for neighbouring accesses takes time with the square of them
        node = tl.load(anchors + n * KNN + k, mask=live, other=0)
        gx, gy, gz = load3(nodes, node, live)
        a, b, c = _turned(rotations, node, x - gx, y - gy, z - gz, live)
        store3(arm, n * KNN + k, a, b, c, live)


@launched(do_not_specialize=["count"])
def _lay_edges(edge, nodes, rotations, translations, table, count, ROWS: tl.constexpr):
    """R_i rest, R_j rest and both residuals, [E, 4, 3]."""
    e = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    live = e < count
    px, py, pz, qx, qy, qz, fx, fy, fz, bx, by, bz, _ = _edge(edge, e, nodes, rotations, translations, live)
    store3(table, 4 * e, px, py, pz, live)
    store3(table, 4 * e + 1, qx, qy, qz, live)
    store3(table, 4 * e + 2, fx, fy, fz, live)
    store3(table, 4 * e + 3, bx, by, bz, live)


@launched()
def _gather_system(
    first, left, right, arm, weights, hessian, gradient, link_start, link, table, edge_weight, own, blocks, rhs, KNN: tl.constexpr, LANES: tl.constexpr
):  # fmt: skip
    u = tl.program_id(0)
    begin, end = tl.load(first + u), tl.load(first + u + 1)
    node = tl.load(own + u)
    zero = tl.zeros((LANES,), tl.float64)
    a00, a01, a02, a10, a11, a12, a20, a21, a22 = zero, zero, zero, zero, zero, zero, zero, zero, zero
    b00, b01, b02, b10, b11, b12, b20, b21, b22 = zero, zero, zero, zero, zero, zero, zero, zero, zero
    c00, c01, c02, c10, c11, c12, c20, c21, c22 = zero, zero, zero, zero, zero, zero, zero, zero, zero
    d00, d01, d02, d11, d12, d22 = zero, zero, zero, zero, zero, zero
    r0, r1, r2, r3, r4, r5 = zero, zero, zero, zero, zero, zero
    for at in range(begin, end, LANES):
        q = at + tl.arange(0, LANES)
        valid = q < end
        i, j = tl.load(left + q, mask=valid, other=0), tl.load(right + q, mask=valid, other=0)
        wi = tl.load(weights + i, mask=valid, other=0.0)
        w = wi * tl.load(weights + j, mask=valid, other=0.0)
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
        if node >= 0:
            gx, gy, gz = load3(gradient, i // KNN, valid)
            wi = tl.where(i == j, wi, 0.0)  # of a point that names the node twice each slot counts once
            r0, r1, r2 = r0 - wi * (ay * gz - az * gy), r1 - wi * (az * gx - ax * gz), r2 - wi * (ax * gy - ay * gx)
            r3, r4, r5 = r3 - wi * gx, r4 - wi * gy, r5 - wi * gz
    begin, end = tl.load(link_start + u), tl.load(link_start + u + 1)
    for at in range(begin, end, LANES):
        q = at + tl.arange(0, LANES)
        valid = q < end
        code = tl.load(link + q, mask=valid, other=0)
        e, role = code // 3, code % 3  # of the edge in this block: 0 from i to itself, 1 from j to itself, 2 between the two
        w = tl.load(edge_weight + e, mask=valid, other=0.0)
        px, py, pz = load3(table, 4 * e, valid)
        qx, qy, qz = load3(table, 4 * e + 1, valid)
        if node >= 0:
            x, y, z = tl.where(role == 0, px, qx), tl.where(role == 0, py, qy), tl.where(role == 0, pz, qz)
            s = tl.where(role == 0, w, -w)
            a00, a11, a22 = a00 + w * (y * y + z * z), a11 + w * (x * x + z * z), a22 + w * (x * x + y * y)
            a01, a10, a02, a20, a12, a21 = a01 - w * x * y, a10 - w * x * y, a02 - w * x * z, a20 - w * x * z, a12 - w * y * z, a21 - w * y * z
            b01, b02, b10, b12, b20, b21 = b01 - s * z, b02 + s * y, b10 + s * z, b12 - s * x, b20 - s * y, b21 + s * x
            c10, c20, c01, c21, c02, c12 = c10 - s * z, c20 + s * y, c01 + s * z, c21 - s * x, c02 - s * y, c12 + s * x
            d00, d11, d22 = d00 + 2 * w, d11 + 2 * w, d22 + 2 * w
            fx, fy, fz = load3(table, 4 * e + 2, valid)
            bx, by, bz = load3(table, 4 * e + 3, valid)
            gx, gy, gz = tl.where(role == 0, fx, bx), tl.where(role == 0, fy, by), tl.where(role == 0, fz, bz)
            r0, r1, r2 = r0 - s * (y * gz - z * gy), r1 - s * (z * gx - x * gz), r2 - s * (x * gy - y * gx)
            r3, r4, r5 = r3 - s * (fx - bx), r4 - s * (fy - by), r5 - s * (fz - bz)
        else:
            b01, b02, b10, b12, b20, b21 = b01 + w * pz, b02 - w * py, b10 - w * pz, b12 + w * px, b20 + w * py, b21 - w * px
            c01, c02, c10, c12, c20, c21 = c01 + w * qz, c02 - w * qy, c10 - w * qz, c12 + w * qx, c20 + w * qy, c21 - w * qx
            d00, d11, d22 = d00 - 2 * w, d11 - 2 * w, d22 - 2 * w
    o = blocks + u.to(tl.int64) * 36
    _store6(o, a00, a01, a02, b00, b01, b02)
    _store6(o + 6, a10, a11, a12, b10, b11, b12)
    _store6(o + 12, a20, a21, a22, b20, b21, b22)
    _store6(o + 18, c00, c01, c02, d00, d01, d02)
    _store6(o + 24, c10, c11, c12, d01, d11, d12)
    _store6(o + 30, c20, c21, c22, d02, d12, d22)
    if node >= 0:
        _store6(rhs + 6 * node, r0, r1, r2, r3, r4, r5)


@triton.jit
def _store6(row, v0, v1, v2, v3, v4, v5):
    tl.store(row, tl.sum(v0, 0))
    tl.store(row + 1, tl.sum(v1, 0))
    tl.store(row + 2, tl.sum(v2, 0))
    tl.store(row + 3, tl.sum(v3, 0))
    tl.store(row + 4, tl.sum(v4, 0))
    tl.store(row + 5, tl.sum(v5, 0))


def normal_equations(body: Body, pose: Pose, evidence: Evidence, edge_weight: Tensor) -> tuple[Tensor, Tensor]:
    """Upper blocks f64 [U, 6, 6] and right-hand side [M, 6]; see `deformation_solver._normal_equations`."""
    pattern, gather, knn = body.pattern, body.pattern.gather, body.anchors.shape[1]
    arm = body.points.new_empty(len(body.points), knn, 3)
    table = body.points.new_empty(len(body.edge), 4, 3)
    blocks, rhs = body.points.new_empty(len(pattern.blocks), 6, 6), torch.empty(len(body.nodes), 6, dtype=arm.dtype, device=arm.device)
    motion = body.nodes, pose.rotations.contiguous(), pose.translations.contiguous()
    with _backend.on(arm):
        _lay_arms[(triton.cdiv(len(arm), ROWS),)](body.points, body.anchors, *motion[:2], arm, len(arm), KNN=knn, ROWS=ROWS)
        if len(table):
            _lay_edges[(triton.cdiv(len(table), ROWS),)](body.edge, *motion, table, len(table), ROWS=ROWS)
        _gather_system[(len(blocks),)](
            pattern.first, pattern.left, pattern.right, arm, body.weights, evidence.hessian.contiguous(), evidence.gradient.contiguous(),
            gather.link_start, gather.link, table, edge_weight, gather.own, blocks, rhs, KNN=knn, LANES=LANES, num_warps=1,
        )  # fmt: skip
    return blocks, rhs


@launched(do_not_specialize=["count"])
def _try_steps(twists, rotations, translations, turned, moved, count, TRIES: tl.constexpr, ROWS: tl.constexpr):
    """Each node's motion after the step, after half of it and so on, [T, M, 3, 3] and [T, M, 3]; no node turns by more than a radian."""
    steepest = tl.zeros((ROWS,), tl.float64)
    for start in range(0, count, ROWS):
        n = start + tl.arange(0, ROWS)
        x, y, z = load3(twists, 2 * n, n < count)
        steepest = tl.maximum(steepest, x * x + y * y + z * z)
    longest = tl.minimum(1.0 / tl.maximum(tl.sqrt(tl.max(steepest, 0)), 1e-12), 1.0)
    m = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    live = m < count
    ox, oy, oz = load3(twists, 2 * m, live)
    sx, sy, sz = load3(twists, 2 * m + 1, live)
    tx, ty, tz = load3(translations, m, live)
    length = longest
    for t in range(TRIES):
        x, y, z = length * ox, length * oy, length * oz
        squared = x * x + y * y + z * z
        small = squared < 1e-4
        safe = tl.where(small, 1.0, squared)
        angle = tl.sqrt(safe)
        one = tl.where(small, 1 - squared / 6 + squared * squared / 120, tl.sin(angle) / angle)
        two = tl.where(small, 0.5 - squared / 24 + squared * squared / 720, (1 - tl.cos(angle)) / safe)
        e00, e01, e02 = 1 - two * (y * y + z * z), two * x * y - one * z, two * x * z + one * y
        e10, e11, e12 = two * x * y + one * z, 1 - two * (x * x + z * z), two * y * z - one * x
        e20, e21, e22 = two * x * z - one * y, two * y * z + one * x, 1 - two * (x * x + y * y)
        row = t * count + m
        for b in tl.static_range(3):
            r0, r1 = tl.load(rotations + m * 9 + b, mask=live, other=0.0), tl.load(rotations + m * 9 + 3 + b, mask=live, other=0.0)
            r2 = tl.load(rotations + m * 9 + 6 + b, mask=live, other=0.0)
            tl.store(turned + row * 9 + b, e00 * r0 + e01 * r1 + e02 * r2, mask=live)
            tl.store(turned + row * 9 + 3 + b, e10 * r0 + e11 * r1 + e12 * r2, mask=live)
            tl.store(turned + row * 9 + 6 + b, e20 * r0 + e21 * r1 + e22 * r2, mask=live)
        store3(moved, row, tx + length * sx, ty + length * sy, tz + length * sz, live)
        length = 0.5 * length


@launched(do_not_specialize=["count", "edges", "knots", "own"])
def _weigh_tries(
    points, anchors, weights, nodes, rotations, translations, turned, moved, hessian, gradient, edge, edge_weight, energies,
    count, edges, knots, own, TRIES: tl.constexpr, KNN: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """What each try costs, a sum per program: the first `own` programs have the evidence of points, the others the rigidity of edges.

    The last row is the rigidity of where the step began, where evidence costs nothing.
    """
    program, attempt = tl.program_id(0), tl.program_id(1)
    begun = attempt == TRIES
    n = program * ROWS + tl.arange(0, ROWS)
    energy = tl.zeros((ROWS,), tl.float64)
    there = turned + tl.where(begun, 0, attempt) * knots * 9
    shifted = moved + tl.where(begun, 0, attempt) * knots * 3
    if program < own:
        live = n < tl.where(begun, 0, count)
        x, y, z = load3(points, n, live)
        dx, dy, dz = energy, energy, energy
        for k in range(KNN):
            node, w = tl.load(anchors + n * KNN + k, mask=live, other=0), tl.load(weights + n * KNN + k, mask=live, other=0.0)
            gx, gy, gz = load3(nodes, node, live)
            ax, ay, az = _turned(there, node, x - gx, y - gy, z - gz, live)
            bx, by, bz = _turned(rotations, node, x - gx, y - gy, z - gz, live)
            sx, sy, sz = load3(shifted, node, live)
            tx, ty, tz = load3(translations, node, live)
            dx, dy, dz = dx + w * (ax - bx + sx - tx), dy + w * (ay - by + sy - ty), dz + w * (az - bz + sz - tz)
        gx, gy, gz = load3(gradient, n, live)
        hx, hy, hz = _turned(hessian, n, dx, dy, dz, live)
        energy = dx * (0.5 * hx + gx) + dy * (0.5 * hy + gy) + dz * (0.5 * hz + gz)
    else:
        e = n - own * ROWS
        live = e < edges
        if begun:
            there, shifted = rotations, translations
        px, py, pz, qx, qy, qz, fx, fy, fz, bx, by, bz, _ = _edge(edge, e, nodes, there, shifted, live)
        w = tl.load(edge_weight + e, mask=live, other=0.0)
        energy = 0.5 * w * (fx * fx + fy * fy + fz * fz + bx * bx + by * by + bz * bz)
    tl.store(energies + attempt * tl.num_programs(0) + program, tl.sum(energy, 0))


@launched(do_not_specialize=["count", "programs"])
def _take_best(twists, rotations, translations, turned, moved, energies, new_rotations, new_translations, length, count, programs,
               ROOM: tl.constexpr, TRIES: tl.constexpr, ROWS: tl.constexpr):  # fmt: skip
    """The pose after the longest step that lowers the energy; not a number where a twist is not."""
    sick = tl.zeros((ROWS,), tl.float64)
    for start in range(0, count, ROWS):
        n = start + tl.arange(0, ROWS)
        x, y, z = load3(twists, 2 * n, n < count)
        u, v, w = load3(twists, 2 * n + 1, n < count)
        sick += 0.0 * (x + y + z + u + v + w)
    sick = tl.sum(sick, 0)
    at = tl.arange(0, ROOM)
    start_energy = tl.sum(tl.load(energies + TRIES * programs + at, mask=at < programs, other=0.0), 0)
    chosen, taken, step = tl.full((), TRIES, tl.int32), tl.zeros((), tl.float64), tl.full((), 1.0, tl.float64)
    for t in tl.static_range(TRIES):
        energy = tl.sum(tl.load(energies + t * programs + at, mask=at < programs, other=0.0), 0)
        better = (energy <= start_energy) & (chosen == TRIES)
        chosen, taken = tl.where(better, t, chosen), tl.where(better, step, taken)
        step = 0.5 * step
    m = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    live, went = m < count, chosen < TRIES
    row = tl.where(went, chosen, 0) * count + m
    for a in tl.static_range(9):
        tried, before = tl.load(turned + row * 9 + a, mask=live, other=0.0), tl.load(rotations + m * 9 + a, mask=live, other=0.0)
        tl.store(new_rotations + m * 9 + a, tl.where(went, tried, before) + sick, mask=live)
    for a in tl.static_range(3):
        tried, before = tl.load(moved + row * 3 + a, mask=live, other=0.0), tl.load(translations + m * 3 + a, mask=live, other=0.0)
        tl.store(new_translations + m * 3 + a, tl.where(went, tried, before) + sick, mask=live)
    tl.store(length, taken + sick, mask=tl.program_id(0) == 0)


def search_line(body: Body, pose: Pose, evidence: Evidence, edge_weight: Tensor, twists: Tensor, tries: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rotations and translations after the longest of `tries` halved steps that lowers the energy, and its length []; see `deformation_solver`."""
    m, n, edges, knn = len(body.nodes), len(body.points), len(body.edge), body.anchors.shape[1]
    turned, moved = twists.new_empty(tries, m, 3, 3), twists.new_empty(tries, m, 3)
    rotations, translations = pose.rotations.contiguous(), pose.translations.contiguous()
    own, every = triton.cdiv(n, ROWS), triton.cdiv(n, ROWS) + triton.cdiv(edges, ROWS)
    energies, length = twists.new_empty(tries + 1, every), twists.new_empty(())
    result, programs = (torch.empty_like(rotations), torch.empty_like(translations)), triton.cdiv(m, ROWS)
    with _backend.on(twists):
        _try_steps[(programs,)](twists, rotations, translations, turned, moved, m, TRIES=tries, ROWS=ROWS)
        _weigh_tries[(every, tries + 1)](
            body.points, body.anchors, body.weights, body.nodes, rotations, translations, turned, moved, evidence.hessian.contiguous(),
            evidence.gradient.contiguous(), body.edge, edge_weight, energies, n, edges, m, own, TRIES=tries, KNN=knn, ROWS=ROWS,
        )  # fmt: skip
        _take_best[(programs,)](
            twists,
            rotations,
            translations,
            turned,
            moved,
            energies,
            *result,
            length,
            m,
            every,
            ROOM=triton.next_power_of_2(every),
            TRIES=tries,
            ROWS=ROWS,
        )
    return *result, length
