"""tinycudann against its own formula in double precision, where it is installed."""

import pytest
import torch

from instant_nk.kernels import hash_encoding
from instant_nk.kernels.hash_encoding import HashSpec
from tests import parity, tolerances
from tests.fake_tinycudann import truth

if not torch.cuda.is_available():
    pytest.skip("no CUDA device on this machine", allow_module_level=True)
pytest.importorskip("tinycudann", reason="tinycudann is not installed: pip install git+https://github.com/NVlabs/tiny-cuda-nn/#subdirectory=bindings/torch")


def spec_of(dims: int) -> HashSpec:
    return HashSpec(dims, 2, 14, tuple((r,) * dims for r in (5, 9, 17, 31)), "tcnn")


def inputs(spec: HashSpec, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(count, spec.dims, generator=generator, dtype=torch.float64)
    for scale in spec.scales:  # away from cell borders, where the derivative jumps
        place = x * scale + 0.5
        x = torch.where((place - place.round()).abs() < 0.02, x + 0.04 / scale, x)
    return x.float(), torch.randn(spec.table_rows, spec.features, generator=generator)


@pytest.mark.parametrize("dims", [3, 4])
@pytest.mark.parametrize("count", [0, 1, 63, 3000])
def test_tinycudann_computes_its_formula_and_every_gradient(dims, count):
    spec = spec_of(dims)
    x, table = inputs(spec, count)
    g, h = torch.randn(count, spec.width), torch.randn(count, dims, spec.width)
    moving, learned = x.cuda().requires_grad_(), table.cuda().requires_grad_()
    with parity.backend("tcnn"):
        features, jacobian = hash_encoding.encode_with_jacobian(moving, learned, spec)
        found = torch.autograd.grad((features * g.cuda()).sum() + (jacobian * h.cuda()).sum(), (learned, moving))
        (slope,) = torch.autograd.grad((hash_encoding.encode(moving, learned, spec) * g.cuda()).sum(), moving, create_graph=True)
        found += torch.autograd.grad(slope.square().sum(), (learned, moving))
    if not count:
        return
    moving, learned = x.double().requires_grad_(), table.double().requires_grad_()
    exact = truth(moving, learned, spec)
    columns = torch.stack([torch.autograd.grad(exact[:, k].sum(), moving, create_graph=True)[0] for k in range(spec.width)], -1)
    wanted = torch.autograd.grad((exact * g.double()).sum() + (columns * h.double()).sum(), (learned, moving), retain_graph=True)
    wanted += torch.autograd.grad((columns * g.double()[:, None]).sum(-1).square().sum(), (learned, moving))
    for name, ours, reference in zip(("table", "x", "table, second order", "x, second order"), found, wanted):
        error = float((ours.double().cpu() - reference).norm() / reference.norm())
        assert error < 10 * tolerances.GRADIENT, (name, error)
    assert torch.allclose(features.double().cpu(), exact, atol=1e-4) and torch.allclose(jacobian.double().cpu(), columns, atol=1e-2)
