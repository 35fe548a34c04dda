"""Captures on disk: layouts, frames, camera choice and the listing by which a change is noticed."""

import json
import os
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest

from instant_nk import config
from instant_nk.config import FramesConfig
from instant_nk.errors import ConfigError, DataError
from instant_nk.io import capture
from tests.unit.capture_writer import rewrite, write_capture


def frames(**keys):
    return FramesConfig(**keys)


def listed(root, meta, timed=True, name=lambda c, t: f"images/cam{c:02d}/{t:04d}.png", times=(0.0, 0.25, 0.5)):
    """Rewrite a published capture's json as one entry per camera and time; no images are moved."""
    entries = []
    for t, value in enumerate(times):
        for c, camera in enumerate(meta["frames"]):
            entries.append({**camera, "file_path": name(c, t)} | ({"time": value} if timed else {}))
    rewrite(root, {k: v for k, v in meta.items() if k not in ("frames", "file_folder")} | {"frames": entries})


def test_reading_a_capture_loads_no_torch_and_is_quick():
    code = "import sys, time; t = time.perf_counter(); from instant_nk.io import capture; print(time.perf_counter() - t); assert 'torch' not in sys.modules"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(out.stdout) < 3.0


def test_with_a_test_json_all_cameras_train_and_its_cameras_are_held_out(tmp_path):
    write_capture(tmp_path, cameras=4, heldout=2)
    found = capture.read(tmp_path)
    assert [c.name for c in found.train.cameras] == ["cam_000.png", "cam_001.png", "cam_002.png", "cam_003.png"]
    assert [c.name for c in found.heldout.cameras] == ["cam_000.png", "cam_001.png"]
    assert found.heldout.file(found.heldout.cameras[1], 1) == tmp_path / "images_test" / "1" / "cam_001.png"


def test_without_a_test_json_the_first_camera_is_held_out(tmp_path):
    meta = write_capture(tmp_path, cameras=4, heldout=0)
    meta["frames"].reverse()  # the order in the json does not matter: cameras are sorted by file name
    rewrite(tmp_path, meta)
    found = capture.read(tmp_path)
    assert [c.name for c in found.train.cameras] == ["cam_001.png", "cam_002.png", "cam_003.png"]
    assert [c.name for c in found.heldout.cameras] == ["cam_000.png"]
    assert found.heldout.file(found.heldout.cameras[0], 1) == tmp_path / "images" / "1" / "cam_000.png"


def test_one_camera_without_a_test_json_leaves_none_to_train(tmp_path):
    write_capture(tmp_path, cameras=1, heldout=0)
    with pytest.raises(DataError, match="one camera only, and without transforms_test.json the first is held out"):
        capture.read(tmp_path)


def test_frame_folders_may_be_padded_but_not_double(tmp_path):
    write_capture(tmp_path, frames=3)
    os.rename(tmp_path / "images" / "2", tmp_path / "images" / "000002")
    found = capture.read(tmp_path)
    assert found.frames == [0, 1, 2]
    assert found.train.file(found.train.cameras[0], 2) == tmp_path / "images" / "000002" / "cam_000.png"
    shutil.copytree(tmp_path / "images" / "1", tmp_path / "images" / "01")
    with pytest.raises(DataError, match="two folders for frame 1"):
        capture.read(tmp_path)


def test_without_file_folder_images_are_looked_for_in_images_or_beside_the_json(tmp_path):
    meta = write_capture(tmp_path / "a")
    del meta["file_folder"]
    rewrite(tmp_path / "a", meta)
    assert capture.read(tmp_path / "a").train.file(capture.read(tmp_path / "a").train.cameras[0], 1) == tmp_path / "a" / "images" / "1" / "cam_000.png"
    for name in ("0", "1"):
        os.rename(tmp_path / "a" / "images" / name, tmp_path / "a" / name)
    found = capture.read(tmp_path / "a")
    assert found.train.file(found.train.cameras[0], 1) == tmp_path / "a" / "1" / "cam_000.png"


