"""One description of every kernel's inputs, used by the unit tests, the GPU tests and the benchmark: run it on a backend, compare with float64.

A case holds the public function and float32 inputs. The truth is the same public function on float64 CPU tensors, which
only the reference serves. Outputs and the gradient of every differentiable input are compared by name.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from instant_nk.kernels import (
    _backend,
    blend_skinning,
    deep_network,
    field_network,
    hash_encoding,
    live_gradient,
    neus_opacity,
    ray_loss,
    ray_sampling,
    volume_rendering,
)  # fmt: skip
from tests import tolerances


@dataclass
class Case:
    """A kernel call: `function(**floats, **others)`, differentiated in the inputs named in `wrt`."""

    function: Callable[..., Any]
    floats: dict[str, Tensor]
    wrt: tuple[str, ...]
    others: dict[str, Any] = field(default_factory=dict)
    tolerance: float = tolerances.GRADIENT
    second_order: bool = False  # differentiate |gradient by `wrt[0]`|^2 instead of the output


@contextlib.contextmanager
def backend(name: str) -> Iterator[None]:
    """Serve kernels by `name` inside the block."""
    before = _backend.selected()
    _backend.select(name)
    try:
        yield
    finally:
        _backend.select(before)


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """Memory from torch.empty and torch.empty_like comes full of NaN, so that an unwritten element shows."""

    def spoil(allocate: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def wrapped(*args: Any, **kwargs: Any) -> Tensor:
            out = allocate(*args, **kwargs)
            return out.fill_(float("nan")) if out.is_floating_point() else out.fill_(1) if out.dtype == torch.bool else out.fill_(-(2**30))

        return wrapped

    with mock.patch("torch.empty", spoil(torch.empty)), mock.patch("torch.empty_like", spoil(torch.empty_like)):
        yield


def run(case: Case, device: str, dtype: torch.dtype, strided: bool = False) -> dict[str, Tensor]:
    """Outputs and gradients by name, on the CPU in float64. `strided` passes every input as a non-contiguous view."""

    def place(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        value = value.to(device, dtype) if value.is_floating_point() else value.to(device)
        return torch.stack([value, value], -1)[..., 0] if strided and value.dim() else value.clone()

    floats = {name: place(value).requires_grad_(name in case.wrt) for name, value in case.floats.items()}
    outputs = case.function(**floats, **{name: place(value) for name, value in case.others.items()})
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    named = {f"output {i}": out for i, out in enumerate(outputs)}
    differentiable = [out for out in outputs if out.requires_grad]
    inputs = [floats[name] for name in case.wrt]
    total = sum((out * _cotangent(out)).sum() for out in differentiable)
    if case.second_order:
        (slope,) = torch.autograd.grad(total, inputs[0], create_graph=True)
        named["first gradient"] = slope
        total = (slope * slope).sum()
    gradients = torch.autograd.grad(total, inputs)
    named |= {f"gradient of {name}": gradient for name, gradient in zip(case.wrt, gradients, strict=True)}
    return {name: value.detach().cpu().double() for name, value in named.items()}


def _cotangent(out: Tensor) -> Tensor:
    """A fixed random direction of the output's shape."""
    return torch.randn(out.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64).to(out)


def errors(case: Case, device: str, backend_name: str, strided: bool = False) -> dict[str, float]:
    """|out - ref| / |ref| by name; infinite where anything is NaN."""
    truth = run(case, "cpu", torch.float64)
    with backend(backend_name), poisoned():
        found = run(case, device, torch.float32, strided)
    result = {}
    for name, value in truth.items():
        assert found[name].shape == value.shape, f"{name}: shape {list(found[name].shape)}, reference {list(value.shape)}"
        error = float((found[name] - value).norm() / value.norm().clamp(min=1e-30)) if value.numel() and value.norm() > 0 else float(found[name].abs().sum())
        result[name] = error if error == error else float("inf")
    return result


def check(case: Case, device: str, backend_name: str, strided: bool = False) -> dict[str, float]:
    """`errors`, asserted to lie under the case's tolerance."""
    found = errors(case, device, backend_name, strided)
    wrong = {name: f"{error:.1e}" for name, error in found.items() if not error <= case.tolerance}
    assert not wrong, f"{case.function.__module__}.{case.function.__name__}: relative error above {case.tolerance:.0e}: {wrong}"
    return found


def packed_rays(samples: int, rays: int, generator: torch.Generator) -> Tensor:
    """Sorted ray indices with empty rays at both ends and in between."""
    return torch.randint(0, max(rays, 1), (samples,), generator=generator).sort().values


