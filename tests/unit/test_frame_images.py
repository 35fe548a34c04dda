"""Images prepared for registration: both ways of preparing them agree, and the distance transform is scipy's."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt

from instant_nk.fitting import frame_images
from instant_nk.fitting.frame_images import LEVELS, Views, load_images, prepared_at_once
from instant_nk.fitting.image_evidence import LEAST_ALPHA
from instant_nk.geometry import distance_transform

SIZES, REDUCE = [(72, 56), (72, 56), (50, 40), (60, 44)], [1, 1, 1, 2]  # (width, height) of the reduced images


def painted(width, height, kind):
    """An image u8 [H, W, 4] of a painted ellipse: whole, cut off by the border, or absent."""
    rng = np.random.default_rng(width + height + len(kind))
    y, x = np.mgrid[:height, :width]
    middle = (0.95 * width, 0.5 * height) if kind == "cut" else (0.45 * width, 0.5 * height)
    inside = ((x - middle[0]) / (0.3 * width)) ** 2 + ((y - middle[1]) / (0.35 * height)) ** 2 < (0 if kind == "absent" else 1)
    colour = np.clip(0.5 + 0.3 * np.stack([np.sin(x / 5), np.cos(y / 4), np.sin((x + y) / 7)], -1) + rng.normal(0, 0.02, (height, width, 3)), 0, 1)
    return np.concatenate([255 * colour, 255.0 * inside[..., None]], -1).astype(np.uint8)


@pytest.fixture(scope="module")
def both():
    """Prepared crop by crop, and at once."""
    images = [painted(w * r - (r > 1), h * r, kind) for (w, h), r, kind in zip(SIZES, REDUCE, ("whole", "cut", "absent", "whole"))]
    views = Views([0, 1, 2, 3], torch.eye(4).expand(4, 4, 4).double(), torch.eye(3).expand(4, 3, 3).double(), SIZES, REDUCE)
    return load_images(SimpleNamespace(image=lambda view, frame: images[view]), views, 0), prepared_at_once(images, views, "cpu")


def places():
    """Every view's pixels and what lies around them, off the pixels' centres: views [Q], (x, y) [Q, 2]."""
    parts = []
    for view, (w, h) in enumerate(SIZES):
        x, y = np.meshgrid(np.arange(-2, w + 2) + 0.3, np.arange(-2, h + 2) + 0.8)
        parts.append((np.full(x.size, view), np.stack([x.ravel(), y.ravel()], 1)))
    return tuple(torch.from_numpy(np.concatenate(x)) for x in zip(*parts))


@pytest.mark.parametrize("level", range(LEVELS))
def test_the_pyramid_is_the_same_at_once_where_the_crops_have_it(both, level):
    one, other = (images.levels[level].sample(*places()) for images in both)
    torch.testing.assert_close(one[:, 9], other[:, 9], atol=1e-5, rtol=0)
    compared = one[:, 9] > LEAST_ALPHA
    assert 300 < int(compared.sum()) < len(compared) / 2
    torch.testing.assert_close(one[compared], other[compared], atol=2e-5, rtol=1e-4)


def test_the_distance_is_the_same_at_once_where_the_crops_have_it(both):
    one, other = (images.outside.sample(*places()) for images in both)
    known = one[:, 3] == 1
    assert int(known.sum()) > 3000
    torch.testing.assert_close(one[known][:, 0], other[known][:, 0], atol=1e-4, rtol=1e-5)
    inner = known & (one[:, 0].abs() < 4)  # a blur at the crop's border is not the image's
    torch.testing.assert_close(one[inner][:, 1:3], other[inner][:, 1:3], atol=2e-3, rtol=1e-3)
    assert not other[places()[0] == 2].any()  # no subject, nothing known


def test_the_outline_is_the_same_at_once(both):
    one, other = both
    assert one.outlined.sum(1).tolist() == other.outlined.sum(1).tolist() and one.outlined.sum(1)[2] == 0
    assert other.outlined.shape[1] == 2 * frame_images.OUTLINE_POINTS
    for name in ("outline", "outline_normal"):
        torch.testing.assert_close(getattr(one, name)[one.outlined], getattr(other, name)[other.outlined], atol=1e-3, rtol=0)


def test_long_outlines_are_thinned(monkeypatch):
    monkeypatch.setattr(frame_images, "OUTLINE_POINTS", 20)
    views = Views([0], torch.eye(4)[None].double(), torch.eye(3)[None].double(), SIZES[:1], [1])
    image = painted(*SIZES[0], "whole")
    one, other = load_images(SimpleNamespace(image=lambda view, frame: image), views, 0), prepared_at_once([image], views, "cpu")
    assert 20 <= int(one.outlined.sum()) < 40
    torch.testing.assert_close(one.outline[one.outlined], other.outline[other.outlined], atol=1e-3, rtol=0)


@pytest.mark.parametrize("pairs", [1 << 27, 300])
def test_distances_are_scipys(monkeypatch, pairs):
    monkeypatch.setattr(distance_transform, "PAIRS_PER_CHUNK", pairs)
    masks = np.random.default_rng(0).random((3, 23, 31)) < np.array([0.5, 0.97, 0.99])[:, None, None]
    wanted = np.stack([distance_transform_edt(mask) for mask in masks])
    np.testing.assert_allclose(distance_transform.distance_to_false(torch.from_numpy(masks)).numpy(), wanted, rtol=1e-6)


def test_a_mask_without_an_end_is_far_from_it():
    assert float(distance_transform.distance_to_false(torch.ones(1, 4, 5, dtype=torch.bool)).min()) >= 9
    assert distance_transform.distance_to_false(torch.ones(0, 4, 5, dtype=torch.bool)).shape == (0, 4, 5)
