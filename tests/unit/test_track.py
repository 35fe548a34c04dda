"""Point tracks: given points stay tied to the surface."""

import numpy as np
import pytest
import trimesh

from instant_nk import cli
from instant_nk.errors import BackendError, ConfigError, ContractError, DataError
from instant_nk.io import mesh as mesh_io
from instant_nk.io.artifact import make_header
from instant_nk.layout import Paths
from instant_nk.stages import track


def test_vertices_follow_their_own_trajectories(animation):
    tracks = track.follow(animation, animation.vertices[2][::7], frame=5)
    assert np.abs(tracks.points - animation.vertices[:, ::7]).max() < 1e-5
    assert tracks.distance.max() < 1e-6 and np.array_equal(tracks.frames, animation.frames)


def test_points_on_triangles_keep_their_barycentric_place(animation):
    rng = np.random.default_rng(0)
    face, weights = rng.integers(0, len(animation.faces), 20), rng.dirichlet(np.ones(3) * 5, 20)
    corners = animation.vertices[:, animation.faces[face]].astype(np.float64)
    truth = np.einsum("npkj,pk->npj", corners, weights)
    tracks = track.follow(animation, truth[0])
    assert np.array_equal(tracks.face, face)
    assert np.abs(tracks.points - truth).max() < 1e-5
    assert np.array_equal(tracks.n_views, animation.n_views[:, animation.faces[face]].min(2))


def test_a_point_off_the_surface_passes_through_where_it_was_given_and_turns_with_the_body(make_animation):
    animation = make_animation(2)
    turn = trimesh.transformations.rotation_matrix(1.1, [0.3, 1, -0.2])[:3, :3]
    animation.vertices[1] = animation.vertices[0] @ turn.T + [1, 2, 3]
    given = np.array([[0.5, 0.2, 0.1], [-0.1, 1.3, 0.0]])
    tracks = track.follow(animation, given, frame=3)
    assert np.abs(tracks.points[0] - given).max() < 1e-5
    assert np.abs(tracks.points[1] - (given @ turn.T + [1, 2, 3])).max() < 1e-5
    assert (tracks.distance > 0.1).all()


def test_a_frame_that_is_not_there_is_named(animation):
    with pytest.raises(ConfigError, match=r"--frame 9: the animation has frames 3\.\.6 \(4 in all\)"):
        track.follow(animation, np.zeros((1, 3)), frame=9)


@pytest.mark.parametrize("name", ["points.ply", "points.txt", "points.csv", "points.obj"])
def test_points_are_read_from_what_people_have(tmp_path, name):
    points = np.array([[0.5, 1, 2], [3, 4, 5.25], [1, 0, 1]])
    if name.endswith(("txt", "csv")):
        np.savetxt(tmp_path / name, points, delimiter="," if name.endswith("csv") else " ")
    elif name.endswith("ply"):
        trimesh.PointCloud(points).export(tmp_path / name)
    else:
        (tmp_path / name).write_text("".join("v {} {} {}\n".format(*p) for p in points) + "f 1 2 3\n")
    assert np.allclose(track.read_points(tmp_path / name), points)


OBJ = """mtllib a.mtl
v 9 9 9
v 0 0 0
v 1 0 0 0.5 0.5 0.5
v 1 1 0
v 0 1 0
v 0 0 0
vt 0 0
vt 1 0
vt 1 1
vt 0.5 0
usemtl first
f 2/1 3/2 4/3
usemtl second
f 2/4 4/2 5/1
"""


