"""The true Snakefile on a tiny capture: what runs, what re-runs, what survives a kill, what the user is told."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest

from instant_nk import config as schema
from instant_nk import layout
from instant_nk.io import artifact, synthetic
from tests.unit.capture_writer import as_videos

SEQUENCE = "tiny"
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


@pytest.fixture(scope="module")
def empty(tmp_path_factory, repository) -> Place:
    """A capture and nothing else."""
    place = Place(tmp_path_factory.mktemp("empty"), repository / "Snakefile")
    synthetic.write(schema.parse({"preset": "tiny"}), place.capture)
    return place


@pytest.fixture(scope="module")
def finished(empty, tmp_path_factory) -> Place:
    """The same capture with all stages done, by one plain call on two cores."""
    place = empty.copy(tmp_path_factory.mktemp("finished") / "run")
    done = place.run()
    assert done.returncode == 0, done.stdout
    return place


# What is planned, before anything runs.


def test_the_built_in_capture_is_written_first_and_then_read_like_any_other(empty):
    assert empty.would_run(capture="synthetic") == {"synthetic_capture": 1, **FIRST_TO_LAST}
    assert empty.would_run() == FIRST_TO_LAST


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


# The run itself.


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
    for window in layout.windows([0, 1, 2, 3], 3, 2):
        log = finished.paths.logs / f"6_field.{window}.log"
        lines = [line for line in log.read_text().splitlines() if re.match(r"\d\d:\d\d:\d\d ", line)]
        started = datetime.strptime(lines[0][:8], "%H:%M:%S").time()
        ended = datetime.fromtimestamp(finished.paths.field(window).stat().st_mtime).time()
        spans.append((started, ended))
    (a, b), (c, d) = spans
    assert a <= d and c <= b, spans


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


def test_a_failed_job_shows_its_error_last_and_leaves_nothing(empty, tmp_path):
    place = empty.copy(tmp_path / "run")
    image = sorted((place.capture / "images" / "1").iterdir())[0]
    image.write_bytes(image.read_bytes()[:60])
    done = place.run("dataset")
    assert done.returncode != 0
    after = done.stdout.split("Exiting because a job execution failed")[1]
    assert re.search(rf"1_dataset\.log: error: DataError: .*images/1/{image.name}", after)
    assert not place.paths.manifest.exists()


# Killed, then the same command again.


def fresh_windows(finished, folder, **field) -> Place:
    """`finished` with its fields gone, so that `field` trains its two windows."""
    place = finished.copy(folder)
    shutil.rmtree(place.paths.field_dir)
    return place


SLOW = {"field": {"steps": 60, "checkpoint_every": 5}}
LONG = {"field": {"steps": 2000, "checkpoint_every": 5}}  # never trained to the end


def wait_for(condition, what, seconds=300):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError(f"{what} did not happen within {seconds} s")


def pid_of(log: Path) -> int:
    return int(re.search(r"pid=(\d+)", log.read_text()).group(1))


@pytest.fixture(scope="module")
def undisturbed(finished, tmp_path_factory) -> Place:
    """Both windows trained with SLOW in one go."""
    place = fresh_windows(finished, tmp_path_factory.mktemp("undisturbed") / "run")
    done = place.run("field", **SLOW)
    assert done.returncode == 0, done.stdout
    return place


def assert_same_fields(place, undisturbed):
    for window in layout.windows([0, 1, 2, 3], 3, 2):
        with np.load(place.paths.field(window)) as ours, np.load(undisturbed.paths.field(window)) as theirs:
            assert sorted(ours.files) == sorted(theirs.files)
            for name in ours.files:
                if name != artifact.HEADER:
                    np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-4, atol=1e-5, err_msg=f"{window} {name}")


def checkpoints(place):
    return [path for path in place.paths.field_dir.glob("*.partial*") if not path.name.startswith(".")]


def test_a_worker_killed_in_training_resumes_and_ends_as_if_undisturbed(finished, undisturbed, tmp_path):
    place = fresh_windows(finished, tmp_path / "run")
    window = layout.windows([0, 1, 2, 3], 3, 2)[0]
    log = place.paths.logs / f"6_field.{window}.log"
    log.unlink()
    process = place.start("field", **SLOW)
    wait_for(lambda: any(window in path.name for path in checkpoints(place)), "the first checkpoint")
    os.kill(pid_of(log), signal.SIGKILL)
    said, _ = process.communicate(timeout=120)
    assert process.returncode != 0, said
    assert not place.paths.field(window).exists()
    done = place.run("field", **SLOW)
    assert done.returncode == 0, done.stdout
    assert "resum" in log.read_text()
    assert_same_fields(place, undisturbed)
    assert not checkpoints(place)


def test_a_killed_workflow_says_how_to_unlock_and_then_completes(finished, undisturbed, tmp_path):
    place = fresh_windows(finished, tmp_path / "run")
    for log in place.paths.logs.glob("6_field*.log"):
        log.unlink()
    process = place.start("field", **SLOW)
    wait_for(lambda: len(checkpoints(place)) == 2, "a checkpoint of both windows")
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


# What status and verify say.


def instant_nk(*argv, folder):
    return subprocess.run([sys.executable, "-m", "instant_nk.cli", *map(str, argv)], cwd=folder, capture_output=True, text=True, timeout=120)


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
    running, failed = layout.windows([0, 1, 2, 3], 3, 2)
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
    paths, (first, second) = place.paths, layout.windows([0, 1, 2, 3], 3, 2)
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


def test_two_runs_on_one_results_folder_do_not_mix(finished, tmp_path):
    place = fresh_windows(finished, tmp_path / "run")
    for log in place.paths.logs.glob("6_field*.log"):
        log.unlink()
    process = place.start("field", **SLOW)
    wait_for(lambda: list(place.paths.logs.glob("6_field*.log")), "the start of a window")
    second = place.run("field", **SLOW)
    assert second.returncode != 0
    assert "cannot be locked" in second.stdout
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said


def test_two_runs_from_different_places_do_not_mix_either(finished, tmp_path):
    """Snakemake's lock holds in one working directory; a second clone or user with the same results meets the note there."""
    place = fresh_windows(finished, tmp_path / "run")
    other = Place(tmp_path / "other", place.snakefile)
    shutil.copytree(place.capture, other.capture)
    shared = {"runtime": {"device": "cpu", "results": str(place.folder / "results")}}
    for log in place.paths.logs.glob("6_field*.log"):
        log.unlink()
    process = place.start("field", **SLOW)
    wait_for(lambda: list(place.paths.logs.glob("6_field*.log")), "the start of a window")
    before = {path: path.stat().st_mtime_ns for path in place.paths.dataset.rglob("*") if path.is_file()}
    second = other.run("field", **SLOW, **shared)
    assert second.returncode == 4, second.stdout
    assert re.search(
        rf"results/{SEQUENCE}: a run of \S+ is writing there \(.*process {process.pid}, since .*, from {place.folder}\)\. Wait for it, or choose", second.stdout
    )
    assert "Traceback" not in second.stdout
    assert f"process {process.pid}, from {place.folder}" in instant_nk("status", place.paths.root, folder=place.folder).stdout
    assert {path: path.stat().st_mtime_ns for path in before} == before
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert not (place.paths.root / ".run.json").exists()
    assert other.run("field", "-n", **SLOW, **shared).returncode == 0


