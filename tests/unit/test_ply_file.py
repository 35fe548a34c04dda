"""PLY files as tools write them: text and binary of either byte order, polygons, empty elements, extra properties."""

import numpy as np
import pytest

from instant_nk.io import ply_file

POINTS = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0], [2, 0.5, 1]], float)
HEAD = "element vertex 5\nproperty float x\nproperty double y\nproperty float z\nproperty uchar red\n"


def binary(order: str, polygons: list[list[int]]) -> bytes:
    name = "little" if order == "<" else "big"
    rows = np.zeros(5, [("x", order + "f4"), ("y", order + "f8"), ("z", order + "f4"), ("red", "u1")])
    rows["x"], rows["y"], rows["z"], rows["red"] = *POINTS.T, np.arange(5) * 50
    text = (
        f"ply\nformat binary_{name}_endian 1.0\n{HEAD}element face {len(polygons)}\nproperty uchar flags\nproperty list uchar int vertex_indices\nend_header\n"
    )
    return text.encode() + rows.tobytes() + b"".join(bytes([7, len(p)]) + np.array(p, order + "i4").tobytes() for p in polygons)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("polygons", [[[0, 1, 2], [0, 2, 3]], [[0, 1, 2, 3]], [[0, 1, 2, 3], [1, 4, 2]]])
def test_binary_files_of_either_byte_order_are_read(tmp_path, order, polygons):
    (tmp_path / "a.ply").write_bytes(binary(order, polygons))
    columns, faces = ply_file.read(tmp_path / "a.ply")
    assert np.array_equal(np.stack([columns[n] for n in "xyz"], 1), POINTS) and columns["red"].tolist() == [0, 50, 100, 150, 200]
    assert faces[:2].tolist() == [[0, 1, 2], [0, 2, 3]] and faces[2:].tolist() == [[1, 4, 2]][: len(faces) - 2]


def test_text_with_polygons_is_read(tmp_path):
    text = "ply\nformat ascii 1.0\ncomment of somebody\n" + HEAD + "element face 2\nproperty list uchar int vertex_index\nend_header\n"
    text += "\n".join(f"{x} {y} {z} 9" for x, y, z in POINTS) + "\n4 0 1 2 3\n3 1 4 2\n"
    (tmp_path / "a.ply").write_text(text)
    columns, faces = ply_file.read(tmp_path / "a.ply")
    assert columns["y"].tolist() == POINTS[:, 1].tolist() and faces.tolist() == [[0, 1, 2], [0, 2, 3], [1, 4, 2]]


def test_an_empty_face_element_means_points(tmp_path):
    (tmp_path / "a.ply").write_bytes(binary("<", []))
    assert ply_file.read(tmp_path / "a.ply")[1] is None


@pytest.mark.parametrize("coordinates", [0, 2, 6])
@pytest.mark.parametrize("polygons", [[[0, 1, 2], [0, 2, 3]], [[0, 1, 2, 3], [1, 4, 2]]])
def test_lists_beside_the_corners_are_passed_over_however_short(tmp_path, coordinates, polygons):
    whole = binary("<", polygons).replace(b"end_header", b"property list uchar float texcoord\nend_header")
    start = len(whole) - sum(2 + 4 * len(p) for p in polygons)
    rows = [bytes([7, len(p)]) + np.array(p, "<i4").tobytes() + bytes([coordinates]) + bytes(4 * coordinates) for p in polygons]
    (tmp_path / "a.ply").write_bytes(whole[:start] + b"".join(rows))
    assert ply_file.read(tmp_path / "a.ply")[1].tolist() == [[0, 1, 2], [0, 2, 3], [1, 4, 2]][: 2 + (len(polygons[0]) == 4)]


@pytest.mark.parametrize("polygons", [[[0, 1], [1, 2]], [[], []], [[0, 1], []]])
def test_faces_of_less_than_three_corners_are_none(tmp_path, polygons):
    (tmp_path / "a.ply").write_bytes(binary("<", polygons))
    columns, faces = ply_file.read(tmp_path / "a.ply")
    assert faces is None and len(columns["x"]) == 5


@pytest.mark.parametrize("spoil", [lambda b: b[:-5], lambda b: b.replace(b"ply\n", b"png\n"), lambda b: b.replace(b" x\n", b" u\n")])
def test_a_broken_file_is_refused(tmp_path, spoil):
    (tmp_path / "a.ply").write_bytes(spoil(binary("<", [[0, 1, 2], [0, 2, 3]])))
    with pytest.raises(ValueError):
        ply_file.read(tmp_path / "a.ply")
