"""Captures of one video per camera: counted, decoded once, masked, and what is said of unsound ones."""

import json
import logging
import os
import re
import shutil
import subprocess
import time
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from instant_nk import layout
from instant_nk.config import FramesConfig
from instant_nk.errors import ContractError, DataError
from instant_nk.io import capture, capture_video
from instant_nk.io import dataset as datasets
from instant_nk.stages import check, dataset, verify
from tests.unit.capture_writer import BACKDROP, as_videos, encode, job, rewrite, write_capture
from tests.unit.test_dataset_stage import inside_subject, ran

CODECS = {
    ".mp4": ("-c:v", "libx264", "-crf", "4", "-pix_fmt", "yuv444p"),
    ".mov": ("-c:v", "libx264", "-crf", "4", "-pix_fmt", "yuv444p"),
    ".mkv": ("-c:v", "ffv1", "-pix_fmt", "bgr0"),
    ".avi": ("-c:v", "mjpeg", "-q:v", "1", "-pix_fmt", "yuvj444p"),
    "fragmented.mp4": ("-c:v", "libx264", "-movflags", "frag_keyframe+empty_moov", "-pix_fmt", "yuv444p"),
}


def pictures(count, size=(40, 32)):
    """Grey pictures, each of its own brightness."""
    return [np.full((size[1], size[0], 3), 20 + 10 * n, np.uint8) for n in range(count)]


@pytest.fixture
def films(tmp_path):
    """A capture of three frames, six cameras and one held-out camera, as videos with mask videos; and its json."""
    return tmp_path / "c", as_videos(tmp_path / "c", write_capture(tmp_path / "c", frames=3))


# Video files.


@pytest.mark.parametrize("kind", CODECS)
def test_pictures_are_counted_and_read_in_order(tmp_path, kind):
    path = tmp_path / f"a{kind}"
    encode(path, pictures(12), *CODECS[kind])
    assert capture_video.frame_count(path) == 12
    assert capture_video.first_picture(path).size == (40, 32)
    found = list(capture_video.pictures(path, [0, 3, 11], (40, 32), "rgb24"))
    np.testing.assert_allclose([p.mean() for p in found], [20, 50, 130], atol=3)


def test_pictures_of_b_frames_and_a_variable_rate_are_each_read_once(tmp_path):
    path = tmp_path / "a.mp4"
    encode(
        path,
        pictures(15),
        "-c:v",
        "libx264",
        "-bf",
        "3",
        "-crf",
        "4",
        "-vf",
        "setpts='(N+mod(N,3)*0.4)/25/TB'",
        "-fps_mode",
        "passthrough",
        "-pix_fmt",
        "yuv444p",
    )
    assert capture_video.frame_count(path) == 15
    np.testing.assert_allclose([p.mean() for p in capture_video.pictures(path, list(range(15)), (40, 32), "rgb24")], 20 + 10 * np.arange(15), atol=3)


def copied(path, out, *options):
    """Copy a video's stream without encoding it anew, `-i` and what comes before and after it given."""
    import imageio_ffmpeg

    before, after = options[: options.index("-i")], options[options.index("-i") + 1 :]
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *before, "-i", str(path), *after, "-c", "copy", str(out)], check=True)


@pytest.mark.parametrize("b_frames", ["0", "3"])
@pytest.mark.parametrize("kind", [".mp4", ".mov"])
def test_pictures_that_a_cut_leaves_out_are_not_counted(tmp_path, b_frames, kind):
    path, cut = tmp_path / "a.mp4", tmp_path / f"cut{kind}"
    encode(path, pictures(20), "-c:v", "libx264", "-crf", "4", "-g", "10", "-sc_threshold", "0", "-bf", b_frames, "-pix_fmt", "yuv444p")
    copied(path, cut, "-ss", "0.2", "-i")  # between two key frames: those before stay in the file
    assert capture_video.frame_count(cut) == 15
    found = list(capture_video.pictures(cut, list(range(15)), (40, 32), "rgb24"))
    np.testing.assert_allclose([p.mean() for p in found], 20 + 10 * np.arange(5, 20), atol=3)
    with pytest.raises(DataError, match=r"it holds 15 pictures, but frame 15 is asked for"):
        list(capture_video.pictures(cut, [15], (40, 32), "rgb24"))


