"""The benchmark of the registration of a pair finds its known motion and keeps its rows."""

from benchmarks import registration
from benchmarks.kernels import Table


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
