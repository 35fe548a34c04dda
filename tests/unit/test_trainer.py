"""What surrounds every training step: memory that runs out, bfloat16 where it is allowed, numbers looked at rarely."""

import dataclasses
import logging

import pytest
import torch

from instant_nk.errors import NumericalError
from instant_nk.fitting import trainer
from instant_nk.fitting.rays import PixelSource
from instant_nk.fitting.surface_fit import SurfaceFit, SurfaceFitConfig
from instant_nk.fitting.trainer import How, mixed_precision, wants_mixed
from instant_nk.fitting.window_fit import WindowFit
from instant_nk.io import dataset as datasets
from instant_nk.models.colour_field import ColourField
from instant_nk.models.residual_field import ResidualField
from instant_nk.models.sdf_field import SdfField
from tests.unit import neural_fixtures
from tests.unit.neural_fixtures import SPEC, SPEC_IN_TIME, stir
from tests.unit.test_training_state import HEADER, WINDOW

SURFACE = SurfaceFitConfig(6, 8000, SPEC, 16, 32, 1e-2, 0.05, 0.2)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return datasets.load(neural_fixtures.balls(tmp_path_factory.getbasetemp()).paths.manifest)


def surface(dataset, config=SURFACE, **more):
    return SurfaceFit(config, PixelSource(dataset, [0], 10**6), dataset.hull(0), "cpu", 0, "canonical", **more)


def window(dataset, **more):
    config = dataclasses.replace(WINDOW, steps=6, samples_per_step=8000)
    source = PixelSource(dataset, list(dataset.frames), 10**6)
    return WindowFit(config, neural_fixtures.balls_window(dataset), source, 32, "cpu", 0, "field 000000-000002", **more)


# Memory


def full_above(fit, samples, at=0):
    """Make the fit's device run out of memory, from step `at` on, whenever a step wants more than that many samples."""
    whole = fit.source.draw

    def limited(*args):
        if fit.done >= at and fit.samples > samples:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return whole(*args)

    fit.source.draw = limited


@pytest.mark.parametrize("make", [surface, window])
def test_a_step_without_memory_is_taken_again_with_half_the_samples_and_that_is_said_once(dataset, caplog, tmp_path, make):
    fit = make(dataset)
    fit.source = PixelSource(dataset, [0] if make is surface else list(dataset.frames), 10**6)
    full_above(fit, 2500, at=2)
    with caplog.at_level(logging.WARNING):
        fit.run() if make is surface else fit.run(tmp_path / "a.npz", HEADER)
    assert fit.done == 6 and fit.samples == 2000 and fit.history["step"] == [6]
    said = [record.getMessage() for record in caplog.records if "out of GPU memory" in record.getMessage()]
    assert said == [f"{fit.title}: out of GPU memory at step 3 with 8000 samples a step; going on with 2000, and with fewer where that is too much"]


def test_a_later_lack_of_memory_is_not_said_again(dataset, caplog):
    fit = surface(dataset)
    full_above(fit, 5000, at=1)
    with caplog.at_level(logging.WARNING):
        fit.advance(), fit.advance()
        full_above(fit, 2500, at=2)
        fit.advance()
    assert fit.samples == 2000 and len([r for r in caplog.records if "out of GPU memory" in r.getMessage()]) == 1


def test_gradients_of_the_failed_attempt_are_dropped(dataset):
    """Memory may run out after the backward pass: the step that follows must not add to what is there."""
    fit, calls = surface(dataset), []
    whole = fit.optimizer.step

    def failing_once():
        calls.append(fit.samples)
        if len(calls) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole()

    fit.optimizer.step = failing_once
    fit.advance()
    assert calls == [8000, 4000] and fit.done == 1


def test_a_device_without_room_for_a_few_samples_is_given_up(dataset):
    fit = surface(dataset)
    full_above(fit, 0)
    with pytest.raises(torch.OutOfMemoryError):
        fit.advance()
    assert fit.samples == 2000 and fit.samples // 2 < trainer.LEAST_SAMPLES


# Precision


