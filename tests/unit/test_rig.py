"""Rigs as coarse motion: tiny files with known answers, glTF and the SMPL family's layout, and the motion they give to the nodes of a graph."""

from __future__ import annotations

import base64
import json
import pickle
import struct

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from instant_nk.errors import ConfigError, ContractError, DataError
from instant_nk.fitting import rig_motion
from instant_nk.fitting.correspondences import Target
from instant_nk.fitting.deformation_solver import Body, Pose
from instant_nk.fitting.registration import Options
from instant_nk.geometry import spaces, surface
from instant_nk.io import artifact, body_model, dataset, graph, motion, rig
from instant_nk.io import mesh as meshes
from instant_nk.io.export.glb import export_glb
from instant_nk.io.export.skinned import export_skinned_glb
from instant_nk.models import deformation_graph
from instant_nk.stages import graph as graph_stage
from instant_nk.stages import registration as registration_stage
from instant_nk.stages import rig_source
from tests.unit import neural_fixtures
from tests.unit.conftest import bending_body
from tests.unit.shapes import mesh_of, observed, tube


def quaternion(axis, degrees):
    return Rotation.from_rotvec(np.radians(degrees) * np.array(axis, float)).as_quat()


class Writer:
    """A glTF document with one buffer, filled array by array."""

    TYPES = {1: "SCALAR", 3: "VEC3", 4: "VEC4", 16: "MAT4"}
    COMPONENTS = {"f4": 5126, "u1": 5121, "u2": 5123, "u4": 5125}

    def __init__(self):
        self.json = {"asset": {"version": "2.0"}, "bufferViews": [], "accessors": []}
        self.data = b""

    def add(self, values, dtype="f4", normalized=False):
        values = np.asarray(values)
        flat = values.reshape(len(values), -1).astype("<" + dtype)
        self.json["bufferViews"].append({"buffer": 0, "byteOffset": len(self.data), "byteLength": flat.nbytes})
        accessor = {
            "bufferView": len(self.json["bufferViews"]) - 1,
            "componentType": self.COMPONENTS[dtype],
            "count": len(flat),
            "type": self.TYPES[flat.shape[1]],
        }
        self.json["accessors"].append(accessor | ({"normalized": True} if normalized else {}))
        self.data += flat.tobytes() + bytes(-flat.nbytes % 4)
        return len(self.json["accessors"]) - 1

    def save(self, path):
        if path.suffix == ".gltf":
            self.json["buffers"] = [{"byteLength": len(self.data), "uri": "data:application/octet-stream;base64," + base64.b64encode(self.data).decode()}]
            path.write_text(json.dumps(self.json))
            return path
        self.json["buffers"] = [{"byteLength": len(self.data)}]
        text = json.dumps(self.json).encode()
        text += b" " * (-len(text) % 4)
        body = struct.pack("<II", len(text), 0x4E4F534A) + text + struct.pack("<II", len(self.data), 0x004E4942) + self.data
        path.write_bytes(struct.pack("<4sII", b"glTF", 2, 12 + len(body)) + body)
        return path


ANGLES = (0.0, 30.0, 60.0)  # of the second bone, at keys 0, 0.5 and 1 s


def arm(path, interpolation="LINEAR", values=None, root=None, change=lambda w: None):
    """A tube along x whose second half hangs on a bone at x = 1 that turns about z; the skeleton's root moves up by 1 per second."""
    vertices, faces = tube(2.0, 0.15, 48, 20)
    share = np.clip((vertices[:, 0] - 0.8) / 0.4, 0, 1)
    w = Writer()
    bind = np.tile(np.eye(4), (2, 1, 1))
    bind[1, :3, 3] = [-1, 0, 0]
    attributes = {
        "POSITION": w.add(vertices), "JOINTS_0": w.add(np.tile([0, 1, 0, 0], (len(vertices), 1)), "u1"),
        "WEIGHTS_0": w.add(np.round(255 * np.stack([1 - share, share, 0 * share, 0 * share], 1)), "u1", normalized=True),
    }  # fmt: skip
    times = w.add(np.array([0, 0.5, 1.0])[:, None])
    turns = w.add(np.array([quaternion([0, 0, 1], a) for a in ANGLES]) if values is None else values)
    shift = w.add(np.array([[0, 0, 0], [0, 0.5, 0], [0, 1, 0]]))
    w.json |= {
        "nodes": [
            {"mesh": 0, "skin": 0, "translation": [9, 9, 9]},  # a skinned mesh's own transform counts for nothing
            {"children": [2], **(root or {})},
            {"children": [3]},
            {"translation": [1, 0, 0]},
        ],
        "meshes": [{"primitives": [{"attributes": attributes, "indices": w.add(faces.reshape(-1, 1), "u2")}]}],
        "skins": [{"joints": [2, 3], "inverseBindMatrices": w.add(bind.transpose(0, 2, 1).reshape(2, 16))}],
        "animations": [
            {
                "samplers": [{"input": times, "output": turns, "interpolation": interpolation}, {"input": times, "output": shift}],
                "channels": [{"sampler": 0, "target": {"node": 3, "path": "rotation"}}, {"sampler": 1, "target": {"node": 2, "path": "translation"}}],
            }
        ],
    }
    change(w)
    return w.save(path)


