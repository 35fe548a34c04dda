"""Stage 6 and its files: windows cover the frames, fresh fields do nothing, saved ones come back, strangers are refused."""

import dataclasses
import shutil

import numpy as np
import pytest
import torch

from instant_nk import layout
from instant_nk.config import FieldConfig
from instant_nk.errors import ContractError
from instant_nk.fitting import window_files
from instant_nk.fitting.window_fit import WindowFit
from instant_nk.io import artifact, checkpoint, graph
from instant_nk.io import motion as motions
from instant_nk.stages import field as field_stage
from tests.unit import neural_fixtures
from tests.unit.neural_fixtures import SPEC_IN_TIME, WINDOWS, numbers


@pytest.fixture(scope="module")
def body(tmp_path_factory):
    return neural_fixtures.finished(tmp_path_factory.getbasetemp())


@pytest.fixture
def copy(body, tmp_path):
    """The body's results in a folder of their own, to be spoiled."""
    shutil.copytree(body.job.paths.root, tmp_path / "results" / body.job.paths.root.name)
    return body.variant(WINDOWS[0], results=tmp_path / "results")


@pytest.mark.parametrize("frames", [1, 2, 3, 5, 6, 7, 9, 24, 61, 200])
@pytest.mark.parametrize(("length", "overlap"), [(3, 2), (6, 2), (8, 3), (10, 5)])
def test_windows_cover_every_frame_and_share_at_least_the_overlap(frames, length, overlap):
    numbers = [5 + 2 * i for i in range(frames)]  # absolute and not consecutive
    windows = window_files.windows_of(np.array(numbers), FieldConfig(window_frames=length, overlap=overlap))
    members = [layout.select(numbers, window) for window in windows]
    assert sorted(set().union(*members)) == numbers
    assert all(len(m) <= length for m in members) and len(members[0]) == min(length, frames)
    for a, b in zip(members, members[1:]):
        assert len(set(a) & set(b)) >= overlap and a[0] < b[0] and a[-1] < b[-1]


def test_the_time_axis_has_resolutions_of_its_own_up_to_one_cell_a_step():
    spec = window_files.residual_spec(FieldConfig(levels=4), 7)
    assert spec.dims == 4 and spec.levels == 4 and [r[3] for r in spec.resolutions] == [2, 3, 4, 6]
    assert [r[3] for r in window_files.residual_spec(FieldConfig(levels=2), 1).resolutions] == [1, 1]


def fresh(body, window=WINDOWS[0]):
    return window_files.new_field(body.job.paths, body.dataset, window, SPEC_IN_TIME, 0.05, "cpu")


def test_a_fresh_window_moves_as_registered_and_leaves_no_residual(body):
    field, canonical = fresh(body, WINDOWS[1])
    motion = motions.load(body.job.paths.motion)
    rotations, translations = field.motion()
    assert torch.equal(translations, torch.from_numpy(motion.translations[1:]))
    torch.testing.assert_close(rotations, torch.from_numpy(motion.rotations[1:]))
    assert field.frames == 3 and field.canonical_index == 1  # the canonical frame is 2, and the window begins at 1
    assert not field.residual_at(torch.rand(50, 3) * 2 - 1, torch.randint(3, (50,))).any()
    assert field.inv_std == canonical.inv_std


def test_a_trained_window_comes_back_as_it_was_saved(body):
    path = body.job.paths.field(WINDOWS[0])
    field, _ = window_files.load(body.job.paths, body.dataset, WINDOWS[0], "cpu")
    state, header, _ = checkpoint.load(path)
    assert header["stage"] == "field" and header["inputs"] == window_files.inputs_of(body.job.paths)
    for name, module in (("residual", field.residual), ("colour", field.colour), ("motion", field.motion)):
        for key, value in module.state_dict().items():
            assert torch.equal(value, state[f"{name}.{key}"])
    assert not any(p.requires_grad for p in field.parameters())
    assert field.motion.shift.abs().max() > 0 and field.residual.mlp.last.weight.abs().max() > 0


