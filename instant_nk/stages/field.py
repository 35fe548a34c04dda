"""Stage 6: one window of frames: residual, colour and refined motion; or, in modes that do not track, a live field."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from instant_nk import layout, log
from instant_nk.fitting import window_files
from instant_nk.fitting.live_fit import LiveFit
from instant_nk.fitting.rays import PixelSource
from instant_nk.fitting.trainer import how_of
from instant_nk.fitting.window_fit import WindowFit
from instant_nk.io import artifact, checkpoint
from instant_nk.io import dataset as dataset_io
from instant_nk.io import graph as graph_io
from instant_nk.io.dataset import Dataset
from instant_nk.kernels.ahead import compiling
from instant_nk.layout import Job

logger = logging.getLogger(__name__)


def run(job: Job) -> None:
    """Train the window `job.part` and write `6_field/{window}.npz` and `.json`."""
    measure = log.measure()
    config, dataset = job.config.field, dataset_io.load(job.paths.manifest)
    frames = window_files.window_frames(dataset, job.part)
    torch.manual_seed(job.config.runtime.seed)
    train = train_deform if config.dyna_mode == "deform" else train_live
    numbers = train(job, dataset, frames)
    _partial(job).unlink(missing_ok=True)
    artifact.save_json(job.paths.field(job.part).with_suffix(".json"), {**measure.numbers(), "frames": frames, "dyna_mode": config.dyna_mode, **numbers})


def _partial(job: Job) -> Path:
    return job.paths.field(job.part).with_suffix(".partial.npz")


def _header(job: Job, inputs: dict[str, str]) -> dict:
    return artifact.make_header("checkpoint", checkpoint.FORMAT, "field", layout.stage_config(job.config, "field"), inputs)


def train_deform(job: Job, dataset: Dataset, frames: list[int]) -> dict:
    """The residual deformation of the canonical surface; returns its numbers."""
    config = job.config.field
    spec = window_files.residual_spec(config, len(frames))
    bound = config.residual_bound * graph_io.load(job.paths.graph).spacing
    field, canonical = window_files.new_field(job.paths, dataset, job.part, spec, bound, job.device, config.appearance)
    with compiling(field.rehearsals(), torch.device(job.device)):
        source = PixelSource(dataset, frames, config.max_pixels, job.device, torch.get_num_threads())
    logger.info("field %s", log.fields(window=job.part, frames=len(frames), pixels=len(source), nodes=len(field.skeleton.nodes), inv_std=canonical.inv_std))
    header = _header(job, window_files.inputs_of(job.paths))
    how = how_of(job, job.paths.field(job.part), f"field_{job.part}")
    fit = WindowFit(config, field, source, canonical.occupancy_resolution, job.device, job.config.runtime.seed, f"field {job.part}", how)
    fit.run(_partial(job), header)
    window_files.save(job.paths.field(job.part), field, header)
    return {
        "psnr_db": fit.history["psnr_db"][-1],
        "unconverged_share": float(fit.unconverged),
        "samples_per_step": fit.samples,
        **(fit.rig.describe() if fit.rig else {}),
        "history": fit.history,
    }


def train_live(job: Job, dataset: Dataset, frames: list[int]) -> dict:
    """A field in live space, as fine as the canonical one; returns its numbers."""
    config = job.config.field
    source = PixelSource(dataset, frames, config.max_pixels, job.device, torch.get_num_threads())
    logger.info("field %s", log.fields(window=job.part, frames=len(frames), pixels=len(source), dyna_mode=config.dyna_mode))
    logger.warning("%s", window_files.untracked(config.dyna_mode))
    header = _header(job, window_files.live_inputs_of(job.paths))
    hulls = [dataset.hull(frame) for frame in frames]
    how = how_of(job, job.paths.field(job.part), f"field_{job.part}")
    fit = LiveFit(config, window_files.fineness_of(job.paths), source, hulls, job.device, job.config.runtime.seed, f"field {job.part}", how)
    field = fit.run(_partial(job), header)
    window_files.save_live(job.paths.field(job.part), field, header)
    return {
        "psnr_db": fit.history["psnr_db"][-1],
        "inv_std": fit.history["inv_std"][-1],
        "samples_per_step": fit.samples,
        "history": fit.history,
    }
