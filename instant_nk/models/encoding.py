"""The hash encoding as a module over scene space [-1, 1]^3 (and time [0, 1])."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from instant_nk.kernels import hash_encoding
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
        features, jacobian = hash_encoding.encode_with_jacobian(self._grid(x, tau), self.table, self.spec, open_levels=self.open_levels)
        return features, jacobian[:, :3] * 0.5
