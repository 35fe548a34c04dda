"""`.ci/make_venv`: which Python is taken, and what is said where none serves. Fake interpreters stand for the versions."""

import subprocess

import pytest


def fake(folder, name, version):
    """An interpreter of a version that answers the script's questions and makes a `venv` by making its folder."""
    major, minor = version.split(".")[:2]
    wanted = 0 if (3, 11) <= (int(major), int(minor)) <= (3, 12) else 1
    path = folder / name
    path.write_text(
        f'#!/bin/sh\ncase "$*" in\n*platform*) echo {version};;\n*version_info*) exit {wanted};;\n"-m venv "*) mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; echo {version} > "$3/made_by";;\nesac\n'
    )
    path.chmod(0o755)


def make_venv(repository, tmp_path, *argv, **versions):
    tools = tmp_path / "tools"
    tools.mkdir(exist_ok=True)
    for name, version in versions.items():
        fake(tools, name, version)
    command = ["/bin/bash", str(repository / ".ci" / "make_venv"), str(tmp_path / "venv"), *argv]
    for name in ("cat", "rm", "basename", "mkdir", "cp"):
        if not (tools / name).exists():
            (tools / name).symlink_to(subprocess.run(["/bin/sh", "-c", f"command -v {name}"], capture_output=True, text=True, check=True).stdout.strip())
    return subprocess.run(command, env={"PATH": str(tools)}, capture_output=True, text=True)


@pytest.mark.parametrize("version", ["3.11.9", "3.12.4"])
def test_a_python_that_the_wheels_serve_makes_the_environment(repository, tmp_path, version):
    assert make_venv(repository, tmp_path, python3="3.9.2", python=version).returncode == 0
    assert (tmp_path / "venv" / "made_by").read_text().strip() == version


@pytest.mark.parametrize("version", ["3.9.2", "3.10.14", "3.13.1", "3.14.0", "2.7.18"])
def test_another_python_is_named_and_nothing_is_made(repository, tmp_path, version):
    done = make_venv(repository, tmp_path, python3=version)
    assert done.returncode == 1
    assert (
        done.stderr
        == f"error: Instant-NK needs Python 3.11 or 3.12; found: python3 ({version}). Install one, or name it: make demo PYTHON=/path/to/python3.12\n"
    )
    assert not (tmp_path / "venv").exists()


def test_no_python_at_all_is_said(repository, tmp_path):
    assert "found: none" in make_venv(repository, tmp_path).stderr


def test_a_named_python_is_tried_alone(repository, tmp_path):
    done = make_venv(repository, tmp_path, "mine", python3="3.12.4", mine="3.13.0")
    assert done.returncode == 1 and "found: mine (3.13.0)" in done.stderr


def test_an_environment_of_another_python_is_named_before_anything_is_installed_into_it(repository, tmp_path):
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    fake(tmp_path / "venv" / "bin", "python", "3.9.2")
    done = make_venv(repository, tmp_path, python3="3.12.4")
    assert done.returncode == 1
    assert f"{tmp_path / 'venv'} was made with Python 3.9.2; Instant-NK needs 3.11 or 3.12. Remove the folder" in done.stderr


def test_an_environment_that_serves_is_left_as_it_is(repository, tmp_path):
    assert make_venv(repository, tmp_path, python3="3.12.4").returncode == 0
    assert make_venv(repository, tmp_path, python3="3.9.2").returncode == 0
