"""A note in a sequence's folder that says which run writes there, so that two runs from different places do not mix their results.

Snakemake's own lock holds within one working directory. Runs of two clones, two users or two machines that share a results folder
meet here instead. The note is touched while its run lives; one that no longer is may be taken over. Ages are differences between
times of the file server, so clocks of the machines do not matter.
"""

from __future__ import annotations

import atexit
import contextlib
import getpass
import json
import os
import platform
import threading
import time
from pathlib import Path
from typing import Any

from instant_nk.errors import ContractError
from instant_nk.io import artifact

BEAT_S = 20.0
DEAD_S = 90.0
"""A note of another machine that was not touched for so long is of a run that was killed."""


def path_of(folder: Path) -> Path:
    return folder / ".run.json"


def take(folders: list[Path], directory: Path) -> None:
    """Say that this process writes to `folders` until it ends.

    Args:
        directory: the working directory, within which Snakemake's own lock holds.

    Raises:
        ContractError: a run of another directory is writing there, or the folder is not writable; names it and its user.
    """
    mine = {
        "host": platform.node(),
        "pid": os.getpid(),
        "user": _me(),
        "directory": str(directory.resolve()),
        "started": time.strftime("%Y-%m-%d %H:%M"),
    }
    taken: list[Path] = []
    atexit.register(_give_back, taken, mine)
    for folder in (folder.absolute() for folder in folders):  # the process may leave its directory before it ends
        _take_one(folder, mine)
        taken.append(path_of(folder))
    threading.Thread(target=_beat, args=(taken,), name="run-note", daemon=True).start()


def _me() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # containers run under numbers that have no name
        return f"user {os.getuid()}"


def _take_one(folder: Path, mine: dict[str, Any]) -> None:
    path = path_of(folder)
    probe = path.with_name(f".run.{platform.node()}.{os.getpid()}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_text(json.dumps(mine))
        try:
            os.link(probe, path)  # fails where there is a note, also on a network file system
        except FileExistsError:
            if other := _alive(path, probe, mine["directory"]):
                raise ContractError(
                    f"{folder}: a run of {other['user']} is writing there ({other['host']}, process {other['pid']}, since {other['started']}, from {other['directory']}). "
                    f"Wait for it, or choose another 'sequence' or 'runtime.results'. If it was killed, its note expires within {DEAD_S:.0f} s."
                ) from None
            os.replace(probe, path)
        except OSError:  # a file system without hard links
            os.replace(probe, path)
    except OSError as error:
        owner = f" It belongs to {_owner(folder)}." if folder.exists() else ""
        raise ContractError(
            f"{folder}: cannot be written ({error.strerror}).{owner} Fix permissions or free space, or choose another 'runtime.results'."
        ) from None
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)


def _alive(path: Path, probe: Path, directory: str) -> dict[str, Any] | None:
    """The run behind a note, unless it has ended or is of this directory, where Snakemake's lock has just been had."""
    other = read(path)
    if other is None or other["directory"] == directory:
        return None
    if other["host"] == platform.node():
        return other if process_lives(other["pid"]) else None
    return other if probe.stat().st_mtime - path.stat().st_mtime < DEAD_S else None


def read(path: Path) -> dict[str, Any] | None:
    """A note's content; None where there is none or it is damaged."""
    try:
        value = artifact.load_json(path)
    except ContractError:
        return None
    return value if isinstance(value, dict) and {"host", "pid", "user", "directory", "started"} <= value.keys() else None


def describe(folder: Path) -> str:
    """Who is writing to a sequence's folder now, as a line for `status`; "" when nobody says so."""
    path = path_of(folder)
    run = read(path)
    if run is None:
        return ""
    here = run["host"] == platform.node()
    lives = process_lives(run["pid"]) if here else time.time() - path.stat().st_mtime < DEAD_S
    words = f"{run['user']} on {run['host']}, process {run['pid']}, from {run['directory']}, since {run['started']}"
    return f"run: {words}" if lives else f"run: killed ({words}). The same command goes on; it may ask for --unlock once."


def process_lives(pid: int) -> bool:
    """Whether a process of this machine runs."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # another user's
    return True


def _owner(folder: Path) -> str:
    try:
        return folder.owner()
    except KeyError:
        return f"user {folder.stat().st_uid}"


def _beat(paths: list[Path]) -> None:
    while True:
        time.sleep(BEAT_S)
        for path in paths:
            with contextlib.suppress(OSError):
                os.utime(path)


def _give_back(paths: list[Path], mine: dict[str, Any]) -> None:
    for path in paths:
        if read(path) == mine:
            with contextlib.suppress(OSError):
                path.unlink()
