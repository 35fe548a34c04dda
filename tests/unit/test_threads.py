import threading

import pytest

from instant_nk.kernels import _threads


@pytest.mark.parametrize("threads", [1, 3])
def test_a_task_beside_this_thread_gives_its_result_or_its_error_when_asked(monkeypatch, threads):
    monkeypatch.setattr(_threads, "count", lambda: threads)
    where = _threads.beside(lambda name: (name, threading.current_thread().name), "given").result()
    assert where[0] == "given" and (where[1] == threading.current_thread().name) == (threads == 1)
    failed = _threads.beside(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        failed.result()


def test_a_task_beside_this_thread_may_share_its_own_work_among_the_pool(monkeypatch):
    """With all places of the pool waiting for tasks that wait for a place, none would end."""
    monkeypatch.setattr(_threads, "count", lambda: 2)
    done = []

    def share() -> int:
        _threads.each([lambda i=i: done.append(i) for i in range(8)])
        return len(done)

    tasks = [_threads.beside(share) for _ in range(3)]
    _threads.each([lambda: done.append(-1)] * 8)
    assert tasks[-1].result(timeout=60) >= 24 and len(done) == 32