def volume_rendering_cases(samples: int, rays: int, channels: int = 3) -> dict[str, Case]:
    generator = torch.Generator().manual_seed(samples)
    ray_indices = packed_rays(samples, rays, generator)
    alphas = torch.rand(samples, generator=generator)
    alphas[alphas > 0.95] = 1.0  # an opaque sample hides what is behind it, and its gradient must not divide by 0
    alphas[alphas < 0.05] = 0.0
    weights, values = torch.rand(samples, generator=generator), torch.randn(samples, channels, generator=generator)
    packed = {"ray_indices": ray_indices, "n_rays": rays}
    return {
        "render_weights": Case(volume_rendering.render_weights, {"alphas": alphas}, ("alphas",), packed),
        "accumulate": Case(volume_rendering.accumulate, {"weights": weights, "values": values}, ("weights", "values"), packed),
        "opacity": Case(volume_rendering.accumulate, {"weights": weights}, ("weights",), packed | {"values": None}),
    }


def visibility(samples: int, rays: int, device: str, backend_name: str) -> tuple[Tensor, Tensor, Tensor]:
    """What a backend and the float64 reference say can be seen, and where rounding may decide: weights near the bound, and beside those; bool [samples] each."""
    generator = torch.Generator().manual_seed(samples)
    ray_indices = packed_rays(samples, rays, generator)
    sdf, sharp, least = 0.05 * torch.randn(samples, generator=generator), torch.tensor(80.0), 1e-2

    def seen(bound: float) -> Tensor:
        return volume_rendering.visible(sdf.double(), ray_indices, rays, sharp.double(), bound)

    with backend(backend_name), poisoned():
        found = [volume_rendering.visible(sdf.to(device), ray_indices.to(device), rays, value, least).cpu() for value in (sharp.to(device), float(sharp))]
    assert torch.equal(*found)
    return found[0], seen(least), seen(least * 0.999) != seen(least * 1.001)


def marching(rays: int, device: str, backend_name: str) -> tuple[set, set, int]:
    """Samples (ray, eighth of a step) found by a backend, those of the reference, and how many may differ: midpoints on cell borders."""
    generator = torch.Generator().manual_seed(rays)
    origins = 2.5 * torch.nn.functional.normalize(torch.randn(rays, 3, generator=generator), dim=1)
    directions = torch.nn.functional.normalize(0.6 * torch.randn(rays, 3, generator=generator) - origins, dim=1)
    occupancy = torch.rand(2, 13, 13, 13, generator=generator) < 0.3
    step, near = 0.07, 0.1
    others = torch.rand(rays, generator=generator), near, torch.randint(0, 2, (rays,), generator=generator)
    truth = ray_sampling.reference.march(origins, directions, occupancy, step, *others)
    placed = [t.to(device) if isinstance(t, Tensor) else t for t in (origins, directions, occupancy, step, *others)]
    with backend(backend_name), poisoned():
        found = ray_sampling.march(*placed)
    sets = [{(ray, round(8 * t / step)) for ray, t in zip(rows.tolist(), t.tolist(), strict=True)} for rows, t, _ in (found, truth)]
    assert all(bool((rows.diff() >= 0).all()) for rows, _, _ in (found, truth)), "samples must be ray after ray"
    return *sets, int(tolerances.BORDER_CELLS * len(sets[1]))


def skinning_inputs(points: int, nodes: int = 40, knn: int = 4, frames: int = 3) -> dict[str, Tensor]:
    """A graph in [-1, 1]^3 under gentle motion; a few points lie out of every node's reach."""
    generator = torch.Generator().manual_seed(points)

    def uniform(*shape: int) -> Tensor:
        return 2 * torch.rand(shape, generator=generator) - 1

    node_positions, position = uniform(nodes, 3), 0.9 * uniform(points, 3)
    if points:
        position[::17] += 5.0
    anchors = torch.cdist(position, node_positions).topk(knn, largest=False).indices
    turn = torch.matrix_exp(torch.stack([0.15 * (a - a.T) for a in uniform(frames * nodes, 3, 3)]))
    return {
        "points": position,
        "anchors": anchors,
        "node_positions": node_positions,
        "node_radii": 0.7 + 0.2 * uniform(nodes),
        "rotations": turn.view(frames, nodes, 3, 3),
        "translations": 0.05 * uniform(frames, nodes, 3),
        "frame_index": torch.randint(0, frames, (points,), generator=generator),
    }


def _steady(inputs: dict[str, Tensor]) -> Tensor:
    """Points where the warp neither folds nor bends sharply: well inside some node's reach, or out of all."""
    away = (inputs["points"][:, None] - inputs["node_positions"][inputs["anchors"]]).norm(dim=2) / inputs["node_radii"][inputs["anchors"]]
    names = "points", "anchors", "node_positions", "node_radii", "rotations", "translations", "frame_index"
    _, jacobian = blend_skinning.reference.blend_with_jacobian(*(inputs[name].double() if inputs[name].is_floating_point() else inputs[name] for name in names))
    stretch = torch.linalg.svdvals(jacobian)
    return ((away.amin(1) < 0.8) | (away.amin(1) > 1.1)) & (stretch[:, 2] > 0.4) & (stretch[:, 0] < 2.5)


