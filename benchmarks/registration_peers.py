"""Registration of the example pairs that other systems publish with their results, at default settings, beside those results.

usage: python benchmarks/registration_peers.py FOLDER [FOLDER …] [--set registration.iterations=30 …] [--json OUT]

FOLDER is a checkout of https://github.com/yaoyx689/spare (`data/test*`: source, target, our_res), https://github.com/yaoyx689/AMM_NRR (`data/d*`: source,
target, s2tres) or https://github.com/DeformableFriends/NeuralTracking (`example_data/train/seq*`: colour, depth, mask, scene flow). Nothing of
theirs is part of this repository. Reported, in the data's units, ours / theirs:

  index    mean and 95th percentile distance of each moved vertex to the target's vertex of the same number, where both have as many
  along    the part of it that slides along the target's surface; across: the part along its normal
  surface  mean distance of moved vertices to the target's surface (its points, where it has no faces)
  epe      mean distance of each masked pixel's moved point to where the annotated scene flow takes it; still: of not moving at all
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
from scipy.spatial import cKDTree

from instant_nk import config as schema
from instant_nk import log
from instant_nk.cli import overrides
from instant_nk.fitting.pair_registration import PairSettings, register_pair
from instant_nk.geometry.evaluation import ClosestPoint
from instant_nk.io import rgbd, surface_file
from instant_nk.io.surface_file import Surface
from instant_nk.stages import register

RESULTS = ("our_res.ply", "s2tres.obj")


def find(folder: Path, names: tuple[str, ...]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_file()), None)


def to_surface(points: np.ndarray, target: Surface) -> float:
    if target.faces is None:
        return float(cKDTree(target.points).query(points)[0].mean())
    return float(np.linalg.norm(ClosestPoint(target.points, target.faces).query(points)[0] - points, axis=1).mean())


def agreement(points: np.ndarray, target: Surface, indexed: bool) -> dict[str, float]:
    """Distances of moved vertices to the target."""
    numbers = {"surface": to_surface(points, target)}
    if indexed:
        difference = points - target.points
        distance = np.linalg.norm(difference, axis=1)
        across = np.abs((difference * target.normals).sum(1))
        numbers |= {"index": float(distance.mean()), "index_p95": float(np.percentile(distance, 95))}
        numbers |= {"along": float(np.sqrt(np.maximum(distance**2 - across**2, 0)).mean()), "across": float(across.mean())}
    return numbers


def published_pair(folder: Path, settings: PairSettings) -> dict:
    """A pair with the peer's result."""
    source, target = (surface_file.load(find(folder, (f"{name}.ply", f"{name}.obj"))) for name in ("source", "target"))
    theirs = surface_file.load(find(folder, RESULTS)).points
    indexed = len(source.points) == len(target.points)
    if indexed:  # as many vertices by chance are not the same ones
        indexed = np.linalg.norm(theirs - target.points, axis=1).mean() < 0.1 * np.linalg.norm(np.ptp(target.points, axis=0))
    start = time.perf_counter()
    fit = register_pair(source, target, settings)
    seconds = time.perf_counter() - start
    ours = agreement(fit.moved.points, target, indexed)
    return {"ours": ours, "theirs": agreement(theirs, target, indexed), "seconds": seconds, "converged": fit.converged, "vertices": len(source.points)}


def read_scene_flow(path: Path) -> np.ndarray:
    """Annotated displacement f32 [H, W, 3] in metres; not finite where unknown: int32 width, height, channels, then one plane per channel."""
    data = path.read_bytes()
    width, height, channels = np.frombuffer(data, "<i4", 3)
    return np.frombuffer(data, "<f4", offset=12).reshape(channels, height, width).transpose(1, 2, 0)


def annotated_frames(folder: Path, settings: PairSettings) -> dict:
    """A pair of depth frames with annotated scene flow."""
    flow_file = next((folder / "scene_flow").glob("*.sflow"))
    name, first, second = flow_file.stem.rsplit("_", 2)
    images = [str(folder / kind / f"{frame}.{suffix}") for frame in (first, second) for kind, suffix in (("color", "jpg"), ("depth", "png"))]
    source, target = register.from_rgbd(images, folder / "intrinsics.txt", [folder / "mask" / f"{first}_{name}.png"], 1000.0)
    pixels = rgbd.load(images[0], images[1], rgbd.read_intrinsics(folder / "intrinsics.txt"), folder / "mask" / f"{first}_{name}.png").pixels
    start = time.perf_counter()
    fit = register_pair(source, target, settings)
    seconds = time.perf_counter() - start
    flow = read_scene_flow(flow_file).reshape(-1, 3)[pixels].astype(np.float64)
    known = np.isfinite(flow).all(1)
    error = np.linalg.norm(fit.moved.points - source.points - flow, axis=1)[known]
    still = np.linalg.norm(flow[known], axis=1)
    ours = {"epe": float(error.mean()), "epe_median": float(np.median(error)), "epe_p95": float(np.percentile(error, 95)), "still": float(still.mean())}
    return {"ours": ours, "theirs": None, "seconds": seconds, "converged": fit.converged, "vertices": int(known.sum())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="+", type=Path)
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    log.setup("WARNING")
    config = schema.parse(overrides(args.set))
    results = {}
    for folder in sorted(p for root in args.folder for p in [root, *root.rglob("*")] if p.is_dir()):
        if find(folder, ("source.ply", "source.obj")) and find(folder, RESULTS):
            results[str(folder)] = published_pair(folder, register.settings_of(config))
        elif (folder / "scene_flow").is_dir():
            results[str(folder)] = annotated_frames(folder, register.settings_of(config, depth_camera=True))
        else:
            continue
        r = results[str(folder)]
        print(f"{folder}  {r['vertices']} vertices, {r['seconds']:.2f} s, converged {r['converged']}")
        for name, value in r["ours"].items():
            print(f"  {name:10s} {value:.5f}" + (f" / {r['theirs'][name]:.5f}" if r["theirs"] else ""), flush=True)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
