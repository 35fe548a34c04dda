"""Checks at the door of every kernel: shape, dtype and device, with a message that says what was wanted."""

from __future__ import annotations

import torch
from torch import Tensor

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGERS = (torch.int64,)


def tensor(op: str, name: str, value: Tensor, shape: tuple[int | str, ...], kinds: tuple[torch.dtype, ...] = FLOATS, like: Tensor | None = None) -> None:
    """Check one argument of kernel `op`.

    Args:
        shape: wanted size per axis; a string names an axis of any size.
        kinds: dtypes accepted.
        like: a tensor whose device this one must share.

    Raises:
        TypeError: not a tensor, or the dtype is none of `kinds`.
        ValueError: wrong shape or device.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: {name} must be a tensor; got {type(value).__name__}.")
    if value.dtype not in kinds:
        raise TypeError(f"{op}: {name} must be {' or '.join(str(k).removeprefix('torch.') for k in kinds)}; got {str(value.dtype).removeprefix('torch.')}.")
    if value.dim() != len(shape) or any(isinstance(want, int) and want != got for want, got in zip(shape, value.shape, strict=False)):
        raise ValueError(f"{op}: {name} must have shape [{', '.join(map(str, shape))}]; got {list(value.shape)}.")
    if like is not None and value.device != like.device:
        raise ValueError(f"{op}: {name} must be on {like.device} as the other arguments; got {value.device}.")


def number(op: str, name: str, value: float | Tensor, like: Tensor) -> None:
    """Check a number of kernel `op` that may lie on the device as a tensor [].

    Raises:
        TypeError, ValueError: as `tensor`, where it is one.
    """
    if isinstance(value, Tensor):
        tensor(op, name, value, (), like=like)
