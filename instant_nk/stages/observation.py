"""Stage 4: evidence of the live surface at each frame of a batch: from a quick neural surface, depth maps or given meshes."""

from __future__ import annotations

import contextlib
import functools
import logging
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from instant_nk import layout, log
from instant_nk.errors import DataError
from instant_nk.fitting import meshing
from instant_nk.fitting.lookahead import Lookahead
from instant_nk.fitting.rays import PixelSource
from instant_nk.fitting.surface_fit import Surface, SurfaceFit, SurfaceFitConfig
from instant_nk.fitting.trainer import How, train_together, wants_mixed, wants_recording
from instant_nk.fitting.visibility import observed_colours, seen_by
from instant_nk.geometry import spaces
from instant_nk.geometry import surface as surfaces
from instant_nk.geometry.depth_map import back_project
from instant_nk.io import artifact, given_mesh
from instant_nk.io import dataset as dataset_io
from instant_nk.io import observation as observation_io
from instant_nk.io.dataset import Dataset
from instant_nk.io.observation import Observation
from instant_nk.kernels.hash_encoding import HashSpec
from instant_nk.layout import Job
from instant_nk.models.sdf_field import hull_distance

logger = logging.getLogger(__name__)

LEVELS, FEATURES, BASE, HIDDEN = 6, 4, 12, 32  # of the quick surface: its config says only how long and how fine
LEARNING_RATE, EIKONAL_WEIGHT, INV_STD = 2e-2, 0.05, 256.0  # twice the canonical step size and a sharp start: a few hundred steps have to carve the hull
TOGETHER = 4  # frames trained side by side on a GPU
LONGEST_EDGE = 0.05  # scene units, of given meshes: about a node's distance to its neighbours
DEPTH_EDGE = 0.02  # scene units: a larger step in depth between neighbouring pixels is an occlusion, not a surface,
STEEPEST = 3.0  # unless it is less than as many pixels are wide there


def run(job: Job) -> None:
    """Write `4_observation/{frame}.npz` for every frame of the job's batch, then the batch's `.json`."""
    measure = log.measure()
    dataset = dataset_io.load(job.paths.manifest)
    header = artifact.make_header(
        "observation", observation_io.FORMAT, "observation", layout.stage_config(job.config, "observation"), {"dataset": artifact.file_hash(job.paths.manifest)}
    )
    frames = layout.select(list(dataset.frames), job.part)
    forget_others(job)
    begin = PROVIDERS[job.config.observation.provider](job, dataset, frames)
    metrics: dict[str, dict] = {}

    def finish(frame: int, rest: Callable[[], tuple[Observation, dict]]) -> None:
        observation, numbers = rest()
        if not len(observation.points):
            raise DataError(f"frame {frame}: no surface was observed (provider {job.config.observation.provider}). Look at its masks with 'instant-nk check'.")
        observation_io.save(job.paths.observation(frame), observation, header)
        metrics[str(frame)] = {"points": len(observation.points), **numbers}

    # What is done with frames' surfaces is done while the next ones train.
    side, progress = together(job), log.Progress(f"observation {job.part}", len(frames), logger)
    with contextlib.ExitStack() as stack:
        places = [stack.enter_context(Beside(job.device)) for _ in range(side)]
        for group in (frames[i : i + side] for i in range(0, len(frames), side)):
            rests = begin(group)
            for place in places:
                place.wait()
            for place, frame, rest in zip(places, group, rests):
                place.start(functools.partial(finish, frame, rest))
            progress.update(frames.index(group[-1]) + 1)
        for place in places:
            place.wait()
    artifact.save_json(job.paths.observation_batch(job.part), {**measure.numbers(), "frames": {str(frame): metrics[str(frame)] for frame in frames}})


class Beside:
    """One thing at a time done beside the training: in a thread, and on a GPU in a stream of its own.

    In the training's stream, each number that is read would wait for a dozen steps. Thread and stream stay the same for all frames, because cuBLAS
    keeps 32 MiB for every pair of them that it has met.
    """

    def __init__(self, device: str):
        self.thread, self.running = ThreadPoolExecutor(1), None
        self.stream = torch.cuda.Stream(priority=-1) if device == "cuda" else None  # of another pool than those that recordings are made on

    def __enter__(self) -> Beside:
        return self

    def __exit__(self, *_: object) -> None:
        self.thread.shutdown()

    def start(self, work: Callable[[], None]) -> None:
        """Begin, after all that the current stream was given so far."""
        if self.stream:
            self.stream.wait_stream(torch.cuda.current_stream())
        self.running = self.thread.submit(self._run, work)

    def wait(self) -> None:
        """Return when nothing is running; an error of the work is raised here."""
        running, self.running = self.running, None
        if running:
            running.result()

    def _run(self, work: Callable[[], None]) -> None:
        with torch.cuda.stream(self.stream) if self.stream else contextlib.nullcontext():
            work()


def together(job: Job) -> int:
    """Frames that are trained, or read, side by side: on a CPU one training takes all there is."""
    return TOGETHER if wants_recording(job) else 1


