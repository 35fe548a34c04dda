"""Modes of `field.dyna_mode` that do not track: exact gradients, the hull at the start, training, files, surfaces and report."""

import dataclasses
import json
import logging

import numpy as np
import pytest
import torch
import trimesh

from instant_nk import config as configuration
from instant_nk.errors import ConfigError, ContractError
from instant_nk.fitting import window_files
from instant_nk.fitting.live_fit import Fineness, LiveFit
from instant_nk.fitting.rays import PixelSource
from instant_nk.fitting.render import Renderer
from instant_nk.io import artifact, surfaces
from instant_nk.io import dataset as datasets
from instant_nk.io import mesh as meshes
from instant_nk.models.live_field import MODES, FourierSdf
from instant_nk.models.occupancy import cell_centres
from instant_nk.stages import field as field_stage
from instant_nk.stages import mesh as mesh_stage
from instant_nk.stages import report as report_stage
from instant_nk.stages.render import run_render
from instant_nk.stages.verify import run_verify
from tests.unit import neural_fixtures
from tests.unit.neural_fixtures import SPEC, WINDOWS, ball, numbers, slope, stir, voxels
from tests.unit.test_training_state import HEADER, WINDOW, Killed, kill_at, same, state_of

FRAMES = 3
EVERY_MODE = pytest.mark.parametrize("mode", MODES)


def shifted(frame):
    """Voxels of a ball that wanders along x."""
    return voxels(lambda x: ball(x - torch.tensor([0.1 * frame, 0, 0])))


def made(mode):
    sdf = MODES[mode](SPEC, 16, FRAMES, 32)
    sdf.set_hulls([shifted(frame) for frame in range(FRAMES)])
    return sdf


@EVERY_MODE
def test_a_fresh_field_is_near_each_frame_s_own_hull(mode):
    sdf, x = made(mode), cell_centres(16)
    for frame in range(FRAMES):
        true = ball(x - torch.tensor([0.1 * frame, 0, 0]))
        near = true.abs() < 0.2
        at = torch.full((len(x),), frame)
        assert (sdf(x, at) - true)[near].abs().mean() < 0.05
        assert (sdf(x, at)[near].sign() == true[near].sign()).float().mean() > 0.85


@EVERY_MODE
def test_the_gradient_is_the_derivative_of_the_distance(mode):
    torch.manual_seed(0)
    sdf = made(mode).double()
    stir(sdf, 0.2)
    x, frame = torch.rand(60, 3, dtype=torch.float64) * 1.6 - 0.8, torch.randint(FRAMES, (60,))
    distance, gradient, features = sdf.with_gradient(x, frame)
    assert features.shape == (60, sdf.width)
    torch.testing.assert_close(distance, sdf(x, frame))
    wanted = slope(lambda p: sdf(p, frame), x, 1e-7)
    close = (gradient - wanted).abs().max(1).values < 1e-4 * wanted.abs().max()
    assert close.float().mean() > 0.95  # the rest lies on a cell's border


@EVERY_MODE
def test_frames_are_told_apart(mode):
    torch.manual_seed(0)
    sdf, x = made(mode), torch.rand(100, 3) - 0.5
    stir(sdf.mlp, 0.5)
    stir(sdf.encoding, 0.5)
    values = torch.stack([sdf.correction(x, torch.full((100,), frame)) for frame in range(FRAMES)])
    assert (values.std(0) > 1e-3).float().mean() > 0.9


def test_a_fourier_series_has_a_term_for_every_frame():
    for frames in (1, 2, 3, 6, 7):
        sdf = FourierSdf(SPEC, 8, frames, 8)
        basis = sdf.basis(torch.arange(frames))
        assert torch.linalg.matrix_rank(basis) == frames


# Training


def fit_of(dataset, mode, **changes):
    settings = dataclasses.replace(WINDOW, dyna_mode=mode, **changes)
    source = PixelSource(dataset, list(dataset.frames), 10**6)
    hulls = [dataset.hull(frame) for frame in dataset.frames]
    return LiveFit(settings, Fineness(SPEC, 16, 32), source, hulls, "cpu", 0, f"field {mode}")


