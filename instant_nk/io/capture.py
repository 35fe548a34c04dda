"""Raw captures on disk: which cameras, frames and files there are. Opens json files and lists folders, never an image.

Snakemake calls `capture_inputs`, `list_frames` and `listing_digest` while parsing: this module loads no torch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import hashlib
import logging
import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from instant_nk import config as config_module
from instant_nk.config import Config, FramesConfig
from instant_nk.errors import ConfigError, DataError
from instant_nk.io import artifact
from instant_nk.io import capture_cameras as cameras
from instant_nk.io import capture_layout as layouts
from instant_nk.io.capture_cameras import RawCamera
from instant_nk.io.capture_layout import View

log = logging.getLogger(__name__)

LISTING_FORMAT = 1
TRAIN_JSON, TEST_JSON = "transforms.json", "transforms_test.json"


@dataclass(frozen=True)
class Capture:
    """A raw capture.

    Attributes:
        root: its folder.
        train: training cameras.
        heldout: cameras for evaluation: those of `transforms_test.json`, or the first camera when there is no such file.
        box: [[min], [max]] in world units, f64 [2, 3]; None: the capture gives none.
        depth_unit: world units per integer step of the depth maps; None: no depth maps.
    """

    root: Path
    train: View
    heldout: View
    box: np.ndarray | None
    depth_unit: float | None

    @property
    def frames(self) -> list[int]:
        """Absolute frame numbers found, ascending."""
        return sorted(self.train.frame_folders)


def resolve_capture(config: Config) -> Path:
    """Folder of the capture a config names; that of the built-in one may not have been written yet."""
    if config.capture == config_module.SYNTHETIC:
        from instant_nk.io import synthetic

        return synthetic.capture_path(config)
    return Path(config.capture)


def capture_inputs(capture: Path | str) -> list[Path]:
    """The json files of a capture.

    Raises:
        DataError: the folder or its `transforms.json` is missing.
    """
    root = Path(capture)
    if not root.is_dir():
        what = "is a file; give the folder it lies in" if root.is_file() else "no such folder"
        raise DataError(f"{root}: {what}. A capture is a folder with {TRAIN_JSON} and its images (config key 'capture').")
    if not (root / TRAIN_JSON).is_file():
        raise DataError(f"{root}: {TRAIN_JSON} is missing. A capture is a folder with {TRAIN_JSON} and its images.")
    return [root / name for name in (TRAIN_JSON, TEST_JSON) if (root / name).is_file()]


def read(capture: Path | str) -> Capture:
    """Read a capture's json files and find its frames.

    Raises:
        DataError: broken or incomplete json, unsupported keys, unsound cameras, no frames.
    """
    root = Path(capture)
    inputs = capture_inputs(root)
    meta = cameras.load_json(inputs[0])
    cameras.check_vocabulary(meta, inputs[0])
    times = layouts.times_of(meta, inputs[0])
    train = layouts.read_view(root, inputs[0], meta, times)
    if len(inputs) > 1:
        test = cameras.load_json(inputs[1])
        cameras.check_vocabulary(test, inputs[1])
        heldout = layouts.read_view(root, inputs[1], test, times, heldout=True)
    else:
        if len(train.cameras) < 2:
            raise DataError(
                f"{inputs[0]}: one camera only, and without {TEST_JSON} the first is held out, so that none is left to train. Add cameras, or a {TEST_JSON}."
            )
        heldout = dataclasses.replace(train, cameras=train.cameras[:1])
        train = dataclasses.replace(train, cameras=train.cameras[1:])
    with_depth = [c for c in train.cameras if all("depth_path" in files for files in c.files.values())]
    if with_depth and len(with_depth) != len(train.cameras):
        lacking = [c.name for c in train.cameras if c not in with_depth]
        raise DataError(f"{inputs[0]}: 'depth_path' is given for some cameras and missing for others: {', '.join(lacking)}. Give all or none.")
    use_depth = bool(with_depth) and meta.get("enable_depth_loading", True) is not False
    return Capture(root, train, heldout, cameras.read_box(meta, inputs[0]), cameras.read_depth_unit(meta, inputs[0]) if use_depth else None)


def select_frames(found: list[int], frames: FramesConfig, where: str) -> list[int]:
    """The frames a config asks for among those found: from `first`, every `step`-th, `count` of them.

    Raises:
        DataError: a frame in between is missing, or there are fewer than asked for.
    """
    if not found:
        raise DataError(f"{where}: zero frames found.")
    stride = min((b - a for a, b in zip(found, found[1:])), default=1)
    first = found[0] if frames.first is None else frames.first
    if not found[0] <= first <= found[-1] or (first - found[0]) % stride:
        raise DataError(f"{where}: 'frames.first' is {first}, but the capture's frames are {_ranges(found)}.")
    wanted = list(range(first, found[-1] + 1, stride * frames.step))
    if frames.count is not None:
        if frames.count > len(wanted):
            raise DataError(
                f"{where}: 'frames.count' is {frames.count} from frame {first} in steps of {frames.step}, but the capture has only {len(wanted)} (found: {_ranges(found)}). "
                "Lower frames.count or frames.step."
            )
        wanted = wanted[: frames.count]
    missing = sorted(set(wanted) - set(found))
    if missing:
        raise DataError(
            f"{where}: {len(missing)} frame folder{'s are' if len(missing) > 1 else ' is'} missing: {', '.join(map(str, missing))} (found: {_ranges(found)}). Restore them, or choose frames.first and frames.count around them."
        )
    return wanted


def _ranges(numbers: list[int]) -> str:
    """`0-3, 5, 7-9`."""
    runs: list[list[int]] = []
    for n in numbers:
        if runs and n == runs[-1][-1] + 1:
            runs[-1].append(n)
        else:
            runs.append([n])
    text = [f"{r[0]}-{r[-1]}" if len(r) > 1 else str(r[0]) for r in runs]
    return ", ".join(text[:20]) + (", …" if len(text) > 20 else "")


def list_frames(capture: Path | str, frames: FramesConfig) -> list[int]:
    """Absolute numbers of the frames that a run uses, ascending."""
    root = Path(capture)
    path = capture_inputs(root)[0]
    meta = cameras.load_json(path)
    times = layouts.times_of(meta, path)
    if times is not None:
        return select_frames(sorted(times.values()), frames, str(path))
    names = [{"file_path": cameras.file_name(e.get("file_path"), str(path), "file_path")} for e in meta["frames"] if isinstance(e, dict)]
    folder, folders = layouts.frame_folders_of(root, path, meta, names or [{"file_path": "camera.png"}], heldout=False)
    return select_frames(sorted(folders), frames, str(folder))


def frames_of(config: Config) -> list[int]:
    """`list_frames` of a config's capture; the built-in one need not have been written."""
    if config.capture == config_module.SYNTHETIC:
        return select_frames(list(range(config.synthetic.frames)), config.frames, "the synthetic capture")
    return list_frames(resolve_capture(config), config.frames)