def forget_others(job: Job) -> None:
    """Take back the word of earlier batches that were cut otherwise: their frames are written anew, and they would not be done again."""
    first, last = layout.part_frames(job.part)
    for marker in job.paths.observation_batch(job.part).parent.glob("*-*.json"):
        begin, end = layout.part_frames(marker.stem)
        if marker.stem != job.part and begin <= last and first <= end:
            marker.unlink(missing_ok=True)


class NeuralProvider:
    """A quick neural surface started from the frame's own visual hull. `provider(frames)` trains some and returns how to extract their observations."""

    def __init__(self, job: Job, dataset: Dataset, frames: list[int]):
        self.job, self.dataset, self.config = job, dataset, job.config.observation
        self.start = Lookahead(self.prepare, frames, together(job))
        self.how = How(wants_mixed(job.config.runtime.mixed_precision, job.device), None, wants_recording(job))

    def prepare(self, frame: int) -> tuple[PixelSource, np.ndarray, np.ndarray]:
        """Pixels, hull and distance to it: what the CPU does for a frame before the training, beside the training of those before."""
        hull = self.dataset.hull(frame)
        return PixelSource(self.dataset, [frame], self.config.max_pixels, self.job.device), hull, hull_distance(hull)

    def __call__(self, frames: list[int]) -> list[Callable[[], tuple[Observation, dict]]]:
        fits = [self.fit(frame) for frame in frames]
        train_together([fit.training() for fit in fits], torch.device(self.job.device))
        return [functools.partial(self.extract, frame, fit.surface()) for frame, fit in zip(frames, fits)]

    def fit(self, frame: int) -> SurfaceFit:
        """A frame's training, not begun."""
        c, job = self.config, self.job
        spec = HashSpec.geometric(LEVELS, FEATURES, c.log2_table_size, BASE, c.finest_resolution)
        pixels, hull, distance = self.start(frame)
        fit_config = SurfaceFitConfig(c.steps, c.samples_per_step, spec, HIDDEN, hull.shape[0], LEARNING_RATE, EIKONAL_WEIGHT, c.mask_weight, INV_STD)
        return SurfaceFit(fit_config, pixels, hull, job.device, job.config.runtime.seed + frame, f"frame {frame}", how=self.how, distance=distance)

    def extract(self, frame: int, surface: Surface) -> tuple[Observation, dict]:
        """Oriented points of a trained surface, and what the training ended at."""
        resolution, device = self.config.surface_resolution, self.job.device
        values = meshing.sample_sdf(surface.sdf, surface.occupied, resolution)
        vertices, faces = meshing.keep_components(*meshing.isosurface(values))
        vertices, faces = meshing.decimate(vertices, faces, 2 * self.config.max_points)
        points, normals = meshing.snap(surface.sdf.with_gradient, torch.from_numpy(vertices).to(device), limit=2.0 / resolution)
        observation = _from_mesh(self.dataset, frame, points.cpu().numpy(), faces, normals.cpu().numpy(), device)
        return observation, {"psnr_db": surface.history["psnr_db"][-1], "inv_std": surface.history["inv_std"][-1]}


def observe_meshes(job: Job, dataset: Dataset, frame: int) -> tuple[Observation, dict]:
    """A given mesh per frame, world coordinates, found by the number in its name."""
    folder = Path(job.config.observation.folder)
    if not folder.is_dir():
        raise DataError(f"observation.folder: {folder}: no such folder. Give one that holds a mesh per frame, e.g. mesh_{frame:04d}.ply.")
    found = {
        int(re.findall(r"\d+", p.stem)[-1]): p
        for p in sorted(folder.glob("*"))
        if p.suffix.lower() in (".ply", ".obj", ".stl", ".glb") and re.search(r"\d", p.stem)
    }
    if frame not in found:
        raise DataError(
            f"observation.folder: {folder}: no mesh for frame {frame}; found frames {sorted(found)[:8]}. Name files by frame number, e.g. mesh_{frame:04d}.ply."
        )
    vertices, faces = given_mesh.load(found[frame], "observation.folder", dataset, frame)
    vertices, faces = meshing.decimate(vertices, faces, 2 * job.config.observation.max_points)
    longest = 3 * float(np.sqrt(surfaces.face_areas(vertices, faces).sum() / job.config.observation.max_points))
    vertices, faces, _ = surfaces.refine(vertices, faces, max(longest, LONGEST_EDGE))  # the vertices are the evidence: a large face has none within
    used, faces = np.unique(faces, return_inverse=True)
    vertices, faces = vertices[used], faces.reshape(-1, 3)
    return _from_mesh(dataset, frame, vertices, faces, surfaces.vertex_normals(vertices, faces), job.device), {}


