"""The true Snakefile on a tiny capture: what one call writes, what runs again after which change, what `status` and `verify` say of it."""

from __future__ import annotations

import json
import os
import re
import shutil
from datetime import datetime

import numpy as np
import pytest

from instant_nk import layout
from instant_nk.io import artifact
from tests.integration.workflow_place import FIRST_TO_LAST, WINDOWS, instant_nk


def test_one_call_writes_every_stage(finished):
    paths = finished.paths
    for path in (paths.manifest, paths.canonical_field, paths.canonical_mesh, paths.graph, paths.motion, paths.animation, paths.report_page, paths.metrics):
        assert path.is_file(), path
    for frame in range(4):
        assert paths.observation(frame).is_file()
    for stage in layout.STAGES:
        used = json.loads((paths.stage_dir(stage) / "config.json").read_text())
        assert (used["stage"], used["stage_version"]) == (stage, layout.STAGE_VERSION[stage])


def test_every_log_begins_with_version_commit_device_and_seed(finished):
    logs = sorted(finished.paths.logs.glob("*.log"))
    assert len(logs) == sum(FIRST_TO_LAST.values())
    for path in logs:
        first = path.read_text().splitlines()[0]
        assert "version=" in first and "commit=" in first and "seed=0" in first, path


def test_the_animation_has_every_frame_in_one_topology(finished):
    with np.load(finished.paths.animation, allow_pickle=False) as archive:
        vertices, faces, frames = archive["vertices"], archive["faces"], archive["frames"]
    assert frames.tolist() == [0, 1, 2, 3]
    assert vertices.dtype == np.float32 and vertices.ndim == 3 and len(vertices) == 4
    assert faces.dtype == np.int32 and 0 <= faces.min() and faces.max() < vertices.shape[1]
    assert np.isfinite(vertices).all()


def test_two_windows_ran_side_by_side(finished):
    spans = []
    for window in WINDOWS:
        log = finished.paths.logs / f"6_field.{window}.log"
        lines = [line for line in log.read_text().splitlines() if re.match(r"\d\d:\d\d:\d\d ", line)]
        started = datetime.strptime(lines[0][:8], "%H:%M:%S").time()
        ended = datetime.fromtimestamp(finished.paths.field(window).stat().st_mtime).time()
        spans.append((started, ended))
    (a, b), (c, d) = spans
    assert a <= d and c <= b, spans


# What runs again.


def test_the_second_run_does_nothing(finished):
    done = finished.run()
    assert done.returncode == 0
    assert "Nothing to be done" in done.stdout


def test_a_changed_field_key_runs_field_mesh_and_report_again(finished):
    assert finished.would_run(field={"learning_rate": 0.001}) == {"field_window": 2, "mesh_window": 2, "mesh_join": 1, "report_sequence": 1}


@pytest.mark.parametrize(
    ("config", "first"),
    [({"canonical": {"steps": 41}}, "canonical_sequence"), ({"graph": {"neighbours": 5}}, "graph_sequence"), ({"registration": {"iterations": 9}}, "registration_sequence")],
)  # fmt: skip
def test_a_changed_key_runs_its_stage_and_what_follows_from_it(finished, config, first):
    plan = finished.would_run(**config)
    later = list(FIRST_TO_LAST)[list(FIRST_TO_LAST).index(first) :]
    assert plan == {name: FIRST_TO_LAST[name] for name in later if name != "observation_batch"}


def test_device_threads_and_log_level_run_nothing_again(finished):
    assert finished.would_run(runtime={"device": "auto", "threads": 1, "log_level": "DEBUG"}) == {}


def test_forcerun_takes_the_workers_name(finished):
    assert finished.would_run("--forcerun", "mesh_join") == {"mesh_join": 1, "report_sequence": 1}


def test_a_changed_capture_is_named_and_everything_runs_again(finished, tmp_path):
    place = finished.copy(tmp_path / "run")
    image = sorted((place.capture / "images" / "2").iterdir())[0]
    image.write_bytes(image.read_bytes())  # a new modification time
    assert place.would_run() == FIRST_TO_LAST
    said = place.run("-n").stdout
    assert f"The capture capture changed: 1 changed: images/2/{image.name}" in said


# What status and verify say.


def test_status_of_a_finished_run_counts_every_job_as_done(finished):
    said = instant_nk("status", finished.paths.root, folder=finished.folder).stdout
    done = dict(re.findall(r"^(\w+) +(\d+/\d+) ", said, re.MULTILINE))
    assert done == {
        "dataset": "1/1",
        "canonical": "1/1",
        "graph": "1/1",
        "observation": "2/2",
        "registration": "1/1",
        "field": "2/2",
        "mesh": "3/3",
        "report": "1/1",
    }


def test_status_names_running_and_failed_windows(finished, tmp_path):
    place = finished.copy(tmp_path / "run")
    running, failed = WINDOWS
    for window in (running, failed):
        place.paths.field(window).unlink()
    first = f"10:00:00 I instant_nk.entry: version=0.1.0 host={os.uname().nodename} pid={os.getpid()}\n"
    (place.paths.logs / f"6_field.{running}.log").write_text(first + "10:00:09 I instant_nk: field step=30/60 elapsed_s=9 left_s=9\n")
    (place.paths.logs / f"6_field.{failed}.log").write_text(
        first.replace(f"pid={os.getpid()}", "pid=999999999") + "error: NumericalError: frame 3: energy is not finite\n"
    )
    said = instant_nk("status", place.paths.root, folder=place.folder).stdout
    assert re.search(r"^field +0/2 +1 +1 +0 ", said, re.MULTILINE)
    assert f"field {running}: running, step 30 of 60, 9 s left" in said
    assert f"field {failed}: failed, error: NumericalError: frame 3: energy is not finite" in said


def test_verify_finds_nothing_wrong_with_a_finished_run(finished):
    done = instant_nk("verify", finished.paths.root, folder=finished.folder)
    assert done.returncode == 0, done.stderr
    assert "all whole and made from each other" in done.stdout


def test_verify_finds_truncated_missing_mixed_and_changed_files(finished, tmp_path):
    place = finished.copy(tmp_path / "run")
    paths, (first, second) = place.paths, WINDOWS
    film, render = paths.report / "rgb.mp4", sorted(paths.report.glob("renders/*/*.png"))[0]
    for path in (paths.observation(1), paths.animation_glb, paths.mesh_frame(2), film, render):
        path.write_bytes(path.read_bytes()[:-100])
    paths.observation(3).unlink()
    shutil.copy(paths.field(first), paths.field(second))
    header, arrays = artifact.load_npz(paths.graph, "graph", 1)
    artifact.save_npz(paths.graph, {**header, "package_version": "0.0.1"}, **arrays)
    paths.manifest.write_text(paths.manifest.read_text().replace(json.loads(paths.manifest.read_text())["capture"], str(place.capture)))
    (place.capture / "images" / "0" / "cam_000.png").touch()
    done = instant_nk("verify", paths.root, folder=place.folder)
    assert done.returncode == 4
    for finding in (
        f"{paths.observation(1)}: not a readable 'observation' artifact",
        f"{paths.animation_glb}: not a whole GLB",
        f"{paths.mesh_frame(2)}: not a whole PLY",
        f"{film}: not a whole mp4",
        f"{render}: not a whole PNG",
        "4_observation: frames 3 are missing",
        f"{paths.mesh_window(second)}: was made from another {paths.field(second)}",
        f"{paths.motion}: was made from another {paths.graph}",
        "changed since (1 changed: images/0/cam_000.png)",
    ):
        assert finding in done.stderr, f"{finding}\nnot in\n{done.stderr}"
