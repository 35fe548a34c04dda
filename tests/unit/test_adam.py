"""Our Adam against torch's class, whose import it saves."""

import subprocess
import sys

import torch

from instant_nk.fitting.adam import Adam


def parameters(seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((3, 4), (5,), (2, 2), (1,))]


def groups(parameters):
    return [{"params": iter(parameters[:2]), "lr": 0.1}, {"params": parameters[2:], "lr": 0.01, "eps": 1e-15}]


def test_steps_and_moments_are_those_of_torchs_class():
    mine, theirs = parameters(0), parameters(0)
    own, other = Adam(groups(mine), betas=(0.9, 0.99)), torch.optim.Adam(groups(theirs), betas=(0.9, 0.99), fused=True)
    for step in range(5):
        for optimizer, moved in ((own, mine), (other, theirs)):
            optimizer.param_groups[0]["lr"] = 0.1 / (step + 1)
            for i, parameter in enumerate(moved):
                parameter.grad = None if i == 1 and step < 3 or i == 3 else (parameter.detach() - i + 0.3 * step).clone()
            optimizer.step()
    for a, b in zip(mine, theirs):
        assert torch.equal(a, b)
    known = other.state_dict()["state"]
    assert set(own.state) == set(known) == {0, 1, 2}
    for index, values in known.items():
        assert {name: value.tolist() for name, value in values.items()} == {name: value.tolist() for name, value in own.state[index].items()}


def test_gradients_are_forgotten():
    moved = parameters(1)
    for parameter in moved:
        parameter.grad = torch.ones_like(parameter)
    Adam(groups(moved), betas=(0.9, 0.99)).clear()
    assert all(parameter.grad is None for parameter in moved)


def test_a_step_does_not_load_torchs_compiler():
    program = (
        "import sys, torch\nfrom instant_nk.fitting.adam import Adam\nx = torch.nn.Parameter(torch.ones(3))\nx.grad = torch.ones(3)\n"
        "Adam([{'params': [x], 'lr': 0.1}], (0.9, 0.99)).step()\nassert x[0] < 1 and 'torch._dynamo' not in sys.modules"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
