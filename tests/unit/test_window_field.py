"""The field of a window: the canonical field under known motion, exact live gradients, a canonical frame that stays at rest."""

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from instant_nk.fitting import window_files
from instant_nk.geometry import surface
from instant_nk.io import mesh as mesh_io
from instant_nk.models.warp import LiveSpace
from tests.unit import neural_fixtures
from tests.unit.neural_fixtures import bars, bending, capsule, capsule_skeleton, rigid, skeleton_of, slope, stir, window_field

TURN = torch.from_numpy(Rotation.from_rotvec([0.2, -0.4, 0.7]).as_matrix()).float()
SHIFT = torch.tensor([0.1, -0.05, 0.08])


def still(skeleton, frames=2):
    return torch.eye(3).expand(frames, len(skeleton.nodes), 3, 3).contiguous(), torch.zeros(frames, len(skeleton.nodes), 3)


def bent_field(amounts=(0.0, 0.5, 1.0), canonical_index=None):
    skeleton = capsule_skeleton()
    motion = [torch.tensor(m, dtype=torch.float32) for m in bending(skeleton.nodes.numpy(), list(amounts))]
    field = window_field(capsule, skeleton, *motion, canonical_index=canonical_index)
    return field, LiveSpace(skeleton, *motion, 32)


def look(count):
    return torch.nn.functional.normalize(torch.randn(count, 3), dim=1)


def at(field, space, x, frame, vertex=None):
    vertex = space.seed(x, frame, 0) if vertex is None else vertex
    return field.at(space, x, frame, vertex, look(len(x)).to(x), *field.motion())


def near_surface_points(space, frame, count=300, spread=0.02):
    live = space.live[frame]
    return live[torch.randint(len(live), (count,))] + (torch.rand(count, 3) - 0.5) * 2 * spread


def test_without_motion_a_fresh_window_is_the_canonical_field():
    skeleton = capsule_skeleton()
    field = window_field(capsule, skeleton, *still(skeleton))
    space = LiveSpace(skeleton, *still(skeleton), 32)
    x = near_surface_points(space, 0)
    seen = at(field, space, x, torch.zeros(len(x)).long())
    sdf, gradient, _ = field.sdf.with_gradient(x)
    torch.testing.assert_close(seen.canonical, x, atol=2e-6, rtol=0)
    torch.testing.assert_close(seen.sdf, sdf, atol=1e-5, rtol=0)
    torch.testing.assert_close(seen.gradient, gradient, atol=2e-3, rtol=0)
    assert seen.converged.all() and not seen.residual.any() and not seen.stretch.any()


def test_under_rigid_motion_the_field_moves_along():
    """sdf(R x + s) = sdf_canonical(x), and its gradient turns with R."""
    skeleton = capsule_skeleton()
    motion = rigid(skeleton.nodes, TURN, SHIFT)
    field, space = window_field(capsule, skeleton, *motion), LiveSpace(skeleton, *motion, 32)
    x = near_surface_points(space, 0)
    seen = at(field, space, x, torch.zeros(len(x)).long())
    rest = (x - SHIFT) @ TURN
    sdf, gradient, _ = field.sdf.with_gradient(rest)
    assert seen.converged.all()
    torch.testing.assert_close(seen.canonical, rest, atol=3e-5, rtol=0)
    torch.testing.assert_close(seen.sdf, sdf, atol=5e-5, rtol=0)
    torch.testing.assert_close(seen.gradient, gradient @ TURN.T, atol=1e-3, rtol=0)


def test_the_live_gradient_is_the_derivative_of_the_live_distance():
    """Through bend and residual, in double precision."""
    skeleton = capsule_skeleton(torch.float64)
    motion = [torch.tensor(m) for m in bending(skeleton.nodes.numpy(), [0.0, 0.5, 1.0])]
    field, space = window_field(capsule, skeleton, *motion).double(), LiveSpace(skeleton, *motion, 32)
    stir(field.residual, 0.3)
    frame = torch.arange(60) % 3
    vertex = torch.randint(len(field.skeleton.vertices), (60,))
    x = space.live[frame, vertex] + (torch.rand(60, 3, dtype=torch.float64) - 0.5) * 0.02
    seen = at(field, space, x, frame, vertex)
    assert seen.converged.all() and seen.residual.abs().max() > 1e-3

    def distance(points):
        return at(field, space, points, frame, vertex).sdf

    error = (seen.gradient - slope(distance, x, step=1e-4)).norm(dim=1) / seen.gradient.norm(dim=1)
    assert error.median() < 1e-5 and error.quantile(0.8) < 1e-3  # the rest stepped over a border of the piecewise linear hull


def test_the_residual_is_zero_at_the_canonical_frame_alone():
    field, space = bent_field(canonical_index=1)
    stir(field.residual, 0.5)
    x, frame = space.live[:, ::40].reshape(-1, 3), torch.arange(3).repeat_interleave(len(space.live[0, ::40]))
    seen = at(field, space, x, frame)
    moved = seen.residual.abs().sum(1) > 0
    assert moved.equal(frame != 1)
    assert field.residual_at(seen.canonical, frame).equal(seen.residual)
    assert field.ramp(torch.tensor([0, 1, 2])).tolist() == [1, 0, 1]


def test_a_window_without_the_canonical_frame_is_free_everywhere():
    field, _ = bent_field(canonical_index=None)
    assert field.ramp(torch.tensor([0, 1, 2])).tolist() == [1, 1, 1]


