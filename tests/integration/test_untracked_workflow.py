"""The job graph of modes that do not track: a list of surfaces in place of the animation, and everything else as ever."""

import re
import subprocess
import sys

import pytest


def jobs(repository, folder, mode):
    """Number of jobs per rule of a dry run on the built-in capture."""
    command = [sys.executable, "-m", "snakemake", "-s", repository / "Snakefile", "-n", "--quiet", "rules", "--cores", "1"]
    command += ["--config", "preset=tiny", "sequence=body", f"field={{dyna_mode: {mode}}}", "runtime={results: results, device: cpu}"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return {name: int(count) for name, count in re.findall(r"^(\w+) +(\d+)$", done.stdout + done.stderr, re.M)}


@pytest.mark.parametrize("mode", ["deform", "time"])
def test_the_mesh_stage_ends_in_an_animation_or_in_a_list_of_surfaces(repository, tmp_path, mode):
    found = jobs(repository, tmp_path, mode)
    last = {"deform": "mesh_join", "time": "mesh_surfaces"}[mode]
    assert found[last] == 1 and not {"mesh_join", "mesh_surfaces"} - {last} & set(found)
    assert found["field_window"] == found["mesh_window"] == 2 and found["report_sequence"] == 1
