"""Stage 5: the motion of all nodes over the sequence; one resumable job."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from instant_nk import log
from instant_nk.errors import ContractError, DataError
from instant_nk.fitting import frame_images, image_evidence, repeated, rig_motion
from instant_nk.fitting.correspondences import Target
from instant_nk.fitting.deformation_solver import Body, Pose
from instant_nk.fitting.lookahead import Lookahead
from instant_nk.fitting.registration import Fit, Options, Pictures, judge, rehearsals
from instant_nk.fitting.registration_agreement import settle_sequence
from instant_nk.fitting.registration_sequence import chains, register_sequence
from instant_nk.io import artifact, dataset, ed_folder, graph, mesh, motion, observation
from instant_nk.kernels import ahead
from instant_nk.layout import Job
from instant_nk.stages import rig_source

logger = logging.getLogger(__name__)

MAX_VIEWS = 24  # views compared with the moved surface; more add time, hardly accuracy
MAX_SIDE = 512  # images are reduced to this for registration, pixels
AT_REST = 0.1  # node spacings, or radians, that nodes of an external tracker may be from rest at the canonical frame
SAVING = 0.05  # share of the time that keeping what is done may take: it is written whole, and grows with the clip


def run(job: Job) -> None:
    """Estimate the motion with our solver, take it from a rig, or read it from an external tracker's ED folder."""
    watch = log.measure()
    data, nodes = dataset.load(job.paths.manifest), graph.load(job.paths.graph)
    sources = {"solver": _solve, "ed_folder": _read_ed_folder, "rig": _follow_rig}
    header = artifact.make_header("motion", motion.FORMAT, "registration", job.config.registration, _inputs(job, data))
    try:
        result = sources[job.config.registration.source](job, data, nodes, header)
    finally:
        repeated.forget()
    artifact.save_json(job.paths.registration / "motion.json", _metrics(result, nodes) | watch.numbers())
    motion.save(job.paths.motion, result, header)
    _partial(job).unlink(missing_ok=True)


def _partial(job: Job) -> Path:
    return job.paths.registration / "motion.partial.npz"


def _inputs(job: Job, data: dataset.Dataset) -> dict[str, str]:
    """Content hashes of all that the motion is made from, by name: an interrupted run is continued with the same only."""
    config = job.config.registration
    files = {"graph": job.paths.graph, "mesh": job.paths.canonical_mesh}
    if config.source == "solver" or (config.source == "rig" and config.rig_refine):
        files |= {f"{observation.INPUT}{frame}": job.paths.observation(frame) for frame in data.frames}
    for path in files.values():
        if not path.is_file():
            raise ContractError(f"{path}: is missing. Run the stage that writes it.")
    if config.source == "rig":
        given = {"rig": config.folder, "rig_poses": config.rig_poses, "rig_transform": config.rig_transform}
        files |= {name: Path(path) for name, path in given.items() if path and Path(path).is_file()}  # what is missing is told where it is read
    return {name: artifact.file_hash(path) for name, path in files.items()}


def _metrics(result: motion.Motion, nodes: graph.Graph) -> dict:
    """Per-frame quality, with lengths in node spacings, and the list of frames that stay doubtful."""
    spacing = nodes.spacing

    def per_frame(values: np.ndarray) -> list[float | None]:
        return [round(float(v), 6) if np.isfinite(v) else None for v in values]

    return {
        "frames": result.frames.tolist(),
        "converged": result.converged.tolist(),
        "frames_not_converged": result.frames[~result.converged].tolist(),
        "frames_doubtful": result.frames[result.doubtful].tolist(),
        "residual_spacing": per_frame(result.residual / spacing),
        "coverage": per_frame(result.coverage),
        "rigidity_spacing": per_frame(result.rigidity / spacing),
        "contradicted": per_frame(result.contradicted),
        "spacing_scene": spacing,
    }


def _read_ed_folder(job: Job, data: dataset.Dataset, nodes: graph.Graph, header: dict) -> motion.Motion:
    """The motion of an external tracker; nothing was fitted, so its residual and coverage are zero and one, and nothing contradicts it."""
    given = ed_folder.load(job.config.registration.folder, list(data.frames))
    positions, rotations, translations = ed_folder.to_scene(given, data.scene_from_world)
    if positions.shape != nodes.node_positions.shape or np.abs(positions - nodes.node_positions).max() > 1e-5:
        raise ContractError(f"{job.paths.graph}: its nodes are not those of {job.config.registration.folder}/node.txt. Re-run stage 'graph'.")
    check_rest(job.config.registration.folder, list(data.frames), data.canonical_frame, rotations, translations, nodes.spacing)
    return _as_given(data, nodes, rotations, translations)


