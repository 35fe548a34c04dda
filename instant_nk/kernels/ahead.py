"""Compile Triton kernels side by side, before their first use: on a fresh machine they take most of half a minute one after the other.

A kernel is compiled when it is first launched, and the launching thread waits. Nearly all of that time is spent outside Python's lock,
so threads that each launch one kernel on a single point compile them all in the time of the slowest. What is already
compiled, in this process or in Triton's cache on disk, costs nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from instant_nk.kernels import _backend

Call = Callable[[], object]


def compile_side_by_side(calls: Sequence[Call], device: torch.device) -> None:
    """Make each call once, all at the same time, and wait for them; nothing where the kernels are not Triton's on a GPU."""
    if device.type != "cuda" or _backend.describe(device.type) != "triton":
        return
    with ThreadPoolExecutor(max(1, min(len(calls), os.cpu_count() or 1))) as pool:
        for made in [pool.submit(call) for call in calls]:
            made.result()
