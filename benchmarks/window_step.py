"""Time one training step of the window field, whole and part by part, against the floor of bytes and operations.

    python -m benchmarks.window_step                     # on a GPU: 2^20 samples, sizes of the `fast` preset
    python -m benchmarks.window_step --mixed             # with the colour and residual networks' products in bfloat16
    python -m benchmarks.window_step --device cpu --samples 12 --small

Two steps are timed. *as trained* is the trainer's own step at that many marched samples, on a GPU replayed from its recording: most are dropped before the
networks see them. *full chain* sends all samples through inverse warp, 4-D residual, SDF with normals, colour, compositing, losses, backward and
optimiser, launched one by one and, as training does, replayed from a recording; the parts are those of the full chain, launched, each
with its inputs held and the gradients it owes in training: the small ones show how fast the host is. The floor of a part
is the larger of its time on the wires (inputs read and outputs written once forward; gradients of the outputs and inputs read, gradients of the inputs written
backward; gathers from tables come from the L2 and are not counted) and of its multiplications at the rate of single precision without tensor cores.
No files and no capture are needed: the body is a bending capsule. Rows are appended to benchmarks/results.csv.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.kernels import RESULTS, Table
from instant_nk import config as schema
from instant_nk.fitting import window_files
from instant_nk.fitting.ray_samples import Room, Samples
from instant_nk.fitting.rays import Batch
from instant_nk.fitting.trainer import How, mixed_precision
from instant_nk.fitting.window_files import CanonicalField
from instant_nk.fitting.window_fit import WindowFit
from instant_nk.kernels import _backend, live_gradient, ray_loss
from instant_nk.kernels.hash_encoding import HashSpec
from instant_nk.kernels.neus_opacity import opacities
from instant_nk.models import deformation_graph
from instant_nk.models.colour_field import ColourField
from instant_nk.models.occupancy import cell_centres
from instant_nk.models.renderer import composite
from instant_nk.models.residual_field import ResidualField
from instant_nk.models.sdf_field import SdfField, hull_distance
from instant_nk.models.warp import NodeMotion, Skeleton, to_canonical
from instant_nk.models.window_field import WindowField

COPY_RATE = 4.1e12  # bytes per second an H200 moves in a copy
MULTIPLY_RATE = 60e12  # operations per second of an H200 in single precision, without tensor cores
RADIUS, HALF = 0.2, 0.45  # of the capsule along y
INV_STD = 300.0


def capsule(points: Tensor) -> Tensor:
    """Signed distance [N] to the body."""
    axis = torch.zeros_like(points)
    axis[:, 1] = points[:, 1].clamp(-HALF, HALF)
    return torch.linalg.vector_norm(points - axis, dim=1) - RADIUS


def capsule_mesh(around: int) -> tuple[np.ndarray, np.ndarray]:
    """Vertices [V, 3] and outward faces of the body, `around` vertices around it and twice as many rings."""
    third = 2 * around // 3
    cap = (np.arange(third) + 1) / third * np.pi / 2
    radius = RADIUS * np.concatenate([np.sin(cap), np.ones(third), np.sin(cap[::-1])])
    y = np.concatenate([-HALF - RADIUS * np.cos(cap), HALF * np.linspace(-1, 1, third + 2)[1:-1], HALF + RADIUS * np.cos(cap[::-1])])
    rings, turn = len(y), np.arange(around) / around * 2 * np.pi
    rows = np.stack([radius[:, None] * np.cos(turn), np.broadcast_to(y[:, None], (rings, around)), radius[:, None] * np.sin(turn)], -1)
    vertices = np.concatenate([rows.reshape(-1, 3), [[0, -HALF - RADIUS, 0], [0, HALF + RADIUS, 0]]])
    i, j = np.meshgrid(np.arange(rings - 1), np.arange(around), indexing="ij")
    a, b = i * around + j, i * around + (j + 1) % around
    sides = np.concatenate([np.stack([a, a + around, b], -1), np.stack([b, a + around, b + around], -1)]).reshape(-1, 3)
    k, south = np.arange(around), rings * around
    top = (rings - 1) * around
    caps = np.concatenate(
        [np.stack([np.full_like(k, south), k, (k + 1) % around], 1), np.stack([np.full_like(k, south + 1), top + (k + 1) % around, top + k], 1)]
    )
    return vertices, np.concatenate([sides, caps])


def bending(nodes: np.ndarray, frames: int) -> tuple[np.ndarray, np.ndarray]:
    """The nodes turned about z by an angle that grows with y and time: rotations [F, M, 3, 3], translations [F, M, 3]."""
    angle = np.linspace(0, 0.8, frames)[:, None] * nodes[None, :, 1]
    c, s, zero = np.cos(angle), np.sin(angle), np.zeros_like(angle)
    rotations = np.stack([c, -s, zero, s, c, zero, zero, zero, zero + 1], -1).reshape(frames, -1, 3, 3)
    return rotations, np.einsum("fmij,mj->fmi", rotations, nodes) - nodes


@dataclass
class Sizes:
    """How large everything is: the `fast` preset's, or small enough for a CPU in a test."""

    config: schema.Config
    around: int
    cameras: int = 24


