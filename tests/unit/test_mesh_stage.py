"""Stage 7: vertices carried by root finding, windows blended without a step, world coordinates to 1e-5 of the box; and the rendered picture."""

import dataclasses

import numpy as np
import pytest
import torch
import trimesh
from scipy.spatial import cKDTree

from instant_nk.errors import ContractError
from instant_nk.fitting.render import Renderer
from instant_nk.geometry import smoothing, spaces
from instant_nk.io import artifact
from instant_nk.io import mesh as meshes
from instant_nk.io.mesh import Animation
from instant_nk.kernels.blend_skinning import blend_with_jacobian
from instant_nk.models.warp import LiveSpace
from instant_nk.stages import mesh as mesh_stage
from tests.unit import neural_fixtures
from tests.unit.neural_fixtures import WINDOWS, bending, capsule, capsule_skeleton, numbers, stir, window_field
from tests.unit.shapes import tube


@pytest.fixture(scope="module")
def body(tmp_path_factory):
    return neural_fixtures.finished(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def animation(body):
    return meshes.load_animation(body.job.paths.animation)


def bent_field(residual, canonical_index=None):
    skeleton = capsule_skeleton()
    motion = [torch.tensor(m, dtype=torch.float32) for m in bending(skeleton.nodes.numpy(), [0.0, 0.6, 1.2])]
    field = window_field(capsule, skeleton, *motion, canonical_index=canonical_index)
    if residual:
        stir(field.residual, residual)
    return field.requires_grad_(False), tuple(motion)


# Carrying vertices


def test_a_fresh_window_carries_vertices_as_the_graph_does():
    field, motion = bent_field(0)
    s, frame = field.skeleton, torch.full((len(field.skeleton.vertices),), 2)
    live, missed = mesh_stage.carry(field, motion, 2)
    torch.testing.assert_close(live, blend_with_jacobian(s.vertices, s.anchors, s.nodes, s.radii, *motion, frame)[0])
    assert missed == 0


@pytest.mark.parametrize("index", [1, 2])
def test_a_carried_vertex_returns_to_itself_through_the_inverse_warp_and_the_residual(index):
    """The root x' of x' + residual(x') = V was found: going back from its live position ends at V."""
    field, motion = bent_field(0.2)
    live, missed = mesh_stage.carry(field, motion, index)
    vertices = torch.arange(len(live))
    seen = field.at(LiveSpace(field.skeleton, *motion, 32), live, torch.full((len(live),), index), vertices, torch.zeros_like(live), *motion)
    error = (seen.canonical + seen.residual - field.skeleton.vertices).norm(dim=1)
    assert seen.residual.abs().max() > 5e-3 and missed == 0
    assert seen.converged.all() and error.max() < 1e-4


def test_in_blocks_vertices_are_carried_as_at_once(monkeypatch):
    field, motion = bent_field(0.2)
    whole, _ = mesh_stage.carry(field, motion, 1)
    monkeypatch.setattr(mesh_stage, "BLOCK", 500)
    torch.testing.assert_close(mesh_stage.carry(field, motion, 1)[0], whole, atol=1e-6, rtol=0)


def test_vertices_without_a_root_stay_with_the_graph_and_are_counted():
    """A residual that jumps from one sign to the other within less than its own length has no root there."""
    field, motion = bent_field(0)
    stir(field.residual, 30.0)
    live, missed = mesh_stage.carry(field, motion, 2)
    assert missed > 0 and torch.isfinite(live).all()
    coarse, _ = mesh_stage.carry(bent_field(0)[0], motion, 2)
    assert (live - coarse).norm(dim=1).max() < 0.3


def test_at_the_canonical_frame_vertices_stay_where_they_are():
    field, motion = bent_field(0.2, canonical_index=0)
    torch.testing.assert_close(mesh_stage.carry(field, motion, 0)[0], field.skeleton.vertices, atol=1e-6, rtol=0)


# World coordinates


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("off", [0.0, 10.0])
def test_world_coordinates_are_exact_to_a_hundred_thousandth_of_the_box(body, scale, off):
    box = (np.array([[-0.7, -1.0, -0.4], [0.8, 1.1, 0.5]]) + off * 2.1) * scale
    dataset = dataclasses.replace(body.dataset, box=box, scene_from_world=spaces.similarity_from_box(box))
    world = np.random.default_rng(0).uniform(box[0], box[1], (2, 500, 3))
    scene = spaces.transform_points(dataset.scene_from_world, world).astype(np.float32)
    back = dataset.to_world(scene)
    assert back.dtype == np.float32 and back.shape == world.shape
    assert np.abs(back - world).max() < 1e-5 * (box[1] - box[0]).max()


# Blending windows


def part(frames, vertices, views=1):
    n, v = len(frames), vertices.shape[1]
    zero = np.zeros((n, v), np.float32)
    faces, colours = np.array([[0, 1, 2]], np.int32), np.zeros((v, 3), np.float32)
    return Animation(np.array(frames, np.int32), vertices.astype(np.float32), faces, colours, zero + 0.1, zero + 0.2, zero.astype(np.int32) + views)


def moving(frames, offset=0.0):
    """Three vertices that move one unit a frame along x."""
    rest = np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0]])
    return rest + np.array(frames, float)[:, None, None] * [1.0, 0, 0] + np.array([0, offset, 0])


