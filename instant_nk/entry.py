"""How a stage is run, from the command line or from a rule: log, seed, threads, device, backend, call, exit code."""

from __future__ import annotations

import argparse
import dataclasses
import errno
import fcntl
import importlib
import json
import logging
import os
import platform
import random
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from instant_nk import __version__, layout, log
from instant_nk import config as schema
from instant_nk.errors import BackendError, ConfigError, InstantNKError
from instant_nk.kernels import _threads

logger = logging.getLogger(__name__)

# Before torch is loaded: its threads sleep at barriers instead of spinning. On busy cores a step of two threads takes
# six times as long when they spin; on idle ones it makes no difference.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

INTERRUPTED = 130  # what shells report for a process ended by ctrl-C
FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
ORPHAN_CHECK_S = 1.0
HAND_OVER = 2e-4  # seconds after which a thread of a GPU job gives up the interpreter to another


class Unread:
    """Stands for a config section that a stage has no right to read: the rules would not re-run it when that section changes."""

    def __init__(self, stage: str, section: str, values: dict[str, Any]):
        self.__dict__.update(values)
        self.__dict__["_stage"], self.__dict__["_section"] = stage, section

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise ConfigError(
            f"stage '{self._stage}' reads config key '{self._section}.{name}', which is not among layout.STAGE_READS['{self._stage}']. "
            "Add it there, so that its change re-runs the stage, or read the number from the earlier stage's artifact."
        )


def restrict(config: schema.Config, stage: str) -> schema.Config:
    """`config` with every section `stage` does not read replaced by one that raises a `ConfigError` when it is read."""
    own = layout.stage_values(config, stage)
    hidden = {}
    for item in dataclasses.fields(config):
        whole = item.name in layout.STAGE_READS[stage] or item.name == "runtime"
        if dataclasses.is_dataclass(getattr(config, item.name)) and not whole:
            hidden[item.name] = Unread(stage, item.name, own.get(item.name, {}))
    return dataclasses.replace(config, **hidden)


def count_gpus() -> int:
    """NVIDIA devices of this machine, counted without importing torch or waking the driver."""
    return len([path for path in Path("/dev").glob("nvidia*") if path.name.removeprefix("nvidia").isdigit()]) or int(Path("/dev/dxg").exists())


def claim_gpu(count: int, folder: Path) -> int:
    """Index of a GPU that no other job on this machine holds; waits until one is free.

    The claim is a lock on a file, which the operating system releases when this process ends, however it ends.
    """
    waiting = False
    while True:
        for index in range(count):
            path = folder / f"instant-nk-gpu-{index}.lock"
            handle = os.open(path, os.O_RDONLY) if path.exists() else os.open(path, os.O_RDONLY | os.O_CREAT, 0o644)  # another user's will do
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return index  # the handle stays open for the life of the process
            except BlockingIOError:
                os.close(handle)
        if not waiting:
            logger.info("waiting for one of %d GPUs; `snakemake --resources gpu=%d` starts no more jobs than that", count, count)
        waiting = True
        time.sleep(1.0)


def resolve_device(wanted: str) -> str:
    """`cpu` or `cuda` for `runtime.device`; torch is asked only where a GPU may be.

    Where no scheduler has chosen the GPU (`CUDA_VISIBLE_DEVICES`), one is claimed for this process alone.

    Raises:
        BackendError: cuda was asked for by name and torch cannot use it here.
    """
    count = count_gpus()
    if wanted == "cpu" or (wanted == "auto" and not count):
        return "cpu"
    if "CUDA_VISIBLE_DEVICES" not in os.environ:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(claim_gpu(max(count, 1), Path(tempfile.gettempdir())))  # read when CUDA starts
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if wanted == "cuda":
        raise BackendError(
            f"runtime.device=cuda: torch {torch.__version__} finds no usable GPU on {platform.node()}. Check the driver with nvidia-smi, or set runtime.device=auto."
        )
    logger.warning("a GPU is present but torch %s cannot use it; computing on the CPU", torch.__version__)
    return "cpu"