def check_rest(folder: str, frames: list[int], canonical_frame: int, rotations: np.ndarray, translations: np.ndarray, spacing: float) -> None:
    """Refuse motion whose nodes do not rest at the canonical frame, where the surface that hangs on them was taken.

    Args:
        rotations: f64 [F, M, 3, 3]; translations: f64 [F, M, 3], node-centred, scene units.

    Raises:
        DataError: says how far nodes are from rest, and at which frame they do rest.
    """
    turned = np.linalg.norm(rotations - np.eye(3), axis=(2, 3)) / np.sqrt(2)  # about the angle, radians
    away = np.median(np.maximum(np.linalg.norm(translations, axis=-1) / spacing, turned), axis=1)  # [F]
    here = away[frames.index(canonical_frame)]
    if here > AT_REST:
        rest = frames[int(away.argmin())]
        hint = f"They rest at frame {rest}: set dataset.canonical_frame: {rest}." if away.min() <= AT_REST else "They rest at none of the frames used."
        raise DataError(
            f"registration.folder: {folder}: at the canonical frame {canonical_frame} the nodes have moved by {here:.2g} of their spacing (median), but node.txt must hold them as they are there. {hint}"
        )


def _follow_rig(job: Job, data: dataset.Dataset, nodes: graph.Graph, header: dict) -> motion.Motion:
    """The motion of a skinned mesh or body model: as it is, or as where the solver starts at every frame."""
    rotations, translations = rig_source.motion_of(job, data, nodes)
    if not job.config.registration.rig_refine:
        return _as_given(data, nodes, rotations, translations)

    def on_device(values: np.ndarray) -> torch.Tensor:
        return torch.as_tensor(values.astype(np.float64), device=job.device)

    given = {frame: Pose(on_device(rotations[i]), on_device(translations[i])) for i, frame in enumerate(data.frames)}
    return _solve(job, data, nodes, header, given)


def _as_given(data: dataset.Dataset, nodes: graph.Graph, rotations: np.ndarray, translations: np.ndarray) -> motion.Motion:
    """Motion that somebody else stands for."""
    f = len(data.frames)
    return motion.Motion(
        np.array(data.frames, np.int32), rotations.astype(np.float32), translations.astype(np.float32),
        np.ones(f, bool), np.zeros(f, np.float32), np.ones(f, np.float32), _rigidity(nodes, rotations, translations),
        np.zeros(f, np.float32),
    )  # fmt: skip


def _rigidity(nodes: graph.Graph, rotations: np.ndarray, translations: np.ndarray) -> np.ndarray:
    """Mean as-rigid-as-possible edge error per frame, scene units, f32 [F]."""
    i, j = nodes.edges.T
    rest = nodes.node_positions[j] - nodes.node_positions[i]
    live = rest + translations[:, j] - translations[:, i]
    forward = np.linalg.norm(np.einsum("feij,ej->fei", rotations[:, i], rest) - live, axis=-1)
    backward = np.linalg.norm(np.einsum("feij,ej->fei", rotations[:, j], rest) - live, axis=-1)
    return (0.5 * (forward + backward).mean(1)).astype(np.float32) if len(i) else np.zeros(len(rotations), np.float32)


def _solve(job: Job, data: dataset.Dataset, nodes: graph.Graph, header: dict, given: dict[int, Pose] | None = None) -> motion.Motion:
    """Our registration; `given` holds a pose to start from at every frame, if somebody knows one. `header` says whose an interrupted run's poses are."""
    config, device = job.config.registration, job.device
    seed = job.config.runtime.seed
    canonical = mesh.load(job.paths.canonical_mesh)
    body = Body.from_mesh(nodes, canonical, config.max_points, device, seed)
    options = Options(iterations=config.iterations, rigidity=Options.rigidity * config.rigidity_weight, image_weight=config.image_weight)

    def observe(frame: int) -> Target:
        evidence = observation.load(job.paths.observation(frame))
        return Target.from_observation(evidence, config.max_points, options.colour * body.spacing, options.normal * body.spacing, device, seed)

    progress = log.Progress("registration", len(data.frames), logger)
    keep = Sparingly(lambda fits: motion.save(_partial(job), _to_motion(fits), header))

    def done(fits: dict[int, Fit]) -> None:
        keep(fits)
        progress.update(len(fits))

    with ahead.compiling(rehearsals(body, options), torch.device(device)):
        pictures = None
        if config.image_weight > 0:
            pictures, plainness = _pictures(data, nodes, canonical, body, options, device)
            options = options.for_plain(plainness)
    noise = judge(body, Pose.identity(body), observe(data.canonical_frame)).residual / body.spacing
    options = options.for_noise(noise)
    logger.info("%s", log.fields(noise_spacing=noise, rigidity=options.rigidity, softening=options.softening))
    known = _resume(job, header, body)
    if given is not None:
        return _to_motion(rig_motion.refine(body, given, data.canonical_frame, observe, options, pictures, known, done))
    fits = register_sequence(body, list(data.frames), data.canonical_frame, observe, options, pictures, known, done)
    agreeing = log.Progress("registration, frames in agreement", len(data.frames), logger)
    return _to_motion(settle_sequence(body, fits, data.canonical_frame, observe, options, agreeing.update))


