"""What the observed surface says of a pose, as Triton kernels, double precision: `registration.surface_evidence` on a GPU, whose torch code is the definition.

What pairs say is added up atomically, in no fixed order: two runs agree to rounding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from instant_nk.fitting import rivals
from instant_nk.fitting.deformation_solver import in_memory
from instant_nk.kernels import _backend
from instant_nk.kernels._triton_memory import launched, load3, store3

if TYPE_CHECKING:
    from instant_nk.fitting.correspondences import Target
    from instant_nk.fitting.deformation_solver import Body, Evidence, Pose

ROWS = 64  # points or pairs of a program
QUERIES = 16  # points of a program that looks for their nearest neighbours,
ABREAST = 64  # and candidates it compares side by side
BEYOND = 1e6  # scene units: farther than anything
FEATURES = 9  # position, colour and normal


@launched(do_not_specialize=["count"])
def _place(
    points, normals, colours, anchors, weights, nodes, rotations, translations, whole, live_at, normal_at, whole_at, joint, count, spacing, colour_scale, normal_scale,
    KNN: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Where the pose brings the surface points, their normals and wholeness, and the coordinates in which partners are searched, [9, N]."""
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    live = n < count
    px, py, pz = load3(points, n, live)
    mx, my, mz = load3(normals, n, live)
    zero = tl.zeros((ROWS,), tl.float64)
    fx, fy, fz, square, tx, ty, tz, ox, oy, oz = zero, zero, zero, zero, zero, zero, zero, zero, zero, zero
    for k in range(KNN):
        node, w = tl.load(anchors + n * KNN + k, mask=live, other=0), tl.load(weights + n * KNN + k, mask=live, other=0.0)
        gx, gy, gz = load3(nodes, node, live)
        sx, sy, sz = load3(translations, node, live)
        x, y, z = px - gx, py - gy, pz - gz
        r = rotations + node * 9
        r0, r1, r2 = tl.load(r, mask=live, other=0.0), tl.load(r + 1, mask=live, other=0.0), tl.load(r + 2, mask=live, other=0.0)
        r3, r4, r5 = tl.load(r + 3, mask=live, other=0.0), tl.load(r + 4, mask=live, other=0.0), tl.load(r + 5, mask=live, other=0.0)
        r6, r7, r8 = tl.load(r + 6, mask=live, other=0.0), tl.load(r + 7, mask=live, other=0.0), tl.load(r + 8, mask=live, other=0.0)
        ax, ay, az = r0 * x + r1 * y + r2 * z + gx + sx, r3 * x + r4 * y + r5 * z + gy + sy, r6 * x + r7 * y + r8 * z + gz + sz
        ox, oy, oz = tl.where(k == 0, ax, ox), tl.where(k == 0, ay, oy), tl.where(k == 0, az, oz)  # relative to the first anchor's wish: nothing cancels
        ax, ay, az = ax - ox, ay - oy, az - oz
        fx, fy, fz, square = fx + w * ax, fy + w * ay, fz + w * az, square + w * (ax * ax + ay * ay + az * az)
        tx, ty, tz = tx + w * (r0 * mx + r1 * my + r2 * mz), ty + w * (r3 * mx + r4 * my + r5 * mz), tz + w * (r6 * mx + r7 * my + r8 * mz)
    length = tl.maximum(tl.sqrt(tx * tx + ty * ty + tz * tz), 1e-12)
    tx, ty, tz = tx / length, ty / length, tz / length
    apart = 1 + tl.maximum(square - (fx * fx + fy * fy + fz * fz), 0.0) / (spacing * spacing)
    px, py, pz = ox + fx, oy + fy, oz + fz
    store3(live_at, n, px, py, pz, live)
    store3(normal_at, n, tx, ty, tz, live)
    tl.store(whole_at + n, tl.load(whole + n, mask=live, other=0.0) / (apart * apart), mask=live)
    cx, cy, cz = load3(colours, n, live)
    tl.store(joint + n, px, mask=live)
    tl.store(joint + count + n, py, mask=live)
    tl.store(joint + 2 * count + n, pz, mask=live)
    tl.store(joint + 3 * count + n, colour_scale * cx, mask=live)
    tl.store(joint + 4 * count + n, colour_scale * cy, mask=live)
    tl.store(joint + 5 * count + n, colour_scale * cz, mask=live)
    tl.store(joint + 6 * count + n, normal_scale * tx, mask=live)
    tl.store(joint + 7 * count + n, normal_scale * ty, mask=live)
    tl.store(joint + 8 * count + n, normal_scale * tz, mask=live)


