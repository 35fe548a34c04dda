"""Images: where masks come from, what is converted and how, and what is said of images that are unsound."""

import io
import logging
import os
import re
import shutil

import numpy as np
import pytest
from PIL import Image, ImageFile

from instant_nk.config import DatasetConfig
from instant_nk.errors import DataError
from instant_nk.io import capture, capture_images, capture_lens
from instant_nk.io.capture_images import Images, find_masks
from tests.unit.capture_writer import BACKDROP, distort, render, rewrite, write_capture


def images_of(root, store=None, frames=(0, 1), optional=False, **settings):
    settings = DatasetConfig(**settings)
    found = capture.read(root)
    view = found.heldout if optional else found.train
    return Images(view, view.cameras, frames, find_masks(settings, root, view, view.cameras, frames), settings.max_image_side, store, optional)


def original(root, camera=0, frame=0):
    return np.asarray(Image.open(root / "images" / str(frame) / f"cam_{camera:03d}.png"))


def resave(root, change, folder="images", suffix=".png", **options):
    """Rewrite every image of a folder as `change` makes it of the PIL image."""
    for path in sorted((root / folder).glob("*/*.png")):
        image = change(Image.open(path).copy())
        if suffix != ".png":
            path.unlink()
        image.save(path.with_suffix(suffix), **options)


def test_plain_rgba_is_read_in_place_and_nothing_is_written(tmp_path):
    write_capture(tmp_path / "c")
    images = images_of(tmp_path / "c", store=tmp_path / "s" / "images")
    np.testing.assert_array_equal(images.read(2, 1), original(tmp_path / "c", 2, 1))
    assert images.location(2, 1, tmp_path / "s") == str((tmp_path / "c" / "images" / "1" / "cam_002.png").resolve())
    assert not (tmp_path / "s").exists()


def test_a_masks_folder_beside_the_images_gives_alpha_and_is_converted_once(tmp_path):
    root = tmp_path / "c"
    write_capture(root, frames=2)
    truth = original(root, 1, 1)
    shutil.copytree(root / "images", root / "masks")
    resave(root, lambda i: i.getchannel("A"), "masks")
    resave(root, lambda i: i.convert("RGB"))
    images = images_of(root, store=tmp_path / "s" / "images")
    np.testing.assert_array_equal(images.read(1, 1), truth)
    assert images.location(1, 1, tmp_path / "s") == "images/1/cam_001.png"
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "s" / "images" / "1" / "cam_001.png")), truth)
    (root / "images" / "1" / "cam_001.png").unlink()
    np.testing.assert_array_equal(images.read(1, 1), truth)  # the second time from the converted file


@pytest.mark.parametrize("kind", ["zero and one", "palette labels", "bits", "sixteen bits", "own alpha"])
def test_mask_files_of_other_kinds_are_understood(tmp_path, kind):
    write_capture(tmp_path)
    truth = original(tmp_path)[..., 3]
    shutil.copytree(tmp_path / "images", tmp_path / "masks")

    def change(image):
        on = np.asarray(image)[..., 3] > 0
        if kind == "zero and one":
            return Image.fromarray(on.astype(np.uint8))
        if kind == "palette labels":
            label = Image.fromarray(on.astype(np.uint8) * 2, mode="P")
            label.putpalette([0, 0, 0, 128, 0, 0, 0, 20, 0])
            return label
        if kind == "bits":
            return Image.fromarray(on)
        if kind == "sixteen bits":
            return Image.fromarray(on.astype(np.uint16) * 65535)
        return image

    resave(tmp_path, change, "masks")
    resave(tmp_path, lambda i: i.convert("RGB"))
    np.testing.assert_array_equal(images_of(tmp_path).read(0, 0)[..., 3], truth)


GREY_MASKS = {
    "two values of which one is zero": ([0, 3, 3, 0], [0, 255, 255, 0]),
    "zero and half": ([0, 128, 128, 0], [0, 255, 255, 0]),
    "small labels": ([0, 1, 2, 12], [0, 255, 255, 255]),
    "alpha of many values": ([0, 20, 100, 255], [0, 20, 100, 255]),
    "alpha of two values": ([4, 250, 250, 4], [4, 250, 250, 4]),
    "nothing": ([0, 0, 0, 0], [0, 0, 0, 0]),
}


