"""The same arithmetic many times over with other numbers: recorded once and replayed on a GPU, where launching takes longer than computing.

A recording reads and writes fixed places. What the work is given is copied there first, so that a recording made for one frame serves all whose
shapes are the same: making one takes as long as twenty launched repetitions.
"""

from __future__ import annotations

import dataclasses
import functools
import weakref
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from instant_nk.fitting.recording import Pool, capture, keeper

RECORD = True
LEAST = 4  # repetitions that are worth a recording when the same work comes for the first time; at the second it is made anyway
LARGE = 1500  # rows of the state from which on the arithmetic takes longer than launching it, and a recording would only hold memory
KEPT = 24  # recordings, each with a copy of what it was given
State = tuple[Tensor, ...]
T = TypeVar("T")


def repeat(work: Callable[..., State], state: State, rows: Sequence[tuple[float, ...]], given: tuple = ()) -> State:
    """The state after `state = work(*state, *row, *given)` for every row.

    On a GPU the numbers of a row arrive as tensors, and `work` may neither make the host wait nor depend on it, nor change what it is given.

    Args:
        work: a function of its arguments alone, the same object every time.
        given: tensors, numbers, names, None, and lists, tuples and dataclasses of these; fields of a dataclass that do not count in
            comparisons are passed on as they are, and may not matter.
    """
    if not _on_gpu(state[0]):
        for row in rows:
            state = work(*state, *row, *given)
        return state
    table = torch.tensor(rows, dtype=torch.float64).to(state[0].device)
    key = (work, len(table), shape_of(state), shape_of(given)) if RECORD and len(state[0]) <= LARGE else None
    recording = _recordings.pop(key, None) if key else None
    if not recording and (not key or (len(table) < LEAST and key not in _seen)):
        _seen.add(key)
        for numbers in table:
            state = work(*state, *numbers, *given)
        return state
    if recording:
        recording.load(state, given)
    else:
        state = work(*state, *table[0], *given)  # loads what is loaded at first use, which a recording may not
        table = table[1:]
        while len(_recordings) >= KEPT:
            torch.cuda.current_stream().synchronize()  # it may still be running
            _recordings.pop(next(iter(_recordings)))
        recording = Recording(work, state, table.new_zeros(table.shape[1]), given)
    _recordings[key] = recording  # now the last to be dropped
    return recording.play(table)


def forget() -> None:
    """Hold no memory: to be called where one job ends and another may begin."""
    if _recordings:
        torch.cuda.current_stream().synchronize()
    _recordings.clear()
    _seen.clear()
    _memory.cache_clear()


class Recording:
    """One repetition of some work, recorded, and the places it reads and writes."""

    def __init__(self, work: Callable[..., State], state: State, numbers: Tensor, given: tuple):
        self.state = tuple(t.clone() for t in state)
        self.numbers = numbers
        self.given = [t.clone() for t in tensors_of(given)]
        self.sources = [_Version(t) for t in tensors_of(given)]
        inputs = with_tensors(given, iter(self.given))

        def once() -> None:
            result = work(*self.state, *self.numbers.unbind(), *inputs)
            kept = {t.untyped_storage().data_ptr() for t in self.state}  # what is passed on must be read before its place is written
            result = [new.clone() if new.untyped_storage().data_ptr() in kept else new for new in result]
            for t, new in zip(self.state, result, strict=True):
                t.copy_(new)

        self.graph, _ = capture(once, _memory()[0])

    def load(self, state: State, given: tuple) -> None:
        """Copy what a call is given to where the recording reads it, but for tensors that were there the last time."""
        for place, value in zip(self.state, state):
            place.copy_(value)
        for i, value in enumerate(tensors_of(given)):
            if not self.sources[i].is_of(value):
                self.given[i].copy_(value)
                self.sources[i] = _Version(value)

    def play(self, table: Tensor) -> State:
        """The state after a repetition for every row of numbers [R, numbers]."""
        for row in table:
            self.numbers.copy_(row)
            self.graph.replay()
        return tuple(t.clone() for t in self.state)


class _Version:
    """A tensor as it was at some time, without holding it."""

    def __init__(self, tensor: Tensor):
        self.tensor, self.number = weakref.ref(tensor), tensor._version

    def is_of(self, tensor: Tensor) -> bool:
        return self.tensor() is tensor and tensor._version == self.number


def _counts(value: Any) -> list[tuple[str, Any]]:
    """Fields of a dataclass that count."""
    return [(f.name, getattr(value, f.name)) for f in dataclasses.fields(value) if f.init and f.compare]


def tensors_of(given: Any) -> Iterator[Tensor]:
    """All tensors in it, in order."""
    if isinstance(given, Tensor):
        yield given
    elif isinstance(given, (tuple, list)):
        for part in given:
            yield from tensors_of(part)
    elif dataclasses.is_dataclass(given):
        for _, part in _counts(given):
            yield from tensors_of(part)


def shape_of(given: Any) -> Hashable:
    """Everything but the tensors' values.

    Raises:
        TypeError: something that is not known to stay the same.
    """
    if isinstance(given, Tensor):
        return tuple(given.shape), given.dtype, given.device
    if isinstance(given, (tuple, list)):
        return tuple(shape_of(part) for part in given)
    if dataclasses.is_dataclass(given):
        return (type(given), *(shape_of(part) for _, part in _counts(given)))
    if given is None or isinstance(given, (int, float, str)):
        return type(given), given
    raise TypeError(f"a recording cannot be given {type(given).__name__}")


def with_tensors(given: T, tensors: Iterator[Tensor]) -> T:
    """The same with other tensors, taken in the order of `tensors_of`."""
    if isinstance(given, Tensor):
        return next(tensors)
    if isinstance(given, (tuple, list)):
        return type(given)(with_tensors(part, tensors) for part in given)
    if dataclasses.is_dataclass(given):
        return dataclasses.replace(given, **{name: with_tensors(part, tensors) for name, part in _counts(given)})
    return given


_recordings: dict[Hashable, Recording] = {}  # the one used last at the end
_seen: set[Hashable] = set()


def _on_gpu(tensor: Tensor) -> bool:
    return tensor.is_cuda


@functools.cache
def _memory() -> tuple[Pool, torch.cuda.CUDAGraph]:
    """The pool that one recording leaves to the next, and what holds it."""
    pool = torch.cuda.graph_pool_handle()
    return pool, keeper(pool)
