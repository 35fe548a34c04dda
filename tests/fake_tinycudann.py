"""What tinycudann's grid computes, in torch: its layout and the calls of its compiled module, as far as instant_nk.kernels.hash_encoding.tcnn uses them.

Layout (tiny-cuda-nn, encodings/grid.h): level l has scale = b^l * N_0 - 1 and ceil(scale) + 1 corners per axis; a point lies at
x * scale + 1/2. A level of at most T corners, rounded up to a multiple of 8, is dense with x running fastest; otherwise corner i has
row xor_d(i_d * p_d) mod T. Entries of all levels lie one after the other, channels innermost.
"""

import itertools
import math
import types

import numpy as np
import torch

from instant_nk.kernels.hash_encoding import HashSpec

PRIMES = (1, 2654435761, 805459861, 3674653429)


class Native:
    def __init__(self, dims: int, config: dict, dtype: torch.dtype):
        self.dims, self.dtype, self.features = dims, dtype, config["n_features_per_level"]
        assert config["type"] == "Hash" and config["interpolation"] == "Linear"
        growth, most = np.log2(np.float32(config["per_level_scale"])), 1 << config["log2_hashmap_size"]
        self.levels, start = [], 0
        for level in range(config["n_levels"]):
            scale = float(np.exp2(np.float32(level) * growth) * np.float32(config["base_resolution"]) - np.float32(1))
            side = math.ceil(scale) + 1
            rows = min(-(-(side**dims) // 8) * 8, most)
            self.levels.append((scale, side, rows, side**dims <= rows, start))
            start += rows
        self.rows = start
        self.width = -(-len(self.levels) * self.features // 16) * 16  # the compiled module pads its output

    def n_params(self) -> int:
        return self.rows * self.features

    def grid(self, x: torch.Tensor, params: torch.Tensor) -> torch.Tensor:
        """Features [N, width], differentiable twice."""
        table, parts = params.reshape(-1, self.features).to(x.dtype), []
        for scale, side, rows, dense, start in self.levels:
            position = x * scale + 0.5
            cell = position.detach().floor()
            fraction, total = position - cell, 0
            for corner in itertools.product((0, 1), repeat=self.dims):
                at = cell.long() + torch.tensor(corner, device=x.device)
                if dense:
                    index = sum(at[:, d] * side**d for d in range(self.dims)) % rows
                else:
                    index = at[:, 0] * 0
                    for d in range(self.dims):
                        index = index ^ ((at[:, d] * PRIMES[d]) & 0xFFFFFFFF)
                    index = index % rows
                weight = torch.stack([fraction[:, d] if bit else 1 - fraction[:, d] for d, bit in enumerate(corner)]).prod(0)
                total = total + weight[:, None] * table[start + index]
            parts.append(total)
        return torch.nn.functional.pad(torch.cat(parts, 1), (0, self.width - len(parts) * self.features))

    def _check(self, x: torch.Tensor, params: torch.Tensor) -> None:
        assert len(x) % 256 == 0 and len(x) and x.dtype == torch.float32 and x.is_contiguous()
        assert params.shape == (self.n_params(),) and params.dtype == self.dtype and params.is_contiguous()

    def fwd(self, x, params):
        self._check(x, params)
        context = types.SimpleNamespace(prepared=x.requires_grad)
        with torch.no_grad():
            return context, self.grid(x, params).to(self.dtype)

    def bwd(self, context, x, params, output, cotangent):
        self._check(x, params)
        assert cotangent.shape == output.shape and cotangent.dtype == self.dtype and (context.prepared or not x.requires_grad)
        with torch.enable_grad():
            x_, p_ = x.detach().requires_grad_(), params.detach().float().requires_grad_()
            to_x, to_params = torch.autograd.grad(self.grid(x_, p_), (x_, p_), cotangent.float())
        return to_x if x.requires_grad else None, to_params.to(self.dtype) if params.requires_grad else None

    def bwd_bwd_input(self, context, x, params, direction, cotangent):
        self._check(x, params)
        assert direction.shape == x.shape and context.prepared
        with torch.enable_grad():
            x_, p_, c_ = x.detach().requires_grad_(), params.detach().float().requires_grad_(), cotangent.detach().float().requires_grad_()
            (to_x,) = torch.autograd.grad(self.grid(x_, p_), x_, c_, create_graph=True)
            along = (to_x * direction).sum()
            to_c, to_p, to_x = torch.autograd.grad(along, (c_, p_, x_))
        return tuple(g if t.requires_grad else None for g, t in ((to_c.to(self.dtype), cotangent), (to_p.to(self.dtype), params), (to_x, x)))


class Encoding:
    def __init__(self, n_input_dims: int, encoding_config: dict, seed: int = 1337, dtype: torch.dtype | None = None):
        self.native_tcnn_module = Native(n_input_dims, encoding_config, dtype or torch.float16)


def truth(x: torch.Tensor, table: torch.Tensor, spec: HashSpec) -> torch.Tensor:
    """Features [N, width] of a table in tinycudann's layout by torch alone, in the precision of x."""
    config = {"type": "Hash", "interpolation": "Linear", "n_levels": spec.levels, "n_features_per_level": spec.features}
    config |= {"log2_hashmap_size": spec.log2_table_size, "base_resolution": spec.resolutions[0][0], "per_level_scale": spec.growth}
    return Native(spec.dims, config, torch.float32).grid(x, table.reshape(-1))[:, : spec.width]