@pytest.mark.parametrize(("values", "wanted"), GREY_MASKS.values(), ids=GREY_MASKS.keys())
def test_grey_masks_are_labels_or_alpha_by_their_values(tmp_path, values, wanted):
    Image.fromarray(np.array([values], np.uint8)).save(tmp_path / "m.png")
    assert capture_images.read_mask(tmp_path / "m.png", (4, 1)).tolist() == [wanted]


def test_jpeg_images_take_masks_of_the_same_name_with_another_ending(tmp_path):
    meta = write_capture(tmp_path)
    truth = original(tmp_path)
    shutil.copytree(tmp_path / "images", tmp_path / "masks")
    resave(tmp_path, lambda i: i.getchannel("A"), "masks")
    resave(tmp_path, lambda i: i.convert("RGB"), suffix=".jpg", quality=98, subsampling=0)
    for entry in meta["frames"]:
        entry["file_path"] = entry["file_path"].replace(".png", ".jpg")
    rewrite(tmp_path, meta)
    got = images_of(tmp_path, store=tmp_path / "images_out").read(0, 0)
    np.testing.assert_array_equal(got[..., 3], truth[..., 3])
    inside = truth[..., 3] > 0
    assert np.abs(got[inside].astype(int) - truth[inside]).mean() < 8
    assert (tmp_path / "images_out" / "0" / "cam_000.png").is_file()


def test_masks_of_a_capture_named_from_its_root_and_of_held_out_views_are_their_own(tmp_path):
    meta = write_capture(tmp_path, frames=1, heldout=1)
    truth = original(tmp_path, 2)[..., 3]
    for folder in ("images", "images_test"):
        shutil.copytree(tmp_path / folder, tmp_path / folder.replace("images", "masks"))
        resave(tmp_path, lambda i: i.getchannel("A"), folder.replace("images", "masks"))
        resave(tmp_path, lambda i: i.convert("RGB"), folder)
    heldout_truth = np.asarray(Image.open(tmp_path / "masks_test" / "0" / "cam_000.png"))
    np.testing.assert_array_equal(images_of(tmp_path, frames=(0,), optional=True).read(0, 0)[..., 3], heldout_truth)
    del meta["file_folder"]
    for entry in meta["frames"]:
        entry["file_path"] = f"images/0/{entry['file_path']}"
    rewrite(tmp_path, meta)
    np.testing.assert_array_equal(images_of(tmp_path, frames=(0,)).read(2, 0)[..., 3], truth)
    os.rename(tmp_path / "images" / "0", tmp_path / "0")  # frame folders beside the json: masks/0/…
    for entry in meta["frames"]:
        entry["file_path"] = entry["file_path"].split("/")[-1]
    rewrite(tmp_path, meta)
    np.testing.assert_array_equal(images_of(tmp_path, frames=(0,)).read(2, 0)[..., 3], truth)


def test_mask_path_of_the_json_is_used(tmp_path):
    meta = write_capture(tmp_path)
    truth = original(tmp_path)[..., 3]
    for path in sorted((tmp_path / "images").glob("*/*.png")):
        image = Image.open(path)
        image.getchannel("A").save(path.with_name(path.name.replace("cam", "alpha")))
        image.convert("RGB").save(path)
    for entry in meta["frames"]:
        entry["mask_path"] = entry["file_path"].replace("cam", "alpha")
    rewrite(tmp_path, meta)
    np.testing.assert_array_equal(images_of(tmp_path).read(0, 0)[..., 3], truth)


def test_a_plain_backdrop_gives_masks(tmp_path):
    write_capture(tmp_path / "truth")
    write_capture(tmp_path / "c", mode="RGB")
    rng = np.random.default_rng(0)
    resave(tmp_path / "c", lambda i: Image.fromarray((np.asarray(i).astype(int) + rng.integers(-4, 5, (32, 40, 3))).clip(0, 255).astype(np.uint8)))
    got = images_of(tmp_path / "c", background=[float(v) for v in BACKDROP], background_tolerance=20.0).read(3, 1)
    truth = original(tmp_path / "truth", 3, 1)[..., 3]
    assert (got[..., 3] != truth).sum() <= 12  # corners of the outline, by the 3x3 majority
    assert (got[got[..., 3] == 0] == 0).all()


