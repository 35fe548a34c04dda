"""The built-in capture: layout, determinism, and ground truth that agrees with the pictures."""

import hashlib
import json
import subprocess
import sys

import imageio.v3 as iio
import numpy as np
import pytest
from scipy.ndimage import binary_dilation

from instant_nk import config as configuration
from instant_nk.errors import DataError
from instant_nk.io import synthetic

TINY = configuration.parse({"preset": "tiny", "synthetic.frames": 3, "synthetic.cameras": 4})


@pytest.fixture(scope="module")
def capture(tmp_path_factory):
    return synthetic.write(TINY, tmp_path_factory.mktemp("synthetic") / "capture", depth=True)


def _meshes(root):
    trimesh = pytest.importorskip("trimesh")
    return [trimesh.load(root / "gt" / f"mesh_{f:04d}.ply", process=False) for f in range(TINY.synthetic.frames)]


def _cameras(root, name="transforms.json"):
    """(file name, OpenCV w2c, K) per camera."""
    result = []
    for entry in json.loads((root / name).read_text())["frames"]:
        c2w = np.array(entry["transform_matrix"]) @ np.diag([1, -1, -1, 1])
        result.append((entry, np.linalg.inv(c2w), np.array(entry["K"])))
    return result


def _project(points, w2c, K):
    p = (points @ w2c[:3, :3].T + w2c[:3, 3]) @ K.T
    return p[:, :2] / p[:, 2:], p[:, 2]


def _digest(root):
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(root.rglob("*")) if p.is_file() and p.suffix != ".npz"}


def test_the_layout_is_the_published_one(capture):
    t = json.loads((capture / "transforms.json").read_text())
    assert (t["w"], t["h"], t["file_folder"], len(t["frames"])) == (48, 48, "images", 4)
    assert len(json.loads((capture / "transforms_test.json").read_text())["frames"]) == 1
    for frame in range(3):
        for entry in t["frames"]:
            image = iio.imread(capture / "images" / str(frame) / entry["file_path"])
            assert image.shape == (48, 48, 4) and image.dtype == np.uint8
            assert 0.03 < (image[..., 3] > 0).mean() < 0.6
            assert not image[image[..., 3] == 0].any()
        assert (capture / "images_test" / str(frame) / "cam_000.png").is_file()


def test_the_same_configuration_gives_the_same_bytes(capture, tmp_path):
    again = synthetic.write(TINY, tmp_path / "capture", depth=True)
    assert _digest(again) == _digest(capture)
    assert np.array_equal(np.load(again / "gt" / "visibility.npz")["n_views"], np.load(capture / "gt" / "visibility.npz")["n_views"])


def test_the_ground_truth_is_one_closed_outward_topology_that_moves(capture):
    meshes = _meshes(capture)
    assert all((m.faces == meshes[0].faces).all() for m in meshes)
    assert meshes[0].is_watertight and meshes[0].volume > 0
    diagonal = np.linalg.norm(np.ptp(np.concatenate([m.vertices for m in meshes]), axis=0))
    step = np.linalg.norm(meshes[1].vertices - meshes[0].vertices, axis=1) / diagonal
    assert 0.005 < step.mean() < 0.04 and step.max() < 0.15


def test_the_box_holds_the_whole_clip_with_a_margin_of_ten_per_cent(capture):
    points = np.concatenate([m.vertices for m in _meshes(capture)])
    low, high = np.array(json.loads((capture / "transforms.json").read_text())["aabb"])
    extent = points.max(0) - points.min(0)
    assert np.allclose(low, points.min(0) - 0.1 * extent, atol=1e-5) and np.allclose(high, points.max(0) + 0.1 * extent, atol=1e-5)


