"""Brightness that a light explains, told from brightness that has other reasons."""

import numpy as np
import torch

from instant_nk.fitting import distant_light
from instant_nk.geometry.rotations import so3_exp

rng = np.random.default_rng(0)


def normals(count: int = 800) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.from_numpy(rng.normal(size=(count, 3))), dim=1)


def soft(facing: torch.Tensor) -> torch.Tensor:
    """A bright sky above and a wall at one side."""
    x, y, z = facing.unbind(-1)
    return 0.8 + 0.2 * y + 0.1 * y * y + 0.08 * x - 0.05 * x * z


def hard(facing: torch.Tensor) -> torch.Tensor:
    """A lamp above, a weaker one from the side."""
    lamps = torch.tensor([[0.0, 1, 0], [0.8, 0, 0.6]], dtype=torch.float64)
    return 0.7 + (facing @ lamps.T).clamp_min(0) @ torch.tensor([0.3, 0.15], dtype=torch.float64)


def turned(rest: torch.Tensor) -> torch.Tensor:
    """Three limbs, each turned its own way."""
    turns = so3_exp(torch.tensor([[0.6, 0, 0], [0, -0.5, 0.4], [0.2, 0.7, -0.5]], dtype=torch.float64))
    return (turns[torch.arange(len(rest)) % 3] @ rest[..., None])[..., 0]


def test_what_turning_in_a_light_does_is_found_in_spite_of_what_slides():
    rest = normals()
    live = turned(rest)
    truth = soft(live) / soft(rest)
    seen = truth * (1 + 0.01 * torch.from_numpy(rng.normal(size=len(rest))))
    seen[:120] *= 1.3  # points that show another's colour
    assert float((truth - 1).abs().mean()) > 0.05
    assert wrong(distant_light.relit(seen, torch.ones_like(seen), live, rest), truth) < 0.002
    unseen = torch.ones_like(seen)
    unseen[:120], seen[:120] = 0.0, 0.0  # what no camera sees says nothing, whatever stands there
    assert wrong(distant_light.relit(seen, unseen, live, rest), truth) < 0.002


def test_of_a_hard_light_two_thirds_are_found():
    rest = normals()
    truth = hard(turned(rest)) / hard(rest)
    assert wrong(distant_light.relit(truth, torch.ones_like(truth), turned(rest), rest), truth) < 0.35 * wrong(torch.ones_like(truth), truth)


def wrong(found: torch.Tensor, truth: torch.Tensor) -> float:
    return float((found / truth - 1).abs().mean())


def test_a_frame_that_is_brighter_as_a_whole_is_not_taken_for_a_light():
    """Half of the subject turned a little, seen all round or from one side."""
    everywhere = normals(4000)
    for rest in (everywhere, everywhere[everywhere[:, 2] > 0.2]):
        live = torch.where((torch.arange(len(rest)) % 2 == 0)[:, None], turned(rest), rest)
        noise = 1 + 0.05 * torch.from_numpy(rng.normal(size=len(rest)))
        found = distant_light.relit(1.1 * noise, torch.ones(len(rest)).double(), live, rest)
        assert wrong(found, torch.full_like(found, 1.1)) < 0.01


def test_no_light_is_made_up_where_nothing_turns_or_nothing_is_seen():
    rest = normals()
    live = rest.clone()
    live[:100] = turned(rest)[:100]  # what turns is not seen
    seen = 1 + 0.2 * torch.from_numpy(rng.normal(size=len(rest)))
    weight = torch.ones_like(seen)
    weight[:100] = 0.0
    found = distant_light.relit(seen, weight, live, rest)
    assert torch.allclose(found, found[:1].expand_as(found)) and abs(float(found[0]) - 1) < 0.02
    assert torch.equal(distant_light.relit(seen, 0 * seen, turned(rest), rest), torch.ones_like(seen))
