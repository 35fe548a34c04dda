"""That kernels assemble for a GPU, on a machine without one: instructions written out by hand, which the interpreter cannot run, and registration's kernels."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

STAND_IN = """
import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.runtime import driver


class StandIn:
    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0


driver.set_active(StandIn())
"""

GATHER = """
from instant_nk.kernels._triton_memory import gather_pair


@triton.jit
def double(values, rows, sums, count, PTX: tl.constexpr):
    lane = tl.arange(0, 64)
    live = lane < count
    first, second = gather_pair(values, tl.load(rows + lane, mask=live, other=0) * 2, live, PTX)
    tl.store(sums + lane, first + second, mask=live)


for dtype in (torch.float32, torch.float16):
    arguments = torch.zeros(8, dtype=dtype), torch.zeros(64, dtype=torch.int32), torch.zeros(64), 5
    for ptx in (True, False):
        compiled = double.warmup(*arguments, PTX=ptx, grid=(1,))
        print(dtype, ptx, len(compiled.asm["cubin"]) > 0, "ld.global.v2.b32" in compiled.asm["ptx"], "ld.global.b32" in compiled.asm["ptx"])
"""


def test_a_gather_by_hand_assembles_for_a_gpu(tmp_path):
    pytest.importorskip("triton")
    lines = [line.split() for line in answer_of(GATHER, tmp_path).splitlines()]
    assert [line[:3] for line in lines] == [[dtype, by_hand, "True"] for dtype in ("torch.float32", "torch.float16") for by_hand in ("True", "False")]
    assert lines[0][3] == "True" and lines[2][4] == "True"  # one access for a pair, of either width


REGISTRATION = """
from instant_nk.fitting import (
    conjugate_gradients_triton, correspondences, deformation_solver, evidence_triton, nearest_rotation_triton, registration, solver_triton, transport_triton,
)
from instant_nk.kernels import _triton_memory
from tests.registration_parity import Case


def compile_only(kernel, grid):
    def compiled(*args, **constants):
        assert len(kernel.function.warmup(*args, grid=grid, **constants).asm["cubin"])
        names.add(kernel.function.__name__)

    return compiled


names, modules = set(), (conjugate_gradients_triton, solver_triton, evidence_triton, transport_triton, nearest_rotation_triton)
for module in (correspondences, deformation_solver, registration):
    module.has_triton = lambda tensor: True
    module.compiled = lambda tensor: False
conjugate_gradients_triton.multiprocessors = lambda device: 132  # programs that wait for each other
case = Case("cpu", 12, 200)
_triton_memory.Kernel.__getitem__ = compile_only
for call in registration.rehearsals(case.there, registration.Options()):
    call()
print(sorted(name for module in modules for name, value in vars(module).items() if isinstance(value, _triton_memory.Kernel) and value.function.__name__ not in names))
"""


def test_registration_rehearses_all_its_kernels_and_they_assemble_for_a_gpu(tmp_path):
    pytest.importorskip("triton")
    assert answer_of(REGISTRATION, tmp_path).strip() == "[]"  # none is left out


NODES = """
import numpy as np
from instant_nk.kernels import _triton_memory
from instant_nk.models import nearest_nodes_triton
def compile_only(kernel, grid):
    return lambda *args, **constants: print(len(kernel.function.warmup(*args, grid=grid, **constants).asm["cubin"]) > 0)
_triton_memory.Kernel.__getitem__, nearest_nodes_triton.TOGETHER = compile_only, 1
nearest_nodes_triton.nearest(np.array([0, 1, 2]), np.array([1, 0]), np.ones(2), np.arange(2), 3.0, 7, [1], "cpu")
"""


def test_the_search_for_nearest_nodes_assembles_for_a_gpu(tmp_path):
    pytest.importorskip("triton")
    assert answer_of(NODES, tmp_path).split() == ["True"]


def answer_of(code, folder):
    """What a program prints that compiles for a GPU which is not there."""
    program = folder / "program.py"  # a file: Triton reads its kernels' source
    program.write_text(STAND_IN + code)
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment = kept | {"TRITON_CACHE_DIR": str(folder / "cache"), "PYTHONPATH": str(Path(__file__).parents[2])}
    answer = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, env=environment)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout
