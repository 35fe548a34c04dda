"""The only schema of the configuration: frozen dataclasses, a default and a one-line reason per key.

Values come, later over earlier, from: the defaults below, the preset's overrides, the user's YAML and `--config`.
Unknown keys, wrong types and impossible combinations are a `ConfigError` that names the key's path and the nearest
valid name; nothing is repaired. Imports no torch: Snakemake reads this while parsing.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import re
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from instant_nk.errors import BackendError, ConfigError

SYNTHETIC = "synthetic"


MESH_FORMATS = ("npz", "ply", "glb", "usd", "obj", "pc2")


def key(default: Any, doc: str) -> Any:
    """A configuration key: its default and the one line that explains it (unit, allowed values, when to change it)."""
    if isinstance(default, (list, dict)):
        return dataclasses.field(default_factory=lambda: default, metadata={"doc": doc})
    return dataclasses.field(default=default, metadata={"doc": doc})


@dataclass(frozen=True)
class FramesConfig:
    first: int | None = key(None, "first absolute frame to use; null: the capture's first")
    count: int | None = key(None, "number of frames; null: all from `first` on")
    step: int = key(1, "use every step-th frame")


@dataclass(frozen=True)
class SyntheticConfig:
    frames: int = key(8, "number of frames of the built-in capture")
    cameras: int = key(12, "number of training cameras on the ring")
    heldout_cameras: int = key(2, "number of held-out cameras")
    image_size: int = key(128, "width and height of its images, pixels")


@dataclass(frozen=True)
class DatasetConfig:
    cameras: str | int | list[str] = key("all", "all | N (spread over the rig) | [names]: which training cameras to use")
    background: str | list[float] | None = key(
        None, "null: masks come with the images; [r, g, b] in 0..255: plain backdrop colour; a folder of clean plates, one image per camera"
    )
    background_tolerance: float = key(12.0, "colour distance (0..255 units) from the backdrop above which a pixel is subject")
    box: list[list[float]] | None = key(None, "[[min],[max]] in world units; null: the capture's own box, or proposed from the visual hull")
    canonical_frame: int | None = key(None, "absolute frame to reconstruct as the rest shape; null: chosen from the visual hulls")
    hull_resolution: int = key(64, "voxels along each axis of the per-frame visual hulls")
    max_image_side: int | None = key(None, "downscale images whose longer side exceeds this, pixels; null: keep")
    outside_tolerance: float = key(0.02, "share of a mask that may lie outside the box; raise it only for masks with stray parts far from the subject")


@dataclass(frozen=True)
class CanonicalConfig:
    mesh: str | None = key(None, "a .ply or .obj in world coordinates to use as the canonical surface; null: reconstruct it")
    steps: int = key(700, "training steps")
    samples_per_step: int = key(24000, "target number of samples along rays per step; the ray count adapts to it")
    max_pixels: int = key(40_000_000, "pixels held in memory at most, 12 bytes each; larger captures keep an even random share")
    levels: int = key(8, "levels of the hash grid")
    features: int = key(4, "channels per level")
    log2_table_size: int = key(16, "entries per level, as a power of two")
    base_resolution: int = key(12, "cells per axis of the coarsest level")
    finest_resolution: int = key(192, "cells per axis of the finest level")
    hidden: int = key(64, "width of the networks")
    occupancy_resolution: int = key(64, "voxels per axis of the occupancy grid")
    learning_rate: float = key(1e-2, "Adam step size of the grid; the networks use a fifth")
    eikonal_weight: float = key(0.05, "weight of (|grad sdf| - 1)^2")
    mask_weight: float = key(0.2, "weight of the mask's binary cross-entropy")
    isosurface_resolution: int = key(144, "cells per axis when the surface is extracted")
    target_faces: int | None = key(20000, "decimate the canonical mesh to this many triangles; null: keep all")
    ema: float = key(0.0, "decay of the running mean of the weights that is exported, e.g. 0.95; 0: the last weights")
    keep_components: float = key(0.005, "keep surface components of at least this share of the largest one's area")


@dataclass(frozen=True)
class GraphConfig:
    node_spacing: float | None = key(None, "distance between neighbouring nodes as a fraction of the box; null: from the subject's surface area")
    max_nodes: int = key(400, "upper bound on the number of nodes when the spacing is automatic")
    anchors: int = key(6, "nodes that move one point (K), 1..8; 4 or more is usual")
    neighbours: int = key(6, "edges per node")


@dataclass(frozen=True)
class ObservationConfig:
    provider: Literal["neural", "depth", "meshes"] = key("neural", "where evidence of the live surface comes from")
    folder: str | None = key(None, "provider meshes: folder of per-frame meshes named by frame number, world coordinates")
    frames_per_job: int | None = key(None, "frames observed by one job; null: 4, and more in a long capture, so that starting processes costs little")
    steps: int = key(400, "training steps of the quick neural surface, per frame")
    samples_per_step: int = key(12000, "samples along rays per step")
    max_pixels: int = key(40_000_000, "pixels of a frame held in memory at most, 12 bytes each")
    mask_weight: float = key(0.2, "weight of the mask's binary cross-entropy")
    log2_table_size: int = key(15, "entries per level of the quick grid, as a power of two")
    finest_resolution: int = key(96, "cells per axis of the quick grid's finest level")
    surface_resolution: int = key(96, "cells per axis when the quick surface is extracted")
    max_points: int = key(12000, "observed points kept per frame")


@dataclass(frozen=True)
class RegistrationConfig:
    source: Literal["solver", "ed_folder", "rig"] = key(
        "solver", "solver: our registration; ed_folder: an external tracker's; rig: a skinned glTF or a body model"
    )
    folder: str | None = key(None, "source ed_folder: folder with node.txt and accumAffine/; source rig: a .glb or .gltf, or an SMPL-family model as .npz")
    rig_poses: str | None = key(None, "source rig with an SMPL-family model: .npz with poses [N, 3J] (axis-angle) and optionally betas, trans")
    rig_fps: float | None = key(None, "source rig: frames of the capture per second of the rig's animation; null: one key (or pose) per frame")
    rig_first_frame: int | None = key(None, "source rig: absolute frame of the animation's first key; null: the first frame used")
    rig_transform: str | None = key(
        None, "source rig: text file with a 4x4 similarity, the capture's world from the rig's (glTF is y-up); null: they are the same"
    )
    rig_refine: bool = key(True, "source rig: let the solver start from the rig at every frame; false: take the rig's motion as it is")
    iterations: int = key(10, "Gauss-Newton iterations per frame from closest points")
    rigidity_weight: float = key(1.0, "weight of the as-rigid-as-possible term against data, both normalised per node")
    image_weight: float = key(1.0, "weight of silhouette and photometric evidence; 0: surfaces only")
    max_points: int = key(6000, "source and target points used per iteration")


@dataclass(frozen=True)
class FieldConfig:
    dyna_mode: Literal["deform", "time", "fourier", "latent"] = key(
        "deform", "deform: a residual deformation of the canonical surface, the one that tracks; time | fourier | latent: a surface per frame of its own"
    )
    window_frames: int = key(6, "frames per window")
    overlap: int = key(2, "frames shared by neighbouring windows, at least 2")
    steps: int = key(260, "training steps per window")
    samples_per_step: int = key(16000, "target number of samples along rays per step")
    max_pixels: int = key(40_000_000, "pixels of the window held in memory at most, 12 bytes each; larger captures keep an even random share")
    levels: int = key(6, "levels of the 4-D residual grid")
    features: int = key(2, "channels per level of the residual grid")
    log2_table_size: int = key(15, "entries per level of the residual grid, as a power of two")
    base_resolution: int = key(6, "coarsest spatial resolution of the residual grid")
    finest_resolution: int = key(48, "finest spatial resolution of the residual grid")
    learning_rate: float = key(2e-3, "Adam step size")
    refine_motion: bool = key(True, "refine the nodes' motion together with the residual")
    residual_bound: float = key(0.5, "largest residual as a fraction of the node spacing")
    rigidity_weight: float = key(1.0, "as-rigid-as-possible weight while the motion is refined")
    residual_weight: float = key(0.02, "weight of |residual|^2, in units of the bound")
    temporal_weight: float = key(0.02, "weight of the residual's change over time at a fixed canonical point")
    elastic_weight: float = key(0.02, "weight of the residual's Jacobian")
    eikonal_weight: float = key(0.01, "weight of the eikonal term through the warp's Jacobian")
    mask_weight: float = key(0.2, "weight of the mask's binary cross-entropy")
    appearance: int = key(0, "numbers per frame that only the colour network reads, e.g. 4, for light that changes over time; 0: none")
    exposure: bool = key(False, "true: learn a gain per camera and channel (exposure, white balance), where cameras disagree about the same colour")
    refine_poses: bool = key(False, "true: correct each camera's pose a little, where calibration is worse than a pixel; static cameras")
    ema: float = key(0.0, "decay of the running mean of the weights that is exported, e.g. 0.95; 0: the last weights")
    checkpoint_every: int = key(100, "steps between checkpoints from which a killed job resumes")


@dataclass(frozen=True)
class MeshConfig:
    formats: list[str] = key(["npz", "ply", "glb"], "which exports to write besides animation.npz: ply, glb, usd, obj, pc2")
    texture: Literal["vertex", "atlas", "per_frame"] = key(
        "atlas", "vertex: colours per vertex; atlas: one baked UV texture; per_frame: also an image per frame, for changing appearance"
    )
    texture_size: int = key(512, "side of the baked texture, pixels")
    texture_views: int = key(48, "images the texture is baked from at most, spread over frames and cameras")
    tear_at: float = key(
        4.0, "cut faces that stretch beyond this many times their length, between parts that touched at rest, and close the holes; 0: keep them"
    )
    smoothing: float | None = key(
        None,
        "smoothing of the vertices over time, weight of squared second differences; null: as much as they show to be noise, nothing where that would carry surfaces off what was observed; 0: none",
    )


@dataclass(frozen=True)
class ReportConfig:
    fps: float = key(10.0, "frames per second of videos and the animated GLB")
    path_frames: int = key(24, "frames of the camera-path video")
    films: bool = key(True, "false: no videos in the report, for a machine without imageio-ffmpeg")


@dataclass(frozen=True)
class RuntimeConfig:
    """How to run; nothing here re-runs a stage. seed, backend and mixed_precision change results a little: after those use --forcerun."""

    device: Literal["auto", "cpu", "cuda"] = key("auto", "auto: the GPU when there is one")
    backend: Literal["auto", "reference", "triton", "tcnn"] = key("auto", "which kernels to use")
    mixed_precision: Literal["auto", "on", "off"] = key(
        "auto", "on: colour and residual networks train in bfloat16 on a GPU, the signed distance never; auto: off, bfloat16 saves 3 % of a step"
    )
    cuda_graphs: bool = key(True, "true: on a GPU, training steps are recorded once and replayed, which is several times faster; false: launched one by one")
    threads: int | None = key(None, "CPU threads of one job; null: what Snakemake gives it")
    preview_every_s: float = key(20.0, "seconds between preview pictures of a training, beside what it will write (*.preview.png); 0: none")
    tensorboard: bool = key(False, "true: scalars and previews as TensorBoard events in results/{sequence}/tensorboard/ (needs tensorboard)")
    seed: int = key(0, "seed of every random choice")
    results: str = key("results", "where results are written")
    log_level: Literal["DEBUG", "INFO", "WARNING"] = key("INFO", "how much the logs say")


@dataclass(frozen=True)
class Config:
    capture: str = key(SYNTHETIC, "folder of the capture, or `synthetic` for the built-in one")
    sequence: str = key("demo", "name of the result folder under results/")
    sequences: dict[str, Any] | None = key(None, "several captures in one run: {name: capture folder, or a table of overrides with its own `capture`}")
    preset: Literal["tiny", "demo", "fast", "high"] = key("demo", "quality preset; `instant-nk config --preset NAME` prints it in full")
    frames: FramesConfig = dataclasses.field(default_factory=FramesConfig)
    synthetic: SyntheticConfig = dataclasses.field(default_factory=SyntheticConfig)
    dataset: DatasetConfig = dataclasses.field(default_factory=DatasetConfig)
    canonical: CanonicalConfig = dataclasses.field(default_factory=CanonicalConfig)
    graph: GraphConfig = dataclasses.field(default_factory=GraphConfig)
    observation: ObservationConfig = dataclasses.field(default_factory=ObservationConfig)
    registration: RegistrationConfig = dataclasses.field(default_factory=RegistrationConfig)
    field: FieldConfig = dataclasses.field(default_factory=FieldConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    report: ReportConfig = dataclasses.field(default_factory=ReportConfig)
    runtime: RuntimeConfig = dataclasses.field(default_factory=RuntimeConfig)


PRESETS: dict[str, dict[str, Any]] = {
    "demo": {},
    "tiny": {
        "synthetic": {"frames": 4, "cameras": 6, "heldout_cameras": 1, "image_size": 48},
        "dataset": {"hull_resolution": 32},
        "canonical": {
            "steps": 40, "samples_per_step": 4000, "levels": 4, "log2_table_size": 13, "finest_resolution": 48,
            "hidden": 32, "occupancy_resolution": 32, "isosurface_resolution": 40, "target_faces": 2000,
        },
        "graph": {"max_nodes": 40, "anchors": 4},
        "observation": {"frames_per_job": 2, "steps": 12, "samples_per_step": 3000, "finest_resolution": 32, "surface_resolution": 32, "max_points": 1500, "log2_table_size": 13},
        "registration": {"iterations": 8, "max_points": 800},
        "field": {"window_frames": 3, "steps": 8, "samples_per_step": 3000, "levels": 3, "finest_resolution": 16, "log2_table_size": 12, "checkpoint_every": 4},
        "mesh": {"texture": "vertex"},
        "report": {"path_frames": 4},
    },
    "fast": {
        "dataset": {"hull_resolution": 128},
        "canonical": {
            "steps": 1500, "samples_per_step": 262144, "levels": 14, "features": 2, "log2_table_size": 19, "base_resolution": 16,
            "finest_resolution": 1024, "occupancy_resolution": 128, "isosurface_resolution": 320, "target_faces": 60000,
        },
        "graph": {"max_nodes": 600},
        "observation": {"steps": 600, "samples_per_step": 131072, "log2_table_size": 17, "finest_resolution": 256, "surface_resolution": 192, "max_points": 30000},
        "registration": {"iterations": 12, "max_points": 12000},
        "field": {"window_frames": 8, "steps": 800, "samples_per_step": 262144, "levels": 8, "log2_table_size": 18, "finest_resolution": 128, "checkpoint_every": 400},
        "mesh": {"texture_size": 2048, "texture_views": 150},
        "report": {"path_frames": 48},
    },
    "high": {
        "dataset": {"hull_resolution": 128},
        "canonical": {
            "steps": 6000, "samples_per_step": 524288, "levels": 16, "features": 2, "log2_table_size": 19, "base_resolution": 16,
            "finest_resolution": 2048, "occupancy_resolution": 128, "isosurface_resolution": 512, "target_faces": 120000,
        },
        "graph": {"max_nodes": 1000},
        "observation": {"steps": 1200, "samples_per_step": 262144, "log2_table_size": 18, "finest_resolution": 384, "surface_resolution": 256, "max_points": 60000},
        "registration": {"iterations": 16, "max_points": 20000},
        "field": {"window_frames": 8, "steps": 3000, "samples_per_step": 524288, "levels": 8, "log2_table_size": 19, "finest_resolution": 192, "checkpoint_every": 1000},
        "mesh": {"texture_size": 4096, "texture_views": 300},
        "report": {"path_frames": 96},
    },
}  # fmt: skip


def _nearest(name: str, valid: list[str]) -> str:
    match = difflib.get_close_matches(name, valid, n=1, cutoff=0.0)
    return match[0] if match else ", ".join(valid)


def _describe(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return " | ".join(str(a) for a in typing.get_args(hint))
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return " | ".join(_describe(a) for a in typing.get_args(hint))
    if typing.get_origin(hint) in (list, dict):
        return str(hint)
    return {type(None): "null", int: "whole number", float: "number", str: "text", bool: "true/false"}.get(hint, str(hint))


class _Mismatch(Exception):
    pass


def _coerce(value: Any, hint: Any, path: str) -> Any:
    """`value` as the type `hint`; text is read as the type wants, because `--config` delivers text."""
    origin = typing.get_origin(hint)
    if isinstance(hint, types.UnionType) or origin is typing.Union:
        options = sorted(typing.get_args(hint), key=lambda o: (o is not type(None), o is str))  # null first, text last
        for option in options:
            try:
                return _coerce(value, option, path)
            except _Mismatch:
                continue
        raise _Mismatch
    if hint is Any:
        return value
    if hint is type(None):
        if value is None or (isinstance(value, str) and value.lower() in ("null", "none", "~")):
            return None
        raise _Mismatch
    if origin is Literal:
        if isinstance(value, bool) and "on" in typing.get_args(hint):  # YAML reads a bare on or off as a truth value
            value = "on" if value else "off"
        if value in typing.get_args(hint) and not isinstance(value, bool):
            return value
        raise _Mismatch
    if origin is list:
        if isinstance(value, str) and value.startswith("["):
            try:
                value = yaml.safe_load(value)
            except yaml.YAMLError:
                raise _Mismatch from None
        if not isinstance(value, (list, tuple)):
            raise _Mismatch
        (item,) = typing.get_args(hint)
        return [_coerce(v, item, path) for v in value]
    if origin is dict:
        if not isinstance(value, dict):
            raise _Mismatch
        return dict(value)
    if hint is bool:
        if isinstance(value, bool):
            return value
        if isinstance(value, str) and value.lower() in ("true", "false"):
            return value.lower() == "true"
        raise _Mismatch
    if hint is int:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        if isinstance(value, str):
            try:
                return int(value)
            except ValueError:
                raise _Mismatch from None
        raise _Mismatch
    if hint is float:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            result = float(value)
        elif isinstance(value, str):
            try:
                result = float(value)
            except ValueError:
                raise _Mismatch from None
        else:
            raise _Mismatch
        if result != result or result in (float("inf"), float("-inf")):
            raise _Mismatch
        return result
    if hint is str:
        if isinstance(value, str):
            return value
        raise _Mismatch
    raise AssertionError(f"schema error at {path}: {hint}")


def _build(cls: type, values: Any, path: str) -> Any:
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise ConfigError(f"config key '{path}': wanted a table of keys, got {values!r}.")
    hints = typing.get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(cls)]
    result = {}
    for name, value in values.items():
        where = f"{path}.{name}" if path else str(name)
        if name not in names:
            raise ConfigError(f"config key '{where}' does not exist. Nearest valid key: '{f'{path}.' if path else ''}{_nearest(str(name), names)}'.")
        hint = hints[name]
        if dataclasses.is_dataclass(hint):
            result[name] = _build(hint, value, where)
            continue
        try:
            result[name] = _coerce(value, hint, where)
        except _Mismatch:
            raise ConfigError(f"config key '{where}': wanted {_describe(hint)}, got {value!r} ({type(value).__name__}).") from None
    return cls(**result)


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`base` with `over` laid on top, section by section; neither is changed. Dotted keys (`field.steps`) are expanded."""
    result = {k: dict(v) if isinstance(v, dict) else v for k, v in base.items()}
    for name, value in over.items():
        if isinstance(name, str) and "." in name:
            head, tail = name.split(".", 1)
            value, name = {tail: value}, head
        if isinstance(value, dict) and isinstance(result.get(name), dict):
            result[name] = merge(result[name], value)
        else:
            result[name] = merge({}, value) if isinstance(value, dict) else value
    return result


