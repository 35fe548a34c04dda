"""Stage 8: the numbers, pictures, videos and the page that show what a run achieved. Reads artifacts only."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from instant_nk import layout, log
from instant_nk.geometry import camera_path, evaluation
from instant_nk.io import artifact, metrics, truth
from instant_nk.io.dataset import Dataset
from instant_nk.io.export.video import write_video
from instant_nk.io.metrics import StageCost
from instant_nk.layout import Job
from instant_nk.stages import report_page, report_results, report_scores
from instant_nk.stages.report_results import Renders, Results
from instant_nk.stages.report_scores import Scores
from instant_nk.viewer import pictures
from instant_nk.viewer.mesh_renderer import MeshRenderer

logger = logging.getLogger(__name__)

VIDEO_SIDE = 320  # pixels, of the camera path's pictures


def run(job: Job) -> None:
    """Measure and draw; the page is written last, so that it is there only when everything is."""
    watch = log.measure()
    results = report_results.load(job)
    neural, drawn = neural_renderer(job, results), MeshRenderer(results.animation, job.device)
    views = render_heldout(job.paths.report, results, neural, drawn)
    films = render_path(job, results, neural)
    scores = score(results, drawn, views)
    costs = results.costs | {"report": StageCost("report")}
    costs["report"].add("report", watch.numbers())
    summary = scores.summary | totals(costs)
    frames = {"frames": results.animation.frames.tolist()} | scores.per_frame
    header = artifact.make_header("metrics", metrics.FORMAT, "report", layout.stage_values(job.config, "report"), _inputs(job))
    metrics.save(job.paths.metrics, header, summary, frames, views, costs)
    pages = report_page.build(job, results, neural, drawn, summary, frames, costs, films)
    with artifact.atomic(job.paths.report_page) as aside:
        aside.write_text(pages, encoding="utf-8")
    logger.info("report %s", log.fields(page=str(job.paths.report_page), **{k: v for k, v in summary.items() if v is not None}))


def neural_renderer(job: Job, results: Results) -> Renders:
    """The renderer of the windows' fields."""
    from instant_nk.fitting.render import Renderer

    return Renderer(job, results.dataset)


def _inputs(job: Job) -> dict[str, str]:
    return {"animation": artifact.file_hash(job.paths.animation), "motion": artifact.file_hash(job.paths.motion)}


def render_heldout(folder: Path, results: Results, neural: Renders, drawn: MeshRenderer) -> list[dict[str, Any]]:
    """Draw every held-out camera at every frame into `renders/{frame}/{camera file name}` and score those with a true picture."""
    rig, views = results.dataset.heldout, []
    shutil.rmtree(folder / "renders", ignore_errors=True)
    wanted = [(frame, c) for frame in results.animation.frames.tolist() for c in range(len(rig))]
    progress = log.Progress("report renders", len(wanted), logger)
    for done, (frame, c) in enumerate(wanted, 1):
        size = (int(rig.sizes[c][0]), int(rig.sizes[c][1]))
        picture = pictures.to_rgba(pictures.layers_of(neural.render(rig.c2w[c], rig.K[c], size, frame)))
        with artifact.atomic(folder / "renders" / str(frame) / _inside(rig.names[c])) as aside:
            aside.write_bytes(pictures.png_bytes(picture))
        view: dict[str, Any] = {"frame": frame, "camera": rig.names[c]}
        true_picture = results.dataset.heldout_image(c, frame)
        if true_picture is not None:
            view |= evaluation.score_picture(picture / 255, true_picture / 255)
            of_mesh = pictures.to_rgba(drawn.render(rig.c2w[c], rig.K[c], size, frame))
            view |= {f"mesh_{name}": value for name, value in evaluation.score_picture(of_mesh / 255, true_picture / 255).items()}
        views.append(view)
        progress.update(done)
    return views


def _inside(name: str) -> Path:
    """A camera's file name as a path that stays below the folder it is put in."""
    return Path(*[part for part in Path(name).parts if part not in ("..", "/")])


def render_path(job: Job, results: Results, neural: Renders) -> dict[str, Path]:
    """Write `rgb.mp4` and `depth.mp4` along a camera path around the subject, the clip playing to and fro.

    Returns:
        path of each video by name.
    """
    config, animation = job.config.report, results.animation
    points = animation.vertices.reshape(-1, 3).astype(np.float64)
    low, high = points.min(0), points.max(0)
    points = points[:: max(1, len(points) // 20000)]
    poses = camera_path.orbit(results.dataset.cameras.c2w, (low + high) / 2, config.path_frames)
    size = _video_size(results.dataset)
    K = camera_path.framing(points, poses, size)
    near, far = np.percentile([(points - pose[:3, 3]) @ pose[:3, 2] for pose in poses], (1, 99))
    colours, depths = [], []
    progress = log.Progress("report video", len(poses), logger)
    for done, (pose, row) in enumerate(zip(poses, camera_path.frame_order(len(animation.frames), len(poses))), 1):
        layers = pictures.layers_of(neural.render(pose, K, size, int(animation.frames[row])))
        colours.append(pictures.flat(pictures.to_rgba(layers)))
        depths.append(pictures.depth_picture(layers, near, far))
        progress.update(done)
    films = {"rgb": job.paths.report / "rgb.mp4", "depth": job.paths.report / "depth.mp4"}
    write_video(films["rgb"], colours, config.fps)
    write_video(films["depth"], depths, config.fps)
    return films


def _video_size(data: Dataset) -> tuple[int, int]:
    """Width and height of the path's pictures: the first camera's shape, no larger than VIDEO_SIDE and no larger than its images."""
    width, height = (int(n) for n in data.cameras.sizes[0])
    factor = min(1.0, VIDEO_SIDE / max(width, height))
    return max(2, round(width * factor / 2) * 2), max(2, round(height * factor / 2) * 2)


def score(results: Results, drawn: MeshRenderer, views: list[dict[str, Any]]) -> Scores:
    """All numbers of the summary except the costs, and all lists per frame."""
    data, animation = results.dataset, results.animation
    total = Scores({}, {})
    for part in _parts(results, data, animation, drawn, views):
        total.summary |= part.summary
        total.per_frame |= part.per_frame
    return total


def _parts(results: Results, data: Dataset, animation: Animation, drawn: MeshRenderer, views: list[dict[str, Any]]) -> Iterator[Scores]:
    yield report_scores.of_animation(animation, data)
    yield report_scores.of_motion(results.motion, animation, data)
    yield report_scores.of_silhouettes(drawn, animation, data)
    yield report_scores.of_truth(animation, truth.load(data.capture, animation.frames.tolist()))
    yield report_scores.of_views(views)
    yield report_scores.of_seams(results.costs["mesh"])


def totals(costs: dict[str, StageCost]) -> dict[str, float | None]:
    """Sum of all jobs' times, and the largest memory of any."""
    gpu = [cost.peak_gpu_mib for cost in costs.values() if cost.peak_gpu_mib is not None]
    host = [cost.peak_host_mib for cost in costs.values() if cost.peak_host_mib is not None]
    return {"wall_s": sum(cost.wall_s for cost in costs.values()), "peak_host_mib": max(host, default=None), "peak_gpu_mib": max(gpu, default=None)}