def sizes_of(small: bool) -> Sizes:
    return Sizes(schema.parse({"preset": "tiny"}), 24) if small else Sizes(schema.parse({"preset": "fast"}), 122)


def make_field(sizes: Sizes, device: str) -> tuple[WindowField, int]:
    """A fresh window over the body, and the live grid's resolution."""
    c, f = sizes.config.canonical, sizes.config.field
    vertices, faces = capsule_mesh(sizes.around)
    graph = deformation_graph.build(vertices, faces, max_nodes=sizes.config.graph.max_nodes, anchors=sizes.config.graph.anchors)
    tensors = {name: torch.from_numpy(getattr(graph, name)).float() for name in ("node_positions", "node_radii", "edge_weights")}
    skeleton = Skeleton(
        tensors["node_positions"].to(device), tensors["node_radii"].to(device), torch.from_numpy(graph.edges).long().to(device), tensors["edge_weights"].to(device),
        graph.spacing, torch.from_numpy(vertices).float().to(device), torch.from_numpy(graph.vertex_anchors).long().to(device),
    )  # fmt: skip
    spec = HashSpec.geometric(c.levels, c.features, c.log2_table_size, c.base_resolution, c.finest_resolution)
    sdf = SdfField(spec, c.hidden, 64)
    sdf.start_from(hull_distance((capsule(cell_centres(64)) < 0).reshape(64, 64, 64).numpy()))
    sdf, colour = sdf.to(device), ColourField(spec.width, c.hidden).to(device)
    residual = ResidualField(window_files.residual_spec(f, f.window_frames), window_files.RESIDUAL_HIDDEN, f.residual_bound * graph.spacing).to(device)
    resolution = c.occupancy_resolution
    occupied = (capsule(cell_centres(resolution)).abs() < 4 / resolution).reshape((resolution,) * 3).to(device)
    rotations, translations = (torch.from_numpy(a).float() for a in bending(graph.node_positions.astype(np.float64), f.window_frames))
    motion = NodeMotion(rotations, translations, torch.arange(f.window_frames) == 0).to(device)
    grid = CanonicalField(sdf, colour, INV_STD, occupied).grid()
    return WindowField(sdf, colour, residual, motion, skeleton, INV_STD, 0, grid), resolution


class Rays:
    """Pixels of a ring of cameras, most of which see the body: stands in for `PixelSource`."""

    def __init__(self, field: WindowField, space: Any, cameras: int):
        device = field.skeleton.vertices.device
        turn = torch.arange(cameras, device=device) * (2 * math.pi / cameras)
        self.eyes = 2.5 * torch.stack([torch.cos(turn), 0.2 * torch.sin(3 * turn), torch.sin(turn)], 1)
        self.live, self.device = space.live, device
        self.cameras = SimpleNamespace(K=self.eyes)
        self.waves = torch.tensor([1.1, 1.7, 2.3], device=device)

    def draw(self, rays: int, generator: torch.Generator) -> Tensor:
        return torch.randint(self.live[..., 0].numel() * len(self.eyes), (rays,), generator=generator, device=self.device)

    def batch(self, rows: Tensor) -> Batch:
        vertices = self.live.shape[1]
        frame, camera, vertex = rows // (vertices * len(self.eyes)), rows // vertices % len(self.eyes), rows % vertices
        target = self.live[frame, vertex] + 0.03 * torch.sin(rows[:, None] * self.waves)
        origins = self.eyes[camera]
        return Batch(origins, F.normalize(target - origins, dim=1), 0.5 + 0.4 * torch.sin(5 * target), torch.ones_like(target[:, 0]), frame, camera)


def find_samples(fit: WindowFit, rays: int, room: Room | None = None) -> tuple[Batch, Samples]:
    """March and drop, as the trainer does."""
    batch = fit.source.batch(fit.source.draw(rays, fit.generator))
    return batch, fit.find(batch, torch.rand(rays, generator=fit.generator, device=fit.device), room)


def gather_samples(fit: WindowFit, count: int) -> tuple[Batch, Samples]:
    """Kept samples of as many rays as are needed for `count` of them."""
    rays = 4096
    while True:
        batch, s = find_samples(fit, rays)
        if s.kept >= count:
            break
        rays = int(rays * max(1.2, 1.1 * count / max(s.kept, 1)))
    cut = {name: getattr(s, name)[:count] for name in ("ray", "row", "points", "directions", "frame", "middle", "lengths", "seed")}
    used = int(s.ray[count - 1]) + 1
    batch = Batch(*(getattr(batch, name)[:used] for name in ("origins", "directions", "rgb", "alpha", "frame", "camera")))
    return batch, Samples(**cut, rays=used, marched=s.marched, kept=count)


