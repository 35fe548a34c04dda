"""Stage 2: a closed mesh near the truth from images, or a given mesh that is kept as it is; and what is refused."""

import numpy as np
import pytest
import torch
import trimesh
from scipy.spatial import cKDTree

from instant_nk.errors import ContractError, DataError
from instant_nk.fitting import window_files
from instant_nk.fitting.surface_fit import SurfaceFit, _resample
from instant_nk.geometry import spaces
from instant_nk.io import artifact, checkpoint
from instant_nk.io import mesh as meshes
from instant_nk.models.occupancy import cell_centres
from instant_nk.stages import canonical
from tests.unit import neural_fixtures
from tests.unit.neural_fixtures import numbers

FEW = {"steps": 3, "samples_per_step": 800}


@pytest.fixture(scope="module")
def body(tmp_path_factory):
    return neural_fixtures.body(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def made(body):
    """The reconstructed canonical mesh, and the truth at its frame, both in scene space."""
    mesh = meshes.load(body.job.paths.canonical_mesh)
    return mesh, trimesh.Trimesh(mesh.vertices, mesh.faces, process=False), body.scene_truth(body.dataset.canonical_frame)


# Reconstructed


def test_the_canonical_mesh_is_closed_and_faces_outwards(made):
    mesh, solid, truth = made
    assert solid.is_watertight and solid.volume == pytest.approx(truth.volume, rel=0.4)
    np.testing.assert_allclose(np.linalg.norm(mesh.normals, axis=1), 1, atol=1e-4)
    assert np.median((solid.vertex_normals * mesh.normals).sum(1)) > 0.95
    assert mesh.colours.min() >= 0 and mesh.colours.max() <= 1 and len(mesh.faces) <= 2000


def test_the_canonical_mesh_lies_nearer_to_the_truth_than_the_hull(body, made):
    mesh, _, truth = made
    hull = body.dataset.hull(body.dataset.canonical_frame)
    surface = hull & ~np.logical_and.reduce([np.roll(hull, s, a) for a in range(3) for s in (-1, 1)])
    voxels = cell_centres(hull.shape[0])[torch.from_numpy(surface.reshape(-1))].numpy()
    off_hull = np.abs(trimesh.proximity.closest_point(truth, voxels)[1]).mean()
    off_mesh = np.abs(trimesh.proximity.closest_point(truth, mesh.vertices)[1]).mean()
    assert off_mesh < 0.03 and off_mesh < 0.7 * off_hull


def test_the_metrics_and_the_header_say_what_was_made_of_what(body):
    said = numbers(body.job.paths.canonical / "metrics.json")
    assert said["frame"] == body.dataset.canonical_frame and said["vertices"] > 0 and said["wall_s"] > 0 and said["peak_host_mib"] > 0
    assert said["history"]["step"][-1] == 40 and said["psnr_db"] == said["history"]["psnr_db"][-1]
    for path in (body.job.paths.canonical_field, body.job.paths.canonical_mesh):
        header = artifact.read_header(path)
        assert header["stage"] == "canonical" and header["inputs"] == {"dataset": artifact.file_hash(body.job.paths.manifest)}
    assert not list(body.job.paths.canonical.glob("*.partial*"))


def test_the_saved_field_is_the_surface_of_the_saved_mesh(body, made):
    field = window_files.load_canonical(body.job.paths, "cpu")
    mesh, _, _ = made
    with torch.no_grad():
        distance = field.sdf(torch.from_numpy(mesh.vertices)).abs()
    assert distance.quantile(0.95) < 5e-3  # snapped to the zero level after decimation
    assert field.inv_std == pytest.approx(numbers(body.job.paths.canonical / "metrics.json")["inv_std"], rel=0.05)
    grid = field.grid().reshape(65, 65, 65).permute(2, 1, 0)
    corner = torch.tensor([[20, 33, 40], [32, 50, 31], [28, 10, 36]])
    near = [bool(field.occupied[tuple((c.float() / 2).clamp(max=31).long())]) for c in corner]
    with torch.no_grad():
        exact = field.sdf(corner / 32 - 1)
    for value, truth, known in zip(grid[corner[:, 0], corner[:, 1], corner[:, 2]], exact, near):
        assert value.item() == pytest.approx(truth.item(), abs=1e-5) if known else abs(value.item()) <= 1
    assert torch.isfinite(field.grid()).all()


def test_a_truncated_field_is_refused(body, tmp_path):
    content = body.job.paths.canonical_field.read_bytes()
    (tmp_path / "field.npz").write_bytes(content[: len(content) // 2])
    with pytest.raises(ContractError, match=r"field\.npz: not a readable 'checkpoint'.*re-run its stage"):
        checkpoint.load(tmp_path / "field.npz")


def test_a_killed_canonical_stage_resumes_to_the_same_mesh(body, tmp_path, monkeypatch):
    monkeypatch.setattr(canonical, "CHECKPOINT_EVERY", 10)
    settings = {"steps": 24, "samples_per_step": 1500}
    whole = body.variant(results=tmp_path / "whole", canonical=settings)
    canonical.run(whole)
    killed = body.variant(results=tmp_path / "killed", canonical=settings)
    with neural_fixtures.interrupted_at(monkeypatch, SurfaceFit, 17):
        canonical.run(killed)
    assert [p.name for p in killed.paths.canonical.iterdir()] == ["field.partial.npz"]
    canonical.run(killed)
    a, b = (meshes.load(job.paths.canonical_mesh) for job in (whole, killed))
    np.testing.assert_array_equal(a.vertices, b.vertices)
    np.testing.assert_array_equal(a.colours, b.colours)
    assert sorted(p.name for p in killed.paths.canonical.iterdir()) == ["field.npz", "mesh.npz", "metrics.json"]


@pytest.mark.parametrize(("wide", "narrow"), [(8, 8), (16, 8), (8, 16), (12, 8), (100, 30), (7, 3), (9, 20)])
def test_a_resampled_hull_holds_every_part_of_the_hull(wide, narrow):
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(200, 3, generator=generator) * 2 - 1
    cell = ((points + 1) / 2 * wide).long()
    grid = torch.zeros((wide,) * 3, dtype=torch.bool)
    grid[cell[:, 0], cell[:, 1], cell[:, 2]] = True
    resampled = _resample(grid, narrow)
    there = ((points + 1) / 2 * narrow).long()
    assert resampled.shape == (narrow,) * 3 and resampled[there[:, 0], there[:, 1], there[:, 2]].all()


# Given


def given(body, tmp_path, name="given.ply", change=lambda mesh: None):
    """The true mesh of the canonical frame as a file of the user's."""
    mesh = body.truth(body.dataset.canonical_frame)
    mesh = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)
    change(mesh)
    mesh.export(tmp_path / name)
    return tmp_path / name


def world_vertices(body, job):
    mesh = meshes.load(job.paths.canonical_mesh)
    return mesh, spaces.transform_points(body.dataset.world_from_scene, mesh.vertices)


@pytest.mark.parametrize("name", ["given.ply", "given.obj"])
def test_a_given_mesh_is_kept_vertex_by_vertex_and_gets_colours(body, tmp_path, name):
    path = given(body, tmp_path, name)
    job = body.variant(results=tmp_path / "results", canonical=FEW | {"mesh": str(path)})
    canonical.run(job)
    mesh, world = world_vertices(body, job)
    mine = trimesh.load(path, process=False)
    assert len(mine.vertices) <= len(mesh.vertices) <= len(mine.vertices) + 3  # the edge or two that are longer than LONGEST_EDGE
    distance, vertex = cKDTree(world).query(mine.vertices)
    assert distance.max() < 1e-6 * np.ptp(mine.vertices, axis=0).max()
    assert sorted(vertex) == list(range(len(mine.vertices)))
    assert trimesh.Trimesh(mesh.vertices, mesh.faces, process=False).volume > 0
    assert mesh.colours.std() > 0
    assert artifact.read_header(job.paths.canonical_mesh)["inputs"]["mesh"] == artifact.file_hash(path)


def test_the_field_around_a_given_mesh_is_its_distance(body, tmp_path):
    """After a few steps the zero level lies on the mesh, though no image told so."""
    path = given(body, tmp_path)
    job = body.variant(results=tmp_path / "results", canonical={"steps": 60, "samples_per_step": 1000, "mesh": str(path)})
    canonical.run(job)
    field, mesh = window_files.load_canonical(job.paths, "cpu"), meshes.load(job.paths.canonical_mesh)
    with torch.no_grad():
        distance, gradient, _ = field.sdf.with_gradient(torch.from_numpy(mesh.vertices))
    assert distance.abs().mean() < 2e-3  # 7e-3 from the voxels it starts with
    cosine = torch.nn.functional.cosine_similarity(gradient, torch.from_numpy(mesh.normals))
    assert cosine.median() > 0.9


def test_a_given_mesh_that_faces_inwards_is_turned_round(body, tmp_path):
    path = given(body, tmp_path, change=lambda mesh: mesh.invert())
    job = body.variant(results=tmp_path / "results", canonical=FEW | {"mesh": str(path)})
    canonical.run(job)
    mesh = meshes.load(job.paths.canonical_mesh)
    solid = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)
    assert solid.volume > 0 and (solid.vertex_normals * mesh.normals).sum(1).mean() > 0.95


def test_long_edges_of_a_given_mesh_are_split_so_that_it_can_bend():
    box = trimesh.creation.box((1.0, 1.5, 0.5))
    vertices, faces = canonical.split_long_edges(box.vertices.astype(np.float32), box.faces.astype(np.int32))
    solid = trimesh.Trimesh(vertices, faces, process=False)
    np.testing.assert_array_equal(vertices[:8], box.vertices.astype(np.float32))
    assert solid.is_watertight and solid.volume == pytest.approx(0.75) and solid.edges_unique_length.max() <= canonical.LONGEST_EDGE
    again = canonical.split_long_edges(vertices, faces)
    np.testing.assert_array_equal(again[0], vertices)


def test_the_inside_of_a_given_mesh_is_solid_and_its_outside_is_not():
    ball = trimesh.creation.icosphere(4, 0.5)
    voxels = canonical.solid((ball.vertices.astype(np.float32), ball.faces.astype(np.int32)), 32)
    radius = cell_centres(32).norm(dim=1).numpy().reshape(32, 32, 32)
    assert voxels[radius < 0.5].all() and not voxels[radius > 0.5 + 2 * 3**0.5 / 32].any()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("nowhere.ply", None, r"canonical\.mesh: .*nowhere\.ply: no such file\. Give a \.ply or \.obj in world coordinates"),
        ("points.obj", "v 0 0 0\nv 1 0 0\nv 0 1 0\n", r"points\.obj: (wanted a triangle mesh, found no faces|the mesh cannot be read)"),
        ("broken.ply", "ply\nformat ascii 1.0\nelement vertex 3\nproperty float x\n", r"broken\.ply: the mesh cannot be read"),
        ("empty.ply", "", r"empty\.ply: the mesh cannot be read"),
        ("nan.obj", "v 0 0 0\nv nan 0 0\nv 0 0.1 0\nf 1 2 3\n", r"nan\.obj: has vertices that are not finite"),
        ("far.obj", "v 50 0 0\nv 51 0 0\nv 50 1 0\nf 1 2 3\n", r"far\.obj: 100 % of its vertices lie outside the capture's box .* the mesh spans .*at frame 2"),
    ],
)
def test_a_given_mesh_that_cannot_serve_is_one_message_and_writes_nothing(body, tmp_path, name, content, said):
    if content is not None:
        (tmp_path / name).write_text(content)
    job = body.variant(results=tmp_path / "results", canonical=FEW | {"mesh": str(tmp_path / name)})
    with pytest.raises(DataError, match=said):
        canonical.run(job)
    assert not job.paths.canonical.exists()
