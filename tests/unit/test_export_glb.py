"""Animated GLB, read back by pygltflib and trimesh and judged by the Khronos validator."""

import dataclasses
import io

import imageio.v3 as iio
import numpy as np
import pygltflib
import pytest
import trimesh

from instant_nk.errors import ContractError
from instant_nk.io.export import gltf
from instant_nk.io.export.common import linear_from_srgb
from instant_nk.io.export.glb import export_glb

NUMPY = {5121: np.uint8, 5123: np.uint16, 5125: np.uint32, 5126: np.float32}
WIDTH = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT4": 16}


def array(document: pygltflib.GLTF2, index: int) -> np.ndarray:
    accessor = document.accessors[index]
    view = document.bufferViews[accessor.bufferView]
    width = WIDTH[accessor.type]
    data = np.frombuffer(document.binary_blob(), NUMPY[accessor.componentType], accessor.count * width, view.byteOffset)
    return data.reshape(-1, width)


def play(path) -> tuple[np.ndarray, np.ndarray]:
    """Key times and the shape a viewer shows at each of them, in world coordinates."""
    document = pygltflib.GLTF2().load(str(path))
    primitive = document.meshes[0].primitives[0]
    base = array(document, primitive.attributes.POSITION).astype(np.float64)
    targets = np.stack([array(document, t["POSITION"]) for t in primitive.targets])
    sampler = document.animations[0].samplers[0]
    times = array(document, sampler.input)[:, 0]
    weights = array(document, sampler.output).reshape(len(times), len(targets))
    offset = np.array(document.nodes[0].translation or [0, 0, 0])
    return times, base + np.einsum("nk,kvc->nvc", weights, targets) + offset


def test_every_key_shows_the_exact_world_positions(animation, tmp_path):
    export_glb(animation, tmp_path / "a.glb", fps=12.5)
    times, shapes = play(tmp_path / "a.glb")
    assert np.allclose(times, np.arange(4) / 12.5)
    assert np.abs(shapes - animation.vertices).max() < 2e-7


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_a_subject_far_from_the_origin_keeps_its_precision(make_animation, tmp_path, scale):
    far = make_animation(offset=(0, 20 * scale, -20 * scale), scale=scale)
    export_glb(far, tmp_path / "a.glb", fps=10)
    _, shapes = play(tmp_path / "a.glb")
    assert np.abs(shapes - far.vertices).max() < 1e-6 * scale * 2
    stored = array(document := pygltflib.GLTF2().load(str(tmp_path / "a.glb")), document.meshes[0].primitives[0].attributes.POSITION)
    assert np.abs(stored).max() < 2 * scale  # the offset sits in the node


def test_an_independent_reader_sees_the_first_frame_in_world_coordinates(make_animation, tmp_path):
    far = make_animation(offset=(100, 0, 0))
    export_glb(far, tmp_path / "a.glb", fps=10)
    scene = trimesh.load(tmp_path / "a.glb", process=False)
    (read,) = scene.dump()
    assert np.abs(read.vertices - far.vertices[0]).max() < 1e-5
    assert (read.faces == far.faces).all()


def test_vertex_colours_are_linear_light(animation, tmp_path):
    export_glb(animation, tmp_path / "a.glb", fps=10)
    document = pygltflib.GLTF2().load(str(tmp_path / "a.glb"))
    index = document.meshes[0].primitives[0].attributes.COLOR_0
    assert document.accessors[index].normalized
    assert np.abs(array(document, index)[:, :3] / 65535 - linear_from_srgb(animation.colours)).max() < 1e-5


def test_morphed_normals_are_the_normals_of_each_frame(animation, tmp_path):
    from instant_nk.io.export.common import unit_normals

    export_glb(animation, tmp_path / "a.glb", fps=10)
    document = pygltflib.GLTF2().load(str(tmp_path / "a.glb"))
    primitive = document.meshes[0].primitives[0]
    last = array(document, primitive.attributes.NORMAL) + array(document, primitive.targets[-1]["NORMAL"])
    assert np.abs(last - unit_normals(animation.vertices[-1], animation.faces)).max() < 1e-6
    export_glb(animation, tmp_path / "b.glb", fps=10, morph_normals=False)
    assert (tmp_path / "b.glb").stat().st_size < (tmp_path / "a.glb").stat().st_size - 3 * animation.vertices.shape[1] * 12 + 2000


