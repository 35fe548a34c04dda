"""The mesh stage's last step: the baked texture, and every file format the config asks for."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import imageio.v3 as iio
import numpy as np

from instant_nk import layout
from instant_nk.fitting import texture as baking
from instant_nk.geometry import camera_path
from instant_nk.geometry.texture import Texture
from instant_nk.io import artifact
from instant_nk.io import dataset as dataset_io
from instant_nk.io import graph as graph_io
from instant_nk.io import mesh as mesh_io
from instant_nk.io.export import glb, obj, pc2, ply, skinned, usd
from instant_nk.io.export.common import check_frames
from instant_nk.io.mesh import Animation
from instant_nk.layout import Job


def write(job: Job, dataset: dataset_io.Dataset, animation: Animation) -> dict[str, float | bool]:
    """Texture and exports of the joined animation; what an earlier run exported and this config no longer asks for is removed.

    Returns:
        numbers for the stage's metrics: of the baking, of the skinned GLB, and every export's size in MiB.

    Raises:
        ContractError: frames are missing, the mesh has no faces, a format cannot hold it, or the disk is full.
        BackendError: a format or the texture needs a package that is not installed.
    """
    check_frames(animation, dataset.frames, job.paths.animation)
    folder = job.paths.mesh
    mesh = mesh_io.load(job.paths.canonical_mesh)
    texture, numbers = _texture(job, dataset, animation, mesh)
    images = [job.paths.texture_frame(frame) for frame in animation.frames.tolist()] if job.config.mesh.texture == "per_frame" else None
    result = Result(job, dataset, animation, mesh, texture, images, job.config.report.fps, tuple(camera_path.up_axis(dataset.cameras.c2w)))
    for name, (files, export) in FORMATS.items():
        paths, wanted = [folder / file for file in files], name in job.config.mesh.formats
        if wanted:
            numbers |= export(result, paths[0]) or {}
        _remove([path for path in paths if not wanted or (texture is None and path.suffix in (".png", ".mtl"))])
        numbers |= {f"{path.name.replace('.', '_')}_mib": _size(path) / 2**20 for path in paths if path.exists()}
    return numbers


@dataclass(frozen=True)
class Result:
    """What is exported.

    Attributes:
        mesh: the canonical one; texture, images: baked of all frames, and a file per frame, where the config asks for them.
        fps: frames per second; up: the world's, as the cameras stand.
    """

    job: Job
    dataset: dataset_io.Dataset
    animation: Animation
    mesh: mesh_io.Mesh
    texture: Texture | None
    images: list[Path] | None
    fps: float
    up: tuple[float, ...]


def _export_glb(r: Result, path: Path) -> dict[str, float | bool]:
    """The animation as morph targets, and as a skeleton beside it; numbers about the latter."""
    glb.export_glb(r.animation, path, r.fps, r.texture, up=r.up)
    rest, compact = r.dataset.to_world(r.mesh.vertices), path.with_name("animation_skinned.glb")
    nodes = graph_io.load(r.job.paths.graph)
    return skinned.export_skinned_glb(r.animation, compact, r.fps, nodes, rest, r.dataset.world_from_scene, r.texture, up=r.up)


FORMATS: dict[str, tuple[tuple[str, ...], Callable[[Result, Path], dict[str, float | bool] | None]]] = {
    "ply": (("frames",), lambda r, path: ply.export_ply_sequence(r.animation, path)),
    "obj": (("obj",), lambda r, path: obj.export_obj_sequence(r.animation, path, r.texture, r.images)),
    "glb": (("animation.glb", "animation_skinned.glb"), _export_glb),
    "usd": (("animation.usdc", "animation.png"), lambda r, path: usd.export_usd(r.animation, path, r.fps, r.texture, r.up, images=r.images)),
    "pc2": (
        tuple(f"animation_cache{end}" for end in (".pc2", ".obj", ".mtl", ".png")),
        lambda r, path: pc2.export_pc2(r.animation, path, r.fps, r.texture),
    ),
}
"""Of each format of `config.MESH_FORMATS` but `npz`: its files and folders below `7_mesh/`, and what writes the first, and the others beside it."""


def _remove(paths: list[Path]) -> None:
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _texture(job: Job, dataset: dataset_io.Dataset, animation: Animation, mesh: mesh_io.Mesh) -> tuple[Texture | None, dict]:
    """The atlas, baked, saved as an artifact, and per frame where asked for; None when colours stay on the vertices."""
    config = job.config.mesh
    if config.texture != "per_frame":
        _remove([job.paths.mesh / "texture"])
    if config.texture == "vertex":
        _remove([job.paths.texture, job.paths.texture.with_suffix(".png")])
        return None, {}
    texture, found = baking.bake(animation, dataset, config.texture_size, max_views=config.texture_views, device=job.device, rest=mesh.vertices)
    inputs = {"mesh": artifact.file_hash(job.paths.canonical_mesh)}
    header = artifact.make_header("texture", mesh_io.TEXTURE_FORMAT, "mesh", layout.stage_config(job.config, "mesh"), inputs)
    mesh_io.save_texture(job.paths.texture, texture, header)
    _save_image(job.paths.texture.with_suffix(".png"), texture.image)
    if config.texture == "per_frame":
        for frame, image in baking.bake_frames(animation, dataset, texture, device=job.device):
            _save_image(job.paths.texture_frame(frame), image)
    return texture, {f"texture_{name}": value for name, value in found.items()}


def _save_image(path: Path, image: np.ndarray) -> None:
    with artifact.atomic(path) as aside:
        iio.imwrite(aside, image)


def _size(path: Path) -> int:
    """Bytes of a file or of all files in a folder."""
    return sum(p.stat().st_size for p in path.iterdir()) if path.is_dir() else path.stat().st_size
