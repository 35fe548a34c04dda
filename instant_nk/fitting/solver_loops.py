"""The compiled CPU loops (numba) of `deformation_solver` and `correspondences`, double precision; the torch code there is the definition."""

from __future__ import annotations

import numpy as np
from numba import njit

from instant_nk.kernels._loop import loop
from instant_nk.models.deformation_graph_loops import apart, share_out  # numba looks at this file's date only: changed there, touch this one

CONTRACT = {"contract"}  # products and sums may be fused; nothing else is reordered


@loop(fastmath=CONTRACT)
def warp(start, stop, points, anchors, weights, rotations, shift, live):
    for n in range(start, stop):
        x, y, z = points[n, 0], points[n, 1], points[n, 2]
        a = b = c = 0.0
        for k in range(anchors.shape[1]):
            w, node = weights[n, k], anchors[n, k]
            if w != 0.0:
                r, s = rotations[node], shift[node]
                a += w * (r[0, 0] * x + r[0, 1] * y + r[0, 2] * z + s[0])
                b += w * (r[1, 0] * x + r[1, 1] * y + r[1, 2] * z + s[1])
                c += w * (r[2, 0] * x + r[2, 1] * y + r[2, 2] * z + s[2])
        live[n, 0], live[n, 1], live[n, 2] = a, b, c


@loop(fastmath=CONTRACT)
def warp_normals(start, stop, normals, anchors, weights, rotations, turned):
    for n in range(start, stop):
        x, y, z = normals[n, 0], normals[n, 1], normals[n, 2]
        a = b = c = 0.0
        for k in range(anchors.shape[1]):
            w, r = weights[n, k], rotations[anchors[n, k]]
            a += w * (r[0, 0] * x + r[0, 1] * y + r[0, 2] * z)
            b += w * (r[1, 0] * x + r[1, 1] * y + r[1, 2] * z)
            c += w * (r[2, 0] * x + r[2, 1] * y + r[2, 2] * z)
        length = max(np.sqrt(a * a + b * b + c * c), 1e-12)
        turned[n, 0], turned[n, 1], turned[n, 2] = a / length, b / length, c / length


@loop(fastmath=CONTRACT)
def spread(start, stop, points, anchors, weights, rotations, shift, result):
    """Weighted mean squared distance between where the anchors of a point want it."""
    for n in range(start, stop):
        x, y, z = points[n, 0], points[n, 1], points[n, 2]
        first, second, third, square = 0.0, 0.0, 0.0, 0.0
        at = shift[anchors[n, 0]]  # relative to one of them, so that nothing cancels
        r = rotations[anchors[n, 0]]
        u, v, t = (
            r[0, 0] * x + r[0, 1] * y + r[0, 2] * z + at[0],
            r[1, 0] * x + r[1, 1] * y + r[1, 2] * z + at[1],
            r[2, 0] * x + r[2, 1] * y + r[2, 2] * z + at[2],
        )
        for k in range(1, anchors.shape[1]):
            w, r, s = weights[n, k], rotations[anchors[n, k]], shift[anchors[n, k]]
            a = r[0, 0] * x + r[0, 1] * y + r[0, 2] * z + s[0] - u
            b = r[1, 0] * x + r[1, 1] * y + r[1, 2] * z + s[1] - v
            c = r[2, 0] * x + r[2, 1] * y + r[2, 2] * z + s[2] - t
            first, second, third = first + w * a, second + w * b, third + w * c
            square += w * (a * a + b * b + c * c)
        result[n] = max(square - (first * first + second * second + third * third), 0.0)


