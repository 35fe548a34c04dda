"""Reading the truth, and the metrics artifact."""

import json

import numpy as np
import pytest

from instant_nk import layout
from instant_nk.errors import ContractError, DataError
from instant_nk.io import artifact, metrics, truth

trimesh = pytest.importorskip("trimesh")


@pytest.fixture
def capture(tmp_path):
    """Three frames, 2, 3 and 4, of a tetrahedron that moves along x; its last vertex is never seen."""
    (tmp_path / "gt").mkdir()
    mesh = trimesh.creation.icosphere(subdivisions=1)
    for frame in (2, 3, 4):
        trimesh.Trimesh(mesh.vertices + [frame, 0, 0], mesh.faces, process=False).export(tmp_path / "gt" / f"mesh_{frame:04d}.ply")
    views = np.full((3, len(mesh.vertices)), 2, np.uint8)
    views[:, -1] = 0
    np.savez(tmp_path / "gt" / "visibility.npz", n_views=views)
    return tmp_path


def test_a_capture_without_truth_has_none(tmp_path):
    assert truth.load(tmp_path, [0, 1]) is None


def test_the_truth_is_read_at_the_frames_that_both_have(capture):
    found = truth.load(capture, [3, 4, 5, 6])
    assert found.frames == (3, 4)
    assert found.vertices[1, :, 0].mean() == pytest.approx(4, abs=1e-6)
    assert found.n_views.shape == (2, 42) and not (found.faces[found.seen_faces(0)] == 41).any()
    assert truth.load(capture, [9]) is None


def test_changing_topology_is_refused(capture):
    trimesh.creation.box().export(capture / "gt" / "mesh_0004.ply")
    with pytest.raises(DataError, match=r"mesh_0004\.ply: its faces differ from those of mesh_0002\.ply"):
        truth.load(capture, [2, 3, 4])


def test_visibility_of_another_shape_is_refused(capture):
    np.savez(capture / "gt" / "visibility.npz", n_views=np.ones((2, 42), np.uint8))
    with pytest.raises(DataError, match=r"'n_views' must be \[frames=3, vertices=42\], got \[2, 42\]"):
        truth.load(capture, [2, 3, 4])


def test_a_broken_truth_is_named(capture):
    (capture / "gt" / "mesh_0003.ply").write_bytes(b"ply\nformat binary_little_endian 1.0\nelement vertex 9\nproperty float x\nend_header\nab")
    with pytest.raises(DataError, match=r"mesh_0003\.ply"):
        truth.load(capture, [2, 3, 4])


def test_every_quantity_of_the_summary_is_written_and_null_where_unknown(tmp_path):
    header = artifact.make_header("metrics", metrics.FORMAT, "report")
    metrics.save(tmp_path / "metrics.json", header, {"chamfer_pct": 0.3, "test_psnr_db": None}, {"frames": [0]}, [], {})
    value = metrics.load(tmp_path / "metrics.json")
    assert set(value["summary"]) == set(metrics.QUANTITIES) and value["summary"]["chamfer_pct"] == 0.3
    assert value["summary"]["wall_s"] is None and value["units"]["test_psnr_db"]["unit"] == "dB"
    needed = (
        "chamfer_pct track_mean_pct track_p95_pct jitter_pct test_psnr_db test_ssim test_fg_psnr_db cycle_error_median flipped_fraction wall_s peak_host_mib"
    )
    assert set(needed.split()) <= set(value["summary"])


def test_a_number_without_a_definition_is_refused(tmp_path):
    with pytest.raises(ContractError, match="nonsense_db.*define unit and meaning"):
        metrics.save(tmp_path / "metrics.json", {}, {"nonsense_db": 1.0}, {}, [], {})


def test_costs_add_times_take_the_largest_memory_and_skip_parts_of_earlier_runs(tmp_path):
    paths = layout.Paths(tmp_path)

    def write(stage, name, **numbers):
        path = paths.stage_dir(stage) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(numbers))

    write("field", "000000-000005.json", wall_s=10, peak_host_mib=700, peak_gpu_mib=None, history={"step": [0, 1], "loss": [2, 1]})
    write("field", "000004-000009.json", wall_s=5, peak_host_mib=900, peak_gpu_mib=50.0, psnr_db=30)
    write("field", "000000-000009.json", wall_s=99, peak_host_mib=9999)  # a window of an earlier config
    write("field", "config.json", config={})
    write("observation", "batches/000000-000003.json", wall_s=3, peak_host_mib=1)
    costs = metrics.stage_costs(paths, {"field": ["000000-000005", "000004-000009"], "observation": ["000000-000003"]})
    field = costs["field"]
    assert (field.jobs, field.wall_s, field.peak_host_mib, field.peak_gpu_mib) == (2, 15, 900, 50)
    assert field.histories() == {"000000-000005": {"step": [0, 1], "loss": [2, 1]}}
    assert field.numbers["000004-000009"] == {"psnr_db": 30}
    assert costs["observation"].wall_s == 3 and costs["mesh"].jobs == 0
