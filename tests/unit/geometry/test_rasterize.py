"""The rasteriser against known pictures and against ray casting."""

import numpy as np
import pytest
import torch

from instant_nk.geometry import rasterize as rs

K = torch.tensor([[100.0, 0, 32], [0, 100.0, 24], [0, 0, 1]])
EYE = torch.eye(4)
SIZE = (64, 48)


def _look_at(eye, target=(0, 0, 0)):
    z = np.asarray(target, float) - eye
    z /= np.linalg.norm(z)
    x = np.cross(z, [0, 1, 0])
    x /= np.linalg.norm(x)
    c2w = np.eye(4)
    c2w[:3, :3] = np.stack([x, np.cross(z, x), z], 1)
    c2w[:3, 3] = eye
    return torch.from_numpy(np.linalg.inv(c2w))


def test_a_rectangle_facing_the_camera_covers_exactly_the_pixels_whose_centres_it_contains():
    # x in [0.1, 0.2] at depth 1 is u in [42, 52]; y in [-0.04, 0.06] is v in [20, 30]
    v = torch.tensor([[0.1, -0.04, 1], [0.2, -0.04, 1], [0.2, 0.06, 1], [0.1, 0.06, 1]])
    raster = rs.rasterize(v, torch.tensor([[0, 1, 2], [0, 2, 3]]), EYE, K, SIZE)
    expected = torch.zeros(48, 64, dtype=torch.bool)
    expected[20:30, 42:52] = True
    assert torch.equal(raster.face_index >= 0, expected)
    assert torch.allclose(raster.depth[expected], torch.ones(100))


def test_barycentric_coordinates_reproduce_the_point_under_the_pixel():
    v = torch.tensor([[-0.3, -0.2, 0.8], [0.4, -0.1, 2.0], [0.0, 0.5, 1.1]])
    faces = torch.tensor([[0, 1, 2]])
    raster = rs.rasterize(v, faces, EYE, K, SIZE)
    points = rs.interpolate(raster, faces, v)
    seen = raster.face_index >= 0
    assert seen.sum() > 300
    uv = (points @ K.T)[..., :2] / points[..., 2:]
    y, x = torch.nonzero(seen, as_tuple=True)
    assert torch.allclose(uv[seen], torch.stack([x, y], 1) + 0.5, atol=1e-3)
    assert torch.allclose(points[..., 2], raster.depth, atol=1e-6)


def test_the_nearer_of_two_triangles_is_seen_whatever_their_order():
    near = torch.tensor([[-1.0, -1, 1], [1, -1, 1], [0, 1, 1]])
    v = torch.cat([near, near + torch.tensor([0, 0, 1.0])])
    for order in ([[0, 1, 2], [3, 4, 5]], [[3, 4, 5], [0, 1, 2]]):
        raster = rs.rasterize(v, torch.tensor(order), EYE, K, SIZE)
        assert (raster.face_index[24, 32] == order.index([0, 1, 2])).item()
        assert raster.depth[24, 32].item() == pytest.approx(1)


@pytest.mark.parametrize("chunk", [rs.CANDIDATES_PER_CHUNK, 64])
def test_first_hits_agree_with_ray_casting(chunk, monkeypatch):
    trimesh = pytest.importorskip("trimesh")
    monkeypatch.setattr(rs, "CANDIDATES_PER_CHUNK", chunk)
    mesh = trimesh.creation.torus(0.6, 0.25, major_sections=24, minor_sections=12)
    w2c = _look_at(np.array([1.2, 0.7, 1.9]))
    raster = rs.rasterize(torch.from_numpy(mesh.vertices).float(), torch.from_numpy(mesh.faces), w2c, K, SIZE)
    c2w = np.linalg.inv(w2c.numpy())
    x, y = np.meshgrid(np.arange(64) + 0.5, np.arange(48) + 0.5)
    d = np.stack([(x - 32) / 100, (y - 24) / 100, np.ones_like(x)], -1).reshape(-1, 3)
    rays = d @ c2w[:3, :3].T
    points, ray, face = mesh.ray.intersects_location(np.broadcast_to(c2w[:3, 3], rays.shape).copy(), rays, multiple_hits=False)
    depth = np.zeros(len(rays))
    depth[ray] = (w2c.numpy()[:3, :3] @ points.T + w2c.numpy()[:3, 3:])[2]
    index = np.full(len(rays), -1)
    index[ray] = face
    ours = raster.face_index.numpy().ravel()
    assert (index >= 0).sum() > 300
    assert ((ours >= 0) == (index >= 0)).mean() > 0.998  # rays along the outline may go either way
    both = (ours >= 0) & (index >= 0)
    assert np.abs(raster.depth.numpy().ravel()[both] - depth[both]).max() < 1e-4
    assert (ours[both] == index[both]).mean() > 0.99


def test_a_closed_mesh_has_no_cracks():
    trimesh = pytest.importorskip("trimesh")
    mesh = trimesh.creation.icosphere(subdivisions=4, radius=0.4)
    raster = rs.rasterize(
        torch.from_numpy(mesh.vertices).float(),
        torch.from_numpy(mesh.faces),
        _look_at(np.array([0.3, 0.2, 2.0])),
        K * torch.tensor([[4.0], [4], [1]]),
        (256, 192),
    )
    seen = raster.face_index >= 0
    for row in seen:
        columns = torch.nonzero(row).squeeze(1)
        assert not len(columns) or len(columns) == columns[-1] - columns[0] + 1
    assert raster.depth[seen].max() < 2.1  # never the far side


def test_a_triangle_that_reaches_behind_the_camera_is_clipped_correctly():
    v = torch.tensor([[0.0, 0.1, -5.0], [-3.0, 0.1, 5.0], [3.0, 0.1, 5.0]])  # a floor strip below the camera
    raster = rs.rasterize(v, torch.tensor([[0, 1, 2]]), EYE, K, SIZE)
    seen = raster.face_index >= 0
    assert not seen[:25].any()  # above the horizon and nearer than 5: v = 24 + 100 * 0.1 / z
    assert seen[30:, 32].all()
    assert raster.depth[34, 32].item() == pytest.approx(10 / 10.5, rel=1e-4)


def test_nothing_is_seen_of_no_faces_and_of_faces_outside_the_image():
    for v, faces in (
        (torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.long)),
        (torch.tensor([[9.0, 9, 1], [10, 9, 1], [9, 10, 1]]), torch.tensor([[0, 1, 2]])),
    ):
        raster = rs.rasterize(v, faces, EYE, K, SIZE)
        assert (raster.face_index == -1).all() and (raster.depth == 0).all()


def test_vertices_on_the_far_side_of_a_sphere_are_hidden():
    trimesh = pytest.importorskip("trimesh")
    mesh = trimesh.creation.icosphere(subdivisions=4, radius=0.4)
    eye = np.array([0.3, 0.2, 2.0])
    visible = rs.visible_vertices(
        torch.from_numpy(mesh.vertices).float(), torch.from_numpy(mesh.faces), _look_at(eye), K * torch.tensor([[4.0], [4], [1]]), (256, 192)
    ).numpy()
    facing = ((eye - mesh.vertices) * mesh.vertices).sum(1) / 0.4 / np.linalg.norm(eye - mesh.vertices, axis=1)
    assert visible[facing > 0.15].all()
    assert not visible[facing < -0.15].any()


def test_vertices_outside_the_image_are_not_visible():
    v = torch.tensor([[0.0, 0, 1], [5, 0, 1], [0, 0, -1]])
    assert rs.visible_vertices(v, torch.tensor([[0, 1, 2]]), EYE, K, SIZE).tolist() == [True, False, False]
