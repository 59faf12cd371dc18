"""How the data modules refuse an argument, and how they say that a dataset cannot be had."""

import difflib
import math
import numbers
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np


class DatasetUnavailable(RuntimeError):
    """A dataset that is not on disk and cannot be prepared here, or whose folder cannot be read."""


def refuse(owner: str, argument: str, expected: str, got: Any, *, quote: bool = True) -> NoReturn:
    """Raises the ValueError of a bad argument.

    Args:
      owner: the function or class that refuses.
      argument: the argument or field.
      expected: what it must be.
      got: what it is.
      quote: whether a text in ``got`` is the argument itself, and not a description of it.

    Raises:
      ValueError: always.
    """
    if isinstance(got, np.ndarray) and got.ndim:
        got, quote = f"{got.dtype}[{','.join(map(str, got.shape))}]", False
    shown = repr(got) if quote else str(got)
    raise ValueError(f"{owner}: {argument} must be {expected}, got {shown}")


def number(
    owner: str, argument: str, value: Any, low: float, high: float = math.inf, *, open_high: bool = False, integer: bool = False
) -> None:
    """Requires a finite real number (or an integer) in an interval.

    Args:
      owner: the function or class that asks.
      argument: the argument or field.
      value: what was given.
      low: the least value, included.
      high: the greatest value, included unless ``open_high``.
      open_high: whether ``high`` itself is refused.
      integer: whether it must be an integer.

    Raises:
      ValueError: if it is not.
    """
    kind: Any = numbers.Integral if integer else numbers.Real
    noun = "an integer" if integer else "a finite number"
    bounds = f">= {low:g}" if high == math.inf else f"in [{low:g}, {high:g}{')' if open_high else ']'}"
    fits = isinstance(value, kind) and not isinstance(value, (bool, np.bool_)) and math.isfinite(value)
    if not fits or value < low or value > high or (open_high and value == high):
        refuse(owner, argument, f"{noun} {bounds}", value)


def choice(owner: str, argument: str, value: Any, options: Sequence[str]) -> None:
    """Requires one of a few names, and tells the nearest of a misspelt one.

    Args:
      owner: the function or class that asks.
      argument: the argument or field.
      value: what was given.
      options: the names.

    Raises:
      ValueError: if it is none of them.
    """
    if not isinstance(value, str) or value not in options:
        near = difflib.get_close_matches(value, options, 1) if isinstance(value, str) else []
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        refuse(owner, argument, "one of " + ", ".join(map(repr, options)) + hint, value)
