"""Many small arrays brought to a device in one copy: on a GPU, starting a copy takes longer than most of them do."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

ALIGNED = 256  # bytes at whose multiples each begins, as if it had been allocated alone


def upload(values: Sequence[np.ndarray], device: str) -> list[Tensor]:
    """The arrays as tensors on a device, of the same types and shapes; on a GPU they share their memory."""
    if torch.device(device).type != "cuda":
        return [torch.as_tensor(np.ascontiguousarray(x), device=device) for x in values]
    return unpacked(torch.from_numpy(packed(values)).to(device), values)


def packed(values: Sequence[np.ndarray]) -> np.ndarray:
    """All arrays one after the other, each ALIGNED, u8 [bytes]."""
    begins = _begins(values)
    whole = np.empty(begins[-1], np.uint8)
    for x, begin in zip(values, begins[:-1]):
        whole[begin : begin + x.nbytes].view(x.dtype)[:] = x.reshape(-1)
    return whole


def unpacked(whole: Tensor, values: Sequence[np.ndarray]) -> list[Tensor]:
    """What `packed` made of those arrays, u8 [bytes], as tensors of their types and shapes."""
    dtypes = [torch.from_numpy(np.empty(0, x.dtype)).dtype for x in values]
    return [whole[begin : begin + x.nbytes].view(dtype).view(x.shape) for x, begin, dtype in zip(values, _begins(values)[:-1], dtypes)]


def _begins(values: Sequence[np.ndarray]) -> list[int]:
    """The byte at which each begins, and one behind the last."""
    begins = [0]
    for x in values:
        begins.append(begins[-1] + -(-x.nbytes // ALIGNED) * ALIGNED)
    return begins