@launched(do_not_specialize=["ours", "theirs"])
def _find_nearest(joint, reference, partner, ours, theirs, FAR: tl.constexpr, FEATURES: tl.constexpr, QUERIES: tl.constexpr, ABREAST: tl.constexpr):
    """Of each of our points the nearest of theirs and the reverse, of equally near ones the first; both are given by features, [9, N] and [9, P]."""
    back = tl.program_id(1) == 1
    queries, others = tl.where(back, theirs, ours), tl.where(back, ours, theirs)
    if back:
        joint, reference = reference, joint
    if tl.program_id(0) * QUERIES < queries:
        n = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
        best = tl.full((QUERIES, ABREAST), float("inf"), tl.float64)
        found = tl.zeros((QUERIES, ABREAST), tl.int32)
        for start in range(0, others, ABREAST):
            m = start + tl.arange(0, ABREAST)
            square, size = tl.zeros((QUERIES, ABREAST), tl.float64), tl.zeros((ABREAST,), tl.float64)
            for d in tl.static_range(FEATURES):  # |a - b|^2 without |a|^2, which ranks nothing
                own = -2.0 * tl.load(joint + d * queries + n, mask=n < queries, other=0.0)
                there = tl.load(reference + d * others + m, mask=m < others, other=FAR)
                square += own[:, None] * there[None]
                size += there * there
            square += size[None]
            nearer = square < best
            best, found = tl.where(nearer, square, best), tl.where(nearer, m[None], found)
        least = tl.min(best, 1)
        first = tl.min(tl.where(best == least[:, None], found, 2147483647), 1)
        tl.store(partner + tl.where(back, ours, 0) + n, tl.minimum(first, others - 1), mask=n < queries)


@launched(do_not_specialize=["count"])
def _weigh_probes(live_at, normal_at, pick, rest, certainty, count, reach, apart, closer, cosine, least, ROWS: tl.constexpr):
    """Weight of each probe: the squared distance to the nearest rival over that of the reach; see `rivals.Probes`."""
    n = tl.program_id(0) * 16 + tl.arange(0, 16)
    live = n < count
    at = tl.load(pick + n, mask=live, other=0)
    x, y, z = load3(live_at, at, live)
    u, v, w = load3(normal_at, at, live)
    a, b, c = load3(rest, n, live)
    nearest = tl.full((16, ROWS), float("inf"), tl.float64)
    for start in range(0, count, ROWS):
        m = start + tl.arange(0, ROWS)
        valid = m < count
        other = tl.load(pick + m, mask=valid, other=0)
        ox, oy, oz = load3(live_at, other, valid)
        now = (
            (x[:, None] - ox[None]) * (x[:, None] - ox[None])
            + (y[:, None] - oy[None]) * (y[:, None] - oy[None])
            + (z[:, None] - oz[None]) * (z[:, None] - oz[None])
        )
        ox, oy, oz = load3(rest, m, valid)
        before = (
            (a[:, None] - ox[None]) * (a[:, None] - ox[None])
            + (b[:, None] - oy[None]) * (b[:, None] - oy[None])
            + (c[:, None] - oz[None]) * (c[:, None] - oz[None])
        )
        ox, oy, oz = load3(normal_at, other, valid)
        rival = (before > apart * apart) & (before > closer * closer * now) & (u[:, None] * ox[None] + v[:, None] * oy[None] + w[:, None] * oz[None] >= cosine)
        nearest = tl.where(rival & valid[None], tl.minimum(nearest, now), nearest)
    weight = tl.min(nearest, 1) / (reach * reach)
    tl.store(certainty + n, tl.minimum(tl.maximum(weight, least), 1.0), mask=live)


