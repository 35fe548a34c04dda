"""The workflow through a real Slurm on loopback: it runs, and jobs that are cancelled, too large or on a dead node do not end it."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys

import pytest

from instant_nk import layout
from instant_nk.io import checkpoint
from tests.integration import loopback_slurm
from tests.integration.workflow_place import SEQUENCE, WINDOWS, checkpoints, wait_for

if reason := loopback_slurm.missing():
    pytest.skip(reason, allow_module_level=True)
if importlib.util.find_spec("snakemake_executor_plugin_slurm") is None:
    pytest.skip("snakemake-executor-plugin-slurm is not installed: pip install -e '.[slurm]'", allow_module_level=True)


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    with loopback_slurm.Slurm(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


def command(repository, folder, *argv, field="{}"):
    """Snakemake with the shipped profile, told only what differs on this small cluster."""
    return [
        sys.executable, "-m", "snakemake", "-s", str(repository / "Snakefile"), "-d", str(folder), "--profile", str(repository / "profiles" / "slurm"),
        "--cores", "2", "--set-threads", "dataset_sequence=2", "canonical_sequence=2", "registration_sequence=2", "report_sequence=2",
        "--latency-wait", "5", "--slurm-status-command", "squeue", "--slurm-init-seconds-before-status-checks", "2", "--seconds-between-status-checks", "2",
        *argv, "--config", "capture=capture", f"sequence={SEQUENCE}", "preset=tiny", f"field={field}",
    ]  # fmt: skip


def run(repository, folder, *argv, **kwargs):
    return subprocess.run(command(repository, folder, *argv, **kwargs), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=900)


@pytest.fixture(scope="module")
def finished(slurm, untouched, repository, tmp_path_factory):
    """All stages through Slurm, where the last join is given too little memory at first; the folder and what was said."""
    folder = untouched.copy(tmp_path_factory.mktemp("through_slurm") / "run").folder
    done = run(repository, folder, "--set-resources", "mesh_join:mem_mb=200*attempt**3")
    assert done.returncode == 0, done.stdout
    return folder, done.stdout


def paths(folder):
    return layout.Paths(folder / "results" / SEQUENCE)


def test_every_stage_runs_as_slurm_jobs(finished, slurm):
    folder, said = finished
    for path in (paths(folder).manifest, paths(folder).motion, paths(folder).animation, paths(folder).report_page):
        assert path.is_file(), path
    assert len(re.findall(r"submitted with SLURM jobid", said)) == 10, "one per dataset, canonical+graph, registration, batch, window, report; two for the join"


def test_short_jobs_ride_along_with_their_neighbours(finished):
    assert "group_canonical_canonical_sequence_graph_sequence" in finished[1]
    assert finished[1].count("group_window_field_window_mesh_window") == len(WINDOWS)


def test_gpu_stages_ask_for_one_gpu_each(finished, slurm):
    jobs = slurm.ask("scontrol", "-o", "show", "job").splitlines()
    assert len(jobs) >= 10
    for job in jobs:
        name = re.search(r"Comment=(\S+)", job).group(1)
        wants = any(stage in name for stage in ("canonical", "observation", "registration", "window", "report"))
        assert ("TresPerJob=gres:gpu:1" in job) == wants, job


def test_a_job_that_exceeds_its_memory_is_tried_again_with_more(finished):
    said = finished[1]
    assert "Error in rule mesh_join" in said
    assert "Trying to restart job" in said


def test_a_cancelled_job_and_a_dead_node_are_survived(finished, slurm, repository, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished[0], folder)
    shutil.rmtree(paths(folder).field_dir)
    process = subprocess.Popen(
        command(repository, folder, "field", field="{steps: 80, checkpoint_every: 5}"),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        wait_for(lambda: len(checkpoints(paths(folder))) == 2, "a checkpoint of both windows", seconds=400)
        jobs = [line.split() for line in slurm.ask("squeue", "-h", "-t", "R", "-o", "%i %N %k").splitlines()]
        (cancelled, _, _), (_, node, _) = [job for job in jobs if "field_window" in job[2]]
        slurm.ask("scancel", cancelled)
        slurm.stop(node, signal.SIGKILL)  # the node answers no more; Slurm notices after SlurmdTimeout
        said, _ = process.communicate(timeout=600)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        slurm.start_node(node)
        slurm.wait_until_idle()
    assert process.returncode == 0, said
    assert "Trying to restart job" in said
    assert all(paths(folder).field(window).is_file() for window in WINDOWS)


def test_a_killed_snakemake_leaves_its_jobs_to_slurm_and_the_same_command_goes_on(finished, slurm, repository, tmp_path):
    """The next call starts while the old jobs still run: both write the same files, each whole."""
    folder = tmp_path / "run"
    shutil.copytree(finished[0], folder)
    shutil.rmtree(paths(folder).field_dir)
    field = "{steps: 60, checkpoint_every: 5}"
    process = subprocess.Popen(command(repository, folder, "field", field=field), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    running = lambda: slurm.ask("squeue", "-h", "-t", "R", "-o", "%i").split()  # noqa: E731
    wait_for(lambda: len(running()) == 2, "the start of both windows", seconds=400)
    old = running()
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    locked = run(repository, folder, "field", field=field)
    assert locked.returncode != 0 and "--unlock" in locked.stdout
    assert set(old) <= set(slurm.ask("squeue", "-h", "-o", "%i").split()), "Slurm's jobs live on"
    assert run(repository, folder, "field", "--unlock", field=field).returncode == 0
    done = run(repository, folder, "field", field=field)
    assert done.returncode == 0, done.stdout
    slurm.wait_until_idle(120)
    for window in WINDOWS:
        checkpoint.load(paths(folder).field(window))
    assert not [p for p in paths(folder).field_dir.iterdir() if p.name[0] == "."], "no writer left a file aside"
    assert not (paths(folder).root / ".run.json").exists()


def test_a_job_that_never_fits_is_reported_and_the_rest_goes_on(finished, slurm, repository, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    shutil.copytree(finished[0] / "capture", folder / "capture")
    done = run(repository, folder, "canonical", "observation", "--retries", "0", "--set-resources", "canonical_sequence:mem_mb=150")
    assert done.returncode != 0
    assert "Error in rule canonical_sequence" in done.stdout
    assert not paths(folder).canonical_mesh.exists()
    assert all(paths(folder).observation(frame).is_file() for frame in range(4))
