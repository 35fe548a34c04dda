"""Baking one texture for all frames: what the cameras saw of every surface point, blended robustly.

The texture T is refined in passes. In each, every image I is compared with the textured mesh R(T) in its camera, and the
difference travels back to the texels that the camera sees: T += sum_i w_i (I_i - R_i(T)) / sum_i w_i. The weight w_i grows
with the angle at which the surface faces the camera and the resolution it is seen at, vanishes at occlusion borders, and from the second pass
on falls with the texel's own disagreement with image i (Geman-McClure), so that what a wrong shape or an occluder paints
is outvoted. The first pass (T = 0) is the plain weighted mean; later ones also undo the blur of resampling.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from instant_nk.errors import BackendError, ContractError
from instant_nk.geometry import rasterize, surface
from instant_nk.geometry import texture as tex
from instant_nk.geometry.texture import TexelMap, Texture
from instant_nk.io.dataset import Dataset
from instant_nk.io.mesh import Animation
from instant_nk.log import Progress, progress

logger = logging.getLogger(__name__)

FACING_POWER = 3.0  # weight = cos(angle)^3
GRAZING = 0.2  # cosine below which a view says nothing
DEPTH_STEP = 0.02  # a jump in depth that counts as an occlusion border, of the box's diagonal ...
DEPTH_SLOPE = 6.0  # ... on top of what a slanted surface shows between neighbouring pixels, in widths of a pixel on the surface
DEPTH_TOLERANCE = 0.003  # how far behind the visible surface a texel may lie, of the box's diagonal
FILL_FROM, FILL_SOURCES = 16, 200_000  # an unseen texel takes the mean of so many nearest seen ones, of at most so many that are looked at
PATCH = 1200  # triangles that are cut into charts together
ROBUST_SCALE = 0.08  # colour difference, in [0, 1], at which a view's say is halved


def unwrap(vertices: np.ndarray, faces: np.ndarray, size: int, padding: int = 6) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Charts of a mesh packed into the unit square by xatlas.

    It is given the mesh in patches: its time grows faster than the mesh, and patches are cut side by side.

    Args:
        size: side of the texture to come, for the space between charts.
        padding: texels between charts.

    Returns:
        uv f32 [U, 2], vertex_of i32 [U], faces i32 [T, 3] over UV vertices.

    Raises:
        BackendError: xatlas is not installed.
    """
    try:
        import xatlas
    except ImportError:
        raise BackendError("mesh.texture: atlas needs the package xatlas, which is not installed. pip install xatlas, or set mesh.texture: vertex.") from None
    atlas, patches = xatlas.Atlas(), _patches(vertices[faces].mean(1))
    corners = []
    for patch in patches:
        corner, local = np.unique(faces[patch], return_inverse=True)
        corners.append(corner)
        atlas.add_mesh(np.ascontiguousarray(vertices[corner], np.float32), local.reshape(-1, 3).astype(np.uint32))
    options = xatlas.PackOptions()
    options.resolution, options.padding, options.bilinear, options.create_image = size, padding, True, False
    atlas.generate(pack_options=options)
    uv_faces, vertex_of, uv, count = np.empty((len(faces), 3), np.int32), [], [], 0
    for i, (patch, corner) in enumerate(zip(patches, corners)):
        of, triangles, place = atlas[i]
        uv_faces[patch] = triangles.astype(np.int64) + count
        vertex_of.append(corner[of])
        uv.append(place)
        count += len(of)
    return np.concatenate(uv).astype(np.float32), np.concatenate(vertex_of).astype(np.int32), uv_faces


def _patches(centres: np.ndarray) -> list[np.ndarray]:
    """Triangles at these centres [T, 3], halved across the longest side until no patch has more than PATCH of them."""
    done, waiting = [], [np.arange(len(centres))]
    while waiting:
        patch = waiting.pop()
        if len(patch) <= PATCH:
            done.append(patch)
            continue
        axis = np.ptp(centres[patch], axis=0).argmax()
        order = patch[np.argsort(centres[patch, axis], kind="stable")]
        waiting += [np.sort(half) for half in np.array_split(order, 2)]
    return done


