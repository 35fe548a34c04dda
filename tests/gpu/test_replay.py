"""A recorded training is the training: the same samples, gradients and losses, whatever the number of samples."""

from __future__ import annotations

import copy
import dataclasses
import itertools

import pytest
import torch

from benchmarks import window_step
from instant_nk.fitting.replay import Replay
from instant_nk.fitting.trainer import How, train_together
from instant_nk.fitting.window_fit import WindowFit

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
SIZES = window_step.sizes_of(small=True) if torch.cuda.is_available() else None


def window(recorded, seed=0, **changed):
    torch.manual_seed(seed)
    field, resolution = window_step.make_field(SIZES, "cuda")
    rays = window_step.Rays(field, field.live_space(resolution), SIZES.cameras)
    return WindowFit(dataclasses.replace(SIZES.config.field, **changed), field, rays, resolution, "cuda", 0, "test", How(recorded=recorded))


def test_recorded_steps_have_the_losses_of_launched_ones():
    recorded, launched = window(True), window(False)
    launched.how = recorded.how  # so that both look at their numbers, and choose their rays, at the same steps
    for step in range(70):
        seen, wanted = recorded.step(), launched.step()
        assert recorded.rays == launched.rays
        # Sums have another order, and two trainings drift apart from rounding: at once they agree to digits, later to per cents.
        bound = 1e-4 if step < 3 else 0.03
        assert abs(float(seen["loss"]) - float(wanted["loss"])) < bound * float(wanted["loss"]), step
        assert abs(int(seen["marched"]) - int(wanted["marched"])) < 3e-3 * int(wanted["marched"]), step
        assert abs(int(seen["kept"]) - int(wanted["kept"])) < 0.03 * int(wanted["kept"]), step
    assert isinstance(recorded.run_step, Replay) and 1 <= recorded.run_step.recordings <= 8
    for mine, theirs in zip(recorded.trained, launched.trained):
        assert (mine - theirs).abs().mean() < 0.1 * theirs.abs().mean() + 1e-5


def test_another_key_or_ray_count_is_another_recording_and_so_are_far_fewer_samples():
    def act(drawn, numbers, room):
        x = drawn["x"]
        return {"loss": x.sum() * numbers["factor"], "marched": len(x), "kept": len(x), "room": room}

    replay = Replay(act)
    x = torch.rand(600, device="cuda")
    assert replay({"x": x}, {"factor": 1.0}, 0)["room"] is None
    replay.expect(600, 600)
    for key, count in ((0, 600), (0, 600), (0, 600), (1, 600), (1, 600), (1, 500), (1, 500)):
        x = torch.rand(count, device="cuda")
        seen = replay({"x": x}, {"factor": 2.0 + key}, key)
        assert torch.allclose(seen["loss"], x.sum() * (2 + key), rtol=1e-5) and seen["room"].kept == 4096
    assert replay.recordings == 3
    for expected, recordings in ((4000, 3), (5000, 4), (4500, 4), (9000, 5), (8000, 5), (2000, 6)):
        replay.expect(4000, expected)
        for _ in range(3):
            replay({"x": x}, {"factor": 1.0}, 1)
        assert replay.recordings == recordings and replay.room.kept >= expected
    replay.forget()
    assert replay({"x": x}, {"factor": 1.0}, 1)["room"] is None


def test_the_optimiser_of_a_recorded_step_follows_the_schedule():
    """The step size is a number of the step, not of the recording."""
    fit = window(True)
    for _ in range(12):
        fit.step()
    assert fit.run_step.graph is not None
    before = [parameter.detach().clone() for parameter in fit.trained]
    fit.numbers = lambda: {"rate": 0.0, "mean": 0.0}
    fit.step()
    assert all(torch.equal(a, b) for a, b in zip(before, fit.trained))


def test_a_recorded_step_reaches_the_poses():
    config = copy.copy(SIZES.config)
    torch.manual_seed(0)
    field, resolution = window_step.make_field(SIZES, "cuda")
    rays = window_step.Rays(field, field.live_space(resolution), SIZES.cameras)
    fit = WindowFit(dataclasses.replace(config.field, refine_poses=True), field, rays, resolution, "cuda", 0, "test", How(recorded=True))
    for _ in range(15):
        fit.step()
    before = fit.rig.turn.detach().clone()
    fit.step()
    assert fit.run_step.graph is not None and bool((fit.rig.turn != before).any()) and bool(fit.rig.turn.isfinite().all())


def test_trainings_side_by_side_are_what_each_is_alone():
    """Each in a stream of its own, both recorded there; rounding alone differs."""
    alone, beside = ([window(True, seed, steps=100) for seed in (0, 1)] for _ in range(2))
    for fit in alone:
        train_together([itertools.islice(fit.training(), 60)], torch.device("cuda"))
    train_together([itertools.islice(fit.training(), 60) for fit in beside], torch.device("cuda"))
    assert alone[0].history["loss"] != alone[1].history["loss"]
    for one, other in zip(alone, beside):
        assert one.done == other.done == 60 and other.run_step.recordings >= 1
        assert other.history["loss"] == pytest.approx(one.history["loss"], rel=0.05)
        for mine, theirs in zip(other.trained, one.trained):
            assert (mine - theirs).abs().mean() < 0.1 * theirs.abs().mean() + 1e-5
