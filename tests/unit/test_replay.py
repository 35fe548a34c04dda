"""When a recording is made, what it has room for, and that a recorded training is the training; graphs are played by Python here (on a GPU: tests/gpu/test_replay.py)."""

import dataclasses

import pytest
import torch

from instant_nk.fitting import replay
from instant_nk.fitting.replay import Replay
from instant_nk.fitting.trainer import How
from tests.unit.test_trainer import SURFACE, dataset, surface, window  # noqa: F401


@pytest.fixture(autouse=True)
def played(monkeypatch):
    """A graph that does its work again; what it says is where the recording said it would be."""
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 0))

    def captured(work, pool):
        said = {}
        graph = type("Graph", (), {"replay": lambda _: said.update(work())})()
        return graph, said

    monkeypatch.setattr(replay, "capture", captured)
    monkeypatch.setattr(replay, "keeper", lambda pool: object())


def test_a_recorded_training_is_the_training(dataset):  # noqa: F811
    """Room, padding, rays that follow the samples every twenty steps, levels that open, the grid laid anew."""
    config = dataclasses.replace(SURFACE, steps=60, samples_per_step=9000)
    recorded, launched = surface(dataset, config, how=How(recorded=True)), surface(dataset, config)
    launched.how = recorded.how  # so that both look at their numbers at the same steps
    assert isinstance(recorded.run_step, Replay)
    rays = set()
    for step in range(60):
        seen, wanted = recorded.step(), launched.step()
        assert recorded.rays == launched.rays, step
        rays.add(recorded.rays)
        assert abs(float(seen["loss"]) - float(wanted["loss"])) < (1e-4 if step < 5 else 0.02) * float(wanted["loss"]), step
    assert 2 <= len(rays) and 2 <= recorded.run_step.recordings < 25
    assert torch.equal(recorded.generator.get_state(), launched.generator.get_state())


def test_a_window_is_trained_the_same_and_ends_without_memory(dataset, tmp_path):  # noqa: F811
    from tests.unit.test_training_state import HEADER

    torch.manual_seed(0)
    recorded = window(dataset, how=How(recorded=True))
    torch.manual_seed(0)
    launched = window(dataset)
    launched.how = recorded.how
    for fit, name in ((recorded, "a.npz"), (launched, "b.npz")):
        fit.run(tmp_path / name, HEADER)
    assert recorded.run_step.recordings >= 1 and recorded.run_step.graph is recorded.run_step.keeper is recorded.run_step.room is None
    assert all(parameter.grad is None for parameter in recorded.trained)
    assert recorded.history["loss"][-1] == pytest.approx(launched.history["loss"][-1], rel=1e-3)
    assert torch.allclose(recorded.unconverged, launched.unconverged, atol=1e-3)


def numbers(count):
    def act(drawn, values, room):
        return {"loss": drawn["x"].sum() * values["factor"], "marched": count, "kept": count, "room": room}

    return act


def test_another_key_ray_count_or_room_is_another_recording():
    fit = Replay(numbers(500))
    x = torch.rand(600)
    assert fit({"x": x}, {"factor": 1.0})["room"] is None  # nothing has been counted yet
    fit.expect(600, 600)
    for key, count in ((0, 600), (0, 600), (0, 600), (1, 600), (1, 600), (1, 500), (1, 500)):
        x = torch.rand(count)
        assert torch.allclose(fit({"x": x}, {"factor": 2.0 + key}, key)["loss"], x.sum() * (2 + key))
    assert fit.recordings == 3 and fit.room == replay.Room(4096, 4096)
    for expected, recordings in ((4000, 3), (5000, 4), (4500, 4), (9000, 5), (8000, 5), (2000, 6)):
        fit.expect(4000, expected)
        for _ in range(3):
            fit({"x": x}, {"factor": 1.0}, 1)
        assert fit.recordings == recordings and fit.room.kept >= expected


def test_a_recording_that_finds_no_memory_is_made_again_once(monkeypatch):
    fit, whole, tries = Replay(numbers(10)), replay.capture, []

    def scarce(work, pool):
        tries.append(1)
        if len(tries) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(work, pool)

    monkeypatch.setattr(replay, "capture", scarce)
    fit.expect(10, 10)
    for _ in range(3):
        fit({"x": torch.ones(2)}, {"factor": 3.0})
    assert fit.recordings == 1 and len(tries) == 2 and float(fit.seen["loss"]) == 6.0


def test_after_memory_ran_out_samples_are_counted_at_once_again(dataset):  # noqa: F811
    """A step without room knows its numbers, so nobody has to wait for a look at them."""
    fit = surface(dataset, dataclasses.replace(SURFACE, steps=60, samples_per_step=9000), how=How(recorded=True))
    for _ in range(25):
        fit.step()
    assert fit.run_step.graph is not None
    fit.run_step.forget()
    fit.step()
    assert fit.run_step.room is not None and fit.done == 26