def test_a_capture_without_frame_folders_is_one_frame(tmp_path):
    meta = write_capture(tmp_path, frames=1)
    for image in (tmp_path / "images" / "0").iterdir():
        image.rename(tmp_path / "images" / image.name)
    (tmp_path / "images" / "0").rmdir()
    found = capture.read(tmp_path)
    assert found.frames == [0]
    assert found.train.file(found.train.cameras[2], 0) == tmp_path / "images" / "cam_002.png"
    for entry in meta["frames"]:
        entry["file_path"] = "./images/" + entry["file_path"].removesuffix(".png")  # as NeRF's files have it
    del meta["file_folder"]
    rewrite(tmp_path, meta)
    found = capture.read(tmp_path)
    assert found.frames == [0]
    assert found.train.file(found.train.cameras[2], 0).is_file()
    assert found.train.cameras[2].name == "images/cam_002.png"


def test_entries_with_time_are_grouped_into_cameras_and_times_are_ranked(tmp_path):
    listed(tmp_path, write_capture(tmp_path, cameras=4, heldout=0))
    found = capture.read(tmp_path)
    assert found.frames == [0, 1, 2]
    assert [c.name for c in found.train.cameras] == ["cam01.png", "cam02.png", "cam03.png"]
    assert found.train.file(found.train.cameras[0], 2) == tmp_path / "images" / "cam01" / "0002.png"
    assert capture.list_frames(tmp_path, frames()) == [0, 1, 2]


def test_whole_times_are_frame_numbers(tmp_path):
    listed(tmp_path, write_capture(tmp_path, cameras=4, heldout=0), times=(10, 12, 14))
    assert capture.list_frames(tmp_path, frames()) == [10, 12, 14]
    assert capture.list_frames(tmp_path, frames(first=12)) == [12, 14]


def test_held_out_entries_share_the_frames_of_the_training_times(tmp_path):
    meta = write_capture(tmp_path, cameras=4, heldout=0)
    listed(tmp_path, meta)
    test = {**meta, "frames": [{**meta["frames"][0], "file_path": f"test/r_{i}", "time": t} for i, t in enumerate((0.25, 0.3, 0.5))]}
    del test["file_folder"]
    rewrite(tmp_path, test, "transforms_test.json")
    (camera,) = capture.read(tmp_path).heldout.cameras
    assert {t: f["file_path"] for t, f in camera.files.items()} == {1: "test/r_0.png", 2: "test/r_2.png"}  # 0.3 is no training time
    assert capture.read(tmp_path).heldout.file(camera, 0) is None


def test_entries_in_numbered_folders_are_grouped_by_pose_and_folder(tmp_path):
    meta = write_capture(tmp_path, cameras=3, heldout=0, frames=2)
    listed(tmp_path, meta, timed=False, name=lambda c, t: f"./images/{t}/cam_{c:03d}.png", times=(0, 0))
    found = capture.read(tmp_path)
    assert found.frames == [0, 1]
    assert [c.name for c in found.train.cameras] == ["cam_001.png", "cam_002.png"]
    assert found.train.file(found.train.cameras[0], 1).is_file()


def test_a_moving_camera_is_named(tmp_path):
    meta = write_capture(tmp_path, cameras=3, heldout=0)
    for i, entry in enumerate(meta["frames"]):
        entry["time"] = i / 3
    rewrite(tmp_path, meta)
    with pytest.raises(
        DataError,
        match=r"every camera needs an image at each of the 3 times, at one fixed pose; 3 poses do not have one: .*\(1 of 3\).*A moving camera is not supported",
    ):
        capture.read(tmp_path)


def test_a_missing_time_and_a_double_one_are_named(tmp_path):
    meta = write_capture(tmp_path, cameras=3, heldout=0)
    listed(tmp_path, meta)
    value = json.loads((tmp_path / "transforms.json").read_text())
    del value["frames"][4]["time"]
    rewrite(tmp_path, value)
    with pytest.raises(DataError, match=r"frames\[4\] .*key 'time' is missing, but other entries have it"):
        capture.read(tmp_path)
    value["frames"][4]["time"] = 0.0
    rewrite(tmp_path, value)
    with pytest.raises(DataError, match=r"frames\[4\] .*a second image of the same camera at the same time \(images/cam01/0000.png\)"):
        capture.read(tmp_path)
    value["frames"][4]["time"] = float("nan")
    rewrite(tmp_path, value)
    with pytest.raises(DataError, match=r"frames\[4\] .*'time' must be a finite number, got nan"):
        capture.read(tmp_path)