@triton.jit
def _pair(q, partner, ours):
    """Our point and theirs of each pair: first those found from our side, then those found from theirs."""
    forward, other = q < ours, tl.load(partner + q)
    return tl.where(forward, q, other), tl.where(forward, other, q - ours)


@launched(do_not_specialize=["ours", "theirs", "progress"])
def _gate(partner, live_at, normal_at, there, facing, usable, distance, kept, ours, theirs, longest, cosine, progress, ROWS: tl.constexpr):
    """Length of each pair, infinite where it does not count, and how many count."""
    q = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    live = q < ours + theirs
    s, t = _pair(tl.where(live, q, 0), partner, ours)
    x, y, z = load3(live_at, s, live)
    ox, oy, oz = load3(there, t, live)
    away = tl.sqrt((x - ox) * (x - ox) + (y - oy) * (y - oy) + (z - oz) * (z - oz))
    x, y, z = load3(normal_at, s, live)
    ox, oy, oz = load3(facing, t, live)
    reach = longest * (1 - 0.7 * tl.load(progress))
    keep = live & (away <= reach) & (x * ox + y * oy + z * oz >= cosine) & (tl.load(usable + t, mask=live, other=0) != 0)
    tl.store(distance + q, tl.where(keep, away, float("inf")), mask=live)
    tl.atomic_add(kept, tl.sum(keep.to(tl.int32), 0), sem="relaxed")


