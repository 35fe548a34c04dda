"""Stage 1, dataset: a raw capture becomes validated, undistorted RGBA images, one box, visual hulls and the canonical frame."""

from __future__ import annotations

import logging
import os
import resource
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from instant_nk import layout, log as log_module
from instant_nk.errors import DataError
from instant_nk.geometry import hulls, spaces
from instant_nk.io import artifact, capture as captures
from instant_nk.io import capture_images as images
from instant_nk.io import dataset as datasets

log = logging.getLogger(__name__)


def run(job: layout.Job) -> None:
    """Validate the capture and write `1_dataset/`: hulls and converted images first, the manifest last."""
    started = time.monotonic()
    config = job.config
    folder = captures.resolve_capture(config)
    if config.capture == "synthetic" and not folder.is_dir():
        from instant_nk.io import synthetic

        synthetic.write(config, folder)
    capture = captures.read(folder)
    frames = captures.select_frames(capture.frames, config.frames, str(capture.train.folder))
    listing = captures.listing(folder)
    used = [capture.train.cameras[i] for i in captures.select_cameras(capture.train.cameras, config.dataset.cameras)]
    box = np.array(config.dataset.box, np.float64) if config.dataset.box is not None else capture.box
    if box is None:
        raise DataError(f"{folder}: no box. Give dataset.box.")
    root = job.paths.dataset
    root.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(root / "hulls", ignore_errors=True)

    def camera_set(cameras, view):
        sizes = []
        for c in cameras:
            path = view.file(c, frames[0])
            sizes.append(c.size or images.image_size(path))
        n = len(cameras)
        return datasets.CameraSet(
            tuple(c.name for c in cameras),
            np.array([c.c2w for c in cameras]).reshape(n, 4, 4),
            np.array([c.K(s) for c, s in zip(cameras, sizes)]).reshape(n, 3, 3),
            np.array(sizes, np.int32).reshape(n, 2),
        )

    train, heldout = camera_set(used, capture.train), camera_set(capture.heldout.cameras, capture.heldout)
    similarity = spaces.similarity_from_box(box)
    image_paths = {str(t): [str(capture.train.file(c, t).resolve()) for c in used] for t in frames}
    heldout_paths = {
        str(t): [str(p.resolve()) if (p := capture.heldout.file(c, t)) is not None and p.is_file() else None for c in capture.heldout.cameras] for t in frames
    }
    depth = None
    if capture.depth_unit is not None:
        depth = {str(t): [str(capture.train.file(c, t, "depth_path").resolve()) for c in used] for t in frames}
    dataset = datasets.Dataset(
        root, folder.resolve(), tuple(frames), frames[0] if config.dataset.canonical_frame is None else config.dataset.canonical_frame,
        train, heldout, similarity, box, image_paths, heldout_paths, depth, capture.depth_unit or 0.001,
    )  # fmt: skip
    resolution = config.dataset.hull_resolution
    poses = spaces.transform_poses(similarity, train.c2w)
    pools = [hulls.pool_for(2 / resolution, K, c2w, np.zeros(3)) for K, c2w in zip(train.K, poses)]
    section = layout.stage_config(config, "dataset")
    hull_header = artifact.make_header("hull", datasets.HULL_FORMAT, "dataset", section)
    with ThreadPoolExecutor(config.runtime.threads or os.cpu_count()) as pool:
        for frame in log_module.progress(frames, "dataset", log):
            masks = pool.map(lambda c: hulls.silhouette(dataset.image(c, frame)[..., 3] >= images.MASK_LEVEL, pools[c]), range(len(train)))
            dataset.save_hull(frame, hulls.visual_hull(list(masks), train.K, poses, resolution), hull_header)
    metrics = {"wall_s": time.monotonic() - started, "peak_host_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, "frames": len(frames), "cameras": len(train)}
    artifact.save_json(root / "metrics.json", metrics)
    header = artifact.make_header("dataset", datasets.FORMAT, "dataset", section, {"capture": captures.digest(listing)})
    datasets.save(dataset, header)
