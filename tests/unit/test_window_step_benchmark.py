"""The benchmark of the window's training step times what training does, on a body made of nothing."""

import pytest
import torch

from benchmarks import window_step
from benchmarks.kernels import Table
from instant_nk.geometry import mesh_check


@pytest.fixture(scope="module")
def fit():
    torch.manual_seed(0)
    sizes = window_step.sizes_of(small=True)
    field, resolution = window_step.make_field(sizes, "cpu")
    rays = window_step.Rays(field, field.live_space(resolution), sizes.cameras)
    return window_step.WindowFit(sizes.config.field, field, rays, resolution, "cpu", 0, "benchmark")


def test_the_body_is_a_sound_mesh_on_its_own_distance():
    vertices, faces = window_step.capsule_mesh(24)
    found = mesh_check.check(vertices[None], faces)
    assert found.pop("components") == 1 and not any(found.values())
    assert float(window_step.capsule(torch.from_numpy(vertices)).abs().max()) < 1e-6


def test_all_samples_of_the_full_chain_lie_near_the_surface_and_most_invert(fit):
    batch, s = window_step.gather_samples(fit, 500)
    assert len(s.points) == 500 and s.rays == int(s.ray[-1]) + 1 and bool((s.ray.diff() >= 0).all())
    live = fit.field.at(fit.space, s.points, s.frame, s.seed, s.directions, *fit.field.motion())
    assert float(live.converged.float().mean()) > 0.95 and float(live.sdf.abs().median()) < 0.1


def test_the_full_chain_teaches_everything_that_training_learns(fit):
    batch, s = window_step.gather_samples(fit, 500)
    with torch.no_grad():
        fit.field.residual.mlp.last.weight.normal_(0, 0.01)  # at zero nothing behind it learns
    fit.optimizer.clear()
    window_step.teach(fit, batch, s)
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) and bool(p.grad.any()) for p in fit.trained)


def test_the_parts_owe_every_gradient_they_are_asked_for(fit):
    batch, s = window_step.gather_samples(fit, 300)
    for part in window_step.parts_of(fit, batch, s):
        outputs = [out for out in part.call() if out.requires_grad]
        gradients = torch.autograd.grad(outputs, part.owes, [torch.ones_like(out) for out in outputs], allow_unused=True)
        assert sum(gradient is not None for gradient in gradients) >= len(gradients) - 1, part.name
        forward, both = part.floors(1 << 20)
        assert 0 <= forward <= both < 10


def test_it_runs_small_on_the_cpu_and_keeps_its_rows(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("benchmarks.kernels.REPEATS", 3)
    rows = window_step.measure_step(Table("cpu", tmp_path / "rows.csv"), window_step.sizes_of(small=True), "cpu", 10)
    assert [row[0] for row in rows][1:3] == ["inverse warp", "residual with Jacobian"] and all(row[2] > 0 for row in rows)
    assert len((tmp_path / "rows.csv").read_text().splitlines()) == 1 + 4 + 2 * 7 + 1
    assert "full chain on 1024 samples" in capsys.readouterr().out
