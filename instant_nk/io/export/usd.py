"""USD: one mesh with time-sampled points, for usdview, Blender, Houdini, Maya, Unreal. Needs `usd-core`."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np

from instant_nk.errors import BackendError
from instant_nk.geometry.texture import Texture
from instant_nk.io import artifact
from instant_nk.io.export.common import check_animation, check_fps, linear_from_srgb, stand, unit_normals
from instant_nk.io.mesh import Animation


def _require_usd() -> Any:
    try:
        import pxr
    except ImportError:
        raise BackendError("mesh.formats: usd needs the package usd-core, which is not installed. pip install usd-core, or leave usd out.") from None
    return pxr


def export_usd(
    animation: Animation,
    path: Path | str,
    fps: float,
    texture: Texture | None = None,
    up: tuple[float, float, float] = (0.0, 1.0, 0.0),
    normals: bool = True,
    images: list[Path] | None = None,
) -> None:
    """Write the animation as `.usdc` (or `.usda`), whole or not at all; a texture lies beside it as `.png`.

    Points are the world coordinates, exact in float32. Time codes are the absolute frame numbers, played so that the
    smallest step between them lasts 1/fps. Vertex colours are `displayColor` in linear light.

    Args:
        up: the world's up. The stage says +y or +z; any other is turned to +y by the mesh's parent. Positions stay.
        normals: also store each frame's normals (twice the size).
        images: an image per frame, shown instead of the texture's; the file points at them where they lie.

    Raises:
        BackendError: usd-core is not installed.
        ContractError: the animation cannot be exported, or the disk is full.
    """
    _require_usd()
    from pxr import Tf

    path = Path(path)
    check_animation(animation, path)
    check_fps(fps)
    stage, mesh = _stage(animation, fps, np.asarray(up, np.float64))
    _add_samples(mesh, animation, normals)
    try:
        with contextlib.ExitStack() as files:  # renamed together, when both are whole
            if texture is not None:
                picture = path.with_suffix(".png")
                iio.imwrite(files.enter_context(artifact.atomic(picture)), texture.image)
                _add_texture(stage, mesh, texture, picture, _image_samples(animation, images, path))
            aside = files.enter_context(artifact.atomic(path))
            if not stage.GetRootLayer().Export(str(aside)):
                raise OSError("usd-core could not write the layer")
    except Tf.ErrorException as error:
        raise artifact.not_written(path, error) from error


def _image_samples(animation: Animation, images: list[Path] | None, path: Path) -> dict[int, str]:
    """Each frame's image as seen from the file, by frame number."""
    return {int(frame): f"./{Path(os.path.relpath(image, path.parent)).as_posix()}" for frame, image in zip(animation.frames, images or [])}


def _stage(animation: Animation, fps: float, up: np.ndarray) -> tuple[Any, Any]:
    """A stage with the mesh's topology and colours."""
    from pxr import Gf, Sdf, Usd, UsdGeom, Vt

    stage = Usd.Stage.CreateInMemory()
    step = int(np.diff(animation.frames).min()) if len(animation.frames) > 1 else 1
    z_up = bool(up[2] > 1 - 1e-9)
    UsdGeom.SetStageUpAxis(stage, UsdGeom.Tokens.z if z_up else UsdGeom.Tokens.y)
    UsdGeom.SetStageMetersPerUnit(stage, 1.0)
    stage.SetTimeCodesPerSecond(fps * step)
    stage.SetFramesPerSecond(fps * step)
    stage.SetStartTimeCode(int(animation.frames[0]))
    stage.SetEndTimeCode(int(animation.frames[-1]))
    root = UsdGeom.Xform.Define(stage, "/animated_mesh")
    stage.SetDefaultPrim(root.GetPrim())
    Usd.ModelAPI(root).SetKind("component")
    turn = None if z_up else stand(up)
    if turn is not None:
        root.AddOrientOp().Set(Gf.Quatf(turn[3], *turn[:3]))
    mesh = UsdGeom.Mesh.Define(stage, "/animated_mesh/surface")
    mesh.CreateSubdivisionSchemeAttr("none")
    mesh.CreateDoubleSidedAttr(True)
    mesh.CreateFaceVertexCountsAttr(Vt.IntArray.FromNumpy(np.full(len(animation.faces), 3, np.int32)))
    mesh.CreateFaceVertexIndicesAttr(Vt.IntArray.FromNumpy(np.ascontiguousarray(animation.faces.ravel(), np.int32)))
    colours = linear_from_srgb(animation.colours).astype(np.float32)
    primvar = UsdGeom.PrimvarsAPI(mesh).CreatePrimvar("displayColor", Sdf.ValueTypeNames.Color3fArray, UsdGeom.Tokens.vertex)
    primvar.Set(Vt.Vec3fArray.FromNumpy(colours))
    return stage, mesh


