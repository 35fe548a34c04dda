"""Stage 1 from capture to manifest: what it writes, what it refuses, and how much memory it takes."""

import json
import logging
import os
import shutil
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from instant_nk.errors import ConfigError, ContractError, DataError
from instant_nk.geometry import spaces
from instant_nk.io import artifact
from instant_nk.io import dataset as datasets
from instant_nk.stages import dataset
from tests.unit.capture_writer import BACKDROP, BALLS, job, rewrite, write_capture


def ran(root, results, **sections):
    """The dataset of a capture."""
    work = job(root, results, **sections)
    dataset.run(work)
    return datasets.load(work.paths.manifest)


def inside_subject(made, frame, scale=1.0, offset=0.0, grow=0.0):
    """Voxels of a dataset's hulls whose centres lie in the written subject."""
    resolution = made.hull(frame).shape[0]
    axis = (2 * np.arange(resolution) + 1) / resolution - 1
    world = spaces.transform_points(made.world_from_scene, np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1))
    points = (world - offset) / scale
    return np.any([np.linalg.norm(points - c - [0, 0.04 * frame * i, 0], axis=-1) <= r + grow for i, (c, r, _) in enumerate(BALLS)], axis=0)


def files_below(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_a_capture_of_plain_rgba_becomes_a_dataset_without_copies(tmp_path):
    write_capture(tmp_path / "c", frames=3, cameras=6, heldout=2)
    made = ran(tmp_path / "c", tmp_path / "r")
    assert made.frames == (0, 1, 2) and len(made.cameras) == 6 and len(made.heldout) == 2
    assert files_below(made.root) == ["dataset.json", "hulls/000000.npz", "hulls/000001.npz", "hulls/000002.npz", "listing.json", "metrics.json"]
    np.testing.assert_array_equal(made.image(4, 2), np.asarray(Image.open(tmp_path / "c" / "images" / "2" / "cam_004.png")))
    np.testing.assert_array_equal(made.heldout_image(1, 0), np.asarray(Image.open(tmp_path / "c" / "images_test" / "0" / "cam_001.png")))
    np.testing.assert_allclose(np.abs(spaces.transform_points(made.scene_from_world, made.box)).max(), 1)
    for frame in made.frames:
        assert made.hull(frame)[inside_subject(made, frame)].all()
        assert not made.hull(frame)[~inside_subject(made, frame, grow=0.4)].any()
    metrics = json.loads((made.root / "metrics.json").read_text())
    assert {"wall_s", "peak_host_mib", "frames", "cameras", "canonical_frame", "mask_outside_box_worst_share"} <= metrics.keys()
    header = json.loads((made.root / "dataset.json").read_text())["header"]
    assert header["artifact"] == "dataset" and header["stage"] == "dataset" and len(header["inputs"]["capture"]) == 16


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("shift", [0.0, 10.0])
def test_any_scale_and_any_offset_give_the_same_hulls(tmp_path, scale, shift):
    offset = np.array([shift, -shift, 0.5 * shift]) * 2 * scale
    write_capture(tmp_path / "c", frames=1, scale=scale, offset=offset)
    made = ran(tmp_path / "c", tmp_path / "r")
    reference = tmp_path / "reference"
    write_capture(reference, frames=1)
    hull, wanted = made.hull(0), ran(reference, tmp_path / "q").hull(0)
    assert (hull != wanted).mean() < 1e-3
    assert hull[inside_subject(made, 0, scale, offset)].all()


def test_frames_and_cameras_of_the_config_are_used(tmp_path):
    write_capture(tmp_path / "c", frames=6, cameras=8)
    made = ran(tmp_path / "c", tmp_path / "r", frames={"first": 1, "count": 2, "step": 3}, dataset={"cameras": ["cam_002.png", "cam_005.png", "cam_006.png"]})
    assert made.frames == (1, 4) and made.cameras.names == ("cam_002.png", "cam_005.png", "cam_006.png")
    assert made.canonical_frame in (1, 4)
    np.testing.assert_array_equal(made.image(1, 4), np.asarray(Image.open(tmp_path / "c" / "images" / "4" / "cam_005.png")))
    assert len(ran(tmp_path / "c", tmp_path / "r", dataset={"cameras": 3}).cameras) == 3


def test_converted_images_lie_in_the_dataset_with_their_new_intrinsics(tmp_path):
    lens = {"k1": -0.2}
    write_capture(tmp_path / "c", frames=2, cameras=5, heldout=1, size=(64, 48), lens=lens, depth=True)
    made = ran(tmp_path / "c", tmp_path / "r", dataset={"max_image_side": 32})
    assert (made.root / "images" / "1" / "cam_003.png").is_file() and (made.root / "images_test" / "0" / "cam_000.png").is_file()
    assert made.image(3, 1).shape == (24, 32, 4) and made.heldout_image(0, 1).shape == (24, 32, 4)
    assert made.depth_map(3, 1).shape == (24, 32) and 2.5 < made.depth_map(3, 1).max() < 4.2
    assert made.cameras.sizes.tolist() == [[32, 24]] * 5
    assert made.hull(0)[inside_subject(made, 0)].all()


def test_a_backdrop_capture_trains_like_a_masked_one(tmp_path):
    write_capture(tmp_path / "c", mode="RGB")
    made = ran(tmp_path / "c", tmp_path / "r", dataset={"background": list(map(float, BACKDROP))})
    assert made.hull(1)[inside_subject(made, 1, grow=-0.03)].all()
    assert json.loads((made.root / "dataset.json").read_text())["extra"]["masks"] == "colour"


def test_held_out_images_may_be_absent(tmp_path):
    write_capture(tmp_path / "c", heldout=2)
    shutil.rmtree(tmp_path / "c" / "images_test" / "1")
    made = ran(tmp_path / "c", tmp_path / "r")
    assert made.heldout_image(1, 0).shape == (32, 40, 4) and made.heldout_image(1, 1) is None and len(made.heldout) == 2


def test_a_box_is_proposed_from_the_clip_where_none_is_given(tmp_path):
    write_capture(tmp_path / "c", frames=5, cameras=8, box=False, size=(64, 48))
    made = ran(tmp_path / "c", tmp_path / "r")
    low = np.min([c - r for c, r, _ in BALLS], axis=0)
    high = np.max([c + r + [0, 0.04 * 4 * i, 0] for i, (c, r, _) in enumerate(BALLS)], axis=0)
    assert (made.box[0] < low).all() and (made.box[1] > high).all()
    assert (made.box[1] - made.box[0] < 1.6 * (high - low)).all()
    assert json.loads((made.root / "dataset.json").read_text())["extra"]["box_source"] == "proposed from the visual hulls"


def test_the_configs_box_beats_the_captures(tmp_path):
    write_capture(tmp_path / "c")
    made = ran(tmp_path / "c", tmp_path / "r", dataset={"box": [[-1, -1, -1], [1, 1.5, 1]]})
    np.testing.assert_array_equal(made.box, [[-1, -1, -1], [1, 1.5, 1]])


def test_the_canonical_frame_is_the_first_where_it_is_open_else_an_open_one_near_the_middle_or_the_one_asked_for(tmp_path):
    assert dataset.choose_canonical({0: 102, 1: 99, 2: 101, 3: 100, 4: 100}) == 0
    assert dataset.choose_canonical({0: 80, 1: 99, 2: 101, 3: 100, 4: 100}) == 2
    assert dataset.choose_canonical({0: 80, 1: 120, 2: 101, 3: 100, 4: 100}) == 1
    assert dataset.choose_canonical({7: 10}) == 7
    # hulls of clips on which every frame was tried as the rest shape: the choice is the best of each
    assert dataset.choose_canonical({0: 5322, 1: 5530, 2: 5604, 3: 5544}) == 2  # a first frame with folded limbs: twice the tracking error
    assert dataset.choose_canonical({0: 3078, 1: 3102, 2: 3134, 3: 3150}) == 2
    assert dataset.choose_canonical({0: 3970, 1: 3624, 2: 3568, 3: 4178}) == 0
    write_capture(tmp_path / "c", frames=3)
    assert ran(tmp_path / "c", tmp_path / "r", dataset={"canonical_frame": 2}).canonical_frame == 2
    with pytest.raises(ConfigError, match=r"'dataset.canonical_frame': wanted one of the frames used \(0 to 2\), got 9"):
        dataset.run(job(tmp_path / "c", tmp_path / "r", dataset={"canonical_frame": 9}))


def test_every_missing_image_is_listed(tmp_path):
    write_capture(tmp_path / "c", frames=3)
    for name in ("0/cam_001.png", "2/cam_004.png"):
        (tmp_path / "c" / "images" / name).unlink()
    with pytest.raises(DataError, match=r"2 missing:\n  .*images/0/cam_001.png\n  .*images/2/cam_004.png\nRestore them, or leave them out") as caught:
        dataset.run(job(tmp_path / "c", tmp_path / "r"))
    assert caught.value.exit_code != 0


def empty_masks(root, frames, cameras=None):
    for t in frames:
        for path in sorted((root / "images" / str(t)).glob("*.png")):
            if cameras is None or path.name in cameras:
                Image.new("RGBA", (40, 32)).save(path)


def test_all_empty_masks_are_named_with_their_frame(tmp_path):
    write_capture(tmp_path / "c", frames=3)
    empty_masks(tmp_path / "c", [1])
    with pytest.raises(DataError, match=r"images: the masks of all 6 cameras are empty at frame 1\. Check the masks, or choose other frames"):
        dataset.run(job(tmp_path / "c", tmp_path / "r"))


def test_one_empty_mask_does_not_vote_and_is_logged(tmp_path, caplog):
    write_capture(tmp_path / "c")
    empty_masks(tmp_path / "c", [1], ["cam_002.png"])
    with caplog.at_level(logging.WARNING, logger="instant_nk"):
        made = ran(tmp_path / "c", tmp_path / "r")
    assert "frame 1: empty masks do not vote: cam_002.png" in caplog.text
    assert made.hull(1)[inside_subject(made, 1)].all()


def test_a_subject_partly_outside_the_box_is_named_per_camera(tmp_path):
    write_capture(tmp_path / "c")
    with pytest.raises(
        DataError,
        match=r"at frame 0 the subject reaches outside the box in \d of 6 cameras \(share of the mask outside: cam_00\d.png \d+ %.*from dataset.box, is \[\[-0.6",
    ):
        dataset.run(job(tmp_path / "c", tmp_path / "r", dataset={"box": [[-0.6, -0.6, -0.6], [0.45, 0.75, 0.6]]}))
    with pytest.raises(DataError, match=r"outside the box in 6 of 6 cameras .*cam_000.png 100 %"):
        dataset.run(job(tmp_path / "c", tmp_path / "r", dataset={"box": [[2, 2, 2], [3, 3, 3]]}))


def test_a_stray_blob_in_one_mask_is_only_logged(tmp_path, caplog):
    write_capture(tmp_path / "c")
    path = tmp_path / "c" / "images" / "1" / "cam_003.png"
    image = np.asarray(Image.open(path)).copy()
    image[:4, :8] = 255
    Image.fromarray(image).save(path)
    with caplog.at_level(logging.WARNING, logger="instant_nk"):
        ran(tmp_path / "c", tmp_path / "r")
    assert "frame 1: the mask of one camera reaches outside the box: cam_003.png" in caplog.text


def test_a_mask_that_contradicts_the_others_is_found(tmp_path):
    write_capture(tmp_path / "c", cameras=7)
    blob = np.zeros((32, 40, 4), np.uint8)
    blob[6:9, 9:12] = 255
    Image.fromarray(blob).save(tmp_path / "c" / "images" / "0" / "cam_004.png")
    with pytest.raises(
        DataError,
        match=r"contradict each other at frame 0: points that lie in all masks account for \d+ % of a mask\. Without cam_004.png they account for \d+ %: check",
    ):
        dataset.run(job(tmp_path / "c", tmp_path / "r"))


def test_a_camera_that_looks_elsewhere_is_named(tmp_path):
    meta = write_capture(tmp_path / "c", cameras=7)
    matrix = np.array(meta["frames"][4]["transform_matrix"])
    matrix[:3, 3] += matrix[:3, 0] * 1.6
    meta["frames"][4]["transform_matrix"] = matrix.tolist()
    rewrite(tmp_path / "c", meta)
    with pytest.raises(
        DataError, match=r"at frame 0 the subject reaches outside the box in 1 of 7 cameras .*cam_004.png \d+ %\)\. Check that camera's pose and mask"
    ):
        dataset.run(job(tmp_path / "c", tmp_path / "r"))


def test_poses_in_other_axes_are_named(tmp_path):
    meta = write_capture(tmp_path / "c")
    for entry in meta["frames"]:
        entry["transform_matrix"] = (np.array(entry["transform_matrix"]) @ np.diag([1.0, -1, -1, 1])).tolist()
    rewrite(tmp_path / "c", meta)
    with pytest.raises(DataError, match="outside the box in 6 of 6 cameras|Poses must be camera-to-world in OpenGL axes"):
        dataset.run(job(tmp_path / "c", tmp_path / "r"))


def test_parallel_cameras_without_a_box_are_named(tmp_path):
    meta = write_capture(tmp_path / "c", box=False)
    for i, entry in enumerate(meta["frames"]):
        entry["transform_matrix"] = [[1, 0, 0, 0.01 * i], [0, 1, 0, 0], [0, 0, 1, 2.6], [0, 0, 0, 1]]
    rewrite(tmp_path / "c", meta)
    with pytest.raises(
        DataError, match=r"gives no box \('aabb'\) and none can be proposed: the cameras look in \(almost\) parallel directions\. Give dataset.box"
    ):
        dataset.run(job(tmp_path / "c", tmp_path / "r"))


@pytest.mark.parametrize("stop", ["truncated image", "disk full"])
def test_a_failed_run_leaves_nothing_half_written_and_keeps_what_was_there(tmp_path, monkeypatch, stop):
    write_capture(tmp_path / "c", mode="RGB")
    settings = {"background": list(map(float, BACKDROP))}
    first = ran(tmp_path / "c", tmp_path / "r", dataset=settings)
    before = {name: (first.root / name).read_bytes() for name in files_below(first.root)}
    if stop == "truncated image":
        path = tmp_path / "c" / "images" / "1" / "cam_005.png"
        path.write_bytes(path.read_bytes()[:-30])
        wanted = pytest.raises(DataError, match=r"images/1/cam_005.png: the image is truncated")
    else:
        real = Image.Image.save

        def full(self, target, **options):
            if "1/" in str(target):
                raise OSError(28, "No space left on device")
            return real(self, target, **options)

        monkeypatch.setattr(Image.Image, "save", full)
        wanted = pytest.raises(ContractError, match=r"cam_00\d.png: could not be written: No space left on device\. Nothing was left half-written; free space")
    with wanted:
        dataset.run(job(tmp_path / "c", tmp_path / "r", dataset=settings))
    assert {name: (first.root / name).read_bytes() for name in files_below(first.root)} == before


def test_what_a_killed_run_left_is_removed_and_the_same_command_completes(tmp_path):
    write_capture(tmp_path / "c")
    root = tmp_path / "r" / "s" / "1_dataset"
    (root / ".partial-99999" / "images").mkdir(parents=True)
    (root / ".partial-99999" / "images" / "x.png").write_text("half")
    made = ran(tmp_path / "c", tmp_path / "r")
    assert not [p for p in made.root.iterdir() if p.name.startswith(".partial")]


def test_images_of_an_earlier_run_that_are_not_used_any_more_are_removed(tmp_path):
    write_capture(tmp_path / "c", frames=3, mode="RGB")
    settings = {"background": list(map(float, BACKDROP))}
    ran(tmp_path / "c", tmp_path / "r", dataset=settings)
    made = ran(tmp_path / "c", tmp_path / "r", dataset=settings, frames={"count": 1})
    assert sorted(p.name for p in (made.root / "images").iterdir()) == ["0"]
    assert files_below(made.root / "hulls") == ["000000.npz"]


def test_a_second_run_says_what_changed_in_the_capture(tmp_path, caplog):
    write_capture(tmp_path / "c")
    ran(tmp_path / "c", tmp_path / "r")
    os.utime(tmp_path / "c" / "images" / "1" / "cam_002.png", ns=(5, 5))
    (tmp_path / "r" / "s" / "1_dataset" / "dataset.json").unlink()  # as Snakemake does before it runs a rule again
    with caplog.at_level(logging.WARNING, logger="instant_nk"):
        ran(tmp_path / "c", tmp_path / "r")
    assert "the capture changed since the last run: 1 changed: images/1/cam_002.png" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="instant_nk"):
        ran(tmp_path / "c", tmp_path / "r")
    assert "changed" not in caplog.text