def test_a_texture_is_embedded_and_replaces_vertex_colours(animation, tmp_path, make_texture):
    texture = make_texture(animation)
    export_glb(animation, tmp_path / "a.glb", fps=10, texture=texture)
    document = pygltflib.GLTF2().load(str(tmp_path / "a.glb"))
    attributes = document.meshes[0].primitives[0].attributes
    assert attributes.COLOR_0 is None
    assert np.array_equal(array(document, attributes.TEXCOORD_0), texture.uv)
    view = document.bufferViews[document.images[0].bufferView]
    png = document.binary_blob()[view.byteOffset : view.byteOffset + view.byteLength]
    assert np.array_equal(iio.imread(io.BytesIO(png)), texture.image)
    _, shapes = play(tmp_path / "a.glb")
    assert np.abs(shapes - animation.vertices[:, texture.vertex_of]).max() < 2e-7


@pytest.mark.parametrize("kind", ["plain", "textured", "single frame", "far"])
def test_the_khronos_validator_finds_no_error_and_no_warning(make_animation, make_texture, tmp_path, khronos_issues, kind):
    animation = make_animation(1 if kind == "single frame" else 4, offset=(1e4, 0, 0) if kind == "far" else (0, 0, 0))
    export_glb(animation, tmp_path / "a.glb", fps=10, texture=make_texture(animation) if kind == "textured" else None)
    assert khronos_issues(tmp_path / "a.glb") == []


def test_more_than_four_gibibytes_are_refused_before_writing(animation, tmp_path, monkeypatch):
    monkeypatch.setattr(gltf, "MAX_BYTES", 10_000)
    with pytest.raises(ContractError, match=r"a \.glb holds at most 10000 bytes, this animation needs \d+\. Lower canonical\.target_faces"):
        export_glb(animation, tmp_path / "a.glb", fps=10)
    assert not list(tmp_path.iterdir())


def test_zero_faces_are_refused(animation, tmp_path):
    with pytest.raises(ContractError, match="zero faces"):
        export_glb(dataclasses.replace(animation, faces=np.zeros((0, 3), np.int32)), tmp_path / "a.glb", fps=10)


def test_a_full_disk_leaves_the_earlier_file_untouched(make_animation, tmp_path, request):
    export_glb(make_animation(2), tmp_path / "a.glb", fps=10)
    before = (tmp_path / "a.glb").read_bytes()
    request.getfixturevalue("full_disk")
    with pytest.raises(ContractError, match=r"a\.glb: could not be written: No space left on device"):
        export_glb(make_animation(4), tmp_path / "a.glb", fps=10)
    assert (tmp_path / "a.glb").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.glb"]


@pytest.mark.parametrize("up", [(0, 0, 1), (0, 0, -1), (0, -1, 0), (1, 0, 0), (-1, 0, 0)])
def test_a_capture_with_another_up_stands_and_keeps_its_numbers(animation, tmp_path, up, khronos_issues):
    export_glb(animation, tmp_path / "a.glb", fps=10, up=up)
    assert np.abs(play(tmp_path / "a.glb")[1] - animation.vertices).max() < 2e-7  # below the node that turns
    rotation = trimesh.load(tmp_path / "a.glb", force="scene").graph.get("animated_mesh")[0][:3, :3]
    assert np.allclose(rotation @ up, [0, 1, 0], atol=1e-7) and np.linalg.det(rotation) == pytest.approx(1)
    assert khronos_issues(tmp_path / "a.glb") == []


def test_a_z_up_capture_comes_back_to_its_world_in_a_z_up_tool(animation, tmp_path):
    """Blender turns (x, y, z) of a glTF scene to (x, -z, y)."""
    export_glb(animation, tmp_path / "a.glb", fps=10, up=(0, 0, 1))
    scene = trimesh.load(tmp_path / "a.glb", force="scene")
    x, y, z = (scene.graph.get("animated_mesh")[0][:3, :3] @ animation.vertices[0].T).astype(np.float32)
    assert np.allclose(np.stack([x, -z, y], 1), animation.vertices[0], atol=1e-6)
