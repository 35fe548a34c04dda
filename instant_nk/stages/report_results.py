"""What the report reads: the artifacts of the earlier stages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from instant_nk import layout
from instant_nk.geometry.texture import Texture
from instant_nk.io import dataset, graph, mesh, metrics, motion
from instant_nk.io.dataset import Dataset
from instant_nk.io.graph import Graph
from instant_nk.io.mesh import Animation, Mesh
from instant_nk.io.metrics import StageCost
from instant_nk.io.motion import Motion
from instant_nk.layout import Job


class Renders(Protocol):
    """What draws a frame from a camera; see `MeshRenderer.render`."""

    def render(self, c2w: np.ndarray, K: np.ndarray, size: tuple[int, int], frame: int) -> dict[str, Any]: ...


@dataclass
class Results:
    """Everything of a run that the report reads; `texture` is None where the mesh stage baked none."""

    dataset: Dataset
    animation: Animation
    graph: Graph
    motion: Motion
    canonical: Mesh
    costs: dict[str, StageCost]
    texture: Texture | None = None


def load(job: Job) -> Results:
    """Read what the earlier stages wrote."""
    data = dataset.load(job.paths.manifest)
    config, frames = job.config, list(data.frames)
    windows = layout.windows(frames, config.field.window_frames, config.field.overlap)
    parts = {"observation": layout.batches(frames, config.observation.frames_per_job), "field": windows, "mesh": windows}
    return Results(
        data,
        mesh.load_animation(job.paths.animation),
        graph.load(job.paths.graph),
        motion.load(job.paths.motion),
        mesh.load(job.paths.canonical_mesh),
        metrics.stage_costs(job.paths, parts),
        mesh.load_texture(job.paths.texture) if job.paths.texture.is_file() else None,
    )
