"""The held-out cameras: drawn at every frame, saved, and scored against their true pictures."""

from __future__ import annotations

import logging
import shutil
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from instant_nk import log
from instant_nk.geometry import evaluation
from instant_nk.io import artifact
from instant_nk.io.dataset import Dataset
from instant_nk.stages import report_films
from instant_nk.stages.report_results import Renders
from instant_nk.viewer import pictures
from instant_nk.viewer.mesh_renderer import MeshRenderer

logger = logging.getLogger(__name__)


def render_heldout(report: Path, data: Dataset, frames: list[int], neural: Renders, drawn: MeshRenderer | None = None) -> list[dict[str, Any]]:
    """Draw every held-out camera at every frame into `renders/{frame}/{camera file name}` and score those with a true picture.

    The files are PNG with straight alpha, whatever the camera's file name ends in.

    Args:
        drawn: draws the animated mesh, which is scored too; None where nothing is tracked.
    """
    rig, views = data.heldout, []
    shutil.rmtree(report / "renders", ignore_errors=True)
    wanted = [(frame, c) for frame in frames for c in range(len(rig))]
    progress = log.Progress("report renders", len(wanted), logger)
    workers = torch.get_num_threads()
    pending: deque[Future] = deque()

    def finish(at_most: int) -> None:
        while len(pending) > at_most:
            views.append(pending.popleft().result())
            progress.update(len(views))

    with ThreadPoolExecutor(workers) as pool:  # scores take longer than pictures on a GPU
        for frame, c in wanted:
            size = (int(rig.sizes[c][0]), int(rig.sizes[c][1]))
            layers, true_picture = neural.render(rig.c2w[c], rig.K[c], size, frame), data.heldout_image(c, frame)
            of_mesh = drawn.render(rig.c2w[c], rig.K[c], size, frame) if drawn is not None and true_picture is not None else None
            textured = drawn is not None and drawn.textured
            file = report_films.render_file(report, frame, rig.names[c])
            pending.append(pool.submit(_keep, file, {"frame": frame, "camera": rig.names[c]}, layers, of_mesh, textured, true_picture))
            finish(2 * workers)
        finish(0)
    return views


Layers = dict[str, np.ndarray]


def _keep(file: Path, view: dict[str, Any], layers: Layers, of_mesh: Layers | None, textured: bool, true_picture: np.ndarray | None) -> dict[str, Any]:
    """Write one picture; the view with its scores and those of the mesh."""
    picture = pictures.to_rgba(pictures.layers_of(layers))
    with artifact.atomic(file) as aside:
        aside.write_bytes(pictures.png_bytes(picture))
    if true_picture is not None:
        view |= evaluation.score_picture(picture / 255, true_picture / 255)
        if of_mesh is not None:
            view |= _mesh_scores(of_mesh, textured, true_picture)
    return view


def _mesh_scores(layers: Layers, textured: bool, true_picture: np.ndarray) -> dict[str, float]:
    """Scores of the animated mesh in its vertex colours, and textured where it is."""
    shown = {"mesh": layers | {"rgb": layers["vertex_rgb"]}} | ({"texture": layers} if textured else {})
    return {
        f"{name}_{key}": value
        for name, of_mesh in shown.items()
        for key, value in evaluation.score_picture(pictures.to_rgba(of_mesh) / 255, true_picture / 255).items()
    }
