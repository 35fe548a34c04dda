"""`loop`: numba's `njit` for loops that let the interpreter go and are kept on disk, wherever that is possible."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from typing import Any

from numba import njit

logger = logging.getLogger(__name__)


def loop(**options: Any) -> Callable[[Callable], Callable]:
    """Compile a function at its first call; the next process finds it beside the package, or in the user's cache where that is read-only.

    Where neither can be written (a container without a home), numba refuses to keep it; then every process compiles anew.

    Args:
        options: of `numba.njit`, such as fastmath.
    """

    def decorate(function: Callable) -> Callable:
        try:
            return njit(cache=True, nogil=True, **options)(function)
        except RuntimeError:
            _warn()
            return njit(nogil=True, **options)(function)

    return decorate


@cache
def _warn() -> None:
    logger.warning("no folder can be written to keep compiled CPU loops in, so every process compiles them anew. Set NUMBA_CACHE_DIR to one that can.")
