"""Scores with known answers, and closest points against trimesh."""

import numpy as np
import pytest

from instant_nk.geometry import evaluation as ev

trimesh = pytest.importorskip("trimesh")


def _plane(n=8, height=0.0):
    x, y = np.meshgrid(np.linspace(0, 1, n + 1), np.linspace(0, 1, n + 1), indexing="ij")
    vertices = np.stack([x, y, np.full_like(x, height)], -1).reshape(-1, 3)
    i = (np.arange(n)[:, None] * (n + 1) + np.arange(n)).ravel()
    faces = np.concatenate([np.stack([i, i + n + 1, i + n + 2], 1), np.stack([i, i + n + 2, i + 1], 1)])
    return vertices, faces


def _ball(frames=4, step=(0.0, 0.0, 0.0)):
    mesh = trimesh.creation.icosphere(subdivisions=3, radius=0.5)
    return mesh.vertices + np.arange(frames)[:, None, None] * np.array(step), np.asarray(mesh.faces)


# Closest points


@pytest.mark.parametrize("mesh", [trimesh.creation.icosphere(subdivisions=3), trimesh.creation.box((1, 4, 0.1)), trimesh.creation.cone(0.3, 2.0, sections=40)])
def test_closest_points_agree_with_an_independent_implementation(mesh):
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.normal(size=(300, 3)), mesh.sample(300, seed=1) + 0.02 * rng.normal(size=(300, 3))])
    closest, face, weights = ev.ClosestPoint(mesh.vertices, mesh.faces).query(points)
    theirs = trimesh.proximity.closest_point(mesh, points)[1]
    distance = np.linalg.norm(closest - points, axis=1)
    assert np.abs(distance - theirs).max() < 1e-5
    assert (distance - theirs).max() < 1e-9  # never farther
    assert np.allclose((mesh.triangles[face] * weights[..., None]).sum(1), closest)
    assert weights.min() >= 0 and np.allclose(weights.sum(1), 1)


def test_closest_points_of_one_triangle_cover_face_edges_and_corners():
    query = ev.ClosestPoint(np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0]]), np.array([[0, 1, 2]])).query
    points = np.array([[0.25, 0.25, 2], [0.5, -1, 0], [-1, 0.5, 0], [1, 1, 0], [-1, -1, 0], [3, -1, 0], [0, 5, 1]], float)
    expected = np.array([[0.25, 0.25, 0], [0.5, 0, 0], [0, 0.5, 0], [0.5, 0.5, 0], [0, 0, 0], [1, 0, 0], [0, 1, 0]])
    assert np.allclose(query(points)[0], expected)


def test_a_degenerate_triangle_is_a_segment():
    closest = ev.ClosestPoint(np.array([[0.0, 0, 0], [1, 0, 0], [0.5, 0, 0]]), np.array([[0, 1, 2]])).query(np.array([[0.3, 1, 0], [2, 0, 0]]))[0]
    assert np.allclose(closest, [[0.3, 0, 0], [1, 0, 0]])


# Surfaces and tracks


def test_a_plane_shifted_along_its_normal_has_that_chamfer_distance():
    (a, faces), (b, _) = _plane(), _plane(height=0.037)
    distances = ev.surface_distances(a, faces, b, faces, samples=500)
    assert ev.chamfer(*distances) == pytest.approx(0.037)
    assert ev.fscore(*distances, 0.036) == 0 and ev.fscore(*distances, 0.038) == 1


def test_a_result_equal_to_the_truth_scores_perfectly():
    vertices, faces = _ball(step=(0.05, 0, 0.02))
    score = ev.score_animation(vertices, faces, ev.Truth((0, 1, 2, 3), vertices, faces), samples=800)
    assert score["chamfer_pct"] < 1e-10 and score["track_mean_pct"] < 1e-10 and score["jitter_pct"] < 1e-10
    assert score["fscore_0p5"] == 1 and score["coverage"] == 1 and score["flipped_fraction"] == 0


def test_tracking_error_is_the_displacement_in_per_cent_of_the_diagonal():
    truth, faces = _ball()
    drift = truth + np.arange(4)[:, None, None] * np.array([0.0, 0.01, 0])
    score = ev.score_animation(drift, faces, ev.Truth((0, 1, 2, 3), truth, faces), samples=800)
    unit = 100 / np.linalg.norm([1, 1, 1])
    assert score["per_frame"]["track_mean_pct"] == [None, *(pytest.approx(0.01 * i * unit, rel=1e-3) for i in (1, 2, 3))]
    assert score["track_mean_pct"] == pytest.approx(0.02 * unit, rel=1e-3)
    assert score["track_p95_pct"] == pytest.approx(0.03 * unit, rel=1e-3)
    assert score["jitter_pct"] == pytest.approx(0, abs=1e-6)  # constant velocity


