"""What a hash grid looks like: resolutions, table sizes and offsets, the same for every backend but tinycudann's."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

PRIMES = (1, 2654435761, 805459861, 3674653429)


@dataclass(frozen=True)
class HashSpec:
    """Layout of a multiresolution hash grid over [0, 1]^D (Müller et al. 2022, section 3).

    A level with (N_0+1)...(N_{D-1}+1) <= T corners is dense (x runs fastest); otherwise corner i has row
    `xor_d(i_d * p_d) mod T`. All levels lie one after the other in one table.

    Attributes:
        dims: 3 or 4.
        features: channels per level, F.
        log2_table_size: log2 of T.
        resolutions: cells per axis of every level, L tuples of D numbers; the time axis may have its own.
    """

    dims: int
    features: int
    log2_table_size: int
    resolutions: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        if self.dims not in (3, 4):
            raise ValueError(f"HashSpec.dims must be 3 or 4, got {self.dims}")
        if any(len(r) != self.dims or min(r) < 1 for r in self.resolutions):
            raise ValueError(f"HashSpec.resolutions must be tuples of {self.dims} numbers of 1 or more, got {self.resolutions}")

    @staticmethod
    def geometric(levels: int, features: int, log2_table_size: int, base: int, finest: int, times: tuple[int, ...] = ()) -> HashSpec:
        """Spatial resolutions floor(base * b^l) from `base` to `finest`; `times` adds a time axis with one resolution per level."""
        growth = (finest / base) ** (1 / max(levels - 1, 1))
        spatial = [int(base * growth**level + 1e-6) for level in range(levels)]
        resolutions = tuple((r, r, r) + ((times[i],) if times else ()) for i, r in enumerate(spatial))
        return HashSpec(4 if times else 3, features, log2_table_size, resolutions)

    @property
    def levels(self) -> int:
        return len(self.resolutions)

    @property
    def width(self) -> int:
        """Number of output channels, L * F."""
        return self.levels * self.features

    @cached_property
    def level_rows(self) -> tuple[int, ...]:
        """Table rows of every level."""
        return tuple(min(int(np.prod([r + 1 for r in res], dtype=np.int64)), 1 << self.log2_table_size) for res in self.resolutions)

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
        return {"dims": self.dims, "features": self.features, "log2_table_size": self.log2_table_size, "resolutions": [list(r) for r in self.resolutions]}

    @staticmethod
    def from_json(value: dict[str, Any]) -> HashSpec:
        return HashSpec(value["dims"], value["features"], value["log2_table_size"], tuple(tuple(r) for r in value["resolutions"]))
