"""Ray marching: known answers, invariants, agreement of backends, messages."""

import pytest
import torch

from instant_nk.kernels import ray_sampling
from instant_nk.kernels.ray_sampling import reference
from tests import parity, tolerances

STEP = 0.07


def scene(rays: int, cells: int = 13, grids: int | None = None):
    origins = 2.5 * torch.nn.functional.normalize(torch.randn(rays, 3), dim=1)
    directions = torch.nn.functional.normalize(0.6 * torch.randn(rays, 3) - origins, dim=1)
    occupancy = torch.rand(*(() if grids is None else (grids,)), cells, cells, cells) < 0.3
    return origins, directions, occupancy, torch.rand(rays)


def brute_force(origins, directions, occupancy, step, jitter, near):
    """Every step of every ray in a Python loop and float64."""
    found = []
    for ray, (o, d) in enumerate(zip(origins.double(), directions.double(), strict=True)):
        a, b = (-1 - o) / d, (1 - o) / d
        enter, leave = max(float(torch.minimum(a, b).max()), near), float(torch.maximum(a, b).min())
        t = enter + float(jitter[ray]) * step
        while t + step / 2 < leave:
            cell = ((o + (t + step / 2) * d + 1) * occupancy.shape[-1] / 2).floor().long().clamp(0, occupancy.shape[-1] - 1)
            if occupancy[tuple(cell)]:
                found.append((ray, t))
            t += step
    return found


def test_a_ray_along_an_axis_samples_the_whole_box():
    full = torch.ones(4, 4, 4, dtype=torch.bool)
    rays, starts, ends = ray_sampling.march(torch.tensor([[-3.0, 0.1, 0.1]]), torch.tensor([[1.0, 0.0, 0.0]]), full, 0.25)
    assert rays.tolist() == [0] * 8
    torch.testing.assert_close(starts, 2 + 0.25 * torch.arange(8.0))
    torch.testing.assert_close(ends, starts + 0.25)


def test_axes_of_the_grid_are_x_y_z():
    occupancy = torch.zeros(4, 4, 4, dtype=torch.bool)
    occupancy[3, 0, 1] = True  # x in [0.5, 1], y in [-1, -0.5], z in [-0.5, 0]
    _, starts, ends = ray_sampling.march(torch.tensor([[-2.0, -0.75, -0.25]]), torch.tensor([[1.0, 0.0, 0.0]]), occupancy, 0.25)
    torch.testing.assert_close(starts, torch.tensor([2.5, 2.75]))


def test_samples_start_no_nearer_than_near_and_from_inside_the_box():
    full = torch.ones(2, 2, 2, dtype=torch.bool)
    _, starts, _ = ray_sampling.march(torch.zeros(1, 3), torch.tensor([[0.0, 0.0, 1.0]]), full, 0.125, near=0.25)
    assert starts[0] == 0.25 and starts[-1] + 0.0625 < 1


def test_a_ray_that_misses_the_box_has_no_samples():
    full = torch.ones(2, 2, 2, dtype=torch.bool)
    rays, _, _ = ray_sampling.march(torch.tensor([[0.0, 5.0, 0.0], [-3.0, 0.0, 0.0]]), torch.tensor([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]]), full, 0.1)
    assert len(rays) == 0


def test_each_ray_marches_through_the_grid_of_its_own_frame():
    origins, directions, occupancy, jitter = scene(30, grids=3)
    which = torch.randint(0, 3, (30,))
    rays, starts, _ = ray_sampling.march(origins, directions, occupancy, STEP, jitter, 0.0, which)
    for grid in range(3):
        mine = (which == grid).nonzero()[:, 0]
        alone, alone_starts, _ = ray_sampling.march(origins[mine], directions[mine], occupancy[grid], STEP, jitter[mine])
        chosen = which[rays] == grid
        assert rays[chosen].tolist() == mine[alone].tolist()
        assert starts[chosen].tolist() == alone_starts.tolist()


@pytest.mark.parametrize("march", [ray_sampling.march, reference.march], ids=["public", "reference"])
def test_marching_finds_what_a_loop_over_all_steps_finds(march):
    origins, directions, occupancy, jitter = scene(40)
    rays, starts, _ = march(origins, directions, occupancy, STEP, jitter, 1.0, None)
    assert bool((rays.diff() >= 0).all()) and bool((starts.diff()[rays.diff() == 0] > 0).all())
    truth = {(ray, round(t / STEP * 8)) for ray, t in brute_force(origins, directions, occupancy, STEP, jitter, 1.0)}
    found = {(ray, round(t / STEP * 8)) for ray, t in zip(rays.tolist(), starts.tolist(), strict=True)}
    assert len(truth) > 100
    assert len(truth ^ found) <= 20 * tolerances.BORDER_CELLS * len(truth)  # midpoints within rounding of a cell's border


@pytest.mark.parametrize("rays", [0, 1, 63, 3000])
def test_the_cpu_backend_agrees_with_the_reference(rays):
    found, truth, border = parity.marching(rays, "cpu", "auto")
    assert len(found ^ truth) <= border


def test_an_empty_grid_gives_no_samples():
    origins, directions, occupancy, jitter = scene(5)
    assert [len(t) for t in reference.march(origins, directions, occupancy & False, STEP, jitter, 0.0, None)] == [0, 0, 0]


def test_a_wrong_argument_is_named():
    origins, directions, occupancy, _ = scene(5)
    with pytest.raises(ValueError, match=r"ray_sampling: step must be a positive distance"):
        ray_sampling.march(origins, directions, occupancy, 0.0)
    with pytest.raises(ValueError, match=r"occupancy must have shape \[13, 13, 13\]; got \[1, 13, 13, 13\]"):
        ray_sampling.march(origins, directions, occupancy[None], STEP)
    with pytest.raises(TypeError, match="occupancy must be bool; got float32"):
        ray_sampling.march(origins, directions, occupancy.float(), STEP)