def truth(degrees, lift):
    """Vertices of the arm by hand."""
    vertices, _ = tube(2.0, 0.15, 48, 20)
    share = (np.round(255 * np.clip((vertices[:, 0] - 0.8) / 0.4, 0, 1)) / 255)[:, None]
    turned = (vertices - [1, 0, 0]) @ Rotation.from_rotvec([0, 0, np.radians(degrees)]).as_matrix().T + [1, 0, 0]
    return (1 - share) * vertices + share * turned + [0, lift, 0]


@pytest.mark.parametrize("name", ["arm.glb", "arm.gltf"])
def test_a_skinned_mesh_is_posed_at_its_keys(tmp_path, name):
    read = rig.load_gltf(arm(tmp_path / name), [10, 11, 12], first=10)
    for frame, degrees, lift in zip((10, 11, 12), ANGLES, (0, 0.5, 1)):
        np.testing.assert_allclose(read.posed(frame), truth(degrees, lift), atol=1e-6)


def test_frames_per_second_place_frames_between_keys(tmp_path):
    read = rig.load_gltf(arm(tmp_path / "a.glb"), [0, 1, 5, 8], first=0, fps=8.0)
    np.testing.assert_allclose(read.posed(1), truth(7.5, 0.125), atol=1e-6)
    np.testing.assert_allclose(read.posed(5), truth(37.5, 0.625), atol=1e-6)
    np.testing.assert_allclose(read.posed(8), truth(60, 1), atol=1e-6)


def test_a_frame_the_animation_does_not_cover_is_named(tmp_path):
    path = arm(tmp_path / "a.glb")
    with pytest.raises(DataError, match=r"covers frames 4 to 6 \(3 keys, one per frame\), wanted also \[3, 7\]"):
        rig.load_gltf(path, [3, 4, 7], first=4)
    with pytest.raises(DataError, match=r"covers frames 0 to 8 \(1 s at 8 frames per second\), wanted also \[9\]"):
        rig.load_gltf(path, [8, 9], first=0, fps=8.0)


def test_steps_hold_and_splines_pass_through_their_keys(tmp_path):
    read = rig.load_gltf(arm(tmp_path / "a.glb", "STEP"), [0, 3, 4, 8], first=0, fps=8.0)
    np.testing.assert_allclose(read.posed(3), truth(0, 0.375), atol=1e-6)
    np.testing.assert_allclose(read.posed(4), truth(30, 0.5), atol=1e-6)
    keys = np.array([quaternion([0, 0, 1], a) for a in ANGLES])
    slope = np.array([quaternion([0, 0, 1], a + 0.01) - quaternion([0, 0, 1], a - 0.01) for a in ANGLES]) / 0.02 * 60  # per second, at 60 degrees per second
    values = np.stack([slope, keys, slope], 1).reshape(-1, 4)
    read = rig.load_gltf(arm(tmp_path / "b.glb", "CUBICSPLINE", values), [0, 1, 4], first=0, fps=8.0)
    np.testing.assert_allclose(read.posed(4), truth(30, 0.5), atol=1e-6)
    np.testing.assert_allclose(read.posed(1), truth(7.5, 0.125), atol=1e-4)


def keyed(path, times, degrees, interpolation):
    """The arm whose second bone has these angles at these times, and whose root rests."""

    def change(w):
        turns = w.add(np.array([quaternion([0, 0, 1], a) for a in degrees]))
        samplers = [{"input": w.add(np.asarray(times)[:, None]), "output": turns, "interpolation": interpolation}]
        w.json["animations"] = [{"samplers": samplers, "channels": [{"sampler": 0, "target": {"node": 3, "path": "rotation"}}]}]

    return arm(path, change=change)


