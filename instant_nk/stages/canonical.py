"""Stage 2: the canonical frame as a neural surface, and its mesh."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from instant_nk import layout, log
from instant_nk.errors import NumericalError
from instant_nk.fitting import meshing
from instant_nk.fitting.rays import PixelSource
from instant_nk.fitting.surface_fit import Surface, SurfaceFit, SurfaceFitConfig
from instant_nk.io import artifact, checkpoint
from instant_nk.io import dataset as dataset_io
from instant_nk.io import mesh as mesh_io
from instant_nk.kernels.hash_encoding import HashSpec
from instant_nk.layout import Job

logger = logging.getLogger(__name__)


def run(job: Job) -> None:
    """Fit, extract, save `field.npz`, `mesh.npz`, `mesh.ply` and `metrics.json`."""
    measure = log.measure()
    config, dataset = job.config.canonical, dataset_io.load(job.paths.manifest)
    frame = dataset.canonical_frame
    source = PixelSource(dataset, [frame], job.device)
    logger.info("canonical %s", log.fields(frame=frame, cameras=len(dataset.cameras), pixels=len(source)))
    hull = dataset.hull(frame)
    surface = SurfaceFit(fit_config(job), source, hull, job.device, job.config.runtime.seed, "canonical").run()
    mesh = extract(surface, config.isosurface_resolution, config.keep_components, config.target_faces)
    header = artifact.make_header(
        "mesh", mesh_io.MESH_FORMAT, "canonical", layout.stage_config(job.config, "canonical"), {"dataset": artifact.file_hash(job.paths.manifest)}
    )
    save_field(job.paths.canonical_field, surface, header)
    mesh_io.save(job.paths.canonical_mesh, mesh, header)
    artifact.save_json(
        job.paths.canonical / "metrics.json",
        {
            **measure.numbers(),
            "frame": frame,
            "vertices": len(mesh.vertices),
            "faces": len(mesh.faces),
            "psnr_db": surface.history["psnr_db"][-1],
            "inv_std": surface.history["inv_std"][-1],
            "history": surface.history,
        },
    )


def fit_config(job: Job) -> SurfaceFitConfig:
    c = job.config.canonical
    spec = HashSpec.geometric(c.levels, c.features, c.log2_table_size, c.base_resolution, c.finest_resolution)
    return SurfaceFitConfig(c.steps, c.samples_per_step, spec, c.hidden, c.occupancy_resolution, c.learning_rate, c.eikonal_weight, c.mask_weight)


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
    """Weights and description of a surface, so that `load_field` can build it again."""
    state = {
        **{f"sdf.{k}": v for k, v in surface.sdf.state_dict().items()},
        **{f"colour.{k}": v for k, v in surface.colour.state_dict().items()},
        **{f"sharpness.{k}": v for k, v in surface.sharpness.state_dict().items()},
        "occupied": surface.occupied,
    }
    checkpoint.save(path, state, header, {"sdf": surface.sdf.describe(), "colour": surface.colour.describe()})