def test_a_capture_that_changes_while_it_is_read_is_refused(tmp_path, monkeypatch):
    write_capture(tmp_path / "c")
    real = dataset.choose_canonical

    def meddle(surface):
        os.utime(tmp_path / "c" / "images" / "0" / "cam_001.png", ns=(5, 5))
        return real(surface)

    monkeypatch.setattr(dataset, "choose_canonical", meddle)
    work = job(tmp_path / "c", tmp_path / "r")
    with pytest.raises(DataError, match=r"the capture changed while it was read \(1 changed: images/0/cam_001.png\)"):
        dataset.run(work)
    assert not work.paths.manifest.exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda path: path.unlink(), r"the image cannot be read .*It was readable when stage 'dataset' ran; restore it or re-run that stage"),
        (lambda path: path.write_bytes(path.read_bytes()[:50]), r"the image cannot be read .*re-run that stage"),
        (
            lambda path: Image.new("RGBA", (8, 8)).save(path),
            r"wanted 8-bit RGBA of 40x32 pixels, got uint8 \(8, 8, 4\)\. The capture changed; re-run stage 'dataset'",
        ),
        (lambda path: Image.new("RGB", (40, 32)).save(path), r"wanted 8-bit RGBA of 40x32 pixels, got uint8 \(32, 40, 3\)\. The capture changed"),
    ],
    ids=["gone", "truncated", "other size", "without masks"],
)
def test_an_image_that_changes_after_the_dataset_was_made_is_named_by_who_reads_it(tmp_path, change, said):
    write_capture(tmp_path / "c")
    made = ran(tmp_path / "c", tmp_path / "r")
    change(tmp_path / "c" / "images" / "1" / "cam_002.png")
    with pytest.raises(DataError, match=rf"images/1/cam_002.png: {said}"):
        made.image(2, 1)


