"""Occupancy grids: order of cells, growth, and no surface missed."""

import pytest
import torch

from instant_nk.models.occupancy import cell_centres, dilate, near_surface
from tests.unit.neural_fixtures import ball


def test_cell_centres_reshape_to_axes_x_y_z():
    centres = cell_centres(4).reshape(4, 4, 4, 3)
    assert centres[0, 0, 0].tolist() == [-0.75, -0.75, -0.75]
    assert centres[3, 1, 2].tolist() == [0.75, -0.25, 0.25]


@pytest.mark.parametrize("cells", [1, 2])
def test_a_grown_cell_is_a_cube_and_stays_in_its_grid(cells):
    grids = torch.zeros(2, 8, 8, 8, dtype=torch.bool)
    grids[0, 4, 4, 4] = grids[1, 0, 0, 0] = True
    grown = dilate(grids, cells)
    assert grown.dtype == torch.bool and grown.shape == grids.shape
    assert grown[0].sum() == (2 * cells + 1) ** 3 and grown[0, 4 - cells, 4 + cells, 4]
    assert grown[1].sum() == (cells + 1) ** 3


@pytest.mark.parametrize("margin", [0.0, 0.05])
def test_every_cell_the_surface_passes_is_kept_and_none_far_away(margin):
    kept = near_surface(ball, torch.ones(32, 32, 32, dtype=torch.bool), margin)
    direction = torch.nn.functional.normalize(torch.randn(5000, 3), dim=1)
    for radius in (0.5 - margin, 0.5, 0.5 + margin):
        cell = ((direction * radius + 1) * 16).long()
        assert kept[cell[:, 0], cell[:, 1], cell[:, 2]].all()
    assert ball(cell_centres(32))[kept.reshape(-1)].abs().max() <= margin + 3**0.5 / 32


def test_only_candidates_are_looked_at():
    candidates = torch.zeros(16, 16, 16, dtype=torch.bool)
    candidates[8:] = True
    asked = []
    kept = near_surface(lambda x: asked.append(len(x)) or ball(x), candidates, 0.0, chunk=100)
    assert sum(asked) == 8 * 16 * 16 and max(asked) == 100
    assert kept[8:].any() and not kept[:8].any()
    assert not near_surface(ball, torch.zeros_like(candidates), 0.0).any()
