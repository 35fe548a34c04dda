"""Which backend serves: the choice, its log line, its errors, and what importing costs."""

import logging
import os
import subprocess
import sys

import pytest
import torch

from instant_nk.errors import BackendError
from instant_nk.kernels import _backend
from tests import parity


def test_importing_the_kernels_imports_neither_triton_nor_tinycudann_nor_numba():
    program = (
        "import sys; from instant_nk.kernels import hash_encoding, blend_skinning, deep_network, field_network, live_gradient, neus_opacity, ray_loss, ray_sampling, volume_rendering; "
        "print([m for m in ('triton', 'tinycudann', 'numba') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]" and found.stderr == ""


def test_the_choice_is_logged_once(caplog):
    with parity.backend("reference"), caplog.at_level(logging.INFO, "instant_nk"):
        for _ in range(3):
            assert _backend.choose("volume_rendering", torch.rand(2)) == "reference"
    assert [r.getMessage() for r in caplog.records] == ["kernel=volume_rendering backend=reference"]


def test_float64_is_always_served_by_the_reference():
    assert _backend.choose("hash_encoding", torch.rand(2, dtype=torch.float64)) == "reference"


def test_sizes_that_triton_cannot_take_are_a_reason_too():
    problem = "it takes 1 to 128 hidden, got 256"
    assert _backend.choose("field_network", torch.rand(2), problem=problem) == "reference"
    with parity.backend("triton"), pytest.raises(BackendError, match=f"field_network: runtime.backend=triton cannot serve here: {problem}"):
        _backend.choose("field_network", torch.rand(2), problem=problem)


def test_an_unknown_backend_is_refused_with_the_choices():
    with pytest.raises(BackendError, match="wanted one of auto, reference, triton, tcnn; got 'cuda'"):
        _backend.select("cuda")


def test_triton_that_is_not_installed_is_refused_with_what_to_do(monkeypatch):
    monkeypatch.setattr(_backend.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BackendError, match="triton is not installed. Install it, or set runtime.backend=auto"):
        _backend.select("triton")


def test_triton_asked_for_by_name_refuses_cpu_tensors():
    pytest.importorskip("triton")
    if _backend.interpreting():
        pytest.skip("this process interprets Triton")
    with parity.backend("triton"), pytest.raises(BackendError, match="needs a CUDA device, got CPU tensors. Set runtime.backend=auto"):
        _backend.choose("hash_encoding", torch.rand(2))


def test_without_numba_the_reference_serves_the_cpu(monkeypatch):
    real = _backend.importlib.util.find_spec
    monkeypatch.setattr(_backend.importlib.util, "find_spec", lambda name: None if name == "numba" else real(name))
    assert _backend.choose("hash_encoding", torch.rand(2)) == "reference"


def test_a_gpu_that_cannot_run_triton_falls_to_the_reference_with_one_line(monkeypatch, caplog):
    class Gpu:
        dtype, is_cuda, device = torch.float32, True, torch.device("cuda", 0)

    monkeypatch.setattr(_backend, "device_problem", lambda index: "compute capability 6.1 is older than 8.0")
    with parity.backend("auto"), caplog.at_level(logging.INFO, "instant_nk"):
        assert [_backend.choose("ray_sampling", Gpu()) for _ in range(2)] == ["reference"] * 2
    assert [r.getMessage() for r in caplog.records] == ["kernel=ray_sampling backend=reference (compute capability 6.1 is older than 8.0)"]


@pytest.mark.parametrize("writable", [True, False])
def test_loops_compile_where_nothing_can_be_kept(tmp_path, writable):
    """A package and a home that cannot be written, as in a container: files stand where numba's folders would be."""
    pytest.importorskip("numba")
    (tmp_path / "once.py").write_text("from instant_nk.kernels._loop import loop\n\n@loop()\ndef double(x):\n    return 2 * x\n")
    if not writable:
        (tmp_path / "__pycache__").touch()
    environment = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"} | {"XDG_CACHE_HOME": os.devnull}
    program = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import once; print(once.double(21))"
    done = subprocess.run([sys.executable, "-B", "-c", program], env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "42", done.stderr
    assert ("Set NUMBA_CACHE_DIR" in done.stderr) == (not writable)
    assert bool(list(tmp_path.glob("__pycache__/*.nbi"))) == writable
