"""How far a sequence is: which jobs are done, running, failed or waiting, read from its logs and outputs while it runs."""

from __future__ import annotations

import dataclasses
import platform
import re
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from instant_nk import config as schema
from instant_nk import layout
from instant_nk.errors import InstantNKError
from instant_nk.io import artifact, dataset, run_note
from instant_nk.layout import Paths

SILENT_S = 120.0  # a job on another machine that logs nothing for so long is taken for dead; progress is logged every 10 s
PROGRESS = re.compile(r"step=(\d+)/(\d+).*? left_s=(\S+)")


@dataclass(frozen=True)
class Work:
    """One job of the workflow.

    Attributes:
        stage: its stage.
        part: window or batch; None where the stage is one job.
        state: done, running, failed or waiting.
        wall_s: how long it took, where it is done and measured.
        left_s: what it says it still needs, where it runs.
        says: progress of a running job, or the error of a failed one.
        log: where it writes what it does.
    """

    stage: str
    part: str | None
    log: Path
    state: str
    wall_s: float | None = None
    left_s: float | None = None
    says: str = ""


def run_status(paths: Paths) -> str:
    """A table of the stages, who runs them, then a line for each job that runs or failed."""
    jobs = one_at_a_time([look(paths, stage, part, log) for stage, part, log in expected(paths)])
    lines = [f"{'stage':<14}{'done':>9}{'running':>9}{'failed':>8}{'waiting':>9}{'s a job':>10}{'left':>10}"]
    for stage in layout.STAGES:
        lines.append(stage_line(stage, [job for job in jobs if job.stage == stage]))
    notes = [f"{job.stage} {job.part or ''}: {job.state}, {job.says}" for job in jobs if job.state in ("running", "failed")]
    if run := run_note.describe(paths.root):
        lines.append(run)
    return "\n".join([*lines, *([""] if notes else []), *notes])


def expected(paths: Paths) -> list[tuple[str, str | None, Path]]:
    """Every part of every stage as far as it can be known by now, in order, with the log of the job that computes it."""
    try:
        frames = list(dataset.load(paths.manifest).frames)
    except InstantNKError:
        frames = []
    parts: dict[str, list[str]] = {}
    if frames and (used := used_config(paths, "observation")):
        parts["observation"] = layout.batches(frames, used.observation.frames_per_job)
    if frames and (used := used_config(paths, "field")):
        parts["field"] = layout.windows(frames, used.field.window_frames, used.field.overlap)
        parts["mesh"] = parts["field"]
    spans = {window: span for span, windows in layout.spans(parts.get("field", [])).items() for window in windows}
    result: list[tuple[str, str | None, Path]] = []
    for stage in layout.STAGES:
        if stage in ("observation", "field", "mesh"):
            job_of = {} if stage == "observation" else spans
            result += [(stage, part, log_path(paths, stage, job_of.get(part, part))) for part in parts.get(stage, seen_in_logs(paths, stage))]
        if stage not in ("observation", "field"):
            result.append((stage, None, log_path(paths, stage, None)))
    return result


def one_at_a_time(works: list[Work]) -> list[Work]:
    """The parts of one job share its time and follow each other: only the first that is not done can be running or have failed."""
    seen: set[Path] = set()
    parts = Counter(work.log for work in works)
    result = []
    for work in works:
        if work.wall_s is not None:
            work = dataclasses.replace(work, wall_s=work.wall_s / parts[work.log])
        if work.state in ("running", "failed") and work.log in seen:
            work = dataclasses.replace(work, state="waiting", left_s=None, says="")
        elif work.state in ("running", "failed"):
            seen.add(work.log)
        result.append(work)
    return result


def used_config(paths: Paths, stage: str) -> schema.Config | None:
    """The config a stage last ran with, from beside its outputs."""
    path = paths.stage_dir(stage) / "config.json"
    return schema.parse(artifact.load_json(path)["config"]) if path.is_file() else None


def log_path(paths: Paths, stage: str, part: str | None) -> Path:
    return paths.logs / f"{paths.stage_dir(stage).name}{'.' + part if part else ''}.log"


def seen_in_logs(paths: Paths, stage: str) -> list[str]:
    return sorted(path.name.split(".")[1] for path in paths.logs.glob(f"{paths.stage_dir(stage).name}.*-*.log"))


def output_of(paths: Paths, stage: str, part: str | None) -> Path:
    """The file whose presence says that a job is done."""
    if part is not None:
        return {"observation": paths.observation_batch, "field": paths.field, "mesh": paths.mesh_window}[stage](part)
    single = {"dataset": paths.manifest, "canonical": paths.canonical_mesh, "graph": paths.graph, "registration": paths.motion}
    mesh = paths.surfaces if paths.surfaces.is_file() else paths.animation
    return (single | {"mesh": mesh, "report": paths.report_page})[stage]


def look(paths: Paths, stage: str, part: str | None, log: Path) -> Work:
    """State of one part of a stage."""
    if output_of(paths, stage, part).is_file():
        return Work(stage, part, log, "done", wall_s=measured_s(log.with_suffix(".tsv")))
    if not log.is_file():
        return Work(stage, part, log, "waiting")
    lines = log.read_text(errors="replace").splitlines()
    last = lines[-1] if lines else "no line in its log yet"
    if alive(lines[0] if lines else "", log):
        steps = [match for line in lines if (match := PROGRESS.search(line))]
        left = float(steps[-1][3]) if steps else None
        return Work(stage, part, log, "running", left_s=left, says=f"step {steps[-1][1]} of {steps[-1][2]}, {left:.0f} s left" if steps else "started")
    return Work(
        stage, part, log, "failed", says=f"{last} ({log})" if last.startswith("error: ") else f"it ended without a word ({log}); the same command runs it again"
    )


def alive(first_line: str, log: Path) -> bool:
    """Whether the process that began a log still runs; of one on another machine, whether the log is fresh."""
    host, pid = re.search(r"host=(\S+)", first_line), re.search(r"pid=(\d+)", first_line)
    if host and pid and host[1] == platform.node():
        return run_note.process_lives(int(pid[1]))
    return time.time() - log.stat().st_mtime < SILENT_S


def measured_s(table: Path) -> float | None:
    """Wall time from Snakemake's benchmark table."""
    rows = table.read_text().splitlines() if table.is_file() else []
    return float(rows[1].split("\t")[0]) if len(rows) > 1 else None


def stage_line(stage: str, jobs: list[Work]) -> str:
    states = Counter(job.state for job in jobs)
    times = [job.wall_s for job in jobs if job.wall_s is not None]
    mean = sum(times) / len(times) if times else None
    left = time_left(jobs, mean)
    cells = f"{states['done']}/{len(jobs)}", states["running"], states["failed"], states["waiting"]
    return f"{stage:<14}{cells[0]:>9}{cells[1]:>9}{cells[2]:>8}{cells[3]:>9}{_seconds(mean):>10}{_seconds(left):>10}"


def time_left(jobs: list[Work], mean: float | None) -> float | None:
    """Seconds until the stage is done: what its running jobs say, then its waiting ones as many at a time as run now; None where unknown."""
    running = [job.left_s for job in jobs if job.state == "running"]
    waiting = sum(job.state in ("waiting", "failed") for job in jobs)
    if (waiting and mean is None) or None in running or not (running or waiting):
        return None
    return max(running, default=0.0) + (waiting * (mean or 0.0)) / max(len(running), 1)


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f} s"