def test_an_unwritable_results_folder_is_named(tmp_path):
    write_capture(tmp_path / "c")
    (tmp_path / "r").write_text("a file where the folder should be")
    with pytest.raises(ContractError, match=r"1_dataset: cannot be written \(Not a directory\)"):
        dataset.run(job(tmp_path / "c", tmp_path / "r"))


def test_the_same_capture_gives_the_same_bytes(tmp_path):
    write_capture(tmp_path / "c")
    one, two = ran(tmp_path / "c", tmp_path / "r"), ran(tmp_path / "c", tmp_path / "q")
    for frame in one.frames:
        np.testing.assert_array_equal(one.hull(frame), two.hull(frame))
    assert artifact.load_json(one.root / "dataset.json") == artifact.load_json(two.root / "dataset.json")


def test_memory_does_not_grow_with_the_number_of_frames(tmp_path):
    write_capture(tmp_path / "c", frames=2, cameras=4, size=(320, 240), mode="RGB")
    for t in range(2, 24):
        shutil.copytree(tmp_path / "c" / "images" / "0", tmp_path / "c" / "images" / str(t))
    peaks = []
    for count in (3, 3, 24):  # the first run loads libraries
        tracemalloc.start()
        ran(tmp_path / "c", tmp_path / "r", dataset={"background": list(map(float, BACKDROP))}, frames={"count": count})
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    one_frame = 4 * 320 * 240 * 4
    assert peaks[2] - peaks[1] < 0.5 * one_frame  # 21 frames more


