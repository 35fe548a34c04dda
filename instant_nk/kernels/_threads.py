"""Share compiled CPU loops among as many threads as torch may use; the loops release the interpreter lock.

Plain threads, not numba's own: its OpenMP layer would reset torch's number of threads for the whole process. Torch itself is not loaded here.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache, partial
from typing import Any

LEAST = 1024  # rows worth a thread of their own
_allowed = 1


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="instant_nk_kernels")


def allow(threads: int) -> None:
    """Set how many threads a job may use while torch, which has a number of its own, is not loaded."""
    global _allowed
    _allowed = threads


def count() -> int:
    """Threads that a job may use: as many as torch may where it is loaded, else those allowed."""
    return getattr(sys.modules.get("torch"), "get_num_threads", lambda: _allowed)()


@cache
def _companion() -> ThreadPoolExecutor:
    """A thread outside the pool, which tasks that run in it may use: one that waited for a place in it would wait for itself."""
    return ThreadPoolExecutor(1, thread_name_prefix="instant_nk_beside")


def beside(task: Callable[..., Any], *given: Any) -> Future:
    """Begin a task while this thread goes on, which asks for the `result()` later; with one thread allowed, the task is done before.

    The task must not begin one itself, nor rely on what torch keeps per thread (the current device, `no_grad`).
    """
    if count() > 1:
        return _companion().submit(task, *given)
    done = Future()
    try:
        done.set_result(task(*given))
    except Exception as error:  # belongs to whoever asks for the result
        done.set_exception(error)
    return done


def each(tasks: Sequence[Callable[[], None]]) -> None:
    """Run independent tasks, several at a time."""
    if count() == 1 or len(tasks) == 1:
        for task in tasks:
            task()
    else:
        for future in [_pool(count()).submit(task) for task in tasks]:
            future.result()


def over_rows(rows: int, loop: Callable[[int, int], None], least: int = LEAST) -> None:
    """Run loop(first, last) over pieces of range(rows), one per thread; none is worth fewer than `least` rows."""
    pieces = min(count(), max(1, rows // least))
    edges = [round(i * rows / pieces) for i in range(pieces + 1)]
    each([partial(loop, a, b) for a, b in zip(edges[:-1], edges[1:], strict=True)])
