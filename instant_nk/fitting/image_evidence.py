"""Evidence from the images themselves: colours that must stay on their surface point, and silhouettes that must be filled.

Surfaces say nothing about sliding along themselves; the pictures do. Each surface point remembers the colour it had at the
canonical frame, per pyramid level; at a live frame the colour where it projects, in every camera that sees it, gives one
Lucas-Kanade residual per channel. Shading is divided out: what one distant light explains by the normals (`distant_light`), and of the rest half by a
gain per node. What they leave is brightness, which is therefore told apart from hue and trusted less. Silhouettes add two kinds of pull: a point outside a
mask goes to the mask's edge, and the mask's edge draws the nearest point of the moved surface's own outline.

On the CPU what views see is a list of pairs. On a GPU every pair of a view and a point is there, and those that do not count have no weight: nothing
asks the device how many there are, so that a step can be recorded (`repeated.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from instant_nk.fitting.correspondences import median_of
from instant_nk.fitting.deformation_solver import Body, Evidence, Pose, small_matmul, warp
from instant_nk.fitting.distant_light import relit
from instant_nk.fitting.frame_images import FrameImages, Views
from instant_nk.geometry.neighbours import NearestPoints
from instant_nk.geometry.rasterize import depth_maps
from instant_nk.io.graph import Graph
from instant_nk.io.mesh import Mesh

LEAST_ALPHA = 0.6  # of a pixel whose colour is compared
LEAST_FACING = 0.2  # cosine between a point's normal and the direction to a camera that sees it
RIM_FACING = 0.7  # most of that cosine for a point of the moved surface's outline
LEAST_RIM = 3  # points of an outline in a view that are worth drawing
DEAD_ZONE = 1.0  # pixels by which an outline may miss before it is pulled: masks are no finer than that, surfaces are
USUAL_NOISE = 0.016  # intensity by which colours usually differ from the canonical frame's; a frame where they differ less weighs its colours more,
TRUST = (0.25, 2.0)  # by a factor on the residual between these: what is left between colours that agree well is blur, not noise
SHADING = 0.015  # share of a point's brightness that turning in the light may change without light and gains showing it: no brightness is trusted further
TINGE = 0.01  # the same of what makes its hue, which light changes less
SEEN_WELL = 3  # cameras that see a point from which on what the surface says of it counts in full; where there are few, a quarter of them;
UNSEEN = 0.02  # how much it counts where none does: nothing was observed there, so the nearest surface is that of something else
PLAIN = 0.1  # what colours say of a point, relative to what the surface says, at which they count as silent by half
LEAST_LIT = 1e-3  # squared brightness, summed over views, of a point that says something of the light
GAIN_RANGE = (0.6, 1.6)  # shading may change a point's brightness by no more


@dataclass(frozen=True)
class Shell:
    """The canonical mesh as the images see it: vertices hung on the graph and the faces that hide what is behind them."""

    vertices: Tensor
    anchors: Tensor
    weights: Tensor
    faces: Tensor

    @staticmethod
    def from_mesh(graph: Graph, mesh: Mesh, device: str = "cpu") -> Shell:
        real = [torch.as_tensor(x.astype(np.float64), device=device) for x in (mesh.vertices, graph.vertex_weights)]
        whole = [torch.as_tensor(x.astype(np.int64), device=device) for x in (graph.vertex_anchors, mesh.faces)]
        return Shell(real[0], whole[0], real[1], whole[1])

    def live(self, body: Body, pose: Pose) -> Tensor:
        return warp(self.vertices, self.anchors, self.weights, body.nodes, pose)


@dataclass(frozen=True)
class Pairs:
    """Pairs of a view and a body point.

    Attributes:
        view, point: i64 [S] each.
        facing: cosine between the point's normal and the direction to the camera, [S]; 0: the pair does not count.
        points: of the body, N.
        whole: all pairs are there, view by view.
    """

    view: Tensor
    point: Tensor
    facing: Tensor
    points: int
    whole: bool

    def kept(self, keep: Tensor, *values: Tensor) -> tuple:
        """Those pairs for which `keep` [S] is true, and what is known of each; where all pairs stay, the others no longer count."""
        if self.whole:
            return replace(self, facing=torch.where(keep, self.facing, 0.0)), *values
        return replace(self, view=self.view[keep], point=self.point[keep], facing=self.facing[keep]), *(v[keep] for v in values)

    def per_point(self, values: Tensor) -> Tensor:
        """Sums of what pairs say [S, ...] over the views, [N, ...]."""
        if self.whole:
            return values.reshape(-1, self.points, *values.shape[1:]).sum(0)
        return values.new_zeros(self.points, *values.shape[1:]).index_add_(0, self.point, values)

    def tell(self, evidence: Evidence, rows: Tensor, residual: Tensor, weight: Tensor) -> None:
        """Add residuals [S, R] along rows [S, R, 3], R for each pair, with a weight per pair [S]."""
        weight = weight[:, None].expand_as(residual)
        if self.whole:
            views = (-1, self.points, residual.shape[1])
            evidence.add_everywhere(
                rows.reshape(*views, 3).transpose(1, 2).flatten(0, 1), *(x.reshape(views).transpose(1, 2).flatten(0, 1) for x in (residual, weight))
            )
            return
        evidence.add_directions(self.point.repeat_interleave(residual.shape[1]), rows.reshape(-1, 3), residual.reshape(-1), weight.reshape(-1))


@dataclass(frozen=True)
class Sight:
    """What the views see of the moved surface: pairs of a view and a point it sees, and which points lie on the surface's own outline, bool [C, N]."""

    pairs: Pairs
    rim: Tensor

    def shown(self) -> Tensor:
        """Weight of each point in [UNSEEN, 1], [N], by how many cameras see it."""
        cameras = self.pairs.per_point((self.pairs.facing > 0).to(self.pairs.facing.dtype))
        enough = min(SEEN_WELL, max(1.0, len(self.rim) / 4))
        return UNSEEN + (1 - UNSEEN) * (cameras / enough).clamp_max(1.0)


