"""The graph artifact: nodes of the embedded deformation graph and how they hold the canonical mesh."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from instant_nk.errors import ContractError
from instant_nk.io import artifact

FORMAT = 1


@dataclass(frozen=True)
class Graph:
    """An embedded deformation graph in canonical scene space.

    Attributes:
        node_positions: f32 [M, 3].
        node_radii: radius of influence of each node, f32 [M]; a point farther away has weight zero.
        edges: pairs of neighbouring nodes i < j, i32 [E, 2].
        edge_weights: stiffness of each edge, f32 [E]; long-range edges of coarser levels are included.
        vertex_anchors: the K nodes that move each canonical vertex, i32 [V, K].
        vertex_weights: their weights, f32 [V, K], rows sum to 1.
    """

    node_positions: np.ndarray
    node_radii: np.ndarray
    edges: np.ndarray
    edge_weights: np.ndarray
    vertex_anchors: np.ndarray
    vertex_weights: np.ndarray

    @property
    def spacing(self) -> float:
        """Median distance between nearest nodes, scene units."""
        if len(self.node_positions) < 2:
            return float(self.node_radii[0])
        from scipy.spatial import cKDTree

        return float(np.median(cKDTree(self.node_positions).query(self.node_positions, k=2)[0][:, 1]))


def save(path: Path, graph: Graph, header: dict[str, Any]) -> None:
    artifact.save_npz(path, header, **vars(graph))


def load(path: Path) -> Graph:
    """Read and check a graph.

    Raises:
        ContractError: an array has another shape or type, an index is out of range, or weights do not sum to 1.
    """
    _, arrays = artifact.load_npz(path, "graph", FORMAT)
    try:
        graph = Graph(**arrays)
    except TypeError as error:
        raise ContractError(f"{path}: {error}. Re-run stage 'graph'.") from None
    m, (v, k) = len(graph.node_positions), graph.vertex_anchors.shape
    for name, shape, dtype in (
        ("node_positions", (m, 3), np.float32), ("node_radii", (m,), np.float32), ("edges", (None, 2), np.int32),
        ("edge_weights", (len(graph.edges),), np.float32), ("vertex_anchors", (v, k), np.int32), ("vertex_weights", (v, k), np.float32),
    ):  # fmt: skip
        artifact.check_array(path, name, arrays[name], shape, dtype)
    for name in ("vertex_anchors", "edges"):
        if arrays[name].size and (arrays[name].max() >= m or arrays[name].min() < 0):
            raise ContractError(f"{path}: '{name}' must be node indices 0 <= i < M={m}; got {arrays[name].min()}..{arrays[name].max()}. Re-run stage 'graph'.")
    if v and np.abs(graph.vertex_weights.sum(1) - 1).max() > 1e-4:
        raise ContractError(f"{path}: rows of 'vertex_weights' must sum to 1. Re-run stage 'graph'.")
    return graph


def save_nodes(path: Path, graph: Graph) -> None:
    """Write the nodes and edges as an ASCII PLY that mesh viewers open (scene units)."""
    lines = [
        "ply", "format ascii 1.0",
        f"element vertex {len(graph.node_positions)}", "property float x", "property float y", "property float z", "property float radius",
        f"element edge {len(graph.edges)}", "property int vertex1", "property int vertex2", "end_header",
    ]  # fmt: skip
    lines += [f"{x:.7g} {y:.7g} {z:.7g} {r:.7g}" for (x, y, z), r in zip(graph.node_positions, graph.node_radii)]
    lines += [f"{i} {j}" for i, j in graph.edges]
    with artifact.atomic(path) as aside:
        aside.write_text("\n".join(lines) + "\n")
