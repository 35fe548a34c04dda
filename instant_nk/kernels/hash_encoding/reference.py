"""The definition of the hash encoding in plain torch: three primitives, all linear in the table.

With corners c of the cell that holds x, interpolation weights W_c(x) = prod_d (f_d or 1 - f_d) and rows h_c:
    features      y = sum_c W_c table[h_c]
    jacobian      J = sum_c dW_c/dx table[h_c]
    table_grad    sum over points of W_c g_y + dW_c/dx . g_J at h_c               (the adjoint of both)
    position_grad J^T g_y + sum_c d2W_c/dx2 (table[h_c] . g_J)
(Müller et al. 2022, equation 4; the mixed second derivatives are the ones that do not vanish.)
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from instant_nk.kernels.hash_encoding.spec import PRIMES, HashSpec


def corners(x: Tensor, spec: HashSpec, level: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of the cell corners around each point and the fractional position in the cell.

    Returns:
        rows i64 [N, 2^D], fraction [N, D], cells per axis [D].
    """
    cells = torch.tensor(spec.resolutions[level], dtype=x.dtype, device=x.device)
    position = x * cells
    index = torch.minimum(position.detach().floor().clamp_min(0), cells - 1)
    fraction = position - index
    index = index.long()
    rows = []
    for bits in itertools.product((0, 1), repeat=spec.dims):
        axes = [index[:, d] + bits[spec.dims - 1 - d] for d in range(spec.dims)]  # x is the fastest bit
        if spec.dense[level]:
            row, stride = torch.zeros_like(axes[0]), 1
            for d in range(spec.dims):
                row = row + axes[d] * stride
                stride *= spec.resolutions[level][d] + 1
        else:
            block, place = torch.zeros_like(axes[0]), torch.zeros_like(axes[0])
            for d in range(spec.dims):
                block = block ^ ((axes[d] >> 1) * PRIMES[d])
                place = place + ((axes[d] & 1) << d)
            row = ((block << spec.dims) + place) & ((1 << spec.log2_table_size) - 1)
        rows.append(row + spec.offsets[level])
    return torch.stack(rows, 1), fraction, cells


def corner_weights(fraction: Tensor, cells: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Interpolation weights, their gradient and their Hessian with respect to x.

    Returns:
        [N, C], [N, D, C], [N, D, D, C] with C = 2^D.
    """
    d = fraction.shape[1]
    bits = torch.tensor([[b[d - 1 - a] for a in range(d)] for b in itertools.product((0, 1), repeat=d)], dtype=fraction.dtype, device=fraction.device)
    axis = fraction[:, None] * bits + (1 - fraction[:, None]) * (1 - bits)  # [N, C, D]
    slope = (2 * bits - 1) * cells  # [C, D]

    def product(skip: tuple[int, ...]) -> Tensor:
        kept = [axis[..., a] if a not in skip else slope[:, a].expand(axis.shape[:2]) for a in range(d)]
        return torch.stack(kept).prod(0)

    weight = product(())
    gradient = torch.stack([product((a,)) for a in range(d)], 1)
    hessian = torch.stack([torch.stack([product((a, b)) if a != b else torch.zeros_like(weight) for b in range(d)], 1) for a in range(d)], 1)
    return weight, gradient, hessian


def forward(x: Tensor, table: Tensor, spec: HashSpec, open_levels: int, with_jacobian: bool) -> tuple[Tensor, Tensor | None]:
    """Features [N, L*F] and, when asked for, their Jacobian [N, D, L*F]; levels from `open_levels` on are zero."""
    n, f = len(x), spec.features
    features = x.new_zeros(n, spec.levels, f)
    jacobian = x.new_zeros(n, spec.dims, spec.levels, f) if with_jacobian else None
    for level in range(open_levels):
        rows, fraction, cells = corners(x, spec, level)
        weight, gradient, _ = corner_weights(fraction, cells)
        values = table[rows].to(x.dtype)  # [N, C, F]
        features[:, level] = torch.einsum("nc,ncf->nf", weight, values)
        if with_jacobian:
            jacobian[:, :, level] = torch.einsum("ndc,ncf->ndf", gradient, values)
    return features.reshape(n, spec.width), None if jacobian is None else jacobian.reshape(n, spec.dims, spec.width)


def table_grad(x: Tensor, spec: HashSpec, open_levels: int, grad_features: Tensor | None, grad_jacobian: Tensor | None) -> Tensor:
    """Gradient [rows, F] of <grad_features, y> + <grad_jacobian, J> with respect to the table."""
    n, f = len(x), spec.features
    result = x.new_zeros(spec.table_rows, f)
    for level in range(open_levels):
        rows, fraction, cells = corners(x, spec, level)
        weight, gradient, _ = corner_weights(fraction, cells)
        columns = slice(level * f, (level + 1) * f)
        update = x.new_zeros(n, weight.shape[1], f)
        if grad_features is not None:
            update = update + weight[..., None] * grad_features[:, None, columns]
        if grad_jacobian is not None:
            update = update + torch.einsum("ndc,ndf->ncf", gradient, grad_jacobian[:, :, columns])
        result.index_add_(0, rows.reshape(-1), update.reshape(-1, f))
    return result


def position_grad(x: Tensor, table: Tensor, spec: HashSpec, open_levels: int, grad_features: Tensor | None, grad_jacobian: Tensor | None) -> Tensor:
    """Gradient [N, D] of <grad_features, y> + <grad_jacobian, J> with respect to the positions."""
    f = spec.features
    result = torch.zeros_like(x)
    for level in range(open_levels):
        rows, fraction, cells = corners(x, spec, level)
        _, gradient, hessian = corner_weights(fraction, cells)
        values = table[rows].to(x.dtype)
        columns = slice(level * f, (level + 1) * f)
        if grad_features is not None:
            result = result + torch.einsum("ndc,ncf,nf->nd", gradient, values, grad_features[:, columns])
        if grad_jacobian is not None:
            result = result + torch.einsum("nedc,ncf,nef->nd", hessian, values, grad_jacobian[:, :, columns])
    return result
