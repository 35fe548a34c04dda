"""Skinned GLB, read back by pygltflib and skinned again from nothing but the file."""

import dataclasses

import numpy as np
import pygltflib
import pytest
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from instant_nk.errors import ContractError
from instant_nk.io.export.glb import export_glb
from instant_nk.io.export.skinned import _on_simplex, export_skinned_glb
from instant_nk.io.graph import Graph

NUMPY = {5123: np.uint16, 5125: np.uint32, 5126: np.float32}
WIDTH = {"SCALAR": 1, "VEC3": 3, "VEC4": 4, "MAT4": 16}


def graph_of(rest: np.ndarray, nodes: int = 40, anchors: int = 6) -> Graph:
    """Farthest-point nodes with smooth weights."""
    chosen = [0]
    distance = np.linalg.norm(rest - rest[0], axis=1)
    while len(chosen) < nodes:
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, np.linalg.norm(rest - rest[chosen[-1]], axis=1))
    d, index = cKDTree(rest[chosen]).query(rest, k=anchors)
    weights = (1 - (d / (1.01 * d[:, -1:])) ** 2) ** 3
    weights /= weights.sum(1, keepdims=True)
    return Graph(
        rest[chosen], np.ones(nodes, np.float32), np.zeros((0, 2), np.int32), np.zeros(0, np.float32), index.astype(np.int32), weights.astype(np.float32)
    )


def play(path) -> np.ndarray:
    """Vertices [N, V, 3] that a viewer shows at every key."""
    document = pygltflib.GLTF2().load(str(path))

    def array(index: int) -> np.ndarray:
        accessor = document.accessors[index]
        view, width = document.bufferViews[accessor.bufferView], WIDTH[accessor.type]
        return (
            np.frombuffer(document.binary_blob(), NUMPY[accessor.componentType], accessor.count * width, view.byteOffset).reshape(-1, width).astype(np.float64)
        )

    attributes = document.meshes[0].primitives[0].attributes
    position, joints, weights = array(attributes.POSITION), array(attributes.JOINTS_0).astype(int), array(attributes.WEIGHTS_0)
    bind = array(document.skins[0].inverseBindMatrices).reshape(-1, 4, 4).transpose(0, 2, 1)
    animation = document.animations[0]
    count = document.accessors[animation.samplers[0].input].count
    world = np.tile(np.eye(4), (count, len(bind), 1, 1))
    for channel in animation.channels:
        k = document.skins[0].joints.index(channel.target.node)
        values = array(animation.samplers[channel.sampler].output)
        if channel.target.path == "rotation":
            world[:, k, :3, :3] = Rotation.from_quat(values).as_matrix()
        else:
            world[:, k, :3, 3] = values
    world[:, :, :3, 3] += np.array(document.nodes[document.skins[0].skeleton].translation or [0, 0, 0])
    matrices = world @ bind
    homogeneous = np.concatenate([position, np.ones((len(position), 1))], 1)
    return np.einsum("vk,nvkij,vj->nvi", weights, matrices[:, joints], homogeneous)[..., :3]


def diagonal(animation) -> float:
    return float(np.linalg.norm(np.ptp(animation.vertices, axis=(0, 1))))


@pytest.mark.parametrize("offset", [(0, 0, 0), (500.0, -20, 3)])
def test_the_file_repeats_the_animation_within_the_error_it_states(make_animation, tmp_path, offset):
    animation = make_animation(6, subdivisions=3, offset=offset)
    graph = graph_of(animation.vertices[0])
    numbers = export_skinned_glb(animation, tmp_path / "s.glb", 10, graph, animation.vertices[0], np.eye(4))
    error = 100 * np.linalg.norm(play(tmp_path / "s.glb") - animation.vertices, axis=2) / diagonal(animation)
    assert numbers["skinned_written"] and numbers["skinned_error_p99_pct"] < 0.5
    assert np.quantile(error, 0.99) == pytest.approx(numbers["skinned_error_p99_pct"], rel=0.05, abs=1e-3)
    assert error.max() == pytest.approx(numbers["skinned_error_max_pct"], rel=0.05, abs=1e-3)


def test_nodes_in_scene_units_are_brought_to_the_world(make_animation, tmp_path):
    animation = make_animation(4, subdivisions=2, scale=100.0)
    world_from_scene = np.diag([50.0, 50, 50, 1])
    graph = graph_of(animation.vertices[0] / 50)
    numbers = export_skinned_glb(animation, tmp_path / "s.glb", 10, graph, animation.vertices[0], world_from_scene)
    assert numbers["skinned_written"]
    document = pygltflib.GLTF2().load(str(tmp_path / "s.glb"))
    assert np.allclose(document.nodes[2].translation, graph.node_positions[0] * 50, atol=1e-4)


