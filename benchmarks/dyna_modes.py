"""The four modes of `field.dyna_mode` on one capture, in one table: surface, held-out views, seconds.

usage: python -m benchmarks.dyna_modes CAPTURE [--preset fast] [--modes deform,time,fourier,latent] [--set field.steps=400 …] [--results DIR] [--json OUT]

The stages up to `registration` run once and are shared; each mode then trains its windows with the same number of steps and
samples. Seconds are those of the field stage alone. `deform` needs canonical, graph and registration as well (their time is
shown once below the table) and is the only one with tracks.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from benchmarks import pipeline
from instant_nk import config as schema
from instant_nk import layout

SHARED = ("dataset", "canonical", "graph", "observation", "registration")
COLUMNS = ("chamfer_pct", "chamfer_worst_pct", "track_mean_pct", "track_p95_pct", "test_psnr_db", "test_fg_psnr_db", "test_ssim")


def share(source: layout.Paths, target: layout.Paths) -> None:
    """Copy the artifacts of the shared stages."""
    for stage in SHARED:
        shutil.copytree(source.stage_dir(stage), target.stage_dir(stage), dirs_exist_ok=True)


def row(config: schema.Config, base: layout.Paths) -> dict[str, float | None]:
    """Train, extract and score one mode."""
    paths = layout.paths_of(config)
    share(base, paths)
    times = pipeline.run(config, ["field", "mesh", "report"])
    summary = json.loads(paths.metrics.read_text())["summary"]
    return {name: summary[name] for name in COLUMNS} | {"field_s": times["field"]["wall_s"], "mesh_s": times["mesh"]["wall_s"]}


def table(rows: dict[str, dict[str, float | None]], first: str = "mode") -> str:
    """The rows as a Markdown table; `first` heads their names."""
    names = list(next(iter(rows.values())))
    lines = [f"| {first} | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for name, values in rows.items():
        lines.append(f"| {name} | " + " | ".join("–" if values[key] is None else f"{values[key]:.4g}" for key in names) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = pipeline.arguments(__doc__)
    parser.add_argument("--modes", default="deform,time,fourier,latent")
    options = parser.parse_args()
    name = f"modes_{Path(options.capture).name}_{options.preset}"
    values = pipeline.values_of(options)
    base = schema.parse({**values, "sequence": name})
    before = pipeline.run(base, list(SHARED))
    rows = {}
    for mode in options.modes.split(","):
        rows[mode] = row(schema.parse({**values, "sequence": f"{name}_{mode}", "field.dyna_mode": mode}), layout.paths_of(base))
        print(table(rows), flush=True)
    told = ", ".join(f"{stage} {times['wall_s']:.1f} s" for stage, times in before.items())
    print(f"\nonce for `deform`: {told}")
    if options.json:
        options.json.write_text(json.dumps({"capture": options.capture, "preset": options.preset, "rows": rows, "shared": before}, indent=1))


if __name__ == "__main__":
    main()
