"""The warp: node motion, rigidity, the live grid that follows, and the exact inverse also where limbs touch."""

import functools

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from instant_nk.kernels.blend_skinning import blend_with_jacobian, inverse
from instant_nk.models.warp import LiveSpace, NodeMotion, Skeleton, to_canonical
from tests.unit.neural_fixtures import bars, bending, capsule_skeleton, rigid, skeleton_of

AMOUNTS = [0.0, 0.8, 1.6]  # radians per unit of length; the capsule is 1.4 long
MIDDLE = 0.0217  # between the touching bars: no plane of the grid


def tensors(*arrays, dtype=torch.float32):
    return tuple(torch.tensor(a, dtype=dtype) for a in arrays)


@pytest.fixture(scope="module")
def bent():
    """A capsule's skeleton, its bending motion and the live grid of 64 cells around it."""
    skeleton = capsule_skeleton()
    motion = tensors(*bending(skeleton.nodes.numpy(), AMOUNTS))
    return skeleton, motion, LiveSpace(skeleton, *motion, 64)


def points_around(skeleton, count=600, spread=0.03):
    """Canonical points near the surface with their vertices."""
    vertex = torch.randint(len(skeleton.vertices), (count,))
    return skeleton.vertices[vertex] + (torch.rand(count, 3) - 0.5) * 2 * spread, vertex


# Node motion


def node_motion(fixed=(False, True, False)):
    skeleton = capsule_skeleton()
    return NodeMotion(*tensors(*bending(skeleton.nodes.numpy(), AMOUNTS)), torch.tensor(fixed))


def test_fresh_node_motion_is_the_registered_one():
    motion = node_motion()
    rotations, translations = motion()
    torch.testing.assert_close(rotations, motion.rotations)
    assert torch.equal(translations, motion.translations)


def test_fixed_frames_never_move_and_the_others_stay_rigid():
    motion = node_motion()
    with torch.no_grad():
        motion.turn.normal_()
        motion.shift.normal_()
    rotations, translations = motion()
    assert torch.equal(rotations[1], motion.rotations[1]) and torch.equal(translations[1], motion.translations[1])
    assert (rotations[0] - motion.rotations[0]).abs().max() > 0.1 and (translations[2] - motion.translations[2]).abs().max() > 0.1
    torch.testing.assert_close(rotations @ rotations.transpose(-1, -2), torch.eye(3).expand_as(rotations), atol=1e-5, rtol=0)
    (rotations.sum() + translations.sum()).backward()
    for gradient in (motion.turn.grad, motion.shift.grad):
        assert not gradient[1].any() and gradient[0].abs().max() > 0


# Rigidity


def test_rigidity_is_zero_under_rigid_motion():
    skeleton = capsule_skeleton(torch.float64)
    for angle in (0.0, 0.3, 3.0):
        turn = torch.from_numpy(Rotation.from_rotvec([0, angle, 0.5 * angle]).as_matrix())
        motion = rigid(skeleton.nodes, turn, torch.tensor([1.0, -2, 0.5], dtype=torch.float64))
        assert skeleton.rigidity(*motion).item() < 1e-20


def test_rigidity_of_a_stretch_is_the_known_one():
    """All nodes move apart by a tenth of their distance: the energy is the weighted mean squared edge length, in spacings, times 0.01."""
    skeleton = capsule_skeleton(torch.float64)
    rotations = torch.eye(3, dtype=torch.float64).expand(2, len(skeleton.nodes), 3, 3)
    translations = torch.stack([0.1 * skeleton.nodes, torch.zeros_like(skeleton.nodes)])
    squared = (skeleton.nodes[skeleton.edges[:, 0]] - skeleton.nodes[skeleton.edges[:, 1]]).square().sum(1)
    wanted = 0.01 * (squared * skeleton.edge_weights).sum() / skeleton.edge_weights.sum() / skeleton.spacing**2
    torch.testing.assert_close(skeleton.rigidity(rotations, translations), wanted / 2)  # half the frames are stretched


