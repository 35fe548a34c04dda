"""Visual hulls: nothing of the subject is lost, little is added, and votes are counted as said."""

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import label

from instant_nk.geometry import hulls, spaces
from instant_nk.io import capture
from tests.unit.capture_writer import BALLS, write_capture


@pytest.fixture(scope="module")
def rig(tmp_path_factory):
    """Masks [C] of frame 0, K [C, 3, 3] and OpenCV poses [C, 4, 4] of twelve cameras around two balls."""
    root = tmp_path_factory.mktemp("rig")
    write_capture(root, frames=1, cameras=12, size=(96, 80))
    view = capture.read(root).train
    masks = [np.asarray(Image.open(view.file(c, 0)))[..., 3] > 0 for c in view.cameras]
    return masks, np.stack([c.K((96, 80)) for c in view.cameras]), np.stack([c.c2w for c in view.cameras])


def centres(resolution):
    axis = (2 * np.arange(resolution) + 1) / resolution - 1
    return np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1)


def inside_balls(points, grow=0.0):
    return np.any([np.linalg.norm(points - c, axis=-1) <= r + grow for c, r, _ in BALLS], axis=0)


@pytest.mark.parametrize(("resolution", "pool"), [(16, 1), (24, 1), (32, 1), (41, 1), (16, 2), (20, 2)])
def test_every_voxel_that_holds_a_part_of_the_subject_is_kept(rig, resolution, pool):
    masks, K, c2w = rig
    hull = hulls.visual_hull([hulls.silhouette(m, pool) for m in masks], K, c2w, resolution)
    rng = np.random.default_rng(0)
    for centre, radius, _ in BALLS:
        direction = rng.normal(size=(4000, 3))
        surface = centre + radius * direction / np.linalg.norm(direction, axis=1, keepdims=True)
        cells = np.floor((surface + 1) / 2 * resolution).astype(int)
        assert hull[tuple(cells.T)].all()
    assert hull[inside_balls(centres(resolution))].all()


def test_the_hull_is_not_much_larger_than_the_subject(rig):
    masks, K, c2w = rig
    hull = hulls.visual_hull([hulls.silhouette(m) for m in masks], K, c2w, 48)
    truth = inside_balls(centres(48))
    assert hull.sum() < 1.6 * truth.sum()
    assert not hull[~inside_balls(centres(48), grow=0.25)].any()


def test_coarse_to_fine_carving_is_carving_every_voxel(rig):
    masks, K, c2w = rig
    cameras = [hulls.silhouette(m) for m in masks]
    points = centres(32)
    flat = hulls.carve(points.reshape(-1, 3), np.sqrt(3) / 32, cameras, K, c2w).reshape(32, 32, 32)
    hull = hulls.visual_hull(cameras, K, c2w, 32)
    assert not (hull & ~flat).any()
    assert (hull != flat).mean() < 5e-4  # voxels kept by the rounding of pixels alone


def test_hulls_are_the_same_in_world_and_in_scene(rig):
    masks, K, c2w = rig
    cameras = [hulls.silhouette(m) for m in masks]
    similarity = spaces.similarity_from_box(np.array([[-0.6, -0.6, -0.6], [0.75, 0.75, 0.6]]))
    world = spaces.transform_points(spaces.invert_similarity(similarity), [[-1, -1, -1], [1, 1, 1]])
    scene_hull = hulls.visual_hull(cameras, K, spaces.transform_poses(similarity, c2w), 32)
    np.testing.assert_array_equal(scene_hull, hulls.visual_hull(cameras, K, c2w, 32, world[0], world[1]))


def test_a_camera_does_not_vote_on_what_it_does_not_see(rig):
    masks, K, c2w = rig
    cameras = [hulls.silhouette(m) for m in masks]
    whole = hulls.visual_hull(cameras, K, c2w, 32)
    close = K.copy()
    close[0, :2, :2] *= 3  # one camera sees the middle of the subject only, and there everything is subject
    middle = [hulls.silhouette(np.ones_like(masks[0])), *cameras[1:]]
    seen = hulls.visual_hull(middle, close, c2w, 32)
    assert (seen | whole).sum() == seen.sum()  # nothing of the others' hull is lost


