"""A working directory in which the true Snakefile runs on the tiny capture, and how the tests watch what runs there."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from instant_nk import layout

SEQUENCE = "tiny"
WINDOWS = layout.windows([0, 1, 2, 3], 3, 2)
FIRST_TO_LAST = {
    "dataset_sequence": 1,
    "canonical_sequence": 1,
    "graph_sequence": 1,
    "observation_batch": 2,
    "registration_sequence": 1,
    "field_window": 2,
    "mesh_window": 2,
    "mesh_join": 1,
    "report_sequence": 1,
}


def quoted(value):
    return json.dumps(value) if isinstance(value, dict) else str(value)


@dataclasses.dataclass
class Place:
    """A working directory with a capture and results; Snakemake runs there with the repository's Snakefile."""

    folder: Path
    snakefile: Path

    @property
    def capture(self) -> Path:
        return self.folder / "capture"

    @property
    def paths(self) -> layout.Paths:
        return layout.Paths(self.folder / "results" / SEQUENCE)

    def command(self, *argv, **config) -> list[str]:
        config = {"capture": "capture", "sequence": SEQUENCE, "preset": "tiny", "runtime": {"device": "cpu"}} | config
        values = [f"{name}={quoted(value)}" for name, value in config.items() if value is not None]
        return [sys.executable, "-m", "snakemake", "-s", str(self.snakefile), "-d", str(self.folder), *argv, "--cores", "2", "--config", *values]

    def run(self, *argv, **config) -> subprocess.CompletedProcess:
        return subprocess.run(self.command(*argv, **config), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600)

    def start(self, *argv, **config) -> subprocess.Popen:
        # A shell's background job ignores ctrl-C and hands that on, also to the tests; a run that somebody looks at does not.
        return subprocess.Popen(
            self.command(*argv, **config), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip

    def would_run(self, *argv, **config) -> dict[str, int]:
        """Worker jobs of a dry run, by rule."""
        done = self.run("-n", *argv, **config)
        assert done.returncode == 0, done.stdout
        rows = re.findall(r"^(\w+) +(\d+)$", done.stdout.split("Job stats:")[-1], re.MULTILINE) if "Job stats:" in done.stdout else []
        return {name: int(count) for name, count in rows if name not in ("total", "all", *layout.STAGES)}

    def copy(self, folder: Path) -> Place:
        """The same with all results, in a folder of its own."""
        shutil.copytree(self.folder, folder, symlinks=True)
        return Place(folder, self.snakefile)


def instant_nk(*argv, folder: Path) -> subprocess.CompletedProcess:
    """A command of our own, run in `folder`."""
    return subprocess.run([sys.executable, "-m", "instant_nk.cli", *map(str, argv)], cwd=folder, capture_output=True, text=True, timeout=120)


def wait_for(condition, what: str, seconds: float = 300):
    """What `condition` answers as soon as that is true."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError(f"{what} did not happen within {seconds} s")


def pid_of(log: Path) -> int | None:
    """Process that writes a log; None while it has not said so."""
    found = re.search(r"pid=(\d+)", log.read_text()) if log.exists() else None
    return found and int(found.group(1))


@contextlib.contextmanager
def training_held(finished: Place, folder: Path) -> Iterator[tuple[Place, subprocess.Popen]]:
    """A copy of `finished` and a Snakemake that trains its first window anew there: held still within the block, then let go on."""
    place = finished.copy(folder)
    log = place.paths.logs / f"6_field.{WINDOWS[0]}.log"
    for path in (log, place.paths.field(WINDOWS[0])):
        path.unlink()
    process = place.start("field")
    worker = wait_for(lambda: pid_of(log), "the start of a window")
    os.kill(worker, signal.SIGSTOP)
    try:
        yield place, process
    finally:
        os.kill(worker, signal.SIGCONT)


def checkpoints(paths: layout.Paths) -> list[Path]:
    """Whole checkpoints of windows that train, or did until they were killed."""
    return [path for path in paths.field_dir.glob("*.partial*") if not path.name.startswith(".")]
