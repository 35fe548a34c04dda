"""Interrupted training: a killed run continues to the same bits, and never from a state that is not its own."""

import dataclasses
import logging
import pickle
import zipfile

import numpy as np
import pytest
import torch

from instant_nk.config import FieldConfig
from instant_nk.errors import ContractError, NumericalError
from instant_nk.fitting import surface_fit, training_state
from instant_nk.fitting.rays import PixelSource
from instant_nk.fitting.surface_fit import Interruptible, SurfaceFit, SurfaceFitConfig
from instant_nk.fitting.window_fit import WindowFit
from instant_nk.io import artifact, checkpoint
from instant_nk.io import dataset as datasets
from tests.unit import neural_fixtures
from tests.unit.neural_fixtures import SPEC, stir

HEADER = artifact.make_header("checkpoint", 1, "field", {"steps": 10}, {"dataset": "abc"})
SURFACE = SurfaceFitConfig(10, 1500, SPEC, 16, 32, 1e-2, 0.05, 0.2)
WINDOW = FieldConfig(steps=10, samples_per_step=1500, checkpoint_every=5)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The dataset of two balls, the pixels of its first frame, and those of all its frames."""
    dataset = datasets.load(neural_fixtures.balls(tmp_path_factory.getbasetemp()).paths.manifest)
    return dataset, PixelSource(dataset, [0], 10**6), PixelSource(dataset, list(dataset.frames), 10**6)


def surface(made, config=SURFACE, seed=0):
    dataset, source, _ = made
    return SurfaceFit(config, source, dataset.hull(0), "cpu", seed, "test")


def window(made, config=WINDOW, seed=0):
    dataset, _, source = made
    torch.manual_seed(seed)
    return WindowFit(config, neural_fixtures.balls_window(dataset), source, 32, "cpu", seed, "test")


class Killed(Exception):
    pass


def kill_at(fit, step):
    """Make the fit die as it begins that step."""
    whole = fit.step

    def dying():
        if fit.done == step:
            raise Killed
        return whole()

    fit.step = dying


def state_of(modules):
    return {name: value.clone() for name, value in modules.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_surface_fit_killed_half_way_ends_in_the_same_bits(made, tmp_path, monkeypatch):
    monkeypatch.setattr(surface_fit, "GRID_EVERY", 4)  # the occupancy grid changes before and after the kill
    state = Interruptible(tmp_path / "a.npz", 5, HEADER)
    whole = surface(made)
    undisturbed = whole.run(Interruptible(tmp_path / "whole.npz", 5, HEADER))
    killed = surface(made)
    kill_at(killed, 7)
    with pytest.raises(Killed):
        killed.run(state)
    again = surface(made)
    stir(again.modules, 0.1)  # whatever it starts with is replaced
    resumed = again.run(state)
    assert again.done == 10
    assert same(state_of(whole.modules), state_of(again.modules))
    assert torch.equal(undisturbed.occupied, resumed.occupied) and undisturbed.history == resumed.history


@pytest.mark.parametrize("refine_motion", [True, False])
def test_a_window_fit_killed_half_way_ends_in_the_same_bits(made, tmp_path, refine_motion):
    config = dataclasses.replace(WINDOW, refine_motion=refine_motion)
    whole, killed = window(made, config), window(made, config)
    whole.unconverged, killed.unconverged = torch.tensor(0.5), torch.tensor(0.5)  # as if samples had been lost
    whole.run(tmp_path / "whole.npz", HEADER)
    kill_at(killed, 7)
    with pytest.raises(Killed):
        killed.run(tmp_path / "a.npz", HEADER)
    again = window(made, config)
    stir(again.modules, 0.1)
    again.run(tmp_path / "a.npz", HEADER)
    assert same(state_of(whole.modules), state_of(again.modules))
    assert whole.history == again.history and torch.equal(whole.unconverged, again.unconverged) and torch.equal(whole.space.occupied, again.space.occupied)
    moved = whole.field.motion.shift.abs().max() > 0
    assert moved == refine_motion


def test_the_same_seed_trains_to_the_same_bits_and_another_does_not(made):
    first, second, other = surface(made), surface(made), surface(made, seed=1)
    for fit in (first, second, other):
        for _ in range(3):
            fit.step()
    assert same(state_of(first.modules), state_of(second.modules))
    assert not same(state_of(first.modules), state_of(other.modules))


def test_training_lowers_the_loss(made, tmp_path):
    """Sixty steps from the hull, and from the true motion with an untrained colour."""
    history = surface(made, dataclasses.replace(SURFACE, steps=60, samples_per_step=4000)).run().history
    assert history["step"] == [20, 40, 60] and history["loss"][-1] < 0.75 * history["loss"][0] and history["psnr_db"][-1] > history["psnr_db"][0] + 1
    fit = window(made, dataclasses.replace(WINDOW, steps=60))
    fit.run(tmp_path / "a.npz", HEADER)
    assert fit.history["loss"][-1] < fit.history["loss"][0] and fit.unconverged < 0.05


def test_the_ray_count_settles_at_the_wanted_number_of_samples(made):
    fit = surface(made, dataclasses.replace(SURFACE, samples_per_step=6000))
    for _ in range(8):
        fit.step()
    before = fit.rays
    fit.step()
    assert abs(fit.rays - before) < 0.2 * before and before != 6000 // 16


# Whose state it is


def saved(fit, path, header=HEADER):
    for _ in range(2):
        fit.step()
    fit._keep(Interruptible(path, 5, header))
    return state_of(fit.modules)


def restore(fit, path, header=HEADER):
    return training_state.restore(path, fit.modules, fit.optimizer, fit.generator, header)


def test_without_a_checkpoint_training_starts_at_zero(made, tmp_path):
    assert restore(surface(made), tmp_path / "none.npz") is None


@pytest.mark.parametrize("other", [{"config_hash": "other"}, {"inputs": {"dataset": "changed"}}, {"stage_version": 99}])
def test_a_checkpoint_of_another_configuration_or_input_is_not_continued(made, tmp_path, caplog, other):
    saved(surface(made), tmp_path / "a.npz", HEADER | other)
    fresh = surface(made)
    before = state_of(fresh.modules)
    with caplog.at_level(logging.WARNING):
        assert restore(fresh, tmp_path / "a.npz") is None
    assert "another configuration or other inputs" in caplog.text
    assert same(before, state_of(fresh.modules)) and not fresh.optimizer.state


def test_a_checkpoint_of_another_device_or_of_other_networks_is_not_continued(made, tmp_path, caplog):
    path = tmp_path / "a.npz"
    saved(surface(made), path)
    state, header, counters = checkpoint.load(path)
    gpu = state | {"generator": state["generator"][:16]}  # as long as a GPU's generator has it
    wider = state | {name: torch.zeros(*value.shape, 2) for name, value in state.items() if name.startswith("model/")}
    for other in (gpu, wider):
        checkpoint.save(path, other, header, counters)
        fresh = surface(made)
        before = state_of(fresh.modules)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert restore(fresh, path) is None
        assert "starting over" in caplog.text and "another kind of device, or by another backend" in caplog.text
        assert same(before, state_of(fresh.modules)) and not fresh.optimizer.state


@pytest.mark.parametrize("keep", [0, 100, 0.5, 0.99])
def test_a_truncated_checkpoint_is_refused_and_training_starts_over(made, tmp_path, caplog, keep):
    path = tmp_path / "a.npz"
    saved(surface(made), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    with pytest.raises(ContractError, match=r"a\.npz: not a readable 'checkpoint'"):
        checkpoint.load(path)
    with caplog.at_level(logging.WARNING):
        assert restore(surface(made), path) is None
    assert "starting over" in caplog.text


def test_a_checkpoint_is_never_unpickled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    class Bomb:
        def __reduce__(self):
            import os

            return os.mkdir, ("exploded",)

    with zipfile.ZipFile("a.npz", "w") as archive:
        archive.writestr("model/table.npy", pickle.dumps(Bomb()))
    torch.save({"table": Bomb()}, "b.npz")
    np.savez("c.npz", __header__=np.array([Bomb()], dtype=object))
    for name in ("a.npz", "b.npz", "c.npz"):
        with pytest.raises(ContractError, match="not a readable 'checkpoint'"):
            checkpoint.load(tmp_path / name)
    assert not (tmp_path / "exploded").exists()


def test_moments_counters_and_extra_tensors_come_back(made, tmp_path):
    fit = surface(made)
    state = saved(fit, tmp_path / "a.npz")
    fresh = surface(made, seed=5)
    counters, extra = restore(fresh, tmp_path / "a.npz")
    assert counters == {"step": 2, "rays": fit.rays, "history": fit.history}
    assert torch.equal(extra["occupied"], fit.occupied) and extra["occupied"].dtype == torch.bool
    assert same(state, state_of(fresh.modules))
    assert torch.equal(fresh.generator.get_state(), fit.generator.get_state())
    mine, theirs = fit.optimizer.state, fresh.optimizer.state
    assert mine.keys() == theirs.keys() and all(same(mine[i], theirs[i]) for i in mine)


def test_a_loss_that_is_not_finite_names_the_step(made):
    fit = surface(made, dataclasses.replace(SURFACE, steps=1))
    with torch.no_grad():
        fit.colour.mlp.layers[0].weight.fill_(float("nan"))
    with pytest.raises(NumericalError, match=r"test: the loss is not finite at step 1 of 1\. Lower the learning rate"):
        fit.run()
    broken = window(made, dataclasses.replace(WINDOW, steps=1))
    with torch.no_grad():
        broken.field.colour.mlp.layers[0].weight.fill_(float("nan"))
    with pytest.raises(NumericalError, match=r"not finite at step 1 of 1\. Lower field\.learning_rate"):
        broken.run(made[0].root / "none.npz", HEADER)