def teach(fit: WindowFit, batch: Batch, s: Samples) -> None:
    """The trainer's lesson, with every sample kept: loss and gradients."""
    fit.optimizer.clear()
    fit.lesson(s, batch, torch.ones_like(batch.rgb), {})


@dataclass
class Part:
    """One part of the full chain.

    Attributes:
        call: its outputs. owes: what training differentiates it in.
        reads, writes: floats per sample; operations: per sample, forward.
    """

    name: str
    call: Callable[[], tuple[Tensor, ...]]
    owes: list[Tensor]
    reads: float
    writes: float
    operations: float

    def floors(self, count: int) -> tuple[float, float]:
        """Milliseconds that forward, and forward with backward, take at least."""
        forward = 4 * count * (self.reads + self.writes) / COPY_RATE, count * self.operations / MULTIPLY_RATE
        both = 4 * count * (3 * self.reads + 2 * self.writes) / COPY_RATE, 3 * count * self.operations / MULTIPLY_RATE
        return 1e3 * max(forward), 1e3 * max(both)


def parts_of(fit: WindowFit, batch: Batch, s: Samples) -> list[Part]:
    """The parts of the chain with their inputs held."""
    field = fit.field

    def held(*values: Tensor) -> list[Tensor]:
        return [value.detach().clone().requires_grad_() for value in values]

    with torch.no_grad():
        motion = field.motion()
        canonical, jacobian, _ = to_canonical(fit.space, s.points, s.frame, s.seed, *motion)
        residual, stretch = field.residual.with_jacobian(canonical, field.tau(s.frame))
        surface = canonical + residual
        sdf, gradient, features = field.sdf.with_gradient(surface)
        rgb = field.colour(surface, F.normalize(gradient, dim=-1), s.directions, features)
    rotations, translations = held(*motion)
    canonical, surface, sdf, gradient, stretch, features, rgb = held(canonical, surface, sdf, gradient, stretch, features, rgb)
    earlier, tau = (s.frame - 1).clamp_min(0), field.tau(s.frame)
    of_residual, of_colour = list(field.residual.parameters()), list(field.colour.parameters())
    w4, h4, w3 = field.residual.encoding.width, window_files.RESIDUAL_HIDDEN, field.sdf.encoding.width
    h3, anchors = field.sdf.mlp.first.out_features, field.skeleton.anchors.shape[1]

    def colour() -> tuple[Tensor, ...]:
        carried, _ = live_gradient.carry(gradient, stretch, jacobian)
        return field.colour(surface, F.normalize(carried, dim=-1), s.directions, features), carried

    def see() -> tuple[Tensor, ...]:
        alpha, _, excess = opacities(sdf, gradient, s.directions, s.lengths, field.inv_std)
        seen = composite(alpha, rgb, torch.zeros_like(s.points), s.middle, s.ray, s.rays)
        colour_loss, mask_loss, _ = ray_loss.means(seen.rgb, seen.opacity, batch.rgb, batch.alpha, torch.ones_like(batch.rgb))
        return (colour_loss + mask_loss + excess.mean(),)

    layer = 2 * (4 + w4) * h4
    return [
        Part("motion and rigidity", lambda: (*(m := field.motion()), field.skeleton.rigidity(*m)), [field.motion.turn, field.motion.shift], 0, 0, 0),
        Part("inverse warp", lambda: to_canonical(fit.space, s.points, s.frame, s.seed, rotations, translations)[:1], [rotations, translations],
             7 + 2 * anchors, 12, 5 * anchors * 60),
        Part("residual with Jacobian", lambda: field.residual.with_jacobian(canonical, tau), [canonical, *of_residual],
             4, 12, 4 * layer + 6 * h4 + 18 * w4 + 16 * 8 * w4),
        Part("residual, earlier frame", lambda: (field.residual_at(canonical.detach(), earlier),), of_residual, 5, 3, layer + 6 * h4 + 16 * 2 * w4),
        Part("SDF with normals", lambda: field.sdf.with_gradient(surface), [surface], 3, 4 + w3, 4 * (3 + w3) * h3 + 6 * w3 + 8 * 8 * w3),
        Part("colour, live gradient", colour, [surface, gradient, stretch, features, *of_colour], 27 + w3, 6, 2 * ((9 + w3) * h3 + h3 * h3 + 3 * h3)),
        Part("compositing and losses", see, [sdf, gradient, rgb], 14, 0, 60),
    ]  # fmt: skip


