"""Time the registration of a pair of surfaces whose motion is known: whole, part by part, and as it grows.

    python -m benchmarks.registration                        # 500 nodes, then 125 … 4,000
    python -m benchmarks.registration --nodes 500 --device cuda

The built-in body is meshed twice, unlike, and bent by two frames of its motion: at 500 nodes a source of 7,000 vertices, a target of 8,000 and
6,000 points of either, other sizes in proportion. *pair* is `register_pair`, from two surfaces in memory to the moved one; *solver* is
that without the source's graph and the preparation of both, what another target of the same source costs; the parts follow. *cold* is the first call of
the process: compiled loops are loaded, or compiled where they never were. The error is the mean distance of the moved vertices to where they truly went, in % of the diagonal.
Rows are appended to benchmarks/results.csv.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.kernels import RESULTS, Table
from instant_nk import config as schema
from instant_nk.fitting import pair_registration as pairs
from instant_nk.fitting.correspondences import Target
from instant_nk.fitting.deformation_solver import DAMPING, Body, Pose, _normal_equations, _solve, edge_weights, has_triton, kernels, orthonormal, step
from instant_nk.fitting.pair_registration import PairFit, PairSettings
from instant_nk.fitting.registration import judge, match_closely, move_coarsely, register_from, surface_evidence
from instant_nk.fitting.rigid_alignment import aligned
from instant_nk.geometry import spaces
from instant_nk.io import synthetic
from instant_nk.io.surface_file import Surface
from instant_nk.stages import register

SIZES = (125, 250, 500, 1000, 2000, 4000)
MESH = 5.72  # vertices of the body at a voxel of one
ASKED = 1.09  # nodes asked for over nodes got: the covering ends a little early
FRAMES = 0.0, 2.0  # a node moves by 0.11 of the body's half height between them


@dataclass(frozen=True)
class Pair:
    """A source, a target, and where the source's vertices truly go."""

    source: Surface
    target: Surface
    truth: np.ndarray
    settings: PairSettings

    def error(self, fit: PairFit) -> float:
        """Mean distance to the truth, % of its diagonal."""
        return 100 * float(np.linalg.norm(fit.moved.points - self.truth, axis=1).mean() / np.linalg.norm(np.ptp(self.truth, axis=0)))


def make_pair(nodes: int) -> Pair:
    """A pair for about that many nodes: 14 vertices of the source, 16 of the target and 12 points of either per node."""
    bodies = [synthetic.make_body((MESH / (per_node * nodes)) ** 0.5) for per_node in (14, 16)]
    colours = [synthetic.albedo(torch.from_numpy(b.rest).float(), torch.from_numpy(b.colours).float()).numpy() for b in bodies]
    source, target = (Surface.of_mesh(b.posed(frame), b.faces, c) for b, frame, c in zip(bodies, FRAMES, colours))
    config = schema.parse({"graph.max_nodes": round(ASKED * nodes), "registration.max_points": 12 * nodes})
    return Pair(source, target, bodies[0].posed(FRAMES[1]), register.settings_of(config))


def timed(call: Callable[[], Any], device: str, repeats: int) -> tuple[list[float], Any]:
    """Milliseconds of each of some calls, one after the other, and what the last one returned."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = call()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - start))
    return times, result


def parts(pair: Pair, device: str, repeats: int) -> list[tuple[str, int, list[float]]]:
    """Name, how often in a pair, and milliseconds of each part; whole parts first, then those of an iteration on the fine graph."""
    source, settings, options = pair.source, pair.settings, pair.settings.options
    rows = []

    def measure(name: str, call: Callable[[], Any], times: int = 1) -> Any:
        call()
        found, result = timed(call, device, repeats)
        rows.append((name, times, found))
        return result

    with torch.no_grad():
        scene = spaces.similarity_from_box(np.stack([source.points.min(0), source.points.max(0)]))
        points, goal = (spaces.transform_points(scene, x.points) for x in (source, pair.target))
        graph = measure("graph", lambda: pairs._graph(source, points, settings, pairs.graph_device(device)))
        body = measure("points hung on the graph", lambda: Body.from_samples(graph, pairs._samples(source, points, True, settings.max_points, 0), device))

        def observe() -> Target:
            observed = pairs._observe(pair.target, goal, pairs._samples(pair.target, goal, True, settings.max_points, 0))
            return Target.from_observation(observed, settings.max_points, options.colour * body.spacing, options.normal * body.spacing, device)

        target, rest = measure("target prepared", observe), Pose.identity(body)
        measure("solver", lambda: register_from(body, [rest], target, options))
        placed = measure("rigid alignment", lambda: aligned(body, rest, target))
        moved = measure("coarse motion", lambda: move_coarsely(body, placed, target, options))
        close = options.iterations, options.rigidity_start, options.rigidity
        pose = measure("closest points", lambda: match_closely(body, moved, target, options, *close))
        fit = measure("judgement", lambda: judge(body, orthonormal(pose), target))
        measure("vertices moved", lambda: pairs._result(source, points, graph, body, target, fit, spaces.invert_similarity(scene)))
        weight = edge_weights(body, pose, options.rigidity, options.softening)
        evidence = measure("iteration: evidence", lambda: surface_evidence(body, pose, target, options, 0.5), options.iterations)
        if has_triton(body.points):
            blocks, rhs = measure("iteration: normal equations", lambda: kernels().normal_equations(body, pose, evidence, weight), options.iterations)
            from instant_nk.fitting.conjugate_gradients_triton import solve

            measure("iteration: conjugate gradients", lambda: solve(body, blocks, rhs, DAMPING), options.iterations)
        else:
            blocks, rhs = measure("iteration: normal equations", lambda: _normal_equations(body, pose, evidence, weight), options.iterations)
            blocks[body.pattern.diagonal] += 1e-9 * torch.eye(6, dtype=blocks.dtype, device=blocks.device)
            measure("iteration: factorisation", lambda: _solve(body, blocks, rhs), options.iterations)
        measure("iteration: all but the evidence", lambda: step(body, pose, evidence, weight), options.iterations)
    return rows


def measure_size(table: Table, nodes: int, device: str, repeats: int, cold: bool) -> float:
    """Record a size; returns the best pair's seconds."""
    pair = make_pair(nodes)
    first, fit = timed(lambda: pairs.register_pair(pair.source, pair.target, pair.settings, device), device, 1)
    shape = f"{fit.nodes} nodes {len(pair.source.points)}+{len(pair.target.points)} vertices"
    if cold:
        table.record("registration: cold pair", "auto", shape, "float64", fit.nodes, first)
    times, fit = timed(lambda: pairs.register_pair(pair.source, pair.target, pair.settings, device), device, repeats)
    table.record("registration: pair", "auto", shape, "float64", fit.nodes, times)
    for name, _, found in parts(pair, device, repeats):
        table.record(f"registration: {name}", "auto", shape, "float64", fit.nodes, found)
    print(f"{nodes} nodes asked for: error {pair.error(fit):.3f} % of the diagonal, converged {fit.converged}, best {min(times) / 1e3:.3f} s", flush=True)
    return min(times) / 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--nodes", help="sizes, e.g. 500,1000; the default is 500 and then all")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--csv", type=Path, default=RESULTS)
    options = parser.parse_args()
    table = Table(options.device, options.csv)
    sizes = [int(n) for n in options.nodes.split(",")] if options.nodes else [500, *SIZES]
    for i, nodes in enumerate(sizes):
        measure_size(table, nodes, options.device, options.repeats if nodes <= 1000 else min(options.repeats, 2), i == 0)


if __name__ == "__main__":
    main()
