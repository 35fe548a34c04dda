"""What every training loop does around its step: step sizes, memory, progress, history and checkpoints."""

from __future__ import annotations

import functools
import gc
import logging
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from instant_nk.errors import NumericalError
from instant_nk.fitting import schedules, training_state
from instant_nk.fitting.adam import Adam
from instant_nk.fitting.monitor import Monitor
from instant_nk.fitting.ray_samples import Room, Samples
from instant_nk.fitting.rays import Batch, PixelSource
from instant_nk.fitting.replay import Eager, Replay, Seen
from instant_nk.kernels import _backend
from instant_nk.kernels.ahead import Call, compile_side_by_side
from instant_nk.layout import Job
from instant_nk.log import Progress
from instant_nk.models.mlp import set_mixed

logger = logging.getLogger(__name__)

NOTE_EVERY = 20  # steps between looks at the numbers: each look makes the host wait for the GPU
LEAST_SAMPLES = 1024  # per step; a device without room for so few has no room for the networks either
LEAST_RAYS = 64
MOST_RAYS = 4  # per sample wanted: of rays that meet nothing, more would not help
EMPTY_LOOKS = 20  # looks at steps without any sample after which a training is given up
SAME_RAYS = 0.12  # a recorded step keeps its ray count while it is right to this share: another count is another recording
SETTLING = 8  # steps after which a recorded training looks at its samples' number only with the other numbers


@dataclass(frozen=True)
class Interruptible:
    """Where a fit keeps its state, every how many steps, and the header that says whose it is."""

    path: Path
    every: int
    header: dict[str, Any]


@dataclass(frozen=True)
class How:
    """How to train, never what: a recorded training chooses its number of rays at other steps, and the rest is rounding.

    Attributes:
        mixed: whether the networks that allow it compute their matrix products in bfloat16.
        monitor: what shows the training while it runs; None: nothing.
        recorded: whether steps are recorded as CUDA graphs and replayed.
    """

    mixed: bool = False
    monitor: Monitor | None = None
    recorded: bool = False


PLAIN = How()
DONE = object()  # what a training that has ended yields