@pytest.mark.parametrize(("length", "overlap"), [(6, 2), (6, 3), (8, 4), (6, 5), (7, 4)])
def test_windows_that_disagree_by_a_constant_are_blended_without_a_step(length, overlap):
    """The offset is spread over the frames they share: no step reaches offset / overlap."""
    first, second = list(range(length)), list(range(length - overlap, 2 * length - overlap))
    frames = tuple(range(2 * length - overlap))
    blended, disagreement = mesh_stage.blend([part(first, moving(first)), part(second, moving(second, 1.0))], frames)
    height = blended.vertices[:, 0, 1]
    assert (height[: length - overlap] == 0).all() and (height[length:] == 1).all()
    steps = np.diff(height)
    assert (steps >= 0).all() and steps.max() < 1 / overlap
    np.testing.assert_allclose(steps[steps > 0], 1 / (overlap + 1), atol=1e-6)
    assert disagreement == pytest.approx([1.0] * overlap)
    np.testing.assert_allclose(blended.vertices[:, 0, 0], frames)  # the motion itself is untouched


def test_windows_that_agree_are_joined_exactly():
    parts = [part(f, moving(f)) for f in ([0, 1, 2], [1, 2, 3], [2, 3, 4])]
    blended, disagreement = mesh_stage.blend(parts, tuple(range(5)))
    np.testing.assert_array_equal(blended.vertices, moving(range(5)).astype(np.float32))
    np.testing.assert_allclose(blended.sdf_residual, 0.1)
    np.testing.assert_allclose(blended.cycle_error, 0.2)
    assert disagreement == pytest.approx([0] * 4) and blended.frames.tolist() == [0, 1, 2, 3, 4]


def test_of_two_windows_the_one_that_sees_a_vertex_better_counts():
    parts = [part([0, 1, 2], moving([0, 1, 2]), views=2), part([1, 2, 3], moving([1, 2, 3]), views=5)]
    assert mesh_stage.blend(parts, (0, 1, 2, 3))[0].n_views[:, 0].tolist() == [2, 5, 5, 5]


def test_frames_may_have_gaps_and_start_anywhere():
    blended, _ = mesh_stage.blend([part([10, 12, 14], moving([10, 12, 14])), part([12, 14, 16], moving([12, 14, 16]))], (10, 12, 14, 16))
    assert blended.frames.tolist() == [10, 12, 14, 16]
    np.testing.assert_array_equal(blended.vertices[:, 0, 0], [10, 12, 14, 16])


def test_the_seam_numbers_of_a_known_offset_are_the_known_ones():
    """Two windows 0.3 apart in height over two frames: three steps of 0.1; uniform motion has no jolt but theirs."""
    first, second = [0, 1, 2, 3, 4, 5], [4, 5, 6, 7, 8, 9]
    parts = [part(first, moving(first)), part(second, moving(second, 0.3))]
    blended, disagreement = mesh_stage.blend(parts, tuple(range(10)))
    said = mesh_stage.seam_numbers(blended, parts, disagreement)
    percent = 100 / np.linalg.norm([10.0, 1.3, 0])
    assert said["seam_disagreement_pct"] == pytest.approx(0.3 * percent, rel=1e-4)
    assert said["seam_step_pct"] == pytest.approx(0.1 * percent, rel=1e-3)
    assert said["within_jolt_pct"] == pytest.approx(2 * 0.1 / 8 * percent, rel=1e-2)  # where the steps begin and end


