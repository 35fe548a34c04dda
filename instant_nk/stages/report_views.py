"""The held-out cameras: drawn at every frame, saved, and scored against their true pictures."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np

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
    for done, (frame, c) in enumerate(wanted, 1):
        size = (int(rig.sizes[c][0]), int(rig.sizes[c][1]))
        picture = pictures.to_rgba(pictures.layers_of(neural.render(rig.c2w[c], rig.K[c], size, frame)))
        with artifact.atomic(report_films.render_file(report, frame, rig.names[c])) as aside:
            aside.write_bytes(pictures.png_bytes(picture))
        view: dict[str, Any] = {"frame": frame, "camera": rig.names[c]}
        true_picture = data.heldout_image(c, frame)
        if true_picture is not None:
            view |= evaluation.score_picture(picture / 255, true_picture / 255)
            if drawn is not None:
                view |= _mesh_scores(drawn, drawn.render(rig.c2w[c], rig.K[c], size, frame), true_picture)
        views.append(view)
        progress.update(done)
    return views


def _mesh_scores(drawn: MeshRenderer, layers: dict[str, np.ndarray], true_picture: np.ndarray) -> dict[str, float]:
    """Scores of the animated mesh in its vertex colours, and textured where it is."""
    shown = {"mesh": layers | {"rgb": layers["vertex_rgb"]}} | ({"texture": layers} if drawn.textured else {})
    return {
        f"{name}_{key}": value
        for name, of_mesh in shown.items()
        for key, value in evaluation.score_picture(pictures.to_rgba(of_mesh) / 255, true_picture / 255).items()
    }