def test_the_error_is_told_apart_along_and_across_the_surface():
    """A sheet that is moved within its plane slides; lifted, it is off the surface."""
    flat, faces = _plane(6)
    truth = np.stack([flat, flat, flat])
    unit = 100 / np.linalg.norm(np.ptp(flat, axis=0))
    for axis, name in ((0, "track_along_pct"), (2, "track_across_pct")):
        moved = truth.copy()
        moved[1:, :, axis] += 0.001
        score = ev.score_animation(moved, faces, ev.Truth((0, 1, 2), truth, faces), samples=500)
        found = {"track_along_pct": 0.0, "track_across_pct": 0.0} | {name: pytest.approx(0.001 * unit, rel=1e-3)}
        assert {key: score[key] for key in found} == {key: pytest.approx(value, abs=1e-9) if value == 0 else value for key, value in found.items()}
    both = truth + np.array([[0, 0, 0], [0.0003, 0, 0.0004], [0.0003, 0, 0.0004]])[:, None]
    score = ev.score_animation(both, faces, ev.Truth((0, 1, 2), truth, faces), samples=500)
    assert (score["track_along_pct"], score["track_across_pct"], score["track_mean_pct"]) == tuple(
        pytest.approx(x * unit, rel=1e-3) for x in (3e-4, 4e-4, 5e-4)
    )


def test_a_static_result_has_the_motion_as_its_tracking_error():
    truth, faces = _ball(step=(0.03, 0, 0))
    score = ev.score_animation(np.repeat(truth[:1], 4, 0), faces, ev.Truth((0, 1, 2, 3), truth, faces), samples=800)
    assert score["track_mean_pct"] == pytest.approx(score["motion_mean_pct"], rel=1e-6)


def test_jitter_is_the_second_difference_of_the_error():
    truth, faces = _ball()
    shaken = truth + np.array([0, 0.01, 0, 0.01])[:, None, None] * np.array([1.0, 0, 0])
    score = ev.score_animation(shaken, faces, ev.Truth((0, 1, 2, 3), truth, faces), samples=800)
    assert score["jitter_pct"] == pytest.approx(0.02 * 100 / 3**0.5, rel=1e-3)
    assert [v is None for v in score["per_frame"]["jitter_pct"]] == [True, False, False, True]


def test_points_that_the_mesh_does_not_cover_cost_two_per_cent():
    truth, faces = _ball()
    upper = faces[truth[0][faces].mean(1)[:, 2] > 0]
    score = ev.score_animation(truth, upper, ev.Truth((0, 1, 2, 3), truth, faces), samples=2000)
    assert 0.45 < score["coverage"] < 0.57
    assert score["track_p95_pct"] >= 2 and score["track_median_pct"] < 30


def test_two_frames_have_tracks_and_no_jitter():
    truth, faces = _ball(2)
    score = ev.score_animation(truth, faces, ev.Truth((5, 6), truth, faces), samples=300)
    assert score["jitter_pct"] is None and score["per_frame"]["jitter_pct"] == [None, None] and score["track_mean_pct"] < 1e-10


def test_surface_that_no_camera_sees_is_not_scored():
    truth, faces = _ball()
    views = np.repeat((truth[0][:, 2] > 0)[None], 4, 0).astype(np.uint8)
    seen = ev.Truth((0, 1, 2, 3), truth, faces, views).seen_faces(1)
    assert (truth[1][faces[seen]][..., 2] > 0).all()
    assert len(ev.Truth((0, 1, 2, 3), truth, faces).seen_faces(1)) == len(faces)
    half = views.copy()
    half[:3] = 0  # seen in one of four frames
    assert len(ev.Truth((0, 1, 2, 3), truth, faces, half).seen_faces()) == 0


def test_only_pairs_folded_since_the_first_frame_count():
    flat, faces = _plane(2)
    folded = flat.copy()
    folded[6:, 0], folded[6:, 2] = 0.1, 0.05  # the last row turns back over the sheet
    pairs = ev.folded_pairs(np.stack([flat, folded]), faces)
    assert not pairs[0].any() and pairs[1].sum() == 2
    assert ev.flipped_fraction(np.stack([flat, folded]), faces)[1] == pytest.approx(2 / pairs.shape[1])
    assert not ev.flipped_fraction(np.stack([folded, folded]), faces).any()


# Pictures


def test_psnr_of_a_known_error():
    a = np.zeros((16, 16, 3))
    assert ev.psnr(a + 0.1, a) == pytest.approx(20)
    mask = np.zeros((16, 16), bool)
    mask[:4] = True
    b = a.copy()
    b[:4] += 0.1
    assert ev.psnr(b, a, mask) == pytest.approx(20) and ev.psnr(b, a) == pytest.approx(20 + 10 * np.log10(4))
    assert ev.psnr(a, a) == pytest.approx(100)


def test_pictures_are_compared_on_white():
    clear = np.zeros((16, 16, 4))
    white = np.ones((16, 16, 4))
    score = ev.score_picture(clear, white)
    assert score["psnr_db"] == pytest.approx(100) and score["ssim"] == pytest.approx(1) and score["silhouette_iou"] == 0


def test_silhouette_iou_of_half_overlapping_masks():
    a, b = np.zeros((4, 6)), np.zeros((4, 6))
    a[:, :4], b[:, 2:] = 1, 1
    assert ev.silhouette_iou(a, b) == pytest.approx(1 / 3)
    assert ev.silhouette_iou(np.zeros((4, 6)), np.zeros((4, 6))) == 1


def test_the_foreground_is_the_true_mask_dilated_by_five_pixels():
    reference = np.zeros((32, 32, 4))
    reference[16, 16] = 1
    image = reference.copy()
    image[16, 22] = (0, 0, 0, 1)  # six pixels away: outside
    score = ev.score_picture(image, reference)
    assert score["fg_psnr_db"] == pytest.approx(100) and score["psnr_db"] < 40
