"""A z-buffer triangle rasteriser in plain torch: which face a pixel's centre sees, where on it, and how deep.

Triangles are rasterised in homogeneous coordinates: with P = K [x y z] of the corners as columns, a pixel (u, v, 1) has
b = P^-1 (u, v, 1); the pixel is inside where all b >= 0, its depth is 1 / sum(b) and b / sum(b) are perspective-correct
barycentric coordinates. No clipping is needed, also for triangles that reach behind the camera. Shared edges give exactly
negated edge values, so that a closed mesh has no cracks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

CANDIDATES_PER_CHUNK = 4_000_000  # pixel-triangle pairs tested at once: about 500 MB
PAIRS_PER_CHUNK = 1 << 18  # pairs of a vertex and a view looked at at once: about 100 MB


class Raster(NamedTuple):
    """What each pixel's centre sees.

    Attributes:
        face_index: i32 [H, W], -1 where nothing is seen.
        barycentric: perspective-correct, f32 [H, W, 3]; zeros where nothing is seen.
        depth: along the optical axis, units of the vertices, f32 [H, W]; 0 where nothing is seen.
    """

    face_index: Tensor
    barycentric: Tensor
    depth: Tensor


def project(vertices: Tensor, w2c: Tensor, K: Tensor) -> Tensor:
    """Homogeneous pixel positions (u z, v z, z) of world points: [V, 3] -> f64 [V, 3]."""
    w2c, K = w2c.to(vertices.device, torch.float64), K.to(vertices.device, torch.float64)
    return (vertices.double() @ w2c[:3, :3].T + w2c[:3, 3]) @ K.T


def _edge_functions(corners: Tensor) -> Tensor:
    """Rows of P^-1 per triangle: f64 [T, 3, 3] (edge, (u, v, 1) coefficient); NaN where a triangle is seen edge-on."""
    a, b, c = corners.unbind(1)
    rows = torch.stack([torch.linalg.cross(b, c), torch.linalg.cross(c, a), torch.linalg.cross(a, b)], 1)
    volume = (a * rows[:, 0]).sum(-1)
    size = corners.norm(dim=-1).amax(1)
    return torch.where((volume.abs() > 1e-14 * size**3)[:, None, None], rows / volume[:, None, None], torch.nan)


def _pixel_boxes(corners: Tensor, width: int, height: int) -> tuple[Tensor, Tensor]:
    """First pixel (x, y) and extent of the pixel box of each triangle, i64 [T, 2] each; the whole image when a corner is behind the camera."""
    limit = torch.tensor([width, height], device=corners.device)
    z = corners[..., 2]
    whole = (z <= 0).any(1)
    uv = corners[..., :2] / torch.where(z > 0, z, 1.0)[..., None]
    uv = uv.clamp(-1.0, float(max(width, height)) + 1.0)
    first = (uv.amin(1) - 0.5).ceil().long()  # pixel i has its centre at i + 0.5
    last = (uv.amax(1) - 0.5).floor().long()
    first, last = torch.where(whole[:, None], 0, first), torch.where(whole[:, None], limit - 1, last)
    first, last = first.clamp_min(0), torch.minimum(last, limit - 1)
    extent = (last - first + 1).clamp_min(0)
    return first, torch.where((z <= 0).all(1)[:, None], 0, extent)


def _chunks(counts: Tensor) -> list[tuple[int, int]]:
    """Ranges of triangles with at most CANDIDATES_PER_CHUNK candidate pixels each (or one triangle)."""
    ends = counts.cumsum(0)
    ranges, start, done = [], 0, 0
    while start < len(counts):
        stop = int(torch.searchsorted(ends, done + CANDIDATES_PER_CHUNK, right=True))
        stop = max(stop, start + 1)
        ranges.append((start, stop))
        start, done = stop, int(ends[stop - 1])
    return ranges


def rasterize(vertices: Tensor, faces: Tensor, w2c: Tensor, K: Tensor, size: tuple[int, int]) -> Raster:
    """What each pixel's centre sees of a triangle mesh, from both sides of the triangles.

    Args:
        vertices: world (or scene) positions [V, 3].
        faces: integer [T, 3].
        w2c: world-to-camera, OpenCV axes [4, 4]; identity when `vertices` are in camera space.
        K: intrinsics in pixels [3, 3]; pixel (row 0, column 0) has its centre at (0.5, 0.5).
        size: (width, height) in pixels.

    Returns:
        face index, barycentric coordinates and depth per pixel, on the device of `vertices`. Of triangles at equal
        depth the one with the smallest index is seen.
    """
    corners = project(vertices, w2c, K)[faces.to(vertices.device).long()]
    return _assemble(_nearest_faces(corners, 1, size)[0], corners)


def face_maps(vertices: Tensor, faces: Tensor, w2c: Tensor, K: Tensor, size: tuple[int, int]) -> Tensor:
    """Index of the face that each pixel's centre sees in several views at once, i64 [C, H, W]; -1 where nothing is seen.

    As `rasterize`, with w2c [C, 4, 4] and K [C, 3, 3]. One pass over all views keeps a GPU busy where a pass per view waits for launches.
    """
    triangles = faces.to(vertices.device).long()
    return _nearest_faces(torch.cat([project(vertices, w, k)[triangles] for w, k in zip(w2c, K)]), len(w2c), size)


def _nearest_faces(corners: Tensor, views: int, size: tuple[int, int]) -> Tensor:
    """Face in front of each pixel, i64 [C, H, W], -1 where there is none; `corners` [C T, 3, 3] view by view."""
    width, height = size
    device, none = corners.device, len(corners) // views
    kept, first, extent, edges = _candidates(corners, width, height)
    inverse_depth = torch.zeros(views * height * width, dtype=torch.float64, device=device)
    face_index = torch.full((views * height * width,), none, dtype=torch.int64, device=device)
    for start, stop in _chunks(extent.prod(1)):
        owner, pixel, b = _covered_pixels(first[start:stop], extent[start:stop], edges[start:stop], width)
        face = kept[start:stop][owner]
        if views > 1:
            view = torch.div(face, none, rounding_mode="floor")
            face, pixel = face - view * none, view * (height * width) + pixel
        value = b.sum(1)  # 1 / depth
        nearest = inverse_depth.scatter_reduce(0, pixel, value, "amax")
        face_index = torch.where(nearest > inverse_depth, none, face_index)  # something nearer was found: forget the face seen so far
        inverse_depth = nearest
        front = value == inverse_depth[pixel]
        face_index = face_index.scatter_reduce(0, pixel[front], face[front], "amin")
    return torch.where(face_index == none, -1, face_index).reshape(views, height, width)


def depth_maps(vertices: Tensor, faces: Tensor, w2c: Tensor, K: Tensor, size: tuple[int, int]) -> Tensor:
    """Depth of a mesh in several views at once, f64 [C, H, W]; 0 where nothing is seen.

    As `rasterize`, with w2c [C, 4, 4] and K [C, 3, 3], and in one pass as `face_maps`.
    """
    width, height = size
    triangles = faces.to(vertices.device).long()
    corners = torch.cat([project(vertices, w, k)[triangles] for w, k in zip(w2c, K)])
    kept, first, extent, edges = _candidates(corners, width, height)
    inverse = torch.zeros(len(w2c) * height * width, dtype=torch.float64, device=vertices.device)
    for start, stop in _chunks(extent.prod(1)):
        owner, pixel, b = _covered_pixels(first[start:stop], extent[start:stop], edges[start:stop], width)
        view = torch.div(kept[start:stop][owner], len(triangles), rounding_mode="floor")
        inverse.scatter_reduce_(0, view * (height * width) + pixel, b.sum(1), "amax")
    return torch.where(inverse > 0, 1 / inverse, inverse).reshape(len(w2c), height, width)


def _candidates(corners: Tensor, width: int, height: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Triangles whose pixel box is not empty: their indices, first pixels, extents and edge functions."""
    edges = _edge_functions(corners)
    first, extent = _pixel_boxes(corners, width, height)
    extent = torch.where(edges[:, :1, 0].isnan(), 0, extent)
    kept = torch.nonzero(extent.prod(1) > 0).squeeze(1)
    return kept, first[kept], extent[kept], edges[kept]


