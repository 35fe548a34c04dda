"""The offline 3-D player: what is packed decodes to the animation, and headless Chromium shows it."""

import base64
import gzip
import json
import re

import imageio.v3 as iio
import numpy as np
import pytest
from scipy.spatial import cKDTree

from instant_nk.errors import ContractError
from instant_nk.viewer import player
from instant_nk.viewer.player import player_html


def unpack(page: str) -> tuple[dict, dict[str, np.ndarray]]:
    """Meta data and integer pieces, decoded without regard to how they were packed (differences are still inside)."""
    meta = json.loads(re.search(r'class="nk-meta">(.*?)</script>', page, re.S).group(1))
    data = gzip.decompress(base64.b64decode(re.search(r'class="nk-data">(.*?)</script>', page, re.S).group(1)))
    pieces = {}
    for name, piece in meta["pieces"].items():
        planes = np.frombuffer(data, np.uint8, piece["count"] * piece["planes"], piece["offset"]).reshape(piece["planes"], -1).astype(np.int64)
        value = sum(plane << (8 * k) for k, plane in enumerate(planes))
        pieces[name] = (value >> 1) ^ -(value & 1)
    return meta, pieces


def positions(meta: dict, values: np.ndarray) -> np.ndarray:
    n = len(meta["frames"])
    steps = np.cumsum(np.cumsum(values.reshape(n, -1, 3), axis=1), axis=0) % 65536
    return np.array(meta["low"]) + meta["step"] * steps


def turned(faces: np.ndarray) -> set[tuple[int, ...]]:
    """Triangles by their corners in order, whichever comes first."""
    return {tuple(np.roll(face, -face.argmin()).tolist()) for face in faces}


def test_every_packed_triangle_is_the_animation_s_at_every_frame(make_animation):
    animation = make_animation(5, offset=(30, -2, 7))
    meta, pieces = unpack(player_html(animation, fps=10))
    shown = positions(meta, pieces["positions"])
    faces = np.cumsum(pieces["faces"]).reshape(-1, 3)
    step = meta["step"]
    assert step == pytest.approx(np.ptp(animation.vertices, axis=(0, 1)).max() / 65535, rel=1e-4)
    distance, original = cKDTree(animation.vertices[0]).query(shown[0])
    assert distance.max() < 2 * step and len(np.unique(original)) == len(original)
    assert np.abs(shown - animation.vertices[:, original]).max() < 0.51 * step
    assert turned(original[faces]) == turned(animation.faces)


def test_the_texture_s_coordinates_survive_packing(animation, make_texture):
    texture = make_texture(animation)
    meta, pieces = unpack(player_html(animation, fps=10, texture=texture))
    uv = (pieces["uv"].reshape(-1, 2) % 65536) / 65535
    uv_faces = np.cumsum(pieces["uv_faces"]).reshape(-1, 3)
    source = np.cumsum(pieces["vertex_of"])
    shown = positions(meta, pieces["positions"])[0][source]
    expected = np.concatenate([animation.vertices[0][texture.vertex_of], texture.uv], 1)[texture.faces].reshape(len(texture.faces), -1)
    found = np.concatenate([shown, uv], 1)[uv_faces]
    turned = [np.roll(found, k, axis=1).reshape(len(uv_faces), -1) for k in range(3)]  # a triangle may start at another corner
    best = np.min([np.abs(expected[:, None] - t[None]).max(-1).min(1) for t in turned], 0)
    assert best.max() < 1e-4
    assert "data:image/jpeg;base64," in player_html(animation, fps=10, texture=texture)


def test_the_page_asks_for_nothing_from_the_network(animation):
    page = player_html(animation, fps=10, title="<b>bold & brave</b>")
    assert not re.search(r"https?://|\bfetch\(|XMLHttpRequest|\bimport\(|src=|href=", page)
    assert "&lt;b&gt;bold &amp; brave" in page


def test_twenty_thousand_vertices_by_a_hundred_frames_stay_below_ten_megabytes(make_animation):
    animation = make_animation(100, subdivisions=5)  # 10242 vertices
    rng = np.random.default_rng(0)
    animation.vertices[:] += rng.normal(0, 2e-4, animation.vertices.shape)  # frame-to-frame jitter: 0.01 % of the box
    assert len(player_html(animation, fps=10)) < 10e6 / 20000 * animation.vertices.shape[1]