@pytest.fixture(scope="module")
def balls(tmp_path_factory):
    return datasets.load(neural_fixtures.balls(tmp_path_factory.getbasetemp()).paths.manifest)


@EVERY_MODE
def test_training_lowers_the_loss(balls, tmp_path, mode):
    fit = fit_of(balls, mode, steps=60, checkpoint_every=1000)
    fit.run(tmp_path / "a.npz", HEADER)
    assert fit.history["loss"][-1] < 0.8 * fit.history["loss"][0] and fit.occupied.shape == (FRAMES, 32, 32, 32)


@EVERY_MODE
def test_a_killed_fit_ends_in_the_same_bits(balls, tmp_path, mode):
    whole, killed, again = (fit_of(balls, mode) for _ in range(3))
    whole.run(tmp_path / "whole.npz", HEADER)
    kill_at(killed, 7)
    with pytest.raises(Killed):
        killed.run(tmp_path / "a.npz", HEADER)
    stir(again.modules, 0.1)
    again.run(tmp_path / "a.npz", HEADER)
    assert same(state_of(whole.modules), state_of(again.modules)) and whole.history == again.history


# Stages


@pytest.fixture(scope="module", params=list(MODES))
def run(request, tmp_path_factory):
    """The body's capture through field, mesh and report in a mode that does not track, over results of an earlier run that did."""
    import shutil

    base = neural_fixtures.finished(tmp_path_factory.getbasetemp())
    results = tmp_path_factory.mktemp(request.param)
    shutil.copytree(base.job.paths.root, results / base.job.paths.root.name)

    def variant(part=None):
        return base.variant(part, results=results, field={"dyna_mode": request.param, "steps": 30}, report={"path_frames": 2})

    for window in WINDOWS:
        field_stage.run(variant(window))
    for part in (*WINDOWS, None):
        mesh_stage.run(variant(part))
    report_stage.run(variant())
    return base, variant()


def test_every_frame_gets_a_surface_with_its_own_topology_and_there_is_no_animation(run):
    base, job = run
    assert not job.paths.animation.exists() and not job.paths.animation_glb.exists() and not (job.paths.mesh / "metrics.json").exists()
    said = json.loads(job.paths.surfaces.read_text())
    assert said["tracked"] is False and said["dyna_mode"] == job.config.field.dyna_mode
    counts = []
    for frame in base.dataset.frames:
        mesh = trimesh.load(job.paths.mesh_frame(frame), process=False)
        counts.append(len(mesh.vertices))
        distance = np.abs(trimesh.proximity.signed_distance(base.truth(frame), mesh.vertices[::20]))
        assert distance.mean() < 0.02 * base.truth(frame).scale
        assert mesh.visual.vertex_colors[:, :3].std() > 1
    assert counts == said["vertices_per_frame"] and len(set(counts)) > 1


def test_the_report_scores_surfaces_and_views_and_says_null_about_tracks(run):
    base, job = run
    summary = numbers(job.paths.metrics)["summary"]
    assert 0 < summary["chamfer_pct"] < 3 and summary["test_psnr_db"] > 15 and summary["wall_s"] > 0
    for name in ("track_mean_pct", "track_p95_pct", "jitter_pct", "cycle_error_median", "flipped_fraction", "mesh_test_psnr_db", "mesh_watertight"):
        assert summary[name] is None
    page = job.paths.report_page.read_text()
    assert "knows no correspondence between frames" in page and "no tracked mesh" in page
    frame, camera = base.dataset.frames[0], base.dataset.heldout.names[0]
    assert (job.paths.report / "renders" / str(frame) / camera).is_file() and (job.paths.report / "rgb.mp4").is_file()


def test_the_results_verify(run):
    _, job = run
    assert "all whole" in run_verify(job.paths)


