"""What a GPU does in one pass gives what the pass per view and the tree give."""

from __future__ import annotations

import math

import pytest
import torch

from instant_nk.geometry import rasterize as rasterizer
from instant_nk.geometry.neighbours import NearestPoints, nearest_by_tiles
from instant_nk.geometry.rasterize import depth_maps, face_maps, rasterize, visible_in_views, visible_vertices


@pytest.fixture
def scene():
    torch.manual_seed(0)
    vertices = torch.rand(60, 3, dtype=torch.float64) - 0.5
    faces = torch.randint(0, 60, (90, 3))
    poses = []
    for angle in (0.0, 1.0, 2.5):
        w2c = torch.eye(4, dtype=torch.float64)
        w2c[:3, :3] = torch.tensor([[math.cos(angle), 0, math.sin(angle)], [0, 1, 0], [-math.sin(angle), 0, math.cos(angle)]])
        w2c[2, 3] = 2.0
        poses.append(w2c)
    K = torch.tensor([[30.0, 0, 16], [0, 30, 12], [0, 0, 1]], dtype=torch.float64)
    return vertices, faces, torch.stack(poses), torch.stack([K, 1.3 * K, K])


def test_depth_of_all_views_is_that_of_each_view(scene):
    vertices, faces, w2c, K = scene
    K = K.clone()
    K[:, 2, 2] = 1
    together = depth_maps(vertices, faces, w2c, K, (32, 24))
    assert (together > 0).float().mean() > 0.1
    for c in range(3):
        assert torch.allclose(together[c].float(), rasterize(vertices, faces, w2c[c], K[c], (32, 24)).depth, atol=1e-6)


@pytest.mark.parametrize("chunk", [40, 4_000_000])
def test_faces_of_all_views_are_those_of_each_view(scene, monkeypatch, chunk):
    monkeypatch.setattr(rasterizer, "CANDIDATES_PER_CHUNK", chunk)
    vertices, faces, w2c, K = scene
    together = face_maps(vertices, faces, w2c, K, (32, 24))
    for c in range(3):
        assert torch.equal(together[c], rasterize(vertices, faces, w2c[c], K[c], (32, 24)).face_index.long())
    assert face_maps(vertices, faces[:0], w2c, K, (32, 24)).eq(-1).all()


@pytest.mark.parametrize("pairs", [1, 1 << 18])
def test_vertices_seen_in_all_views_are_those_seen_in_each(scene, monkeypatch, pairs):
    monkeypatch.setattr(rasterizer, "PAIRS_PER_CHUNK", pairs)
    vertices, faces, w2c, K = scene
    together = visible_in_views(vertices, faces, w2c, K, [(32, 24)] * 3)
    assert together.shape == (3, 60) and 0.1 < together.float().mean() < 0.9
    for c in range(3):
        assert torch.equal(together[c], visible_vertices(vertices, faces, w2c[c], K[c], (32, 24)))
    assert visible_in_views(vertices, faces, w2c[:0], K[:0], []).shape == (0, 60)


def test_a_view_of_another_size_ends_where_its_image_does(scene):
    vertices, faces, w2c, K = scene
    sizes = [(32, 24), (20, 14), (32, 24)]
    together = visible_in_views(vertices, faces, w2c, K, sizes)
    for c, size in enumerate(sizes):
        alone = visible_vertices(vertices, faces, w2c[c], K[c], size)
        assert (together[c] | ~alone).all() and (together[c] ^ alone).sum() <= 2  # at a border, a face of the pixel beyond may show a vertex


@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("tile", [50, 1 << 20])
def test_tiles_find_the_neighbours_of_the_tree(k, tile):
    torch.manual_seed(1)
    reference, points = torch.randn(300, 9, dtype=torch.float64) + 100, torch.randn(70, 9, dtype=torch.float64) + 100
    distance, index = nearest_by_tiles(points, reference, k, tile)
    expected, which = NearestPoints(reference).query(points, k)
    assert torch.equal(index, which) and torch.allclose(distance, expected)


def test_single_precision_input_is_ranked_in_double():
    reference = torch.tensor([[1000.0, 0, 0], [1000.0, 1e-3, 0]])
    _, index = nearest_by_tiles(torch.tensor([[1000.0, 9e-4, 0]]), reference, 1)
    assert index.item() == 1


def test_no_points_have_no_neighbours():
    distance, index = nearest_by_tiles(torch.zeros(0, 3), torch.rand(5, 3), 2)
    assert distance.shape == index.shape == (0, 2)
