"""The inverse warp judged: exact where the published blend of inverses is not, on known motions; in the mesh stage's and the report's numbers."""

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from instant_nk.io.metrics import StageCost
from instant_nk.models.warp import LiveSpace, blended_inverse, inverse_quality
from instant_nk.stages import report_scores
from tests.unit import neural_fixtures
from tests.unit.neural_fixtures import WINDOWS, bars, bending, capsule_skeleton, numbers, rigid, skeleton_of

TURN = torch.from_numpy(Rotation.from_rotvec([0.2, -0.4, 0.7]).as_matrix()).float()


def judge(skeleton, motion, index=0, resolution=64):
    return inverse_quality(LiveSpace(skeleton, *motion, resolution), *motion, index, torch.Generator().manual_seed(0))


def test_of_a_rigid_motion_both_ways_back_are_exact():
    skeleton = capsule_skeleton()
    found = judge(skeleton, rigid(skeleton.nodes, TURN, torch.tensor([0.1, -0.05, 0.08])))
    assert found.converged.all() and found.cycle.max() < 1e-5 and found.blended.max() < 1e-5
    assert len(found.cycle) == len(skeleton.vertices)


@pytest.mark.parametrize("amount", [0.5, 1.0, 2.0])
def test_of_a_bend_only_the_exact_inverse_is_exact(amount):
    skeleton = capsule_skeleton()
    motion = [torch.tensor(m, dtype=torch.float32) for m in bending(skeleton.nodes.numpy(), [0.0, amount])]
    found = judge(skeleton, motion, index=1)
    assert found.converged.float().mean() > 0.99 and found.cycle.median() < 1e-5
    assert found.blended.median() > 50 * found.cycle.median() and found.blended.median() > 5e-4 * amount
    still = judge(skeleton, motion, index=0)
    assert still.blended.max() < 1e-5  # at rest there is nothing to invert


def test_a_bar_that_has_come_close_bleeds_into_the_blend_but_not_into_the_inverse():
    vertices, faces = bars(0.5)
    skeleton = skeleton_of(vertices, faces, max_nodes=40)
    right = skeleton.nodes[:, 0] > 0
    translations = torch.zeros(1, len(skeleton.nodes), 3)
    translations[0, right, 0] = -0.45  # a gap of 0.05 remains
    motion = torch.eye(3).repeat(1, len(skeleton.nodes), 1, 1), translations
    found = judge(skeleton, motion)
    assert found.converged.float().mean() > 0.99 and (found.cycle < 1e-4).float().mean() > 0.97
    assert (found.blended > 0.02).float().mean() > 0.1  # points that the other bar's nodes have drawn away


def test_the_blended_inverse_is_the_weighted_mean_of_the_nodes_inverse_motions():
    skeleton = capsule_skeleton(torch.float64)
    rotations, translations = (torch.tensor(m) for m in bending(skeleton.nodes.numpy(), [1.0]))
    x = skeleton.vertices[:5] + translations.mean(1)
    live, expected = skeleton.nodes + translations[0], []
    for point in x:
        near = (live - point).norm(dim=1).argsort()[: skeleton.anchors.shape[1]]
        weight = (1 - ((point - live[near]).norm(dim=1) / skeleton.radii[near]) ** 2).clamp_min(0) ** 3
        back = torch.stack([rotations[0, k].T @ (point - live[k]) + skeleton.nodes[k] for k in near])
        expected.append((weight[:, None] * back).sum(0) / weight.sum())
    torch.testing.assert_close(blended_inverse(skeleton, x, rotations[0], translations[0]), torch.stack(expected))


# Numbers


@pytest.fixture(scope="module")
def body(tmp_path_factory):
    return neural_fixtures.finished(tmp_path_factory.getbasetemp())


def test_the_mesh_stage_tells_how_good_the_inverse_is(body):
    for window in WINDOWS:
        said = numbers(body.job.paths.mesh_window(window).with_suffix(".json"))
        assert said["inverse_cycle_median"] <= 1e-4 and said["inverse_unconverged_share"] <= 0.01
        assert said["blended_inverse_cycle_median"] > 3 * said["inverse_cycle_median"]


def test_the_report_averages_over_windows_and_says_null_without_any(body):
    cost = StageCost("mesh")
    for window in WINDOWS:
        cost.add(window, numbers(body.job.paths.mesh_window(window).with_suffix(".json")))
    cost.add("metrics", {"wall_s": 1.0, "seam_step_pct": 0.1})
    summary = report_scores.of_inverse(cost).summary
    each = [numbers(body.job.paths.mesh_window(window).with_suffix(".json"))["blended_inverse_cycle_median"] for window in WINDOWS]
    assert summary["blended_inverse_cycle_median"] == pytest.approx(np.mean(each))
    assert set(report_scores.of_inverse(StageCost("mesh")).summary.values()) == {None}