def test_first_count_and_step_choose_frames(tmp_path):
    write_capture(tmp_path, frames=8)
    assert capture.list_frames(tmp_path, frames()) == list(range(8))
    assert capture.list_frames(tmp_path, frames(first=3)) == [3, 4, 5, 6, 7]
    assert capture.list_frames(tmp_path, frames(first=2, count=3)) == [2, 3, 4]
    assert capture.list_frames(tmp_path, frames(first=1, step=3)) == [1, 4, 7]
    assert capture.list_frames(tmp_path, frames(count=2, step=3)) == [0, 3]


def test_frames_that_are_not_there_are_named(tmp_path):
    write_capture(tmp_path, frames=6)
    with pytest.raises(DataError, match=r"'frames.first' is 9, but the capture's frames are 0-5"):
        capture.list_frames(tmp_path, frames(first=9))
    with pytest.raises(DataError, match=r"'frames.count' is 5 from frame 3 in steps of 1, but the capture has only 3 \(found: 0-5\)"):
        capture.list_frames(tmp_path, frames(first=3, count=5))
    shutil.rmtree(tmp_path / "images" / "2")
    shutil.rmtree(tmp_path / "images" / "4")
    with pytest.raises(DataError, match=r"images: 2 frame folders are missing: 2, 4 \(found: 0-1, 3, 5\)"):
        capture.list_frames(tmp_path, frames())
    assert capture.list_frames(tmp_path, frames(count=2)) == [0, 1]


def test_a_regular_stride_of_frame_folders_is_no_gap(tmp_path):
    assert capture.select_frames([10, 15, 20, 25], frames(), "x") == [10, 15, 20, 25]
    assert capture.select_frames([10, 15, 20, 25], frames(step=2), "x") == [10, 20]


def test_the_synthetic_capture_need_not_exist_to_list_its_frames():
    parsed = config.parse({"synthetic": {"frames": 5}, "frames": {"first": 1, "step": 2}})
    assert capture.frames_of(parsed) == [1, 3]


def test_a_missing_capture_is_named(tmp_path):
    with pytest.raises(DataError, match=r"nowhere: no such folder\. A capture is a folder with transforms.json and its images \(config key 'capture'\)"):
        capture.read(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"transforms.json is missing"):
        capture.read(tmp_path)
    (tmp_path / "transforms.json").write_text("{}")
    with pytest.raises(DataError, match="transforms.json: is a file; give the folder it lies in"):
        capture.read(tmp_path / "transforms.json")


def test_a_missing_image_folder_and_zero_frames_are_named(tmp_path):
    write_capture(tmp_path)
    os.rename(tmp_path / "images", tmp_path / "pictures")
    with pytest.raises(
        DataError,
        match=r"images: no such folder\. transforms.json \('file_folder': 'images'\) wants images at <file_folder>/<frame>/<file_path>, e.g. .*images/0/cam_000.png",
    ):
        capture.read(tmp_path)
    (tmp_path / "images").mkdir()
    with pytest.raises(DataError, match="images: zero frames: no sub-folder named by a frame number"):
        capture.read(tmp_path)


def test_cameras_are_chosen_by_number_spread_over_the_rig(tmp_path):
    write_capture(tmp_path, frames=1, cameras=12)
    found = capture.read(tmp_path).train.cameras
    assert capture.select_cameras(found, "all") == list(range(12))
    for n in (1, 3, 4, 12):
        chosen = capture.select_cameras(found, n)
        assert len(chosen) == n and chosen == sorted(set(chosen))
    directions = np.stack([found[i].c2w[:3, 3] for i in capture.select_cameras(found, 4)])
    apart = np.linalg.norm(directions[:, None] - directions, axis=-1) + 9 * np.eye(4)
    assert apart.min() > 2.6  # of a ring of radius 3.4; neighbours taken in a row would be 2.5 apart
    with pytest.raises(ConfigError, match="'dataset.cameras': wanted at most the capture's 12 training cameras, got 13"):
        capture.select_cameras(found, 13)


