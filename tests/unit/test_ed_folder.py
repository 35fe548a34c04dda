"""The ED folder: round trip of our motion, any line layout, and what is said of an unsound one."""

import json
import shutil

import numpy as np
import pytest

from instant_nk.errors import ContractError, DataError
from instant_nk.geometry import spaces
from instant_nk.io import artifact, ed_folder, graph, motion
from instant_nk.io.ed_folder import NodeMotion
from instant_nk.stages import exchange
from instant_nk.stages import graph as graph_stage
from instant_nk.stages import registration as registration_stage
from tests.unit import neural_fixtures


def turn(axis, angle):
    """Rotation about a unit axis."""
    x, y, z = axis
    k = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * k + (1 - np.cos(angle)) * k @ k


@pytest.fixture
def moved():
    """Five nodes at two frames, far from the origin."""
    rng = np.random.default_rng(0)
    nodes = rng.normal(size=(5, 3)) + [40.0, -7, 3]
    affine = np.zeros((2, 5, 3, 4))
    for f in range(2):
        for m in range(5):
            axis = rng.normal(size=3)
            rotation = turn(axis / np.linalg.norm(axis), rng.uniform(0, 2))
            affine[f, m] = np.column_stack([rotation, nodes[m] + 0.1 * rng.normal(size=3) - rotation @ nodes[m]])
    return NodeMotion(nodes, (7, 1012), affine)


@pytest.fixture
def folder(moved, tmp_path):
    ed_folder.save(tmp_path / "ed", moved)
    return tmp_path / "ed"


def test_a_written_folder_reads_back_to_the_same_doubles(moved, folder):
    assert sorted(p.name for p in (folder / "accumAffine").iterdir()) == ["Frame_007.txt", "Frame_1012.txt"]
    back = ed_folder.load(folder, [7, 1012])
    np.testing.assert_array_equal(back.node_positions, moved.node_positions)
    np.testing.assert_array_equal(back.affine, moved.affine)
    assert ed_folder.available_frames(folder) == [7, 1012]


def test_any_line_layout_and_commas_are_read(moved, folder):
    values = (folder / "accumAffine" / "Frame_007.txt").read_text().split()
    (folder / "accumAffine" / "Frame_007.txt").write_text(", ".join(values))
    (folder / "node.txt").write_text("\n".join((folder / "node.txt").read_text().split()))
    np.testing.assert_array_equal(ed_folder.load(folder, [7]).affine[0], moved.affine[0])


def test_a_frame_number_may_be_unpadded(folder):
    (folder / "accumAffine" / "Frame_007.txt").rename(folder / "accumAffine" / "Frame_7.txt")
    assert ed_folder.load(folder, [7]).frames == (7,)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_scene_motion_and_world_matrices_are_each_others_inverse(moved, scale):
    box = np.array([[-1.0, -1, -1], [1, 2, 1]]) * scale + 30 * scale
    world_from_scene = np.linalg.inv(spaces.similarity_from_box(box))
    nodes, rotations, translations = ed_folder.to_scene(moved, np.linalg.inv(world_from_scene))
    back = ed_folder.from_scene(nodes, rotations, translations, list(moved.frames), world_from_scene)
    np.testing.assert_allclose(back.node_positions, moved.node_positions, rtol=1e-10)
    np.testing.assert_allclose(back.affine[..., :3], moved.affine[..., :3], atol=1e-10)
    live = lambda m: np.einsum("fmij,mj->fmi", m.affine[..., :3], m.node_positions) + m.affine[..., 3]  # noqa: E731
    np.testing.assert_allclose(live(back), live(moved), atol=1e-9)


def test_a_sheared_matrix_becomes_a_rotation_that_keeps_the_nodes_place(moved):
    moved.affine[0, 2, :, :3] = moved.affine[0, 2, :, :3] @ [[1.1, 0.1, 0], [0, 0.95, 0], [0, 0, 1]]
    nodes, rotations, translations = ed_folder.to_scene(moved, np.eye(4))
    np.testing.assert_allclose(rotations @ rotations.swapaxes(-1, -2), np.broadcast_to(np.eye(3), rotations.shape), atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(rotations), 1)
    live = moved.affine[0, 2, :, :3] @ moved.node_positions[2] + moved.affine[0, 2, :, 3]
    np.testing.assert_allclose(nodes[2] + translations[0, 2], live)


