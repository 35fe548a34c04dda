"""mp4 video, read back by imageio."""

import imageio.v3 as iio
import imageio_ffmpeg
import numpy as np
import pytest

from instant_nk.errors import ContractError
from instant_nk.io.export.video import write_gif, write_video


def pictures(count, height=32, width=48):
    for i in range(count):
        image = np.zeros((height, width, 3), np.uint8)
        image[:, : (i + 1) * width // count] = [200, 60, 20]
        yield image


def test_video_holds_every_frame_at_its_rate(tmp_path):
    write_video(tmp_path / "a.mp4", pictures(6), fps=12)
    read = iio.imread(tmp_path / "a.mp4")
    assert read.shape == (6, 32, 48, 3)
    assert np.abs(read.astype(int) - np.stack(list(pictures(6)))).mean() < 6
    assert iio.immeta(tmp_path / "a.mp4")["fps"] == 12


def test_odd_sizes_become_even(tmp_path):
    write_video(tmp_path / "a.mp4", pictures(2, 33, 47), fps=10)
    assert iio.imread(tmp_path / "a.mp4").shape == (2, 34, 48, 3)


def test_no_frames_and_changing_sizes_are_refused(tmp_path):
    with pytest.raises(ContractError, match="at least one frame"):
        write_video(tmp_path / "a.mp4", iter([]), fps=10)
    with pytest.raises(ContractError, match=r"frame 1 of the video must be uint8 \[32, 48, 3\], got uint8 \[16, 48, 3\]"):
        write_video(tmp_path / "a.mp4", [next(pictures(1)), next(pictures(1, 16))], fps=10)
    assert not list(tmp_path.iterdir())


def test_a_video_cut_short_by_a_full_disk_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(imageio_ffmpeg, "count_frames_and_secs", lambda _: (3, 0.3))
    with pytest.raises(ContractError, match=r"ffmpeg stored 3 of 6 frames \(is the disk full\?\)"):
        write_video(tmp_path / "a.mp4", pictures(6), fps=10)
    assert not list(tmp_path.iterdir())


def test_a_gif_loops_and_holds_every_picture_when_it_is_small(tmp_path):
    write_gif(tmp_path / "a.gif", list(pictures(6)), fps=10)
    read = iio.imread(tmp_path / "a.gif")
    assert read.shape == (6, 32, 48, 3)
    assert np.abs(read.astype(int) - np.stack(list(pictures(6)))).max() < 12
    assert iio.immeta(tmp_path / "a.gif")["loop"] == 0 and iio.immeta(tmp_path / "a.gif")["duration"] == 100


def test_a_gif_keeps_to_its_limit_by_fewer_and_smaller_pictures(tmp_path):
    noisy = list(np.random.default_rng(0).integers(0, 255, (20, 64, 96, 3), np.uint8))
    write_gif(tmp_path / "a.gif", noisy, fps=10, largest=20_000)
    assert (tmp_path / "a.gif").stat().st_size <= 20_000
    read = iio.imread(tmp_path / "a.gif")
    assert len(read) == 10 and read.shape[2] < 96 and iio.immeta(tmp_path / "a.gif")["duration"] == 200


def test_a_gif_without_pictures_or_of_changing_size_is_refused(tmp_path):
    with pytest.raises(ContractError, match="at least one frame"):
        write_gif(tmp_path / "a.gif", [], fps=10)
    with pytest.raises(ContractError, match="frame 1 of the video must be"):
        write_gif(tmp_path / "a.gif", [next(pictures(1)), next(pictures(1, 16))], fps=10)
    assert not list(tmp_path.iterdir())
