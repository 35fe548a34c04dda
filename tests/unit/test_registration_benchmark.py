"""The benchmarks of registration find known motion, keep their rows, and mesh known surfaces anew."""

import dataclasses

import numpy as np

from benchmarks import registration
from benchmarks.kernels import Table
from instant_nk.fitting.pair_registration import register_pair


def test_a_small_pair_is_registered_and_its_parts_are_told(tmp_path, capsys):
    assert registration.measure_size(Table("cpu", tmp_path / "rows.csv"), 60, "cpu", 1, cold=True) > 0
    rows = (tmp_path / "rows.csv").read_text()
    for part in ("cold pair", "pair", "graph", "solver", "coarse motion", "iteration: factorisation"):
        assert f"registration: {part},auto," in rows
    assert "converged True" in capsys.readouterr().out


def test_the_pair_has_the_size_it_says():
    pair = registration.make_pair(125)
    assert abs(len(pair.source.points) - 14 * 125) < 200 and abs(len(pair.target.points) - 16 * 125) < 200
    assert pair.settings.max_points == 12 * 125 and len(pair.truth) == len(pair.source.points)


def test_a_surface_meshed_anew_is_the_same_surface_without_the_same_vertices():
    from benchmarks import known_surfaces
    from instant_nk.geometry import evaluation
    from tests.unit.shapes import sphere

    vertices, faces = sphere(0.4, 24)
    for seed in (0, 1):
        other, triangles = known_surfaces.remesh(vertices, faces, np.random.default_rng(seed))
        assert 19_000 < len(triangles) <= 24_000 and triangles.min() == 0 and triangles.max() == len(other) - 1
        distances = evaluation.surface_distances(other.astype(float), triangles, vertices, faces, np.arange(len(faces)), 2000)
        assert evaluation.chamfer(*distances) < 2e-4
        shared = np.linalg.norm(other[:200, None] - vertices[None], axis=-1).argmin(1)
        assert (np.diff(shared) < 0).mean() > 0.4  # in no order


def test_momentum_leaves_less_of_the_way_after_as_many_iterations():
    pair, errors = registration.make_pair(125), {}
    for momentum in (0.0, 0.75):
        options = dataclasses.replace(pair.settings.options, momentum=momentum)
        fit = register_pair(pair.source, pair.target, dataclasses.replace(pair.settings, options=options))
        errors[momentum] = pair.error(fit)
    assert errors[0.75] < 0.99 * errors[0.0], errors
    assert pair.settings.options.momentum == 0.75
