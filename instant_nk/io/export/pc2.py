"""PC2 point cache: every frame's vertex positions in one file, for Blender's Mesh Cache modifier and 3ds Max.

Layout, little endian: "POINTCACHE2\\0", int32 version 1, int32 points, float32 first frame, float32 frames per sample,
int32 samples, then float32 xyz of every point of every sample.
"""

from __future__ import annotations

import contextlib
import struct
from pathlib import Path

import imageio.v3 as iio
import numpy as np

from instant_nk.errors import ContractError
from instant_nk.geometry.texture import Texture
from instant_nk.io import artifact
from instant_nk.io.export.common import check_animation, check_fps
from instant_nk.io.export.obj import material_text, obj_text, write_text
from instant_nk.io.mesh import Animation

MAGIC = b"POINTCACHE2"
HEADER = struct.Struct("<12siiffi")  # magic, version, points, first frame, frames per sample, samples


def export_pc2(animation: Animation, path: Path | str, fps: float, texture: Texture | None = None) -> None:
    """Write the cache and, beside it, the mesh it deforms: the first frame as `.obj` (with `.mtl` and `.png` when textured).

    In Blender: import the OBJ with forward axis Y and up axis Z (so that no axis is turned), add the modifier Mesh Cache,
    format PC2, the same axes, and set the scene to `fps`. The cache's sample i belongs to scene frame `first frame + i * step`.

    Raises:
        ContractError: the animation cannot be exported, frame numbers are not evenly spaced (the format has no times), or the disk is full.
    """
    path = Path(path)
    check_animation(animation, path)
    check_fps(fps)
    steps = np.unique(np.diff(animation.frames))
    if len(steps) > 1:
        raise ContractError(f"{path}: PC2 holds evenly spaced frames only; got steps {steps.tolist()} between frame numbers. Export usd or glb instead.")
    n, v = animation.vertices.shape[:2]
    step = float(steps[0]) if len(steps) else 1.0
    told = f", first of {n} frames in {path.name}, {fps:g} frames per second"
    with contextlib.ExitStack() as stack:  # renamed together, when all are whole
        if texture is not None:
            iio.imwrite(stack.enter_context(artifact.atomic(path.with_suffix(".png"))), texture.image)
            write_text(stack.enter_context(artifact.atomic(path.with_suffix(".mtl"))), material_text(f"{path.stem}.png"))
        write_text(stack.enter_context(artifact.atomic(path.with_suffix(".obj"))), obj_text(animation, 0, texture, f"{path.stem}.mtl", told))
        with open(stack.enter_context(artifact.atomic(path)), "wb") as handle:
            handle.write(HEADER.pack(MAGIC, 1, v, float(animation.frames[0]), step, n))
            handle.write(np.ascontiguousarray(animation.vertices, "<f4"))
