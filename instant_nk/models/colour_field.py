"""Colour at surface points from position, normal, viewing direction and the geometry's own features."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from instant_nk.kernels.ahead import Call
from instant_nk.models.mlp import DeepMlp


class ColourField(nn.Module):
    """sRGB in [0, 1] of canonical points.

    Args:
        features: width of the SDF field's encoding, which is shared.
        hidden: width of the network.
    """

    def __init__(self, features: int, hidden: int):
        super().__init__()
        self.features, self.hidden = features, hidden
        self.mlp = DeepMlp(9 + features, hidden, 3, may_mix=True)

    def forward(self, x: Tensor, normals: Tensor, directions: Tensor, features: Tensor, light: Tensor | None = None) -> Tensor:
        """Colour [N, 3].

        Args:
            x: canonical points [N, 3].
            normals: unit normals in live space [N, 3]: what the light of the world falls on.
            directions: unit viewing directions in live space [N, 3].
            features: [N, L*F].
            light: what `FrameColour` adds for the frame [N, hidden].
        """
        return torch.sigmoid(self.mlp(torch.cat([x, normals, directions], -1), features, light))

    def rehearsals(self) -> list[Call]:
        """What training launches: see `kernels.ahead`."""
        return self.mlp.rehearsals(9, True, True, True)

    def describe(self) -> dict[str, Any]:
        return {"features": self.features, "hidden": self.hidden}

    @staticmethod
    def build(description: dict[str, Any]) -> ColourField:
        return ColourField(description["features"], description["hidden"])
