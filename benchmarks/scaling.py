"""The window stage over 1, 2, 4 … GPUs of one host: wall time, speed-up and efficiency.

    python benchmarks/pipeline.py CAPTURE --preset fast --stages dataset,canonical,graph,observation,registration
    python benchmarks/scaling.py results/CAPTURE_fast --workers 1,2,4

Trains all windows of a sequence whose registration is done, with as many processes at once as there are workers, each on a GPU of its own with four CPU
threads (on a machine without GPUs: one thread each). A process takes the next span of windows when it is free, as the workflow's jobs do. Results go to a
copy; the sequence is left as it is.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue

from instant_nk import config as schema
from instant_nk import entry, layout
from instant_nk.io import dataset

THREADS = 4  # CPU threads of a job on a GPU, as in profiles/local-gpu
RULE = "import sys; from instant_nk import entry; sys.exit(entry.rule('field'))"


def train(paths: layout.Paths, values: dict, windows: list[str], device: int | None) -> None:
    """One job: some windows in one process."""
    runtime = {"results": str(paths.root.parent), "device": "cpu" if device is None else "cuda", "threads": 1 if device is None else THREADS}
    done = paths.field_span(layout.part_name(layout.part_frames(windows[0])[0], layout.part_frames(windows[-1])[1]))
    command = [
        sys.executable, "-c", RULE, "--sequence", paths.root.name, "--config", json.dumps(values), "--runtime", json.dumps(runtime),
        "--done", str(done), "--part", *windows,
    ]  # fmt: skip
    environment = dict(os.environ) if device is None else {**os.environ, "CUDA_VISIBLE_DEVICES": str(device)}
    answer = subprocess.run(command, env=environment, capture_output=True, text=True)
    if answer.returncode:
        sys.exit(answer.stdout + answer.stderr)


def measure(source: Path, config: schema.Config, windows: list[str], workers: int, per_job: int, gpus: int) -> float:
    """Seconds to train all windows with `workers` processes at once."""
    with tempfile.TemporaryDirectory(dir=source.parent) as folder:
        paths = layout.Paths(Path(folder) / source.name)
        for name in ("1_dataset", "2_canonical", "3_graph", "5_registration"):
            shutil.copytree(source / name, paths.root / name)
        free: Queue[int | None] = Queue()
        for worker in range(workers):
            free.put(worker if gpus else None)
        values = layout.stage_values(config, "field")

        def job(group: list[str]) -> None:
            device = free.get()
            try:
                train(paths, values, group, device)
            finally:
                free.put(device)

        groups = [windows[i : i + per_job] for i in range(0, len(windows), per_job)]
        start = time.perf_counter()
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(job, groups))
        return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="a sequence whose registration is done")
    parser.add_argument("--preset", default="fast", choices=list(schema.PRESETS))
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="config keys, e.g. field.window_frames=4")
    parser.add_argument("--workers", default="1,2", help="numbers of processes at once")
    parser.add_argument("--windows-per-job", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    config = schema.parse({"preset": options.preset, **dict(item.split("=", 1) for item in options.set)})
    frames = list(dataset.load(layout.Paths(options.results).manifest).frames)
    windows = layout.windows(frames, config.field.window_frames, config.field.overlap)
    gpus, rows = entry.count_gpus(), []
    for workers in map(int, options.workers.split(",")):
        if gpus and workers > gpus:
            sys.exit(f"{workers} workers want {workers} GPUs; this machine has {gpus}")
        seconds = measure(options.results, config, windows, workers, options.windows_per_job, gpus)
        base = rows[0]["wall_s"] * rows[0]["workers"] if rows else seconds * workers
        rows.append({"workers": workers, "gpus": gpus, "windows": len(windows), "wall_s": seconds, "efficiency": base / (seconds * workers)})
        print(" ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in rows[-1].items()), flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
