"""Running a stage: what it may read, what goes to the log, how errors end."""

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
import torch

from instant_nk import config as schema
from instant_nk import entry, layout, log
from instant_nk.errors import BackendError, ConfigError, DataError, NumericalError


def test_a_stage_reads_its_own_section():
    config = entry.restrict(schema.parse({"field": {"steps": 3}}), "field")
    assert config.field.steps == 3
    assert config.runtime.device == "auto"


def test_a_stage_that_reads_another_section_fails_and_is_told_where_to_declare_it():
    config = entry.restrict(schema.Config(), "field")
    with pytest.raises(ConfigError, match=r"stage 'field' reads config key 'graph\.anchors'.*STAGE_READS\['field'\]"):
        config.graph.anchors  # noqa: B018


def test_a_stage_reads_a_single_declared_key_of_another_section():
    config = entry.restrict(schema.Config(), "graph")
    assert config.registration.source == "solver"
    with pytest.raises(ConfigError, match=r"registration\.iterations"):
        config.registration.iterations  # noqa: B018


def test_asking_for_a_gpu_that_is_not_there_says_what_to_do(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BackendError, match=r"runtime\.device=cuda.*nvidia-smi.*runtime\.device=auto"):
        entry.resolve_device("cuda")


def test_auto_takes_the_cpu_where_no_device_is(monkeypatch):
    monkeypatch.setattr(entry, "count_gpus", lambda: 0)
    assert entry.resolve_device("auto") == "cpu"
    assert entry.resolve_device("cpu") == "cpu"


def test_no_two_jobs_of_one_machine_hold_the_same_gpu(tmp_path):
    code = f"""
        import sys, time
        from pathlib import Path
        from instant_nk import entry
        print(entry.claim_gpu(2, Path({str(tmp_path)!r})), flush=True)
        time.sleep(60)
    """
    jobs = [start(code), start(code)]
    held = [int(job.stdout.readline()) for job in jobs]
    assert sorted(held) == [0, 1]
    third = start(code)
    time.sleep(1)
    jobs[0].kill()  # the lock goes with the process
    assert int(third.stdout.readline()) == held[0]
    for job in (*jobs, third):
        job.kill()
        job.wait()


def test_a_gpu_that_another_user_has_used_can_be_claimed(tmp_path, monkeypatch):
    lock = tmp_path / "instant-nk-gpu-0.lock"
    lock.touch(0o444)
    opened = []
    real = os.open
    monkeypatch.setattr(os, "open", lambda path, flags, *mode: opened.append(flags) or real(path, flags, *mode))
    assert entry.claim_gpu(1, tmp_path) == 0
    assert opened == [os.O_RDONLY]  # root may write anything; another user may read this file and no more


def test_the_seed_makes_every_generator_repeat(capsys):
    draws = []
    for _ in range(2):
        entry.prepare(schema.RuntimeConfig(seed=7, device="cpu"), threads=None)
        draws.append((np.random.rand(), torch.rand(()).item()))
    assert draws[0] == draws[1]


def test_the_first_line_says_version_commit_device_backend_and_seed(capsys):
    log.setup("INFO")
    entry.prepare(schema.RuntimeConfig(seed=7, device="cpu"), threads=1)
    line = capsys.readouterr().err
    for part in ("version=", "commit=", "device=cpu", "backend=reference", "seed=7", "threads=1"):
        assert part in line


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (DataError("images/3: no such folder."), 3, "error: DataError: images/3: no such folder."),
        (NumericalError("frame 3: energy is not finite"), 5, "frame 3"),
        (KeyboardInterrupt(), 130, "Run the same command again"),
        (OSError(errno.ENOSPC, "No space left on device", "results/a.npz"), 1, "results/a.npz: could not be written: No space left on device. Free space"),
        (torch.OutOfMemoryError("CUDA out of memory"), 1, "samples_per_step"),
        (MemoryError("cannot allocate"), 1, "out of memory"),
    ],
)
def test_an_error_ends_in_one_message_and_an_exit_code(error, code, said, capsys):
    def work():
        raise error

    assert entry.guarded(work) == code
    text = capsys.readouterr().err
    assert said in text
    assert "Traceback" not in text


def test_a_bug_keeps_its_traceback():
    def work():
        raise ZeroDivisionError("a bug")

    with pytest.raises(ZeroDivisionError):
        entry.guarded(work)


def test_a_stage_leaves_the_config_it_used_beside_its_outputs(tmp_path, monkeypatch):
    jobs = []
    monkeypatch.setitem(sys.modules, "instant_nk.stages.graph", type(sys)("fake"))
    monkeypatch.setattr(sys.modules["instant_nk.stages.graph"], "run", jobs.append, raising=False)
    config = schema.parse({"preset": "tiny", "runtime": {"results": str(tmp_path), "device": "cpu"}})
    entry.run_stage("graph", config, part=None, threads=1)
    saved = json.loads((tmp_path / "demo" / "3_graph" / "config.json").read_text())
    assert saved["config"]["graph"] == schema.to_dict(config.graph)
    assert saved["stage_version"] == layout.STAGE_VERSION["graph"]
    assert jobs[0].paths.root == tmp_path / "demo"
    assert jobs[0].device == "cpu"


def write_window(results, part, content=b"w"):
    """What the field stage leaves of a window; returns its name."""
    path = layout.Paths(results / "demo").field(part)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return part


