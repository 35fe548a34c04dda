"""Peak host and GPU memory of every stage against the number of frames and of cameras: it must not grow with the capture's length.

    python benchmarks/memory.py --frames 6,24,96 --cameras 6,12,24

Runs each stage of the built-in capture in a process of its own, field and mesh for the first window only, and reads the peaks the stages
write into their metrics. Observations come from the true surfaces, which is quick; `--provider neural` trains them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from instant_nk import config as schema
from instant_nk import layout
from instant_nk.io import capture, synthetic

STAGES = ("dataset", "canonical", "graph", "observation", "registration", "field", "mesh")


def run(stage: str, values: dict, part: str | None) -> None:
    """A stage in a fresh process."""
    command = [sys.executable, "-m", "instant_nk.cli", stage, *(["--part", part] if part else [])]
    command += [item for key, value in values.items() for item in ("--set", f"{key}={json.dumps(value)}")]
    answer = subprocess.run(command, capture_output=True, text=True)
    if answer.returncode:
        sys.exit(answer.stdout + answer.stderr)


def numbers_of(paths: layout.Paths, stage: str, part: str | None) -> dict:
    """What a stage wrote about itself."""
    if part is not None:
        path = {
            "observation": paths.observation_batch,
            "field": lambda p: paths.field(p).with_suffix(".json"),
            "mesh": lambda p: paths.mesh_window(p).with_suffix(".json"),
        }
        return json.loads(path[stage](part).read_text())
    found = [json.loads(path.read_text()) for path in paths.stage_dir(stage).glob("*.json")]
    return next(value for value in found if "peak_host_mib" in value)


def measure(folder: Path, frames: int, cameras: int, options: argparse.Namespace) -> dict[str, float]:
    """Peak MiB by stage of one capture."""
    values = {
        "preset": options.preset, "sequence": "demo", "runtime.results": str(folder), "runtime.device": options.device, "synthetic.frames": frames,
        "synthetic.cameras": cameras, "synthetic.image_size": options.image_size, **dict(item.split("=", 1) for item in options.set),
    }  # fmt: skip
    config = schema.parse(values)
    synthetic.write(config, synthetic.capture_path(config))
    if options.provider == "meshes":
        values |= {"observation.provider": "meshes", "observation.folder": str(synthetic.capture_path(config) / "gt")}
    used = capture.frames_of(config)
    window = layout.windows(used, config.field.window_frames, config.field.overlap)[0]
    paths, peaks = layout.paths_of(config), {}
    for stage in STAGES:
        parts = {"observation": layout.batches(used, config.observation.frames_per_job), "field": [window], "mesh": [window]}.get(stage, [None])
        start = time.perf_counter()
        for part in parts:
            run(stage, values, part)
        print(f"frames={frames} cameras={cameras}: {stage} took {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
        found = [numbers_of(paths, stage, part) for part in parts]
        peaks[stage] = max(n["peak_host_mib"] for n in found)
        if found[0].get("peak_gpu_mib"):
            peaks[f"{stage}_gpu"] = max(n["peak_gpu_mib"] for n in found)
    return peaks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", default="6,24,96", help="numbers of frames, at the first number of cameras")
    parser.add_argument("--cameras", default="6,12,24", help="numbers of cameras, at the first number of frames")
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--preset", default="tiny", choices=list(schema.PRESETS))
    parser.add_argument("--provider", default="meshes", choices=("meshes", "neural"))
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="config keys, e.g. observation.frames_per_job=96: one process for all")
    options = parser.parse_args()
    frames, cameras = ([int(n) for n in text.split(",")] for text in (options.frames, options.cameras))
    for size in [(f, cameras[0]) for f in frames] + [(frames[0], c) for c in cameras[1:]]:
        with tempfile.TemporaryDirectory() as folder:
            peaks = measure(Path(folder), *size, options)
        print(f"frames={size[0]} cameras={size[1]} " + " ".join(f"{stage}_mib={value:.0f}" for stage, value in peaks.items()), flush=True)


if __name__ == "__main__":
    main()