@pytest.mark.parametrize("frames", [[0], [0, 1], [0, 1, 2]])
def test_a_single_window_has_no_seam(frames):
    parts = [part(frames, moving(frames))]
    blended, disagreement = mesh_stage.blend(parts, tuple(frames))
    said = mesh_stage.seam_numbers(blended, parts, disagreement)
    assert said["seam_disagreement_pct"] is None and said["seam_step_pct"] is None
    assert (said["within_jolt_pct"] is None) == (len(frames) < 3)


# Cutting webs


def parting(limit=4.0, converged=(True, True)):
    """Two halves of a tube that come apart in the second frame; only a ring of faces between them stretches."""
    rest, faces = tube()
    along = rest[:, int(np.ptp(rest, axis=0).argmax())]
    way = np.eye(3)[int(np.ptp(rest, axis=0).argmax())]
    far = rest + np.where(along > 1, 1.0, 0.0)[:, None] * way
    zero = np.zeros((2, len(rest)), np.float32)
    whole = Animation(np.array([0, 1], np.int32), np.stack([rest, far]).astype(np.float32), faces.astype(np.int32), np.zeros((len(rest), 3), np.float32), zero, zero, zero.astype(np.int32))  # fmt: skip
    return whole, *mesh_stage.tear(whole, rest, np.array(converged), limit)


def test_a_web_is_cut_and_its_vertices_go_to_what_is_left():
    whole, cut, said = parting()
    assert said["torn_faces"] > 0 and said["closing_faces"] > 0
    assert len(cut.faces) == len(whole.faces) - said["torn_faces"] + said["closing_faces"]
    assert trimesh.Trimesh(cut.vertices[1], cut.faces, process=False).is_watertight
    assert cut.vertices.shape == whole.vertices.shape
    used = np.unique(cut.faces)
    np.testing.assert_array_equal(cut.vertices[:, used], whole.vertices[:, used])
    nearest = cKDTree(cut.vertices[1][used]).query(cut.vertices[1])[0]
    assert nearest.max() == 0  # none hangs in the air


@pytest.mark.parametrize("how", [{"limit": 0}, {"converged": (True, False)}], ids=["not asked for", "a lost frame"])
def test_nothing_is_cut_where_it_is_not_asked_for_or_no_frame_can_be_believed(how):
    whole, cut, said = parting(**how)
    assert cut is whole and said == {"torn_faces": 0, "closing_faces": 0}


# Smoothing over time


def swinging(frames, jitter):
    """Three vertices on a slow circle, each frame of them off by `jitter` at random."""
    angle = 2 * np.pi * np.arange(frames) / frames
    away = np.stack([np.cos(angle), np.sin(angle), 0 * angle], -1)[:, None]
    return moving([0])[0] + away + np.random.default_rng(0).normal(0, jitter, (frames, 3, 3))


def smoothed(vertices, strength=None, lost=(), canonical=3, residual=0.01):
    frames = list(range(len(vertices)))
    converged = np.array([frame not in lost for frame in frames])
    return mesh_stage.smooth(part(frames, vertices), converged, np.full(len(frames), residual), canonical, strength)


def test_jitter_is_smoothed_and_said_how_much():
    noisy, true = swinging(40, 0.01), swinging(40, 0)
    animation, said = smoothed(noisy)
    assert (
        np.linalg.norm(np.diff(animation.vertices - true, 2, axis=0), axis=-1).mean() < 0.4 * np.linalg.norm(np.diff(noisy - true, 2, axis=0), axis=-1).mean()
    )
    shift = np.linalg.norm(animation.vertices - noisy, axis=-1).mean()
    assert said["smoothing"] > 0 and said["smoothing_shift_pct"] == pytest.approx(100 * shift / np.linalg.norm(np.ptp(noisy.reshape(-1, 3), axis=0)), rel=1e-3)
    np.testing.assert_allclose(animation.vertices[3], noisy[3], atol=1e-5)  # the canonical frame is the canonical mesh


