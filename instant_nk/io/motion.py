"""The motion artifact: rotations and translations of every graph node at every frame.

A point x in canonical scene space moves to `x_live = sum_k w_k (R_k (x - g_k) + g_k + t_k)`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from instant_nk.errors import ContractError
from instant_nk.io import artifact

FORMAT = 2
DOUBT = 0.01  # share of the surface contradicted by the observation, from which on a frame is doubtful


@dataclass(frozen=True)
class Motion:
    """Node motion over the sequence, canonical -> live, scene units, node-centred.

    Attributes:
        frames: absolute frame numbers, ascending, i32 [F].
        rotations: f32 [F, M, 3, 3].
        translations: f32 [F, M, 3].
        converged: False where registration lost the subject and did not find it again, bool [F].
        residual: median point-to-surface distance after registration, scene units, f32 [F].
        coverage: share of observed points explained by the moved surface, f32 [F].
        rigidity: mean as-rigid-as-possible edge error, scene units, f32 [F].
        contradicted: share of the moved surface that has nothing like it near it in the observation, colour counted in, f32 [F].
    """

    frames: np.ndarray
    rotations: np.ndarray
    translations: np.ndarray
    converged: np.ndarray
    residual: np.ndarray
    coverage: np.ndarray
    rigidity: np.ndarray
    contradicted: np.ndarray

    @property
    def doubtful(self) -> np.ndarray:
        """Frames that were lost, or in which a part may lie wrongly, bool [F]."""
        return ~self.converged | (self.contradicted > DOUBT)

    def index(self, frame: int) -> int:
        """Row of an absolute frame.

        Raises:
            ContractError: the motion does not cover that frame.
        """
        hits = np.flatnonzero(self.frames == frame)
        if not len(hits):
            raise ContractError(f"the motion covers frames {self.frames[0]}..{self.frames[-1]}, not {frame}. Re-run stage 'registration'.")
        return int(hits[0])


def save(path: Path, motion: Motion, header: dict[str, Any]) -> None:
    artifact.save_npz(path, header, **vars(motion))


def load(path: Path) -> Motion:
    """Read and check a motion.

    Raises:
        ContractError: an array has another shape or type, is not finite, or a rotation is not orthonormal.
    """
    _, arrays = artifact.load_npz(path, "motion", FORMAT)
    try:
        motion = Motion(**arrays)
    except TypeError as error:
        raise ContractError(f"{path}: {error}. Re-run stage 'registration'.") from None
    f, m = motion.rotations.shape[:2]
    for name, shape, dtype in (
        ("frames", (f,), np.int32), ("rotations", (f, m, 3, 3), np.float32), ("translations", (f, m, 3), np.float32),
        ("converged", (f,), np.bool_), ("residual", (f,), np.float32), ("coverage", (f,), np.float32), ("rigidity", (f,), np.float32),
        ("contradicted", (f,), np.float32),
    ):  # fmt: skip
        artifact.check_array(path, name, arrays[name], shape, dtype)
    error = np.abs(motion.rotations @ motion.rotations.swapaxes(-1, -2) - np.eye(3, dtype=np.float32)).max() if f * m else 0.0
    if error > 1e-3:
        raise ContractError(f"{path}: 'rotations' must be orthonormal; they are off by {error:.2g}. Re-run stage 'registration'.")
    return motion
