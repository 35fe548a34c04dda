"""Gauss-Newton on the nodes of an embedded deformation graph: one linear system for data and as-rigid-as-possible terms.

Every piece of evidence (surfaces, silhouettes, colours) arrives as a quadratic in the position of surface points: a 3x3 matrix
and a 3-vector per point. The solver carries it to the nodes' twists (left-multiplicative, about each node), adds rigidity, and
solves the block-sparse normal equations: sparse Cholesky on the CPU, conjugate gradients on the GPU, dense Cholesky without numba or Triton. All lengths are in
units of the caller; weights are normalised so that data and rigidity of one node balance whatever the number of points.
On the CPU compiled loops (`solver_loops`) do what the torch code here defines, on a GPU kernels (`solver_triton`).
"""

from __future__ import annotations

import functools
import math
import sys
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from instant_nk.errors import NumericalError
from instant_nk.fitting.block_cholesky import BlockCholesky
from instant_nk.fitting.rivals import Probes
from instant_nk.geometry import surface
from instant_nk.geometry.rotations import project_to_so3, skew, so3_exp, turn
from instant_nk.io.graph import Graph
from instant_nk.io.mesh import Mesh
from instant_nk.kernels import _backend
from instant_nk.kernels._threads import beside, each, over_rows
from instant_nk.kernels._upload import upload
from instant_nk.models.deformation_graph import coarsen, skinning_weights

COARSE_NODES = 80  # nodes of the coarse level: limbs and their joints, whatever the resolution of the graph
COARSE_POINTS = 1200
TORN_STRETCH = 0.5  # lengthening, of the canonical length, at which a coarse edge holds a quarter of what it did: parts that touched have come apart
LEAST_PAIRS = 8192  # pairs of a point's anchors worth a thread of their own
DAMPING = 1e-6  # of the mean diagonal
NEGLIGIBLE = 0.01  # anchors below this weight are left out of the points the solver uses (not out of the mesh)


@dataclass(frozen=True)
class Pose:
    """Motion of all nodes at one frame, canonical -> live.

    Attributes:
        rotations: [M, 3, 3].
        translations: [M, 3].
    """

    rotations: Tensor
    translations: Tensor

    @staticmethod
    def identity(body: Body) -> Pose:
        eye = torch.eye(3, dtype=body.nodes.dtype, device=body.nodes.device)
        return Pose(eye.expand(len(body.nodes), 3, 3).clone(), torch.zeros_like(body.nodes))

    def moved(self, rotation: Tensor, translation: Tensor, nodes: Tensor) -> Pose:
        """This pose followed by one rigid motion of the whole live space, `x -> rotation x + translation`."""
        live = nodes + self.translations
        return Pose(rotation @ self.rotations, live @ rotation.T + translation - nodes)


@dataclass(frozen=True)
class Body:
    """What is tracked: graph, surface points hung on it, and the sparsity of its normal equations. Tensors f64 on one device.

    Attributes:
        nodes: [M, 3].
        points: points spread evenly over the canonical surface, [N, 3].
        normals: unit, outward, [N, 3].
        colours: sRGB [N, 3].
        anchors: i64 [N, K], weights: [N, K].
        edge: node pairs i < j, i64 [E, 2], stiffness: [E], normalised so that a node's mean total is one.
        spacing: distance between neighbouring nodes.
        whole: how far a point belongs to one part of the surface when nothing moves, in [0, 1], [N]; see `wholeness`.
        probes: points that stand for the surface where its parts are held against each other (`rivals`).
        coarse: the same body on fewer nodes, for large motion; None where there are few nodes anyway.
    """

    nodes: Tensor
    points: Tensor
    normals: Tensor
    colours: Tensor
    anchors: Tensor
    weights: Tensor
    edge: Tensor
    stiffness: Tensor
    spacing: float
    whole: Tensor
    pattern: Pattern
    probes: Probes
    coarse: Coarse | None = None

    @staticmethod
    def from_mesh(graph: Graph, mesh: Mesh, max_points: int, device: str = "cpu", seed: int = 0) -> Body:
        """Spread `max_points` points over the canonical surface and hang them on the graph."""
        given = surface.Samples.of_mesh(mesh.vertices, mesh.normals, mesh.colours, mesh.faces.astype(np.int64), max_points, seed)
        return Body.from_samples(graph, given, device)

    @staticmethod
    def from_samples(graph: Graph, given: surface.Samples, device: str = "cpu") -> Body:
        """A body from points of the surface that the graph was built on."""
        if torch.device(device).type == "cpu":
            load_loops()
        candidates = graph.vertex_anchors.take(given.corner, 0).reshape(len(given.points), -1).astype(np.int64)
        return Body.from_points(graph, given.points, given.normals, given.colours, *point_anchors(graph, given.points, candidates), device)

    @staticmethod
    def from_points(graph: Graph, points, normals, colours, anchors, weights, device: str = "cpu", levels: int = 2) -> Body:
        """A body from surface points [N, 3] with their normals, colours, anchors and weights [N, K] (NumPy arrays)."""
        if torch.device(device).type == "cpu":  # its steps are compiled loops
            load_loops()
        weights = np.where(weights < NEGLIGIBLE, 0.0, weights)
        weights = weights / weights.sum(1, keepdims=True)
        m = len(graph.node_positions)
        stiffness = graph.edge_weights.astype(np.float64)
        if len(stiffness):
            stiffness = stiffness * (m / (2 * stiffness.sum()))
        edge, spacing = graph.edges.astype(np.int64), graph.spacing
        coarsely = beside(_hang_coarsely, graph, spacing, anchors, weights) if levels > 1 and m > 2 * COARSE_NODES else None
        pattern = Pattern.build(m, edge, _pattern(m, anchors, weights, edge), device)
        real = (graph.node_positions, points, normals, colours, weights, stiffness, np.ones(len(points)))
        *placed, anchors, edge = upload([*(np.asarray(x, np.float64) for x in real), anchors, edge], device)
        nodes, points_there, facing, shade, weights, stiffness, whole = placed
        probes = Probes.build(points_there, spacing)
        coarse = Coarse.build(coarsely.result(), points, normals, colours, device) if coarsely else None
        return Body(nodes, points_there, facing, shade, anchors, weights, edge, stiffness, spacing, whole, pattern, probes, coarse)

    def warp(self, pose: Pose) -> Tensor:
        """Live positions of the surface points, [N, 3]."""
        return warp(self.points, self.anchors, self.weights, self.nodes, pose)

    def warp_normals(self, pose: Pose) -> Tensor:
        """Live normals of the surface points, unit, [N, 3]."""
        if compiled(self.normals):
            return per_row(loops().warp_normals, self.normals, self.anchors, self.weights, pose.rotations)
        blended = small_matmul(self.weights[:, None], pose.rotations.reshape(-1, 9)[self.anchors]).reshape(-1, 3, 3)
        turned = small_matmul(blended, self.normals[..., None]).squeeze(-1)
        return turned / turned.norm(dim=-1, keepdim=True).clamp_min(1e-12)