@pytest.mark.parametrize(("frames", "taus"), [(1, [0.0]), (2, [0.0, 1.0]), (5, [0.0, 0.25, 0.5, 0.75, 1.0])])
def test_tau_runs_from_zero_to_one_and_is_zero_in_a_window_of_one_frame(frames, taus):
    skeleton = capsule_skeleton()
    field = window_field(capsule, skeleton, *still(skeleton, frames))
    assert field.tau(torch.arange(frames)).tolist() == taus


@pytest.mark.parametrize("residual", [0.0, 0.3])
def test_the_quick_distance_is_the_exact_one_near_the_surface(residual):
    field, space = bent_field()
    if residual:
        stir(field.residual, residual)
    frame = torch.randint(3, (900,))
    x = space.live[frame, torch.randint(len(space.live[0]), (900,))] + (torch.rand(900, 3) - 0.5) * 0.04
    quick, vertex = field.quick_sdf(space, x, frame)
    exact = at(field, space, x, frame, vertex)
    error = (quick - exact.sdf)[exact.converged].abs()
    assert error.median() < 1e-4 and error.quantile(0.95) < 2e-3 and error.max() < 0.03  # it only looks for samples; a cell is 0.06


def test_far_from_the_surface_the_quick_distance_is_far():
    field, space = bent_field()
    quick, _ = field.quick_sdf(space, torch.tensor([[0.95, 0.95, 0.95], [-0.9, 0.9, 0.0]]), torch.tensor([0, 2]))
    assert (quick >= 1).all()


def test_where_limbs_touch_the_union_is_seen():
    """Two bars 0.02 apart: inside either the distance is negative, between them positive, and the vertex belongs to the nearer bar."""
    skeleton = skeleton_of(*bars(0.3), max_nodes=20)

    def two_bars(points):
        inner = torch.stack([(points[:, 0].abs() - 0.25).abs() - 0.1, points[:, 1].abs() - 0.5, points[:, 2].abs() - 0.1], 1)
        return inner.max(1).values

    middle, gap = 0.0217, 0.02
    translations = torch.zeros(1, len(skeleton.nodes), 3)
    translations[0, :, 0] = middle - (0.15 - gap / 2) * torch.sign(skeleton.nodes[:, 0])
    rotations = torch.eye(3).expand(1, len(skeleton.nodes), 3, 3).contiguous()
    field, space = window_field(two_bars, skeleton, rotations, translations, resolution=64), LiveSpace(skeleton, rotations, translations, 64)
    across = torch.linspace(-0.07, 0.07, 57)
    x = torch.cat([torch.stack([across + middle, torch.full_like(across, y), torch.full_like(across, z)], 1) for y in (-0.2, 0.0, 0.3) for z in (-0.04, 0.05)])
    local = x[:, 0] - middle
    distance, vertex = field.quick_sdf(space, x, torch.zeros(len(x)).long())
    wanted = (gap / 2 - local.abs()).clamp_min(-0.1)
    off = 0.02  # the fresh field's own error against the true bars
    assert (distance[local.abs() > gap / 2 + off] < 0).all()
    assert (distance - wanted).abs().median() < off
    belongs = torch.sign(skeleton.vertices[vertex, 0]) == torch.sign(local)
    assert belongs[local.abs() > gap / 2].all()


def test_a_loss_trains_residual_colour_and_motion_but_not_the_canonical_surface():
    field, space = bent_field(canonical_index=0)
    stir(field.residual, 0.1)
    x, frame = near_surface_points(space, 2), torch.full((300,), 2)
    seen = at(field, space, x, frame)
    (seen.sdf.square().sum() + seen.rgb.sum() + seen.gradient.square().sum()).backward()
    for parameter in (field.residual.encoding.table, field.residual.mlp.last.weight, field.colour.mlp.layers[0].weight, field.motion.turn, field.motion.shift):
        assert parameter.grad.abs().max() > 0
    assert all(not p.requires_grad and p.grad is None for p in field.sdf.parameters())
    assert not field.motion.shift.grad[:2].any()


def test_no_samples_are_no_special_case():
    field, space = bent_field()
    nothing = torch.zeros(0).long()
    assert field.quick_sdf(space, torch.zeros(0, 3), nothing)[0].shape == (0,)
    assert at(field, space, torch.zeros(0, 3), nothing, nothing).rgb.shape == (0, 3)


@pytest.mark.parametrize("cells", [32, 128])
def test_no_cell_of_the_live_grid_is_missed_however_coarse_the_mesh(tmp_path_factory, cells):
    body = neural_fixtures.body(tmp_path_factory.getbasetemp())
    mesh = mesh_io.load(body.job.paths.canonical_mesh)
    skeleton = window_files.load_skeleton(body.job.paths, cells, "cpu")
    count = len(mesh.vertices)
    assert skeleton.of_mesh == count < len(skeleton.vertices)
    np.testing.assert_array_equal(skeleton.vertices[:count], mesh.vertices)
    still = torch.eye(3).expand(1, len(skeleton.nodes), 3, 3), torch.zeros(1, len(skeleton.nodes), 3)
    space = LiveSpace(skeleton, *still, cells)
    face, weights = surface.sample(mesh.vertices, mesh.faces, 20000)
    points = (mesh.vertices[mesh.faces[face]] * weights[..., None]).sum(1)
    cell = np.clip(((points + 1) * cells / 2).astype(int), 0, cells - 1)
    assert space.occupied[0][tuple(cell.T)].all()