def test_mixed_precision_is_a_gpu_matter_and_off_by_default():
    assert wants_mixed("on", "cuda") and not wants_mixed("auto", "cuda") and not wants_mixed("off", "cuda") and not wants_mixed("on", "cpu")


def test_the_signed_distance_is_never_computed_in_bfloat16():
    sdf, x = SdfField(SPEC, 16, 16), torch.rand(200, 3) - 0.5
    stir(sdf, 0.3)
    wanted = sdf.with_gradient(x)
    with mixed_precision(sdf, True):
        assert all(torch.equal(a, b) for a, b in zip(wanted, sdf.with_gradient(x))) and torch.equal(sdf(x), wanted[0])


def test_colour_and_residual_in_bfloat16_are_near_float32_and_come_back_as_float32():
    torch.manual_seed(0)
    colour, residual, x = ColourField(SPEC.width, 32), ResidualField(SPEC_IN_TIME, 16, 0.02), torch.rand(500, 3) * 2 - 1
    stir(residual, 0.3)
    look = torch.nn.functional.normalize(torch.randn(500, 3), dim=1)
    arguments = (x, look, -look, torch.rand(500, SPEC.width))
    tau = torch.rand(500)
    rgb, (moved, stretch) = colour(*arguments), residual.with_jacobian(x, tau)
    with mixed_precision(torch.nn.ModuleList([colour, residual]), True):
        half = colour(*arguments)
        half_moved, half_stretch = residual.with_jacobian(x, tau)
        assert torch.equal(residual(x, tau), half_moved)
    assert half.dtype == half_moved.dtype == half_stretch.dtype == torch.float32
    assert 0 < (half - rgb).abs().max() < 4e-3  # a level of 8-bit colour
    assert 0 < (half_moved - moved).abs().max() < 0.01 * 0.02  # of the residual's bound
    assert (half_stretch - stretch).abs().max() < 0.03 * stretch.abs().max()
    assert torch.equal(colour(*arguments), rgb)  # and off again outside


def test_training_in_bfloat16_ends_near_training_in_float32(dataset):
    config = dataclasses.replace(SURFACE, steps=30, samples_per_step=3000)
    exact, mixed = surface(dataset, config), surface(dataset, config, how=How(mixed=True))
    exact.run(), mixed.run()
    assert abs(mixed.history["psnr_db"][-1] - exact.history["psnr_db"][-1]) < 0.5
    x = torch.rand(500, 3) - 0.5
    assert (mixed.sdf(x) - exact.sdf(x)).abs().mean() < 2e-3
    assert not any(getattr(module, "mixed", False) for module in mixed.modules.modules())


# Looking rarely


def test_the_numbers_are_looked_at_every_twenty_steps_only(dataset, monkeypatch):
    """Each look makes the host wait for the GPU."""
    looks = []
    monkeypatch.setattr(trainer.Trainer, "_note", lambda self, seen, progress: looks.append(self.done))
    surface(dataset, dataclasses.replace(SURFACE, steps=45, samples_per_step=500)).run()
    assert looks == [20, 40, 45]


@pytest.mark.parametrize(("make", "waits"), [(surface, 1), (window, 3)])
def test_a_step_makes_the_host_wait_only_where_sizes_depend_on_the_data(dataset, make, waits):
    """Each `nonzero` and each number read back is a wait for the GPU; marching, one more, is the kernel's own."""
    fit = make(dataset)
    fit.step(), fit.step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        fit.step()
    names = [event.name for event in seen.events()]
    assert names.count("aten::nonzero") == waits
    assert names.count("aten::_local_scalar_dense") <= len(fit.trained)  # on the CPU, the fused optimiser reads its own step counts


def test_a_surface_that_has_vanished_ends_the_training_with_a_message(dataset, monkeypatch):
    monkeypatch.setattr(SurfaceFit, "update_grid", lambda self: self.occupied.zero_())
    fit = surface(dataset, dataclasses.replace(SURFACE, steps=200))
    with pytest.raises(NumericalError, match=r"canonical: no ray meets the surface any more at step \d+ of 200\. Lower the learning rate or check the images"):
        fit.run()
    assert fit.rays <= trainer.MOST_RAYS * fit.samples
