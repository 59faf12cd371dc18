"""Laws: the tests of one example. pytest runs each for every example of the table to which it applies, `laws` for one."""

import functools
import importlib
import inspect
import itertools
from collections.abc import Callable, Iterator
from typing import Any

from tests.contracts.example import Example

_MODULES = ("arrays", "trees", "memory", "objectives", "transforms", "devices", "cards")


def law(
    applies: Callable[[Example], Any] = lambda example: True, *, dear: bool = False
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Makes a law of a test with the argument ``example``: `conftest` gives it the examples for which ``applies`` is true.

    A ``dear`` law is marked slow for what is a part of another technique: the quick run tries it on the whole.
    """

    def declare(test: Callable[..., None]) -> Callable[..., None]:
        test.applies, test.dear = applies, dear
        return test

    return declare


def laws(example: Example) -> dict[str, Callable[[], None]]:
    """The laws that apply to an example, which need not be in the table, those marked slow included.

    Args:
      example: of a technique that stands in the ``__all__`` of its stage.

    Returns:
      By name, functions without arguments, each of which raises where the technique breaks the law. Those that need the other
      examples too are left out.
    """
    found = {}
    for module in _MODULES:
        for name, test in vars(importlib.import_module(f"tests.contracts.test_{module}")).items():
            if name.startswith("test_") and hasattr(test, "applies") and test.applies(example):
                for options in _choices(test):
                    if set(inspect.signature(test).parameters) == {"example", *options}:
                        said = ", ".join(map(str, options.values()))
                        title = name.removeprefix("test_").replace("_", " ") + (f" ({said})" if said else "")
                        found[title] = functools.partial(test, example, **options)
    return found


def _choices(test: Callable[..., None]) -> Iterator[dict[str, Any]]:
    """The values of the other arguments for which pytest runs a test."""
    marks = [mark for mark in getattr(test, "pytestmark", ()) if mark.name == "parametrize"]
    names = [mark.args[0] for mark in marks]
    for values in itertools.product(*(mark.args[1] for mark in marks)):
        # A value with marks of its own is a tuple of one.
        yield {name: getattr(value, "values", (value,))[0] for name, value in zip(names, values, strict=True)}
