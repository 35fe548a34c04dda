"""Time the kernels beside tiny-cuda-nn, the torch reference and the compiled reference: parity first, and no time on failure.

    python -m benchmarks.kernels                      # the table of docs/kernels.md on this machine
    python -m benchmarks.kernels --only hash --sizes 20
    python -m benchmarks.kernels --variants           # what was tried for the hash encoding, too

Rows are appended to benchmarks/results.csv: operation, backend, shape, dtype, milliseconds (20th, 50th, 80th percentile),
peak MiB above the inputs, bytes per item, GPU, torch, commit, date. On the CPU the sizes are small and wall time is measured.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import functools
import importlib.util
import math
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from instant_nk.geometry.neighbours import NearestPoints, nearest_by_tiles
from instant_nk.kernels import (
    _backend,
    blend_skinning,
    deep_network,
    field_network,
    hash_encoding,
    neus_opacity,
    ray_loss,
    ray_sampling,
    volume_rendering,
)
from instant_nk.kernels.hash_encoding import reference as hash_reference
from tests import parity

RESULTS = Path(__file__).parent / "results.csv"
COLUMNS = "operation backend shape dtype ms_p20 ms_p50 ms_p80 peak_mib bytes_per_item device torch commit date".split()
REPEATS = 30
OPERATIONS = ["hash", "reference", "rays", "skinning", "network", "neighbours"]


class Table:
    """Rows measured so far: printed as they come, appended to the CSV."""

    def __init__(self, device: str, path: Path):
        self.device, self.path = device, path
        self.name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent)
        self.commit = commit.stdout.strip() or "unknown"

    def add(self, operation: str, backend: str, shape: str, dtype: str, items: int, call: Callable[[], Any], replayed: bool = False) -> float:
        """Measure `call` and record it; returns the median in ms. Out of memory is a row too, without a time.

        Args:
            replayed: time replays of a recording, as training does: of many small launches one would only learn how fast the host is.
        """
        try:
            times, peak = measure(call, self.device, replayed)
        except torch.cuda.OutOfMemoryError:
            torch.cuda.empty_cache()
            times, peak = [math.nan] * REPEATS, math.nan
        return self.record(operation, backend, shape, dtype, items, times, peak)

    def record(self, operation: str, backend: str, shape: str, dtype: str, items: int, times: list[float], peak: float = math.nan) -> float:
        """Record milliseconds that were measured elsewhere; returns their median."""
        quantiles = [sorted(times)[min(len(times) - 1, int(q * len(times)))] for q in (0.2, 0.5, 0.8)]
        row = [operation, backend, shape, dtype, *(f"{q:.4f}" for q in quantiles), f"{peak:.1f}", f"{peak * 2**20 / max(items, 1):.0f}"]
        row += [self.name, torch.__version__, self.commit, datetime.date.today().isoformat()]
        new = not self.path.exists()
        with self.path.open("a", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerows([COLUMNS, row] if new else [row])
        print(
            f"{operation:34s} {backend:20s} {shape:22s} {dtype:8s} {quantiles[1]:9.4f} ms  [{quantiles[0]:.4f} {quantiles[2]:.4f}]  {row[8]:>6s} B/item",
            flush=True,
        )
        return quantiles[1]


def measure(call: Callable[[], Any], device: str, replayed: bool = False) -> tuple[list[float], float]:
    """Milliseconds of `REPEATS` runs after warm-up, and the peak MiB that one run allocates."""
    for _ in range(3):
        call()
    if device == "cpu":
        times = []
        for _ in range(REPEATS // 3):
            start = time.perf_counter()
            call()
            times.append(1e3 * (time.perf_counter() - start))
        return times, math.nan
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    peak = (torch.cuda.max_memory_allocated() - before) / 2**20
    if replayed:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="relaxed"):  # as `fitting.replay` does
            kept = call()  # noqa: F841  memory of the recording
        call = graph.replay
        call()
    pairs = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(REPEATS)]
    for start, end in pairs:
        start.record()
        call()
        end.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) for start, end in pairs], peak


def check_parity(device: str) -> None:
    """Every operation against float64, or an AssertionError."""
    worst: dict[str, float] = {}
    for size in (0, 1, 63, 3000):
        cases = {f"{dims}-D {name}": case for dims in (3, 4) for name, case in parity.hash_encoding_cases(size, dims).items()}
        cases |= parity.volume_rendering_cases(size, size // 20 + 1) | parity.blend_skinning_cases(size)
        cases |= (
            parity.field_network_cases(size)
            | parity.field_network_cases(size, 4, outputs=3)
            | parity.deep_network_cases(size)
            | parity.live_gradient_cases(size)
            | parity.neus_opacity_cases(size)
            | (parity.ray_loss_cases(size) if size else {})
        )
        for name, case in cases.items():
            worst[name] = max(worst.get(name, 0.0), *parity.check(case, device, "auto").values())
    print("parity with float64, worst relative error:", {name: f"{error:.0e}" for name, error in worst.items()}, flush=True)


def uniform_points(count: int, dims: int, device: str) -> Tensor:
    return torch.rand(count, dims, device=device)


def ray_points(count: int, dims: int, device: str, per_ray: int = 64) -> Tensor:
    """Samples along rays as training sees them: 64 steps of 2 sqrt(3) / 1024 of the box near a surface, random pixels, ray after ray."""
    rays = -(-count // per_ray)
    direction = torch.nn.functional.normalize(torch.randn(rays, 1, 3, device=device), dim=-1)
    centre = 0.5 + 0.3 * torch.nn.functional.normalize(torch.randn(rays, 1, 3, device=device), dim=-1)
    steps = (torch.arange(per_ray, device=device) - per_ray / 2)[None, :, None] * (math.sqrt(3) / 1024)
    x = (centre + direction * steps).reshape(-1, 3)[:count].clamp(0, 1)
    tau = torch.randint(0, 10, (rays, 1), device=device).expand(-1, per_ray).reshape(-1, 1)[:count] / 9
    return torch.cat([x, tau], 1) if dims == 4 else x


POINTS = {"uniform": uniform_points, "rays": ray_points}


def isotropic(dims: int) -> hash_encoding.HashSpec:
    """L=16, F=2, T=2^19, 16 -> 2048 on every axis: what the published numbers use."""
    spatial = [r[0] for r in hash_encoding.HashSpec.geometric(16, 2, 19, 16, 2048).resolutions]
    return hash_encoding.HashSpec(dims, 2, 19, tuple((r,) * dims for r in spatial))


def backwards(call: Callable[[], Tensor], inputs: list[Tensor]) -> Callable[[], Any]:
    """Forward and backward with a fixed cotangent."""
    cotangent = torch.randn_like(call())
    return lambda: torch.autograd.grad(call(), inputs, cotangent)


def time_hash(table: Table, sizes: list[int], device: str) -> None:
    for dims in (3, 4):
        spec = isotropic(dims)
        for size in sizes:
            for kind, points in POINTS.items():
                x = points(1 << size, dims, device)
                for dtype in (torch.float32, torch.float16) if device == "cuda" else (torch.float32,):
                    weights = (torch.rand(spec.table_rows, spec.features, device=device) - 0.5).to(dtype)
                    time_hash_case(table, x, weights, spec, f"2^{size} {dims}-D {kind}")
        if importlib.util.find_spec("tinycudann") and device == "cuda":
            time_tcnn(table, dims, sizes)


def time_hash_case(table: Table, x: Tensor, weights: Tensor, spec: hash_encoding.HashSpec, shape: str) -> None:
    backend, dtype = _backend.choose("hash_encoding", x, weights), str(weights.dtype).removeprefix("torch.")
    free, moving, learned = x, x.clone().requires_grad_(), weights.clone().requires_grad_()

    def twice() -> Any:
        y = hash_encoding.encode(moving, learned, spec)
        (slope,) = torch.autograd.grad(y, moving, direction, create_graph=True)
        return torch.autograd.grad((slope * slope).sum(), [learned, direction])

    direction = torch.randn(len(x), spec.width, device=x.device, requires_grad=True)
    table.add("hash forward", backend, shape, dtype, len(x), lambda: hash_encoding.encode(free, weights, spec))
    table.add("hash fwd+bwd table", backend, shape, dtype, len(x), backwards(lambda: hash_encoding.encode(free, learned, spec), [learned]))
    table.add("hash fwd+bwd table+x", backend, shape, dtype, len(x), backwards(lambda: hash_encoding.encode(moving, learned, spec), [learned, moving]))
    table.add("hash second order", backend, shape, dtype, len(x), twice)
    table.add("hash features+jacobian", backend, shape, dtype, len(x), lambda: hash_encoding.encode_with_jacobian(free, weights, spec))

    def jacobian_backward() -> Any:
        return torch.autograd.grad(hash_encoding.encode_with_jacobian(free, learned, spec), [learned], cotangents)

    cotangents = [torch.randn_like(out) for out in hash_encoding.encode_with_jacobian(free, weights, spec)]
    table.add("hash jacobian fwd+bwd table", backend, shape, dtype, len(x), jacobian_backward)


def time_hash_reference(table: Table, size: int, device: str, compiled: bool) -> None:
    """The torch reference, eager and compiled, forward and with the table's gradient by autograd through the gathers."""
    for dims in (3, 4):
        spec = isotropic(dims)
        x = uniform_points(1 << size, dims, device)
        learned = (torch.rand(spec.table_rows, spec.features, device=device) - 0.5).requires_grad_()

        def eager(x: Tensor = x, learned: Tensor = learned, spec: hash_encoding.HashSpec = spec) -> Tensor:
            return hash_reference.forward(x, learned, spec, spec.levels, False)[0]

        for name, function in ({"reference": eager} | ({"compiled reference": torch.compile(eager)} if compiled else {})).items():
            shape = f"2^{size} {dims}-D uniform"
            with torch.no_grad():
                table.add("hash forward", name, shape, "float32", len(x), function)
            table.add("hash fwd+bwd table", name, shape, "float32", len(x), backwards(function, [learned]))


