"""Motion made of known bones and blends: what the decomposition says of it, and of the same motion with noise."""

from __future__ import annotations

import numpy as np
import torch

from instant_nk.fitting.skinning_decomposition import decompose, follow
from instant_nk.geometry.rotations import project_to_so3, so3_exp

ARM = 0.1


def arm_of_three(frames=8, nodes=90, seed=0):
    """A bar whose three parts turn about two joints, with blends beside the joints: nodes, and their rotations and translations by frame."""
    rng = np.random.default_rng(seed)
    places = np.stack([np.linspace(0, 3, nodes), *(0.2 * rng.standard_normal((2, nodes)))], 1)
    first, second = np.clip((places[:, 0] - 0.9) / 0.2, 0, 1), np.clip((places[:, 0] - 1.9) / 0.2, 0, 1)
    weights = np.stack([1 - first, first - second, second], 1)
    turns, shifts = [], []
    for frame in range(frames):
        angle = 0.9 * np.sin(0.7 * frame), 0.8 * np.sin(1.1 * frame + 1)
        bend = [so3_exp(torch.tensor([0, 0, a], dtype=torch.float64)).numpy() for a in angle]
        at_elbow, at_wrist = np.array([1.0, 0, 0]), np.array([2.0, 0, 0])
        bones = [(np.eye(3), np.zeros(3)), (bend[0], at_elbow - bend[0] @ at_elbow)]
        outer = bend[0] @ bend[1]
        bones.append((outer, bones[1][0] @ at_wrist + bones[1][1] - outer @ at_wrist))
        rotation = np.stack([r for r, _ in bones])
        live = np.einsum("mk,kij,mj->mi", weights, rotation, places) + weights @ np.stack([t for _, t in bones])
        turns.append(project_to_so3(torch.from_numpy(np.einsum("mk,kij->mij", weights, rotation))).numpy())
        shifts.append(live - places)
    return places, np.stack(turns), np.stack(shifts)


def away(skinning, nodes, shifts):
    """RMS distance of the nodes under the bones to where they went."""
    moved = np.einsum("mk,fkij,mj->fmi", skinning.weights, skinning.rotations, nodes) + np.einsum("mk,fki->fmi", skinning.weights, skinning.translations)
    return float(np.sqrt(((moved - nodes - shifts) ** 2).sum(-1).mean()))


def test_three_bones_are_found_with_their_blends():
    nodes, turns, shifts = arm_of_three()
    found = decompose(nodes, turns, shifts, ARM, 3)
    assert away(found, nodes, shifts) < 2e-3
    assert np.allclose(found.weights.sum(1), 1) and (found.weights >= 0).all()
    whole = np.abs(nodes[:, 0, None] - [1.0, 2.0]).min(1) > 0.2
    assert (found.weights[whole].max(1) > 0.97).all()
    assert np.allclose(found.rotations @ found.rotations.swapaxes(-1, -2), np.eye(3), atol=1e-12)


def test_a_rigid_body_needs_one_bone():
    nodes, turns, shifts = arm_of_three()
    turns, shifts = np.repeat(turns[:, -1:], len(nodes), 1), np.einsum("fij,mj->fmi", turns[:, -1], nodes) - nodes
    assert away(decompose(nodes, turns, shifts, ARM, 1), nodes, shifts) < 1e-9
    assert away(decompose(nodes, turns, shifts, ARM, 8), nodes, shifts) < 1e-6


def test_noise_of_single_frames_is_left_out():
    nodes, turns, shifts = arm_of_three()
    noise = 0.05 * np.random.default_rng(1).standard_normal(shifts.shape)
    found = decompose(nodes, turns, shifts + noise, ARM, 3)
    assert away(found, nodes, shifts) < 0.4 * np.sqrt((noise**2).sum(-1).mean())


def test_bones_of_a_frame_that_was_not_learnt_from_follow_from_the_weights():
    nodes, turns, shifts = arm_of_three(frames=10)
    learnt = decompose(nodes, turns[::2], shifts[::2], ARM, 3)
    assert away(follow(nodes, turns[1::2], shifts[1::2], ARM, learnt.weights), nodes, shifts[1::2]) < 5e-3


def test_few_nodes_and_more_bones_than_they_allow():
    nodes, turns, shifts = arm_of_three(nodes=5)
    found = decompose(nodes, turns, shifts, ARM, 40)
    assert found.weights.shape == (5, 1) and np.isfinite(found.translations).all()
