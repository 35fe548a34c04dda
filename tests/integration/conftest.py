"""The tiny capture and its results, made once however many processes test side by side; every test module gets a copy of its own."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from instant_nk import config as schema
from instant_nk.io import synthetic
from tests.integration.workflow_place import Place


@pytest.fixture(scope="session")
def made_once(tmp_path_factory) -> Callable[[str, Callable[[Path], None]], Path]:
    """Function: the folder of this name, which the first process to ask has filled by calling `make` on it."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base  # each worker of a run has a folder in the run's own

    def folder(name: str, make: Callable[[Path], None]) -> Path:
        path, done = shared / f"once-{name}", shared / f"once-{name}.done"
        with open(shared / f"once-{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():  # made in its place: a dataset's manifest names the capture's images by their full paths
                shutil.rmtree(path, ignore_errors=True)
                path.mkdir()
                make(path)
                done.touch()
        return path

    return folder


@pytest.fixture(scope="session")
def untouched(made_once, repository) -> Place:
    """A capture and nothing else, for all processes: to be copied, not to be run."""

    def make(folder: Path) -> None:
        synthetic.write(schema.parse({"preset": "tiny"}), folder / "capture")

    return Place(made_once("untouched", make), repository / "Snakefile")


@pytest.fixture(scope="module")
def empty(untouched, tmp_path_factory) -> Place:
    """A capture and nothing else."""
    return untouched.copy(tmp_path_factory.mktemp("empty") / "run")


@pytest.fixture(scope="module")
def finished(made_once, untouched, tmp_path_factory) -> Place:
    """The same capture with all stages done, by one plain call on two cores."""

    def make(folder: Path) -> None:
        place = untouched.copy(folder / "run")
        done = place.run()
        assert done.returncode == 0, done.stdout

    return Place(made_once("finished", make) / "run", untouched.snakefile).copy(tmp_path_factory.mktemp("finished") / "run")
