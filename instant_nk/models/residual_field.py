"""The residual deformation: what the graph's warp leaves over, a small displacement in canonical space that depends on time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from instant_nk.kernels.ahead import Call
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
        return self.bound * torch.tanh(self.mlp.of_points(torch.cat([x, tau[:, None]], -1), self.encoding(x, tau)))

    def with_jacobian(self, x: Tensor, tau: Tensor, factor: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Displacement [N, 3] and its spatial Jacobian [N, 3 (out), 3 (in)], both times a factor [N]."""
        features, jacobian = self.encoding.with_jacobian(x, tau)
        out, slope = self.mlp.along_space(torch.cat([x, tau[:, None]], -1), features, jacobian)
        squashed, bound = torch.tanh(out), self.bound if factor is None else self.bound * factor[:, None]
        return bound * squashed, (bound * (1 - squashed**2))[..., None] * slope

    def rehearsals(self) -> list[Call]:
        """What `forward` at fixed points, `with_jacobian` and their gradients launch: see `kernels.ahead`."""
        encodings = self.encoding.rehearsals(False, True) + self.encoding.rehearsals(True, True, True)
        return encodings + self.mlp.rehearsals(4, True, True, True) + self.mlp.rehearsals(4, False, True, True, gradient=False)

    def describe(self) -> dict[str, Any]:
        return {"spec": self.encoding.spec.to_json(), "hidden": self.mlp.first.out_features, "bound": self.bound}

    @staticmethod
    def build(description: dict[str, Any]) -> ResidualField:
        return ResidualField(HashSpec.from_json(description["spec"]), description["hidden"], description["bound"])
