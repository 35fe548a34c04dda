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


SEEING = """
for samples, rays in ((0, 3), (1, 1), (63, 5), (700, 9)):
    found, truth, border = parity.visibility(samples, rays, "cpu", "triton")
    assert not bool(((found != truth) & ~border).any()) and int(border.sum()) <= 0.02 * samples + 2
"""

LEARNING = """
for samples in (1, 63, 300):
    for case in (parity.neus_opacity_cases(samples) | parity.ray_loss_cases(samples)).values():
        parity.check(case, "cpu", "triton")
        parity.check(case, "cpu", "triton", strided=True)
for case in parity.neus_opacity_cases(0).values():
    parity.check(case, "cpu", "triton")
"""

PADDED = """
import torch
from instant_nk.kernels import ray_sampling
generator = torch.Generator().manual_seed(0)
origins = 2.5 * torch.nn.functional.normalize(torch.randn(50, 3, generator=generator), dim=1)
directions = torch.nn.functional.normalize(0.3 * torch.randn(50, 3, generator=generator) - origins, dim=1)
occupied = torch.rand(2, 12, 12, 12, generator=generator) > 0.6
grid = torch.arange(50) % 2
for room in (1, 200, 5000):
    with parity.backend("triton"), parity.poisoned():
        found = ray_sampling.march_padded(origins, directions, occupied, 0.03, room, grid_index=grid)
    with parity.backend("reference"):
        wanted = ray_sampling.march_padded(origins, directions, occupied, 0.03, room, grid_index=grid)
    assert torch.equal(found[0], wanted[0]) and torch.equal(found[3], wanted[3]) and len(found[0]) == room
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found[1:3], wanted[1:3]))
"""

REHEARSALS = """
from instant_nk.kernels import blend_skinning, deep_network, field_network, hash_encoding, live_gradient, neus_opacity, ray_loss, ray_sampling, volume_rendering
from instant_nk.kernels.hash_encoding import HashSpec
for dims, features in ((3, 2), (4, 2), (3, 1)):
    spec = HashSpec(dims, features, 8, ((3,) * dims, (5,) * dims))
    for jacobian, to_table, to_x in ((False, False, False), (False, True, False), (True, True, True)):
        calls = hash_encoding.rehearsals(spec, "cpu", jacobian, to_table, to_x)
        assert len(calls) == 1 + (to_table or to_x)
        for call in calls:
            call()
networks = field_network.rehearsals(4, 6, 16, 3, "cpu", True, True, True) + field_network.rehearsals(3, 6, 16, 1, "cpu", False, True, False)
networks += field_network.rehearsals(4, 6, 16, 3, "cpu", False, True, True, gradient=False) + deep_network.rehearsals(9, 6, 16, 3, "cpu", True, True, True)
rest = ray_sampling.rehearsals(8, "cpu") + volume_rendering.rehearsals(8, "cpu", True) + volume_rendering.rehearsals(3, "cpu", False)
rest += live_gradient.rehearsals("cpu") + neus_opacity.rehearsals("cpu", True) + neus_opacity.rehearsals("cpu", False) + ray_loss.rehearsals("cpu")
for call in blend_skinning.rehearsals(4, "cpu") + networks + rest:
    call()
"""

NETWORK = """
for sizes in ((0, 3, 32, 64, 1), (1, 4, 32, 64, 3), (63, 3, 5, 16, 1), (130, 4, 12, 20, 3), (130, 3, 32, 64, 1), (70, 3, 8, 128, 2)):
    for case in parity.field_network_cases(*sizes).values():
        parity.check(case, "cpu", "triton")
        parity.check(case, "cpu", "triton", strided=True)
"""

DEEP = """
for sizes in ((0, 9, 32, 64, 3), (1, 9, 28, 64, 3), (63, 9, 5, 16, 3), (130, 4, 12, 20, 1), (200, 15, 40, 64, 4)):
    for case in parity.deep_network_cases(*sizes).values():
        parity.check(case, "cpu", "triton")
        parity.check(case, "cpu", "triton", strided=True)
"""

CARRYING = """
for samples in (0, 1, 63, 300):
    for case in parity.live_gradient_cases(samples).values():
        parity.check(case, "cpu", "triton")
        parity.check(case, "cpu", "triton", strided=True)
"""

STEP = """
from tests import registration_parity
registration_parity.check_step("cpu", 9, 150)
registration_parity.check_step("cpu", 1, 30)  # no edges
registration_parity.check_step("cpu", 5, 60, twice=True, seen=0.3)
"""

EVIDENCE = """
from tests import registration_parity
registration_parity.check_evidence("cpu", 9, 150, 0.5)
registration_parity.check_evidence("cpu", 1, 40, 0.5)
"""

TRANSPORT = """
from tests import registration_parity
registration_parity.check_transport("cpu", 90, 70)
registration_parity.check_transport("cpu", 5, 40)
"""

ROTATIONS = """
from tests import registration_parity
registration_parity.check_rotations("cpu")
"""

NODES = """
from instant_nk.models import nearest_nodes_triton
from tests import registration_parity
nearest_nodes_triton.TOGETHER = 3
registration_parity.check_nearest_nodes("cpu", 6, 5, 1.0)
registration_parity.check_equally_near_nodes("cpu")
import numpy as np
whole, (early,) = nearest_nodes_triton.nearest(np.array([0, 1, 2]), np.array([1, 0]), np.ones(2), np.arange(2), 3.0, 4, [1], "cpu")
assert whole.tolist() == [[0, 1, -1, -1], [1, 0, -1, -1]] and early.tolist() == [[0, -1, -1, -1]]
"""

PROGRAMS = {
    "hash_encoding": HASH, "volume_rendering": RENDERING, "blend_skinning": SKINNING, "ray_sampling": MARCHING, "field_network": NETWORK,
    "deep_network": DEEP, "live_gradient": CARRYING, "visible": SEEING, "padded": PADDED, "neus_opacity and ray_loss": LEARNING, "rehearsals": REHEARSALS,
    "a registration step": STEP, "evidence of a surface": EVIDENCE, "soft assignment": TRANSPORT, "nearest rotations": ROTATIONS, "nearest nodes": NODES,
}  # fmt: skip


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_interpreted_triton_agrees_with_the_reference(program):
    root = Path(__file__).resolve().parents[2]
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(root)}
    found = subprocess.run([sys.executable, "-c", PRELUDE + program], capture_output=True, text=True, cwd=root, env=environment)
    assert found.returncode == 0, found.stderr[-3000:]
