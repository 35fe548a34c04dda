"""The hash encoding as a module over scene space [-1, 1]^3 (and time [0, 1])."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from instant_nk.kernels import hash_encoding
from instant_nk.kernels.ahead import Call
from instant_nk.kernels.hash_encoding import HashSpec


class HashEncoding(nn.Module):
    """A trainable hash grid; the derivative it returns is with respect to scene coordinates."""

    def __init__(self, spec: HashSpec, scale: float = 1e-4):
        super().__init__()
        self.spec = spec
        self.table = nn.Parameter((torch.rand(spec.table_rows, spec.features) * 2 - 1) * scale)
        self.open_levels = spec.levels  # coarse to fine; closed levels cost nothing and are zero

    @property
    def width(self) -> int:
        return self.spec.width

    def _grid(self, x: Tensor, tau: Tensor | None) -> Tensor:
        grid = (x + 1) * 0.5
        return grid if tau is None else torch.cat([grid, tau[:, None]], -1)

    def forward(self, x: Tensor, tau: Tensor | None = None) -> Tensor:
        """Features [N, L*F] of scene points [N, 3] (at times [N])."""
        return hash_encoding.encode(self._grid(x, tau), self.table, self.spec, open_levels=self.open_levels)

    def with_jacobian(self, x: Tensor, tau: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Features [N, L*F] and their spatial derivative [N, 3, L*F] per scene unit."""
        return hash_encoding.encode_with_jacobian(self._grid(x, tau), self.table, self.spec, open_levels=self.open_levels, axes=3, scale=0.5)

    def rehearsals(self, with_jacobian: bool, to_table: bool = False, to_x: bool = False) -> list[Call]:
        """What `forward` or `with_jacobian` launch, and their gradients: see `kernels.ahead`."""
        return hash_encoding.rehearsals(self.spec, self.table.device, with_jacobian, to_table, to_x, axes=3)
