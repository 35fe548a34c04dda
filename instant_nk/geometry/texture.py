"""A UV texture shared by all frames of a mesh: where it lies on the surface, how it is read and how it looks in a camera.

Texture coordinates: u to the right, v down, (0, 0) the outer corner of the image's top-left texel (as in glTF), so that
texel (row 0, column 0) has its centre at (0.5, 0.5) / size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from scipy.spatial import cKDTree
from torch import Tensor

from instant_nk.geometry import rasterize


@dataclass(frozen=True)
class Texture:
    """An image and where it lies on the mesh. A mesh vertex on a seam has several UV vertices.

    Attributes:
        uv: in [0, 1], f32 [U, 2].
        vertex_of: the mesh vertex of each UV vertex, i32 [U].
        faces: triangles over UV vertices, in the order and orientation of the mesh's: `vertex_of[faces]` are the mesh's faces, i32 [T, 3].
        image: sRGB, u8 [S, S, 3].
    """

    uv: np.ndarray
    vertex_of: np.ndarray
    faces: np.ndarray
    image: np.ndarray


@dataclass(frozen=True)
class TexelMap:
    """The surface points under the texels that matter.

    Attributes:
        row, column: of each texel, i64 [X].
        face: the triangle under it, i64 [X].
        barycentric: where on the triangle, f32 [X, 3].
        size: side of the texture.
    """

    row: np.ndarray
    column: np.ndarray
    face: np.ndarray
    barycentric: np.ndarray
    size: int


def texel_map(uv: np.ndarray, vertex_of: np.ndarray, faces: np.ndarray, vertices: np.ndarray, size: int, gutter: float = 2.5) -> TexelMap:
    """The surface point under every texel of the charts and of a gutter around them.

    A gutter texel beyond a seam stands for the point that lies beyond that seam on the surface, in the neighbouring
    chart: both sides of a seam are then filled from the same points, and bilinear reading shows no line.

    Args:
        vertices: positions that give the triangles their lengths, [V, 3].
        gutter: width in texels.
    """
    flat = torch.from_numpy(np.concatenate([uv, np.ones((len(uv), 1), uv.dtype)], 1))
    K = torch.diag(torch.tensor([size, size, 1.0], dtype=torch.float64))
    raster = rasterize.rasterize(flat, torch.from_numpy(faces), torch.eye(4, dtype=torch.float64), K, (size, size))
    face = raster.face_index.numpy().astype(np.int64)
    barycentric = raster.barycentric.numpy()
    row, column, beyond_face, beyond_barycentric = _beyond_seams(face < 0, uv.astype(np.float64) * size, vertex_of, faces, vertices, gutter)
    inside = np.nonzero(face >= 0)
    return TexelMap(
        np.concatenate([inside[0], row]),
        np.concatenate([inside[1], column]),
        np.concatenate([face[inside], beyond_face]),
        np.concatenate([barycentric[inside], beyond_barycentric]),
        size,
    )


def _seam_edges(vertex_of: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Directed UV edges on a chart's border with the triangle on the other side of the seam.

    Returns:
        i64 [S, 4]: UV vertices a and b, the neighbouring triangle, and which of its corners is not on the edge.
    """
    a, b = faces.ravel(), faces[:, [1, 2, 0]].ravel()
    triangle, corner = np.divmod(np.arange(3 * len(faces)), 3)
    mesh_key = vertex_of[a].astype(np.int64) << 32 | vertex_of[b]
    twin_key = vertex_of[b].astype(np.int64) << 32 | vertex_of[a]
    order = np.argsort(mesh_key, kind="stable")
    place = np.searchsorted(mesh_key[order], twin_key).clip(max=len(order) - 1)
    twin = order[place]
    paired = mesh_key[twin] == twin_key
    seam = paired & ((b[twin] != a) | (a[twin] != b))
    return np.stack([a[seam], b[seam], triangle[twin[seam]], (corner[twin[seam]] + 2) % 3], 1)