def test_true_vertices_project_into_the_masks_of_all_cameras(capture):
    for name, folder in (("transforms.json", "images"), ("transforms_test.json", "images_test")):
        for frame, mesh in enumerate(_meshes(capture)):
            for entry, w2c, K in _cameras(capture, name):
                mask = iio.imread(capture / folder / str(frame) / entry["file_path"])[..., 3] > 0
                uv, z = _project(mesh.vertices, w2c, K)
                assert (z > 0).all() and (uv > 0).all() and (uv < 48).all()
                row, column = uv[:, 1].astype(int), uv[:, 0].astype(int)
                assert mask[row, column].mean() > 0.97  # a vertex on the outline may cover less than a sub-pixel
                assert binary_dilation(mask, np.ones((3, 3)))[row, column].all()


def test_depth_maps_agree_with_the_true_surface(capture):
    meshes = _meshes(capture)
    scale = json.loads((capture / "transforms.json").read_text())["integer_depth_scale"]
    entry, w2c, K = _cameras(capture)[1]
    depth = iio.imread(capture / "images" / "2" / entry["depth_path"])
    assert depth.dtype == np.uint16
    row, column = np.nonzero(depth)
    z = depth[row, column] * scale
    points = np.stack([(column + 0.5 - K[0, 2]) / K[0, 0], (row + 0.5 - K[1, 2]) / K[1, 1], np.ones(len(z))], 1) * z[:, None]
    world = (points - w2c[:3, 3]) @ w2c[:3, :3]
    distance = meshes[2].nearest.on_surface(world)[1]
    assert distance.max() < 2e-4  # one depth step is 1e-4


def test_visibility_counts_cameras_and_most_of_the_surface_is_seen(capture):
    views = np.load(capture / "gt" / "visibility.npz", allow_pickle=False)["n_views"]
    assert views.dtype == np.uint8 and views.shape == (3, len(_meshes(capture)[0].vertices))
    assert views.max() <= 4
    assert (views > 0).mean() > 0.95 and (views == 4).mean() < 0.05


def test_scale_and_offset_move_the_world_and_leave_the_pictures(capture, tmp_path):
    moved = synthetic.write(TINY, tmp_path / "moved", box_scale=1000.0, box_offset=(5e3, -2e4, 1e4))
    first = iio.imread(capture / "images" / "1" / "cam_002.png")
    assert np.array_equal(first, iio.imread(moved / "images" / "1" / "cam_002.png"))
    a, b = _meshes(capture)[1].vertices, _meshes(moved)[1].vertices
    assert np.abs(a * 1000 + [5e3, -2e4, 1e4] - b).max() < 2e-2
    (_, w2c_a, K), (_, w2c_b, _) = _cameras(capture)[2], _cameras(moved)[2]
    assert np.abs(_project(a, w2c_a, K)[0] - _project(b, w2c_b, K)[0]).max() < 2e-2
    assert not list((moved / "images" / "1").glob("depth*"))


def test_a_failed_write_leaves_nothing_behind_and_the_old_capture_in_place(tmp_path, monkeypatch):
    path = tmp_path / "capture"
    path.mkdir()
    (path / "old.txt").write_text("kept")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(synthetic, "_write_png", full)
    with pytest.raises(DataError, match="could not be written: No space left on device"):
        synthetic.write(TINY, path)
    assert [p.name for p in tmp_path.iterdir()] == ["capture"] and (path / "old.txt").is_file()


def test_another_number_of_frames_is_another_folder_and_other_sections_do_not_matter():
    base = synthetic.capture_path(TINY)
    assert base.parent.name == "results" and base.name.startswith("synthetic-")
    assert synthetic.capture_path(configuration.parse({"preset": "tiny", "synthetic.frames": 5})) != base
    assert synthetic.capture_path(configuration.parse({"preset": "tiny", "synthetic.frames": 3, "synthetic.cameras": 4, "field.steps": 3})) == base


def test_asking_for_the_path_imports_no_torch():
    code = (
        "import sys; from instant_nk import config; from instant_nk.io import synthetic; "
        "synthetic.capture_path(config.parse({})); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
