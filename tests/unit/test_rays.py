"""Training rays: the pixels near the subject, each with the colour it has in its image and a ray that hits what it shows."""

import numpy as np
import pytest
import torch

from instant_nk.errors import DataError
from instant_nk.fitting.rays import MASK_MARGIN, PixelSource
from instant_nk.geometry import spaces
from instant_nk.io import dataset as datasets
from tests.unit import neural_fixtures
from tests.unit.capture_writer import BALLS

MANY = 10**6


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The dataset of two balls, and the pixels of its frames 0 and 2."""
    dataset = datasets.load(neural_fixtures.balls(tmp_path_factory.getbasetemp()).paths.manifest)
    return dataset, PixelSource(dataset, [0, 2], MANY)


def batch_of(source, rays=4000):
    return source.batch(source.draw(rays, torch.Generator().manual_seed(0)))


def test_rays_of_subject_pixels_hit_the_ball_of_their_colour(made):
    dataset, source = made
    batch = batch_of(source)
    for index, (centre, radius, colour) in enumerate(BALLS):
        mine = (batch.alpha == 1) & ((batch.rgb * 255 - torch.tensor(colour)).abs().max(1).values < 0.5)
        assert mine.sum() > 100
        moved = centre + np.array([0, 0.04, 0]) * index * torch.tensor([0, 2])[batch.frame[mine]].numpy()[:, None]
        to_centre = torch.from_numpy(spaces.transform_points(dataset.scene_from_world, moved)).float() - batch.origins[mine]
        along = (to_centre * batch.directions[mine]).sum(1, keepdim=True)
        miss = (to_centre - along * batch.directions[mine]).norm(dim=1) / dataset.scale
        assert miss.max() < radius * 1.001
    assert set(batch.frame.tolist()) == {0, 1}


def test_rays_of_background_pixels_pass_the_subject_but_not_far(made):
    dataset, source = made
    batch = batch_of(source)
    outside = batch.alpha == 0
    assert 0.1 < outside.float().mean() < 0.6
    distance = []
    for index, (centre, radius, _) in enumerate(BALLS):
        moved = centre + np.array([0, 0.04, 0]) * index * torch.tensor([0, 2])[batch.frame[outside]].numpy()[:, None]
        to_centre = torch.from_numpy(spaces.transform_points(dataset.scene_from_world, moved)).float() - batch.origins[outside]
        along = (to_centre * batch.directions[outside]).sum(1, keepdim=True)
        distance.append((to_centre - along * batch.directions[outside]).norm(dim=1) / dataset.scale - radius)
    nearest = torch.stack(distance).min(0).values
    assert nearest.min() > -0.001 and nearest.max() < 0.35


def test_only_pixels_within_the_margin_of_a_mask_are_kept(made):
    dataset, source = made
    margin = max(2, round(MASK_MARGIN * 40))
    count = 0
    for frame in (0, 2):
        for camera in range(len(dataset.cameras)):
            mask = dataset.image(camera, frame)[..., 3] > 0
            grown = np.zeros_like(mask)
            for y, x in zip(*mask.nonzero()):
                grown[max(0, y - margin) : y + margin + 1, max(0, x - margin) : x + margin + 1] = True
            count += grown.sum()
    assert len(source) == count


def test_a_pixel_takes_twelve_bytes(made):
    _, source = made
    assert sum(t.element_size() * t.numel() for t in (source.colours, source.pixels, source.views)) == 12 * len(source)


def test_no_more_pixels_are_kept_than_allowed_and_every_view_has_its_share(made):
    dataset, everything = made
    source = PixelSource(dataset, [0, 2], 1200)
    assert len(source) == 1200
    views = 2 * len(dataset.cameras)
    assert source.views.bincount().tolist() == [1200 // views] * views
    wanted = set(map(tuple, torch.cat([everything.views[:, None], everything.pixels, everything.colours], 1).tolist()))
    kept = list(map(tuple, torch.cat([source.views[:, None], source.pixels, source.colours], 1).tolist()))
    assert set(kept) <= wanted and len(set(kept)) == len(kept)


def test_several_readers_keep_the_same_pixels_as_one(made):
    dataset, everything = made
    for most in (MANY, 1200):
        alone, together = PixelSource(dataset, [0, 2], most), PixelSource(dataset, [0, 2], most, threads=3)
        for name in ("colours", "pixels", "views"):
            assert torch.equal(getattr(alone, name), getattr(together, name))
    image, first = dataset.image(0, 0), everything.views == 0
    columns, rows = everything.pixels[first].long().numpy().T
    assert (everything.colours[first].numpy() == image[rows, columns]).all() and len(rows) > (image[..., 3] > 0).sum()


def test_other_frames_are_never_read(tmp_path):
    dataset = datasets.load(neural_fixtures.balls(tmp_path).paths.manifest)
    for camera in range(len(dataset.cameras)):
        dataset.image_path(camera, 1).write_bytes(b"not an image")
    assert len(PixelSource(dataset, [0, 2], MANY))
    with pytest.raises(DataError, match="cannot be read"):
        PixelSource(dataset, [1], MANY)


def test_the_same_generator_draws_the_same_rays(made):
    _, source = made
    a, b = batch_of(source, 50), batch_of(source, 50)
    assert all(torch.equal(getattr(a, name), getattr(b, name)) for name in a.__dataclass_fields__)