def test_a_single_odd_pixel_is_no_subject():
    image = np.zeros((9, 9, 3), np.uint8)
    image[4, 4] = 255
    assert not capture_images.difference_mask(image, np.zeros(3, np.float32), 12).any()


def test_clean_plates_give_masks(tmp_path):
    write_capture(tmp_path, mode="RGB")
    plate = np.random.default_rng(1).integers(0, 255, (32, 40, 3)).astype(np.uint8)
    (tmp_path / "plates").mkdir()
    for i in range(6):
        Image.fromarray(plate).save(tmp_path / "plates" / f"cam_{i:03d}.png")
    (tmp_path / "plates" / "cam_000.jpg").write_bytes(b"")  # the .png is taken first
    truth = (original(tmp_path, 0) != BACKDROP).any(-1)
    for path in sorted((tmp_path / "images").glob("*/*.png")):
        image = np.asarray(Image.open(path)).copy()
        backdrop = (image == BACKDROP).all(-1)
        image[backdrop] = plate[backdrop]
        Image.fromarray(image).save(path)
    got = images_of(tmp_path, background="plates").read(0, 0)[..., 3] > 0
    assert (got != truth).mean() < 0.02


def test_missing_clean_plates_are_listed_and_a_missing_folder_is_named(tmp_path):
    write_capture(tmp_path, mode="RGB")
    with pytest.raises(DataError, match=r"dataset.background: no folder of clean plates at .*plates.* Give \[r, g, b\], or a folder with one image per camera"):
        images_of(tmp_path, background="plates")
    (tmp_path / "plates").mkdir()
    Image.new("RGB", (40, 32)).save(tmp_path / "plates" / "cam_001.png")
    with pytest.raises(DataError, match=r"plates: 5 clean plates are missing: cam_000.png, cam_002.png, cam_003.png, cam_004.png, cam_005.png"):
        images_of(tmp_path, background="plates")


def test_images_without_masks_say_what_can_be_done(tmp_path):
    write_capture(tmp_path, mode="RGB")
    wanted = r"the images have no masks: no alpha channel.*Give one of: RGBA images.*a folder .*masks with the images' relative names; dataset.background: \[r, g, b\].*clean plates"
    with pytest.raises(DataError, match=wanted):
        images_of(tmp_path)
    resave(tmp_path, lambda i: i.convert("RGBA"))  # opaque everywhere is no mask either
    with pytest.raises(DataError, match=wanted):
        images_of(tmp_path)


def test_an_image_without_alpha_among_others_is_named(tmp_path):
    write_capture(tmp_path)
    path = tmp_path / "images" / "1" / "cam_004.png"
    Image.open(path).convert("RGB").save(path)
    with pytest.raises(DataError, match=r"images/1/cam_004.png: the image has no alpha channel, but masks come from alpha"):
        images_of(tmp_path).read(4, 1)


KINDS = {
    "grey with alpha": lambda i: i.convert("LA"),
    "palette with alpha": lambda i: i.convert("RGBA").quantize(16),
}


@pytest.mark.parametrize("change", KINDS.values(), ids=KINDS.keys())
def test_grey_and_palette_images_are_expanded(tmp_path, change):
    root = tmp_path / "c"
    write_capture(root)
    truth = original(root)
    resave(root, change)
    images = images_of(root, store=tmp_path / "s" / "images")
    got = images.read(0, 0)
    assert got.shape == (32, 40, 4) and got.dtype == np.uint8
    np.testing.assert_array_equal(got[..., 3] > 127, truth[..., 3] > 127)
    assert images.location(0, 0, tmp_path / "s") == "images/0/cam_000.png"


