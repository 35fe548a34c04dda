"""Motion of other trackers: known answers written byte by byte, and what is said of files that are not sound."""

import struct

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from instant_nk import cli
from instant_nk.errors import DataError
from instant_nk.io import ed_folder, ed_import


def poses(count, seed=0):
    """Random rigid motions [count, 4, 4]."""
    rng = np.random.default_rng(seed)
    result = np.tile(np.eye(4), (count, 1, 1))
    result[:, :3, :3] = Rotation.random(count, random_state=seed).as_matrix()
    result[:, :3, 3] = rng.normal(size=(count, 3))
    return result


def product(a, b):
    """Quaternions (w, x, y, z) multiplied."""
    return np.concatenate([[a[0] * b[0] - a[1:] @ b[1:]], a[0] * b[1:] + b[0] * a[1:] + np.cross(a[1:], b[1:])])


def warpfield(nodes, motions, rigid, slots=16, links=4):
    """Bytes of a .warpfield with fewer slots per level than the usual 4096."""
    table = np.zeros((4 * slots, 3, 4), "<f4")
    for i, (node, motion) in enumerate(zip(nodes, motions)):
        x, y, z, w = Rotation.from_matrix(motion[:3, :3]).as_quat()
        real = np.array([w, x, y, z])
        table[i] = [real, 0.5 * product(np.array([0, *motion[:3, 3]]), real), [*node, 2.0]]
    header = rigid.astype("<f4").tobytes() + struct.pack("<4i", len(nodes), 2, 1, 1) + struct.pack("<i", 12 * slots)
    return header + table.tobytes() + struct.pack("<i", links) + bytes(16 * links)


def apply(affine, points):
    return np.einsum("mij,mj->mi", affine[..., :3], points) + affine[..., 3]


@pytest.fixture
def nodes():
    return np.random.default_rng(3).normal(size=(6, 3)).astype(np.float32).astype(float)


def test_a_warpfield_moves_points_by_its_rigid_motion_after_its_dual_quaternions(tmp_path, nodes):
    motions, rigid = poses(6), poses(1, 7)[0]
    (tmp_path / "a.warpfield").write_bytes(warpfield(nodes, motions, rigid))
    found, affine = ed_import.read_warpfield(tmp_path / "a.warpfield")
    points = np.random.default_rng(1).normal(size=(6, 3))
    truth = np.einsum("mij,mj->mi", (rigid @ motions)[:, :3, :3], points) + (rigid @ motions)[:, :3, 3]
    np.testing.assert_allclose(found, nodes)
    np.testing.assert_allclose(apply(affine, points), truth, atol=1e-5)


def test_warpfields_become_an_ed_folder_through_the_command(tmp_path, nodes, capsys):
    sequence = {4: poses(6, 1), 10: poses(6, 2)}
    (tmp_path / "run").mkdir()
    for frame, motions in sequence.items():
        (tmp_path / "run" / f"warp_{frame:04d}.warpfield").write_bytes(warpfield(nodes, motions, np.eye(4)))
    assert cli.main(["import-ed", str(tmp_path / "run"), "-o", str(tmp_path / "ed")]) == 0
    assert "6 nodes, 2 frames, 4 to 10" in capsys.readouterr().out
    read = ed_folder.load(tmp_path / "ed", [4, 10])
    for i, motions in enumerate(sequence.values()):
        np.testing.assert_allclose(read.affine[i], motions[:, :3], atol=1e-6)


def test_a_node_that_is_not_there_yet_moves_with_the_nearest_one_that_is(tmp_path, nodes, capsys):
    nodes[5] = nodes[2] + 0.01
    early, late = poses(5, 1), poses(6, 2)
    (tmp_path / "w0.warpfield").write_bytes(warpfield(nodes[:5], early, np.eye(4)))
    (tmp_path / "w1.warpfield").write_bytes(warpfield(nodes, late, np.eye(4)))
    motion, remark = ed_import.load(tmp_path)
    np.testing.assert_allclose(motion.affine[0, 5], motion.affine[0, 2])
    np.testing.assert_allclose(motion.affine[1, 5], late[5, :3], atol=1e-6)
    assert "1 of 6 nodes" in remark
    nodes[3] += 1
    (tmp_path / "w1.warpfield").write_bytes(warpfield(nodes, late, np.eye(4)))
    with pytest.raises(DataError, match="node 3 rests"):
        ed_import.load(tmp_path)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda b: b[:50], "ends at byte 50, wanted 84"),
        (lambda b: b[:600], "float4 of nodes"),
        (lambda b: b[:-1], "wanted .* bytes .* got"),
        (lambda b: b + b"x", "wanted .* bytes .* got"),
        (lambda b: bytes(64) + b[64:], "bytes 0..63 are no rigid motion"),
        (lambda b: b[:64] + struct.pack("<i", 5000) + b[68:], "bytes 64..83 say"),
        (lambda b: b[:84] + bytes(16) + b[100:], "node 0 .byte 84."),
    ],
)
def test_a_warpfield_that_is_not_sound_is_refused_with_the_place(tmp_path, nodes, spoil, said):
    (tmp_path / "a.warpfield").write_bytes(spoil(warpfield(nodes, poses(6), np.eye(4))))
    with pytest.raises(DataError, match=said):
        ed_import.load(tmp_path / "a.warpfield")


