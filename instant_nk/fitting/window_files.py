"""Build a window's field from the artifacts of earlier stages, and write and read the window's own artifact."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from instant_nk import layout
from instant_nk.config import FieldConfig
from instant_nk.errors import ContractError
from instant_nk.fitting.live_fit import Fineness
from instant_nk.fitting.meshing import sample_sdf
from instant_nk.geometry import surface
from instant_nk.io import artifact, checkpoint
from instant_nk.io import dataset as dataset_io
from instant_nk.io import graph as graph_io
from instant_nk.io import mesh as mesh_io
from instant_nk.io import motion as motion_io
from instant_nk.kernels.hash_encoding import HashSpec
from instant_nk.models.colour_field import ColourField
from instant_nk.models.live_field import LiveField
from instant_nk.models.residual_field import ResidualField
from instant_nk.models.rig_correction import FrameColour
from instant_nk.models.sdf_field import SdfField, Sharpness
from instant_nk.models.warp import NodeMotion, Skeleton
from instant_nk.models.window_field import WindowField

RESIDUAL_HIDDEN = 32
WIDEST = 1.5  # cells of the live grid between neighbouring vertices: each occupies two cells around it


@dataclass
class CanonicalField:
    """The canonical stage's networks."""

    sdf: SdfField
    colour: ColourField
    inv_std: float
    occupied: Tensor

    @property
    def occupancy_resolution(self) -> int:
        return self.occupied.shape[0]

    def grid(self) -> Tensor:
        """The SDF on a regular grid of twice the occupancy's resolution, exact near the surface, x fastest [R^3, 1]."""
        values = sample_sdf(self.sdf, self.occupied, 2 * self.occupancy_resolution)
        return torch.from_numpy(values.transpose(2, 1, 0).reshape(-1, 1)).to(self.occupied.device)


def load_canonical(paths: layout.Paths, device: str) -> CanonicalField:
    """Networks of `2_canonical/field.npz` on `device`."""
    state, _, description = checkpoint.load(paths.canonical_field, device)
    sdf, colour, sharpness = SdfField.build(description["sdf"]).to(device), ColourField.build(description["colour"]).to(device), Sharpness(1.0).to(device)
    for name, module in (("sdf", sdf), ("colour", colour), ("sharpness", sharpness)):
        module.load_state_dict({k.removeprefix(f"{name}."): v for k, v in state.items() if k.startswith(f"{name}.")})
    return CanonicalField(sdf, colour, float(sharpness().detach()), state["occupied"])


def load_skeleton(paths: layout.Paths, cells: int, device: str) -> Skeleton:
    """Graph and canonical mesh as the warp wants them.

    Args:
        cells: of the live grid along each axis.

    Raises:
        ContractError: the graph was built on another mesh.
    """
    graph, mesh = graph_io.load(paths.graph), mesh_io.load(paths.canonical_mesh)
    if len(graph.vertex_anchors) != len(mesh.vertices):
        raise ContractError(f"{paths.graph}: holds {len(graph.vertex_anchors)} vertices, the canonical mesh has {len(mesh.vertices)}. Re-run stage 'graph'.")
    vertices, _, origin = surface.refine(mesh.vertices, mesh.faces, WIDEST * 2 / cells)
    return Skeleton(
        torch.from_numpy(graph.node_positions).to(device),
        torch.from_numpy(graph.node_radii).to(device),
        torch.from_numpy(graph.edges).long().to(device),
        torch.from_numpy(graph.edge_weights).to(device),
        graph.spacing,
        torch.from_numpy(vertices.astype(np.float32)).to(device),
        torch.from_numpy(graph.vertex_anchors[origin]).long().to(device),
        len(mesh.vertices),
    )


def window_frames(dataset: dataset_io.Dataset, window: str) -> list[int]:
    return layout.select(list(dataset.frames), window)


def new_field(
    paths: layout.Paths, dataset: dataset_io.Dataset, window: str, spec: HashSpec, residual_bound: float, device: str, light: int = 0
) -> tuple[WindowField, CanonicalField]:
    """A fresh field of a window: canonical networks, registered motion, zero residual.

    Args:
        light: numbers per frame for colour that changes over time; 0: it does not.

    Raises:
        ContractError: graph, mesh and motion do not belong together, or the motion does not cover the window.
    """
    canonical = load_canonical(paths, device)
    skeleton = load_skeleton(paths, canonical.occupancy_resolution, device)
    motion, frames = motion_io.load(paths.motion), window_frames(dataset, window)
    if motion.rotations.shape[1] != len(skeleton.nodes):
        raise ContractError(f"{paths.motion}: moves {motion.rotations.shape[1]} nodes, the graph has {len(skeleton.nodes)}. Re-run stage 'registration'.")
    rows = [motion.index(f) for f in frames]
    fixed = torch.tensor([f == dataset.canonical_frame for f in frames])
    nodes = NodeMotion(torch.from_numpy(motion.rotations[rows]), torch.from_numpy(motion.translations[rows]), fixed).to(device)
    residual = ResidualField(spec, RESIDUAL_HIDDEN, residual_bound).to(device)
    index = frames.index(dataset.canonical_frame) if dataset.canonical_frame in frames else None
    lit = FrameColour(len(frames), light, canonical.colour.hidden).to(device) if light else None
    return WindowField(canonical.sdf, canonical.colour, residual, nodes, skeleton, canonical.inv_std, index, canonical.grid(), lit), canonical


