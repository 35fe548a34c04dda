import numpy as np
import pytest

from instant_nk.geometry import surface
from tests.unit.shapes import sphere, tube


def test_normals_of_a_ball_point_outward_and_areas_add_up():
    vertices, faces = sphere(0.4, 24)
    normals = surface.vertex_normals(vertices, faces)
    assert (normals * vertices).sum(1).min() > 0.39
    assert surface.face_areas(vertices, faces).sum() == pytest.approx(4 * np.pi * 0.16, rel=0.02)
    assert surface.vertex_areas(vertices, faces).sum() == pytest.approx(surface.face_areas(vertices, faces).sum(), rel=1e-12)


def test_degenerate_faces_have_a_zero_normal_and_no_nan():
    vertices = np.array([[0.0, 0, 0], [1, 0, 0], [2, 0, 0]])
    assert np.array_equal(surface.face_normals(vertices, np.array([[0, 1, 2]])), np.zeros((1, 3)))


def test_welding_joins_seams_and_drops_degenerate_faces():
    vertices = np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0]])
    welded, faces, index = surface.weld(vertices, np.array([[0, 1, 2], [3, 5, 4], [1, 3, 2]]))
    assert len(welded) == 4 and len(faces) == 2
    assert np.array_equal(welded[index], vertices)
    assert len(set(surface.components(len(welded), faces))) == 1
    assert len(set(surface.components(len(vertices), np.array([[0, 1, 2], [3, 5, 4]])))) == 2


def test_refinement_keeps_the_surface_watertight_and_the_first_vertices():
    vertices, faces = sphere(0.4, 6)
    fine, fine_faces, origin = surface.refine(vertices, faces, 0.06)
    pairs = surface.edges(fine_faces)
    assert np.linalg.norm(fine[pairs[:, 0]] - fine[pairs[:, 1]], axis=1).max() <= 0.06
    assert np.array_equal(fine[: len(vertices)], vertices) and np.array_equal(origin[: len(vertices)], np.arange(len(vertices)))
    assert surface.face_areas(fine, fine_faces).sum() == pytest.approx(surface.face_areas(vertices, faces).sum(), rel=1e-12)
    assert not surface.boundary_vertices(fine, fine_faces).any()
    signed = np.einsum("ti,ti->t", fine[fine_faces[:, 0]], np.cross(fine[fine_faces[:, 1]], fine[fine_faces[:, 2]])).sum()
    before = np.einsum("ti,ti->t", vertices[faces[:, 0]], np.cross(vertices[faces[:, 1]], vertices[faces[:, 2]])).sum()
    assert signed == pytest.approx(before, rel=1e-12)  # the enclosed volume: no face turned over


def test_boundary_vertices_are_the_rim_of_an_open_tube():
    vertices, faces = tube(caps=False)
    rim = surface.boundary_vertices(vertices, faces)
    assert np.array_equal(rim, (vertices[:, 0] == 0) | (vertices[:, 0] == 2.0))


def test_samples_lie_on_the_surface_with_even_density():
    vertices, faces = sphere(0.4, 16)
    face, bary = surface.sample(vertices, faces, 4000)
    assert bary.min() >= 0 and np.allclose(bary.sum(1), 1)
    share = np.bincount(face, minlength=len(faces)) / 4000
    area = surface.face_areas(vertices, faces)
    halves = np.array([share[vertices[faces].mean(1)[:, axis] > 0].sum() for axis in range(3)])
    wanted = np.array([area[vertices[faces].mean(1)[:, axis] > 0].sum() / area.sum() for axis in range(3)])
    assert np.abs(halves - wanted).max() < 0.02


def test_geodesics_on_a_ball_are_great_circles_within_a_few_percent():
    vertices, faces, _ = surface.refine(*sphere(1.0, 12), 0.2)
    vertices /= np.linalg.norm(vertices, axis=1, keepdims=True)
    source = int(np.abs(vertices[:, 0]).argmin())  # on the equator; triangles are needles at the poles
    distance = surface.geodesic(surface.distance_graph(vertices, faces), np.array([source]))[0]
    true = np.arccos(np.clip(vertices @ vertices[source], -1, 1))
    ratio = np.delete(distance, source) / np.delete(true, source)
    assert 0.98 < ratio.min() and ratio.max() < 1.15 and ratio.mean() < 1.04


def test_geodesics_are_infinite_between_components():
    vertices, faces = tube()
    both, both_faces = np.concatenate([vertices, vertices + [0, 1, 0]]), np.concatenate([faces, faces + len(vertices)])
    distance = surface.geodesic(surface.distance_graph(both, both_faces), np.array([0]))[0]
    assert np.isfinite(distance[: len(vertices)]).all() and np.isinf(distance[len(vertices) :]).all()


def test_lengths_are_numpys_norms_to_the_bit():
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((2000, 4, 3)) * 10.0 ** rng.uniform(-6, 3, (2000, 4, 1))
    assert np.array_equal(surface.lengths(vectors), np.linalg.norm(vectors, axis=-1))


def test_pairs_are_found_once_in_order_and_each_given_one_among_them():
    pairs = np.random.default_rng(0).integers(0, 40, (500, 2))
    found, inverse = surface.unique_pairs(pairs[:, 0], pairs[:, 1])
    assert np.array_equal(found, np.unique(pairs, axis=0)) and np.array_equal(found[inverse], pairs)


def test_welding_keeps_the_first_of_vertices_at_one_place_in_order_of_place():
    vertices = np.random.default_rng(0).integers(-3, 4, (300, 3)).astype(float)
    welded, _, of = surface.weld(vertices, np.zeros((0, 3), int))
    place, first, inverse = np.unique(vertices, axis=0, return_index=True, return_inverse=True)
    assert np.array_equal(welded, place) and np.array_equal(welded, vertices[first]) and np.array_equal(of, inverse.reshape(-1))


def test_what_covers_a_vertex_is_the_nearest_of_the_sources():
    vertices, faces = tube()
    graph = surface.distance_graph(np.concatenate([vertices, vertices + 5]), np.concatenate([faces, faces + len(vertices)]))
    sources = np.array([3, 70, 11, 3])
    assert np.array_equal(surface.covering(graph, sources), surface.geodesic(graph, sources).min(0))
    assert np.isinf(surface.covering(graph, sources)[len(vertices) :]).all()


def test_values_at_points_of_faces_are_sums_of_those_at_the_corners():
    vertices, faces = sphere(0.4, 16)
    face, bary = surface.sample(vertices, faces, 500)
    assert np.array_equal(surface.blend(vertices, faces[face], bary), (vertices[faces[face]] * bary[..., None]).sum(1))
    assert np.array_equal(
        surface.blend(vertices, faces[:, [2, 0, 1]], np.eye(3)[np.arange(len(faces)) % 3]),
        vertices[faces[np.arange(len(faces)), (np.arange(len(faces)) + 2) % 3]],
    )