def blend_skinning_cases(points: int, knn: int = 4) -> dict[str, Case]:
    inputs = skinning_inputs(points, knn=knn)
    integers = {name: inputs[name] for name in ("anchors", "frame_index")}
    motion = {name: inputs[name] for name in ("points", "node_positions", "rotations", "translations")}
    weights = blend_skinning.skinning_weights(*(inputs[name] for name in ("points", "anchors", "node_positions", "node_radii")))
    live = blend_skinning.reference.blend(weights=weights, **motion, **integers)
    reached = motion | {"node_radii": inputs["node_radii"]}
    steady = _steady(inputs)  # elsewhere the gradient depends on the last digits of the point where Newton stopped
    here = {"anchors": inputs["anchors"][steady], "frame_index": inputs["frame_index"][steady], "tolerance": 2e-6}
    backwards = {"live": live[steady], "guess": inputs["points"][steady] + 0.02} | {k: v for k, v in reached.items() if k != "points"}
    wrt = ("points", "rotations", "translations")
    return {
        "blend": Case(blend_skinning.blend, motion | {"weights": weights}, ("points", "weights", "rotations", "translations"), integers),
        "blend_with_jacobian": Case(blend_skinning.blend_with_jacobian, reached, wrt, integers, tolerances.JACOBIAN),
        "inverse": Case(blend_skinning.inverse, backwards, ("live", "rotations", "translations"), here, tolerances.INVERSE),
    }


def hash_spec(dims: int, features: int = 2) -> hash_encoding.HashSpec:
    """Dense and hashed levels, unequal axes, a table that is no power of two in all."""
    resolutions = ((4, 5, 3), (9, 7, 8), (33, 30, 31), (130, 120, 110))
    times = (2, 3, 3, 5)
    return hash_encoding.HashSpec(dims, features, 10, tuple(r + ((t,) if dims == 4 else ()) for r, t in zip(resolutions, times, strict=True)))


def points_off_borders(count: int, spec: hash_encoding.HashSpec) -> Tensor:
    """Random points of [0, 1]^D that no level has on a cell border: there, float32 and float64 may take different cells."""
    generator = torch.Generator().manual_seed(count)
    x = torch.rand(count, spec.dims, generator=generator)
    for _ in range(60):
        scaled = x[:, None].double() * torch.tensor(spec.resolutions, dtype=torch.float64)
        near = ((scaled - scaled.round()).abs() < tolerances.BORDER_CELLS).any(1)
        x = torch.where(near, torch.rand(x.shape, generator=generator), x)
    return x


def hash_encoding_cases(points: int, dims: int, features: int = 2, open_levels: int | None = None) -> dict[str, Case]:
    spec = hash_spec(dims, features)
    generator = torch.Generator().manual_seed(points)
    inputs = {"x": points_off_borders(points, spec), "table": torch.randn(spec.table_rows, features, generator=generator)}
    mask = {"level_mask": torch.linspace(1, 0.25, spec.levels)}
    wrt, others = ("x", "table"), {"spec": spec, "open_levels": open_levels}
    encode, both = hash_encoding.encode, hash_encoding.encode_with_jacobian
    return {
        "encode": Case(encode, inputs | mask, wrt, others, tolerances.HASH),
        "encode_table_only": Case(encode, inputs, ("table",), others, tolerances.HASH),
        "encode_twice": Case(encode, inputs | mask, wrt, others, tolerances.HASH, second_order=True),
        "encode_with_jacobian": Case(both, inputs | mask, wrt, others, tolerances.HASH),
        "encode_with_jacobian_along_space": Case(both, inputs, wrt, others | {"axes": 3, "scale": 0.5}, tolerances.HASH),
    }


def field_network_cases(samples: int, points: int = 3, features: int = 32, hidden: int = 64, outputs: int = 1) -> dict[str, Case]:
    """All gradients; those of a network that is frozen; those of its weights alone."""
    generator = torch.Generator().manual_seed(samples)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    free = {"x": normal(samples, points), "features": 0.3 * normal(samples, features), "jacobian": normal(samples, 3, features)}
    first = {"first_weight": 0.3 * normal(hidden, points + features), "first_bias": 0.1 * normal(hidden)}
    last = {"last_weight": 0.3 * normal(outputs, hidden), "last_bias": normal(outputs)}
    weights = first | last
    whole = {
        f"{name} of {outputs} outputs": Case(field_network.network, free | weights, tuple(wrt))
        for name, wrt in {"network": free | weights, "frozen network": free, "network of fixed samples": weights, "features alone": ["features"]}.items()
    }
    del free["jacobian"]
    return whole | {
        f"{name} of {outputs} outputs": Case(field_network.values, free | weights, tuple(wrt))
        for name, wrt in {"values": free | weights, "values, weights and features": ["features", *weights]}.items()
    }


