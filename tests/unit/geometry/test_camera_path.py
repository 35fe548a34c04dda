"""Camera paths stay where a rig has looked from, and look at the subject."""

import numpy as np
import pytest

from instant_nk.geometry import camera_path


def _ring(degrees, height=0.4, radius=3.0, centre=(0, 0, 0)):
    a = np.radians(degrees)
    eyes = np.stack([radius * np.sin(a), np.full(len(a), height), radius * np.cos(a)], 1) + np.array(centre)
    return np.stack([camera_path.look_at(eye, np.array(centre, float), np.array([0.0, 1, 0])) for eye in eyes])


def _azimuth(poses, centre):
    offset = poses[:, :3, 3] - centre
    return np.degrees(np.arctan2(offset[:, 0], offset[:, 2]))


def test_poses_are_rigid_and_look_at_the_centre():
    centre = np.array([5.0, -2, 1])
    poses = camera_path.orbit(_ring(np.arange(0, 360, 30), centre=centre), centre, 10)
    rotation = poses[:, :3, :3]
    assert np.allclose(rotation @ rotation.swapaxes(1, 2), np.eye(3)) and np.allclose(np.linalg.det(rotation), 1)
    towards = centre - poses[:, :3, 3]
    assert np.allclose(towards / np.linalg.norm(towards, axis=1, keepdims=True), rotation[:, :, 2])
    assert (rotation[:, 1, 1] < 0).all()  # image down is world down: nobody stands on the head


def test_a_rig_around_the_subject_is_circled_evenly():
    poses = camera_path.orbit(_ring(np.arange(0, 360, 30)), np.zeros(3), 12)
    steps = np.diff(np.unwrap(_azimuth(poses, np.zeros(3)), period=360))
    assert np.allclose(np.abs(steps), 30)
    assert np.allclose(np.linalg.norm(poses[:, :3, 3], axis=1), np.hypot(3, 0.4))


def test_a_rig_in_front_is_swept_within_its_outermost_cameras():
    azimuth = _azimuth(camera_path.orbit(_ring([-40, -10, 15, 50]), np.zeros(3), 20), np.zeros(3))
    assert azimuth.min() == pytest.approx(-40, abs=3) and azimuth.max() == pytest.approx(50, abs=3)


def test_one_camera_is_enough_for_a_look_around():
    azimuth = _azimuth(camera_path.orbit(_ring([20]), np.zeros(3), 16), np.zeros(3))
    assert 20 - 15 < azimuth.min() < azimuth.max() < 20 + 15 and np.ptp(azimuth) > 20


def test_a_turntable_turns_fully_from_the_first_camera_whatever_the_rig_saw():
    poses = camera_path.turntable(_ring([-40, -10, 15, 50]), np.zeros(3), 9)
    azimuth = np.unwrap(_azimuth(poses, np.zeros(3)), period=360)
    assert azimuth[0] % 360 == pytest.approx(320, abs=1) and np.allclose(np.abs(np.diff(azimuth)), 40, atol=2)
    assert np.allclose(np.linalg.norm(poses[:, :3, 3], axis=1), np.hypot(3, 0.4))


def test_pictures_take_the_subject_s_shape_and_even_sides():
    poses = camera_path.turntable(_ring([0, 90, 180, 270]), np.zeros(3), 8)
    tall = np.random.default_rng(0).uniform(-1, 1, (300, 3)) * [0.2, 1, 0.2]
    width, height = camera_path.snug_size(tall, poses, 320)
    assert height == 320 and width == 160  # 1:2 at most
    width, height = camera_path.snug_size(tall * [4, 1, 4], poses, 321)
    assert width % 2 == height % 2 == 0 and 0.7 <= width / height < 1.2
    K = camera_path.framing(tall, poses, (160, 320))
    assert max(np.abs((p := ((tall - pose[:3, 3]) @ pose[:3, :3]) @ K.T)[:, :2] / p[:, 2:] / [160, 320] - 0.5).max() for pose in poses) == pytest.approx(0.46)


def test_framing_keeps_every_point_in_the_picture_and_wastes_little():
    rng = np.random.default_rng(0)
    points = rng.uniform(-1, 1, (200, 3))
    poses = camera_path.orbit(_ring(np.arange(0, 360, 45)), np.zeros(3), 6)
    K = camera_path.framing(points, poses, (64, 48))
    reach = []
    for pose in poses:
        p = ((points - pose[:3, 3]) @ pose[:3, :3]) @ K.T
        reach.append(np.abs(p[:, :2] / p[:, 2:] / np.array([64, 48]) - 0.5).max())
    assert max(reach) == pytest.approx(0.46)


@pytest.mark.parametrize(("frames", "count", "expected"), [(3, 8, [0, 1, 2, 1, 0, 1, 2, 1]), (1, 3, [0, 0, 0]), (5, 3, [0, 2, 4]), (4, 4, [0, 1, 2, 3])])
def test_the_clip_plays_to_and_fro_or_is_spread(frames, count, expected):
    assert camera_path.frame_order(frames, count).tolist() == expected
