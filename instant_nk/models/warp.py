"""The warp between canonical and live space: node motion (refinable), the live grid that follows it, and its exact inverse."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from instant_nk.geometry.neighbours import NearestPoints
from instant_nk.geometry.rotations import so3_exp, turn
from instant_nk.kernels.blend_skinning import blend_with_jacobian, inverse, skinning_weights
from instant_nk.models.occupancy import cell_centres, dilate

SECOND_SEED_CELLS = 3.0  # canonical distance, in cells, from which a second surface patch counts as another one
CLOSING = 1.5  # and how much nearer than there it must have come: on one flat patch distances stay as they are
BLOCK = 1 << 14  # points whose distances to all nodes are held at once
BAND = 0.01  # scene units: how far from the surface the inverse is judged
REST_BAND = 4  # cells around the surface at rest within which an inverse can end
MOST_STRETCH = 2.0  # of the warp between a point and the surface next to it,
FOREIGN_CELLS = 0.25  # and cells more: farther away, it is another part of the subject
SECOND_SEED_CANDIDATES = 12  # vertices looked at, one a cell: they reach about two cells along the first patch and so past it


class NodeMotion(nn.Module):
    """Rotations and translations of all nodes at the frames of a window, with a learned correction (left-multiplicative twists).

    Args:
        rotations: f32 [F, M, 3, 3]; translations: f32 [F, M, 3].
        fixed: frames whose motion must not change (the canonical frame), bool [F].
    """

    def __init__(self, rotations: Tensor, translations: Tensor, fixed: Tensor):
        super().__init__()
        self.register_buffer("rotations", rotations)
        self.register_buffer("translations", translations)
        self.register_buffer("free", (~fixed).float()[:, None, None])
        self.turn = nn.Parameter(torch.zeros_like(translations))
        self.shift = nn.Parameter(torch.zeros_like(translations))

    def forward(self) -> tuple[Tensor, Tensor]:
        """Corrected rotations [F, M, 3, 3] and translations [F, M, 3]."""
        return so3_exp(self.turn * self.free) @ self.rotations, self.translations + self.shift * self.free


@dataclass
class Skeleton:
    """What the warp needs to know of graph and canonical mesh, as tensors on one device.

    Attributes:
        nodes: [M, 3]; radii: [M]; edges: i64 [E, 2]; edge_weights: [E]; spacing: scene units.
        vertices: canonical mesh, and on its larger faces points between, so that no cell of the live grid is missed, [V, 3]; anchors: i64 [V, K].
        of_mesh: how many of the vertices, from the first on, are the mesh's; 0: all.
    """

    nodes: Tensor
    radii: Tensor
    edges: Tensor
    edge_weights: Tensor
    spacing: float
    vertices: Tensor
    anchors: Tensor
    of_mesh: int = 0
    _at_rest: dict[int, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self.of_mesh = self.of_mesh or len(self.vertices)

    def nearest_at_rest(self, resolution: int) -> Tensor:
        """Nearest vertex of each cell of canonical space, i32 [G, G, G], -1 far from all; found once per resolution, for it never moves."""
        if resolution not in self._at_rest:
            grid = torch.full((resolution,) * 3, -1, dtype=torch.int32, device=self.vertices.device)
            rows = _splat(self.vertices, resolution, REST_BAND).reshape(-1).nonzero()[:, 0]
            grid.reshape(-1)[rows] = NearestPoints(self.vertices).query(cell_centres(resolution).to(grid.device)[rows])[1][:, 0].int()
            self._at_rest[resolution] = grid
        return self._at_rest[resolution]

    def strains(self, rotations: Tensor, translations: Tensor) -> Tensor:
        """As-rigid-as-possible residuals of a motion, both directions: where one node expects the other, minus where that is [2, F, E, 3]."""
        i, j = self.edges[:, 0], self.edges[:, 1]

        def seen_from(a: Tensor, b: Tensor) -> Tensor:
            rest = self.nodes[b] - self.nodes[a]
            return turn(rotations[:, a], rest) + self.nodes[a] + translations[:, a] - self.nodes[b] - translations[:, b]

        return torch.stack([seen_from(i, j), seen_from(j, i)])

    def rigidity(self, rotations: Tensor, translations: Tensor, before: Tensor | float = 0.0) -> Tensor:
        """As-rigid-as-possible energy in node spacings squared, mean over frames, edges and both directions.

        Args:
            before: strains [2, F, E, 3] that cost nothing: of a motion that is to be kept but for changes.
        """
        if not len(self.edges):  # a single node
            return translations.sum() * 0.0
        error = self.strains(rotations, translations) - before
        return ((error**2).sum(-1) * self.edge_weights).mean() / (self.spacing**2 * self.edge_weights.mean())


class LiveSpace:
    """Per frame: which cells hold surface, and from which canonical vertex the inverse starts there.

    The grid follows the motion: cells near the moved vertices are occupied. Each such cell knows its nearest moved vertex
    and, where another patch of the surface is about as near (touching limbs), a second one.

    Attributes:
        occupied: bool [F, G, G, G].
        seeds: canonical vertex of each cell, i32 [F, G, G, G, 2], -1 for none.
        rest: `Skeleton.nearest_at_rest`.
    """

    def __init__(self, skeleton: Skeleton, rotations: Tensor, translations: Tensor, resolution: int, band_cells: int = 2):
        self.skeleton, self.resolution = skeleton, resolution
        device = skeleton.vertices.device
        frames, v = rotations.shape[0], len(skeleton.vertices)
        self.occupied = torch.zeros(frames, resolution, resolution, resolution, dtype=torch.bool, device=device)
        self.seeds = torch.full((frames, resolution, resolution, resolution, 2), -1, dtype=torch.int32, device=device)
        self.live, self.inverse_jacobian = [], []
        centres = cell_centres(resolution).to(device)
        cells = np.floor(skeleton.vertices.cpu().numpy() * (resolution / 2)).astype(np.int64)
        sparse = torch.from_numpy(np.unique(cells, axis=0, return_index=True)[1]).to(device)
        for f in range(frames):
            frame = torch.full((v,), f, device=device)
            live, jacobian = blend_with_jacobian(skeleton.vertices, skeleton.anchors, skeleton.nodes, skeleton.radii, rotations, translations, frame)
            self.live.append(live)
            self.inverse_jacobian.append(_safe_inverse(jacobian))
            occupied = _splat(live, resolution, band_cells)
            rows = occupied.reshape(-1).nonzero()[:, 0]
            self.occupied[f] = occupied
            self.seeds[f].reshape(-1, 2)[rows] = _two_seeds(centres[rows], live, skeleton.vertices, sparse, 2 / resolution)
        self.live, self.inverse_jacobian = torch.stack(self.live), torch.stack(self.inverse_jacobian)
        self.rest = skeleton.nearest_at_rest(resolution)

    def seed(self, x: Tensor, frame: Tensor, which: int) -> Tensor:
        """Canonical vertex [N] to start from at live points [N, 3] of frames [N]; -1 where there is none."""
        cell = ((x + 1) * (self.resolution / 2)).long().clamp(0, self.resolution - 1)
        return self.seeds[frame, cell[:, 0], cell[:, 1], cell[:, 2], which].long()

    def guess(self, x: Tensor, frame: Tensor, vertex: Tensor) -> Tensor:
        """First-order inverse around a vertex: v + J^-1 (x - W(v)), [N, 3]."""
        offset = x - self.live[frame, vertex]
        return self.skeleton.vertices[vertex] + turn(self.inverse_jacobian[frame, vertex], offset)

    def belongs(self, x: Tensor, frame: Tensor, canonical: Tensor) -> Tensor:
        """Whether what lies at canonical points [N, 3] is the part of the subject that is near the live points [N, 3] they came from, bool [N].

        Away from the surface, an inverse leads on along the motion of the patch it started from, and may end near quite another part: beside
        a swinging arm, in the chest that it hung next to at rest. That part has moved elsewhere, and is not seen here.
        """
        cells = ((canonical + 1) * (self.resolution / 2)).long().clamp(0, self.resolution - 1)
        vertex = self.rest[cells[:, 0], cells[:, 1], cells[:, 2]].long()
        known, vertex = vertex >= 0, vertex.clamp_min(0)
        at_rest = torch.linalg.vector_norm(canonical - self.skeleton.vertices[vertex], dim=-1)
        now = torch.linalg.vector_norm(x - self.live[frame, vertex], dim=-1)
        return known & (now < MOST_STRETCH * at_rest + FOREIGN_CELLS * 2 / self.resolution)


def _splat(points: Tensor, resolution: int, band: int) -> Tensor:
    """Cells of [-1, 1]^3 with a point in them, and `band` cells around, bool [G, G, G]."""
    cell = ((points + 1) * (resolution / 2)).long()
    cell = cell[((cell >= 0) & (cell < resolution)).all(1)]
    grid = torch.zeros((resolution,) * 3, dtype=torch.bool, device=points.device)
    grid[cell[:, 0], cell[:, 1], cell[:, 2]] = True
    return dilate(grid, band)


def _two_seeds(points: Tensor, live: Tensor, rest: Tensor, sparse: Tensor, cell: float) -> Tensor:
    """Nearest vertex of each live point, and the nearest one of another patch of the surface that has come close; -1 for none. i32 [N, 2].

    Args:
        live: moved vertices [V, 3]; rest: the same at rest.
        sparse: about one vertex a cell: among all of them, the nearest few would lie on the first patch.
        cell: edge of a cell, scene units.
    """
    first = NearestPoints(live).query(points)[1][:, 0]
    near = sparse[NearestPoints(live[sparse]).query(points, min(SECOND_SEED_CANDIDATES, len(sparse)))[1]]

    def squared(vertices: Tensor) -> Tensor:
        return (vertices[near] - vertices[first][:, None]).square().sum(-1)

    apart = squared(rest) > (CLOSING**2 * squared(live)).clamp_min((SECOND_SEED_CELLS * cell) ** 2)
    found = apart.any(1)
    second = torch.where(found, near.gather(1, apart.to(torch.uint8).argmax(1, keepdim=True))[:, 0], -1)
    return torch.stack([first, second], 1).int()


def _safe_inverse(jacobian: Tensor) -> Tensor:
    """Inverse of [N, 3, 3], the transpose where the blend is degenerate (a first guess only)."""
    bad = torch.linalg.det(jacobian).abs() < 0.05
    eye = torch.eye(3, device=jacobian.device)
    return torch.where(bad[:, None, None], jacobian.transpose(-1, -2), torch.linalg.inv(torch.where(bad[:, None, None], eye, jacobian)))


def to_canonical(
    space: LiveSpace, x: Tensor, frame: Tensor, vertex: Tensor, rotations: Tensor, translations: Tensor, iterations: int = 6
) -> tuple[Tensor, Tensor, Tensor]:
    """Coarse canonical point x' with W(x') = x, by Newton from the vertex's neighbourhood.

    Differentiable in the motion by the implicit function theorem.

    Returns:
        canonical [N, 3], Jacobian dW/dx' [N, 3, 3] (carries no gradient), converged bool [N].
    """
    s = space.skeleton
    anchors = s.anchors[vertex[:, None], torch.arange(s.anchors.shape[1], device=vertex.device)]  # taken as whole rows, it is ten times slower on a GPU
    with torch.no_grad():
        guess = space.guess(x, frame, vertex)
    canonical, converged = inverse(x, guess, anchors, s.nodes, s.radii, rotations, translations, frame, iterations=iterations, tolerance=1e-5)
    with torch.no_grad():
        _, jacobian = blend_with_jacobian(canonical, anchors, s.nodes, s.radii, rotations, translations, frame)
    return canonical, jacobian, converged


def blended_inverse(skeleton: Skeleton, x: Tensor, rotations: Tensor, translations: Tensor) -> Tensor:
    """The published way back, for comparison: inverse node motions blended by the nodes nearest in live space, [N, 3].

    sum_k w_k(x) (R_k^T (x - g_k - t_k) + g_k). It is not the inverse of the blend, and nodes of another limb that has come close take part.

    Args:
        x: live points [N, 3].
        rotations, translations: of one frame, [M, 3, 3] and [M, 3].
    """
    live = skeleton.nodes + translations
    count = min(skeleton.anchors.shape[1], len(live))
    anchors = torch.cat([torch.cdist(part, live).topk(count, largest=False).indices for part in x.split(BLOCK)])
    weights = skinning_weights(x, anchors, live, skeleton.radii)
    back = turn(rotations.transpose(1, 2)[anchors], x[:, None] - live[anchors]) + skeleton.nodes[anchors]
    return (weights[..., None] * back).sum(1)


@dataclass
class InverseQuality:
    """How well live points are mapped back at one frame, of points near the surface.

    Attributes:
        cycle: distance of a canonical point from its live position mapped back, scene units [N]; converged: bool [N].
        blended: the same distance by `blended_inverse` [N].
    """

    cycle: Tensor
    converged: Tensor
    blended: Tensor


@torch.no_grad()
def inverse_quality(space: LiveSpace, rotations: Tensor, translations: Tensor, index: int, generator: torch.Generator) -> InverseQuality:
    """Canonical points around every vertex, carried to a frame by the graph and back by both ways; the exact one starts from the live grid alone.

    Points lie up to BAND away from the surface, on either side, as samples of rays do.
    """
    s, device = space.skeleton, space.skeleton.vertices.device
    offset = (torch.rand(s.vertices.shape, generator=generator) * 2 - 1).to(device) * BAND
    points, frame = s.vertices + offset, torch.full((len(s.vertices),), index, device=device)
    live = blend_with_jacobian(points, s.anchors, s.nodes, s.radii, rotations, translations, frame)[0]
    candidates = [space.seed(live, frame, which) for which in (0, 1)]
    seeded = candidates[0] >= 0
    live, frame, points = live[seeded], frame[seeded], points[seeded]
    first, second = (vertex[seeded] for vertex in candidates)
    canonical, _, converged = to_canonical(space, live, frame, first, rotations, translations)
    cycle = torch.linalg.vector_norm(canonical - points, dim=-1)
    rows = (second >= 0).nonzero()[:, 0]  # where two patches are near, both have a root; which one is meant, the distance field decides
    other, _, found = to_canonical(space, live[rows], frame[rows], second[rows], rotations, translations)
    away = torch.linalg.vector_norm(other - points[rows], dim=-1)
    better = found & (away < cycle[rows])
    cycle[rows] = torch.where(better, away, cycle[rows])
    converged[rows] |= better
    blended = blended_inverse(s, live, rotations[index], translations[index])
    return InverseQuality(cycle, converged, torch.linalg.vector_norm(blended - points, dim=-1))
