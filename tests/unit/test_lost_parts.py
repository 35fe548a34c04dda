"""Parts that turn farther than closest points can follow: noticed by their colours, found again, and said where they are not."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from instant_nk.fitting import lost_parts, registration_sequence
from instant_nk.fitting.correspondences import Target
from instant_nk.fitting.deformation_solver import Body, Pose
from instant_nk.fitting.lost_parts import contradiction
from instant_nk.fitting.registration import Options, judge, register_from
from instant_nk.fitting.registration_sequence import register_sequence
from instant_nk.geometry import surface
from instant_nk.geometry.rotations import so3_exp
from instant_nk.io.motion import DOUBT, Motion
from instant_nk.io.observation import Observation
from instant_nk.models import deformation_graph
from tests.unit.shapes import mesh_of, sphere, tube

OPTIONS = Options()
TURN = np.radians(130)


def head_and_stick():
    """A nearly round head on a stick, with a dark nose in front and grey below; its vertices, faces, which are the head's, and its colours."""
    ball, ball_faces = sphere(0.4, 24)
    ball = ball[:, [1, 0, 2]] * [1, 0.8, 0.95]
    nose = ball[:, 2] > 0.3
    ball = np.where(nose[:, None], ball * [1, 1, 1.3], ball)
    stick, stick_faces = tube(1.2, 0.15)
    vertices, faces = np.concatenate([ball + [0.6, 0.5, 0], stick]), np.concatenate([ball_faces[:, ::-1], stick_faces + len(ball)])
    head = np.arange(len(vertices)) < len(ball)
    colours = np.where((head & (vertices[:, 1] < 0.35))[:, None], 0.75, np.array([0.9, 0.7, 0.3]))
    colours[: len(ball)][nose] = 0.1
    return vertices, faces, head, colours


def posed(vertices, head, angle):
    """The head turned about the upright axis through it."""
    turn = so3_exp(torch.tensor([0.0, angle, 0.0], dtype=torch.float64)).numpy()
    pivot = np.array([0.6, 0.5, 0.0])
    return np.where(head[:, None], (vertices - pivot) @ turn.T + pivot, vertices)


def seen(live, faces, colours, seed=1):
    """Random points of a posed mesh with their colours."""
    face, bary = surface.sample(live, faces, 4000, seed)
    points, colours = ((x[faces[face]] * bary[..., None]).sum(1).astype(np.float32) for x in (live, colours))
    ones = np.ones(len(points), np.float32)
    return Observation(points, surface.face_normals(live, faces)[face].astype(np.float32), colours, ones, np.full(len(points), 3, np.int32), ones == 0)


def make_body(vertices, faces, colours, device="cpu"):
    graph = deformation_graph.build(vertices, faces, max_nodes=150)
    return Body.from_mesh(graph, dataclasses.replace(mesh_of(vertices, faces), colours=colours.astype(np.float32)), 2000, device)


def target_of(body, observation: Observation):
    return Target.from_observation(observation, 2000, OPTIONS.colour * body.spacing, OPTIONS.normal * body.spacing, str(body.points.device))


def head_errors(body, pose, head, vertices, angle):
    """Of the body's points on the head, in % of the diagonal."""
    points = body.points.cpu()
    on_head = head[torch.cdist(points, torch.tensor(vertices)).argmin(1).numpy()]
    wanted = posed(points.numpy(), on_head, angle)
    return 100 * np.linalg.norm(body.warp(pose).cpu().numpy() - wanted, axis=1)[on_head] / np.linalg.norm(np.ptp(vertices, axis=0))


@pytest.fixture(scope="module")
def turning():
    """A clip in which the head turns by 130 degrees between frames 1 and 2."""
    vertices, faces, head, colours = head_and_stick()
    angles = [0.0, 0.05, TURN, TURN + 0.05]
    body = make_body(vertices, faces, colours)

    def observe(frame, colours=colours):
        return target_of(body, seen(posed(vertices, head, angles[frame]), faces, colours, seed=frame))

    return body, observe, vertices, head, angles


