"""The mesh stage's exports: every format from one call, numbers about them, nothing stale left."""

import dataclasses
import json
import sys

import imageio.v3 as iio
import numpy as np
import pygltflib
import pytest
import torch
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from instant_nk import config as schema
from instant_nk.errors import BackendError, ContractError
from instant_nk.geometry import rasterize, surface
from instant_nk.io import artifact
from instant_nk.io import graph as graph_io
from instant_nk.io import mesh as mesh_io
from instant_nk.io.dataset import CameraSet, Dataset
from instant_nk.layout import Job, Paths
from instant_nk.stages import mesh_exports

SIDE = 48


def dataset_of(animation, folder) -> Dataset:
    """Six cameras along the axes that see the vertex colours."""
    K = np.array([[1.2 * SIDE, 0, SIDE / 2], [0, 1.2 * SIDE, SIDE / 2], [0, 0, 1.0]])
    poses = []
    for axis in range(3):
        for sign in (-1.0, 1.0):
            c2w = np.eye(4)
            forward = -sign * np.eye(3)[axis]
            right = np.eye(3)[(axis + 1) % 3]
            c2w[:3, :3] = np.stack([right, np.cross(forward, right), forward], 1)
            c2w[:3, 3] = -4 * forward
            poses.append(c2w)
    rig = CameraSet(tuple(f"{c}.png" for c in range(6)), np.stack(poses), np.tile(K, (6, 1, 1)), np.full((6, 2), SIDE, np.int32))
    faces, colours = torch.tensor(animation.faces), torch.tensor(animation.colours)
    for row, frame in enumerate(animation.frames):
        for c in range(6):
            raster = rasterize.rasterize(torch.tensor(animation.vertices[row]), faces, torch.tensor(np.linalg.inv(poses[c])), torch.tensor(K), (SIDE, SIDE))
            rgba = torch.cat([rasterize.interpolate(raster, faces, colours), (raster.face_index >= 0).float()[..., None]], 2)
            (folder / str(frame)).mkdir(parents=True, exist_ok=True)
            iio.imwrite(folder / str(frame) / f"{c}.png", np.round(rgba.numpy() * 255).astype(np.uint8))
    images = {str(f): [f"{f}/{name}" for name in rig.names] for f in animation.frames}
    return Dataset(
        folder, folder, tuple(animation.frames.tolist()), 3, rig, rig, np.diag([0.5, 0.5, 0.5, 1]), np.array([[-2.0] * 3, [2.0] * 3]), images, images
    )


@pytest.fixture
def work(animation, tmp_path):
    """A job's folder with the artifacts that exports read; scene units are half of world units."""
    paths = Paths(tmp_path / "demo")
    rest = animation.vertices[0] / 2
    mesh = mesh_io.Mesh(rest, animation.faces, surface.vertex_normals(rest, animation.faces).astype(np.float32), animation.colours)
    mesh_io.save(paths.canonical_mesh, mesh, artifact.make_header("mesh", mesh_io.MESH_FORMAT, "canonical"))
    nodes = rest[::5].copy()
    d, index = cKDTree(nodes).query(rest, k=4)
    weights = 1 / (d + 0.05)
    weights = (weights / weights.sum(1, keepdims=True)).astype(np.float32)
    graph = graph_io.Graph(nodes, np.ones(len(nodes), np.float32), np.zeros((0, 2), np.int32), np.zeros(0, np.float32), index.astype(np.int32), weights)
    graph_io.save(paths.graph, graph, artifact.make_header("graph", graph_io.FORMAT, "graph"))

    def job(**mesh) -> Job:
        return Job(schema.parse({"mesh": {"texture_size": 64, **mesh}}), paths)

    return job, dataset_of(animation, tmp_path / "capture"), paths.mesh


def test_one_call_writes_every_format_with_the_texture_and_says_their_sizes(work, animation):
    job, dataset, folder = work
    numbers = mesh_exports.write(job(formats=["npz", "ply", "glb", "usd", "obj", "pc2"], texture="per_frame"), dataset, animation)
    present = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    frames = [f"{f:06d}" for f in animation.frames]
    wanted = {"animation.glb", "animation_skinned.glb", "animation.usdc", "animation.png", "texture.npz", "texture.png"}
    wanted |= {f"animation_cache{end}" for end in (".pc2", ".obj", ".mtl", ".png")} | {f"frames/{f}.ply" for f in frames} | {f"texture/{f}.png" for f in frames}
    wanted |= {f"obj/{f}{end}" for f in frames for end in (".obj", ".mtl", ".png")}
    assert present == wanted
    assert numbers["animation_glb_mib"] == pytest.approx((folder / "animation.glb").stat().st_size / 2**20)
    assert numbers["frames_mib"] > 0 and numbers["skinned_written"] and numbers["texture_seen_share"] > 0.9
    json.dumps(numbers, allow_nan=False)