def test_a_node_that_turns_alone_mispredicts_its_neighbours_by_the_known_energy():
    """Rotated by 0.4 about z, it expects each neighbour |R e - e| away from where it is; the neighbours' own predictions stay right."""
    skeleton = capsule_skeleton(torch.float64)
    node, turn = int(skeleton.edges[:, 1].mode().values), torch.from_numpy(Rotation.from_rotvec([0, 0, 0.4]).as_matrix())
    rotations = torch.eye(3, dtype=torch.float64).repeat(1, len(skeleton.nodes), 1, 1)
    rotations[0, node] = turn
    mine = (skeleton.edges == node).any(1)
    rest = skeleton.nodes[skeleton.edges[mine, 0]] - skeleton.nodes[skeleton.edges[mine, 1]]
    error = ((rest @ turn.T - rest).square().sum(1) * skeleton.edge_weights[mine]).sum()
    assert {0, 1} <= set((skeleton.edges[mine] == node).int().argmax(1).tolist())  # it stands on either side of its edges
    wanted = error / (2 * skeleton.spacing**2 * skeleton.edge_weights.sum())
    torch.testing.assert_close(skeleton.rigidity(rotations, torch.zeros(1, len(skeleton.nodes), 3, dtype=torch.float64)), wanted)


def test_strains_that_are_to_be_kept_cost_nothing_and_changes_of_them_do():
    skeleton = capsule_skeleton(torch.float64)
    rotations = torch.eye(3, dtype=torch.float64).expand(1, len(skeleton.nodes), 3, 3)
    stretched = 0.1 * skeleton.nodes[None]
    kept = skeleton.strains(rotations, stretched)
    assert skeleton.rigidity(rotations, stretched).item() > 1e-3
    assert skeleton.rigidity(rotations, stretched, kept).item() == 0
    torch.testing.assert_close(skeleton.rigidity(rotations, 2 * stretched, kept), skeleton.rigidity(rotations, stretched))  # strains are linear in translations


# The live grid


def test_the_grid_holds_the_moved_surface_and_little_else(bent):
    skeleton, motion, space = bent
    for f in range(3):
        live = space.live[f]
        cell = ((live + 1) * 32).long()
        assert space.occupied[f, cell[:, 0], cell[:, 1], cell[:, 2]].all()
        assert (space.seed(live, torch.full((len(live),), f), 0) >= 0).all()
    assert space.occupied.float().mean() < 0.15
    assert (space.seeds[..., 0] >= 0).equal(space.occupied)


def test_the_seed_is_the_nearest_moved_vertex_of_the_cell(bent):
    _, _, space = bent
    centres = (space.occupied[2].nonzero()[::10] + 0.5) / 32 - 1
    vertex = space.seed(centres, torch.full((len(centres),), 2), 0)
    distance = torch.cdist(centres, space.live[2])
    torch.testing.assert_close(distance.gather(1, vertex[:, None])[:, 0], distance.min(1).values)


def test_a_point_off_the_grid_has_no_seed(bent):
    _, _, space = bent
    assert space.seed(torch.tensor([[0.95, 0.95, 0.95], [-3.0, 0, 0]]), torch.tensor([0, 1]), 0).tolist() == [-1, -1]


def test_a_subject_that_leaves_the_box_leaves_an_empty_grid_without_failing():
    skeleton = capsule_skeleton()
    motion = rigid(skeleton.nodes, torch.eye(3), torch.tensor([5.0, 0, 0]))
    assert not LiveSpace(skeleton, *motion, 16).occupied.any()


# The inverse


def cycle(skeleton, motion, space, points, anchors_of, frame):
    """Canonical points carried to live space, and what the inverse makes of them from the grid's seeds alone."""
    frames = torch.full((len(points),), frame)
    live, _ = blend_with_jacobian(points, skeleton.anchors[anchors_of], skeleton.nodes, skeleton.radii, *motion, frames)
    vertex = space.seed(live, frames, 0)
    assert (vertex >= 0).all()
    canonical, jacobian, converged = to_canonical(space, live, frames, vertex, *motion)
    return live, vertex, canonical, jacobian, converged


@pytest.mark.parametrize("frame", [0, 1, 2])
def test_the_inverse_undoes_a_known_bend(bent, frame):
    skeleton, motion, space = bent
    points, vertex = points_around(skeleton)
    frames = torch.full((len(points),), frame)
    live, _ = blend_with_jacobian(points, skeleton.anchors[vertex], skeleton.nodes, skeleton.radii, *motion, frames)
    canonical, _, converged = to_canonical(space, live, frames, vertex, *motion)
    assert converged.all()
    assert (canonical - points).norm(dim=1).max() < 1e-4


@pytest.mark.parametrize("frame", [0, 1, 2])
def test_from_the_grids_seeds_alone_vertices_return_to_where_they_came_from(bent, frame):
    """A seed next to the vertex may have other anchors: where the graph is coarse and bends strongly, they blend a little differently."""
    skeleton, motion, space = bent
    canonical, converged = (cycle(skeleton, motion, space, skeleton.vertices, torch.arange(len(skeleton.vertices)), frame)[i] for i in (2, 4))
    error = (canonical - skeleton.vertices).norm(dim=1).numpy()
    assert converged.float().mean() > 0.999
    assert np.median(error) < 1e-6 and np.percentile(error, 95) < 5e-4


