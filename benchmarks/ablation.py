"""What each part of the window field is worth, on one capture: a row per variant, each by one command.

usage: python -m benchmarks.ablation CAPTURE [--preset fast] [--rows both,graph_only,…] [--set field.steps=400 …] [--results DIR] [--json OUT]

The stages up to `registration` run once per capture and preset and are shared; a second command with the same `--results` and the
same keys of theirs finds them. Every row then trains its windows, carries the mesh and is scored. Without `--rows`: all of them.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from benchmarks import pipeline
from benchmarks.dyna_modes import SHARED, share, table
from instant_nk import config as schema
from instant_nk import layout
from instant_nk.io import artifact, motion
from instant_nk.models import window_field
from instant_nk.models.warp import LiveSpace
from instant_nk.stages import mesh as mesh_stage

COLUMNS = (
    "chamfer_pct", "track_mean_pct", "track_p95_pct", "jitter_pct", "test_psnr_db", "test_fg_psnr_db", "flipped_fraction", "sdf_residual_median",
    "inverse_cycle_median", "inverse_unconverged_share", "blended_inverse_cycle_median", "seam_disagreement_pct", "seam_step_pct",
)  # fmt: skip
NOTHING = 1e-4  # of the node spacing: a residual that may not move anything
FAR_BAND = 10  # cells around the resting surface in which a residual alone must find the moved one


@dataclass(frozen=True)
class Row:
    """A variant.

    Attributes:
        says: what is left out or added.
        changes: config keys.
        prepare: done to the copied artifacts before training.
        within: in force while the row runs.
    """

    says: str
    changes: dict[str, Any] = field(default_factory=dict)
    prepare: Callable[[layout.Paths], None] = lambda paths: None
    within: Callable[[], AbstractContextManager] = contextlib.nullcontext


def stand_still(paths: layout.Paths) -> None:
    """Replace the registered motion by none at all."""
    found = motion.load(paths.motion)
    frames, nodes = found.translations.shape[:2]
    still = motion.Motion(
        found.frames, np.broadcast_to(np.eye(3, dtype=np.float32), (frames, nodes, 3, 3)).copy(), np.zeros_like(found.translations),
        found.converged, found.residual, found.coverage, found.rigidity, found.contradicted,
    )  # fmt: skip
    motion.save(paths.motion, still, artifact.read_header(paths.motion))


def wide_band() -> AbstractContextManager:
    """The live grid around the resting surface must reach as far as the subject moves."""
    return mock.patch.object(window_field, "LiveSpace", functools.partial(LiveSpace, band_cells=FAR_BAND))


def hard_seams() -> AbstractContextManager:
    """Every frame from the window in which it lies deepest, instead of a blend over the overlap."""

    def owned(windows: list[np.ndarray]) -> list[np.ndarray]:
        depth = {}
        for k, window in enumerate(windows):
            for place, frame in enumerate(window.tolist()):
                depth[frame] = max(depth.get(frame, (-1, 0)), (min(place, len(window) - 1 - place), -k))
        return [np.array([float(depth[frame][1] == -k) for frame in window.tolist()]) for k, window in enumerate(windows)]

    return mock.patch.object(mesh_stage, "_ramps", owned)


ROWS = {
    "both": Row("graph and residual, everything on"),
    "graph_only": Row("no residual", {"field.residual_bound": NOTHING}),
    "residual_only": Row(
        "no graph motion: the residual alone must move the subject",
        {"field.residual_bound": 8.0, "field.refine_motion": False, "field.residual_weight": 0.0},
        stand_still,
        wide_band,
    ),
    "no_motion_refinement": Row("registered motion as it is", {"field.refine_motion": False}),
    "no_temporal": Row("no temporal term", {"field.temporal_weight": 0.0}),
    "no_elastic": Row("no elastic term", {"field.elastic_weight": 0.0}),
    "no_rigidity": Row("no rigidity while the motion is refined", {"field.rigidity_weight": 0.0}),
    "no_eikonal": Row("no eikonal term through the warp", {"field.eikonal_weight": 0.0}),
    "no_blending": Row("windows meet without a blend", within=hard_seams),
    "ema": Row("running mean of the weights, 0.95", {"field.ema": 0.95}),
    "appearance": Row("four numbers of light per frame", {"field.appearance": 4}),
    "bfloat16": Row("colour and residual networks in bfloat16", {"runtime.mixed_precision": "on"}),
}


def run_row(row: Row, config: schema.Config, base: layout.Paths) -> dict[str, float | None]:
    """Train, carry and score one variant."""
    paths = layout.paths_of(config)
    share(base, paths)
    row.prepare(paths)
    with row.within():
        times = pipeline.run(config, ["field", "mesh", "report"])
    summary = json.loads(paths.metrics.read_text())["summary"]
    return {name: summary[name] for name in COLUMNS} | {"field_s": times["field"]["wall_s"]}


def shared(config: schema.Config) -> layout.Paths:
    """Artifacts of the stages before the field, made unless they are there already, of the same config."""
    paths = layout.paths_of(config)
    wanted, made = {stage: layout.stage_values(config, stage) for stage in SHARED}, paths.root / "shared.json"
    if not made.is_file() or artifact.load_json(made) != json.loads(json.dumps(wanted)):
        made.unlink(missing_ok=True)
        pipeline.run(config, list(SHARED))
        artifact.save_json(made, wanted)
    return paths


def chosen(names: str | None) -> Iterator[tuple[str, Row]]:
    for name in names.split(",") if names else ROWS:
        if name not in ROWS:
            raise SystemExit(f"there is no row '{name}'; known: {', '.join(ROWS)}")
        yield name, ROWS[name]


def main() -> None:
    told = "\n".join(f"  {name:22s} {row.says}" for name, row in ROWS.items())
    parser = pipeline.arguments(f"{__doc__}\nrows:\n{told}")
    parser.add_argument("--rows", help="names of rows, with commas between; default: all")
    options = parser.parse_args()
    rows = list(chosen(options.rows))
    name = f"ablation_{Path(options.capture).name}_{options.preset}"
    values = pipeline.values_of(options)
    base = shared(schema.parse({**values, "sequence": name}))
    found = {}
    for key, row in rows:
        found[key] = run_row(row, schema.parse({**values, **row.changes, "sequence": f"{name}_{key}"}), base)
        print(table(found, "row"), flush=True)
        if options.json:
            options.json.write_text(json.dumps({"capture": options.capture, "preset": options.preset, "set": options.set, "rows": found}, indent=1))


if __name__ == "__main__":
    main()
