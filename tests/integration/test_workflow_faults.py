"""The true Snakefile on a bad image, a full disk, beside another run, on a capture that changes meanwhile, with a clock that is ahead."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time

import pytest

from instant_nk import layout
from instant_nk.io import artifact
from tests.integration.workflow_place import SEQUENCE, WINDOWS, Place, instant_nk, training_held


def test_a_failed_job_shows_its_error_last_and_leaves_nothing(empty, tmp_path):
    place = empty.copy(tmp_path / "run")
    image = sorted((place.capture / "images" / "1").iterdir())[0]
    image.write_bytes(image.read_bytes()[:60])
    done = place.run("dataset")
    assert done.returncode != 0
    after = done.stdout.split("Exiting because a job execution failed")[1]
    assert re.search(rf"1_dataset\.log: error: DataError: .*images/1/{image.name}", after)
    assert not place.paths.manifest.exists()


# A disk that is full, then read-only, then neither.


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk of its own, and a function that mounts it again with other options."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(folder)], capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    yield folder, lambda options: subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_is_said_and_nothing_is_lost(empty, small_disk):
    disk, remount = small_disk
    runtime = {"device": "cpu", "results": str(disk)}
    paths = layout.Paths(disk / SEQUENCE)
    done = empty.run("canonical", runtime=runtime)
    assert done.returncode != 0
    assert re.search(r"could not be written: No space left on device.*free space", done.stdout, re.IGNORECASE), done.stdout
    assert not paths.canonical_mesh.exists()
    assert not [path for path in paths.canonical.rglob("*.npz") if ".partial" not in path.name]
    remount("size=50m")
    done = empty.run("canonical", runtime=runtime)
    assert done.returncode == 0, done.stdout
    assert paths.canonical_mesh.is_file()
    remount("ro")
    done = empty.run("graph", runtime=runtime)
    assert done.returncode != 0
    assert "Read-only file system" in done.stdout
    assert paths.canonical_mesh.is_file()
    remount("rw")
    assert empty.run("graph", runtime=runtime).returncode == 0


# Two at once, and a world that changes meanwhile.


def test_two_runs_on_one_results_folder_do_not_mix(finished, tmp_path):
    with training_held(finished, tmp_path / "run") as (place, process):
        second = place.run("field")
        assert second.returncode != 0
        assert "cannot be locked" in second.stdout
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said


def test_two_runs_from_different_places_do_not_mix_either(finished, tmp_path):
    """Snakemake's lock holds in one working directory; a second clone or user with the same results meets the note there."""
    with training_held(finished, tmp_path / "run") as (place, process):
        other = Place(tmp_path / "other", place.snakefile)
        shutil.copytree(place.capture, other.capture)
        shared = {"runtime": {"device": "cpu", "results": str(place.folder / "results")}}
        before = {path: path.stat().st_mtime_ns for path in place.paths.dataset.rglob("*") if path.is_file()}
        second = other.run("field", **shared)
        assert second.returncode == 4, second.stdout
        by = rf"process {process.pid}, since .*, from {place.folder}\)\. Wait for it, or choose"
        assert re.search(rf"results/{SEQUENCE}: a run of \S+ is writing there \(.*{by}", second.stdout)
        assert "Traceback" not in second.stdout
        assert f"process {process.pid}, from {place.folder}" in instant_nk("status", place.paths.root, folder=place.folder).stdout
        assert {path: path.stat().st_mtime_ns for path in before} == before
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert not (place.paths.root / ".run.json").exists()
    assert other.run("field", "-n", **shared).returncode == 0


def test_a_capture_that_changes_while_it_is_used_is_named_at_the_end(finished, tmp_path):
    with training_held(finished, tmp_path / "run") as (place, process):
        image = sorted((place.capture / "images" / "1").iterdir())[0]
        image.touch()
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert f"The capture capture changed while it was used: 1 changed: images/1/{image.name}. Run the same command again" in said
    assert place.would_run("field")["dataset_sequence"] == 1


def test_a_node_whose_clock_is_ahead_costs_time_and_never_a_result(finished, tmp_path):
    """A window was written by a machine ten minutes ahead. Snakemake compares small files by content, so nothing follows; large ones by time."""
    place = finished.copy(tmp_path / "run")
    window, ahead = place.paths.mesh_window(WINDOWS[0]), time.time() + 600
    os.utime(window, (ahead, ahead))
    assert place.would_run() == {}
    large = ("--max-checksum-file-size", "0")
    assert place.would_run(*large) == {"mesh_join": 1, "report_sequence": 1}
    assert place.would_run("--rerun-triggers", "params", "input", "code") == {}
    before = artifact.file_hash(place.paths.animation)
    refused = place.run("mesh", *large)
    assert refused.returncode != 0
    assert "has older modification time" in refused.stdout and "clock skew" in refused.stdout
    window.touch()
    done = place.run("mesh", *large)
    assert done.returncode == 0, done.stdout
    assert artifact.file_hash(place.paths.animation) == before
    assert instant_nk("verify", place.paths.root, folder=place.folder).returncode == 0
