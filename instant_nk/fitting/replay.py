"""Record a training step's arithmetic once and replay it: a GPU then no longer waits for Python to launch its kernels.

A step of these fits launches some 370 kernels that run for 3 ms and take 12 ms to launch. A CUDA graph launches them at once, but
wants every shape and address to stay. So samples are padded to a fixed count, on rays of their own that nothing looks at, and
the recording is made again whenever a shape or whatever else `key` names has changed.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

SPARE = 1.15  # room for samples in a recording, relative to those it was made with
STEP = 4096  # that room is a multiple of
WASTE = 0.6  # a recording is made anew for fewer samples than this share of those it was made with
PADDING = 32  # padded samples per ray of their own: a kernel walks a ray at a time


@dataclass(frozen=True)
class Samples:
    """What a lesson is given: samples along rays, what the rays should see, and which samples count.

    Attributes:
        at: values of each sample by name, [N, ...]; `ray`, i64 [N], ascending, is among them.
        seen: values of each ray by name, [R, ...].
        values: scalars of the step by name, as tensors [].
        rays: number of rays to composite, R or more: rays from R on hold padding.
        valid: bool [N], or None where all samples count.
    """

    at: dict[str, Tensor]
    seen: dict[str, Tensor]
    values: dict[str, Tensor]
    rays: int
    valid: Tensor | None = None

    def of_rays(self, values: Tensor) -> Tensor:
        """Of a value per composited ray, those of the rays that see something [R, ...]."""
        return values[: len(next(iter(self.seen.values())))]

    def mean(self, values: Tensor) -> Tensor:
        """Mean of a value per sample [N] over the samples that count."""
        if self.valid is None:
            return values.mean()
        return torch.where(self.valid, values, 0).sum() / self.valid.sum()


Lesson = Callable[[Samples], dict[str, Tensor]]


class Eager:
    """Runs a lesson as it is, with the gradients of `parameters` cleared before."""

    def __init__(self, lesson: Lesson, parameters: list[torch.nn.Parameter]):
        self.lesson, self.parameters = lesson, parameters

    def __call__(self, samples: Samples, key: Hashable = None) -> dict[str, Tensor]:
        """The lesson's scalars; gradients are left in the parameters."""
        for parameter in self.parameters:
            parameter.grad = None
        return self.lesson(samples)


class Replay:
    """Runs a lesson by replaying its recording, made the second time that the same shapes and key come one after the other.

    What it returns is overwritten by the next call. A lesson may not make the host wait, draw random numbers, or depend on a
    Python number that `key` does not hold; it adds to the gradients of `parameters`, which are zeroed before.
    """

    def __init__(self, lesson: Lesson, parameters: list[torch.nn.Parameter]):
        self.lesson, self.parameters = lesson, parameters
        self.pool = torch.cuda.graph_pool_handle()
        self.stream = torch.cuda.Stream()
        self.keeper = self._captured(lambda: torch.zeros(1, device="cuda"))[0]  # holds the pool between recordings: memory of one serves the next
        self.graph: torch.cuda.CUDAGraph | None = None
        self.last: Hashable = None
        self.recordings = 0

    def __call__(self, samples: Samples, key: Hashable = None) -> dict[str, Tensor]:
        """The lesson's scalars; gradients are left in the parameters."""
        count = len(samples.at["ray"])
        key = (key, samples.rays)
        if self.graph is not None and key == self.last and self.least <= count <= self.room:
            self._fill(samples, count)
            self.graph.replay()
            return self.told
        self.graph = None
        if key == self.last and count:
            self._record(samples, count)
            self.graph.replay()
            return self.told
        self.last = key
        return self._run(samples)

    def _run(self, samples: Samples) -> dict[str, Tensor]:
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        if gradients:
            torch._foreach_zero_(gradients)
        return self.lesson(samples)

    def _record(self, samples: Samples, count: int) -> None:
        for parameter in self.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self.least, self.room = WASTE * count, -(-int(count * SPARE) // STEP) * STEP
        device = samples.at["ray"].device
        self.numbers = torch.arange(self.room, device=device)
        self.own_rays = samples.rays + self.numbers // PADDING
        self.count = torch.zeros((), dtype=torch.int64, device=device)
        # Room beyond the samples repeats the first one: a place where everything is finite.
        at = {name: value.detach()[:1].expand(self.room, *value.shape[1:]).contiguous() for name, value in samples.at.items()}
        seen = {name: value.detach().clone() for name, value in samples.seen.items()}
        values = {name: value.detach().clone() for name, value in samples.values.items()}
        self.fixed = Samples(at, seen, values, samples.rays + self.room // PADDING + 1)
        self._fill(samples, count)
        self.told = {}
        self.graph, self.told = self._captured(lambda: self._run(Samples(at, seen, values, self.fixed.rays, self.numbers < self.count)))
        self.recordings += 1

    def _captured(self, work: Callable[[], Any]) -> tuple[torch.cuda.CUDAGraph, Any]:
        """A graph of what `work` launches, and what it returned."""
        graph = torch.cuda.CUDAGraph()
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            graph.capture_begin(pool=self.pool, capture_error_mode="relaxed")
            try:
                result = work()
            finally:
                graph.capture_end()
        torch.cuda.current_stream().wait_stream(self.stream)
        return graph, result

    def _fill(self, samples: Samples, count: int) -> None:
        """Copy a step's tensors to where the recording reads them."""
        fixed = self.fixed
        for name, value in samples.at.items():
            fixed.at[name][:count].copy_(value)
        fixed.at["ray"][count:].copy_(self.own_rays[: self.room - count])
        for name, value in samples.seen.items():
            fixed.seen[name].copy_(value)
        for name, value in samples.values.items():
            fixed.values[name].copy_(value)
        self.count.fill_(count)
