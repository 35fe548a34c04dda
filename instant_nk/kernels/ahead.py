"""Compile Triton kernels side by side, before their first use: on a fresh machine they take most of half a minute one after the other.

A kernel is compiled when it is first launched, and the launching thread waits. Nearly all of that time is spent outside Python's lock,
so threads that each compile one kernel, found by calls that launch nothing, compile them all in the time of the slowest. What is already
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
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from instant_nk.kernels import _backend

logger = logging.getLogger(__name__)

WORTH_SAYING = 2.0  # seconds of compiling
Call = Callable[[], object]


_here = threading.local()


class Compilation:
    """Threads that compile kernels, each kernel by itself, and how long each took, seconds by name."""

    def __init__(self) -> None:
        self.pool = ThreadPoolExecutor(os.cpu_count() or 1)
        self.begun: list[Future[None]] = []
        self.known: set[Hashable] = set()
        self.seconds: dict[str, float] = {}

    def rehearse(self, call: Call) -> None:
        """Make a call in a thread, where kernels are handed to `compile` instead of being launched."""

        def collected() -> None:
            _here.compilation = self
            try:
                call()
            finally:
                _here.compilation = None

        self.begun.append(self.pool.submit(collected))

    def compile(self, name: str, key: Hashable, work: Call) -> None:
        """Compile a kernel in a thread of its own, unless one of the same `key` has been handed over before."""
        if key in self.known:
            return
        self.known.add(key)

        def timed() -> None:
            start = time.perf_counter()
            work()
            self.seconds[name] = max(time.perf_counter() - start, self.seconds.get(name, 0.0))

        self.begun.append(self.pool.submit(timed))

    def wait(self) -> None:
        """Until all is compiled; what went wrong is raised. Calls hand over kernels before they end, so none is missed."""
        with self.pool:
            while self.begun:
                self.begun.pop(0).result()


def compilation() -> Compilation | None:
    """What takes a kernel that this thread would launch, to compile it and no more; None: it is to be launched."""
    return getattr(_here, "compilation", None)


_done: set[Hashable] = set()  # keys of what this process has compiled


def compile_side_by_side(calls: Sequence[Call], device: torch.device, key: Hashable = None) -> None:
    """Compile what the calls launch, all at the same time, then make each call; nothing where the kernels are not Triton's on a GPU.

    Args:
        key: names the calls, device and all, if they may come again: then nothing is done.
    """
    with compiling(calls, device, key):
        pass


@contextlib.contextmanager
def compiling(calls: Sequence[Call], device: torch.device, key: Hashable = None) -> Iterator[None]:
    """`compile_side_by_side`, beside what is done within; the calls are made on leaving."""
    if device.type != "cuda" or _backend.describe(device.type) != "triton" or not calls or (key is not None and key in _done):
        yield
        return
    start, compiled = time.perf_counter(), Compilation()
    for call in calls:
        compiled.rehearse(call)
    try:
        yield
    finally:
        compiled.wait()
    for call in calls:
        call()
    _done.add(key)
    if (whole := time.perf_counter() - start) > WORTH_SAYING:
        seconds = compiled.seconds
        slowest = max(seconds, key=seconds.get, default="none")
        logger.info(
            "kernels=%d compiled_s=%.1f slowest=%s slowest_s=%.1f; the next run finds them compiled", len(seconds), whole, slowest, seconds.get(slowest, 0.0)
        )