def test_the_window_says_its_mode_and_another_is_refused(run):
    base, job = run
    mode = job.config.field.dyna_mode
    assert numbers(job.paths.field(WINDOWS[0]).with_suffix(".json"))["dyna_mode"] == mode
    with pytest.raises(ContractError, match=f"field.dyna_mode '{mode}' knows no correspondence.*Set field.dyna_mode: deform"):
        window_files.load(job.paths, base.dataset, WINDOWS[0], "cpu")
    with pytest.raises(ContractError, match=f"was trained with field.dyna_mode '{mode}', wanted 'other'"):
        window_files.open_window(job.paths, base.dataset, WINDOWS[0], "cpu", "other")


def test_the_field_comes_back_and_renders(run):
    base, job = run
    field, cells = window_files.open_window(job.paths, base.dataset, WINDOWS[1], "cpu")
    assert cells == field.occupied.shape[-1] and field.frames == 3 and not any(p.requires_grad for p in field.parameters())
    rig = base.dataset.cameras
    seen = Renderer(job, base.dataset).render(rig.c2w[0], rig.K[0], (48, 48), base.dataset.frames[1])
    true = base.dataset.image(0, base.dataset.frames[1])[..., 3] > 127
    assert ((seen["alpha"] > 0.5) & true).sum() / ((seen["alpha"] > 0.5) | true).sum() > 0.7  # after thirty steps from the hull


def test_what_needs_tracks_says_why_there_are_none_and_what_does_not_works(run, tmp_path):
    _, job = run
    with pytest.raises(ContractError, match=r"animation\.npz: there is none, because field\.dyna_mode was one that does not track"):
        meshes.load_animation(job.paths.animation)
    said = run_render(job, "orbit", tmp_path / "orbit", 32)
    assert "2 pictures of 32x32" in said and len(list((tmp_path / "orbit" / "frames").glob("*_rgb.png"))) == 2


def test_the_log_says_once_that_nothing_is_tracked(run, caplog):
    _, job = run
    with caplog.at_level(logging.WARNING):
        mesh_stage.run(job)
    assert len([r for r in caplog.records if "no tracked mesh" in r.getMessage()]) == 1


def test_tracking_again_removes_the_list_of_surfaces(run):
    base, job = run
    tracked = base.variant(results=job.config.runtime.results)
    for window in WINDOWS:
        field_stage.run(dataclasses.replace(tracked, part=window))
        mesh_stage.run(dataclasses.replace(tracked, part=window))
    mesh_stage.run(tracked)
    assert tracked.paths.animation.is_file() and not tracked.paths.surfaces.exists()


# The artifact, the key


def test_surfaces_come_back_as_saved_and_what_does_not_fit_is_refused(tmp_path):
    rng, path = np.random.default_rng(0), tmp_path / "a.npz"
    parts = {
        frame: surfaces.FrameSurface(rng.random((n, 3), np.float32), rng.integers(0, n, (n + 3, 3)).astype(np.int32), rng.random((n, 3), np.float32))
        for frame, n in ((7, 5), (3, 9))
    }
    surfaces.save(path, parts, artifact.make_header(surfaces.KIND, surfaces.FORMAT, "mesh"))
    found = surfaces.load(path)
    assert list(found) == [3, 7]
    assert all(np.array_equal(getattr(found[f], name), getattr(parts[f], name)) for f in parts for name in ("vertices", "faces", "colours"))
    header, arrays = artifact.load_npz(path, surfaces.KIND, surfaces.FORMAT)
    artifact.save_npz(path, header, **arrays | {"vertex_counts": arrays["vertex_counts"] + 1})
    with pytest.raises(ContractError, match="counts do not add up"):
        surfaces.load(path)


def test_an_unknown_mode_names_the_known_ones():
    with pytest.raises(ConfigError, match=r"deform \| time \| fourier \| latent"):
        configuration.parse({"field": {"dyna_mode": "splines"}})
