"""`instant-nk register`: known shapes in known poses, as files, in any unit; the error is the distance of every vertex to where it truly went."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from instant_nk import cli
from instant_nk.errors import DataError
from instant_nk.fitting import meshing, pair_registration
from instant_nk.fitting.deformation_solver import Pose
from instant_nk.fitting.pair_registration import PAIR, PairSettings, register_pair, spread
from instant_nk.fitting.registration import judge
from instant_nk.geometry import depth_map, surface
from instant_nk.geometry.rotations import so3_exp
from instant_nk.io import rgbd, surface_file
from instant_nk.io.surface_file import Surface
from instant_nk.models import deformation_graph
from tests.unit.shapes import bent, sphere, stripes, tube

SETTINGS = PairSettings(max_nodes=100, max_points=1500, options=dataclasses.replace(PAIR, iterations=10))


def error(moved, truth):
    """Mean distance in % of the diagonal."""
    return 100 * np.linalg.norm(moved - truth, axis=1).mean() / np.linalg.norm(np.ptp(truth, axis=0))


def cloud(vertices, faces, live, count=4000, seed=0):
    """Oriented points of a surface at rest and where they go."""
    face, bary = surface.sample(vertices, faces, count, seed)
    rest, moved = ((x[faces[face]] * bary[..., None]).sum(1) for x in (vertices, live))
    normals = (surface.vertex_normals(vertices, faces)[faces[face]] * bary[..., None]).sum(1)
    return Surface(rest, normals / np.linalg.norm(normals, axis=1, keepdims=True), None, stripes(rest)), moved


def pair_of(angle=30, colours=True):
    vertices, faces = tube()
    live = bent(vertices, np.radians(angle))
    colour = stripes(vertices) if colours else None
    other = np.random.default_rng(3).permutation(len(vertices))  # the target's vertices have other numbers
    place = np.argsort(other)
    return Surface.of_mesh(vertices, faces, colour), Surface.of_mesh(live[other], place[faces], None if colour is None else colour[other]), live


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (1e-3, 5.0), (1e4, -3e6)])
def test_a_mesh_in_any_unit_and_place_is_moved_onto_another(scale, shift):
    source, target, live = pair_of()
    source, target = (Surface.of_mesh(scale * x.points + shift, x.faces, x.colours) for x in (source, target))
    fit = register_pair(source, target, SETTINGS)
    assert fit.converged and error(fit.moved.points, scale * live + shift) < 0.5
    assert np.array_equal(fit.moved.faces, source.faces) and fit.residual < 0.02 * scale


def test_a_target_that_is_turned_and_far_away_is_found():
    source, _, live = pair_of(10)
    skew = live + np.clip(live[:, :1] - 0.6, 0, None) * [0, 0.5, 0.2]
    source = Surface.of_mesh(source.points + np.clip(source.points[:, :1] - 0.6, 0, None) * [0, 0.5, 0.2], source.faces, source.colours)
    turned = skew @ so3_exp(torch.tensor([0.0, 1.2, 0.9], dtype=torch.float64)).numpy().T + [4.0, -7.0, 2.0]
    fit = register_pair(source, Surface.of_mesh(turned, source.faces, source.colours), SETTINGS)
    assert fit.converged and error(fit.moved.points, turned) < 0.6


def test_an_oriented_point_cloud_is_moved_onto_another():
    vertices, faces = tube()
    source, truth = cloud(vertices, faces, bent(vertices, np.radians(30)))
    target, _ = cloud(bent(vertices, np.radians(30)), faces, vertices, seed=5)
    coloured, _ = cloud(vertices, faces, vertices, seed=5)
    fit = register_pair(source, Surface(target.points, target.normals, None, coloured.colours), SETTINGS)
    assert fit.converged and fit.moved.faces is None and error(fit.moved.points, truth) < 0.6
    exact = surface.vertex_normals(bent(vertices, np.radians(30)), faces)
    nearest = np.linalg.norm(fit.moved.points[::50, None] - bent(vertices, np.radians(30)), axis=2).argmin(1)
    assert ((fit.moved.normals[::50] * exact[nearest]).sum(1) > 0.8).mean() > 0.95


def test_a_mesh_too_fine_for_its_graph_is_thinned_for_it_and_moved_whole(monkeypatch):
    source, target, live = pair_of()
    whole = register_pair(source, target, SETTINGS)
    thinned = []
    monkeypatch.setattr(pair_registration, "GRAPH_FACES", 900)
    monkeypatch.setattr(pair_registration, "GRAPH_FACES_PLAIN", 900)
    monkeypatch.setattr(meshing, "decimate", lambda *given, decimate=meshing.decimate: thinned.append(given) or decimate(*given))
    fit = register_pair(source, target, SETTINGS)
    assert len(thinned) == 1
    assert fit.converged and len(fit.moved.points) == len(source.points) and np.array_equal(fit.moved.faces, source.faces)
    assert error(fit.moved.points, live) < error(whole.moved.points, live) + 0.2


def test_what_is_wrong_with_a_source_is_said_by_its_graph_though_alignment_goes_on_beside():
    source, target, _ = pair_of()
    points = source.points.copy()
    points[7, 1] = np.nan
    with pytest.raises(DataError, match="not finite"):
        register_pair(Surface(points, source.normals, source.faces, source.colours), target, SETTINGS)
    with pytest.raises(DataError, match="no area"):
        register_pair(Surface(source.points, source.normals, source.faces[:0], source.colours), target, SETTINGS)


def test_a_cloud_of_twins_has_a_scale():
    points = np.repeat(np.random.default_rng(0).uniform(-1, 1, (150, 3)), 2, axis=0)
    assert pair_registration._scale(points, SETTINGS) > 1e-3
    coarse = pair_registration._scale(points[::2], dataclasses.replace(SETTINGS, max_nodes=25, node_spacing=None))
    assert coarse == pytest.approx(4 * pair_registration._scale(points[::2], dataclasses.replace(SETTINGS, max_nodes=400, node_spacing=None)))


def test_the_graph_of_a_point_cloud_keeps_the_two_sides_of_a_thin_sheet_and_two_balls_apart():
    ball, ball_faces = sphere(0.4, 12)
    points = np.concatenate([ball, ball + [0.81, 0, 0]])
    normals = np.concatenate([surface.vertex_normals(ball, ball_faces)] * 2)
    graph = deformation_graph.on_points(points, normals, 60)
    side = graph.node_positions[:, 0] > 0.405
    used = graph.vertex_weights > 0
    assert not (used & (side[graph.vertex_anchors] != (points[:, 0] > 0.405)[:, None])).any()
    assert np.allclose(graph.vertex_weights.sum(1), 1, atol=1e-6) and len(graph.node_positions) == 60


def test_stray_points_get_no_nodes_of_their_own():
    vertices, faces = tube()
    source, _ = cloud(vertices, faces, vertices, 3000)
    rng = np.random.default_rng(0)
    stray = rng.uniform(-1, 3, (40, 3))
    normals = rng.normal(size=(40, 3))
    graph = deformation_graph.on_points(
        np.concatenate([source.points, stray]), np.concatenate([source.normals, normals / np.linalg.norm(normals, axis=1, keepdims=True)]), 80
    )
    assert len(graph.node_positions) == 80
    assert np.isfinite(graph.vertex_weights).all()


def test_points_are_spread_evenly_whatever_their_density():
    rng = np.random.default_rng(0)
    dense, sparse = rng.random((20000, 3)) * [0.5, 1, 0], rng.random((2000, 3)) * [0.5, 1, 0] + [0.5, 0, 0]
    pick = spread(np.concatenate([dense, sparse]), 800)
    assert 700 <= len(pick) <= 800 and 0.35 < (pick >= 20000).mean() < 0.65


def run(*argv):
    return cli.main([str(a) for a in argv])


FAST = ("--set", "graph.max_nodes=80", "--set", "registration.max_points=1200", "--set", "registration.iterations=8", "--set", "runtime.device=cpu")


def test_the_command_writes_the_moved_source_with_its_own_vertices_and_colours(tmp_path, capsys):
    source, target, live = pair_of()
    for name, one in (("a", source), ("b", target)):
        surface_file.save(tmp_path / f"{name}.ply", one)
    assert run("register", tmp_path / "a.ply", tmp_path / "b.ply", "-o", tmp_path / "out.ply", *FAST) == 0
    said = capsys.readouterr().out
    assert "converged: yes" in said and "residual" in said and "target explained" in said and "rigidity" in said and " s," in said
    moved = surface_file.load(tmp_path / "out.ply")
    assert error(moved.points, live) < 0.6 and np.array_equal(moved.faces, source.faces) and np.abs(moved.colours - source.colours).max() < 0.003


def test_what_does_not_converge_is_written_and_says_so_with_its_own_exit_code(tmp_path, capsys):
    source, _, _ = pair_of()
    surface_file.save(tmp_path / "a.ply", source)
    rng = np.random.default_rng(0)
    normals = rng.normal(size=(3000, 3))
    surface_file.save(tmp_path / "b.ply", Surface(rng.uniform(-1, 3, (3000, 3)), normals / np.linalg.norm(normals, axis=1, keepdims=True)))
    assert run("register", tmp_path / "a.ply", tmp_path / "b.ply", "-o", tmp_path / "out.ply", *FAST) == 5
    said = capsys.readouterr().err
    assert "converged: no" in said and "The best found was written" in said
    assert len(surface_file.load(tmp_path / "out.ply").points) == len(source.points)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["register", "-o", "x.ply"], "wanted SOURCE and TARGET"),
        (["register", "a.ply", "-o", "x.ply"], "wanted SOURCE and TARGET"),
        (["register", "a.ply", "b.ply", "--rgbd", "a", "b", "c", "d", "-o", "x.ply"], "wanted SOURCE and TARGET"),
        (["register", "--rgbd", "a", "b", "c", "d", "-o", "x.ply"], "--intrinsics FILE too"),
        (["register", "a.ply", "b.ply", "-o", "x.obj"], "must be a .ply"),
    ],
)
def test_a_wrong_call_says_what_is_wanted(argv, said, capsys):
    assert run(*argv) == 2
    assert said in capsys.readouterr().err


# Files


def test_an_obj_keeps_its_vertex_order_whatever_its_seams_and_polygons(tmp_path):
    (tmp_path / "a.obj").write_text("v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\nvt 0 0\nvt 1 1\nvn 0 0 1\nf 1/1/1 2/2/1 3/1/1 4/2/1\nf -4 -3 -2\n")
    read = surface_file.load(tmp_path / "a.obj")
    assert read.points.tolist() == [[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]] and read.faces.tolist() == [[0, 1, 2], [0, 2, 3], [0, 1, 2]]
    assert np.allclose(read.normals, [0, 0, 1]) and read.colours is None


def test_a_written_surface_reads_back_also_far_from_the_origin(tmp_path):
    vertices, faces = sphere(0.1)
    for shift in (0.0, 1e6):
        given = Surface.of_mesh(vertices + shift, faces, stripes(vertices))
        surface_file.save(tmp_path / "a.ply", given)
        read = surface_file.load(tmp_path / "a.ply")
        assert np.abs(read.points - given.points).max() < 1e-8 and np.array_equal(read.faces, faces) and np.abs(read.colours - given.colours).max() < 0.003


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.ply", None, "no such file"),
        ("a.xyz", "0 0 0", "surfaces are read from"),
        ("a.ply", "hello", "does not begin with a PLY header"),
        (
            "a.ply",
            "ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nproperty float y\nproperty float z\nend_header\n0 0 0\n",
            "neither faces nor normals",
        ),
        ("a.ply", "ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nproperty float y\nproperty float z\nend_header\n0 nan 0\n", "not finite"),
        ("a.obj", "v 0 0 0\nv 1 0 0\nf 1 2 9\n", "index vertices 0..8, it has 2"),
        ("a.obj", "v 0 0 0\nv 1 0 0\nv 2 0 0\nf 1 2 3\n", "no area"),
        ("a.obj", "v 0 0 0\n", "it has no faces"),
    ],
)
def test_a_file_that_is_no_surface_is_refused_with_its_name(tmp_path, name, text, said):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=said) as caught:
        surface_file.load(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


# Depth cameras

K = np.array([[200.0, 0, 80], [0, 210.0, 60], [0, 0, 1]])


def see(deform, size=(160, 120)):
    """Depth (metres) and colours of a wavy sheet at z = 1 + height, deformed: `deform` maps rest points [N, 3] to live ones. Also where each pixel came from."""
    u, v = np.meshgrid(np.linspace(-0.28, 0.28, 500), np.linspace(-0.2, 0.2, 400))
    rest = np.stack([u, v, 1 + 0.03 * np.sin(14 * u) * np.cos(11 * v)], -1).reshape(-1, 3)
    live = deform(rest)
    column, row = (live[:, k] / live[:, 2] * K[k, k] + K[k, 2] for k in (0, 1))
    inside = (column >= 0) & (column < size[0]) & (row >= 0) & (row < size[1])
    pixel = row[inside].astype(int) * size[0] + column[inside].astype(int)
    order = np.argsort(-live[inside, 2], kind="stable")
    owner = np.full(size[0] * size[1], -1)
    owner[pixel[order]] = np.flatnonzero(inside)[order]
    seen = owner >= 0
    depth, colour = np.zeros(len(owner)), np.full((len(owner), 3), 0.5)
    depth[seen], colour[seen] = live[owner[seen], 2], stripes(3 * rest[owner[seen]])
    shape = (size[1], size[0])
    return depth.reshape(shape), colour.reshape(*shape, 3), rest, owner


def write_frame(folder, name, depth, colour):
    Image.fromarray(np.round(255 * colour).astype(np.uint8)).save(folder / f"{name}.png")
    Image.fromarray(np.round(1000 * depth).astype(np.uint16)).save(folder / f"{name}_depth.png")
    return [folder / f"{name}.png", folder / f"{name}_depth.png"]


def swung(rest):
    """Bent about a vertical line and moved sideways."""
    x, y, z = rest.T
    angle = np.clip(x, 0, None) * 1.2
    return np.stack([np.minimum(x, 0) + np.sin(angle) / 1.2 + 0.03, y + 0.01, z - (1 - np.cos(angle)) / 1.2], 1)


def test_a_depth_frame_is_moved_onto_another_through_the_command(tmp_path, capsys):
    depth, colour, rest, owner = see(lambda p: p)
    later_depth, later_colour, _, _ = see(swung)
    files = write_frame(tmp_path, "a", depth, colour) + write_frame(tmp_path, "b", later_depth, later_colour)
    np.savetxt(tmp_path / "K.txt", K)
    assert run("register", "--rgbd", *files, "--intrinsics", tmp_path / "K.txt", "-o", tmp_path / "out.ply", *FAST) == 0
    moved = surface_file.load(tmp_path / "out.ply").points
    pixels = rgbd.load(*files[:2], K).pixels
    truth = swung(rest[owner[pixels]])
    distance = np.linalg.norm(moved - truth, axis=1)
    still = np.linalg.norm(truth - rest[owner[pixels]], axis=1).mean()
    assert still > 0.03 and distance.mean() < 0.006 and distance.mean() < 0.15 * still
    assert "converged: yes" in capsys.readouterr().out


def folded(rest):
    """A flap at the right edge folded back behind the sheet."""
    x, y, z = rest.T
    over = np.clip(x - 0.12, 0, None)
    return np.stack([np.minimum(x, 0.12) - over, y, z + np.minimum(over, 0.02)], 1)


def test_nothing_is_left_where_the_camera_saw_empty_space(tmp_path, monkeypatch):
    """A sheet whose flap folds back, from a fit that left the flap spread out."""
    for name, deform in (("a", lambda p: p), ("b", folded)):
        depth, colour, _, _ = see(deform)
        depth[depth == 0] = 2.0  # a wall behind
        write_frame(tmp_path, name, depth, colour)
    subject, scene = (rgbd.load(tmp_path / f"{n}.png", tmp_path / f"{n}_depth.png", K, mask(tmp_path, n)).surface for n in "ab")
    monkeypatch.setattr(pair_registration, "register_near", lambda body, pose, target, options: judge(body, Pose.identity(body), target))
    settings = dataclasses.replace(SETTINGS, align=False, max_nodes=60)
    with_space = register_pair(subject, scene, settings).moved.points
    without = register_pair(subject, dataclasses.replace(scene, seen=None), settings).moved.points
    astray = [scene.seen.empty(points, 0.02).mean() for points in (without, with_space)]
    assert astray[0] > 0.25 and astray[1] < 0.06
    kept = subject.points[:, 0] < 0
    assert np.linalg.norm(with_space - subject.points, axis=1)[kept].mean() < 0.01


def test_space_is_empty_before_what_was_seen_only():
    seen = depth_map.SeenSpace(np.array([[2.0, 0.0], [2.0, 2.0]]), np.array([[1.0, 0, 1], [0, 1, 1], [0, 0, 1]]))
    points = np.array([[-0.5, -0.5, 1], [-0.5, -0.5, 1.95], [-1.5, -1.5, 3], [0.5, -0.5, 1], [9, 0, 1], [0, 0, -1]])
    assert seen.empty(points, 0.1).tolist() == [True, False, False, False, False, False]


def mask(folder, name):
    """All that is nearer than the wall."""
    depth = np.asarray(Image.open(folder / f"{name}_depth.png")) / 1000
    Image.fromarray(np.where(depth < 1.5, 255, 0).astype(np.uint8)).save(folder / f"{name}_mask.png")
    return folder / f"{name}_mask.png"


def test_a_surface_ends_before_what_lies_behind_and_goes_on_under_what_lies_before():
    depth = np.full((20, 30), 2.0)
    depth[:, 10:20] = 1.5  # the surface asked about, columns 10 to 19
    depth[:, 20:] = 1.0  # hides its right side
    depth[:, 8:10] = 0  # the sensor's shadow on the wall
    depth[5, 14] = 0  # a hole
    own = np.zeros_like(depth, bool)
    own[2:18, 10:20] = depth[2:18, 10:20] > 0
    pixels = np.flatnonzero(own)
    found = np.zeros(depth.size, bool)
    found[pixels] = depth_map.goes_on(depth, K, pixels)
    found = found.reshape(depth.shape)
    assert not found[4:16, 10].any() and found[4:16, 19].all()  # left: the wall behind the shadow; right: hidden
    assert found[2, 10:20].all() and found[17, 10:20].all()  # the mask cuts it off above and below
    assert found[4, 13:16].all() and not found[8:15, 11:19].any()


def test_a_flat_wall_becomes_a_flat_mesh_that_faces_the_camera():
    depth = np.full((30, 40), 2.0)
    valid = np.ones_like(depth, bool)
    valid[:, :5] = False
    vertices, faces, normals, pixels = depth_map.to_mesh(depth, K, valid)
    assert len(vertices) == 30 * 35 and len(faces) == 2 * 29 * 34 and np.allclose(normals, [0, 0, -1])
    assert np.allclose(surface.face_normals(vertices, faces), [0, 0, -1])
    assert np.allclose(vertices[:, 0], ((pixels % 40) + 0.5 - 80) / 200 * 2)


def test_an_occlusion_edge_is_not_bridged():
    depth = np.full((30, 40), 2.0)
    depth[:, 20:] = 1.0
    vertices, faces, _, _ = depth_map.to_mesh(depth, K, depth > 0)
    assert np.ptp(vertices[faces][..., 2], axis=1).max() == 0 and len(vertices) == 30 * 40


@pytest.mark.parametrize("text", ["200 0 80\n0 210 60\n0 0 1\n", "200 0 80 0 0 210 60 0 0 0 1 0 0 0 0 1", '{"fx": 200, "fy": 210, "cx": 80, "cy": 60}',
                                  '{"fl_x": 200, "fl_y": 210, "cx": 80, "cy": 60}', '{"K": [[200, 0, 80], [0, 210, 60], [0, 0, 1]]}'])  # fmt: skip
def test_intrinsics_are_read_from_text_and_json(tmp_path, text):
    (tmp_path / "K").write_text(text)
    assert np.array_equal(rgbd.read_intrinsics(tmp_path / "K"), K)


@pytest.mark.parametrize(
    ("text", "said"), [("1 2 3", "got 3 numbers"), ("{}", "cannot be read"), ("0 0 1 0 1 1 0 0 1", "not intrinsics"), ("a b", "cannot be read")]
)
def test_intrinsics_of_another_form_are_refused(tmp_path, text, said):
    (tmp_path / "K").write_text(text)
    with pytest.raises(DataError, match=said):
        rgbd.read_intrinsics(tmp_path / "K")


def test_depth_of_another_size_or_kind_is_refused(tmp_path):
    depth, colour, _, _ = see(lambda p: p)
    colour_file, depth_file = write_frame(tmp_path, "a", depth, colour)
    Image.fromarray(np.zeros((5, 4), np.uint16)).save(tmp_path / "small.png")
    with pytest.raises(DataError, match="4x5 pixels.*160x120"):
        rgbd.load(colour_file, tmp_path / "small.png", K)
    with pytest.raises(DataError, match="16-bit grey"):
        rgbd.load(colour_file, colour_file, K)
    Image.fromarray(np.zeros((120, 160), np.uint8)).save(tmp_path / "mask.png")
    with pytest.raises(DataError, match="no surface is left"):
        rgbd.load(colour_file, depth_file, K, tmp_path / "mask.png")
