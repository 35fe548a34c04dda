"""The true Snakefile before anything runs: what is planned for which request, and what a wrong request is told."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys

import pytest

from tests.integration.workflow_place import FIRST_TO_LAST
from tests.unit.capture_writer import as_videos


def test_the_built_in_capture_is_written_first_and_then_read_like_any_other(empty):
    assert empty.would_run(capture="synthetic") == {"synthetic_capture": 1, **FIRST_TO_LAST}
    assert empty.would_run() == FIRST_TO_LAST


def test_the_built_in_capture_of_an_earlier_run_may_be_named_as_a_capture(empty, tmp_path):
    place = empty.copy(tmp_path / "run")
    earlier = "results/synthetic-0123456789abcdef"
    shutil.copytree(place.capture, place.folder / earlier)
    assert place.would_run(capture=earlier) == FIRST_TO_LAST


@pytest.mark.parametrize(
    ("target", "jobs"),
    [
        ("graph", ["dataset_sequence", "canonical_sequence", "graph_sequence"]),
        ("observation", ["dataset_sequence", "observation_batch"]),
        ("field", list(FIRST_TO_LAST)[:6]),
        ("mesh", list(FIRST_TO_LAST)[:8]),
    ],
)
def test_each_stage_has_a_target_that_runs_what_it_needs(empty, target, jobs):
    assert empty.would_run(target) == {name: FIRST_TO_LAST[name] for name in jobs}


@pytest.mark.parametrize("refined", [True, False])
def test_a_rig_that_is_refined_needs_observations(empty, tmp_path, refined):
    (tmp_path / "rig.glb").write_bytes(b"")
    plan = empty.would_run("registration", registration={"source": "rig", "folder": str(tmp_path / "rig.glb"), "rig_refine": refined})
    assert plan.get("observation_batch", 0) == (2 if refined else 0)
    assert plan["registration_sequence"] == 1


def test_results_may_lie_in_a_folder_with_spaces(empty, tmp_path):
    place = empty.copy(tmp_path / "run")
    done = place.run("dataset", runtime={"device": "cpu", "results": "my results"})
    assert done.returncode == 0, done.stdout
    assert (place.folder / "my results" / "tiny" / "1_dataset" / "dataset.json").is_file()
    assert sorted(path.name for path in place.folder.iterdir() if path.name[0] != ".") == ["capture", "my results"]


def test_several_sequences_run_as_one(empty):
    plan = empty.would_run(sequences={"one": "capture", "two": {"capture": "capture", "frames": {"count": 3}}}, sequence=None, capture=None)
    assert plan["dataset_sequence"] == 2
    assert plan["field_window"] == 2 + 1


def test_frames_are_chosen_by_first_and_count(empty):
    plan = empty.would_run(frames={"first": 1, "count": 2})
    assert (plan["observation_batch"], plan["field_window"]) == (1, 1)


def test_settings_come_from_a_file_of_ones_own_too(empty, tmp_path):
    mine = tmp_path / "my.yaml"
    mine.write_text("capture: capture\nsequence: mine\npreset: tiny\nframes: {first: 1, count: 2}\ndataset: {cameras: 4}\n")
    command = [sys.executable, "-m", "snakemake", "-s", str(empty.snakefile), "-d", str(empty.folder), "-n", "--configfile", str(mine)]
    said = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=100).stdout
    assert re.search(r"^field_window +1$", said, re.MULTILINE), said
    assert "results/mine/6_field/000001-000002.npz" in said


def test_cameras_are_chosen_by_number_and_by_name(empty, tmp_path):
    for cameras, count in ((3, 3), ('["cam_001.png", "cam_003.png"]', 2)):
        place = empty.copy(tmp_path / str(count))
        done = place.run("dataset", dataset=f"{{cameras: {cameras}}}")
        assert done.returncode == 0, done.stdout
        assert len(json.loads(place.paths.manifest.read_text())["cameras"]["names"]) == count


def test_a_capture_of_videos_is_planned_and_read_like_one_of_images(empty, tmp_path):
    place = empty.copy(tmp_path / "run")
    as_videos(place.capture, json.loads((place.capture / "transforms.json").read_text()))
    assert place.would_run() == FIRST_TO_LAST
    assert place.would_run(frames={"first": 1, "count": 2})["observation_batch"] == 1
    done = place.run("dataset")
    assert done.returncode == 0, done.stdout
    assert json.loads(place.paths.manifest.read_text())["frames"] == [0, 1, 2, 3]
    assert place.would_run("dataset") == {}
    log = place.paths.logs / "1_dataset.log"
    assert "pictures of" in log.read_text()
    assert place.run("dataset", dataset={"hull_resolution": 24}).returncode == 0
    assert "pictures of" not in log.read_text(), "decoded once, used again"
    video = sorted((place.capture / "videos").iterdir())[0]
    video.write_bytes(video.read_bytes()[:-300])
    said = place.run("dataset").stdout
    assert f"{video.name}: the video is truncated" in said and "Traceback" not in said


def test_an_external_trackers_motion_skips_observation(empty, tmp_path):
    (tmp_path / "accumAffine").mkdir()
    (tmp_path / "node.txt").write_text("0 0 0\n")
    plan = empty.would_run(registration={"source": "ed_folder", "folder": str(tmp_path)})
    assert plan == {name: count for name, count in FIRST_TO_LAST.items() if name != "observation_batch"}


@pytest.mark.parametrize(
    ("config", "said", "code"),
    [
        ({"capture": "nowhere"}, "nowhere: no such folder. A capture is a folder with transforms.json", 3),
        ({"field": {"stepps": 3}}, "config key 'field.stepps' does not exist. Nearest valid key: 'field.steps'.", 2),
        ({"frames": {"first": 90}}, "90", 3),
        ({"preset": "medium"}, "config key 'preset'", 2),
        ({"canonical": {"mesh": "no.ply"}}, "config key 'canonical.mesh': no.ply does not exist", 2),
        ({"registration": {"source": "ed_folder", "folder": "ed"}}, "config key 'registration.folder': ed does not exist", 2),
    ],
)
def test_a_wrong_request_ends_before_anything_runs_with_one_message(empty, config, said, code):
    done = empty.run(**config)
    assert done.returncode == code
    assert said in done.stdout.splitlines()[-1]
    assert "Traceback" not in done.stdout
    assert not (empty.folder / "results").exists()


@pytest.mark.parametrize(("mode", "last"), [("deform", "mesh_join"), ("time", "mesh_surfaces")])
def test_the_mesh_stage_ends_in_an_animation_or_in_a_list_of_surfaces(empty, mode, last):
    expected = {name: count for name, count in FIRST_TO_LAST.items() if name != "mesh_join"} | {last: 1}
    assert empty.would_run(field={"dyna_mode": mode}) == expected