@pytest.mark.parametrize("start", [0, 1, 30000])
def test_steps_at_every_frame_change_at_their_own_frame(tmp_path, start):
    degrees = np.arange(90.0)
    for rate in (24, 30):
        path = keyed(tmp_path / "a.glb", (start + np.arange(90)) / rate, degrees, "STEP")
        read = rig.load_gltf(path, list(range(90)), first=0, fps=float(rate))
        for frame in range(90):
            np.testing.assert_allclose(read.posed(frame), truth(degrees[frame], 0), atol=1e-6)


def test_a_step_far_from_the_one_before_is_not_taken_early(tmp_path):
    read = rig.load_gltf(keyed(tmp_path / "a.glb", [0, 100, 100.1], [0, 60, 60], "STEP"), [0, 999, 1000], first=0, fps=10.0)
    np.testing.assert_allclose(read.posed(999), truth(0, 0), atol=1e-6)
    np.testing.assert_allclose(read.posed(1000), truth(60, 0), atol=1e-6)
    alone = keyed(tmp_path / "b.glb", [0, 100], [0, 60], "STEP")
    frames = rig.load_gltf(alone, [0, 2997, 2998, 2999, 3000], first=0, fps=30.0)
    np.testing.assert_allclose(frames.posed(2999), truth(0, 0), atol=1e-6)
    np.testing.assert_allclose(frames.posed(3000), truth(60, 0), atol=1e-6)
    single = rig.load_gltf(keyed(tmp_path / "c.glb", [0.5], [30], "STEP"), [0], first=0)
    np.testing.assert_allclose(single.posed(0), truth(30, 0), atol=1e-6)


def test_keys_that_an_exporter_left_out_are_not_counted_as_frames(tmp_path):
    path = keyed(tmp_path / "a.glb", np.array([0, 1, 2, 4, 5]) / 30, [0, 10, 20, 40, 50], "LINEAR")
    with pytest.raises(DataError, match=r"a.glb: the animation's 5 keys lie 0.03333 to 0.06667 s apart, wanted even distances.*Set registration.rig_fps"):
        rig.load_gltf(path, [0, 1, 2, 3, 4], first=0)
    read = rig.load_gltf(path, [3, 4], first=0, fps=30.0)
    np.testing.assert_allclose(read.posed(3), truth(30, 0), atol=1e-4)
    np.testing.assert_allclose(read.posed(4), truth(40, 0), atol=1e-4)
    rounded = keyed(tmp_path / "b.glb", (np.arange(6) / 30).round(3), np.arange(6) * 10, "LINEAR")  # to milliseconds
    np.testing.assert_allclose(rig.load_gltf(rounded, [4], first=0).posed(4), truth(40, 0), atol=1e-6)


def test_transforms_above_the_skeleton_count(tmp_path):
    root = {"translation": [5, 0, 0], "rotation": quaternion([0, 0, 1], 90).tolist(), "scale": [2, 2, 2]}
    read = rig.load_gltf(arm(tmp_path / "a.glb", root=root), [1], first=0)
    expected = 2 * truth(30, 0.5) @ np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1]]).T + [5, 0, 0]
    np.testing.assert_allclose(read.posed(1), expected, atol=1e-5)


def test_a_mesh_without_a_skin_moves_with_its_node(tmp_path):
    def rigid(w):
        del w.json["skins"]
        w.json["nodes"][0] = {"name": "nothing"}
        w.json["nodes"][3]["mesh"] = 0

    read = rig.load_gltf(arm(tmp_path / "a.glb", change=rigid), [2], first=0)
    vertices, _ = tube(2.0, 0.15, 48, 20)
    np.testing.assert_allclose(read.posed(2), vertices @ Rotation.from_rotvec([0, 0, np.radians(60)]).as_matrix().T + [1, 1, 0], atol=1e-6)


