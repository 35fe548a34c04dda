"""World and scene: round trips wherever the box lies, and what happens to cameras."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from instant_nk.geometry import spaces

sizes = st.floats(-3, 3).map(lambda e: 10.0**e)
shifts = st.tuples(*[st.floats(-10, 10)] * 3).map(np.array)
shapes = st.tuples(*[st.floats(0.05, 1)] * 3).map(np.array)


def box_of(size, shift, shape):
    """A box of `size`, `shift` box sizes off the origin."""
    edges = size * shape / shape.max()
    return np.stack([size * shift - edges / 2, size * shift + edges / 2])


@given(size=sizes, shift=shifts, shape=shapes, seed=st.integers(0, 99))
def test_float32_scene_points_come_back_to_world_within_a_hundred_thousandth_of_the_box(size, shift, shape, seed):
    box = box_of(size, shift, shape)
    scene_from_world = spaces.similarity_from_box(box)
    world = box[0] + np.random.default_rng(seed).random((200, 3)) * (box[1] - box[0])
    scene = spaces.transform_points(scene_from_world, world).astype(np.float32)  # what a stage keeps
    assert np.abs(scene).max() <= 1 + 1e-6
    back = spaces.transform_points(spaces.invert_similarity(scene_from_world), scene)
    assert np.abs(back - world).max() < 1e-6 * size
    assert np.abs(back.astype(np.float32) - world).max() < 1e-5 * size  # what an export keeps


@given(size=sizes, shift=shifts, shape=shapes)
def test_the_box_spans_the_scene_along_its_longest_edge(size, shift, shape):
    box = box_of(size, shift, shape)
    corners = spaces.transform_points(spaces.similarity_from_box(box), box)
    np.testing.assert_allclose(corners.mean(0), 0, atol=1e-9)
    np.testing.assert_allclose(np.abs(corners).max(), 1, atol=1e-9)
    assert spaces.scale_of(spaces.similarity_from_box(box)) == pytest.approx(2 / size)


@given(size=sizes, shift=shifts, seed=st.integers(0, 99))
def test_a_pixel_sees_the_same_point_in_world_and_in_scene(size, shift, seed):
    rng = np.random.default_rng(seed)
    similarity = spaces.similarity_from_box(box_of(size, shift, np.ones(3)))
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    rotation *= np.sign(np.linalg.det(rotation))
    c2w = np.eye(4)
    c2w[:3, :3], c2w[:3, 3] = rotation, size * (shift + 3 * rotation[:, 2])
    point = size * (shift + rng.uniform(-0.5, 0.5, 3))
    local = spaces.transform_points(spaces.invert_poses(c2w), point)
    scene_pose = spaces.transform_poses(similarity, c2w)
    scene_local = spaces.transform_points(spaces.invert_poses(scene_pose), spaces.transform_points(similarity, point))
    np.testing.assert_allclose(scene_pose[:3, :3].T @ scene_pose[:3, :3], np.eye(3), atol=1e-12)
    np.testing.assert_allclose(scene_local, local * spaces.scale_of(similarity), rtol=1e-9, atol=1e-9)


def test_the_inverse_of_a_turned_similarity_undoes_it():
    angle = 0.7
    similarity = np.array([[np.cos(angle), -np.sin(angle), 0, 5], [np.sin(angle), np.cos(angle), 0, -2], [0, 0, 1, 7], [0, 0, 0, 1]])
    similarity[:3, :3] *= 3
    np.testing.assert_allclose(spaces.invert_similarity(similarity) @ similarity, np.eye(4), atol=1e-14)


def test_box_corners_are_numbered_by_axis_bits():
    corners = spaces.box_corners(np.array([[0, 0, 0], [1, 2, 3]]))
    np.testing.assert_array_equal(corners[[0, 1, 2, 4, 7]], [[0, 0, 0], [1, 0, 0], [0, 2, 0], [0, 0, 3], [1, 2, 3]])
