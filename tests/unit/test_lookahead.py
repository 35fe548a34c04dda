"""The next value is made while the present one is in use."""

from __future__ import annotations

import threading
import time

import pytest

from instant_nk.fitting.lookahead import Lookahead, in_order


def test_the_following_value_is_made_before_it_is_asked_for_and_each_only_once():
    made = []
    ahead = Lookahead(lambda key: made.append(key) or key * 10, [3, 1, 2])
    assert ahead(3) == 30
    assert ahead(1) == 10
    assert ahead(2) == 20
    assert sorted(made) == [1, 2, 3]


def test_as_many_values_are_made_ahead_as_are_wanted():
    made, lock = [], threading.Lock()

    def make(key):
        with lock:
            made.append(key)
        return key * 10

    ahead = Lookahead(make, range(10), 3)
    assert ahead(0) == 0
    deadline = time.monotonic() + 5
    while len(made) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert sorted(made) == [0, 1, 2, 3]
    assert [ahead(key) for key in range(1, 10)] == [10 * key for key in range(1, 10)]
    assert sorted(made) == list(range(10))


def test_a_value_that_was_not_foreseen_is_made_at_once():
    ahead = Lookahead(lambda key: key * 10, [1, 2, 3])
    assert [ahead(3), ahead(7), ahead(1), ahead(3)] == [30, 70, 10, 30]


def test_an_error_appears_where_its_value_is_asked_for():
    def make(key):
        if key == 2:
            raise ValueError("broken image")
        return key

    ahead = Lookahead(make, [1, 2])
    assert ahead(1) == 1
    with pytest.raises(ValueError, match="broken image"):
        ahead(2)


@pytest.mark.parametrize("threads", (1, 3))
def test_values_come_in_the_order_of_their_keys_whoever_is_first(threads):
    def make(key):
        time.sleep(0.01 * (key % 3))
        return key * 10

    assert list(in_order(make, range(10), threads)) == [key * 10 for key in range(10)]


def test_no_more_values_wait_than_there_are_threads():
    begun, lock = [], threading.Lock()

    def make(key):
        with lock:
            begun.append(key)
        return key

    values = in_order(make, range(20), 3)
    for taken in range(1, 6):
        next(values)
        assert len(begun) <= taken + 3


def test_an_error_of_one_value_ends_the_rest():
    def make(key):
        if key == 2:
            raise ValueError("broken image")
        return key

    values = in_order(make, range(50), 2)
    assert [next(values), next(values)] == [0, 1]
    with pytest.raises(ValueError, match="broken image"):
        next(values)