def _from_mesh(dataset: Dataset, frame: int, vertices: np.ndarray, faces: np.ndarray, normals: np.ndarray, device: str) -> Observation:
    """Vertices of a live mesh with what the cameras see there; vertices no camera sees keep a low confidence."""
    vertices, faces = vertices.astype(np.float32), faces.astype(np.int32)
    seen = seen_by(dataset, vertices, faces, device)
    n_views = seen.sum(0).astype(np.int32)
    boundary = np.zeros(len(vertices), bool)
    boundary[surfaces.boundary_vertices(vertices, faces)] = True
    confidence = (0.1 + 0.9 * np.minimum(n_views, 3) / 3).astype(np.float32)
    colours = observed_colours(dataset, frame, vertices, normals, seen, device).astype(np.float32)
    return Observation(vertices, normals.astype(np.float32), colours, confidence, n_views, boundary, faces)


def observe_depth(job: Job, dataset: Dataset, frame: int) -> tuple[Observation, dict]:
    """Oriented points from all depth maps, thinned to `max_points` on a voxel grid."""
    poses = spaces.transform_poses(dataset.scene_from_world, dataset.cameras.c2w)
    parts = [_depth_points(dataset, c, frame, poses[c]) for c in range(len(dataset.cameras))]
    points, normals, colours, edge = (np.concatenate(p) for p in zip(*parts))
    camera = np.repeat(np.arange(len(parts)), [len(p[0]) for p in parts])
    area = max(len(np.unique(np.floor(points * 32).astype(np.int32), axis=0)), 1) / 32**2
    voxel = np.sqrt(area / job.config.observation.max_points) * 1.2
    _, cell = np.unique(np.floor(points / voxel).astype(np.int64), axis=0, return_inverse=True)
    cell = cell.reshape(-1)
    count = np.bincount(cell)
    n_views = np.bincount(np.unique(cell * len(parts) + camera) // len(parts))  # cameras with a pixel there

    def mean(values: np.ndarray) -> np.ndarray:
        return np.stack([np.bincount(cell, weights=v) for v in values.T], 1) / count[:, None]

    normal = mean(normals)
    length = np.linalg.norm(normal, axis=1)
    keep = length > 0.5  # opposite sides in one voxel have no common normal
    boundary = np.bincount(cell, weights=edge) > 0.5 * count
    observation = Observation(
        mean(points)[keep].astype(np.float32),
        (normal / np.maximum(length, 1e-9)[:, None])[keep].astype(np.float32),
        mean(colours)[keep].astype(np.float32),
        np.minimum(1, 0.25 + count / 8)[keep].astype(np.float32),
        n_views[keep].astype(np.int32),
        boundary[keep],
    )
    return observation, {"depth_pixels": len(points)}


def _depth_points(dataset: Dataset, camera: int, frame: int, pose: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Scene points, normals, colours and occlusion-edge flags of one depth map's pixels inside the mask."""
    depth = dataset.depth_map(camera, frame) * dataset.scale
    rgba = dataset.image(camera, frame)
    if depth.shape != rgba.shape[:2]:
        raise DataError(
            f"camera {dataset.cameras.names[camera]}, frame {frame}: wanted a depth map of {rgba.shape[1]}x{rgba.shape[0]} pixels like the image, got {depth.shape[1]}x{depth.shape[0]}."
        )
    local = back_project(depth, dataset.cameras.K[camera])
    valid = (depth > 0) & (rgba[..., 3] > 127)
    inner = valid.copy()
    inner[0], inner[-1], inner[:, 0], inner[:, -1] = False, False, False, False
    step = np.zeros_like(depth)
    for axis, shift in ((0, 1), (0, -1), (1, 1), (1, -1)):
        step = np.maximum(step, np.where(np.roll(valid, shift, axis), np.abs(np.roll(depth, shift, axis) - depth), np.inf))
    normal = np.cross(np.roll(local, -1, 0) - np.roll(local, 1, 0), np.roll(local, -1, 1) - np.roll(local, 1, 1))
    occluded = np.maximum(DEPTH_EDGE, STEEPEST * depth / min(dataset.cameras.K[camera][0, 0], dataset.cameras.K[camera][1, 1]))
    inner &= step < occluded * 2
    edge = (step >= occluded)[inner]
    length = np.linalg.norm(normal[inner], axis=1)
    n = normal[inner] / np.maximum(length, 1e-12)[:, None]
    n *= -np.sign((n * local[inner]).sum(1))[:, None]  # towards the camera
    return spaces.transform_points(pose, local[inner]), n @ pose[:3, :3].T, rgba[inner][:, :3] / 255.0, edge.astype(float)


Begin = Callable[[list[int]], list[Callable[[], tuple[Observation, dict]]]]
"""Given some frames, does what must be done before the next ones, and returns the rest of the work for each, which may run beside that."""


def _each(observe: Callable[[Job, Dataset, int], tuple[Observation, dict]]) -> Callable[[Job, Dataset, list[int]], Begin]:
    """A provider that has nothing to do before the next frames."""
    return lambda job, dataset, _: lambda frames: [functools.partial(observe, job, dataset, frame) for frame in frames]


PROVIDERS: dict[str, Callable[[Job, Dataset, list[int]], Begin]] = {
    "neural": NeuralProvider,
    "depth": _each(observe_depth),
    "meshes": _each(observe_meshes),
}
