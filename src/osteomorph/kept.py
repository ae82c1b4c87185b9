"""Results kept for as long as what they were made of lives."""

from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar
from weakref import WeakKeyDictionary

Source = TypeVar("Source")
More = ParamSpec("More")
Made = TypeVar("Made")


def kept(make: Callable[Concatenate[Source, More], Made]) -> Callable[Concatenate[Source, More], Made]:
    """A function of an object that never changes, and of more that can be hashed, which does its work once for each.

    Two threads that ask at once may both do it; then one result is kept.
    """
    known: WeakKeyDictionary[Source, dict[object, Made]] = WeakKeyDictionary()

    @wraps(make)
    def once(source: Source, *args: More.args, **kwargs: More.kwargs) -> Made:
        made, key = known.setdefault(source, {}), (args, tuple(sorted(kwargs.items())))
        if key not in made:
            made[key] = make(source, *args, **kwargs)
        return made[key]

    return once