@loop(fastmath=CONTRACT)
def nearest_rival(start, stop, live, normals, rest, axis, reach, apart, closer, cosine, result):
    """Squared distance to the nearest point of another part, at most `reach`, which is squared like `apart` and `closer`; rows are sorted along the axis."""
    for n in range(start, stop):
        best = reach
        for step in (-1, 1):
            m = n + step
            while 0 <= m < len(live):
                gap = live[m, axis] - live[n, axis]
                if gap * gap >= best:
                    break
                square = (live[m, 0] - live[n, 0]) ** 2 + (live[m, 1] - live[n, 1]) ** 2 + (live[m, 2] - live[n, 2]) ** 2
                if square < best and normals[n, 0] * normals[m, 0] + normals[n, 1] * normals[m, 1] + normals[n, 2] * normals[m, 2] >= cosine:
                    before = (rest[m, 0] - rest[n, 0]) ** 2 + (rest[m, 1] - rest[n, 1]) ** 2 + (rest[m, 2] - rest[n, 2]) ** 2
                    if before > apart and before > closer * square:
                        best = square
                m += step
        result[n] = best


@loop(fastmath=CONTRACT)
def arms(start, stop, points, anchors, nodes, rotations, result):
    """`R_k (x - g_k)`, [N, K, 3]."""
    for n in range(start, stop):
        for k in range(anchors.shape[1]):
            node = anchors[n, k]
            r = rotations[node]
            x, y, z = points[n, 0] - nodes[node, 0], points[n, 1] - nodes[node, 1], points[n, 2] - nodes[node, 2]
            for a in range(3):
                result[n, k, a] = r[a, 0] * x + r[a, 1] * y + r[a, 2] * z


@loop(fastmath=CONTRACT)
def point_blocks(start, stop, first, left, right, arm, weights, hessian, blocks):
    """Add what the points say to blocks [start, stop): `w_a w_b [[S_a H S_b', S_a H], [H S_b', H]]`, S the arm's cross product matrix."""
    knn = arm.shape[1]
    for u in range(start, stop):
        block = blocks[u]
        for q in range(first[u], first[u + 1]):
            n, i, j = left[q] // knn, left[q] % knn, right[q] % knn
            h, a, b = hessian[n], arm[n, i], arm[n, j]
            w = weights[n, i] * weights[n, j]
            ax, ay, az, bx, by, bz = a[0], a[1], a[2], b[0], b[1], b[2]
            h00, h01, h02, h11, h12, h22 = w * h[0, 0], w * h[0, 1], w * h[0, 2], w * h[1, 1], w * h[1, 2], w * h[2, 2]
            # m = H S_b': row r is (H_r2 by - H_r1 bz ...) with S' = [[0, z, -y], [-z, 0, x], [y, -x, 0]]
            m00, m01, m02 = h02 * by - h01 * bz, h00 * bz - h02 * bx, h01 * bx - h00 * by
            m10, m11, m12 = h12 * by - h11 * bz, h01 * bz - h12 * bx, h11 * bx - h01 * by
            m20, m21, m22 = h22 * by - h12 * bz, h02 * bz - h22 * bx, h12 * bx - h02 * by
            # S_a = [[0, -z, y], [z, 0, -x], [-y, x, 0]]
            block[0, 0] += ay * m20 - az * m10
            block[0, 1] += ay * m21 - az * m11
            block[0, 2] += ay * m22 - az * m12
            block[1, 0] += az * m00 - ax * m20
            block[1, 1] += az * m01 - ax * m21
            block[1, 2] += az * m02 - ax * m22
            block[2, 0] += ax * m10 - ay * m00
            block[2, 1] += ax * m11 - ay * m01
            block[2, 2] += ax * m12 - ay * m02
            block[0, 3] += ay * h02 - az * h01
            block[0, 4] += ay * h12 - az * h11
            block[0, 5] += ay * h22 - az * h12
            block[1, 3] += az * h00 - ax * h02
            block[1, 4] += az * h01 - ax * h12
            block[1, 5] += az * h02 - ax * h22
            block[2, 3] += ax * h01 - ay * h00
            block[2, 4] += ax * h11 - ay * h01
            block[2, 5] += ax * h12 - ay * h02
            block[3, 0] += m00
            block[3, 1] += m01
            block[3, 2] += m02
            block[4, 0] += m10
            block[4, 1] += m11
            block[4, 2] += m12
            block[5, 0] += m20
            block[5, 1] += m21
            block[5, 2] += m22
            block[3, 3] += h00
            block[3, 4] += h01
            block[3, 5] += h02
            block[4, 3] += h01
            block[4, 4] += h11
            block[4, 5] += h12
            block[5, 3] += h02
            block[5, 4] += h12
            block[5, 5] += h22