class Sparingly:
    """Calls of `save` that take at most a share SAVING of the time: one that comes too early is left out.

    Args:
        clock: seconds.
    """

    def __init__(self, save: Callable[[dict[int, Fit]], None], clock: Callable[[], float] = time.monotonic):
        self.save, self.clock, self.due = save, clock, clock()

    def __call__(self, fits: dict[int, Fit]) -> None:
        start = self.clock()
        if start < self.due:
            return
        self.save(fits)
        end = self.clock()
        self.due = end + (end - start) / SAVING


def _pictures(
    data: dataset.Dataset, nodes: graph.Graph, canonical: mesh.Mesh, body: Body, options: Options, device: str
) -> tuple[Callable[[int], Pictures], float]:
    """How to get the images of a frame, with the colours the surface had at the canonical frame; and the subject's plainness."""
    views = frame_images.Views.from_dataset(data, MAX_VIEWS, MAX_SIDE, device)
    shell = image_evidence.Shell.from_mesh(nodes, canonical, device)
    rest = Pose.identity(body)
    images = frame_images.load_images(data, views, data.canonical_frame, device)
    sight = image_evidence.look(body, shell, rest, views)
    appearance = image_evidence.remember(body, sight, views, images, rest)
    plainness = image_evidence.plainness(body, views, sight, images, appearance, options.colour_weight(body.spacing))
    logger.info("%s", log.fields(plainness=plainness))
    order = [frame for chain in chains(list(data.frames), data.canonical_frame) for frame in chain[1:]]
    upcoming = Lookahead(lambda frame: frame_images.load_images(data, views, frame, device), order)
    return (lambda frame: Pictures(views, upcoming(frame), shell, appearance)), plainness


def _to_motion(fits: dict[int, Fit]) -> motion.Motion:
    frames = sorted(fits)

    def column(name: str, dtype: type) -> np.ndarray:
        return np.array([getattr(fits[f], name) for f in frames], dtype)

    residual = column("residual", np.float32)
    return motion.Motion(
        np.array(frames, np.int32),
        np.stack([fits[f].pose.rotations.cpu().numpy() for f in frames]).astype(np.float32),
        np.stack([fits[f].pose.translations.cpu().numpy() for f in frames]).astype(np.float32),
        column("converged", bool), np.where(np.isfinite(residual), residual, np.float32(9)), column("coverage", np.float32), column("rigidity", np.float32),
        column("contradicted", np.float32),
    )  # fmt: skip


def _resume(job: Job, header: dict, body: Body) -> dict[int, Fit]:
    """Fits of an earlier, interrupted run with the same inputs and config; none otherwise."""
    path = _partial(job)
    if not path.is_file():
        return {}
    try:
        found = artifact.load_npz(path, "motion", motion.FORMAT)[0]
        earlier = motion.load(path)
    except ContractError as error:
        logger.warning("starting over: %s", error)
        return {}
    if found != header:
        logger.info("%s belongs to other inputs or another config; starting over", path)
        return {}
    logger.info("continuing after %d frames of an interrupted run", len(earlier.frames))

    def real(values: np.ndarray) -> torch.Tensor:
        return torch.as_tensor(values.astype(np.float64), device=body.nodes.device)

    fits = {}
    for i, frame in enumerate(earlier.frames):
        pose = Pose(real(earlier.rotations[i]), real(earlier.translations[i]))
        fits[int(frame)] = Fit(
            pose, float(earlier.residual[i]), float(earlier.coverage[i]), float(earlier.rigidity[i]), bool(earlier.converged[i]), float(earlier.contradicted[i])
        )
    return fits
