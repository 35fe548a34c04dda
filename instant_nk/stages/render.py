"""`instant-nk render`: a finished sequence's fields from cameras of one's own, as videos and as a folder that other tools read."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np

from instant_nk import log
from instant_nk.errors import ContractError, DataError
from instant_nk.io import artifact, capture_cameras
from instant_nk.io import dataset as dataset_io
from instant_nk.io import mesh as mesh_io
from instant_nk.io.capture_cameras import RawCamera
from instant_nk.io.dataset import Dataset
from instant_nk.io.export.video import write_video
from instant_nk.io.mesh import Animation
from instant_nk.layout import Job
from instant_nk.stages import report_films, report_surfaces
from instant_nk.stages.report_films import Path3d
from instant_nk.stages.report_results import Renders
from instant_nk.viewer import pictures

logger = logging.getLogger(__name__)

ORBIT = "orbit"
CAMERAS = "cameras.json"
KINDS = ("rgb", "depth", "normal")
FRAME_FILE = r"\d{6}_(rgb|depth|normal)\.png"
WINDOW = re.compile(r"\d+-\d+")
DEPTH_STEPS = 65535


def run_render(job: Job, path: str, output: Path, side: int) -> str:
    """Render a sequence along a path.

    Args:
        job: the sequence, the device, `report.fps` and `report.path_frames`.
        path: `orbit`, or a json with cameras (see `read_cameras`).
        output: folder for `rgb.mp4`, `depth.mp4`, `normal.mp4`, `frames/` and `cameras.json`.
        side: longer side of the orbit's pictures, pixels.

    Returns:
        one line that says what was written.
    """
    data = dataset_io.load(job.paths.manifest)
    animation = shown_clip(job, data)
    taken = report_films.orbit(data, animation, job.config.report.path_frames, side) if path == ORBIT else read_cameras(Path(path), animation)
    renderer = neural_renderer(job, data)
    points = report_films.surface_points(animation)
    unit = depth_unit(points, taken)
    with artifact.atomic_folder(output / "frames", FRAME_FILE) as folder:
        render_frames(renderer, taken, folder, unit)
    write_cameras(output / CAMERAS, taken, unit)
    limits = report_films.depth_limits(points, taken.poses)
    for kind in KINDS:
        write_video(output / f"{kind}.mp4", shown(output / "frames", kind, len(taken.poses), unit, limits), job.config.report.fps)
    return f"{output}: {len(taken.poses)} pictures of {taken.size[0]}x{taken.size[1]} in rgb.mp4, depth.mp4, normal.mp4 and frames/; cameras in {CAMERAS}"


def neural_renderer(job: Job, data: Dataset) -> Renders:
    """The renderer of the windows the animation was made from, whatever the config says now."""
    from instant_nk.fitting.render import Renderer

    return Renderer(job, data, windows_of(job))


def windows_of(job: Job) -> list[str]:
    """Names of the windows the mesh stage joined last."""
    made = job.paths.surfaces if job.paths.surfaces.is_file() else job.paths.animation
    windows = [name for name in artifact.read_header(made)["inputs"] if WINDOW.fullmatch(name)]
    if not windows:
        raise ContractError(f"{made}: does not say which windows it was made from. Re-run stage 'mesh' (--forcerun mesh_join).")
    return windows


def shown_clip(job: Job, data: Dataset) -> Animation:
    """The animation; in modes that do not track, what stands for it where only place and frames matter."""
    if job.paths.surfaces.is_file():
        return report_surfaces.clip(report_surfaces.read(job.paths, list(data.frames), windows_of(job)))
    return mesh_io.load_animation(job.paths.animation)


def read_cameras(path: Path, animation: Animation) -> Path3d:
    """Cameras of a json in the vocabulary of captures: any `transforms.json`, or what this command wrote.

    Each entry of `frames` is one picture: `transform_matrix` (camera-to-world, OpenGL axes), `w`, `h`, and `K`, `fl_x` or `camera_angle_x`;
    `frame` is the absolute frame it shows (without: the clip plays to and fro).

    Raises:
        DataError: as for captures; pictures of different sizes or without one, or of a frame that is not there.
    """
    meta = capture_cameras.load_json(path)
    entries = [(capture_cameras.entry_where(path, i, entry), entry) for i, entry in enumerate(meta["frames"])]
    wanted = [entry.pop("frame", None) if isinstance(entry, dict) else None for _, entry in entries]
    capture_cameras.check_vocabulary(meta, path)
    cameras = [RawCamera(name="", files={}, where=where, **capture_cameras.read_camera(meta, entry, where)) for where, entry in entries]
    sizes = {camera.size for camera in cameras}
    if None in sizes:
        raise DataError(f"{path}: 'w' and 'h' are missing: they say how large the pictures are, in pixels.")
    if len(sizes) > 1:
        raise DataError(f"{path}: a video's pictures must have one size, got {sorted(sizes)}. Give every camera the same w and h.")
    if any(camera.distortion.any() for camera in cameras):
        logger.info("%s: pictures are rendered without the lens's distortion", path)
    shown = report_films.clip(animation, len(cameras))
    for i, frame in enumerate(wanted):
        if frame is not None and frame not in animation.frames:
            raise DataError(f"{entries[i][0]}: 'frame' is {frame!r}; the animation has frames {animation.frames[0]} to {animation.frames[-1]}.")
        shown[i] = shown[i] if frame is None else int(frame)
    size = sizes.pop()
    return Path3d(np.stack([camera.c2w for camera in cameras]), np.stack([camera.K(size) for camera in cameras]), size, shown)


def depth_unit(points: np.ndarray, taken: Path3d) -> float:
    """World units per step of the 16-bit depth, with half as much again beyond the farthest point of the surface."""
    return 1.5 * max(float(((points - pose[:3, 3]) @ pose[:3, 2]).max()) for pose in taken.poses) / DEPTH_STEPS


def render_frames(renderer: Renders, taken: Path3d, folder: Path, unit: float) -> None:
    """Write every picture as `{i}_rgb.png` (straight alpha), `{i}_depth.png` (16 bit, 0: nothing) and `{i}_normal.png` (camera axes)."""
    for i, (pose, K, frame) in enumerate(log.progress(list(zip(taken.poses, taken.K, taken.frames)), "render", logger)):
        layers = pictures.layers_of(renderer.render(pose, K, taken.size, frame))
        depth = np.where(layers["alpha"] > 0.5, np.round(layers["depth"] / unit), 0).clip(0, DEPTH_STEPS).astype(np.uint16)
        for kind, picture in zip(KINDS, (pictures.to_rgba(layers), depth, pictures.normal_picture(layers, pose))):
            (folder / f"{i:06d}_{kind}.png").write_bytes(pictures.png_bytes(picture))


def write_cameras(path: Path, taken: Path3d, unit: float) -> None:
    """The cameras in the vocabulary of captures, with the pictures' names, so that this command and other tools can read them again."""
    frames: list[dict[str, Any]] = [
        {
            "file_path": f"frames/{i:06d}_rgb.png",
            "depth_path": f"frames/{i:06d}_depth.png",
            "frame": frame,
            "K": K.tolist(),
            "transform_matrix": (pose @ capture_cameras.OPENCV_FROM_OPENGL).tolist(),
        }
        for i, (pose, K, frame) in enumerate(zip(taken.poses, taken.K, taken.frames))
    ]
    value = {"w": taken.size[0], "h": taken.size[1], "integer_depth_scale": unit, "frames": frames}
    with artifact.atomic(path) as aside:
        aside.write_text(json.dumps(value, indent=1), encoding="utf-8")


def shown(folder: Path, kind: str, count: int, unit: float, limits: tuple[float, float]) -> Iterator[np.ndarray]:
    """The pictures of one kind as a video shows them, read back one at a time, u8 [H, W, 3]."""
    for i in range(count):
        picture = iio.imread(folder / f"{i:06d}_{kind}.png")
        if kind == "rgb":
            picture = pictures.flat(picture)
        elif kind == "depth":
            picture = pictures.depth_picture({"depth": picture * unit, "alpha": picture > 0}, *limits)
        yield picture