def test_a_head_that_turns_at_once_is_found(turning, monkeypatch):
    body, observe, vertices, head, angles = turning
    fits = register_sequence(body, [0, 1, 2, 3], 0, observe, OPTIONS)
    found = [head_errors(body, fits[f].pose, head, vertices, angles[f]).mean() for f in range(4)]
    assert max(found) < 2.0, found
    monkeypatch.setattr(registration_sequence.lost_parts, "search", lambda body, fit, *_: fit)
    without = register_sequence(body, [0, 1, 2, 3], 0, observe, OPTIONS)
    assert head_errors(body, without[2].pose, head, vertices, angles[2]).mean() > 8.0
    assert contradiction(body, without[2].pose, observe(2)) > DOUBT > 2 * contradiction(body, fits[2].pose, observe(2))


def test_nothing_contradicts_what_is_followed(turning):
    body, observe, *_ = turning
    fits = register_sequence(body, [0, 1], 0, observe, OPTIONS)
    assert all(fit.contradicted < lost_parts.LEAST for fit in fits.values())


def test_a_lost_frame_does_not_hide_the_turn_after_it(turning):
    body, observe, vertices, head, angles = turning

    def with_rubbish(frame):
        target = observe(frame)
        return dataclasses.replace(target, points=target.points + 5 * torch.rand_like(target.points)) if frame == 1 else target

    fits = register_sequence(body, [0, 1, 2], 0, with_rubbish, OPTIONS)
    assert not fits[1].converged and fits[1].contradicted > DOUBT
    assert head_errors(body, fits[2].pose, head, vertices, angles[2]).mean() < 2.0


def test_two_parts_are_found_one_after_the_other():
    vertices, faces, head, colours = head_and_stick()
    apart = np.array([0.0, 0.0, 3.0])
    both, mirror = np.concatenate([vertices, vertices + apart]), np.concatenate([faces, faces + len(vertices)])
    body = make_body(both, mirror, np.concatenate([colours, colours]))
    live = np.concatenate([posed(vertices, head, TURN), posed(vertices, head, -TURN) + apart])
    target = target_of(body, seen(live, mirror, np.concatenate([colours, colours])))
    rest = Pose.identity(body)
    fit = lost_parts.search(body, register_from(body, [rest], target, OPTIONS), rest, 0.0, target, OPTIONS, None)
    nearest = torch.cdist(body.points, torch.tensor(both)).argmin(1).numpy()
    first, on_head = nearest < len(vertices), head[nearest % len(vertices)]
    points = body.points.numpy() - np.where(first[:, None], 0, apart)
    wanted = np.where(first[:, None], posed(points, on_head, TURN), posed(points, on_head, -TURN) + apart)
    error = 100 * np.linalg.norm(body.warp(fit.pose).numpy() - wanted, axis=1) / np.linalg.norm(np.ptp(vertices, axis=0))
    assert error[first & on_head].mean() < 2.0 and error[~first & on_head].mean() < 2.0


def test_only_a_clear_gain_is_kept(turning):
    body, observe, *_ = turning
    target = observe(0)
    good = lost_parts.judged(body, Pose.identity(body), target)
    bad = lost_parts.judged(body, Pose.identity(body).moved(torch.eye(3).double(), torch.tensor([0.1, 0, 0]).double(), body.nodes), target)
    bad = dataclasses.replace(bad, converged=True)
    assert lost_parts.improves(body, good, bad, target) and not lost_parts.improves(body, bad, good, target)
    assert not lost_parts.improves(body, good, good, target)
    assert not lost_parts.improves(body, dataclasses.replace(good, converged=False), bad, target)


def test_what_a_frame_is_found_again_from_depends_on_what_was_lost(turning, monkeypatch):
    """Frame 3 lost altogether, between frames that are followed but contradicted: those serve. Frame 2 contradicted: only what is good beyond it does."""
    body, observe, *_ = turning
    fit = lost_parts.judged(body, Pose.identity(body), observe(0))
    doubt, lost = dataclasses.replace(fit, contradicted=0.5), dataclasses.replace(fit, converged=False, contradicted=0.9)
    asked = {}
    monkeypatch.setattr(registration_sequence, "_find_again", lambda body, good, frame, fits, *_: asked.update({frame: good}) or fits[frame])
    monkeypatch.setattr(lost_parts, "contradiction", lambda *_: 0.5)
    known = {0: fit, 1: doubt, 2: doubt, 3: lost, 4: doubt}
    register_sequence(body, [0, 1, 2, 3, 4], 0, lambda frame: observe(0), OPTIONS, known=known)
    assert asked == {3: [0, 1, 2, 4]}
    asked.clear()
    register_sequence(body, [0, 1, 2, 3, 4], 0, lambda frame: observe(0), OPTIONS, known=known | {4: fit})
    assert asked[2] == [0, 4] and asked[3] == [0, 1, 2, 4]


