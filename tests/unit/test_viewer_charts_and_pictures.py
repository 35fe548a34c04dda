"""Charts, pictures and the mesh renderer behind the report."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from instant_nk.geometry import camera_path
from instant_nk.viewer import charts, page, pictures
from instant_nk.viewer.mesh_renderer import MeshRenderer


def drawing(figure):
    return ElementTree.fromstring(re.search(r"<svg.*</svg>", figure, re.S).group(0))


# Charts


@pytest.mark.parametrize(
    ("value", "shown"), [(None, "–"), (0, "0"), (0.09272, "0.0927"), (31.234, "31.2"), (12740, "12740"), (1.7e-5, "1.70e-05"), (351.06, "351"), (0.5, "0.500")]
)
def test_numbers_read_well(value, shown):
    assert charts.number(value) == shown


def test_ticks_are_round_and_labels_tell_them_apart():
    assert charts.ticks(0, 10) == [0, 2, 4, 6, 8, 10]
    assert charts.tick_labels(charts.ticks(0, 0.17)) == ["0.00", "0.05", "0.10", "0.15"]
    assert charts.ticks(3, 3) == [3]


def test_a_gap_breaks_the_line_and_every_point_tells_its_value():
    figure = charts.line_chart("error <x>", "%", [0, 1, 2, 3], {"a & b": [0.1, None, 0.3, 0.2]})
    svg = drawing(figure)
    path = next(e for e in svg.iter() if e.tag.endswith("path")).get("d")
    assert path.count("M") == 2 and path.count("L") == 1
    titles = [e.text for e in svg.iter() if e.tag.endswith("title")]
    assert titles == ["a & b 0: 0.1000 %", "a & b 2: 0.3000 %", "a & b 3: 0.2000 %"]
    assert "error &lt;x&gt;" in figure


def test_points_lie_within_the_axes_in_order_of_value():
    svg = drawing(charts.line_chart("e", "%", [5, 6, 7], {"s": [3.0, 1.0, 2.0]}))
    dots = [(float(e.get("cx")), float(e.get("cy"))) for e in svg.iter() if e.tag.endswith("circle")]
    assert [x for x, _ in dots] == sorted(x for x, _ in dots)
    assert dots[0][1] < dots[2][1] < dots[1][1]
    assert all(charts.LEFT <= x <= charts.WIDTH and charts.TOP <= y <= charts.HEIGHT - charts.BOTTOM for x, y in dots)


def test_doubtful_frames_are_shaded():
    svg = drawing(charts.line_chart("e", "%", [0, 1, 2, 3], {"s": [1, 2, 3, 4]}, marked=[2]))
    shaded = [e for e in svg.iter() if e.get("class") == "doubt"]
    dots = [float(e.get("cx")) for e in svg.iter() if e.tag.endswith("circle")]
    assert len(shaded) == 1 and float(shaded[0].get("x")) < dots[2] < float(shaded[0].get("x")) + float(shaded[0].get("width"))


def test_a_logarithmic_chart_leaves_out_zero():
    svg = drawing(charts.line_chart("loss", "", [0, 1, 2], {"s": [1.0, 0.0, 0.001]}, logarithmic=True))
    assert len([e for e in svg.iter() if e.tag.endswith("circle")]) == 2
    assert {"1", "0.1", "0.01"} <= {e.text for e in svg.iter() if e.tag.endswith("text")}


@pytest.mark.parametrize("values", [[None, None], [0.0, 0.0], [0.9, 0.9], [-1.0, 1.0]])
def test_charts_without_spread_or_values_are_drawn(values):
    figure = charts.line_chart("e", "share", [0, 1], {"s": values}, from_zero=False)
    assert ("no values" in figure) == (values == [None, None]) and "nan" not in figure


# Pictures


def layers(h=6, w=8):
    alpha = np.zeros((h, w), np.float32)
    alpha[2:4, 3:6] = 1
    return {
        "rgb": np.full((h, w, 3), 0.25, np.float32),
        "alpha": alpha,
        "depth": np.where(alpha > 0, 2.0, 0).astype(np.float32),
        "normal": np.tile(np.float32([0, 0, -1]), (h, w, 1)),
    }


def test_colour_is_zero_where_nothing_is_seen_and_white_when_flattened():
    rgba = pictures.to_rgba(layers())
    assert rgba.dtype == np.uint8 and not rgba[0, 0].any() and rgba[2, 3].tolist() == [64, 64, 64, 255]
    assert pictures.flat(rgba)[0, 0].tolist() == [255, 255, 255] and pictures.flat(rgba)[2, 3].tolist() == [64, 64, 64]


def test_a_surface_that_faces_the_camera_is_blue():
    picture = pictures.normal_picture(layers(), np.eye(4))
    assert picture[2, 3].tolist() == [128, 128, 255] and picture[0, 0].tolist() == [255, 255, 255]


def test_near_is_darker_than_far():
    near, far = (pictures.depth_picture(layers(), *limits)[2, 3].astype(int).sum() for limits in ((2.0, 3.0), (1.0, 2.0)))
    assert near < far
    assert pictures.depth_range(layers()) == (2.0, 2.0)
    assert pictures.depth_range(layers() | {"alpha": np.zeros((6, 8))}) is None


def test_unknown_depth_draws_nothing_where_something_is_half_seen():
    picture = pictures.depth_picture({"depth": np.array([[2.0, 0.0]]), "alpha": np.array([[1.0, 0.4]])}, 1.0, 3.0)
    assert (picture[0, 1] == 255).all() and (picture[0, 0] < 255).any()


def test_crops_are_square_around_the_subject_and_stay_inside():
    rows, columns = pictures.crop_box(layers(40, 40)["alpha"] > 0)
    assert rows.stop - rows.start == columns.stop - columns.start
    assert rows.start <= 2 and rows.stop > 3 and columns.start <= 3 and columns.stop > 5
    assert pictures.crop_box(np.zeros((4, 9), bool)) == (slice(0, 4), slice(0, 9))
    assert pictures.crop_box(np.ones((4, 9), bool)) == (slice(0, 4), slice(0, 9))


def test_shrinking_averages_blocks():
    image = np.zeros((4, 6, 3), np.uint8)
    image[:, ::2] = 200
    assert pictures.shrink(image, 3).tolist() == np.full((2, 3, 3), 100).tolist()
    assert pictures.shrink(image, 6) is image


def test_text_from_outside_is_escaped():
    assert "<script>" not in page.document("<script>alert(1)</script>", "", "") and "<b>" not in page.notice("<b>")


# The mesh renderer


def test_the_mesh_is_drawn_where_it_projects(make_animation):
    animation = make_animation(2, subdivisions=3)
    c2w = camera_path.look_at(np.array([0.0, 0, 5]), np.zeros(3), np.array([0.0, 1, 0]))
    K = np.array([[60.0, 0, 32], [0, 60, 24], [0, 0, 1]])
    drawn = MeshRenderer(animation).render(c2w, K, (64, 48), 3)
    rows, columns = np.nonzero(drawn["alpha"] > 0.5)
    assert rows.min() == pytest.approx(24 - 12, abs=1) and rows.max() + 1 == pytest.approx(24 + 12, abs=1)  # half height 1 at depth 5
    assert columns.min() == pytest.approx(32 - 3.6, abs=1) and columns.max() + 1 == pytest.approx(32 + 3.6, abs=1)
    assert drawn["depth"][24, 32] == pytest.approx(5 - 0.3, abs=0.01)
    assert drawn["normal"][24, 32] == pytest.approx([0, 0, 1], abs=0.2)
    assert drawn["alpha"].shape == (48, 64) and drawn["rgb"].shape == (48, 64, 3) and (drawn["depth"][drawn["alpha"] == 0] == 0).all()


def test_a_silhouette_at_every_third_pixel_is_the_silhouette_there(make_animation):
    renderer = MeshRenderer(make_animation(2, subdivisions=3))
    c2w = camera_path.look_at(np.array([0.5, 0.2, 4]), np.zeros(3), np.array([0.0, 1, 0]))
    K = np.array([[110.0, 0, 47.3], [0, 112, 40.9], [0, 0, 1]])
    full = renderer.silhouette(c2w, K, (95, 80), 4)
    assert full.sum() > 300
    assert np.array_equal(renderer.silhouette(c2w, K, (95, 80), 4, stride=3), full[1::3, 1::3])
