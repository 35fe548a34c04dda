"""Stage 4: whichever provider looks, observed points lie on the live surface and face outwards."""

import json
import shutil
import threading

import numpy as np
import pytest
import trimesh

from instant_nk.errors import ConfigError, DataError
from instant_nk.io import artifact
from instant_nk.io import dataset as datasets
from instant_nk.io import observation as observations
from instant_nk.stages import observation
from tests.unit import neural_fixtures

DIAGONAL = 2 * 3**0.5  # of the scene's box, an upper bound of the subject's


@pytest.fixture(scope="module")
def body(tmp_path_factory):
    return neural_fixtures.body(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def depth(body, tmp_path_factory):
    job = body.variant(part="000000-000003", results=tmp_path_factory.mktemp("depth"), observation={"provider": "depth"})
    observation.run(job)
    return job


@pytest.fixture(scope="module")
def neural(body, tmp_path_factory):
    job = body.variant(part="000001-000002", results=tmp_path_factory.mktemp("neural"), observation={"provider": "neural", "steps": 30})
    observation.run(job)
    return job


def against_truth(body, job, frame):
    """Observation, distances of its points to the true surface, and cosines of its normals with the true ones."""
    seen, truth = observations.load(job.paths.observation(frame)), body.scene_truth(frame)
    _, distance, face = trimesh.proximity.closest_point(truth, seen.points)
    return seen, distance, (truth.face_normals[face] * seen.normals).sum(1)


def checked(seen, cameras):
    """What every provider owes."""
    assert np.isfinite(seen.points).all() and np.abs(seen.points).max() <= 1
    np.testing.assert_allclose(np.linalg.norm(seen.normals, axis=1), 1, atol=1e-4)
    assert seen.colours.min() >= 0 and seen.colours.max() <= 1
    assert seen.confidence.min() >= 0 and seen.confidence.max() <= 1
    assert seen.n_views.min() >= 0 and seen.n_views.max() <= cameras


@pytest.mark.parametrize("frame", [0, 1, 2, 3])
def test_depth_maps_give_points_on_the_true_surface_facing_outwards(body, depth, frame):
    seen, distance, cosine = against_truth(body, depth, frame)
    checked(seen, 6)
    diagonal = np.linalg.norm(np.ptp(body.scene_truth(frame).vertices, axis=0))
    assert len(seen.points) > 400 and seen.faces is None
    assert distance.max() < 0.01 * diagonal and distance.mean() < 1e-3 * diagonal
    assert np.percentile(cosine, 2) > 0.9


def test_depth_points_cover_the_surface_that_cameras_see(body, depth):
    seen, truth = observations.load(depth.paths.observation(1)), body.scene_truth(1)
    visible = np.load(body.capture / "gt" / "visibility.npz")["n_views"][1] >= 3
    distance = np.linalg.norm(truth.vertices[visible][::20, None] - seen.points, axis=-1).min(1)
    assert np.percentile(distance, 90) < 0.1


def test_depth_views_are_cameras_not_pixels(body, tmp_path):
    """With few points kept, a voxel holds many pixels but at most six cameras."""
    job = body.variant(part="000000-000000", results=tmp_path, observation={"provider": "depth", "max_points": 60})
    observation.run(job)
    seen = observations.load(job.paths.observation(0))
    assert len(seen.points) < 150
    assert seen.n_views.max() <= 6 and seen.n_views.min() >= 1 and (seen.n_views < 6).any()


def test_a_capture_without_depth_says_what_to_do(body, tmp_path):
    job = body.variant(part="000000-000000", results=tmp_path, observation={"provider": "depth"})
    manifest = json.loads(job.paths.manifest.read_text())
    artifact.save_json(job.paths.manifest, manifest | {"depth": None})
    with pytest.raises(DataError, match=r"no depth maps.*observation\.provider: neural"):
        observation.run(job)


def test_a_depth_map_of_another_size_is_named(body, tmp_path):
    import imageio.v3 as iio

    job = body.variant(part="000000-000000", results=tmp_path, observation={"provider": "depth"})
    made = datasets.load(job.paths.manifest)
    manifest = json.loads(job.paths.manifest.read_text())
    iio.imwrite(tmp_path / "small.png", np.zeros((10, 12), np.uint16))
    manifest["depth"]["0"][3] = str(tmp_path / "small.png")
    artifact.save_json(job.paths.manifest, manifest)
    with pytest.raises(DataError, match=rf"camera {made.cameras.names[3]}, frame 0: wanted a depth map of 48x48 pixels like the image, got 12x10"):
        observation.run(job)


def test_no_surface_in_sight_is_an_error_with_its_frame(body, tmp_path):
    import imageio.v3 as iio

    job = body.variant(part="000000-000001", results=tmp_path, observation={"provider": "depth"})
    manifest = json.loads(job.paths.manifest.read_text())
    iio.imwrite(tmp_path / "empty.png", np.zeros((48, 48), np.uint16))
    manifest["depth"]["1"] = [str(tmp_path / "empty.png")] * 6
    artifact.save_json(job.paths.manifest, manifest)
    with pytest.raises(DataError, match=r"frame 1: no surface was observed \(provider depth\)"):
        observation.run(job)
    assert not job.paths.observation_batch(job.part).exists()  # so the batch is not taken for done


# Neural


@pytest.mark.parametrize("frame", [1, 2])
def test_the_quick_neural_surface_is_closed_finite_and_near_the_truth(body, neural, frame):
    seen, distance, cosine = against_truth(body, neural, frame)
    checked(seen, 6)
    assert len(seen.points) > 300
    assert distance.mean() < 0.04 and np.median(cosine) > 0.85
    assert not seen.boundary.any()
    assert trimesh.Trimesh(seen.points, seen.faces, process=False).volume > 0


def test_neural_observations_say_how_well_they_explain_the_images(neural):
    frames = neural_fixtures.numbers(neural.paths.observation_batch(neural.part))["frames"]
    assert sorted(frames) == ["1", "2"]
    assert all(f["psnr_db"] > 8 and f["inv_std"] > 0 and f["points"] > 0 for f in frames.values())


def test_points_that_no_camera_sees_are_trusted_little(neural):
    seen = observations.load(neural.paths.observation(1))
    assert seen.confidence[seen.n_views >= 3] == pytest.approx(1) and (seen.confidence[seen.n_views == 0] < 0.11).all()
    assert (np.diff(seen.confidence[np.argsort(seen.n_views, kind="stable")]) >= -1e-6).all()


def test_a_frame_is_observed_alike_alone_and_in_a_batch(body, neural, tmp_path):
    job = body.variant(part="000002-000002", results=tmp_path, observation={"provider": "neural", "steps": 30})
    observation.run(job)
    alone, batch = (observations.load(j.paths.observation(2)) for j in (job, neural))
    np.testing.assert_array_equal(alone.points, batch.points)


# Given meshes


@pytest.fixture
def folder(body, tmp_path):
    """The true meshes of frames 0 and 1 in a folder."""
    path = tmp_path / "meshes"
    path.mkdir()
    for frame in (0, 1):
        shutil.copy(body.capture / "gt" / f"mesh_{frame:04d}.ply", path / f"scan_{frame:03d}.ply")
    return path


def meshes(body, folder, part="000000-000001"):
    return body.variant(part=part, results=folder.parent / "results", observation={"provider": "meshes", "folder": str(folder)})


def test_given_meshes_become_observations_in_scene_space(body, folder):
    job = meshes(body, folder)
    observation.run(job)
    for frame in (0, 1):
        seen, distance, cosine = against_truth(body, job, frame)
        checked(seen, 6)
        assert distance.max() < 0.02 and np.median(cosine) > 0.95  # decimated to max_points
        assert len(seen.points) <= 1.1 * 1500 and seen.n_views.max() >= 3


def test_the_edge_of_an_open_mesh_is_boundary(body, folder):
    mesh = trimesh.load(folder / "scan_000.ply", process=False)
    mesh.update_faces(mesh.triangles_center[:, 1] > np.median(mesh.vertices[:, 1]))
    mesh.export(folder / "scan_000.ply")
    job = meshes(body, folder, "000000-000000")
    observation.run(job)
    seen = observations.load(job.paths.observation(0))
    assert 0 < seen.boundary.mean() < 0.3
    lowest = seen.points[:, 1].min()
    assert (seen.points[seen.boundary, 1] < lowest + 0.1).all()


def test_a_coarse_mesh_is_observed_all_over_its_faces(body, folder):
    for path in folder.iterdir():
        mesh = trimesh.load(path, process=False)
        mesh.simplify_quadric_decimation(face_count=60).export(path)
    job = meshes(body, folder)
    observation.run(job)
    seen = observations.load(job.paths.observation(0))
    samples = trimesh.sample.sample_surface(trimesh.Trimesh(seen.points, seen.faces, process=False), 2000, seed=0)[0]
    apart = np.linalg.norm(samples[:, None] - seen.points, axis=-1).min(1)
    assert apart.max() < 0.15  # scene units, of a box of two; the faces are up to half a unit long


def test_a_mesh_that_faces_inwards_is_turned_round(body, folder):
    mesh = trimesh.load(folder / "scan_000.ply", process=False)
    mesh.invert()
    mesh.export(folder / "scan_000.ply")
    job = meshes(body, folder, "000000-000000")
    observation.run(job)
    assert np.median(against_truth(body, job, 0)[2]) > 0.95


def test_a_missing_frame_folder_or_whole_mesh_is_named(body, folder, tmp_path):
    with pytest.raises(DataError, match=r"no mesh for frame 2; found frames \[0, 1\]\. Name files by frame number, e\.g\. mesh_0002\.ply"):
        observation.run(meshes(body, folder, "000002-000002"))
    with pytest.raises(DataError, match=r"observation\.folder: .*nowhere: no such folder"):
        observation.run(meshes(body, tmp_path / "nowhere"))
    content = (folder / "scan_001.ply").read_bytes()
    (folder / "scan_001.ply").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"scan_001\.ply: the mesh cannot be read"):
        observation.run(meshes(body, folder, "000001-000001"))
    with pytest.raises(ConfigError, match=r"observation\.folder.*a folder of per-frame meshes"):
        body.variant(part="000000-000000", observation={"provider": "meshes"})


