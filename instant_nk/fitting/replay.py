"""Record a whole training step once and replay it: a GPU then no longer waits for Python to launch its kernels.

A step of these fits launches some 700 kernels that run for 2 ms and take 15 to launch. A CUDA graph launches them at once, but wants
every shape and address to stay. So a recorded step has room for a fixed number of samples, and is recorded again when that room, its
number of rays or whatever else its `key` names has changed.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import torch
from torch import Tensor

from instant_nk.fitting.ray_samples import Room
from instant_nk.fitting.recording import Pool, capture, keeper

SPARE = 1.12  # room for samples in a recording, relative to those that were counted before
STEP = 4096  # that room is a multiple of
WASTE = 0.7  # a recording is made anew where this share of its room would do

Seen = dict[str, Any]
Act = Callable[[Mapping[str, Tensor], Mapping[str, Any], Room | None], Seen]


class Eager:
    """Does a step as it is, with as many samples as there are.

    Args:
        act: the step: of what was drawn at random by name, numbers by name, and the room for samples.
    """

    def __init__(self, act: Act):
        self.act = act

    def __call__(self, drawn: Mapping[str, Tensor], numbers: Mapping[str, float], key: Hashable = None) -> Seen:
        """What the step says it saw."""
        return self.act(drawn, numbers, None)

    def expect(self, marched: int, kept: int) -> None:
        """Told how many samples the next steps will have, about."""

    def forget(self) -> None:
        """Hold no memory."""


class Replay(Eager):
    """Does a step by replaying its recording, made the second time that the same shapes and key come one after the other.

    The first time, the step is done as it will be recorded, but launch by launch: that loads what is loaded at first use, which a recording may not.
    What is returned is overwritten by the next call. A step may not make the host wait, draw random numbers, or depend on a Python
    number that neither `numbers` nor `key` holds.

    Attributes:
        recordings: made so far; room: of the last one.
    """

    def __init__(self, act: Act):
        super().__init__(act)
        self.recordings = 0
        self.forget()

    def __call__(self, drawn: Mapping[str, Tensor], numbers: Mapping[str, float], key: Hashable = None) -> Seen:
        key = (key, tuple(value.shape for value in drawn.values()))
        if self.room is None or key != self.last:
            self.graph, self.last = None, key
            return self.act(drawn, numbers, self.room)
        if self.graph is None:
            self._record(drawn, numbers)
        self._fill(drawn, numbers)
        self.graph.replay()
        return self.seen

    def expect(self, marched: int, kept: int) -> None:
        wanted = Room(*(max(1, -(-int(count * SPARE) // STEP)) * STEP for count in (marched, kept)))
        if (
            self.room is None
            or marched > self.room.marched
            or kept > self.room.kept
            or wanted.marched < WASTE * self.room.marched
            or wanted.kept < WASTE * self.room.kept
        ):
            self.room, self.graph, self.last = wanted, None, None

    def forget(self) -> None:
        self.graph: torch.cuda.CUDAGraph | None = None
        self.room: Room | None = None
        self.last: Hashable = None
        self.pool: Pool | None = None
        self.keeper: torch.cuda.CUDAGraph | None = None
        self.drawn, self.table, self.seen = {}, None, {}

    def _record(self, drawn: Mapping[str, Tensor], numbers: Mapping[str, float]) -> None:
        if self.pool is None:
            self.pool = torch.cuda.graph_pool_handle()
            self.keeper = keeper(self.pool)
        self.drawn = {name: value.clone() for name, value in drawn.items()}
        self.table = torch.zeros(len(numbers), device=next(iter(drawn.values())).device)
        values = dict(zip(numbers, self.table.unbind()))
        self.seen = {}

        def step() -> Seen:
            return self.act(self.drawn, values, self.room)

        try:
            self.graph, self.seen = capture(step, self.pool)
        except torch.OutOfMemoryError:
            pass  # outside the handler: until it is left, the exception holds the tensors of the failed recording
        if self.graph is None:  # memory that lies unused after ordinary steps is not given to a recording unless it is returned first
            gc.collect()
            torch.cuda.empty_cache()
            self.graph, self.seen = capture(step, self.pool)
        self.recordings += 1

    def _fill(self, drawn: Mapping[str, Tensor], numbers: Mapping[str, float]) -> None:
        """Copy a step's inputs to where the recording reads them."""
        for name, value in drawn.items():
            self.drawn[name].copy_(value)
        self.table.copy_(torch.tensor(list(numbers.values())), non_blocking=True)
