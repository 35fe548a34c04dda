"""Prepare items in the background while others are worked on: reading images beside a busy GPU, or several at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")
V = TypeVar("V")


class Lookahead(Generic[K, V]):
    """`make(key)`, where the keys that follow in `order` are made by threads as soon as one is asked for.

    At most `ahead` values wait. Keys may be asked for in any order; one that was not foreseen is made at once. An error of `make` is
    raised where its value is asked for.
    """

    def __init__(self, make: Callable[[K], V], order: Sequence[K], ahead: int = 1):
        self._make = make
        self._next = {key: list(order[i + 1 : i + 1 + ahead]) for i, key in enumerate(order)}
        self._pool = ThreadPoolExecutor(ahead)
        self._waiting: dict[K, Future[V]] = {}

    def __call__(self, key: K) -> V:
        ready = self._waiting.pop(key, None)
        waiting = self._waiting
        self._waiting = {other: waiting.get(other) or self._pool.submit(self._make, other) for other in self._next.get(key, [])}
        return self._make(key) if ready is None else ready.result()


def in_order(make: Callable[[T], V], keys: Iterable[T], threads: int) -> Iterator[V]:
    """`make(key)` of every key, in their order, by several threads; as many values as there are threads wait at most.

    Keys are asked for one by one, by the thread that asks for the values: what yields them may do work of its own meanwhile.
    """
    if threads < 2:
        yield from map(make, keys)
        return
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[V]] = deque()
        try:
            for key in keys:
                if len(waiting) == threads:
                    yield waiting.popleft().result()
                waiting.append(pool.submit(make, key))
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