def test_pictures_after_the_end_of_an_edit_list_are_not_counted(tmp_path):
    encode(tmp_path / "a.mp4", pictures(20), "-c:v", "libx264", "-bf", "3", "-pix_fmt", "yuv420p")
    content = bytearray((tmp_path / "a.mp4").read_bytes())
    at = content.index(b"elst") + 12
    assert int.from_bytes(content[at : at + 4], "big") == 800  # milliseconds
    content[at : at + 4] = (480).to_bytes(4, "big")
    (tmp_path / "a.mp4").write_bytes(content)
    assert capture_video.frame_count(tmp_path / "a.mp4") == 12
    assert len(list(capture_video.pictures(tmp_path / "a.mp4", list(range(12)), (40, 32), "rgb24"))) == 12


def test_an_edit_list_that_leaves_nothing_out_is_not_decoded_for(tmp_path, monkeypatch):
    monkeypatch.setattr(capture_video, "_stream_count", lambda *args, **more: pytest.fail("the file was read through"))
    encode(tmp_path / "a.mp4", pictures(20), "-c:v", "libx264", "-bf", "3", "-pix_fmt", "yuv420p")
    copied(tmp_path / "a.mp4", tmp_path / "late.mp4", "-itsoffset", "0.5", "-i")
    copied(tmp_path / "a.mp4", tmp_path / "b.mov", "-i")
    assert [capture_video.frame_count(tmp_path / name) for name in ("a.mp4", "late.mp4", "b.mov")] == [20] * 3


def test_counting_a_long_mp4_reads_its_index_alone(tmp_path):
    encode(tmp_path / "a.mp4", pictures(1) * 3000, "-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv420p")
    start = time.process_time()
    assert capture_video.frame_count(tmp_path / "a.mp4") == 3000
    assert time.process_time() - start < 0.05


@pytest.mark.parametrize("keep", [0.3, 0.8, 0.999])
@pytest.mark.parametrize("kind", [".mp4", "faststart.mp4"])
def test_a_truncated_mp4_is_named_without_decoding(tmp_path, kind, keep):
    path = tmp_path / f"a{kind}"
    encode(path, [np.random.default_rng(n).integers(0, 255, (32, 40, 3), np.uint8) for n in range(12)], *([] if "fast" in kind else CODECS[".mp4"]))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    with pytest.raises(DataError, match=rf"{path}: the video is truncated: it (ends in the middle of its pictures|lacks its index). Copy it again"):
        capture_video.frame_count(path)


def test_a_truncated_mkv_and_what_is_no_video_are_named(tmp_path):
    encode(tmp_path / "a.mkv", [np.random.default_rng(n).integers(0, 255, (32, 40, 3), np.uint8) for n in range(12)], *CODECS[".mkv"])
    data = (tmp_path / "a.mkv").read_bytes()
    (tmp_path / "a.mkv").write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(DataError, match=r"a.mkv: the video is truncated or not a video \(.+\)\. Copy or export it again"):
        capture_video.frame_count(tmp_path / "a.mkv")
    (tmp_path / "b.mp4").write_text("no video at all")
    for look in (capture_video.frame_count, capture_video.first_picture):
        with pytest.raises(DataError, match=r"b.mp4: the video is truncated or not a video"):
            look(tmp_path / "b.mp4")
    with pytest.raises(DataError, match=r"none.mp4: the video cannot be read \(No such file"):
        capture_video.frame_count(tmp_path / "none.mp4")


def test_a_video_that_ends_before_the_frame_asked_for_is_named(tmp_path):
    encode(tmp_path / "a.mp4", pictures(5))
    with pytest.raises(DataError, match=r"a.mp4: the video is truncated or damaged: it holds 5 pictures, but frame 7 is asked for"):
        list(capture_video.pictures(tmp_path / "a.mp4", [2, 7], (40, 32), "rgb24"))


# Which camera's video is where.


def test_a_video_per_camera_is_a_capture_of_its_frames(films):
    root, meta = films
    assert meta["frames"][2]["file_path"] == "cam_002.mp4"
    found = capture.read(root)
    assert found.frames == [0, 1, 2] and found.train.video
    assert [c.name for c in found.train.cameras][:2] == ["cam_000.png", "cam_001.png"]
    assert found.train.file(found.train.cameras[2], 1) == root / "videos" / "cam_002.mp4"
    assert capture.list_frames(root, FramesConfig(first=1)) == [1, 2]