def test_an_empty_mask_does_not_vote_and_all_empty_masks_give_an_empty_hull(rig):
    masks, K, c2w = rig
    cameras = [hulls.silhouette(m) for m in masks]
    others = hulls.visual_hull(cameras[1:], K[1:], c2w[1:], 32)
    empty = hulls.silhouette(np.zeros_like(masks[0]))
    np.testing.assert_array_equal(hulls.visual_hull([empty, *cameras[1:]], K, c2w, 32), others)
    assert not hulls.visual_hull([empty] * len(masks), K, c2w, 32).any()


def test_in_a_large_rig_one_bad_mask_does_not_cut_off_the_subject(rig):
    masks, K, c2w = rig
    cameras = [hulls.silhouette(m) for m in masks] * 3
    speck = np.zeros_like(masks[0])
    speck[3, 3] = True
    K, c2w = np.concatenate([K] * 3), np.concatenate([c2w] * 3)
    kept = hulls.visual_hull([hulls.silhouette(speck), *cameras[1:]], K, c2w, 32)
    assert kept[inside_balls(centres(32))].all()


def test_a_proposed_box_holds_the_subject_closely(rig):
    masks, K, c2w = rig
    point = hulls.meeting_point(c2w)
    np.testing.assert_allclose(point, 0, atol=1e-6)  # all cameras look at the origin
    box = hulls.subject_box([hulls.silhouette(m) for m in masks], K, c2w, point - 3.5, point + 3.5)
    truth = np.stack([np.min([c - r for c, r, _ in BALLS], axis=0), np.max([c + r for c, r, _ in BALLS], axis=0)])
    assert (box[0] <= truth[0]).all() and (box[1] >= truth[1]).all()
    assert (np.abs(box - truth) < 0.15).all()


def test_parallel_cameras_have_no_meeting_point(rig):
    c2w = np.tile(np.eye(4), (5, 1, 1))
    c2w[:, 0, 3] = np.arange(5)
    assert hulls.meeting_point(c2w) is None


def test_box_coverage_marks_the_pixels_whose_rays_meet_the_box(rig):
    _, K, c2w = rig
    box = np.array([[-0.3, -0.2, -0.3], [0.3, 0.4, 0.2]])
    covered = hulls.box_coverage(box, (96, 80), 1, K[0], c2w[0])
    rng = np.random.default_rng(0)
    local = spaces.transform_points(spaces.invert_poses(c2w[0]), box[0] + rng.random((5000, 3)) * (box[1] - box[0]))
    u, v = (K[0] @ (local / local[:, 2:]).T)[:2].astype(int)
    grown = np.pad(covered, 1)
    assert (grown[1:-1, 1:-1] | grown[:-2, 1:-1] | grown[2:, 1:-1] | grown[1:-1, :-2] | grown[1:-1, 2:])[v, u].all()
    hit = np.zeros_like(covered)
    hit[v, u] = True
    assert covered.sum() <= hit.sum() * 1.1


def test_a_camera_with_another_pose_is_not_explained_by_the_hull(rig):
    masks, K, c2w = rig
    cameras = [hulls.silhouette(m) for m in masks]
    hull = hulls.visual_hull(cameras, K, c2w, 32)
    assert (hulls.explained_shares(hull, cameras, K, c2w) > 0.99).all()
    wrong = c2w.copy()
    wrong[4, :3, 3] += [0.0, 0.4, 0.0]
    hull = hulls.visual_hull(cameras, K, wrong, 32)
    shares = hulls.explained_shares(hull, cameras, K, wrong)
    assert shares[4] < 0.9 and shares[4] <= min(shares) + 0.15


def faces_of(hull):
    padded = np.pad(hull, 1)
    return sum(int(np.count_nonzero(np.diff(padded, axis=axis))) for axis in range(3))


def test_touching_parts_have_less_open_surface():
    apart, touching = np.zeros((2, 16, 16, 16), bool)
    apart[1:5, 1:5, 1:5] = apart[10:14, 1:5, 1:5] = True
    touching[1:9, 1:5, 1:5] = True
    assert hulls.open_surface(apart) == 2 * 6 * 16 and hulls.open_surface(touching) == 2 * 6 * 16 - 2 * 16