def test_cameras_are_chosen_by_name(tmp_path):
    write_capture(tmp_path, frames=1, cameras=4)
    found = capture.read(tmp_path).train.cameras
    assert capture.select_cameras(found, ["cam_003.png", "cam_001.png"]) == [1, 3]
    with pytest.raises(ConfigError, match=r"unknown camera cam_1.png; the training cameras are cam_000.png, .*\. Nearest: 'cam_001.png'"):
        capture.select_cameras(found, ["cam_1.png"])
    with pytest.raises(ConfigError, match="an empty list"):
        capture.select_cameras(found, [])


def test_the_digest_follows_images_masks_and_json_but_not_what_lies_beside(tmp_path):
    meta = write_capture(tmp_path)
    before = capture.listing_digest(tmp_path)
    assert before == capture.listing_digest(tmp_path)
    for name in ("gt/mesh_0000.ply", "results/s/1_dataset/dataset.json", "meta.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    assert capture.listing_digest(tmp_path) == before
    seen = {before}
    for change in (
        lambda: os.utime(tmp_path / "images" / "1" / "cam_002.png", ns=(1, 1)),
        lambda: (tmp_path / "images_test" / "0" / "cam_000.png").unlink(),
        lambda: ((tmp_path / "masks" / "0").mkdir(parents=True), (tmp_path / "masks" / "0" / "cam_000.png").write_text("m")),
        lambda: rewrite(tmp_path, meta | {"aabb": [[-2, -2, -2], [2, 2, 2]]}),
    ):
        change()
        seen.add(capture.listing_digest(tmp_path))
    assert len(seen) == 5


def test_a_dangling_link_does_not_stop_the_listing(tmp_path):
    write_capture(tmp_path)
    (tmp_path / "images" / "0" / "cam_001.png").unlink()
    (tmp_path / "images" / "0" / "cam_001.png").symlink_to(tmp_path / "gone.png")
    assert "images/0/cam_001.png" not in capture.listing(tmp_path)


def test_what_changed_is_named(tmp_path):
    write_capture(tmp_path)
    before = capture.listing(tmp_path)
    assert capture.describe_changes(before, capture.listing(tmp_path)) == ""
    os.utime(tmp_path / "images" / "1" / "cam_002.png", ns=(1, 1))
    (tmp_path / "images" / "0" / "cam_001.png").unlink()
    shutil.copytree(tmp_path / "images" / "1", tmp_path / "images" / "2")
    text = capture.describe_changes(before, capture.listing(tmp_path))
    assert text.startswith("6 added: images/2/cam_000.png, ")
    assert "1 removed: images/0/cam_001.png" in text
    assert text.endswith("1 changed: images/1/cam_002.png")
    manifest = tmp_path / "r" / "1_dataset" / "dataset.json"
    assert capture.changes_since(manifest, before) == ""
    capture.save_listing(manifest, before)
    assert capture.changes_since(manifest, capture.listing(tmp_path)) == text


def test_eighty_cameras_times_two_thousand_frames_are_listed_in_seconds(tmp_path):
    """One tenth of the frames, so that the test itself stays quick: the cost is linear in files."""
    meta = write_capture(tmp_path, frames=1, cameras=1, heldout=0)
    rewrite(tmp_path, meta | {"frames": [{**meta["frames"][0], "file_path": f"cam_{i:03d}.png"} for i in range(80)]})
    for t in range(200):
        folder = tmp_path / "images" / str(t)
        folder.mkdir(exist_ok=True)
        for c in range(80):
            os.close(os.open(folder / f"cam_{c:03d}.png", os.O_CREAT))
    start = time.process_time()
    assert len(capture.list_frames(tmp_path, frames())) == 200
    assert len(capture.listing_digest(tmp_path)) == 16
    assert time.process_time() - start < 1.0
