"""The `instant-nk` command."""

import os
import re
import subprocess
import sys
import time

import pytest
import yaml

from instant_nk import cli, entry, layout
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
        (["config", "--set", "field.steps=[1"], "--set field.steps=[1: not valid YAML"),
        (["field", "--part", "9-1"], "'9-1' is not a range of frames"),
        (["config", "--config", "none.yaml"], "none.yaml: no such configuration file"),
        (["config", "--config", "."], ".: cannot be read"),
    ],
)
def test_a_wrong_call_ends_with_one_message_and_code_2(argv, said, capsys):
    assert run(*argv) == 2
    text = capsys.readouterr().err
    assert said in text
    assert "Traceback" not in text


@pytest.mark.parametrize("name", ["take #2", "20240512", "take: 1: b", "@x"])
def test_a_capture_to_check_is_the_folder_of_that_name_whatever_it_means_in_yaml(tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    assert run("check", name) == 3
    assert f"error: DataError: {name}" in capsys.readouterr().err


def test_a_sequences_own_preset_holds_for_single_stages_too(tmp_path, monkeypatch):
    (tmp_path / "my.yaml").write_text("preset: demo\nsequences: {walk: {capture: a, preset: fast}, run: b}\ncanonical: {hidden: 48}\n")
    ran = []
    monkeypatch.setattr(entry, "run_stage", lambda stage, config, part: ran.append(config))
    assert run("canonical", "--config", str(tmp_path / "my.yaml"), "--set", "runtime.seed=1") == 0
    steps = {config.sequence: config.canonical.steps for config in ran}
    assert steps == {"walk": schema.parse({"preset": "fast"}).canonical.steps, "run": schema.parse({"preset": "demo"}).canonical.steps}
    assert {(config.canonical.hidden, config.runtime.seed) for config in ran} == {(48, 1)}


@pytest.mark.parametrize("command", [("summary",), ("status",), ("verify",), ("view",), ("render",), ("track", "--points", "p.ply"), ("export-ed", "out")])
@pytest.mark.parametrize("made", ["nowhere", "file", "empty", "parent"])
def test_a_folder_that_holds_no_sequence_is_one_message_and_code_4(tmp_path, capsys, command, made):
    (tmp_path / "file").write_text("not a folder")
    (tmp_path / "parent" / "logs").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    name, *more = command
    assert run(name, str(tmp_path / made), *more) == 4
    said = capsys.readouterr()
    assert f"error: ContractError: {tmp_path / made}: " in said.err and "Give the folder of one sequence, e.g. results/demo." in said.err
    assert not said.out


def test_a_stage_without_the_part_it_needs_or_with_one_it_does_not_know_is_refused(tmp_path, capsys):
    here = ("--set", f"runtime.results={tmp_path}")
    for argv, said in (
        (["field"], "stage 'field' works on a window of the sequence: give --part FIRST-LAST"),
        (["observation"], "stage 'observation' works on a batch of frames of the sequence"),
        (["graph", "--part", "000000-000002"], "stage 'graph' is one job for the whole sequence: leave --part out"),
    ):
        assert run(*argv, *here) == 2
        assert said in capsys.readouterr().err


def test_pictures_without_pixels_are_refused(tmp_path, capsys):
    (tmp_path / "1_dataset").mkdir()
    assert run("render", str(tmp_path), "--side", "-5") == 2
    assert "wanted --side of 2 pixels or more, got -5" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [["config"], ["config", "--template"], ["--help"], ["verify", "nowhere"]])
def test_a_reader_that_has_seen_enough_ends_a_command_without_a_traceback(argv):
    """As `instant-nk config | head -0` does: the pipe is closed before anything is written."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-m", "instant_nk.cli", *argv], stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert "Traceback" not in done.stderr and "BrokenPipe" not in done.stderr
    assert ("error: ContractError: nowhere" in done.stderr) == (argv[0] == "verify")


def test_a_broken_pipe_of_another_program_keeps_its_traceback():
    def work():
        raise BrokenPipeError(32, "ffmpeg ended")

    with pytest.raises(BrokenPipeError):
        entry.guarded(work)


# The README's table from the published code's flags to keys here.


def test_every_key_the_readme_names_for_a_flag_exists(repository):
    table = (repository / "README.md").read_text().split("| flag | here |")[1].split("## ")[0]
    keys = re.findall(r"`((?:dataset|canonical|graph|observation|registration|field|mesh|report|frames|runtime)\.\w+)", table)
    assert len(set(keys)) >= 8
    known = schema.to_dict(schema.parse({}))
    for key in keys:
        section, name = key.split(".")
        assert name in known[section], key
    for section, name in re.findall(r"`(\w+): \{(\w+):", table):
        assert name in known[section]
    for stage in re.findall(r"`instant-nk (\w+)", table):
        assert stage in cli.make_parser().format_help()


def test_every_flag_of_the_published_scripts_stands_in_the_readme(repository):
    table = (repository / "README.md").read_text().split("| flag | here |")[1].split("## ")[0]
    published = (
        "st_frame num_frames num_image ed_folder workspace dyna_mode test bound scale num_rays fp16 tcnn cuda_ray mode seed num_steps upsample_steps max_ray_batch "
        "lr ckpt ff preload color_space min_near dt_gamma density_thresh gui W H radius fovy max_spp"
    )
    missing = [flag for flag in published.split() if f"`--{flag}" not in table]
    assert not missing