def residual_spec(config: FieldConfig, frames: int) -> HashSpec:
    """The residual's 4-D grid: the time axis has few resolutions of its own, coarse levels share over the window."""
    times = tuple(max(1, round((frames - 1) * (level + 1) / config.levels)) for level in range(config.levels))
    return HashSpec.geometric(config.levels, config.features, config.log2_table_size, config.base_resolution, config.finest_resolution, times)


def inputs_of(paths: layout.Paths) -> dict[str, str]:
    """Content hashes of what a window is trained on, by name."""
    files = {"dataset": paths.manifest, "canonical": paths.canonical_field, "graph": paths.graph, "motion": paths.motion}
    return {name: artifact.file_hash(path) for name, path in files.items()}


def save(path: Path, field: WindowField, header: dict[str, Any]) -> None:
    """Write `6_field/{window}.npz`: residual, colour and refined motion."""
    state = {
        **{f"residual.{k}": v for k, v in field.residual.state_dict().items()},
        **{f"colour.{k}": v for k, v in field.colour.state_dict().items()},
        **{f"motion.{k}": v for k, v in field.motion.state_dict().items()},
    }
    light = 0
    if field.light:
        state |= {f"light.{k}": v for k, v in field.light.state_dict().items()}
        light = field.light.width
    checkpoint.save(path, state, header, {"residual": field.residual.describe(), "light": light})


def load(paths: layout.Paths, dataset: dataset_io.Dataset, window: str, device: str) -> tuple[WindowField, CanonicalField]:
    """The trained field of a window.

    Raises:
        ContractError: missing, truncated, or trained on other artifacts than those that are there now.
    """
    state, header, description = checkpoint.load(paths.field(window), device)
    if "residual" not in description:
        raise ContractError(f"{paths.field(window)}: {untracked(description['sdf']['mode'])} Set field.dyna_mode: deform and re-run stage 'field'.")
    now = inputs_of(paths)
    changed = [name for name, digest in now.items() if header["inputs"].get(name) != digest]
    if changed:
        raise ContractError(f"{paths.field(window)}: was trained on another {' and '.join(changed)} than the results hold now. Re-run stage 'field'.")
    saved = description["residual"]
    light = description["light"] if "light" in description else 0  # windows of earlier versions know none
    field, canonical = new_field(paths, dataset, window, HashSpec.from_json(saved["spec"]), saved["bound"], device, light)
    for name, module in (("residual", field.residual), ("colour", field.colour), ("motion", field.motion), ("light", field.light)):
        if module is None:
            continue
        module.load_state_dict({k.removeprefix(f"{name}."): v for k, v in state.items() if k.startswith(f"{name}.")})
    return field.requires_grad_(False), canonical


def untracked(mode: str) -> str:
    """The sentence that every stage says of a mode without tracking."""
    return f"field.dyna_mode '{mode}' knows no correspondence between frames: it yields a surface per frame and pictures, no tracked mesh."


def fineness_of(paths: layout.Paths) -> Fineness:
    """Layout of the canonical field: what a mode without a canonical surface is given as well."""
    state, _, description = checkpoint.load(paths.canonical_field)
    return Fineness(HashSpec.from_json(description["sdf"]["spec"]), description["sdf"]["hidden"], len(state["occupied"]))


def live_inputs_of(paths: layout.Paths) -> dict[str, str]:
    """Content hashes of what a window without a canonical surface is trained on, by name; of the canonical field it takes how fine that is."""
    return {"dataset": artifact.file_hash(paths.manifest), "canonical": artifact.file_hash(paths.canonical_field)}


def save_live(path: Path, field: LiveField, header: dict[str, Any]) -> None:
    """Write `6_field/{window}.npz` of a mode that does not track."""
    checkpoint.save(path, field.state_dict(), header, field.describe())


def open_window(paths: layout.Paths, dataset: dataset_io.Dataset, window: str, device: str, mode: str | None = None) -> tuple[WindowField | LiveField, int]:
    """The trained field of a window, whatever its mode, and cells per axis of its live grid.

    Args:
        mode: `field.dyna_mode` that it must have been trained with; None: any.

    Raises:
        ContractError: as `load`; or the window was trained with another mode.
    """
    state, header, description = checkpoint.load(paths.field(window), device)
    found = "deform" if "residual" in description else description["sdf"]["mode"]
    if mode is not None and found != mode:
        raise ContractError(f"{paths.field(window)}: was trained with field.dyna_mode '{found}', wanted '{mode}'. Re-run stage 'field'.")
    if found == "deform":
        field, canonical = load(paths, dataset, window, device)
        return field, canonical.occupancy_resolution
    if header["inputs"] != live_inputs_of(paths):
        raise ContractError(f"{paths.field(window)}: was trained on another dataset than the results hold now. Re-run stage 'field'.")
    field = LiveField.build(description).to(device)
    field.load_state_dict(state)
    return field.requires_grad_(False), description["cells"]


def deepest(windows: list[str], frame: int) -> str:
    """The window in which `frame` lies deepest."""

    def depth(window: str) -> int:
        first, last = layout.part_frames(window)
        return min(frame - first, last - frame)

    return max(windows, key=depth)


def windows_of(frames: np.ndarray | list[int], config: FieldConfig) -> list[str]:
    return layout.windows([int(f) for f in frames], config.window_frames, config.overlap)
