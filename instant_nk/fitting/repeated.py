"""The same arithmetic many times over with other numbers: recorded once and replayed on a GPU, where launching takes longer than computing."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

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

    graph = _recorder(state[0].device.index).record(once)
    for row in table[1:]:
        numbers.copy_(row)
        graph.replay()
    torch.cuda.current_stream().synchronize()  # the recording's memory serves the next one
    return kept


class _Recorder:
    """A stream to record on, and memory that one recording leaves to the next."""

    def __init__(self, device: int):
        self.stream, self.pool = torch.cuda.Stream(device), torch.cuda.graph_pool_handle()
        self.keeper = self.record(lambda: torch.zeros(1, device=f"cuda:{device}"))  # a pool ends with its last recording

    def record(self, work: Callable[[], object]) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            graph.capture_begin(pool=self.pool, capture_error_mode="relaxed")
            try:
                work()
            finally:
                graph.capture_end()
        torch.cuda.current_stream().wait_stream(self.stream)
        return graph


@functools.cache
def _recorder(device: int) -> _Recorder:
    return _Recorder(device)
