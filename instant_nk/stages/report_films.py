"""The report's videos: the fields along a camera path, the animated mesh on a turntable, and a held-out camera beside the truth."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from instant_nk import log
from instant_nk.geometry import camera_path
from instant_nk.io.dataset import Dataset
from instant_nk.io.export.video import write_gif, write_video
from instant_nk.io.mesh import Animation
from instant_nk.layout import Job
from instant_nk.stages.report_results import Renders, Results
from instant_nk.viewer import pictures
from instant_nk.viewer.mesh_renderer import MeshRenderer

logger = logging.getLogger(__name__)

VIDEO_SIDE = 320  # pixels: longer side of the videos' pictures
GIF_SIDE = 200  # of each of the two pictures of the preview
TURN = 2  # pictures of the turntable per picture of the camera path: the mesh is drawn faster than the fields
DEPTH_POINTS = 20000


@dataclass(frozen=True)
class Path3d:
    """P pictures to take, each of a frame of the clip.

    Attributes:
        poses: camera-to-world, OpenCV axes, world units, f64 [P, 4, 4].
        K: intrinsics in pixels, f64 [P, 3, 3].
        size: width and height in pixels.
        frames: absolute frame numbers [P].
    """

    poses: np.ndarray
    K: np.ndarray
    size: tuple[int, int]
    frames: list[int]


def surface_points(animation: Animation) -> np.ndarray:
    """Some points of the surface over the whole clip, world units, f64 [P, 3]."""
    points = animation.vertices.reshape(-1, 3)
    return points[:: max(1, len(points) // DEPTH_POINTS)].astype(np.float64)


def orbit(data: Dataset, animation: Animation, count: int, longest: int = VIDEO_SIDE) -> Path3d:
    """A path around the subject where the rig has seen it, the clip playing to and fro."""
    centre = (animation.vertices.min((0, 1)).astype(np.float64) + animation.vertices.max((0, 1))) / 2
    poses = camera_path.orbit(data.cameras.c2w, centre, count)
    return _framed(poses, animation, video_size(data, longest))


def turning(data: Dataset, animation: Animation, count: int) -> Path3d:
    """A full turn around the subject, cut to its shape, the clip playing to and fro."""
    centre = (animation.vertices.min((0, 1)).astype(np.float64) + animation.vertices.max((0, 1))) / 2
    poses = camera_path.turntable(data.cameras.c2w, centre, count)
    return _framed(poses, animation, camera_path.snug_size(surface_points(animation), poses, VIDEO_SIDE))


def _framed(poses: np.ndarray, animation: Animation, size: tuple[int, int]) -> Path3d:
    K = camera_path.framing(surface_points(animation), poses, size)
    return Path3d(poses, np.broadcast_to(K, (len(poses), 3, 3)), size, clip(animation, len(poses)))


def clip(animation: Animation, count: int) -> list[int]:
    """The absolute frame that each of `count` pictures shows."""
    return [int(animation.frames[row]) for row in camera_path.frame_order(len(animation.frames), count)]


def depth_limits(points: np.ndarray, poses: np.ndarray) -> tuple[float, float]:
    """Depth of the nearest and farthest surface points over all poses, outliers aside, world units."""
    near, far = np.percentile([(points - pose[:3, 3]) @ pose[:3, 2] for pose in poses], (1, 99))
    return float(near), float(far)


def video_size(data: Dataset, longest: int = VIDEO_SIDE) -> tuple[int, int]:
    """Even width and height: the first camera's shape, no larger than `longest` and no larger than its images."""
    width, height = (int(n) for n in data.cameras.sizes[0])
    factor = min(1.0, longest / max(width, height))
    return max(2, round(width * factor / 2) * 2), max(2, round(height * factor / 2) * 2)


def write(job: Job, results: Results, neural: Renders, drawn: MeshRenderer) -> dict[str, Path]:
    """Write all videos and the preview; none with `report.films: false`.

    Returns:
        path of each by name: `rgb`, `depth`, `turntable`, and `heldout` where the capture has held-out cameras.
    """
    clear(job)
    if not job.config.report.films:
        return {}
    films = along_path(job, results, neural) | turntable(job, results, drawn)
    return films | (heldout(job, results, drawn) if len(results.dataset.heldout) else {})


