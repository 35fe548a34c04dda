"""Artifacts: whole or absent, self-describing, never unpickled, checked at the door."""

import errno
import json
import os
import pickle
import resource
import zipfile

import numpy as np
import pytest
import torch

from instant_nk.errors import ContractError
from instant_nk.io import artifact, checkpoint, graph, mesh, motion, observation

HEADER = artifact.make_header("thing", 1, "graph", {"a": 1}, {"mesh": "abc"})


def test_arrays_and_header_come_back_as_written(tmp_path):
    path = tmp_path / "thing.npz"
    artifact.save_npz(path, HEADER, x=np.arange(3, dtype=np.float32))
    header, arrays = artifact.load_npz(path, "thing", 1)
    assert header == HEADER
    assert header["stage"] == "graph" and header["inputs"] == {"mesh": "abc"}
    np.testing.assert_array_equal(arrays["x"], np.arange(3, dtype=np.float32))


def test_a_missing_file_says_to_run_its_stage(tmp_path):
    with pytest.raises(ContractError, match=r"thing\.npz: artifact 'thing' is missing\. Run the stage"):
        artifact.load_npz(tmp_path / "thing.npz", "thing", 1)


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.95])
def test_a_truncated_file_is_refused(tmp_path, keep):
    path = tmp_path / "thing.npz"
    artifact.save_npz(path, HEADER, x=np.random.rand(1000))
    content = path.read_bytes()
    path.write_bytes(content[: keep if isinstance(keep, int) else int(len(content) * keep)])
    with pytest.raises(ContractError, match=r"thing\.npz: not a readable 'thing' artifact.*Delete the file and re-run its stage"):
        artifact.load_npz(path, "thing", 1)


def test_another_kind_or_format_is_refused(tmp_path):
    path = tmp_path / "thing.npz"
    artifact.save_npz(path, HEADER)
    with pytest.raises(ContractError, match="wanted artifact 'other', got 'thing'"):
        artifact.load_npz(path, "other", 1)
    with pytest.raises(ContractError, match=r"wanted format 2 of 'thing', got 1 .*Re-run stage 'graph'"):
        artifact.load_npz(path, "thing", 2)


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


def test_loading_never_unpickles(tmp_path, monkeypatch):
    """An npz with a pickled array inside is refused before anything in it runs."""
    monkeypatch.chdir(tmp_path)
    np.savez(tmp_path / "bomb.npz", x=np.array([Bomb()], dtype=object), allow_pickle=True)
    with pytest.raises(ContractError, match=r"bomb\.npz: not a readable"):
        artifact.load_npz(tmp_path / "bomb.npz", "thing", 1)
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w") as archive:
        archive.writestr("x.npy", pickle.dumps(Bomb()))
    for load in (graph.load, mesh.load, motion.load, observation.load, checkpoint.load):
        with pytest.raises(ContractError):
            load(tmp_path / "bomb.npz")
    assert not (tmp_path / "exploded").exists()


def test_an_object_array_is_not_written(tmp_path):
    with pytest.raises(ContractError, match="'x' has object type"):
        artifact.save_npz(tmp_path / "a.npz", HEADER, x=np.array([None]))
    assert list(tmp_path.iterdir()) == []


def test_a_failing_writer_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.json"
    artifact.save_json(path, {"old": 1})
    with pytest.raises(ZeroDivisionError), artifact.atomic(path) as aside:
        aside.write_text("half")
        raise ZeroDivisionError
    assert json.loads(path.read_text()) == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_full_disk_says_so_and_leaves_nothing_half_written(tmp_path, monkeypatch):
    path = tmp_path / "a.npz"

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ContractError, match=r"a\.npz: could not be written: No space left on device.*[Ff]ree space.*run the same command again"):
        artifact.save_npz(path, HEADER, x=np.zeros(10))
    assert list(tmp_path.iterdir()) == []


def test_a_file_size_limit_in_the_middle_of_writing_leaves_nothing(tmp_path):
    """The kernel itself refuses, as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20000, hard))
    try:
        with pytest.raises(ContractError, match="could not be written: File too large"):
            artifact.save_npz(tmp_path / "a.npz", HEADER, compress=False, x=np.random.rand(100000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_numbers_that_are_not_json_are_refused(tmp_path):
    with pytest.raises(ValueError):
        artifact.save_json(tmp_path / "a.json", {"psnr_db": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_broken_json_says_what_to_do(tmp_path):
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ContractError, match=r"a\.json: metrics is not valid JSON.*Delete it and re-run"):
        artifact.load_json(tmp_path / "a.json", "metrics")
    with pytest.raises(ContractError, match="is missing. Run the stage"):
        artifact.load_json(tmp_path / "b.json")


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.zeros((3, 2), np.float32), r"must be float32 \[any, 3\], got float32 \[3, 2\]"),
        (np.zeros((3, 3), np.float64), r"got float64 \[3, 3\]"),
        (np.full((1, 3), np.nan, np.float32), "not finite"),
    ],
)
def test_an_array_of_another_shape_type_or_with_nan_is_refused(array, said):
    with pytest.raises(ContractError, match=said):
        artifact.check_array("a.npz", "points", array, (None, 3), np.float32)


def test_a_checkpoint_returns_tensors_and_description(tmp_path):
    path = tmp_path / "field.npz"
    state = {"table": torch.randn(4, 2), "steps": torch.tensor(3)}
    checkpoint.save(path, state, HEADER, {"levels": 4})
    loaded, header, description = checkpoint.load(path)
    assert description == {"levels": 4}
    assert header["config_hash"] == HEADER["config_hash"]
    assert all(torch.equal(state[name], loaded[name]) and state[name].dtype == loaded[name].dtype for name in state)


def test_a_checkpoint_with_nan_is_refused(tmp_path):
    checkpoint.save(tmp_path / "field.npz", {"table": torch.tensor([float("nan")])}, HEADER, {})
    with pytest.raises(ContractError, match=r"not finite\. Delete it and re-run stage 'graph'"):
        checkpoint.load(tmp_path / "field.npz")


def test_hashes_change_with_content_only(tmp_path):
    assert artifact.config_hash({"a": 1, "b": 2}) == artifact.config_hash({"b": 2, "a": 1}) != artifact.config_hash({"a": 1, "b": 3})
    (tmp_path / "a").write_bytes(b"x" * 3000000)
    (tmp_path / "b").write_bytes(b"x" * 3000000)
    assert artifact.file_hash(tmp_path / "a") == artifact.file_hash(tmp_path / "b")