def write_rows(folder, nodes, affine, name="rows_{:03d}.txt", frames=(2, 3)):
    """SVR-L0 rows of un-centred matrices [F, M, 3, 4]."""
    folder.mkdir(parents=True, exist_ok=True)
    np.savetxt(folder / "node.txt", nodes)
    for frame, matrices in zip(frames, affine):
        shift = apply(matrices, nodes) - nodes
        np.savetxt(folder / name.format(frame), np.concatenate([matrices[..., :3].transpose(0, 2, 1).reshape(-1, 9), shift], 1))


@pytest.mark.parametrize("name", ["rows_{:03d}.txt", "frames/{}.txt"])
def test_svr_l0_rows_become_matrices_that_are_not_centred(tmp_path, nodes, name):
    affine = np.stack([poses(6, 5)[:, :3], poses(6, 6)[:, :3]])
    affine[0, 1, :, :3] *= 1.1  # affine parts are kept
    (tmp_path / "svr" / "frames").mkdir(parents=True)
    write_rows(tmp_path / "svr", nodes, affine, name)
    motion, _ = ed_import.load(tmp_path / "svr")
    assert motion.frames == (2, 3)
    np.testing.assert_allclose(motion.affine, affine, atol=1e-12)


def test_one_row_by_hand(tmp_path):
    """A turns x to y about u = (1, 0, 0) and b lifts by 2: the point (2, 0, 0) goes to (1, 1, 2)."""
    (tmp_path / "node.txt").write_text("1 0 0\n")
    (tmp_path / "f7.txt").write_text("0 1 0  -1 0 0  0 0 1  0 0 2\n")
    motion, _ = ed_import.load(tmp_path)
    assert motion.frames == (7,)
    np.testing.assert_allclose(motion.affine[0, 0] @ [2, 0, 0, 1], [1, 1, 2])


def test_a_wrong_number_count_names_the_file_and_both_counts(tmp_path, nodes):
    write_rows(tmp_path, nodes, np.stack([poses(6)[:, :3]] * 2))
    (tmp_path / "rows_003.txt").write_text("1 2 3")
    with pytest.raises(DataError, match=r"rows_003.txt: wanted 72 numbers .*M=6.* got 3"):
        ed_import.load(tmp_path)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "node.txt: cannot be read"),
        ({"node.txt": "1 2 3"}, "no file of rows per frame"),
        ({"node.txt": "1 2 3", "a1.txt": "0", "b1.txt": "0"}, "frame 1 is also a1.txt"),
        ({"node.txt": "1 2 3", "a.txt": "0", "b.txt": "0"}, "no frame number"),
    ],
)
def test_a_folder_that_holds_neither_is_refused(tmp_path, files, said):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=said):
        ed_import.load(tmp_path)


def test_what_is_not_there_is_said(tmp_path):
    with pytest.raises(DataError, match="no such file or folder"):
        ed_import.load(tmp_path / "none")


def test_a_transform_shows_the_same_motion_from_the_capture_world(tmp_path, nodes):
    motion = ed_import.NodeMotion(nodes, (0,), poses(6, 9)[None, :, :3])
    world = poses(1, 4)[0]
    world[:3, :3] *= 3.0
    np.savetxt(tmp_path / "T.txt", world)
    moved = ed_import.transformed(motion, ed_import.read_transform(tmp_path / "T.txt"))
    points = np.random.default_rng(2).normal(size=(6, 3))
    there = lambda p: p @ world[:3, :3].T + world[:3, 3]  # noqa: E731
    np.testing.assert_allclose(moved.node_positions, there(nodes))
    np.testing.assert_allclose(apply(moved.affine[0], there(points)), there(apply(motion.affine[0], points)), atol=1e-10)
    np.savetxt(tmp_path / "T.txt", np.diag([1, 1, -1, 1]))
    with pytest.raises(DataError, match="no rotation"):
        ed_import.read_transform(tmp_path / "T.txt")