def time_tcnn(table: Table, dims: int, sizes: list[int]) -> None:
    import tinycudann

    config = {"otype": "HashGrid", "n_levels": 16, "n_features_per_level": 2, "log2_hashmap_size": 19, "base_resolution": 16}
    encoding = tinycudann.Encoding(dims, config | {"per_level_scale": (2048 / 16) ** (1 / 15)})
    weights = [p for p in encoding.parameters() if p.requires_grad]
    for size in sizes:
        for kind, points in POINTS.items():
            x, shape = points(1 << size, dims, "cuda"), f"2^{size} {dims}-D {kind}"
            moving = x.clone().requires_grad_()
            with torch.no_grad():
                table.add("hash forward", "tcnn", shape, "float16", len(x), lambda x=x: encoding(x))
            table.add("hash fwd+bwd table", "tcnn", shape, "float16", len(x), backwards(lambda x=x: encoding(x), weights))
            table.add("hash fwd+bwd table+x", "tcnn", shape, "float16", len(x), backwards(lambda x=moving: encoding(x), [*weights, moving]))


def time_rays(table: Table, size: int, device: str) -> None:
    """Marching and compositing: 64 samples a ray on the average, a shell of occupied cells."""
    rays = (1 << size) // 64
    axis = (torch.arange(128, device=device) + 0.5) / 64 - 1
    radius = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij")).norm(dim=0)
    occupancy = (radius > 0.55) & (radius < 0.65)
    origins = 3 * torch.nn.functional.normalize(torch.randn(rays, 3, device=device), dim=1)
    directions = torch.nn.functional.normalize(0.3 * torch.randn(rays, 3, device=device) - origins, dim=1)
    arguments = origins, directions, occupancy, 2 * math.sqrt(3) / 1024, torch.rand(rays, device=device)
    for backend, choice in backends(device).items():
        with parity.backend(choice):
            ray_indices, t_starts, _ = ray_sampling.march(*arguments)
            samples = len(ray_indices)
            shape = f"{rays} rays {samples} samples"
            alphas = (0.1 * torch.rand(samples, device=device)).requires_grad_()
            colours = torch.rand(samples, 3, device=device, requires_grad=True)

            def composite(alphas: Tensor = alphas, colours: Tensor = colours, ray_indices: Tensor = ray_indices) -> Any:
                weights, _ = volume_rendering.render_weights(alphas, ray_indices, rays)
                colour = volume_rendering.accumulate(weights, colours, ray_indices, rays)
                return torch.autograd.grad(colour.square().sum() + weights.square().sum(), [alphas, colours])

            table.add("march", backend, shape, "float32", samples, lambda: ray_sampling.march(*arguments))
            table.add("composite fwd+bwd", backend, shape, "float32", samples, composite)
            sdf = (0.02 * torch.randn(samples, device=device)).requires_grad_()
            gradient = torch.randn(samples, 3, device=device, requires_grad=True)
            sharpness, lengths = torch.tensor(200.0, device=device, requires_grad=True), torch.full((samples,), 0.003, device=device)
            facing = directions[ray_indices]

            def opacity(sdf: Tensor = sdf, gradient: Tensor = gradient, sharpness: Tensor = sharpness, rest: Any = (facing, lengths)) -> Any:
                alpha, normals, excess = neus_opacity.opacities(sdf, gradient, rest[0], rest[1], sharpness)
                return torch.autograd.grad(alpha.sum() + normals.sum() + excess.sum(), [sdf, gradient, sharpness])

            rgb, cover = torch.rand(rays, 3, device=device, requires_grad=True), torch.rand(rays, device=device, requires_grad=True)
            seen = torch.rand(rays, 3, device=device), torch.rand(rays, device=device), torch.rand(rays, 3, device=device)

            def losses(rgb: Tensor = rgb, cover: Tensor = cover, seen: Any = seen) -> Any:
                colour, mask, _ = ray_loss.means(rgb, cover, *seen)
                return torch.autograd.grad(colour + mask, [rgb, cover])

            looking = functools.partial(volume_rendering.visible, sdf.detach(), ray_indices, rays, sharpness.detach(), 1e-3)
            table.add("visible samples", backend, shape, "float32", samples, looking, replayed=device == "cuda" and backend == "triton")
            table.add("NeuS opacity fwd+bwd", backend, shape, "float32", samples, opacity, replayed=device == "cuda")
            table.add("ray loss fwd+bwd", backend, shape, "float32", rays, losses, replayed=device == "cuda")


