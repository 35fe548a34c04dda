"""Stage 6: the residual, colour and refined motion of one window of frames."""

from __future__ import annotations

import logging

import torch

from instant_nk import layout, log
from instant_nk.fitting import window_files
from instant_nk.fitting.rays import PixelSource
from instant_nk.fitting.trainer import wants_mixed
from instant_nk.fitting.window_fit import WindowFit
from instant_nk.io import artifact, checkpoint
from instant_nk.io import dataset as dataset_io
from instant_nk.io import graph as graph_io
from instant_nk.layout import Job

logger = logging.getLogger(__name__)


def run(job: Job) -> None:
    """Train the window `job.part` and write `6_field/{window}.npz` and `.json`."""
    measure = log.measure()
    config, dataset = job.config.field, dataset_io.load(job.paths.manifest)
    frames = window_files.window_frames(dataset, job.part)
    torch.manual_seed(job.config.runtime.seed)
    spec = window_files.residual_spec(config, len(frames))
    bound = config.residual_bound * graph_io.load(job.paths.graph).spacing
    field, canonical = window_files.new_field(job.paths, dataset, job.part, spec, bound, job.device)
    source = PixelSource(dataset, frames, config.max_pixels, job.device)
    logger.info("field %s", log.fields(window=job.part, frames=len(frames), pixels=len(source), nodes=len(field.skeleton.nodes), inv_std=canonical.inv_std))
    header = artifact.make_header("checkpoint", checkpoint.FORMAT, "field", layout.stage_config(job.config, "field"), window_files.inputs_of(job.paths))
    partial = job.paths.field(job.part).with_suffix(".partial.npz")
    mixed = wants_mixed(job.config.runtime.mixed_precision, job.device)
    fit = WindowFit(config, field, source, canonical.occupancy_resolution, job.device, job.config.runtime.seed, f"field {job.part}", mixed)
    fit.run(partial, header)
    window_files.save(job.paths.field(job.part), field, header)
    partial.unlink(missing_ok=True)
    artifact.save_json(
        job.paths.field(job.part).with_suffix(".json"),
        {
            **measure.numbers(),
            "frames": frames,
            "psnr_db": fit.history["psnr_db"][-1],
            "unconverged_share": float(fit.unconverged),
            "samples_per_step": fit.samples,
            "history": fit.history,
        },
    )
