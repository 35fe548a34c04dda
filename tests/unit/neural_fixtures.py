"""Known shapes and motions for the tests of the neural part: a bending capsule, touching bars, and stages run once on the tiny synthetic capture."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from torch import Tensor

from instant_nk import config, layout
from instant_nk.fitting.window_files import CanonicalField
from instant_nk.io import artifact, graph, synthetic
from instant_nk.io import dataset as datasets
from instant_nk.io import motion as motions
from instant_nk.kernels.hash_encoding import HashSpec
from instant_nk.models import deformation_graph
from instant_nk.models.colour_field import ColourField
from instant_nk.models.occupancy import cell_centres
from instant_nk.models.residual_field import ResidualField
from instant_nk.models.sdf_field import SdfField, hull_distance
from instant_nk.models.warp import NodeMotion, Skeleton
from instant_nk.models.window_field import WindowField
from instant_nk.stages import canonical as canonical_stage
from instant_nk.stages import dataset as dataset_stage
from instant_nk.stages import field as field_stage
from instant_nk.stages import graph as graph_stage
from instant_nk.stages import mesh as mesh_stage
from tests.unit.capture_writer import BALLS, write_capture
from tests.unit.capture_writer import job as capture_job

SPEC = HashSpec.geometric(3, 2, 12, 4, 16)
WINDOWS = ("000000-000002", "000001-000003")  # of the tiny preset's four frames
SPEC_IN_TIME = HashSpec.geometric(2, 2, 12, 4, 8, times=(1, 2))


# Shapes


def capsule(points: Tensor) -> Tensor:
    """Signed distance [N] to a capsule of radius 0.2 around the y axis from -0.5 to 0.5."""
    axis = torch.zeros_like(points)
    axis[:, 1] = points[:, 1].clamp(-0.5, 0.5)
    return torch.linalg.vector_norm(points - axis, dim=1) - 0.2


def ball(points: Tensor) -> Tensor:
    """Signed distance [N] to a ball of radius 0.5 around the origin."""
    return torch.linalg.vector_norm(points, dim=1) - 0.5


def voxels(sdf: Callable[[Tensor], Tensor], resolution: int = 32) -> np.ndarray:
    """Voxels whose centres lie inside, bool [R, R, R]."""
    return (sdf(cell_centres(resolution)) < 0).reshape((resolution,) * 3).numpy()


def capsule_mesh() -> tuple[np.ndarray, np.ndarray]:
    mesh = trimesh.creation.capsule(height=1.0, radius=0.2, count=[24, 24])
    vertices = mesh.vertices[:, [1, 2, 0]]  # trimesh's runs along z from the origin's plane
    vertices = vertices - (vertices.min(0) + vertices.max(0)) / 2
    vertices, faces, _ = deformation_graph.surface.refine(vertices, mesh.faces, 0.08)
    return vertices, faces


def bars(gap: float = 0.3, spacing: float = 0.06) -> tuple[np.ndarray, np.ndarray]:
    """Two bars along y, `gap` apart along x between their inner sides; the first half of the vertices is the left one."""
    bar = trimesh.creation.box((0.2, 1.0, 0.2))
    parts = []
    for side in (-1, 1):
        vertices, faces, _ = deformation_graph.surface.refine(bar.vertices + [side * (gap / 2 + 0.1), 0, 0], bar.faces, spacing)
        parts.append((vertices, faces))
    return np.concatenate([v for v, _ in parts]), np.concatenate([parts[0][1], parts[1][1] + len(parts[0][0])])


# Motions


def bend(points: np.ndarray, amount: float) -> tuple[np.ndarray, np.ndarray]:
    """Points [N, 3] turned about the z axis by `amount` radians per unit of y, and each point's rotation [N, 3, 3]."""
    angle = amount * points[:, 1]
    c, s, zero, one = np.cos(angle), np.sin(angle), np.zeros_like(angle), np.ones_like(angle)
    rotation = np.stack([c, -s, zero, s, c, zero, zero, zero, one], -1).reshape(-1, 3, 3)
    return (rotation @ points[:, :, None])[..., 0], rotation


