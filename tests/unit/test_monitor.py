"""Looking at a training: previews, TensorBoard's events, and the running mean of the weights."""

import dataclasses
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from instant_nk import config as configuration
from instant_nk.errors import BackendError, ConfigError
from instant_nk.fitting.monitor import Monitor, middle_view, side_by_side
from instant_nk.fitting.rays import PixelSource
from instant_nk.fitting.surface_fit import SurfaceFit
from instant_nk.fitting.trainer import How, Interruptible
from instant_nk.fitting.window_fit import WindowFit
from instant_nk.io import dataset as datasets
from instant_nk.stages import canonical as canonical_stage
from instant_nk.stages import field as field_stage
from tests.unit import neural_fixtures
from tests.unit.neural_fixtures import WINDOWS
from tests.unit.test_training_state import HEADER, SURFACE, WINDOW, Killed, kill_at, same, state_of


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return datasets.load(neural_fixtures.balls(tmp_path_factory.getbasetemp()).paths.manifest)


@pytest.fixture(scope="module")
def body(tmp_path_factory):
    return neural_fixtures.body(tmp_path_factory.getbasetemp())


def surface(dataset, **changes):
    how = changes.pop("how", How())
    return SurfaceFit(dataclasses.replace(SURFACE, **changes), PixelSource(dataset, [0], 10**6), dataset.hull(0), "cpu", 0, "canonical", how=how)


def window(dataset, **changes):
    torch.manual_seed(0)
    how = changes.pop("how", How())
    source = PixelSource(dataset, list(dataset.frames), 10**6)
    return WindowFit(dataclasses.replace(WINDOW, **changes), neural_fixtures.balls_window(dataset), source, 32, "cpu", 0, "field", how=how)


# Previews


def test_the_true_half_of_a_preview_is_the_image_on_white(dataset):
    source = PixelSource(dataset, list(dataset.frames), 10**6)
    fit, view = window(dataset), middle_view(source)
    frame, camera = divmod(view, len(dataset.cameras))
    assert frame == 1
    picture = side_by_side(source, fit.field, fit.space, fit.field.posed(), view)
    rgba = dataset.image(camera, dataset.frames[1]).astype(float) / 255
    pixels = source.pixels[source.views == view].long().numpy()
    low, high = pixels.min(0), pixels.max(0)
    white = (rgba[..., :3] * rgba[..., 3:] + 1 - rgba[..., 3:])[low[1] : high[1] + 1, low[0] : high[0] + 1] * 255
    half = picture.shape[1] // 2
    assert picture.dtype == np.uint8 and picture[:, :half].shape == white.shape
    assert np.abs(picture[:, :half] - white).max() < 1


def test_the_rendered_half_resembles_the_true_one_when_the_shape_is_known(dataset):
    fit = window(dataset)
    picture = fit.picture().astype(float)
    half = picture.shape[1] // 2
    true, drawn = picture[:, :half], picture[:, half:]
    subject = true.min(-1) < 230
    assert ((drawn.min(-1) < 230) == subject).mean() > 0.9


@pytest.mark.parametrize("make", [surface, window])
def test_a_preview_is_written_when_its_time_has_come(dataset, tmp_path, make):
    monitor = Monitor(tmp_path / "field.preview.png", 1e-6, None)
    fit = make(dataset, steps=20, how=How(monitor=monitor))
    fit.run() if make is surface else fit.run(tmp_path / "a.npz", HEADER)
    with Image.open(tmp_path / "field.preview.png") as image:
        assert image.size[0] % 2 == 0 and image.size[0] > 20 and np.asarray(image).std() > 5


@pytest.mark.parametrize("every_s", [0.0, 3600.0])
def test_no_preview_is_drawn_before_its_time_or_when_none_is_wanted(dataset, tmp_path, every_s):
    (tmp_path / "a.preview.png").write_bytes(b"an earlier run's")
    surface(dataset, how=How(monitor=Monitor(tmp_path / "a.preview.png", every_s, None))).run()
    assert not list(tmp_path.iterdir())


def test_looking_changes_nothing_of_what_is_learned(dataset, tmp_path):
    alone, watched = surface(dataset, steps=40), surface(dataset, steps=40, how=How(monitor=Monitor(tmp_path / "a.png", 1e-6, None)))
    alone.run(), watched.run()
    assert same(state_of(alone.modules), state_of(watched.modules))


