"""A bending tube whose frames are known: fits are disturbed, each its own way, and brought into agreement again."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from instant_nk.fitting import registration_agreement
from instant_nk.fitting.correspondences import Target
from instant_nk.fitting.deformation_solver import Body, Pose
from instant_nk.fitting.registration import Options, judge, register_from
from instant_nk.fitting.registration_agreement import _guides, settle_sequence
from instant_nk.models import deformation_graph
from tests.unit.shapes import bent, mesh_of, observed, tube

OPTIONS = Options()


@pytest.fixture(scope="module")
def sequence():
    """Body, targets, vertices by frame and fits of a grey tube, which nothing holds along itself but its ends."""
    vertices, faces = tube()
    body = Body.from_mesh(deformation_graph.build(vertices, faces, max_nodes=100), mesh_of(vertices, faces), 1200)
    live = {frame: bent(vertices, np.radians(12 * frame)) for frame in range(6)}

    def target(frame):
        return Target.from_observation(observed(live[frame], faces, vertices, seed=frame), 1200, OPTIONS.colour * body.spacing, OPTIONS.normal * body.spacing)

    targets = {frame: target(frame) for frame in live}
    fits = {0: judge(body, Pose.identity(body), targets[0])}
    for frame in range(1, 6):
        fits[frame] = register_from(body, [fits[frame - 1].pose], targets[frame], OPTIONS)
    return body, targets, fits


def disturbed(body, fits, targets, amount, seed=0):
    """Nodes moved along the tube, each by another amount at every frame."""
    generator, result = torch.Generator().manual_seed(seed), dict(fits)
    for frame, fit in fits.items():
        if frame:
            slide = amount * body.spacing * torch.randn(len(body.nodes), 1, generator=generator, dtype=torch.float64)
            result[frame] = judge(body, Pose(fit.pose.rotations, fit.pose.translations + slide * fit.pose.rotations[:, :, 0]), targets[frame])
    return result


def wander(body, fits, others):
    """Mean distance between the surface points of two sequences of fits, in node spacings."""
    return float(np.mean([(body.warp(fits[f].pose) - body.warp(others[f].pose)).norm(dim=-1).mean() for f in fits if f])) / body.spacing


def test_the_parts_leave_out_what_wanders_in_each_frame_its_own_way(sequence, monkeypatch):
    body, targets, fits = sequence
    monkeypatch.setattr(registration_agreement, "BONES", len(body.nodes) // 12)  # nodes to a part as in a usual graph
    moved = disturbed(body, fits, targets, 0.3)
    guides, undisturbed = (dict(_guides(body, {f: fit.pose for f, fit in some.items()})) for some in (moved, fits))
    before = wander(body, moved, fits)
    after = np.mean([(guides[f].positions - undisturbed[f].positions).norm(dim=-1).mean() for f in fits if f]) / body.spacing
    bias = np.mean([(undisturbed[f].positions - body.warp(fits[f].pose)).norm(dim=-1).mean() for f in fits if f]) / body.spacing
    assert before > 0.1
    assert after < 0.9 * before
    assert bias < before  # and what they say is where the surface is
    assert all(bool((guide.weight > 0).all()) and bool((guide.weight <= 1).all()) for guide in guides.values())


def test_settling_brings_disturbed_frames_closer_and_leaves_the_canonical_one(sequence):
    body, targets, fits = sequence
    moved = disturbed(body, fits, targets, 0.3)
    calls = []
    settled = settle_sequence(body, moved, 0, targets.__getitem__, OPTIONS, done=calls.append)
    assert wander(body, settled, fits) < 0.9 * wander(body, moved, fits)
    assert settled[0] is moved[0]
    assert calls == list(range(1, 7))
    assert all(fit.converged for fit in settled.values())


def test_a_frame_that_was_not_found_stays_as_it_is(sequence):
    body, targets, fits = sequence
    lost = {**fits, 3: replace(fits[3], converged=False)}
    calls = []
    settled = settle_sequence(body, lost, 0, targets.__getitem__, OPTIONS, done=calls.append)
    assert calls[-1] == len(lost)
    assert settled[3] is lost[3] and settled[2] is not lost[2]


def test_too_few_frames_say_nothing_of_each_other(sequence):
    body, targets, fits = sequence
    few = {f: fits[f] for f in range(3)}
    assert settle_sequence(body, few, 0, targets.__getitem__, OPTIONS) is few


def test_frames_beyond_those_learnt_from_are_guided_too(sequence, monkeypatch):
    from instant_nk.fitting import registration_agreement

    monkeypatch.setattr(registration_agreement, "LEARNT_FRAMES", 4)
    body, _, fits = sequence
    guides = dict(_guides(body, {f: fit.pose for f, fit in fits.items()}))
    assert sorted(guides) == sorted(fits)
    assert max(float((guides[f].positions - body.warp(fits[f].pose)).norm(dim=-1).mean()) for f in fits) < 0.2 * body.spacing
