"""Points where one part of the surface lies at another: known answers, the compiled sweep against its definition. Limbs that cross: `test_registration`."""

import pytest
import torch

from instant_nk.fitting import rivals
from instant_nk.fitting.rivals import LEAST, Probes

SPACING = 0.1


def sheets(gap: float, turned: bool = False):
    """Two sheets of 400 points each, a length of 3 apart at rest and `gap` apart live; normals along z, of the second against it where `turned`."""
    grid = torch.stack(torch.meshgrid(torch.linspace(0, 0.15, 20), torch.linspace(0, 0.15, 20), indexing="ij"), -1).reshape(-1, 2).double()
    one = torch.cat([grid, torch.zeros(400, 1)], 1)
    rest = torch.cat([one, one + torch.tensor([0, 0, 3.0])])
    live = torch.cat([one, one + torch.tensor([0, 0, gap])])
    normals = torch.tensor([[0, 0, 1.0]]).double().repeat(800, 1)
    if turned:
        normals[400:] *= -1
    return rest, live, normals


@pytest.mark.parametrize("compiled", (False, True))
@pytest.mark.parametrize("gap, weight", ((0.0, LEAST), (0.1, 0.25), (0.16, 0.64), (0.25, 1.0)))
def test_a_point_counts_as_the_square_of_its_distance_to_another_part(gap, weight, compiled):
    rest, live, normals = sheets(gap)
    certainty = Probes.build(rest, SPACING).certainty(live, normals, SPACING, compiled)
    torch.testing.assert_close(certainty, torch.full((800,), weight, dtype=torch.float64))


@pytest.mark.parametrize("compiled", (False, True))
def test_parts_that_face_each_other_are_no_rivals(compiled):
    rest, live, normals = sheets(0.05, turned=True)
    torch.testing.assert_close(Probes.build(rest, SPACING).certainty(live, normals, SPACING, compiled), torch.ones(800, dtype=torch.float64))


@pytest.mark.parametrize("compiled", (False, True))
def test_what_lies_together_at_rest_is_one_part(compiled):
    rest, live, normals = sheets(0.05)
    torch.testing.assert_close(Probes.build(live, SPACING).certainty(live, normals, 1.2 * SPACING, compiled), torch.ones(800, dtype=torch.float64))
    assert float(Probes.build(rest, SPACING).certainty(live, normals, 1.2 * SPACING, compiled).max()) < 0.1


@pytest.mark.parametrize("compiled", (False, True))
def test_a_patch_that_is_pressed_together_is_not_its_own_rival(compiled):
    grid = torch.stack(torch.meshgrid(torch.linspace(0, 1, 30), torch.linspace(0, 1, 30), indexing="ij"), -1).reshape(-1, 2).double()
    sheet, normals = torch.cat([grid, torch.zeros(900, 1)], 1), torch.tensor([[0, 0, 1.0]]).double().repeat(900, 1)
    pressed = Probes.build(sheet, SPACING).certainty(0.6 * sheet, normals, SPACING, compiled)
    torch.testing.assert_close(pressed, torch.ones(900, dtype=torch.float64))


@pytest.mark.parametrize("count", (0, 1, 63, 900))
def test_the_sweep_finds_what_all_pairs_find(count):
    generator = torch.Generator().manual_seed(count)
    rest, live = (torch.rand(count, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    normals = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator, dtype=torch.float64), dim=-1)
    swept = rivals._compiled_nearest(live.numpy(), normals.numpy(), rest.numpy(), 0.2, 0.3)
    wanted = rivals._nearest(live, normals, rest, 0.2, 0.3) if count else torch.empty(0, dtype=torch.float64)
    torch.testing.assert_close(torch.from_numpy(swept), wanted)


def test_probes_stand_for_the_points_around_them():
    points = torch.rand(5000, 3, dtype=torch.float64)
    probes = Probes.build(points, SPACING)
    assert len(probes.pick) == rivals.PROBES and torch.equal(probes.rest, points[probes.pick])
    torch.testing.assert_close(probes.share.sum(1), torch.ones(5000, dtype=torch.float64))
    assert float(probes.share[probes.pick].amax(1).min()) > 0.9  # a probe stands for itself
