"""The state of an interrupted training run as named tensors: parameters, Adam's moments, random generator, counters."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from instant_nk.errors import ContractError
from instant_nk.fitting.adam import Adam
from instant_nk.io import checkpoint

logger = logging.getLogger(__name__)


def save(
    path: Path,
    modules: nn.ModuleDict,
    optimizer: Adam,
    generator: torch.Generator,
    counters: dict[str, Any],
    header: dict[str, Any],
    extra: dict[str, Tensor],
) -> None:
    """Write a resumable checkpoint beside the stage's output; the header's `config_hash` and `inputs` guard it."""
    state = {f"model/{k}": v for k, v in modules.state_dict().items()}
    state |= {f"extra/{k}": v for k, v in extra.items()}
    state["generator"] = generator.get_state()
    for index, values in optimizer.state.items():
        state |= {f"adam/{index}/{name}": value for name, value in values.items()}
    checkpoint.save(path, state, header, counters)


def restore(
    path: Path, modules: nn.ModuleDict, optimizer: Adam, generator: torch.Generator, header: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """Continue from `save`'s file; None where there is none, or it belongs to other inputs or another configuration (said in the log).

    Returns:
        counters and extra tensors.
    """
    if not path.exists():
        return None
    device = next(modules.parameters()).device
    try:
        state, found, counters = checkpoint.load(path, device)
    except ContractError as error:
        logger.warning("starting over, the interrupted run's checkpoint is unusable: %s", error)
        return None
    if any(found.get(k) != header[k] for k in ("config_hash", "inputs", "stage_version")):
        logger.warning("starting over: %s was made with another configuration or other inputs", path)
        return None
    model = {k.removeprefix("model/"): v for k, v in state.items() if k.startswith("model/")}
    found, wanted = ({name: value.shape for name, value in values.items()} for values in (model, modules.state_dict()))
    if found != wanted or state["generator"].shape != generator.get_state().shape:
        logger.warning("starting over: %s was made on another kind of device, or by another backend", path)
        return None
    modules.load_state_dict(model)
    generator.set_state(state["generator"].cpu())
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in state.items():
        if name.startswith("adam/"):
            _, index, entry = name.split("/")
            moments.setdefault(int(index), {})[entry] = value
    optimizer.state = moments
    logger.info("resuming from %s at step %s", path, counters.get("step"))
    return counters, {k.removeprefix("extra/"): v for k, v in state.items() if k.startswith("extra/")}