def look(body: Body, shell: Shell, pose: Pose, views: Views, coarse: int = 2, whole: bool | None = None) -> Sight:
    """Visibility and outlines of the moved surface in every view, by a depth buffer of 1 / `coarse` of the images' size.

    Args:
        whole: keep all pairs, as a step that is recorded wants it; None: on a GPU.
    """
    vertices, live, normals = shell.live(body, pose), body.warp(pose), body.warp_normals(pose)
    local, pixels = views.project(live)
    sizes = -(-torch.tensor(views.sizes, device=live.device) // coarse)
    width, height = (-(-max(side) // coarse) for side in zip(*views.sizes))
    reduce = torch.tensor([[1 / coarse], [1 / coarse], [1.0]], dtype=views.K.dtype, device=live.device)
    depth = depth_maps(vertices, shell.faces, views.w2c, views.K * reduce, (width, height))
    column, row = (pixels / coarse).floor().long().unbind(-1)  # [C, N] each
    inside = (column >= 0) & (column < sizes[:, :1]) & (row >= 0) & (row < sizes[:, 1:]) & (local[..., 2] > 0)
    cell = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
    surface = depth.flatten(1).gather(1, cell)
    towards = views.centres()[:, None] - live
    facing = (normals * towards).sum(-1) / towards.norm(dim=-1)
    # A slanted surface changes depth within a pixel: half a spacing of slack, which occluders exceed.
    front = (surface > 0) & (local[..., 2] <= surface + 0.5 * body.spacing)
    # A pixel is on the rim when one of its eight neighbours shows nothing.
    empty = torch.nn.functional.max_pool2d((depth == 0).to(torch.float32)[:, None], 3, 1, 1).flatten(1).gather(1, cell) > 0
    pairs = _every_pair(torch.where(inside & front & (facing > LEAST_FACING), facing, 0.0))
    whole = live.is_cuda if whole is None else whole
    return Sight(pairs if whole else replace(pairs, whole=False).kept(pairs.facing > 0)[0], inside & empty & (facing.abs() < RIM_FACING))


def _every_pair(facing: Tensor) -> Pairs:
    """All pairs of C views and N points; `facing` [C, N]."""
    index = torch.arange(facing.numel(), device=facing.device)
    view = torch.div(index, facing.shape[1], rounding_mode="floor")
    return Pairs(view, index - view * facing.shape[1], facing.reshape(-1), facing.shape[1], True)


@dataclass(frozen=True)
class Appearance:
    """Colour of each surface point at the canonical frame, per pyramid level.

    Attributes:
        colours: [L, N, 3]; known: whether any view saw the point, bool [N].
    """

    colours: Tensor
    known: Tensor

    def at(self, level: int) -> Appearance:
        """That of one level alone."""
        return Appearance(self.colours[level : level + 1], self.known)


def remember(body: Body, sight: Sight, views: Views, images: FrameImages, pose: Pose) -> Appearance:
    """Mean colour of each point over the views that see it, head-on views counting most."""
    _, pixels = views.project(body.warp(pose))
    pairs = sight.pairs
    uv = pixels[pairs.view, pairs.point]
    colours, known = [], None
    for level in images.levels:
        values = level.sample(pairs.view, uv)
        weight = pairs.facing**2 * (values[:, -1] > LEAST_ALPHA)
        total, mean = pairs.per_point(weight), pairs.per_point(weight[:, None] * values[:, :3])
        colours.append(mean / total.clamp_min(1e-9)[:, None])
        known = total > 0.05 if known is None else known & (total > 0.05)
    return Appearance(torch.stack(colours), known)


def add_colours(
    evidence: Evidence, body: Body, pose: Pose, views: Views, sight: Sight, images: FrameImages, appearance: Appearance, level: int, weight: float
) -> Tensor:
    """Add the photometric residuals at one pyramid level; `weight` turns squared intensity into the evidence's squared length, at the usual noise.

    Returns:
        median absolute residual, intensity in [0, 1] (0 where nothing is seen), [].
    """
    (pairs,) = sight.pairs.kept(appearance.known[sight.pairs.point])
    local, pixels = views.project(body.warp(pose))
    values = images.levels[level].sample(pairs.view, pixels[pairs.view, pairs.point])
    pairs, values = pairs.kept(values[:, -1] > LEAST_ALPHA, values)
    if not len(pairs.view):
        return body.points.new_zeros(())
    reference = appearance.colours[level][pairs.point]
    gain = _gain(body, pose, pairs, values[:, :3], reference)
    residual = values[:, :3] - gain[:, None] * reference
    size = residual.norm(dim=-1)
    kept = pairs.facing > 0 if pairs.whole else None
    typical = median_of(size, kept).nan_to_num(0.0)
    facing = pairs.facing.square()
    robust = facing * torch.exp(-0.5 * (size / (2.0 * typical).clamp_min(0.03)) ** 2)
    robust = weight * robust / pairs.per_point(facing)[pairs.point].clamp_min(1e-9)
    slope = values[:, 3:9].reshape(-1, 3, 2) * images.levels[level].scale
    residual, slope = _trusted(residual, slope, reference, kept)
    rows = small_matmul(slope, views.jacobian(local[pairs.view, pairs.point], pairs.view))
    pairs.tell(evidence, rows, residual, robust)  # a row per channel
    return typical


def plainness(body: Body, views: Views, sight: Sight, images: FrameImages, appearance: Appearance, weight: float) -> float:
    """Share in [0, 1] of the subject where colours do not tell a point from its surroundings, measured at the canonical frame.

    Args:
        weight: as for `add_colours`, at which a point of the surface counts as one.
    """
    evidence = Evidence.none(body)
    add_colours(evidence, body, Pose.identity(body), views, sight, images, appearance, 0, weight)
    told = evidence.hessian.diagonal(dim1=1, dim2=2).sum(1)[appearance.known]
    return float((1 / (1 + told / PLAIN)).mean()) if len(told) else 1.0


def _trusted(residual: Tensor, slope: Tensor, reference: Tensor, kept: Tensor | None) -> tuple[Tensor, Tensor]:
    """Residuals [S, 3] and slopes [S, 3, 2] with brightness (along the colour that a point should have) and hue (across) each brought to the usual noise."""
    brightness = reference.norm(dim=-1)
    axis = reference / brightness.clamp_min(1e-3)[:, None]
    bright = (residual * axis).sum(-1)
    hue = residual - bright[:, None] * axis
    trust_bright = _trust(bright.abs(), SHADING * brightness, kept)
    trust_hue = _trust(hue.norm(dim=-1), TINGE * brightness, kept)
    along = axis[..., None] * (axis[..., None] * slope).sum(1, keepdim=True)
    residual = trust_hue[:, None] * hue + (trust_bright * bright)[:, None] * axis
    return residual, trust_hue[:, None, None] * (slope - along) + trust_bright[:, None, None] * along


def _trust(size: Tensor, doubt: Tensor, kept: Tensor | None) -> Tensor:
    """Factor [S] on residuals of these sizes [S], each of which may be wrong by its doubt [S] in any case."""
    noise = (median_of(size, kept).nan_to_num(0.0).square() + doubt.square()).sqrt()
    return (USUAL_NOISE / noise.clamp_min(1e-9)).clamp(*TRUST)


def _gain(body: Body, pose: Pose, pairs: Pairs, seen: Tensor, reference: Tensor) -> Tensor:
    """Brightness now over brightness at the canonical frame, for each pair [S]: what exposure and turning in one light make of it, and half of what is left, smooth over
    the surface (one number per node, blended)."""
    weight = pairs.facing.square()
    says = pairs.per_point(torch.stack([weight * (seen * reference).sum(-1), weight * reference.square().sum(-1)], -1))  # [N, 2]
    bright = torch.where(says[:, 1] > LEAST_LIT, says[:, 1], 0.0)
    light = relit(says[:, 0] / says[:, 1].clamp_min(1e-9), bright, body.warp_normals(pose), body.normals).clamp(*GAIN_RANGE)
    says = torch.stack([says[:, 0] * light, says[:, 1] * light.square()], -1)
    sums = body.nodes.new_zeros(len(body.nodes), 2)
    sums.index_add_(0, body.anchors.reshape(-1), (body.weights[..., None] * says[:, None]).reshape(-1, 2))
    usual = sums[:, 1].square().sum() / sums[:, 1].sum().clamp_min(1e-9) + 1e-3  # of the nodes that are seen
    gain = (sums[:, 0] + usual) / (sums[:, 1] + usual)
    return ((gain[body.anchors] * body.weights).sum(-1) * light).clamp(*GAIN_RANGE)[pairs.point]


def add_silhouettes(evidence: Evidence, body: Body, pose: Pose, views: Views, sight: Sight, images: FrameImages, weight: float, reach: float) -> None:
    """Add silhouette residuals: points outside a mask go to its edge; a mask's edge draws the nearest point of the moved outline.

    Args:
        weight: per unit of squared scene length.
        reach: scene length beyond which an edge draws nothing.
    """
    local, pixels = views.project(body.warp(pose))
    pairs = replace(_every_pair(torch.ones_like(local[..., 2])), whole=sight.pairs.whole)
    values = images.outside.sample(pairs.view, pixels.flatten(0, 1))
    pairs, values = pairs.kept((values[:, -1] > 0) & (values[:, 0] > DEAD_ZONE), values)
    if len(pairs.view):
        rows, distance, robust = _in_scene(views, local[pairs.view, pairs.point], pairs.view, values[:, 1:3], values[:, 0], reach)
        pairs.tell(evidence, rows[:, None], distance[:, None], pairs.facing * robust * (weight / len(views.sizes)))
    (_draw_every_outline if sight.pairs.whole else _draw_outlines)(evidence, views, local, pixels, sight.rim, images, weight, reach)


def _draw_outlines(evidence: Evidence, views: Views, local: Tensor, pixels: Tensor, rim: Tensor, images: FrameImages, weight: float, reach: float) -> None:
    counts = rim.sum(1)
    view, slot = torch.nonzero(images.outlined & (counts >= LEAST_RIM)[:, None], as_tuple=True)
    if not len(view):
        return
    edge, normal = images.outline[view, slot], images.outline_normal[view, slot]
    # One search for all views: the view is a third coordinate, so large that no neighbour lies in another one.
    apart = 10.0 * max(max(size) for size in views.sizes)
    rim_view, rim_point = torch.nonzero(rim, as_tuple=True)
    there = torch.cat([pixels[rim_view, rim_point], apart * rim_view[:, None]], 1)
    point = rim_point[NearestPoints(there).query(torch.cat([edge, apart * view[:, None]], 1))[1][:, 0]]
    drawn = torch.bincount(view, minlength=len(views.sizes))
    _draw(evidence, views, local, pixels, view, point, edge, normal, weight * counts[view] / (drawn[view] * len(views.sizes)), reach)


def _draw_every_outline(evidence: Evidence, views: Views, local: Tensor, pixels: Tensor, rim: Tensor, images: FrameImages, weight: float, reach: float) -> None:
    """`_draw_outlines` for all places where an outline's point may be; where there is none, nothing is drawn."""
    counts = rim.sum(1)
    middle = [max(side) / 2 for side in zip(*views.sizes)]  # so that single precision ranks neighbours to a hundredth of a pixel
    ahead, edge = (torch.stack([x[..., i] - middle[i] for i in (0, 1)], -1).float() for x in (pixels, images.outline))
    ranks = torch.baddbmm(torch.where(rim, ahead.square().sum(-1), torch.inf)[:, None], edge, ahead.transpose(1, 2), alpha=-2)  # [C, B, N]
    point = ranks.argmin(2).reshape(-1)
    drawn = (images.outlined & (counts >= LEAST_RIM)[:, None]).to(local.dtype)
    share = weight * drawn * (counts / (drawn.sum(1).clamp_min(1) * len(views.sizes)))[:, None]
    view = torch.arange(len(rim), device=rim.device)[:, None].expand(edge.shape[:2]).reshape(-1)
    _draw(evidence, views, local, pixels, view, point, images.outline.flatten(0, 1), images.outline_normal.flatten(0, 1), share.reshape(-1), reach)


def _draw(
    evidence: Evidence, views: Views, local: Tensor, pixels: Tensor, view: Tensor, point: Tensor, edge: Tensor, normal: Tensor, weight: Tensor, reach: float
) -> None:
    """Points [Q] drawn to edges [Q, 2] along their normals."""
    residual = ((pixels[view, point] - edge) * normal).sum(-1)
    rows, distance, robust = _in_scene(views, local[view, point], view, normal, residual, reach)
    evidence.add_directions(point, rows, distance, weight * robust)


def _in_scene(views: Views, local: Tensor, view: Tensor, direction: Tensor, residual: Tensor, reach: float) -> tuple[Tensor, Tensor, Tensor]:
    """Residuals [Q] measured in pixels along image directions [Q, 2] as rows [Q, 3], scene lengths at the point's depth [Q], and how far they count [Q]."""
    residual = residual - residual.clamp(-DEAD_ZONE, DEAD_ZONE)
    length = local[:, 2] / views.K[view, 0, 0]
    rows = small_matmul(direction[:, None], views.jacobian(local, view)).squeeze(1) * length[:, None]
    distance = residual * length
    return rows, distance, torch.exp(-0.5 * (distance / reach) ** 2)
