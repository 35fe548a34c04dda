import numpy as np
import pytest

from instant_nk.geometry import surface
from tests.unit.shapes import sphere, tube

pytest.importorskip("numba")
from instant_nk.geometry import surface_loops


def surfaces():
    """Closed and open ones, seams and vertices that no face uses, two parts in any order, and triangles thrown together: edges of many faces,
    faces given twice, corners that coincide."""
    rng = np.random.default_rng(0)
    yield sphere(0.4, 12)
    yield tube(caps=False)
    vertices, faces = sphere(0.4, 12)
    yield (
        np.concatenate([vertices, vertices[faces[::3]].reshape(-1, 3), [[9.0, 9.0, 9.0]]]),
        np.concatenate([faces, len(vertices) + np.arange(3 * len(faces[::3])).reshape(-1, 3)]),
    )
    order = rng.permutation(2 * len(vertices))
    yield np.concatenate([vertices, vertices + 2])[order], order.argsort()[np.concatenate([faces, faces + len(vertices)])]
    yield np.ones((4, 3)), np.array([[0, 1, 2], [1, 2, 3]])
    for digits in (1, 9):
        for count in (0, 1, 30, 300):
            yield 1e3 + rng.random((40, 3)).round(digits), rng.integers(0, 40, (count, 3))


@pytest.fixture
def both(monkeypatch):
    """What a function finds in numpy, and in compiled loops."""

    def call(function, *given):
        results = []
        for loops in (None, surface_loops):
            monkeypatch.setattr(surface, "_loops", lambda *_, loops=loops: loops)
            result = function(*given)
            results.append(result if isinstance(result, tuple) else (result,))
        return results

    return call


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")  # numpy's, where all vertices lie in one place
def test_compiled_loops_find_the_same_to_the_bit(both):
    for vertices, faces in surfaces():
        calls = [(surface.weld, vertices, faces), (surface.components, len(vertices), faces), (surface.refine, vertices, faces, 0.05)]
        calls += [(f, vertices, faces) for f in (surface.face_areas, surface.vertex_normals, surface.boundary_vertices)]
        for function, *given in calls:
            wanted, found = both(function, *given)
            for a, b in zip(wanted, found):
                assert a.dtype == b.dtype and np.array_equal(a, b), (function.__name__, len(vertices), len(faces))


def test_links_found_by_compiled_loops_are_the_same_to_the_bit():
    for vertices, faces in surfaces():
        wanted = surface.distance_graph(vertices, faces)
        start, links, lengths = surface_loops.distance_graph(vertices, faces.astype(np.int64))
        assert np.array_equal(start, wanted.indptr) and np.array_equal(links, wanted.indices) and np.array_equal(lengths, wanted.data)


def test_single_precision_is_left_to_numpy():
    vertices, faces = sphere(0.4, 12)
    assert surface._loops(vertices) is surface_loops and surface._loops(vertices.astype(np.float32)) is None
    assert surface.weld(vertices.astype(np.float32), faces)[0].dtype == np.float32


def test_faces_beyond_the_vertices_are_refused():
    with pytest.raises(IndexError, match=r"index vertices 0\.\.3, there are 3"):
        surface.face_areas(np.eye(3), np.array([[0, 1, 3]]))
