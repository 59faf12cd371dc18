"""Examples of `regjax.schedules`: a batch of steps gives a batch of values."""

import jax
import jax.numpy as jnp
import numpy as np

import regjax as rj
from tests.contracts.example import Example, normal

STEPS = np.array([-1, 0, 1, 3, 4, 9, 10, 1000], np.int32)
NAN = float("nan")


def schedule(name: str, call, *, bad, identity=None) -> Example:
    """The example of ``call(step)`` on steps before, in and after training."""
    return Example(
        name=f"schedules.{name}",
        call=lambda key, step: call(step),
        arrays={"step": STEPS},
        rows=("step",),
        result="rows",
        identity=None if identity is None else lambda key, step: identity(step),
        bad=bad,
    )


def zero(step):
    return jnp.zeros(jnp.shape(step))


s = rj.schedules
TREE = {"dense": {"kernel": normal(3, 2), "bias": normal(2, seed=1)}}


def _estimate(key, updates):
    """The estimate after two updates; turning the first around gives a second one without rounding."""
    estimator = s.hessian_free_learning_rate(decay=0.5)
    _, state = estimator.apply(estimator.init(updates), updates, 0.1)
    return estimator.apply(state, jax.tree.map(lambda u: jnp.flip(u, 0), updates), 0.1)[0]


def _memory():
    estimator = s.hessian_free_learning_rate()
    return estimator.init(TREE), lambda state, key, updates: estimator.apply(state, updates, 0.1)


def _apply_updates(updates, learning_rate=0.1):
    estimator = s.hessian_free_learning_rate()
    return estimator.apply(estimator.init({"w": jnp.ones(2)}), updates, learning_rate)


