"""Self-check of meshes: known faults are counted, sound meshes have none."""

import numpy as np
import pytest
import trimesh

from instant_nk.geometry import mesh_check

SOUND = {"open_edges": 0, "overshared_edges": 0, "turned_edges": 0, "inside_out_components": 0, "pinched_vertices": 0}
SOUND |= {"degenerate_faces": 0, "unused_vertices": 0}


@pytest.fixture
def ball():
    """A closed ball, far from the origin, at two frames."""
    sphere = trimesh.creation.icosphere(2)
    return np.stack([sphere.vertices, sphere.vertices * 1.1]) + 100.0, sphere.faces.copy()


def test_a_closed_ball_is_sound(ball):
    assert mesh_check.check(*ball) == SOUND | {"components": 1}


def test_a_missing_face_leaves_three_open_edges(ball):
    vertices, faces = ball
    assert mesh_check.check(vertices, faces[1:]) == SOUND | {"components": 1, "open_edges": 3}


def test_a_turned_face_disagrees_with_its_three_neighbours(ball):
    vertices, faces = ball
    faces[5] = faces[5, ::-1]
    assert mesh_check.check(vertices, faces) == SOUND | {"components": 1, "turned_edges": 3}


def test_a_ball_turned_inside_out_is_found_also_beside_a_sound_one(ball):
    vertices, faces = ball
    both = np.concatenate([vertices, vertices + [5, 0, 0]], 1)
    assert mesh_check.check(both, np.concatenate([faces, faces[:, ::-1] + vertices.shape[1]])) == SOUND | {"components": 2, "inside_out_components": 1}


def test_an_edge_of_three_faces_is_found(ball):
    vertices, faces = ball
    fin = np.array([[faces[0, 0], faces[0, 1], vertices.shape[1]]])
    more = np.concatenate([vertices, np.full((2, 1, 3), 103.0)], 1)
    assert mesh_check.check(more, np.concatenate([faces, fin])) == SOUND | {"components": 1, "overshared_edges": 1, "open_edges": 2}


def test_a_face_that_collapses_in_a_later_frame_counts_and_so_does_a_lone_vertex(ball):
    vertices, faces = ball
    vertices = np.concatenate([vertices, np.zeros((2, 1, 3))], 1)
    vertices[1, faces[0, 0]] = vertices[1, faces[0, 1]]
    touching = int((np.isin(faces, faces[0, :2]).sum(1) == 2).sum())
    assert mesh_check.check(vertices, faces) == SOUND | {"components": 1, "unused_vertices": 1, "degenerate_faces": touching}


def test_the_verdict_on_closedness_is_trimesh_s(ball):
    vertices, faces = ball
    rng = np.random.default_rng(0)
    for kept in (len(faces), len(faces) - 1, 100):
        chosen = faces[np.sort(rng.permutation(len(faces))[:kept])]
        found = mesh_check.check(vertices, chosen)
        closed = found["open_edges"] == 0 and found["overshared_edges"] == 0
        assert closed == trimesh.Trimesh(vertices[0], chosen, process=False).is_watertight


def test_two_balls_that_touch_in_a_vertex_are_pinched_there(ball):
    vertices, faces = ball
    both = np.concatenate([vertices, 2 * vertices[:, :1] - vertices[:, 1:]], 1)  # mirrored in vertex 0
    second = np.where(faces == 0, 0, faces + vertices.shape[1] - 1)[:, ::-1]  # shares the first ball's vertex 0
    assert mesh_check.check(both, np.concatenate([faces, second])) == SOUND | {"components": 1, "pinched_vertices": 1}
