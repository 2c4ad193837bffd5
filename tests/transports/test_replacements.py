"""How often a channel may be replaced."""

from __future__ import annotations

from aiorpcq.transports.replacements import Replacements


def test_ten_in_ten_seconds_may_be_replaced_and_the_next_may_not() -> None:
    replacements = Replacements()
    assert [replacements.may_replace(100.0 + 0.9 * number) for number in range(11)] == [True] * 10 + [False]
    assert str(replacements) == "11 channels were closed within 10 s"


def test_one_more_may_be_as_the_first_grows_old() -> None:
    replacements = Replacements()
    for number in range(10):
        replacements.may_replace(float(number))
    assert not replacements.may_replace(9.9)
    assert replacements.may_replace(10.0)
    assert not replacements.may_replace(10.9)
    assert replacements.may_replace(11.0)
