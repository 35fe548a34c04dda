"""The json vocabulary: every key that is read, every one that is refused, and what the messages say."""

import copy
import json
import logging
import math

import numpy as np
import pytest

from instant_nk.errors import DataError
from instant_nk.io import capture
from tests.unit.capture_writer import rewrite, write_capture

RAD = math.radians


@pytest.fixture
def made(tmp_path):
    """A capture folder and its json."""
    return tmp_path, write_capture(tmp_path, frames=1, cameras=3)


def strip_intrinsics(meta):
    """The json without K, for tests of other intrinsics."""
    meta = copy.deepcopy(meta)
    for entry in meta["frames"]:
        del entry["K"]
    return meta


def read_K(root, meta, size=(40, 32)):
    rewrite(root, meta)
    return [c.K(size) for c in capture.read(root).train.cameras]


def test_the_published_layout_gives_opencv_poses_and_pixel_intrinsics(made):
    root, meta = made
    cameras = capture.read(root).train.cameras
    gl = np.array(meta["frames"][0]["transform_matrix"])
    np.testing.assert_allclose(cameras[0].c2w[:3, 3], gl[:3, 3])
    np.testing.assert_allclose(cameras[0].c2w[:3, 0], gl[:3, 0], atol=1e-12)
    np.testing.assert_allclose(cameras[0].c2w[:3, 1:3], -gl[:3, 1:3], atol=1e-12)  # y down, z forward
    np.testing.assert_allclose(cameras[0].K((40, 32)), meta["frames"][0]["K"])
    assert cameras[0].size == (40, 32)


def test_the_optical_axis_of_an_opencv_pose_points_at_the_subject(made):
    for camera in capture.read(made[0]).train.cameras:
        to_subject = -camera.c2w[:3, 3] / np.linalg.norm(camera.c2w[:3, 3])
        assert camera.c2w[:3, 2] @ to_subject > 0.999


INTRINSICS = {
    "shared fl_x alone serves both axes, centre in the middle": ({"fl_x": 50.0}, {}, [50, 50, 20, 16]),
    "shared fl_x and fl_y": ({"fl_x": 50.0, "fl_y": 60.0}, {}, [50, 60, 20, 16]),
    "cx and cy": ({"fl_x": 50.0, "cx": 19.0, "cy": 17.5}, {}, [50, 50, 19, 17.5]),
    "camera_angle_x in radians": ({"camera_angle_x": RAD(60)}, {}, [20 / math.tan(RAD(30)), 20 / math.tan(RAD(30)), 20, 16]),
    "camera_angle_x and camera_angle_y": ({"camera_angle_x": RAD(60), "camera_angle_y": RAD(40)}, {}, [20 / math.tan(RAD(30)), 16 / math.tan(RAD(20)), 20, 16]),
    "x_fov in degrees": ({"x_fov": 60}, {}, [20 / math.tan(RAD(30)), 20 / math.tan(RAD(30)), 20, 16]),
    "fl_y alone serves both axes": ({"fl_y": 50.0}, {}, [50, 50, 20, 16]),
    "camera_angle_y alone": ({"camera_angle_y": RAD(40)}, {}, [16 / math.tan(RAD(20)), 16 / math.tan(RAD(20)), 20, 16]),
    "x_fov and y_fov": ({"x_fov": 60, "y_fov": 40}, {}, [20 / math.tan(RAD(30)), 16 / math.tan(RAD(20)), 20, 16]),
    "an entry's own fl_x beats the shared one": ({"fl_x": 50.0, "cx": 18.0}, {"fl_x": 55.0}, [55, 55, 18, 16]),
    "an entry's own cx beats the shared one": ({"fl_x": 50.0, "cx": 18.0}, {"cx": 21.0}, [50, 50, 21, 16]),
    "a shared K": ({"K": [[50, 0, 19], [0, 51, 15], [0, 0, 1]]}, {}, [50, 51, 19, 15]),
    "an entry's own fl_x beats a shared K, whose centre stays": ({"K": [[50, 0, 19], [0, 51, 15], [0, 0, 1]]}, {"fl_x": 70.0}, [70, 70, 19, 15]),
    "an entry's own fl_y beats a shared K": ({"K": [[50, 0, 19], [0, 51, 15], [0, 0, 1]]}, {"fl_y": 70.0}, [70, 70, 19, 15]),
    "an entry's own angle beats a shared fl_x": ({"fl_x": 50.0}, {"camera_angle_x": RAD(60)}, [20 / math.tan(RAD(30)), 20 / math.tan(RAD(30)), 20, 16]),
    "an entry's own fov beats a shared angle": ({"camera_angle_x": RAD(30)}, {"x_fov": 60}, [20 / math.tan(RAD(30)), 20 / math.tan(RAD(30)), 20, 16]),
    "an entry's own fl_x alone serves both axes": ({"fl_x": 50.0, "fl_y": 60.0}, {"fl_x": 70.0}, [70, 70, 20, 16]),
    "an entry's own centre beats a shared K's": ({"K": [[50, 0, 19], [0, 51, 15], [0, 0, 1]]}, {"cx": 21.0, "cy": 17.0}, [50, 51, 21, 17]),
    "an entry's own cx alone beats a shared K's": ({"K": [[50, 0, 19], [0, 51, 15], [0, 0, 1]]}, {"cx": 21.0}, [50, 51, 21, 15]),
    "an entry's own lens beats a shared K in all": ({"K": [[50, 0, 19], [0, 51, 15], [0, 0, 1]]}, {"fl_x": 70.0, "cy": 17.0}, [70, 70, 19, 17]),
    "an entry's own K beats shared keys": ({"fl_x": 50.0, "cx": 18.0}, {"K": [[70, 0, 21], [0, 71, 17], [0, 0, 1]]}, [70, 71, 21, 17]),
}