def test_what_cannot_be_found_is_in_doubt(turning):
    body, observe, vertices, head, angles = turning
    strange = np.where(head[:, None], [0.1, 0.2, 0.9], [0.9, 0.7, 0.3])  # another head
    fits = register_sequence(body, [0, 1], 0, lambda f: observe(f) if f == 0 else observe(f, strange), OPTIONS)
    assert fits[1].contradicted > 0.3 and fits[0].contradicted < lost_parts.LEAST
    assert head_errors(body, fits[1].pose, head, vertices, angles[1]).mean() < 8.0  # and nothing was flung about for it


def test_beyond_the_rim_of_what_was_observed_nothing_contradicts(turning):
    body, observe, *_ = turning
    rest, whole = Pose.identity(body), observe(0)
    low = whole.points[:, 1] < 0.4
    cut = whole.only(torch.nonzero(low)[:, 0])
    assert contradiction(body, rest, cut) > 0.2
    rim = dataclasses.replace(cut, usable=cut.points[:, 1] < 0.2)
    assert contradiction(body, rest, rim) < 0.02


def test_a_part_is_cut_off_where_few_links_hold_it():
    """A chain of two clusters of ten nodes each with one link between them."""
    pairs = [(i, j) for c in (0, 10) for i in range(c, c + 10) for j in range(i + 1, c + 10)] + [(9, 10)]
    cuts = lost_parts._easy_cuts(np.arange(20), np.array(pairs), np.ones(len(pairs)), 3)
    assert cuts[0] == 10


def test_the_search_is_not_repeated_where_it_found_nothing(turning, monkeypatch):
    body, observe, *_ = turning
    calls = []
    monkeypatch.setattr(lost_parts, "_other_orientations", lambda *_: calls.append(1) or [])
    fits = register_sequence(body, [0, 1, 2, 3], 0, observe, OPTIONS)
    assert len(calls) == 1 and fits[3].contradicted > DOUBT  # at frame 2; frame 3 is contradicted no more than it


def test_a_part_that_is_right_on_the_other_side_is_taken_from_there(turning, monkeypatch):
    """Frame 1 is known wrongly, with the head still unturned, and frame 2 rightly: the search is left out, so only frame 2 can help."""
    body, _, vertices, head, _ = turning
    angles = [0.0, TURN - 0.1, TURN]

    def observe(frame):
        return target_of(body, seen(posed(vertices, head, angles[frame]), head_and_stick()[1], head_and_stick()[3], seed=frame))

    after = register_sequence(body, [0, 2], 0, observe, OPTIONS)
    assert head_errors(body, after[2].pose, head, vertices, TURN).mean() < 1.0
    wrong = judge(body, Pose.identity(body), observe(1))
    wrong = dataclasses.replace(wrong, converged=True, contradicted=contradiction(body, wrong.pose, observe(1)))
    monkeypatch.setattr(lost_parts, "_other_orientations", lambda *_: [])
    fits = register_sequence(body, [0, 1, 2], 0, observe, OPTIONS, known={**after, 1: wrong})
    assert wrong.contradicted > DOUBT and head_errors(body, fits[1].pose, head, vertices, angles[1]).mean() < 1.0
    assert fits[1].contradicted < DOUBT


def test_doubtful_are_the_lost_and_the_contradicted():
    numbers = np.zeros(3, np.float32)
    turns = np.tile(np.eye(3, dtype=np.float32), (3, 1, 1, 1))
    motion = Motion(
        np.arange(3, dtype=np.int32), turns, np.zeros((3, 1, 3), np.float32), np.array([True, False, True]), *[numbers] * 3, np.float32([0, 0, 0.05])
    )
    assert motion.doubtful.tolist() == [False, True, True]