@pytest.mark.parametrize("beside", [True, False], ids=["beside the json", "in videos/"])
def test_without_file_folder_videos_are_looked_for_beside_the_json_and_in_videos(films, beside):
    root, meta = films
    del meta["file_folder"]
    rewrite(root, meta)
    if beside:
        for video in (root / "videos").iterdir():
            video.rename(root / video.name)
    found = capture.read(root)
    assert found.train.file(found.train.cameras[0], 0) == (root if beside else root / "videos") / "cam_000.mp4"
    assert found.frames == [0, 1, 2]


def test_a_cameras_video_name_chooses_it(films):
    cameras = capture.read(films[0]).train.cameras
    assert capture.select_cameras(cameras, ["cam_001.mp4", "cam_003.png"]) == [1, 3]


BAD = {
    "some are images": ({"file_path": "cam_001.png"}, r"frames\[1\] .*some cameras are videos and others are not \(cam_000.mp4\)\. Give all as videos, or all as images"),
    "time": ({"time": 0.0}, r"frames\[1\] .*a video holds all times: remove 'time'"),
    "depth": ({"depth_path": "d.png"}, r"frames\[1\] .*'depth_path' beside a video is not supported"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "message"), BAD.values(), ids=BAD.keys())
def test_what_cannot_go_with_a_video_is_named(films, change, message):
    root, meta = films
    meta["frames"][1] |= change
    rewrite(root, meta)
    with pytest.raises(DataError, match=message):
        capture.read(root)


def test_a_mask_video_of_a_camera_of_images_is_named(tmp_path):
    meta = write_capture(tmp_path)
    meta["frames"][0]["mask_path"] = "m.mp4"
    rewrite(tmp_path, meta)
    with pytest.raises(DataError, match=r"'mask_path' is a video, 'file_path' is not"):
        capture.read(tmp_path)


def test_a_changed_video_or_mask_video_changes_the_listing(films):
    root, _ = films
    before = capture.listing(root)
    assert {"videos/cam_000.mp4", "videos_test/cam_000.mp4", "masks/cam_005.mp4", "masks_test/cam_000.mp4"} <= before.keys()
    os.utime(root / "masks" / "cam_002.mp4", ns=(1, 1))
    assert capture.describe_changes(before, capture.listing(root)) == "1 changed: masks/cam_002.mp4"


# Through the dataset stage.


@pytest.mark.parametrize("masks", ["video", "images", "alpha", "none"])
def test_videos_become_the_dataset_that_images_become(tmp_path, masks):
    plain = write_capture(tmp_path / "c", frames=3, size=(80, 64))
    reference = ran(shutil.copytree(tmp_path / "c", tmp_path / "images"), tmp_path / "q")
    codec = {"suffix": ".mov", "codec": ("-c:v", "png", "-pix_fmt", "rgba")} if masks == "alpha" else {}
    as_videos(tmp_path / "c", plain, masks=masks, **codec)
    settings = {"background": list(map(float, BACKDROP)), "background_tolerance": 60.0} if masks == "none" else {}
    made = ran(tmp_path / "c", tmp_path / "r", dataset=settings)
    assert made.frames == reference.frames and made.cameras.names == reference.cameras.names and len(made.heldout) == 1
    for frame in made.frames:
        assert (made.hull(frame) != reference.hull(frame)).mean() < 2e-3
        assert made.hull(frame)[inside_subject(made, frame, grow=-0.04)].all()
        for camera in range(6):
            ours, theirs = made.image(camera, frame).astype(int), reference.image(camera, frame).astype(int)
            both = (ours[..., 3] > 0) & (theirs[..., 3] > 0)
            assert np.abs(ours - theirs)[both].mean() < 4
            assert ((ours[..., 3] > 0) != (theirs[..., 3] > 0)).mean() < 0.02
        assert made.heldout_image(0, frame).shape == (64, 80, 4)
    assert made.images["1"][2].startswith("decoded_images/cam_002-") and made.images["1"][2].endswith("/000001.png")


