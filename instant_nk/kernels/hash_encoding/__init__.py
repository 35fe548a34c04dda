"""Multiresolution hash encoding in 3-D and 4-D, with its Jacobian as an output.

`encode` is differentiable twice; `encode_with_jacobian` once, in the table and in the positions. Since features and
Jacobian are both linear in the table, normals and the eikonal term cost one gather forward and one scatter backward.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from instant_nk.errors import BackendError
from instant_nk.kernels import _backend
from instant_nk.kernels.ahead import Call
from instant_nk.kernels.hash_encoding.spec import HashSpec

__all__ = ["HashSpec", "encode", "encode_with_jacobian", "rehearsals"]


def rehearsals(spec: HashSpec, device: str, with_jacobian: bool, to_table: bool = False, to_x: bool = False, axes: int | None = None) -> list[Call]:
    """One launch, on a single point, of each Triton kernel behind an encoding and the gradients it will be asked for: see `kernels.ahead`.

    Args:
        axes: of the Jacobian; default all.
    """
    if spec.layout == "tcnn":
        return []

    def forward() -> None:
        from instant_nk.kernels.hash_encoding import triton as ops

        ops.forward(point(), table(), spec, spec.levels, with_jacobian, axes, 0.5)

    def backward() -> None:
        from instant_nk.kernels.hash_encoding import triton as ops

        jacobian = torch.zeros(1, axes or spec.dims, spec.width, device=device) if with_jacobian else None
        ops.backward(point(), table(), spec, spec.levels, torch.zeros(1, spec.width, device=device), jacobian, to_table, to_x)

    def point() -> Tensor:
        return torch.zeros(1, spec.dims, device=device)

    def table() -> Tensor:
        return torch.zeros(spec.table_rows, spec.features, device=device)

    return [forward, backward] if to_table or to_x else [forward]


def _primitives(spec: HashSpec, *tensors: Tensor) -> ModuleType:
    """The backend's module with `forward`, `table_grad` and `position_grad`."""
    if spec.layout == "tcnn":
        _backend.require_tcnn("hash_encoding", *tensors)
        from instant_nk.kernels.hash_encoding import tcnn as module

        return module
    backend = _backend.choose("hash_encoding", *tensors)
    if backend == "triton":
        from instant_nk.kernels.hash_encoding import triton as module
    elif backend == "numba":
        from instant_nk.kernels.hash_encoding import cpu as module
    else:
        from instant_nk.kernels.hash_encoding import reference as module
    return module


def _gradients(
    x: Tensor, table: Tensor, spec: HashSpec, levels: int, grad: Tensor | None, grad_jacobian: Tensor | None, to_table: bool, to_x: bool,
    direction: Tensor | None = None, scale: float = 1.0,
) -> tuple[Tensor | None, Tensor | None]:  # fmt: skip
    """Gradients of <grad, features> + <grad_jacobian, `scale` times the Jacobian's first axes> to the table and the positions.

    With `direction` [N, D] they are those of <grad, derivative of the features along it>.
    """
    ops = _primitives(spec, x, table)
    if getattr(ops, "SCALES", False):
        grad_table, grad_x = ops.backward(x, table, spec, levels, grad, grad_jacobian, to_table, to_x, direction, scale)
        return None if grad_table is None else grad_table.to(table.dtype), grad_x
    if grad_jacobian is not None and (scale != 1.0 or grad_jacobian.shape[1] < spec.dims):
        grad_jacobian = torch.nn.functional.pad(grad_jacobian * scale, (0, 0, 0, spec.dims - grad_jacobian.shape[1]))
    if hasattr(ops, "backward"):  # both in one pass, nothing written out between
        grad_table, grad_x = ops.backward(x, table, spec, levels, grad, grad_jacobian, to_table, to_x, direction)
    else:
        if direction is not None:
            grad, grad_jacobian = None, direction[:, :, None] * grad[:, None]
        grad_table = ops.table_grad(x, spec, levels, grad, grad_jacobian) if to_table else None
        grad_x = ops.position_grad(x, table, spec, levels, grad, grad_jacobian) if to_x else None
    return None if grad_table is None else grad_table.to(table.dtype), grad_x


def _wanted(ctx: Any, argument: int) -> bool:
    """Whether this backward pass needs the gradient of an argument: `autograd.grad` for positions alone must not pay for the table's."""
    node = ctx.next_functions[argument][0] if ctx.needs_input_grad[argument] else None
    if node is None or hasattr(node, "variable"):  # of a leaf autograd does not tell
        return node is not None
    return torch._C._will_engine_execute_node(node)


def _no_leaf(tensor: Tensor) -> Tensor:
    """The tensor behind a node of its own, which `_wanted` can ask about."""
    return tensor.view_as(tensor) if tensor.requires_grad and tensor.is_leaf else tensor


class _Encode(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, table: Tensor, spec: HashSpec, levels: int) -> Tensor:
        ctx.save_for_backward(x, table)
        ctx.spec, ctx.levels = spec, levels
        return _primitives(spec, x, table).forward(x, table, spec, levels, False)[0]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, table = ctx.saved_tensors
        to_x, to_table = _wanted(ctx, 0), _wanted(ctx, 1)
        if not torch.is_grad_enabled():
            grad_table, grad_x = _gradients(x, table, ctx.spec, ctx.levels, grad, None, to_table, to_x)
            return grad_x, grad_table, None, None
        # create_graph: both stay differentiable
        grad_table = _Scatter.apply(x, grad, ctx.spec, ctx.levels).to(table.dtype) if to_table else None
        grad_x = _Pull.apply(x, table, grad, ctx.spec, ctx.levels) if to_x else None
        return grad_x, grad_table, None, None