@pytest.mark.parametrize("frame", [1, 2])
def test_the_inverse_is_exact_for_the_anchors_it_used(bent, frame):
    """W(x') = x to the solver's tolerance, whatever vertex the search started from."""
    skeleton, motion, space = bent
    points, vertex = points_around(skeleton)
    live, seed, canonical, jacobian, converged = cycle(skeleton, motion, space, points, vertex, frame)
    frames = torch.full((len(points),), frame)
    again, slope = blend_with_jacobian(canonical, skeleton.anchors[seed], skeleton.nodes, skeleton.radii, *motion, frames)
    assert (again - live).norm(dim=1)[converged].max() < 2e-5
    torch.testing.assert_close(jacobian, slope)


def test_frames_mixed_in_one_batch_are_solved_as_one_by_one(bent):
    skeleton, motion, space = bent
    live, frames = space.live.reshape(-1, 3), torch.arange(3).repeat_interleave(len(skeleton.vertices))
    shuffled = torch.randperm(len(live))
    together = to_canonical(space, live[shuffled], frames[shuffled], space.seed(live[shuffled], frames[shuffled], 0), *motion)[0]
    apart = torch.cat(
        [to_canonical(space, space.live[f], frames[frames == f], space.seed(space.live[f], frames[frames == f], 0), *motion)[0] for f in range(3)]
    )
    torch.testing.assert_close(together, apart[shuffled], atol=1e-6, rtol=0)


def test_no_points_are_no_special_case(bent):
    _, motion, space = bent
    canonical, jacobian, converged = to_canonical(space, torch.zeros(0, 3), torch.zeros(0).long(), torch.zeros(0).long(), *motion)
    assert canonical.shape == (0, 3) and jacobian.shape == (0, 3, 3) and converged.shape == (0,)


def test_a_point_that_no_canonical_point_reaches_is_said_not_to_converge_and_pulls_nothing(bent):
    skeleton, motion, space = bent
    motion = tuple(m.clone().requires_grad_() for m in motion)
    collapsed = (motion[0] * 0, motion[1])  # every node's neighbourhood shrinks to a point
    x = space.live[1, :1] + torch.tensor([[0.4, 0.1, 0.3]])
    canonical, _, converged = to_canonical(space, x, torch.tensor([1]), torch.tensor([0]), *collapsed)
    assert not converged.any()
    canonical.sum().backward()
    assert not motion[1].grad.any()


def test_gradients_by_the_motion_agree_with_finite_differences():
    """Implicit function theorem against re-solving with a slightly other motion, in double precision."""
    skeleton = capsule_skeleton(torch.float64)
    rotations, translations = (m.requires_grad_() for m in tensors(*bending(skeleton.nodes.numpy(), AMOUNTS), dtype=torch.float64))
    space = LiveSpace(skeleton, rotations.detach(), translations.detach(), 32)
    vertex = torch.randint(len(skeleton.vertices), (20,))
    frame = torch.arange(20) % 2 + 1
    x = space.live[frame, vertex] + (torch.rand(20, 3, dtype=torch.float64) - 0.5) * 0.04
    weight = torch.randn(20, 3, dtype=torch.float64)
    canonical, _, converged = to_canonical(space, x, frame, vertex, rotations, translations)
    assert converged.all()
    (canonical * weight).sum().backward()

    def solved(r, t):
        args = (skeleton.anchors[vertex], skeleton.nodes, skeleton.radii, r, t, frame)
        return (inverse(x, canonical.detach(), *args, iterations=20, tolerance=1e-13)[0] * weight).sum()

    node = skeleton.anchors[vertex[0], 0]
    for axis in range(3):
        step = torch.zeros_like(translations)
        step[1, node, axis] = 1e-5
        slope = (solved(rotations.detach(), translations.detach() + step) - solved(rotations.detach(), translations.detach() - step)) / 2e-5
        torch.testing.assert_close(translations.grad[1, node, axis], slope, rtol=1e-3, atol=1e-5)
        step = torch.zeros_like(rotations)
        step[1, node, axis, 1] = 1e-5
        slope = (solved(rotations.detach() + step, translations.detach()) - solved(rotations.detach() - step, translations.detach())) / 2e-5
        torch.testing.assert_close(rotations.grad[1, node, axis, 1], slope, rtol=1e-3, atol=1e-5)
    assert not translations.grad[0].any()  # no point asked for that frame


