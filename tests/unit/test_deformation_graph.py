import subprocess
import sys

import numpy as np
import pytest

from instant_nk.errors import DataError
from instant_nk.geometry import surface
from instant_nk.io import artifact
from instant_nk.io import graph as graph_io
from instant_nk.models import deformation_graph
from tests.unit.shapes import sphere, tube


def two_touching_tubes(gap: float = 0.01):
    """A hairpin: two parallel tubes a hair apart, joined only at x = 0 by a bridge of faces."""
    vertices, faces = tube(2.0, 0.15, caps=False)
    other = vertices + [0, 0.3 + gap, 0]
    n, ring = len(vertices), np.arange(20)
    bridge = np.stack([np.roll(ring, -1), ring, n + ring], 1)
    return np.concatenate([vertices, other]), np.concatenate([faces, faces + n, bridge]), n


def test_every_vertex_lies_within_the_spacing_of_a_node_along_the_surface():
    vertices, faces = sphere(0.4, 20)
    graph = deformation_graph.build(vertices, faces, spacing=0.1)
    fine, fine_faces, _ = surface.refine(vertices, faces, 0.06)
    nodes = np.array([np.linalg.norm(fine - p, axis=1).argmin() for p in graph.node_positions])
    assert surface.geodesic(surface.distance_graph(fine, fine_faces), nodes).min(0).max() <= 0.1 + 1e-6


def test_weights_sum_to_one_and_an_anchor_left_out_would_hardly_count():
    vertices, faces = sphere(0.4, 24)
    graph = deformation_graph.build(vertices, faces, max_nodes=120)
    assert np.allclose(graph.vertex_weights.sum(1), 1, atol=1e-6)
    assert ((graph.vertex_weights > 0).sum(1) >= 3).all()
    assert np.median(graph.vertex_weights.min(1)) < 0.02


def test_influence_is_continuous_over_the_surface():
    vertices, faces = sphere(0.4, 40)
    graph = deformation_graph.build(vertices, faces, max_nodes=100)
    dense = np.zeros((len(vertices), len(graph.node_positions)))
    np.put_along_axis(dense, graph.vertex_anchors.astype(int), graph.vertex_weights, 1)
    pairs = surface.edges(faces)
    jump = np.abs(dense[pairs[:, 0]] - dense[pairs[:, 1]]).max(1)
    length = np.linalg.norm(vertices[pairs[:, 0]] - vertices[pairs[:, 1]], axis=1) / graph.spacing
    assert (jump / np.maximum(length, 0.05)).max() < 3.0


def test_anchors_do_not_bleed_between_touching_limbs():
    vertices, faces, n = two_touching_tubes()
    graph = deformation_graph.build(vertices, faces, spacing=0.12)
    on_second = graph.node_positions[:, 1] > 0.155
    far = vertices[:, 0] > 0.8  # the limbs are joined at x = 0 only
    foreign = on_second[graph.vertex_anchors] != (np.arange(len(vertices)) >= n)[:, None]
    assert (np.where(foreign, graph.vertex_weights, 0)[far] == 0).all()
    strong = graph.edge_weights >= 0.5
    crossing = on_second[graph.edges[:, 0]] != on_second[graph.edges[:, 1]]
    assert not (strong & crossing & (graph.node_positions[graph.edges].min(1)[:, 0] > 0.8)).any()


def test_separate_components_share_no_anchor_and_are_tied_weakly():
    a, faces = sphere(0.4, 16)
    b = 0.05 * a / 0.4 + [0.46, 0, 0]  # a small ball almost touching
    vertices, both = np.concatenate([a, b]), np.concatenate([faces, faces + len(a)])
    graph = deformation_graph.build(vertices, both, spacing=0.15)
    small = graph.node_positions[:, 0] > 0.405
    assert small.sum() >= 1
    used = graph.vertex_weights > 0
    assert (small[graph.vertex_anchors] == (np.arange(len(vertices)) >= len(a))[:, None])[used].all()
    crossing = small[graph.edges[:, 0]] != small[graph.edges[:, 1]]
    assert crossing.any() and graph.edge_weights[crossing].max() < 0.2


def test_nodes_spread_evenly_on_an_uneven_mesh():
    vertices, faces = tube(2.0, 0.15, along=6)  # long thin triangles
    part, part_faces = tube(0.5, 0.15, along=60)
    both, both_faces = np.concatenate([vertices, part + [3, 0, 0]]), np.concatenate([faces, part_faces + len(vertices)])
    graph = deformation_graph.build(both, both_faces, spacing=0.12)
    per_area = [
        (graph.node_positions[:, 0] < 2.5).sum() / surface.face_areas(vertices, faces).sum(),
        (graph.node_positions[:, 0] > 2.5).sum() / surface.face_areas(part, part_faces).sum(),
    ]
    assert 0.6 < per_area[0] / per_area[1] < 1.5


