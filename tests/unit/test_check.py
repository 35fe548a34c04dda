"""`instant-nk check`: what it says of sound and unsound captures, and the picture it draws."""

import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from instant_nk.errors import DataError
from instant_nk.stages import check, check_picture
from tests.unit.capture_writer import BACKDROP, job, rewrite, write_capture


def checked(root, out, **sections):
    return check.run_check(job(root, out / "r", **sections).config, out)


def colours(path):
    """The set of colours of a picture."""
    return {tuple(c) for c in np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3)}


def test_a_sound_capture_is_described_and_drawn(tmp_path):
    write_capture(tmp_path / "c", frames=5, cameras=6, heldout=2)
    text = checked(tmp_path / "c", tmp_path)
    assert text.startswith(f"{tmp_path / 'c'}: sound\ncameras: 6 training, 2 held out (10 of 10 of their images present); images 40x32; 0 to undistort\n")
    assert (
        "masks: the images' alpha\nframes: 5 used, 0 to 4; images of 5 decoded, files of all looked at\nbox: the capture's json; from [-0.6, -0.6, -0.6]"
        in text
    )
    assert len(re.findall(r"^cam_00\d.png +\d+\.\d % +0\.0 % +(?:9\d|100)\.\d %$", text, re.M)) == 6
    assert (
        "preset tiny: canonical 40 steps; observation 3 jobs, 12 steps a frame; field 3 windows of up to 3 frames (000000-000002 … 000002-000004), 8 steps each"
        in text
    )
    assert re.search(r"memory, about: dataset \d+\.\d GiB, canonical \d+\.\d GiB, observation \d+\.\d GiB, field \d+\.\d GiB \(per job\)", text)
    assert text.endswith(f"picture: {tmp_path / 'check.png'}")
    seen = colours(tmp_path / "check.png")
    assert {check_picture.BOX, check_picture.TRAIN, check_picture.HELDOUT, check_picture.MASK} <= seen
    assert check_picture.DOUBT not in seen
    assert not (tmp_path / "r").exists()  # it writes no artifact


def test_the_picture_goes_where_it_is_asked_for(tmp_path):
    write_capture(tmp_path / "c")
    out = tmp_path / "deep" / "look.png"
    assert check.run_check(job(tmp_path / "c", tmp_path / "r").config, out).endswith(f"picture: {out}")
    assert Image.open(out).size[0] > 600


def test_lenses_depth_and_absent_held_out_images_are_said(tmp_path):
    write_capture(tmp_path / "c", heldout=2, lens={"k1": -0.2}, depth=True)
    shutil.rmtree(tmp_path / "c" / "images_test" / "1")
    text = checked(tmp_path / "c", tmp_path)
    assert "2 held out (2 of 4 of their images present); images 40x32; 6 to undistort; depth maps, 0.001 world units per step" in text


def test_backdrop_masks_are_said(tmp_path):
    write_capture(tmp_path / "c", mode="RGB")
    assert "masks: difference from the plain backdrop (dataset.background)" in checked(
        tmp_path / "c", tmp_path, dataset={"background": list(map(float, BACKDROP))}
    )


def test_a_proposed_box_is_said(tmp_path):
    write_capture(tmp_path / "c", cameras=8, box=False)
    assert "box: proposed from the visual hulls; from [" in checked(tmp_path / "c", tmp_path)


def test_a_subject_outside_the_box_is_drawn_named_and_given_a_better_box(tmp_path):
    write_capture(tmp_path / "c", frames=3, cameras=8)
    bad = {"box": [[-0.6, -0.6, -0.6], [0.3, 0.75, 0.6]]}
    with pytest.raises(DataError, match=r"at frame 0 the subject reaches outside the box in \d of 8 cameras") as caught:
        checked(tmp_path / "c", tmp_path, dataset=bad)
    message = str(caught.value)
    assert "So it does at frames 1, 2." in message and f"Drawn in {tmp_path / 'check.png'}." in message
    assert check_picture.DOUBT in colours(tmp_path / "check.png")
    better = re.search(r"A box that holds these frames: dataset.box: (\[\[.*?\]\])\.", message).group(1)
    assert "sound" in checked(tmp_path / "c", tmp_path, dataset={"box": eval(better)})