@loop(fastmath=CONTRACT)
def point_forces(anchors, weights, arm, gradient, rhs):
    """Take `w J' gradient` of every point off the right-hand side [M, 6]."""
    for n in range(len(anchors)):
        x, y, z = gradient[n, 0], gradient[n, 1], gradient[n, 2]
        if x == 0.0 and y == 0.0 and z == 0.0:
            continue
        for k in range(anchors.shape[1]):
            w, a, row = weights[n, k], arm[n, k], rhs[anchors[n, k]]
            row[0] -= w * (a[1] * z - a[2] * y)
            row[1] -= w * (a[2] * x - a[0] * z)
            row[2] -= w * (a[0] * y - a[1] * x)
            row[3] -= w * x
            row[4] -= w * y
            row[5] -= w * z


@njit(inline="always")
def _errors(i, j, nodes, rotations, translations, at_i, at_j, forward, backward):
    """R_i rest, R_j rest and the two residuals of an edge."""
    x, y, z = nodes[j, 0] - nodes[i, 0], nodes[j, 1] - nodes[i, 1], nodes[j, 2] - nodes[i, 2]
    for a in range(3):
        at_i[a] = rotations[i, a, 0] * x + rotations[i, a, 1] * y + rotations[i, a, 2] * z
        at_j[a] = rotations[j, a, 0] * x + rotations[j, a, 1] * y + rotations[j, a, 2] * z
    for a in range(3):
        live = (x if a == 0 else y if a == 1 else z) + translations[j, a] - translations[i, a]
        forward[a] = at_i[a] - live
        backward[a] = live - at_j[a]


@loop(fastmath=CONTRACT)
def edge_errors(edge, nodes, rotations, translations, forward, backward):
    at_i, at_j = np.empty(3), np.empty(3)
    for e in range(len(edge)):
        _errors(edge[e, 0], edge[e, 1], nodes, rotations, translations, at_i, at_j, forward[e], backward[e])


@loop(fastmath=CONTRACT)
def edge_energy(edge, nodes, rotations, translations, weight):
    at_i, at_j, forward, backward = np.empty(3), np.empty(3), np.empty(3), np.empty(3)
    total = 0.0
    for e in range(len(edge)):
        _errors(edge[e, 0], edge[e, 1], nodes, rotations, translations, at_i, at_j, forward, backward)
        total += weight[e] * ((forward * forward).sum() + (backward * backward).sum())
    return 0.5 * total


@loop(fastmath=CONTRACT)
def edge_blocks(edge, diagonal, edge_block, nodes, rotations, translations, weight, blocks, rhs):
    """Add rigidity: forward = R_i rest + x_i - x_j, backward = x_j - x_i - R_j rest."""
    p, q, forward, backward = np.empty(3), np.empty(3), np.empty(3), np.empty(3)
    for e in range(len(edge)):
        i, j, w = edge[e, 0], edge[e, 1], weight[e]
        _errors(i, j, nodes, rotations, translations, p, q, forward, backward)
        _own_side(blocks[diagonal[i]], p, w, 1.0)
        _own_side(blocks[diagonal[j]], q, w, -1.0)
        block = blocks[edge_block[e]]
        for a in range(3):
            block[3 + a, 3 + a] -= 2 * w
        # the forward row couples i's turn to j's shift, the backward row i's shift to j's turn
        block[0, 4] += w * p[2]
        block[0, 5] -= w * p[1]
        block[1, 3] -= w * p[2]
        block[1, 5] += w * p[0]
        block[2, 3] += w * p[1]
        block[2, 4] -= w * p[0]
        block[3, 1] += w * q[2]
        block[3, 2] -= w * q[1]
        block[4, 0] -= w * q[2]
        block[4, 2] += w * q[0]
        block[5, 0] += w * q[1]
        block[5, 1] -= w * q[0]
        _turn(rhs[i], p, forward, -w)
        _turn(rhs[j], q, backward, w)
        for a in range(3):
            rhs[i, 3 + a] -= w * (forward[a] - backward[a])
            rhs[j, 3 + a] += w * (forward[a] - backward[a])


