"""Small known shapes and motions for the tests of graph and registration. Arrays f64, lengths of order one."""

from __future__ import annotations

import numpy as np

from instant_nk.geometry import surface
from instant_nk.io.mesh import Mesh
from instant_nk.io.observation import Observation


def tube(length: float = 2.0, radius: float = 0.15, along: int = 48, around: int = 20, caps: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """A tube along x from 0 to `length`, closed by a fan at each end or open; faces outward."""
    x, angle = np.linspace(0, length, along), np.linspace(0, 2 * np.pi, around, endpoint=False)
    vertices = np.stack([np.repeat(x, around), radius * np.tile(np.cos(angle), along), radius * np.tile(np.sin(angle), along)], 1)
    i, j = (g.ravel() for g in np.meshgrid(np.arange(along - 1), np.arange(around), indexing="ij"))
    a, b, c, d = i * around + j, i * around + (j + 1) % around, (i + 1) * around + j, (i + 1) * around + (j + 1) % around
    faces = np.concatenate([np.stack([a, b, c], 1), np.stack([b, d, c], 1)])
    if caps:
        n, ring, last = len(vertices), np.arange(around), (along - 1) * around + np.arange(around)
        vertices = np.concatenate([vertices, [[0, 0, 0], [length, 0, 0]]])
        faces = np.concatenate(
            [faces, np.stack([np.roll(ring, -1), ring, np.full(around, n)], 1), np.stack([last, np.roll(last, -1), np.full(around, n + 1)], 1)]
        )
    return vertices, faces


def sphere(radius: float = 0.4, rings: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """A ball whose poles lie on x."""
    theta = np.linspace(0, np.pi, rings + 1)[1:-1]
    phi = np.linspace(0, 2 * np.pi, 2 * rings, endpoint=False)
    t, p = (g.ravel() for g in np.meshgrid(theta, phi, indexing="ij"))
    vertices = radius * np.stack([-np.cos(t), np.sin(t) * np.cos(p), np.sin(t) * np.sin(p)], 1)
    _, faces = tube(along=rings - 1, around=2 * rings)
    return np.concatenate([vertices, [[-radius, 0, 0], [radius, 0, 0]]]), faces


def bent(points: np.ndarray, angle: float, start: float = 0.8, end: float = 1.2) -> np.ndarray:
    """Points along x bent in the xy plane by `angle` radians between x = start and end, arc length kept along the axis."""
    if not angle:
        return points
    x, y, z = points.T
    curvature = angle / (end - start)
    turn = np.clip((x - start) * curvature, 0, angle)
    inside = np.clip(x, start, end) - start
    centre_x = np.minimum(x, start) + np.sin(inside * curvature) / curvature + np.maximum(x - end, 0) * np.cos(turn)
    centre_y = (1 - np.cos(inside * curvature)) / curvature + np.maximum(x - end, 0) * np.sin(turn)
    return np.stack([centre_x - y * np.sin(turn), centre_y + y * np.cos(turn), z], 1)


def stripes(points: np.ndarray) -> np.ndarray:
    """A smooth colour per rest position, sRGB in [0, 1]."""
    return 0.5 + 0.4 * np.sin(points * np.array([9.0, 7.0, 8.0]) + np.array([0.0, 1.0, 2.0]))


def mesh_of(vertices: np.ndarray, faces: np.ndarray) -> Mesh:
    normals = surface.vertex_normals(vertices, faces)
    return Mesh(vertices.astype(np.float32), faces.astype(np.int32), normals.astype(np.float32), stripes(vertices).astype(np.float32))


def observed(live: np.ndarray, faces: np.ndarray, rest: np.ndarray, count: int = 3000, seed: int = 1, coloured: bool = False) -> Observation:
    """Random points of a posed mesh, so that which is which is not known; grey unless `coloured` by rest position."""
    face, bary = surface.sample(live, faces, count, seed)
    points = (live[faces[face]] * bary[..., None]).sum(1)
    normals = surface.face_normals(live, faces)[face]
    colours = stripes((rest[faces[face]] * bary[..., None]).sum(1)) if coloured else np.full((count, 3), 0.5)
    order = np.random.default_rng(seed).permutation(count)
    ones = np.ones(count, np.float32)
    return Observation(*(x[order].astype(np.float32) for x in (points, normals, colours)), ones, np.full(count, 3, np.int32), np.zeros(count, bool))
