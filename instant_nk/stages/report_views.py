"""The held-out cameras: drawn at every frame, saved, and scored against their true pictures."""

from __future__ import annotations

import logging
import shutil
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from instant_nk import log
from instant_nk.geometry import evaluation
from instant_nk.io import artifact
from instant_nk.io.dataset import CameraSet, Dataset
from instant_nk.stages import report_films
from instant_nk.stages.report_results import Renders
from instant_nk.viewer import pictures
from instant_nk.viewer.mesh_renderer import MeshRenderer

logger = logging.getLogger(__name__)

WORKERS = 4  # pictures that are scored and written side by side, and that many wait


def render_heldout(report: Path, data: Dataset, frames: list[int], neural: Renders, drawn: MeshRenderer | None = None) -> list[dict[str, Any]]:
    """Draw every held-out camera at every frame into `renders/{frame}/{camera file name}` and score those with a true picture.

    The files are PNG with straight alpha, whatever the camera's file name ends in.

    Args:
        drawn: draws the animated mesh, which is scored too; None where nothing is tracked.
    """
    rig = data.heldout
    shutil.rmtree(report / "renders", ignore_errors=True)
    wanted = [(frame, c) for frame in frames for c in range(len(rig))]
    progress, views = log.Progress("report renders", len(wanted), logger), []
    with ThreadPoolExecutor(WORKERS) as pool:  # on a GPU, scores take longer than pictures
        pending: deque[Future] = deque()
        try:
            for frame, c in wanted:
                true_picture = data.heldout_image(c, frame)
                shown = _draw(neural, None if true_picture is None else drawn, rig, frame, c)
                if len(pending) == WORKERS:
                    views.append(pending.popleft().result())
                    progress.update(len(views))
                file = report_films.render_file(report, frame, rig.names[c])
                pending.append(pool.submit(_keep, file, {"frame": frame, "camera": rig.names[c]}, shown, true_picture))
            while pending:
                views.append(pending.popleft().result())
                progress.update(len(views))
        finally:
            for future in pending:
                future.cancel()
    return views


def _draw(neural: Renders, drawn: MeshRenderer | None, rig: CameraSet, frame: int, c: int) -> dict[str, np.ndarray]:
    """Pictures u8 [H, W, 4] of a frame from a camera by what their scores' names begin with: the field's, and the mesh's in its vertex colours and textured where it is."""
    size = (int(rig.sizes[c][0]), int(rig.sizes[c][1]))
    shown = {"": pictures.to_rgba(pictures.layers_of(neural.render(rig.c2w[c], rig.K[c], size, frame)))}
    if drawn is not None:
        layers = drawn.render(rig.c2w[c], rig.K[c], size, frame)
        shown["mesh_"] = pictures.to_rgba(layers | {"rgb": layers["vertex_rgb"]})
        if drawn.textured:
            shown["texture_"] = pictures.to_rgba(layers)
    return shown


def _keep(file: Path, view: dict[str, Any], shown: dict[str, np.ndarray], true_picture: np.ndarray | None) -> dict[str, Any]:
    """Write the field's picture; the view with the scores of all pictures of it."""
    with artifact.atomic(file) as aside:
        aside.write_bytes(pictures.png_bytes(shown[""]))
    if true_picture is not None:
        for name, picture in shown.items():
            view |= {f"{name}{key}": value for key, value in evaluation.score_picture(picture / 255, true_picture / 255).items()}
    return view
