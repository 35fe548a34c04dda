"""Where everything lies under results/, how windows are named, and the stages' versions. Imports no torch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instant_nk.config import Config
from instant_nk.errors import ConfigError, ContractError

# Raise a stage's version when its result changes for the same input and config: Snakemake then re-runs it.
STAGE_VERSION = {
    "synthetic": 1,
    "dataset": 4,
    "canonical": 5,
    "graph": 2,
    "observation": 7,
    "registration": 12,
    "field": 5,
    "mesh": 5,
    "report": 2,
}
PART_STAGES = {"observation": "a batch of frames", "field": "a window"}  # stages that work on a part only; `mesh` joins its windows without one
STAGES = ("dataset", "canonical", "graph", "observation", "registration", "field", "mesh", "report")

# The config each stage reads: whole sections or single keys. The rules pass exactly this (so only its change re-runs the stage),
# and a stage that reads anything else fails.
STAGE_READS = {
    "synthetic": ("synthetic",),
    "dataset": ("dataset", "frames", "capture", "synthetic"),
    "canonical": ("canonical",),
    "graph": ("graph", "registration.source", "registration.folder"),
    "observation": ("observation",),
    "registration": ("registration",),
    "field": ("field",),
    "mesh": ("mesh", "field.dyna_mode", "field.window_frames", "field.overlap", "report.fps"),
    "report": ("report", "field.dyna_mode", "field.window_frames", "field.overlap", "observation.frames_per_job"),
}


BATCHES_PER_SEQUENCE = 32  # jobs of a parallel stage: enough to keep a rack of GPUs busy; more would spend their time starting


@dataclass(frozen=True)
class Paths:
    """Every path of one sequence: `results/{sequence}/1_dataset … 8_report`."""

    root: Path

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    def stage_dir(self, stage: str) -> Path:
        """Folder of a stage's outputs: `6_field` for `field`."""
        return self.root / f"{STAGES.index(stage) + 1}_{stage}"

    @property
    def dataset(self) -> Path:
        return self.root / "1_dataset"

    @property
    def manifest(self) -> Path:
        return self.dataset / "dataset.json"

    @property
    def canonical(self) -> Path:
        return self.root / "2_canonical"

    @property
    def canonical_field(self) -> Path:
        return self.canonical / "field.npz"

    @property
    def canonical_mesh(self) -> Path:
        return self.canonical / "mesh.npz"

    @property
    def graph_dir(self) -> Path:
        return self.root / "3_graph"

    @property
    def graph(self) -> Path:
        return self.graph_dir / "graph.npz"

    @property
    def observation_dir(self) -> Path:
        return self.root / "4_observation"

    def observation(self, frame: int) -> Path:
        return self.observation_dir / f"{frame:06d}.npz"

    def observation_batch(self, batch: str) -> Path:
        """Numbers of one batch of frames; its presence says that the batch is done."""
        return self.observation_dir / "batches" / f"{batch}.json"

    @property
    def registration(self) -> Path:
        return self.root / "5_registration"

    @property
    def motion(self) -> Path:
        return self.registration / "motion.npz"

    @property
    def field_dir(self) -> Path:
        return self.root / "6_field"

    def field_span(self, span: str) -> Path:
        """Its presence says that all windows of a long capture's span are trained."""
        return self.field_dir / "spans" / f"{span}.json"

    def mesh_span(self, span: str) -> Path:
        """Its presence says that all windows of a long capture's span are carried."""
        return self.mesh / "spans" / f"{span}.json"

    def field(self, window: str) -> Path:
        return self.field_dir / f"{window}.npz"

    @property
    def mesh(self) -> Path:
        return self.root / "7_mesh"

    def mesh_window(self, window: str) -> Path:
        return self.mesh / "windows" / f"{window}.npz"

    @property
    def animation(self) -> Path:
        return self.mesh / "animation.npz"

    @property
    def surfaces(self) -> Path:
        """In place of `animation` where `field.dyna_mode` does not track: numbers; its presence says that `frames/` is whole."""
        return self.mesh / "surfaces.json"

    @property
    def texture(self) -> Path:
        return self.mesh / "texture.npz"

    def texture_frame(self, frame: int) -> Path:
        """The texture of one frame, in the layout of `texture`; there with `mesh.texture: per_frame` only."""
        return self.mesh / "texture" / f"{frame:06d}.png"

    def mesh_frame(self, frame: int) -> Path:
        return self.mesh / "frames" / f"{frame:06d}.ply"

    @property
    def animation_glb(self) -> Path:
        return self.mesh / "animation.glb"

    @property
    def report(self) -> Path:
        return self.root / "8_report"

    @property
    def report_page(self) -> Path:
        return self.report / "index.html"

    @property
    def report_preview(self) -> Path:
        """A small moving picture of the animated mesh."""
        return self.report / "turntable.gif"

    @property
    def metrics(self) -> Path:
        return self.report / "metrics.json"


