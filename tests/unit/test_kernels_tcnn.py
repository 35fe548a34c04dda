"""The tinycudann backend on a stand-in that computes what tinycudann does: features, Jacobian, every gradient, and what is refused."""

import importlib.machinery
import sys
import types

import pytest
import torch

from instant_nk.errors import BackendError
from instant_nk.kernels import _backend, hash_encoding
from instant_nk.kernels.hash_encoding import HashSpec, tcnn
from instant_nk.models.encoding import HashEncoding
from tests import fake_tinycudann, parity
from tests.fake_tinycudann import truth


@pytest.fixture
def tinycudann(monkeypatch):
    """A tinycudann that works on the CPU, selected."""
    module = types.ModuleType("tinycudann")
    module.Encoding, module.__spec__ = fake_tinycudann.Encoding, importlib.machinery.ModuleSpec("tinycudann", None)
    monkeypatch.setitem(sys.modules, "tinycudann", module)
    monkeypatch.setattr(_backend, "TCNN_DEVICE", "cpu")
    tcnn._native.cache_clear()
    with parity.backend("tcnn"):
        yield module
    tcnn._native.cache_clear()


def spec_of(dims: int, levels: int = 3) -> HashSpec:
    resolutions = tuple((r,) * dims for r in (4, 7, 12)[:levels])  # the last is hashed
    return HashSpec(dims, 2, 9, resolutions, "tcnn")


def points(count: int, dims: int) -> torch.Tensor:
    return torch.rand(count, dims, generator=torch.Generator().manual_seed(count))


