"""Which repetitions are recorded and when a recording serves again; graphs are played by Python here (on a GPU: tests/gpu/test_registration_gpu.py)."""

from dataclasses import dataclass, field

import pytest
import torch

from instant_nk.fitting import repeated
from instant_nk.fitting.repeated import repeat

ROWS = [(1.0, 0.5), (2.0, 0.25), (3.0, 0.0), (4.0, 1.0)]


@dataclass(frozen=True)
class Given:
    values: list[torch.Tensor]
    factor: float
    name: str | None = None
    ignored: object = field(default=None, compare=False)


def work(x, y, a, b, given, shift):
    return x + a * given.factor * given.values[0] + shift, y * b + given.values[1].sum()


@pytest.fixture(autouse=True)
def played(monkeypatch):
    """Everything counts as on a GPU, and a graph does its work again; how often one was made."""
    made = []

    def captured(once, pool):
        made.append(once)
        return type("Graph", (), {"replay": lambda _: once()})(), None

    monkeypatch.setattr(repeated, "_on_gpu", lambda tensor: True)
    monkeypatch.setattr(repeated, "capture", captured)
    monkeypatch.setattr(repeated, "_memory", lambda: ((0, 0), None))
    monkeypatch.setattr(repeated, "_recordings", {})
    monkeypatch.setattr(repeated, "_seen", set())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: type("Stream", (), {"synchronize": lambda _: None})())
    return made


def given(seed, factor=2.0, size=3):
    torch.manual_seed(seed)
    return Given([torch.rand(size).double(), torch.rand(5).double()], factor), torch.rand(size).double()


def start(size=3):
    return torch.zeros(size).double(), torch.ones(2).double()


def by_hand(state, rows, given):
    for row in rows:
        state = work(*state, *row, *given)
    return state


def same(found, wanted):
    return all(torch.equal(a, b) for a, b in zip(found, wanted))


def test_one_recording_serves_all_that_have_its_shapes(played):
    for seed in range(4):
        state = start()
        found = repeat(work, state, ROWS, given(seed))
        assert same(found, by_hand(start(), ROWS, given(seed))) and same(state, start())
    assert len(played) == 1
    earlier = repeat(work, start(), ROWS, given(0))
    repeat(work, start(), ROWS, given(1))
    assert same(earlier, by_hand(start(), ROWS, given(0)))  # what was returned is not written over


@pytest.mark.parametrize("other", [(given(0, factor=3.0), start()), (given(0, size=4), start(4))], ids=["another number", "another shape"])
def test_anything_else_is_another_recording(played, other):
    repeat(work, start(), ROWS, given(0))
    changed, state = other
    assert same(repeat(work, state, ROWS, changed), by_hand(state, ROWS, changed)) and len(played) == 2
    assert same(repeat(work, start(), ROWS[:3], given(1)), by_hand(start(), ROWS[:3], given(1)))  # fewer rows: launched the first time
    assert len(played) == 2
    assert same(repeat(work, start(), ROWS[:3], given(2)), by_hand(start(), ROWS[:3], given(2)))
    assert len(played) == 3


def test_a_tensor_that_changed_in_place_is_copied_again(played):
    inputs = given(0)
    repeat(work, start(), ROWS, inputs)
    repeat(work, start(), ROWS, inputs)
    inputs[0].values[0].mul_(2)
    assert same(repeat(work, start(), ROWS, inputs), by_hand(start(), ROWS, inputs)) and len(played) == 1


def test_old_recordings_are_dropped(played, monkeypatch):
    monkeypatch.setattr(repeated, "KEPT", 2)
    for factor in (1.0, 2.0, 1.0, 3.0, 1.0, 2.0):
        repeat(work, start(), ROWS, given(0, factor))
        assert len(repeated._recordings) <= 2
    assert len(played) == 4  # 1, 2, 3 and 2 again


def test_large_states_and_single_repetitions_are_launched(played, monkeypatch):
    monkeypatch.setattr(repeated, "LARGE", 2)
    assert same(repeat(work, start(), ROWS, given(0)), by_hand(start(), ROWS, given(0))) and not played
    monkeypatch.setattr(repeated, "LARGE", 100)
    monkeypatch.setattr(repeated, "RECORD", False)
    assert same(repeat(work, start(), ROWS, given(0)), by_hand(start(), ROWS, given(0))) and not played


def test_what_may_change_unseen_is_refused():
    with pytest.raises(TypeError, match="cannot be given dict"):
        repeat(work, start(), ROWS, ({"a": 1}, torch.zeros(3)))


@pytest.mark.parametrize("ignored", [{}, object()])
def test_fields_that_do_not_count_are_passed_on(played, ignored):
    seen = []

    def note(x, given):
        seen.append(given.ignored)
        return (x,)

    repeat(note, start()[:1], [()] * 4, (Given(given(0)[0].values, 1.0, "a", ignored),))
    assert len(seen) == 4 and all(one is ignored for one in seen)


def test_what_a_repetition_passes_on_is_what_it_was_given():
    def passing(x, before, a, b):
        return x + a * (x - before) + b, x

    begin = torch.zeros(3).double(), torch.ones(3).double()
    wanted = begin
    for row in ROWS:
        wanted = passing(*wanted, *row)
    assert same(repeat(passing, begin, ROWS), wanted)
