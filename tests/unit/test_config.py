"""The configuration: read by type, refused by name, printed in full."""

import dataclasses
import typing

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from instant_nk import config as schema
from instant_nk.errors import ConfigError


def test_defaults_are_the_demo_preset_of_the_built_in_capture():
    config = schema.parse({})
    assert config == schema.Config()
    assert (config.capture, config.sequence, config.preset) == ("synthetic", "demo", "demo")


@pytest.mark.parametrize("preset", list(schema.PRESETS))
def test_every_preset_parses_and_sets_what_it_says(preset):
    config = schema.parse({"preset": preset})
    for section, values in schema.PRESETS[preset].items():
        for name, value in values.items():
            assert getattr(getattr(config, section), name) == value


def test_the_users_value_wins_over_the_preset():
    config = schema.parse({"preset": "tiny", "canonical": {"steps": 7}})
    assert config.canonical.steps == 7
    assert config.canonical.levels == schema.PRESETS["tiny"]["canonical"]["levels"]


def test_an_empty_section_leaves_the_preset_in_force():
    assert schema.parse({"preset": "tiny", "canonical": None}) == schema.parse({"preset": "tiny"})


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"canonical": {"stepps": 3}}, ["canonical.stepps", "does not exist", "canonical.steps"]),
        ({"kanonical": {}}, ["'kanonical'", "'canonical'"]),
        ({"canonical": {"steps": "many"}}, ["canonical.steps", "whole number", "'many'"]),
        ({"canonical": {"steps": 1.5}}, ["canonical.steps", "whole number"]),
        ({"canonical": {"steps": True}}, ["canonical.steps", "whole number", "bool"]),
        ({"canonical": {"steps": 0}}, ["canonical.steps", "above zero", "0"]),
        ({"canonical": {"learning_rate": float("nan")}}, ["canonical.learning_rate", "number"]),
        ({"canonical": 3}, ["canonical", "table of keys"]),
        ({"field": {"dyna_mode": "warp"}}, ["field.dyna_mode", "wanted deform", "'warp'"]),
        ({"field": {"overlap": 1}}, ["field.overlap", "2 or more"]),
        ({"field": {"window_frames": 2}}, ["field.window_frames", "more than field.overlap=2"]),
        ({"preset": "hi"}, ["preset", "demo | tiny | fast | high", "Nearest: 'high'"]),
        ({"sequence": "../up"}, ["sequence", "letters", "'../up'"]),
        ({"dataset": {"box": [[0, 0, 0], [1, 1, -1]]}}, ["dataset.box", "min below max"]),
        ({"dataset": {"box": [[0, 0, 0]]}}, ["dataset.box", "[[x, y, z], [x, y, z]]"]),
        ({"dataset": {"cameras": "some"}}, ["dataset.cameras", "all | N | [names]"]),
        ({"dataset": {"background": [1, 2]}}, ["dataset.background", "[r, g, b]"]),
        ({"registration": {"source": "ed_folder"}}, ["registration.folder", "a path"]),
        ({"observation": {"provider": "meshes"}}, ["observation.folder", "per-frame meshes"]),
        ({"observation": {"folder": "scans"}}, ["observation.provider", "meshes, because observation.folder is given", "'neural'"]),
        ({"registration": {"folder": "ed"}}, ["registration.source", "ed_folder or rig, because registration.folder is given", "'solver'"]),
        ({"registration": {"rig_fps": 30}}, ["registration.source", "rig, because rig_fps is given"]),
        ({"registration": {"rigidity_weight": 0}}, ["registration.rigidity_weight", "a number above zero", "0"]),
        ({"canonical": {"finest_resolution": 8}}, ["canonical.finest_resolution", "at least canonical.base_resolution=12", "8"]),
        ({"field": {"base_resolution": 49}}, ["field.finest_resolution", "at least field.base_resolution=49"]),
        ({"dataset": {"outside_tolerance": 2.0}}, ["dataset.outside_tolerance", "a share", "2.0"]),
        ({"dataset": {"background": [0, 256, 0]}}, ["dataset.background", "0..255"]),
        ({"mesh": {"formats": ["abc"]}}, ["mesh.formats", "glb", "'abc'"]),
        ({"sequences": {"one": {"frames": {"count": 2}}}}, ["sequences.one", "'capture'"]),
    ],
)
def test_a_wrong_value_is_refused_by_path_with_what_was_wanted_and_got(values, said):
    with pytest.raises(ConfigError) as caught:
        schema.for_sequences(schema.parse(values), values)
    for text in said:
        assert text in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("frames.count", "4", 4),
        ("frames.count", "null", None),
        ("field.refine_motion", "false", False),
        ("field.refine_motion", "True", True),
        ("canonical.learning_rate", "1e-3", 1e-3),
        ("dataset.cameras", "3", 3),
        ("dataset.cameras", "[a.png, b.png]", ["a.png", "b.png"]),
        ("dataset.box", "[[0, 0, 0], ['1', 1, 1]]", [[0, 0, 0], [1, 1, 1]]),
    ],
)
def test_text_from_the_command_line_is_read_as_the_field_wants(name, text, value):
    section, item = name.split(".")
    assert getattr(getattr(schema.parse({name: text}), section), item) == value


