"""Raw captures on disk: which cameras, frames and files there are. Opens json files and lists folders, never an image.

Layouts (docs/conventions.md):

* published: `transforms.json` with `file_folder` and one entry per camera; image of camera c at frame t:
  `<file_folder>/<t>/<file_path>` (without `file_folder`: `images/<t>/…` or `<t>/…`; without frame folders: one frame, 0);
* listed (NeRF): one entry per camera *and* time. `time` tells the frame: whole numbers are frame numbers, other values count as
  their rank among all times. Without `time`, entries whose files lie in folders named by numbers (`images/12/cam.png`) are listed the
  same way. Entries with the same pose and lens are one camera; a camera must be there at every time.

Snakemake calls `capture_inputs`, `list_frames` and `listing_digest` while parsing: this module loads no torch.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from instant_nk import config as config_module
from instant_nk.config import Config, FramesConfig
from instant_nk.errors import ConfigError, DataError
from instant_nk.io import capture_cameras as cameras
from instant_nk.io.capture_cameras import RawCamera

log = logging.getLogger(__name__)

TRAIN_JSON, TEST_JSON = "transforms.json", "transforms_test.json"


@dataclass(frozen=True)
class View:
    """Cameras of one json file and where their files lie.

    Attributes:
        path: the json file.
        folder: folder that file names are relative to (before the frame's folder).
        frame_folders: name of each frame's folder below `folder`; "" when the files lie in `folder` itself.
        cameras: sorted by file name.
    """

    path: Path
    folder: Path
    frame_folders: dict[int, str]
    cameras: tuple[RawCamera, ...]

    def file(self, camera: RawCamera, frame: int, kind: str = "file_path") -> Path | None:
        """Path of a camera's image (`file_path`), mask (`mask_path`) or depth map (`depth_path`) at a frame; None when the json names none."""
        names = camera.files.get(None) or camera.files.get(frame, {})
        if kind not in names:
            return None
        return self.folder / self.frame_folders.get(frame, str(frame)) / names[kind]


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
    times = _times(meta, inputs[0])
    train = _read_view(root, inputs[0], meta, times)
    if len(inputs) > 1:
        test = cameras.load_json(inputs[1])
        cameras.check_vocabulary(test, inputs[1])
        heldout = _read_view(root, inputs[1], test, times, heldout=True)
    else:
        if len(train.cameras) < 2:
            raise DataError(f"{inputs[0]}: one camera only, and without {TEST_JSON} the first is held out, so that none is left to train. Add cameras, or a {TEST_JSON}.")
        heldout = dataclasses.replace(train, cameras=train.cameras[:1])
        train = dataclasses.replace(train, cameras=train.cameras[1:])
    with_depth = [c for c in train.cameras if all("depth_path" in files for files in c.files.values())]
    if with_depth and len(with_depth) != len(train.cameras):
        lacking = [c.name for c in train.cameras if c not in with_depth]
        raise DataError(f"{inputs[0]}: 'depth_path' is given for some cameras and missing for others: {', '.join(lacking)}. Give all or none.")
    use_depth = bool(with_depth) and meta.get("enable_depth_loading", True) is not False
    return Capture(root, train, heldout, cameras.read_box(meta, inputs[0]), cameras.read_depth_unit(meta, inputs[0]) if use_depth else None)


def _folder_frame(name: Any) -> int | None:
    """Frame number of `images/12/cam.png`, or None."""
    parts = PurePosixPath(name.replace("\\", "/")).parts if isinstance(name, str) else ()
    return int(parts[-2]) if len(parts) > 1 and parts[-2].isdigit() else None


def _times(meta: dict[str, Any], path: Path) -> dict[float, int] | None:
    """Frame number by `time` of a listed capture; None for frame folders."""
    entries = [e if isinstance(e, dict) else {} for e in meta["frames"]]
    timed = [i for i, e in enumerate(entries) if "time" in e]
    if timed:
        if len(timed) != len(entries):
            lacking = next(i for i in range(len(entries)) if "time" not in entries[i])
            raise DataError(f"{cameras.entry_where(path, lacking, entries[lacking])}: key 'time' is missing, but other entries have it. Give all or none.")
        values = sorted({round(cameras.number(e["time"], cameras.entry_where(path, i, e), "time"), 9) for i, e in enumerate(entries)})
        whole = all(v >= 0 and v == int(v) for v in values)
        return {v: int(v) if whole else rank for rank, v in enumerate(values)}
    numbers = [_folder_frame(e.get("file_path")) for e in entries]
    if "file_folder" not in meta and None not in numbers:
        return {float(n): n for n in sorted(set(numbers))}
    return None


def _read_view(root: Path, path: Path, meta: dict[str, Any], times: dict[float, int] | None, heldout: bool = False) -> View:
    """The cameras of one json file, sorted by file name, and the folders of the frames."""
    entries = meta["frames"]
    names = []
    for index, entry in enumerate(entries):
        where = cameras.entry_where(path, index, entry)
        if not isinstance(entry, dict):
            raise DataError(f"{where}: wanted a table with 'file_path' and 'transform_matrix', got {type(entry).__name__}.")
        if "file_path" not in entry:
            raise DataError(f"{where}: key 'file_path' is missing.")
        names.append({k: cameras.file_name(entry[k], where, k) for k in ("file_path", "mask_path", "depth_path") if entry.get(k)})
    if times is not None:
        folder = root / str(meta.get("file_folder", "."))
        listed = _group_listed(path, meta, names, times, heldout)
        return View(path, folder, {frame: "" for frame in times.values()}, _named(listed, path))
    folder, frame_folders = _frame_folders(root, path, meta, names, heldout)
    single = [
        RawCamera(name=_camera_name(n["file_path"]), files={None: n}, where=w, **cameras.read_camera(meta, e, w))
        for e, n, w in ((e, n, cameras.entry_where(path, i, e)) for i, (e, n) in enumerate(zip(entries, names)))
    ]
    return View(path, folder, frame_folders, _named(single, path))


def _camera_name(file: str) -> str:
    """A relative name without steps upwards, safe to write below any folder."""
    return "/".join(p for p in PurePosixPath(file).parts if p not in ("/", "..", "."))


def _named(found: list[RawCamera], path: Path) -> tuple[RawCamera, ...]:
    ordered = sorted(found, key=lambda c: c.name)
    twice = sorted({a.name for a, b in zip(ordered, ordered[1:]) if a.name == b.name})
    if twice:
        raise DataError(f"{path}: 'file_path' must be unique per camera (and time), found twice: {', '.join(twice)}.")
    return tuple(ordered)


def _group_listed(path: Path, meta: dict[str, Any], names: list[dict[str, str]], times: dict[float, int], heldout: bool) -> list[RawCamera]:
    """Entries of one camera at many times gathered by equal pose and lens."""
    groups: dict[tuple, list[int]] = {}
    read = {}
    frame_of = {}
    for index, (entry, name) in enumerate(zip(meta["frames"], names)):
        where = cameras.entry_where(path, index, entry)
        if "time" in entry:
            frame = times.get(round(cameras.number(entry["time"], where, "time"), 9))
        else:
            frame = _folder_frame(name["file_path"])
            frame = frame if frame in times.values() else None
        if frame is None:
            if heldout:
                continue  # a held-out picture of a time that is not reconstructed
            raise DataError(f"{where}: key 'time' is missing.")
        frame_of[index] = frame
        camera = read[index] = cameras.read_camera(meta, entry, where)
        key = (camera["c2w"].round(9).tobytes(), json.dumps(camera["intrinsics"], sort_keys=True), camera["size"])
        groups.setdefault(key, []).append(index)
    result = []
    for members in groups.values():
        files: dict[int | None, dict[str, str]] = {}
        for index in members:
            if frame_of[index] in files:
                raise DataError(f"{cameras.entry_where(path, index, meta['frames'][index])}: a second image of the same camera at the same time ({files[frame_of[index]]['file_path']}).")
            files[frame_of[index]] = names[index]
        result.append(RawCamera(name=_listed_name([names[i]["file_path"] for i in members]), files=files, where=cameras.entry_where(path, members[0], meta["frames"][members[0]]), **read[members[0]]))
    if len({c.name for c in result}) < len(result):
        result.sort(key=lambda c: c.files[min(c.files)]["file_path"])
        result = [dataclasses.replace(c, name=f"camera_{i:03d}.png") for i, c in enumerate(result)]
    short = [c for c in result if len(c.files) != len(times)]
    if short and not heldout:
        seen = ", ".join(f"{c.name} ({len(c.files)} of {len(times)})" for c in short[:8])
        raise DataError(
            f"{path}: every camera needs an image at each of the {len(times)} times, at one fixed pose; {len(short)} poses do not have one: {seen}. A moving camera is not supported."
        )
    return result


def _listed_name(files: list[str]) -> str:
    """The parts of the file names that all times share, e.g. `cam03.png` for `cam03/0001.png, cam03/0002.png`."""
    parts = [PurePosixPath(_camera_name(f)).parts for f in files]
    if len({len(p) for p in parts}) > 1:
        return "camera.png"
    kept = [p[0] for p in zip(*parts) if len(set(p)) == 1]
    if len(kept) == len(parts[0]):
        return kept[-1]
    if kept and kept[-1] == parts[0][-1]:
        return kept[-1]  # images/12/cam_003.png
    return (kept[-1] if len(kept) > 1 or len(parts[0]) == 2 and kept else "camera") + ".png"


def _digit_folders(folder: Path, path: Path) -> dict[int, str]:
    """Sub-folders named by frame numbers."""
    result: dict[int, str] = {}
    try:
        with os.scandir(folder) as scan:
            for item in scan:
                if item.name.isdigit() and item.is_dir():
                    if int(item.name) in result:
                        raise DataError(f"{folder}: two folders for frame {int(item.name)}: '{result[int(item.name)]}' and '{item.name}'. Keep one.")
                    result[int(item.name)] = item.name
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise DataError(f"{path}: the image folder {folder} cannot be read ({error.strerror}).") from None
    return result


def _frame_folders(root: Path, path: Path, meta: dict[str, Any], names: list[dict[str, str]], heldout: bool) -> tuple[Path, dict[int, str]]:
    """Image folder and frame folders of the published layout."""
    given = meta.get("file_folder")
    if given is not None and not isinstance(given, str):
        raise DataError(f"{path}: 'file_folder' must be a folder name, got {given!r}.")
    candidates = [given] if given is not None else [".", "images_test" if heldout else "images"]
    for name in candidates:
        folders = _digit_folders(root / name, path)
        if folders:
            return root / name, folders
    folder = root / candidates[0]
    if heldout or any((folder / n["file_path"]).is_file() for n in names):
        return folder, {0: ""}
    missing = "no such folder" if not folder.is_dir() else "zero frames: no sub-folder named by a frame number (0, 1, 2, …)"
    raise DataError(f"{folder}: {missing}. {path.name} ('file_folder': {given!r}) wants images at <file_folder>/<frame>/<file_path>, e.g. {folder}/0/{names[0]['file_path']}.")


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
        raise DataError(f"{where}: {len(missing)} frame folder{'s are' if len(missing) > 1 else ' is'} missing: {', '.join(map(str, missing))} (found: {_ranges(found)}). Restore them, or choose frames.first and frames.count around them.")
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
    times = _times(meta, path)
    if times is not None:
        return select_frames(sorted(times.values()), frames, str(path))
    names = [{"file_path": cameras.file_name(e.get("file_path"), str(path), "file_path")} for e in meta["frames"] if isinstance(e, dict)]
    folder, folders = _frame_folders(root, path, meta, names or [{"file_path": "camera.png"}], heldout=False)
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


def listed_folders(capture: Path | str) -> list[Path]:
    """Folders whose files belong to a capture: images, held-out images and masks; never `gt` or results that lie beside them."""
    root = Path(capture)
    folders: list[Path] = []
    for path in capture_inputs(root):
        meta = cameras.load_json(path)
        if isinstance(meta.get("file_folder"), str):
            folders.append(root / meta["file_folder"])
        else:
            tops = {PurePosixPath(_camera_name(str(e[k]).replace("\\", "/"))).parts[:1] for e in meta["frames"] if isinstance(e, dict) for k in ("file_path", "mask_path", "depth_path") if e.get(k)}
            folders += [root / top[0] for top in sorted(tops) if top and (root / top[0]).is_dir()]
            folders += [root / name for name in ("images", "images_test")]
            folders += [root / name for name in _digit_folders(root, path).values()]
    folders += [root / "masks", root / "masks_test", *(f.parent / "masks" for f in folders)]
    unique = dict.fromkeys(f for f in map(Path, map(os.path.normpath, folders)) if f.is_dir() and f != root)
    return [f for f in unique if not any(other in f.parents for other in unique)]


def listing(capture: Path | str) -> dict[str, list[int]]:
    """Size in bytes and modification time in ns of every file of a capture, by its name relative to the capture."""
    root = Path(capture)
    result: dict[str, list[int]] = {}

    def scan(folder: str, prefix: str) -> None:
        with os.scandir(folder) as items:
            for item in items:
                if item.is_dir():
                    scan(item.path, f"{prefix}{item.name}/")
                else:
                    stat = item.stat()
                    result[prefix + item.name] = [stat.st_size, stat.st_mtime_ns]

    for path in capture_inputs(root):
        stat = path.stat()
        result[path.name] = [stat.st_size, stat.st_mtime_ns]
    for folder in listed_folders(root):
        scan(str(folder), os.path.relpath(folder, root) + "/")
    return result


def digest(found: dict[str, list[int]]) -> str:
    """Short hash of a listing."""
    hashed = hashlib.sha256()
    for name in sorted(found):
        hashed.update(f"{name}\0{found[name][0]}\0{found[name][1]}\n".encode())
    return hashed.hexdigest()[:16]


def listing_digest(capture: Path | str) -> str:
    """Short hash of the names, sizes and modification times of a capture's files: it changes when the capture does."""
    return digest(listing(capture))


def describe_changes(before: dict[str, list[int]], after: dict[str, list[int]], most: int = 12) -> str:
    """What differs between two listings, in one sentence; "" when nothing does."""
    kinds = {
        "added": sorted(after.keys() - before.keys()),
        "removed": sorted(before.keys() - after.keys()),
        "changed": sorted(n for n in before.keys() & after.keys() if list(before[n]) != list(after[n])),
    }
    parts = []
    for kind, names in kinds.items():
        if names:
            parts.append(f"{len(names)} {kind}: {', '.join(names[:most])}" + (f" and {len(names) - most} more" if len(names) > most else ""))
    return "; ".join(parts)
