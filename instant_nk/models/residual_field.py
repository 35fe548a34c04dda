"""The residual deformation: what the graph's warp leaves over, a small displacement in canonical space that depends on time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from instant_nk.kernels.hash_encoding import HashSpec
from instant_nk.models.encoding import HashEncoding
from instant_nk.models.mlp import Mlp


class ResidualField(nn.Module):
    """residual(x, tau) = bound * tanh(mlp([x, tau, enc4(x, tau)])): exactly zero at initialisation, never longer than bound per axis.

    Args:
        spec: 4-D hash grid whose time axis has its own, few resolutions.
        hidden: width of the network.
        bound: largest displacement per axis, scene units.
    """

    def __init__(self, spec: HashSpec, hidden: int, bound: float):
        super().__init__()
        self.bound = bound
        self.encoding = HashEncoding(spec)
        self.mlp = Mlp(4 + spec.width, hidden, 3, scale=0.0, may_mix=True)

    def forward(self, x: Tensor, tau: Tensor) -> Tensor:
        """Displacement [N, 3] at canonical points [N, 3] and window times [N]."""
        return self.bound * torch.tanh(self.mlp(torch.cat([x, tau[:, None], self.encoding(x, tau)], -1)))

    def with_jacobian(self, x: Tensor, tau: Tensor) -> tuple[Tensor, Tensor]:
        """Displacement [N, 3] and its spatial Jacobian [N, 3 (out), 3 (in)]."""
        features, jacobian = self.encoding.with_jacobian(x, tau)
        out, slope = self.mlp.along_space(torch.cat([x, tau[:, None]], -1), features, jacobian)
        squashed = torch.tanh(out)
        return self.bound * squashed, self.bound * (1 - squashed**2)[..., None] * slope

    def describe(self) -> dict[str, Any]:
        return {"spec": self.encoding.spec.to_json(), "hidden": self.mlp.first.out_features, "bound": self.bound}

    @staticmethod
    def build(description: dict[str, Any]) -> ResidualField:
        return ResidualField(HashSpec.from_json(description["spec"]), description["hidden"], description["bound"])
