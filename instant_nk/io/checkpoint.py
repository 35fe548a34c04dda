"""Checkpoints: named tensors and a JSON description, without pickle, that move between CPU and GPU."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from instant_nk.errors import ContractError
from instant_nk.io import artifact

if TYPE_CHECKING:
    import torch

FORMAT = 2  # 2: hashed rows of a grid lie in blocks


def save(path: Path, state: dict[str, torch.Tensor], header: dict[str, Any], description: dict[str, Any]) -> None:
    """Write tensors (any device) and the description needed to rebuild the modules they belong to."""
    arrays = {name: tensor.detach().cpu().numpy() for name, tensor in state.items()}
    artifact.save_npz(path, {**header, "artifact": "checkpoint", "format": FORMAT, "description": description}, compress=False, **arrays)


def load(path: Path, device: str | torch.device = "cpu") -> tuple[dict[str, torch.Tensor], dict[str, Any], dict[str, Any]]:
    """Read a checkpoint.

    Returns:
        tensors by name on `device`, the header, the description.

    Raises:
        ContractError: missing, truncated, or of another format.
    """
    import torch

    header, arrays = artifact.load_npz(path, "checkpoint", FORMAT)
    if not all(np.isfinite(a).all() for a in arrays.values() if np.issubdtype(a.dtype, np.floating)):
        raise ContractError(f"{path}: the checkpoint holds values that are not finite. Delete it and re-run stage '{header.get('stage')}'.")
    return {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}, header, header["description"]