class _Pull(Function):
    """The adjoint of `encode` in the positions, Jacobian^T grad, itself differentiable: the eikonal term's path."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, table: Tensor, grad: Tensor, spec: HashSpec, levels: int) -> Tensor:
        ctx.save_for_backward(x, table, grad)
        ctx.spec, ctx.levels = spec, levels
        return _primitives(spec, x, table).position_grad(x, table, spec, levels, grad, None)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, direction: Tensor) -> tuple[Tensor | None, ...]:
        x, table, grad = ctx.saved_tensors
        to_x, to_table, to_grad = (_wanted(ctx, argument) for argument in range(3))
        grad_table, grad_x = _gradients(x, table, ctx.spec, ctx.levels, grad, None, to_table, to_x, direction=direction) if to_table or to_x else (None, None)
        grad_grad = None
        if to_grad:
            ops = _primitives(ctx.spec, x, table)
            if hasattr(ops, "along"):
                grad_grad = ops.along(x, table, ctx.spec, ctx.levels, direction)
            else:
                grad_grad = torch.einsum("ndk,nd->nk", ops.forward(x, table, ctx.spec, ctx.levels, True)[1], direction)
        return grad_x, grad_table, grad_grad, None, None


class _Scatter(Function):
    """The adjoint of `encode` in the table, itself differentiable in the positions and in what is scattered."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, grad: Tensor, spec: HashSpec, levels: int) -> Tensor:
        ctx.save_for_backward(x, grad)
        ctx.spec, ctx.levels = spec, levels
        return _primitives(spec, x, grad).table_grad(x, spec, levels, grad, None)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        x, grad = ctx.saved_tensors
        ops = _primitives(ctx.spec, x, grad)
        grad_x = ops.position_grad(x, cotangent, ctx.spec, ctx.levels, grad, None) if ctx.needs_input_grad[0] else None
        grad_grad = ops.forward(x, cotangent, ctx.spec, ctx.levels, False)[0] if ctx.needs_input_grad[1] else None
        return grad_x, grad_grad, None, None


class _EncodeWithJacobian(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, table: Tensor, spec: HashSpec, levels: int, axes: int, scale: float) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x, table)
        ctx.spec, ctx.levels, ctx.scale = spec, levels, scale
        ctx.set_materialize_grads(False)
        ops = _primitives(spec, x, table)
        if getattr(ops, "SCALES", False):
            return ops.forward(x, table, spec, levels, True, axes, scale)
        features, jacobian = ops.forward(x, table, spec, levels, True)
        return features, jacobian if scale == 1.0 and axes == spec.dims else jacobian[:, :axes] * scale

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, grad_jacobian: Tensor | None) -> tuple[Tensor | None, ...]:
        x, table = ctx.saved_tensors
        to_x, to_table = _wanted(ctx, 0), _wanted(ctx, 1)
        grad_table, grad_x = _gradients(x, table, ctx.spec, ctx.levels, grad, grad_jacobian, to_table, to_x, scale=ctx.scale)
        return grad_x, grad_table, None, None, None, None


def _check(x: Tensor, table: Tensor, spec: HashSpec, level_mask: Tensor | None) -> None:
    if x.ndim != 2 or x.shape[1] != spec.dims:
        raise ValueError(f"hash_encoding: x must be [N, {spec.dims}], got {list(x.shape)}")
    if tuple(table.shape) != (spec.table_rows, spec.features):
        raise ValueError(f"hash_encoding: table must be [{spec.table_rows}, {spec.features}], got {list(table.shape)}")
    if x.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"hash_encoding: x must be float32 or float64, got {x.dtype}: half precision cannot tell the cells of a fine level apart")
    if x.device != table.device:
        raise BackendError(f"hash_encoding: x is on {x.device} but the table is on {table.device}; move one of them")
    if level_mask is not None and level_mask.shape != (spec.levels,):
        raise ValueError(f"hash_encoding: level_mask must be [{spec.levels}], got {list(level_mask.shape)}")


def encode(x: Tensor, table: Tensor, spec: HashSpec, level_mask: Tensor | None = None, open_levels: int | None = None) -> Tensor:
    """Features of points in [0, 1]^D; differentiable twice in positions and table.

    Args:
        x: [N, D]; a point outside [0, 1] is extrapolated from the border cell.
        table: [rows, F], all levels one after the other.
        level_mask: weight of every level, [L]; opens levels coarse to fine.
        open_levels: levels from this one on are skipped and zero; default all.

    Returns:
        [N, L*F], level-major.
    """
    _check(x, table, spec, level_mask)
    features = _Encode.apply(_no_leaf(x), _no_leaf(table), spec, spec.levels if open_levels is None else open_levels)
    return features if level_mask is None else features * level_mask.repeat_interleave(spec.features)


def encode_with_jacobian(
    x: Tensor, table: Tensor, spec: HashSpec, level_mask: Tensor | None = None, open_levels: int | None = None, axes: int | None = None, scale: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Features and their derivative with respect to the positions; both differentiable once in positions and table.

    Args: as in `encode`, and
        axes: the derivative along the first of them only: 3 leaves out time. Default all.
        scale: factor on the derivative, where it is wanted per another unit than that of the grid.

    Returns:
        features [N, L*F] and Jacobian [N, axes, L*F].
    """
    _check(x, table, spec, level_mask)
    if axes not in (None, 3, spec.dims):
        raise ValueError(f"hash_encoding: axes must be 3 or {spec.dims}, got {axes}")
    levels = spec.levels if open_levels is None else open_levels
    features, jacobian = _EncodeWithJacobian.apply(_no_leaf(x), _no_leaf(table), spec, levels, axes or spec.dims, scale)
    if level_mask is None:
        return features, jacobian
    columns = level_mask.repeat_interleave(spec.features)
    return features * columns, jacobian * columns
