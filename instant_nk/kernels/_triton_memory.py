"""Launching, access to memory, and questions to the device, that the Triton kernels share."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Hashable
from functools import cache
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime import build

from instant_nk.kernels import ahead

_loading = threading.Lock()


def apart(load: Callable[[str, str], ModuleType]) -> Callable[[str, str], SimpleNamespace]:
    """A loader of compiled modules, `load(name, path)`, that is safe to call from several threads: what it returns nobody changes later.

    Triton up to 3.6 builds a launcher for each signature, all as modules of one name. When Python meets one of them for the second time, it
    writes its functions into whichever module of that name was loaded last; a thread that was about to take its launcher from there gets that of
    another kernel, with other arguments.
    """

    def alone(name: str, path: str) -> SimpleNamespace:
        with _loading:
            return SimpleNamespace(**vars(load(name, path)))

    return alone


if hasattr(build, "_load_module_from_path"):  # Triton's own name, in every version that torch 2.11 to 2.13 brings
    build._load_module_from_path = apart(build._load_module_from_path)


def launched(**options: Any) -> Callable[[Callable], Kernel]:
    """`triton.jit` with its options, for a kernel that is launched from Python and not called by another."""
    return lambda function: Kernel(triton.jit(**options)(function))


class Kernel:
    """A Triton kernel: `kernel[grid](...)` launches it, and in a call of `ahead.compiling` has what a launch would need compiled and loaded, and no more."""

    def __init__(self, function: Any):
        self.function, self.loading = function, threading.Lock()

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., Any]:
        compilation = ahead.compilation()
        return functools.partial(self._hand_over, compilation, grid) if compilation else self.function[grid]

    def _hand_over(self, compilation: ahead.Compilation, grid: tuple[int, ...], *args: Any, **constants: Any) -> None:
        """The device must be the current one in the thread that compiles, too: there may be several."""
        device = torch.cuda.current_device() if torch.cuda.is_available() else None

        def work() -> None:
            with torch.cuda.device(device) if device is not None else contextlib.nullcontext():
                self._compile(grid, *args, **constants)

        name = f"{self.function.__module__.removeprefix('instant_nk.kernels.')}.{self.function.__name__}"
        compilation.compile(name, (self, device, *map(_kind, args), *sorted(constants.items())), work)

    def _compile(self, grid: tuple[int, ...], *args: Any, **constants: Any) -> None:
        compiled = self.function.warmup(*args, grid=grid, **constants)
        with self.loading:  # two threads may hold the same: Triton's loading is not safe against that
            getattr(compiled, "_init_handles", lambda: None)()  # builds the launcher; where Triton renames this, the first launch does, later


def _kind(value: Any) -> Hashable:
    """What of a kernel's argument decides which code it needs."""
    if isinstance(value, Tensor):
        return value.dtype, value.data_ptr() % 16 == 0
    return (int, value == 1, value % 16 == 0) if isinstance(value, int) else type(value)


@triton.jit
def load_pair(base, index, live):
    """Two consecutive values, the first at an even index, in one access; as float32."""
    if base.dtype.element_ty == tl.float32:
        bits = tl.load((base + index).to(tl.pointer_type(tl.int64)), mask=live, other=0)
        first = bits.to(tl.int32).to(tl.float32, bitcast=True)
        second = (bits >> 32).to(tl.int32).to(tl.float32, bitcast=True)
    else:
        bits = tl.load((base + index).to(tl.pointer_type(tl.int32)), mask=live, other=0)
        first = bits.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
        second = (bits >> 16).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
    return first, second


@triton.jit
def gather_pair(base, index, live, PTX: tl.constexpr):
    """`load_pair` from scattered places. With PTX written as the instruction it becomes anyway: Triton's search for neighbouring accesses looks at the whole
    kernel for each of its own loads, and took 70 % of the compilation of a kernel of many."""
    if PTX:
        address, wanted = (base + index).to(tl.int64), live.to(tl.int32)
        if base.dtype.element_ty == tl.float32:
            first, second = tl.inline_asm_elementwise(
                "{.reg .pred p; setp.ne.b32 p, $3, 0; mov.b32 $0, 0; mov.b32 $1, 0; @p ld.global.v2.b32 {$0, $1}, [$2];}",
                "=&r,=&r,l,r",
                [address, wanted],
                dtype=(tl.int32, tl.int32),
                is_pure=True,
                pack=1,
            )
            return first.to(tl.float32, bitcast=True), second.to(tl.float32, bitcast=True)
        else:
            bits = tl.inline_asm_elementwise(
                "{.reg .pred p; setp.ne.b32 p, $2, 0; mov.b32 $0, 0; @p ld.global.b32 $0, [$1];}",
                "=&r,l,r",
                [address, wanted],
                dtype=tl.int32,
                is_pure=True,
                pack=1,
            )
            return bits.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32), (bits >> 16).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
    else:
        return load_pair(base, index, live)


@triton.jit
def load3(base, n, live):
    """Row n of an array [N, 3]."""
    return tl.load(base + n * 3, mask=live, other=0.0), tl.load(base + n * 3 + 1, mask=live, other=0.0), tl.load(base + n * 3 + 2, mask=live, other=0.0)


@triton.jit
def store3(base, n, a, b, c, live):
    """Write row n of an array [N, 3]."""
    tl.store(base + n * 3, a, mask=live)
    tl.store(base + n * 3 + 1, b, mask=live)
    tl.store(base + n * 3 + 2, c, mask=live)


@triton.jit
def number(value, at, IN_MEMORY: tl.constexpr):
    """A number that is an argument, or lies in memory where the host has not looked at it: see `number_of`."""
    if IN_MEMORY:
        value = tl.load(at)
    return value


def number_of(value: float | Tensor, where: Tensor) -> tuple[float, Tensor, bool]:
    """The arguments of `number` for a number, or a tensor [] on the device; `where` is any tensor there."""
    return (0.0, value, True) if isinstance(value, Tensor) else (float(value), where, False)


@cache
def multiprocessors(device: torch.device) -> int:
    """How many programs run side by side at least; 1 under the interpreter."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


@cache
def vector_atomics(device: torch.device) -> bool:
    """Whether one instruction adds several floats: sm_90."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)
