"""Size and writing time of every export of one long animation: the built-in body walking, with noise so that nothing compresses too well.

usage: python -m benchmarks.export_sizes [--voxel 0.0169] [--frames 100] [--keep FOLDER]

The default voxel gives about 20,000 vertices. Vertex colours; a texture adds its PNG. Formats whose package is not installed are left out, and said.
"""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from instant_nk.io import artifact, synthetic
from instant_nk.io import mesh as mesh_io
from instant_nk.io.export import glb, obj, pc2, ply, skinned, usd
from instant_nk.io.mesh import Animation
from instant_nk.models import deformation_graph
from instant_nk.viewer.player import player_html

NOISE = 1e-4  # of the box, frame to frame
FPS = 25.0


def walking(voxel: float, frames: int) -> Animation:
    """The built-in body over `frames` frames, a tenth of its own step apart."""
    body = synthetic.make_body(voxel)
    clip = np.stack([body.posed(0.1 * frame) for frame in range(frames)])
    clip += np.random.default_rng(0).normal(scale=NOISE * np.ptp(clip, (0, 1)).max(), size=clip.shape)
    shape = clip.shape[:2]
    small = np.full(shape, 1e-4, np.float32)
    return Animation(
        np.arange(frames, dtype=np.int32), clip.astype(np.float32), body.faces.astype(np.int32), body.colours.astype(np.float32), small, small.copy(),
        np.full(shape, 8, np.int32),
    )  # fmt: skip


def size(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--voxel", type=float, default=0.0169, help="edge of the cells the body's surface is taken from, in units of half its height")
    parser.add_argument("--frames", type=int, default=100)
    parser.add_argument("--keep", type=Path, help="folder to write to; default: a temporary one")
    options = parser.parse_args()
    animation = walking(options.voxel, options.frames)
    rest, faces = animation.vertices[0], animation.faces
    graph = deformation_graph.build(rest, faces, max_nodes=400, anchors=6)
    header = artifact.make_header("animation", mesh_io.ANIMATION_FORMAT, "mesh")
    writers: dict[str, Callable[[Path], object]] = {
        "npz": lambda folder: mesh_io.save_animation(folder / "animation.npz", animation, header),
        "ply": lambda folder: ply.export_ply_sequence(animation, folder / "frames"),
        "glb": lambda folder: glb.export_glb(animation, folder / "animation.glb", FPS),
        "skinned glb": lambda folder: skinned.export_skinned_glb(animation, folder / "skinned.glb", FPS, graph, rest, np.eye(4), None),
        "usd": lambda folder: usd.export_usd(animation, folder / "animation.usdc", FPS),
        "obj": lambda folder: obj.export_obj_sequence(animation, folder / "obj"),
        "pc2": lambda folder: pc2.export_pc2(animation, folder / "animation.pc2", FPS),
        "player": lambda folder: (folder / "player.html").write_text(player_html(animation, fps=FPS), encoding="utf-8"),
    }
    print(f"{animation.vertices.shape[1]} vertices, {len(faces)} faces, {options.frames} frames")
    with tempfile.TemporaryDirectory() as temporary:
        for name, write in writers.items():
            if name == "usd" and importlib.util.find_spec("pxr") is None:
                print("usd          usd-core is not installed")
                continue
            folder = (options.keep or Path(temporary)) / name.replace(" ", "_")
            folder.mkdir(parents=True, exist_ok=True)
            start = time.perf_counter()
            write(folder)
            print(f"{name:12s} {size(folder) / 1e6:8.1f} MB {time.perf_counter() - start:8.1f} s", flush=True)


if __name__ == "__main__":
    main()
