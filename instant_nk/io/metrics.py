"""The metrics artifact `8_report/metrics.json`: every number of a run with its unit, and what each stage cost."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from instant_nk.errors import ContractError
from instant_nk.io import artifact
from instant_nk.layout import STAGES, Paths, part_frames

FORMAT = 1


@dataclass(frozen=True)
class Quantity:
    """What a number of the summary means: its unit, its definition, and whether less or more is better."""

    unit: str
    meaning: str
    better: str = ""


PERCENT = "% of the true box's diagonal"
QUANTITIES = {
    "chamfer_pct": Quantity(PERCENT, "distance between predicted and true surface: mean of both one-way means, over all frames", "less"),
    "chamfer_worst_pct": Quantity(PERCENT, "the same, in the worst frame", "less"),
    "fscore_0p5": Quantity("share", "harmonic mean of precision and recall of the surface at 0.5 % of the diagonal", "more"),
    "track_mean_pct": Quantity(PERCENT, "distance of followed points from the truth, mean over points and later frames", "less"),
    "track_median_pct": Quantity(PERCENT, "the same, median", "less"),
    "track_p95_pct": Quantity(PERCENT, "the same, 95th percentile", "less"),
    "track_along_pct": Quantity(PERCENT, "its part along the true surface, mean over covered points and later frames: sliding", "less"),
    "track_across_pct": Quantity(PERCENT, "its part across the true surface", "less"),
    "coverage": Quantity("share", "true surface of the first frame that the mesh comes within 2 % of", "more"),
    "jitter_pct": Quantity(PERCENT, "second difference over time of predicted minus true tracks", "less"),
    "motion_mean_pct": Quantity(PERCENT, "how far the truth itself moves from the first frame: the tracking error of a static mesh"),
    "test_psnr_db": Quantity("dB", "PSNR of held-out views, on white", "more"),
    "test_fg_psnr_db": Quantity("dB", "PSNR of held-out views within the true mask dilated by 5 pixels", "more"),
    "test_ssim": Quantity("0..1", "structural similarity of held-out views, on white", "more"),
    "mesh_test_psnr_db": Quantity("dB", "PSNR of held-out views of the animated mesh with its own colours, on white", "more"),
    "mesh_test_fg_psnr_db": Quantity("dB", "the same within the dilated mask", "more"),
    "mesh_test_ssim": Quantity("0..1", "structural similarity of the animated mesh", "more"),
    "texture_test_psnr_db": Quantity("dB", "PSNR of held-out views of the animated mesh with its baked texture, on white; null without one", "more"),
    "texture_test_fg_psnr_db": Quantity("dB", "the same within the dilated mask", "more"),
    "silhouette_iou": Quantity("share", "intersection over union of the animated mesh's silhouettes and the training masks", "more"),
    "cycle_error_median": Quantity("of the box's diagonal", "distance of a canonical vertex from its live position mapped back", "less"),
    "inverse_cycle_median": Quantity(
        "of the box's diagonal",
        "distance of points near the canonical surface from their live position mapped back by the graph's exact inverse, median",
        "less",
    ),
    "inverse_unconverged_share": Quantity("share", "of those points: the inverse found no root, and they are not rendered", "less"),
    "blended_inverse_cycle_median": Quantity(
        "of the box's diagonal", "the same distance by blending the nodes' inverse motions, as published: what the exact inverse saves"
    ),
    "sdf_residual_median": Quantity("of the box's diagonal", "distance of live vertices from the field's surface", "less"),
    "flipped_fraction": Quantity("share", "neighbouring faces folded over, and not so in the first frame", "less"),
    "flipped_fraction_worst": Quantity("share", "the same, in the worst frame", "less"),
    "acceleration_pct": Quantity("% of the box's diagonal", "mean second difference over time of the vertices: true acceleration and jitter together"),
    "seam_disagreement_pct": Quantity(
        "% of the box's diagonal", "distance of neighbouring windows' vertices in the frames they share, before blending; null with one window", "less"
    ),
    "seam_step_pct": Quantity("% of the box's diagonal", "extra step of the vertices from frame to frame at seams, after blending", "less"),
    "within_jolt_pct": Quantity("% of the box's diagonal", "change of velocity of the vertices from frame to frame: a seam should not exceed it"),
    "torn_faces": Quantity("faces", "cut because they hung between parts that touched at the canonical frame and come apart (mesh.tear_at)"),
    "closing_faces": Quantity("faces", "that close the holes which cutting left"),
    "smoothing": Quantity(
        "weight",
        "smoothing of the vertices over time (mesh.smoothing), found from the trajectories where it is not given; 0: none, or it would have carried surfaces off what was observed",
    ),
    "smoothing_shift_pct": Quantity("% of the box's diagonal", "how far smoothing moved vertices"),
    "not_converged_frames": Quantity("frames", "frames in which registration lost the subject", "less"),
    "doubtful_frames": Quantity("frames", "those, and frames in which a part of the surface has nothing like it near it in the observation", "less"),
    "mesh_watertight": Quantity("1 yes, 0 no", "whether every edge of the mesh has exactly two faces", "more"),
    "mesh_open_edges": Quantity("edges", "edges of one face only: borders and holes", "less"),
    "mesh_overshared_edges": Quantity("edges", "edges of three faces or more", "less"),
    "mesh_turned_edges": Quantity("edges", "edges whose two faces disagree which side is outside", "less"),
    "mesh_components": Quantity("count", "separate pieces of the mesh"),
    "mesh_inside_out_components": Quantity("count", "closed pieces whose faces look inwards", "less"),
    "mesh_pinched_vertices": Quantity("vertices", "vertices where the surface touches itself in a point only", "less"),
    "mesh_degenerate_faces": Quantity("faces", "faces without area, below a millionth of the median face's, in the worst frame", "less"),
    "mesh_unused_vertices": Quantity("count", "vertices without a face", "less"),
    "vertices": Quantity("count", "vertices of the animated mesh"),
    "faces": Quantity("count", "faces of the animated mesh"),
    "frames": Quantity("count", "frames of the animation"),
    "wall_s": Quantity("s", "computing time: sum over all jobs of all stages, also of those that ran side by side", "less"),
    "peak_host_mib": Quantity("MiB", "largest resident memory of any one job", "less"),
    "peak_gpu_mib": Quantity("MiB", "largest GPU memory of any one job; null without a GPU", "less"),
}


@dataclass
class StageCost:
    """What a stage cost, and every other number it wrote down.

    Attributes:
        stage: name of the stage.
        jobs: how many jobs it was cut into.
        wall_s: sum of the jobs' times, seconds.
        peak_host_mib: largest resident memory of a job.
        peak_gpu_mib: largest GPU memory of a job, None without a GPU.
        numbers: the jobs' metrics by file name, without the three above.
    """

    stage: str
    jobs: int = 0
    wall_s: float = 0.0
    peak_host_mib: float | None = None
    peak_gpu_mib: float | None = None
    numbers: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, name: str, numbers: dict[str, Any]) -> None:
        """Count one job's metrics."""
        self.jobs += 1
        self.wall_s += float(numbers["wall_s"])
        for key in ("peak_host_mib", "peak_gpu_mib"):
            if (value := numbers.get(key)) is not None:
                setattr(self, key, max(getattr(self, key) or 0.0, float(value)))
        self.numbers[name] = {k: v for k, v in numbers.items() if k not in ("wall_s", "peak_host_mib", "peak_gpu_mib")}

    def histories(self) -> dict[str, dict[str, list[float]]]:
        """Training curves by job: `step` and other lists of the same length."""
        return {name: n["history"] for name, n in self.numbers.items() if isinstance(n.get("history"), dict) and n["history"].get("step")}