def test_a_large_view_is_thinned_for_its_preview(dataset, monkeypatch):
    from instant_nk.fitting import monitor

    monkeypatch.setattr(monitor, "SIDE", 10)
    picture = window(dataset).picture()
    assert max(picture.shape[0], picture.shape[1] // 2) <= 10


def test_the_stages_write_their_previews_beside_what_they_make(body, tmp_path):
    job = body.variant(results=tmp_path, runtime={"preview_every_s": 1e-6})
    canonical_stage.run(job)
    assert (job.paths.canonical / "field.preview.png").is_file()


# TensorBoard


def test_scalars_and_pictures_reach_tensorboard(dataset, tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="tensorboard is not installed")
    monitor = Monitor(tmp_path / "a.png", 1e-6, tmp_path / "events")
    fit = surface(dataset, steps=40, how=How(monitor=monitor))
    fit.run()
    events = accumulator.EventAccumulator(str(tmp_path / "events"), size_guidance={"images": 0})
    events.Reload()
    assert [e.step for e in events.Scalars("loss")] == [20, 40]
    assert [e.value for e in events.Scalars("psnr_db")] == pytest.approx(fit.history["psnr_db"], rel=1e-5)
    assert {"eikonal", "inv_std", "rays"} <= set(events.Tags()["scalars"]) and len(events.Images("preview")) == 2


def test_without_tensorboard_the_wish_for_it_is_refused_before_anything_runs(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monkeypatch.setattr(configuration.importlib.util, "find_spec", lambda name: None if name == "tensorboard" else object())
    wanted = r"runtime\.tensorboard.* needs the package tensorboard, which is not installed\. pip install tensorboard, or leave it false"
    with pytest.raises(BackendError, match=wanted):
        configuration.check_packages(configuration.parse({"runtime": {"tensorboard": True}}))
    with pytest.raises(BackendError, match=wanted):
        Monitor(tmp_path / "a.png", 0, tmp_path / "events")
    configuration.check_packages(configuration.parse({}))


# The running mean


@pytest.mark.parametrize("make", [surface, window])
def test_the_exported_weights_are_the_running_mean_of_those_trained(dataset, tmp_path, make):
    fit, seen = make(dataset, ema=0.8), []
    whole = fit.step

    def watched():
        result = whole()
        seen.append(fit.trained[1].detach().clone())
        return result

    fit.step = watched
    fit.run() if make is surface else fit.run(tmp_path / "a.npz", HEADER)
    mean = seen[0]
    for i, value in enumerate(seen[1:], 2):
        mean = mean + max(0.2, 1 / i) * (value - mean)
    torch.testing.assert_close(fit.trained[1].detach(), mean, atol=1e-6, rtol=1e-5)
    assert not torch.equal(fit.trained[1], seen[-1])


def test_a_killed_fit_resumes_its_mean_to_the_same_bits(dataset, tmp_path):
    whole, killed, again = (surface(dataset, ema=0.9) for _ in range(3))
    whole.run(Interruptible(tmp_path / "whole.npz", 5, HEADER))
    kill_at(killed, 7)
    with pytest.raises(Killed):
        killed.run(Interruptible(tmp_path / "a.npz", 5, HEADER))
    again.run(Interruptible(tmp_path / "a.npz", 5, HEADER))
    assert same(state_of(whole.modules), state_of(again.modules))


def test_a_window_s_file_holds_the_mean(body, tmp_path):
    import shutil

    shutil.copytree(body.job.paths.root, tmp_path / "results" / body.job.paths.root.name)
    from instant_nk.io import checkpoint

    states = []
    for ema in (0.0, 0.9):
        job = body.variant(WINDOWS[0], results=tmp_path / "results", field={"ema": ema})
        field_stage.run(job)
        states.append(checkpoint.load(job.paths.field(WINDOWS[0]))[0])
    key = "residual.mlp.last.weight"
    assert 0 < states[1][key].norm() < states[0][key].norm()  # it began at zero


@pytest.mark.parametrize("key", ["canonical.ema", "field.ema"])
def test_a_mean_that_forgets_nothing_is_refused(key):
    section, name = key.split(".")
    with pytest.raises(ConfigError, match=f"'{key}': wanted below 1"):
        configuration.parse({section: {name: 1.0}})
