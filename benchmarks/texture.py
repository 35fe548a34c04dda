"""Bake a sequence's texture again and compare it, in the held-out cameras, with the vertex colours.

usage: python -m benchmarks.texture RESULTS [--device cuda] [--size 2048] [--views 150] [--passes 1,2,3]

RESULTS is the folder of one sequence with its dataset and mesh stages, e.g. results/demo. Where xatlas is not installed, the charts of
the texture.npz that lies there are used. Prints, for every number of passes, seconds per view of cold and warm baking, the peak memory,
and the PSNR of all held-out views on white with vertex colours and with the texture.
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from pathlib import Path

import numpy as np
import torch

from instant_nk.fitting import texture as baking
from instant_nk.geometry import evaluation
from instant_nk.geometry.texture import Texture
from instant_nk.io import dataset as dataset_io
from instant_nk.io import mesh as mesh_io
from instant_nk.io.dataset import Dataset
from instant_nk.io.mesh import Animation
from instant_nk.layout import Paths
from instant_nk.viewer import pictures
from instant_nk.viewer.mesh_renderer import MeshRenderer


def heldout_psnr(dataset: Dataset, animation: Animation, texture: Texture | None, device: str) -> float:
    """Mean PSNR over all held-out views that have a picture, on white, dB."""
    renderer, scores, rig = MeshRenderer(animation, device, texture=texture), [], dataset.heldout
    for frame in animation.frames.tolist():
        for camera in range(len(rig)):
            given = dataset.heldout_image(camera, frame)
            if given is not None:
                layers = renderer.render(rig.c2w[camera], rig.K[camera], (int(rig.sizes[camera][0]), int(rig.sizes[camera][1])), frame)
                scores.append(evaluation.psnr(evaluation.on_white(pictures.to_rgba(layers) / 255), evaluation.on_white(given / 255)))
    if not scores:
        raise SystemExit("the capture has no held-out pictures to compare with")
    return float(np.mean(scores))


def seconds_of(work, device: str) -> tuple[float, object]:
    """Wall time of a call and its result, with the GPU's work included."""
    start = time.perf_counter()
    result = work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--size", type=int, default=2048)
    parser.add_argument("--views", type=int, default=150)
    parser.add_argument("--passes", default="1,2,3")
    args = parser.parse_args()
    paths = Paths(args.results)
    dataset, animation, rest = dataset_io.load(paths.manifest), mesh_io.load_animation(paths.animation), mesh_io.load(paths.canonical_mesh).vertices
    if importlib.util.find_spec("xatlas") is not None:
        cut_s, charts = seconds_of(lambda: baking.unwrap(rest, animation.faces, args.size), args.device)
    else:
        found = mesh_io.load_texture(paths.texture)
        cut_s, charts = float("nan"), (found.uv, found.vertex_of, found.faces)
    where = torch.cuda.get_device_name() if args.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    views = min(args.views, len(animation.frames) * len(dataset.cameras))
    print(f"{where}: {animation.vertices.shape[1]} vertices, {len(charts[0])} in the charts (cut in {cut_s:.1f} s), texture {args.size}, {views} views")
    plain = heldout_psnr(dataset, animation, None, args.device)
    for passes in map(int, args.passes.split(",")):
        options = {"passes": passes, "max_views": args.views, "device": args.device, "rest": rest, "charts": charts}
        cold_s, _ = seconds_of(lambda options=options: baking.bake(animation, dataset, args.size, **options), args.device)
        if args.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        warm_s, (texture, numbers) = seconds_of(lambda options=options: baking.bake(animation, dataset, args.size, **options), args.device)
        peak = f" peak_gpu_mib={torch.cuda.max_memory_allocated() / 2**20:.0f}" if args.device == "cuda" else ""
        textured = heldout_psnr(dataset, animation, texture, args.device)
        print(
            f"passes={passes} cold_s={cold_s:.2f} warm_s={warm_s:.2f} ms_per_view={1000 * warm_s / (views * passes):.1f}{peak} seen_share={numbers['seen_share']:.3f} "
            f"vertex_colours_db={plain:.2f} texture_db={textured:.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
