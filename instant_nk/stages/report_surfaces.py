"""Stage 8 in modes that do not track: held-out views, the surfaces against the truth, costs. What needs tracks is null and said to be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from instant_nk import layout, log
from instant_nk.geometry import evaluation
from instant_nk.io import artifact, dataset, metrics, surfaces, truth
from instant_nk.io.dataset import Dataset
from instant_nk.io.mesh import Animation
from instant_nk.io.metrics import StageCost
from instant_nk.io.surfaces import FrameSurface
from instant_nk.layout import Job
from instant_nk.stages import report_films, report_index, report_page, report_scores, report_views
from instant_nk.stages.mesh_surfaces import alone
from instant_nk.stages.report_results import Renders
from instant_nk.stages.report_scores import Scores
from instant_nk.viewer import page, pictures
from instant_nk.viewer.mesh_renderer import MeshRenderer

SHOWN = 3  # frames compared with the input on the page


@dataclass
class SurfaceResults:
    """What the report reads; `animation` is the `clip`."""

    dataset: Dataset
    animation: Animation
    found: dict[int, FrameSurface]
    costs: dict[str, StageCost]


def load(job: Job) -> SurfaceResults:
    """Read what the earlier stages wrote."""
    from instant_nk.fitting import window_files

    data = dataset.load(job.paths.manifest)
    frames = list(data.frames)
    windows = window_files.windows_of(frames, job.config.field)
    parts = {"observation": layout.batches(frames, job.config.observation.frames_per_job), "field": windows, "mesh": windows}
    found = read(job.paths, frames, windows)
    return SurfaceResults(data, clip(found), found, metrics.stage_costs(job.paths, parts))


def read(paths: layout.Paths, frames: list[int], windows: list[str]) -> dict[int, FrameSurface]:
    """The surface of every frame, from the window in which it lies deepest."""
    from instant_nk.fitting import window_files

    opened = {window: surfaces.load(paths.mesh_window(window)) for window in windows}
    return {frame: opened[window_files.deepest(windows, frame)][frame] for frame in frames}


def clip(found: dict[int, FrameSurface]) -> Animation:
    """Where the clip's surface lies and which frames there are, for what frames pictures; no vertex of it is tracked."""
    points = np.concatenate([surface.vertices for surface in found.values()])
    nothing = np.zeros((1, len(points)), np.float32)
    frames = np.array(sorted(found), np.int32)
    return Animation(frames, points[None], np.zeros((0, 3), np.int32), points, nothing, nothing, nothing.astype(np.int32))


def write(job: Job, results: SurfaceResults, neural: Renders) -> dict[str, Any]:
    """Measure and draw; the page is written last. Returns the summary."""
    watch = log.measure()
    report_films.clear(job)
    views = report_views.render_heldout(job.paths.report, results.dataset, sorted(results.found), neural)
    films = report_films.along_path(job, results, neural) if job.config.report.films else {}
    scores = against_truth(results)
    costs = results.costs | {"report": StageCost("report")}
    costs["report"].add("report", watch.numbers())
    summary = {"frames": len(results.found)} | report_scores.of_views(views).summary | scores.summary | report_scores.totals(costs)
    header = artifact.make_header(
        "metrics", metrics.FORMAT, "report", layout.stage_values(job.config, "report"), {"surfaces": artifact.file_hash(job.paths.surfaces)}
    )
    frames = {"frames": sorted(results.found)} | scores.per_frame
    metrics.save(job.paths.metrics, header, summary, frames, views, costs)
    body = page.notice(_untracked(job)) + page.cards(summary) + report_page.reel(films)
    body += page.section("Input and rendering", page.comparison(comparison(results, neural)))
    if scores.per_frame:
        body += page.section("Quality per frame", report_page.quality(frames, []))
    body += page.section("Training", page.loss_charts(costs)) + page.section("Cost", page.cost_charts(costs))
    body += report_page.files(job)
    body += page.section("All numbers", page.metrics_table({name: summary.get(name) for name in metrics.QUANTITIES}) + page.stage_details(results.costs))
    html = page.document(job.paths.root.name, body, report_page.footer(results.dataset))
    with artifact.atomic(job.paths.report_page) as aside:
        aside.write_text(html, encoding="utf-8")
    report_index.write(job.paths.root.parent)
    return summary


def _untracked(job: Job) -> str:
    from instant_nk.fitting import window_files

    return window_files.untracked(job.config.field.dyna_mode) + " Numbers about tracks and about the animated mesh are absent for that reason."


def against_truth(results: SurfaceResults) -> Scores:
    """Distance of each frame's surface from the truth; nothing where there is none. Tracks are not scored: there are none."""
    true = truth.load(results.dataset.capture, sorted(results.found))
    if true is None:
        return Scores({}, {})
    percent, chamfers, fscores = 100 / true.diagonal, {}, {}
    for i, frame in enumerate(true.frames):
        ours = results.found[frame]
        distances = evaluation.surface_distances(ours.vertices.astype(np.float64), ours.faces, true.vertices[i], true.faces, true.seen_faces(i))
        chamfers[frame] = evaluation.chamfer(*distances) * percent
        fscores[frame] = evaluation.fscore(*distances, evaluation.FSCORE_AT * true.diagonal)
    values = np.array(list(chamfers.values()))
    summary = {"chamfer_pct": float(values.mean()), "chamfer_worst_pct": float(values.max()), "fscore_0p5": float(np.mean(list(fscores.values())))}
    return Scores(summary, {"chamfer_pct": [chamfers.get(frame) for frame in results.found], "fscore_0p5": [fscores.get(frame) for frame in results.found]})


def comparison(results: SurfaceResults, neural: Renders) -> list[page.View]:
    """Input, rendering and the frame's surface, at the first, middle and last frame."""
    data, frames = results.dataset, sorted(results.found)
    rig = data.heldout if len(data.heldout) else data.cameras
    views = []
    for i, frame in enumerate(dict.fromkeys(frames[round(k * (len(frames) - 1) / (SHOWN - 1))] for k in range(SHOWN))):
        c = i % len(rig)
        size = (int(rig.sizes[c][0]), int(rig.sizes[c][1]))
        given = data.heldout_image(c, frame) if len(data.heldout) else data.image(c, frame)
        columns = {} if given is None else {"input": pictures.flat(given)}
        columns["rendered"] = pictures.flat(pictures.to_rgba(pictures.layers_of(neural.render(rig.c2w[c], rig.K[c], size, frame))))
        of_mesh = MeshRenderer(alone(results.found[frame], frame)).render(rig.c2w[c], rig.K[c], size, frame)
        columns["surface of this frame"] = pictures.flat(pictures.to_rgba(of_mesh))
        views.append(page.View(f"frame {frame}, {rig.names[c]}", {name: pictures.shrink(image, report_page.SHOWN_SIDE) for name, image in columns.items()}))
    return views
