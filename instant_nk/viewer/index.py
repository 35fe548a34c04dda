"""The page over several sequences: what each looks like, its key numbers, and the way to its report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from instant_nk.io.metrics import QUANTITIES
from instant_nk.viewer import charts, page

SHOWN = (  # of the summary; a number that no sequence has is left out
    ("frames", "frames", ""), ("vertices", "vertices", ""), ("chamfer_pct", "surface error", "%"), ("track_mean_pct", "tracking error", "%"),
    ("test_psnr_db", "held-out views", "dB"), ("texture_test_psnr_db", "textured mesh", "dB"), ("silhouette_iou", "silhouettes", "IoU"),
    ("doubtful_frames", "doubtful frames", ""), ("wall_s", "computing time", "s"),
)  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """One sequence.

    Attributes:
        name: of its folder.
        summary: numbers of its report; None while there is none.
        report, picture: paths relative to the index; None where absent.
        note: why there is no report.
    """

    name: str
    summary: dict[str, Any] | None
    report: str | None = None
    picture: str | None = None
    note: str = ""


def document(entries: Sequence[Entry], footer: str) -> str:
    """The whole page; it links to files beside it and asks the network for nothing."""
    tiles = "".join(map(_tile, entries)) or "<p class='none'>No sequence is here yet.</p>"
    reported = [entry for entry in entries if entry.summary is not None]
    body = f"<div class='tiles'>{tiles}</div>"
    if len(reported) > 1:
        body += page.section("Side by side", _table(reported))
    return page.document(f"{len(entries)} sequence{'' if len(entries) == 1 else 's'}", body, page.text(footer))


def _tile(entry: Entry) -> str:
    picture = f"<img loading='lazy' alt='{page.text(entry.name)}' src='{_address(entry.picture)}'>" if entry.picture else "<div class='nothing'></div>"
    said = f"<span>{page.text(entry.note)}</span>" if entry.summary is None else f"<span>{_line(entry.summary)}</span>"
    inside = f"{picture}<b>{page.text(entry.name)}</b>{said}"
    return f"<a class='tile' href='{_address(entry.report)}'>{inside}</a>" if entry.report else f"<div class='tile'>{inside}</div>"


def _line(summary: dict[str, Any]) -> str:
    """The first few numbers that are known, in one line."""
    known = [(label, unit, summary[name]) for name, label, unit in SHOWN if summary.get(name) is not None]
    return " · ".join(f"{charts.number(value)}{f' {unit}' if unit else ''} {label}" for label, unit, value in known[:5])


def _table(entries: Sequence[Entry]) -> str:
    columns = [(name, label, unit) for name, label, unit in SHOWN if any(entry.summary.get(name) is not None for entry in entries)]
    head = "".join(f"<th title='{page.text(QUANTITIES[name].meaning)}'>{label}{f' [{unit}]' if unit else ''}</th>" for name, label, unit in columns)
    rows = "".join(
        f"<tr><td>{_link(entry)}</td>" + "".join(f"<td class='value'>{charts.number(entry.summary.get(name))}</td>" for name, _, _ in columns) + "</tr>"
        for entry in entries
    )
    return f"<div class='scroll'><table><thead><tr><th>sequence</th>{head}</tr></thead><tbody>{rows}</tbody></table></div>"


def _link(entry: Entry) -> str:
    return f"<a href='{_address(entry.report)}'>{page.text(entry.name)}</a>" if entry.report else page.text(entry.name)


def _address(path: str | None) -> str:
    return page.text(quote(path or ""))
