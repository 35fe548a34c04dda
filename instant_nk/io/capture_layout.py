"""Layouts of a capture: which camera's image of which frame lies where.

* published: `transforms.json` with `file_folder` and one entry per camera; image of camera c at frame t:
  `<file_folder>/<t>/<file_path>` (without `file_folder`: `images/<t>/…` or `<t>/…`; without frame folders: one frame, 0);
* videos: `file_path` of every camera is a video, `<file_folder>/cam_000.mp4` (without `file_folder`: beside the json, or in `videos/`); its
  n-th picture, counted from zero, is frame n;
* listed (NeRF): one entry per camera *and* time. `time` tells the frame: whole numbers are frame numbers, other values count as
  their rank among all times. Without `time`, entries whose files lie in folders named by numbers (`images/12/cam.png`) are listed the
  same way. Entries with the same pose and lens are one camera; a camera must be there at every time.
"""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from instant_nk.errors import DataError
from instant_nk.io import capture_cameras as cameras
from instant_nk.io import capture_video
from instant_nk.io.capture_cameras import RawCamera


@dataclass(frozen=True)
class View:
    """Cameras of one json file and where their files lie.

    Attributes:
        path: the json file.
        folder: folder that file names are relative to (before the frame's folder).
        frame_folders: name of each frame's folder below `folder`; "" when the files lie in `folder` itself.
        cameras: sorted by file name.
        video: each camera's file is a video of all frames.
    """

    path: Path
    folder: Path
    frame_folders: dict[int, str]
    cameras: tuple[RawCamera, ...]
    video: bool = False

    def file(self, camera: RawCamera, frame: int, kind: str = "file_path") -> Path | None:
        """Path of a camera's image (`file_path`), mask (`mask_path`) or depth map (`depth_path`) at a frame; None when the json names none."""
        names = camera.files.get(None) or camera.files.get(frame, {})
        if kind not in names:
            return None
        return self.folder / names[kind] if self.video else self.folder / self.frame_folders.get(frame, str(frame)) / names[kind]


def folder_frame(name: Any) -> int | None:
    """Frame number of `images/12/cam.png`, or None."""
    parts = PurePosixPath(name.replace("\\", "/")).parts if isinstance(name, str) else ()
    return int(parts[-2]) if len(parts) > 1 and parts[-2].isdigit() else None


def times_of(meta: dict[str, Any], path: Path) -> dict[float, int] | None:
    """Frame number by `time` of a listed capture; None for frame folders."""
    entries = [e if isinstance(e, dict) else {} for e in meta["frames"]]
    if any(is_video(e.get("file_path")) for e in entries):
        return None
    timed = [i for i, e in enumerate(entries) if "time" in e]
    if timed:
        if len(timed) != len(entries):
            lacking = next(i for i in range(len(entries)) if "time" not in entries[i])
            raise DataError(f"{cameras.entry_where(path, lacking, entries[lacking])}: key 'time' is missing, but other entries have it. Give all or none.")
        values = sorted({round(cameras.number(e["time"], cameras.entry_where(path, i, e), "time"), 9) for i, e in enumerate(entries)})
        whole = all(v >= 0 and v == int(v) for v in values)
        return {v: int(v) if whole else rank for rank, v in enumerate(values)}
    numbers = [folder_frame(e.get("file_path")) for e in entries]
    if "file_folder" not in meta and None not in numbers:
        return {float(n): n for n in sorted(set(numbers))}
    return None


def is_video(name: Any) -> bool:
    return isinstance(name, str) and name.lower().endswith(cameras.VIDEO_SUFFIXES)


def read_view(root: Path, path: Path, meta: dict[str, Any], times: dict[float, int] | None, heldout: bool = False) -> View:
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
    video = check_videos(path, entries, names)
    if times is not None and not video:
        folder = root / str(meta.get("file_folder", "."))
        listed = _group_listed(path, meta, names, times, heldout)
        return View(path, folder, dict.fromkeys(times.values(), ""), _named(listed, path))
    folder, frame_folders = frame_folders_of(root, path, meta, names, heldout)
    single = [
        RawCamera(
            name=camera_name(str(PurePosixPath(n["file_path"]).with_suffix(".png")) if video else n["file_path"]),
            files={None: n},
            where=w,
            **cameras.read_camera(meta, e, w),
        )
        for e, n, w in ((e, n, cameras.entry_where(path, i, e)) for i, (e, n) in enumerate(zip(entries, names)))
    ]
    return View(path, folder, frame_folders, _named(single, path), video)


