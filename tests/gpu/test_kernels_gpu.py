"""Kernels on the GPU: parity with the float64 reference, and behaviour that only a device shows. Skipped where there is none."""

import pytest
import torch

from instant_nk.kernels import _backend, hash_encoding
from tests import parity, tolerances

if not torch.cuda.is_available():
    pytest.skip("no CUDA device on this machine", allow_module_level=True)
if _backend.device_problem(0):
    pytest.skip(f"Triton cannot run here: {_backend.device_problem(0)}", allow_module_level=True)

SIZES = [0, 1, 63, 5000]


@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize("points", SIZES)
@pytest.mark.parametrize(("dims", "features"), [(3, 2), (4, 2), (3, 1), (4, 4)])
def test_hash_encoding_agrees_with_the_reference(points, dims, features, strided):
    for case in parity.hash_encoding_cases(points, dims, features).values():
        parity.check(case, "cuda", "triton", strided)


@pytest.mark.parametrize("points", SIZES)
def test_open_levels_agree_with_the_reference(points):
    for case in parity.hash_encoding_cases(points, 3, open_levels=3).values():
        parity.check(case, "cuda", "triton")


@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize("samples", SIZES)
def test_volume_rendering_agrees_with_the_reference(samples, strided):
    for case in parity.volume_rendering_cases(samples, samples // 30 + 1).values():
        parity.check(case, "cuda", "triton", strided)


@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize("points", SIZES)
@pytest.mark.parametrize("knn", [1, 4, 6])
def test_blend_skinning_agrees_with_the_reference(points, knn, strided):
    for case in parity.blend_skinning_cases(points, knn).values():
        parity.check(case, "cuda", "triton", strided)


@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize("samples", SIZES)
@pytest.mark.parametrize(("points", "features", "hidden", "outputs"), [(3, 32, 64, 1), (4, 32, 64, 3), (4, 12, 20, 3), (3, 8, 128, 1)])
def test_the_field_network_agrees_with_the_reference(samples, points, features, hidden, outputs, strided):
    for case in parity.field_network_cases(samples, points, features, hidden, outputs).values():
        parity.check(case, "cuda", "triton", strided)


@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize("samples", SIZES)
@pytest.mark.parametrize(("near", "features", "hidden", "outputs"), [(9, 28, 64, 3), (9, 16, 64, 3), (4, 12, 20, 1), (15, 64, 64, 4)])
def test_the_deep_network_agrees_with_the_reference(samples, near, features, hidden, outputs, strided):
    for case in parity.deep_network_cases(samples, near, features, hidden, outputs).values():
        parity.check(case, "cuda", "triton", strided)


@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize("samples", SIZES)
def test_the_live_gradient_agrees_with_the_reference(samples, strided):
    for case in parity.live_gradient_cases(samples).values():
        parity.check(case, "cuda", "triton", strided)


@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize("samples", SIZES)
def test_opacities_and_losses_agree_with_the_reference(samples, strided):
    for case in (parity.neus_opacity_cases(samples) | (parity.ray_loss_cases(samples) if samples else {})).values():
        parity.check(case, "cuda", "triton", strided)


@pytest.mark.parametrize("samples", SIZES)
def test_what_can_be_seen_agrees_with_the_reference(samples):
    found, truth, border = parity.visibility(samples, samples // 30 + 1, "cuda", "triton")
    assert not bool(((found != truth) & ~border).any()) and int(border.sum()) <= 0.02 * samples + 2


@pytest.mark.parametrize(
    "case", [parity.field_network_cases(20000, 4, outputs=3)["network of 3 outputs"], parity.deep_network_cases(20000)["deep network of 3 outputs"]]
)
def test_networks_give_the_same_bits_again(case):
    first, again = (parity.run(case, "cuda", torch.float32) for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.parametrize("rays", [0, 1, 63, 3000])
def test_marching_agrees_with_the_reference(rays):
    found, truth, border = parity.marching(rays, "cuda", "triton")
    assert len(found ^ truth) <= border


def test_a_half_table_loses_no_more_than_its_rounding():
    spec = parity.hash_spec(3)
    x, table = parity.points_off_borders(2000, spec).cuda(), torch.randn(spec.table_rows, 2, device="cuda")
    truth = hash_encoding.encode(x.double().cpu(), table.double().cpu(), spec)
    half = table.half().requires_grad_()
    found = hash_encoding.encode(x, half, spec)
    assert found.dtype == torch.float32
    assert float((found.detach().cpu() - truth).norm() / truth.norm()) < tolerances.HALF_TABLE
    (gradient,) = torch.autograd.grad(found.sum(), half)
    assert gradient.dtype == torch.float16 and bool(gradient.isfinite().all())


def test_auto_serves_cuda_tensors_with_triton_and_float64_with_the_reference():
    assert _backend.choose("hash_encoding", torch.rand(2, device="cuda")) == "triton"
    assert _backend.choose("hash_encoding", torch.rand(2, device="cuda", dtype=torch.float64)) == "reference"


def test_the_reference_serves_the_gpu_too():
    for case in parity.blend_skinning_cases(63).values():
        parity.check(case, "cuda", "reference")
