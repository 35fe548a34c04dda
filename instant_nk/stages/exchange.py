"""Our motion in the form other trackers read and write: the ED folder."""

from __future__ import annotations

from pathlib import Path

from instant_nk.io import dataset, ed_folder, ed_import, graph, motion
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


def import_ed(path: Path, output: Path, form: str | None = None, transform: Path | None = None) -> str:
    """Write another tracker's motion (`.warpfield` files, SVR-L0 rows) as an ED folder.

    Args:
        form: "warpfield" or "svr-l0"; None: found from the files.
        transform: file with a 4x4 similarity, the capture's world from the tracker's space; None: they are the same.

    Returns:
        lines that say what was written and how to use it.

    Raises:
        DataError: what is there is missing or unsound.
    """
    motion_read, remark = ed_import.load(path, form)
    if transform is not None:
        motion_read = ed_import.transformed(motion_read, ed_import.read_transform(transform))
    ed_folder.save(output, motion_read)
    frames = motion_read.frames
    said = f"{output}: {len(motion_read.node_positions)} nodes, {len(frames)} frames, {frames[0]} to {frames[-1]}"
    use = f"use it with --config registration='{{source: ed_folder, folder: {output}}}'"
    return "\n".join(line for line in (said, remark and f"note: {remark}", use) if line)