@launched(do_not_specialize=["ours", "theirs", "progress", "median", "observed"])
def _pull(
    partner, live_at, normal_at, there, facing, confidence, distance, median, whole_at, near, share, certainty, hessian, gradient, observed, ours, theirs,
    heaviness, least_scale, tangential, placed, progress, NEAR: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Add point-to-plane and weaker point-to-point terms of the pairs that count, under Welsch's kernel."""
    q = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    live = q < ours + theirs
    away = tl.load(distance + q, mask=live, other=float("inf"))
    keep = away < float("inf")
    s, t = _pair(tl.where(live, q, 0), partner, ours)
    now = tl.load(progress)
    weight = tl.load(confidence + t, mask=keep, other=0.0) * tl.load(whole_at + s, mask=keep, other=0.0) * (0.5 * heaviness)
    weight *= tl.where(q < ours, 1.0, ours / tl.load(observed))  # both directions weigh the same whatever the numbers of points
    if now >= placed:
        sure = tl.zeros((ROWS,), tl.float64)
        for k in tl.static_range(NEAR):
            probe = tl.load(near + s * NEAR + k, mask=keep, other=0)
            sure += tl.load(share + s * NEAR + k, mask=keep, other=0.0) * tl.load(certainty + probe, mask=keep, other=0.0)
        weight *= sure
    scale = tl.maximum(2.0 * tl.load(median).to(tl.float64), least_scale) * (1 + 2 * (1 - now))
    away = tl.where(keep, away, 0.0) / scale
    weight *= tl.exp(-0.5 * away * away)
    x, y, z = load3(live_at, s, keep)
    ox, oy, oz = load3(there, t, keep)
    dx, dy, dz = x - ox, y - oy, z - oz
    x, y, z = load3(normal_at, s, keep)
    ox, oy, oz = load3(facing, t, keep)
    x, y, z = x + ox, y + oy, z + oz
    length = tl.maximum(tl.sqrt(x * x + y * y + z * z), 1e-9)
    x, y, z = x / length, y / length, z / length
    off, slide = weight * (x * dx + y * dy + z * dz), tangential * weight
    h, g = hessian + s * 9, gradient + s * 3
    tl.atomic_add(h, weight * x * x + slide, mask=keep, sem="relaxed")
    tl.atomic_add(h + 1, weight * x * y, mask=keep, sem="relaxed")
    tl.atomic_add(h + 2, weight * x * z, mask=keep, sem="relaxed")
    tl.atomic_add(h + 3, weight * x * y, mask=keep, sem="relaxed")
    tl.atomic_add(h + 4, weight * y * y + slide, mask=keep, sem="relaxed")
    tl.atomic_add(h + 5, weight * y * z, mask=keep, sem="relaxed")
    tl.atomic_add(h + 6, weight * x * z, mask=keep, sem="relaxed")
    tl.atomic_add(h + 7, weight * y * z, mask=keep, sem="relaxed")
    tl.atomic_add(h + 8, weight * z * z + slide, mask=keep, sem="relaxed")
    tl.atomic_add(g, off * x + slide * dx, mask=keep, sem="relaxed")
    tl.atomic_add(g + 1, off * y + slide * dy, mask=keep, sem="relaxed")
    tl.atomic_add(g + 2, off * z + slide * dz, mask=keep, sem="relaxed")


def place(body: Body, pose: Pose, colour_scale: float = 0.0, normal_scale: float = 0.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Live points [N, 3], their normals [N, 3] and wholeness [N], and their coordinates in the search for partners [9, N]; see `deformation_solver`."""
    n, fresh = len(body.points), body.points.new_empty
    result = fresh(n, 3), fresh(n, 3), fresh(n), fresh(FEATURES, n)
    with _backend.on(body.points):
        _place[(triton.cdiv(n, ROWS),)](
            body.points, body.normals, body.colours, body.anchors, body.weights, body.nodes, pose.rotations.contiguous(), pose.translations.contiguous(),
            body.whole, *result, n, body.spacing, colour_scale, normal_scale, KNN=body.anchors.shape[1], ROWS=ROWS,
        )  # fmt: skip
    return result


def partners(joint: Tensor, reference: Tensor) -> Tensor:
    """The nearest of theirs [9, P] of each of our points [9, N], then of ours of each of theirs, i32 [N + P]; of equally near ones the first."""
    n, p = joint.shape[1], reference.shape[1]
    result = torch.empty(n + p, dtype=torch.int32, device=joint.device)
    with _backend.on(joint):
        _find_nearest[(triton.cdiv(max(n, p), QUERIES), 2)](
            joint, reference, result, n, p, FAR=BEYOND, FEATURES=FEATURES, QUERIES=QUERIES, ABREAST=ABREAST
        )  # fmt: skip
    return result


def add_surface(
    evidence: Evidence, body: Body, pose: Pose, target: Target, longest: float, cosine: float, tangential: float, heaviness: float, placed: float, progress: float | Tensor,
) -> None:  # fmt: skip
    """Add what the closest compatible points both ways say to the evidence; see `registration.surface_evidence`.

    Args:
        longest: pair at the start of the annealing; cosine: least between the normals of a pair.
        heaviness: factor on every pair's weight.
        placed: progress from which rivals count.
    """
    n, p, probes = len(body.points), len(target.points), body.probes
    live, normals, whole, joint = place(body, pose, target.colour_scale, target.normal_scale)
    certainty, distance = live.new_empty(len(probes.pick)), live.new_empty(n + p)
    partner = partners(joint, target.index.reference.T.contiguous())
    kept = torch.zeros(1, dtype=torch.int32, device=live.device)
    progress = in_memory(progress, live)
    with _backend.on(live):
        _weigh_probes[(triton.cdiv(len(certainty), 16),)](
            live, normals, probes.pick, probes.rest, certainty, len(certainty), rivals.REACH * body.spacing, rivals.APART * body.spacing,
            rivals.CLOSER, rivals.COSINE, rivals.LEAST, ROWS=ROWS,
        )  # fmt: skip
        pairs = (triton.cdiv(n + p, ROWS),)
        _gate[pairs](partner, live, normals, target.points, target.normals, target.usable, distance, kept, n, p, longest, cosine, progress, ROWS=ROWS)
        middle = ((kept - 1).clamp_min(0) // 2).long()
        median = distance.float().sort().values.gather(0, middle)  # seven digits of the kernel's width are enough, and sorted in half the time
        _pull[pairs](
            partner, live, normals, target.points, target.normals, target.confidence, distance, median, whole, probes.near, probes.share, certainty,
            evidence.hessian, evidence.gradient, target.number, n, p, heaviness, 0.05 * body.spacing, tangential, placed, progress,
            NEAR=probes.near.shape[1], ROWS=ROWS,
        )  # fmt: skip
