"""Names and places: windows cover the frames, batches divide them, every stage has a folder."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instant_nk import config as schema
from instant_nk import layout
from instant_nk.errors import ConfigError

frame_lists = st.builds(lambda first, count, step: list(range(first, first + count * step, step)), st.integers(0, 5000), st.integers(1, 80), st.integers(1, 3))


@given(frame_lists, st.integers(3, 12), st.integers(2, 5))
def test_windows_cover_all_frames_and_neighbours_share_the_overlap(frames, length, overlap):
    length = max(length, overlap + 1)
    names = layout.windows(frames, length, overlap)
    parts = [layout.select(frames, name) for name in names]
    assert sorted({f for part in parts for f in part}) == frames
    assert all(len(part) <= length for part in parts)
    assert len(set(names)) == len(names)
    for left, right in zip(parts, parts[1:]):
        assert len(set(left) & set(right)) >= overlap


@given(frame_lists, st.integers(1, 9))
def test_batches_divide_the_frames(frames, size):
    parts = [layout.select(frames, name) for name in layout.batches(frames, size)]
    assert [f for part in parts for f in part] == frames
    assert all(1 <= len(part) <= size for part in parts)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_part_without_a_frame_of_the_sequence_is_refused():
    with pytest.raises(ConfigError, match="'000007-000009' holds no frame of the sequence, which has 2 to 6"):
        layout.select([2, 4, 6], "000007-000009")


def test_a_part_is_named_by_its_first_and_last_frame():
    assert layout.part_name(0, 9) == "000000-000009"
    assert layout.part_frames("000000-000009") == (0, 9)


@pytest.mark.parametrize("name", ["", "5", "000009-000000", "a-b", "1-2-3"])
def test_a_garbled_part_is_refused(name):
    with pytest.raises(ConfigError, match="not a range of frames"):
        layout.part_frames(name)


def test_every_stage_has_a_folder_numbered_in_order():
    paths = layout.paths_of(schema.Config())
    folders = [paths.dataset, paths.canonical, paths.graph_dir, paths.observation_dir, paths.registration, paths.field_dir, paths.mesh, paths.report]
    assert [paths.stage_dir(stage) for stage in layout.STAGES] == folders
    assert [folder.name for folder in folders] == [f"{i}_{stage}" for i, stage in enumerate(layout.STAGES, 1)]


def test_what_a_stage_reads_is_a_config_again():
    config = schema.parse({"preset": "tiny", "field": {"steps": 3}})
    for stage in layout.STAGE_READS:
        values = layout.stage_values(config, stage)
        again = schema.parse({"preset": "tiny", **values})
        assert layout.stage_values(again, stage) == values
    assert layout.stage_values(config, "field") == {"field": schema.to_dict(config.field)}
    assert layout.stage_values(config, "graph")["registration"] == {"source": "solver", "folder": None}


def test_a_changed_key_changes_what_its_own_stage_reads_and_no_earlier_stage():
    before, after = schema.Config(), schema.parse({"field": {"learning_rate": 1.0}})
    changed = [stage for stage in layout.STAGES if layout.stage_values(before, stage) != layout.stage_values(after, stage)]
    assert changed == ["field"]


def test_the_windows_of_a_long_capture_are_gathered_in_order_and_those_of_a_short_one_are_not():
    few = layout.windows(list(range(300)), 8, 2)
    assert layout.spans(few) == {}
    many = layout.windows(list(range(2000)), 8, 2)
    gathered = layout.spans(many)
    assert [window for group in gathered.values() for window in group] == many
    assert len(gathered) == layout.BATCHES_PER_SEQUENCE
    name, group = next(iter(gathered.items()))
    assert layout.part_frames(name) == (layout.part_frames(group[0])[0], layout.part_frames(group[-1])[1])


def test_a_long_capture_is_observed_in_few_large_batches_and_a_short_one_in_small():
    assert len(layout.batches(list(range(8)))) == 2
    assert len(layout.batches(list(range(2000)))) == layout.BATCHES_PER_SEQUENCE
