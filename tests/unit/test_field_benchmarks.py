"""The tables of the window field: what a row changes before and while it runs."""

import numpy as np
import pytest

from benchmarks import ablation, dyna_modes
from instant_nk import config as configuration
from instant_nk.io import motion
from instant_nk.stages import mesh as mesh_stage
from tests.unit import neural_fixtures


@pytest.mark.parametrize("name", ablation.ROWS)
def test_every_row_is_a_valid_config(name):
    changes = ablation.ROWS[name].changes
    changed, plain = configuration.parse({"preset": "fast", **changes}), configuration.parse({"preset": "fast"})
    assert (changed != plain) == bool(changes)


def test_a_table_has_a_line_per_row_and_a_dash_for_what_is_unknown():
    text = dyna_modes.table({"deform": {"chamfer_pct": 0.12345, "track_mean_pct": 1.0}, "time": {"chamfer_pct": 0.2, "track_mean_pct": None}})
    assert text.splitlines() == ["| mode | chamfer_pct | track_mean_pct |", "|---|---|---|", "| deform | 0.1235 | 1 |", "| time | 0.2 | – |"]


def test_without_blending_every_frame_belongs_to_one_window_alone():
    windows = [np.arange(0, 8), np.arange(6, 14), np.arange(12, 20)]
    with ablation.hard_seams():
        ramps = mesh_stage._ramps(windows)
    for frame in range(20):
        owners = [ramp[list(window).index(frame)] for window, ramp in zip(windows, ramps) if frame in window]
        assert sorted(owners)[-1] == 1 and sum(owners) == 1
    assert mesh_stage._ramps(windows)[0][-1] not in (0, 1)  # and outside the row it blends again


def test_a_row_without_graph_motion_stands_still(tmp_path, tmp_path_factory):
    import shutil

    from instant_nk import layout

    base = neural_fixtures.body(tmp_path_factory.getbasetemp())
    paths = layout.Paths(tmp_path / "row")
    shutil.copytree(base.job.paths.registration, paths.registration)
    ablation.stand_still(paths)
    found = motion.load(paths.motion)
    assert not found.translations.any() and np.array_equal(found.rotations, np.broadcast_to(np.eye(3), found.rotations.shape))
    assert list(found.frames) == list(base.dataset.frames)
