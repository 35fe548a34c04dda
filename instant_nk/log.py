"""Logging and progress: lines with fixed keys in logs, a bar on a terminal, nothing on import."""

from __future__ import annotations

import logging
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = "instant_nk"


class _Stderr(logging.StreamHandler):
    """Writes to what stderr is at that moment: it may have been replaced, and the old one closed, since logging was set up."""

    stream = property(lambda self: sys.stderr, lambda self, value: None)


def setup(level: str = "INFO") -> None:
    """Attach one stderr handler to the package's logger; calling it twice changes the level only."""
    logger = logging.getLogger(ROOT)
    logger.setLevel(level.upper())
    if not logger.handlers:
        handler = _Stderr()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname).1s %(name)s: %(message)s", "%H:%M:%S"))
        logger.addHandler(handler)
        logger.propagate = False


def fields(**values: object) -> str:
    """`step=20 psnr_db=31.2`: numbers to four significant digits, in the order given."""
    return " ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in values.items())


class Progress:
    """Progress of a long loop: a bar when stderr is a terminal, otherwise one log line per interval.

    Args:
        title: what is being done, e.g. ``"canonical"``.
        total: number of steps.
        every_s: seconds between log lines.
    """

    def __init__(self, title: str, total: int, logger: logging.Logger, every_s: float = 10.0):
        self.title, self.total, self.logger, self.every_s = title, total, logger, every_s
        self.bar = sys.stderr.isatty()
        self.start = self.last = time.monotonic()

    def update(self, done: int, **values: object) -> None:
        """Report that `done` of `total` steps are complete; `values` are shown beside the count."""
        now = time.monotonic()
        finished = done >= self.total
        if now - self.last < (0.1 if self.bar else self.every_s) and not finished:
            return
        self.last = now
        elapsed = now - self.start
        remaining = elapsed / max(done, 1) * max(self.total - done, 0)
        if self.bar:
            filled = int(24 * done / max(self.total, 1))
            text = f"\r{self.title} [{'#' * filled}{'.' * (24 - filled)}] {done}/{self.total} {remaining:.0f}s left {fields(**values)}"
            sys.stderr.write(f"{text:<110}" + ("\n" if finished else ""))
            sys.stderr.flush()
        else:
            self.logger.info("%s %s", self.title, fields(step=f"{done}/{self.total}", elapsed_s=elapsed, left_s=remaining, **values))


def progress(items: list, title: str, logger: logging.Logger) -> Iterator:
    """Iterate over `items` with a `Progress`."""
    report = Progress(title, len(items), logger)
    for done, item in enumerate(items, 1):
        yield item
        report.update(done)


class Measure:
    """Wall time and peak memory since it was made (memory: since the process started; the operating system keeps the maximum)."""

    def __init__(self) -> None:
        self.start = time.monotonic()

    def numbers(self) -> dict[str, float | None]:
        """`wall_s`, `peak_host_mib`, and `peak_gpu_mib` (None where no GPU was used), for a stage's metrics file."""
        torch = sys.modules.get("torch")  # never imported for the sake of measuring
        used_gpu = torch is not None and torch.cuda.is_initialized()
        return {
            "wall_s": time.monotonic() - self.start,
            "peak_host_mib": _peak_host_mib(),
            "peak_gpu_mib": torch.cuda.max_memory_allocated() / 2**20 if used_gpu else None,
        }


def _peak_host_mib() -> float:
    """Largest resident size of this process so far. Linux's getrusage counts the parent's size before exec, so /proc is asked first."""
    status = Path("/proc/self/status")
    if status.is_file():
        return next(float(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def measure() -> Measure:
    """Start measuring: `watch = log.measure()` at a stage's beginning, `watch.numbers()` into its metrics file at the end."""
    return Measure()