def test_smoothing_can_be_set_and_left_out():
    noisy = swinging(40, 0.01)
    same, said = smoothed(noisy, strength=0.0)
    np.testing.assert_array_equal(same.vertices, noisy.astype(np.float32))
    assert said == {"smoothing": 0.0, "smoothing_shift_pct": 0.0}
    assert smoothed(noisy, strength=5.0)[1]["smoothing"] == 5.0


def turning_back(frames, by):
    """Three vertices that are to and fro by turns, across their triangle: trajectories alone cannot tell it from noise."""
    return moving([0])[0] + by * np.array([1, -1])[np.arange(frames) % 2, None, None] * np.array([0, 0, 1.0])


def test_motion_that_turns_back_at_every_frame_is_not_taken_for_noise():
    """A dance filmed at two pictures a beat: its mean foretells left-out frames best, but lies off the surfaces that were observed."""
    dance = turning_back(12, 0.3)
    assert smoothing.strength(dance.astype(np.float32), np.r_[np.ones(3), smoothing.FIXED, np.ones(8)]) > 0  # what it looks like to trajectories
    animation, said = smoothed(dance)
    np.testing.assert_array_equal(animation.vertices, dance.astype(np.float32))
    assert said == {"smoothing": 0.0, "smoothing_shift_pct": 0.0}
    assert smoothed(dance, strength=1.0)[1]["smoothing"] == 1.0  # asked for is asked for
    assert smoothed(dance, residual=0.3)[1]["smoothing"] > 0  # no farther off than surfaces lay anyway
    assert smoothed(dance, residual=0.0)[1]["smoothing"] == 0  # nobody measured, as with motion that somebody else stands for


def test_a_dance_in_a_short_part_of_a_clip_is_kept():
    clip = swinging(60, 0.002)
    clip[20:28] += turning_back(8, 0.2) - moving([0])[0]
    assert smoothing.strength(clip.astype(np.float32), np.r_[np.ones(3), smoothing.FIXED, np.ones(56)]) > 0
    assert smoothed(clip)[1] == {"smoothing": 0.0, "smoothing_shift_pct": 0.0}


def test_a_frame_that_registration_lost_follows_its_neighbours():
    vertices, true = swinging(40, 0.01), swinging(40, 0)
    vertices[20] += 0.5
    animation, _ = smoothed(vertices, lost=[20])
    assert np.linalg.norm(animation.vertices - true, axis=-1)[18:23].max() < 0.06


# The stage


def test_the_animation_follows_the_true_motion(body, animation):
    """Points of the canonical mesh, followed from the canonical frame, move as the true surface under them."""
    dataset = body.dataset
    clip = np.stack([body.truth(f).vertices for f in dataset.frames])
    canonical = dataset.frames.index(dataset.canonical_frame)
    _, near = cKDTree(clip[canonical]).query(animation.vertices[canonical])
    diagonal = np.linalg.norm(np.ptp(clip[canonical], axis=0))
    moved, true = animation.vertices - animation.vertices[canonical], clip[:, near] - clip[canonical, near]
    error = np.linalg.norm(moved - true, axis=-1).mean(1) / diagonal
    assert error.max() < 0.01 and error.mean() < 0.2 * np.linalg.norm(true, axis=-1).mean() / diagonal


def test_at_the_canonical_frame_the_animation_is_the_canonical_mesh_in_the_world(body, animation):
    dataset, mesh = body.dataset, meshes.load(body.job.paths.canonical_mesh)
    world = spaces.transform_points(dataset.world_from_scene, mesh.vertices)
    row = dataset.frames.index(dataset.canonical_frame)
    assert np.abs(animation.vertices[row] - world).max() < 1e-5 * (dataset.box[1] - dataset.box[0]).max()
    np.testing.assert_array_equal(animation.faces, mesh.faces)
    np.testing.assert_array_equal(animation.colours, mesh.colours)


