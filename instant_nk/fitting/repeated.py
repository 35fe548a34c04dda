"""The same arithmetic many times over with other numbers: recorded once and replayed on a GPU, where launching takes longer than computing."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from instant_nk.fitting.recording import Pool, capture, keeper

RECORD = True
LEAST = 4  # repetitions that are worth a recording
LARGE = 1500  # rows of the state from which on the arithmetic takes longer than launching it, and a recording would only hold memory
State = tuple[Tensor, ...]


def repeat(work: Callable[..., State], state: State, rows: Sequence[tuple[float, ...]]) -> State:
    """The state after `state = work(*state, *row)` for every row.

    On a GPU the numbers of a row arrive as tensors, and `work` may neither make the host wait nor depend on it.
    """
    if not state[0].is_cuda:
        for row in rows:
            state = work(*state, *row)
        return state
    table = torch.tensor(rows, dtype=torch.float64).to(state[0].device)
    if not RECORD or len(rows) < LEAST or len(state[0]) > LARGE:
        for numbers in table:
            state = work(*state, *numbers)
        return state
    state = work(*state, *table[0])  # loads what is loaded at first use, which a recording may not
    kept, numbers = tuple(t.clone() for t in state), table[1].clone()

    def once() -> None:
        for t, new in zip(kept, work(*kept, *numbers)):
            t.copy_(new)

    graph, _ = capture(once, _memory()[0])
    for row in table[1:]:
        numbers.copy_(row)
        graph.replay()
    torch.cuda.current_stream().synchronize()  # the recording's memory serves the next one
    return kept


@functools.cache
def _memory() -> tuple[Pool, torch.cuda.CUDAGraph]:
    """The pool that one recording leaves to the next, and what holds it."""
    pool = torch.cuda.graph_pool_handle()
    return pool, keeper(pool)
