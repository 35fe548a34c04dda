"""What the report reads: the artifacts of the earlier stages."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from instant_nk import layout
from instant_nk.errors import ContractError
from instant_nk.geometry.texture import Texture
from instant_nk.io import dataset, graph, mesh, metrics, motion
from instant_nk.io.dataset import Dataset
from instant_nk.io.export.common import check_frames
from instant_nk.io.graph import Graph
from instant_nk.io.mesh import Animation, Mesh
from instant_nk.io.metrics import StageCost
from instant_nk.io.motion import Motion
from instant_nk.layout import Job, Paths


class Renders(Protocol):
    """What draws a frame from a camera; see `MeshRenderer.render`."""

    def render(self, c2w: np.ndarray, K: np.ndarray, size: tuple[int, int], frame: int) -> dict[str, Any]: ...


@dataclass
class Results:
    """Everything of a run that the report reads.

    Attributes:
        texture: None where the mesh stage baked none.
        frame_textures: the picture that replaces the texture's at a frame, by frame number; empty where one serves all frames.
    """

    dataset: Dataset
    animation: Animation
    graph: Graph
    motion: Motion
    canonical: Mesh
    costs: dict[str, StageCost]
    texture: Texture | None = None
    frame_textures: dict[int, Path] = field(default_factory=dict)


def load(job: Job) -> Results:
    """Read what the earlier stages wrote."""
    data = dataset.load(job.paths.manifest)
    config, frames = job.config, list(data.frames)
    windows = layout.windows(frames, config.field.window_frames, config.field.overlap)
    parts = {"observation": layout.batches(frames, config.observation.frames_per_job), "field": windows, "mesh": windows}
    animation = mesh.load_animation(job.paths.animation)
    check_frames(animation, frames, job.paths.animation)
    return Results(
        data,
        animation,
        graph.load(job.paths.graph),
        motion.load(job.paths.motion),
        mesh.load(job.paths.canonical_mesh),
        metrics.stage_costs(job.paths, parts),
        mesh.load_texture(job.paths.texture) if job.paths.texture.is_file() else None,
        frame_textures(job.paths, frames),
    )


def frame_textures(paths: Paths, frames: list[int]) -> dict[int, Path]:
    """Every frame's own texture, where the mesh stage baked them.

    Raises:
        ContractError: some frames have one and others not.
    """
    found = {frame: path for frame in frames if (path := paths.texture_frame(frame)).is_file()}
    missing = [frame for frame in frames if frame not in found]
    if found and missing:
        raise ContractError(
            f"{paths.texture_frame(missing[0]).parent}: the textures of frames {missing} are missing. Re-run stage 'mesh' (--forcerun mesh_join)."
        )
    return found
