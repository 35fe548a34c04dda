"""Stage 7 in modes that do not track: a surface per frame, each with a topology of its own, and no animation."""

from __future__ import annotations

import logging
import shutil

import numpy as np
import torch

from instant_nk import layout, log
from instant_nk.fitting import meshing, window_files
from instant_nk.io import artifact, surfaces
from instant_nk.io import dataset as dataset_io
from instant_nk.io.export import ply
from instant_nk.io.mesh import Animation
from instant_nk.io.surfaces import FrameSurface
from instant_nk.layout import Job
from instant_nk.models.live_field import LiveField

logger = logging.getLogger(__name__)

CELLS_PER_GRID_CELL = 2.5  # of the isosurface's grid per cell of the occupancy grid, as the canonical stage's presets have it
BLOCK = 1 << 16  # vertices coloured at once


def extract_window(job: Job) -> None:
    """The surface of every frame of one window, world units: `7_mesh/windows/{window}.npz`."""
    measure = log.measure()
    dataset = dataset_io.load(job.paths.manifest)
    field, _ = window_files.open_window(job.paths, dataset, job.part, job.device, job.config.field.dyna_mode)
    frames = window_files.window_frames(dataset, job.part)
    found = {frame: extract(field, index, dataset) for index, frame in log.progress(list(enumerate(frames)), f"mesh {job.part}", logger)}
    inputs = {"field": artifact.file_hash(job.paths.field(job.part))}
    surfaces.save(job.paths.mesh_window(job.part), found, artifact.make_header(surfaces.KIND, surfaces.FORMAT, "mesh", _settings(job), inputs))
    counts = [len(surface.vertices) for surface in found.values()]
    artifact.save_json(job.paths.mesh_window(job.part).with_suffix(".json"), {**measure.numbers(), "tracked": False, "vertices_mean": float(np.mean(counts))})


def _settings(job: Job) -> dict:
    return layout.stage_config(job.config, "mesh")


@torch.no_grad()
def extract(field: LiveField, index: int, dataset: dataset_io.Dataset) -> FrameSurface:
    """The zero level at one frame, coloured as seen head-on."""
    occupied = field.occupied[index]
    device = occupied.device

    def frame_of(points: torch.Tensor) -> torch.Tensor:
        return torch.full((len(points),), index, device=device)

    values = meshing.sample_sdf(lambda x: field.sdf(x, frame_of(x)), occupied, round(CELLS_PER_GRID_CELL * len(occupied)))
    vertices, faces = meshing.keep_components(*meshing.isosurface(values))
    colours = []
    for part in torch.from_numpy(vertices).to(device).split(BLOCK):
        _, gradient, features = field.sdf.with_gradient(part, frame_of(part))
        normals = torch.nn.functional.normalize(gradient, dim=-1)
        colours.append(field.colour(part, normals, -normals, features).cpu().numpy())
    return FrameSurface(dataset.to_world(vertices), faces.astype(np.int32), np.concatenate(colours))


def join(job: Job) -> None:
    """Each frame's surface from the window in which it lies deepest: `frames/{frame}.ply`, then `surfaces.json`."""
    measure = log.measure()
    logger.warning("%s", window_files.untracked(job.config.field.dyna_mode))
    dataset = dataset_io.load(job.paths.manifest)
    windows = window_files.windows_of(dataset.frames, job.config.field)
    remove_tracked(job)
    opened: tuple[str, dict[int, FrameSurface]] = ("", {})
    counts = {}
    with artifact.atomic_folder(job.paths.mesh / "frames", r"\d{6,}\.ply") as aside:
        for frame in dataset.frames:
            window = window_files.deepest(windows, frame)
            if opened[0] != window:
                opened = (window, surfaces.load(job.paths.mesh_window(window)))
            ply.write_frame(aside / f"{frame:06d}.ply", alone(opened[1][frame], frame), 0)
            counts[str(frame)] = len(opened[1][frame].vertices)
    header = artifact.make_header(surfaces.KIND, surfaces.FORMAT, "mesh", _settings(job), {w: artifact.file_hash(job.paths.mesh_window(w)) for w in windows})
    numbers = {"tracked": False, "dyna_mode": job.config.field.dyna_mode, "vertices_per_frame": list(counts.values())}
    artifact.save_json(job.paths.surfaces, {"header": header, **measure.numbers(), **numbers})


def alone(surface: FrameSurface, frame: int) -> Animation:
    """A surface as an animation of its one frame, for what draws and writes those; its quality is unknown and zero."""
    nothing = np.zeros((1, len(surface.vertices)), np.float32)
    return Animation(np.array([frame], np.int32), surface.vertices[None], surface.faces, surface.colours, nothing, nothing, nothing.astype(np.int32))


def remove_tracked(job: Job) -> None:
    """Remove what an earlier run of `deform` exported: it belongs to other fields."""
    folder = job.paths.mesh
    for path in (job.paths.animation, job.paths.texture, folder / "metrics.json", *folder.glob("animation*"), *folder.glob("texture.*")):
        path.unlink(missing_ok=True)
    for path in (folder / "obj", folder / "texture"):
        shutil.rmtree(path, ignore_errors=True)
