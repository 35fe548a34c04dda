"""With room for a fixed number of samples, a step computes the same; rays that do not fit are left out whole and teach nothing."""

import dataclasses

import pytest
import torch

from instant_nk.fitting.ray_samples import Room
from tests.unit.test_trainer import dataset, surface, window  # noqa: F401

NAMES = ("row", "points", "directions", "frame", "middle", "lengths")


def drawn(fit, rays=300, seed=0):
    generator = torch.Generator().manual_seed(seed)
    batch = fit.source.batch(fit.source.draw(rays, generator))
    return batch, torch.rand(rays, generator=generator), torch.rand(rays, 3, generator=generator)


def taught(fit, samples, batch, background):
    fit.optimizer.clear()
    seen = fit.lesson(samples, dataclasses.replace(batch, alpha=samples.shown(batch.alpha)), background, fit.numbers())
    return seen["loss"], [parameter.grad for parameter in fit.trained]


@pytest.mark.parametrize("make", [surface, window])
def test_padded_samples_are_the_samples_and_teach_the_same(dataset, make):  # noqa: F811
    fit = make(dataset)
    fit.step()
    batch, jitter, background = drawn(fit)
    exact = fit.find(batch, jitter, None)
    padded = fit.find(batch, jitter, Room(exact.marched + 500, exact.kept + 300))
    assert 100 < exact.kept < exact.marched and (int(padded.marched), int(padded.kept)) == (exact.marched, exact.kept)
    assert (
        len(padded.points) == exact.kept + 300 and int(padded.valid.sum()) == exact.kept and bool(padded.valid[: exact.kept].all()) and bool(padded.fits.all())
    )
    for name in NAMES:
        assert torch.allclose(getattr(padded, name)[: exact.kept], getattr(exact, name), atol=1e-6), name
    assert torch.equal(padded.ray[: exact.kept], exact.ray) and bool((padded.ray.diff() >= 0).all()) and int(padded.ray[exact.kept]) >= 300
    assert torch.equal(padded.seed[: exact.kept], exact.seed) if make is window else padded.seed is exact.seed is None
    loss, gradients = taught(fit, padded, batch, background)
    wanted, wanted_gradients = taught(fit, exact, batch, background)
    assert abs(float(loss - wanted)) < 1e-5 * float(wanted)
    for got, true in zip(gradients, wanted_gradients):
        assert (got - true).abs().max() < 1e-4 * true.abs().max() + 1e-9


@pytest.mark.parametrize("short", ["marched", "kept"])
@pytest.mark.parametrize("make", [surface, window])
def test_rays_without_room_are_left_out_whole_and_teach_nothing(dataset, make, short):  # noqa: F811
    fit = make(dataset)
    fit.step()
    batch, jitter, background = drawn(fit)
    exact = fit.find(batch, jitter, None)
    room = dataclasses.replace(Room(exact.marched + 64, exact.kept + 64), **{short: getattr(exact, short) * 2 // 3})
    padded = fit.find(batch, jitter, room)
    assert (int(padded.marched), int(padded.kept)) == (exact.marched, exact.kept) or short == "marched"
    fitting = int(padded.fits.sum())
    assert 100 < fitting < 300 and bool(padded.fits[:fitting].all())
    assert int(padded.valid.sum()) == int((exact.row < fitting).sum())
    fewer = type(batch)(*(getattr(batch, name)[:fitting] for name in ("origins", "directions", "rgb", "alpha", "frame", "camera")))
    loss, gradients = taught(fit, padded, batch, background)
    wanted, wanted_gradients = taught(fit, fit.find(fewer, jitter[:fitting], None), fewer, background[:fitting])
    image = [i for i, parameter in enumerate(fit.trained) if parameter in set(fit.colour.parameters() if make is surface else fit.field.colour.parameters())]
    for i in image:  # what only colours teach: a mean over all 300 rays, of which those left out add nothing
        true = wanted_gradients[i] * fitting / 300
        assert (gradients[i] - true).abs().max() < 1e-3 * true.abs().max() + 1e-9
    assert bool(torch.isfinite(loss)) and float(loss) < float(wanted) * 1.01 + 0.05


def test_a_batch_that_meets_nothing_is_no_trouble(dataset):  # noqa: F811
    fit = surface(dataset)
    batch, jitter, background = drawn(fit)
    away = dataclasses.replace(batch, directions=-batch.directions)
    samples = fit.find(away, jitter, Room(4096, 4096))
    assert int(samples.marched) == int(samples.kept) == 0 and not bool(samples.valid.any())
    loss, gradients = taught(fit, samples, away, background)
    assert bool(torch.isfinite(loss)) and all(g is None or bool(g.isfinite().all()) for g in gradients)
