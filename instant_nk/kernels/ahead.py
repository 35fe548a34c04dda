"""Compile Triton kernels side by side, before their first use: on a fresh machine they take most of half a minute one after the other.

A kernel is compiled when it is first launched, and the launching thread waits. Nearly all of that time is spent outside Python's lock,
so threads that each compile what one launch on a single point needs compile them all in the time of the slowest. What is already
compiled, in this process or in Triton's cache on disk, costs nothing. The launches themselves follow one after the other: Triton's first
launch of a kernel is not safe against a second one at the same time, which may find a launcher without a function. Nor is Triton's
loading of launchers safe against itself; `_triton_memory.apart` makes it so.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from instant_nk.kernels import _backend

logger = logging.getLogger(__name__)

WORTH_SAYING = 2.0  # seconds of compiling
Call = Callable[[], object]


_here = threading.local()


def compiles_only() -> bool:
    """Whether this thread, where it would launch a kernel, is to compile it and no more."""
    return getattr(_here, "compiles_only", False)


def compile_side_by_side(calls: Sequence[Call], device: torch.device) -> None:
    """Compile what the calls launch, all at the same time, then make each call; nothing where the kernels are not Triton's on a GPU."""
    with compiling(calls, device):
        pass


@contextlib.contextmanager
def compiling(calls: Sequence[Call], device: torch.device) -> Iterator[None]:
    """`compile_side_by_side`, beside what is done within; the calls are made on leaving."""
    if device.type != "cuda" or _backend.describe(device.type) != "triton" or not calls:
        yield
        return
    start, seconds = time.perf_counter(), {}

    def timed(call: Call) -> None:
        began = time.perf_counter()
        _here.compiles_only = True
        call()
        seconds[f"{call.__module__}.{call.__name__}".removeprefix("instant_nk.kernels.")] = time.perf_counter() - began

    with ThreadPoolExecutor(max(1, min(len(calls), os.cpu_count() or 1))) as pool:
        made = [pool.submit(timed, call) for call in calls]
        yield
        for one in made:
            one.result()
    for call in calls:
        call()
    if (whole := time.perf_counter() - start) > WORTH_SAYING:
        slowest = max(seconds, key=seconds.get)
        logger.info("kernels=%d compiled_s=%.1f slowest=%s slowest_s=%.1f; the next run finds them compiled", len(calls), whole, slowest, seconds[slowest])