def select_cameras(found: tuple[RawCamera, ...], wanted: str | int | list[str]) -> list[int]:
    """Indices of the training cameras to use: all, N of them spread over the rig, or by name.

    N cameras are spread by taking, from the first on, each time the one farthest from those taken.
    """
    names = [c.name for c in found]
    if isinstance(wanted, list):  # a video's camera may be called by the video's name
        wanted = [str(PurePosixPath(w).with_suffix(".png")) if layouts.is_video(w) else w for w in wanted]
    if wanted == "all":
        return list(range(len(found)))
    if isinstance(wanted, int):
        if wanted > len(found):
            raise ConfigError(f"config key 'dataset.cameras': wanted at most the capture's {len(found)} training cameras, got {wanted}.")
        centres = np.stack([c.c2w[:3, 3] for c in found])
        taken = [0]
        distance = np.linalg.norm(centres - centres[0], axis=1)
        while len(taken) < wanted:
            distance[taken] = -1
            taken.append(int(distance.argmax()))
            distance = np.minimum(distance, np.linalg.norm(centres - centres[taken[-1]], axis=1))
        return sorted(taken)
    unknown = [w for w in wanted if w not in names]
    if unknown or not wanted:
        near = difflib.get_close_matches(unknown[0], names, n=1, cutoff=0.0) if unknown else []
        raise ConfigError(
            f"config key 'dataset.cameras': {'unknown camera ' + ', '.join(unknown) if unknown else 'an empty list'}; the training cameras are {', '.join(names)}."
            + (f" Nearest: '{near[0]}'." if near else "")
        )
    return [i for i, name in enumerate(names) if name in wanted]


