"""Evidence from the images themselves: colours that must stay on their surface point, and silhouettes that must be filled.

Surfaces say nothing about sliding along themselves; the pictures do. Each surface point remembers the colour it had at the
canonical frame, per pyramid level; at a live frame the colour where it projects, in every camera that sees it, gives one
Lucas-Kanade residual per channel. Shading is divided out by a gain per node. Silhouettes add two kinds of pull: a point outside a
mask goes to the mask's edge, and the mask's edge draws the nearest point of the moved surface's own outline.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from instant_nk.fitting.deformation_solver import Body, Evidence, Pose, small_matmul, warp
from instant_nk.geometry import spaces
from instant_nk.geometry.neighbours import NearestPoints
from instant_nk.geometry.rasterize import depth_maps
from instant_nk.io.dataset import Dataset
from instant_nk.io.graph import Graph
from instant_nk.io.mesh import Mesh

MARGIN = 12  # pixels kept around each mask
LEVELS = 4  # pyramid levels: the coarsest pixel is eight pixels wide
OUTLINE_POINTS = 200  # per view: an outline is smooth at the distance of its neighbours
DEAD_ZONE = 1.0  # pixels by which an outline may miss before it is pulled: masks are no finer than that, surfaces are
USUAL_NOISE = 0.016  # intensity by which colours usually differ from the canonical frame's; a frame where they differ less weighs its colours more,
TRUST = (0.25, 2.0)  # by a factor on the residual between these: what is left between colours that agree well is blur, not noise
GAIN_RANGE = (0.6, 1.6)  # shading may change a point's brightness by no more


@dataclass(frozen=True)
class Views:
    """Cameras whose images are used, scene space.

    Attributes:
        index: their rows in the dataset's training cameras.
        w2c: f64 [C, 4, 4]; K: intrinsics of the (reduced) images, f64 [C, 3, 3]; sizes: width and height of those, [(W, H)].
        reduce: whole number by which each image's sides are divided.
    """

    index: list[int]
    w2c: Tensor
    K: Tensor
    sizes: list[tuple[int, int]]
    reduce: list[int]

    @staticmethod
    def from_dataset(data: Dataset, max_views: int, max_side: int, device: str = "cpu") -> Views:
        """At most `max_views` cameras spread over the rig, images reduced to at most `max_side`."""
        c2w = spaces.transform_poses(data.scene_from_world, data.cameras.c2w)
        index = spread(c2w[:, :3, 3], max_views)
        reduce = [int(np.ceil(data.cameras.sizes[c].max() / max_side)) for c in index]
        K = data.cameras.K[index] * np.array([[[1 / r], [1 / r], [1]] for r in reduce])
        sizes = [tuple(int(-(-s // r)) for s in data.cameras.sizes[c]) for c, r in zip(index, reduce)]
        return Views(index, torch.as_tensor(np.linalg.inv(c2w[index]), device=device), torch.as_tensor(K, device=device), sizes, reduce)

    def centres(self) -> Tensor:
        """Camera centres, scene space, [C, 3]."""
        return -(self.w2c[:, :3, :3].transpose(-1, -2) @ self.w2c[:, :3, 3:]).squeeze(-1)

    def project(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Camera coordinates [C, N, 3] and pixels [C, N, 2] of scene points [N, 3]."""
        local = points @ self.w2c[:, :3, :3].transpose(-1, -2) + self.w2c[:, None, :3, 3]
        image = local @ self.K.transpose(-1, -2)
        return local, image[..., :2] / local[..., 2:].clamp_min(1e-9)

    def jacobian(self, local: Tensor, camera: Tensor) -> Tensor:
        """Derivative of the pixel by the scene position [Q, 2, 3], for camera coordinates [Q, 3] of cameras [Q]."""
        K, rotation = self.K[camera], self.w2c[camera, :3, :3]
        z = local[:, 2].clamp_min(1e-9)
        by_local = K[:, :2, :] / z[:, None, None]
        by_local[:, :, 2] -= (small_matmul(K[:, :2, :], local[..., None]).squeeze(-1)) / z[:, None] ** 2
        return small_matmul(by_local, rotation)


