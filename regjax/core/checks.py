"""Argument checks: a ValueError at trace time that names function, argument, expectation and value.

Static values (Python and NumPy numbers) are checked by value, arrays by shape and dtype only: the value of a traced
array is unknown, and reading a concrete one would wait for the device.
"""

import difflib
import math
import numbers
from collections.abc import Sequence
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np


def fail(function: str, argument: str, expected: str, got: Any) -> NoReturn:
    """Raises the ValueError that every check ends in."""
    raise ValueError(f"regjax.{function}: {argument} must be {expected}, got {describe(got)}")


def describe(value: Any) -> str:
    """A short text for an offending value: shape and dtype of an array, else its repr."""
    if isinstance(value, (jax.Array, np.ndarray)):
        return f"{value.dtype}[{','.join(map(str, value.shape))}]"
    text = repr(value.item() if isinstance(value, np.generic) else value)
    return text if len(text) <= 80 else text[:77] + "..."


def number(
    function: str,
    argument: str,
    value: Any,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    open_low: bool = False,
    open_high: bool = False,
) -> Any:
    """A finite real number in an interval, or a scalar array (whose value is not read)."""
    expected = "a finite number" + _interval(low, high, open_low, open_high)
    if isinstance(value, jax.Array) or (isinstance(value, np.ndarray) and value.ndim):
        if value.shape != () or not jnp.issubdtype(value.dtype, jnp.number):
            fail(function, argument, expected + " or a scalar array", value)
        return value
    if callable(value):
        fail(function, argument, expected + " (a schedule is evaluated first: regjax.at_step(fn, step))", value)
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (numbers.Real, np.number, np.ndarray)):
        fail(function, argument, expected, value)
    x = float(value)
    if not math.isfinite(x) or x < low or x > high or (open_low and x == low) or (open_high and x == high):
        fail(function, argument, expected, value)
    return value


def strength(function: str, argument: str, value: Any, **limits: Any) -> Any:
    """A number as in `number`, or a schedule: for factories, which see the step later."""
    return value if callable(value) else number(function, argument, value, **limits)


def integer(function: str, argument: str, value: Any, *, low: int | None = None, high: int | None = None) -> int:
    """A static integer, optionally within inclusive limits."""
    expected = "an integer" + _interval(-math.inf if low is None else low, math.inf if high is None else high)
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
        fail(function, argument, expected, value)
    if (low is not None and value < low) or (high is not None and value > high):
        fail(function, argument, expected, value)
    return int(value)


def boolean(function: str, argument: str, value: Any) -> bool:
    """A static bool."""
    if not isinstance(value, (bool, np.bool_)):
        fail(function, argument, "True or False", value)
    return bool(value)


def choice(function: str, argument: str, value: Any, options: Sequence[Any]) -> Any:
    """One of a few named options; a misspelt one is told the nearest."""
    # `in` would compare arrays, and True == 1: compare type and value.
    if any(type(value) is type(option) and value == option for option in options):
        return value
    near = difflib.get_close_matches(value, [o for o in options if isinstance(o, str)], 1) if isinstance(value, str) else []
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    fail(
        function,
        argument,
        "one of " + ", ".join(map(repr, options)),
        value if not hint else _Verbatim(repr(value) + hint),
    )


def function(name: str, argument: str, value: Any) -> Any:
    """A callable."""
    if not callable(value):
        fail(name, argument, "a function", value)
    return value


def array(
    function: str,
    argument: str,
    value: Any,
    *,
    shape: Sequence[int | None] | None = None,
    ndim: int | None = None,
    min_ndim: int = 0,
) -> jax.Array:
    """A numeric or boolean array of the given rank or shape (``None`` matches any length)."""
    if not isinstance(value, (jax.Array, np.ndarray, np.number, np.bool_, float, int, bool, list, tuple)):
        fail(function, argument, "an array" + _shape(shape, ndim, min_ndim), value)
    try:
        value = jnp.asarray(value)
    except (TypeError, ValueError):
        fail(function, argument, "an array" + _shape(shape, ndim, min_ndim), value)
    wrong_rank = (ndim is not None and value.ndim != ndim) or value.ndim < min_ndim
    wrong_shape = shape is not None and (
        value.ndim != len(shape) or any(want is not None and want != have for want, have in zip(shape, value.shape, strict=True))
    )
    if wrong_rank or wrong_shape:
        fail(function, argument, "an array" + _shape(shape, ndim, min_ndim), value)
    return value