def test_lenses_and_sizes_apply_to_videos(tmp_path):
    as_videos(tmp_path / "c", write_capture(tmp_path / "c", size=(64, 48), lens={"k1": -0.2}))
    made = ran(tmp_path / "c", tmp_path / "r", dataset={"max_image_side": 32})
    assert made.image(3, 1).shape == (24, 32, 4)
    assert made.hull(0)[inside_subject(made, 0)].all()


def test_a_chosen_part_of_the_frames_is_decoded(tmp_path):
    as_videos(tmp_path / "c", write_capture(tmp_path / "c", frames=7))
    made = ran(tmp_path / "c", tmp_path / "r", frames={"first": 1, "step": 3, "count": 2})
    assert made.frames == (1, 4)
    names = sorted(p.name for p in next((made.root / "decoded_images").iterdir()).iterdir())
    assert names == ["000001.png", "000004.png"]


def test_images_are_decoded_once_and_used_again_until_what_they_are_made_of_changes(films, tmp_path, caplog):
    root, _ = films
    first = ran(root, tmp_path / "r")
    paths = [first.image_path(c, t) for c in range(6) for t in first.frames]
    written = [p.stat().st_mtime_ns for p in paths]
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="instant_nk"):
        again = ran(root, tmp_path / "r", dataset={"hull_resolution": 16})
    assert "to decode" not in caplog.text
    assert [again.image_path(c, t).stat().st_mtime_ns for c in range(6) for t in again.frames] == written
    os.utime(root / "videos" / "cam_002.mp4", ns=(5, 5))
    with caplog.at_level(logging.INFO, logger="instant_nk"):
        changed = ran(root, tmp_path / "r")
    assert "2 pictures of 1 videos to decode: about 0.00 GiB in" in caplog.text  # the third told how much room they take
    assert changed.image_path(1, 0).stat().st_mtime_ns == written[3] and changed.image_path(2, 0) != again.image_path(2, 0)
    assert not again.image_path(2, 0).exists(), "images of the former video are removed"


def test_a_decoded_image_that_was_cut_off_or_lost_is_found_and_made_again(films, tmp_path):
    root, _ = films
    made = ran(root, tmp_path / "r")
    paths = layout.Paths(made.root.parent)
    assert "all whole and made from each other" in verify.run_verify(paths)
    cut, lost = made.image_path(2, 1), made.image_path(4, 0)
    kept = cut.read_bytes()
    cut.write_bytes(kept[:-30])
    lost.unlink()
    with pytest.raises(ContractError) as caught:
        verify.run_verify(paths)
    assert re.search(
        re.escape(f"{cut}: not a whole PNG (") + r"[^\n]+" + re.escape("). Re-run stage 'dataset' (--forcerun dataset_sequence)"), str(caught.value)
    )
    assert f"1_dataset: 1 images are missing: {lost.relative_to(made.root)}." in str(caught.value)
    ran(root, tmp_path / "r")
    assert cut.read_bytes() == kept and lost.is_file()


def test_one_unsound_video_ends_the_decoding_of_the_others(tmp_path, monkeypatch):
    as_videos(tmp_path / "c", write_capture(tmp_path / "c", frames=12, cameras=3, heldout=0), heldout=False)
    encode(tmp_path / "c" / "videos" / "cam_001.mp4", pictures(12, (48, 32)))
    real = capture_video.pictures

    def slow(*args):
        for picture in real(*args):
            time.sleep(0.1)
            yield picture

    monkeypatch.setattr(dataset, "say_disk_need", lambda todo, frames: None)
    monkeypatch.setattr(capture_video, "pictures", slow)
    with pytest.raises(DataError, match=r"cam_001.mp4: the video has 48x32 pixels"):
        dataset.run(job(tmp_path / "c", tmp_path / "r"))
    assert len(list((tmp_path / "r").rglob("decoded_images/*/*.png"))) < 16