EXAMPLES = (
    schedule(
        "dropout_schedule",
        s.dropout_schedule(0.1, total_steps=10, cutoff_steps=5, mode="early"),
        identity=lambda step: (s.dropout_schedule(0.0, total_steps=10)(step), zero(step)),
        bad={
            "rate: above 1": lambda: s.dropout_schedule(1.5, total_steps=10),
            "rate: NaN": lambda: s.dropout_schedule(NAN, total_steps=10),
            "total_steps: zero": lambda: s.dropout_schedule(0.1, total_steps=0),
            "total_steps: a fraction": lambda: s.dropout_schedule(0.1, total_steps=10.0),
            "cutoff_steps: beyond the end": lambda: s.dropout_schedule(0.1, total_steps=10, cutoff_steps=11),
            "cutoff_steps: negative": lambda: s.dropout_schedule(0.1, total_steps=10, cutoff_steps=-1),
            "mode: misspelt": lambda: s.dropout_schedule(0.1, total_steps=10, mode="erly"),
            "decay: misspelt": lambda: s.dropout_schedule(0.1, total_steps=10, decay="lineal"),
        },
    ),
    schedule(
        "early_dropout",
        s.early_dropout(0.1, cutoff_steps=5),
        identity=lambda step: (s.early_dropout(0.0, cutoff_steps=5)(step), zero(step)),
        bad={
            "step: a text": lambda: s.early_dropout(0.1, cutoff_steps=5)("first"),
            "rate: negative": lambda: s.early_dropout(-0.1, cutoff_steps=5),
            "rate: a vector": lambda: s.early_dropout(jnp.ones(2), cutoff_steps=5),
            "cutoff_steps: negative": lambda: s.early_dropout(0.1, cutoff_steps=-5),
            "decay: misspelt": lambda: s.early_dropout(0.1, cutoff_steps=5, decay="cos"),
        },
    ),
    schedule(
        "late_dropout",
        s.late_dropout(0.1, cutoff_steps=5),
        identity=lambda step: (s.late_dropout(0.0, cutoff_steps=5)(step), zero(step)),
        bad={
            "step: a text": lambda: s.late_dropout(0.1, cutoff_steps=5)("first"),
            "rate: above 1": lambda: s.late_dropout(1.1, cutoff_steps=5),
            "cutoff_steps: a fraction": lambda: s.late_dropout(0.1, cutoff_steps=0.5),
        },
    ),
    schedule(
        "one_cycle",
        s.one_cycle(total_steps=10, peak_value=1.0),
        identity=lambda step: (s.one_cycle(total_steps=10, peak_value=0.0)(step), zero(step)),
        bad={
            "step: a text": lambda: s.one_cycle(total_steps=10, peak_value=1.0)("first"),
            "total_steps: zero": lambda: s.one_cycle(total_steps=0, peak_value=1.0),
            "peak_value: negative": lambda: s.one_cycle(total_steps=10, peak_value=-1.0),
            "peak_value: NaN": lambda: s.one_cycle(total_steps=10, peak_value=NAN),
            "pct_start: above 1": lambda: s.one_cycle(total_steps=10, peak_value=1.0, pct_start=1.5),
            "pct_start: no room for three phases": lambda: s.one_cycle(
                total_steps=10, peak_value=1.0, pct_start=0.6, three_phase=True
            ),
            "pct_start: an array": lambda: s.one_cycle(total_steps=10, peak_value=1.0, pct_start=jnp.array(0.3)),
            "anneal_strategy: misspelt": lambda: s.one_cycle(total_steps=10, peak_value=1.0, anneal_strategy="cosine"),
            "div_factor: zero": lambda: s.one_cycle(total_steps=10, peak_value=1.0, div_factor=0.0),
            "final_div_factor: negative": lambda: s.one_cycle(total_steps=10, peak_value=1.0, final_div_factor=-1.0),
            "three_phase: a number": lambda: s.one_cycle(total_steps=10, peak_value=1.0, three_phase=3),
            "endpoint: misspelt": lambda: s.one_cycle(total_steps=10, peak_value=1.0, endpoint="pytorch"),
        },
    ),
    schedule(
        "one_cycle_momentum",
        s.one_cycle_momentum(total_steps=10, three_phase=True),
        bad={
            "step: a text": lambda: s.one_cycle_momentum(total_steps=10)("first"),
            "total_steps: negative": lambda: s.one_cycle_momentum(total_steps=-1),
            "pct_start: negative": lambda: s.one_cycle_momentum(total_steps=10, pct_start=-0.1),
            "anneal_strategy: misspelt": lambda: s.one_cycle_momentum(total_steps=10, anneal_strategy="lin"),
            "base_momentum: above 1": lambda: s.one_cycle_momentum(total_steps=10, base_momentum=1.1),
            "max_momentum: negative": lambda: s.one_cycle_momentum(total_steps=10, max_momentum=-0.1),
            "three_phase: a text": lambda: s.one_cycle_momentum(total_steps=10, three_phase="yes"),
            "endpoint: misspelt": lambda: s.one_cycle_momentum(total_steps=10, endpoint="optex"),
        },
    ),
    schedule(
        "lr_range_test",
        s.lr_range_test(low=1e-3, high=1.0, num_steps=10, mode="exp"),
        bad={
            "step: a text": lambda: s.lr_range_test(low=0.1, high=1.0, num_steps=10)("first"),
            "low: negative": lambda: s.lr_range_test(low=-1.0, high=1.0, num_steps=10),
            "low: zero with exp": lambda: s.lr_range_test(low=0.0, high=1.0, num_steps=10, mode="exp"),
            "high: below low": lambda: s.lr_range_test(low=0.5, high=0.1, num_steps=10),
            "num_steps: zero": lambda: s.lr_range_test(low=0.1, high=1.0, num_steps=0),
            "mode: misspelt": lambda: s.lr_range_test(low=0.1, high=1.0, num_steps=10, mode="log"),
        },
    ),
    schedule(
        "ps_kd_alpha",
        lambda step: s.ps_kd_alpha(step, 10),
        identity=lambda step: (s.ps_kd_alpha(step, 10, alpha_final=0.0), zero(step)),
        bad={
            "epoch: a text": lambda: s.ps_kd_alpha("first", 10),
            "total_epochs: zero": lambda: s.ps_kd_alpha(1, 0),
            "alpha_final: above 1": lambda: s.ps_kd_alpha(1, 10, alpha_final=1.5),
            "alpha_final: NaN": lambda: s.ps_kd_alpha(1, 10, alpha_final=NAN),
        },
    ),
    schedule(
        "sigmoid_rampup",
        lambda step: s.sigmoid_rampup(step, 10),
        bad={
            "step: a text": lambda: s.sigmoid_rampup("first", 10),
            "length: negative": lambda: s.sigmoid_rampup(1, -1),
            "length: NaN": lambda: s.sigmoid_rampup(1, NAN),
        },
    ),
    Example(
        name="schedules.hessian_free_learning_rate",
        call=_estimate,
        arrays={"updates": TREE},
        result="other",
        tree="updates",
        wrt=("updates",),
        singular=({"updates": jax.tree.map(np.zeros_like, TREE)}, {"updates": jax.tree.map(np.ones_like, TREE)}),
        bad={
            "decay: above 1": lambda: s.hessian_free_learning_rate(decay=1.5),
            "decay: NaN": lambda: s.hessian_free_learning_rate(decay=NAN),
            "init: negative": lambda: s.hessian_free_learning_rate(init=-0.1),
            "updates: another structure": lambda: _apply_updates({"v": jnp.ones(2)}),
            "updates: another shape": lambda: _apply_updates({"w": jnp.ones(3)}),
            "learning_rate: negative": lambda: _apply_updates({"w": jnp.ones(2)}, -0.1),
        },
        memory=_memory,
    ),
)
