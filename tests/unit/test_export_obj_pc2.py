"""OBJ sequence and PC2 point cache, read back by trimesh and by the formats' definitions."""

import dataclasses
import struct

import imageio.v3 as iio
import numpy as np
import pytest
import trimesh

from instant_nk.errors import ContractError
from instant_nk.io.export.obj import export_obj_sequence
from instant_nk.io.export.pc2 import export_pc2


def read_pc2(path):
    data = path.read_bytes()
    signature, version, points, start, step, samples = struct.unpack("<12siiffi", data[:32])
    assert signature == b"POINTCACHE2\0" and version == 1
    return start, step, np.frombuffer(data, "<f4", offset=32).reshape(samples, points, 3)


def test_obj_holds_exact_world_positions_and_colours(make_animation, tmp_path):
    animation = make_animation(2, offset=(1000.1, -3, 0.1))
    export_obj_sequence(animation, tmp_path / "obj")
    for i, frame in enumerate(animation.frames):
        read = trimesh.load(tmp_path / "obj" / f"{frame:06d}.obj", process=False)
        assert (read.vertices.astype(np.float32) == animation.vertices[i]).all()
        assert (read.faces == animation.faces).all()
        assert np.abs(read.visual.vertex_colors[:, :3] - animation.colours * 255).max() <= 1.001


def test_textured_obj_shares_vertices_and_names_its_image(animation, tmp_path, make_texture):
    texture = make_texture(animation)
    export_obj_sequence(animation, tmp_path / "obj", texture)
    assert np.array_equal(iio.imread(tmp_path / "obj" / "texture.png"), texture.image)
    text = (tmp_path / "obj" / "000003.obj").read_text()
    assert text.count("\nv ") == animation.vertices.shape[1] and text.count("\nvt ") == len(texture.uv)
    read = trimesh.load(tmp_path / "obj" / "000003.obj", process=False)
    assert (read.vertices[read.faces].astype(np.float32) == animation.vertices[0][animation.faces]).all()
    assert np.abs(read.visual.uv[read.faces] - (texture.uv * [1, -1] + [0, 1])[texture.faces]).max() < 1e-6
    assert "map_Kd texture.png" in (tmp_path / "obj" / "surface.mtl").read_text()


def test_a_full_disk_leaves_no_obj_folder(animation, tmp_path, request):
    request.getfixturevalue("full_disk")
    with pytest.raises(ContractError, match="No space left on device"):
        export_obj_sequence(animation, tmp_path / "obj")
    assert not list(tmp_path.iterdir())


def test_pc2_holds_every_frame_and_the_mesh_it_deforms(animation, tmp_path):
    export_pc2(animation, tmp_path / "animation.pc2", fps=25)
    start, step, points = read_pc2(tmp_path / "animation.pc2")
    assert (start, step) == (3.0, 1.0)
    assert np.array_equal(points, animation.vertices)
    rest = trimesh.load(tmp_path / "animation.obj", process=False)
    assert (rest.vertices.astype(np.float32) == animation.vertices[0]).all()
    assert "25 frames per second" in (tmp_path / "animation.obj").read_text().splitlines()[0]


def test_textured_pc2_brings_material_and_image(animation, tmp_path, make_texture):
    export_pc2(animation, tmp_path / "clip.pc2", fps=25, texture=make_texture(animation))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["clip.mtl", "clip.obj", "clip.pc2", "clip.png"]
    assert "mtllib clip.mtl" in (tmp_path / "clip.obj").read_text() and "clip.png" in (tmp_path / "clip.mtl").read_text()


def test_pc2_refuses_uneven_frames(animation, tmp_path):
    animation.frames[-1] += 5
    with pytest.raises(ContractError, match=r"evenly spaced frames only; got steps \[1, 6\]"):
        export_pc2(animation, tmp_path / "animation.pc2", fps=25)
    assert not list(tmp_path.iterdir())


def test_every_frame_s_obj_names_its_own_texture(animation, tmp_path, make_texture):
    images = [tmp_path / f"t{i}.png" for i in range(len(animation.frames))]
    for i, image in enumerate(images):
        iio.imwrite(image, np.full((8, 8, 3), 40 * i, np.uint8))
    export_obj_sequence(animation, tmp_path / "obj", make_texture(animation), images)
    assert not (tmp_path / "obj" / "texture.png").exists()
    for i, frame in enumerate(animation.frames):
        read = trimesh.load(tmp_path / "obj" / f"{frame:06d}.obj", process=False)
        assert np.asarray(read.visual.material.image)[0, 0, 0] == 40 * i


@pytest.mark.parametrize("textured", [False, True])
def test_a_full_disk_leaves_the_earlier_cache_and_its_mesh_as_they_were(animation, tmp_path, make_texture, request, textured):
    texture = make_texture(animation) if textured else None
    export_pc2(animation, tmp_path / "clip.pc2", fps=25, texture=texture)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    request.getfixturevalue("full_disk")
    with pytest.raises(ContractError, match=r"clip\..*: could not be written: No space left on device"):
        export_pc2(animation, tmp_path / "clip.pc2", fps=30, texture=texture)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("export", [lambda a, p: export_obj_sequence(a, p / "obj"), lambda a, p: export_pc2(a, p / "a.pc2", 25)])
def test_zero_faces_are_refused_before_anything_is_written(animation, tmp_path, export):
    with pytest.raises(ContractError, match="cannot export: the mesh has zero faces"):
        export(dataclasses.replace(animation, faces=animation.faces[:0]), tmp_path)
    assert not list(tmp_path.iterdir())