def floating(function: str, argument: str, value: Any, **shape: Any) -> jax.Array:
    """A floating-point array; integer input is refused rather than cast silently."""
    value = array(function, argument, value, **shape)
    if not jnp.issubdtype(value.dtype, jnp.floating):
        fail(
            function,
            argument,
            "a floating-point array" + _shape(shape.get("shape"), shape.get("ndim"), shape.get("min_ndim", 0)),
            value,
        )
    return value


def integers(function: str, argument: str, value: Any, **shape: Any) -> jax.Array:
    """An integer array."""
    value = array(function, argument, value, **shape)
    if not jnp.issubdtype(value.dtype, jnp.integer):
        fail(
            function,
            argument,
            "an integer array" + _shape(shape.get("shape"), shape.get("ndim"), shape.get("min_ndim", 0)),
            value,
        )
    return value


def images(function: str, argument: str, value: Any) -> jax.Array:
    """A floating-point batch of images [B, H, W, C]."""
    value = array(function, argument, value)
    if value.ndim != 4 or not jnp.issubdtype(value.dtype, jnp.floating):
        fail(function, argument, "floating-point images of shape [B, H, W, C]", value)
    return value


def key(function: str, value: Any, argument: str = "key") -> jax.Array:
    """One JAX random key: a typed key of shape [] or a raw uint32[2] one."""
    if isinstance(value, (jax.Array, np.ndarray)):
        typed = jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
        if (typed and value.shape == ()) or (
            not typed and value.dtype == jnp.uint32 and value.shape[:-1] == () and value.ndim == 1
        ):
            return value  # type: ignore[return-value]
    fail(function, argument, "one random key, jax.random.key(seed)", value)


def example_mask(function: str, argument: str, value: Any, shape: tuple[int, ...]) -> jax.Array | None:
    """A boolean mask of exactly ``shape``, or None."""
    if value is None:
        return None
    value = array(function, argument, value, shape=shape)
    if value.dtype != jnp.bool_:
        fail(function, argument, f"a boolean mask of shape {_brackets(shape)}", value)
    return value


def same_structure(function: str, argument: str, tree: Any, reference: Any, of: str) -> Any:
    """A pytree with the structure and leaf shapes of another."""
    have: Any = jax.tree.structure(tree)
    want: Any = jax.tree.structure(reference)
    if have != want:
        fail(
            function,
            argument,
            f"a tree of the structure of {of}, {_Verbatim(_clip(str(want)))!r}",
            _Verbatim(_clip(str(have))),
        )
    for (path, leaf), other in zip(jax.tree_util.tree_flatten_with_path(tree)[0], jax.tree.leaves(reference), strict=True):
        if jnp.shape(leaf) != jnp.shape(other):
            where = jax.tree_util.keystr(path)
            fail(function, argument + where, f"of shape {_brackets(jnp.shape(other))} as in {of}", leaf)
    return tree


class _Verbatim(str):
    """A text that `describe` shows without quotes."""

    def __repr__(self) -> str:
        return str(self)


def _clip(text: str) -> str:
    return text if len(text) <= 120 else text[:117] + "..."


def _brackets(shape: Sequence[int | None]) -> str:
    return "[" + ", ".join("any" if n is None else str(n) for n in shape) + "]"


def _shape(shape: Sequence[int | None] | None, ndim: int | None, min_ndim: int) -> str:
    if shape is not None:
        return f" of shape {_brackets(shape)}"
    if ndim is not None:
        return f" of {ndim} dimensions"
    return f" of at least {min_ndim} dimensions" if min_ndim else ""


def _interval(low: float, high: float, open_low: bool = False, open_high: bool = False) -> str:
    if low == -math.inf and high == math.inf:
        return ""
    if high == math.inf:
        return f" {'>' if open_low else '>='} {low:g}"
    if low == -math.inf:
        return f" {'<' if open_high else '<='} {high:g}"
    return f" in {'(' if open_low else '['}{low:g}, {high:g}{')' if open_high else ']'}"


def axis_name(function: str, value: Any) -> Any:
    """None, the name of a mapped axis, or a tuple of names."""
    names = value if isinstance(value, tuple) else (value,)
    if value is not None and not (names and all(isinstance(name, str) for name in names)):
        fail(function, "axis_name", "None, the name of a mapped axis, or a tuple of names", value)
    return value


def concrete(function: str, argument: str, value: Any, why: str = "as the function runs on the host") -> np.ndarray:
    """The given value as a NumPy array; refuses traced ones. Not of a checked array, which inside a trace is traced."""
    try:
        return np.asarray(value)
    except jax.errors.TracerArrayConversionError:
        fail(function, argument, f"concrete, {why}", value)