def test_a_capture_that_changes_while_it_is_used_is_named_at_the_end(finished, tmp_path):
    place = fresh_windows(finished, tmp_path / "run")
    for log in place.paths.logs.glob("6_field*.log"):
        log.unlink()
    process = place.start("field", **SLOW)
    wait_for(lambda: list(place.paths.logs.glob("6_field*.log")), "the start of a window")
    image = sorted((place.capture / "images" / "1").iterdir())[0]
    image.touch()
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert f"The capture capture changed while it was used: 1 changed: images/1/{image.name}. Run the same command again" in said
    assert place.would_run("field")["dataset_sequence"] == 1


def test_a_node_whose_clock_is_ahead_costs_time_and_never_a_result(finished, tmp_path):
    """A window was written by a machine ten minutes ahead. Snakemake compares small files by content, so nothing follows; large ones by time."""
    place = finished.copy(tmp_path / "run")
    window, ahead = place.paths.mesh_window(layout.windows([0, 1, 2, 3], 3, 2)[0]), time.time() + 600
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


def test_an_interrupted_run_leaves_no_note_and_no_lock(finished, tmp_path):
    place = fresh_windows(finished, tmp_path / "run")
    for log in place.paths.logs.glob("6_field*.log"):
        log.unlink()
    process = place.start("field", **LONG)
    wait_for(lambda: checkpoints(place), "a checkpoint")
    os.killpg(process.pid, signal.SIGINT)  # as ctrl-C in a terminal does
    said, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert len(checkpoints(place)) >= 1, "training goes on from there"
    assert not (place.paths.root / ".run.json").exists(), said
    assert place.would_run("field", **LONG)["field_window"] >= 1, "no lock is left"
