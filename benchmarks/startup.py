"""What starting a job costs before it computes anything: interpreter and imports, per stage, and the share of a long capture's time.

    python benchmarks/startup.py --frames 2000 --seconds-per-frame 4

Processor seconds of a fresh interpreter, the smallest of three, so that a busy machine does not count.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

from instant_nk import config as schema
from instant_nk import layout


def processor_seconds(code: str) -> float:
    """User and system time of a fresh interpreter that runs `code`."""
    before = os.times()
    subprocess.run([sys.executable, "-c", code], check=True)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def jobs(frames: list[int], config: schema.Config) -> dict[str, int]:
    """How many processes each stage of a sequence is cut into."""
    windows = layout.windows(frames, config.field.window_frames, config.field.overlap)
    parts = len(layout.spans(windows) or windows)
    return dict.fromkeys(layout.STAGES, 1) | {
        "observation": len(layout.batches(frames, config.observation.frames_per_job)),
        "field": parts,
        "mesh": parts + 1,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=2000)
    parser.add_argument("--seconds-per-frame", type=float, default=4.0, help="computing time of all stages per frame, from benchmarks/pipeline.py")
    parser.add_argument("--preset", default="fast", choices=list(schema.PRESETS))
    options = parser.parse_args()
    counts = jobs(list(range(options.frames)), schema.parse({"preset": options.preset}))
    total = 0.0
    for stage, count in counts.items():
        seconds = min(processor_seconds(f"import instant_nk.stages.{stage}, instant_nk.entry") for _ in range(3))
        total += count * seconds
        print(f"stage={stage} start_s={seconds:.2f} jobs={count}")
    computing = options.frames * options.seconds_per_frame
    print(f"frames={options.frames} starting_s={total:.0f} computing_s={computing:.0f} share={total / (total + computing):.3f}")


if __name__ == "__main__":
    main()
