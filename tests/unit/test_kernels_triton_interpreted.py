"""The Triton kernels without a GPU, through Triton's interpreter: small sizes, in a process of their own (the switch is read on import)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

PRELUDE = """
import torch
torch.set_num_threads(1)
from tests import parity
"""

HASH = """
for dims, features, points in ((3, 2, 63), (4, 2, 300), (3, 1, 5), (4, 3, 1), (3, 2, 0)):
    for case in parity.hash_encoding_cases(points, dims, features).values():
        parity.check(case, "cpu", "triton")
for case in parity.hash_encoding_cases(20, 3, open_levels=2).values():
    parity.check(case, "cpu", "triton", strided=True)
"""

RENDERING = """
for samples, rays in ((0, 0), (0, 5), (1, 1), (63, 7), (200, 3)):
    for case in parity.volume_rendering_cases(samples, rays).values():
        parity.check(case, "cpu", "triton")
        parity.check(case, "cpu", "triton", strided=True)
"""

SKINNING = """
for points, knn in ((0, 4), (1, 4), (63, 1), (200, 6)):
    for case in parity.blend_skinning_cases(points, knn).values():
        parity.check(case, "cpu", "triton")
"""

MARCHING = """
from instant_nk.kernels import ray_sampling
for rays in (0, 1, 63):
    found, truth, border = parity.marching(rays, "cpu", "triton")
    assert len(found ^ truth) <= border, (len(found), len(truth), len(found ^ truth))
"""


@pytest.mark.parametrize("program", [HASH, RENDERING, SKINNING, MARCHING], ids=["hash_encoding", "volume_rendering", "blend_skinning", "ray_sampling"])
def test_interpreted_triton_agrees_with_the_reference(program):
    root = Path(__file__).resolve().parents[2]
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(root)}
    found = subprocess.run([sys.executable, "-c", PRELUDE + program], capture_output=True, text=True, cwd=root, env=environment)
    assert found.returncode == 0, found.stderr[-3000:]
