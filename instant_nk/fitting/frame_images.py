"""The images of one frame as registration compares them: a colour pyramid, the distance to the mask, and the mask's outline, per view.

On the CPU every view is cropped to its mask and prepared with scipy. On a GPU all views are prepared at once and whole, because there the
threads that prepared them held up the one that launches: on a shared host the pictures of 24 cameras took longer than the registration. Both
give the same numbers where the crops have any (`tests/unit/test_frame_images.py`).
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from instant_nk.fitting.deformation_solver import small_matmul
from instant_nk.geometry import spaces
from instant_nk.geometry.distance_transform import distance_to_false
from instant_nk.io.dataset import Dataset

MARGIN = 12  # pixels kept around each mask
LEVELS = 4  # pyramid levels: the coarsest pixel is eight pixels wide
OUTLINE_POINTS = 200  # per view: an outline is smooth at the distance of its neighbours
BLUR = 1.0  # pixels, standard deviation, of the distance before its slope is taken
STEEP = 0.3  # slope of the blurred distance below which a pixel of the edge has no direction


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
        pixels: channels, the last of which says how far a pixel counts (alpha), f32 [sum of H W, channels].
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
        """Bilinear values f64 [Q, channels] at view pixels [Q, 2] of views [Q]; the last channel is zero outside the crop."""
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
        values[:, -1] *= inside
        return values.double()


@dataclass(frozen=True)
class FrameImages:
    """Images of one frame, prepared: a colour pyramid, finest first, and per view the mask's distance field and outline.

    Attributes:
        levels: colour pyramid; ten columns: red, green, blue, their x and y derivatives per pixel of the level, and alpha.
        outside: distance to the mask in pixels (negative inside), its x and y derivatives, and 1 within the image.
        outline: points on the masks' edges, pixels f64 [C, B, 2]; outline_normal: outward, [C, B, 2]; outlined: which of them there are, bool [C, B].
    """

    levels: list[Level]
    outside: Level
    outline: Tensor
    outline_normal: Tensor
    outlined: Tensor

    def at(self, level: int) -> FrameImages:
        """These with one level of the pyramid alone."""
        return FrameImages([self.levels[level]], self.outside, self.outline, self.outline_normal, self.outlined)


def load_images(data: Dataset, views: Views, frame: int, device: str = "cpu") -> FrameImages:
    """Read and prepare one frame's images, several at a time where there are cores for it."""
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        if torch.device(device).type == "cuda":
            return prepared_at_once(list(pool.map(lambda view: data.image(view, frame), views.index)), views, device)
        prepared = list(pool.map(lambda view: _prepared(data.image(view[0], frame), view[1]), zip(views.index, views.reduce)))
    origins, levels, distances, points, normals = zip(*prepared)
    pyramids = [list(pixels) for pixels in zip(*levels)]
    packed = [_pack(pixels, np.array(origins), 0.5**level) for level, pixels in enumerate(pyramids)]
    outlined = np.arange(max(len(p) for p in points)) < np.array([[len(p)] for p in points])
    padded = [np.zeros((*outlined.shape, 2)) for _ in range(2)]
    for array, parts in zip(padded, (points, normals)):
        array[outlined] = np.concatenate(parts)
    return FrameImages(packed, _pack(list(distances), np.array(origins), 1.0), *(torch.from_numpy(x) for x in (*padded, outlined)))


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
    """Signed distance to the mask [H, W, 4] (value, x and y derivative, 1 within the image), outline points (x, y) and outward normals.

    Where the image ends says nothing of where the subject does: beyond it nothing is known (alpha 0), and no outline runs along its border.
    """
    from scipy.ndimage import distance_transform_edt, gaussian_filter

    mask = alpha > 0.5
    if not mask.any():
        return np.zeros((*mask.shape, 4), np.float32), np.zeros((0, 2)), np.zeros((0, 2))
    signed = np.where(mask, 0.5 - distance_transform_edt(mask), distance_transform_edt(~mask) - 0.5)
    dy, dx = np.gradient(gaussian_filter(signed, BLUR))
    field = np.stack([signed, dx, dy, within], -1).astype(np.float32)
    rows, cols = np.nonzero((np.abs(signed) < 0.75) & within)
    normal = np.stack([dx[rows, cols], dy[rows, cols]], -1)
    length = np.linalg.norm(normal, axis=1)
    rows, cols, normal = rows[length > STEEP], cols[length > STEEP], normal[length > STEEP] / length[length > STEEP, None]
    points = np.stack([cols + 0.5, rows + 0.5], -1) - signed[rows, cols, None] * normal
    return field, points, normal


def _pack(images: list[np.ndarray], origins: np.ndarray, scale: float) -> Level:
    sizes = np.array([[i.shape[1], i.shape[0]] for i in images])
    start = np.concatenate([[0], np.cumsum(sizes.prod(1))[:-1]])
    pixels = np.concatenate([i.reshape(-1, i.shape[-1]) for i in images])
    return Level(*(torch.from_numpy(x) for x in (pixels, start, sizes, origins * scale)), scale)