@njit(inline="always")
def _turn(row, arm, force, w):
    row[0] += w * (arm[1] * force[2] - arm[2] * force[1])
    row[1] += w * (arm[2] * force[0] - arm[0] * force[2])
    row[2] += w * (arm[0] * force[1] - arm[1] * force[0])


@njit(inline="always")
def _own_side(block, arm, w, sign):
    """`w (A'A + B'B)` of a node's own columns: A = [-sign S, I], B = [0, -I]."""
    x, y, z = arm[0], arm[1], arm[2]
    block[0, 0] += w * (y * y + z * z)
    block[1, 1] += w * (x * x + z * z)
    block[2, 2] += w * (x * x + y * y)
    block[0, 1] -= w * x * y
    block[1, 0] -= w * x * y
    block[0, 2] -= w * x * z
    block[2, 0] -= w * x * z
    block[1, 2] -= w * y * z
    block[2, 1] -= w * y * z
    for a in range(3):
        block[3 + a, 3 + a] += 2 * w
    wx, wy, wz = sign * w * x, sign * w * y, sign * w * z
    block[0, 4] -= wz
    block[4, 0] -= wz
    block[0, 5] += wy
    block[5, 0] += wy
    block[1, 3] += wz
    block[3, 1] += wz
    block[1, 5] -= wx
    block[5, 1] -= wx
    block[2, 3] -= wy
    block[3, 2] -= wy
    block[2, 4] += wx
    block[4, 2] += wx


@loop(fastmath=CONTRACT)
def point_energy(start, stop, points, anchors, weights, rotations, shift, before, hessian, gradient, result):
    """`1/2 d' H d + g . d` of each point, d its way from `before`."""
    for n in range(start, stop):
        x, y, z = points[n, 0], points[n, 1], points[n, 2]
        a, b, c = -before[n, 0], -before[n, 1], -before[n, 2]
        for k in range(anchors.shape[1]):
            w, r, s = weights[n, k], rotations[anchors[n, k]], shift[anchors[n, k]]
            a += w * (r[0, 0] * x + r[0, 1] * y + r[0, 2] * z + s[0])
            b += w * (r[1, 0] * x + r[1, 1] * y + r[1, 2] * z + s[1])
            c += w * (r[2, 0] * x + r[2, 1] * y + r[2, 2] * z + s[2])
        h, g = hessian[n], gradient[n]
        half = 0.5 * (h[0, 0] * a * a + h[1, 1] * b * b + h[2, 2] * c * c) + h[0, 1] * a * b + h[0, 2] * a * c + h[1, 2] * b * c
        result[n] = half + g[0] * a + g[1] * b + g[2] * c


@loop(fastmath=CONTRACT)
def turn_nodes(twists, length, rotations, translations, turned, moved):
    """Every node's rotation times exp(length omega) from the left, its translation plus length tau; Rodrigues as in `rotations.so3_exp`."""
    e = np.empty((3, 3))
    for m in range(len(twists)):
        x, y, z = length * twists[m, 0], length * twists[m, 1], length * twists[m, 2]
        squared = x * x + y * y + z * z
        if squared < 1e-4:
            first, second = 1 - squared / 6 + squared * squared / 120, 0.5 - squared / 24 + squared * squared / 720
        else:
            angle = np.sqrt(squared)
            first, second = np.sin(angle) / angle, (1 - np.cos(angle)) / squared
        e[0, 0], e[0, 1], e[0, 2] = 1 - second * (y * y + z * z), second * x * y - first * z, second * x * z + first * y
        e[1, 0], e[1, 1], e[1, 2] = second * x * y + first * z, 1 - second * (x * x + z * z), second * y * z - first * x
        e[2, 0], e[2, 1], e[2, 2] = second * x * z - first * y, second * y * z + first * x, 1 - second * (x * x + y * y)
        for a in range(3):
            for b in range(3):
                turned[m, a, b] = e[a, 0] * rotations[m, 0, b] + e[a, 1] * rotations[m, 1, b] + e[a, 2] * rotations[m, 2, b]
            moved[m, a] = translations[m, a] + length * twists[m, 3 + a]