@dataclass(frozen=True)
class View:
    """One image to bake from: pose and intrinsics f64, colours f32 [H, W, 3] and alpha f32 [H, W] in [0, 1], the mesh at its frame f32 [V, 3]."""

    w2c: Tensor
    K: Tensor
    colours: Tensor
    alpha: Tensor
    vertices: Tensor
    normals: Tensor


def choose_views(frames: int, cameras: int, limit: int) -> list[tuple[int, int]]:
    """(frame row, camera) pairs, at most `limit`, spread evenly over frames and cameras."""
    total = frames * cameras
    count = min(limit, total)
    chosen = [round(i * total / count) for i in range(count)]
    return [(k // cameras, (k % cameras + k // cameras) % cameras) for k in chosen]  # the shift walks through all cameras


def load_view(animation: Animation, dataset: Dataset, row: int, camera: int, device: str) -> View:
    image = torch.from_numpy(dataset.image(camera, int(animation.frames[row]))).to(device).float() / 255
    vertices = animation.vertices[row]
    return View(
        torch.from_numpy(np.linalg.inv(dataset.cameras.c2w[camera])),
        torch.from_numpy(dataset.cameras.K[camera]),
        image[..., :3],
        image[..., 3],
        torch.from_numpy(vertices).to(device),
        torch.from_numpy(surface.vertex_normals(vertices, animation.faces)).float().to(device),
    )


def _occlusion_border(depth: Tensor, step: Tensor) -> Tensor:
    """Pixels whose 3 x 3 neighbourhood holds background or a jump in depth, bool [H, W]."""
    far = torch.where(depth > 0, depth, torch.inf)[None, None]
    near = -torch.nn.functional.max_pool2d(-far, 3, 1, 1)
    away = torch.nn.functional.max_pool2d(far, 3, 1, 1)
    return (~torch.isfinite(away) | (away - near > step))[0, 0]


def see(view: View, faces: Tensor, face: Tensor, barycentric: Tensor, raster: rasterize.Raster, diagonal: float) -> tuple[Tensor, Tensor, Tensor]:
    """Which texels a view sees, where, and how well.

    Args:
        face, barycentric: the surface points under the texels, [X] and [X, 3].
        raster: what the view's pixels see.

    Returns:
        indices into the texels i64 [Y]; their pixel positions f32 [Y, 2]; weights in (0, 1] times pixels per length, f32 [Y].
    """
    height, width = view.alpha.shape
    rotation = view.w2c[:3, :3].to(view.vertices.device)
    position = (view.vertices.double() @ rotation.T + view.w2c[:3, 3].to(rotation)).float()  # in camera space, where the eye is the origin
    candidate = torch.nonzero(_may_be_seen(position, faces, raster.face_index)[face]).squeeze(1)
    corners, share = faces[face[candidate]].long(), barycentric[candidate][..., None]
    point = (position[corners] * share).sum(1)
    normal = ((view.normals @ rotation.T.float())[corners] * share).sum(1)
    z = point[:, 2]
    facing = -(normal * point).sum(1) / (normal.norm(dim=1) * point.norm(dim=1)).clamp_min(1e-12)
    pixel = (point @ view.K.T.to(point))[:, :2] / torch.where(z > 0, z, 1.0)[:, None]
    limit = torch.tensor([width, height], device=pixel.device) - 0.5
    inside = torch.nonzero((z > 0) & (pixel >= 0.5).all(1) & (pixel <= limit).all(1) & (facing > GRAZING)).squeeze(1)
    pixel, z, facing = pixel[inside], z[inside], facing[inside]
    step = DEPTH_STEP * diagonal + DEPTH_SLOPE * raster.depth / float(view.K[0, 0])
    clean = (~_occlusion_border(raster.depth, step)).float()
    quality = tex.read(torch.stack([clean, view.alpha, raster.depth], 2), pixel)
    visible = (quality[:, 0] > 0.5) & (quality[:, 1] > 0.98) & (z < quality[:, 2] + DEPTH_TOLERANCE * diagonal)
    resolution = float(view.K[0, 0]) / z
    return candidate[inside[visible]], pixel[visible], (facing**FACING_POWER * quality[:, 0] * resolution)[visible]


def _may_be_seen(position: Tensor, faces: Tensor, face_index: Tensor) -> Tensor:
    """Triangles that share a vertex with a rasterised one, bool [T]: the others need no closer look."""
    vertex = torch.zeros(len(position), dtype=torch.bool, device=position.device)
    vertex[faces[face_index[face_index >= 0].unique().long()].long().ravel()] = True
    return vertex[faces.long()].any(1)


def bake(
    animation: Animation,
    dataset: Dataset,
    size: int,
    *,
    passes: int = 2,
    max_views: int = 150,
    device: str = "cpu",
    rest: np.ndarray | None = None,
    charts: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None,
) -> tuple[Texture, dict[str, float]]:
    """One texture for all frames of an animation, from the training images.

    Args:
        animation: world units.
        size: side of the texture, pixels.
        passes: 1: weighted mean; more: robust and sharper.
        max_views: images used at most, spread over frames and cameras.
        rest: shape that is cut into charts, f32 [V, 3]; None: the first frame.
        charts: what `unwrap` made of it; None: cut here.

    Returns:
        the texture, and numbers: charts' share of the texture, share of the charts that some view saw, mean absolute colour difference the last pass found.

    Raises:
        BackendError: xatlas is not installed.
        ContractError: no view sees the surface.
    """
    rest = animation.vertices[0] if rest is None else rest
    uv, vertex_of, uv_faces = charts or unwrap(rest, animation.faces, size)
    texels = tex.texel_map(uv, vertex_of, uv_faces, rest, size)
    views = choose_views(len(animation.frames), len(dataset.cameras), max_views)
    baker = _Baker(animation, dataset, uv, vertex_of, uv_faces, texels, device)
    report = Progress("bake texture", passes * len(views), logger)
    for k in range(passes):
        baker.start_pass()
        for i, (row, camera) in enumerate(views):
            baker.add(load_view(animation, dataset, row, camera, device), robust=k > 0)
            report.update(k * len(views) + i + 1)
        baker.end_pass()
    if not bool(baker.seen.any()):
        raise ContractError("bake texture: none of the training cameras sees the surface. Look at the masks and at 7_mesh, or set mesh.texture: vertex.")
    baker.fill_unseen(rest)
    return baker.texture(), baker.numbers()


def bake_frames(animation: Animation, dataset: Dataset, base: Texture, *, passes: int = 2, device: str = "cpu") -> Iterator[tuple[int, np.ndarray]]:
    """The texture of every frame on its own, for appearance that changes: from that frame's views, and `base` where they see little.

    Yields:
        absolute frame number and image u8 [S, S, 3], in the layout of `base`.
    """
    size = len(base.image)
    texels = tex.texel_map(base.uv, base.vertex_of, base.faces, animation.vertices[0], size)
    start = torch.from_numpy(base.image[texels.row, texels.column]).to(device).float() / 255
    baker = _Baker(animation, dataset, base.uv, base.vertex_of, base.faces, texels, device)
    for row in progress(list(range(len(animation.frames))), "bake frames", logger):
        baker.colours, baker.first = start.clone(), False
        for k in range(passes):
            baker.start_pass()
            for camera in range(len(dataset.cameras)):
                baker.add(load_view(animation, dataset, row, camera, device), robust=k > 0)
            baker.end_pass(feather=0.05)
        yield int(animation.frames[row]), baker.texture().image


class _Baker:
    """The texture under refinement: `colours` [X, 3] at the texels, and the sums of the running pass."""

    def __init__(self, animation: Animation, dataset: Dataset, uv: np.ndarray, vertex_of: np.ndarray, uv_faces: np.ndarray, texels: TexelMap, device: str):
        self.animation, self.uv, self.vertex_of, self.uv_faces, self.texels = animation, uv, vertex_of, uv_faces, texels
        self.faces = torch.from_numpy(animation.faces).to(device)
        self.face = torch.from_numpy(texels.face).to(device)
        self.barycentric = torch.from_numpy(texels.barycentric).to(device)
        self.corner_uv = torch.from_numpy(uv[uv_faces]).to(device) * texels.size
        low, high = animation.vertices.min((0, 1)), animation.vertices.max((0, 1))
        self.diagonal = float(np.linalg.norm(high - low))
        self.nearest = torch.from_numpy(tex.nearest_texel(texels)).to(device).long()
        self.colours = torch.zeros(len(texels.face), 3, device=device)
        self.seen = torch.zeros(len(texels.face), dtype=torch.bool, device=device)
        self.first = True

    def start_pass(self) -> None:
        self.change = torch.zeros_like(self.colours)
        self.weight = torch.zeros(len(self.colours), device=self.colours.device)
        self.error = self.samples = 0.0
        self.image = self._image()

    def add(self, view: View, robust: bool) -> None:
        """Carry one view's differences to the texels it sees."""
        height, width = view.alpha.shape
        raster = rasterize.rasterize(view.vertices, self.faces, view.w2c, view.K, (width, height))
        index, pixel, weight = see(view, self.faces, self.face, self.barycentric, raster, self.diagonal)
        difference, colours = tex.read(torch.cat([view.colours - self._render(raster), view.colours], 2), pixel).split(3, 1)
        if robust:
            own = (colours - self.colours[index]).abs().mean(1)
            weight = weight / (1 + (own / ROBUST_SCALE) ** 2) ** 2
        self.change.index_add_(0, index, weight[:, None] * difference)
        self.weight.index_add_(0, index, weight)
        self.error += float((weight * difference.abs().mean(1)).sum())
        self.samples += float(weight.sum())

    def end_pass(self, feather: float = 0.0) -> None:
        """Apply the mean change; texels with less weight than `feather` times the typical one keep part of what they had."""
        known = self.weight > 0
        typical = self.weight[known].median() if known.any() else self.weight.new_zeros(())
        self.colours[known] = (self.colours + self.change / (self.weight + feather * typical).clamp_min(1e-12)[:, None])[known].clamp(0, 1)
        self.seen |= known
        self.first = False

    def _render(self, raster: rasterize.Raster) -> Tensor:
        """The current texture at the pixels of a view, f32 [H, W, 3]; black in the first pass."""
        result = torch.zeros(*raster.depth.shape, 3, device=raster.depth.device)
        if not self.first:
            hit = raster.face_index >= 0
            uv = (self.corner_uv[raster.face_index[hit].long()] * raster.barycentric[hit][..., None]).sum(1)
            result[hit] = tex.read(self.image, uv)
        return result

    def _image(self) -> Tensor:
        """The texture f32 [S, S, 3]; outside the charts the nearest texel's colour."""
        return self.colours[self.nearest]

    def fill_unseen(self, rest: np.ndarray) -> None:
        """Give texels that no view saw the mean colour of the nearest seen points of the surface."""
        seen = self.seen.cpu().numpy()
        if seen.all():
            return
        t = self.texels
        points = (rest[self.animation.faces[t.face]] * t.barycentric[..., None]).sum(1)
        source = np.flatnonzero(seen)
        source = source[:: -(-len(source) // FILL_SOURCES)]
        nearest = cKDTree(points[source]).query(points[~seen], k=min(FILL_FROM, len(source)), workers=torch.get_num_threads())[1]
        nearest = source[nearest.reshape((~seen).sum(), -1)]
        self.colours[~self.seen] = self.colours[torch.from_numpy(nearest).to(self.colours.device)].mean(1)

    def texture(self) -> Texture:
        return Texture(self.uv, self.vertex_of, self.uv_faces, (self._image() * 255).round().byte().cpu().numpy())

    def numbers(self) -> dict[str, float]:
        return {
            "chart_share": len(self.colours) / self.texels.size**2,
            "seen_share": float(self.seen.float().mean()),
            "last_pass_difference": self.error / max(self.samples, 1e-12),
        }
