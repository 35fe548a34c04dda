"""The report's numbers: the animation against itself, against the training masks, and against the truth where there is one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from instant_nk.geometry import evaluation, mesh_check
from instant_nk.io.dataset import Dataset
from instant_nk.io.mesh import Animation
from instant_nk.io.metrics import StageCost
from instant_nk.io.motion import Motion
from instant_nk.viewer.mesh_renderer import MeshRenderer

SILHOUETTE_CAMERAS = 8  # spread over the rig
SILHOUETTE_SIDE = 400  # pixels: larger pictures are compared at every n-th pixel


@dataclass
class Scores:
    """Numbers of the summary by name, and lists per frame of the animation by name."""

    summary: dict[str, float | None]
    per_frame: dict[str, list[float | None]]


def box_diagonal(dataset: Dataset) -> float:
    """Diagonal of the subject's box, world units."""
    return float(np.linalg.norm(dataset.box[1] - dataset.box[0]))


def of_animation(animation: Animation, dataset: Dataset) -> Scores:
    """What the animation says about itself: distance to the field's surface, cycle error, folds, acceleration."""
    diagonal = box_diagonal(dataset)
    vertices = animation.vertices.astype(np.float64) - dataset.box.mean(0)  # far from the origin, f32 differences are taken in f64
    folds = evaluation.flipped_fraction(vertices, animation.faces)
    shake = evaluation.acceleration(vertices).mean(1) / diagonal * 100
    inner = shake.tolist() if len(shake) else []
    summary = {
        "frames": len(animation.frames),
        "vertices": vertices.shape[1],
        "faces": len(animation.faces),
        "cycle_error_median": float(np.median(animation.cycle_error)) / diagonal,
        "sdf_residual_median": float(np.median(animation.sdf_residual)) / diagonal,
        "flipped_fraction": float(folds.mean()),
        "flipped_fraction_worst": float(folds.max()),
        "acceleration_pct": float(shake.mean()) if len(shake) else None,
    }
    percent = 100 / diagonal
    per_frame = {
        "sdf_residual_median_pct": (np.median(animation.sdf_residual, 1) * percent).tolist(),
        "sdf_residual_p95_pct": (np.percentile(animation.sdf_residual, 95, axis=1) * percent).tolist(),
        "cycle_error_median_pct": (np.median(animation.cycle_error, 1) * percent).tolist(),
        "cycle_error_p95_pct": (np.percentile(animation.cycle_error, 95, axis=1) * percent).tolist(),
        "flipped_fraction": folds.tolist(),
        "acceleration_pct": ([None, *inner, None] if inner else [None] * len(vertices))[: len(vertices)],
    }
    return Scores(summary, per_frame)


def of_motion(motion: Motion, animation: Animation, dataset: Dataset) -> Scores:
    """What registration says about each frame of the animation."""
    rows = [motion.index(int(frame)) for frame in animation.frames]
    percent = 100 / (box_diagonal(dataset) * dataset.scale)
    per_frame = {
        "registration_residual_pct": (motion.residual[rows].astype(float) * percent).tolist(),
        "registration_coverage": motion.coverage[rows].astype(float).tolist(),
        "registration_rigidity_pct": (motion.rigidity[rows].astype(float) * percent).tolist(),
        "registration_contradicted": motion.contradicted[rows].astype(float).tolist(),
        "converged": motion.converged[rows].tolist(),
    }
    doubtful = int(motion.doubtful[rows].sum())
    return Scores({"not_converged_frames": int((~motion.converged[rows]).sum()), "doubtful_frames": doubtful}, per_frame)