@loop(fastmath=CONTRACT)
def add_directions(index, rows, residual, weight, hessian, gradient):
    for q in range(len(index)):
        h, g = hessian[index[q]], gradient[index[q]]
        for a in range(3):
            scaled = weight[q] * rows[q, a]
            g[a] += scaled * residual[q]
            for b in range(3):
                h[a, b] += scaled * rows[q, b]


@loop(fastmath=CONTRACT)
def add_positions(index, difference, weight, hessian, gradient):
    for q in range(len(index)):
        for a in range(3):
            hessian[index[q], a, a] += weight[q]
            gradient[index[q], a] += weight[q] * difference[q, a]


@loop(fastmath=CONTRACT)
def gate(by_target, partner, points, normals, there, there_normals, usable, confidence, longest, least_cosine, share, source, target, weight):
    """Pairs that are short enough, face the same way and do not end on a boundary; returns how many were written.

    Args:
        by_target: row n of `partner` is the body's partner of the observed point n, not the other way round.
    """
    count = 0
    for n in range(len(partner)):
        s, t = (partner[n], n) if by_target else (n, partner[n])
        x, y, z = points[s, 0] - there[t, 0], points[s, 1] - there[t, 1], points[s, 2] - there[t, 2]
        cosine = normals[s, 0] * there_normals[t, 0] + normals[s, 1] * there_normals[t, 1] + normals[s, 2] * there_normals[t, 2]
        if usable[t] and cosine >= least_cosine and np.sqrt(x * x + y * y + z * z) <= longest:
            source[count], target[count], weight[count] = s, t, 0.5 * share * confidence[t]
            count += 1
    return count


@loop(fastmath=CONTRACT)
def relaxed(edge, nodes, rotations, translations, stiffness, rigidity, softening, weight):
    """`edge_weights` of the solver."""
    at_i, at_j, forward, backward = np.empty(3), np.empty(3), np.empty(3), np.empty(3)
    for e in range(len(edge)):
        i, j = edge[e, 0], edge[e, 1]
        _errors(i, j, nodes, rotations, translations, at_i, at_j, forward, backward)
        rest = 0.0
        for a in range(3):
            rest += (nodes[j, a] - nodes[i, a]) ** 2
        strain = 0.5 * ((forward * forward).sum() + (backward * backward).sum()) / max(rest, 1e-20)
        weight[e] = rigidity * stiffness[e] / (1 + strain / softening**2) ** 2


@loop(fastmath=CONTRACT)
def pair_planes(source, target, live, normals, there, there_normals, rows, residual, distance):
    """Directions and signed distances of the symmetric point-to-plane residual, and lengths of the pairs."""
    for q in range(len(source)):
        s, t = source[q], target[q]
        a, b, c = normals[s, 0] + there_normals[t, 0], normals[s, 1] + there_normals[t, 1], normals[s, 2] + there_normals[t, 2]
        length = max(np.sqrt(a * a + b * b + c * c), 1e-9)
        a, b, c = a / length, b / length, c / length
        x, y, z = live[s, 0] - there[t, 0], live[s, 1] - there[t, 1], live[s, 2] - there[t, 2]
        rows[q, 0], rows[q, 1], rows[q, 2] = a, b, c
        residual[q] = a * x + b * y + c * z
        distance[q] = np.sqrt(x * x + y * y + z * z)


@loop(fastmath=CONTRACT)
def pull(source, target, live, there, rows, residual, distance, scale, share, whole, tangential, hessian, gradient):
    """Add the pairs' point-to-plane and, `tangential` times as heavy, point-to-point terms under Welsch's kernel."""
    for q in range(len(source)):
        s, t = source[q], target[q]
        w = share[q] * whole[s] * np.exp(-0.5 * (distance[q] / scale) ** 2)
        slide = tangential * w
        h, g, r = hessian[s], gradient[s], rows[q]
        for a in range(3):
            g[a] += w * r[a] * residual[q] + slide * (live[s, a] - there[t, a])
            h[a, a] += slide
            for b in range(3):
                h[a, b] += w * r[a] * r[b]


