"""Stage 2: the canonical frame as a neural surface, and its mesh."""

from __future__ import annotations

import functools
import logging
from pathlib import Path

import numpy as np
import torch

from instant_nk import layout, log
from instant_nk.errors import NumericalError
from instant_nk.fitting import meshing
from instant_nk.fitting.rays import PixelSource
from instant_nk.fitting.surface_fit import GivenSurface, Surface, SurfaceFit, SurfaceFitConfig
from instant_nk.fitting.trainer import Interruptible, how_of
from instant_nk.geometry import surface as surfaces
from instant_nk.io import artifact, checkpoint, given_mesh
from instant_nk.io import dataset as dataset_io
from instant_nk.io import mesh as mesh_io
from instant_nk.kernels import _backend
from instant_nk.kernels.hash_encoding import HashSpec
from instant_nk.layout import Job

logger = logging.getLogger(__name__)

CHECKPOINT_EVERY = 200  # steps after which a killed job can resume
LONGEST_EDGE = 0.05  # scene units, of a given mesh: about one and a half cells of the live grid


def run(job: Job) -> None:
    """Fit, extract, save `field.npz`, `mesh.npz` and `metrics.json`."""
    measure = log.measure()
    config, dataset = job.config.canonical, dataset_io.load(job.paths.manifest)
    frame = dataset.canonical_frame
    source = functools.partial(PixelSource, dataset, [frame], config.max_pixels, job.device, torch.get_num_threads())
    given, inputs = None, {"dataset": artifact.file_hash(job.paths.manifest)}
    if config.mesh:
        given = split_long_edges(*given_mesh.load(Path(config.mesh), "canonical.mesh", dataset, frame))
        inputs["mesh"] = artifact.file_hash(config.mesh)
    header = artifact.make_header("mesh", mesh_io.MESH_FORMAT, "canonical", layout.stage_config(job.config, "canonical"), inputs)
    partial = job.paths.canonical_field.with_suffix(".partial.npz")
    hull = solid(given, dataset.hull(frame).shape[0]) if given else dataset.hull(frame)
    how = how_of(job, job.paths.canonical_field, "canonical")
    points = oriented_points(given, job.device) if given else None
    fit = SurfaceFit(fit_config(job), source, hull, job.device, job.config.runtime.seed, "canonical", points, how)
    logger.info("canonical %s", log.fields(frame=frame, cameras=len(dataset.cameras), pixels=len(fit.source)))
    surface = fit.run(Interruptible(partial, CHECKPOINT_EVERY, header))
    mesh = coloured(given, surface) if given else extract(surface, config.isosurface_resolution, config.keep_components, config.target_faces)
    save_field(job.paths.canonical_field, surface, header)
    mesh_io.save(job.paths.canonical_mesh, mesh, header)
    partial.unlink(missing_ok=True)
    artifact.save_json(
        job.paths.canonical / "metrics.json",
        {
            **measure.numbers(),
            "frame": frame,
            "vertices": len(mesh.vertices),
            "faces": len(mesh.faces),
            "psnr_db": surface.history["psnr_db"][-1],
            "inv_std": surface.history["inv_std"][-1],
            "samples_per_step": fit.samples,
            "history": surface.history,
        },
    )