def bending(nodes: np.ndarray, amounts: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """Motion of nodes that bend: rotations [F, M, 3, 3] and translations [F, M, 3]."""
    moved = [bend(nodes, amount) for amount in amounts]
    return np.stack([r for _, r in moved]), np.stack([p - nodes for p, _ in moved])


def rigid(nodes: Tensor, rotation: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Node motion [1, M, 3, 3], [1, M, 3] of the rigid motion x -> R x + s."""
    return rotation.expand(1, len(nodes), 3, 3).contiguous(), (nodes @ rotation.T + shift - nodes)[None]


def skeleton_of(vertices: np.ndarray, faces: np.ndarray, dtype: torch.dtype = torch.float32, max_nodes: int = 40, anchors: int = 4) -> Skeleton:
    made = deformation_graph.build(vertices, faces, max_nodes=max_nodes, anchors=anchors)
    return Skeleton(
        torch.tensor(made.node_positions, dtype=dtype),
        torch.tensor(made.node_radii, dtype=dtype),
        torch.from_numpy(made.edges).long(),
        torch.tensor(made.edge_weights, dtype=dtype),
        made.spacing,
        torch.tensor(vertices, dtype=dtype),
        torch.from_numpy(made.vertex_anchors).long(),
    )


@functools.cache
def capsule_skeleton(dtype: torch.dtype = torch.float32) -> Skeleton:
    return skeleton_of(*capsule_mesh(), dtype=dtype)


# Fields


def surface_field(sdf: Callable[[Tensor], Tensor], resolution: int = 32) -> SdfField:
    """A fresh SDF field that starts at a shape's voxels."""
    field = SdfField(SPEC, 16, resolution)
    field.start_from(hull_distance(voxels(sdf, resolution)))
    return field


def window_field(
    sdf: Callable[[Tensor], Tensor],
    skeleton: Skeleton,
    rotations: Tensor,
    translations: Tensor,
    canonical_index: int | None = None,
    resolution: int = 32,
    bound: float = 0.05,
) -> WindowField:
    """A fresh window on a shape, f32."""
    field, colour = surface_field(sdf, resolution), ColourField(SPEC.width, 16)
    occupied = (field(cell_centres(resolution)).abs() < 4 / resolution).reshape((resolution,) * 3)
    fixed = torch.arange(len(rotations)) == (-1 if canonical_index is None else canonical_index)
    canonical = CanonicalField(field, colour, 64.0, occupied)
    motion = NodeMotion(rotations, translations, fixed)
    return WindowField(field, colour, ResidualField(SPEC_IN_TIME, 16, bound), motion, skeleton, 64.0, canonical_index, canonical.grid())


def stir(module: torch.nn.Module, size: float) -> None:
    """Random parameters of about `size`, so that nothing is zero by initialisation."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter) * size)


def slope(function: Callable[[Tensor], Tensor], x: Tensor, step: float = 1e-6) -> Tensor:
    """Derivative of a function of points [N, D] -> [N, ...] by central differences, [N, ..., D]."""
    columns = []
    for axis in range(x.shape[1]):
        offset = torch.zeros_like(x)
        offset[:, axis] = step
        columns.append((function(x + offset) - function(x - offset)) / (2 * step))
    return torch.stack(columns, -1)


# Captures


@functools.cache
def balls(base: Path) -> layout.Job:
    """A dataset of two balls seen by six cameras over three frames, at 40x32 pixels."""
    write_capture(base / "balls", frames=3, cameras=6, heldout=0)
    job = capture_job(base / "balls", base / "results_balls", dataset={"hull_resolution": 32})
    dataset_stage.run(job)
    return job


def balls_window(dataset: datasets.Dataset, still: bool = False) -> WindowField:
    """A fresh window over all frames of the two balls: the true shape of the canonical frame and, unless `still`, the true motion."""
    canonical = dataset.canonical_frame
    parts = []
    for index, (centre, radius, _) in enumerate(BALLS):
        ball = trimesh.creation.icosphere(3, radius)
        parts.append(ball.apply_translation(centre + [0, 0.04 * canonical * index, 0]))
    mesh = trimesh.util.concatenate(parts)
    mesh.apply_transform(dataset.scene_from_world)
    centres = [part.vertices.mean(0) for part in (mesh.submesh([np.arange(1280)], append=True), mesh.submesh([np.arange(1280, 2560)], append=True))]
    radii = [radius * dataset.scale for _, radius, _ in BALLS]

    def sdf(points: Tensor) -> Tensor:
        return torch.stack([torch.linalg.vector_norm(points - torch.tensor(c).to(points), dim=1) - r for c, r in zip(centres, radii)]).min(0).values

    skeleton = skeleton_of(mesh.vertices, mesh.faces, max_nodes=16)
    outer = (skeleton.nodes - torch.tensor(centres[1]).float()).norm(dim=1) < 1.1 * radii[1]
    frames = len(dataset.frames)
    translations = torch.zeros(frames, len(skeleton.nodes), 3)
    if not still:
        translations[:, outer, 1] = (torch.tensor(dataset.frames) - canonical)[:, None] * 0.04 * dataset.scale
    rotations = torch.eye(3).expand(frames, len(skeleton.nodes), 3, 3).contiguous()
    return window_field(sdf, skeleton, rotations, translations, dataset.frames.index(canonical))


@dataclasses.dataclass(frozen=True)
class Body:
    """The tiny synthetic capture, its configuration, and results of the first stages."""

    capture: Path
    job: layout.Job

    @property
    def dataset(self) -> datasets.Dataset:
        return datasets.load(self.job.paths.manifest)

    def truth(self, frame: int) -> trimesh.Trimesh:
        """The true surface at a frame, world units."""
        return trimesh.load(self.capture / "gt" / f"mesh_{frame:04d}.ply", process=False)

    def scene_truth(self, frame: int) -> trimesh.Trimesh:
        """The true surface at a frame, scene units."""
        mesh = self.truth(frame)
        mesh.apply_transform(self.dataset.scene_from_world)
        return mesh

    def variant(self, part: str | None = None, results: Path | None = None, **sections) -> layout.Job:
        """A job with other settings; with `results`, on a dataset of its own there."""
        base = {"capture": str(self.capture), "sequence": "body", "preset": "tiny", "frames": {"first": 0, "count": 4}}
        base |= {"dataset": {"canonical_frame": 2}}  # a frame of both windows
        base |= {"runtime": {"results": str(results or self.job.config.runtime.results), "device": "cpu", "threads": 1}}
        parsed = config.parse(config.merge(base, sections))
        job = layout.Job(parsed, layout.paths_of(parsed), "cpu", part)
        if results is not None and not job.paths.manifest.exists():
            dataset_stage.run(dataclasses.replace(job, part=None))
        return job


@contextlib.contextmanager
def interrupted_at(monkeypatch: pytest.MonkeyPatch, fit: type, step: int) -> Iterator[None]:
    """Within it, a fit of this class is interrupted as it begins the step, and must be."""
    whole = fit.step

    def dying(self):
        if self.done == step:
            raise KeyboardInterrupt
        return whole(self)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(fit, "step", dying)
        yield


@functools.cache
def body(base: Path) -> Body:
    """Dataset, canonical surface and graph of the tiny synthetic capture, and a motion that carries the nodes as the truth moves."""
    capture = base / "body"
    parsed = config.parse({"preset": "tiny"})
    synthetic.write(parsed, capture, depth=True)
    made = Body(capture, None)
    made = Body(capture, made.variant(results=base / "results_body"))
    canonical_stage.run(made.job)
    graph_stage.run(made.job)
    true_motion(made)
    return made


@functools.cache
def finished(base: Path) -> Body:
    """`body` with both windows trained for a few steps, and its animation."""
    made = body(base)
    for window in WINDOWS:
        field_stage.run(made.variant(window))
    for part in (*WINDOWS, None):
        mesh_stage.run(made.variant(part))
    return made


def true_motion(made: Body) -> None:
    """Write `motion.npz` with the rigid motion of the true surface around every node."""
    dataset, nodes = made.dataset, graph.load(made.job.paths.graph).node_positions.astype(np.float64)
    clip = np.stack([made.scene_truth(f).vertices for f in dataset.frames])
    rest = clip[dataset.frames.index(dataset.canonical_frame)]
    near = np.argsort(np.linalg.norm(nodes[:, None] - rest, axis=-1), axis=1)[:, :60]
    rotations, translations = np.zeros((len(clip), len(nodes), 3, 3)), np.zeros((len(clip), len(nodes), 3))
    for f, live in enumerate(clip):
        for m, rows in enumerate(near):
            a, b = rest[rows], live[rows]
            u, _, vt = np.linalg.svd((b - b.mean(0)).T @ (a - a.mean(0)))
            rotation = u @ np.diag([1, 1, np.sign(np.linalg.det(u @ vt))]) @ vt
            rotations[f, m], translations[f, m] = rotation, b.mean(0) - a.mean(0) + (rotation - np.eye(3)) @ (nodes[m] - a.mean(0))
    f = len(clip)
    zero = np.zeros(f, np.float32)
    motion = motions.Motion(
        np.array(dataset.frames, np.int32), rotations.astype(np.float32), translations.astype(np.float32), np.ones(f, bool), zero, zero + 1, zero, zero
    )
    motions.save(made.job.paths.motion, motion, artifact.make_header("motion", motions.FORMAT, "registration"))


def numbers(path: Path) -> dict:
    """A stage's metrics."""
    return json.loads(path.read_text())