@dataclass(frozen=True)
class Coarse:
    """A body of few nodes that carries another one: its motion is an increment on the finer body's live state.

    Attributes:
        body: coarse nodes (a subset of the fine ones) and a subset of the fine body's points.
        nodes: fine index of each coarse node, i64 [Mc]; points: fine index of each of its points, i64 [Nc].
        anchors, weights: how the fine nodes hang on the coarse ones, [M, Kc].
    """

    body: Body
    nodes: Tensor
    points: Tensor
    anchors: Tensor
    weights: Tensor

    @staticmethod
    def build(hung: Hung, points, normals, colours, device: str) -> Coarse:
        pick = hung.points
        body = Body.from_points(hung.graph, points[pick], normals[pick], colours[pick], hung.anchors, hung.weights, device, levels=1)
        carried = hung.graph.vertex_anchors.astype(np.int64), hung.graph.vertex_weights.astype(np.float64)
        return Coarse(body, *upload([hung.nodes, pick, *carried], device))

    def placed(self, fine: Body, pose: Pose) -> Body:
        """The coarse body at the fine body's live state: its rest shape is the shape now, and what has been torn apart stays so."""
        nodes = (fine.nodes + pose.translations)[self.nodes]
        i, j = self.body.edge.unbind(1)
        now, rest = (nodes[j] - nodes[i]).norm(dim=-1), (self.body.nodes[j] - self.body.nodes[i]).norm(dim=-1).clamp_min(1e-12)
        stretch = (now / rest - 1).clamp_min(0) / TORN_STRETCH
        return replace(  # its probes still know what was apart at rest: limbs that touch now stay rivals
            self.body, nodes=nodes, points=fine.warp(pose)[self.points], normals=fine.warp_normals(pose)[self.points],
            stiffness=self.body.stiffness / (1 + stretch.square()) ** 2, whole=wholeness(fine, pose)[self.points],
        )  # fmt: skip

    def carry(self, placed: Body, increment: Pose, fine: Body, pose: Pose) -> Pose:
        """The fine pose after the coarse increment."""
        live = warp(fine.nodes + pose.translations, self.anchors, self.weights, placed.nodes, increment)
        turned = small_matmul(self.weights[:, None], increment.rotations.reshape(-1, 9)[self.anchors]).reshape(-1, 3, 3)
        return Pose(small_matmul(nearest_rotations(turned), pose.rotations), live - fine.nodes)


class Hung(NamedTuple):
    """A coarser graph, and what of a body hangs on it: NumPy arrays.

    Attributes:
        graph: its vertices are the finer graph's nodes; nodes: which of them its own are, i64 [Mc].
        points: which of the body's points, i64 [Nc]; anchors, weights: how they hang on it, i64 and f64 [Nc, 6].
    """

    graph: Graph
    nodes: np.ndarray
    points: np.ndarray
    anchors: np.ndarray
    weights: np.ndarray