LOG2_E = np.float32(1.4426950408889634)
REASSOCIATE = {"contract", "reassoc"}  # sums run in as many lanes as the processor has


@loop(fastmath=CONTRACT)
def affinity(one, other, size, kernel):
    """`exp(size_j - |one_i - other_j|^2 / 2)` in single precision to about 1e-7; `other` is [D, Nb], kernel [Na, Nb]."""
    columns = len(size)
    exponent, mantissa, power = np.empty(columns, np.float32), np.empty(columns, np.float32), np.empty(columns, np.int32)
    scale = power.view(np.float32)
    half = np.float32(0.5)
    for i in range(len(one)):
        for j in range(columns):
            exponent[j] = size[j]
        for d in range(one.shape[1]):
            x, row = one[i, d], other[d]
            for j in range(columns):
                away = x - row[j]
                exponent[j] -= half * away * away
        for j in range(columns):
            # 2^n 2^f by a polynomial for f in [-1/2, 1/2]; what is below 2^-120 is as good as nothing
            t = max(exponent[j] * LOG2_E, np.float32(-120))
            n = np.floor(t + half)
            f = t - n
            p = np.float32(1.5403530393381609e-4)
            p = p * f + np.float32(1.3333558146428443e-3)
            p = p * f + np.float32(9.618129107628477e-3)
            p = p * f + np.float32(5.5504108664821576e-2)
            p = p * f + np.float32(2.402265069591007e-1)
            p = p * f + np.float32(6.931471805599453e-1)
            mantissa[j] = p * f + np.float32(1)
            power[j] = (np.int32(n) + np.int32(127)) << np.int32(23)
        for j in range(columns):
            kernel[i, j] = mantissa[j] * scale[j]


@loop(fastmath=REASSOCIATE)
def balance(kernel, ratio, outlier, rounds, row, column):
    """Row and column factors of `_balance`; one pass over the kernel per round."""
    total = np.empty_like(column)
    one = np.float32(1)
    column[:] = one
    for r in range(rounds + 1):
        total[:] = np.float32(0)
        for i in range(len(row)):
            values = kernel[i]
            given = np.float32(0)
            for j in range(len(values)):
                given += values[j] * column[j]
            row[i] = one / (given + outlier)
            if r < rounds:
                taken = row[i]
                for j in range(len(values)):
                    total[j] += taken * values[j]
        if r < rounds:
            for j in range(len(column)):
                column[j] = one / (ratio[j] * total[j] + outlier)


@loop(fastmath=REASSOCIATE)
def carried(kernel, row, column, places, share, mean):
    """How much of each row's mass arrives and where on average; `places` is [3, Nb]."""
    weighted = np.empty_like(places)
    for a in range(3):
        for j in range(len(column)):
            weighted[a, j] = column[j] * places[a, j]
    for i in range(len(row)):
        values, x, y, z = kernel[i], weighted[0], weighted[1], weighted[2]
        total = a = b = c = np.float32(0)
        for j in range(len(values)):
            total += values[j] * column[j]
            a += values[j] * x[j]
            b += values[j] * y[j]
            c += values[j] * z[j]
        share[i] = row[i] * total
        least = max(total, np.float32(1e-30))
        mean[i, 0], mean[i, 1], mean[i, 2] = a / least, b / least, c / least


