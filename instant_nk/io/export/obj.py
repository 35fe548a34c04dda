"""OBJ sequence: one text file per frame with normals and either vertex colours or the texture's coordinates."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import imageio.v3 as iio
import numpy as np

from instant_nk.geometry.texture import Texture
from instant_nk.io import artifact
from instant_nk.io.export.common import check_animation, unit_normals
from instant_nk.io.mesh import Animation
from instant_nk.log import progress

logger = logging.getLogger(__name__)


def _rows(line: str, table: np.ndarray) -> str:
    """One formatted line per row of the table."""
    return (line * len(table)) % tuple(table.ravel().tolist())


def _faces(faces: np.ndarray, uv_faces: np.ndarray | None) -> str:
    """`f position/texture/normal` lines; indices count from 1."""
    if uv_faces is None:
        return _rows("f %d//%d %d//%d %d//%d\n", np.repeat(faces + 1, 2, axis=1))
    return _rows("f %d/%d/%d %d/%d/%d %d/%d/%d\n", np.stack([faces, uv_faces, faces], 2).reshape(len(faces), 9) + 1)


def obj_text(animation: Animation, i: int, texture: Texture | None, material_file: str, comment: str = "") -> str:
    """The i-th frame as OBJ: positions with nine digits, which hold a float32 exactly.

    Without a texture sRGB colours follow the position in each `v` line; with one, `material_file` names its material.
    """
    vertices, frame = animation.vertices[i], int(animation.frames[i])
    parts = [f"# instant-nk frame {frame}, world units{comment}\n"]
    if texture is None:
        parts.append(_rows("v %.9g %.9g %.9g %.4f %.4f %.4f\n", np.concatenate([vertices.astype(np.float64), animation.colours], 1)))
    else:
        parts.append(f"mtllib {material_file}\nusemtl surface\n" + _rows("v %.9g %.9g %.9g\n", vertices))
        parts.append(_rows("vt %.7g %.7g\n", texture.uv * [1, -1] + [0, 1]))  # OBJ counts v from the bottom
    parts.append(_rows("vn %.5f %.5f %.5f\n", unit_normals(vertices, animation.faces)))
    parts.append(_faces(animation.faces, None if texture is None else texture.faces))
    return "".join(parts)


def material_text(image_file: str) -> str:
    """A matt material that shows the texture."""
    return f"newmtl surface\nKa 0 0 0\nKd 1 1 1\nKs 0 0 0\nillum 1\nmap_Kd {image_file}\n"


def export_obj_sequence(animation: Animation, folder: Path | str, texture: Texture | None = None, images: list[Path] | None = None) -> None:
    """Write `folder/{frame:06d}.obj` for every frame; the folder appears whole or not at all.

    World coordinates, exact in float32, with sRGB vertex colours (read by Blender, MeshLab and others); with a texture,
    `texture.png` and `surface.mtl` lie beside the frames, and vertices stay shared along seams.

    Args:
        images: a picture (PNG) per frame, shown instead of the texture's: `{frame:06d}.png` and `.mtl` lie beside each frame.

    Raises:
        ContractError: the animation cannot be exported, or the disk is full.
    """
    check_animation(animation, folder)
    with artifact.atomic_folder(folder, r"\d{6,}\.(obj|mtl|png)|surface\.mtl|texture\.png") as aside:
        if texture is not None and not images:
            iio.imwrite(aside / "texture.png", texture.image)
            write_text(aside / "surface.mtl", material_text("texture.png"))
        for i in progress(list(range(len(animation.frames))), "export obj", logger):
            name = f"{animation.frames[i]:06d}"
            if images:
                shutil.copyfile(images[i], aside / f"{name}.png")
                write_text(aside / f"{name}.mtl", material_text(f"{name}.png"))
            write_text(aside / f"{name}.obj", obj_text(animation, i, texture, f"{name}.mtl" if images else "surface.mtl"))


def write_text(path: Path, text: str) -> None:
    with open(path, "w") as handle:
        handle.write(text)
