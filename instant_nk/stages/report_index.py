"""`results/index.html`: the page over all sequences of a results folder, rewritten whenever a report is done."""

from __future__ import annotations

import logging
from pathlib import Path

from instant_nk import __version__
from instant_nk.errors import ContractError
from instant_nk.io import artifact, metrics
from instant_nk.layout import Paths
from instant_nk.viewer import index
from instant_nk.viewer.index import Entry

logger = logging.getLogger(__name__)


def write(results: Path) -> Path:
    """List all sequences of a results folder in its `index.html`.

    Reports may finish at the same time, also on several machines: each looks again after it has written, and writes once
    more when something was added meanwhile. Whoever writes last has then seen everything, without any lock.

    Returns:
        path of the page.
    """
    place, written = results / "index.html", None
    while (page := index.document(scan(results), f"instant-nk {__version__}")) != written:
        with artifact.atomic(place) as aside:
            aside.write_text(page, encoding="utf-8")
        written = page
    return place


def scan(results: Path) -> list[Entry]:
    """Every sequence of a results folder, by name; one without a readable report says why."""
    return [_entry(Paths(folder)) for folder in sorted(results.iterdir()) if (folder / "1_dataset").is_dir()]


def _entry(paths: Paths) -> Entry:
    name = paths.root.name

    def beside(path: Path) -> str | None:
        return path.relative_to(paths.root.parent).as_posix() if path.is_file() else None

    if not paths.metrics.is_file():
        return Entry(name, None, note="no report yet")
    try:
        summary = metrics.load(paths.metrics)["summary"]
    except ContractError as error:
        logger.warning("the index shows no numbers of '%s': %s", name, error)
        return Entry(name, None, note="its report cannot be read: it is of another version, or broken. Re-run stage 'report'.")
    return Entry(name, summary, beside(paths.report_page), beside(paths.report_preview))
