"""What images say of motion along a surface: a painted ball that turns about itself, which its surface and outline do not show."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from instant_nk.fitting import correspondences, deformation_solver, image_evidence, registration
from instant_nk.fitting.deformation_solver import Body, Evidence, Pose, edge_weights, step
from instant_nk.fitting.frame_images import Views, load_images
from instant_nk.fitting.image_evidence import Shell, add_colours, look, remember
from instant_nk.geometry.rasterize import interpolate, rasterize
from instant_nk.geometry.rotations import so3_exp
from instant_nk.models import deformation_graph
from tests.unit.shapes import mesh_of, observed, sphere
from tests.unit.test_solver_loops import Questions

SIDE, ANGLE = 120, 0.06  # pixels; radians that the ball has turned by
K = torch.tensor([[1.6 * SIDE, 0, SIDE / 2], [0, 1.6 * SIDE, SIDE / 2], [0, 0, 1.0]], dtype=torch.float64)


def cameras(count=4):
    """World-to-camera matrices around the y axis, two units away and looking at the middle."""
    result = []
    for angle in torch.arange(count) * 2 * torch.pi / count:
        c, s = torch.cos(angle), torch.sin(angle)
        matrix = torch.eye(4, dtype=torch.float64)
        matrix[:3, :3] = torch.tensor([[c, 0, -s], [0, -1, 0], [-s, 0, -c]])
        matrix[2, 3] = 2
        result.append(matrix)
    return torch.stack(result)


@pytest.fixture(scope="module")
def scene():
    """The ball hung on a graph, and its views."""
    vertices, faces = sphere(rings=24)
    graph, mesh = deformation_graph.build(vertices, faces, max_nodes=40), mesh_of(vertices, faces)
    views = Views(list(range(4)), cameras(), K.expand(4, 3, 3), [(SIDE, SIDE)] * 4, [1] * 4)
    return SimpleNamespace(mesh=mesh, body=Body.from_mesh(graph, mesh, 800), shell=Shell.from_mesh(graph, mesh), views=views)


def images(scene, turn, noise=0.0):
    """What the views see of the ball turned by a rotation [3, 3], every pixel off by `noise` at random."""
    random = np.random.default_rng(0)

    def image(camera, frame):
        faces = torch.from_numpy(scene.mesh.faces)
        seen = rasterize(torch.from_numpy(scene.mesh.vertices).double() @ turn.T, faces, scene.views.w2c[camera], K, (SIDE, SIDE))
        colours = interpolate(seen, faces, torch.from_numpy(scene.mesh.colours)).numpy() + random.normal(0, noise, (SIDE, SIDE, 3))
        alpha = (seen.face_index >= 0).numpy()[..., None]
        return np.round(255 * np.concatenate([colours.clip(0, 1) * alpha, alpha], -1)).astype(np.uint8)

    return load_images(SimpleNamespace(image=image), scene.views, 0)


def turned():
    return so3_exp(torch.tensor([[ANGLE, 0.5 * ANGLE, 0]], dtype=torch.float64))[0]


def colours_at(scene, pose, pictures, appearance):
    evidence = Evidence.none(scene.body)
    typical = add_colours(evidence, scene.body, pose, scene.views, look(scene.body, scene.shell, pose, scene.views), pictures, appearance, 0, 1.0)
    return evidence, typical


def test_colours_show_how_a_ball_has_turned(scene):
    body, rest = scene.body, Pose.identity(scene.body)
    appearance = remember(body, look(body, scene.shell, rest, scene.views), scene.views, images(scene, torch.eye(3, dtype=torch.float64)), rest)
    live, pose = images(scene, turned()), rest
    wrong = (body.points @ turned().T - body.points).norm(dim=-1).mean()
    for _ in range(8):
        evidence, _ = colours_at(scene, pose, live, appearance)
        pose, _ = step(body, pose, evidence, edge_weights(body, pose, 0.1, 0.5))
    left = (body.points @ turned().T - body.warp(pose)).norm(dim=-1)
    assert left.mean() < 0.1 * wrong


@pytest.mark.parametrize("noise, least, most", ((0.0, 1.0, 4.0), (0.12, 0.0625, 0.9), (0.5, 0.0625, 0.0626)))
def test_colours_weigh_by_how_well_they_agree(scene, monkeypatch, noise, least, most):
    body, rest = scene.body, Pose.identity(scene.body)
    appearance = remember(body, look(body, scene.shell, rest, scene.views), scene.views, images(scene, torch.eye(3, dtype=torch.float64)), rest)
    live = images(scene, so3_exp(torch.tensor([[0.1 * ANGLE, 0, 0]], dtype=torch.float64))[0], noise)
    weighed, typical = colours_at(scene, rest, live, appearance)
    monkeypatch.setattr(image_evidence, "TRUST", (1.0, 1.0))
    alike, _ = colours_at(scene, rest, live, appearance)
    share = float(weighed.hessian.norm() / alike.hessian.norm())
    assert least <= share <= most


@pytest.mark.parametrize("size, brightness, factor", ((0.032, 0.1, 0.5), (0.004, 0.1, 2.0), (0.2, 0.1, 0.25), (0.0, 1.0, 0.016 / 0.03)))
def test_brightness_is_trusted_by_its_noise_and_no_further_than_light_may_change_it(monkeypatch, size, brightness, factor):
    monkeypatch.setattr(image_evidence, "SHADING", 0.03 if size == 0 else 0.0)
    reference = torch.full((5, 3), brightness / np.sqrt(3), dtype=torch.float64)
    residual = torch.full((5, 3), size / np.sqrt(3), dtype=torch.float64)
    slope = torch.ones(5, 3, 2, dtype=torch.float64)
    told, slopes = image_evidence._trusted(residual, slope, reference, None)
    torch.testing.assert_close(told, factor * residual)
    torch.testing.assert_close(slopes, factor * slope)


def test_pairs_that_do_not_count_say_nothing_of_the_noise():
    reference, kept = torch.full((6, 3), 0.01, dtype=torch.float64), torch.tensor([True, True, True, False, False, False])
    residual = torch.tensor([[0.032] * 3] * 3 + [[5.0] * 3] * 3, dtype=torch.float64)
    told, _ = image_evidence._trusted(residual, torch.ones(6, 3, 2, dtype=torch.float64), reference, kept)
    alone, _ = image_evidence._trusted(residual[:3], torch.ones(3, 3, 2, dtype=torch.float64), reference[:3], None)
    torch.testing.assert_close(told[:3], alone)
    assert float(alone[0, 0]) == pytest.approx(0.032 * 0.016 / np.hypot(0.032 * np.sqrt(3), 0.01 * np.sqrt(3) * image_evidence.SHADING))


def test_hue_is_trusted_apart_from_brightness():
    reference = torch.tensor([[0.5, 0.0, 0.0]], dtype=torch.float64).repeat(7, 1)
    residual = torch.tensor([[0.1, 0.008, 0.0]], dtype=torch.float64).repeat(7, 1)
    told, slopes = image_evidence._trusted(residual, torch.eye(3, 2, dtype=torch.float64).repeat(7, 1, 1), reference, None)
    bright = image_evidence.USUAL_NOISE / np.hypot(0.1, 0.5 * image_evidence.SHADING)
    hue = image_evidence.USUAL_NOISE / np.hypot(0.008, 0.5 * image_evidence.TINGE)
    torch.testing.assert_close(told[0], torch.tensor([max(bright, 0.25) * 0.1, hue * 0.008, 0.0], dtype=torch.float64))
    torch.testing.assert_close(slopes[0], torch.tensor([[max(bright, 0.25), 0.0], [0.0, hue], [0.0, 0.0]], dtype=torch.float64))


def test_nothing_seen_is_no_evidence(scene):
    body, rest = scene.body, Pose.identity(scene.body)
    appearance = remember(body, look(body, scene.shell, rest, scene.views), scene.views, images(scene, torch.eye(3, dtype=torch.float64)), rest)
    away = Pose(rest.rotations, rest.translations + torch.tensor([0, 5.0, 0]))
    evidence, typical = colours_at(scene, away, images(scene, turned()), appearance)
    assert typical == 0 and not evidence.hessian.any()


def painted(scene, share):
    """The scene with paint on that share of the ball, from one side to the other, and one colour on the rest."""
    x = scene.mesh.vertices[:, :1]
    colours = np.where(x < np.quantile(x, share), scene.mesh.colours, 0.6).astype(np.float32)
    return SimpleNamespace(**{**vars(scene), "mesh": dataclasses.replace(scene.mesh, colours=colours)})


def plainness_of(scene, whole=False):
    body, rest, first = scene.body, Pose.identity(scene.body), images(scene, torch.eye(3, dtype=torch.float64))
    sight = look(body, scene.shell, rest, scene.views, whole=whole)
    appearance = remember(body, sight, scene.views, first, rest)
    weight = registration.Options().colour_weight(body.spacing)
    return image_evidence.plainness(body, scene.views, sight, first, appearance, weight)


def test_a_subject_is_as_plain_as_the_share_of_it_that_has_one_colour(scene):
    bare, half, whole = (plainness_of(painted(scene, share)) for share in (0.0, 0.5, 1.0))
    assert bare > 0.9 and whole < 0.3 and abs(half - (bare + whole) / 2) < 0.15
    assert plainness_of(painted(scene, 0.5), whole=True) == pytest.approx(half, abs=1e-6)


def test_what_colours_do_not_tell_the_surface_says():
    given = registration.Options()
    textured, plain = given.for_plain(0.0), given.for_plain(1.0)
    assert textured == given
    assert plain.tangential == given.tangential + registration.PLAIN_TANGENTIAL
    assert plain.surface_weight == given.surface_weight + registration.PLAIN_SURFACE
    assert given.for_plain(0.3).tangential < given.tangential + 0.1 * registration.PLAIN_TANGENTIAL  # mostly textured: images are to be believed


@pytest.mark.parametrize("count, enough", ((2, 1), (10, 2.5), (16, 3)))
def test_points_that_no_camera_sees_count_little_and_those_that_few_do_less(scene, count, enough):
    views = Views(list(range(count)), cameras(count), K.expand(count, 3, 3), [(SIDE, SIDE)] * count, [1] * count)
    body = scene.body
    seen = look(body, scene.shell, Pose.identity(body), views, whole=True)
    cameras_of = (seen.pairs.facing.reshape(count, -1) > 0).sum(0).double()
    assert (cameras_of == 0).any() and (cameras_of >= enough).any()
    wanted = image_evidence.UNSEEN + (1 - image_evidence.UNSEEN) * (cameras_of / enough).clamp_max(1)
    torch.testing.assert_close(seen.shown(), wanted)
    torch.testing.assert_close(look(body, scene.shell, Pose.identity(body), views).shown(), wanted)


def silhouettes_at(scene, views, window):
    """Evidence of the silhouettes of the ball at its true pose, seen through a window (width, height) of each image's upper left."""
    body, rest = scene.body, Pose.identity(scene.body)
    width, height = window

    def image(camera, frame):
        faces = torch.from_numpy(scene.mesh.faces)
        seen = rasterize(torch.from_numpy(scene.mesh.vertices).double(), faces, scene.views.w2c[camera], K, (SIDE, SIDE))
        alpha = 255 * (seen.face_index >= 0).numpy()[:height, :width, None]
        return np.repeat(alpha, 4, -1).astype(np.uint8)

    evidence = Evidence.none(body)
    pictures = load_images(SimpleNamespace(image=image), views, 0)
    image_evidence.add_silhouettes(evidence, body, rest, views, look(body, scene.shell, rest, views), pictures, 1.0, body.spacing)
    return evidence, pictures