def _hang_coarsely(graph: Graph, spacing: float, anchors: np.ndarray, weights: np.ndarray) -> Hung:
    """A coarser graph of COARSE_NODES with COARSE_POINTS of those points that hang on the nodes of `graph` by these anchors and weights [N, K]."""
    coarse, chosen = coarsen(graph, COARSE_NODES, spacing)
    pick = np.unique(np.linspace(0, len(anchors) - 1, min(COARSE_POINTS, len(anchors))).round().astype(np.int64))
    hung = _compose(anchors[pick], weights[pick], coarse.vertex_anchors.astype(np.int64), coarse.vertex_weights.astype(np.float64))
    return Hung(coarse, chosen.astype(np.int64), pick, *hung)


def _compose(anchors: np.ndarray, weights: np.ndarray, above: np.ndarray, share: np.ndarray, keep: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Anchors and weights of points on the coarse nodes that carry their anchors: products added up, the `keep` largest kept."""
    if loops_are_loaded():
        return loops().compose(anchors, weights, above, share, keep)
    return _compose_numpy(anchors, weights, above, share, keep)


def _compose_numpy(anchors: np.ndarray, weights: np.ndarray, above: np.ndarray, share: np.ndarray, keep: int) -> tuple[np.ndarray, np.ndarray]:
    n = len(anchors)
    candidate = above[anchors].reshape(n, -1)
    value = (weights[..., None] * share[anchors]).reshape(n, -1)
    order = candidate.argsort(1, kind="stable")
    candidate, value = np.take_along_axis(candidate, order, 1), np.take_along_axis(value, order, 1)
    first = np.ones(candidate.shape, bool)
    first[:, 1:] = candidate[:, 1:] != candidate[:, :-1]
    group = np.cumsum(first, axis=1) - 1
    place = group + candidate.shape[1] * np.arange(n)[:, None]
    total = np.bincount(place.ravel(), value.ravel(), value.size).reshape(value.shape)
    name = np.full(candidate.shape, -1)
    name.ravel()[place] = candidate
    order = np.where(name < 0, -1.0, total).argsort(1, kind="stable")[:, ::-1][:, :keep]
    name, total = np.take_along_axis(name, order, 1), np.take_along_axis(total, order, 1)
    total = np.where(name < 0, 0.0, total)
    return np.where(name < 0, name[:, :1], name), total / total.sum(1, keepdims=True)


def loops():
    """The compiled loops, loaded when the first CPU tensor arrives."""
    from instant_nk.fitting import solver_loops

    return solver_loops


def compiled(tensor: Tensor) -> bool:
    """Whether the compiled loops serve tensors like this one."""
    return tensor.device.type == "cpu" and tensor.dtype == torch.float64 and _has_numba()


@functools.cache
def _has_numba() -> bool:
    """Asked once: a step asks dozens of times. Without numba the torch code serves the CPU too, with a dense factorisation."""
    return _backend.numba_installed()


def load_loops() -> None:
    """Load what compiles loops where it is installed, for work that they will be wanted for in any case; compiling takes many seconds, once on a machine."""
    if _has_numba():
        loops()


def loops_are_loaded() -> bool:
    """Whether compiled loops serve what is prepared on the host: for one body alone, on a GPU, they save less than loading them takes."""
    return sys.modules.get("numba") is not None


def has_triton(tensor: Tensor) -> bool:
    """Whether Triton's kernels serve tensors like this one: on a GPU that can run it, unless the reference was asked for (`runtime.backend`)."""
    return tensor.is_cuda and _backend.selected() != "reference" and _backend.device_problem(tensor.device.index or 0) is None


def kernels():
    """The same for a GPU."""
    from instant_nk.fitting import solver_triton

    return solver_triton


def in_memory(value: float | Tensor, like: Tensor) -> Tensor:
    """A number as a tensor [] on the device, so that one kernel serves those that the host knows and those that it does not."""
    return value if isinstance(value, Tensor) else torch.full((), value, dtype=like.dtype, device=like.device)


def arrays(*tensors: Tensor) -> tuple[np.ndarray, ...]:
    return tuple(t.detach().contiguous().numpy() for t in tensors)


def per_row(loop, *inputs: Tensor, shape: tuple[int, ...] = (3,)) -> Tensor:
    """What a compiled loop `loop(first, last, *inputs, result)` writes, f64 [N, *shape]; N rows of the first input."""
    result = np.empty((len(inputs[0]), *shape))
    given = arrays(*inputs)
    over_rows(len(result), lambda first, last: loop(first, last, *given, result))
    return torch.from_numpy(result)


def _shift(nodes: Tensor, pose: Pose) -> Tensor:
    """`g_k + t_k - R_k g_k`, [M, 3]."""
    return nodes + pose.translations - small_matmul(pose.rotations, nodes[..., None]).squeeze(-1)


def warp(points: Tensor, anchors: Tensor, weights: Tensor, nodes: Tensor, pose: Pose) -> Tensor:
    """`sum_k w_k (R_k (x - g_k) + g_k + t_k)`: canonical points [N, 3] carried to the live frame."""
    shift = _shift(nodes, pose)
    if compiled(points):
        return per_row(loops().warp, points, anchors, weights, pose.rotations, shift)
    affine = torch.cat([pose.rotations, shift[..., None]], -1).reshape(-1, 12)
    blended = small_matmul(weights[:, None], affine[anchors]).reshape(-1, 3, 4)
    return small_matmul(blended[..., :3], points[..., None]).squeeze(-1) + blended[..., 3]


def wholeness(body: Body, pose: Pose) -> Tensor:
    """Weight in [0, 1] of what each point observes, [N]: small where its anchors disagree by a node spacing or more about where it goes.

    Such a point lies where parts were joined that have come apart; wherever it is drawn, it holds one of them back.
    """
    shift = _shift(body.nodes, pose)
    if compiled(body.points):
        spread = per_row(loops().spread, body.points, body.anchors, body.weights, pose.rotations, shift, shape=())
        return body.whole / (1 + spread / body.spacing**2) ** 2
    wanted = small_matmul(pose.rotations[body.anchors], body.points[:, None, :, None]).squeeze(-1) + shift[body.anchors]
    spread = (body.weights * (wanted - body.warp(pose)[:, None]).square().sum(-1)).sum(1)
    return body.whole / (1 + spread / body.spacing**2) ** 2


def small_matmul(a: Tensor, b: Tensor) -> Tensor:
    """`a @ b` for very many very small matrices: numpy on the CPU, where it is four times as fast as torch's batched product, sums of products on the GPU."""
    if a.device.type == "cpu":
        return torch.from_numpy(a.numpy() @ b.numpy())
    return (a[..., :, :, None] * b[..., None, :, :]).sum(-2)


def nearest_rotations(matrix: Tensor) -> Tensor:
    """`project_to_so3` of matrices [..., 3, 3], on a GPU in one kernel."""
    if not has_triton(matrix):
        return project_to_so3(matrix)
    from instant_nk.fitting import nearest_rotation_triton

    return nearest_rotation_triton.project_to_so3(matrix)


def point_anchors(graph: Graph, points: np.ndarray, candidates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Anchors and weights of points inside faces: the nearest K of the anchors of the face's corners [N, C], each taken once."""
    nodes, radii, k = graph.node_positions.astype(np.float64), graph.node_radii.astype(np.float64), graph.vertex_anchors.shape[1]
    if loops_are_loaded():
        anchors, weights = np.empty((len(points), k), np.int64), np.empty((len(points), k))
        over_rows(len(points), lambda first, last: loops().point_anchors(first, last, points, candidates, nodes, radii, anchors, weights))
        return anchors, weights
    return _point_anchors(points, candidates, nodes, radii, k)


def _point_anchors(points: np.ndarray, candidates: np.ndarray, nodes: np.ndarray, radii: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest of each point's candidates [N, C] in units of their radii, each once, i64 [N, k], and their weights [N, k].

    For want of others some stand there again, without weight.
    """
    candidates = np.sort(candidates, axis=1)
    repeated = np.zeros(candidates.shape, bool)
    repeated[:, 1:] = candidates[:, 1:] == candidates[:, :-1]
    relative = surface.lengths(points[:, None] - nodes[candidates]) / radii[candidates]
    order = np.where(repeated, np.inf, relative).argsort(1, kind="stable")[:, :k]
    anchors, repeated = np.take_along_axis(candidates, order, 1), np.take_along_axis(repeated, order, 1)
    weights = skinning_weights(points, anchors, nodes, radii)
    weights[repeated] = 0
    return anchors, weights / weights.cumsum(1)[:, -1:]


@dataclass(frozen=True)
class Pattern:
    """Where each contribution to the block-sparse normal matrix goes; fixed while points and edges are fixed.

    Attributes:
        left, right: flat (point, anchor slot) of the two anchors of each contributing pair, sorted by the block it adds to, i64 [Q].
        target: that block, i64 [Q].
        blocks: node pairs a <= b that may be non-zero, i64 [U, 2].
        edge_block: block of each edge's pair, i64 [E].
        diagonal: block of each node's own pair, i64 [M].
        first: where each block's pairs begin, i64 [U + 1].
        plan: the sparse factorisation's; None on a GPU, and where the system is solved densely for want of numba.
        gather: what Triton's kernels walk along; None on the CPU.
    """

    left: Tensor
    right: Tensor
    target: Tensor
    blocks: Tensor
    edge_block: Tensor
    diagonal: Tensor
    first: Tensor
    plan: BlockCholesky | None
    gather: Gather | None

    @staticmethod
    def build(m: int, edge: np.ndarray, found: tuple[np.ndarray, ...], device: str) -> Pattern:
        """From what `_pattern` found for `m` nodes and these edges."""
        on_cpu = torch.device(device).type == "cpu"
        blocks, edge_block, diagonal = found[3:6]
        plan = BlockCholesky.analyse(m, blocks, torch.get_num_threads()) if on_cpu and _has_numba() else None
        gather = () if on_cpu else (loops().gather if loops_are_loaded() else _gather)(m, blocks, edge, edge_block, diagonal)
        own = upload([*found, *gather], device)
        return Pattern(*own[: len(found)], plan, None if on_cpu else Gather(*own[len(found) :]))


def _pattern(m: int, anchors: np.ndarray, weights: np.ndarray, edge: np.ndarray) -> tuple[np.ndarray, ...]:
    """All arrays of a `Pattern`, in order."""
    return (loops().pattern if loops_are_loaded() else _sorted_pattern)(m, anchors, weights, edge)


def _sorted_pattern(m: int, anchors: np.ndarray, weights: np.ndarray, edge: np.ndarray) -> tuple[np.ndarray, ...]:
    k = anchors.shape[1]
    i, j = (x.ravel() for x in np.meshgrid(np.arange(k), np.arange(k), indexing="ij"))
    a, b = anchors[:, i], anchors[:, j]
    live = (a <= b) & (weights[:, i] > 0) & (weights[:, j] > 0)
    point, slot = np.nonzero(live)
    key = a[live] * m + b[live]
    pairs = np.sort(edge, axis=1)
    pairs, diagonal = pairs[:, 0] * m + pairs[:, 1], np.arange(m) * (m + 1)
    unique = np.unique(np.concatenate([key, pairs, diagonal]))
    target = np.searchsorted(unique, key)
    order = np.argsort(target, kind="stable")
    return (
        (point * k + i[slot])[order], (point * k + j[slot])[order], target[order], np.stack([unique // m, unique % m], 1),
        np.searchsorted(unique, pairs), np.searchsorted(unique, diagonal), np.searchsorted(target[order], np.arange(len(unique) + 1)),
    )  # fmt: skip


@dataclass(frozen=True)
class Gather:
    """The pattern by rows and by blocks, so that each sum has one place that gathers it.

    Attributes:
        own: node whose own block each is, -1 between two nodes, i64 [U].
        link_start, link: what edges add to each block, i64 [U + 1] and i64 [3 E]: thrice the edge, plus 0 in i's own block, 1 in j's, 2 between them.
        row_start, column, entry: by rows of nodes, i32 [M + 1], and i32 [Q] the other node and twice the block, plus 1 where it is transposed.
    """

    own: Tensor
    link_start: Tensor
    link: Tensor
    row_start: Tensor
    column: Tensor
    entry: Tensor


def _gather(m: int, blocks: np.ndarray, edge: np.ndarray, edge_block: np.ndarray, diagonal: np.ndarray) -> tuple[np.ndarray, ...]:
    """All arrays of a `Gather`, in order."""
    u, e = len(blocks), len(edge)
    own = np.full(u, -1)
    own[diagonal] = np.arange(m)
    place = np.concatenate([diagonal[edge[:, 0]], diagonal[edge[:, 1]], edge_block])
    by_block = np.argsort(place, kind="stable")
    link = np.concatenate([3 * np.arange(e), 3 * np.arange(e) + 1, 3 * np.arange(e) + 2])
    between = np.flatnonzero(blocks[:, 0] != blocks[:, 1])
    row, column = np.concatenate([blocks[:, 0], blocks[between, 1]]), np.concatenate([blocks[:, 1], blocks[between, 0]])
    by_row = np.argsort(row, kind="stable")
    return (
        own, np.searchsorted(place[by_block], np.arange(u + 1)), link[by_block], np.searchsorted(row[by_row], np.arange(m + 1)).astype(np.int32),
        column[by_row].astype(np.int32), np.concatenate([2 * np.arange(u), 2 * between + 1])[by_row].astype(np.int32),
    )  # fmt: skip


@dataclass
class Evidence:
    """A quadratic in the surface points' live positions: `sum_n 1/2 d^T hessian d + gradient . d`, d the displacement from now.

    Attributes:
        hessian: [N, 3, 3], symmetric, positive semi-definite.
        gradient: [N, 3].
    """

    hessian: Tensor
    gradient: Tensor

    @staticmethod
    def none(body: Body) -> Evidence:
        if compiled(body.points):  # numpy's zeros are pages that the system clears when they are first written to
            return Evidence(torch.from_numpy(np.zeros((len(body.points), 3, 3))), torch.from_numpy(np.zeros((len(body.points), 3))))
        return Evidence(body.points.new_zeros(len(body.points), 3, 3), torch.zeros_like(body.points))

    def add_directions(self, index: Tensor, rows: Tensor, residual: Tensor, weight: Tensor) -> None:
        """Add `weight (residual + rows . d)^2 / 2` for points `index`; rows [Q, 3], residual and weight [Q]."""
        if compiled(self.hessian):
            loops().add_directions(*arrays(index, rows, residual, weight), self.hessian.numpy(), self.gradient.numpy())
            return
        scaled = weight[:, None] * rows
        self.hessian.index_add_(0, index, scaled[:, :, None] * rows[:, None, :])
        self.gradient.index_add_(0, index, scaled * residual[:, None])

    def add_everywhere(self, rows: Tensor, residual: Tensor, weight: Tensor) -> None:
        """`add_directions` of K residuals for every point: rows [K, N, 3], residual and weight [K, N]."""
        scaled = weight[..., None] * rows
        self.hessian.add_((scaled[..., :, None] * rows[..., None, :]).sum(0))
        self.gradient.add_((scaled * residual[..., None]).sum(0))

    def add_positions(self, index: Tensor, difference: Tensor, weight: Tensor) -> None:
        """Add `weight |difference + d|^2 / 2` for points `index`; difference [Q, 3] is live position minus wanted position."""
        if compiled(self.hessian):
            loops().add_positions(*arrays(index, difference, weight), self.hessian.numpy(), self.gradient.numpy())
            return
        self.hessian.index_add_(0, index, weight[:, None, None] * torch.eye(3, dtype=weight.dtype, device=weight.device))
        self.gradient.index_add_(0, index, weight[:, None] * difference)


def rigidity_errors(body: Body, pose: Pose) -> tuple[Tensor, Tensor]:
    """As-rigid-as-possible residuals of each edge (i, j): where i's frame expects j, minus where j is, and the reverse; [E, 3] each."""
    if compiled(body.nodes):
        forward, backward = np.empty((len(body.edge), 3)), np.empty((len(body.edge), 3))
        loops().edge_errors(*arrays(body.edge, body.nodes, pose.rotations, pose.translations), forward, backward)
        return torch.from_numpy(forward), torch.from_numpy(backward)
    i, j = body.edge.unbind(1)
    rest = body.nodes[j] - body.nodes[i]
    live = rest + pose.translations[j] - pose.translations[i]
    return small_matmul(pose.rotations[i], rest[..., None]).squeeze(-1) - live, live - small_matmul(pose.rotations[j], rest[..., None]).squeeze(-1)


def rigidity_energy(body: Body, pose: Pose, weight: Tensor) -> Tensor:
    """`sum_e weight_e (|forward|^2 + |backward|^2) / 2`."""
    if compiled(body.nodes):
        return torch.tensor(loops().edge_energy(*arrays(body.edge, body.nodes, pose.rotations, pose.translations, weight)), dtype=torch.float64)
    forward, backward = rigidity_errors(body, pose)
    return 0.5 * (weight * (forward.square().sum(-1) + backward.square().sum(-1))).sum()


def edge_weights(body: Body, pose: Pose, rigidity: float | Tensor, softening: float | Tensor) -> Tensor:
    """Weight of each edge's rigidity term: stiffness, relaxed (Geman-McClure) where the strain exceeds `softening`, so that joints bend."""
    if compiled(body.nodes):
        weight = np.empty(len(body.edge))
        loops().relaxed(*arrays(body.edge, body.nodes, pose.rotations, pose.translations, body.stiffness), rigidity, softening, weight)
        return torch.from_numpy(weight)
    if len(body.edge) and has_triton(body.nodes):
        return kernels().edge_weights(body, pose, rigidity, softening)
    forward, backward = rigidity_errors(body, pose)
    rest = (body.nodes[body.edge[:, 1]] - body.nodes[body.edge[:, 0]]).square().sum(-1).clamp_min(1e-20)
    strain = 0.5 * (forward.square().sum(-1) + backward.square().sum(-1)) / rest
    return rigidity * body.stiffness / (1 + strain / softening**2) ** 2


def _normal_equations(body: Body, pose: Pose, evidence: Evidence, edge_weight: Tensor) -> tuple[Tensor, Tensor]:
    """Upper blocks [U, 6, 6] and right-hand side [M, 6] of the Gauss-Newton system in twists (omega, tau) about the nodes."""
    if compiled(body.points):
        return _compiled_normal_equations(body, pose, evidence, edge_weight)
    pattern, m = body.pattern, len(body.nodes)
    blocks = body.points.new_zeros(len(pattern.blocks), 6, 6)
    rhs = body.points.new_zeros(m, 6)
    eye = torch.eye(3, dtype=body.points.dtype, device=body.points.device)

    arm = small_matmul(pose.rotations[body.anchors], (body.points[:, None] - body.nodes[body.anchors])[..., None]).squeeze(-1)
    jacobian = body.weights[..., None, None] * torch.cat([-skew(arm), eye.expand(*arm.shape[:2], 3, 3)], -1)  # [N, K, 3, 6]
    pulled = small_matmul(evidence.hessian[:, None], jacobian).reshape(-1, 3, 6)
    across = jacobian.transpose(-1, -2).reshape(-1, 6, 3)
    blocks.index_add_(0, pattern.target, small_matmul(across.index_select(0, pattern.left), pulled.index_select(0, pattern.right)))
    rhs.index_add_(0, body.anchors.reshape(-1), -small_matmul(jacobian.transpose(-1, -2), evidence.gradient[:, None, :, None]).reshape(-1, 6))

    i, j = body.edge.unbind(1)
    rest = body.nodes[j] - body.nodes[i]
    forward, backward = rigidity_errors(body, pose)
    turn_i, turn_j = -skew(small_matmul(pose.rotations[i], rest[..., None]).squeeze(-1)), -skew(small_matmul(pose.rotations[j], rest[..., None]).squeeze(-1))
    zero, one = torch.zeros_like(turn_i), eye.expand_as(turn_i)
    # forward = R_i rest + x_i - x_j; backward = x_j - x_i - R_j rest
    at_i = torch.cat([torch.cat([turn_i, one], -1), torch.cat([zero, -one], -1)], -2)  # [E, 6, 6]: rows forward, backward; columns omega_i, tau_i
    at_j = torch.cat([torch.cat([zero, -one], -1), torch.cat([-turn_j, one], -1)], -2)
    error = torch.cat([forward, backward], -1)
    weight = edge_weight[:, None, None]
    blocks.index_add_(0, pattern.diagonal[i], weight * small_matmul(at_i.transpose(-1, -2), at_i))
    blocks.index_add_(0, pattern.diagonal[j], weight * small_matmul(at_j.transpose(-1, -2), at_j))
    blocks.index_add_(0, pattern.edge_block, weight * small_matmul(at_i.transpose(-1, -2), at_j))  # edges run i < j, as blocks do
    rhs.index_add_(0, i, -edge_weight[:, None] * small_matmul(at_i.transpose(-1, -2), error[..., None]).squeeze(-1))
    rhs.index_add_(0, j, -edge_weight[:, None] * small_matmul(at_j.transpose(-1, -2), error[..., None]).squeeze(-1))
    return blocks, rhs


def _compiled_normal_equations(body: Body, pose: Pose, evidence: Evidence, edge_weight: Tensor) -> tuple[Tensor, Tensor]:
    """`_normal_equations` in compiled loops: every block gathers what its points say, so that threads never meet."""
    pattern, run = body.pattern, loops()
    blocks, rhs = np.zeros((len(pattern.blocks), 6, 6)), np.zeros((len(body.nodes), 6))
    arm, weights, hessian = arrays(
        per_row(run.arms, body.points, body.anchors, body.nodes, pose.rotations, shape=(body.anchors.shape[1], 3)), body.weights, evidence.hessian
    )
    first, left, right = arrays(pattern.first, pattern.left, pattern.right)
    pieces = min(torch.get_num_threads(), max(1, len(left) // LEAST_PAIRS))
    edges = np.searchsorted(first, np.arange(pieces + 1) * len(left) // pieces)  # about as many pairs in each piece
    edges[0], edges[-1] = 0, len(blocks)
    each([functools.partial(run.point_blocks, a, b, first, left, right, arm, weights, hessian, blocks) for a, b in zip(edges[:-1], edges[1:])])
    run.point_forces(*arrays(body.anchors), weights, arm, *arrays(evidence.gradient), rhs)
    structure = arrays(body.edge, pattern.diagonal, pattern.edge_block, body.nodes, pose.rotations, pose.translations, edge_weight)
    run.edge_blocks(*structure, blocks, rhs)
    return torch.from_numpy(blocks), torch.from_numpy(rhs)


def _solve(body: Body, blocks: Tensor, rhs: Tensor) -> Tensor:
    """Solve the block system for the twists [M, 6]."""
    m = len(body.nodes)
    if body.pattern.plan is None:
        a, b = body.pattern.blocks.unbind(1)
        dense = blocks.new_zeros(m, m, 6, 6)
        dense[b, a] = blocks.transpose(-1, -2)
        dense[a, b] = blocks
        factor, info = torch.linalg.cholesky_ex(dense.permute(0, 2, 1, 3).reshape(6 * m, 6 * m))
        twists = torch.cholesky_solve(rhs.reshape(-1, 1), factor).reshape(m, 6)
        return torch.where(info == 0, twists, math.nan)  # `orthonormal` raises: to ask here, the host would have to wait
    solution = body.pattern.plan.solve(*arrays(blocks, rhs))
    if solution is None:
        raise NumericalError("registration: the normal equations are not positive definite. Raise registration.rigidity_weight.")
    return torch.from_numpy(solution)


def apply_twists(pose: Pose, twists: Tensor) -> Pose:
    """Pose after left-multiplying each node's rotation by exp(omega) and shifting it by tau."""
    if compiled(twists) and twists.dim() == 2:
        turned, moved = np.empty((len(twists), 3, 3)), np.empty((len(twists), 3))
        loops().turn_nodes(*arrays(twists), 1.0, *arrays(pose.rotations, pose.translations), turned, moved)
        return Pose(torch.from_numpy(turned), torch.from_numpy(moved))
    return Pose(small_matmul(so3_exp(twists[..., :3]), pose.rotations), pose.translations + twists[..., 3:])


def step(body: Body, pose: Pose, evidence: Evidence, edge_weight: Tensor, damping: float = DAMPING, tries: int = 4) -> tuple[Pose, float]:
    """One damped Gauss-Newton step with a halving line search on the true energy.

    Args:
        evidence: quadratic at the pose's live positions, already weighted per point.
        edge_weight: [E], from `edge_weights`.
        damping: added to the diagonal relative to the mean diagonal, so that nodes without evidence stay put.

    Returns:
        the new pose and the length of the step taken (0: no step lowered the energy); on a GPU a tensor, for which nobody has waited.
    """
    if has_triton(body.points):
        from instant_nk.fitting.conjugate_gradients_triton import solve

        gpu = kernels()
        twists = solve(body, *gpu.normal_equations(body, pose, evidence, edge_weight), damping)
        rotations, translations, length = gpu.search_line(body, pose, evidence, edge_weight, twists, tries)
        return Pose(rotations, translations), length
    blocks, rhs = _normal_equations(body, pose, evidence, edge_weight)
    own = body.pattern.diagonal[:, None], torch.arange(6, device=blocks.device), torch.arange(6, device=blocks.device)
    blocks, own = (blocks.numpy(), arrays(*own)) if compiled(blocks) else (blocks, own)
    scale = blocks[own].mean(0)  # per unknown kind: rotations and translations have different units
    blocks[own] += damping * scale + 1e-12 * scale.max() + 1e-300
    blocks = torch.as_tensor(blocks)
    twists = _solve(body, blocks, rhs)
    if not compiled(twists):
        return _search_line(body, pose, evidence, edge_weight, twists, tries)
    if not torch.isfinite(twists).all():
        raise NumericalError("registration: the step is not finite; an observation or the canonical mesh holds values that are not finite.")
    angle = twists[:, :3].norm(dim=-1).max()
    twists = twists * min(1.0, 1.0 / max(float(angle), 1e-12))  # a step turns no node by more than a radian
    start = body.warp(pose)
    before = float(rigidity_energy(body, pose, edge_weight))
    length = 1.0
    for _ in range(tries):
        trial = apply_twists(pose, length * twists)
        if float(_evidence_energy(body, trial, evidence, start) + rigidity_energy(body, trial, edge_weight)) <= before:
            return trial, length
        length *= 0.5
    return pose, 0.0


def _search_line(body: Body, pose: Pose, evidence: Evidence, edge_weight: Tensor, twists: Tensor, tries: int) -> tuple[Pose, Tensor]:
    """The longest of `tries` halved steps that lowers the energy, all tried at once; twists that are not finite make a pose that is not."""
    angle = twists[:, :3].norm(dim=-1).max()
    lengths = 0.5 ** torch.arange(tries, dtype=twists.dtype, device=twists.device)
    trials = apply_twists(pose, lengths[:, None, None] * (twists * (1.0 / angle.clamp_min(1e-12)).clamp_max(1.0)))
    shift = body.nodes + trials.translations - turn(trials.rotations, body.nodes)
    affine = torch.cat([trials.rotations, shift[..., None]], -1).flatten(2)  # [T, M, 12]
    blended = (body.weights[..., None] * affine[:, body.anchors]).sum(2).unflatten(-1, (3, 4))
    d = turn(blended[..., :3], body.points) + blended[..., 3] - body.warp(pose)
    i, j = body.edge.unbind(1)
    rest = body.nodes[j] - body.nodes[i]
    live = rest + trials.translations[:, j] - trials.translations[:, i]
    strain = (turn(trials.rotations[:, i], rest) - live).square().sum(-1) + (live - turn(trials.rotations[:, j], rest)).square().sum(-1)
    energy = (d * (0.5 * turn(evidence.hessian, d) + evidence.gradient)).sum((1, 2)) + 0.5 * (edge_weight * strain).sum(1)
    lower = energy <= rigidity_energy(body, pose, edge_weight)
    first = lower.to(torch.int8).argmax()[None]
    length = torch.where(lower.any(), lengths.index_select(0, first)[0], 0.0)  # an index of no dimension would be read by the host
    length = torch.where(torch.isfinite(twists).all(), length, math.nan)

    def chosen(tried: Tensor, before: Tensor) -> Tensor:
        return torch.where(length > 0, tried.index_select(0, first)[0], before + 0 * length)

    return Pose(chosen(trials.rotations, pose.rotations), chosen(trials.translations, pose.translations)), length


def _evidence_energy(body: Body, trial: Pose, evidence: Evidence, start: Tensor) -> Tensor:
    """The evidence's quadratic where the trial pose brings the points; `start` is where they were, [N, 3]."""
    if compiled(body.points):
        inputs = (body.points, body.anchors, body.weights, trial.rotations, _shift(body.nodes, trial), start, evidence.hessian, evidence.gradient)
        return per_row(loops().point_energy, *inputs, shape=()).sum()
    d = body.warp(trial) - start
    return 0.5 * (d * small_matmul(evidence.hessian, d[..., None]).squeeze(-1)).sum() + (evidence.gradient * d).sum()


def orthonormal(pose: Pose) -> Pose:
    """The pose with accumulated rounding removed from its rotations.

    Raises:
        NumericalError: a step on a GPU, which nobody waited for, failed.
    """
    if not torch.isfinite(pose.rotations).all():
        raise NumericalError(
            "registration: a step is not finite: the normal equations are not positive definite (raise registration.rigidity_weight), or an observation "
            "or the canonical mesh holds values that are not finite."
        )
    return Pose(nearest_rotations(pose.rotations), pose.translations)
