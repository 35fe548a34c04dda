"""Stage 3: the nodes of the embedded deformation graph, and how they hold the canonical mesh."""

from __future__ import annotations

import logging

import numpy as np

from instant_nk import log
from instant_nk.errors import DataError
from instant_nk.geometry.spaces import transform_points
from instant_nk.io import artifact, dataset, ed_folder, graph, mesh
from instant_nk.layout import Job
from instant_nk.models import deformation_graph

logger = logging.getLogger(__name__)


def run(job: Job) -> None:
    """Build the graph on the canonical mesh: on nodes of our own, or on those of an ED folder."""
    watch = log.measure()
    config = job.config.graph
    canonical = mesh.load(job.paths.canonical_mesh)
    if job.config.registration.source == "ed_folder":
        scene_from_world = dataset.load(job.paths.manifest).scene_from_world
        nodes = transform_points(scene_from_world, ed_folder.load_nodes(job.config.registration.folder))
        result = deformation_graph.on_nodes(canonical.vertices, canonical.faces, nodes, config.anchors, config.neighbours)
        check_nodes(job.config.registration.folder, canonical.vertices, result)
    else:
        spacing = None if config.node_spacing is None else 2.0 * config.node_spacing  # the box's longest edge is 2 in scene units
        result = deformation_graph.build(canonical.vertices, canonical.faces, spacing, config.max_nodes, config.anchors, config.neighbours)
    inputs = {"mesh": artifact.file_hash(job.paths.canonical_mesh)}
    graph.save_nodes(job.paths.graph_dir / "nodes.ply", result)
    metrics = _metrics(result)
    artifact.save_json(job.paths.graph_dir / "graph.json", metrics | watch.numbers())
    graph.save(job.paths.graph, result, artifact.make_header("graph", graph.FORMAT, "graph", config, inputs))
    logger.info("graph %s", log.fields(**metrics))


def check_nodes(folder: str, vertices: np.ndarray, nodes: graph.Graph) -> None:
    """Refuse an external tracker's nodes that are not where the canonical surface is.

    Raises:
        DataError: says how far they are, and where both lie.
    """
    from scipy.spatial import cKDTree

    away = float(np.median(cKDTree(vertices).query(nodes.node_positions)[0]))
    if away > nodes.spacing:
        spans = [np.stack([points.min(0), points.max(0)]).round(3).tolist() for points in (nodes.node_positions, vertices)]
        raise DataError(
            f"registration.folder: {folder}/node.txt: the nodes are {away / nodes.spacing:.1f} of their spacing from the canonical surface (median). In scene units they span {spans[0]}, "
            f"the surface {spans[1]}. They must be in the capture's world coordinates and unit, as at dataset.canonical_frame."
        )


def _metrics(result: graph.Graph) -> dict[str, float]:
    distance = np.linalg.norm(result.node_positions[result.edges[:, 0]] - result.node_positions[result.edges[:, 1]], axis=1)
    return {
        "nodes": len(result.node_positions),
        "edges": len(result.edges),
        "spacing_scene": result.spacing,
        "radius_median_scene": float(np.median(result.node_radii)),
        "edge_length_median_scene": float(np.median(distance)) if len(distance) else 0.0,
        "anchors_in_use_mean": float((result.vertex_weights > 0).sum(1).mean()),
    }