@pytest.mark.parametrize("window", [(SIDE, SIDE), (SIDE, 75), (75, 75)], ids=["whole", "cut below", "cut below and right"])
def test_where_an_image_cuts_the_subject_off_is_no_silhouette(scene, window):
    views = Views(scene.views.index, scene.views.w2c, scene.views.K, [window] * 4, [1] * 4)
    evidence, pictures = silhouettes_at(scene, views, window)
    assert float(evidence.gradient.norm(dim=-1).max()) < 0.1 * scene.body.spacing  # the pose is the true one
    assert int(pictures.outlined.sum()) > 100
    middle = (pictures.outline[pictures.outlined] - torch.tensor([SIDE / 2, SIDE / 2])).norm(dim=-1)
    assert float((middle - middle.median()).abs().max()) < 1.5  # on the ball's circle, none along the border


@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_all_pairs_say_what_the_list_of_pairs_says(scene, noise):
    """On a GPU every pair of a view and a point stays in its place."""
    body, rest = scene.body, Pose.identity(scene.body)
    first, live = images(scene, torch.eye(3, dtype=torch.float64)), images(scene, turned(), noise)
    moved = Pose(rest.rotations, rest.translations + torch.tensor([0.04, 0.02, -0.03]))
    told = []
    for whole in (False, True):
        sight = look(body, scene.shell, moved, scene.views, whole=whole)
        assert whole == (len(sight.pairs.view) == 4 * len(body.points))
        appearance = remember(body, look(body, scene.shell, rest, scene.views, whole=whole), scene.views, first, rest)
        for part in ("colours", "silhouettes"):
            evidence = Evidence.none(body)
            if part == "colours":
                typical = add_colours(evidence, body, moved, scene.views, sight, live.at(1), appearance.at(1), 0, 1.0)
                told.append(typical.reshape(1))
            else:
                image_evidence.add_silhouettes(evidence, body, moved, scene.views, sight, live, 1.0, body.spacing)
            assert float(evidence.hessian.norm()) > 0
            told += [evidence.hessian, evidence.gradient]
    for one, other in zip(told[: len(told) // 2], told[len(told) // 2 :]):
        torch.testing.assert_close(one, other, atol=1e-7, rtol=1e-7)


def test_a_step_with_images_the_gpus_way_asks_the_device_nothing(scene, monkeypatch):
    body, rest = scene.body, Pose.identity(scene.body)
    body = dataclasses.replace(body, pattern=dataclasses.replace(body.pattern, plan=None))
    first, live = images(scene, torch.eye(3, dtype=torch.float64)), images(scene, turned())
    observation = observed(scene.mesh.vertices.astype(np.float64), scene.mesh.faces.astype(np.int64), scene.mesh.vertices.astype(np.float64), coloured=True)
    target = correspondences.Target.from_observation(observation, 900, 0.1, 0.05)
    sights = [look(body, scene.shell, rest, scene.views, whole=True) for _ in range(2)]
    appearance = remember(body, sights[0], scene.views, first, rest)
    for module in (correspondences, deformation_solver, registration):
        monkeypatch.setattr(module, "compiled", lambda tensor: False)
    padded = correspondences.closest_both_ways
    monkeypatch.setattr(registration, "closest_both_ways", lambda *given, **_: padded(*given, padded=True))
    monkeypatch.setattr(registration, "look", lambda *_: sights[0])
    pictures = registration.Pictures(scene.views, live, scene.shell, appearance)
    given = (body, rest, target, pictures, registration.Options())
    with Questions() as questions:
        pose = registration.refine_with_images(*given)
    assert not questions.asked
    wrong, left = ((body.points @ turned().T - body.warp(p)).norm(dim=-1).mean() for p in (rest, pose))
    assert left < 0.2 * wrong
