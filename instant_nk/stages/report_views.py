"""The held-out cameras: drawn at every frame, saved, and scored against their true pictures."""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from instant_nk import log
from instant_nk.fitting.lookahead import in_order
from instant_nk.geometry import evaluation
from instant_nk.io import artifact
from instant_nk.io.dataset import Dataset
from instant_nk.stages import report_films
from instant_nk.stages.report_results import Renders
from instant_nk.viewer import pictures
from instant_nk.viewer.mesh_renderer import MeshRenderer

logger = logging.getLogger(__name__)

WORKERS = 4  # pictures that are scored and written side by side, and that many wait,
SCORED_PIXELS = 4_000_000  # or fewer, so that they have no more pixels than that together: scoring takes some 150 bytes of each


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
    side_by_side = max(1, min(WORKERS, SCORED_PIXELS // max(int(rig.sizes.prod(1).max(initial=1)), 1)))
    shots = (_draw(report, data, frame, c, neural, drawn) for frame, c in wanted)
    for view in in_order(_keep, shots, side_by_side):  # on a GPU, scores take longer than pictures
        views.append(view)
        progress.update(len(views))
    return views


@dataclass(frozen=True)
class Shot:
    """What was drawn of a frame from a held-out camera.

    Attributes:
        file: where the field's picture goes; name: of the camera.
        shown: pictures u8 [H, W, 4] by what their scores' names begin with: the field's, and the mesh's in its vertex colours and textured where it is.
        true_picture: u8 [H, W, 4]; None where there is none.
    """

    file: Path
    frame: int
    name: str
    shown: dict[str, np.ndarray]
    true_picture: np.ndarray | None


def _draw(report: Path, data: Dataset, frame: int, c: int, neural: Renders, drawn: MeshRenderer | None) -> Shot:
    rig, true_picture = data.heldout, data.heldout_image(c, frame)
    size = (int(rig.sizes[c][0]), int(rig.sizes[c][1]))
    shown = {"": pictures.to_rgba(pictures.layers_of(neural.render(rig.c2w[c], rig.K[c], size, frame)))}
    if drawn is not None and true_picture is not None:
        layers = drawn.render(rig.c2w[c], rig.K[c], size, frame)
        shown["mesh_"] = pictures.to_rgba(layers | {"rgb": layers["vertex_rgb"]})
        if drawn.textured:
            shown["texture_"] = pictures.to_rgba(layers)
    return Shot(report_films.render_file(report, frame, rig.names[c]), frame, rig.names[c], shown, true_picture)


def _keep(shot: Shot) -> dict[str, Any]:
    """Write the field's picture; the view with the scores of all pictures of it."""
    with artifact.atomic(shot.file) as aside:
        aside.write_bytes(pictures.png_bytes(shot.shown[""]))
    view: dict[str, Any] = {"frame": shot.frame, "camera": shot.name}
    if shot.true_picture is not None:
        for name, picture in shot.shown.items():
            view |= {f"{name}{key}": value for key, value in evaluation.score_picture(picture / 255, shot.true_picture / 255).items()}
    return view