def test_the_automatic_spacing_serves_the_subject_whatever_its_size():
    vertices, faces = tube(2.0, 0.15)
    counts = [len(deformation_graph.build(s * vertices + 100 * s, faces, max_nodes=150).node_positions) for s in (1.0, 1e-3, 50.0)]
    assert min(counts) >= 100 and max(counts) <= 150 and max(counts) <= 1.1 * min(counts)


def test_duplicated_vertices_along_a_seam_move_together():
    vertices, faces = tube()
    doubled = np.concatenate([vertices, vertices])
    split = np.where(np.arange(len(faces))[:, None] % 2 == 0, faces, faces + len(vertices))
    graph = deformation_graph.build(doubled, split, spacing=0.15)
    assert np.array_equal(graph.vertex_anchors[: len(vertices)], graph.vertex_anchors[len(vertices) :])
    assert np.array_equal(graph.vertex_weights[: len(vertices)], graph.vertex_weights[len(vertices) :])


def test_the_same_mesh_gives_the_same_graph():
    vertices, faces = sphere(0.4, 16)
    a, b = (deformation_graph.build(vertices, faces, max_nodes=80) for _ in range(2))
    assert all(np.array_equal(getattr(a, name), getattr(b, name)) for name in vars(a))


def test_given_nodes_are_kept_in_order_and_cover_the_mesh():
    vertices, faces = sphere(0.4, 16)
    nodes = vertices[::9] * 1.02
    graph = deformation_graph.on_nodes(vertices, faces, nodes)
    assert np.allclose(graph.node_positions, nodes, atol=1e-6)
    assert np.allclose(graph.vertex_weights.sum(1), 1, atol=1e-6) and len(graph.edges) >= len(nodes)


def test_a_coarser_graph_carries_every_fine_node():
    vertices, faces, _ = two_touching_tubes()
    graph = deformation_graph.build(vertices, faces, spacing=0.08)
    coarse, chosen = deformation_graph.coarsen(graph, 40, graph.spacing)
    assert len(chosen) == len(coarse.node_positions) == 40
    assert np.array_equal(coarse.node_positions, graph.node_positions[chosen])
    assert coarse.vertex_anchors.shape[0] == len(graph.node_positions) and np.allclose(coarse.vertex_weights.sum(1), 1, atol=1e-6)
    second = graph.node_positions[:, 1] > 0.155
    far = graph.node_positions[:, 0] > 1.2
    foreign = second[chosen][coarse.vertex_anchors] != second[:, None]
    assert (np.where(foreign, coarse.vertex_weights, 0)[far] == 0).all()


def test_tiny_meshes_have_a_graph_too():
    vertices, faces = np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]), np.array([[0, 2, 1], [0, 1, 3], [1, 2, 3], [0, 3, 2]])
    graph = deformation_graph.build(vertices, faces, spacing=5.0)
    assert len(graph.node_positions) == 1 and np.allclose(graph.vertex_weights, 1)


@pytest.mark.parametrize(
    "vertices, faces, message",
    [(np.zeros((3, 3)), [[0, 1, 2]], "no area"), (np.full((3, 3), np.nan), [[0, 1, 2]], "not finite"), (np.eye(3), np.zeros((0, 3)), "no area")],
)
def test_a_mesh_without_surface_is_refused(vertices, faces, message):
    with pytest.raises(DataError, match=message):
        deformation_graph.build(vertices, np.array(faces, int), spacing=0.1)


def test_the_graph_survives_its_file(tmp_path):
    vertices, faces = sphere(0.4, 12)
    graph = deformation_graph.build(vertices, faces, max_nodes=60)
    graph_io.save(tmp_path / "graph.npz", graph, artifact.make_header("graph", graph_io.FORMAT, "graph"))
    again = graph_io.load(tmp_path / "graph.npz")
    assert all(np.array_equal(getattr(graph, name), getattr(again, name)) for name in vars(graph))
    graph_io.save_nodes(tmp_path / "nodes.ply", graph)
    head = (tmp_path / "nodes.ply").read_text().splitlines()
    assert head[0] == "ply" and f"element vertex {len(graph.node_positions)}" in head and len(head) == 11 + len(graph.node_positions) + len(graph.edges)


def test_compiled_loops_build_the_same_graph_to_the_bit(monkeypatch):
    """Two shapes, a loose part and vertices that no face uses; spacing given and found."""
    pytest.importorskip("numba")
    from instant_nk.geometry import geodesic_loops

    vertices, faces, n = two_touching_tubes()
    ball, ball_faces = sphere(0.2, 12)
    vertices = np.concatenate([vertices, ball + [3.0, 0, 0], [[9.0, 9.0, 9.0]]])
    faces = np.concatenate([faces, ball_faces + 2 * n])
    for settings in ({"spacing": 0.12}, {"max_nodes": 90}, {"max_nodes": 90, "anchors": 3, "neighbours": 8}, {"max_nodes": 90, "anchors": 9}, {"max_nodes": 3}):
        with monkeypatch.context() as numpy_alone:
            for module, name in ((deformation_graph, "_loops_for"), (deformation_graph, "_node_loops"), (surface, "_loops")):
                numpy_alone.setattr(module, name, lambda *_: None)
            wanted = deformation_graph.build(vertices, faces, **settings)
        assert deformation_graph._loops_for(1, 1) is geodesic_loops
        found = deformation_graph.build(vertices, faces, **settings)
        for name, value in vars(wanted).items():
            assert np.array_equal(getattr(found, name), value), (settings, name)