def _listed(root: Path, path: Path, meta: dict[str, Any]) -> list[Path]:
    """Folders, or single files, that a json's images, masks and depth maps lie in."""
    if isinstance(meta.get("file_folder"), str) and (root / meta["file_folder"]).resolve() != root.resolve():
        return [root / meta["file_folder"]]
    files = [str(e[k]).replace("\\", "/") for e in meta["frames"] if isinstance(e, dict) for k in ("file_path", "mask_path", "depth_path") if e.get(k)]
    tops = {(PurePosixPath(layouts.camera_name(f)).parts or ("",))[0] for f in files}
    return (
        [root / top for top in sorted(tops) if top]
        + [root / name for name in ("images", "images_test")]
        + [root / name for name in layouts.digit_folders(root, path).values()]
    )


def listing(capture: Path | str) -> dict[str, str]:
    """Size in bytes and modification time in ns (`"8123 1763822112000000000"`) of every file of a capture, by name relative to it.

    Images, masks, depth maps and clean plates (`plates/`) are listed; `gt` or results that lie beside them are not.

    Raises:
        DataError: a folder cannot be read.
    """
    root = Path(capture)
    result: dict[str, str] = {}

    def note(name: str, item: os.DirEntry | Path) -> None:
        with contextlib.suppress(FileNotFoundError):  # a dangling link is reported as a missing image
            stat = item.stat()
            result[name] = f"{stat.st_size} {stat.st_mtime_ns}"

    def scan(folder: str, prefix: str) -> None:
        with os.scandir(folder) as items:
            for item in items:
                if item.is_dir():
                    scan(item.path, f"{prefix}{item.name}/")
                else:
                    note(prefix + item.name, item)

    inputs = capture_inputs(root)
    wanted = [*inputs, root / "plates", root / "masks_test"]
    for path in inputs:
        for listed in _listed(root, path, cameras.load_json(path)):
            wanted += [listed, layouts.masks_beside(listed)]
    unique = dict.fromkeys(Path(os.path.normpath(w)) for w in wanted)
    try:
        for path in unique:
            if any(other in path.parents for other in unique):
                continue
            name = os.path.relpath(path, root)
            if path.is_dir():
                scan(str(path), name + "/")
            elif path.is_file():
                note(name, path)
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be read ({error.strerror}). Check the capture's permissions.") from None
    return result


def digest(found: dict[str, str]) -> str:
    """Short hash of a listing."""
    return hashlib.sha256("".join(f"{name}\0{found[name]}\n" for name in sorted(found)).encode()).hexdigest()[:16]


def listing_digest(capture: Path | str) -> str:
    """Short hash of the names, sizes and modification times of a capture's files: it changes when the capture does."""
    return digest(listing(capture))


def describe_changes(before: dict[str, str], after: dict[str, str], most: int = 12) -> str:
    """What differs between two listings, in one sentence; "" when nothing does."""
    kinds = {
        "added": sorted(after.keys() - before.keys()),
        "removed": sorted(before.keys() - after.keys()),
        "changed": sorted(n for n in before.keys() & after.keys() if before[n] != after[n]),
    }
    parts = []
    for kind, names in kinds.items():
        if names:
            parts.append(f"{len(names)} {kind}: {', '.join(names[:most])}" + (f" and {len(names) - most} more" if len(names) > most else ""))
    return "; ".join(parts)


def listing_file(manifest: Path | str) -> Path:
    """Where the dataset stage keeps the listing of the capture it read: beside the manifest, which Snakemake removes before a re-run."""
    return Path(manifest).with_name("listing.json")


def changes_since(manifest: Path | str, found: dict[str, str]) -> str:
    """What differs between the capture as the dataset at `manifest` was made from it and its listing now; "" when nothing does or nothing was made."""
    path = listing_file(manifest)
    if not path.is_file():
        return ""
    before = artifact.load_json(path, "the capture's listing")
    artifact.check_header(path, before.get("header", {}), "listing", LISTING_FORMAT)
    return describe_changes(before["files"], found)


def save_listing(manifest: Path | str, found: dict[str, str]) -> None:
    """Keep a capture's listing for `changes_since`."""
    artifact.save_json(listing_file(manifest), {"header": artifact.make_header("listing", LISTING_FORMAT, "dataset"), "files": found})
