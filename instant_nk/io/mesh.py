"""Mesh artifacts: the canonical mesh (scene units) and the animation (world units, one topology throughout)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from instant_nk.errors import ContractError
from instant_nk.io import artifact

if TYPE_CHECKING:
    from instant_nk.geometry.texture import Texture  # loads torch, which most readers of a mesh do without

MESH_FORMAT = 1
ANIMATION_FORMAT = 1
TEXTURE_FORMAT = 1


@dataclass(frozen=True)
class Mesh:
    """A triangle mesh.

    Attributes:
        vertices: f32 [V, 3].
        faces: counter-clockwise seen from outside, i32 [T, 3].
        normals: unit, outward, f32 [V, 3].
        colours: sRGB in [0, 1], f32 [V, 3].
    """

    vertices: np.ndarray
    faces: np.ndarray
    normals: np.ndarray
    colours: np.ndarray


def save(path: Path, mesh: Mesh, header: dict[str, Any]) -> None:
    artifact.save_npz(path, header, **vars(mesh))


def load(path: Path) -> Mesh:
    """Read and check a mesh.

    Raises:
        ContractError: an array has another shape or type, there are no faces, or an index is out of range.
    """
    _, arrays = artifact.load_npz(path, "mesh", MESH_FORMAT)
    try:
        mesh = Mesh(**arrays)
    except TypeError as error:
        raise ContractError(f"{path}: {error}. Re-run stage 'canonical'.") from None
    v = len(mesh.vertices)
    for name, shape, dtype in (
        ("vertices", (v, 3), np.float32),
        ("faces", (None, 3), np.int32),
        ("normals", (v, 3), np.float32),
        ("colours", (v, 3), np.float32),
    ):
        artifact.check_array(path, name, arrays[name], shape, dtype)
    if not len(mesh.faces):
        raise ContractError(f"{path}: the mesh has no faces. Re-run stage 'canonical'.")
    if mesh.faces.min() < 0 or mesh.faces.max() >= v:
        raise ContractError(f"{path}: 'faces' must index V={v} vertices; got {mesh.faces.min()}..{mesh.faces.max()}. Re-run stage 'canonical'.")
    return mesh


@dataclass(frozen=True)
class Animation:
    """The animated mesh in world units.

    Attributes:
        frames: absolute frame numbers, ascending, i32 [N].
        vertices: f32 [N, V, 3], world units.
        faces: i32 [T, 3]: one topology for all frames.
        colours: sRGB in [0, 1], f32 [V, 3].
        sdf_residual: |sdf| of each canonical vertex under the inverse warp of its live position, before smoothing over time, world units, f32 [N, V].
        cycle_error: distance between a canonical vertex and warp-to-canonical of its live position, world units, f32 [N, V].
        n_views: training cameras that see the vertex, i32 [N, V].
    """

    frames: np.ndarray
    vertices: np.ndarray
    faces: np.ndarray
    colours: np.ndarray
    sdf_residual: np.ndarray
    cycle_error: np.ndarray
    n_views: np.ndarray


def save_animation(path: Path, animation: Animation, header: dict[str, Any], **extra: np.ndarray) -> None:
    """Write an animation, or the part of it that lies in one window."""
    artifact.save_npz(path, header, compress=False, **vars(animation), **extra)


def load_animation(path: Path) -> Animation:
    """Read and check an animation.

    Raises:
        ContractError: an array has another shape or type, a vertex is not finite, there are no faces, or an index is out of range;
            or the sequence was made in a mode that does not track.
    """
    if not path.is_file() and path.with_name("surfaces.json").is_file():
        raise ContractError(f"{path}: there is none, because field.dyna_mode was one that does not track. Set field.dyna_mode: deform and run again.")
    _, arrays = artifact.load_npz(path, "animation", ANIMATION_FORMAT)
    missing = [name for name in Animation.__dataclass_fields__ if name not in arrays]
    if missing:
        raise ContractError(f"{path}: lacks {missing}. Re-run stage 'mesh'.")
    animation = Animation(**{name: arrays[name] for name in Animation.__dataclass_fields__})
    n, v = animation.vertices.shape[:2]
    for name, shape, dtype in (
        ("frames", (n,), np.int32), ("vertices", (n, v, 3), np.float32), ("faces", (None, 3), np.int32), ("colours", (v, 3), np.float32),
        ("sdf_residual", (n, v), np.float32), ("cycle_error", (n, v), np.float32), ("n_views", (n, v), np.int32),
    ):  # fmt: skip
        artifact.check_array(path, name, arrays[name], shape, dtype)
    if not len(animation.faces):
        raise ContractError(f"{path}: the mesh has no faces. Re-run stages 'canonical' to 'mesh'.")
    if animation.faces.min() < 0 or animation.faces.max() >= v:
        raise ContractError(f"{path}: 'faces' must index V={v} vertices; got {animation.faces.min()}..{animation.faces.max()}. Re-run stage 'mesh'.")
    return animation


def save_texture(path: Path, texture: Texture, header: dict[str, Any]) -> None:
    """Write a texture with its coordinates."""
    artifact.save_npz(path, header | {"artifact": "texture", "format": TEXTURE_FORMAT}, **vars(texture))


def load_texture(path: Path) -> Texture:
    """Read a texture written by `save_texture`.

    Raises:
        ContractError: missing, truncated, or an array has another shape or type.
    """
    from instant_nk.geometry.texture import Texture

    _, arrays = artifact.load_npz(path, "texture", TEXTURE_FORMAT)
    try:
        texture = Texture(**arrays)
    except TypeError as error:
        raise ContractError(f"{path}: {error}. Re-run stage 'mesh'.") from None
    u = len(texture.uv)
    for name, shape, dtype in (("uv", (u, 2), np.float32), ("vertex_of", (u,), np.int32), ("faces", (None, 3), np.int32), ("image", (None, None, 3), np.uint8)):
        artifact.check_array(path, name, arrays[name], shape, dtype)
    return texture