def test_a_broken_or_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.yaml: no such configuration file"):
        schema.load(tmp_path / "none.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1\n")
    with pytest.raises(ConfigError, match=r"broken\.yaml: not valid YAML"):
        schema.load(broken)
    broken.write_text("- 1\n")
    with pytest.raises(ConfigError, match="wanted a table of keys, got list"):
        schema.load(broken)


def test_each_sequence_gets_its_own_overrides():
    values = {"preset": "tiny", "sequences": {"one": "a", "two": {"capture": "b", "frames": {"count": 3}}}, "field": {"steps": 9}}
    configs = schema.for_sequences(schema.parse(values), values)
    assert [(name, c.sequence, c.capture, c.frames.count, c.field.steps) for name, c in configs.items()] == [
        ("one", "one", "a", None, 9),
        ("two", "two", "b", 3, 9),
    ]


def test_a_config_printed_in_full_reads_back_as_itself():
    config = schema.parse({"preset": "tiny", "dataset": {"cameras": ["a", "b"], "box": [[0, 0, 0], [1, 2, 3]]}, "frames": {"first": 3}})
    assert schema.parse(yaml.safe_load(schema.to_yaml(config))) == config
    assert schema.parse(schema.to_dict(config)) == config


def test_every_key_has_a_reason():
    def keys(cls, path=""):
        for item in dataclasses.fields(cls):
            hint = typing.get_type_hints(cls)[item.name]
            if dataclasses.is_dataclass(hint):
                yield from keys(hint, f"{item.name}.")
            else:
                yield path + item.name, item.metadata.get("doc", "")

    assert not [name for name, doc in keys(schema.Config) if len(doc) < 10]


def test_the_shipped_file_lists_every_key_and_changes_no_default(repository):
    text = (repository / "config" / "config.yaml").read_text()
    assert text == schema.template(), "regenerate it: instant-nk config --template > config/config.yaml"
    assert schema.parse(yaml.safe_load(text)) == schema.Config()
    assert schema.parse({**yaml.safe_load(text), "preset": "tiny"}) == schema.parse({"preset": "tiny"})
    uncommented = "".join(line.replace("  # ", "  ", 1) if line.startswith("  # ") else line for line in text.splitlines(True))
    assert schema.parse(yaml.safe_load(uncommented)) == schema.Config()


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8), lambda inner: st.lists(inner, max_size=3), max_leaves=4))
def test_no_value_whatever_escapes_the_checks_with_another_error(value):
    for name in ("canonical.steps", "dataset.box", "dataset.cameras", "dataset.background", "field.dyna_mode", "runtime.seed", "frames", "sequence"):
        try:
            schema.parse({name: value})
        except ConfigError:
            pass


@pytest.mark.parametrize("written, meant", [("on", "on"), ("off", "off"), ("auto", "auto"), ("'on'", "on")])
def test_on_and_off_are_what_they_say_though_yaml_reads_truth_values(written, meant):
    assert schema.parse(yaml.safe_load(f"runtime: {{mixed_precision: {written}}}")).runtime.mixed_precision == meant


@pytest.mark.parametrize("broken", ["[0", "[\x1f", "[a: [", "[}"])
def test_a_list_that_is_no_yaml_is_named(broken):
    with pytest.raises(ConfigError, match="dataset.cameras"):
        schema.parse({"dataset.cameras": broken})


def test_a_choice_without_on_and_off_takes_no_truth_value():
    with pytest.raises(ConfigError, match="runtime.device"):
        schema.parse({"runtime.device": True})