BAD = {
    "a number too few": ("accumAffine/Frame_007.txt", lambda text: " ".join(text.split()[:-1]), r"Frame_007.txt: wanted 60 numbers \(12 per node for M=5 nodes of node.txt: row-major \[A\|t\]\), got 59"),
    "a node more than matrices": ("node.txt", lambda text: text + "1 2 3\n", r"Frame_007.txt: wanted 72 numbers \(12 per node for M=6 nodes"),
    "node.txt not in threes": ("node.txt", lambda text: text + "1 2\n", r"node.txt: wanted 3 numbers per node, got 17 numbers"),
    "node.txt empty": ("node.txt", lambda text: "", r"node.txt: wanted 3 numbers per node, got 0 numbers"),
    "words": ("accumAffine/Frame_007.txt", lambda text: "rows 5\n" + text, r"Frame_007.txt: could not convert string to float: 'rows'; wanted 12 per node"),
    "not finite": ("accumAffine/Frame_007.txt", lambda text: "nan " + text.split(" ", 1)[1], r"Frame_007.txt: holds values that are not finite"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "change", "message"), BAD.values(), ids=BAD.keys())
def test_an_unsound_folder_is_named_with_what_is_wrong(folder, name, change, message):
    (folder / name).write_text(change((folder / name).read_text()))
    with pytest.raises(DataError, match=message):
        ed_folder.load(folder, [7])


def test_missing_files_are_named(folder):
    with pytest.raises(DataError, match=r"accumAffine: no Frame_%03d.txt for frames \[8, 9\] \(it has 7\.\.1012\)\. Set frames.first and frames.count"):
        ed_folder.load(folder, [7, 8, 9])
    shutil.rmtree(folder / "accumAffine")
    with pytest.raises(DataError, match=r"for frames \[7\] \(it has none\)"):
        ed_folder.load(folder, [7])
    (folder / "node.txt").unlink()
    with pytest.raises(DataError, match=r"node.txt: cannot be read .*wanted M x 3 node positions in world units"):
        ed_folder.load(folder, [7])


# Through the stages.


@pytest.fixture(scope="module")
def body(tmp_path_factory):
    return neural_fixtures.body(tmp_path_factory.getbasetemp())


def with_folder(body, exported, results):
    """A job on `exported`, with the dataset and canonical surface of `body`."""
    job = body.variant(results=results, registration={"source": "ed_folder", "folder": str(exported)})
    shutil.copytree(body.job.paths.canonical, job.paths.canonical, dirs_exist_ok=True)
    return job


def test_our_motion_exported_and_read_again_is_the_same_motion(body, tmp_path):
    said = exchange.export_ed(body.job.paths, tmp_path / "ed")
    ours, nodes = motion.load(body.job.paths.motion), graph.load(body.job.paths.graph)
    assert said == f"{tmp_path / 'ed'}: {len(nodes.node_positions)} nodes, frames 0 to 3"
    job = with_folder(body, tmp_path / "ed", tmp_path / "results")
    graph_stage.run(job)
    registration_stage.run(job)
    theirs, read = motion.load(job.paths.motion), graph.load(job.paths.graph)
    np.testing.assert_allclose(read.node_positions, nodes.node_positions, atol=1e-6)
    np.testing.assert_array_equal(theirs.frames, ours.frames)
    np.testing.assert_allclose(theirs.rotations, ours.rotations, atol=1e-5)
    np.testing.assert_allclose(theirs.translations, ours.translations, atol=1e-5)
    assert theirs.converged.all()


def test_motion_that_does_not_rest_at_the_canonical_frame_is_refused_and_told_where_it_does(body, tmp_path):
    exchange.export_ed(body.job.paths, tmp_path / "ed")
    job = with_folder(body, tmp_path / "ed", tmp_path / "results")
    manifest = json.loads(job.paths.manifest.read_text())
    rest = manifest["canonical_frame"]
    manifest["canonical_frame"] = other = max(manifest["frames"], key=lambda frame: abs(frame - rest))
    artifact.save_json(job.paths.manifest, manifest)
    graph_stage.run(job)
    with pytest.raises(
        DataError, match=rf"at the canonical frame {other} the nodes have moved by .*They rest at frame {rest}: set dataset.canonical_frame: {rest}"
    ):
        registration_stage.run(job)


def test_nodes_in_another_unit_are_refused(body, tmp_path):
    exchange.export_ed(body.job.paths, tmp_path / "ed")
    nodes = np.loadtxt(tmp_path / "ed" / "node.txt")
    np.savetxt(tmp_path / "ed" / "node.txt", nodes * 100)
    with pytest.raises(DataError, match=r"node.txt: the nodes are \d+\.\d of their spacing from the canonical surface.*world coordinates and unit"):
        graph_stage.run(with_folder(body, tmp_path / "ed", tmp_path / "results"))


def test_a_graph_of_other_nodes_than_the_folders_is_refused(body, tmp_path):
    exchange.export_ed(body.job.paths, tmp_path / "ed")
    job = with_folder(body, tmp_path / "ed", tmp_path / "results")
    graph_stage.run(job)
    nodes = np.loadtxt(tmp_path / "ed" / "node.txt")
    np.savetxt(tmp_path / "ed" / "node.txt", nodes + 0.01)
    with pytest.raises(ContractError, match=r"graph.npz: its nodes are not those of .*node.txt. Re-run stage 'graph'"):
        registration_stage.run(job)
