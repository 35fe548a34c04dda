"""The true Snakefile, killed or interrupted while it trains, and then the same command again."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

from instant_nk.io import artifact
from tests.integration.workflow_place import WINDOWS, Place, checkpoints, pid_of, wait_for

SLOW = {"field": {"steps": 60, "checkpoint_every": 5}}
LONG = {"field": {"steps": 2000, "checkpoint_every": 5}}  # never trained to the end


def fresh_windows(finished: Place, folder: Path) -> Place:
    """A copy of `finished` without its fields and their logs, so that `field` trains its two windows."""
    place = finished.copy(folder)
    shutil.rmtree(place.paths.field_dir)
    for log in place.paths.logs.glob("6_field*.log"):
        log.unlink()
    return place


@pytest.fixture(scope="module")
def undisturbed(finished, tmp_path_factory) -> Place:
    """Both windows trained with SLOW in one go."""
    place = fresh_windows(finished, tmp_path_factory.mktemp("undisturbed") / "run")
    done = place.run("field", **SLOW)
    assert done.returncode == 0, done.stdout
    return place


def assert_same_fields(place, undisturbed):
    for window in WINDOWS:
        with np.load(place.paths.field(window)) as ours, np.load(undisturbed.paths.field(window)) as theirs:
            assert sorted(ours.files) == sorted(theirs.files)
            for name in ours.files:
                if name != artifact.HEADER:
                    np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-4, atol=1e-5, err_msg=f"{window} {name}")


def test_a_worker_killed_in_training_resumes_and_ends_as_if_undisturbed(finished, undisturbed, tmp_path):
    place = fresh_windows(finished, tmp_path / "run")
    window = WINDOWS[0]
    log = place.paths.logs / f"6_field.{window}.log"
    process = place.start("field", **SLOW)
    wait_for(lambda: any(window in path.name for path in checkpoints(place.paths)), "the first checkpoint")
    os.kill(pid_of(log), signal.SIGKILL)
    said, _ = process.communicate(timeout=120)
    assert process.returncode != 0, said
    assert not place.paths.field(window).exists()
    done = place.run("field", **SLOW)
    assert done.returncode == 0, done.stdout
    assert "resum" in log.read_text()
    assert_same_fields(place, undisturbed)
    assert not checkpoints(place.paths)


def test_a_killed_workflow_says_how_to_unlock_and_then_completes(finished, undisturbed, tmp_path):
    place = fresh_windows(finished, tmp_path / "run")
    process = place.start("field", **SLOW)
    wait_for(lambda: len(checkpoints(place.paths)) == 2, "a checkpoint of both windows")
    workers = [pid_of(log) for log in place.paths.logs.glob("6_field*.log")]
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers), "the end of the orphaned workers", seconds=15)
    locked = place.run("field", **SLOW)
    assert locked.returncode != 0
    assert "--unlock" in locked.stdout
    assert place.run("field", "--unlock", **SLOW).returncode == 0
    done = place.run("field", **SLOW)
    assert done.returncode == 0, done.stdout
    assert_same_fields(place, undisturbed)


def test_an_interrupted_run_leaves_no_note_and_no_lock(finished, tmp_path):
    place = fresh_windows(finished, tmp_path / "run")
    process = place.start("field", **LONG)
    wait_for(lambda: checkpoints(place.paths), "a checkpoint")
    os.killpg(process.pid, signal.SIGINT)  # as ctrl-C in a terminal does
    said, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert len(checkpoints(place.paths)) >= 1, "training goes on from there"
    assert not (place.paths.root / ".run.json").exists(), said
    assert place.would_run("field", **LONG)["field_window"] >= 1, "no lock is left"
