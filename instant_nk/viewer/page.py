"""The report's page: one self-contained HTML file, pictures and videos inside, no network requests, readable on a phone."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any
from urllib.parse import quote

import numpy as np

from instant_nk.io.metrics import QUANTITIES, StageCost
from instant_nk.viewer import charts, pictures

PROMISE = "Calibrated multi-view video in, an animated mesh with constant topology out."
CARDS = (  # what a reader looks for first: name, label, unit shown, factor from the summary's unit
    ("track_mean_pct", "tracking error", "%", 1),
    ("chamfer_pct", "surface error", "%", 1),
    ("test_psnr_db", "held-out views, neural", "dB", 1),
    ("texture_test_psnr_db", "held-out views, textured mesh", "dB", 1),
    ("silhouette_iou", "silhouette overlap", "%", 100),
    ("test_fg_psnr_db", "held-out, subject only", "dB", 1),
    ("jitter_pct", "jitter", "%", 1),
    ("flipped_fraction", "flipped faces", "%", 100),
    ("vertices", "vertices", "", 1),
    ("frames", "frames", "", 1),
    ("wall_s", "computing time", "min", 1 / 60),
    ("peak_host_mib", "peak memory", "GiB", 1 / 1024),
)
LEADING = 4  # cards that stand beside the 3-D view


def text(value: Any) -> str:
    return html.escape(str(value), quote=True)


def document(title: str, body: str, footer: str) -> str:
    """The whole page."""
    style = (resources.files("instant_nk.viewer") / "assets" / "report.css").read_text(encoding="utf-8")
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{text(title)}</title><link rel="icon" href="data:,"><style>{style}</style></head>
<body><main><h1>{text(title)}</h1><p class="promise">{text(PROMISE)}</p>
{body}
<footer>{footer}</footer></main></body></html>
"""


def section(title: str, body: str, note: str = "") -> str:
    return f"<section><h2>{text(title)}</h2>{f'<p>{text(note)}</p>' if note else ''}{body}</section>\n"


def notice(message: str) -> str:
    return f"<div class='notice'>{text(message)}</div>"


def cards(summary: Mapping[str, float | None], first: int = 0, last: int | None = None) -> str:
    """The figures a reader looks for first, from the first to before the last of those that have a value."""
    known = [card for card in CARDS if summary.get(card[0]) is not None]
    return (
        "<div class='cards'>"
        + "".join(
            f"<div class='card' title='{text(QUANTITIES[name].meaning)}'><b>{_grouped(summary[name] * factor)}<small>{unit}</small></b><span>{label}</span></div>"
            for name, label, unit, factor in known[first:last]
        )
        + "</div>"
    )


def _grouped(value: float) -> str:
    """A number as people read it, thousands apart."""
    return f"{value:,.0f}".replace(",", "\u202f") if abs(value) >= 10000 else charts.number(value)


def _bytes(size: int) -> str:
    return f"{size / 2**20:.1f} MiB" if size >= 2**20 else f"{max(1, round(size / 2**10))} KiB"


def files(places: Iterable[tuple[str, str, int]]) -> str:
    """Links to files beside the page.

    Args:
        places: what it is, path relative to the page, bytes (0: a folder, whose size is not told).
    """
    rows = "".join(
        f"<li><a href='{text(quote(path))}'>{text(path.removeprefix('../').split('/', 1)[-1])}</a> <span>{text(what)}{f', {_bytes(size)}' if size else ''}</span></li>"
        for what, path, size in places
    )
    return f"<ul class='files'>{rows}</ul>"


def picture(image: np.ndarray, caption: str) -> str:
    """A figure with the picture u8 inside the page."""
    uri = pictures.data_uri(pictures.png_bytes(image), "image/png")
    return (
        f"<figure><img alt='{text(caption)}' width='{image.shape[1]}' height='{image.shape[0]}' src='{uri}'><figcaption>{text(caption)}</figcaption></figure>"
    )


def film(data: bytes, caption: str, *, identity: str = "", still: np.ndarray | None = None, playing: bool = True) -> str:
    """A figure with an mp4 inside the page, with controls while it is pointed at; one that does not play by itself is moved by something else on the page."""
    poster = f" poster='{pictures.data_uri(pictures.png_bytes(still), 'image/png')}'" if still is not None else ""
    how = "autoplay loop tabindex='0' onmouseenter='controls=true' onmouseleave='controls=false' onfocus='controls=true'" if playing else ""
    return (
        f"<figure><video {f'id={identity}' if identity else ''} muted playsinline {how}{poster} src='{pictures.data_uri(data, 'video/mp4')}'></video>"
        f"<figcaption>{text(caption)}</figcaption></figure>"
    )


@dataclass(frozen=True)
class View:
    """One row of the comparison: a camera at a frame.

    Attributes:
        title: which camera and frame.
        columns: pictures u8 [H, W, 3] by caption, in order.
    """

    title: str
    columns: dict[str, np.ndarray]


def comparison(views: Iterable[View]) -> str:
    return "".join(
        f"<h3>{text(view.title)}</h3><div class='views'>{''.join(picture(image, caption) for caption, image in view.columns.items())}</div>" for view in views
    )


