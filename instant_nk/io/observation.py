"""The observation artifact: evidence of the live surface at one frame, whichever provider saw it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from instant_nk.errors import ContractError
from instant_nk.io import artifact

FORMAT = 1
INPUT = "observation/"  # and the frame: the name of one among the `inputs` of an artifact made from it


@dataclass(frozen=True)
class Observation:
    """Oriented surface points of one frame in scene space.

    Attributes:
        points: f32 [P, 3].
        normals: unit, outward, f32 [P, 3].
        colours: sRGB in [0, 1], f32 [P, 3].
        confidence: in [0, 1], f32 [P].
        n_views: training cameras that see the point, i32 [P].
        boundary: True next to the edge of what was observed; such points pull nothing, bool [P].
        faces: triangles over `points`, i32 [T, 3], or None when there is no surface, only points.
    """

    points: np.ndarray
    normals: np.ndarray
    colours: np.ndarray
    confidence: np.ndarray
    n_views: np.ndarray
    boundary: np.ndarray
    faces: np.ndarray | None = None


def save(path: Path, observation: Observation, header: dict[str, Any]) -> None:
    artifact.save_npz(path, header, **{k: v for k, v in vars(observation).items() if v is not None})


def load(path: Path) -> Observation:
    """Read and check an observation.

    Raises:
        ContractError: an array has another shape or type, or is not finite.
    """
    _, arrays = artifact.load_npz(path, "observation", FORMAT)
    try:
        observation = Observation(**arrays)
    except TypeError as error:
        raise ContractError(f"{path}: {error}. Re-run stage 'observation'.") from None
    p = len(observation.points)
    for name, shape, dtype in (
        ("points", (p, 3), np.float32), ("normals", (p, 3), np.float32), ("colours", (p, 3), np.float32),
        ("confidence", (p,), np.float32), ("n_views", (p,), np.int32), ("boundary", (p,), np.bool_),
    ):  # fmt: skip
        artifact.check_array(path, name, arrays[name], shape, dtype)
    if observation.faces is not None:
        artifact.check_array(path, "faces", observation.faces, (None, 3), np.int32)
    return observation
