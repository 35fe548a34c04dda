"""The `instant-nk` command."""

import subprocess
import sys
import time

import pytest
import yaml

from instant_nk import cli, layout
from instant_nk import config as schema


def run(*argv):
    return cli.main(list(argv))


def test_help_is_instant_and_lists_every_stage():
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "instant_nk.cli", "--help"], capture_output=True, text=True, check=True)
    assert time.perf_counter() - start < 3
    for stage in layout.STAGES:
        assert stage in done.stdout


@pytest.mark.parametrize("preset", list(schema.PRESETS))
def test_config_prints_a_preset_in_full(preset, capsys):
    assert run("config", "--preset", preset) == 0
    assert schema.parse(yaml.safe_load(capsys.readouterr().out)) == schema.parse({"preset": preset})


def test_config_takes_a_file_and_single_keys(tmp_path, capsys):
    (tmp_path / "my.yaml").write_text("preset: tiny\nfield: {steps: 5}\n")
    assert run("config", "--config", str(tmp_path / "my.yaml"), "--set", "field.levels=2", "--set", "dataset.cameras=[a.png]") == 0
    config = schema.parse(yaml.safe_load(capsys.readouterr().out))
    assert (config.preset, config.field.steps, config.field.levels, config.dataset.cameras) == ("tiny", 5, 2, ["a.png"])


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["config", "--set", "field.stepps=5"], "Nearest valid key: 'field.steps'"),
        (["config", "--set", "field.steps"], "wanted key=value"),
        (["field", "--part", "9-1"], "'9-1' is not a range of frames"),
        (["config", "--config", "none.yaml"], "none.yaml: no such configuration file"),
    ],
)
def test_a_wrong_call_ends_with_one_message_and_code_2(argv, said, capsys):
    assert run(*argv) == 2
    text = capsys.readouterr().err
    assert said in text
    assert "Traceback" not in text