@pytest.mark.parametrize(("shared", "own", "wanted"), INTRINSICS.values(), ids=INTRINSICS.keys())
def test_intrinsics_of_the_nerf_vocabulary(made, shared, own, wanted):
    root, meta = made
    meta = strip_intrinsics(meta) | shared
    meta["frames"][1] |= own
    K = read_K(root, meta)[1]
    np.testing.assert_allclose([K[0, 0], K[1, 1], K[0, 2], K[1, 2]], wanted)


def test_distortion_is_read_shared_and_per_camera(made):
    root, meta = made
    meta |= {"k1": 0.1, "k2": -0.02, "p1": 0.003, "p2": -0.004, "k3": 0.5}
    meta["frames"][2]["k1"] = 0.7
    rewrite(root, meta)
    cameras = capture.read(root).train.cameras
    np.testing.assert_allclose(cameras[0].distortion, [0.1, -0.02, 0.003, -0.004, 0.5])
    np.testing.assert_allclose(cameras[2].distortion, [0.7, -0.02, 0.003, -0.004, 0.5])


def test_a_printed_pose_is_made_exactly_rigid(made):
    root, meta = made
    for entry in meta["frames"]:
        entry["transform_matrix"] = np.array(entry["transform_matrix"]).round(5).tolist()
    rewrite(root, meta)
    for camera in capture.read(root).train.cameras:
        np.testing.assert_allclose(camera.c2w[:3, :3].T @ camera.c2w[:3, :3], np.eye(3), atol=1e-14)


def test_aabb_is_the_box_in_world_units(made):
    root, meta = made
    meta |= {"aabb": [[-3, 0, 10], [-1, 5, 11]], "aabb_scale": 4}
    rewrite(root, meta)
    np.testing.assert_allclose(capture.read(root).box, [[-3, 0, 10], [-1, 5, 11]])


NGP = {
    "aabb_scale alone: instant-ngp's 0.33 and 0.5": ({"aabb_scale": 1}, [-0.5 / 0.33] * 3, [0.5 / 0.33] * 3),
    "aabb_scale 4": ({"aabb_scale": 4}, [-2 / 0.33] * 3, [2 / 0.33] * 3),
    "scale and offset": ({"scale": 0.5, "offset": [0.5, 0.25, 0.0]}, [-1, -0.5, 0], [1, 1.5, 2]),
    "offset as one number": ({"scale": 1.0, "offset": 0.0}, [0] * 3, [1] * 3),
}


@pytest.mark.parametrize(("keys", "low", "high"), NGP.values(), ids=NGP.keys())
def test_scale_offset_and_aabb_scale_give_instant_ngps_box_in_world_units(made, keys, low, high):
    root, meta = made
    del meta["aabb"]
    rewrite(root, meta | keys)
    np.testing.assert_allclose(capture.read(root).box, [low, high])


def test_no_box_keys_give_no_box(made):
    root, meta = made
    del meta["aabb"]
    rewrite(root, meta)
    assert capture.read(root).box is None


def test_depth_scale_is_millimetres_unless_stated(made):
    root, meta = made
    for entry in meta["frames"]:
        entry["depth_path"] = "d.png"
    rewrite(root, meta)
    assert capture.read(root).depth_unit == 0.001
    rewrite(root, meta | {"integer_depth_scale": 0.25})
    assert capture.read(root).depth_unit == 0.25
    rewrite(root, meta | {"depth_unit_scale_factor": 0.002})
    assert capture.read(root).depth_unit == 0.002
    rewrite(root, meta | {"enable_depth_loading": False})
    assert capture.read(root).depth_unit is None


def test_depth_for_some_cameras_only_is_named(made):
    root, meta = made
    meta["frames"][1]["depth_path"] = "d.png"
    rewrite(root, meta)
    with pytest.raises(DataError, match=r"'depth_path' is given for some cameras and missing for others: cam_000.png, cam_002.png"):
        capture.read(root)


