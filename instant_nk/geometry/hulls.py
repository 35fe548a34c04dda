"""Visual hulls: the voxels that every camera's mask allows, carved coarse to fine. numpy, no images, no files.

All functions work in whatever space the poses are given in (the dataset stage uses scene space for hulls and world
space to find the box). Cameras are OpenCV camera-to-world with intrinsics in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

VOXELS_PER_STEP = 1 << 19
"""Voxels projected at a time, which bounds memory."""
NEEDED = 0.005
"""Share of some mask that a separate part of a hull, seen by less than half of the cameras, must alone account for."""


@dataclass(frozen=True)
class Silhouette:
    """A mask, reduced, as distances: how far each pixel is from the subject.

    Attributes:
        distance: pixels of the full image from each reduced pixel to the nearest one that touches the subject, f32 [h, w]; 0 inside.
        pool: pixels of the full image per reduced pixel, along each axis.
        size: width and height of the full image.
        subject: number of subject pixels of the full image.
    """

    distance: np.ndarray
    pool: int
    size: tuple[int, int]
    subject: int

    @property
    def mask(self) -> np.ndarray:
        """Reduced pixels that touch the subject, bool [h, w]."""
        return self.distance == 0


def silhouette(mask: np.ndarray, pool: int = 1) -> Silhouette:
    """Reduce a mask bool [H, W] by `pool` (any subject pixel marks the whole block) and take distances to it."""
    from scipy.ndimage import distance_transform_edt

    height, width = mask.shape
    h, w = -(-height // pool), -(-width // pool)
    if pool > 1:
        padded = np.zeros((h * pool, w * pool), bool)
        padded[:height, :width] = mask
        small = padded.reshape(h, pool, w, pool).any((1, 3))
    else:
        small = mask
    subject = int(np.count_nonzero(mask))
    distance = distance_transform_edt(~small).astype(np.float32) * pool if subject else np.full((h, w), np.inf, np.float32)
    return Silhouette(distance, pool, (width, height), subject)


def pool_for(voxel: float, K: np.ndarray, c2w: np.ndarray, centre: np.ndarray) -> int:
    """Reduction at which a mask still resolves a quarter of a voxel of edge `voxel` at `centre`."""
    depth = max(float(np.linalg.norm(c2w[:3, 3] - centre)), 1e-12)
    return max(1, int(max(K[0, 0], K[1, 1]) * voxel / depth / 4))


def _in_camera(points: np.ndarray, c2w: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Camera coordinates x, y, z of points [N, 3], each f32 [N].

    float32 resolves a thousandth of a pixel once the camera's centre is subtracted. Written out, because the threads of a matrix
    product with a 3 x 3 matrix cost ten times what they save.
    """
    p, q, r = ((points[:, axis] - c2w[axis, 3]).astype(np.float32) for axis in range(3))
    x, y, z = (p * a + q * b + r * c for a, b, c in c2w[:3, :3].T.astype(np.float32))
    return x, y, z


