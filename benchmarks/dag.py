"""How long Snakemake takes to plan a long capture, and how much memory: nothing is computed.

    python benchmarks/dag.py --cameras 80 --frames 2000

Writes the files of such a capture (empty images), then times a dry run of the true Snakefile.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent


def write_capture(folder: Path, cameras: int, frames: int) -> None:
    """A capture in the published layout whose images are empty files."""
    entries = []
    for c in range(cameras):
        angle = 2 * np.pi * c / cameras
        pose = np.eye(4)
        pose[:3, :3] = [[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]]
        pose[:3, 3] = 3 * pose[:3, 2]
        entries.append({"file_path": f"cam_{c:03d}.png", "transform_matrix": pose.tolist(), "K": [[1500.0, 0, 1024], [0, 1500.0, 1024], [0, 0, 1]]})
    meta = {"w": 2048, "h": 2048, "aabb": [[-1, -1, -1], [1, 1, 1]], "file_folder": "images", "frames": entries}
    folder.mkdir(parents=True)
    (folder / "transforms.json").write_text(json.dumps(meta))
    for t in range(frames):
        below = folder / "images" / str(t)
        below.mkdir(parents=True)
        for c in range(cameras):
            (below / f"cam_{c:03d}.png").touch()


def measure(capture: Path, workdir: Path) -> dict[str, float]:
    """Seconds, MiB and jobs of one dry run of everything."""
    command = [sys.executable, "-m", "snakemake", "-s", str(ROOT / "Snakefile"), "-d", str(workdir), "-n", "--quiet", "all", "--config"]
    start = time.perf_counter()
    done = subprocess.run([*command, f"capture={capture}", "sequence=long", "preset=fast"], capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    return {"dag_s": seconds, "peak_host_mib": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cameras", type=int, default=80)
    parser.add_argument("--frames", type=int, default=2000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        capture = Path(folder) / "capture"
        write_capture(capture, args.cameras, args.frames)
        numbers = measure(capture, Path(folder))
    print(" ".join(f"{name}={value:.1f}" for name, value in numbers.items()), f"cameras={args.cameras} frames={args.frames}")


if __name__ == "__main__":
    main()