@loop()
def pattern(nodes, anchors, weights, edge):
    """What `deformation_solver.Pattern` says of points on `nodes` nodes and of edges: left, right, target, blocks, edge_block, diagonal, first.

    Entries are sorted by block in two passes of counting, which leave those of one block in order.
    """
    start, high, one, other = _sorted(nodes, *_entries(nodes, anchors, weights, edge))
    pairs = len(one) - len(edge) - nodes
    left, right, target = np.empty(pairs, np.int64), np.empty(pairs, np.int64), np.empty(pairs, np.int64)
    blocks, first = np.empty((len(one), 2), np.int64), np.empty(len(one) + 1, np.int64)
    edge_block, diagonal = np.empty(len(edge), np.int64), np.empty(nodes, np.int64)
    size, block = 0, -1
    for a in range(nodes):
        for e in range(start[a], start[a + 1]):
            if e == start[a] or high[e] != high[e - 1]:
                block += 1
                blocks[block, 0], blocks[block, 1], first[block] = a, high[e], size
            if one[e] >= 0:
                left[size], right[size], target[size] = one[e], other[e], block
                size += 1
            elif other[e] >= 0:
                edge_block[other[e]] = block
            else:
                diagonal[a] = block
    first[block + 1] = size
    return left, right, target, blocks[: block + 1].copy(), edge_block, diagonal, first[: block + 2].copy()


@njit
def _entries(nodes, anchors, weights, edge):
    """Lower and higher node, u32, of what adds to the normal matrix, and what it is, i32: flat (point, slot) of one and the other anchor, then -1 and
    the edge, then -1 twice for each node."""
    n, k = anchors.shape
    count = len(edge) + nodes
    for p in range(n):
        held = 0
        for i in range(k):
            held += weights[p, i] > 0
        count += held * held  # at most: each pair of anchors has both orders
    low, high, one, other = np.empty(count, np.uint32), np.empty(count, np.uint32), np.full(count, -1, np.int32), np.full(count, -1, np.int32)
    size, slots = 0, np.empty(k, np.int64)
    for p in range(n):
        held = 0
        for i in range(k):
            slots[held] = i
            held += weights[p, i] > 0
        for i in slots[:held]:
            for j in slots[:held]:
                if anchors[p, i] <= anchors[p, j]:
                    low[size], high[size], one[size], other[size] = anchors[p, i], anchors[p, j], p * k + i, p * k + j
                    size += 1
    for e in range(len(edge)):
        low[size], high[size], other[size] = min(edge[e, 0], edge[e, 1]), max(edge[e, 0], edge[e, 1]), e
        size += 1
    for v in range(nodes):
        low[size], high[size] = v, v
        size += 1
    return low[:size], high[:size], one[:size], other[:size]


@njit
def _sorted(nodes, low, high, one, other):
    """Entries by their lower node, then the higher: where each lower node's begin, i64 [M + 1], their higher nodes and what they are."""
    start, high_start = np.zeros(nodes + 1, np.int64), np.zeros(nodes + 1, np.int64)
    for e in range(len(low)):
        start[low[e] + 1] += 1
        high_start[high[e] + 1] += 1
    for node in range(nodes):
        start[node + 1] += start[node]
        high_start[node + 1] += high_start[node]
    then, place = (np.empty_like(low), np.empty_like(one), np.empty_like(other)), high_start[:-1].copy()
    for e in range(len(low)):
        at = place[high[e]]
        place[high[e]] = at + 1
        then[0][at], then[1][at], then[2][at] = low[e], one[e], other[e]
    place = start[:-1].copy()
    for node in range(nodes):
        for e in range(high_start[node], high_start[node + 1]):
            at = place[then[0][e]]
            place[then[0][e]] = at + 1
            high[at], one[at], other[at] = node, then[1][e], then[2][e]
    return start, high, one, other


@loop()
def gather(nodes, blocks, edge, edge_block, diagonal):
    """What `deformation_solver.Gather` says: own, link_start, link, row_start, column, entry."""
    own, link_start, row_start = np.full(len(blocks), -1), np.zeros(len(blocks) + 1, np.int64), np.zeros(nodes + 1, np.int32)
    own[diagonal] = np.arange(nodes)
    for e in range(len(edge)):
        for block in (diagonal[edge[e, 0]], diagonal[edge[e, 1]], edge_block[e]):
            link_start[block + 1] += 1
    for block in range(len(blocks)):
        link_start[block + 1] += link_start[block]
        row_start[blocks[block, 0] + 1] += 1
        if blocks[block, 0] != blocks[block, 1]:
            row_start[blocks[block, 1] + 1] += 1
    for node in range(nodes):
        row_start[node + 1] += row_start[node]
    link, place = np.empty(3 * len(edge), np.int64), link_start[:-1].copy()
    for kind in range(3):
        for e in range(len(edge)):
            block = edge_block[e] if kind == 2 else diagonal[edge[e, kind]]
            link[place[block]] = 3 * e + kind
            place[block] += 1
    column, entry, place = np.empty(row_start[-1], np.int32), np.empty(row_start[-1], np.int32), row_start[:-1].copy()
    for flipped in range(2):
        for block in range(len(blocks)):
            if not flipped or blocks[block, 0] != blocks[block, 1]:
                at = place[blocks[block, flipped]]
                column[at], entry[at] = blocks[block, 1 - flipped], 2 * block + flipped
                place[blocks[block, flipped]] += 1
    return own, link_start, link, row_start, column, entry


