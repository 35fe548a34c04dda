"""Cameras in scene space: axes, pixel centres, rays and projection undo each other."""

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from instant_nk.geometry import spaces
from instant_nk.geometry.cameras import Cameras, project

K = np.array([[50.0, 0, 20], [0, 40, 15], [0, 0, 1]])


def poses(count):
    c2w = np.tile(np.eye(4), (count, 1, 1))
    c2w[:, :3, :3] = Rotation.random(count, random_state=0).as_matrix()
    c2w[:, :3, 3] = np.random.default_rng(0).normal(size=(count, 3))
    return c2w


def test_the_ray_through_the_principal_point_is_the_optical_axis():
    origins, directions = Cameras.from_world(np.eye(4)[None], K[None], np.eye(4)).rays(torch.tensor([0]), torch.tensor([[20.0, 15.0]]))
    assert origins.tolist() == [[0, 0, 0]]
    assert directions.tolist() == [[0, 0, 1]]


def test_pixels_to_the_right_look_along_x_and_pixels_below_look_along_y():
    _, directions = Cameras.from_world(np.eye(4)[None], K[None], np.eye(4)).rays(torch.tensor([0, 0]), torch.tensor([[70.0, 15.0], [20.0, 55.0]]))
    torch.testing.assert_close(directions, torch.tensor([[1.0, 0, 1], [0, 1, 1]]) / 2**0.5)


@pytest.mark.parametrize("skew", [0.0, 3.0])
def test_a_point_on_a_ray_projects_to_the_rays_pixel(skew):
    c2w, intrinsics = poses(5), np.tile(K, (5, 1, 1))
    intrinsics[:, 0, 1] = skew
    cameras = Cameras.from_world(c2w, intrinsics, spaces.similarity_from_box([[-3, -1, 0], [1, 2, 5]]))
    camera, pixels = torch.arange(5).repeat(20), torch.rand(100, 2) * 40
    origins, directions = cameras.rays(camera, pixels)
    torch.testing.assert_close(directions.norm(dim=1), torch.ones(100))
    distance = torch.rand(100) + 0.5
    for c in range(5):
        rows = camera == c
        points = origins[rows] + directions[rows] * distance[rows, None]
        seen, depth = project(points, torch.linalg.inv(cameras.c2w[c]), cameras.K[c])
        torch.testing.assert_close(seen, pixels[rows], atol=2e-3, rtol=0)
        torch.testing.assert_close(depth, distance[rows] * (directions[rows] @ cameras.c2w[c, :3, 2]), atol=1e-5, rtol=1e-5)


def test_a_point_behind_the_camera_has_negative_depth_and_a_finite_pixel():
    pixels, depth = project(torch.tensor([[0.1, 0.0, -2.0]]), torch.eye(4), torch.from_numpy(K).float())
    assert depth.item() == -2 and torch.isfinite(pixels).all()


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_poses_in_scene_space_stay_rigid_and_see_the_same_picture(scale):
    box = np.array([[-1.0, -2, -3], [4, 5, 6]]) * scale + 10 * scale
    similarity, c2w = spaces.similarity_from_box(box), poses(4)
    c2w[:, :3, 3] *= scale
    scene = spaces.transform_poses(similarity, c2w)
    np.testing.assert_allclose(scene[:, :3, :3] @ scene[:, :3, :3].swapaxes(1, 2), np.tile(np.eye(3), (4, 1, 1)), atol=1e-12)
    np.testing.assert_allclose(scene[:, :3, 3], spaces.transform_points(similarity, c2w[:, :3, 3]), atol=1e-12)
    points = np.random.default_rng(1).uniform(box[0], box[1], (50, 3))
    for world, moved in zip(c2w, scene):
        local = (points - world[:3, 3]) @ world[:3, :3] @ K.T
        pixels, depth = project(torch.from_numpy(spaces.transform_points(similarity, points)), torch.from_numpy(np.linalg.inv(moved)), torch.from_numpy(K))
        front = local[:, 2] > 0.1 * scale
        np.testing.assert_allclose(pixels.numpy()[front], (local[:, :2] / local[:, 2:])[front], rtol=1e-9, atol=1e-6)
        np.testing.assert_allclose(depth.numpy(), local[:, 2] * spaces.scale_of(similarity), atol=1e-9)
