"""Artifacts: files written aside and renamed when whole, each with a header that says what it is and what made it.

Format: `.npz` without pickling, with a JSON header under the key `__header__`, or JSON with the header under `header`.
The header holds `artifact`, `format`, `stage`, `stage_version`, `package_version`, `config_hash` and `inputs`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from instant_nk import __version__
from instant_nk.errors import ContractError
from instant_nk.layout import STAGE_VERSION

HEADER = "__header__"


def config_hash(section: Any) -> str:
    """Short content hash of a config section or any JSON-able value."""
    return hashlib.sha256(json.dumps(section, sort_keys=True, default=str).encode()).hexdigest()[:16]


def make_header(artifact: str, format: int, stage: str, section: Any = None, inputs: dict[str, str] | None = None) -> dict[str, Any]:
    """The header every artifact carries.

    Args:
        artifact: what the file is, e.g. ``"graph"``.
        format: format number of this kind of file.
        stage: the stage that writes it.
        section: the stage's effective config, stored as a hash.
        inputs: content hashes of the artifacts it was made from, by name.
    """
    return {
        "artifact": artifact,
        "format": format,
        "stage": stage,
        "stage_version": STAGE_VERSION[stage],
        "package_version": __version__,
        "config_hash": config_hash(section),
        "inputs": inputs or {},
    }


def not_written(path: Path | str, error: Exception) -> ContractError:
    """The one message for a file or folder that could not be written (disk full, no permission)."""
    reason = getattr(error, "strerror", None) or error
    return ContractError(
        f"{path}: could not be written: {reason}. Nothing was left half-written; free space or fix permissions, then run the same command again."
    )


def _own_number() -> str:
    """A number for the name of a file aside that no other writer has, on any machine: in containers process ids are often equal."""
    return f"{os.getpid()}{secrets.randbelow(10**9):09d}"


@contextlib.contextmanager
def atomic(path: Path | str) -> Iterator[Path]:
    """A path beside `path` to write to; renamed onto `path` when the block ends well, removed when it does not.

    Raises:
        ContractError: the disk is full or not writable; names the file.
    """
    path = Path(path)
    aside = path.with_name(f".{path.stem}.{_own_number()}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield aside
        with open(aside, "rb") as handle:
            os.fsync(handle.fileno())
        os.replace(aside, path)
    except OSError as error:
        raise not_written(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            aside.unlink()


@contextlib.contextmanager
def atomic_folder(folder: Path | str, pattern: str) -> Iterator[Path]:
    """A folder beside `folder` to fill; it takes `folder`'s place when the block ends well, and vanishes when it does not.

    Args:
        pattern: regular expression of the names that belong here; a folder that holds anything else (but hidden files) is not replaced.

    Raises:
        ContractError: the path is a file, the folder holds other files, or the disk is full or not writable.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ContractError(f"{folder}: is a file; wanted a folder. Move it away.")
    foreign = sorted(p.name for p in folder.iterdir() if not re.fullmatch(pattern, p.name) and p.name[0] != ".") if folder.exists() else []
    if foreign:
        raise ContractError(
            f"{folder}: holds files that no export wrote ({', '.join(foreign[:3])}{', …' if len(foreign) > 3 else ''}). Give an empty folder or move them away."
        )
    number = _own_number()
    aside, old = (folder.with_name(f".{folder.name}.{number}{end}") for end in ("", ".old"))
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        yield aside
        if folder.exists():
            os.replace(folder, old)
        os.replace(aside, folder)
    except OSError as error:
        if old.exists() and not folder.exists():
            os.replace(old, folder)
        raise not_written(folder, error) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)