@dataclass(frozen=True)
class Job:
    """One call of a stage: the effective config, the sequence's paths, the device, and which part of the stage it is.

    Attributes:
        part: frame batch or window this job computes (named by `part_name`); None where a stage is one job.
    """

    config: Config
    paths: Paths
    device: str = "cpu"
    part: str | None = None


def paths_of(config: Config) -> Paths:
    return Paths(Path(config.runtime.results) / config.sequence)


def results_of(folder: Path | str) -> Paths:
    """Paths of a sequence that was run, or is running.

    Raises:
        ContractError: no such folder, or one that holds nothing of a sequence.
    """
    paths = Paths(Path(folder))
    if not paths.root.is_dir():
        raise ContractError(f"{paths.root}: no such folder. Give the folder of one sequence, e.g. results/demo.")
    if not any(paths.stage_dir(stage).is_dir() for stage in STAGES):
        raise ContractError(f"{paths.root}: holds no stage's results yet (1_dataset … 8_report). Give the folder of one sequence, e.g. results/demo.")
    return paths


def part_file(stage: str, paths: Paths, part: str) -> Path:
    """What a stage that works on windows writes for one of them."""
    return {"field": paths.field, "mesh": paths.mesh_window}[stage](part)


def check_part(stage: str, part: str | None) -> None:
    """Refuse a stage without the part it needs, or with one it does not know.

    Raises:
        ConfigError: says which of both.
    """
    if part is None and stage in PART_STAGES:
        raise ConfigError(
            f"stage '{stage}' works on {PART_STAGES[stage]} of the sequence: give --part FIRST-LAST, e.g. 000000-000009. `snakemake` runs them all."
        )
    if part is not None and stage not in (*PART_STAGES, "mesh"):
        raise ConfigError(f"stage '{stage}' is one job for the whole sequence: leave --part out, got '{part}'.")


def part_name(first: int, last: int) -> str:
    """Name of a window or batch from its inclusive first and last absolute frame: `000000-000009`."""
    return f"{first:06d}-{last:06d}"


def part_frames(name: str) -> tuple[int, int]:
    """Inverse of `part_name`."""
    first, _, last = name.partition("-")
    if not (first.isdigit() and last.isdigit() and int(first) <= int(last)):
        raise ConfigError(f"'{name}' is not a range of frames; wanted e.g. 000000-000009")
    return int(first), int(last)


def windows(frames: list[int], length: int, overlap: int) -> list[str]:
    """Names of the windows that cover `frames`: equally long within one frame, at most `length`, sharing `overlap` frames or more.

    The count is the smallest that covers the frames; lengths are balanced so that no window is a stump.
    """
    n = len(frames)
    if n <= length:
        return [part_name(frames[0], frames[-1])]
    count = -(-(n - overlap) // (length - overlap))
    result = []
    for i in range(count):
        start = round(i * (n - length) / (count - 1))
        result.append(part_name(frames[start], frames[start + length - 1]))
    return result


def batches(frames: list[int], size: int | None = None) -> list[str]:
    """Names of the disjoint batches of at most `size` frames that cover `frames`, equally long within one frame.

    None: 4 frames, and more where that would make more than BATCHES_PER_SEQUENCE jobs.
    """
    size = size or max(4, -(-len(frames) // BATCHES_PER_SEQUENCE))
    count = -(-len(frames) // size)
    edges = [round(i * len(frames) / count) for i in range(count + 1)]
    return [part_name(frames[a], frames[b - 1]) for a, b in zip(edges, edges[1:])]


def spans(windows: list[str]) -> dict[str, list[str]]:
    """The windows of a long capture gathered for one job each: neighbours, by the name of the frames they cover.

    Empty where there are few enough windows (up to twice BATCHES_PER_SEQUENCE) for every one to be a job of its own.
    """
    if len(windows) <= 2 * BATCHES_PER_SEQUENCE:
        return {}
    edges = [round(i * len(windows) / BATCHES_PER_SEQUENCE) for i in range(BATCHES_PER_SEQUENCE + 1)]
    groups = [windows[a:b] for a, b in zip(edges, edges[1:])]
    return {part_name(part_frames(group[0])[0], part_frames(group[-1])[1]): group for group in groups}


def select(frames: list[int], part: str) -> list[int]:
    """The frames of the sequence that lie in `part`.

    Raises:
        ConfigError: there are none.
    """
    first, last = part_frames(part)
    found = [f for f in frames if first <= f <= last]
    if not found:
        raise ConfigError(f"'{part}' holds no frame of the sequence, which has {frames[0]} to {frames[-1]}.")
    return found


def stage_config(config: Config, stage: str) -> dict:
    """The section whose change re-runs `stage`, as plain values."""
    return dataclasses.asdict(getattr(config, stage))


def stage_values(config: Config, stage: str) -> dict[str, Any]:
    """What `stage` reads of the config (`STAGE_READS`), as a nested table of plain values that `config.parse` accepts."""
    result: dict[str, Any] = {}
    for name in STAGE_READS[stage]:
        section, _, item = name.partition(".")
        value = getattr(config, section)
        if item:
            result.setdefault(section, {})[item] = getattr(value, item)
        else:
            result[section] = dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value
    return result