def commit() -> str:
    """Short git commit of the code that runs, `+` when files differ from it; `none` outside a checkout."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return "none"
    try:
        text = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty=+", "--abbrev=9"], capture_output=True, text=True, timeout=10, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return text.strip()


def prepare(runtime: schema.RuntimeConfig, threads: int | None) -> str:
    """Seed every generator, set the threads, choose device and backend, and log the first line.

    Only what is loaded is prepared: a stage without torch does not pay for importing it.

    Returns:
        the device.
    """
    import numpy as np

    random.seed(runtime.seed)
    np.random.seed(runtime.seed)
    first = {"version": __version__, "commit": commit(), "seed": runtime.seed, "host": platform.node(), "pid": os.getpid()}
    device = "cpu"
    if threads := runtime.threads or threads:
        _threads.allow(threads)
    if torch := sys.modules.get("torch"):
        from instant_nk.kernels import _backend

        torch.manual_seed(runtime.seed)
        if threads:
            torch.set_num_threads(threads)
        device = resolve_device(runtime.device)
        if device == "cuda":  # a thread that feeds the GPU and one that reads images hand over the lock often; by Python's 5 ms each, both crawl
            sys.setswitchinterval(HAND_OVER)
        _backend.select(runtime.backend)
        name = torch.cuda.get_device_name().replace(" ", "_") if device == "cuda" else "cpu"
        first |= {"device": name, "backend": _backend.describe(device), "threads": torch.get_num_threads(), "torch": torch.__version__}
    logger.info("%s", log.fields(**first))
    return device


def run_stage(stage: str, config: schema.Config, part: str | None = None, threads: int | None = None) -> None:
    """Run one stage, or one part of it, and save the config it used beside its outputs.

    Args:
        part: window or batch of frames (`000000-000009`); None where the stage is one job.
        threads: CPU threads of this job; None: the library's choice. `runtime.threads` overrides it.
    """
    from instant_nk.io import artifact

    layout.check_part(stage, part)
    if part is not None:
        layout.part_frames(part)
    module = importlib.import_module(f"instant_nk.stages.{stage}")
    device = prepare(config.runtime, threads)
    paths = layout.paths_of(config)
    if stage in layout.STAGES:
        used = {"stage": stage, "stage_version": layout.STAGE_VERSION[stage], "package_version": __version__, "config": layout.stage_values(config, stage)}
        artifact.save_json(paths.stage_dir(stage) / "config.json", used)
    module.run(layout.Job(restrict(config, stage), paths, device, part))


def run_span(stage: str, config: schema.Config, parts: list[str], done: Path, made_from: list[Path], threads: int | None = None) -> None:
    """Run several parts of a stage one after another, so that a long capture does not spend its time starting processes.

    What is finished is noted beside `done` until all are: a job that was killed goes on with the part it was in, if the config and
    the inputs are still the same.

    Args:
        done: file written when all parts are finished; its presence is what the workflow waits for.
        made_from: the job's inputs.
    """
    from instant_nk.io import artifact

    ledger = done.with_suffix(".partial.json")
    same = {"reads": layout.stage_values(config, stage), "version": layout.STAGE_VERSION[stage], "inputs": {str(p): artifact.file_hash(p) for p in made_from}}
    noted = artifact.load_json(ledger) if ledger.is_file() else {}
    finished = noted["finished"] if noted.get("same") == same else []
    for part in parts:
        if part in finished:
            logger.info("%s %s: finished before this job was killed", stage, part)
            continue
        run_stage(stage, config, part, threads)
        finished.append(part)
        artifact.save_json(ledger, {"same": same, "finished": finished})
    # Snakemake takes a small file of the same content for the same input: what is done must say what it was made from and what it is.
    artifact.save_json(done, {"same": same, "finished": {part: artifact.file_hash(layout.part_file(stage, layout.paths_of(config), part)) for part in parts}})
    ledger.unlink()


def guarded(work: Callable[[], None]) -> int:
    """Call `work` and turn what can go wrong into one message and an exit code. A bug keeps its traceback."""
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        work()
        sys.stdout.flush()  # here, where what goes wrong can still be handled
    except InstantNKError as error:
        _complain(f"{type(error).__name__}: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        _complain("interrupted. Run the same command again to go on.")
        return INTERRUPTED
    except Terminated:
        _complain("ended from outside (SIGTERM). Run the same command again to go on.")
        raise
    except SystemExit:  # --help and the like
        _reader_left()
        raise
    except BrokenPipeError:
        if not _reader_left():
            raise
        return 128 + signal.SIGPIPE
    except OSError as error:
        if error.errno not in (*FULL_DISK, errno.EROFS):
            raise
        _complain(f"{error.filename or 'a file'}: could not be written: {error.strerror}. Free space, then run the same command again.")
        return InstantNKError.exit_code
    except Exception as error:
        if type(error).__name__ != "OutOfMemoryError" and not isinstance(error, MemoryError):
            raise
        _complain(f"out of memory: {error}. Lower this stage's samples_per_step (or max_image_side), or give the job more memory.")
        return InstantNKError.exit_code
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0


class Terminated(SystemExit):
    """Raised where the work stands when SIGTERM arrives, so that files written aside are removed."""


def _terminate(*_: object) -> None:
    """Only raise: the signal may have come in the midst of a write, and a second write to the same stream is an error."""
    raise Terminated(128 + signal.SIGTERM)


def _reader_left() -> bool:
    """Whether what reads this process's output has seen enough (`| head`); what is not yet written is then dropped."""
    output = select.poll()
    output.register(sys.__stdout__.fileno(), 0)
    if not output.poll(0):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno())
    return True


def _complain(message: str) -> None:
    _reader_left()
    sys.stdout.flush()
    print(f"error: {message}", file=sys.stderr, flush=True)


def stop_when_orphaned() -> None:
    """End this process when the one that started it is gone, so that a workflow killed with -9 leaves no job writing behind it."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            threading.Event().wait(ORPHAN_CHECK_S)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="orphan-watch", daemon=True).start()


def rule(stage: str, argv: list[str] | None = None) -> int:
    """Run a stage for a Snakemake rule (`workflow/scripts/{stage}.py`), which passes what the stage reads as JSON."""
    parser = argparse.ArgumentParser(description=f"Run stage '{stage}' for a rule of the workflow; by hand use `instant-nk {stage}`.")
    parser.add_argument("--sequence", required=True, help="name of the result folder")
    parser.add_argument("--config", required=True, type=json.loads, help="what the stage reads of the config, JSON")
    parser.add_argument("--runtime", required=True, type=json.loads, help="the runtime section, JSON")
    parser.add_argument("--part", nargs="+", default=[None], help="window or batch of frames, e.g. 000000-000009; several with --done")
    parser.add_argument("--done", type=Path, help="file to write when all parts are finished")
    parser.add_argument("--made-from", type=Path, nargs="+", default=[], help="the job's inputs, with --done")
    parser.add_argument("--threads", type=int, help="CPU threads")
    args = parser.parse_args(argv)

    def work() -> None:
        stop_when_orphaned()
        config = schema.parse({**args.config, "sequence": args.sequence, "runtime": args.runtime})
        log.setup(config.runtime.log_level)
        if args.done:
            run_span(stage, config, args.part, args.done, args.made_from, args.threads)
        else:
            run_stage(stage, config, args.part[0], args.threads)

    return guarded(work)
