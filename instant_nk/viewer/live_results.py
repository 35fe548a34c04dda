"""What a sequence's folder holds right now, also while a run is writing it: the live viewer's model. Scene space throughout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from instant_nk.errors import ContractError, InstantNKError
from instant_nk.geometry import spaces, surface
from instant_nk.io import dataset as dataset_io
from instant_nk.io import graph as graph_io
from instant_nk.io import mesh as mesh_io
from instant_nk.io import motion as motion_io
from instant_nk.io import observation as observation_io
from instant_nk.layout import Paths

QUALITIES = ("sdf_residual", "cycle_error", "n_views")


class LiveResults:
    """Artifacts of one sequence, read when they appear or change.

    Attributes:
        dataset, canonical, graph, motion: None until their stage has written them (of the motion, the part found so far counts).
        animations: the joined animation, or else the windows that are done.
        problems: why an artifact could not be read, by its path.
    """

    def __init__(self, paths: Paths):
        self.paths = paths
        self.dataset: dataset_io.Dataset | None = None
        self.canonical: mesh_io.Mesh | None = None
        self.graph: graph_io.Graph | None = None
        self.motion: motion_io.Motion | None = None
        self.animations: list[mesh_io.Animation] = []
        self.problems: dict[Path, str] = {}
        self._stamps: dict[Path, int] = {}

    def scan(self) -> bool:
        """Read what is new since the last call.

        Returns:
            whether anything changed.

        Raises:
            ContractError: the folder has no dataset yet, so there is nothing to show.
        """
        p = self.paths
        if not p.manifest.is_file():
            raise ContractError(f"{p.root}: no results of a sequence here (1_dataset/dataset.json is missing). Give a folder such as results/demo.")
        changed = self._read("dataset", p.manifest, dataset_io.load)
        changed |= self._read("canonical", p.canonical_mesh, mesh_io.load)
        changed |= self._read("graph", p.graph, graph_io.load)
        changed |= self._read("motion", p.motion if p.motion.is_file() else p.registration / "motion.partial.npz", motion_io.load)
        changed |= self._read_animations()
        return changed | self._stamp_changed(p.observation_dir)

    def _stamp_changed(self, path: Path) -> bool:
        stamp = path.stat().st_mtime_ns if path.exists() else 0
        old, self._stamps[path] = self._stamps.get(path, 0), stamp
        return stamp != old

    def _read(self, name: str, path: Path, load: Any) -> bool:
        if not self._stamp_changed(path):
            return False
        setattr(self, name, self._try(path, load) if path.is_file() else None)
        return True

    def _try(self, path: Path, load: Any) -> Any:
        """The artifact, or None and a remark in `problems`."""
        self.problems.pop(path, None)
        try:
            return load(path)
        except InstantNKError as error:
            self.problems[path] = str(error)
            return None

    def _read_animations(self) -> bool:
        whole, windows = self.paths.animation, sorted((self.paths.mesh / "windows").glob("*.npz"))
        changed = [path for path in [whole, *windows] if self._stamp_changed(path)]
        if changed:
            found = [self._try(path, mesh_io.load_animation) for path in ([whole] if whole.is_file() else windows)]
            self.animations = [animation for animation in found if animation is not None]
        return bool(changed)

    @property
    def frames(self) -> tuple[int, ...]:
        return self.dataset.frames if self.dataset else ()

    def live(self, frame: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, str] | None:
        """The best that is known of a frame: vertices f32 [V, 3], faces, colours, and where it comes from; None before registration reaches it."""
        for animation in self.animations:
            row = np.flatnonzero(animation.frames == frame)
            if len(row):
                vertices = spaces.transform_points(self.dataset.scene_from_world, animation.vertices[row[0]]).astype(np.float32)
                return vertices, animation.faces, animation.colours, "mesh"
        nodes = self._motion_row(frame)
        if nodes is None or self.canonical is None or len(self.graph.vertex_anchors) != len(self.canonical.vertices):
            return None
        g, a, w, x = self.graph.node_positions, self.graph.vertex_anchors, self.graph.vertex_weights, self.canonical.vertices
        rotations, translations = self.motion.rotations[nodes], self.motion.translations[nodes]
        moved = np.einsum("vkij,vkj->vki", rotations[a], x[:, None] - g[a]) + g[a] + translations[a]
        return (moved * w[..., None]).sum(1).astype(np.float32), self.canonical.faces, self.canonical.colours, "registration"

    def _motion_row(self, frame: int) -> int | None:
        if self.motion is None or self.graph is None or self.motion.rotations.shape[1] != len(self.graph.node_positions):
            return None
        row = np.flatnonzero(self.motion.frames == frame)
        return int(row[0]) if len(row) else None

    def nodes(self, frame: int) -> np.ndarray | None:
        """Graph nodes at a frame, f32 [M, 3]; where they rest before registration reaches it; None without a graph."""
        if self.graph is None:
            return None
        row = self._motion_row(frame)
        return self.graph.node_positions + (0 if row is None else self.motion.translations[row])

    def quality(self, frame: int, name: str) -> np.ndarray | None:
        """`sdf_residual`, `cycle_error` (world units) or `n_views` per vertex at a frame, f32 [V]; None before the mesh stage."""
        for animation in self.animations:
            row = np.flatnonzero(animation.frames == frame)
            if len(row):
                return getattr(animation, name)[row[0]].astype(np.float32)
        return None

    def observation(self, frame: int) -> observation_io.Observation | None:
        path = self.paths.observation(frame)
        return observation_io.load(path) if path.is_file() else None

    def status(self) -> str:
        """Which stages have written results, and the last line of the newest log."""
        parts = {"canonical": self.canonical, "graph": self.graph, "registration": self.motion}
        done = [name for name, value in parts.items() if value is not None]
        observed = sum(self.paths.observation(f).is_file() for f in self.frames)
        carried = sum(any((a.frames == f).any() for a in self.animations) for f in self.frames)
        lines = [f"done: dataset {' '.join(done)}", f"observed frames: {observed} of {len(self.frames)}", f"meshed frames: {carried} of {len(self.frames)}"]
        if self.motion is not None:
            lines.append(f"registered frames: {len(self.motion.frames)} of {len(self.frames)}")
        logs = sorted(self.paths.logs.glob("*.log"), key=lambda path: path.stat().st_mtime)
        if logs:
            text = logs[-1].read_bytes()[-2000:].decode(errors="replace").strip().splitlines()
            lines.append(f"{logs[-1].stem}: {text[-1] if text else '(empty)'}")
        return "\n".join([*lines, *(f"problem: {text}" for text in self.problems.values())])


def heat(values: np.ndarray, top: float) -> np.ndarray:
    """Colours for values from 0 (blue) over green and yellow to `top` (red), f32 [V, 3]."""
    stops = np.array([[0.19, 0.27, 0.65], [0.2, 0.65, 0.55], [0.95, 0.9, 0.35], [0.8, 0.15, 0.1]])
    place = np.clip(values / max(top, 1e-30), 0, 1) * (len(stops) - 1)
    low = np.minimum(place.astype(int), len(stops) - 2)
    return (stops[low] + (place - low)[:, None] * (stops[low + 1] - stops[low])).astype(np.float32)


def shade(results: LiveResults, frame: int, vertices: np.ndarray, faces: np.ndarray, colours: np.ndarray, shading: str) -> np.ndarray:
    """Vertex colours in [0, 1] of a shading: `colour`, `clay`, `normals`, or one of QUALITIES; clay where a quality is not known yet."""
    if shading == "colour":
        return colours
    if shading == "normals":
        return (surface.vertex_normals(vertices, faces) * 0.5 + 0.5).astype(np.float32)
    values = results.quality(frame, shading) if shading in QUALITIES else None
    if values is None:
        return np.full((len(vertices), 3), 0.8, np.float32)
    top = float(len(results.dataset.cameras)) if shading == "n_views" else float(np.quantile(values, 0.99))
    return heat(values if shading != "n_views" else top - values, top)  # few views are bad: red
