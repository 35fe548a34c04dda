"""Which backend serves which kernel: decided once per op and device, logged once, overridable by `runtime.backend`.

`auto` takes Triton on a CUDA device that can run it, compiled CPU loops where an op has them and numba is installed,
and the torch reference everywhere else. A backend asked for by
name that cannot serve raises a `BackendError`; under `auto` the fall to the reference is one log line, never a crash.
Nothing here imports triton or numba until a tensor that needs them arrives.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import logging

import torch
from torch import Tensor

from instant_nk.errors import BackendError

logger = logging.getLogger(__name__)

BACKENDS = ("auto", "reference", "triton", "tcnn")
MIN_CAPABILITY = (8, 0)  # what Triton's own releases support
TCNN_DEVICE = "cuda"
OFFERS = {  # kernel folder: backends it has code for
    "hash_encoding": ("reference", "numba", "triton"),
    "blend_skinning": ("reference", "numba", "triton"),
    "ray_sampling": ("reference", "numba", "triton"),
    "volume_rendering": ("reference", "numba", "triton"),
    "field_network": ("reference", "triton"),
    "deep_network": ("reference", "triton"),
    "live_gradient": ("reference", "triton"),
    "neus_opacity": ("reference", "triton"),
    "ray_loss": ("reference", "triton"),
}

_selected = "auto"
_logged: set[tuple[str, str]] = set()


def select(backend: str) -> None:
    """Choose the backend of every later kernel call (`runtime.backend`).

    `tcnn` serves the hash tables that are made in its layout (`HashSpec.layout`); everything else is as under `auto`.

    Raises:
        BackendError: unknown name; triton or tcnn where it is not installed.
    """
    global _selected
    if backend not in BACKENDS:
        raise BackendError(f"runtime.backend: wanted one of {', '.join(BACKENDS)}; got {backend!r}.")
    if backend == "tcnn" and importlib.util.find_spec("tinycudann") is None:
        raise BackendError(
            "runtime.backend=tcnn: the package tinycudann is not installed; it has to be built from source. "
            "Set runtime.backend=auto: the Triton kernels are built as they are needed and are faster (docs/kernels.md)."
        )
    if backend == "triton" and importlib.util.find_spec("triton") is None:
        raise BackendError("runtime.backend=triton: the package triton is not installed. Install it, or set runtime.backend=auto.")
    _selected = backend
    _logged.clear()


def selected() -> str:
    """The backend asked for by the last `select`; `auto` at the start."""
    return _selected


def table_layout() -> str:
    """`HashSpec.layout` of hash tables that are to be trained now."""
    return "tcnn" if _selected == "tcnn" else "own"


def choose(op: str, *tensors: Tensor, problem: str | None = None) -> str:
    """The backend that serves `op` on these tensors: one of `OFFERS[op]`. The choice is logged the first time it is made.

    Args:
        op: name of the kernel folder.
        tensors: the op's floating-point inputs; all on one device.
        problem: what about their sizes Triton's code for the op cannot take.

    Raises:
        BackendError: the backend asked for by name cannot serve these tensors on this machine.
    """
    offers = OFFERS[op]
    wanted = _selected
    if wanted == "reference":
        return _log(op, wanted)
    problem = problem or (_triton_problem(op, tensors) if "triton" in offers else "the op has no Triton code")
    if problem is None and (wanted == "triton" or tensors[0].is_cuda):
        return _log(op, "triton")
    if wanted == "triton":
        raise BackendError(f"{op}: runtime.backend=triton cannot serve here: {problem}. Set runtime.backend=auto or reference.")
    if "numba" in offers and _numba_serves(tensors):
        return _log(op, "numba")
    return _log(op, "reference", f" ({problem})" if tensors[0].is_cuda else "")


def require_tcnn(op: str, *tensors: Tensor) -> None:
    """Refuse what tinycudann cannot compute; log once that it serves.

    Raises:
        BackendError: another backend is selected, or the tensors are not on a GPU in single (the table: or half) precision.
    """
    if _selected != "tcnn":
        raise BackendError(
            f"{op}: this table has tiny-cuda-nn's layout, because it was trained with runtime.backend=tcnn; runtime.backend={_selected} cannot read it. "
            "Set runtime.backend=tcnn, or train again."
        )
    odd = next((t for t in tensors if t.device.type != TCNN_DEVICE or t.dtype not in (torch.float32, torch.float16)), None)
    if odd is not None:
        raise BackendError(f"{op}: runtime.backend=tcnn computes in single precision on a GPU; got {odd.dtype} on {odd.device}. Set runtime.backend=auto.")
    _log(op, "tcnn")


def describe(device: str) -> str:
    """One word for the first log line of a run: the backend `auto` or the explicit choice comes to on `device`."""
    if _selected != "auto":
        return _selected
    return "triton" if device.startswith("cuda") and device_problem(torch.cuda.current_device()) is None else "reference"


def _log(op: str, backend: str, why: str = "") -> str:
    if (op, backend) not in _logged:
        _logged.add((op, backend))
        logger.info("kernel=%s backend=%s%s", op, backend, why)
    return backend


def _triton_problem(op: str, tensors: tuple[Tensor, ...]) -> str | None:
    """Why Triton cannot serve these tensors, or None when it can. The hash table alone may be float16."""
    served = (torch.float32, torch.float16) if op == "hash_encoding" else (torch.float32,)
    odd = next((t.dtype for t in tensors if t.dtype not in served), None)
    if odd is not None:
        return f"it computes in float32, got {odd}"
    if tensors[0].is_cuda:
        return device_problem(tensors[0].device.index or 0)
    return None if interpreting() else "it needs a CUDA device, got CPU tensors"


def _numba_serves(tensors: tuple[Tensor, ...]) -> bool:
    """Compiled CPU loops take float32 on the CPU, where numba is installed; they are the CPU's `auto`."""
    return all(t.dtype == torch.float32 and not t.is_cuda for t in tensors) and numba_installed()


def numba_installed() -> bool:
    """Whether compiled CPU loops can be had at all."""
    return importlib.util.find_spec("numba") is not None


def on(tensor: Tensor) -> contextlib.AbstractContextManager:
    """Make `tensor`'s GPU current, where Triton launches; nothing for CPU tensors."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


@functools.cache
def interpreting() -> bool:
    """Whether this process runs Triton kernels on the CPU, through Triton's interpreter (tests do)."""
    if importlib.util.find_spec("triton") is None:
        return False
    import triton

    return bool(triton.knobs.runtime.interpret)


@functools.cache
def device_problem(index: int) -> str | None:
    """Why Triton cannot run on CUDA device `index`, found by running a kernel of one line on it; None when it can."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    capability = torch.cuda.get_device_capability(index)
    if capability < MIN_CAPABILITY:
        return f"compute capability {capability[0]}.{capability[1]} is older than {MIN_CAPABILITY[0]}.{MIN_CAPABILITY[1]}"
    try:
        from instant_nk.kernels._triton_probe import probe

        probe(torch.device("cuda", index))
    except Exception as error:  # the launcher needs a C compiler and a matching driver: whatever is missing, the reference still serves
        return f"a trial kernel failed: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return None