# Touching limbs


@functools.cache
def bars_skeleton():
    return skeleton_of(*bars(0.3, 0.025), max_nodes=30)


def touching(gap):
    """Two bars 0.3 apart at rest; in frame 1 they stand `gap` apart, off the grid's planes. Skeleton, motion, live grid of 64 cells."""
    skeleton = bars_skeleton()
    translations = torch.zeros(2, len(skeleton.nodes), 3)
    translations[1, :, 0] = MIDDLE - (0.15 - gap / 2) * torch.sign(skeleton.nodes[:, 0])
    rotations = torch.eye(3).expand(2, len(skeleton.nodes), 3, 3).contiguous()
    return skeleton, (rotations, translations), LiveSpace(skeleton, rotations, translations, 64)


@pytest.mark.parametrize("gap", [0.0, 0.01, 0.03, 0.06])
def test_between_limbs_that_come_close_the_grid_knows_the_nearer_one(gap):
    """Cells of 0.03 whose centre lies nearer to one limb still know the other, however dense the mesh."""
    skeleton, _, space = touching(gap)
    x = (torch.rand(3000, 3) - 0.5) * torch.tensor([gap + 0.08, 0.9, 0.16])
    nearer = torch.sign(x[:, 0])
    frame = torch.ones(len(x), dtype=torch.int64)
    seeds = [space.seed(x + torch.tensor([MIDDLE, 0, 0]), frame, which) for which in (0, 1)]
    known = [(seed >= 0) & (torch.sign(skeleton.vertices[seed.clamp_min(0), 0]) == nearer) for seed in seeds]
    assert not known[0].all()
    assert (known[0] | known[1]).all()


def test_limbs_that_are_apart_have_no_second_seed():
    _, _, space = touching(0.01)
    assert not (space.seeds[0, ..., 1] >= 0).any()


def test_each_limb_is_inverted_to_itself_where_they_touch():
    skeleton, motion, space = touching(0.01)
    frame = torch.ones(len(skeleton.vertices), dtype=torch.int64)
    best = torch.full((len(skeleton.vertices),), torch.inf)
    for which in (0, 1):
        vertex = space.seed(space.live[1], frame, which)
        canonical = to_canonical(space, space.live[1], frame, vertex.clamp_min(0), *motion)[0]
        best = torch.where(vertex >= 0, torch.minimum(best, (canonical - skeleton.vertices).norm(dim=1)), best)
    assert best.max() < 1e-4


@pytest.mark.parametrize("side", [-1.0, 1.0])
def test_beside_a_limb_there_is_not_what_it_hung_next_to_at_rest(side):
    """Two bars 0.12 apart at rest have come apart: beside either, as far as the other was, its motion leads back to the other."""
    skeleton = skeleton_of(*bars(0.12, 0.025), max_nodes=30)
    translations = torch.zeros(1, len(skeleton.nodes), 3)
    translations[0, :, 0] = 0.3 * torch.sign(skeleton.nodes[:, 0])
    rotations = torch.eye(3).expand(1, len(skeleton.nodes), 3, 3).contiguous()
    space = LiveSpace(skeleton, rotations, translations, 64)
    own = (skeleton.vertices[:, 0] - side * 0.06).abs() < 1e-4  # of one bar, what looks at the other
    frame = torch.zeros(int(own.sum()), dtype=torch.int64)
    live, rest = space.live[0][own], skeleton.vertices[own]
    assert space.belongs(live, frame, rest).all()
    there = torch.tensor([-side * 0.12, 0.0, 0.0])  # from this bar to the other at rest
    assert not space.belongs(live + there, frame, rest + there).any()
    between = there * 0.15
    assert space.belongs(live + between, frame, rest + between).float().mean() > 0.9


def test_far_from_the_rest_surface_nothing_belongs():
    _, _, space = touching(0.06)
    x = torch.tensor([[0.9, 0.9, 0.9]])
    assert not space.belongs(x, torch.ones(1, dtype=torch.int64), x)


def test_a_single_node_cannot_strain():
    skeleton = capsule_skeleton()
    alone = Skeleton(skeleton.nodes[:1], skeleton.radii[:1], skeleton.edges[:0], skeleton.edge_weights[:0], 1.0, skeleton.vertices, skeleton.anchors * 0)
    translations = torch.ones(2, 1, 3, requires_grad=True)
    energy = alone.rigidity(torch.eye(3).expand(2, 1, 3, 3), translations)
    energy.backward()
    assert float(energy) == 0 and translations.grad.abs().max() == 0