def png_of_sixteen_bits(values):
    """A PNG of u16 [H, W, 4]; written by hand, because PIL writes none."""
    import struct
    import zlib

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = struct.pack(">IIBBBBB", width, height, 16, 6, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_sixteen_bit_rgba_is_brought_to_eight_bits(tmp_path):
    root = tmp_path / "c"
    write_capture(root)
    truth = original(root)
    for path in sorted((root / "images").glob("*/*.png")):
        path.write_bytes(png_of_sixteen_bits(np.asarray(Image.open(path)).astype(np.uint16) * 257))
    images = images_of(root, store=tmp_path / "s" / "images")
    np.testing.assert_array_equal(images.read(0, 0), truth)
    assert images.location(0, 0, tmp_path / "s") == "images/0/cam_000.png"


def test_sixteen_bit_grey_keeps_its_upper_byte():
    grey = np.array([[0, 257, 65535]], np.uint16)
    np.testing.assert_array_equal(capture_images.to_rgba(Image.fromarray(grey), None), [[[0, 0, 0, 255], [1, 1, 1, 255], [255, 255, 255, 255]]])


def test_floating_point_images_are_refused_by_name(tmp_path):
    with pytest.raises(DataError, match=r"x.tif: images of mode 'F' are not supported; wanted 8- or 16-bit RGBA, RGB, grey or palette"):
        capture_images.to_rgba(Image.fromarray(np.zeros((2, 2), np.float32)), tmp_path / "x.tif")


def test_unsound_image_files_are_named(tmp_path):
    write_capture(tmp_path)
    images = images_of(tmp_path)
    path = tmp_path / "images" / "1" / "cam_003.png"
    whole = path.read_bytes()
    for content in (whole[:-40], whole[: len(whole) // 2], whole[:10], b"", b"not an image at all"):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"images/1/cam_003.png: the image is truncated or not an image \(.*\)\. Copy or export it again"):
            images.read(3, 1)


def test_an_image_cut_off_is_noticed_from_its_ends_alone(tmp_path):
    write_capture(tmp_path)
    path = tmp_path / "images" / "0" / "cam_000.png"
    assert capture_images.seems_whole(path)
    path.write_bytes(path.read_bytes()[:-30])
    assert not capture_images.seems_whole(path)
    jpeg = io.BytesIO()
    Image.new("RGB", (64, 64), (9, 80, 200)).save(jpeg, "JPEG")
    path.write_bytes(jpeg.getvalue())
    assert capture_images.seems_whole(path)
    path.write_bytes(jpeg.getvalue()[:-20])
    assert not capture_images.seems_whole(path)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_an_image_that_is_stored_rotated_is_refused_from_its_header(tmp_path, kind, monkeypatch):
    path, tag = tmp_path / "a.jpg", Image.Exif()
    for orientation in (6, 1):
        tag[0x0112] = orientation
        Image.new("RGB", (40, 32), (9, 80, 200)).save(path, kind, exif=tag)
        if orientation == 1:
            assert capture_images.image_size(path) == capture_images.open_image(path).size == (40, 32)
            continue
        rotated = r"a.jpg: the image is stored rotated \(EXIF orientation 6\)\. Write the pixels upright, or clear the tag"
        with pytest.raises(DataError, match=rotated):
            capture_images.open_image(path)
        with monkeypatch.context() as patch, pytest.raises(DataError, match=rotated):
            patch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("it was decoded"))
            capture_images.image_size(path)


def test_an_exif_that_cannot_be_read_turns_nothing(tmp_path):
    Image.new("RGB", (40, 32)).save(tmp_path / "a.jpg", exif=b"Exif\0\0no exif at all")
    assert capture_images.open_image(tmp_path / "a.jpg").size == capture_images.image_size(tmp_path / "a.jpg") == (40, 32)


def test_sizes_that_differ_are_named(tmp_path):
    meta = write_capture(tmp_path)
    path = tmp_path / "images" / "1" / "cam_002.png"
    Image.open(path).resize((20, 16)).save(path)
    with pytest.raises(DataError, match=r"images/1/cam_002.png: the image has 20x16 pixels, but 'w' and 'h' of the json say 40x32"):
        images_of(tmp_path).read(2, 1)
    del meta["w"], meta["h"]
    rewrite(tmp_path, meta)
    with pytest.raises(DataError, match=r"the image has 20x16 pixels, but the camera's first image has 40x32. All images of a camera must have one size"):
        images_of(tmp_path).read(2, 1)


def test_cameras_may_differ_in_size(tmp_path):
    meta = write_capture(tmp_path)
    for t in (0, 1):
        path = tmp_path / "images" / str(t) / "cam_002.png"
        Image.open(path).resize((20, 16)).save(path)
    del meta["w"], meta["h"]
    rewrite(tmp_path, meta)
    images = images_of(tmp_path)
    assert images.read(2, 1).shape == (16, 20, 4) and images.read(1, 1).shape == (32, 40, 4)


def test_a_mask_of_another_size_is_named(tmp_path):
    write_capture(tmp_path)
    shutil.copytree(tmp_path / "images", tmp_path / "masks")
    resave(tmp_path, lambda i: i.getchannel("A").resize((10, 8)), "masks")
    with pytest.raises(DataError, match=r"masks/0/cam_000.png: the mask has 10x8 pixels, its image 40x32"):
        images_of(tmp_path).read(0, 0)


def test_every_missing_file_is_listed_at_once(tmp_path):
    write_capture(tmp_path, frames=3)
    shutil.copytree(tmp_path / "images", tmp_path / "masks")
    for name in ("images/0/cam_001.png", "images/2/cam_004.png", "masks/2/cam_000.png"):
        (tmp_path / name).unlink()
    for path in (tmp_path / "images" / "1").iterdir():
        path.unlink()
    missing = images_of(tmp_path, frames=(0, 1, 2)).missing()
    assert missing == [
        str(tmp_path / "images/0/cam_001.png"),
        f"{tmp_path / 'images/1'}/ (all 6 images of frame 1)",
        str(tmp_path / "masks/2/cam_000.png"),
        str(tmp_path / "images/2/cam_004.png"),
    ]


def test_held_out_images_may_be_absent_and_a_camera_of_unknown_size_is_left_out(tmp_path, caplog):
    write_capture(tmp_path)
    shutil.rmtree(tmp_path / "images_test")
    images = images_of(tmp_path, optional=True)
    assert images.missing() == [] and images.source(images.cameras[0], 0) is None and images.location(0, 0, tmp_path) is None
    test = capture.cameras.load_json(tmp_path / "transforms_test.json")
    del test["w"], test["h"]
    rewrite(tmp_path, test, "transforms_test.json")
    with caplog.at_level(logging.WARNING):
        images = images_of(tmp_path, optional=True)
    assert len(images) == 0 and images.cameras == [] and images.missing() == []
    unknown = "frames[0] ('cam_000.png'): the image size is unknown: no image exists and the json gives no 'w' and 'h'"
    assert f"transforms_test.json: {unknown}. This held-out camera is left out" in caplog.text
    train = capture.cameras.load_json(tmp_path / "transforms.json")
    del train["w"], train["h"]
    rewrite(tmp_path, train)
    shutil.rmtree(tmp_path / "images" / "0")
    for path in (tmp_path / "images" / "1").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=re.escape(f"transforms.json: {unknown}. Add them.")):
        images_of(tmp_path, frames=(1,))


def test_the_size_of_a_held_out_camera_is_found_at_frames_that_are_not_used(tmp_path):
    write_capture(tmp_path, frames=3, heldout=2)
    test = capture.cameras.load_json(tmp_path / "transforms_test.json")
    del test["w"], test["h"]
    rewrite(tmp_path, test, "transforms_test.json")
    for frame in ("0", "1"):
        (tmp_path / "images_test" / frame / "cam_001.png").unlink()
    images = images_of(tmp_path, frames=(0, 1), optional=True)
    assert [lens.raw_size for lens in images.lenses] == [(40, 32)] * 2 and images.missing() == []
    assert images.source(images.cameras[1], 0) is None and images.read(0, 1).shape == (32, 40, 4)


# Lenses.

LENS = {"k1": -0.35, "k2": 0.12, "p1": 0.004, "p2": -0.003, "k3": 0.01}


def test_undistortion_gives_the_picture_a_pinhole_camera_takes(tmp_path):
    size = (120, 96)
    meta = write_capture(tmp_path, frames=1, cameras=3, size=size, lens=LENS)
    images = images_of(tmp_path, frames=(0,))
    for index, entry in enumerate(meta["frames"]):
        ideal, _ = render(np.array(entry["transform_matrix"]), images.lenses[index].K, size, 0)
        got = images.read(index, 0)
        left = ((got[..., 3] > 127) != (ideal[..., 3] > 127)).mean()
        assert left < 0.004
        both = (got[..., 3] == 255) & (ideal[..., 3] == 255)
        assert np.abs(got[both].astype(int) - ideal[both])[..., :3].mean() < 2
        raw = original(tmp_path, index)
        assert ((raw[..., 3] > 127) != (ideal[..., 3] > 127)).mean() > 2 * left  # it was bent before


@pytest.mark.parametrize("lens", [LENS, {"k1": 0.3}, {"k1": -0.1, "p1": 0.01}])
def test_every_undistorted_pixel_has_a_source_and_one_border_touches_on_each_side(lens):
    K = np.array([[56.0, 0, 20.3], [0, 55, 15.8], [0, 0, 1]])
    coefficients = np.array([lens.get(k, 0.0) for k in ("k1", "k2", "p1", "p2", "k3")])
    made = capture_lens.make_lens(K, coefficients, (40, 32), None, "x")
    u, v = np.meshgrid(np.linspace(0, 40, 201), np.linspace(0, 32, 201))
    x, y = capture_lens.distort((u - made.K[0, 2]) / made.K[0, 0], (v - made.K[1, 2]) / made.K[1, 1], coefficients)
    x, y = K[0, 0] * x + K[0, 2], K[1, 1] * y + K[1, 2]
    assert -1e-2 < x.min() < 0.5 and 39.5 < x.max() < 40.01
    assert -1e-2 < y.min() < 0.5 and 31.5 < y.max() < 32.01


@pytest.mark.parametrize("size", [(40, 32), (301, 200), (640, 1030)])
def test_resampling_is_exact_to_a_tenth_of_a_pixel_and_leaves_no_pixel_empty(size):
    w, h = size
    lens = capture_lens.make_lens(
        np.array([[1.2 * w, 0, w / 2 + 0.3], [0, 1.2 * w, h / 2], [0, 0, 1]]), np.array([-0.3, 0.1, 0.004, -0.003, 0.01]), size, None, "x"
    )

    def pattern(u, v):
        """Waves of 16 pixels: up to 47 grey levels per pixel."""
        return np.stack([127 + 120 * np.sin(2 * np.pi * u / 16), 127 + 120 * np.sin(2 * np.pi * v / 16)], -1)

    image = np.full((h, w, 4), 255, np.uint8)
    image[..., :2] = pattern(*np.meshgrid(np.arange(w) + 0.5, np.arange(h) + 0.5)).round()
    out = capture_lens.apply(lens, image)
    assert out[..., 3].min() == 255
    x, y = np.meshgrid((np.arange(w) + 0.5 - lens.K[0, 2]) / lens.K[0, 0], (np.arange(h) + 0.5 - lens.K[1, 2]) / lens.K[1, 1])
    xd, yd = distort(x, y, -0.3, 0.1, 0.004, -0.003, 0.01)
    error = (out[..., :2] - pattern(lens.raw_K[0, 0] * xd + lens.raw_K[0, 2], lens.raw_K[1, 1] * yd + lens.raw_K[1, 2]))[2:-2, 2:-2]
    assert np.abs(error).max() < 6.5 and np.abs(error).mean() < 1.5  # 2.3 and 1 of it come from interpolating the waves


def test_a_lens_that_folds_the_image_is_named():
    K = np.array([[30.0, 0, 20], [0, 30, 16], [0, 0, 1]])
    with pytest.raises(
        DataError, match=r"cam_7: the distortion k1, k2, p1, p2, k3 = \[-1.5, 0.0, 0.0, 0.0, 0.0\] folds the image over itself before its border"
    ):
        capture_lens.make_lens(K, np.array([-1.5, 0, 0, 0, 0]), (40, 32), None, "cam_7")


def test_skew_is_taken_out(tmp_path):
    K = np.array([[56.0, 6.0, 20], [0, 55, 16], [0, 0, 1]])
    lens = capture_lens.make_lens(K, np.zeros(5), (40, 32), None, "x")
    assert lens.K[0, 1] == 0 and not lens.identity
    ramp = np.zeros((32, 40, 4), np.uint8)
    ramp[..., 0], ramp[..., 1], ramp[..., 3] = np.arange(40) * 6, np.arange(32)[:, None] * 6, 255
    out = capture_lens.apply(lens, ramp)
    row, col = 20, 12
    ideal = np.linalg.inv(lens.K) @ [col + 0.5, row + 0.5, 1]
    source = K @ ideal - 0.5
    np.testing.assert_allclose(out[row, col, :2], source[:2] * 6, atol=1.5)


def test_edges_do_not_darken_when_resampled():
    lens = capture_lens.make_lens(np.array([[56.0, 0, 20], [0, 55, 16], [0, 0, 1]]), np.array([-0.2, 0, 0, 0, 0]), (40, 32), 20, "x")
    image = np.zeros((32, 40, 4), np.uint8)
    image[8:24, 10:30] = (200, 100, 50, 255)
    out = capture_lens.apply(lens, image)
    part = (out[..., 3] > 20) & (out[..., 3] < 235)
    assert part.any()
    assert np.abs(out[part][:, :3].astype(int) - [200, 100, 50]).max() <= 8


def test_images_are_downscaled_with_their_intrinsics(tmp_path):
    write_capture(tmp_path, size=(80, 64))
    full, small = images_of(tmp_path), images_of(tmp_path, max_image_side=20)
    np.testing.assert_allclose(small.lenses[0].K[:2], full.lenses[0].K[:2] / 4)
    blocks = full.read(0, 0)[..., 3].reshape(16, 4, 20, 4).mean((1, 3))
    np.testing.assert_allclose(small.read(0, 0)[..., 3], blocks, atol=1)
    assert images_of(tmp_path, max_image_side=500).lenses[0].identity


def test_depth_maps_follow_the_images_through_lens_and_scale(tmp_path):
    size = (120, 96)
    meta = write_capture(tmp_path / "c", frames=1, cameras=2, size=size, lens=LENS, depth=True)
    images = images_of(tmp_path / "c", store=tmp_path / "s" / "images", frames=(0,), max_image_side=60)
    name = images.read_depth(1, 0, tmp_path / "s")
    assert name == "depth/0/cam_001.png"
    got = np.asarray(Image.open(tmp_path / "s" / name))
    assert got.shape == (48, 60) and got.dtype == np.uint16
    _, ideal = render(np.array(meta["frames"][1]["transform_matrix"]), images.lenses[1].K, (60, 48), 0)
    both = (got > 0) & (ideal > 0)
    assert both.sum() > 200 and ((got > 0) != (ideal > 0)).mean() < 0.02
    assert np.median(np.abs(got[both] * 0.001 - ideal[both])) < 0.01


def test_depth_maps_that_need_nothing_stay_in_place_and_bad_ones_are_named(tmp_path):
    write_capture(tmp_path, depth=True)
    images = images_of(tmp_path)
    path = tmp_path / "images" / "1" / "depth_002.png"
    assert images.read_depth(2, 1, tmp_path / "s") == str(path.resolve())
    Image.new("L", (40, 32)).save(path)
    with pytest.raises(DataError, match=r"depth_002.png: a depth map must be a 16-bit grey PNG, got mode 'L'\. Export whole millimetres"):
        images.read_depth(2, 1, tmp_path / "s")
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(path)
    with pytest.raises(DataError, match=r"depth_002.png: the depth map has 4x4 pixels, its camera's images 40x32"):
        images.read_depth(2, 1, tmp_path / "s")
    path.unlink()
    assert images_of(tmp_path).missing(with_depth=True) == [str(path)]