REFUSED = {
    "is_fisheye": True, "fisheye": True, "k4": 0.1, "k5": 0.1, "rolling_shutter": [0, 0, 0, 0.1], "ftheta_p0": 1.0, "latlong": True, "from_na": True, "from_mitsuba": True,
    "white_transparent": True, "black_transparent": True, "mask_color": "ff0000", "rays_path": "rays.dat", "transform_matrix_start": [[1]], "fix_premult": True, "lens_mode": 2,
}  # fmt: skip


@pytest.mark.parametrize(("key", "value"), REFUSED.items())
@pytest.mark.parametrize("own", [False, True], ids=["shared", "per camera"])
def test_a_key_that_changes_the_meaning_is_refused(made, key, value, own):
    root, meta = made
    (meta["frames"][1] if own else meta)[key] = value
    rewrite(root, meta)
    with pytest.raises(
        DataError, match=rf"transforms.json: key '{'frames.1..' if own else ''}{key}' = .* changes the meaning of the capture and is not supported\. \w+"
    ):
        capture.read(root)


@pytest.mark.parametrize("key", ["rolling_shutter", "is_fisheye", "k4", "white_transparent"])
def test_neutral_values_of_refused_keys_pass(made, key):
    root, meta = made
    rewrite(root, meta | {key: [0, 0, 0, 0] if key == "rolling_shutter" else 0 if key == "k4" else False})
    capture.read(root)


def test_another_camera_model_is_refused_and_pinhole_passes(made):
    root, meta = made
    rewrite(root, meta | {"camera_model": "OPENCV"})
    capture.read(root)
    rewrite(root, meta | {"camera_model": "OPENCV_FISHEYE"})
    with pytest.raises(DataError, match=r"'camera_model' is 'OPENCV_FISHEYE'; wanted OPENCV \| PINHOLE.*undistort the images first"):
        capture.read(root)


def test_harmless_keys_are_left_out_with_one_log_line(made, caplog):
    root, meta = made
    meta |= {"applied_transform": 1, "n_extra_learnable_dims": 8}
    for entry in meta["frames"]:
        entry["sharpness"] = 31.0
    rewrite(root, meta)
    with caplog.at_level(logging.INFO, logger="instant_nk"):
        capture.read(root)
    lines = [r.getMessage() for r in caplog.records if "ignored keys" in r.getMessage()]
    assert lines == [f"{root / 'transforms.json'}: ignored keys: applied_transform, n_extra_learnable_dims, sharpness"]


def broken(meta, **change):
    """The json with keys of its second camera replaced (None: removed)."""
    meta = copy.deepcopy(meta)
    for key, value in change.items():
        if value is None:
            del meta["frames"][1][key]
        else:
            meta["frames"][1][key] = value
    return meta


def pose(change):
    matrix = np.eye(4)
    change(matrix)
    return matrix.tolist()


def put(row, col, value):
    return lambda m: m.__setitem__((row, col), value)


BAD_ENTRIES = {
    "pose missing": ({"transform_matrix": None}, r"frames\[1\] \('cam_001.png'\): key 'transform_matrix' \(4x4 camera-to-world\) is missing"),
    "pose not finite": ({"transform_matrix": pose(put(0, 3, math.nan))}, r"frames\[1\] .*'transform_matrix' holds values that are not finite"),
    "pose infinite": ({"transform_matrix": pose(put(2, 3, math.inf))}, r"'transform_matrix' holds values that are not finite"),
    "pose scaled": ({"transform_matrix": np.diag([2.0, 2, 2, 1]).tolist()}, r"not rigid: its 3x3 part scales by 2 to 2, wanted 1"),
    "pose sheared": ({"transform_matrix": pose(put(0, 1, 0.3))}, r"not rigid: its 3x3 part scales by"),
    "pose mirrored": ({"transform_matrix": np.diag([-1.0, 1, 1, 1]).tolist()}, r"not rigid: its 3x3 part mirrors \(determinant -1, wanted 1\)"),
    "pose transposed": (
        {"transform_matrix": pose(put(3, 0, 2.0))},
        r"the last row of 'transform_matrix' must be 0 0 0 1, got \[2.0, 0.0, 0.0, 1.0\]\. Is it transposed",
    ),
    "pose of wrong shape": ({"transform_matrix": [[1, 2], [3, 4]]}, r"'transform_matrix' must be 4x4 numbers, got shape \[2, 2\]"),
    "pose of text": ({"transform_matrix": "identity"}, r"'transform_matrix' must be 4x4 numbers"),
    "K with zero focal length": ({"K": [[0, 0, 20], [0, 50, 16], [0, 0, 1]]}, r"frames\[1\].*the focal length must be above zero, got fx=0, fy=50"),
    "K with negative focal length": ({"K": [[50, 0, 20], [0, -50, 16], [0, 0, 1]]}, r"the focal length must be above zero, got fx=50, fy=-50"),
    "K not finite": ({"K": [[math.nan, 0, 20], [0, 50, 16], [0, 0, 1]]}, r"'K' holds values that are not finite"),
    "K transposed": ({"K": [[50, 0, 0], [0, 50, 0], [20, 16, 1]]}, r"'K' must have the rows fx s cx .*Is it transposed"),
    "no intrinsics": ({"K": None}, r"no intrinsics: wanted 'K', 'fl_x' or 'camera_angle_x'"),
    "fl_x zero": ({"K": None, "fl_x": 0}, r"the focal length 'fl_x' must be above zero, got 0"),
    "fl_x of text": ({"K": None, "fl_x": "50"}, r"'fl_x' must be a finite number, got '50'"),
    "angle too wide": ({"K": None, "camera_angle_x": 4.0}, r"the view angle 'camera_angle_x' must lie between 0 and 180 degrees"),
    "file_path missing": ({"file_path": None}, r"frames\[1\]: key 'file_path' is missing"),
    "file_path not text": ({"file_path": 7}, r"'file_path' must be a file name, got 7"),
    "file_path twice": ({"file_path": "cam_000.png"}, r"'file_path' must be unique per camera \(and time\), found twice: cam_000.png"),
    "k1 not finite": ({"k1": math.inf}, r"'k1' must be a finite number, got inf"),
}