def graph_figure(background: np.ndarray, nodes: np.ndarray, visible: np.ndarray, edges: np.ndarray, strong: np.ndarray, caption: str) -> str:
    """The graph drawn over a picture of the mesh.

    Args:
        background: u8 [H, W, 3].
        nodes: pixel positions [M, 2].
        visible: whether each node is not hidden by the mesh [M].
        edges: [E, 2].
        strong: which edges join neighbours; the others reach far and are drawn thin [E].
    """
    height, width = background.shape[:2]
    lines = []
    for (i, j), near in zip(edges, strong):
        if visible[i] and visible[j]:
            (x1, y1), (x2, y2) = nodes[i], nodes[j]
            lines.append(f"<line x1='{x1:.1f}' y1='{y1:.1f}' x2='{x2:.1f}' y2='{y2:.1f}' stroke='#12303c' stroke-opacity='{0.75 if near else 0.16}'/>")
    radius = max(width, height) / 190
    dots = [f"<circle cx='{x:.1f}' cy='{y:.1f}' r='{radius:.2f}'/>" for (x, y), seen in zip(nodes, visible) if seen]
    drawing = (
        f"<svg viewBox='0 0 {width} {height}' stroke-width='{radius * 0.35:.2f}'>{''.join(lines)}<g fill='#d9623b' stroke='#fff'>{''.join(dots)}</g></svg>"
    )
    uri = pictures.data_uri(pictures.png_bytes(background), "image/png")
    return f"<figure><div class='graph'><img alt='{text(caption)}' width='{width}' height='{height}' src='{uri}'>{drawing}</div><figcaption>{text(caption)}</figcaption></figure>"


def metrics_table(summary: Mapping[str, float | None]) -> str:
    """Every number of the summary with unit and meaning."""
    rows = "".join(
        f"<tr><td><code>{name}</code></td><td class='value'>{charts.number(summary.get(name), 4)}</td><td class='meaning'>{text(q.unit)}{f', {q.better} is better' if q.better else ''}: {text(q.meaning)}</td></tr>"
        for name, q in QUANTITIES.items()
    )
    return f"<table class='metrics'><thead><tr><th>name</th><th>value</th><th>unit and meaning</th></tr></thead><tbody>{rows}</tbody></table>"


def loss_charts(costs: Mapping[str, StageCost], most: int = 6) -> str:
    """One chart per curve of each stage's training; of stages with many jobs the first few."""
    result = []
    for stage, cost in costs.items():
        histories = dict(list(cost.histories().items())[:most])
        names = [n for history in histories.values() for n, v in history.items() if n != "step" and isinstance(v, list)]
        for name in dict.fromkeys(names):
            steps = sorted({s for history in histories.values() for s in history["step"]})
            series = {job: _on(steps, h["step"], h[name]) for job, h in histories.items() if len(h.get(name, [])) == len(h["step"])}
            quantity, unit = _split_unit(name)
            values = [v for line in series.values() for v in line if v is not None]
            wide = bool(values) and min(values) > 0 and max(values) > 30 * min(values)
            result.append(charts.line_chart(f"{stage}: {quantity}", unit, steps, series, x_name="step", from_zero=False, logarithmic=wide))
    return f"<div class='charts'>{''.join(result)}</div>" if result else "<p class='none'>No stage was trained here.</p>"


def _on(steps: Sequence[float], own: Sequence[float], values: Sequence[float | None]) -> list[float | None]:
    known = dict(zip(own, values))
    return [known.get(step) for step in steps]


def _split_unit(name: str) -> tuple[str, str]:
    """`psnr_db` -> `psnr`, `dB`: the unit is in the key."""
    for ending, unit in (
        ("_db", "dB"),
        ("_pct", "%"),
        ("_s", "s"),
        ("_mib", "MiB"),
        ("_world", "world units"),
        ("_scene", "scene units"),
        ("_spacing", "node spacings"),
    ):
        if name.endswith(ending):
            return name.removesuffix(ending).replace("_", " "), unit
    return name.replace("_", " "), "no unit"


def cost_charts(costs: Mapping[str, StageCost]) -> str:
    """Time and memory of every stage."""
    jobs = {stage: f"{cost.jobs} jobs" if cost.jobs > 1 else "" for stage, cost in costs.items()}
    times = [(stage, cost.wall_s, jobs[stage]) for stage, cost in costs.items()]
    host = [(stage, cost.peak_host_mib or 0.0, "") for stage, cost in costs.items()]
    result = charts.bars("time, all jobs of a stage together", "s", times) + charts.bars("peak memory of one job", "MiB", host)
    if any(cost.peak_gpu_mib for cost in costs.values()):
        result += charts.bars("peak GPU memory of one job", "MiB", [(stage, cost.peak_gpu_mib or 0.0, "") for stage, cost in costs.items()])
    return f"<div class='charts'>{result}</div>"


def stage_details(costs: Mapping[str, StageCost]) -> str:
    """Everything else the stages wrote down, folded away."""
    result = []
    for stage, cost in costs.items():
        rows = "".join(
            f"<tr><td><code>{text(job)}</code></td><td><code>{text(key)}</code></td><td>{text(_shown(value))}</td></tr>"
            for job, numbers in cost.numbers.items()
            for key, value in numbers.items()
            if key != "history"
        )
        if rows:
            result.append(f"<details><summary>{text(stage)}</summary><table>{rows}</table></details>")
    return "".join(result)


def _shown(value: Any) -> str:
    """A value in a line: long lists by their extent."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return charts.number(value, 4)
    if isinstance(value, list) and len(value) > 12:
        numbers = [v for v in value if isinstance(v, (int, float)) and not isinstance(v, bool)]
        return f"{len(value)} values" + (f", {charts.number(min(numbers))} to {charts.number(max(numbers))}" if numbers else "")
    if isinstance(value, list):
        return ", ".join(_shown(v) for v in value)
    if isinstance(value, dict):
        return "; ".join(f"{k}: {_shown(v)}" for k, v in value.items())
    return str(value)