def test_the_stage_loads_no_torch(tmp_path):
    import subprocess
    import sys

    code = "import sys; from instant_nk.stages import dataset, check; assert 'torch' not in sys.modules and 'scipy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_real_capture_gives_hulls_that_hold_its_true_surface(fox_tiny, tmp_path):
    trimesh = pytest.importorskip("trimesh")
    made = ran(fox_tiny, tmp_path / "r")
    assert made.frames == (0, 1, 2, 3) and len(made.cameras) == 12 and len(made.heldout) == 4
    for frame in made.frames:
        mesh = trimesh.load(fox_tiny / "gt" / f"mesh_{frame:04d}.ply", process=False)
        points = spaces.transform_points(made.scene_from_world, trimesh.sample.sample_surface(mesh, 20000, seed=0)[0])
        hull = made.hull(frame)
        cells = np.floor((points + 1) / 2 * hull.shape[0]).astype(int)
        assert hull[tuple(cells.T)].mean() > 0.9999
        assert hull.mean() < 0.03


@pytest.mark.parametrize("given", [True, False])
def test_a_capture_so_far_from_the_origin_that_meshes_would_be_rounded_is_refused(tmp_path, given):
    """As in a national grid: half a million units away, six digits are left for where and one for the shape."""
    meta = write_capture(tmp_path / "c", box=given)
    moved = np.array([5e5, 4.5e6, 100.0])
    for frame in meta["frames"]:
        frame["transform_matrix"] = (np.array(frame["transform_matrix"]) + np.pad(moved[:, None], ((0, 1), (3, 0)))).tolist()
    if given:
        meta["aabb"] = (np.array(meta["aabb"]) + moved).tolist()
    (tmp_path / "c" / "transforms.json").write_text(json.dumps(meta))
    with pytest.raises(
        DataError, match=r"of its edges from the origin, where single precision.*Subtract \[5000\d\d\.\d*, 45000\d\d\.\d*, 100\.\d*\] from the cameras"
    ):
        dataset.run(job(tmp_path / "c", tmp_path / "r"))