def test_the_canonical_frame_stayed_at_rest_during_training(body):
    for window in WINDOWS:
        field, _ = window_files.load(body.job.paths, body.dataset, window, "cpu")
        frames = window_files.window_frames(body.dataset, window)
        row = frames.index(body.dataset.canonical_frame)
        rotations, translations = field.motion()
        assert torch.equal(translations[row], field.motion.translations[row]) and torch.equal(rotations[row], field.motion.rotations[row])


def test_the_numbers_of_a_window_are_complete(body):
    said = numbers(body.job.paths.field(WINDOWS[1]).with_suffix(".json"))
    assert said["frames"] == [1, 2, 3] and said["wall_s"] > 0 and said["peak_host_mib"] > 0
    assert said["psnr_db"] == said["history"]["psnr_db"][-1] and said["history"]["step"] == [8]
    assert 0 <= said["unconverged_share"] < 0.05
    assert not list(body.job.paths.field_dir.glob("*.partial*"))


def test_a_killed_window_resumes_to_the_same_field(body, copy, monkeypatch):
    copy.paths.field(WINDOWS[0]).unlink()
    with neural_fixtures.interrupted_at(monkeypatch, WindowFit, 6):
        field_stage.run(copy)
    assert not copy.paths.field(WINDOWS[0]).exists()
    field_stage.run(copy)
    undisturbed, resumed = (checkpoint.load(paths.field(WINDOWS[0]))[0] for paths in (body.job.paths, copy.paths))
    assert all(torch.equal(undisturbed[name], resumed[name]) for name in undisturbed)


# What does not belong together


def rewrite(path, kind, **changes):
    header, arrays = artifact.load_npz(path, kind, artifact.read_header(path)["format"])
    artifact.save_npz(path, header, **arrays | changes)


def test_a_window_trained_on_another_canonical_field_is_refused(body, copy):
    state, header, description = checkpoint.load(copy.paths.canonical_field)
    checkpoint.save(copy.paths.canonical_field, {k: v + 1 if k == "colour.mlp.layers.4.bias" else v for k, v in state.items()}, header, description)
    with pytest.raises(ContractError, match=rf"{WINDOWS[0]}\.npz: was trained on another canonical than the results hold now\. Re-run stage 'field'"):
        window_files.load(copy.paths, body.dataset, WINDOWS[0], "cpu")


def test_a_graph_of_another_mesh_is_refused(body, copy):
    made = graph.load(copy.paths.graph)
    rewrite(copy.paths.graph, "graph", vertex_anchors=made.vertex_anchors[1:], vertex_weights=made.vertex_weights[1:])
    with pytest.raises(ContractError, match=r"graph\.npz: holds \d+ vertices, the canonical mesh has \d+\. Re-run stage 'graph'"):
        field_stage.run(copy)


def test_a_motion_of_another_graph_or_of_fewer_frames_is_refused(body, copy):
    motion = motions.load(copy.paths.motion)
    rewrite(copy.paths.motion, "motion", rotations=motion.rotations[:, 1:], translations=motion.translations[:, 1:])
    with pytest.raises(ContractError, match=r"motion\.npz: moves \d+ nodes, the graph has \d+\. Re-run stage 'registration'"):
        field_stage.run(copy)
    kept = {f.name: getattr(motion, f.name)[1:] for f in dataclasses.fields(motion)}
    rewrite(copy.paths.motion, "motion", **kept)
    with pytest.raises(ContractError, match=r"the motion covers frames 1\.\.3, not 0\. Re-run stage 'registration'"):
        field_stage.run(copy)


def test_a_truncated_window_is_refused(body, copy):
    path = copy.paths.field(WINDOWS[0])
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ContractError, match=rf"{WINDOWS[0]}\.npz: not a readable 'checkpoint'"):
        window_files.load(copy.paths, body.dataset, WINDOWS[0], "cpu")
