"""The same seed on the same machine: every stage that trains gives the same numbers, and another seed gives others."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from instant_nk import config, layout
from instant_nk.io import artifact
from instant_nk.layout import Job
from instant_nk.stages import canonical, dataset, field, graph, mesh, observation, registration
from tests.integration.workflow_place import WINDOWS

TOLERANCE = 1e-6  # relative, of every array: one CPU thread adds in one order, so the arrays are in fact equal


def trained(capture: Path, results: Path, seed: int = 0, last: str = "mesh") -> layout.Paths:
    """Stages up to `last` with the tiny preset and few steps, in this process."""
    values = {
        "capture": str(capture),
        "sequence": "s",
        "preset": "tiny",
        "canonical": {"steps": 20},
        "observation": {"steps": 6},
        "field": {"steps": 6},
        "registration": {"iterations": 2, "image_weight": 0.0, "max_points": 200},
    }
    parsed = config.parse(values | {"mesh": {"formats": ["npz"]}, "runtime": {"results": str(results), "seed": seed, "threads": 1, "device": "cpu"}})
    job = Job(parsed, layout.paths_of(parsed), "cpu")
    for stage, parts in (
        (dataset, [None]), (canonical, [None]), (graph, [None]), (observation, ["000000-000001", "000002-000003"]),
        (registration, [None]), (field, WINDOWS), (mesh, [*WINDOWS, None]),
    ):  # fmt: skip
        for part in parts:
            stage.run(dataclasses.replace(job, part=part))
        if stage.__name__.endswith(last):
            break
    return job.paths


def artifacts(paths: layout.Paths) -> dict[str, Path]:
    """Everything that training leaves, by name."""
    frames = {f"observation {f}": paths.observation(f) for f in range(4)}
    windows = {f"field {w}": paths.field(w) for w in WINDOWS}
    return {"canonical field": paths.canonical_field, "canonical mesh": paths.canonical_mesh, "animation": paths.animation} | frames | windows


def arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files if name != artifact.HEADER}


def test_the_same_seed_gives_the_same_numbers_in_every_stage_and_another_seed_does_not(untouched, tmp_path):
    first, second = (trained(untouched.capture, tmp_path / name) for name in ("first", "second"))
    for name, path in artifacts(first).items():
        ours, theirs = arrays(path), arrays(artifacts(second)[name])
        assert ours.keys() == theirs.keys(), name
        for key in ours:
            np.testing.assert_allclose(ours[key], theirs[key], rtol=TOLERANCE, atol=0, err_msg=f"{name}: {key}")
    for part in ("2_canonical/metrics.json", *(f"6_field/{window}.json" for window in WINDOWS)):
        ours, theirs = (artifact.load_json(paths.root / part)["history"] for paths in (first, second))
        assert ours == theirs
    other = trained(untouched.capture, tmp_path / "other", seed=1, last="canonical")
    ours, theirs = (arrays(paths.canonical_field)["sdf.encoding.table"] for paths in (first, other))
    assert not np.allclose(ours, theirs, rtol=TOLERANCE, atol=0)
