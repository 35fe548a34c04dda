"""From a distance field to a mesh: spheres of the right radius, facing outwards, signs filled in, parts kept or dropped."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import trimesh

from instant_nk.errors import NumericalError
from instant_nk.fitting import meshing
from instant_nk.geometry import surface
from instant_nk.models.occupancy import cell_centres, near_surface
from tests.unit.neural_fixtures import ball
from tests.unit.shapes import sphere


def shell(points):
    """A hollow ball between radii 0.3 and 0.7."""
    return (torch.linalg.vector_norm(points, dim=1) - 0.5).abs() - 0.2


def sampled(sdf, resolution, cells=16):
    occupied = near_surface(sdf, torch.ones((cells,) * 3, dtype=torch.bool), 0.0)
    return meshing.sample_sdf(sdf, occupied, resolution)


def test_values_near_the_surface_are_exact_and_elsewhere_signed():
    values = sampled(ball, 40)
    axis = torch.linspace(-1, 1, 41)
    truth = ball(torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)).reshape(41, 41, 41).numpy()
    assert values.shape == (41, 41, 41) and values.dtype == np.float32
    near = np.abs(truth) < 0.1
    np.testing.assert_allclose(values[near], truth[near], atol=1e-6)
    assert (np.sign(values) == np.sign(truth))[np.abs(truth) > 1e-6].all()
    assert set(np.unique(np.abs(values[np.abs(truth) > 0.4]))) == {1.0}


def test_only_points_near_occupied_cells_are_evaluated():
    asked = []
    occupied = near_surface(ball, torch.ones(16, 16, 16, dtype=torch.bool), 0.0)
    meshing.sample_sdf(lambda x: asked.append(len(x)) or ball(x), occupied, 40, chunk=1000)
    assert max(asked) == 1000 and sum(asked) < 0.5 * 41**3


def test_a_hollow_inside_is_filled_as_outside():
    values = sampled(shell, 40, cells=32)
    assert values[20, 20, 20] == 1 and values[0, 0, 0] == 1 and values[20, 20, 30] < 0


def test_signs_come_from_the_border_of_each_unknown_region():
    near = torch.zeros(9, 9, 9, dtype=torch.bool)
    near[1:8, 1:8, 1:8] = True
    near[3:6, 3:6, 3:6] = False  # inside of a band around a cube
    signs = meshing._far_signs(lambda x: x.abs().amax(1) - 0.5, near)
    assert (signs[3:6, 3:6, 3:6] == -1).all()
    assert signs[0, 0, 0] == signs[8, 8, 8] == signs[0, 4, 4] == 1
    assert set(signs.unique().tolist()) == {-1.0, 1.0}


def test_nothing_occupied_is_all_outside_and_has_no_surface():
    values = meshing.sample_sdf(ball, torch.zeros(8, 8, 8, dtype=torch.bool), 16)
    assert (values == 1).all()
    with pytest.raises(NumericalError, match=r"no zero crossing.*instant-nk check"):
        meshing.isosurface(values)


@pytest.mark.parametrize("resolution", [32, 48])
def test_the_isosurface_of_a_ball_is_closed_faces_outwards_and_has_its_radius(resolution):
    vertices, faces = meshing.isosurface(sampled(ball, resolution))
    assert vertices.dtype == np.float32 and faces.dtype == np.int32
    mesh = trimesh.Trimesh(vertices, faces, process=False)
    assert mesh.is_watertight
    assert mesh.volume == pytest.approx(4 / 3 * np.pi * 0.5**3, rel=0.01)
    np.testing.assert_allclose(np.linalg.norm(vertices, axis=1), 0.5, atol=0.05 / resolution)


def test_the_isosurface_keeps_the_axes_in_order():
    vertices, _ = meshing.isosurface(sampled(lambda x: ball(x * torch.tensor([1.0, 2.0, 0.7]) - torch.tensor([0.1, 0.0, 0.0])), 48))
    np.testing.assert_allclose(vertices.max(0), [0.6, 0.25, 0.5 / 0.7], atol=0.02)
    np.testing.assert_allclose(vertices.min(0), [-0.4, -0.25, -0.5 / 0.7], atol=0.02)


def spheres(*radii):
    """Separate spheres with one vertex that no face uses in front."""
    parts = [trimesh.creation.icosphere(2, r).apply_translation([3.0 * i, 0, 0]) for i, r in enumerate(radii)]
    mesh = trimesh.util.concatenate(parts)
    return np.concatenate([[[9.0, 9, 9]], mesh.vertices]).astype(np.float32), (mesh.faces + 1).astype(np.int32)


@pytest.mark.parametrize(("share", "kept"), [(0.02, [0, 1]), (0.3, [0]), (0.001, [0, 1, 2]), (1.0, [0])])
def test_parts_below_a_share_of_the_largest_ones_area_are_dropped(share, kept):
    """Areas 1, 0.25 and 0.01 of the largest."""
    vertices, faces = meshing.keep_components(*spheres(1.0, 0.5, 0.1), share)
    assert sorted({int(round(float(x) / 3)) for x in vertices[:, 0]}) == kept
    assert len(vertices) == 162 * len(kept) and len(faces) == 320 * len(kept) and faces.max() == len(vertices) - 1
    assert trimesh.Trimesh(vertices, faces, process=False).is_watertight


def test_a_hole_within_a_part_is_dropped_and_a_part_within_a_hole_is_not():
    outer, hole, inner = (trimesh.creation.icosphere(2, r).apply_translation([50.0, 0, 0]) for r in (1.0, 0.8, 0.5))
    hole.invert()
    mesh = trimesh.util.concatenate([outer, hole, inner])
    vertices, faces = meshing.keep_components(mesh.vertices.astype(np.float32), mesh.faces.astype(np.int32), 0.02)
    radii = np.linalg.norm(vertices - [50, 0, 0], axis=1)
    assert len(faces) == 640 and np.count_nonzero(radii > 0.9) == np.count_nonzero(radii < 0.6) == 162


def test_decimation_reaches_its_target_and_keeps_the_shape():
    vertices, faces = meshing.isosurface(sampled(ball, 48))
    few_vertices, few = meshing.decimate(vertices, faces, 1000)
    assert 0.9 * 1000 <= len(few) <= 1000 and few.dtype == np.int32 and few_vertices.dtype == np.float32
    assert trimesh.Trimesh(few_vertices, few, process=False).volume == pytest.approx(trimesh.Trimesh(vertices, faces, process=False).volume, rel=0.02)


@pytest.mark.parametrize("target", [None, 10**6])
def test_a_mesh_below_the_target_is_returned_as_it_is(target):
    vertices, faces = spheres(1.0)
    assert meshing.decimate(vertices, faces, target) == (vertices, faces)


def with_gradient(x):
    return ball(x), torch.nn.functional.normalize(x, dim=1), x


def test_snapping_puts_vertices_on_the_surface_with_outward_unit_normals():
    direction = torch.nn.functional.normalize(torch.randn(200, 3), dim=1)
    vertices, normals = meshing.snap(with_gradient, direction * (0.5 + (torch.rand(200, 1) - 0.5) * 0.04), limit=0.05)
    torch.testing.assert_close(vertices, direction * 0.5)
    torch.testing.assert_close(normals, direction)


def test_snapping_never_moves_a_vertex_further_than_its_limit():
    direction = torch.nn.functional.normalize(torch.randn(200, 3), dim=1)
    vertices, _ = meshing.snap(with_gradient, direction * 0.8, limit=0.05)
    torch.testing.assert_close(vertices, direction * 0.75)
    steep = meshing.snap(lambda x: (ball(x), torch.zeros_like(x), x), direction * 0.8, limit=0.05)[0]
    assert torch.isfinite(steep).all()


def test_cells_and_corners_agree_where_the_surface_is():
    """A one-cell feature at the border of the box is found."""

    def sdf(x):
        return torch.linalg.vector_norm(x - torch.tensor([0.9, 0.9, -0.9]), dim=1) - 0.08

    occupied = (sdf(cell_centres(16)) < 0.1).reshape(16, 16, 16)
    vertices, _ = meshing.isosurface(meshing.sample_sdf(sdf, occupied, 64))
    np.testing.assert_allclose(vertices.mean(0), [0.9, 0.9, -0.9], atol=0.01)


@pytest.mark.parametrize("nearly", [1e-6, -1e-6])
def test_a_surface_through_the_grid_s_corners_makes_no_triangle_without_area(nearly, monkeypatch):
    axis = np.linspace(-1, 1, 41)  # corners such as (0.5, 0, 0) and (0.3, 0.4, 0) lie on the ball, all but a trifle
    values = (np.sqrt(sum(a**2 for a in np.meshgrid(axis, axis, axis))) - 0.5 - nearly).astype(np.float32)

    def smallest(margin):
        monkeypatch.setattr(meshing, "CORNER_MARGIN", margin)
        vertices, faces = meshing.isosurface(values)
        assert trimesh.Trimesh(vertices, faces, process=False).is_watertight
        assert np.abs(np.linalg.norm(vertices, axis=1) - 0.5).max() < 0.05 * 0.05  # of a cell
        areas = surface.face_areas(vertices, faces)
        return areas.min() / np.median(areas)

    assert smallest(meshing.CORNER_MARGIN) > 1e-4 > smallest(0.0)


def test_threads_that_decimate_at_once_do_not_meet():
    """Four frames' surfaces are thinned side by side on a GPU; the library works in memory that all threads share."""
    meshes = [sphere(radius, rings=120) for radius in (0.3, 0.4, 0.5, 0.6)]
    alone = [meshing.decimate(*mesh, 2000) for mesh in meshes]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(8):
            for (vertices, faces), (wanted, wanted_faces) in zip(pool.map(lambda mesh: meshing.decimate(*mesh, 2000), meshes), alone):
                np.testing.assert_array_equal(vertices, wanted)
                np.testing.assert_array_equal(faces, wanted_faces)