def test_quality_is_measured_per_vertex_and_frame(body, animation):
    size = (body.dataset.box[1] - body.dataset.box[0]).max()
    assert animation.frames.tolist() == [0, 1, 2, 3] and animation.vertices.shape[1] == len(animation.colours)
    assert np.median(animation.cycle_error) < 1e-5 * size and np.percentile(animation.cycle_error, 95) < 2e-3 * size
    assert animation.sdf_residual.mean() < 1e-3 * size
    assert 1.5 < animation.n_views.mean() < 6 and animation.n_views.max() <= 6
    said = numbers(body.job.paths.mesh_window(WINDOWS[0]).with_suffix(".json"))
    assert said["root_fallback_share"] == 0 and said["vertices"] == animation.vertices.shape[1] and said["cycle_error_median_scene"] < 1e-5


def test_the_header_says_which_windows_were_joined(body):
    header = artifact.read_header(body.job.paths.animation)
    windows = {window: artifact.file_hash(body.job.paths.mesh_window(window)) for window in WINDOWS}
    assert header["inputs"] == windows | {"motion": artifact.file_hash(body.job.paths.motion)}


def test_a_missing_window_is_named(body, tmp_path):
    job = body.variant(results=tmp_path)
    with pytest.raises(ContractError, match=rf"{WINDOWS[0]}\.npz: artifact 'animation' is missing"):
        mesh_stage.run(job)
    with pytest.raises(ContractError, match=rf"{WINDOWS[0]}\.npz: artifact 'checkpoint' is missing"):
        mesh_stage.run(dataclasses.replace(job, part=WINDOWS[0]))


# Pictures


@pytest.fixture(scope="module")
def renderer(body):
    return Renderer(body.job, body.dataset)


@pytest.mark.parametrize("frame", [0, 2])
def test_a_rendered_picture_agrees_with_the_cameras_own(body, renderer, frame):
    dataset, camera = body.dataset, 0
    seen = renderer.render(dataset.cameras.c2w[camera], dataset.cameras.K[camera], (48, 48), frame)
    image, depth = dataset.image(camera, frame), dataset.depth_map(camera, frame)
    mask, opaque = image[..., 3] > 127, seen["alpha"] > 0.5
    assert seen["rgb"].shape == (48, 48, 3) and seen["rgb"].min() >= 0 and seen["rgb"].max() <= 1
    assert (mask & opaque).sum() / (mask | opaque).sum() > 0.8
    assert np.median(np.abs(seen["depth"] - depth)[mask & opaque]) < 0.02 * np.linalg.norm(dataset.box[1] - dataset.box[0])
    assert (seen["depth"][~opaque] == 0).all()
    length = np.linalg.norm(seen["normal"], axis=-1)
    np.testing.assert_allclose(length[opaque], 1, atol=1e-3)
    towards = -dataset.cameras.c2w[camera][:3, 2]
    assert (seen["normal"][opaque] @ towards).mean() > 0.4


def test_a_picture_does_not_depend_on_how_many_rays_go_at_once(body, renderer, monkeypatch):
    from instant_nk.fitting import render

    camera = body.dataset.cameras
    whole = renderer.render(camera.c2w[1], camera.K[1], (20, 16), 1)
    monkeypatch.setattr(render, "RAYS", 37)
    parts = renderer.render(camera.c2w[1], camera.K[1], (20, 16), 1)
    for name in whole:
        np.testing.assert_allclose(parts[name], whole[name], atol=1e-4)


def test_a_camera_that_looks_away_sees_nothing(body, renderer):
    away = body.dataset.cameras.c2w[0].copy()
    away[:3, :3] = away[:3, :3] @ np.diag([-1.0, 1, -1])
    seen = renderer.render(away, body.dataset.cameras.K[0], (8, 8), 0)
    assert not seen["alpha"].any() and not seen["depth"].any() and np.isfinite(seen["rgb"]).all()


def test_a_frame_is_rendered_by_the_window_it_lies_deepest_in(body):
    made = Renderer(body.job, body.dataset, ["000000-000005", "000004-000009"])
    assert [made.window_of(f) for f in (0, 4, 5, 9)] == ["000000-000005", "000000-000005", "000004-000009", "000004-000009"]