def deep_network_cases(samples: int, near: int = 9, features: int = 32, hidden: int = 64, outputs: int = 3) -> dict[str, Case]:
    """All gradients; those of a network that is frozen; those of its weights alone. No sample lies on the corner of a unit, where its derivative jumps."""
    generator = torch.Generator().manual_seed(samples)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    weights = {"first_weight": 0.3 * normal(hidden, near + features), "first_bias": 0.1 * normal(hidden)}
    weights |= {"middle_weight": 0.2 * normal(hidden, hidden), "middle_bias": 0.1 * normal(hidden)}
    weights |= {"last_weight": 0.3 * normal(outputs, hidden), "last_bias": normal(outputs)}
    free = {"near": normal(2 * samples, near), "features": 0.3 * normal(2 * samples, features)}
    first = torch.cat(list(free.values()), 1).double() @ weights["first_weight"].double().T + weights["first_bias"]
    second = first.relu() @ weights["middle_weight"].double().T + weights["middle_bias"]
    clear = torch.minimum(first.abs().amin(1), second.abs().amin(1)).argsort(descending=True)[:samples].sort().values
    free = {name: value[clear] for name, value in free.items()}
    return {
        f"{name} of {outputs} outputs": Case(deep_network.network, free | weights, tuple(wrt))
        for name, wrt in {"deep network": free | weights, "frozen deep network": free, "deep network of fixed samples": weights}.items()
    }


def neus_opacity_cases(samples: int) -> dict[str, Case]:
    """The ray meets the surface from before and from behind; with and without a sharpness that learns and an annealing that is a tensor."""
    generator = torch.Generator().manual_seed(samples)
    gradient = torch.randn(samples, 3, generator=generator)
    directions = torch.nn.functional.normalize(torch.randn(samples, 3, generator=generator), dim=-1)
    free = {"sdf": 0.02 * torch.randn(samples, generator=generator), "gradient": gradient}
    fixed = {"directions": directions, "lengths": 0.05 * torch.rand(samples, generator=generator)}
    free["sdf"][:1], fixed["lengths"][:1], gradient[:1] = 0.004, 0.04, -1.1 * directions[:1]  # where it is alone, not one of those whose terms cancel
    learnt = {"inv_std": torch.tensor(40.0)}
    return {
        "sharpness learnt": Case(neus_opacity.opacities, free | learnt | fixed, (*free, *learnt), {"anneal": torch.tensor(0.3)}, tolerances.JACOBIAN),
        "directions turned": Case(neus_opacity.opacities, free | fixed, (*free, "directions"), {"inv_std": 40.0, "anneal": 0.5}, tolerances.JACOBIAN),
        "sharpness fixed": Case(neus_opacity.opacities, free | fixed, tuple(free), {"inv_std": 40.0, "anneal": 1.0}, tolerances.JACOBIAN),
    }


def ray_loss_cases(rays: int) -> dict[str, Case]:
    """Opacities of which some are beyond what the logarithm is taken of, errors on either side of the Huber loss's corner."""
    generator = torch.Generator().manual_seed(rays)
    opacity = (1.2 * torch.rand(rays, generator=generator) - 0.1).clamp(0, 1)
    free = {"rgb": torch.rand(rays, 3, generator=generator) * opacity[:, None], "opacity": opacity}
    fixed = {"target": torch.rand(rays, 3, generator=generator), "alpha": torch.rand(rays, generator=generator).round(decimals=1)}
    fixed["background"] = torch.rand(rays, 3, generator=generator)
    return {"ray loss": Case(ray_loss.means, free | fixed, tuple(free))}


def live_gradient_cases(samples: int) -> dict[str, Case]:
    """A Jacobian is far from singular, or singular."""
    generator = torch.Generator().manual_seed(samples)
    jacobian = torch.eye(3) + 0.2 * torch.randn(samples, 3, 3, generator=generator)
    jacobian[::11] = 0.0
    odd = (torch.linalg.det(jacobian).abs() - live_gradient.reference.LEAST_DETERMINANT).abs() < 0.04
    jacobian[odd & (jacobian != 0).any(-1).any(-1)] = torch.eye(3)
    free = {"gradient": torch.randn(samples, 3, generator=generator), "stretch": 0.3 * torch.randn(samples, 3, 3, generator=generator)}
    return {"live gradient": Case(live_gradient.carry, free | {"jacobian": jacobian}, tuple(free))}
