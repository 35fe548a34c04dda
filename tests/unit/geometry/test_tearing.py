"""Webs between parts that touched at rest: found, cut, and closed on both sides; real skin is left alone."""

import numpy as np
import pytest
import trimesh
from skimage.measure import marching_cubes

from instant_nk.geometry import tearing


@pytest.fixture(scope="module")
def touching():
    """Two balls of radius 0.5 that touch over a small disc, as one closed mesh."""
    axis = np.linspace(-1.3, 1.3, 60)
    x, y, z = np.meshgrid(axis, axis, axis, indexing="ij")
    distance = np.minimum(np.sqrt((x - 0.48) ** 2 + y**2 + z**2), np.sqrt((x + 0.48) ** 2 + y**2 + z**2)) - 0.5
    vertices, faces, _, _ = marching_cubes(distance, 0, spacing=(axis[1] - axis[0],) * 3)
    vertices, faces = vertices - 1.3, faces.astype(np.int32)
    assert trimesh.Trimesh(vertices, faces, process=False).is_watertight
    return vertices, faces


def apart(vertices, gap):
    """The right ball moved away; the few vertices between follow in part."""
    return vertices + np.clip((vertices[:, :1] + 0.05) / 0.1, 0, 1) * [gap, 0, 0]


def test_a_web_between_two_balls_is_cut_and_both_are_closed(touching):
    rest, faces = touching
    frames = [rest, apart(rest, 0.2), apart(rest, 0.8)]
    cut = tearing.torn_faces(rest, faces, frames, 3, 4.0)
    assert 0 < cut.sum() < 0.1 * len(faces)
    assert np.abs(rest[faces[cut]][..., 0]).max() < 0.12  # nothing but the contact
    kept, caps = tearing.without(rest, faces, cut)
    whole = trimesh.Trimesh(frames[2], np.concatenate([kept, caps]), process=True)
    assert whole.is_watertight and whole.is_winding_consistent and whole.body_count == 2
    assert whole.volume == pytest.approx(2 * 4 / 3 * np.pi * 0.5**3, rel=0.08)  # stumps of the web remain


def test_skin_that_stretches_at_a_joint_stays(touching):
    rest, faces = touching
    assert not tearing.torn_faces(rest, faces, [rest, apart(rest, 0.2)], 2, 4.0).any()  # three times as long as at rest
    assert not tearing.torn_faces(rest, faces, [2.5 * rest], 1, 4.0).any()


def test_a_tear_must_last_in_a_long_clip(touching):
    rest, faces = touching
    frames = [rest] * 199 + [apart(rest, 0.8)]
    assert not tearing.torn_faces(rest, faces, frames, 200, 4.0).any()
    assert tearing.torn_faces(rest, faces, frames[3:-1] + [apart(rest, 0.8)] * 4, 200, 4.0).any()


def test_a_small_part_of_its_own_is_no_crumb(touching):
    rest, faces = touching
    speck = trimesh.creation.icosphere(1, 0.05)
    vertices = np.concatenate([rest, speck.vertices + [0, 0, 1.2]])
    both = np.concatenate([faces, speck.faces + len(rest)])
    live = np.concatenate([apart(rest, 0.8), speck.vertices + [0, 0, 2.2]])
    cut = tearing.torn_faces(vertices, both, [live], 1, 4.0)
    assert cut[: len(faces)].any() and not cut[len(faces) :].any()


def test_nothing_is_cut_from_what_stays_together(touching):
    rest, faces = touching
    kept, caps = tearing.without(rest, faces, np.zeros(len(faces), bool))
    np.testing.assert_array_equal(kept, faces)
    assert caps.shape == (0, 3)


def test_a_wound_that_runs_into_a_border_stays_open():
    """A flat strip torn across: there is nothing to close."""
    x, y = np.meshgrid(np.arange(6.0), np.arange(3.0), indexing="ij")
    vertices = np.stack([x.ravel(), y.ravel(), 0 * x.ravel()], -1)
    corner = np.arange(18).reshape(6, 3)[:-1, :-1].ravel()
    faces = np.concatenate([np.stack([corner, corner + 3, corner + 1], 1), np.stack([corner + 1, corner + 3, corner + 4], 1)])
    cut = (vertices[faces][..., 0].min(1) >= 2) & (vertices[faces][..., 0].max(1) <= 3)
    kept, caps = tearing.without(vertices, faces, cut)
    assert len(kept) == len(faces) - 4 and len(caps) == 0


def test_what_would_close_a_hole_may_itself_be_too_far_stretched(touching):
    rest, faces = touching
    left, right = int(rest[:, 0].argmin()), int(rest[:, 0].argmax())
    near = [int(np.abs(rest - point).sum(1).argmin()) for point in ([-0.1, 0.2, 0], [0.1, 0.2, 0])]
    across, within = [near[0], near[1], left], faces[(rest[faces][..., 0] > 0.3).all(1)][0]
    found = tearing.stretched(rest, np.array([across, within, [right, *within[:2]]]), [rest, apart(rest, 1.5)], 2, (4.0, 20.0))
    np.testing.assert_array_equal(found, [[True, False, False], [False, False, False]])
