"""The texture artifact: one UV atlas for all frames, with its image beside it as PNG for people."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np

from instant_nk.errors import ContractError
from instant_nk.geometry.texture import Texture
from instant_nk.io import artifact

FORMAT = 1


def save(path: Path, texture: Texture, header: dict[str, Any]) -> None:
    """Write `texture.npz`, and its image as `texture.png`."""
    save_image(path.with_suffix(".png"), texture.image)
    artifact.save_npz(path, header, **vars(texture))


def save_image(path: Path, image: np.ndarray) -> None:
    with artifact.atomic(path) as aside:
        iio.imwrite(aside, image)


def load(path: Path) -> Texture:
    """Read and check a texture.

    Raises:
        ContractError: an array has another shape or type, or an index is out of range.
    """
    _, arrays = artifact.load_npz(path, "texture", FORMAT)
    try:
        texture = Texture(**arrays)
    except TypeError as error:
        raise ContractError(f"{path}: {error}. Re-run stage 'mesh'.") from None
    u, size = len(texture.uv), len(texture.image)
    for name, shape, dtype in (
        ("uv", (u, 2), np.float32), ("vertex_of", (u,), np.int32), ("faces", (None, 3), np.int32), ("image", (size, size, 3), np.uint8),
    ):  # fmt: skip
        artifact.check_array(path, name, arrays[name], shape, dtype)
    if len(texture.faces) and (texture.faces.min() < 0 or texture.faces.max() >= u):
        raise ContractError(f"{path}: 'faces' must index U={u} texture vertices; got {texture.faces.min()}..{texture.faces.max()}. Re-run stage 'mesh'.")
    return texture