def test_a_rigid_motion_is_repeated_exactly(make_animation, tmp_path):
    animation = make_animation(3)
    rest = animation.vertices[0].copy()
    for i in range(3):
        animation.vertices[i] = rest @ Rotation.from_euler("xyz", [0.7 * i, 0.2 * i, -0.4 * i]).as_matrix().T + [i, 0, 2 * i]
    numbers = export_skinned_glb(animation, tmp_path / "s.glb", 10, graph_of(rest), rest, np.eye(4))
    assert numbers["skinned_error_max_pct"] < 1e-3


def test_an_animation_that_skinning_cannot_repeat_is_not_written_and_an_older_file_is_removed(make_animation, tmp_path):
    animation = make_animation(4)
    rng = np.random.default_rng(0)
    animation.vertices[:] += rng.normal(0, 0.05, animation.vertices.shape)
    (tmp_path / "s.glb").write_bytes(b"old")
    numbers = export_skinned_glb(animation, tmp_path / "s.glb", 10, graph_of(animation.vertices[0]), animation.vertices[0], np.eye(4))
    assert not numbers["skinned_written"] and numbers["skinned_error_p99_pct"] > numbers["skinned_bound_pct"] == 0.5
    assert not (tmp_path / "s.glb").exists()


def test_it_is_much_smaller_than_morph_targets(make_animation, tmp_path):
    animation = make_animation(40, subdivisions=4)
    export_skinned_glb(animation, tmp_path / "s.glb", 10, graph_of(animation.vertices[0]), animation.vertices[0], np.eye(4))
    export_glb(animation, tmp_path / "m.glb", 10)
    assert (tmp_path / "s.glb").stat().st_size < 0.15 * (tmp_path / "m.glb").stat().st_size


def test_fewer_anchors_than_four_are_padded(animation, tmp_path, khronos_issues):
    export_skinned_glb(animation, tmp_path / "s.glb", 10, graph_of(animation.vertices[0], anchors=3), animation.vertices[0], np.eye(4), bound_pct=10)
    assert khronos_issues(tmp_path / "s.glb") == []


@pytest.mark.parametrize("textured", [False, True])
def test_the_khronos_validator_finds_no_error_and_no_warning(animation, make_texture, tmp_path, khronos_issues, textured):
    texture = make_texture(animation) if textured else None
    export_skinned_glb(animation, tmp_path / "s.glb", 10, graph_of(animation.vertices[0]), animation.vertices[0], np.eye(4), texture=texture)
    assert khronos_issues(tmp_path / "s.glb") == []


def test_a_graph_of_another_mesh_is_refused(animation, make_animation, tmp_path):
    other = make_animation(2, subdivisions=1)
    with pytest.raises(ContractError, match="the graph holds 42 vertices and the rest shape 162, the animation 162"):
        export_skinned_glb(animation, tmp_path / "s.glb", 10, graph_of(other.vertices[0], 10), animation.vertices[0], np.eye(4))


def test_projection_onto_the_simplex():
    rng = np.random.default_rng(0)
    w = _on_simplex(rng.normal(0, 2, (200, 5)))
    assert (w >= 0).all() and np.allclose(w.sum(1), 1)
    inside = rng.dirichlet(np.ones(5), 50)
    assert np.allclose(_on_simplex(inside), inside)


def test_a_z_up_capture_stands_and_the_turn_sits_above_the_joints(make_animation, tmp_path, khronos_issues):
    animation = make_animation(3)
    export_skinned_glb(animation, tmp_path / "s.glb", 10, graph_of(animation.vertices[0]), animation.vertices[0], np.eye(4), up=(0, 0, 1))
    document = pygltflib.GLTF2().load(str(tmp_path / "s.glb"))
    top = document.nodes[document.scenes[0].nodes[1]]
    assert document.skins[0].skeleton in top.children and np.allclose(Rotation.from_quat(top.rotation).apply([0, 0, 1]), [0, 1, 0])
    assert 100 * np.linalg.norm(play(tmp_path / "s.glb") - animation.vertices, axis=2).max() / diagonal(animation) < 2  # the joints are where they were
    assert khronos_issues(tmp_path / "s.glb") == []


def test_a_full_disk_leaves_the_earlier_skinned_file_untouched(make_animation, tmp_path, request):
    animation = make_animation(3)
    (tmp_path / "s.glb").write_bytes(b"old")
    request.getfixturevalue("full_disk")
    with pytest.raises(ContractError, match=r"s\.glb: could not be written: No space left on device"):
        export_skinned_glb(animation, tmp_path / "s.glb", 10, graph_of(animation.vertices[0]), animation.vertices[0], np.eye(4))
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("s.glb", b"old")]


def test_zero_faces_are_refused_before_anything_is_written(make_animation, tmp_path):
    animation = make_animation(3)
    graph = graph_of(animation.vertices[0])
    bare = dataclasses.replace(animation, faces=animation.faces[:0])
    with pytest.raises(ContractError, match=r"s\.glb: cannot export: the mesh has zero faces"):
        export_skinned_glb(bare, tmp_path / "s.glb", 10, graph, animation.vertices[0], np.eye(4))
    assert not list(tmp_path.iterdir())