def check_videos(path: Path, entries: list[dict[str, Any]], names: list[dict[str, str]]) -> bool:
    """Whether the files are videos.

    Raises:
        DataError: only some are; or an entry has what cannot go with a video, or a mask video without one.
    """
    videos = [is_video(n["file_path"]) for n in names]
    for index, (entry, name, video) in enumerate(zip(entries, names, videos)):
        where = cameras.entry_where(path, index, entry)
        if video != videos[0]:
            raise DataError(f"{where}: some cameras are videos and others are not ({names[0]['file_path']}). Give all as videos, or all as images.")
        if video and "time" in entry:
            raise DataError(f"{where}: a video holds all times: remove 'time'. Its n-th picture, counted from zero, is frame n.")
        if video and "depth_path" in name:
            raise DataError(f"{where}: 'depth_path' beside a video is not supported. Give the camera's pictures as images, or remove the key.")
        if is_video(name.get("mask_path")) and not video:
            raise DataError(f"{where}: 'mask_path' is a video, 'file_path' is not. Give mask images, or both as videos.")
    return videos[0]


def camera_name(file: str) -> str:
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
            frame = times.get(float(folder_frame(name["file_path"]) or 0))
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
                raise DataError(
                    f"{cameras.entry_where(path, index, meta['frames'][index])}: a second image of the same camera at the same time ({files[frame_of[index]]['file_path']})."
                )
            files[frame_of[index]] = names[index]
        result.append(
            RawCamera(
                name=_listed_name([names[i]["file_path"] for i in members]),
                files=files,
                where=cameras.entry_where(path, members[0], meta["frames"][members[0]]),
                **read[members[0]],
            )
        )
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
    parts = [PurePosixPath(camera_name(f)).parts for f in files]
    if len({len(p) for p in parts}) > 1:
        return "camera.png"
    kept = [p[0] for p in zip(*parts) if len(set(p)) == 1]
    if len(kept) == len(parts[0]):
        return kept[-1]
    if kept and kept[-1] == parts[0][-1]:
        return kept[-1]  # images/12/cam_003.png
    return (kept[-1] if len(kept) > 1 or len(parts[0]) == 2 and kept else "camera") + ".png"


def digit_folders(folder: Path, path: Path) -> dict[int, str]:
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


def frame_folders_of(root: Path, path: Path, meta: dict[str, Any], names: list[dict[str, str]], heldout: bool) -> tuple[Path, dict[int, str]]:
    """Image folder and frame folders of the published layout."""
    given = meta.get("file_folder")
    if given is not None and not isinstance(given, str):
        raise DataError(f"{path}: 'file_folder' must be a folder name, got {given!r}.")
    if is_video(names[0]["file_path"]):
        return _video_frames(root, path, given, names, heldout)
    candidates = [given] if given is not None else [".", "images_test" if heldout else "images"]
    for name in candidates:
        folders = digit_folders(root / name, path)
        if folders:
            return root / name, folders
    folder = root / candidates[0]
    if heldout or any((folder / n["file_path"]).is_file() for n in names):
        return folder, {0: ""}
    missing = "no such folder" if not folder.is_dir() else "zero frames: no sub-folder named by a frame number (0, 1, 2, …)"
    raise DataError(
        f"{folder}: {missing}. {path.name} ('file_folder': {given!r}) wants images at <file_folder>/<frame>/<file_path>, e.g. {folder}/0/{names[0]['file_path']}."
    )


def _video_frames(root: Path, path: Path, given: str | None, names: list[dict[str, str]], heldout: bool) -> tuple[Path, dict[int, str]]:
    """Folder of the videos, and the frames that the first of them holds."""
    folders = [root / name for name in ([given] if given is not None else [".", "videos_test" if heldout else "videos"])]
    first = min(name["file_path"] for name in names)
    folder = next((f for f in folders if (f / first).is_file()), folders[0])
    if (folder / first).is_file():
        return folder, dict.fromkeys(range(capture_video.frame_count(folder / first)), "")
    if heldout:
        return folder, {}
    raise DataError(f"{folder / first}: the video is missing. {path.name} wants one video per camera at <file_folder>/<file_path>.")


def masks_beside(folder: Path) -> Path:
    """The folder that holds the masks of an image folder: `masks` for `images`, `masks_test` for `images_test`, otherwise `masks` beside it."""
    name = folder.name
    if "images" in name:
        return folder.with_name(name.replace("images", "masks"))
    return folder.with_name("masks_test" if name.endswith("test") else "masks")
