"""Our motion in the form other trackers read and write: the ED folder."""

from __future__ import annotations

from pathlib import Path

from instant_nk.io import dataset, ed_folder, graph, motion
from instant_nk.layout import Paths


def export_ed(paths: Paths, output: Path) -> str:
    """Write a sequence's registered motion as `node.txt` and `accumAffine/Frame_%03d.txt`, world units.

    Returns:
        one line that says what was written.

    Raises:
        ContractError: the sequence has no graph or motion yet.
    """
    nodes, moved = graph.load(paths.graph), motion.load(paths.motion)
    world_from_scene = dataset.load(paths.manifest).world_from_scene
    frames = [int(frame) for frame in moved.frames]
    ed_folder.save(output, ed_folder.from_scene(nodes.node_positions, moved.rotations, moved.translations, frames, world_from_scene))
    return f"{output}: {len(nodes.node_positions)} nodes, frames {frames[0]} to {frames[-1]}"
