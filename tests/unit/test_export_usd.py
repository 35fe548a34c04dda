"""USD, read back and judged by usd-core's own validators."""

import dataclasses
import sys
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest

from instant_nk.errors import BackendError, ContractError
from instant_nk.io.export.common import linear_from_srgb, unit_normals
from instant_nk.io.export.usd import export_usd

pxr = pytest.importorskip("pxr", reason="usd-core is not installed: pip install usd-core")


@pytest.fixture
def stage(animation, tmp_path):
    from pxr import Usd

    export_usd(animation, tmp_path / "a.usdc", fps=12.5)
    return Usd.Stage.Open(str(tmp_path / "a.usdc"))


def mesh_of(stage):
    from pxr import UsdGeom

    return UsdGeom.Mesh(stage.GetPrimAtPath("/animated_mesh/surface"))


def test_every_time_sample_holds_the_exact_world_positions(stage, animation):
    mesh = mesh_of(stage)
    assert mesh.GetPointsAttr().GetTimeSamples() == animation.frames.tolist()
    for i, frame in enumerate(animation.frames.tolist()):
        assert np.array_equal(np.array(mesh.GetPointsAttr().Get(frame)), animation.vertices[i])
        assert np.abs(np.array(mesh.GetNormalsAttr().Get(frame)) - unit_normals(animation.vertices[i], animation.faces)).max() == 0
        assert np.array_equal(np.array(mesh.GetExtentAttr().Get(frame)), [animation.vertices[i].min(0), animation.vertices[i].max(0)])
    assert np.array_equal(np.array(mesh.GetFaceVertexIndicesAttr().Get()).reshape(-1, 3), animation.faces)


def test_clock_axis_and_colours(stage, animation):
    from pxr import UsdGeom

    assert (stage.GetTimeCodesPerSecond(), stage.GetStartTimeCode(), stage.GetEndTimeCode()) == (12.5, 3, 6)
    assert UsdGeom.GetStageUpAxis(stage) == "Y"
    colours = np.array(UsdGeom.PrimvarsAPI(mesh_of(stage)).GetPrimvar("displayColor").Get())
    assert np.abs(colours - linear_from_srgb(animation.colours)).max() < 1e-6


def test_every_second_frame_plays_at_the_asked_rate(animation, tmp_path):
    from pxr import Usd

    animation.frames[:] = [0, 2, 4, 6]
    export_usd(animation, tmp_path / "a.usdc", fps=10, up=(0, 0, 1))
    stage = Usd.Stage.Open(str(tmp_path / "a.usdc"))
    assert (stage.GetEndTimeCode() - stage.GetStartTimeCode()) / stage.GetTimeCodesPerSecond() == pytest.approx(0.3)


def validation_errors(path):
    from pxr import Usd, UsdValidation

    registry = UsdValidation.ValidationRegistry()
    context = UsdValidation.ValidationContext(registry.GetOrLoadAllValidators())
    return [f"{e.GetName()}: {e.GetMessage()}" for e in context.Validate(Usd.Stage.Open(str(path)))]


@pytest.mark.parametrize("textured", [False, True])
def test_usd_validators_find_nothing(animation, tmp_path, make_texture, textured):
    export_usd(animation, tmp_path / "a.usdc", fps=10, texture=make_texture(animation) if textured else None)
    assert validation_errors(tmp_path / "a.usdc") == []


def test_a_texture_lies_beside_and_is_found(animation, tmp_path, make_texture):
    from pxr import Usd, UsdGeom, UsdUtils

    texture = make_texture(animation)
    export_usd(animation, tmp_path / "a.usdc", fps=10, texture=texture)
    layers, assets, unresolved = UsdUtils.ComputeAllDependencies(str(tmp_path / "a.usdc"))
    assert [p.rsplit("/", 1)[-1] for p in assets] == ["a.png"] and not unresolved
    assert np.array_equal(iio.imread(tmp_path / "a.png"), texture.image)
    stage = Usd.Stage.Open(str(tmp_path / "a.usdc"))
    st = UsdGeom.PrimvarsAPI(mesh_of(stage)).GetPrimvar("st")
    assert np.abs(np.array(st.ComputeFlattened()) - (texture.uv * [1, -1] + [0, 1])[texture.faces.ravel()]).max() < 1e-6


def test_without_usd_core_the_message_says_what_to_install(animation, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pxr", None)
    with pytest.raises(BackendError, match="pip install usd-core, or leave usd out"):
        export_usd(animation, tmp_path / "a.usdc", fps=10)


def test_a_layer_that_cannot_be_written_is_one_clear_error(animation, tmp_path, monkeypatch):
    import os

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ContractError, match=r"a\.usdc: could not be written: No space left on device"):
        export_usd(animation, tmp_path / "a.usdc", fps=10)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("up", "axis"), [((0, 0, 1), "Z"), ((0, 1, 0), "Y"), ((0, -1, 0), "Y"), ((1, 0, 0), "Y")])
def test_the_subject_stands_along_the_axis_the_stage_calls_up(animation, tmp_path, up, axis):
    from pxr import Usd, UsdGeom

    export_usd(animation, tmp_path / "a.usdc", fps=10, up=up)
    stage = Usd.Stage.Open(str(tmp_path / "a.usdc"))
    assert UsdGeom.GetStageUpAxis(stage) == axis
    turned = UsdGeom.Xformable(mesh_of(stage)).ComputeLocalToWorldTransform(3).TransformDir(tuple(map(float, up)))
    assert np.allclose(turned, [0, 0, 1] if axis == "Z" else [0, 1, 0], atol=1e-6)
    assert np.array_equal(np.array(mesh_of(stage).GetPointsAttr().Get(3)), animation.vertices[0])
    assert validation_errors(tmp_path / "a.usdc") == []


def test_textures_per_frame_are_time_samples_of_the_picture(animation, tmp_path, make_texture):
    from pxr import Usd

    texture = make_texture(animation)
    images = [tmp_path / "texture" / f"{frame:06d}.png" for frame in animation.frames.tolist()]
    images[0].parent.mkdir()
    for image in images:
        iio.imwrite(image, texture.image)
    export_usd(animation, tmp_path / "a.usdc", fps=10, texture=texture, images=images)
    stage = Usd.Stage.Open(str(tmp_path / "a.usdc"))
    shown = stage.GetPrimAtPath("/animated_mesh/material/texture").GetAttribute("inputs:file")
    assert shown.GetTimeSamples() == animation.frames.tolist()
    assert [Path(shown.Get(frame).resolvedPath) for frame in animation.frames.tolist()] == images
    assert validation_errors(tmp_path / "a.usdc") == []


def test_a_full_disk_keeps_the_earlier_picture_and_layer(animation, tmp_path, make_texture, monkeypatch):
    texture = make_texture(animation)
    export_usd(animation, tmp_path / "a.usdc", fps=10, texture=texture)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pxr.Sdf.Layer, "Export", full)
    with pytest.raises(ContractError, match=r"a\.usdc: could not be written"):
        export_usd(animation, tmp_path / "a.usdc", fps=12, texture=dataclasses.replace(texture, image=texture.image // 2))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