@pytest.mark.parametrize("change", ["input", "result"])
def test_what_says_that_several_parts_are_done_differs_when_they_were_made_anew(tmp_path, monkeypatch, change):
    """Snakemake takes a small file of equal content for the same input, however new it is."""
    config = schema.parse({"preset": "tiny", "runtime": {"results": str(tmp_path)}})
    source, done, content = tmp_path / "input.npz", tmp_path / "done.json", [b"first"]
    source.write_bytes(b"1")
    monkeypatch.setattr(entry, "run_stage", lambda stage, config, part, threads: write_window(tmp_path, part, content[0]))
    entry.run_span("field", config, ["a", "b"], done, [source])
    before = done.read_bytes()
    entry.run_span("field", config, ["a", "b"], done, [source])
    assert done.read_bytes() == before
    if change == "input":
        source.write_bytes(b"2")
    else:
        content[0] = b"second"
    entry.run_span("field", config, ["a", "b"], done, [source])
    assert done.read_bytes() != before


def test_a_killed_job_of_several_parts_goes_on_with_the_part_it_was_in(tmp_path, monkeypatch):
    config = schema.parse({"preset": "tiny", "runtime": {"results": str(tmp_path), "device": "cpu"}})
    source, done, computed = tmp_path / "input.npz", tmp_path / "spans" / "done.json", []
    source.write_bytes(b"1")
    dies_at = ["000004-000006"]

    def compute(stage, config, part, threads):
        if part in dies_at:
            raise KeyboardInterrupt
        computed.append(part)
        write_window(tmp_path, part)

    monkeypatch.setattr(entry, "run_stage", compute)
    parts = ["000000-000002", "000002-000004", "000004-000006"]
    with pytest.raises(KeyboardInterrupt):
        entry.run_span("field", config, parts, done, [source])
    assert computed == parts[:2] and not done.exists()
    dies_at.clear()
    entry.run_span("field", config, parts, done, [source])
    assert computed == parts
    assert list(json.loads(done.read_text())["finished"]) == parts
    assert [path.name for path in done.parent.iterdir()] == ["done.json"]


@pytest.mark.parametrize("change", ["config", "input"])
def test_a_killed_job_of_several_parts_starts_over_when_config_or_input_changed(tmp_path, monkeypatch, change):
    config = schema.parse({"preset": "tiny", "runtime": {"results": str(tmp_path)}})
    source, done, computed = tmp_path / "input.npz", tmp_path / "done.json", []
    source.write_bytes(b"1")
    monkeypatch.setattr(entry, "run_stage", lambda stage, config, part, threads: computed.append(write_window(tmp_path, part)) if part != "dies" else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        entry.run_span("field", config, ["a", "dies"], done, [source])
    if change == "config":
        config = schema.parse({"preset": "tiny", "field": {"steps": 3}, "runtime": {"results": str(tmp_path)}})
    else:
        source.write_bytes(b"2")
    entry.run_span("field", config, ["a", "b"], done, [source])
    assert computed == ["a", "a", "b"]


def start(code):
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


# Work goes on in short steps: a signal that arrives just before a long sleep starts is only seen when the sleep is over.
@pytest.mark.parametrize("goes_on", ["time.sleep(0.01)", "print('x' * 1000, flush=True)"], ids=["computing", "writing to a reader that takes nothing"])
def test_a_terminated_job_removes_what_it_wrote_aside(tmp_path, goes_on):
    process = start(f"""
        import sys, time
        from instant_nk import entry
        from instant_nk.io import artifact
        def work():
            with artifact.atomic({str(tmp_path / "a.npz")!r}) as aside:
                aside.write_bytes(b"half")
                print("writing", flush=True)
                while True:
                    {goes_on}
        sys.exit(entry.guarded(work))
    """)
    assert process.stdout.readline() == "writing\n"
    time.sleep(0.5)  # until the pipe is full
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 143
    said = process.stderr.read()
    assert "ended from outside" in said and "Traceback" not in said
    assert list(tmp_path.iterdir()) == []


def test_a_job_whose_workflow_was_killed_ends_itself(tmp_path):
    parent = start("""
        import subprocess, sys
        code = "from instant_nk import entry; import time; entry.stop_when_orphaned(); print('up', flush=True); time.sleep(60)"
        child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        child.stdout.readline()
        print(child.pid, flush=True)
        child.wait()
    """)
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 10
    while alive(child) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive(child)


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    try:
        with open(f"/proc/{pid}/stat") as handle:
            return handle.read().rsplit(")", 1)[1].split()[0] != "Z"  # a zombie nobody has waited for is dead
    except FileNotFoundError:
        return False


def test_measure_reports_seconds_and_mebibytes():
    watch = log.measure()
    block = np.ones(8 << 20)
    numbers = watch.numbers()
    assert block.sum() > 0
    assert 0 <= numbers["wall_s"] < 60
    assert 64 < numbers["peak_host_mib"] < 1e6


def test_a_stage_without_torch_may_use_the_threads_it_is_given():
    code = (
        "import sys; from instant_nk import config, entry; from instant_nk.kernels import _threads; assert _threads.count() == 1"
        "; entry.prepare(config.parse({'capture': 'c', 'sequence': 's'}).runtime, 3); assert _threads.count() == 3 and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