class Trainer:
    """A loop around `step`. Subclasses say what is trained: where a step's samples lie (`find`) and what it learns from them (`lesson`).

    Args:
        title: of log lines and messages.
        source: where rays come from.
        steps: to train for.
        samples: target number of samples along rays per step; halved for good when the device runs out of memory.
        modules: what is trained, by name.
        groups: the optimiser's parameter groups with their step sizes.
        generator: of every random choice of the training.
        ema: decay of the running mean of the weights that takes their place at the end; 0: the last ones stay.
        how: mixed precision and what shows the training.

    Attributes:
        done: steps taken; rays: of the next step; history: what was noted, by name.
    """

    NOTED: tuple[str, ...] = ()  # scalars of a step that are kept and shown, besides loss and PSNR
    ADVICE = ""  # what to do when the loss is not finite

    def __init__(
        self,
        title: str,
        source: PixelSource,
        steps: int,
        samples: int,
        modules: nn.ModuleDict,
        groups: list[dict],
        generator: torch.Generator,
        ema: float = 0.0,
        how: How = PLAIN,
    ):
        self.title, self.source, self.steps, self.samples, self.modules, self.how = title, source, steps, samples, modules, how
        self.generator, self.ema = generator, ema
        self.optimizer = Adam(groups, betas=(0.9, 0.99))
        self.trained = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        self.means = [parameter.detach().clone() for parameter in self.trained] if ema else []
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.run_step = Replay(self.act) if how.recorded else Eager(self.act)
        self.rays = max(LEAST_RAYS, samples // 16)
        self.done, self.empty = 0, 0
        self.reduced = False
        self.history: dict[str, list[float]] = {name: [] for name in ("step", "loss", "psnr_db", *self.NOTED)}

    def step(self) -> Seen:
        """One optimiser step; returns the scalars it saw (`loss`, `mse` and NOTED), still on the device."""
        self.prepare()
        rows = self.source.draw(self.rays, self.generator)
        drawn = {"rows": rows} | {
            name: torch.rand(self.rays, *shape, generator=self.generator, device=rows.device) for name, shape in (("jitter", ()), ("background", (3,)))
        }
        seen = self.run_step(drawn, self.numbers(), self.key())
        self.done += 1
        self._adapt(seen)
        return seen

    def prepare(self) -> None:
        """What is done now and then before a step, and need not be fast."""

    def numbers(self) -> dict[str, float]:
        """Python numbers of a step, by name."""
        mean = max(1 - self.ema, 1 / (self.done + 1)) if self.means else 0.0
        return {"rate": schedules.learning_rate(self.done, self.steps), "mean": mean}

    def key(self) -> Hashable:
        """Whatever else changes what a step computes: another key is another recording."""
        return None

    def find(self, batch: Batch, jitter: Tensor, room: Room | None) -> Samples:
        """The samples of a step."""
        raise NotImplementedError

    def lesson(self, samples: Samples, batch: Batch, background: Tensor, numbers: Mapping[str, Any]) -> dict[str, Tensor]:
        """What a step learns from its samples: the loss, back to the gradients; returns scalars.

        Args:
            batch: what rays should see; background: colour behind them, [R, 3].
            numbers: this step's, by name; in a recorded step as tensors [].
        """
        raise NotImplementedError

    def act(self, drawn: Mapping[str, Tensor], numbers: Mapping[str, Any], room: Room | None) -> Seen:
        """A whole step of what was drawn: samples, lesson, optimiser. See `replay.Replay` for what it may not do where there is a `room`."""
        self.optimizer.clear()
        batch = self.source.batch(drawn["rows"])
        samples = self.find(batch, drawn["jitter"], room)
        batch = replace(batch, alpha=samples.shown(batch.alpha))
        seen = self.lesson(samples, batch, drawn["background"], numbers)
        for group, rate in zip(self.optimizer.param_groups, self.rates):
            group["lr"] = rate * numbers["rate"]
        self.optimizer.step()
        for mean, parameter in zip(self.means, self.trained):
            mean.lerp_(parameter.detach(), numbers["mean"])
        return seen | {"marched": samples.marched, "kept": samples.kept}

    def rehearsals(self) -> list[Call]:
        """What a step's kernels are compiled by ahead of the first step."""
        return []

    def alike(self) -> Hashable:
        """What trainings that launch the same kernels have in common; None: nothing is known of others."""
        return None

    def extra(self) -> dict[str, Tensor]:
        """Tensors besides modules and moments that a resumed run needs."""
        return {}

    def resumed(self, extra: dict[str, Tensor]) -> None:
        """Take over what `extra` had saved."""

    def kept(self) -> None:
        """Called after a checkpoint, so that an undisturbed run goes on as a resumed one does."""

    def picture(self) -> np.ndarray:
        """A training view and its rendering side by side, u8 [H, W, 3]."""
        raise NotImplementedError

    def _adapt(self, seen: Seen) -> None:
        """Take as many rays in the next step as will march the wanted number of samples."""
        due = not self.how.recorded or self.done <= SETTLING or self.done % NOTE_EVERY == 0
        if not due and isinstance(seen["marched"], Tensor):  # to look at it is to wait; a step without room, the first of a resumed run, has numbers
            return
        marched, kept = int(seen["marched"]), int(seen["kept"])
        self.empty = 0 if marched else self.empty + 1
        if self.empty > EMPTY_LOOKS:
            raise NumericalError(f"{self.title}: no ray meets the surface any more at step {self.done} of {self.steps}. {self.ADVICE}")
        change = min(1.3, max(0.7, self.samples / max(marched, 1)))
        if not due or (self.how.recorded and abs(change - 1) <= SAME_RAYS):
            change = 1.0
        self.rays = min(max(LEAST_RAYS, int(self.rays * change)), MOST_RAYS * self.samples)
        self.run_step.expect(int(marched * change), int(kept * change))

    def advance(self) -> Seen:
        """`step`, with fewer samples where the device has no memory for all; that is said once.

        Raises:
            torch.OutOfMemoryError: even a few samples are too many.
        """
        wanted = self.samples
        while (seen := self._attempt()) is None:
            pass
        if self.samples < wanted and not self.reduced:
            self.reduced = True
            logger.warning(
                "%s: out of GPU memory at step %d with %d samples a step; going on with %d, and with fewer where that is too much",
                self.title, self.done, wanted, self.samples,
            )  # fmt: skip
        return seen

    def _attempt(self) -> Seen | None:
        """`step`, or None and half the samples when memory ran out."""
        try:
            return self.step()
        except torch.OutOfMemoryError:
            if self.samples // 2 < LEAST_SAMPLES:
                raise
        # outside the handler: until it is left, the exception holds the tensors of the failed step
        self.samples //= 2
        self.rays = max(LEAST_RAYS, self.rays // 2)
        self.run_step.forget()
        self.optimizer.clear()
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        return None

    def train(self, state: Interruptible | None) -> None:
        """Train to the end; with `state`, from where an interrupted run stopped, and keeping checkpoints.

        Raises:
            NumericalError: the loss is not finite.
        """
        for _ in self.training(state):
            pass

    def training(self, state: Interruptible | None = None) -> Iterator[None]:
        """`train`, step by step: between steps others may take theirs."""
        if state:
            self._resume(state)
        compile_side_by_side(self.rehearsals(), self.trained[0].device, self.alike())
        progress = Progress(self.title, self.steps, logger)
        with mixed_precision(self.modules, self.how.mixed):
            while self.done < self.steps:
                seen = self.advance()
                if self.done % NOTE_EVERY == 0 or self.done == self.steps:
                    self._note(seen, progress)
                if state and self.done % state.every == 0 and self.done < self.steps:
                    self._keep(state)
                yield
        self.run_step.forget()
        self.optimizer.clear()
        with torch.no_grad():
            for parameter, mean in zip(self.trained, self.means):
                parameter.copy_(mean)
        if self.how.monitor:
            self.how.monitor.close()

    def _resume(self, state: Interruptible) -> None:
        found = training_state.restore(state.path, self.modules, self.optimizer, self.generator, state.header)
        if found:
            counters, extra = found
            self.done, self.rays, self.history = counters["step"], counters["rays"], counters["history"]
            self.means = [extra[f"mean/{i}"] for i in range(len(self.means))]
            self.resumed(extra)

    def _keep(self, state: Interruptible) -> None:
        counters = {"step": self.done, "rays": self.rays, "history": self.history}
        extra = self.extra() | {f"mean/{i}": mean for i, mean in enumerate(self.means)}
        training_state.save(state.path, self.modules, self.optimizer, self.generator, counters, state.header, extra)
        self.kept()

    def _note(self, seen: Seen, progress: Progress) -> None:
        names = ("loss", "mse", *self.NOTED)
        values = dict(zip(names, torch.stack([seen[name].float() for name in names]).tolist()))  # one wait for all
        if not np.isfinite(values["loss"]):
            raise NumericalError(f"{self.title}: the loss is not finite at step {self.done} of {self.steps}. {self.ADVICE}")
        values = {"step": self.done, "loss": values["loss"], "psnr_db": -10 * float(np.log10(max(values.pop("mse"), 1e-10)))} | values
        for name in self.history:
            self.history[name].append(float(values[name]))
        del values["step"]
        progress.update(self.done, **values, rays=self.rays)
        if self.how.monitor:
            self.how.monitor.note(self.done, values | {"rays": self.rays})
            if self.how.monitor.due():
                self.how.monitor.show(self.done, self.picture())


def train_together(trainings: Sequence[Iterator[None]], device: torch.device) -> None:
    """Take steps of several trainings in turn until all have ended, on a GPU each in a stream of its own: a step of a small one leaves most of it idle."""
    if device.type != "cuda" or len(trainings) < 2:
        for training in trainings:
            for _ in training:
                pass
        return
    here = torch.cuda.current_stream(device)
    lanes = [(training, _lane(device, i)) for i, training in enumerate(trainings)]
    for _, stream in lanes:
        stream.wait_stream(here)
    going = lanes
    while going:
        still = []
        for training, stream in going:
            with torch.cuda.stream(stream):
                if next(training, DONE) is not DONE:
                    still.append((training, stream))
        going = still
    for _, stream in lanes:
        here.wait_stream(stream)


@functools.cache
def _lane(device: torch.device, number: int) -> torch.cuda.Stream:
    """One stream for the process: what torch and cuBLAS keep for a stream serves the next trainings in it."""
    return torch.cuda.Stream(device, priority=-1)


@contextmanager
def mixed_precision(modules: nn.Module, on: bool) -> Iterator[None]:
    """Within: the networks that allow it compute their matrix products in bfloat16."""
    set_mixed(modules, on)
    try:
        yield
    finally:
        set_mixed(modules, False)


def how_of(job: Job, output: Path, title: str) -> How:
    """How the `runtime` section wants the training of a job that will write `output`."""
    return How(wants_mixed(job.config.runtime.mixed_precision, job.device), Monitor.of(job, output, title), wants_recording(job))


def wants_recording(job: Job) -> bool:
    """Whether steps are recorded: on a GPU whose kernels are Triton's, which never make the host wait."""
    return job.config.runtime.cuda_graphs and torch.device(job.device).type == "cuda" and _backend.describe(job.device) == "triton"


def wants_mixed(setting: str, device: str) -> bool:
    """What `runtime.mixed_precision` means on a device: `auto` is off: bfloat16 saved 3 % of a step on an H200 (docs/kernels.md)."""
    return setting == "on" and torch.device(device).type == "cuda"