def test_a_mesh_in_other_coordinates_is_refused(body, folder):
    mesh = trimesh.load(folder / "scan_000.ply", process=False)
    mesh.apply_translation([5, 0, 0])
    mesh.export(folder / "scan_000.ply")
    with pytest.raises(DataError, match=r"scan_000\.ply: 100 % of its vertices lie outside the capture's box .*world coordinates, at frame 0"):
        observation.run(meshes(body, folder, "000000-000000"))


def test_batches_that_were_cut_otherwise_are_not_taken_for_done(body, folder):
    job = meshes(body, folder)
    others = [job.paths.observation_batch(part) for part in ("000000-000000", "000001-000002", "000002-000003")]
    for marker in others:
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.write_text("{}")
    observation.run(job)
    assert [marker.exists() for marker in others] == [False, False, True]
    assert job.paths.observation_batch(job.part).exists()


def test_a_slope_is_no_occlusion_however_few_pixels_show_it(body, tmp_path):
    """In images of 48 x 48 pixels the depth of a round limb changes by more from pixel to pixel than an occluding edge needs in a large one."""
    job = body.variant(part="000000-000000", results=tmp_path, observation={"provider": "depth"})
    observation.run(job)
    data = datasets.load(job.paths.manifest)
    inside = sum(int((data.image(camera, 0)[..., 3] > 127).sum()) for camera in range(len(data.cameras)))
    used = neural_fixtures.numbers(job.paths.observation_batch(job.part))["frames"]["0"]["depth_pixels"]
    assert used > 0.55 * inside  # the rest lies along outlines


def test_frames_observed_side_by_side_are_those_observed_one_by_one(body, folder, monkeypatch):
    """As on a GPU, where four frames are worked on at once; their meshes are thinned, in a library whose memory all threads share."""
    given = {"provider": "meshes", "folder": str(body.capture / "gt"), "max_points": 300}
    alone = body.variant(part="000000-000003", results=folder / "alone", observation=given)
    observation.run(alone)
    monkeypatch.setattr(observation, "together", lambda job: 3)
    beside = body.variant(part="000000-000003", results=folder / "beside", observation=given)
    observation.run(beside)
    for frame in range(4):
        one, other = (observations.load(job.paths.observation(frame)) for job in (alone, beside))
        np.testing.assert_array_equal(one.points, other.points)
        np.testing.assert_array_equal(one.colours, other.colours)


def test_what_runs_beside_keeps_its_thread_and_tells_its_error():
    seen = []
    with observation.Beside("cpu") as place:
        place.wait()
        for _ in range(3):
            place.start(lambda: seen.append(threading.get_ident()))
            place.wait()
        place.start(lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            place.wait()
        place.wait()
    assert len(set(seen)) == 1 and len(seen) == 3