def test_our_own_skinned_export_reads_back_as_the_animation(tmp_path):
    animation = bending_body(offset=(3.0, -2.0, 1.0), scale=0.5)
    made = deformation_graph.build(animation.vertices[0], animation.faces, max_nodes=30)
    export_skinned_glb(animation, tmp_path / "a.glb", 10.0, made, animation.vertices[0], np.eye(4))
    for fps in (None, 10.0):
        read = rig.load_gltf(tmp_path / "a.glb", animation.frames.tolist(), first=3, fps=fps)
        size = np.linalg.norm(np.ptp(animation.vertices[0], axis=0))
        for i, frame in enumerate(animation.frames.tolist()):
            assert np.linalg.norm(read.posed(frame) - animation.vertices[i], axis=1).max() < 0.01 * size


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: w.json.pop("animations"), "it holds no animation"),
        (lambda w: w.json["animations"][0].update(channels=[]), "moves no node"),
        (lambda w: w.json["nodes"][0].pop("mesh"), "it holds no triangle mesh"),
        (lambda w: w.json.update(extensionsRequired=["KHR_draco_mesh_compression"]), "compressed with KHR_draco"),
        (lambda w: w.json["skins"][0].update(joints=[2]), "names joint 1, its skin has 1"),
        (lambda w: w.json["accessors"][0].update(count=10**6), "reaches beyond its buffer"),
        (lambda w: w.json["meshes"][0]["primitives"][0]["attributes"].pop("WEIGHTS_0"), "vertices without weights"),
    ],
)
def test_what_is_no_rig_is_refused(tmp_path, change, said):
    with pytest.raises(DataError, match=said):
        rig.load_gltf(arm(tmp_path / "a.glb", change=change), [0], first=0)


def test_a_missing_or_truncated_file_is_refused(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        rig.load_gltf(tmp_path / "a.glb", [0], first=0)
    path = arm(tmp_path / "a.glb")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match="truncated"):
        rig.load_gltf(path, [0], first=0)


def test_a_file_with_morph_targets_only_is_refused(tmp_path):
    export_glb(bending_body(), tmp_path / "a.glb", 10.0)
    with pytest.raises(DataError, match="moves no node"):
        rig.load_gltf(tmp_path / "a.glb", [3], first=3)


# Body models


def tiny_body(**change):
    """Three joints along y with a bar of eight vertices on each; the layout of the SMPL family."""
    cube = np.array([[x, y, z] for x in (-0.1, 0.1) for y in (0.1, 0.9) for z in (-0.1, 0.1)])
    faces = np.array([[0, 1, 3], [0, 3, 2], [4, 6, 7], [4, 7, 5], [0, 4, 5], [0, 5, 1], [2, 3, 7], [2, 7, 6], [0, 2, 6], [0, 6, 4], [1, 5, 7], [1, 7, 3]])
    vertices = np.concatenate([cube + [0, k, 0] for k in range(3)])
    regressor = np.zeros((3, 24))
    for k in range(3):  # a joint at y = k: beyond the middle of its bar's lower face
        low = [8 * k + i for i in range(8) if cube[i, 1] < 0.5]
        high = [8 * k + i for i in range(8) if cube[i, 1] > 0.5]
        regressor[k, low], regressor[k, high] = 1.125 / 4, -0.125 / 4
    shape = np.zeros((24, 3, 2))
    shape[:, :, 0] = vertices  # the first shape direction scales the body
    return {
        "v_template": vertices, "f": np.concatenate([faces + 8 * k for k in range(3)]).astype(np.uint32), "weights": np.repeat(np.eye(3), 8, 0),
        "J_regressor": regressor, "kintree_table": np.array([[2**32 - 1, 0, 1], [0, 1, 2]], np.uint32), "shapedirs": shape,
    } | change  # fmt: skip


def poses_of(*rows, **more):
    return {"poses": np.array(rows, float).reshape(len(rows), -1)} | more


def load_body(tmp_path, model, poses, frames=(0,), **settings):
    np.savez(tmp_path / "model.npz", **model)
    np.savez(tmp_path / "poses.npz", **poses)
    return body_model.load(tmp_path / "model.npz", tmp_path / "poses.npz", list(frames), **({"first": 0} | settings))


RIGHT = [0, 0, np.pi / 2]


def test_joints_turn_with_all_below_them(tmp_path):
    read = load_body(tmp_path, tiny_body(), poses_of([[0, 0, 0]] * 3, [[0, 0, 0], RIGHT, [0, 0, 0]], trans=np.array([[0, 0, 0], [5, 0, 0]])), (0, 1))
    rest = tiny_body()["v_template"]
    np.testing.assert_allclose(read.posed(0), rest, atol=1e-12)
    expected = rest.copy()
    x, y, z = rest[8:].T
    expected[8:] = np.stack([-(y - 1), 1 + x, z], 1)  # the upper two bars turn about (0, 1, 0)
    np.testing.assert_allclose(read.posed(1), expected + [5, 0, 0], atol=1e-12)