def test_what_the_config_no_longer_asks_for_is_removed(work, animation):
    job, dataset, folder = work
    mesh_exports.write(job(formats=["npz", "ply", "glb", "usd", "obj", "pc2"], texture="per_frame"), dataset, animation)
    mesh_exports.write(job(formats=["npz", "usd"], texture="vertex"), dataset, animation)
    assert [p.name for p in folder.iterdir()] == ["animation.usdc"]  # its picture went with the texture
    numbers = mesh_exports.write(job(formats=["npz", "ply"], texture="vertex"), dataset, animation)
    assert sorted(p.name for p in folder.iterdir()) == ["frames"]
    assert set(numbers) == {"frames_mib"}


def test_the_skinned_file_lies_in_the_world(work, animation):
    job, dataset, folder = work
    numbers = mesh_exports.write(job(formats=["npz", "glb"]), dataset, animation)
    assert numbers["skinned_written"] and numbers["skinned_error_p99_pct"] <= numbers["skinned_bound_pct"]


def test_an_animation_that_lacks_frames_of_the_sequence_exports_nothing(work, animation):
    job, dataset, folder = work
    cut = dataclasses.replace(animation, **{name: getattr(animation, name)[:2] for name in ("frames", "vertices", "sdf_residual", "cycle_error", "n_views")})
    with pytest.raises(ContractError, match=r"frames \[5, 6\] of the sequence are missing from the animation"):
        mesh_exports.write(job(formats=["npz", "ply"]), dataset, cut)
    assert not folder.exists()


def test_a_z_up_rig_makes_files_that_stand(work, animation):
    job, dataset, folder = work
    c2w = dataset.cameras.c2w
    c2w[:, :3, 1] = [0, 0, -1]  # the images' down is the world's -z for all cameras
    mesh_exports.write(job(formats=["npz", "glb", "usd"], texture="vertex"), dataset, animation)
    for name in ("animation.glb", "animation_skinned.glb"):
        document = pygltflib.GLTF2().load(str(folder / name))
        turn = document.nodes[document.scenes[0].nodes[-1]].rotation
        assert np.allclose(Rotation.from_quat(turn).apply([0, 0, 1]), [0, 1, 0])
    pytest.importorskip("pxr", reason="usd-core is not installed")
    from pxr import Usd, UsdGeom

    assert UsdGeom.GetStageUpAxis(Usd.Stage.Open(str(folder / "animation.usdc"))) == "Z"


def test_a_canonical_mesh_of_another_version_is_named(work, animation):
    job, dataset, folder = work
    path = job().paths.canonical_mesh
    mesh = mesh_io.load(path)
    mesh_io.save(path, mesh, artifact.make_header("mesh", mesh_io.MESH_FORMAT + 1, "canonical"))
    with pytest.raises(ContractError, match=r"mesh\.npz: wanted format 1 of 'mesh', got 2 .* Re-run stage 'canonical'"):
        mesh_exports.write(job(formats=["npz", "ply"]), dataset, animation)
    assert not folder.exists()


@pytest.mark.parametrize(("values", "package"), [({"formats": ["npz", "usd"]}, "pxr"), ({"texture": "atlas"}, "xatlas"), ({"texture": "per_frame"}, "xatlas")])
def test_a_missing_package_is_named_before_the_first_stage(monkeypatch, values, package):
    config = schema.parse({"mesh": {"texture": "vertex"} | values})
    schema.check_packages(config)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(BackendError, match="pip install (usd-core, or leave usd out|xatlas, or set mesh.texture: vertex)"):
        schema.check_packages(config)
    schema.check_packages(schema.parse({"mesh": {"texture": "vertex"}}))  # who asks for neither needs neither


def test_every_format_the_config_allows_has_a_writer():
    assert {"npz", *mesh_exports.FORMATS} == set(schema.MESH_FORMATS)