def test_a_killed_run_goes_on_with_the_images_it_had(films, tmp_path, monkeypatch):
    root, _ = films
    count = iter(range(100))
    real = capture_video.pictures

    def killed(*args):
        for picture in real(*args):
            if next(count) == 9:
                raise KeyboardInterrupt
            yield picture

    monkeypatch.setattr(capture_video, "pictures", killed)
    with pytest.raises(KeyboardInterrupt):
        dataset.run(job(root, tmp_path / "r"))
    there = set((tmp_path / "r").rglob("decoded_images/*/*.png"))
    stamps = {p: p.stat().st_mtime_ns for p in there}
    assert there
    monkeypatch.setattr(capture_video, "pictures", real)
    made = ran(root, tmp_path / "r")
    assert {p: p.stat().st_mtime_ns for p in there} == stamps
    assert made.image(5, 2).shape == (32, 40, 4)


def test_memory_does_not_grow_with_the_length_of_the_videos(tmp_path):
    import tracemalloc

    meta = write_capture(tmp_path / "c", frames=1, cameras=3, heldout=0, size=(320, 240))
    image = [np.asarray(Image.open(tmp_path / "c" / "images" / "0" / entry["file_path"])) for entry in meta["frames"]]
    for folder, picture in (("videos", lambda i: i[..., :3]), ("masks", lambda i: i[..., 3:])):
        for entry, i in zip(meta["frames"], image):
            encode(tmp_path / "c" / folder / entry["file_path"].replace(".png", ".mp4"), [picture(i)] * 24, "-c:v", "libx264", "-pix_fmt", "yuv420p")
    rewrite(tmp_path / "c", meta | {"file_folder": "videos", "frames": [e | {"file_path": e["file_path"].replace(".png", ".mp4")} for e in meta["frames"]]})
    peaks = []
    for count in (3, 3, 24):
        shutil.rmtree(tmp_path / "r", ignore_errors=True)
        tracemalloc.start()
        ran(tmp_path / "c", tmp_path / "r", frames={"count": count})
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] - peaks[1] < 320 * 240 * 4


# Unsound captures of videos.


def shorten(path, count=2):
    """A video with the first pictures of another."""
    kept = list(capture_video.pictures(path, list(range(count)), (40, 32), "rgb24"))
    encode(path, kept)


def test_videos_of_different_lengths_are_named_unless_the_common_part_is_asked_for(films, tmp_path):
    root, _ = films
    shorten(root / "videos" / "cam_003.mp4")
    with pytest.raises(
        DataError,
        match=r"transforms.json: the videos hold different numbers of pictures, most of them 3:\n  .*videos/cam_003.mp4: 2\nPicture n .*frames.count \(from the first frame: 2\) uses what all have",
    ):
        dataset.run(job(root, tmp_path / "r"))
    assert ran(root, tmp_path / "r", frames={"count": 2}).frames == (0, 1)
    with pytest.raises(DataError, match=r"videos/cam_003.mp4: 2"):
        dataset.run(job(root, tmp_path / "q", frames={"count": 3}))


def test_a_longer_video_among_others_is_named_too(tmp_path):
    as_videos(tmp_path / "c", write_capture(tmp_path / "c", frames=3))
    path = tmp_path / "c" / "videos" / "cam_004.mp4"
    encode(path, list(capture_video.pictures(path, [0, 1, 2], (40, 32), "rgb24")) * 2)
    with pytest.raises(DataError, match=r"most of them 3:\n  .*videos/cam_004.mp4: 6\n"):
        dataset.run(job(tmp_path / "c", tmp_path / "r"))


def test_a_truncated_video_is_named_and_nothing_is_written(films, tmp_path):
    root, _ = films
    path = root / "videos" / "cam_004.mp4"
    path.write_bytes(path.read_bytes()[:-200])
    work = job(root, tmp_path / "r")
    with pytest.raises(DataError, match=rf"{path}: the video is truncated: it ends in the middle of its pictures"):
        dataset.run(work)
    assert not work.paths.manifest.exists()


def test_a_short_or_missing_mask_video_is_named(films, tmp_path):
    root, _ = films
    shorten(root / "masks" / "cam_001.mp4")
    with pytest.raises(DataError, match=r"masks/cam_001.mp4: the video is truncated or damaged: it holds 2 pictures, but frame 2 is asked for"):
        dataset.run(job(root, tmp_path / "r"))
    (root / "masks" / "cam_001.mp4").unlink()
    with pytest.raises(DataError, match=r"1 missing:\n  .*masks/cam_001"):
        dataset.run(job(root, tmp_path / "r"))