def prepared_at_once(images: list[np.ndarray], views: Views, device: str) -> FrameImages:
    """`load_images` of images u8 [H, W, 4] that lie whole, with a margin around them, side by side on one device."""
    step = 2 ** (LEVELS - 1)
    margin = -(-MARGIN // step) * step
    width, height = (-(-max(side) // step) * step + 2 * margin for side in zip(*views.sizes))
    rgba = torch.zeros(len(images), 4, height, width, device=device)
    alpha, within = torch.zeros_like(rgba[:, 0]), torch.zeros(len(images), height, width, dtype=torch.bool, device=device)
    for view, (image, reduce, (w, h)) in enumerate(zip(images, views.reduce, views.sizes)):
        small = _reduced_on(torch.from_numpy(image).to(device), reduce)
        rgba[view, :, margin : margin + h, margin : margin + w] = small
        within[view, margin : margin + h, margin : margin + w] = True
        beyond = (margin, width - margin - w, margin, height - margin - h)
        alpha[view] = torch.nn.functional.pad(small[None, 3:], beyond, mode="replicate")[0, 0]
    origin = torch.full((len(images), 2), -float(margin), dtype=torch.float64, device=device)

    def level(values: Tensor, scale: float) -> Level:
        """Of values [C, channels, H, W]."""
        h, w = values.shape[2:]
        start = torch.arange(len(values), device=device) * (h * w)
        size = torch.tensor([[w, h]], device=device).expand(len(values), 2).contiguous()
        return Level(values.movedim(1, 3).reshape(-1, values.shape[1]).contiguous(), start, size, origin * scale, scale)

    levels = [level(pixels, 0.5**i) for i, pixels in enumerate(_pyramid_at_once(rgba))]
    signed, dx, dy = _distance_at_once(alpha > 0.5)
    outside = level(torch.stack([signed, dx, dy, (within & (alpha > 0.5).flatten(1).any(1)[:, None, None]).double()], 1).float(), 1.0)
    return FrameImages(levels, outside, *_outline_at_once(signed, dx, dy, within, origin))


def _reduced_on(rgba: Tensor, reduce: int) -> Tensor:
    """`_reduced` as [4, H, W]."""
    image = rgba.float().movedim(2, 0) / 255
    image = torch.cat([image[:3] * image[3:], image[3:]])
    if reduce == 1:
        return image
    h, w = (-(-s // reduce) * reduce - s for s in image.shape[1:])
    image = torch.nn.functional.pad(image[None], (0, w, 0, h), mode="replicate")[0]
    return torch.nn.functional.avg_pool2d(image, reduce)


def _pyramid_at_once(image: Tensor) -> list[Tensor]:
    """`_pyramid` of images [C, 4, H, W]: levels [C, 10, H, W]."""
    pool, pad = torch.nn.functional.avg_pool2d, torch.nn.functional.pad
    levels = []
    for level in range(LEVELS):
        if level:
            image = pool(image, 2)
        padded = pad(image, (1, 1, 1, 1))
        smooth = 0.5 * padded[..., 1:-1] + 0.25 * (padded[..., 2:] + padded[..., :-2])
        smooth = 0.5 * smooth[..., 1:-1, :] + 0.25 * (smooth[..., 2:, :] + smooth[..., :-2, :])
        filled = smooth + 0.02 * pool(pool(smooth, (7, 1), 1, (3, 0)), (1, 7), 1, (0, 3))
        colour = filled[:, :3] / filled[:, 3:].clamp_min(1e-6)
        down, right = torch.gradient(colour, dim=(2, 3))
        levels.append(torch.cat([colour, torch.stack([right, down], 2).flatten(1, 2), image[:, 3:]], 1))
    return levels


def _distance_at_once(mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Signed distance to masks bool [C, H, W] and its x and y derivatives after a blur, f64 [C, H, W]; zero where a mask is empty."""
    signed = torch.where(mask, 0.5 - distance_to_false(mask), distance_to_false(~mask) - 0.5).double()
    signed = torch.where(mask.flatten(1).any(1)[:, None, None], signed, 0.0)
    reach = round(4 * BLUR)
    taps = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, dtype=torch.float64, device=mask.device) / BLUR) ** 2)
    padded = torch.nn.functional.pad(signed[:, None], (reach,) * 4, mode="replicate")
    for shape in ((1, 1, -1, 1), (1, 1, 1, -1)):
        padded = torch.nn.functional.conv2d(padded, (taps / taps.sum()).reshape(shape))
    dy, dx = torch.gradient(padded[:, 0], dim=(1, 2))
    return signed, dx, dy


def _outline_at_once(signed: Tensor, dx: Tensor, dy: Tensor, within: Tensor, origin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Outline points [C, B, 2], outward normals [C, B, 2] and which there are [C, B]: B is the most there may be, so that every frame has the same."""
    slope = torch.stack([dx, dy], -1)
    length = slope.norm(dim=-1)
    edge = ((signed.abs() < 0.75) & within & (length > STEEP)).flatten(1)
    rank, thin = edge.cumsum(1) - 1, torch.div(edge.sum(1, keepdim=True), OUTLINE_POINTS, rounding_mode="floor").clamp_min(1)
    view, pixel = torch.nonzero(edge & (rank % thin == 0), as_tuple=True)
    slot = torch.div(rank, thin, rounding_mode="floor")[view, pixel]
    normal = (slope / length[..., None]).flatten(1, 2)[view, pixel]
    width = signed.shape[2]
    centre = torch.stack([pixel % width, torch.div(pixel, width, rounding_mode="floor")], -1) + 0.5
    points, normals = (signed.new_zeros(len(signed), 2 * OUTLINE_POINTS, 2) for _ in range(2))
    points[view, slot] = centre + origin[view] - signed.flatten(1)[view, pixel][:, None] * normal
    normals[view, slot] = normal
    outlined = torch.zeros(points.shape[:2], dtype=torch.bool, device=signed.device)
    outlined[view, slot] = True
    return points, normals, outlined