def of_silhouettes(renderer: MeshRenderer, animation: Animation, dataset: Dataset) -> Scores:
    """Overlap of the mesh's silhouettes with the training masks, per frame over some cameras."""
    cameras = np.unique(np.linspace(0, len(dataset.cameras) - 1, SILHOUETTE_CAMERAS).round().astype(int))
    values = []
    for frame in animation.frames.tolist():
        overlaps = []
        for c in cameras:
            width, height = (int(n) for n in dataset.cameras.sizes[c])
            stride = -(-max(width, height) // SILHOUETTE_SIDE)
            ours = renderer.silhouette(dataset.cameras.c2w[c], dataset.cameras.K[c], (width, height), frame, stride)
            mask = dataset.image(int(c), frame)[stride // 2 :: stride, stride // 2 :: stride, 3] / 255
            overlaps.append(evaluation.silhouette_iou(ours, mask))
        values.append(float(np.mean(overlaps)))
    return Scores({"silhouette_iou": float(np.mean(values))}, {"silhouette_iou": values})


def of_truth(animation: Animation, truth: evaluation.Truth | None) -> Scores:
    """The animation against the truth at the frames that both have; nothing where there is no truth."""
    if truth is None:
        return Scores({}, {})
    rows = {int(frame): i for i, frame in enumerate(animation.frames)}
    result: dict[str, Any] = evaluation.score_animation(animation.vertices[[rows[frame] for frame in truth.frames]], animation.faces, truth, evaluation.SAMPLES)
    per_frame = result.pop("per_frame")
    result.pop("flipped_fraction")  # the animation's own, over all its frames, is the same number
    per_frame.pop("flipped_fraction")
    if len(truth.frames) < 2:
        result |= dict.fromkeys(("track_mean_pct", "track_median_pct", "track_p95_pct", "track_along_pct", "track_across_pct", "motion_mean_pct"))
    spread = {}
    for name, values in per_frame.items():
        known = dict(zip(truth.frames, values))
        spread[name] = [known.get(int(frame)) for frame in animation.frames]
    return Scores(result, spread)


def of_views(views: list[dict[str, Any]]) -> Scores:
    """Means over the held-out views that have a true picture."""
    scored = [view for view in views if "psnr_db" in view]
    names = {
        "test_psnr_db": "psnr_db", "test_fg_psnr_db": "fg_psnr_db", "test_ssim": "ssim",
        "mesh_test_psnr_db": "mesh_psnr_db", "mesh_test_fg_psnr_db": "mesh_fg_psnr_db", "mesh_test_ssim": "mesh_ssim",
        "texture_test_psnr_db": "texture_psnr_db", "texture_test_fg_psnr_db": "texture_fg_psnr_db",
    }  # fmt: skip
    return Scores({name: evaluation.mean_of([view for view in scored if source in view], source) for name, source in names.items()}, {})


def of_seams(mesh: StageCost) -> Scores:
    """What the mesh stage says about the joints of its windows, about webs it cut, and about smoothing over time."""
    joined = mesh.numbers.get("metrics", {})
    return Scores(
        {
            name: joined.get(name)
            for name in ("seam_disagreement_pct", "seam_step_pct", "within_jolt_pct", "torn_faces", "closing_faces", "smoothing", "smoothing_shift_pct")
        },
        {},
    )


def of_inverse(mesh: StageCost) -> Scores:
    """What the mesh stage found about the inverse warp: of the windows, medians averaged and shares too."""
    names = ("inverse_cycle_median", "inverse_unconverged_share", "blended_inverse_cycle_median")
    windows = [numbers for numbers in mesh.numbers.values() if names[0] in numbers]
    return Scores({name: float(np.mean([numbers[name] for numbers in windows])) if windows else None for name in names}, {})


def of_mesh(animation: Animation) -> Scores:
    """Whether the mesh is one that tools accept."""
    found = mesh_check.check(animation.vertices, animation.faces)
    whole = found["open_edges"] == 0 and found["overshared_edges"] == 0
    return Scores({"mesh_watertight": int(whole)} | {f"mesh_{name}": value for name, value in found.items()}, {})


def totals(costs: dict[str, StageCost]) -> dict[str, float | None]:
    """Sum of all jobs' times, and the largest memory of any."""
    gpu = [cost.peak_gpu_mib for cost in costs.values() if cost.peak_gpu_mib is not None]
    host = [cost.peak_host_mib for cost in costs.values() if cost.peak_host_mib is not None]
    return {"wall_s": sum(cost.wall_s for cost in costs.values()), "peak_host_mib": max(host, default=None), "peak_gpu_mib": max(gpu, default=None)}