def test_missing_videos_are_listed_at_once(films, tmp_path):
    root, _ = films
    for name in ("cam_002.mp4", "cam_005.mp4"):
        (root / "videos" / name).unlink()
    with pytest.raises(DataError, match=r"2 missing:\n  .*videos/cam_002.mp4\n  .*videos/cam_005.mp4"):
        dataset.run(job(root, tmp_path / "r"))
    shutil.rmtree(root / "videos")
    with pytest.raises(DataError, match=r"videos/cam_000.mp4: the video is missing. transforms.json wants one video per camera at <file_folder>/<file_path>"):
        dataset.run(job(root, tmp_path / "r"))


def test_held_out_videos_may_be_absent(films, tmp_path):
    root, _ = films
    shutil.rmtree(root / "videos_test")
    made = ran(root, tmp_path / "r")
    assert made.heldout_image(0, 1) is None and len(made.heldout) == 1


def test_another_size_than_stated_is_named(films, tmp_path):
    root, _ = films
    encode(root / "videos" / "cam_002.mp4", pictures(3, (48, 32)))
    with pytest.raises(DataError, match=r"cam_002.mp4: the video has 48x32 pixels, but 'w' and 'h' of the json say 40x32"):
        dataset.run(job(root, tmp_path / "r"))


def test_a_mask_video_of_another_size_is_named(films, tmp_path):
    root, _ = films
    encode(root / "masks" / "cam_002.mp4", pictures(3, (48, 32)))
    with pytest.raises(DataError, match=r"masks/cam_002.mp4: the mask video has 48x32 pixels, its camera's 40x32"):
        dataset.run(job(root, tmp_path / "r"))


def test_videos_without_masks_say_what_can_be_done(tmp_path):
    as_videos(tmp_path / "c", write_capture(tmp_path / "c"), masks="none")
    with pytest.raises(
        DataError, match=r"videos: the videos have no masks: .*a folder .*masks with a mask video per camera, named like it, or with mask images"
    ):
        dataset.run(job(tmp_path / "c", tmp_path / "r"))


def test_a_disk_too_small_for_the_images_is_said_before_they_are_decoded(films, tmp_path, monkeypatch):
    root, _ = films
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=2000))
    with pytest.raises(
        ContractError,
        match=r"decoded_images: \d+ decoded pictures need about 0.0 GiB, and 0.0 GiB are free\. Free space, put runtime.results on a larger disk, or use fewer",
    ):
        dataset.run(job(root, tmp_path / "r"))


# The check.


def test_the_check_reads_videos_and_says_how_much_room_they_take(films, tmp_path):
    root, _ = films
    text = check.run_check(job(root, tmp_path / "r").config, tmp_path)
    assert text.startswith(f"{root}: sound\ncameras: 6 training, 1 held out (3 of 3 of their images present); images 40x32")
    assert "masks: separate mask images" in text
    assert "frames: 3 used, 0 to 2; images of 3 compared, videos decoded up to the last; the decoded images will take about 0.00 GiB" in text
    assert (tmp_path / "check.png").is_file() and not (tmp_path / "r").exists()


def test_a_real_capture_comes_through_video_with_its_surface(fox_tiny, tmp_path):
    root = shutil.copytree(fox_tiny, tmp_path / "c", ignore=shutil.ignore_patterns("gt"))
    as_videos(root, json.loads((root / "transforms.json").read_text()))
    made, images = ran(root, tmp_path / "r"), ran(fox_tiny, tmp_path / "q")
    for frame in images.frames:
        difference = made.hull(frame) != images.hull(frame)
        assert difference.sum() < 0.05 * images.hull(frame).sum()
    assert datasets.load(made.root / "dataset.json").frames == images.frames


def test_pictures_that_the_decoder_found_damaged_are_told(tmp_path, caplog):
    path = tmp_path / "a.mkv"
    encode(path, [np.random.default_rng(n).integers(0, 255, (64, 80, 3), np.uint8) for n in range(8)], "-c:v", "ffv1", "-slicecrc", "1", "-pix_fmt", "bgr0")
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 40] = bytes(40)
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        for _, picture in zip(range(8), capture_video.pictures(path, list(range(8)), (80, 64), "rgb24")):
            assert picture.shape == (64, 80, 3)
    assert f"{path}: the decoder says: " in caplog.text