def split_long_edges(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A given mesh fine enough to bend; its own vertices come first."""
    count = len(vertices)
    vertices, faces, _ = surfaces.refine(vertices, faces, LONGEST_EDGE)
    if len(vertices) > count:
        logger.info(
            "canonical.mesh: edges longer than %g of the box's half are split, %d -> %d vertices, so that the mesh can bend", LONGEST_EDGE, count, len(vertices)
        )
    return vertices.astype(np.float32), faces.astype(np.int32)


def solid(given: tuple[np.ndarray, np.ndarray], resolution: int) -> np.ndarray:
    """Voxels inside or on a mesh, bool [R, R, R]: what the outside cannot reach."""
    from scipy.ndimage import label

    points, _ = _spread(given, 40 * resolution**2)
    cell = np.clip(((points + 1) * resolution / 2).astype(int), 0, resolution - 1)
    shell = np.zeros((resolution + 2,) * 3, bool)
    shell[tuple(cell.T + 1)] = True
    regions, _ = label(~shell)
    return (regions != regions[0, 0, 0])[1:-1, 1:-1, 1:-1]


def _spread(given: tuple[np.ndarray, np.ndarray], count: int) -> tuple[np.ndarray, np.ndarray]:
    """Points [N, 3] spread evenly over a mesh, and the face of each [N]."""
    vertices, faces = given
    face, weights = surfaces.sample(vertices, faces, count)
    return (vertices[faces[face]] * weights[..., None]).sum(1), face


def oriented_points(given: tuple[np.ndarray, np.ndarray], device: str, count: int = 200_000) -> GivenSurface:
    """Points spread over a mesh with their faces' normals."""
    points, face = _spread(given, count)
    normals = surfaces.face_normals(*given)[face]
    return GivenSurface(torch.from_numpy(points).float().to(device), torch.from_numpy(normals).float().to(device))


def coloured(given: tuple[np.ndarray, np.ndarray], surface: Surface) -> mesh_io.Mesh:
    """The given mesh itself, with the fitted field's colours."""
    vertices, faces = given
    normals = surfaces.vertex_normals(vertices, faces).astype(np.float32)
    device = surface.occupied.device
    colours = colour_at(surface, torch.from_numpy(vertices).to(device), torch.from_numpy(normals).to(device))
    return mesh_io.Mesh(vertices, faces, normals, colours.cpu().numpy())


def fit_config(job: Job) -> SurfaceFitConfig:
    c = job.config.canonical
    spec = HashSpec.geometric(c.levels, c.features, c.log2_table_size, c.base_resolution, c.finest_resolution, layout=_backend.table_layout())
    return SurfaceFitConfig(c.steps, c.samples_per_step, spec, c.hidden, c.occupancy_resolution, c.learning_rate, c.eikonal_weight, c.mask_weight, ema=c.ema)


@torch.no_grad()
def extract(surface: Surface, resolution: int, keep_share: float, target_faces: int | None) -> mesh_io.Mesh:
    """The surface as a clean mesh in scene space with normals and colours from the field.

    Raises:
        NumericalError: there is no surface.
    """
    values = meshing.sample_sdf(surface.sdf, surface.occupied, resolution)
    vertices, faces = meshing.keep_components(*meshing.isosurface(values), keep_share)
    vertices, faces = meshing.decimate(vertices, faces, target_faces)
    if not len(faces):
        raise NumericalError("the extracted surface has no faces. Check masks and box with 'instant-nk check'.")
    device = surface.occupied.device
    points, normals = [], []
    for part in torch.from_numpy(vertices).to(device).split(1 << 16):
        p, n = meshing.snap(surface.sdf.with_gradient, part, limit=2.0 / resolution)
        points.append(p)
        normals.append(n)
    points, normals = torch.cat(points), torch.cat(normals)
    colours = torch.cat([colour_at(surface, p, n) for p, n in zip(points.split(1 << 16), normals.split(1 << 16))])
    return mesh_io.Mesh(points.cpu().numpy(), faces, normals.cpu().numpy(), colours.cpu().numpy())


@torch.no_grad()
def colour_at(surface: Surface, points: torch.Tensor, normals: torch.Tensor) -> torch.Tensor:
    """Colour of surface points looked at head-on."""
    return surface.colour(points, normals, -normals, surface.sdf.encoding(points))


def save_field(path: Path, surface: Surface, header: dict) -> None:
    """Weights and description of a surface, so that `window_files.load_canonical` can build it again."""
    state = {
        **{f"sdf.{k}": v for k, v in surface.sdf.state_dict().items()},
        **{f"colour.{k}": v for k, v in surface.colour.state_dict().items()},
        **{f"sharpness.{k}": v for k, v in surface.sharpness.state_dict().items()},
        "occupied": surface.occupied,
    }
    checkpoint.save(path, state, header, {"sdf": surface.sdf.describe(), "colour": surface.colour.describe()})