def stage_costs(paths: Paths, parts: dict[str, Sequence[str]]) -> dict[str, StageCost]:
    """What every stage before the report cost: from the `.json` files with a `wall_s` in its folder.

    Args:
        parts: per stage the names of its parts (windows, batches); files of other parts are left over from earlier runs and do not count.
    """
    result = {}
    for stage in STAGES[:-1]:
        cost = StageCost(stage)
        for path in sorted(paths.stage_dir(stage).rglob("*.json")):
            if _is_part(path.stem) and stage in parts and path.stem not in parts[stage]:
                continue
            numbers = artifact.load_json(path, "a stage's metrics")
            if isinstance(numbers, dict) and "wall_s" in numbers:
                cost.add(path.stem, numbers)
        result[stage] = cost
    return result


def _is_part(name: str) -> bool:
    first, _, last = name.partition("-")
    return first.isdigit() and last.isdigit() and len(part_frames(name)) == 2


def save(
    path: Path, header: dict[str, Any], summary: dict[str, Any], per_frame: dict[str, Any], views: list[dict[str, Any]], costs: dict[str, StageCost]
) -> None:
    """Write the metrics; every key of the summary must be one of QUANTITIES, and all of them are written, null where unknown.

    Args:
        summary: by name of the quantity.
        per_frame: lists as long as its own `frames`.
        views: one table per rendered held-out view.
        costs: by stage.
    """
    unknown = set(summary) - set(QUANTITIES)
    if unknown:
        raise ContractError(f"{path}: {sorted(unknown)} are not among the quantities of io/metrics.py; define unit and meaning there.")
    artifact.save_json(
        path,
        {
            "header": header,
            "summary": {name: summary.get(name) for name in QUANTITIES},
            "units": {name: {"unit": q.unit, "meaning": q.meaning, "better": q.better} for name, q in QUANTITIES.items()},
            "per_frame": per_frame,
            "views": views,
            "stages": {stage: dataclasses.asdict(cost) for stage, cost in costs.items()},
        },
    )


def load(path: Path) -> dict[str, Any]:
    """Read metrics written by `save`.

    Raises:
        ContractError: missing, broken, or of another format.
    """
    value = artifact.load_json(path, "the report's table of metrics")
    artifact.check_header(path, value.get("header", {}), "metrics", FORMAT)
    return value