def seen_by(points: np.ndarray, radius: float, camera: Silhouette, K: np.ndarray, c2w: np.ndarray, in_part: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Which balls a camera sees, and which of them it denies.

    A ball of radius r around a point at depth z and distance d projects within f r d / (z (z - r)) pixels of its centre.

    Args:
        points: centres [N, 3].
        radius: radius r of the balls, in the points' units.
        in_part: a ball counts as seen when any part of it may project into the image; otherwise its centre must.

    Returns:
        bool [N]: seen. bool [N]: the centre projects into the image and no subject pixel is within the ball's reach.
    """
    x, y, z = _in_camera(points, c2w)
    ahead = z > radius * 1.001
    z = np.where(ahead, z, np.float32(2 * radius + 1))
    inverse = 1 / z
    u = (np.float32(K[0, 0]) * x + np.float32(K[0, 1]) * y) * inverse + np.float32(K[0, 2])
    v = np.float32(K[1, 1]) * y * inverse + np.float32(K[1, 2])
    # half a reduced pixel's diagonal goes to looking up the nearest one
    reach = np.float32(max(K[0, 0], K[1, 1]) * radius) * np.sqrt(x * x + y * y + z * z) * inverse / (z - np.float32(radius)) + np.float32(0.75 * camera.pool)
    width, height = camera.size
    inside = ahead & (u >= 0) & (u < width) & (v >= 0) & (v < height)
    seen = ahead & (u >= -reach) & (u < width + reach) & (v >= -reach) & (v < height + reach) if in_part else inside
    col = np.where(inside, u, 0).astype(np.int32) // camera.pool
    row = np.where(inside, v, 0).astype(np.int32) // camera.pool
    return seen, inside & (camera.distance[row, col] > reach)


def carve(
    points: np.ndarray, radius: float, cameras: list[Silhouette], K: np.ndarray, c2w: np.ndarray, least_seen: int = 2, in_part: bool = False
) -> np.ndarray:
    """Balls that may belong to the subject, bool [N].

    A camera votes on what projects into its image, and only when its mask is not empty. Kept is what at least `least_seen`
    cameras see (all, where there are fewer) and no camera denies; in rigs of more than 25 cameras, one in 25 may, because a
    single bad mask must not cut off a limb.

    Args:
        points: centres f64 [N, 3].
        radius: radius within which a subject pixel counts, in the points' units: half the voxel's diagonal loses no thin part.
        cameras: C silhouettes.
        K: f64 [C, 3, 3].
        c2w: f64 [C, 4, 4], in the points' space.
        in_part: balls stand for blocks of which any part may be seen.
    """
    voting = [i for i, c in enumerate(cameras) if c.subject]
    allowed = (len(voting) - 1) // 25
    wanted = min(max(2, least_seen), len(voting))
    keep = np.zeros(len(points), bool)
    for start in range(0, len(points), VOXELS_PER_STEP):
        part = points[start : start + VOXELS_PER_STEP]
        alive = np.arange(len(part))
        seen = np.zeros(len(part), np.int32)
        denied = np.zeros(len(part), np.int32)
        for i in voting:
            sees, denies = seen_by(part[alive], radius, cameras[i], K[i], c2w[i], in_part)
            seen[alive] += sees
            denied[alive] += denies
            alive = alive[denied[alive] <= allowed]
        keep[start + alive] = seen[alive] >= wanted
    return keep if voting else np.zeros(len(points), bool)


def visual_hull(
    cameras: list[Silhouette],
    K: np.ndarray,
    c2w: np.ndarray,
    resolution: int,
    low: np.ndarray | float = -1.0,
    high: np.ndarray | float = 1.0,
    least_seen: int = 2,
) -> np.ndarray:
    """Visual hull bool [R, R, R] (axes x, y, z) over the cube from `low` to `high`, voxel i centred at low + (i + 1/2) edge.

    Conservative: a voxel is kept when the ball around it reaches every voting mask, so thin parts are not lost and the hull is
    up to half a voxel's diagonal too large. Blocks that are denied as a whole are not refined.
    """
    low = np.broadcast_to(np.asarray(low, np.float64), 3)
    edge = (np.broadcast_to(np.asarray(high, np.float64), 3) - low) / resolution
    factors = []
    rest = resolution
    while rest % 2 == 0 and rest > 8:
        rest //= 2
        factors.append(2)
    cells = np.stack(np.meshgrid(*[np.arange(rest)] * 3, indexing="ij"), -1).reshape(-1, 3)
    children = np.stack(np.meshgrid([0, 1], [0, 1], [0, 1], indexing="ij"), -1).reshape(1, 8, 3)
    block = resolution // rest
    while True:
        centres = low + (cells + 0.5) * block * edge
        cells = cells[carve(centres, 0.5 * block * float(np.linalg.norm(edge)), cameras, K, c2w, least_seen, in_part=block > 1)]
        if not factors:
            break
        factors.pop()
        block //= 2
        cells = (cells[:, None] * 2 + children).reshape(-1, 3)
    result = np.zeros((resolution,) * 3, bool)
    result[tuple(cells.T)] = True
    return result


def box_coverage(box: np.ndarray, size: tuple[int, int], pool: int, K: np.ndarray, c2w: np.ndarray) -> np.ndarray:
    """Reduced pixels whose rays meet a box [[min], [max]], bool [h, w]."""
    w, h = -(-size[0] // pool), -(-size[1] // pool)
    u, v = np.meshgrid((np.arange(w) + 0.5) * pool, (np.arange(h) + 0.5) * pool)
    y = (v - K[1, 2]) / K[1, 1]
    x = (u - K[0, 2] - K[0, 1] * y) / K[0, 0]
    directions = np.stack([x, y, np.ones_like(x)], -1) @ c2w[:3, :3].T
    with np.errstate(divide="ignore", invalid="ignore"):
        near = (box[0] - c2w[:3, 3]) / directions
        far = (box[1] - c2w[:3, 3]) / directions
    enter = np.fmax.reduce(np.fmin(near, far), -1)
    leave = np.fmin.reduce(np.fmax(near, far), -1)
    return (leave >= np.maximum(enter, 0)).reshape(h, w)


def share_beyond(extent: np.ndarray, cameras: list[Silhouette], K: np.ndarray, c2w: np.ndarray, resolution: int = 48, reach: float = 1.3) -> float:
    """Share of the visual hull within [-reach, reach]^3 that lies outside of the box from -extent to extent.

    Masks alone hide a subject that leaves a box towards most cameras; the hull does not. It counts what at least half of the
    cameras see, without the margin for thin parts, so a box that holds the subject gives 0 in rigs of about ten cameras or more;
    fewer leave phantoms.
    """
    hull = visual_hull(cameras, K, c2w, resolution, -reach, reach, least_seen=-(-len(cameras) // 2))
    points = reach * ((2 * np.argwhere(hull) + 1) / resolution - 1)
    points = points[carve(points, 0.0, cameras, K, c2w, least_seen=-(-len(cameras) // 2))]
    return float((np.abs(points) > extent + reach / resolution).any(1).mean()) if len(points) else 0.0


def meeting_point(c2w: np.ndarray) -> np.ndarray | None:
    """Point [3] nearest to all optical axes in the least-squares sense; None when the cameras look (almost) in parallel."""
    d = c2w[:, :3, 2]
    across = np.eye(3) - d[:, :, None] * d[:, None, :]
    system = across.sum(0)
    if np.linalg.eigvalsh(system)[0] < 1e-3 * len(c2w):
        return None
    return np.linalg.solve(system, (across @ c2w[:, :3, 3:]).sum(0)[:, 0])


def subject_box(
    cameras: list[Silhouette], K: np.ndarray, c2w: np.ndarray, low: np.ndarray, high: np.ndarray, resolution: int = 32, levels: int = 4
) -> np.ndarray | None:
    """Box [[min], [max]] around the visual hull within the region from `low` to `high`, coarse to fine; None when the hull is empty.

    Counted is only what at least half of the cameras see: where few look, their masks alone bound nothing.
    """
    box = np.stack([np.asarray(low, np.float64), np.asarray(high, np.float64)])
    for _ in range(levels):
        hull = visual_hull(cameras, K, c2w, resolution, box[0], box[1], least_seen=-(-len(cameras) // 2))
        cells = np.argwhere(hull)
        if len(cells) == 0:
            return None
        edge = (box[1] - box[0]) / resolution
        box = np.stack([box[0] + cells.min(0) * edge, box[0] + (cells.max(0) + 1) * edge])
    return box


def open_surface(hull: np.ndarray) -> int:
    """Number of voxel faces between a hull bool [R, R, R] and what is not hull, after gaps of a voxel are closed.

    Parts that touch hide each other's surface. Parts that nearly do are full of tunnels in a hull, whose walls would count as if they showed
    something; closed, they count as what they are.
    """
    from scipy.ndimage import binary_closing

    padded = binary_closing(np.pad(hull, 3), np.arange(-1, 2)[:, None, None] ** 2 + np.arange(-1, 2)[:, None] ** 2 + np.arange(-1, 2) ** 2 <= 1)
    return sum(int(np.count_nonzero(padded[1:] != padded[:-1])) for padded in (padded, padded.swapaxes(0, 1), padded.swapaxes(0, 2)))


def explained_shares(hull: np.ndarray, cameras: list[Silhouette], K: np.ndarray, c2w: np.ndarray) -> np.ndarray:
    """Share of each mask that a hull over [-1, 1]^3 accounts for, at the voxels' resolution, f64 [C]: 1 where masks and cameras agree.

    A mask pixel without hull behind it was denied by other cameras: one of the poses or masks is wrong there. 1 for an empty mask.
    """
    points = _centres(_surface(hull), hull.shape[0])  # the surface alone fills the outline
    return np.array([_Raster(points, 2 / hull.shape[0], *camera).share() for camera in zip(cameras, K, c2w)])


def within_box(hull: np.ndarray, extent: np.ndarray, margin: int = 2) -> np.ndarray:
    """A hull over [-1, 1]^3 without voxels farther than `margin` of them outside the box from -extent to extent."""
    resolution = hull.shape[0]
    centres = np.abs((2 * np.arange(resolution) + 1) / resolution - 1)
    near = [centres < edge + 2 * margin / resolution for edge in np.broadcast_to(extent, 3)]
    return hull & near[0][:, None, None] & near[1][:, None] & near[2]


def without_phantoms(hull: np.ndarray, cameras: list[Silhouette], K: np.ndarray, c2w: np.ndarray) -> np.ndarray:
    """A hull over [-1, 1]^3 without separate parts that no mask needs.

    Where few cameras look, cones of the same subject meet beside it. Such a part shows nothing that the subject itself does not
    account for. Kept is each part that half of the cameras see, on average over its voxels, and from the largest on each other one
    without which some mask would lose `NEEDED` of itself.
    """
    from scipy.ndimage import label

    parts, count = label(hull, np.ones((3, 3, 3)))
    voting = [i for i, camera in enumerate(cameras) if camera.subject]
    if count < 2 or not voting:
        return hull
    shell = _surface(hull)
    part = parts[shell] - 1
    rasters = [_Raster(_centres(shell, hull.shape[0]), 2 / hull.shape[0], cameras[i], K[i], c2w[i]) for i in voting]
    sizes = np.bincount(part, minlength=count)
    seen = sum(np.bincount(part, raster.cells >= 0, count) for raster in rasters) / (len(voting) * np.maximum(sizes, 1))
    kept = seen >= 0.5
    if not kept.any():
        kept[sizes.argmax()] = True
    for raster in rasters:
        raster.reach(kept[part])
    members = np.split(np.argsort(part, kind="stable"), np.cumsum(sizes)[:-1])
    for candidate in np.argsort(-sizes, kind="stable"):
        if not kept[candidate] and max(raster.gain(members[candidate]) for raster in rasters) > NEEDED:
            kept[candidate] = True
            for raster in rasters:
                raster.reach(members[candidate])
    return hull & np.concatenate([[False], kept])[parts]


def _surface(hull: np.ndarray) -> np.ndarray:
    """Voxels of a hull with a face to the outside, bool [R, R, R]."""
    padded = np.pad(hull, 1)
    buried = np.logical_and.reduce([np.roll(padded, shift, axis) for axis in range(3) for shift in (-1, 1)])[1:-1, 1:-1, 1:-1]
    return hull & ~buried


def _centres(voxels: np.ndarray, resolution: int) -> np.ndarray:
    return (2 * np.argwhere(voxels) + 1) / resolution - 1


class _Raster:
    """A mask in cells as large as a voxel's picture, and which of them points of a hull account for: their own and the eight around.

    Attributes:
        cells: cell of each point, intp [N]; -1 outside of the image.
        pixels: mask pixels in each cell, i64 [cells]; reached: accounted for, bool [cells].
    """

    def __init__(self, points: np.ndarray, edge: float, camera: Silhouette, K: np.ndarray, c2w: np.ndarray):
        x, y, z = _in_camera(points, c2w)
        ahead = z > edge
        depth = np.where(ahead, z, np.float32(1))
        u, v = (K[0, 0] * x + K[0, 1] * y) / depth + K[0, 2], K[1, 1] * y / depth + K[1, 2]
        size = camera.pool * max(1, int(np.ceil(max(K[0, 0], K[1, 1]) * edge / np.median(z[ahead]) / camera.pool))) if ahead.any() else camera.pool
        h, w = camera.distance.shape
        rows, columns = -(-h * camera.pool // size), -(-w * camera.pool // size)
        inside = ahead & (u >= -size) & (u < (columns + 1) * size) & (v >= -size) & (v < (rows + 1) * size)
        self.width = columns + 4  # two cells around, so that neighbours are always there
        row, column = (np.floor(np.where(inside, value, 0) / size).astype(np.intp) + 2 for value in (v, u))
        self.cells = np.where(inside, row * self.width + column, -1)
        row, column = np.nonzero(camera.mask)
        self.pixels = np.bincount((row * camera.pool // size + 2) * self.width + column * camera.pool // size + 2, minlength=(rows + 4) * self.width)
        self.reached = np.zeros(len(self.pixels), bool)

    def _around(self, which: np.ndarray | slice) -> np.ndarray:
        cells = self.cells[which]
        offsets = np.arange(-1, 2) + np.arange(-1, 2)[:, None] * self.width
        return (np.unique(cells[cells >= 0])[:, None] + offsets.reshape(-1)).reshape(-1)

    def reach(self, which: np.ndarray) -> None:
        """Let points, by number or bool [N], account for what they cover."""
        self.reached[self._around(which)] = True

    def gain(self, which: np.ndarray) -> float:
        """Share of the mask that points would account for beyond what is."""
        cells = np.unique(self._around(which))
        return float(self.pixels[cells[~self.reached[cells]]].sum() / max(self.pixels.sum(), 1))

    def share(self) -> float:
        """Share of the mask that all points account for; 1 of an empty mask."""
        return self.gain(slice(None)) if self.pixels.any() else 1.0
