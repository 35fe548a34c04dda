"""What was compiled ahead of training is what training launches."""

from __future__ import annotations

import pytest
import torch

from benchmarks import window_step
from instant_nk.fitting.correspondences import Target
from instant_nk.fitting.deformation_solver import Body, Pose
from instant_nk.fitting.registration import Options, register_from, rehearsals
from instant_nk.fitting.surface_fit import SurfaceFit, SurfaceFitConfig
from instant_nk.fitting.trainer import How
from instant_nk.fitting.window_fit import WindowFit
from instant_nk.kernels import blend_skinning
from instant_nk.kernels.ahead import compile_side_by_side
from instant_nk.kernels.hash_encoding import HashSpec
from instant_nk.models import deformation_graph
from instant_nk.models.occupancy import cell_centres
from instant_nk.models.residual_field import ResidualField
from instant_nk.models.sdf_field import SdfField
from tests.unit.shapes import bent, mesh_of, observed, tube

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture
def compiled(monkeypatch):
    """Names of the kernels that Triton was asked to compile, or found in its cache on disk, since the test began."""
    triton = pytest.importorskip("triton")
    names = []
    monkeypatch.setattr(triton.knobs.compilation, "listener", lambda *, src, **_: names.append(src.fn.__name__))
    return names


def test_a_field_that_rehearsed_compiles_nothing_more(compiled):
    sdf = SdfField(HashSpec.geometric(5, 2, 11, 4, 40), 16, 8).cuda()  # a shape no other test has
    x = torch.rand(100, 3, device="cuda", requires_grad=True)
    compile_side_by_side(sdf.rehearsals(to_table=True, to_x=True), x.device)
    before = len(compiled)
    assert before
    sum(part.sum() for part in sdf.with_gradient(x)).backward()
    sdf(x.detach())
    assert compiled[before:] == []


def test_skinning_that_rehearsed_compiles_nothing_more(compiled):
    knn, nodes = 5, torch.rand(9, 3, device="cuda")
    compile_side_by_side(blend_skinning.rehearsals(knn, "cuda"), nodes.device)
    before = len(compiled)
    assert before
    points, anchors = torch.rand(70, 3, device="cuda"), torch.randint(9, (70, knn), device="cuda")
    rotations = torch.eye(3, device="cuda").expand(2, 9, 3, 3).clone().requires_grad_()
    translations = torch.zeros(2, 9, 3, device="cuda", requires_grad=True)
    frame = torch.randint(2, (70,), device="cuda")
    graph = nodes, torch.full((9,), 0.5, device="cuda")
    found, _ = blend_skinning.inverse(points, points, anchors, *graph, rotations, translations, frame)
    found.sum().backward()
    assert compiled[before:] == []


def test_a_residual_that_rehearsed_compiles_nothing_more(compiled):
    spec = HashSpec(4, 2, 10, ((4, 4, 4, 2), (7, 7, 7, 3)))
    residual = ResidualField(spec, 16, 0.1).cuda()
    compile_side_by_side(residual.rehearsals(), torch.device("cuda"))
    before = len(compiled)
    x, tau = torch.rand(100, 3, device="cuda", requires_grad=True), torch.rand(100, device="cuda")
    sum(part.sum() for part in residual.with_jacobian(x, tau)).backward()
    residual(x.detach(), tau).sum().backward()
    assert compiled[before:] == []


@pytest.mark.parametrize("recorded", [False, True])
def test_a_window_that_rehearsed_compiles_nothing_more(compiled, recorded):
    sizes = window_step.sizes_of(small=True)
    field, resolution = window_step.make_field(sizes, "cuda")
    rays = window_step.Rays(field, field.live_space(resolution), sizes.cameras)
    fit = WindowFit(sizes.config.field, field, rays, resolution, "cuda", 0, "test", How(recorded=recorded))
    compile_side_by_side(fit.rehearsals(), torch.device("cuda"))
    before = len(compiled)
    for _ in range(14):
        fit.step()
    assert compiled[before:] == []


def test_a_surface_that_rehearsed_compiles_nothing_more(compiled):
    sizes = window_step.sizes_of(small=True)
    field, resolution = window_step.make_field(sizes, "cuda")
    rays = window_step.Rays(field, field.live_space(resolution), sizes.cameras)
    hull = (window_step.capsule(cell_centres(24)) < 0.1).reshape(24, 24, 24).numpy()
    config = SurfaceFitConfig(200, 6000, HashSpec.geometric(5, 4, 10, 4, 30), 16, 24, 1e-2, 0.05, 0.2)
    fit = SurfaceFit(config, rays, hull, "cuda", 0, "test", how=How(recorded=True))
    compile_side_by_side(fit.rehearsals(), torch.device("cuda"))
    before = len(compiled)
    for _ in range(14):
        fit.step()
    assert compiled[before:] == []


def test_a_registration_that_rehearsed_compiles_nothing_more(compiled):
    vertices, faces = tube()
    body = Body.from_mesh(
        deformation_graph.build(vertices, faces, max_nodes=240, anchors=5), mesh_of(vertices, faces), 2000, "cuda"
    )  # anchors no other test has
    target = Target.from_observation(observed(bent(vertices, 0.5), faces, vertices), 2000, body.spacing, body.spacing, "cuda")
    compile_side_by_side(rehearsals(body, Options()), torch.device("cuda"))
    before = len(compiled)
    assert before
    register_from(body, [Pose.identity(body)], target, Options())
    assert compiled[before:] == []