def save_npz(path: Path | str, header: dict[str, Any], compress: bool = True, **arrays: np.ndarray) -> None:
    """Write arrays and header as one `.npz`, whole or not at all."""
    for name, array in arrays.items():
        if np.asarray(array).dtype == object:
            raise ContractError(f"{path}: array '{name}' has object type and cannot be stored without pickling")
    with atomic(path) as aside, open(aside, "wb") as handle:
        (np.savez_compressed if compress else np.savez)(handle, **{HEADER: np.array(json.dumps(header))}, **arrays)


def load_npz(path: Path | str, artifact: str, format: int) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Read an artifact written by `save_npz`; pickling stays disabled.

    Returns:
        header, arrays by name.

    Raises:
        ContractError: missing, truncated, another kind of artifact, or another format number.
    """
    path = Path(path)
    if not path.is_file():
        raise ContractError(f"{path}: artifact '{artifact}' is missing. Run the stage that writes it.")
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        header = json.loads(str(arrays.pop(HEADER)))
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise ContractError(f"{path}: not a readable '{artifact}' artifact ({error}). Delete the file and re-run its stage.") from None
    check_header(path, header, artifact, format)
    return header, arrays


def read_header(path: Path | str) -> dict[str, Any]:
    """The header of an artifact of any kind, `.npz` or JSON.

    Raises:
        ContractError: missing, truncated, or without a header.
    """
    path = Path(path)
    if path.suffix == ".json":
        value = load_json(path)
        if isinstance(value, dict) and isinstance(value.get("header"), dict):
            return value["header"]
        raise ContractError(f"{path}: has no header. Delete it and re-run its stage.")
    try:
        with np.load(path, allow_pickle=False) as archive:
            return json.loads(str(archive[HEADER]))
    except FileNotFoundError:
        raise ContractError(f"{path}: is missing. Run the stage that writes it.") from None
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise ContractError(f"{path}: not a readable artifact ({error}). Delete the file and re-run its stage.") from None


def check_header(path: Path | str, header: dict[str, Any], artifact: str, format: int) -> None:
    """Refuse an artifact of another kind or format number."""
    if header.get("artifact") != artifact:
        raise ContractError(f"{path}: wanted artifact '{artifact}', got '{header.get('artifact')}'.")
    if header.get("format") != format:
        raise ContractError(
            f"{path}: wanted format {format} of '{artifact}', got {header.get('format')} (written by version {header.get('package_version')}). "
            f"Re-run stage '{header.get('stage')}'."
        )


def save_json(path: Path | str, value: Any) -> None:
    """Write JSON, whole or not at all; NaN is refused because it is not JSON."""
    with atomic(path) as aside:
        aside.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n")


def load_json(path: Path | str, what: str = "artifact") -> Any:
    """Read JSON written by `save_json`."""
    path = Path(path)
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise ContractError(f"{path}: {what} is missing. Run the stage that writes it.") from None
    except ValueError as error:
        raise ContractError(f"{path}: {what} is not valid JSON ({error}). Delete it and re-run its stage.") from None
    except OSError as error:
        raise ContractError(f"{path}: {what} cannot be read ({error.strerror}).") from None


def check_array(path: Path | str, name: str, array: np.ndarray, shape: tuple[int | None, ...], dtype: Any, finite: bool = True) -> np.ndarray:
    """`array`, after checking shape (None: any length), dtype and finiteness.

    Raises:
        ContractError: names the file, the array, what was wanted and what was found.
    """
    wanted = f"{np.dtype(dtype).name} [{', '.join('any' if n is None else str(n) for n in shape)}]"
    if array.ndim != len(shape) or any(n is not None and n != m for n, m in zip(shape, array.shape)) or array.dtype != np.dtype(dtype):
        raise ContractError(f"{path}: '{name}' must be {wanted}, got {array.dtype.name} {list(array.shape)}. Re-run the stage that writes it.")
    if finite and np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
        raise ContractError(f"{path}: '{name}' holds values that are not finite. Re-run the stage that writes it.")
    return array


def file_hash(path: Path | str) -> str:
    """Content hash of a file, to record what an artifact was made from."""
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:16]
