"""What a GPU is asked to do, recorded as a CUDA graph; used by trainings (`replay.py`) and by registration (`repeated.py`)."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import TypeVar

import torch

T = TypeVar("T")
Pool = tuple[int, int]


def capture(work: Callable[[], T], pool: Pool) -> tuple[torch.cuda.CUDAGraph, T]:
    """A graph of what `work` launches on the current device, and what it returned. Nothing runs before the graph is replayed.

    Args:
        pool: of the memory that the recording takes, `torch.cuda.graph_pool_handle()`.
    """
    graph, stream = torch.cuda.CUDAGraph(), _stream(torch.cuda.current_device())
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        graph.capture_begin(pool=pool, capture_error_mode="relaxed")
        try:
            result = work()
        except BaseException:
            with contextlib.suppress(Exception):  # what went wrong in the middle is the error to tell, above all that memory ran out
                graph.capture_end()
            raise
        graph.capture_end()
    torch.cuda.current_stream().wait_stream(stream)
    return graph, result


def keeper(pool: Pool) -> torch.cuda.CUDAGraph:
    """A recording of nothing much, which holds its pool: a pool ends with its last recording, and memory of one is to serve the next."""
    return capture(lambda: torch.zeros(1, device="cuda"), pool)[0]


@functools.cache
def _stream(device: int) -> torch.cuda.Stream:
    """What recordings are made on: one for the process, for torch has 32 streams and hands out the first one again after them."""
    return torch.cuda.Stream(device)