def clear(job: Job) -> None:
    """Remove an earlier run's videos: this one may have fewer."""
    for name in ("rgb.mp4", "depth.mp4", "turntable.mp4", "heldout.mp4"):
        (job.paths.report / name).unlink(missing_ok=True)
    job.paths.report_preview.unlink(missing_ok=True)


def along_path(job: Job, results: Results, neural: Renders) -> dict[str, Path]:
    """Write `rgb.mp4` and `depth.mp4` of the fields along a path around the subject."""
    path = orbit(results.dataset, results.animation, job.config.report.path_frames)
    near, far = depth_limits(surface_points(results.animation), path.poses)
    colours, depths = [], []
    for pose, K, frame in log.progress(list(zip(path.poses, path.K, path.frames)), "report video", logger):
        layers = pictures.layers_of(neural.render(pose, K, path.size, frame))
        colours.append(pictures.flat(pictures.to_rgba(layers)))
        depths.append(pictures.depth_picture(layers, near, far))
    films = {"rgb": job.paths.report / "rgb.mp4", "depth": job.paths.report / "depth.mp4"}
    write_video(films["rgb"], colours, job.config.report.fps)
    write_video(films["depth"], depths, job.config.report.fps)
    return films


def turntable(job: Job, results: Results, drawn: MeshRenderer) -> dict[str, Path]:
    """Write `turntable.mp4`, the animated mesh in its colours and bare beside it, and `turntable.gif`, the same small."""
    path = turning(results.dataset, results.animation, TURN * job.config.report.path_frames)
    shown = []
    for pose, K, frame in log.progress(list(zip(path.poses, path.K, path.frames)), "report turntable", logger):
        layers = drawn.render(pose, K, path.size, frame)
        shown.append(np.concatenate([pictures.flat(pictures.to_rgba(layers)), pictures.clay_picture(layers, pose)], 1))
    film = job.paths.report / "turntable.mp4"
    write_video(film, shown, job.config.report.fps)
    small = [np.asarray(Image.fromarray(picture).resize(_preview_size(path.size), Image.Resampling.LANCZOS)) for picture in shown]
    write_gif(job.paths.report_preview, small, job.config.report.fps)
    return {"turntable": film}


def _preview_size(size: tuple[int, int]) -> tuple[int, int]:
    """Width of both pictures side by side, and height."""
    factor = min(1.0, GIF_SIDE / max(size))
    return round(2 * size[0] * factor), round(size[1] * factor)


def heldout(job: Job, results: Results, drawn: MeshRenderer) -> dict[str, Path]:
    """Write `heldout.mp4`: the first held-out camera's picture (where the capture has it at all frames), the rendering saved before, and the mesh."""
    rig, data, frames = results.dataset.heldout, results.dataset, results.animation.frames.tolist()
    size = (int(rig.sizes[0][0]), int(rig.sizes[0][1]))
    known = all(data.heldout_images[str(frame)][0] is not None for frame in frames)

    def shown() -> Iterator[np.ndarray]:
        for frame in log.progress(frames, "report held-out camera", logger):
            views = [data.heldout_image(0, frame)] if known else []
            views.append(np.asarray(Image.open(render_file(job.paths.report, frame, rig.names[0]))))  # by what the file is, whatever its name says
            views.append(pictures.to_rgba(drawn.render(rig.c2w[0], rig.K[0], size, frame)))
            yield np.concatenate([pictures.shrink(pictures.flat(view), VIDEO_SIDE) for view in views], 1)

    film = job.paths.report / "heldout.mp4"
    write_video(film, shown(), job.config.report.fps)
    return {"heldout": film}


def render_file(report: Path, frame: int, camera: str) -> Path:
    """Where a held-out camera's rendering lies: the camera's file name, below `renders/{frame}`, whatever the name says; a PNG whatever its ending."""
    return report / "renders" / str(frame) / Path(*[part for part in Path(camera).parts if part not in ("..", "/")])
