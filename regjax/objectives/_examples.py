"""Losses given per example, and where among the arguments of a call labels and keys are found."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from regjax.core import checks, trees
from regjax.core.strength import accepts
from regjax.core.types import Array, PyTree
from regjax.objectives.lift import LossFn


def mean_of_examples(name: str, loss_fn: LossFn, has_aux: bool) -> LossFn:
    """The mean of a loss per example, ``f(params, *args) -> [B]``; its aux is ``(losses [B], aux)``."""
    checks.function(name, "per_example_loss_fn", loss_fn)
    checks.boolean(name, "has_aux", has_aux)

    @functools.wraps(loss_fn)
    def mean_loss(params: PyTree, *args: Any, **kwargs: Any) -> tuple[Array, tuple[Array, PyTree]]:
        out = loss_fn(params, *args, **kwargs)
        if has_aux and not (isinstance(out, tuple) and len(out) == 2):
            checks.fail(name, "per_example_loss_fn", "a function that returns (losses, aux) where has_aux=True", out)
        losses, aux = out if has_aux else (out, None)
        if not (isinstance(losses, jax.Array) and losses.ndim == 1 and losses.size and trees.is_float(losses)):
            expected = "a function that returns floating-point losses of shape [B] ((losses, aux) needs has_aux=True)"
            checks.fail(name, "per_example_loss_fn", expected, losses)
        losses = losses.astype(trees.accumulator(losses))
        return jnp.mean(losses), (losses, aux)

    return mean_loss


def argument(name: str, where: Any, place: Any, args: tuple[Any, ...], kwargs: dict[str, Any], what: str) -> Any:
    """The argument of a call at a position after ``params``, of a name, or that a function of them all finds."""
    if callable(place):
        return place(*args, **{word: value for word, value in kwargs.items() if accepts(place, word)})
    if isinstance(place, str) and place in kwargs:
        return kwargs[place]
    if not isinstance(place, str) and -len(args) <= place < len(args):
        return args[place]
    given = f"{len(args)} by position and {sorted(kwargs)} by name"
    checks.fail(name, where, f"where {what} is among the arguments after params (here: {given})", place)


def check_place(name: str, where: str, place: Any) -> None:
    """A place that `argument` understands."""
    if not callable(place) and (isinstance(place, bool) or not isinstance(place, (int, str))):
        checks.fail(name, where, "a position among the arguments after params, a name, or a function of them", place)
