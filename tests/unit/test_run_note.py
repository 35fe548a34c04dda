"""The note by which two runs of one results folder meet, whoever and wherever they are."""

import json
import os
import subprocess
import sys
import tempfile
import time

import pytest

from instant_nk.errors import ContractError
from instant_nk.io import run_note

NOTE = {"host": "elsewhere", "pid": 1, "user": "ann", "directory": "/data/ann", "started": "2026-01-01 10:00"}


def take(folder, directory="/data/mine"):
    run_note.take([folder], run_note.Path(directory))


def put(folder, age_s=0.0, **changes):
    folder.mkdir(exist_ok=True)
    path = run_note.path_of(folder)
    path.write_text(json.dumps(NOTE | changes))
    os.utime(path, (time.time() - age_s,) * 2)


def test_a_folder_in_use_from_elsewhere_is_refused_with_who_and_since_when(tmp_path):
    put(tmp_path / "walk")
    with pytest.raises(
        ContractError,
        match=r"walk: a run of ann is writing there \(elsewhere, process 1, since 2026-01-01 10:00, from /data/ann\)\. Wait for it, or choose .* killed, its note expires within 90 s",
    ):
        take(tmp_path / "walk")
    assert json.loads(run_note.path_of(tmp_path / "walk").read_text()) == NOTE
    assert [p.name for p in (tmp_path / "walk").iterdir()] == [".run.json"]


def test_a_note_that_was_not_touched_for_long_is_taken_over(tmp_path):
    put(tmp_path / "walk", age_s=run_note.DEAD_S + 10)
    take(tmp_path / "walk")
    assert json.loads(run_note.path_of(tmp_path / "walk").read_text())["pid"] == os.getpid()


@pytest.mark.parametrize("ahead_s", [-3600, 3600])
def test_a_clock_that_is_wrong_by_an_hour_changes_nothing(tmp_path, monkeypatch, ahead_s):
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + ahead_s)
    (tmp_path / "walk").mkdir()
    run_note.path_of(tmp_path / "walk").write_text(json.dumps(NOTE))
    with pytest.raises(ContractError, match="a run of ann is writing there"):
        take(tmp_path / "walk")


def test_a_process_of_this_machine_is_asked_whether_it_lives(tmp_path):
    put(tmp_path / "walk", host=run_note.platform.node(), pid=999999999)
    take(tmp_path / "walk")
    put(tmp_path / "run", age_s=1e4, host=run_note.platform.node(), pid=os.getppid())
    with pytest.raises(ContractError, match="a run of ann is writing there"):
        take(tmp_path / "run")


def test_within_one_directory_snakemakes_own_lock_decides(tmp_path):
    put(tmp_path / "walk")
    take(tmp_path / "walk", "/data/ann")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"host": "x"}'])
def test_a_damaged_note_is_taken_over(tmp_path, content):
    (tmp_path / "walk").mkdir()
    run_note.path_of(tmp_path / "walk").write_text(content)
    take(tmp_path / "walk")
    assert run_note.read(run_note.path_of(tmp_path / "walk"))["pid"] == os.getpid()


CODE = "import sys, time; from pathlib import Path; from instant_nk.io import run_note; run_note.BEAT_S = 0.1; run_note.take([Path(sys.argv[1])], Path('a')); print('ready', flush=True); time.sleep(float(sys.argv[2]))"


def test_a_note_is_touched_while_its_run_lives_and_gone_when_it_ends(tmp_path):
    path = run_note.path_of(tmp_path / "walk")
    with subprocess.Popen([sys.executable, "-c", CODE, str(tmp_path / "walk"), "1"], stdout=subprocess.PIPE) as run:
        assert run.stdout.readline() == b"ready\n"
        os.utime(path, (1, 1))
        time.sleep(0.5)
        assert path.stat().st_mtime > 1000
        with pytest.raises(ContractError, match=f"process {run.pid}"):
            take(tmp_path / "walk")
    assert run.returncode == 0 and not path.exists()


def test_a_killed_run_leaves_a_note_that_does_not_stop_the_next(tmp_path):
    with subprocess.Popen([sys.executable, "-c", CODE, str(tmp_path / "walk"), "60"], stdout=subprocess.PIPE) as run:
        run.stdout.readline()
        run.kill()
    assert run_note.path_of(tmp_path / "walk").exists()
    take(tmp_path / "walk")


def test_status_says_who_runs_and_that_a_run_was_killed(tmp_path):
    assert run_note.describe(tmp_path) == ""
    put(tmp_path)
    assert run_note.describe(tmp_path) == "run: ann on elsewhere, process 1, from /data/ann, since 2026-01-01 10:00"
    put(tmp_path, host=run_note.platform.node(), pid=999999999)
    assert run_note.describe(tmp_path).startswith("run: killed (ann on ") and "--unlock once" in run_note.describe(tmp_path)


def test_a_folder_of_another_user_is_named_with_its_owner():
    if os.geteuid():
        pytest.skip("acting as another user needs root")
    code = "import os, sys; from pathlib import Path; from instant_nk.io import run_note; os.setuid(65534); run_note.take([Path(sys.argv[1])], Path('a'))"
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True)
    assert (
        f"{folder}: cannot be written (Permission denied). It belongs to root. Fix permissions or free space, or choose another 'runtime.results'"
        in done.stderr
    )


def test_two_writers_of_one_file_never_share_a_file_aside(tmp_path, monkeypatch):
    """As two containers do that count their processes from one, on a shared disk."""
    from instant_nk.io import artifact

    monkeypatch.setattr(os, "getpid", lambda: 7)
    with artifact.atomic(tmp_path / "a.json") as one, artifact.atomic(tmp_path / "a.json") as two:
        assert one != two
        one.write_text("1")
        two.write_text("2")
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
