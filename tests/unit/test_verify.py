"""`instant-nk verify`: exports that are cut off are found, whatever their format."""

import numpy as np
import pytest

from instant_nk.errors import ContractError
from instant_nk.io import artifact
from instant_nk.io import mesh as mesh_io
from instant_nk.io.export import glb, obj, pc2, ply, usd
from instant_nk.layout import Paths
from instant_nk.stages.verify import run_verify
from instant_nk.viewer import pictures


@pytest.fixture
def paths(animation, make_texture, tmp_path):
    """The mesh stage's folder with every export."""
    paths, texture = Paths(tmp_path / "demo"), make_texture(animation)
    mesh_io.save_animation(paths.animation, animation, artifact.make_header("animation", mesh_io.ANIMATION_FORMAT, "mesh"))
    ply.export_ply_sequence(animation, paths.mesh / "frames")
    obj.export_obj_sequence(animation, paths.mesh / "obj", texture)
    for name in ("animation.glb", "animation_skinned.glb"):
        glb.export_glb(animation, paths.mesh / name, 10, texture)
    usd.export_usd(animation, paths.mesh / "animation.usdc", 10, texture)
    pc2.export_pc2(animation, paths.mesh / "animation_cache.pc2", 10, texture)
    return paths


def test_whole_exports_of_every_format_are_sound(paths, animation):
    assert f"{len(list(paths.mesh.rglob('*.*'))) - 2} files, all whole" in run_verify(paths)  # all but the two .mtl


@pytest.mark.parametrize("lost", [1, 100])
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("animation.glb", "GLB"), ("animation_skinned.glb", "GLB"), ("animation.usdc", "USD"), ("animation.png", "PNG"), ("animation_cache.pc2", "PC2"),
        ("animation_cache.obj", "OBJ"), ("animation_cache.png", "PNG"), ("obj/000004.obj", "OBJ"), ("obj/texture.png", "PNG"), ("frames/000005.ply", "PLY"),
    ],
)  # fmt: skip
def test_a_cut_off_export_is_named(paths, name, kind, lost):
    path = paths.mesh / name
    path.write_bytes(path.read_bytes()[:-lost])
    with pytest.raises(ContractError) as caught:
        run_verify(paths)
    assert "1 findings" in str(caught.value)
    assert f"{path}: not a whole {kind}" in str(caught.value) and "Re-run stage 'mesh' (--forcerun mesh_join)" in str(caught.value)


def test_a_cut_off_render_is_named_whatever_its_camera_is_called(paths):
    for name in ("cam_000.png", "side/cam_001.jpg", "cam_002.tif"):
        path = paths.report / "renders" / "3" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pictures.png_bytes(np.full((8, 8, 4), 200, np.uint8)))
    run_verify(paths)
    path = paths.report / "renders" / "3" / "side" / "cam_001.jpg"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ContractError, match=rf"1 findings.\n  {path}: not a whole PNG .*Re-run stage 'report' \(--forcerun report_sequence\)"):
        run_verify(paths)


@pytest.mark.parametrize(("name", "kind"), [("animation.glb", "GLB"), ("animation.usdc", "USD"), ("animation_cache.pc2", "PC2"), ("obj/000003.obj", "OBJ")])
@pytest.mark.parametrize("content", [b"", b"something else\n", bytes(64)])
def test_a_file_of_another_kind_is_named(paths, name, kind, content):
    (paths.mesh / name).write_bytes(content)
    with pytest.raises(ContractError, match=f"{name}: not a whole {kind}"):
        run_verify(paths)


def test_an_obj_cut_between_two_lines_is_named_by_what_it_lacks(paths, animation):
    path = paths.mesh / "obj" / "000006.obj"
    path.write_bytes(b"".join(path.read_bytes().splitlines(True)[:-3]))
    v, t = animation.vertices.shape[1], len(animation.faces)
    with pytest.raises(ContractError, match=f"000006.obj: not a whole OBJ .{v} vertices and {t - 3} faces; the animation has {v} and {t}"):
        run_verify(paths)


def test_what_killed_jobs_left_is_remarked_and_not_read(paths):
    left = paths.mesh / ".obj.123"
    left.mkdir()
    (left / "000003.obj").write_bytes(b"v 0 0")
    assert f"{left}: left by a killed job" in run_verify(paths)