def parse(values: dict[str, Any] | None) -> Config:
    """A checked `Config` from plain values (YAML, Snakemake's `config`).

    Raises:
        ConfigError: unknown key, wrong type, impossible combination; names the key's path.
    """
    values = {name: value for name, value in merge({}, values or {}).items() if not (value is None and name in SECTION_DOC)}
    preset = values.get("preset", Config.preset)
    if preset not in PRESETS:
        raise ConfigError(f"config key 'preset': wanted {' | '.join(PRESETS)}, got {preset!r}. Nearest: '{_nearest(str(preset), list(PRESETS))}'.")
    config = _build(Config, merge(PRESETS[preset], values), "")
    _check(config)
    return config


def read(path: Path | str) -> dict[str, Any]:
    """The plain values of a YAML file.

    Raises:
        ConfigError: missing, unreadable, or no table.
    """
    path = Path(path)
    try:
        values = yaml.safe_load(path.read_text()) or {}
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such configuration file. Copy config/config.yaml and edit it.") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}). Give a YAML file.") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: wanted a table of keys, got {type(values).__name__}.")
    return values


def load(path: Path | str, **overrides: Any) -> Config:
    """`parse` of a YAML file with `overrides` on top."""
    return parse(merge(read(path), overrides))


def to_dict(config: Any) -> dict[str, Any]:
    """Every key of a config or section as plain values, ready for YAML or JSON."""
    return dataclasses.asdict(config)


