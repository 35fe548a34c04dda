"""The hash encoding by tinycudann, for tables in its own layout: used where `runtime.backend: tcnn` asks for it and it is installed.

What tinycudann offers beyond the forward pass is a product with the Jacobian J [D, K] of every point from either side: `bwd`
gives J g for a gradient g of the features, `bwd_bwd_input` for a direction v the derivative J^T v along it, and the gradients of
v^T J g to table and positions. The whole Jacobian, which normals and the warp need, therefore costs D passes.

tinycudann wants batches of a multiple of 256 points, reads from `requires_grad` what it shall compute, and in half precision
gradients that are scaled up.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from instant_nk.errors import BackendError
from instant_nk.kernels import _backend
from instant_nk.kernels.hash_encoding.spec import HashSpec

BATCH = 256
HALF_SCALE = 128.0  # what tinycudann itself multiplies half-precision gradients by


@functools.lru_cache(maxsize=16)
def _native(spec: HashSpec, dtype: torch.dtype) -> Any:
    """tinycudann's compiled grid.

    Raises:
        BackendError: its table has another size than the layout written down in `HashSpec`.
    """
    import tinycudann

    config = {
        "otype": "Grid", "type": "Hash", "interpolation": "Linear", "n_levels": spec.levels, "n_features_per_level": spec.features,
        "log2_hashmap_size": spec.log2_table_size, "base_resolution": spec.resolutions[0][0], "per_level_scale": spec.growth,
    }  # fmt: skip
    native = tinycudann.Encoding(spec.dims, config, dtype=dtype).native_tcnn_module
    if native.n_params() != spec.table_rows * spec.features:
        raise BackendError(
            f"hash_encoding: this tinycudann lays out {native.n_params()} parameters where {spec.table_rows * spec.features} are expected: "
            "it is of a version whose layout is unknown here. Set runtime.backend=auto."
        )
    return native


class _Pass:
    """One forward pass over the points, and products with its Jacobian."""

    def __init__(self, x: Tensor, table: Tensor, spec: HashSpec, open_levels: int, differentiate: bool):
        self.count, self.spec, self.open, self.half = len(x), spec, open_levels * spec.features, table.dtype == torch.float16
        self.native = _native(spec, table.dtype)
        self.x = self._padded(x).detach().requires_grad_(differentiate)
        self.table = table.detach().reshape(-1).contiguous().requires_grad_(differentiate)
        self.context, self.output = self.native.fwd(self.x, self.table)

    def _padded(self, rows: Tensor, width: int | None = None) -> Tensor:
        """Rows (and columns) of zeros up to what tinycudann wants."""
        padding = (0, (width or rows.shape[1]) - rows.shape[1], 0, -len(rows) % BATCH)
        return torch.nn.functional.pad(rows.float(), padding).contiguous()

    def _cotangent(self, grad: Tensor | None) -> Tensor:
        """A gradient of the features as tinycudann takes it, closed levels zero; zeros for None."""
        scaled = torch.zeros_like(self.output) if grad is None else self._padded(grad, self.output.shape[1])
        scaled[:, self.open :] = 0
        return scaled.mul(HALF_SCALE).to(self.output.dtype) if self.half else scaled.to(self.output.dtype)

    def _gradients(self, to_table: Tensor, to_x: Tensor) -> tuple[Tensor, Tensor]:
        """What tinycudann returned as gradients, f32 [rows, F] and [N, D]."""
        scale = 1 / HALF_SCALE if self.half else 1.0
        return to_table.float().reshape(-1, self.spec.features) * scale, to_x[: self.count].float() * scale

    def features(self) -> Tensor:
        result = self.output[:, : self.spec.width][: self.count].float()
        result[:, self.open :] = 0
        return result

    def pull(self, grad: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of <grad, features>."""
        to_x, to_table = self.native.bwd(self.context, self.x, self.table, self.output, self._cotangent(grad))
        return self._gradients(to_table, to_x)

    def along(self, direction: Tensor, grad: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """The features' derivative [N, K] along a direction [N, D] per point, and the gradients of <grad, that derivative>."""
        cotangent = self._cotangent(grad).requires_grad_()
        slope, to_table, to_x = self.native.bwd_bwd_input(self.context, self.x, self.table, self._padded(direction), cotangent)
        slope = slope[:, : self.spec.width][: self.count].float()
        slope[:, self.open :] = 0
        return slope, *self._gradients(to_table, to_x)

    def axis(self, d: int) -> Tensor:
        """The unit vector of an axis for every point."""
        return torch.eye(self.spec.dims, device=self.x.device)[d].expand(self.count, -1)


def forward(x: Tensor, table: Tensor, spec: HashSpec, open_levels: int, with_jacobian: bool) -> tuple[Tensor, Tensor | None]:
    """Features [N, L*F] and, when asked for, their Jacobian [N, D, L*F]; levels from `open_levels` on are zero."""
    if not len(x):
        return x.new_zeros(0, spec.width), x.new_zeros(0, spec.dims, spec.width) if with_jacobian else None
    with _backend.on(x):
        run = _Pass(x, table, spec, open_levels, with_jacobian)
        return run.features(), torch.stack([run.along(run.axis(d))[0] for d in range(spec.dims)], 1) if with_jacobian else None


def backward(
    x: Tensor, table: Tensor, spec: HashSpec, open_levels: int, grad: Tensor | None, grad_jacobian: Tensor | None, to_table: bool, to_x: bool,
    direction: Tensor | None = None,
) -> tuple[Tensor | None, Tensor | None]:  # fmt: skip
    """Gradients of <grad, features> + <grad_jacobian, Jacobian> to table and positions; with `direction` of <grad, derivative along it>."""
    total_table, total_x = x.new_zeros(spec.table_rows, spec.features, dtype=torch.float32), torch.zeros_like(x)
    if len(x):
        with _backend.on(x):
            run = _Pass(x, table, spec, open_levels, True)
            parts = []
            if direction is not None:
                parts.append(run.along(direction, grad)[1:])
            elif grad is not None:
                parts.append(run.pull(grad))
            if grad_jacobian is not None:
                parts += [run.along(run.axis(d), grad_jacobian[:, d])[1:] for d in range(spec.dims)]
            for part_table, part_x in parts:
                total_table, total_x = total_table + part_table, total_x + part_x
    return total_table if to_table else None, total_x if to_x else None


def table_grad(x: Tensor, spec: HashSpec, open_levels: int, grad_features: Tensor | None, grad_jacobian: Tensor | None) -> Tensor:
    """Gradient [rows, F] of <grad_features, y> + <grad_jacobian, J> with respect to the table, on whose values it does not depend."""
    table = x.new_zeros(spec.table_rows, spec.features)
    return backward(x, table, spec, open_levels, grad_features, grad_jacobian, True, False)[0]


def position_grad(x: Tensor, table: Tensor, spec: HashSpec, open_levels: int, grad_features: Tensor | None, grad_jacobian: Tensor | None) -> Tensor:
    """Gradient [N, D] of <grad_features, y> + <grad_jacobian, J> with respect to the positions."""
    return backward(x, table, spec, open_levels, grad_features, grad_jacobian, False, True)[1]


def along(x: Tensor, table: Tensor, spec: HashSpec, open_levels: int, direction: Tensor) -> Tensor:
    """The features' derivative [N, L*F] along a direction [N, D] per point."""
    if not len(x):
        return x.new_zeros(0, spec.width)
    with _backend.on(x):
        return _Pass(x, table, spec, open_levels, True).along(direction)[0]
