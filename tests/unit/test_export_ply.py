"""The PLY sequence, read back by trimesh; the doors all exporters share."""

import dataclasses

import numpy as np
import pytest
import trimesh

from instant_nk.errors import ConfigError, ContractError
from instant_nk.io import mesh as mesh_io
from instant_nk.io.artifact import make_header
from instant_nk.io.export.common import check_frames, frame_times, linear_from_srgb, unit_normals
from instant_nk.io.export.ply import export_ply_sequence


def test_ply_holds_exact_world_positions_colours_normals_and_quality(animation, tmp_path):
    export_ply_sequence(animation, tmp_path / "frames")
    assert [p.name for p in sorted((tmp_path / "frames").iterdir())] == [f"{f:06d}.ply" for f in animation.frames]
    for i, frame in enumerate(animation.frames):
        read = trimesh.load(tmp_path / "frames" / f"{frame:06d}.ply", process=False)
        raw = read.metadata["_ply_raw"]["vertex"]["data"]
        assert (read.vertices.astype(np.float32) == animation.vertices[i]).all()
        assert (read.faces == animation.faces).all()
        assert np.abs(read.visual.vertex_colors[:, :3] - animation.colours * 255).max() <= 0.5 + 1e-4
        assert np.abs(np.stack([raw["nx"], raw["ny"], raw["nz"]], 1) - unit_normals(animation.vertices[i], animation.faces)).max() == 0
        for name in ("sdf_residual", "cycle_error", "n_views"):
            assert (raw[name].ravel() == getattr(animation, name)[i]).all(), name


def test_an_animation_read_back_from_npz_exports_the_same_files(animation, tmp_path):
    mesh_io.save_animation(tmp_path / "animation.npz", animation, make_header("animation", mesh_io.ANIMATION_FORMAT, "mesh"))
    again = mesh_io.load_animation(tmp_path / "animation.npz")
    for name, source in (("a", animation), ("b", again)):
        export_ply_sequence(source, tmp_path / name)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_normals_point_outward_and_have_unit_length(animation):
    normals = unit_normals(animation.vertices[0], animation.faces)
    assert np.abs(np.linalg.norm(normals, axis=1) - 1).max() < 1e-6
    assert ((normals * animation.vertices[0]).sum(1) > 0).all()


def test_a_vertex_without_area_still_has_a_unit_normal():
    normals = unit_normals(np.zeros((4, 3), np.float32), np.array([[0, 1, 2]], np.int32))
    assert (normals == [0, 0, 1]).all()


def test_a_second_export_replaces_frames_that_no_longer_exist(make_animation, tmp_path):
    export_ply_sequence(make_animation(5), tmp_path / "frames")
    export_ply_sequence(make_animation(2), tmp_path / "frames")
    assert sorted(p.name for p in (tmp_path / "frames").iterdir()) == ["000003.ply", "000004.ply"]
    assert [p.name for p in tmp_path.iterdir()] == ["frames"]


def test_a_folder_with_foreign_files_is_left_alone(animation, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ContractError, match=r"holds files that no export wrote \(thesis\.tex\)"):
        export_ply_sequence(animation, tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_a_full_disk_leaves_the_earlier_export_untouched(make_animation, tmp_path, request):
    export_ply_sequence(make_animation(3), tmp_path / "frames")
    before = {p.name: p.read_bytes() for p in (tmp_path / "frames").iterdir()}
    request.getfixturevalue("full_disk")
    with pytest.raises(ContractError, match=r"frames: could not be written: No space left on device\. Nothing was left half-written"):
        export_ply_sequence(make_animation(4), tmp_path / "frames")
    assert {p.name: p.read_bytes() for p in (tmp_path / "frames").iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["frames"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"faces": np.zeros((0, 3), np.int32)}, "zero faces"),
        ({"vertices": np.zeros((0, 162, 3), np.float32)}, "zero frames"),
        ({"frames": np.array([3, 4], np.int32)}, "2 frame numbers for 4 frames"),
        ({"frames": np.array([3, 5, 4, 6], np.int32)}, "must ascend"),
        ({"faces": np.array([[0, 1, 162]], np.int32)}, r"must index V=162 vertices; got 0\.\.162"),
        ({"vertices": np.full((4, 162, 3), np.nan, np.float32)}, r"not finite in frames \[3, 4, 5, 6\]"),
    ],
)
def test_what_cannot_be_exported_is_refused_before_anything_is_written(animation, tmp_path, change, message):
    with pytest.raises(ContractError, match=message):
        export_ply_sequence(dataclasses.replace(animation, **change), tmp_path / "frames")
    assert not list(tmp_path.iterdir())


def test_missing_frames_are_all_named(animation):
    with pytest.raises(ContractError, match=r"frames \[7, 8\] of the sequence are missing"):
        check_frames(animation, [3, 4, 5, 6, 7, 8], "animation.npz")


def test_frame_times_keep_the_length_of_gaps():
    assert np.allclose(frame_times(np.array([10, 12, 14, 20]), 10.0), [0, 0.1, 0.2, 0.5])
    assert frame_times(np.array([7]), 10.0).tolist() == [0.0]
    with pytest.raises(ConfigError, match="above zero, got 0"):
        frame_times(np.array([1, 2]), 0)


def test_srgb_becomes_linear_light():
    assert np.allclose(linear_from_srgb(np.array([0.0, 0.04045, 0.5, 1.0])), [0, 0.0031308, 0.2140411, 1], atol=1e-6)