def beyond_defaults(values: dict[str, Any]) -> dict[str, Any]:
    """Those of `values` (sections of plain values) that differ from the defaults: what a short command line has to say."""
    defaults = to_dict(Config())
    result: dict[str, Any] = {}
    for name, value in values.items():
        if name in SECTION_DOC:
            value = {item: v for item, v in value.items() if v != defaults[name][item]}
        if value not in ({}, defaults[name]):
            result[name] = value
    return result


def for_sequences(config: Config, values: dict[str, Any] | None = None) -> dict[str, Config]:
    """One `Config` per sequence, by name: the entries of `sequences`, or the single `sequence`.

    Args:
        values: the plain values `config` was parsed from; needed for per-sequence overrides.
    """
    if not config.sequences:
        return {config.sequence: config}
    base = {k: v for k, v in (values or {}).items() if k != "sequences"}
    result = {}
    for name, entry in config.sequences.items():
        entry = {"capture": entry} if isinstance(entry, str) else entry
        if not isinstance(entry, dict) or "capture" not in entry:
            raise ConfigError(f"config key 'sequences.{name}': wanted a capture folder or a table with 'capture', got {entry!r}.")
        result[str(name)] = parse(merge(merge(base, entry), {"sequence": str(name)}))
    return result


def check_packages(config: Config) -> None:
    """Refuse settings that need a package which is not installed: before the first stage, not after hours in the one that needs it.

    Raises:
        BackendError: names the setting, the package and what to do.
    """
    needs = (
        (config.mesh.texture != "vertex", f"mesh.texture: {config.mesh.texture}", "xatlas", "xatlas", "set mesh.texture: vertex"),
        (config.report.films, "report.films: true", "imageio_ffmpeg", "imageio-ffmpeg", "set report.films: false"),
        (config.runtime.tensorboard, "runtime.tensorboard: true", "tensorboard", "tensorboard", "leave it false"),
        ("usd" in config.mesh.formats, "mesh.formats: usd", "pxr", "usd-core", "leave usd out of mesh.formats"),
    )
    for wanted, setting, module, package, otherwise in needs:
        if wanted and importlib.util.find_spec(module) is None:
            raise BackendError(f"{setting} needs the package {package}, which is not installed. pip install {package}, or {otherwise}.")