def test_tunnels_between_nearly_touching_parts_show_little():
    """Two slabs a voxel apart, joined here and there, as hulls of legs that pass each other are."""
    slabs = np.zeros((9, 20, 20), bool)
    slabs[1:4, 1:19, 1:19] = slabs[5:8, 1:19, 1:19] = True
    slabs[4, 3:19:5, 3:19:5] = True
    solid = slabs.copy()
    solid[4, 1:19, 1:19] = True
    assert faces_of(slabs) > 1.5 * faces_of(solid)
    assert hulls.open_surface(slabs) < 1.15 * faces_of(solid)


def test_the_hull_shows_what_leaves_a_box_towards_the_cameras(rig):
    masks, K, c2w = rig
    cameras = [hulls.silhouette(m) for m in masks]
    similarity = spaces.similarity_from_box(np.array([[-0.7, -0.7, -0.7], [0.7, 0.7, 0.7]]))
    poses = spaces.transform_poses(similarity, c2w)
    assert hulls.share_beyond(np.ones(3), cameras, K, poses) == 0
    assert hulls.share_beyond(np.array([0.55, 1, 1]), cameras, K, poses) > 0.01


def windows(masks, K, size, middles):
    """Cameras that see only a square window of their image: silhouettes and intrinsics."""
    K, cameras = K.copy(), []
    for i, (mask, middle) in enumerate(zip(masks, middles)):
        x, y = np.clip(np.asarray(middle, int) - size // 2, 0, np.array(mask.shape[::-1]) - size)
        cameras.append(hulls.silhouette(mask[y : y + size, x : x + size]))
        K[i, :2, 2] -= x, y
    return cameras, K


def test_phantoms_of_cameras_that_see_little_are_left_out(rig):
    masks, K, c2w = rig
    reach = 1.5
    cameras, close = windows(masks, K, 54, [np.argwhere(mask).mean(0)[::-1] for mask in masks])
    poses = spaces.transform_poses(np.diag([1 / reach] * 3 + [1.0]), c2w)
    hull = hulls.visual_hull(cameras, close, poses, 48)
    parts, _ = label(hull, np.ones((3, 3, 3)))
    beside = hull & ~np.isin(parts, np.unique(parts[hull & inside_balls(centres(48) * reach)]))
    assert beside.sum() > 0.5 * hull.sum()  # where one or two cameras look, cones meet beside the subject
    alone = hulls.without_phantoms(hull, cameras, close, poses)
    np.testing.assert_array_equal(alone & ~beside, hull & ~beside)
    assert (alone & beside).sum() < 0.03 * beside.sum()


@pytest.mark.parametrize("needed", [True, False])
def test_a_separate_part_that_few_cameras_see_is_kept_when_their_masks_need_it(rig, needed):
    whole, K, c2w = rig
    points, resolution, seeing = centres(64), 32, (0, 3, 6)
    main, part = (np.linalg.norm(points - centre, axis=-1) <= radius for centre, radius in (([0, 0, 0], 0.35), ([0.0, 0.7, 0.0], 0.12)))
    masks = []
    for i in range(len(whole)):
        shown = main | part if needed and i in seeing else main
        local = K[i] @ spaces.transform_points(spaces.invert_poses(c2w[i]), points[shown]).T
        mask = np.zeros(whole[i].shape, bool)
        mask[tuple((local[1::-1] / local[2]).astype(int))] = True
        masks.append(mask)
    cameras, close = windows(masks, K, 34, [K[i, :2, 2] for i in range(len(masks))])
    for i in seeing:
        cameras[i], close[i] = hulls.silhouette(masks[i]), K[i]
    hull = (main | part).reshape(resolution, 2, resolution, 2, resolution, 2).any((1, 3, 5))
    alone = hulls.without_phantoms(hull, cameras, close, c2w)
    assert alone[16, 16, 16]
    assert alone[16, 27, 16] == needed


def test_the_hull_within_a_box_keeps_a_margin_of_voxels(rig):
    hull = np.ones((32,) * 3, bool)
    cells = np.argwhere(hulls.within_box(hull, np.array([1.0, 0.5, 0.25])))
    np.testing.assert_array_equal(cells.min(0), [0, 6, 10])  # 8 - 2 and 12 - 2
    np.testing.assert_array_equal(cells.max(0), [31, 25, 21])