def spread(centres: np.ndarray, count: int) -> list[int]:
    """Rows of `count` camera centres chosen one by one, each farthest from those before; all of them when there are no more."""
    if len(centres) <= count:
        return list(range(len(centres)))
    chosen = [0]
    distance = np.linalg.norm(centres - centres[0], axis=1)
    while len(chosen) < count:
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, np.linalg.norm(centres - centres[chosen[-1]], axis=1))
    return sorted(chosen)


@dataclass(frozen=True)
class Level:
    """One pyramid level of all views, cropped to the masks and packed into one array of pixels.

    Attributes:
        pixels: red, green, blue, their x and y derivatives per pixel of this level, and alpha, [sum of H W, 10].
        start: first row of each view's pixels, i64 [C]; size: width and height of each crop, i64 [C, 2].
        origin: this level's pixel coordinates of each crop's corner, f64 [C, 2].
        scale: pixels of this level per pixel of the views.
    """

    pixels: Tensor
    start: Tensor
    size: Tensor
    origin: Tensor
    scale: float

    def sample(self, camera: Tensor, uv: Tensor) -> Tensor:
        """Bilinear values [Q, 10] at view pixels [Q, 2] of views [Q]; alpha is zero outside the crop."""
        position = uv * self.scale - self.origin[camera] - 0.5
        limit = (self.size[camera] - 1).to(position.dtype)
        inside = ((position >= 0) & (position <= limit)).all(-1)
        position = torch.minimum(position.clamp_min(0), limit - 1e-6)
        corner = position.floor().long()
        x, y = (position - corner).to(self.pixels.dtype).unbind(-1)
        width = self.size[camera, 0]
        row = self.start[camera] + corner[:, 1] * width + corner[:, 0]
        weights = torch.stack([(1 - x) * (1 - y), x * (1 - y), (1 - x) * y, x * y], -1)
        rows = torch.stack([row, row + 1, row + width, row + width + 1], -1)
        values = small_matmul(weights[:, None], self.pixels[rows]).squeeze(1)
        values[:, 9] *= inside
        return values.double()


@dataclass(frozen=True)
class FrameImages:
    """Images of one frame, prepared: a colour pyramid, finest first, and per view the mask's distance field and outline.

    Attributes:
        levels: colour pyramid.
        outside: distance to the mask in pixels (negative inside) and its x and y derivatives, packed as in `levels[0]`, [pixels, 10] (first three used).
        outline: points on the masks' edges, pixels f64 [B, 2]; outline_normal: outward, [B, 2]; outline_view: their view, i64 [B].
    """

    levels: list[Level]
    outside: Level
    outline: Tensor
    outline_normal: Tensor
    outline_view: Tensor


def load_images(data: Dataset, views: Views, frame: int, device: str = "cpu") -> FrameImages:
    """Read and prepare one frame's images, several at a time where there are cores for it."""
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        prepared = list(pool.map(lambda view: _prepared(data.image(view[0], frame), view[1]), zip(views.index, views.reduce)))
    origins, levels, distances, points, normals = zip(*prepared)
    pyramids = [list(pixels) for pixels in zip(*levels)]
    slots = np.repeat(np.arange(len(points)), [len(p) for p in points])
    points, normals = np.concatenate(points), np.concatenate(normals)
    packed = [_pack(pixels, np.array(origins), 0.5**level, device) for level, pixels in enumerate(pyramids)]

    def put(x: np.ndarray) -> Tensor:
        return torch.as_tensor(x, device=device)

    return FrameImages(packed, _pack(list(distances), np.array(origins), 1.0, device), put(points), put(normals), put(slots))