def _require(condition: bool, path: str, wanted: str, got: Any) -> None:
    if not condition:
        raise ConfigError(f"config key '{path}': wanted {wanted}, got {got!r}.")


def _check(config: Config) -> None:
    """Bounds and combinations that types cannot say."""
    for section in dataclasses.fields(config):
        part = getattr(config, section.name)
        if not dataclasses.is_dataclass(part):
            continue
        for item in dataclasses.fields(part):
            value = getattr(part, item.name)
            if isinstance(value, (int, float)) and not isinstance(value, bool) and item.name not in ("first", "seed", "canonical_frame", "rig_first_frame"):
                zero_ok = (item.name.endswith("_weight") and (section.name, item.name) != ("registration", "rigidity_weight")) or item.name in (
                    "heldout_cameras",
                    "keep_components",
                    "overlap",
                    "background_tolerance",
                    "ema",
                    "appearance",
                    "preview_every_s",
                    "smoothing",
                    "tear_at",
                )
                _require(
                    value >= 0 if zero_ok else value > 0, f"{section.name}.{item.name}", "a number of zero or more" if zero_ok else "a number above zero", value
                )
    for name in [config.sequence, *(config.sequences or {})]:
        _require(bool(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", str(name))), "sequence", "letters, digits, '_', '-', '.'", name)
    f = config.field
    _require(f.overlap >= 2, "field.overlap", "2 or more frames, so that windows can be blended", f.overlap)
    _require(f.window_frames > f.overlap, "field.window_frames", f"more than field.overlap={f.overlap}", f.window_frames)
    for name, value in (("appearance", f.appearance), ("exposure", f.exposure), ("refine_poses", f.refine_poses)):
        _require(not value or f.dyna_mode == "deform", "field.dyna_mode", f"deform, because field.{name} is set", f.dyna_mode)
    for name, value in (("canonical.ema", config.canonical.ema), ("field.ema", f.ema)):
        _require(value < 1, name, "below 1: at 1 nothing would be learned", value)
    _require(1 <= config.graph.anchors <= 8, "graph.anchors", "1 to 8", config.graph.anchors)
    o, r = config.observation, config.registration
    _require(
        o.provider != "meshes" or o.folder is not None, "observation.folder", "a folder of per-frame meshes, because observation.provider is 'meshes'", None
    )
    _require(o.provider == "meshes" or o.folder is None, "observation.provider", "meshes, because observation.folder is given", o.provider)
    _require(r.source == "solver" or r.folder is not None, "registration.folder", f"a path, because registration.source is '{r.source}'", None)
    _require(r.source != "solver" or r.folder is None, "registration.source", "ed_folder or rig, because registration.folder is given", r.source)
    for name in ("rig_poses", "rig_fps", "rig_first_frame", "rig_transform"):
        _require(getattr(r, name) is None or r.source == "rig", "registration.source", f"rig, because {name} is given", r.source)
    for name, c in (("canonical", config.canonical), ("field", f)):
        _require(
            c.finest_resolution >= c.base_resolution, f"{name}.finest_resolution", f"at least {name}.base_resolution={c.base_resolution}", c.finest_resolution
        )
    for name, share in (("dataset.outside_tolerance", config.dataset.outside_tolerance), ("canonical.keep_components", config.canonical.keep_components)):
        _require(share <= 1, name, "a share, at most 1", share)
    for name in config.mesh.formats:
        _require(name in MESH_FORMATS, "mesh.formats", f"any of {', '.join(MESH_FORMATS)}", name)
    if config.dataset.box is not None:
        box = config.dataset.box
        _require(len(box) == 2 and all(len(corner) == 3 for corner in box), "dataset.box", "[[x, y, z], [x, y, z]]", box)
        _require(all(a < b for a, b in zip(*box)), "dataset.box", "min below max on every axis", box)
    if isinstance(config.dataset.background, list):
        colour = config.dataset.background
        _require(len(colour) == 3 and all(0 <= c <= 255 for c in colour), "dataset.background", "[r, g, b] in 0..255", colour)
    if isinstance(config.dataset.cameras, str):
        _require(config.dataset.cameras == "all", "dataset.cameras", "all | N | [names]", config.dataset.cameras)


SECTION_DOC = {
    "frames": "Which frames of the capture to use.",
    "synthetic": "The built-in capture (capture: synthetic).",
    "dataset": "Stage 1: cameras, masks, box, canonical frame.",
    "canonical": "Stage 2: the neural SDF of the canonical frame and its surface.",
    "graph": "Stage 3: the embedded deformation graph.",
    "observation": "Stage 4: evidence of the live surface, per frame.",
    "registration": "Stage 5: the graph's motion.",
    "field": "Stage 6: the residual field, per window of frames.",
    "mesh": "Stage 7: the animated mesh and its exports.",
    "report": "Stage 8: pictures, videos, metrics.",
    "runtime": "How to run, never what to compute: nothing here re-runs a stage.",
}


def _yaml_lines(values: Any, indent: str) -> list[str]:
    """One `key: value  # reason` per plain key of a config or section."""
    hints = typing.get_type_hints(type(values))
    lines = []
    for item in dataclasses.fields(values):
        value, doc = getattr(values, item.name), item.metadata.get("doc")
        if dataclasses.is_dataclass(value):
            continue
        if typing.get_origin(hints[item.name]) is Literal and "|" not in doc:
            doc += f" ({_describe(hints[item.name])})"
        text = yaml.safe_dump(value, default_flow_style=True, width=10**6, sort_keys=False).removesuffix("...\n").strip()
        lines.append(f"{indent}{item.name}: {text}  # {doc}\n")
    return lines


def to_yaml(config: Config, commented: tuple[str, ...] = ()) -> str:
    """Every key of a config with its reason, as YAML that `load` reads back; the keys of sections in `commented` are written as comments."""
    lines = _yaml_lines(config, "")
    for item in dataclasses.fields(config):
        if item.name in SECTION_DOC:
            indent = "  # " if item.name in commented else "  "
            lines += [f"\n# {SECTION_DOC[item.name]}\n{item.name}:\n", *_yaml_lines(getattr(config, item.name), indent)]
    return "".join(lines)


def template() -> str:
    """The text of `config/config.yaml`: every key at its default; those of synthetic and the stages as comments, so that presets take effect."""
    head = (
        "# Every key, at its default. Written by `instant-nk config --template`; the schema is instant_nk/config.py.\n"
        "# A key behind '#' takes its value from the quality preset: remove the '#' to set it yourself. `instant-nk config --preset fast` prints a preset in full.\n"
        "# Own runs: leave this file alone and give `--config capture=PATH sequence=NAME`, or a file of your own with `--configfile my.yaml`.\n\n"
    )
    return head + to_yaml(Config(), commented=tuple(name for name in SECTION_DOC if name not in ("frames", "runtime")))
