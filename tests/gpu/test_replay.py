"""A replayed step gives what a launched one gives, whatever the number of samples."""

from __future__ import annotations

import copy

import pytest
import torch

from instant_nk.fitting.replay import Eager, Replay, Samples
from instant_nk.kernels.volume_rendering import accumulate, render_weights

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def lesson_of(model):
    def lesson(samples):
        value = model(samples.at["x"]).sigmoid()
        weights, _ = render_weights(0.5 * value[:, 0], samples.at["ray"], samples.rays)
        seen = samples.of_rays(accumulate(weights, value, samples.at["ray"], samples.rays))
        loss = (seen - samples.seen["wanted"]).square().mean() * samples.values["factor"] + samples.mean(value.square().sum(-1))
        loss.backward()
        return {"loss": loss.detach()}

    return lesson


def samples_of(count, rays, seed):
    generator = torch.Generator("cuda").manual_seed(seed)

    def rand(*shape):
        return torch.rand(*shape, generator=generator, device="cuda")

    ray = torch.randint(rays, (count,), generator=generator, device="cuda").sort().values
    return Samples({"ray": ray, "x": rand(count, 5)}, {"wanted": rand(rays, 2)}, {"factor": torch.full((), 1.0 + seed, device="cuda")}, rays)


def test_replayed_losses_and_gradients_are_those_of_launched_steps():
    torch.manual_seed(0)
    model = torch.nn.Linear(5, 2).cuda()
    twin = copy.deepcopy(model)  # the recording owns the gradients of its parameters
    replay, eager = Replay(lesson_of(model), list(model.parameters())), Eager(lesson_of(twin), list(twin.parameters()))
    for seed, count in enumerate((5000, 5000, 5100, 4700, 9000, 9000, 8000, 300, 300, 310)):
        samples = samples_of(count, 700, seed)
        assert torch.allclose(replay(samples)["loss"], eager(samples)["loss"], rtol=1e-4), (seed, count)
        for got, wanted in zip(model.parameters(), twin.parameters()):
            assert torch.allclose(got.grad, wanted.grad, rtol=1e-3, atol=1e-5), (seed, count)
    assert replay.recordings >= 1


def test_another_key_or_ray_count_is_another_recording():
    model = torch.nn.Linear(5, 2).cuda()
    replay = Replay(lesson_of(model), list(model.parameters()))
    for key, rays in ((0, 600), (0, 600), (0, 600), (1, 600), (1, 600), (1, 500), (1, 500)):
        replay(samples_of(4000, rays, 3), key)
    assert replay.recordings == 3