@loop(error_model="numpy")
def point_anchors(start, stop, points, candidates, nodes, radii, anchors, weights):
    """`anchors` [N, K] of points: of their candidates [N, C] the nearest, in units of their radii, each once; where there are fewer, some stand there
    again, without weight. And their `weights` [N, K]."""
    k, relative, met = anchors.shape[1], np.empty(anchors.shape[1]), np.full(len(nodes), -1)
    for p in range(start, stop):
        found = 0
        for name in candidates[p]:
            if met[name] == p:
                continue
            met[name] = p
            distance, slot = apart(points[p], nodes[name]) / radii[name], min(found, k - 1)
            if found == k and (distance > relative[slot] or (distance == relative[slot] and name > anchors[p, slot])):
                continue
            while slot > 0 and (relative[slot - 1] > distance or (relative[slot - 1] == distance and anchors[p, slot - 1] > name)):
                relative[slot], anchors[p, slot] = relative[slot - 1], anchors[p, slot - 1]
                slot -= 1
            relative[slot], anchors[p, slot] = distance, name
            found = min(found + 1, k)
        if found < k:
            _repeat(candidates[p].copy(), found, anchors[p])
            for slot in range(found, k):
                relative[slot] = apart(points[p], nodes[anchors[p, slot]]) / radii[anchors[p, slot]]
        share_out(relative, points[p], anchors[p], nodes, weights[p])
        weights[p, found:] = 0.0
        total = 0.0
        for slot in range(k):
            total += weights[p, slot]
        for slot in range(k):
            weights[p, slot] /= total


@njit
def _repeat(names, found, anchors):
    """Fill up anchors with those of the names that stand there more than once, in ascending order."""
    for c in range(1, len(names)):
        while c > 0 and names[c - 1] > names[c]:
            names[c - 1], names[c] = names[c], names[c - 1]
            c -= 1
    for c in range(1, len(names)):
        if found < len(anchors) and names[c] == names[c - 1]:
            anchors[found] = names[c]
            found += 1


@loop()
def compose(anchors, weights, above, share, keep):
    """`deformation_solver._compose`: names i64 [N, keep] and values [N, keep], the largest first, of equals the one with the higher name."""
    n, room = len(anchors), anchors.shape[1] * above.shape[1]
    keep = min(keep, room)
    names, values = np.empty((n, keep), np.int64), np.zeros((n, keep))
    found, total = np.empty(room, np.int64), np.empty(room)
    for p in range(n):
        size = 0
        for i in range(anchors.shape[1]):
            for j in range(above.shape[1]):
                slot = 0
                while slot < size and found[slot] != above[anchors[p, i], j]:
                    slot += 1
                if slot == size:
                    found[slot], total[slot] = above[anchors[p, i], j], 0.0
                    size += 1
                total[slot] += weights[p, i] * share[anchors[p, i], j]
        whole = 0.0
        for place in range(keep):
            best = -1
            for slot in range(size):
                if found[slot] >= 0 and (best < 0 or total[slot] > total[best] or (total[slot] == total[best] and found[slot] > found[best])):
                    best = slot
            if best < 0:
                names[p, place] = names[p, 0]
                continue
            names[p, place], values[p, place] = found[best], total[best]
            found[best] = -1
            whole += values[p, place]
        values[p] /= whole
    return names, values