def table_of(spec: HashSpec) -> torch.Tensor:
    return torch.randn(spec.table_rows, spec.features, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("dims", [3, 4])
@pytest.mark.parametrize("count", [0, 1, 63, 300])
def test_features_and_jacobian_are_tinycudanns(tinycudann, dims, count):
    spec, x = spec_of(dims), points(count, dims)
    table = table_of(spec)
    features, jacobian = hash_encoding.encode_with_jacobian(x, table, spec)
    assert features.shape == (count, spec.width) and jacobian.shape == (count, dims, spec.width)
    assert torch.equal(features, hash_encoding.encode(x, table, spec))
    if not count:
        return
    exact = torch.autograd.functional.jacobian(lambda y: truth(y, table.double(), spec).sum(0), x.double()).permute(1, 2, 0)
    assert torch.allclose(features.double(), truth(x.double(), table.double(), spec), atol=1e-5)
    assert torch.allclose(jacobian.double(), exact, atol=2e-4)


@pytest.mark.parametrize("dims", [3, 4])
def test_every_gradient_is_that_of_double_precision(tinycudann, dims):
    spec, count = spec_of(dims), 130
    g, h = torch.randn(count, spec.width), torch.randn(count, dims, spec.width)

    def gradients(function, dtype):
        x, table = points(count, dims).to(dtype).requires_grad_(), table_of(spec).to(dtype).requires_grad_()
        return torch.autograd.grad(function(x, table, dtype), (table, x))

    def ours(x, table, dtype):
        features, jacobian = hash_encoding.encode_with_jacobian(x, table, spec)
        return (features * g).sum() + (jacobian * h).sum()

    def exact(x, table, dtype):
        features = truth(x, table, spec)
        columns = [torch.autograd.grad(features[:, k].sum(), x, create_graph=True)[0] for k in range(spec.width)]
        return (features * g.double()).sum() + (torch.stack(columns, -1) * h.double()).sum()

    for found, wanted in zip(gradients(ours, torch.float32), gradients(exact, torch.float64)):
        assert float((found.double() - wanted).norm() / wanted.norm()) < 1e-4


def test_the_eikonal_term_s_second_derivative_is_that_of_double_precision(tinycudann):
    spec = spec_of(3)
    g = torch.randn(130, spec.width)

    def gradients(function, dtype):
        x, table, weight = points(130, 3).to(dtype).requires_grad_(), table_of(spec).to(dtype).requires_grad_(), g.to(dtype).requires_grad_()
        (slope,) = torch.autograd.grad((function(x, table, spec) * weight).sum(), x, create_graph=True)
        return torch.autograd.grad((slope.norm(dim=1) - 1).square().sum(), (table, x, weight))

    for found, wanted in zip(gradients(hash_encoding.encode, torch.float32), gradients(truth, torch.float64)):
        assert float((found.double() - wanted).norm() / wanted.norm()) < 1e-4


def test_closed_levels_are_zero_and_learn_nothing(tinycudann):
    spec = spec_of(3)
    table = table_of(spec).requires_grad_()
    features, jacobian = hash_encoding.encode_with_jacobian(points(20, 3), table, spec, open_levels=1)
    assert not features[:, 2:].any() and not jacobian[..., 2:].any() and features[:, :2].all()
    (gradient,) = torch.autograd.grad(features.square().sum() + jacobian.sum(), table)
    assert gradient[: spec.level_rows[0]].any() and not gradient[spec.level_rows[0] :].any()


def test_a_half_table_gives_the_same_within_its_rounding(tinycudann):
    spec, x = spec_of(3), points(50, 3)
    table = table_of(spec).half().requires_grad_()
    features = hash_encoding.encode(x, table, spec)
    assert features.dtype == torch.float32 and torch.allclose(features, truth(x, table.float(), spec), atol=5e-3)
    (gradient,) = torch.autograd.grad((1e-5 * features).sum(), table)  # would be lost in half precision without scaling
    wanted = torch.autograd.grad((1e-5 * truth(x, (full := table.detach().float().requires_grad_()), spec)).sum(), full)[0]
    assert gradient.dtype == torch.float16 and torch.allclose(gradient.float(), wanted, atol=2e-6)


def test_modules_train_in_this_layout_and_their_description_records_it(tinycudann):
    spec = HashSpec.geometric(3, 2, 9, 4, 12, layout=_backend.table_layout())
    assert spec.layout == "tcnn" and HashSpec.from_json(spec.to_json()) == spec and "layout" not in HashSpec.geometric(3, 2, 9, 4, 12).to_json()
    encoding = HashEncoding(spec)
    encoding(points(10, 3)).sum().backward()
    assert encoding.table.grad.any()


def test_a_table_of_this_layout_needs_the_backend_it_was_trained_with(tinycudann):
    spec = spec_of(3)
    with parity.backend("auto"), pytest.raises(BackendError, match="tiny-cuda-nn's layout.* runtime.backend=auto cannot read it. Set runtime.backend=tcnn"):
        hash_encoding.encode(points(3, 3), table_of(spec), spec)


def test_other_tables_and_operations_are_served_as_under_auto(tinycudann):
    spec = HashSpec.geometric(3, 2, 9, 4, 12)
    table, x = table_of(spec), points(9, 3)
    found = hash_encoding.encode(x, table, spec)
    with parity.backend("auto"):
        assert torch.equal(found, hash_encoding.encode(x, table, spec))
    assert _backend.choose("ray_sampling", torch.rand(2)) in ("numba", "reference")


def test_time_with_levels_of_its_own_is_refused_with_the_choice():
    with pytest.raises(BackendError, match=r"one resolution for all axes of a level; wanted \(4, 4, 4, 2\).* Set runtime.backend: auto"):
        HashSpec(4, 2, 9, ((4, 4, 4, 2),), "tcnn")


def test_double_precision_and_other_devices_are_refused(tinycudann, monkeypatch):
    spec = spec_of(3)
    with pytest.raises(BackendError, match="single precision on a GPU; got torch.float64 on cpu"):
        hash_encoding.encode(points(3, 3).double(), table_of(spec).double(), spec)
    monkeypatch.setattr(_backend, "TCNN_DEVICE", "cuda")
    with pytest.raises(BackendError, match="on a GPU; got torch.float32 on cpu. Set runtime.backend=auto"):
        hash_encoding.encode(points(3, 3), table_of(spec), spec)


def test_a_tinycudann_with_another_layout_is_refused(tinycudann, monkeypatch):
    monkeypatch.setattr(fake_tinycudann.Native, "n_params", lambda self: 12)
    with pytest.raises(BackendError, match="lays out 12 parameters where"):
        hash_encoding.encode(points(3, 3), table_of(spec_of(3)), spec_of(3))


def test_without_tinycudann_the_message_says_what_to_do(monkeypatch):
    monkeypatch.setattr(_backend.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BackendError, match="tinycudann is not installed; it has to be built from source. Set runtime.backend=auto"):
        _backend.select("tcnn")
    assert _backend.selected() == "auto"
