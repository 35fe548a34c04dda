"""What a finished sequence left behind: where its files are, and its metrics as a table for the terminal."""

from __future__ import annotations

from pathlib import Path

from instant_nk import layout
from instant_nk.io import metrics


def text(root: Path) -> str:
    """Paths of the report, the animated mesh and the videos, then every number of the report's summary.

    Args:
        root: folder of one sequence, e.g. ``results/demo``.

    Raises:
        ContractError: the sequence has no report yet.
    """
    paths = layout.Paths(Path(root))
    found = metrics.load(paths.metrics)
    summary, units = found["summary"], found["units"]
    places = (
        ("report", paths.report_page),
        ("all sequences", paths.root.parent / "index.html"),
        ("animated mesh", paths.animation_glb),
        ("vertices", paths.animation),
        ("texture", paths.texture.with_suffix(".png")),
        ("preview video", paths.report / "turntable.mp4"),
        ("rendering", paths.report / "rgb.mp4"),
        ("all metrics", paths.metrics),
    )
    lines = [f"{what:<14} {path}" for what, path in places if path.is_file()]
    width = max(len(name) for name in summary)
    rows = [f"{name:<{width}}  {_number(value):>10}  {units[name]['unit'] if value is not None else ''}".rstrip() for name, value in summary.items()]
    return "\n".join(["", *lines, "", *rows, ""])


def _number(value: object) -> str:
    if value is None:
        return "-"  # no ground truth, or nothing held out
    return f"{value:.4g}" if isinstance(value, float) else str(value)