def _beyond_seams(
    empty: np.ndarray, uv: np.ndarray, vertex_of: np.ndarray, faces: np.ndarray, vertices: np.ndarray, gutter: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Row, column, triangle and barycentric coordinates of the empty texels near a seam, unfolded over it. `uv` in texels."""
    near = empty & (ndimage.distance_transform_edt(empty) <= gutter + 1)
    row, column = np.nonzero(near)
    seams = _seam_edges(vertex_of, faces)
    if not len(seams) or not len(row):
        return row[:0], column[:0], np.zeros(0, np.int64), np.zeros((0, 3), np.float32)
    a, b = uv[seams[:, 0]], uv[seams[:, 1]]
    count = np.ceil(2 * np.linalg.norm(b - a, axis=1)).astype(np.int64) + 1  # points every half texel
    owner = np.repeat(np.arange(len(seams)), count)
    along = (np.arange(len(owner)) - np.repeat(count.cumsum() - count, count)) / np.maximum(count - 1, 1)[owner]
    centre = np.stack([column + 0.5, row + 0.5], 1)
    distance, hit = cKDTree(a[owner] + along[:, None] * (b - a)[owner]).query(centre, distance_upper_bound=gutter)
    found = np.isfinite(distance)
    seam = owner[hit[found]]
    return row[found], column[found], seams[seam, 2], _unfold(centre[found], seams[seam], uv, vertex_of, faces, vertices)


def _unfold(point: np.ndarray, seam: np.ndarray, uv: np.ndarray, vertex_of: np.ndarray, faces: np.ndarray, vertices: np.ndarray) -> np.ndarray:
    """Barycentric coordinates, in the triangle across the seam, of texture points beside its edge, f32 [X, 3]."""
    a, b = uv[seam[:, 0]], uv[seam[:, 1]]
    edge = b - a
    length = np.maximum((edge**2).sum(1), 1e-12)
    s = (((point - a) * edge).sum(1) / length).clip(0, 1)  # position along the edge
    height = np.linalg.norm(point - a - s[:, None] * edge, axis=1) / np.sqrt(length)  # beyond it, in edge lengths
    A, B = vertices[vertex_of[seam[:, 0]]].astype(np.float64), vertices[vertex_of[seam[:, 1]]].astype(np.float64)
    opposite = vertex_of[faces[seam[:, 2], seam[:, 3]]]
    C = vertices[opposite].astype(np.float64)
    length = np.maximum(((B - A) ** 2).sum(1), 1e-24)
    foot = ((C - A) * (B - A)).sum(1) / length
    altitude = np.linalg.norm(C - A - foot[:, None] * (B - A), axis=1) / np.sqrt(length)
    weight_c = (height / np.maximum(altitude, 1e-9)).clip(0, 1)
    weight_b = (s - weight_c * foot).clip(0, 1 - weight_c)
    result = np.zeros((len(seam), 3), np.float32)
    rows = np.arange(len(seam))
    result[rows, seam[:, 3]] = weight_c  # the twin runs b -> a, so a is the corner before C and b the one after it
    result[rows, (seam[:, 3] + 1) % 3] = weight_b
    result[rows, (seam[:, 3] + 2) % 3] = 1 - weight_b - weight_c
    return result


def nearest_texel(texels: TexelMap) -> np.ndarray:
    """The texel that every pixel of the image shows, i32 [S, S]: its own, and outside the charts the nearest, so that mip levels show no background."""
    owner = np.full((texels.size, texels.size), -1, np.int32)
    owner[texels.row, texels.column] = np.arange(len(texels.row))
    return owner[tuple(ndimage.distance_transform_edt(owner < 0, return_distances=False, return_indices=True))]


def read(image: Tensor, points: Tensor) -> Tensor:
    """Bilinear values of an image [H, W, C] at positions (x, y) in pixels [P, 2], the first pixel's centre at (0.5, 0.5); clamped at the border: [P, C]."""
    height, width = image.shape[:2]
    x, y = (points[:, 0] - 0.5).clamp(0, width - 1), (points[:, 1] - 0.5).clamp(0, height - 1)
    x0, y0 = x.floor().long(), y.floor().long()
    x1, y1 = (x0 + 1).clamp_max(width - 1), (y0 + 1).clamp_max(height - 1)
    fx, fy = (x - x0)[:, None], (y - y0)[:, None]
    return (image[y0, x0] * (1 - fx) + image[y0, x1] * fx) * (1 - fy) + (image[y1, x0] * (1 - fx) + image[y1, x1] * fx) * fy


def render(vertices: Tensor, texture: Texture, w2c: Tensor, K: Tensor, size: tuple[int, int], supersample: int = 2) -> tuple[Tensor, Tensor]:
    """The textured mesh in a camera.

    Args:
        vertices: world positions of one frame [V, 3].
        size: (width, height) in pixels.
        supersample: samples per pixel along each axis.

    Returns:
        sRGB in [0, 1], black where nothing is seen, premultiplied, f32 [H, W, 3]; coverage f32 [H, W].
    """
    scale = torch.diag(torch.tensor([supersample, supersample, 1.0], dtype=torch.float64))
    faces = torch.from_numpy(texture.faces).to(vertices.device)
    position = vertices[torch.from_numpy(texture.vertex_of).to(vertices.device).long()]
    raster = rasterize.rasterize(position, faces, w2c, scale @ K.double().cpu(), (size[0] * supersample, size[1] * supersample))
    seen = raster.face_index >= 0
    image = torch.from_numpy(texture.image).to(vertices.device).float() / 255
    uv = rasterize.interpolate(raster, faces, torch.from_numpy(texture.uv).to(vertices.device))
    fine = torch.zeros(*seen.shape, 4, device=vertices.device)
    fine[seen] = torch.cat([read(image, uv[seen] * len(image)), torch.ones_like(uv[seen][:, :1])], 1)
    coarse = fine.reshape(size[1], supersample, size[0], supersample, 4).mean((1, 3))
    return coarse[..., :3], coarse[..., 3]
