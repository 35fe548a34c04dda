"""All stages of one capture in one process, timed and scored, without Snakemake, open3d or a display.

usage: python benchmarks/pipeline.py CAPTURE [--preset fast] [--stages dataset,…] [--set field.steps=400 …] [--results DIR] [--json OUT]

Prints one line per stage and the report's summary; `--json` writes both. The stages are the workflow's own; what needs a package that is not
installed (the texture's atlas, the report's videos) is left out, and said, unless a key asks for it.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import time
from pathlib import Path

from instant_nk import config as schema
from instant_nk import entry, layout, log
from instant_nk.io import dataset as dataset_io


def parts(stage: str, config: schema.Config, frames: list[int]) -> list[str | None]:
    """The jobs of a stage, in order."""
    if stage == "observation":
        return layout.batches(frames, config.observation.frames_per_job)
    if stage in ("field", "mesh"):
        windows = layout.windows(frames, config.field.window_frames, config.field.overlap)
        return windows if stage == "field" else [*windows, None]
    return [None]


LESS = {"xatlas": ("mesh.texture", "vertex"), "imageio_ffmpeg": ("report.films", False)}  # package: what does without it


def without_missing(values: dict[str, str]) -> dict[str, str | bool]:
    """The keys asked for, and those that make do without packages which are not installed."""
    missing = {package: key for package, (key, _) in LESS.items() if importlib.util.find_spec(package) is None and key not in values}
    for package, key in missing.items():
        print(f"{package} is not installed: {key}={LESS[package][1]}")
    return values | {key: LESS[package][1] for package, key in missing.items()}


def synchronise(device: str) -> None:
    """Wait for the GPU, so that a stage's time is its own."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def run(config: schema.Config, stages: list[str]) -> dict[str, dict]:
    """Run the stages and return seconds and peak memory of each."""
    import torch  # noqa: F401  before `prepare`, which prepares only what is loaded

    schema.check_packages(config)
    log.setup(config.runtime.log_level)
    paths, device = layout.paths_of(config), entry.prepare(config.runtime, config.runtime.threads)
    times: dict[str, dict] = {}
    for stage in stages:
        module = importlib.import_module(f"instant_nk.stages.{stage}")
        frames = list(dataset_io.load(paths.manifest).frames) if paths.manifest.exists() else []
        start = time.perf_counter()
        for part in parts(stage, config, frames):
            module.run(layout.Job(config, paths, device, part))
        synchronise(device)
        count = len(frames) or len(dataset_io.load(paths.manifest).frames)
        seconds = time.perf_counter() - start
        times[stage] = {"wall_s": seconds, "per_frame_s": seconds / count}
        print(f"{stage:13s} {seconds:8.2f} s {seconds / count:8.2f} s/frame", flush=True)
    return times


def arguments(description: str) -> argparse.ArgumentParser:
    """What every benchmark of stages on a capture asks for."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("capture")
    parser.add_argument("--preset", default="fast")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="config keys, e.g. field.steps=400")
    parser.add_argument("--results", default="results")
    parser.add_argument("--json", type=Path)
    return parser


def values_of(options: argparse.Namespace) -> dict[str, str | bool]:
    """The config keys that the arguments stand for."""
    values = without_missing(dict(item.split("=", 1) for item in options.set))
    return {"capture": options.capture, "preset": options.preset, "runtime.results": options.results, **values}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--stages", default=",".join(layout.STAGES))
    parser.add_argument("--sequence")
    options = parser.parse_args()
    sequence = options.sequence or f"{Path(options.capture).name}_{options.preset}"
    config = schema.parse({"sequence": sequence, **values_of(options)})
    times = run(config, options.stages.split(","))
    metrics = layout.paths_of(config).metrics
    summary = json.loads(metrics.read_text())["summary"] if metrics.exists() else {}
    for name, value in summary.items():
        print(f"{name:24s} {value}")
    if options.json:
        options.json.write_text(
            json.dumps({"preset": options.preset, "capture": options.capture, "set": options.set, "stages": times, "summary": summary}, indent=1)
        )


if __name__ == "__main__":
    main()
