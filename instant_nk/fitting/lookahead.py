"""Prepare the next item in the background while the present one is worked on: reading images beside a busy GPU."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Lookahead(Generic[K, V]):
    """`make(key)`, where the key that follows in `order` is made by a thread as soon as one is asked for.

    At most one value waits. Keys may be asked for in any order; one that was not foreseen is made at once. An error of `make` is
    raised where its value is asked for.
    """

    def __init__(self, make: Callable[[K], V], order: Sequence[K]):
        self._make = make
        self._next = dict(zip(order, order[1:]))
        self._pool = ThreadPoolExecutor(1)
        self._waiting: dict[K, Future[V]] = {}

    def __call__(self, key: K) -> V:
        ready = self._waiting.pop(key, None)
        value = self._make(key) if ready is None else ready.result()
        self._waiting = {} if key not in self._next else {self._next[key]: self._pool.submit(self._make, self._next[key])}
        return value
