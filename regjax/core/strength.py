"""Strengths: one rule for numbers, traced scalars and schedules."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

from regjax.core import checks
from regjax.core.types import Strength


def strengths(fn: Callable[..., Any]) -> tuple[str, ...]:
    """The names of a function's parameters that are annotated as `Strength`."""
    parameters = inspect.signature(fn).parameters.values()
    return tuple(p.name for p in parameters if p.annotation == Strength or p.annotation == "Strength")


def at_step(fn: Callable[..., Any], step: Any) -> Callable[..., Any]:
    """Evaluates the schedules among a partial's strengths at a step.

    ``at_step(partial(f, weight=schedule), step)`` is ``partial(f, weight=schedule(step))`` for every parameter that ``f``
    annotates as a `Strength`; numbers, and functions given for other parameters, pass unchanged.

    Args:
      fn: a function, or a ``functools.partial`` of one, whose strengths may be schedules ``step -> value``.
      step: the step at which to evaluate them; an integer or a traced scalar.

    Returns:
      The function with every scheduled strength bound to its value.

    Raises:
      ValueError: if ``fn`` is not callable.

    Cost:
      None; the schedule is part of the compiled step.

    Example:
      >>> import functools, jax.numpy as jnp, optax, regjax as rj
      >>> loss = functools.partial(rj.losses.maxsup, weight=optax.linear_schedule(0.0, 0.2, 10))
      >>> round(float(rj.at_step(loss, 5).keywords["weight"]), 6)
      0.1
    """
    checks.function("at_step", "fn", fn)
    if not isinstance(fn, functools.partial):
        return fn
    names = strengths(fn.func)
    bound = {name: value(step) for name, value in fn.keywords.items() if name in names and callable(value)}
    return functools.partial(fn, **bound) if bound else fn


def resolve(value: Strength, step: Any, function: str, argument: str) -> Any:
    """The value of a strength at a step; a schedule without a step is an error that says how to give one."""
    if not callable(value):
        return value
    if step is None:
        checks.fail(
            function,
            argument,
            "a number where the loss is called without step= (a schedule needs loss_fn(params, ..., step=step))",
            value,
        )
    return value(step)


def accepts(fn: Callable[..., Any], name: str) -> bool:
    """Whether a function can be called with keyword ``name``."""
    try:
        parameters = inspect.signature(fn).parameters
    except (TypeError, ValueError):
        return False
    if name in parameters:
        return parameters[name].kind in (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())


def positional_count(fn: Callable[..., Any]) -> int:
    """How many positional arguments a function requires."""
    required = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    try:
        parameters = inspect.signature(fn).parameters.values()
    except (TypeError, ValueError):
        return 2
    return sum(p.kind in required and p.default is p.empty for p in parameters)