def time_skinning(table: Table, size: int, device: str) -> None:
    """300 nodes, 6 anchors, 8 frames; points in the order of rays."""
    points = (2 * ray_points(1 << size, 3, "cpu") - 1).float()
    inputs = parity.skinning_inputs(1, nodes=300, knn=6, frames=8)
    nodes = 0.6 * torch.nn.functional.normalize(torch.randn(300, 3), dim=1)
    anchors = torch.cat([torch.cdist(part, nodes).topk(6, largest=False).indices for part in points.split(1 << 16)])
    frames = torch.randint(0, 8, (len(points) // 64 + 1, 1)).expand(-1, 64).reshape(-1)[: len(points)]
    points, anchors, nodes, radii, frames = (t.to(device) for t in (points, anchors, nodes, torch.full((300,), 0.3), frames))
    motion = inputs["rotations"].to(device).requires_grad_(), inputs["translations"].to(device).requires_grad_()
    fixed = tuple(t.detach() for t in motion)
    shape = f"2^{size} points K=6"
    for backend, choice in backends(device).items():
        with parity.backend(choice):
            live, _ = blend_skinning.blend_with_jacobian(points, anchors, nodes, radii, *fixed, frames)
            guess = live + 0.01
            table.add(
                "blend with jacobian",
                backend,
                shape,
                "float32",
                len(points),
                lambda: blend_skinning.blend_with_jacobian(points, anchors, nodes, radii, *fixed, frames),
            )
            table.add(
                "inverse",
                backend,
                shape,
                "float32",
                len(points),
                lambda live=live, guess=guess: blend_skinning.inverse(live, guess, anchors, nodes, radii, *fixed, frames),
            )

            def learn(live: Tensor = live, guess: Tensor = guess) -> Any:
                canonical, _ = blend_skinning.inverse(live, guess, anchors, nodes, radii, *motion, frames)
                again, jacobian = blend_skinning.blend_with_jacobian(canonical, anchors, nodes, radii, *motion, frames)
                return torch.autograd.grad(canonical.square().sum() + again.square().sum() + jacobian.square().sum(), motion)

            table.add("inverse+jacobian fwd+bwd motion", backend, shape, "float32", len(points), learn)


def time_network(table: Table, size: int, device: str) -> None:
    """As the fields use it: one frozen output (the SDF of a window), three outputs that learn (its residual)."""
    for points, outputs, learns in ((3, 1, False), (3, 1, True), (4, 3, True)):
        case = parity.field_network_cases(1 << size, points, outputs=outputs)[f"network of {outputs} outputs"]
        inputs = [value.to(device).requires_grad_(i < 3 or learns) for i, value in enumerate(case.floats.values())]
        cotangents = [torch.randn(1 << size, *shape, device=device) for shape in ((outputs,), (outputs, 3))]
        wanted, plain = [value for value in inputs if value.requires_grad], inputs[:2] + inputs[3:]
        shape = f"2^{size} {points}+32-64-{outputs}{'' if learns else ' frozen'}"

        def forward(inputs: list[Tensor] = inputs) -> Any:
            with torch.no_grad():
                return field_network.network(*inputs)

        def both(inputs: list[Tensor] = inputs, wanted: list[Tensor] = wanted, cotangents: list[Tensor] = cotangents) -> Any:
            return torch.autograd.grad(field_network.network(*inputs), wanted, cotangents)

        for choice in ("auto", "reference") if device == "cuda" else ("auto",):
            with parity.backend(choice):
                backend = _backend.choose("field_network", *inputs)
                table.add("network fwd", backend, shape, "float32", 1 << size, forward)
                table.add("network fwd+bwd", backend, shape, "float32", 1 << size, both)
                if learns:
                    table.add("network values fwd+bwd", backend, shape, "float32", 1 << size, backwards(lambda: field_network.values(*plain), plain[1:]))  # noqa: B023


def time_deep_network(table: Table, size: int, device: str) -> None:
    """The colour network: all of it learns, and what it sees moves."""
    generator = torch.Generator(device).manual_seed(0)
    shapes = (1 << size, 9), (1 << size, 32), (64, 41), (64,), (64, 64), (64,), (3, 64), (3,)
    inputs = [0.3 * torch.randn(shape, generator=generator, device=device) for shape in shapes]
    learned = [value.clone().requires_grad_() for value in inputs]
    for choice in ("auto", "reference") if device == "cuda" else ("auto",):
        with parity.backend(choice):
            backend = _backend.choose("deep_network", *inputs)
            table.add("deep network fwd", backend, f"2^{size} 9+32-64-64-3", "float32", 1 << size, lambda: deep_network.network(*inputs))
            table.add(
                "deep network fwd+bwd", backend, f"2^{size} 9+32-64-64-3", "float32", 1 << size, backwards(lambda: deep_network.network(*learned), learned)
            )


def time_neighbours(table: Table, device: str) -> None:
    """Closest points as registration asks for them: surface points in three dimensions, and joined with scaled colour and normal in nine."""
    for dims, queries, references in ((3, 6000, 12000), (9, 12000, 12000), (9, 20000, 60000)) if device == "cuda" else ((3, 2000, 4000), (9, 2000, 4000)):
        points, reference = torch.randn(queries, dims), torch.randn(references, dims)
        points[:, :3], reference[:, :3] = (torch.nn.functional.normalize(t[:, :3], dim=1) for t in (points, reference))
        shape = f"{queries} x {references} {dims}-D"
        table.add("closest point", "tree on the CPU", shape, "float32", queries, lambda: NearestPoints(reference).query(points))  # noqa: B023  called at once
        near, far = points.to(device), reference.to(device)
        for k in (1, 7):
            table.add(f"closest {k} points", "tiles", shape, "float32", queries, lambda: nearest_by_tiles(near, far, k))  # noqa: B023


def backends(device: str) -> dict[str, str]:
    """What is compared, by the name of the backend that serves: how to select it."""
    return {_backend.choose("blend_skinning", torch.empty(0, device=device)): "auto", "reference": "reference"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--sizes", type=int, nargs="+", help="log2 of the number of points; default 18 20 21 on a GPU, 14 on a CPU")
    parser.add_argument("--only", choices=OPERATIONS, nargs="+", default=OPERATIONS)
    parser.add_argument("--variants", action="store_true", help="time what was tried for the hash encoding (benchmarks/hash_variants.py)")
    parser.add_argument("--compiled", action="store_true", help="time the compiled reference too; compiling takes minutes")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    device = options.device
    if options.variants and device != "cuda":
        parser.error("--variants needs a GPU: what was tried is Triton code")
    sizes = options.sizes or ([18, 20, 21] if device == "cuda" else [14])
    torch.manual_seed(0)
    check_parity(device)
    table = Table(device, options.results)
    middle = sizes[len(sizes) // 2]  # of the operations that are timed at one size
    if "hash" in options.only:
        time_hash(table, sizes, device)
    if "rays" in options.only:
        time_rays(table, middle, device)
    if "skinning" in options.only:
        time_skinning(table, middle, device)
    if "network" in options.only:
        time_network(table, middle, device)
        time_deep_network(table, middle, device)
    if "neighbours" in options.only:
        time_neighbours(table, device)
    if "reference" in options.only:
        time_hash_reference(table, middle, device, options.compiled)
    if options.variants:
        from benchmarks import hash_variants

        hash_variants.main(table)


if __name__ == "__main__":
    main()