def test_vertices_of_an_obj_keep_their_numbers_whatever_its_seams_and_materials(tmp_path):
    (tmp_path / "a.obj").write_text(OBJ)
    wanted = [[9, 9, 9], [0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert track.read_points(tmp_path / "a.obj").tolist() == wanted
    (tmp_path / "b.obj").write_text(OBJ.partition("usemtl second")[0])
    assert track.read_points(tmp_path / "b.obj").tolist() == wanted


def test_vertices_of_a_ply_keep_their_numbers_whatever_its_faces(tmp_path):
    points = [[9, 9, 9], [0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 0, 0]]
    head = "ply\nformat ascii 1.0\nelement vertex 5\nproperty float x\nproperty float y\nproperty float z\nelement face 1\n"
    head += "property list uchar int vertex_indices\nproperty list uchar float texcoord\nend_header\n"
    (tmp_path / "a.ply").write_text(head + "".join("{} {} {}\n".format(*p) for p in points) + "3 1 2 3 6 0 0 1 0 1 1\n")
    assert track.read_points(tmp_path / "a.ply").tolist() == points


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.ply", None, "no such file of points"),
        ("broken.ply", "not a ply", "not a readable file of points"),
        ("broken.obj", "v 1 2\nv 3 4 5\n", "not a readable file of points"),
        ("empty.obj", "vt 1 2\n", r"at least one point .* got \[0, 3\]"),
        ("words.txt", "left hand\n", "not a readable file of points"),
        ("two.txt", "1 2\n3 4\n", r"three finite numbers, got \[2, 2\]"),
        ("nan.txt", "1 2 nan\n", "three finite numbers"),
    ],
)
def test_bad_point_files_are_named(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        track.read_points(tmp_path / name)


def test_trajectories_are_written_as_npz_and_csv(animation, tmp_path):
    paths = Paths(tmp_path / "results" / "demo")
    mesh_io.save_animation(paths.animation, animation, make_header("animation", mesh_io.ANIMATION_FORMAT, "mesh"))
    np.savetxt(tmp_path / "p.txt", animation.vertices[0][:3])
    said = track.run_track(paths, tmp_path / "p.txt", tmp_path / "t.npz")
    assert "3 points, frames 3 to 6" in said and "warning" not in said
    tracks = track.load(tmp_path / "t.npz")
    track.run_track(paths, tmp_path / "p.txt", tmp_path / "t.csv")
    table = np.loadtxt(tmp_path / "t.csv", delimiter=",", skiprows=1)
    assert table.shape == (12, 6) and np.array_equal(table[:, 0], np.repeat([3, 4, 5, 6], 3))
    assert np.array_equal(table[:, 2:5].reshape(4, 3, 3).astype(np.float32), tracks.points)
    np.savetxt(tmp_path / "far.txt", [[100, 0, 0]])
    assert "warning: 1 points lie farther than 5%" in track.run_track(paths, tmp_path / "far.txt", tmp_path / "t.npz")
    with pytest.raises(ConfigError, match=r"written as \.npz or \.csv, got '\.xlsx'"):
        track.run_track(paths, tmp_path / "p.txt", tmp_path / "t.xlsx")


def test_a_result_of_another_version_is_refused(animation, tmp_path):
    paths = Paths(tmp_path)
    header = {**make_header("animation", mesh_io.ANIMATION_FORMAT + 1, "mesh"), "package_version": "9.9"}
    mesh_io.save_animation(paths.animation, animation, header)
    with pytest.raises(ContractError, match=r"wanted format 1 of 'animation', got 2 \(written by version 9\.9\)"):
        track.run_track(paths, tmp_path / "p.txt", tmp_path / "t.npz")


def test_the_command_writes_trajectories_and_exits_with_the_error_s_code(animation, tmp_path, capsys):
    paths = Paths(tmp_path / "demo")
    mesh_io.save_animation(paths.animation, animation, make_header("animation", mesh_io.ANIMATION_FORMAT, "mesh"))
    np.savetxt(tmp_path / "p.txt", animation.vertices[1][:2])
    assert cli.main(["track", str(paths.root), "--points", str(tmp_path / "p.txt"), "--frame", "4", "-o", str(tmp_path / "t.csv")]) == 0
    assert "2 points, frames 3 to 6" in capsys.readouterr().out and (tmp_path / "t.csv").is_file()
    assert cli.main(["track", str(paths.root), "--points", str(tmp_path / "absent.ply")]) == DataError.exit_code
    assert cli.main(["view", str(tmp_path / "nothing")]) in (ContractError.exit_code, BackendError.exit_code)