def time_parts(table: Table, fit: WindowFit, batch: Batch, s: Samples, shape: str) -> list[tuple[str, float, float, float, float]]:
    """Name, forward ms, forward and backward ms, and both floors of every part."""
    rows = []
    for part in parts_of(fit, batch, s):
        outputs = [out for out in part.call() if out.requires_grad]
        cotangents = [torch.randn_like(out) for out in outputs]

        def learn(part: Part = part, cotangents: list[Tensor] = cotangents) -> Any:
            return torch.autograd.grad([out for out in part.call() if out.requires_grad], part.owes, cotangents, allow_unused=True)

        forward = table.add(f"window step: {part.name} fwd", "auto", shape, "float32", len(s.points), part.call)
        both = table.add(f"window step: {part.name} fwd+bwd", "auto", shape, "float32", len(s.points), learn)
        rows.append((part.name, forward, both, *part.floors(len(s.points))))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--samples", type=int, help="log2 of the number of samples; default 20 on a GPU, 12 on a CPU")
    parser.add_argument("--small", action="store_true", help="networks and grids of the `tiny` preset")
    parser.add_argument("--mixed", action="store_true", help="networks that allow it in bfloat16")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    log2 = options.samples or (20 if options.device == "cuda" else 12)
    torch.manual_seed(0)
    table = Table(options.device, options.results)
    measure_step(table, sizes_of(options.small), options.device, log2, options.mixed)


def measure_step(table: Table, sizes: Sizes, device: str, log2: int, mixed: bool = False) -> list[tuple[str, float, float, float, float]]:
    """Time the trainer's step, the full chain and its parts; prints a table and returns the parts' rows."""
    field, resolution = make_field(sizes, device)
    config = schema.parse(schema.merge(schema.to_dict(sizes.config), {"field": {"samples_per_step": 1 << log2, "steps": 10**6}})).field
    fit = WindowFit(
        config,
        field,
        Rays(field, field.live_space(resolution), sizes.cameras),
        resolution,
        device,
        0,
        "benchmark",
        How(recorded=device == "cuda" and _backend.describe(device) == "triton"),
    )
    shape = f"2^{log2} samples" + (" bf16" if mixed else "")
    with mixed_precision(fit.modules, mixed):
        for _ in range(12):  # until the rays march as many samples as are wanted
            fit.step()
        fit.followed = fit.done = 1  # the live grid is laid anew every FOLLOW_EVERY steps, which is not timed here
        _, found = find_samples(fit, fit.rays)
        if fit.how.recorded:  # with all of its samples counted and the recording made, a step is what it is between two looks at the numbers
            fit.step(), fit.step()
        whole = table.add("window step: as trained", "auto", shape, "float32", found.marched, fit.step)
        finding = table.add("window step: march and drop", "auto", shape, "float32", found.marched, lambda: find_samples(fit, fit.rays))
        batch, s = gather_samples(fit, 1 << log2)

        def descend() -> None:
            teach(fit, batch, s)
            fit.optimizer.step()

        chain = table.add("window step: full chain", "auto", shape, "float32", len(s.points), descend)
        replayed = table.add("window step: full chain replayed", "auto", shape, "float32", len(s.points), descend, replayed=True)
        rows = time_parts(table, fit, batch, s, shape)
        teach(fit, batch, s)
        optimiser = table.add("window step: optimiser", "auto", shape, "float32", len(s.points), fit.optimizer.step)
    learned = sum(parameter.numel() for parameter in fit.trained)
    print(f"\nas trained: {found.marched} samples marched on {fit.rays} rays, {found.kept} kept: {whole:.3f} ms, of which march and drop {finding:.3f} ms")
    print(f"full chain on {len(s.points)} samples of {s.rays} rays: {chain:.3f} ms launched, {replayed:.3f} ms replayed (target on an H200 at 2^20: 25 ms)\n")
    print(f"{'part':26s} {'fwd ms':>9s} {'floor':>8s} {'fwd+bwd':>9s} {'floor':>8s}")
    for name, forward, both, low, low_both in rows:
        print(f"{name:26s} {forward:9.3f} {low:8.3f} {both:9.3f} {low_both:8.3f}")
    low = 1e3 * 28 * learned / COPY_RATE  # reads weight, gradient and two moments, writes weight and moments
    print(f"{'optimiser':26s} {'':9s} {'':8s} {optimiser:9.3f} {low:8.3f}")
    print(
        f"{'sum of parts':26s} {sum(r[1] for r in rows):9.3f} {sum(r[3] for r in rows):8.3f} {sum(r[2] for r in rows) + optimiser:9.3f} {sum(r[4] for r in rows) + low:8.3f}"
    )
    return [*rows, ("optimiser", optimiser, optimiser, low, low)]


if __name__ == "__main__":
    main()
