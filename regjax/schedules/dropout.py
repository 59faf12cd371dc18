"""Rates that act in one part of training only: early and late dropout."""

from typing import Any

import jax
import jax.numpy as jnp

from regjax.core import checks
from regjax.core.types import Array, Schedule, Strength


def dropout_schedule(
    rate: Strength, *, total_steps: int, cutoff_steps: int | None = None, mode: str = "standard", decay: str = "linear"
) -> Schedule:
    r"""The rate of dropout or drop-path over training: always, only early, or only late.

    Formula:
      ``"standard"``: ``rate``. ``"early"``: `early_dropout`. ``"late"``: `late_dropout`.

    Args:
      rate: the rate in [0, 1], or a schedule of it. For drop-path it is the rate of the last block.
      total_steps: the steps of training.
      cutoff_steps: where early dropout ends and late dropout starts, at most ``total_steps``; None (default) is a sixth of
        training, the authors' 50 of 300 epochs.
      mode: ``"standard"`` (default), ``"early"`` for models that underfit, ``"late"`` for models that overfit.
      decay: how early dropout falls, ``"linear"`` (default) or ``"constant"``; the other modes are constant.

    Returns:
      A schedule, ``step -> rate``, in float32 (float64 under x64); steps count from 0.

    Raises:
      ValueError: if ``rate`` is outside [0, 1], a number of steps is out of range, or an option is unknown.

    Cost:
      None. Dropout has to take a traced rate, as those of `regjax.layers` do.

    Use:
      Part of: `early_dropout`, `late_dropout`.
      When: The mode is itself a choice of a configuration or a sweep, and the cutoff shall follow the length of the run.

    Example:
      >>> import regjax as rj
      >>> rate = rj.schedules.dropout_schedule(0.1, total_steps=300, mode="early")
      >>> [round(float(rate(step)), 4) for step in (0, 49, 299)]
      [0.1, 0.0, 0.0]

    References:
      Liu et al., Dropout Reduces Underfitting, 2023, arXiv 2303.01500; as the authors' code. They use early dropout of 0.1,
      early drop-path of 0.5 and late drop-path of 0.4.
    """
    name = "schedules.dropout_schedule"
    checks.strength(name, "rate", rate, low=0.0, high=1.0)
    total_steps = checks.integer(name, "total_steps", total_steps, low=1)
    if cutoff_steps is None:
        cutoff_steps = max(total_steps // 6, 1)
    cutoff_steps = checks.integer(name, "cutoff_steps", cutoff_steps, low=0, high=total_steps)
    checks.choice(name, "mode", mode, ("standard", "early", "late"))
    checks.choice(name, "decay", decay, ("linear", "constant"))
    if mode == "early":
        return early_dropout(rate, cutoff_steps=cutoff_steps, decay=decay)
    return late_dropout(rate, cutoff_steps=cutoff_steps if mode == "late" else 0)


def early_dropout(rate: Strength, *, cutoff_steps: int, decay: str = "linear") -> Schedule:
    r"""A rate that falls to 0 within the first steps: for models that underfit.

    Formula:
      With c = ``cutoff_steps`` and t the step from 0: ``rate (1 - t / (c - 1))`` for t < c (``rate`` with
      ``decay="constant"``, or c = 1), and 0 from then on. So exactly ``rate`` at t = 0 and exactly 0 at t = c - 1.

    Args:
      rate: the rate in [0, 1], or a schedule of it.
      cutoff_steps: c, an integer of at least 0, or a traced scalar.
      decay: ``"linear"`` (default) or ``"constant"``.

    Returns:
      A schedule, ``step -> rate``, in float32 (float64 under x64).

    Raises:
      ValueError: if ``rate`` is outside [0, 1], ``cutoff_steps`` is negative, or ``decay`` is unknown.

    Cost:
      None.

    Use:
      For: unstable training, compute budget.
      When: Small models on large data, or short runs, that underfit: `dropout` at about 0.1 or `drop_path` at 0.5 over the
        first sixth lines up the gradients of batches. The authors report a lower training loss in the end.
      Not when: The model overfits: on the digits comparison, which memorises labels, it lost most of what constant dropout
        gains, and with drop-path it did not help.
      Badly with: A learning-rate warm-up that ends after ``cutoff_steps``: steps are then too small to profit. Dropout and
        drop-path at once.

    Example:
      >>> import regjax as rj
      >>> rate = rj.schedules.early_dropout(0.1, cutoff_steps=5)
      >>> [round(float(rate(step)), 4) for step in range(6)]
      [0.1, 0.075, 0.05, 0.025, 0.0, 0.0]

    References:
      Liu et al., Dropout Reduces Underfitting, 2023, arXiv 2303.01500.
    """
    name = "schedules.early_dropout"
    checks.strength(name, "rate", rate, low=0.0, high=1.0)
    cutoff_steps = _steps(name, cutoff_steps)
    checks.choice(name, "decay", decay, ("linear", "constant"))

    def schedule(step: Any) -> Array:
        t = jnp.maximum(checks.array(name, "step", step).astype(float), 0)
        share = 1 - t / jnp.maximum(cutoff_steps - 1, 1) if decay == "linear" else jnp.ones_like(t)
        return jnp.where(t < cutoff_steps, _value(rate, step) * share, 0)

    return schedule


def late_dropout(rate: Strength, *, cutoff_steps: int) -> Schedule:
    r"""A rate that starts after the first steps: for models that overfit.

    Formula:
      0 for t < ``cutoff_steps``, and ``rate`` from then on, with t the step from 0.

    Args:
      rate: the rate in [0, 1], or a schedule of it.
      cutoff_steps: the steps without dropout, an integer of at least 0, or a traced scalar.

    Returns:
      A schedule, ``step -> rate``, in float32 (float64 under x64).

    Raises:
      ValueError: if ``rate`` is outside [0, 1] or ``cutoff_steps`` is negative.

    Cost:
      None.

    Use:
      For: few labels.
      When: Models that overfit, where noise from the start slows the first fit: the authors use it for drop-path of 0.4 in
        ViT-B. On the digits comparison it came out as constant `dropout` and `drop_path` did.
      Not when: Labels are noisy and are learnt before ``cutoff_steps``, or the run is short beside it.
      Badly with: Learning rates that are near 0 when it starts: the noise then comes too late. Optimiser or batch statistics
        tuned without noise, which jump at the cutoff.

    Example:
      >>> import regjax as rj
      >>> rate = rj.schedules.late_dropout(0.4, cutoff_steps=50)
      >>> [round(float(rate(step)), 4) for step in (0, 49, 50, 1000)]
      [0.0, 0.0, 0.4, 0.4]

    References:
      Liu et al., Dropout Reduces Underfitting, 2023, arXiv 2303.01500.
    """
    name = "schedules.late_dropout"
    checks.strength(name, "rate", rate, low=0.0, high=1.0)
    cutoff_steps = _steps(name, cutoff_steps)

    def schedule(step: Any) -> Array:
        t = jnp.maximum(checks.array(name, "step", step).astype(float), 0)
        return jnp.where(t >= cutoff_steps, _value(rate, step), 0)

    return schedule


def _value(rate: Any, step: Any) -> Array:
    return jnp.asarray(rate(step) if callable(rate) else rate, float)


def _steps(name: str, value: Any) -> Any:
    """A number of steps: a static integer, or a scalar array, as sweeps trace it."""
    is_array = isinstance(value, jax.Array)
    return checks.number(name, "cutoff_steps", value) if is_array else checks.integer(name, "cutoff_steps", value, low=0)
