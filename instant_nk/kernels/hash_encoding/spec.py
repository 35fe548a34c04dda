"""What a hash grid looks like: resolutions, table sizes and offsets; the same for every backend but tinycudann, whose tables have a layout of their own."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from instant_nk.errors import BackendError

PRIMES = (1, 2654435761, 805459861, 3674653429)


@dataclass(frozen=True)
class HashSpec:
    """Layout of a multiresolution hash grid over [0, 1]^D (Müller et al. 2022, section 3).

    A level with (N_0+1)...(N_{D-1}+1) <= T corners is dense (x runs fastest). Of the others blocks of two corners an axis are
    hashed, and the 2^D rows of a block lie side by side, so that a point meets fewer sectors of memory: corner i has row
    `(2^D xor_d(floor(i_d / 2) p_d) + sum_d 2^d (i_d mod 2)) mod T`. All levels lie one after the other in one table.

    Attributes:
        dims: 3 or 4.
        features: channels per level, F.
        log2_table_size: log2 of T.
        resolutions: cells per axis of every level, L tuples of D numbers; the time axis may have its own.
        layout: whose table this is: `tcnn` for tinycudann, which knows no axis with resolutions of its own and derives all
            levels from the first and the last one. A table of one layout means nothing in the other.
    """

    dims: int
    features: int
    log2_table_size: int
    resolutions: tuple[tuple[int, ...], ...]
    layout: Literal["own", "tcnn"] = "own"

    def __post_init__(self) -> None:
        if self.dims not in (3, 4):
            raise ValueError(f"HashSpec.dims must be 3 or 4, got {self.dims}")
        if any(len(r) != self.dims or min(r) < 1 for r in self.resolutions):
            raise ValueError(f"HashSpec.resolutions must be tuples of {self.dims} numbers of 1 or more, got {self.resolutions}")
        if self.layout == "tcnn" and any(len(set(r)) > 1 for r in self.resolutions):
            raise BackendError(
                f"hash_encoding: tiny-cuda-nn's grid has one resolution for all axes of a level; wanted {next(r for r in self.resolutions if len(set(r)) > 1)}. "
                "Set runtime.backend: auto, or give time the resolutions of space."
            )

    @staticmethod
    def geometric(
        levels: int, features: int, log2_table_size: int, base: int, finest: int, times: tuple[int, ...] = (), layout: Literal["own", "tcnn"] = "own"
    ) -> HashSpec:
        """Spatial resolutions floor(base * b^l) from `base` to `finest`; `times` adds a time axis with one resolution per level."""
        growth = (finest / base) ** (1 / max(levels - 1, 1))
        spatial = [int(base * growth**level + 1e-6) for level in range(levels)]
        resolutions = tuple((r, r, r) + ((times[i],) if times else ()) for i, r in enumerate(spatial))
        return HashSpec(4 if times else 3, features, log2_table_size, resolutions, layout)

    @property
    def levels(self) -> int:
        return len(self.resolutions)

    @property
    def width(self) -> int:
        """Number of output channels, L * F."""
        return self.levels * self.features

    @property
    def growth(self) -> float:
        """From one level's resolution to the next, b."""
        return (self.resolutions[-1][0] / self.resolutions[0][0]) ** (1 / max(self.levels - 1, 1))

    @cached_property
    def level_rows(self) -> tuple[int, ...]:
        """Table rows of every level."""
        if self.layout == "tcnn":
            corners = [(math.ceil(scale) + 1) ** self.dims for scale in self.scales]
            return tuple(min(-(-count // 8) * 8, 1 << self.log2_table_size) for count in corners)
        return tuple(min(int(np.prod([r + 1 for r in res], dtype=np.int64)), 1 << self.log2_table_size) for res in self.resolutions)

    @cached_property
    def scales(self) -> tuple[float, ...]:
        """Of tinycudann's layout: a point x lies at x * scale + 1/2 in the grid of a level; single precision, as there."""
        growth = np.log2(np.float32(self.growth))
        return tuple(float(np.exp2(np.float32(level) * growth) * np.float32(self.resolutions[0][0]) - np.float32(1)) for level in range(self.levels))

    @cached_property
    def dense(self) -> tuple[bool, ...]:
        """Whether a level stores every corner once."""
        return tuple(int(np.prod([r + 1 for r in res], dtype=np.int64)) <= 1 << self.log2_table_size for res in self.resolutions)

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """First table row of every level."""
        return tuple(int(v) for v in np.concatenate([[0], np.cumsum(self.level_rows)[:-1]]))

    @property
    def table_rows(self) -> int:
        return sum(self.level_rows)

    def to_json(self) -> dict[str, Any]:
        own = {} if self.layout == "own" else {"layout": self.layout}
        return {"dims": self.dims, "features": self.features, "log2_table_size": self.log2_table_size, "resolutions": [list(r) for r in self.resolutions]} | own

    @staticmethod
    def from_json(value: dict[str, Any]) -> HashSpec:
        return HashSpec(value["dims"], value["features"], value["log2_table_size"], tuple(tuple(r) for r in value["resolutions"]), value.get("layout", "own"))