def test_shape_moves_vertices_and_joints(tmp_path):
    read = load_body(tmp_path, tiny_body(), poses_of([[0, 0, 0], RIGHT, [0, 0, 0]], betas=np.array([[1.0, 0]])))
    plain = load_body(tmp_path, tiny_body(), poses_of([[0, 0, 0], RIGHT, [0, 0, 0]]))
    np.testing.assert_allclose(read.posed(0), 2 * plain.posed(0), atol=1e-12)


def test_pose_corrections_are_added_before_skinning(tmp_path):
    directions = np.zeros((24, 3, 18))
    directions[20, 0, 9 + 0] = 1.0  # vertex 20 along x, by the first entry of R - I of the third joint
    read = load_body(tmp_path, tiny_body(posedirs=directions), poses_of([[0, 0, 0], [0, 0, 0], RIGHT]))
    plain = load_body(tmp_path, tiny_body(), poses_of([[0, 0, 0], [0, 0, 0], RIGHT]))
    moved = read.posed(0) - plain.posed(0)
    np.testing.assert_allclose(moved[20], [0, -1, 0], atol=1e-12)  # R - I starts with -1; the joint turns x to y
    assert np.abs(np.delete(moved, 20, 0)).max() == 0


def test_poses_of_another_rate_are_interpolated(tmp_path):
    poses = poses_of([[0, 0, 0]] * 3, [[0, 0, 0], RIGHT, [0, 0, 0]], mocap_framerate=10.0)
    half = load_body(tmp_path, tiny_body(), poses, (0, 1, 2), fps=20.0)
    exact = load_body(tmp_path, tiny_body(), poses_of([[0, 0, 0], [0, 0, np.pi / 4], [0, 0, 0]]))
    np.testing.assert_allclose(half.posed(1), exact.posed(0), atol=1e-12)
    with pytest.raises(DataError, match="do not say their own rate"):
        load_body(tmp_path, tiny_body(), poses_of([[0, 0, 0]] * 3), fps=20.0)


def without(name):
    model = tiny_body()
    del model[name]
    return model


@pytest.mark.parametrize(
    ("model", "poses", "said"),
    [
        (without("weights"), poses_of([[0] * 9]), "lacks weights"),
        (tiny_body(weights=np.ones((5, 3))), poses_of([[0] * 9]), r"'weights' must be numbers \[24, any\], got float64 \[5, 3\]"),
        (tiny_body(kintree_table=np.array([[0, 2, 1], [0, 1, 2]])), poses_of([[0] * 9]), "joint 1 has parent 2"),
        (tiny_body(), poses_of([[0] * 12]), r"at most J=3 joints of the model, got \[1, 12\]"),
        (tiny_body(), poses_of([[0] * 8]), "'poses' must be"),
        (tiny_body(), {"body_pose": np.zeros(3)}, "lacks poses; it has body_pose"),
        (tiny_body(), poses_of([[0] * 9], trans=np.zeros((2, 3))), r"'trans' must be numbers \[1, 3\]"),
        (tiny_body(), poses_of([[np.nan] * 9]), "not finite"),
        (tiny_body(), poses_of([[0] * 9], betas=np.ones(3)), "has 3 betas"),
        (tiny_body(J_regressor=np.array([None, 1])), poses_of([[0] * 9]), "'J_regressor' is pickled inside"),
    ],
)
def test_a_body_that_is_not_sound_is_refused(tmp_path, model, poses, said):
    with pytest.raises(DataError, match=said):
        load_body(tmp_path, model, poses)


def test_a_pickled_model_is_never_opened_and_the_message_says_how_to_convert_it(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "opened"), "w"))

    (tmp_path / "model.pkl").write_bytes(pickle.dumps(Trap()))
    (tmp_path / "model.npz").write_bytes(pickle.dumps(Trap()))
    for name, said in (("model.pkl", "np.savez"), ("model.npz", "not a readable .npz")):
        with pytest.raises(DataError, match=said):
            body_model.load(tmp_path / name, tmp_path / "poses.npz", [0], first=0)
    np.savez(tmp_path / "model.npz", **tiny_body(trap=np.array([Trap()], object)))
    np.savez(tmp_path / "poses.npz", **poses_of([[0] * 9]))
    body_model.load(tmp_path / "model.npz", tmp_path / "poses.npz", [0], first=0)  # what nobody asked for stays closed
    assert not (tmp_path / "opened").exists()


# Motion of nodes


