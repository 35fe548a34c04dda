"""Which camera sees which vertex, and the colour it sees there: balls whose visible halves and colours are known."""

import numpy as np
import pytest
import torch
import trimesh

from instant_nk.fitting.visibility import observed_colours, sample_image, seen_by
from instant_nk.geometry import spaces
from instant_nk.io import dataset as datasets
from instant_nk.stages import dataset as dataset_stage
from tests.unit.capture_writer import BALLS, job, write_capture


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Six cameras of 200 x 160 pixels."""
    root = tmp_path_factory.mktemp("visibility")
    write_capture(root / "capture", frames=1, cameras=6, heldout=0, size=(200, 160))
    work = job(root / "capture", root / "results", dataset={"hull_resolution": 16})
    dataset_stage.run(work)
    return datasets.load(work.paths.manifest)


@pytest.fixture(scope="module")
def subject(dataset):
    """The balls of frame 0 in scene space: vertices, faces, normals, which ball, and how far outside the other one (world units)."""
    parts = [trimesh.creation.icosphere(3, radius).apply_translation(centre) for centre, radius, _ in BALLS]
    mesh = trimesh.util.concatenate(parts)
    normals = np.concatenate([(part.vertices - centre) / radius for part, (centre, radius, _) in zip(parts, BALLS)])
    other = np.concatenate([np.linalg.norm(p.vertices - c, axis=1) - r for p, (c, r, _) in zip(parts, reversed(BALLS))])
    ball = np.repeat([0, 1], [len(p.vertices) for p in parts])
    vertices = spaces.transform_points(dataset.scene_from_world, mesh.vertices).astype(np.float32)
    return vertices, mesh.faces.astype(np.int32), normals.astype(np.float32), ball, other


def eyes(dataset):
    return spaces.transform_poses(dataset.scene_from_world, dataset.cameras.c2w)[:, :3, 3]


def towards(eye, vertices):
    return (eye - vertices) / np.linalg.norm(eye - vertices, axis=1, keepdims=True)


def test_a_camera_sees_the_side_that_faces_it_and_nothing_turned_away(dataset, subject):
    vertices, faces, normals, ball, other = subject
    seen = seen_by(dataset, vertices, faces)
    assert seen.shape == (len(dataset.cameras), len(vertices)) and seen.dtype == bool
    for camera, eye in enumerate(eyes(dataset)):
        facing = (towards(eye, vertices) * normals).sum(1)
        assert not seen[camera, facing < -0.3].any()  # at 200 pixels a rim is two or three of them wide
        assert seen[camera, (facing > 0.3) & (ball == 0) & (other > 0)].mean() > 0.75  # the small ball hides some of the large one


def test_what_another_part_hides_is_not_seen(dataset, subject):
    """From each camera, the rays to vertices it claims to see meet no other ball first."""
    vertices, faces, _, ball, other = subject
    seen = seen_by(dataset, vertices, faces)
    for camera, eye in enumerate(eyes(dataset)):
        direction = vertices - eye
        length = np.linalg.norm(direction, axis=1)
        direction /= length[:, None]
        for index, (centre, radius, _) in enumerate(BALLS):
            to_centre = spaces.transform_points(dataset.scene_from_world, centre) - eye
            along = direction @ to_centre
            miss = np.linalg.norm(to_centre - along[:, None] * direction, axis=1)
            hidden = (miss < 0.9 * radius * dataset.scale) & (along < length) & (ball != index)
            assert not seen[camera, hidden].any()
    assert not seen[:, other < -0.03].any()


def test_observed_colours_are_those_of_the_pictures_and_grey_where_none_sees(dataset, subject):
    vertices, faces, normals, ball, other = subject
    seen = seen_by(dataset, vertices, faces)
    seen[:, :5] = False
    colours = observed_colours(dataset, 0, vertices, normals, seen)
    assert colours.shape == (len(vertices), 3)
    assert (colours[:5] == 0.5).all()
    best = np.max([np.where(s, (towards(eye, vertices) * normals).sum(1), -1) for s, eye in zip(seen, eyes(dataset))], axis=0)
    for index, (_, _, colour) in enumerate(BALLS):
        mine = (ball == index) & (best > 0.4) & (other > 0.12)  # more than a glance at the rim, and off the seam
        assert mine.sum() > 50
        error = np.abs(colours[mine] * 255 - colour).max(1)
        assert np.percentile(error, 98) < 3 and error.max() < 60  # a second camera may see the vertex at its rim


def test_seeing_costs_no_more_with_larger_images(dataset, subject, monkeypatch):
    """Visibility is decided on images of at most 256 pixels."""
    from instant_nk.fitting import visibility

    sizes = []
    monkeypatch.setattr(visibility, "visible_in_views", lambda points, faces, w2c, K, size: sizes.extend(size) or torch.zeros(len(K), len(points)))
    monkeypatch.setattr(visibility, "MAX_SIDE", 20)
    seen_by(dataset, *subject[:2])
    assert set(sizes) == {(20, 16)}


def test_an_image_is_sampled_between_pixel_centres_with_straight_colour():
    rgba = torch.zeros(2, 4, 4, dtype=torch.uint8)
    rgba[0, 1] = torch.tensor([255, 0, 0, 255])
    rgba[0, 2] = torch.tensor([0, 255, 0, 255])
    rgba[1, 1] = torch.tensor([0, 0, 255, 51])
    colour, alpha = sample_image(rgba, torch.tensor([[1.5, 0.5], [2.0, 0.5], [1.5, 1.5], [1.5, 1.0], [3.5, 1.5], [-9.0, 0.5]]))
    torch.testing.assert_close(colour[:3], torch.tensor([[1.0, 0, 0], [0.5, 0.5, 0], [0, 0, 1]]), atol=1e-4, rtol=0)
    torch.testing.assert_close(colour[3], torch.tensor([1 / 1.2, 0, 0.2 / 1.2]), atol=1e-4, rtol=0)  # what is half covered counts half
    torch.testing.assert_close(alpha, torch.tensor([1.0, 1, 0.2, 0.6, 0, 0]), atol=1e-6, rtol=0)
