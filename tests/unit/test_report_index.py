"""The page over several sequences: what it lists, how it names what it cannot read, and reports that finish at the same time."""

import json
import multiprocessing
import re

import imageio.v3 as iio
import numpy as np
import pytest

from instant_nk.io import artifact, metrics
from instant_nk.layout import Paths
from instant_nk.stages import report_index


def write_sequence(results, name, colour=(200, 30, 30), **summary):
    """What a finished report leaves in a results folder; the paths."""
    paths = Paths(results / name)
    paths.dataset.mkdir(parents=True)
    paths.report.mkdir()
    iio.imwrite(paths.report_preview, np.broadcast_to(np.uint8(colour), (60, 120, 3)))
    paths.report_page.write_text("<!doctype html>")
    metrics.save(paths.metrics, artifact.make_header("metrics", metrics.FORMAT, "report"), {"frames": 8, "wall_s": 60.5} | summary, {}, [], {})
    return paths


def links(page):
    return re.findall(r"<a class='tile' href='([^']*)'", page)


def test_every_sequence_is_listed_with_its_numbers_picture_and_link(tmp_path):
    write_sequence(tmp_path, "walk", chamfer_pct=0.125)
    write_sequence(tmp_path, "run", texture_test_psnr_db=31.5)
    (tmp_path / "half" / "1_dataset").mkdir(parents=True)
    (tmp_path / "logs").mkdir()
    page = report_index.write(tmp_path).read_text()
    assert links(page) == ["run/8_report/index.html", "walk/8_report/index.html"]
    assert "src='walk/8_report/turntable.gif'" in page and "0.125 % surface error" in page and "31.5 dB textured mesh" in page
    assert "<b>half</b><span>no report yet</span>" in page and "<b>logs</b>" not in page
    assert "3 sequences" in page and "Side by side" in page
    assert not re.search(r"https?://|\bfetch\(|XMLHttpRequest", page)
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["index.html"]


def test_names_cannot_break_the_page(tmp_path):
    write_sequence(tmp_path, "a&b #1 'quoted' <i>")
    page = report_index.write(tmp_path).read_text()
    assert links(page) == ["a%26b%20%231%20%27quoted%27%20%3Ci%3E/8_report/index.html"]
    assert "<i>" not in page and "a&amp;b #1" in page


def test_a_report_of_another_version_is_named_and_hides_nothing_else(tmp_path, caplog):
    write_sequence(tmp_path, "good")
    old = write_sequence(tmp_path, "old")
    value = json.loads(old.metrics.read_text())
    value["header"]["format"] = 99
    old.metrics.write_text(json.dumps(value))
    write_sequence(tmp_path, "torn").metrics.write_text('{"header": ')
    page = report_index.write(tmp_path).read_text()
    assert links(page) == ["good/8_report/index.html"]
    assert page.count("its report cannot be read") == 2
    assert "old" in caplog.text and "torn" in caplog.text


def test_a_report_that_is_done_while_the_page_is_written_is_listed(tmp_path, monkeypatch):
    write_sequence(tmp_path, "first")
    scan, late = report_index.scan, []

    def scan_then_another_finishes(results):
        found = scan(results)
        if not late:
            late.append(write_sequence(tmp_path, "second"))
        return found

    monkeypatch.setattr(report_index, "scan", scan_then_another_finishes)
    assert links(report_index.write(tmp_path).read_text()) == ["first/8_report/index.html", "second/8_report/index.html"]


def finish(results, name, barrier):
    barrier.wait()
    write_sequence(results, name)
    report_index.write(results)


def test_reports_that_finish_at_the_same_time_are_all_listed(tmp_path):
    context = multiprocessing.get_context("fork")
    names = [f"s{i}" for i in range(6)]
    barrier = context.Barrier(len(names))
    jobs = [context.Process(target=finish, args=(tmp_path, name, barrier)) for name in names]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(60)
    assert [job.exitcode for job in jobs] == [0] * len(names)
    assert links((tmp_path / "index.html").read_text()) == [f"{name}/8_report/index.html" for name in names]
    assert not list(tmp_path.glob(".index*"))


@pytest.mark.parametrize("size", [(1000, 700), (500, 900)])
def test_chromium_shows_the_previews(tmp_path, photograph, size):
    write_sequence(tmp_path, "red one", (220, 20, 20))
    write_sequence(tmp_path, "green", (20, 180, 20))
    picture = photograph(report_index.write(tmp_path), size=size).astype(int)
    assert (np.abs(picture - [220, 20, 20]).max(-1) < 12).sum() > 5000 and (np.abs(picture - [20, 180, 20]).max(-1) < 12).sum() > 5000