def bound(tmp_path, canonical=1):
    """A graph on the arm as it is at a frame in the middle, and its motion."""
    read = rig.load_gltf(arm(tmp_path / "a.glb"), [0, 1, 2], first=0)
    rest = read.posed(canonical)
    made = deformation_graph.build(rest, read.faces, max_nodes=60)
    nearest = np.linalg.norm(made.node_positions[:, None] - rest, axis=2).argmin(1)
    normals = surface.vertex_normals(rest, read.faces)[nearest]
    return read, rest, made, rig_motion.node_motion(read, canonical, made.node_positions.astype(float), normals)


def skinned(made, affine, rest):
    """The canonical vertices carried by the nodes' matrices."""
    places = np.einsum("vkij,vj->vki", affine[made.vertex_anchors][..., :3], rest) + affine[made.vertex_anchors][..., 3]
    return (made.vertex_weights[..., None] * places).sum(1)


def test_nodes_follow_the_rig_from_any_canonical_frame(tmp_path):
    read, rest, made, moved = bound(tmp_path)
    np.testing.assert_allclose(moved.affine[1], np.tile(np.eye(3, 4), (len(made.node_positions), 1, 1)), atol=1e-9)
    for i, frame in enumerate((0, 1, 2)):
        error = np.linalg.norm(skinned(made, moved.affine[i], rest) - read.posed(frame), axis=1)
        assert error.mean() < 0.01 and error.max() < 0.05  # of a tube 2 long


def test_touching_limbs_take_the_motion_of_their_own_side(tmp_path):
    """Two plates back to back, each on a bone of its own, 0.02 apart: nodes choose by their normals."""
    grid = np.stack([x.ravel() for x in np.meshgrid(np.linspace(0, 1, 20), np.linspace(0, 1, 20), indexing="ij")], 1)
    i, j = (x.ravel() for x in np.meshgrid(np.arange(19), np.arange(19), indexing="ij"))
    quads = np.concatenate([np.stack([20 * i + j, 20 * (i + 1) + j, 20 * i + j + 1], 1), np.stack([20 * i + j + 1, 20 * (i + 1) + j, 20 * (i + 1) + j + 1], 1)])
    vertices = np.concatenate([np.column_stack([grid, np.full(400, 0.01)]), np.column_stack([grid, np.full(400, -0.01)])])
    faces = np.concatenate([quads, quads[:, ::-1] + 400])
    matrices = np.tile(np.eye(4), (2, 2, 1, 1))
    matrices[1, 1, :3, 3] = [0, 0, -1]
    read = rig.Rig(vertices, faces, rig.sparse.csr_matrix(np.repeat(np.eye(2), 400, 0)), (0, 1), matrices)
    nodes = np.array([[0.5, 0.5, -0.002], [0.5, 0.5, 0.002]])  # each nearer to the other's plate than a coin is thick
    moved = rig_motion.node_motion(read, 0, nodes, np.array([[0, 0, 1.0], [0, 0, -1.0]]))
    np.testing.assert_allclose(moved.affine[1, :, :, 3], [[0, 0, 0], [0, 0, -1]], atol=1e-9)


def test_a_rig_in_another_unit_is_refused(tmp_path):
    read = rig.load_gltf(arm(tmp_path / "a.glb"), [0, 1], first=0)
    with pytest.raises(DataError, match="must be in the capture's world"):
        rig_motion.node_motion(read, 0, 100 * read.vertices[::40], np.tile([0, 1.0, 0], (len(read.vertices[::40]), 1)))


def test_the_solver_mends_what_the_rig_gets_wrong(tmp_path):
    """The rig turns the arm by 30 and 60 degrees; in truth it turned by 40 and 75."""
    read, rest, made, moved = bound(tmp_path, canonical=0)
    body = Body.from_mesh(made, mesh_of(rest, read.faces), 1500)
    options = Options()
    live = {1: truth(40, 0.5), 2: truth(75, 1)}

    def observe(frame):
        observation = observed(live[frame], read.faces, rest, coloured=True)
        return Target.from_observation(observation, 1500, options.colour * body.spacing, options.normal * body.spacing)

    nodes, rotations, translations = rig_motion_scene(moved)
    given = {f: Pose(torch.from_numpy(rotations[f]), torch.from_numpy(translations[f])) for f in (1, 2)}
    seen = []
    fits = rig_motion.refine(body, given, -1, observe, options, done=lambda fits: seen.append(sorted(fits)))
    assert seen == [[1], [1, 2]]
    for frame in (1, 2):
        before, after = (error_of(body, pose, live[frame], read.faces) for pose in (given[frame], fits[frame].pose))
        assert fits[frame].converged and after < 0.3 * before and after < 0.02
    again = rig_motion.refine(body, given, -1, observe, options, known=dict(fits))
    assert again[1] is fits[1]
    rest = rig_motion.refine(body, given, 2, observe, options, known={1: fits[1]})[2]
    assert torch.equal(rest.pose.translations, torch.zeros_like(body.nodes))  # the canonical frame is not estimated


