"""Instructions written out by hand, which the interpreter cannot run: that they assemble for a GPU, on a machine without one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from instant_nk.kernels._triton_memory import gather_pair


class StandIn:
    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0


@triton.jit
def double(values, rows, sums, count, PTX: tl.constexpr):
    lane = tl.arange(0, 64)
    live = lane < count
    first, second = gather_pair(values, tl.load(rows + lane, mask=live, other=0) * 2, live, PTX)
    tl.store(sums + lane, first + second, mask=live)


driver.set_active(StandIn())
for dtype in (torch.float32, torch.float16):
    arguments = torch.zeros(8, dtype=dtype), torch.zeros(64, dtype=torch.int32), torch.zeros(64), 5
    for ptx in (True, False):
        compiled = double.warmup(*arguments, PTX=ptx, grid=(1,))
        print(dtype, ptx, len(compiled.asm["cubin"]) > 0, "ld.global.v2.b32" in compiled.asm["ptx"], "ld.global.b32" in compiled.asm["ptx"])
"""


def test_a_gather_by_hand_assembles_for_a_gpu(tmp_path):
    pytest.importorskip("triton")
    program = tmp_path / "program.py"  # a file: Triton reads its kernels' source
    program.write_text(PROGRAM)
    answer = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, env=environment(tmp_path))
    assert answer.returncode == 0, answer.stderr
    lines = [line.split() for line in answer.stdout.splitlines()]
    assert [line[:3] for line in lines] == [[dtype, by_hand, "True"] for dtype in ("torch.float32", "torch.float16") for by_hand in ("True", "False")]
    assert lines[0][3] == "True" and lines[2][4] == "True"  # one access for a pair, of either width


def environment(folder):
    root = str(Path(__file__).parents[2])
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return kept | {"TRITON_CACHE_DIR": str(folder / "cache"), "PYTHONPATH": root}
