"""A kernel of one line, run once per device to learn whether Triton works there at all."""

import torch
import triton
import triton.language as tl


@triton.jit
def _fill(out, BLOCK: tl.constexpr):
    tl.store(out + tl.arange(0, BLOCK), 1.0)


def probe(device: torch.device) -> None:
    """Fill 16 floats on `device` and read them back; raises whatever stands in the way."""
    with torch.cuda.device(device):
        out = torch.zeros(16, device=device)
        _fill[(1,)](out, BLOCK=16)
        if not bool((out == 1).all()):
            raise RuntimeError("wrong numbers came back")