def rig_motion_scene(moved):
    from instant_nk.io import ed_folder

    return ed_folder.to_scene(moved, np.eye(4))


def error_of(body, pose, live, faces):
    """Mean distance of the body's points to the true surface."""
    from instant_nk.geometry.evaluation import ClosestPoint

    points = body.warp(pose).numpy()
    return np.linalg.norm(ClosestPoint(live, faces).query(points)[0] - points, axis=1).mean()


# Through the stage


@pytest.fixture(scope="module")
def body(tmp_path_factory):
    return neural_fixtures.body(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def exported(body, tmp_path_factory):
    """The sequence's own motion as a skinned GLB in world coordinates: its canonical mesh on its nodes."""
    from instant_nk.io import dataset

    paths = body.job.paths
    data, nodes, moved, canonical = dataset.load(paths.manifest), graph.load(paths.graph), motion.load(paths.motion), meshes.load(paths.canonical_mesh)
    w = Writer()
    m = len(nodes.node_positions)
    world = data.world_from_scene
    turn = world[:3, :3] / spaces.scale_of(world)
    places = spaces.transform_points(world, nodes.node_positions)
    bind = np.tile(np.eye(4), (m, 1, 1))
    bind[:, :3, 3] = -places
    order = np.argsort(-nodes.vertex_weights, axis=1)[:, :4]
    joints, share = np.take_along_axis(nodes.vertex_anchors, order, 1), np.take_along_axis(nodes.vertex_weights, order, 1)
    attributes = {
        "POSITION": w.add(spaces.transform_points(world, canonical.vertices)), "JOINTS_0": w.add(joints, "u2"),
        "WEIGHTS_0": w.add(share / share.sum(1, keepdims=True)),
    }  # fmt: skip
    times = w.add(np.arange(len(moved.frames))[:, None] / 25)
    samplers, channels = [], []
    for k in range(m):
        live = spaces.transform_points(world, nodes.node_positions[k] + moved.translations[:, k])
        turned = Rotation.from_matrix(turn @ moved.rotations[:, k].astype(float) @ turn.T).as_quat()
        for values, name in ((live, "translation"), (turned, "rotation")):
            samplers.append({"input": times, "output": w.add(values)})
            channels.append({"sampler": len(samplers) - 1, "target": {"node": k, "path": name}})
    w.json |= {
        "nodes": [{} for _ in range(m)] + [{"mesh": 0, "skin": 0}],
        "meshes": [{"primitives": [{"attributes": attributes, "indices": w.add(canonical.faces.reshape(-1, 1), "u4")}]}],
        "skins": [{"joints": list(range(m)), "inverseBindMatrices": w.add(bind.transpose(0, 2, 1).reshape(m, 16))}],
        "animations": [{"samplers": samplers, "channels": channels}],
    }
    return w.save(tmp_path_factory.mktemp("rig") / "rig.glb")


def with_rig(body, exported, results, **settings):
    import shutil

    job = body.variant(results=results, registration={"source": "rig", "folder": str(exported), **settings})
    shutil.copytree(body.job.paths.canonical, job.paths.canonical, dirs_exist_ok=True)
    graph_stage.run(job)
    return job


def test_the_stage_takes_the_motion_of_a_rig_as_it_is(body, exported, tmp_path):
    job = with_rig(body, exported, tmp_path, rig_refine=False, rig_fps=25.0)
    registration_stage.run(job)
    given, theirs, nodes = motion.load(body.job.paths.motion), motion.load(job.paths.motion), graph.load(job.paths.graph)
    assert np.array_equal(theirs.frames, given.frames) and theirs.converged.all()
    reference = graph.load(body.job.paths.graph)
    nearest = np.linalg.norm(nodes.node_positions[:, None] - reference.node_positions, axis=2)
    same = nearest.min(1) < 1e-6
    assert same.mean() > 0.9
    error = np.linalg.norm(theirs.translations[:, same] - given.translations[:, nearest.argmin(1)[same]], axis=-1)
    assert error.mean() < 0.02 and np.abs(given.translations).max() > 0.1  # scene units; a vertex blends its nodes
    assert artifact.load_json(job.paths.registration / "motion.json")["frames_not_converged"] == []


def test_the_stage_starts_the_solver_from_a_rig(body, exported, tmp_path):
    """The rig comes turned by 90 degrees and with a transform that turns it back; the observations are the true motion's."""
    from instant_nk.io import observation

    turned = np.eye(4)
    turned[:3, :3] = 2 * Rotation.from_rotvec([np.pi / 2, 0, 0]).as_matrix()
    np.savetxt(tmp_path / "T.txt", np.linalg.inv(turned))
    (tmp_path / "rig.glb").write_bytes(rooted(exported, turned))
    job = with_rig(body, tmp_path / "rig.glb", tmp_path / "results", rig_transform=str(tmp_path / "T.txt"), image_weight=0, iterations=4)
    given, reference, canonical = motion.load(body.job.paths.motion), graph.load(body.job.paths.graph), meshes.load(body.job.paths.canonical_mesh)
    for i, frame in enumerate(given.frames):
        affine = np.concatenate([given.rotations[i], (reference.node_positions + given.translations[i])[..., None]], -1).astype(float)
        affine[..., 3] -= np.einsum("mij,mj->mi", affine[..., :3], reference.node_positions)
        live = skinned(reference, affine, canonical.vertices.astype(float))
        seen = observed(live, canonical.faces, canonical.vertices, 1500)
        observation.save(job.paths.observation(int(frame)), seen, artifact.make_header("observation", observation.FORMAT, "observation"))
    registration_stage.run(job)
    found = motion.load(job.paths.motion)
    assert found.converged.all() and (found.residual < 0.01).all() and (found.coverage > 0.9).all()


def rooted(path, matrix):
    """The same .glb with every node without a parent below one that has this matrix."""
    data = path.read_bytes()
    size = struct.unpack("<I", data[12:16])[0]
    document = json.loads(data[20 : 20 + size])
    document["nodes"].append({"matrix": matrix.T.ravel().tolist(), "children": list(range(len(document["nodes"])))})
    text = json.dumps(document).encode()
    text += b" " * (-len(text) % 4)
    body = struct.pack("<II", len(text), 0x4E4F534A) + text + data[20 + size :]
    return struct.pack("<4sII", b"glTF", 2, 12 + len(body)) + body


def test_poses_and_models_that_do_not_belong_together_are_refused(body, exported, tmp_path):
    job = body.variant(results=tmp_path, registration={"source": "rig", "folder": str(exported), "rig_poses": "poses.npz"})
    with pytest.raises(ConfigError, match="poses move a body model"):
        rig_source.read(job, [0], 0)
    job = body.variant(results=tmp_path, registration={"source": "rig", "folder": "model.npz"})
    with pytest.raises(ConfigError, match="without motion"):
        rig_source.read(job, [0], 0)


def test_an_interrupted_registration_is_continued_with_the_same_evidence_only(body, exported, tmp_path, monkeypatch):
    import shutil

    from instant_nk.io import observation

    shutil.copy(exported, tmp_path / "rig.glb")
    job = with_rig(body, tmp_path / "rig.glb", tmp_path / "results", image_weight=0, iterations=1)
    canonical = meshes.load(body.job.paths.canonical_mesh)
    frames = dataset.load(body.job.paths.manifest).frames

    def observe(frame, points):
        seen = observed(canonical.vertices.astype(float), canonical.faces, canonical.vertices, points)
        observation.save(job.paths.observation(frame), seen, artifact.make_header("observation", observation.FORMAT, "observation"))

    for frame in frames:
        observe(frame, 300)
    registration_stage.run(job)
    partial, continued, real = job.paths.registration / "motion.partial.npz", [], rig_motion.refine

    def refine(body, given, canonical_frame, observe, options, pictures, known, done):
        continued.append(sorted(known))
        return real(body, given, canonical_frame, observe, options, pictures, known, done)

    monkeypatch.setattr(rig_motion, "refine", refine)
    for change in (lambda: None, lambda: observe(frames[1], 310), lambda: (tmp_path / "rig.glb").write_bytes(exported.read_bytes() + bytes(4))):
        shutil.copy(job.paths.motion, partial)  # what a run that was killed at its last frame leaves
        change()
        registration_stage.run(job)
    assert continued == [list(frames), [], []]


def test_a_rig_that_is_refined_without_observations_says_which_stage_is_missing(body, exported, tmp_path):
    with pytest.raises(ContractError, match=r"4_observation/000000.npz: is missing. Run the stage that writes it"):
        registration_stage.run(with_rig(body, exported, tmp_path))
