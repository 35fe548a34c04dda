"""The next value is made while the present one is in use."""

from __future__ import annotations

import pytest

from instant_nk.fitting.lookahead import Lookahead


def test_the_following_value_is_made_before_it_is_asked_for_and_each_only_once():
    made = []
    ahead = Lookahead(lambda key: made.append(key) or key * 10, [3, 1, 2])
    assert ahead(3) == 30
    assert ahead(1) == 10
    assert ahead(2) == 20
    assert made == [3, 1, 2]


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