def _covered_pixels(first: Tensor, extent: Tensor, edges: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels inside each triangle: owner triangle i64 [N], flat pixel i64 [N], barycentric coordinates over depth f64 [N, 3]."""
    counts = extent.prod(1)
    owner = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
    within = torch.arange(len(owner), device=counts.device) - (counts.cumsum(0) - counts)[owner]
    columns = extent[:, 0][owner]
    y = torch.div(within, columns, rounding_mode="floor")
    x = within - y * columns + first[:, 0][owner]
    y = y + first[:, 1][owner]
    e = edges[owner]
    b = e[..., 0] * (x + 0.5)[:, None] + e[..., 1] * (y + 0.5)[:, None] + e[..., 2]
    inside = torch.nonzero((b >= 0).all(1) & (b.sum(1) > 0)).squeeze(1)
    return owner[inside], (y * width + x)[inside], b[inside]


def _assemble(face_index: Tensor, corners: Tensor) -> Raster:
    """Barycentric coordinates and depth of the faces that were found in front."""
    height, width = face_index.shape
    barycentric = torch.zeros(height, width, 3, device=face_index.device)
    depth = torch.zeros(height, width, device=face_index.device)
    y, x = torch.nonzero(face_index >= 0, as_tuple=True)
    e = _edge_functions(corners[face_index[y, x]])
    b = (e[..., 0] * (x + 0.5)[:, None] + e[..., 1] * (y + 0.5)[:, None] + e[..., 2]).clamp_min(0)
    total = b.sum(1, keepdim=True)
    barycentric[y, x] = (b / total).float()
    depth[y, x] = (1 / total[:, 0]).float()
    return Raster(face_index.int(), barycentric, depth)


def interpolate(raster: Raster, faces: Tensor, attribute: Tensor) -> Tensor:
    """A per-vertex attribute [V, C] at every pixel: [H, W, C], zeros where nothing is seen."""
    seen = raster.face_index >= 0
    corners = attribute[faces.to(attribute.device).long()[raster.face_index[seen].long()]]
    values = torch.zeros(*seen.shape, attribute.shape[1], dtype=attribute.dtype, device=attribute.device)
    values[seen] = (corners * raster.barycentric[seen][..., None].to(attribute.dtype)).sum(-2)
    return values


def visible_vertices(
    vertices: Tensor, faces: Tensor, w2c: Tensor, K: Tensor, size: tuple[int, int], tolerance: float = 1e-3, raster: Raster | None = None
) -> Tensor:
    """Which vertices a camera sees: inside the image and with no face in front of them, bool [V].

    A vertex is seen when the 3 x 3 pixels around it show one of its own faces, or when it is not behind the plane of
    the face its pixel shows, at the vertex's own sub-pixel position.

    Args:
        tolerance: how far behind that plane a vertex still counts as seen, as a fraction of the diagonal of the mesh's box.
        raster: `rasterize` of the same arguments, where it is known already.
    """
    raster = raster or rasterize(vertices, faces.reshape(-1, 3), w2c, K, size)
    p = project(vertices, w2c, K)
    return _visible(p[None], faces, raster.face_index.long()[None], torch.tensor([size], device=p.device), tolerance * _diagonal(vertices))[0]


def visible_in_views(vertices: Tensor, faces: Tensor, w2c: Tensor, K: Tensor, sizes: Sequence[tuple[int, int]], tolerance: float = 1e-3) -> Tensor:
    """`visible_vertices` of several views, w2c [C, 4, 4], K [C, 3, 3], (width, height) of each: bool [C, V]. As many at once as memory allows."""
    at_once, parts = max(1, PAIRS_PER_CHUNK // max(len(vertices), 1)), []
    for i in range(0, len(w2c), at_once):
        some = slice(i, i + at_once)
        limits = torch.tensor(sizes[some], device=vertices.device)
        maps = face_maps(vertices, faces.reshape(-1, 3), w2c[some], K[some], tuple(max(side) for side in zip(*sizes[some])))
        p = torch.stack([project(vertices, w, k) for w, k in zip(w2c[some], K[some])])
        parts.append(_visible(p, faces, maps, limits, tolerance * _diagonal(vertices)))
    return torch.cat(parts) if parts else torch.zeros(0, len(vertices), dtype=torch.bool, device=vertices.device)


def _diagonal(vertices: Tensor) -> float:
    return float((vertices.amax(0) - vertices.amin(0)).norm()) if len(vertices) else 0.0


def _visible(p: Tensor, faces: Tensor, face_index: Tensor, limits: Tensor, margin: float) -> Tensor:
    """Which vertices are seen, bool [C, V].

    Args:
        p: homogeneous pixel positions [C, V, 3].
        face_index: [C, H, W].
        limits: width and height of each view, i64 [C, 2].
        margin: scene length behind a face's plane at which a vertex still counts as on it.
    """
    faces = faces.to(p.device).long().reshape(-1, 3)
    z = p[..., 2]
    uv = p[..., :2] / torch.where(z > 0, z, 1.0)[..., None]
    inside = (z > 0) & ((uv >= 0) & (uv < limits[:, None])).all(-1)
    column, row = torch.minimum(uv.clamp_min(0), limits[:, None] - 1.0).long().unbind(-1)
    shown = torch.nn.functional.pad(face_index, (1, 1, 1, 1), value=-1)
    view = torch.arange(len(p), device=p.device)[:, None]
    shown = torch.stack([shown[view, row + i, column + j] for i in range(3) for j in range(3)], -1)  # [C, V, 9], the middle one is the vertex's own pixel
    corners = torch.cat([faces, faces.new_full((1, 3), -1)])[shown]  # face -1 is the appended row
    own = (corners == torch.arange(p.shape[1], device=p.device)[:, None, None]).any(-1).any(-1)
    e = _edge_functions(p[view[..., None], corners[:, :, 4].clamp_min(0)].flatten(0, 1)).sum(1).unflatten(0, z.shape)
    inverse_plane = e[..., 0] * uv[..., 0] + e[..., 1] * uv[..., 1] + e[..., 2]
    in_front = z * inverse_plane <= 1 + margin * inverse_plane
    return inside & ((shown[..., 4] < 0) | own | in_front)