def _add_samples(mesh: Any, animation: Animation, normals: bool) -> None:
    """Points, extent and normals at every frame."""
    from pxr import UsdGeom, Vt

    points, extent = mesh.CreatePointsAttr(), mesh.CreateExtentAttr()
    for frame, vertices in zip(animation.frames.tolist(), animation.vertices):
        points.Set(Vt.Vec3fArray.FromNumpy(np.ascontiguousarray(vertices)), frame)
        extent.Set(Vt.Vec3fArray.FromNumpy(np.stack([vertices.min(0), vertices.max(0)])), frame)
        if normals:
            mesh.CreateNormalsAttr().Set(Vt.Vec3fArray.FromNumpy(unit_normals(vertices, animation.faces)), frame)
    if normals:
        mesh.SetNormalsInterpolation(UsdGeom.Tokens.vertex)


def _add_texture(stage: Any, mesh: Any, texture: Texture, image: Path, samples: dict[int, str]) -> None:
    """Bind a matt material that shows the image, or `samples` over time, through the face-varying coordinates `st` (v up)."""
    from pxr import Sdf, UsdGeom, UsdShade, Vt

    st = UsdGeom.PrimvarsAPI(mesh).CreatePrimvar("st", Sdf.ValueTypeNames.TexCoord2fArray, UsdGeom.Tokens.faceVarying)
    st.Set(Vt.Vec2fArray.FromNumpy((texture.uv * [1, -1] + [0, 1]).astype(np.float32)))
    st.SetIndices(Vt.IntArray.FromNumpy(np.ascontiguousarray(texture.faces.ravel(), np.int32)))
    material = UsdShade.Material.Define(stage, "/animated_mesh/material")
    shader, sampler, reader = (UsdShade.Shader.Define(stage, f"/animated_mesh/material/{name}") for name in ("surface", "texture", "coordinates"))
    shader.CreateIdAttr("UsdPreviewSurface")
    shader.CreateInput("roughness", Sdf.ValueTypeNames.Float).Set(1.0)
    sampler.CreateIdAttr("UsdUVTexture")
    shown = sampler.CreateInput("file", Sdf.ValueTypeNames.Asset)
    shown.Set(f"./{image.name}")
    for frame, name in samples.items():
        shown.GetAttr().Set(name, frame)
    sampler.CreateInput("sourceColorSpace", Sdf.ValueTypeNames.Token).Set("sRGB")
    for wrap in ("wrapS", "wrapT"):
        sampler.CreateInput(wrap, Sdf.ValueTypeNames.Token).Set("clamp")
    reader.CreateIdAttr("UsdPrimvarReader_float2")
    reader.CreateInput("varname", Sdf.ValueTypeNames.String).Set("st")
    sampler.CreateInput("st", Sdf.ValueTypeNames.Float2).ConnectToSource(reader.CreateOutput("result", Sdf.ValueTypeNames.Float2))
    shader.CreateInput("diffuseColor", Sdf.ValueTypeNames.Color3f).ConnectToSource(sampler.CreateOutput("rgb", Sdf.ValueTypeNames.Float3))
    material.CreateSurfaceOutput().ConnectToSource(shader.CreateOutput("surface", Sdf.ValueTypeNames.Token))
    UsdShade.MaterialBindingAPI.Apply(mesh.GetPrim()).Bind(material)