@pytest.mark.parametrize(("change", "message"), BAD_ENTRIES.values(), ids=BAD_ENTRIES.keys())
def test_an_unsound_camera_is_named_with_what_is_wrong(made, change, message):
    root, meta = made
    rewrite(root, broken(meta, **change))
    with pytest.raises(DataError, match=message):
        capture.read(root)


def test_a_width_without_a_height_is_named(made):
    root, meta = made
    del meta["h"]
    rewrite(root, meta)
    with pytest.raises(DataError, match="'w' and 'h' must be given together"):
        capture.read(root)


BAD_BOXES = {
    "zero size": ([[-1, -1, -1], [1, -1, 1]], r"the box \('aabb'\) has zero size along y"),
    "inverted": ([[-1, -1, 2], [1, 1, 1]], r"has inverted size along z: min \[-1.0, -1.0, 2.0\], max \[1.0, 1.0, 1.0\]. Wanted min below max"),
    "not finite": ([[-1, -1, math.nan], [1, 1, 1]], r"'aabb' holds values that are not finite"),
    "of wrong shape": ([-1, -1, -1, 1, 1, 1], r"'aabb' must be 2x3 numbers, got shape \[6\]"),
}


@pytest.mark.parametrize(("box", "message"), BAD_BOXES.values(), ids=BAD_BOXES.keys())
def test_an_unsound_box_is_named(made, box, message):
    root, meta = made
    rewrite(root, meta | {"aabb": box})
    with pytest.raises(DataError, match=message):
        capture.read(root)


@pytest.mark.parametrize(
    ("keys", "message"), [({"scale": 0}, "'scale' must be above zero"), ({"aabb_scale": -1}, "has inverted size"), ({"aabb_scale": 0}, "has zero size")]
)
def test_an_unsound_instant_ngp_box_is_named(made, keys, message):
    root, meta = made
    del meta["aabb"]
    rewrite(root, meta | keys)
    with pytest.raises(DataError, match=message):
        capture.read(root)


def test_broken_json_is_named_with_its_place(made):
    root, meta = made
    (root / "transforms.json").write_text(json.dumps(meta)[:-20])
    with pytest.raises(DataError, match=r"transforms.json: broken JSON at line 1, column \d+: .*\. Repair or re-export the file"):
        capture.read(root)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "key 'frames' .* is missing"),
        ({"frame": [1]}, "key 'frames' .* is missing. Did you mean it by 'frame'"),
        ({"frames": {}}, "key 'frames' .* is not a list"),
        ({"frames": []}, "'frames' is empty: zero cameras"),
        ([1, 2], "wanted a table with 'frames', got list"),
        ({"frames": [3]}, r"frames\[0\]: wanted a table with 'file_path' and 'transform_matrix', got int"),
    ],
)
def test_a_json_without_cameras_is_named(tmp_path, content, message):
    (tmp_path / "transforms.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=message):
        capture.read(tmp_path)


def test_a_misspelt_key_is_suggested(made):
    root, meta = made
    meta["frames"][0]["transform_matrx"] = meta["frames"][0].pop("transform_matrix")
    rewrite(root, meta)
    with pytest.raises(DataError, match="Did you mean it by 'transform_matrx'"):
        capture.read(root)
