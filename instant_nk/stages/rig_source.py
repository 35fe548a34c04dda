"""`registration.source: rig`: the rig or body model the user gives, as motion of this sequence's nodes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from instant_nk.errors import ConfigError
from instant_nk.fitting import rig_motion
from instant_nk.geometry.neighbours import NearestPoints
from instant_nk.geometry.spaces import transform_points
from instant_nk.io import body_model, dataset, ed_folder, ed_import, graph, mesh, rig
from instant_nk.layout import Job

BODY_MODELS = (".npz", ".pkl", ".pickle")


def read(job: Job, frames: list[int], first: int) -> rig.Rig:
    """The rig at the given frames in the capture's world, its first key at absolute frame `first` unless the config says otherwise."""
    found, transform = _read(job, frames, first), job.config.registration.rig_transform
    if transform is None:
        return found
    return dataclasses.replace(found, matrices=ed_import.read_transform(transform) @ found.matrices)


def _read(job: Job, frames: list[int], first: int) -> rig.Rig:
    c = job.config.registration
    path = Path(c.folder)
    first = first if c.rig_first_frame is None else c.rig_first_frame
    if path.suffix.lower() not in BODY_MODELS:
        if c.rig_poses is not None:
            raise ConfigError(f"config key 'registration.rig_poses': poses move a body model (.npz); {path} holds its own animation. Leave rig_poses null.")
        return rig.load_gltf(path, frames, first, c.rig_fps)
    if c.rig_poses is None:
        raise ConfigError(f"config key 'registration.rig_poses': wanted an .npz of poses, because {path} is a body model without motion; got null.")
    return body_model.load(path, c.rig_poses, frames, first, c.rig_fps)


def motion_of(job: Job, data: dataset.Dataset, nodes: graph.Graph) -> tuple[np.ndarray, np.ndarray]:
    """Rotations f64 [F, M, 3, 3] and translations f64 [F, M, 3] of the nodes at the sequence's frames, node-centred, scene units.

    Raises:
        DataError: the rig cannot be read, does not cover the frames, or is not where the canonical surface is.
    """
    frames = list(data.frames)
    found = read(job, sorted({*frames, data.canonical_frame}), frames[0])
    canonical = mesh.load(job.paths.canonical_mesh)
    nearest = _nearest(canonical.vertices, nodes.node_positions)
    world = transform_points(data.world_from_scene, nodes.node_positions)
    moved = rig_motion.node_motion(found, data.canonical_frame, world, canonical.normals[nearest].astype(np.float64))
    _, rotations, translations = ed_folder.to_scene(moved, data.scene_from_world)
    rows = [moved.frames.index(frame) for frame in frames]
    return rotations[rows], translations[rows]


def _nearest(vertices: np.ndarray, points: np.ndarray) -> np.ndarray:
    import torch

    index = NearestPoints(torch.from_numpy(vertices.astype(np.float64)))
    return index.query(torch.from_numpy(points.astype(np.float64)))[1][:, 0].numpy()
