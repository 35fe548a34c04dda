"""Stage 8: the numbers, pictures, videos and the page that show what a run achieved. Reads artifacts only."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

from instant_nk import layout, log
from instant_nk.io import artifact, metrics, truth
from instant_nk.io.dataset import Dataset
from instant_nk.io.mesh import Animation
from instant_nk.io.metrics import StageCost
from instant_nk.layout import Job
from instant_nk.stages import report_films, report_index, report_page, report_results, report_scores, report_surfaces, report_views
from instant_nk.stages.report_results import Renders, Results
from instant_nk.stages.report_scores import Scores
from instant_nk.stages.report_surfaces import SurfaceResults
from instant_nk.viewer.mesh_renderer import MeshRenderer

logger = logging.getLogger(__name__)


def run(job: Job) -> None:
    """Measure and draw; the page is written last, so that it is there only when everything is."""
    if job.config.field.dyna_mode != "deform":
        found = report_surfaces.load(job)
        summary = report_surfaces.write(job, found, neural_renderer(job, found))
        logger.info("report %s", log.fields(page=str(job.paths.report_page), **{k: v for k, v in summary.items() if v is not None}))
        return
    watch = log.measure()
    results = report_results.load(job)
    neural, drawn = neural_renderer(job, results), MeshRenderer(results.animation, job.device, texture=results.texture, images=results.frame_textures)
    views = report_views.render_heldout(job.paths.report, results.dataset, results.animation.frames.tolist(), neural, drawn)
    films = report_films.write(job, results, neural, drawn)
    scores = score(results, drawn, views)
    costs = results.costs | {"report": StageCost("report")}
    costs["report"].add("report", watch.numbers())
    summary = scores.summary | report_scores.totals(costs)
    frames = {"frames": results.animation.frames.tolist()} | scores.per_frame
    header = artifact.make_header("metrics", metrics.FORMAT, "report", layout.stage_values(job.config, "report"), _inputs(job))
    metrics.save(job.paths.metrics, header, summary, frames, views, costs)
    pages = report_page.build(job, results, neural, drawn, summary, frames, costs, films)
    with artifact.atomic(job.paths.report_page) as aside:
        aside.write_text(pages, encoding="utf-8")
    report_index.write(job.paths.root.parent)
    logger.info("report %s", log.fields(page=str(job.paths.report_page), **{k: v for k, v in summary.items() if v is not None}))


def neural_renderer(job: Job, results: Results | SurfaceResults) -> Renders:
    """The renderer of the windows' fields."""
    from instant_nk.fitting.render import Renderer

    return Renderer(job, results.dataset)


def _inputs(job: Job) -> dict[str, str]:
    used = {"animation": job.paths.animation, "motion": job.paths.motion, "texture": job.paths.texture}
    return {name: artifact.file_hash(path) for name, path in used.items() if path.is_file()}


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
    yield report_scores.of_mesh(animation)
    yield report_scores.of_motion(results.motion, animation, data)
    yield report_scores.of_silhouettes(drawn, animation, data)
    yield report_scores.of_truth(animation, truth.load(data.capture, animation.frames.tolist()))
    yield report_scores.of_views(views)
    yield report_scores.of_seams(results.costs["mesh"])
    yield report_scores.of_inverse(results.costs["mesh"])
