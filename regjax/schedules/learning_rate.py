"""Learning rates of super-convergence: one cycle, the range test, and an estimate from the iterates."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from regjax.core import checks, trees
from regjax.core.types import Array, PyTree, Schedule, Stateful


def one_cycle(
    *,
    total_steps: int,
    peak_value: Any,
    pct_start: float = 0.3,
    anneal_strategy: str = "cos",
    div_factor: Any = 25.0,
    final_div_factor: Any = 1e4,
    three_phase: bool = False,
    endpoint: str = "torch",
) -> Schedule:
    r"""A learning rate that rises to a large peak and falls far below its start: one cycle in all of training.

    Formula:
      From ``peak / div_factor`` to ``peak``, then to ``peak / (div_factor final_div_factor)``; with ``three_phase`` first
      back to the start in a mirrored phase. Between two values a and b, at the fraction f of a phase,

      .. math:: a + (b - a) \frac{1 - \cos \pi f}{2} \quad\text{or}\quad a + (b - a) f

      The phases end at steps ``pct_start T - 1`` (``2 pct_start T - 2``) and ``T - 1``, for T = ``total_steps``; with
      ``endpoint="optax"`` at ``floor(pct_start T)`` (``floor(0.85 T)``) and ``T``.

    Args:
      total_steps: T, at least 1. The value stays after the last step.
      peak_value: the largest learning rate, at least 0; often found by `lr_range_test`.
      pct_start: the share of the steps in which the rate rises, in [0, 1], default 0.3; at most 0.5 with ``three_phase``.
      anneal_strategy: ``"cos"`` (default) or ``"linear"``.
      div_factor: peak over start, above 0, default 25.
      final_div_factor: start over end, above 0, default 1e4.
      three_phase: whether the fall stops at the start value, and goes on from there in a phase of its own.
      endpoint: ``"torch"`` (default) or ``"optax"``: which library's phase ends. ``optax.cosine_onecycle_schedule`` is
        ``endpoint="optax"``; ``optax.linear_onecycle_schedule`` is that with ``"linear"`` and ``three_phase=True``.

    Returns:
      The learning-rate schedule alone, ``step -> value`` in float32 (float64 under x64), so that it fits in
      ``optax.adamw(one_cycle(...))``. The momentum that mirrors it is `one_cycle_momentum`.

    Raises:
      ValueError: if a number is out of range or an option is unknown.

    Cost:
      None.

    Use:
      For: compute budget, unstable training.
      When: A run of known, short length, SGD with momentum on clean data: large rates in the middle, and the gain in accuracy
        in the final fall. Lower other regularisers, as the authors do, for the large rates regularise.
      Not when: The length is open, or runs are judged before the end. It did not help on the digits comparison, whose wrong
        labels it learnt by heart as a constant rate does: lower peaks did better.
      Badly with: `swa` over its last steps, which average nearly one point. AdamW whose decay is multiplied by the rate, with a
        peak far above the usual one. Resuming with another ``total_steps``.

    Example:
      >>> import regjax as rj
      >>> rate = rj.schedules.one_cycle(total_steps=20, peak_value=3.0)
      >>> [round(float(rate(step)), 6) for step in (0, 5, 19, 100)]
      [0.12, 3.0, 1.2e-05, 1.2e-05]

    References:
      Smith and Topin, Super-Convergence: Very Fast Training of Neural Networks Using Large Learning Rates, 2017,
      arXiv 1708.07120. The paper's runs are triangular; the cosine form and the defaults are those of PyTorch's OneCycleLR.
    """
    name = "schedules.one_cycle"
    checks.number(name, "peak_value", peak_value, low=0.0)
    checks.number(name, "div_factor", div_factor, low=0.0, open_low=True)
    checks.number(name, "final_div_factor", final_div_factor, low=0.0, open_low=True)
    ends = _phase_ends(name, total_steps, pct_start, anneal_strategy, three_phase, endpoint)
    start = peak_value / div_factor
    final = start / final_div_factor
    values = (start, peak_value, start, final) if three_phase else (start, peak_value, final)
    return _piecewise(name, ends, values, anneal_strategy)


def one_cycle_momentum(
    *,
    total_steps: int,
    pct_start: float = 0.3,
    anneal_strategy: str = "cos",
    base_momentum: Any = 0.85,
    max_momentum: Any = 0.95,
    three_phase: bool = False,
    endpoint: str = "torch",
) -> Schedule:
    r"""The momentum that mirrors `one_cycle`: low where the learning rate is high.

    Formula:
      From ``max_momentum`` to ``base_momentum`` and back, in the phases and shape of `one_cycle`; constant in the third
      phase.

    Args:
      total_steps: as in `one_cycle`, as are ``pct_start``, ``anneal_strategy``, ``three_phase`` and ``endpoint``.
      pct_start: the share of the steps in which the momentum falls.
      anneal_strategy: ``"cos"`` (default) or ``"linear"``.
      base_momentum: the smallest momentum, in [0, 1], default 0.85.
      max_momentum: the largest momentum, in [0, 1], default 0.95.
      three_phase: whether the learning rate has a third phase.
      endpoint: ``"torch"`` (default) or ``"optax"``: which library's phase ends.

    Returns:
      A schedule, ``step -> momentum``, in float32 (float64 under x64): for ``optax.inject_hyperparams(optax.sgd)`` or
      ``optax.inject_hyperparams(optax.adam)`` as ``b1``.

    Raises:
      ValueError: if a number is out of range or an option is unknown.

    Cost:
      None.

    Use:
      Part of: `one_cycle`.
      When: With `one_cycle` at large peaks and SGD or Adam, given through ``optax.inject_hyperparams``.
      Badly with: Other arguments than those of the rate, which puts the two out of phase.

    Example:
      >>> import regjax as rj
      >>> momentum = rj.schedules.one_cycle_momentum(total_steps=20)
      >>> [round(float(momentum(step)), 4) for step in (0, 5, 19)]
      [0.95, 0.85, 0.95]

    References:
      Smith and Topin, Super-Convergence: Very Fast Training of Neural Networks Using Large Learning Rates, 2017,
      arXiv 1708.07120; as PyTorch's OneCycleLR.
    """
    name = "schedules.one_cycle_momentum"
    checks.number(name, "base_momentum", base_momentum, low=0.0, high=1.0)
    checks.number(name, "max_momentum", max_momentum, low=0.0, high=1.0)
    ends = _phase_ends(name, total_steps, pct_start, anneal_strategy, three_phase, endpoint)
    values = (max_momentum, base_momentum, max_momentum) + ((max_momentum,) if three_phase else ())
    return _piecewise(name, ends, values, anneal_strategy)


def lr_range_test(*, low: Any, high: Any, num_steps: int, mode: str = "linear") -> Schedule:
    r"""A learning rate that grows from tiny to too large: where the loss stops falling is the peak for `one_cycle`.

    Formula:
      With f = t / (``num_steps`` - 1), at most 1: ``low + (high - low) f``, or ``low^(1 - f) high^f`` with ``mode="exp"``.

    Args:
      low: the rate at step 0, at least 0; above 0 with ``mode="exp"``.
      high: the rate at the last step, at least ``low``.
      num_steps: the steps of the test, at least 1.
      mode: ``"linear"`` (default) or ``"exp"``.

    Returns:
      A schedule, ``step -> value``, in float32 (float64 under x64).

    Raises:
      ValueError: if a number is out of range or ``mode`` is unknown.

    Cost:
      None.

    Use:
      For: compute budget, unstable training.
      When: Before a long run, once, with the batch size, decay and regularisers of that run: the rate where the loss stops
        falling is the largest peak for `one_cycle`, and below it lies a safer one.
      Not when: Labels are noisy: the test finds the largest rate that trains, and on the digits comparison rates far below did
        better. Losses of batches are too noisy to see the turn.
      Badly with: Going on from its end state, which has diverged. Adam with bias correction in a test of a few dozen steps.

    Example:
      >>> import regjax as rj
      >>> rate = rj.schedules.lr_range_test(low=1e-4, high=1.0, num_steps=5, mode="exp")
      >>> [round(float(rate(step)), 5) for step in range(5)]
      [0.0001, 0.001, 0.01, 0.1, 1.0]

    References:
      Smith, Cyclical Learning Rates for Training Neural Networks, 2015, arXiv 1506.01186.
    """
    name = "schedules.lr_range_test"
    checks.choice(name, "mode", mode, ("linear", "exp"))
    checks.number(name, "low", low, low=0.0, open_low=mode == "exp")
    checks.number(name, "high", high, low=0.0 if isinstance(low, jax.Array) else float(low))
    last = max(checks.integer(name, "num_steps", num_steps, low=1) - 1, 1)

    def schedule(step: Any) -> Array:
        f = jnp.clip(checks.array(name, "step", step).astype(float) / last, 0, 1)
        least, most = jnp.asarray(low, f.dtype), jnp.asarray(high, f.dtype)
        return least ** (1 - f) * most**f if mode == "exp" else (1 - f) * least + f * most

    return schedule


class HessianFreeState(NamedTuple):
    """The memory of `hessian_free_learning_rate`: the running estimate and the last update."""

    estimate: Array
    previous: PyTree


def hessian_free_learning_rate(*, decay: Any = 0.9, init: Any = 0.1) -> Stateful:
    r"""Estimates a good learning rate from two consecutive updates: the inverse curvature along the path.

    Formula:
      .. math:: \hat\epsilon = \epsilon \frac{\|w_2 - w_1\|_1}{\|2 w_2 - w_1 - w_3\|_1}
         = \epsilon \frac{\|u_1\|_1}{\|u_1 - u_2\|_1}, \quad m \leftarrow decay \cdot m + (1 - decay) \hat\epsilon

      with the updates :math:`u_1 = w_2 - w_1, u_2 = w_3 - w_2` and sums over all parameters. On a quadratic of curvature a
      along the path, plain gradient steps give 1 / a. Where the updates are equal (a straight line) or the last one was 0,
      as before the first, m is kept.

    Args:
      decay: the share of the old estimate that is kept, in [0, 1], default 0.9.
      init: the estimate to start from, at least 0, default 0.1.

    Returns:
      A `regjax.Stateful`: ``init(params) -> state``, and ``apply(state, updates, learning_rate) -> (estimate, state)`` with
      the updates that were added to the parameters and the learning rate of the two steps; the estimate in float32 or
      better.

    Raises:
      ValueError: if a number is out of range, or the updates have not the structure and shapes of the parameters.

    Cost:
      One pass over the updates; the memory of one copy of them.
      XLA at 16 times [512, 512]: at most 2.8 times the FLOPs and 2 times the bytes of a copy of its arguments, and 0.28 times
      its memory more.

    Use:
      For: unstable training, compute budget.
      When: As a gauge beside plain SGD on large batches, at nearly no cost: the inverse curvature along the path, to see
        whether the rate is far from it.
      Not when: Batches are small: independent noise in two updates gives about 0.7 of the rate in use, whatever the curvature.
        Adam, whose updates are not the gradient's.
      Badly with: Momentum, gradient clipping and `sam`, after which two updates differ for other reasons than curvature.
        Feeding it back as the rate at once: it follows itself.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> estimator = rj.schedules.hessian_free_learning_rate()
      >>> state = estimator.init(jnp.zeros(2))
      >>> _, state = estimator.apply(state, jnp.array([-0.1, -0.2]), 0.1)
      >>> value, state = estimator.apply(state, jnp.array([-0.05, -0.1]), 0.1)
      >>> round(float(value), 4)
      0.11

    References:
      Smith and Topin, Super-Convergence: Very Fast Training of Neural Networks Using Large Learning Rates, 2017,
      arXiv 1708.07120. The released code reads three saved iterates; their two differences are the same and half the memory.
    """
    name = "schedules.hessian_free_learning_rate"
    checks.number(name, "decay", decay, low=0.0, high=1.0)
    checks.number(name, "init", init, low=0.0)

    def start(params: PyTree) -> HessianFreeState:
        dtype = trees.accumulator(*(leaf for leaf in jax.tree.leaves(params) if trees.is_float(leaf)))
        return HessianFreeState(jnp.asarray(init, dtype), jax.tree.map(jnp.zeros_like, params))

    def apply(state: HessianFreeState, updates: PyTree, learning_rate: Any) -> tuple[Array, HessianFreeState]:
        checks.same_structure(name, "updates", updates, state.previous, "the parameters")
        checks.number(name, "learning_rate", learning_rate, low=0.0)
        dtype = state.estimate.dtype
        # In the dtype of the memory, so that a repeated update is seen as repeated.
        updates = jax.tree.map(lambda old, new: jnp.asarray(new, old.dtype), state.previous, updates)
        moved, bent = jnp.zeros((), dtype), jnp.zeros((), dtype)
        for last, now in zip(*(trees.selected(name, tree, "all") for tree in (state.previous, updates)), strict=True):
            moved += jnp.sum(jnp.abs(last.astype(dtype)))
            bent += jnp.sum(jnp.abs(last.astype(dtype) - now.astype(dtype)))
        known = (moved > 0) & (bent > 0)
        sample = jnp.asarray(learning_rate, dtype) * moved / jnp.where(known, bent, 1)
        keep = jnp.asarray(decay, dtype)
        estimate = jnp.where(known, keep * state.estimate + (1 - keep) * sample, state.estimate)
        return estimate, HessianFreeState(estimate, updates)

    return Stateful(start, apply)


def _phase_ends(
    name: str, total_steps: Any, pct_start: Any, anneal_strategy: Any, three_phase: Any, endpoint: Any
) -> tuple[float, ...]:
    """The steps at which the phases end; the first starts at 0."""
    total = checks.integer(name, "total_steps", total_steps, low=1)
    checks.boolean(name, "three_phase", three_phase)
    if isinstance(pct_start, jax.Array):
        checks.fail(name, "pct_start", "a Python number", pct_start)
    pct = float(checks.number(name, "pct_start", pct_start, low=0.0, high=0.5 if three_phase else 1.0))
    checks.choice(name, "anneal_strategy", anneal_strategy, ("cos", "linear"))
    checks.choice(name, "endpoint", endpoint, ("torch", "optax"))
    if endpoint == "optax":
        return (int(pct * total), int(0.85 * total), total) if three_phase else (int(pct * total), total)
    return (pct * total - 1, 2 * pct * total - 2, total - 1) if three_phase else (pct * total - 1, total - 1)


def _piecewise(name: str, ends: tuple[float, ...], values: tuple[Any, ...], anneal_strategy: str) -> Schedule:
    """The values at 0 and at the phase ends, annealed between them."""
    # A phase of no length is left out: no warm-up for pct_start 0.
    phases = [p for p in zip((0.0, *ends[:-1]), ends, values[:-1], values[1:], strict=True) if p[0] < p[1]]

    def schedule(step: Any) -> Array:
        t = jnp.clip(checks.array(name, "step", step).astype(float), 0, ends[-1])
        value = jnp.zeros_like(t) + values[-1]
        for start, end, before, after in reversed(phases):
            done, left = (t - start) / (end - start), (end - t) / (end - start)
            if anneal_strategy == "cos":
                # (1 - cos pi f) / 2 and (1 + cos pi f) / 2 without cancellation near 0: the last values are 250000 times
                # smaller than the peak.
                done, left = jnp.sin(jnp.pi / 2 * done) ** 2, jnp.sin(jnp.pi / 2 * left) ** 2
            value = jnp.where(t <= end, left * before + done * after, value)
        return value

    return schedule