def _prepared(image: np.ndarray, reduce: int) -> tuple[np.ndarray, list[np.ndarray], np.ndarray, np.ndarray, np.ndarray]:
    """Corner of an image's crop, its pyramid, the mask's distance field, and at most about OUTLINE_POINTS outline points with their normals."""
    rgba, alpha, within, origin = _cropped(_reduced(image, reduce))
    distance, points, normals = _distance_and_outline(alpha, within)
    thin = slice(None, None, max(1, len(points) // OUTLINE_POINTS))
    return origin, _pyramid(rgba), distance, points[thin] + origin, normals[thin]


def _reduced(rgba: np.ndarray, reduce: int) -> np.ndarray:
    """Premultiplied float image, f32 [H, W, 4] in [0, 1], sides divided by a whole number."""
    image = rgba.astype(np.float32) / 255
    image[..., :3] *= image[..., 3:]
    if reduce == 1:
        return image
    h, w = (-(-s // reduce) * reduce for s in image.shape[:2])
    image = np.pad(image, ((0, h - image.shape[0]), (0, w - image.shape[1]), (0, 0)), mode="edge")
    return image.reshape(h // reduce, reduce, w // reduce, reduce, 4).mean((1, 3))


def _cropped(image: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The image around its mask, padded so that every level divides evenly.

    Returns:
        f32 [H, W, 4], empty beyond the image; its alpha continued beyond the image as it is at the border, [H, W]; what lies within the
        image, bool [H, W]; pixel coordinates (x, y) of the crop's corner.
    """
    step = 2 ** (LEVELS - 1)
    rows, cols = (np.flatnonzero(image[..., 3].max(axis) > 0.5) for axis in (1, 0))
    low = np.array([cols[0], rows[0]] if len(rows) else [0, 0]) - MARGIN
    high = np.array([cols[-1], rows[-1]] if len(rows) else [step, step]) + 1 + MARGIN
    low = low // step * step
    high = -(-high // step) * step
    columns, lines = (np.arange(low[axis], high[axis]) for axis in (0, 1))
    height, width = image.shape[:2]
    within = ((lines >= 0) & (lines < height))[:, None] & ((columns >= 0) & (columns < width))
    whole = image[lines.clip(0, height - 1)][:, columns.clip(0, width - 1)]
    return whole * within[..., None], whole[..., 3], within, low.astype(np.float64)


def _pyramid(image: np.ndarray) -> list[np.ndarray]:
    """Levels [H, W, 10]: colour, its derivatives in pixels of the level, alpha. Background never mixes into the colours."""
    from scipy.ndimage import convolve1d

    levels = []
    for level in range(LEVELS):
        if level:
            h, w = image.shape[:2]
            image = image.reshape(h // 2, 2, w // 2, 2, 4).mean((1, 3))
        smooth = image
        for axis in (0, 1):
            smooth = convolve1d(smooth, [0.25, 0.5, 0.25], axis=axis, mode="constant")
        # The colour is continued beyond the mask from a wider blur, so that derivatives at the edge are those of the surface.
        wide = smooth
        for axis in (0, 1):
            wide = convolve1d(wide, np.full(7, 1 / 7), axis=axis, mode="constant")
        filled = smooth + 0.02 * wide
        colour = filled[..., :3] / np.maximum(filled[..., 3:], 1e-6)
        derivative = np.stack([np.gradient(colour, axis=1), np.gradient(colour, axis=0)], -1)
        levels.append(np.concatenate([colour, derivative.reshape(*colour.shape[:2], 6), image[..., 3:]], -1).astype(np.float32))
    return levels


def _distance_and_outline(alpha: np.ndarray, within: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Signed distance to the mask [H, W, 10] (value, x and y derivative, rest zero), outline points (x, y) and outward normals.

    Where the image ends says nothing of where the subject does: beyond it nothing is known (alpha 0), and no outline runs along its border.
    """
    from scipy.ndimage import distance_transform_edt, gaussian_filter

    mask = alpha > 0.5
    if not mask.any():
        return np.zeros((*mask.shape, 10), np.float32), np.zeros((0, 2)), np.zeros((0, 2))
    signed = np.where(mask, 0.5 - distance_transform_edt(mask), distance_transform_edt(~mask) - 0.5)
    dy, dx = np.gradient(gaussian_filter(signed, 1.0))
    field = np.zeros((*mask.shape, 10), np.float32)
    field[..., 0], field[..., 1], field[..., 2], field[..., 9] = signed, dx, dy, within
    rows, cols = np.nonzero((np.abs(signed) < 0.75) & within)
    normal = np.stack([dx[rows, cols], dy[rows, cols]], -1)
    length = np.linalg.norm(normal, axis=1)
    rows, cols, normal = rows[length > 0.3], cols[length > 0.3], normal[length > 0.3] / length[length > 0.3, None]
    points = np.stack([cols + 0.5, rows + 0.5], -1) - signed[rows, cols, None] * normal
    return field, points, normal


def _pack(images: list[np.ndarray], origins: np.ndarray, scale: float, device: str) -> Level:
    sizes = np.array([[i.shape[1], i.shape[0]] for i in images])
    start = np.concatenate([[0], np.cumsum(sizes.prod(1))[:-1]])
    pixels = np.concatenate([i.reshape(-1, 10) for i in images])
    return Level(*(torch.as_tensor(x, device=device) for x in (pixels, start, sizes, origins * scale)), scale)


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
class Sight:
    """What the views see of the moved surface.

    Attributes:
        view, point: pairs of a view and a body point it sees, i64 [S] each.
        facing: cosine between the point's normal and the direction to the camera, [S].
        rim_view, rim_point: pairs of a view and a point on the moved surface's own outline in it, i64 [R] each.
    """

    view: Tensor
    point: Tensor
    facing: Tensor
    rim_view: Tensor
    rim_point: Tensor


def look(body: Body, shell: Shell, pose: Pose, views: Views, coarse: int = 2) -> Sight:
    """Visibility and outlines of the moved surface in every view, by a depth buffer of 1 / `coarse` of the images' size."""
    vertices, live, normals = shell.live(body, pose), body.warp(pose), body.warp_normals(pose)
    local, pixels = views.project(live)
    sizes = -(-torch.tensor(views.sizes, device=live.device) // coarse)
    width, height = (int(v) for v in sizes.amax(0))
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
    view, point = torch.nonzero(inside & front & (facing > 0.2), as_tuple=True)
    # A pixel is on the rim when one of its eight neighbours shows nothing.
    empty = torch.nn.functional.max_pool2d((depth == 0).to(torch.float32)[:, None], 3, 1, 1).flatten(1).gather(1, cell) > 0
    return Sight(view, point, facing[view, point], *torch.nonzero(inside & empty & (facing.abs() < 0.7), as_tuple=True))


@dataclass(frozen=True)
class Appearance:
    """Colour of each surface point at the canonical frame, per pyramid level.

    Attributes:
        colours: [L, N, 3]; known: whether any view saw the point, bool [N].
    """

    colours: Tensor
    known: Tensor


def remember(body: Body, sight: Sight, views: Views, images: FrameImages, pose: Pose) -> Appearance:
    """Mean colour of each point over the views that see it, head-on views counting most."""
    _, pixels = views.project(body.warp(pose))
    uv = pixels[sight.view, sight.point]
    colours, known = [], None
    for level in images.levels:
        values = level.sample(sight.view, uv)
        weight = sight.facing**2 * (values[:, 9] > 0.6)
        total = body.points.new_zeros(len(body.points)).index_add_(0, sight.point, weight)
        mean = torch.zeros_like(body.points).index_add_(0, sight.point, weight[:, None] * values[:, :3])
        colours.append(mean / total.clamp_min(1e-9)[:, None])
        known = total > 0.05 if known is None else known & (total > 0.05)
    return Appearance(torch.stack(colours), known)


def add_colours(
    evidence: Evidence, body: Body, pose: Pose, views: Views, sight: Sight, images: FrameImages, appearance: Appearance, level: int, weight: float
) -> float:
    """Add the photometric residuals at one pyramid level; `weight` turns squared intensity into the evidence's squared length, at the usual noise.

    Returns:
        median absolute residual, intensity in [0, 1] (0 where nothing is seen).
    """
    use = appearance.known[sight.point]
    view, point, facing = sight.view[use], sight.point[use], sight.facing[use]
    local, pixels = views.project(body.warp(pose))
    values = images.levels[level].sample(view, pixels[view, point])
    good = values[:, 9] > 0.6
    view, point, facing, values = view[good], point[good], facing[good], values[good]
    if not len(view):
        return 0.0
    reference = appearance.colours[level][point]
    gain = _gain(body, point, facing, values[:, :3], reference)
    residual = values[:, :3] - gain[:, None] * reference
    size = residual.norm(dim=-1)
    typical = float(size.median())
    scale = max(2.0 * typical, 0.03)
    weight = weight * min(max(USUAL_NOISE / max(typical, 1e-9), TRUST[0]), TRUST[1]) ** 2
    robust = facing.square() * torch.exp(-0.5 * (size / scale) ** 2)
    seen_by = body.points.new_zeros(len(body.points)).index_add_(0, point, facing.square())
    robust = weight * robust / seen_by[point].clamp_min(1e-9)
    slope = values[:, 3:9].reshape(-1, 3, 2) * images.levels[level].scale
    rows = small_matmul(slope, views.jacobian(local[view, point], view))  # [S, 3 channels, 3]
    evidence.add_directions(point.repeat_interleave(3), rows.reshape(-1, 3), residual.reshape(-1), robust.repeat_interleave(3))
    return typical


def _gain(body: Body, point: Tensor, facing: Tensor, seen: Tensor, reference: Tensor) -> Tensor:
    """Brightness now over brightness at the canonical frame, smooth over the surface (one per node, blended), for each pair [S]."""
    weight = facing.square()
    upper, lower = (torch.zeros_like(body.nodes[:, 0]) for _ in range(2))
    anchors, share = body.anchors[point], body.weights[point]
    product, square = weight * (seen * reference).sum(-1), weight * reference.square().sum(-1)
    upper.index_add_(0, anchors.reshape(-1), (share * product[:, None]).reshape(-1))
    lower.index_add_(0, anchors.reshape(-1), (share * square[:, None]).reshape(-1))
    gain = ((upper + 1e-3) / (lower + 1e-3)).clamp(*GAIN_RANGE)
    return (gain[anchors] * share).sum(-1)


def add_silhouettes(evidence: Evidence, body: Body, pose: Pose, views: Views, sight: Sight, images: FrameImages, weight: float, reach: float) -> None:
    """Add silhouette residuals: points outside a mask go to its edge; a mask's edge draws the nearest point of the moved outline.

    Args:
        weight: per unit of squared scene length.
        reach: scene length beyond which an edge draws nothing.
    """
    live = body.warp(pose)
    local, pixels = views.project(live)
    view, point = (x.reshape(-1) for x in torch.meshgrid(torch.arange(len(views.sizes)), torch.arange(len(live)), indexing="ij"))
    view, point = view.to(live.device), point.to(live.device)
    values = images.outside.sample(view, pixels[view, point])
    out = (values[:, 9] > 0) & (values[:, 0] > DEAD_ZONE)
    view, point, values = view[out], point[out], values[out]
    if len(view):
        _add_pixels(evidence, views, local[view, point], view, point, values[:, 1:3], values[:, 0], weight / len(views.sizes), reach)
    _draw_outlines(evidence, views, local, pixels, sight, images, weight, reach)


def _draw_outlines(evidence: Evidence, views: Views, local: Tensor, pixels: Tensor, sight: Sight, images: FrameImages, weight: float, reach: float) -> None:
    counts = torch.bincount(sight.rim_view, minlength=len(views.sizes))
    rows = torch.nonzero(counts[images.outline_view] >= 3).squeeze(-1)
    if not len(rows):
        return
    view, edge, normal = images.outline_view[rows], images.outline[rows], images.outline_normal[rows]
    # One search for all views: the view is a third coordinate, so large that no neighbour lies in another one.
    apart = 10.0 * max(max(size) for size in views.sizes)
    rim = torch.cat([pixels[sight.rim_view, sight.rim_point], apart * sight.rim_view[:, None]], 1)
    point = sight.rim_point[NearestPoints(rim).query(torch.cat([edge, apart * view[:, None]], 1))[1][:, 0]]
    residual = ((pixels[view, point] - edge) * normal).sum(-1)
    drawn = torch.bincount(view, minlength=len(views.sizes))
    share = weight * counts[view] / (drawn[view] * len(views.sizes))
    _add_pixels(evidence, views, local[view, point], view, point, normal, residual, share, reach)


def _add_pixels(
    evidence: Evidence, views: Views, local: Tensor, view: Tensor, point: Tensor, direction: Tensor, residual: Tensor, weight: float | Tensor, reach: float
) -> None:
    """Residuals measured in pixels along image directions, turned into scene length at the point's depth."""
    residual = residual - residual.clamp(-DEAD_ZONE, DEAD_ZONE)
    length = local[:, 2] / views.K[view, 0, 0]
    rows = small_matmul(direction[:, None], views.jacobian(local, view)).squeeze(1) * length[:, None]
    distance = residual * length
    evidence.add_directions(point, rows, distance, weight * torch.exp(-0.5 * (distance / reach) ** 2))
