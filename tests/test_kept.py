"""Results are made once for each object and for all else they depend on, and do not outlive it."""

import gc
import weakref

import pytest

from osteomorph.kept import kept


class Thing:
    pass


def test_what_is_made_is_kept_for_each_object_and_argument():
    calls = []

    @kept
    def named(thing: Thing, number: int, word: str = "a") -> str:
        """What it does."""
        calls.append((thing, number, word))
        return f"{number}{word}"

    one, other = Thing(), Thing()
    assert [named(one, 1), named(one, 1), named(one, 2), named(one, 1, word="b"), named(other, 1)] == [
        "1a",
        "1a",
        "2a",
        "1b",
        "1a",
    ]
    assert calls == [(one, 1, "a"), (one, 2, "a"), (one, 1, "b"), (other, 1, "a")]
    assert named.__doc__ == "What it does."


def test_a_failure_is_not_kept():
    tried = []

    @kept
    def failing(thing: Thing) -> int:
        tried.append(thing)
        if len(tried) == 1:
            raise ZeroDivisionError
        return 7

    thing = Thing()
    with pytest.raises(ZeroDivisionError):
        failing(thing)
    assert failing(thing) == 7


def test_results_go_with_their_object():
    made = kept(lambda thing: [type(thing)])
    thing = Thing()
    here, result = weakref.ref(thing), made(thing)
    assert made(thing) is result
    del thing
    gc.collect()
    assert here() is None
