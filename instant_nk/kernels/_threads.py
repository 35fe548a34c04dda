"""Share compiled CPU loops among as many threads as torch may use; the loops release the interpreter lock.

Plain threads, not numba's own: its OpenMP layer would reset torch's number of threads for the whole process.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch

LEAST = 1024  # rows worth a thread of their own


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="instant_nk_kernels")


def over_rows(rows: int, loop: Callable[[int, int], None]) -> None:
    """Run loop(first, last) over pieces of range(rows), one per thread."""
    threads = min(torch.get_num_threads(), max(1, rows // LEAST))
    if threads == 1:
        loop(0, rows)
        return
    edges = [round(i * rows / threads) for i in range(threads + 1)]
    for piece in [_pool(threads).submit(loop, a, b) for a, b in zip(edges[:-1], edges[1:], strict=True)]:
        piece.result()