def test_nodes_of_another_length_are_refused(animation):
    with pytest.raises(ContractError, match=r"nodes must be \[N=4, M, 3\]"):
        player_html(animation, fps=10, nodes=np.zeros((3, 5, 3), np.float32), edges=np.zeros((1, 2), np.int32))


@pytest.fixture(scope="module")
def page(tmp_path_factory, make_animation, make_texture):
    animation = make_animation(4, subdivisions=3)
    folder = tmp_path_factory.mktemp("player")
    nodes = animation.vertices[:, ::40]
    edges = np.stack([np.arange(nodes.shape[1] - 1), np.arange(1, nodes.shape[1])], 1).astype(np.int32)
    images = [folder / f"{frame}.png" for frame in animation.frames]
    for i, image in enumerate(images):
        iio.imwrite(image, np.full_like(make_texture(animation).image, 0) + np.uint8([220, 10, 10] if i == 0 else [10, 10, 220]))
    kinds = {"plain": {"nodes": nodes, "edges": edges}, "textured": {"texture": make_texture(animation)}}
    kinds["per_frame"] = kinds["textured"] | {"images": images}
    for name, options in kinds.items():
        (folder / f"{name}.html").write_text("<!doctype html><meta charset=utf-8><body>" + player_html(animation, fps=10, background="#ffffff", **options))
    return folder


def subject(picture: np.ndarray) -> np.ndarray:
    """Pixels of the 3-D view that are clearly not the white background, bool."""
    return picture[20:600].min(-1) < 190


def test_chromium_shows_the_subject_and_it_moves(page, photograph):
    first, last = photograph(page / "plain.html", "#frame=3"), photograph(page / "plain.html", "#frame=6")
    for picture in (first, last):
        assert 0.03 < subject(picture).mean() < 0.6
    assert (subject(first) != subject(last)).mean() > 0.01


def test_chromium_shows_texture_shadings_wireframe_and_graph(page, photograph):
    plain = photograph(page / "plain.html", "#frame=3")
    textured = photograph(page / "textured.html", "#frame=3&shading=colour")
    inside = subject(plain) & subject(textured)
    seen = textured[20:600][inside].astype(int)
    assert ((np.abs(seen - [200, 40, 10]).max(1) < 40) | (seen.max(1) < 190)).mean() > 0.95  # the texture's red and black and their mixtures
    normals = photograph(page / "plain.html", "#frame=3&shading=normals")[20:600][inside]
    assert normals[..., 2].mean() > 160  # facing normals are blue
    overlay = photograph(page / "plain.html", "#frame=3&wireframe=1&graph=1")
    orange = (overlay[20:600].astype(int) @ [1, 0, -1]) > 90
    assert orange.sum() > 200 and (overlay != plain).mean() > 0.02


def test_chromium_shows_each_frame_s_own_texture(page, photograph):
    for frame, channel in ((3, 0), (6, 2)):
        picture = photograph(page / "per_frame.html", f"#frame={frame}&shading=colour")
        inside = picture[20:600][subject(picture)].astype(int)
        assert len(inside) > 5000 and (inside.argmax(1) == channel).mean() > 0.98


def test_frames_own_textures_are_kept_small_together(animation, make_texture, tmp_path, monkeypatch):
    texture = make_texture(animation)
    images = [tmp_path / f"{frame}.png" for frame in animation.frames]
    for image in images:
        iio.imwrite(image, texture.image)
    meta, _ = unpack(player_html(animation, fps=10, texture=texture, images=images))
    assert len(meta["images"]) == len(animation.frames)
    monkeypatch.setattr(player, "IMAGE_PIXELS", len(images) * 16)
    meta, _ = unpack(player_html(animation, fps=10, texture=texture, images=images))
    assert {iio.imread(base64.b64decode(url.partition(",")[2])).shape[:2] for url in meta["images"]} == {(4, 4)}
    with pytest.raises(ContractError, match="images must be one per frame, N=4"):
        player_html(animation, fps=10, texture=texture, images=images[:2])
    images[1].write_bytes(b"no picture")
    with pytest.raises(ContractError, match="not a readable picture"):
        player_html(animation, fps=10, texture=texture, images=images)
