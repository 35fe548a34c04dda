"""From a signed distance field to a clean triangle mesh: evaluate near the surface only, extract, keep what belongs, decimate."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from instant_nk.errors import NumericalError
from instant_nk.geometry import surface
from instant_nk.models.occupancy import dilate

CORNER_MARGIN = 0.02  # of a cell: how near the surface comes to a grid's corner
SMALLEST_PART = 0.005  # share of the largest one's area from which on a separate piece of surface is a part of the subject (docs/decisions.md)
_ONE_AT_A_TIME = threading.Lock()  # fast_simplification keeps the mesh it works on in a place that all threads share


@torch.no_grad()
def sample_sdf(sdf: Callable[[Tensor], Tensor], occupied: Tensor, resolution: int, chunk: int = 1 << 17) -> np.ndarray:
    """SDF at the corners of a grid of `resolution` cells over [-1, 1]^3, exact near `occupied` cells, signed constants elsewhere.

    Args:
        occupied: bool [G, G, G], the cells near the surface.

    Returns:
        f32 [resolution + 1] * 3.
    """
    device = occupied.device
    near = dilate(occupied, 1)
    axis = torch.linspace(-1, 1, resolution + 1, device=device)
    cell = (((axis + 1) / 2) * near.shape[0]).long().clamp(0, near.shape[0] - 1)
    n = resolution + 1
    values = _far_signs(sdf, near)[cell][:, cell][:, :, cell].reshape(-1)
    rows = near[cell][:, cell][:, :, cell].reshape(-1).nonzero()[:, 0]
    for part in rows.split(chunk):
        values[part] = sdf(torch.stack([axis[part // (n * n)], axis[part // n % n], axis[part % n]], -1)).float()
    return values.reshape(n, n, n).cpu().numpy()


def _far_signs(sdf: Callable[[Tensor], Tensor], near: Tensor) -> Tensor:
    """+1 or -1 in every cell, f32 [G, G, G]: in each region of cells that are not near, the sign that prevails in the near cells around it."""
    from scipy.ndimage import label

    regions, count = label(~near.cpu().numpy())
    border = (near & dilate(~near, 1)).nonzero()
    sign = torch.zeros(near.shape, device=near.device)
    for part in border.split(1 << 17):
        sign[tuple(part.T)] = sdf((part + 0.5) * (2 / near.shape[0]) - 1).sign().float()
    known, votes = sign.cpu().numpy(), np.zeros(count + 1)
    for axis in range(3):
        low, high = (tuple(part if d == axis else slice(None) for d in range(3)) for part in (slice(None, -1), slice(1, None)))
        for here, there in ((low, high), (high, low)):
            touching = (regions[here] > 0) & (known[there] != 0)
            votes += np.bincount(regions[here][touching], weights=known[there][touching], minlength=count + 1)
    fill = np.where(votes < 0, -1.0, 1.0).astype(np.float32)
    fill[regions[0, 0, 0]] = 1.0  # the corner of the box is outside
    return torch.from_numpy(fill[regions]).to(near.device)


def isosurface(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Zero level of an SDF grid over [-1, 1]^3 as vertices f32 [V, 3] and outward faces i32 [T, 3].

    Values at corners count as at least CORNER_MARGIN of a cell: a surface through a corner would make triangles without area around it.

    Raises:
        NumericalError: the field has no zero crossing.
    """
    from skimage.measure import marching_cubes

    below = values < 0
    if not below.any() or not (values > 0).any():
        raise NumericalError("the signed distance field has no zero crossing, so there is no surface to extract. Check masks and box with 'instant-nk check'.")
    part = tuple(_around(below.any(tuple(other for other in range(3) if other != axis))) for axis in range(3))
    size, values = 2 / (values.shape[0] - 1), values[part]
    away = np.float32(CORNER_MARGIN * size)
    apart = np.where(np.abs(values) < away, np.copysign(away, values), values)
    vertices, faces, _, _ = marching_cubes(apart, 0.0, gradient_direction="descent")
    first = np.array([s.start for s in part])
    return ((vertices.astype(np.float64) + first) * size - 1).astype(np.float32), faces.astype(np.int32)


def _around(inside: np.ndarray) -> slice:
    """From before the first true value to after the last: outside of it nothing crosses zero, and most of the box is outside."""
    rows = np.flatnonzero(inside)
    return slice(max(int(rows[0]) - 1, 0), int(rows[-1]) + 2)


def keep_components(vertices: np.ndarray, faces: np.ndarray, share: float = SMALLEST_PART) -> tuple[np.ndarray, np.ndarray]:
    """Connected components of at least `share` of the largest one's area, unused vertices dropped.

    One that is turned inside out, and so bounds a hole within another, is nothing that anybody sees, and is dropped too.
    """
    part = surface.components(len(vertices), faces)[faces[:, 0]]
    a, b, c = vertices[faces].astype(np.float64).transpose(1, 0, 2)
    cross = np.cross(b - a, c - a)
    sizes = np.bincount(part, weights=np.linalg.norm(cross, axis=1))
    volumes = np.bincount(part, weights=((a - vertices.mean(0)) * cross).sum(1))
    largest = np.arange(len(sizes)) == sizes.argmax()
    faces = faces[(largest | ((sizes >= share * sizes.max()) & (volumes > 0)))[part]]
    used, flat = np.unique(faces, return_inverse=True)
    return vertices[used], flat.reshape(-1, 3).astype(np.int32)


def decimate(vertices: np.ndarray, faces: np.ndarray, target_faces: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Quadric decimation to `target_faces`; returned as it is when it has fewer. Threads may call it at once."""
    if target_faces is None or len(faces) <= target_faces:
        return vertices, faces
    import fast_simplification

    with _ONE_AT_A_TIME:
        vertices, faces = fast_simplification.simplify(vertices, faces, target_reduction=1 - target_faces / len(faces))
    return vertices.astype(np.float32), faces.astype(np.int32)


@torch.no_grad()
def snap(sdf: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]], vertices: Tensor, limit: float, iterations: int = 3) -> tuple[Tensor, Tensor]:
    """Vertices moved onto the zero level along the gradient, at most `limit` in all, and their unit normals.

    Args:
        sdf: gives distance [N], gradient [N, 3] and features.
    """
    start = vertices
    for _ in range(iterations):
        distance, gradient, _ = sdf(vertices)
        vertices = vertices - (distance / (gradient**2).sum(-1).clamp_min(0.25))[:, None] * gradient
        offset = vertices - start
        vertices = start + offset * (limit / torch.linalg.vector_norm(offset, dim=-1, keepdim=True).clamp_min(limit))
    gradient = sdf(vertices)[1]
    return vertices, torch.nn.functional.normalize(gradient, dim=-1)