def test_a_camera_that_contradicts_the_others_is_marked(tmp_path):
    meta = write_capture(tmp_path / "c", cameras=8, size=(80, 64))
    matrix = np.array(meta["frames"][5]["transform_matrix"])
    matrix[:3, 3] += matrix[:3, 1] * 0.25
    meta["frames"][5]["transform_matrix"] = matrix.tolist()
    rewrite(tmp_path / "c", meta)
    text = checked(tmp_path / "c", tmp_path, dataset={"box": [[-1, -1, -1], [1, 1, 1]]})
    (line,) = [line for line in text.splitlines() if line.startswith("cam_005.png")]
    assert line.endswith("<- check its pose and masks")


def test_empty_masks_of_a_camera_are_counted(tmp_path):
    write_capture(tmp_path / "c", frames=3)
    Image.new("RGBA", (40, 32)).save(tmp_path / "c" / "images" / "1" / "cam_002.png")
    (line,) = [line for line in checked(tmp_path / "c", tmp_path).splitlines() if line.startswith("cam_002.png")]
    assert line.endswith("<- 1 empty masks")


def test_images_that_are_not_decoded_are_still_looked_at(tmp_path, monkeypatch):
    monkeypatch.setattr(check, "SAMPLED_FRAMES", 2)
    write_capture(tmp_path / "c", frames=5)
    assert "images of 2 decoded, files of all looked at" in checked(tmp_path / "c", tmp_path)
    cut, small = tmp_path / "c" / "images" / "2" / "cam_001.png", tmp_path / "c" / "images" / "3" / "cam_004.png"
    cut.write_bytes(cut.read_bytes()[:-25])
    Image.new("RGBA", (8, 8)).save(small)
    with pytest.raises(DataError, match=rf"2 unsound images:\n  {cut}: the image is truncated\n  {small}: the image has 8x8 pixels, its camera 40x32"):
        checked(tmp_path / "c", tmp_path)


def test_bytes_after_an_image_s_end_are_no_fault(tmp_path, monkeypatch):
    monkeypatch.setattr(check, "SAMPLED_FRAMES", 2)
    write_capture(tmp_path / "c", frames=5)
    first, second = tmp_path / "c" / "images" / "2" / "cam_001.png", tmp_path / "c" / "images" / "3" / "cam_004.png"
    first.write_bytes(first.read_bytes() + bytes(40))
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 40, 3), np.uint8)).save(second, "JPEG")
    second.write_bytes(second.read_bytes() + b"a maker's note of some length")
    assert "sound" in checked(tmp_path / "c", tmp_path)
    second.write_bytes(second.read_bytes()[:-100])
    with pytest.raises(DataError, match=rf"1 unsound images:\n  {second}: the image is truncated"):
        checked(tmp_path / "c", tmp_path)


def test_a_capture_whose_held_out_views_are_of_other_times_is_drawn(tmp_path):
    write_capture(tmp_path / "c")
    for name, folder in (("transforms.json", "images"), ("transforms_test.json", "images_test")):
        meta = json.loads((tmp_path / "c" / name).read_text())
        del meta["file_folder"]
        times = (0, 1) if folder == "images" else (7,)
        meta["frames"] = [e | {"time": t, "file_path": f"{folder}/{t}/{e['file_path']}"} for e in meta["frames"] for t in times]
        rewrite(tmp_path / "c", meta, name)
    assert "6 training, 0 held out (0 of 0" in checked(tmp_path / "c", tmp_path)
    assert check_picture.TRAIN in colours(tmp_path / "check.png")


def test_missing_images_are_listed(tmp_path):
    write_capture(tmp_path / "c")
    (tmp_path / "c" / "images" / "1" / "cam_001.png").unlink()
    with pytest.raises(DataError, match=r"1 missing:\n  .*images/1/cam_001.png"):
        checked(tmp_path / "c", tmp_path)


def test_the_built_in_capture_is_written_before_it_is_checked(tmp_path):
    text = checked("synthetic", tmp_path)
    assert "4 used, 0 to 3" in text and (tmp_path / "check.png").is_file()


def test_a_real_capture_is_sound(fox_tiny, tmp_path):
    text = checked(fox_tiny, tmp_path)
    assert "12 training, 4 held out (16 of 16" in text and "<-" not in text