def test_loops_are_loaded_for_large_surfaces_only(monkeypatch):
    pytest.importorskip("numba")
    from instant_nk.geometry import geodesic_loops  # noqa: F401  numba is loaded once, whatever the next line says

    monkeypatch.delitem(sys.modules, "numba", raising=False)
    assert deformation_graph._loops_for(10_000, 400) is None
    assert deformation_graph._loops_for(30_000, 600) is None  # two seconds in scipy, several of compilation on a machine's first run
    assert deformation_graph._loops_for(60_000, 1000).__name__ == "instant_nk.geometry.geodesic_loops"


def flat_grid(side: int = 30):
    """A square of `side` x `side` vertices in steps of 0.1, where very many paths are equally long but for rounding."""
    x, y = np.meshgrid(np.arange(side), np.arange(side), indexing="ij")
    corner = (np.arange(side - 1)[:, None] * side + np.arange(side - 1)).ravel()
    faces = np.concatenate([corner[:, None] + [0, 1, side + 1], corner[:, None] + [0, side + 1, side]])
    return 0.1 * np.stack([x, y, 0 * x], -1).reshape(-1, 3), faces


@pytest.mark.parametrize("threads", [1, 3])
def test_the_nearest_nodes_are_those_of_all_distances(monkeypatch, threads):
    """Nodes of which two share a vertex, on a grid and on a tube beside a part that none can reach."""
    pytest.importorskip("numba")
    from instant_nk.geometry import geodesic_loops

    monkeypatch.setattr(geodesic_loops, "threads", lambda: threads)
    monkeypatch.setattr(geodesic_loops, "LEAST", 100)
    tubes, tube_faces = tube()
    for vertices, faces in (flat_grid(), (np.concatenate([tubes, tubes + 5]), np.concatenate([tube_faces, tube_faces + len(tubes)]))):
        paths = surface.distance_graph(vertices, faces)
        nodes = np.random.default_rng(0).permutation(len(vertices) // 2)[:150]
        nodes[70] = nodes[3]
        found, levels = geodesic_loops.nearest(*deformation_graph._rows(paths), nodes, vertices[nodes], 0.8, 5, [10, 40])
        for index, among in ((found, 150), (levels[0], 10), (levels[1], 40)):
            distance = surface.geodesic(paths, nodes[:among], limit=0.8).T
            distance = distance if among == 150 else distance[nodes[:among]]
            wanted = distance.argsort(1, kind="stable")[:, :5]
            wanted = np.where(np.isfinite(np.take_along_axis(distance, wanted, 1)), wanted, -1)
            assert np.array_equal(index, wanted)
        assert (found >= 0).any() and (found < 0).any()


def test_the_farthest_vertex_is_found_on_links_of_very_unequal_length():
    pytest.importorskip("numba")
    from instant_nk.geometry import geodesic_loops

    vertices, faces = sphere(0.4, 16)
    vertices = vertices * np.where(vertices[:, :1] > 0, 1.0, 1e-4)  # half of it hardly wider than a point
    paths = surface.distance_graph(vertices, faces)
    distance = surface.geodesic(paths, np.array([0]))[0]
    found, left = geodesic_loops.farthest(*deformation_graph._rows(paths), np.array([0]), np.ones(len(vertices), bool), 0.0, 60)
    assert found[0] == 0 and len(found) == 60
    for vertex in found[1:]:
        assert vertex == distance.argmax()
        distance = np.minimum(distance, surface.geodesic(paths, np.array([vertex]))[0])
    assert np.array_equal(left, distance)


def test_a_graph_built_by_compiled_loops_loads_no_torch():
    pytest.importorskip("numba")
    code = (
        "import sys, numba; from instant_nk.models import deformation_graph; from tests.unit.shapes import sphere; deformation_graph.build(*sphere(0.4, 12))"
        "; assert 'instant_nk.geometry.geodesic_loops' in sys.modules and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_given_nodes_at_one_vertex_are_linked_the_same_by_compiled_loops(monkeypatch):
    pytest.importorskip("numba")
    from instant_nk.geometry import geodesic_loops

    vertices, faces = sphere(0.4, 16)
    nodes = vertices[::5]
    nodes = np.concatenate([nodes, nodes[:12], nodes[:3]])
    graphs = []
    for loops in (None, geodesic_loops):
        monkeypatch.setattr(deformation_graph, "_loops_for", lambda *_, loops=loops: loops)
        graphs.append(deformation_graph.on_nodes(vertices, faces, nodes, neighbours=3))
    assert all(np.array_equal(getattr(graphs[0], name), value) for name, value in vars(graphs[1]).items())
    linked = set(map(tuple, graphs[0].edges.tolist()))
    assert all((i, len(nodes) - 15 + i) in linked for i in range(12))
