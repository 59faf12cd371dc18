"""AAER: single-step adversarial training that holds down the adversarial examples whose loss is lower than before the step."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from regjax.core import checks, classes
from regjax.core.strength import accepts, resolve
from regjax.core.types import Array, Key, PyTree, Strength
from regjax.objectives.adversarial import _inputs
from regjax.objectives.lift import AxisName, freeze

_START = {"rs": 1.0, "n": 2.0}
_STEP = {"rs": 1.25, "n": 1.0}


def aaer_loss(
    logits_before: Any,
    logits_after: Any,
    labels: Any,
    *,
    count_weight: Strength = 1.0,
    confidence_weight: Strength = 2.5,
    logit_weight: Strength = 1.5,
    confidence_gradient: bool = False,
    axis_name: AxisName = None,
) -> Array:
    r"""Cross-entropy after an attack's step, plus a penalty on the abnormal examples, whose loss the step has lowered.

    Formula:
      With the cross-entropies :math:`b_i` before and :math:`a_i` after the step, abnormal examples A :math:`= \{b_i > a_i\}` and
      the others N:

      .. math:: \frac1B \sum_i a_i + \lambda_1 \frac{|A|}{B} \left( \lambda_2 \, mean_A(b_i - a_i)
                + \lambda_3 \max(V_A - sg(V_N), 0) \right), \quad V_S = mean_S \|z^{before}_i - z^{after}_i\|^2

      The penalty is 0 unless there are examples of both kinds. Logits before the step are constants.

    Args:
      logits_before: float ``[B, K]``, at the start of the attack: the randomly perturbed input, not the clean one.
      logits_after: float ``[B, K]``, at the adversarial example.
      labels: integer class ids ``[B]``, or probabilities ``[B, K]``.
      count_weight: :math:`\lambda_1`, at least 0, default 1; 0 is cross-entropy.
      confidence_weight: :math:`\lambda_2`, at least 0, default 2.5.
      logit_weight: :math:`\lambda_3`, at least 0, default 1.5. The authors take, for FGSM-RS and N-FGSM on CIFAR-10, the pairs
        (2.5, 1.5) and (1.5, 0.15) at radius 8/255, (5, 2.75) and (5, 0.55) at 12, (7, 3.25) and (8.5, 1.5) at 16, (5.75, 1.5)
        and (2.75, 0.75) at 32.
      confidence_gradient: whether the second term has a gradient, through :math:`a_i`. False (default) as in the authors' code:
        it is seen in the value only.
      axis_name: the mapped axis (or axes) over which the batch is split; None (default).

    Returns:
      The loss, a scalar in float32 or better.

    Raises:
      ValueError: if a shape or dtype does not fit, or a weight is negative or not finite.

    Cost:
      One pass over the logits each way.
      XLA at [1024, 1000]: at most 5.5 times the FLOPs and 2.1 times the bytes of cross-entropy, and 1.1 times its memory more.

    Use:
      Part of: `aaer`.
      When: Call it with the logits before and after an attack step of your own.
      Badly with: Clean logits in place of those at the random start. Batches of abnormal examples alone, where it is switched
        off.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> before, after = jnp.zeros((2, 2)), jnp.array([[2.0, 0.0], [0.0, 1.0]])
      >>> round(float(rj.objectives.aaer_loss(before, after, jnp.array([0, 0]))), 4)
      3.6779

    References:
      Lin et al., Eliminating Catastrophic Overfitting Via Abnormal Adversarial Examples Regularization, 2023, NeurIPS,
      arXiv 2404.08154.
      In the authors' code both cross-entropies of the second term are detached, so that it changes the value and not the
      gradient; and with abnormal examples only the penalty is off.
    """
    name = "objectives.aaer_loss"
    weights = {"count_weight": count_weight, "confidence_weight": confidence_weight, "logit_weight": logit_weight}
    for argument, value in weights.items():
        checks.number(name, argument, value, low=0.0)
    checks.boolean(name, "confidence_gradient", confidence_gradient)
    checks.axis_name(name, axis_name)
    after = checks.floating(name, "logits_after", logits_after, ndim=2)
    before = checks.floating(name, "logits_before", logits_before, shape=after.shape)
    x = classes.class_inputs(name, after, labels)
    z = jax.lax.stop_gradient(classes.class_inputs(name, before).logits)
    a = classes.cross_entropy(x)
    b = jax.lax.stop_gradient(classes.cross_entropy(x._replace(logits=z)))
    total = lambda v: jnp.sum(v) if axis_name is None else jax.lax.psum(jnp.sum(v), axis_name)
    abnormal = b > jax.lax.stop_gradient(a)
    size, count = total(jnp.ones_like(a)), total(abnormal.astype(a.dtype))
    among = lambda chosen, v: total(jnp.where(chosen, v, 0)) / jnp.maximum(total(chosen.astype(v.dtype)), 1)
    moved = jnp.sum(jnp.square(z - x.logits), axis=-1)
    gap = among(abnormal, b - (a if confidence_gradient else jax.lax.stop_gradient(a)))
    excess = jax.nn.relu(among(abnormal, moved) - jax.lax.stop_gradient(among(~abnormal, moved)))
    first, second, third = (jnp.asarray(value, a.dtype) for value in weights.values())
    penalty = first * count / size * (second * gap + third * excess)
    return total(a) / size + jnp.where((count > 0) & (count < size), penalty, 0)


def aaer(
    apply_fn: Callable[..., Any],
    *,
    epsilon: Strength = 8 / 255,
    alpha_scale: float | None = None,
    init: Literal["rs", "n"] = "rs",
    count_weight: Strength = 1.0,
    confidence_weight: Strength = 2.5,
    logit_weight: Strength = 1.5,
    confidence_gradient: bool = False,
    low: Any = 0.0,
    high: Any = 1.0,
    axis_name: AxisName = None,
    has_aux: bool = False,
    with_info: bool = False,
) -> Callable[..., Any]:
    r"""Single-step adversarial training regularised on abnormal adversarial examples, against catastrophic overfitting.

    Formula:
      .. math:: aaer\_loss(z(x + \delta_0), z(x + \delta), y), \quad
                \delta = P(\delta_0 + s \epsilon \, sign(\nabla_\delta CE(z(x + \delta_0), y)))

      ``"rs"``: :math:`\delta_0 \sim U[-\epsilon, \epsilon]`, s = 1.25, with P the clip to :math:`[-\epsilon, \epsilon]`; ``"n"``:
      :math:`\delta_0 \sim U[-2\epsilon, 2\epsilon]`, s = 1, without it. Both perturbed inputs are clipped to the box.

    Args:
      apply_fn: ``apply_fn(params, x, *args, **kwargs) -> logits [B, K]``, or ``(logits, aux)`` with ``has_aux=True``.
      epsilon: the radius, at least 0, default 8/255; a number, a schedule read at the keyword ``step`` of the call, or an array
        that broadcasts to ``x``. 0 is the mean cross-entropy at ``x``. On SVHN the authors ramp it up over 5 epochs.
      alpha_scale: s, at least 0; None (default): as above.
      init: ``"rs"`` (default) or ``"n"``: the random start.
      count_weight: as in `aaer_loss`, as are the other weights; numbers or schedules.
      confidence_weight: default 2.5.
      logit_weight: default 1.5.
      confidence_gradient: whether the confidence term has a gradient, default False.
      low: the least value of an input, default 0; a number, an array that broadcasts to ``x``, or None for no limit.
      high: the largest value, default 1, likewise.
      axis_name: the mapped axis (or axes) over which the batch is split; None (default).
      has_aux: whether ``apply_fn`` returns ``(logits, aux)``; the aux kept is that of the pass at the adversarial examples.
      with_info: whether ``info`` is returned in addition: ``{"abnormal": share}``, which leaps up when overfitting sets in.

    Returns:
      ``f(params, key, x, labels, *args, step=None, **kwargs)``, which returns the loss; with ``has_aux`` or ``with_info``
      ``(loss, aux)``, ``(loss, info)``, or with both ``(loss, (aux, info))``. Further arguments go to ``apply_fn``, and ``step``
      too if it takes one.

    Raises:
      ValueError: if an argument has a wrong type, shape or range, or a schedule is called without ``step``.

    Cost:
      One forward pass and one backward pass to the inputs more than a plain step, as FGSM training: about 1.7 times its FLOPs;
      the logits of the start come from the attack's own pass.
      XLA at an MLP [64, 256, 256, 10] with batch 128: at most 1.9 times the FLOPs and 1.8 times the bytes of a plain training
      step, and 0.01 times its memory more.

    Use:
      For: adversarial inputs.
      When: Single-step training from a random start overfits to itself and no pass more is affordable. Its info counts abnormal
        examples, which is a free alarm.
      Not when: The start is what helps: in the adversarial study a gain over 'fgsm_rs' was not shown and abnormal examples
        stayed, while 'n_fgsm' did better. Radii other than the published ones: the weights must be tuned to each.
      Badly with: Another loss than cross-entropy, which is built in. `elle` for the same end. Tiny batches, where the share of
        abnormal examples is noise. Dropout that differs between the two passes.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> loss_fn = rj.objectives.aaer(lambda w, x: x @ w, epsilon=0.1, with_info=True)
      >>> w, x, labels = jnp.eye(2), jnp.array([[0.8, 0.2], [0.3, 0.7]]), jnp.array([0, 1])
      >>> loss, info = loss_fn(w, jax.random.key(0), x, labels)
      >>> float(info["abnormal"])  # the loss of a linear model rises with every step
      0.0

    References:
      Lin et al., Eliminating Catastrophic Overfitting Via Abnormal Adversarial Examples Regularization, 2023, NeurIPS,
      arXiv 2404.08154;
      `aaer_loss` says what their code does.
    """
    name = "objectives.aaer"
    checks.function(name, "apply_fn", apply_fn)
    _inputs.check_size(name, "epsilon", epsilon)
    checks.choice(name, "init", init, tuple(_START))
    if alpha_scale is not None:
        checks.number(name, "alpha_scale", alpha_scale, low=0.0)
    strengths = {"count_weight": count_weight, "confidence_weight": confidence_weight, "logit_weight": logit_weight}
    for argument, value in strengths.items():
        checks.strength(name, argument, value, low=0.0)
    checks.boolean(name, "confidence_gradient", confidence_gradient)
    _inputs.check_bounds(name, low, high)
    checks.axis_name(name, axis_name)
    checks.boolean(name, "has_aux", has_aux)
    checks.boolean(name, "with_info", with_info)
    takes_step = accepts(apply_fn, "step")

    def objective(params: PyTree, key: Key, x: Array, labels: Any, *args: Any, step: Any = None, **kwargs: Any) -> Any:
        x = _inputs.inputs(name, x)
        radius = resolve(epsilon, step, name, "epsilon")
        ball = _inputs.make_ball(name, x, radius, low, high, "linf" if init == "rs" else "box")
        if takes_step and step is not None:
            kwargs["step"] = step

        def logits(params: PyTree, x: Array, args: Any, kwargs: Any) -> tuple[Array, Any]:
            out = apply_fn(params, x, *args, **kwargs)
            if has_aux and not (isinstance(out, tuple) and len(out) == 2):
                checks.fail(name, "apply_fn", "a function that returns (logits, aux) where has_aux=True", out)
            z, aux = out if has_aux else (out, None)
            return checks.floating(name, "apply_fn's result", z, shape=(x.shape[0], None)), aux

        frozen = freeze((params, args, kwargs))

        def attacked(x: Array) -> tuple[Array, Array]:
            z, _ = logits(frozen[0], x, *frozen[1:])
            return jnp.sum(classes.cross_entropy(classes.class_inputs(name, z, labels))), z

        delta = ball.in_box(ball.start(checks.key(name, key), _START[init]))
        g, before = jax.grad(attacked, has_aux=True)(jax.lax.stop_gradient(ball.moved(delta)))
        rate = (_STEP[init] if alpha_scale is None else alpha_scale) * ball.epsilon
        moved = jax.lax.stop_gradient(ball.moved(ball.project(delta + rate * ball.ascent(g))))
        after, aux = logits(params, moved, args, kwargs)
        weights = {argument: resolve(value, step, name, argument) for argument, value in strengths.items()}
        for argument, value in weights.items():
            checks.number(name, argument, value, low=0.0)
        # Without an attack no example is abnormal, whatever rounding makes of two equal losses.
        weights["count_weight"] = weights["count_weight"] * jnp.any(ball.epsilon != 0)
        options: dict[str, Any] = {"confidence_gradient": confidence_gradient, "axis_name": axis_name, **weights}
        value = aaer_loss(before, after, labels, **options)
        if not (has_aux or with_info):
            return value
        info = {"abnormal": jax.lax.stop_gradient(_abnormal(name, before, after, labels, axis_name))}
        return value, (aux, info) if has_aux and with_info else info if with_info else aux

    return objective


def _abnormal(name: str, before: Array, after: Array, labels: Any, axis_name: AxisName) -> Array:
    """The share of examples whose loss the step has lowered."""
    b, a = (classes.cross_entropy(classes.class_inputs(name, z, labels)) for z in (before, after))
    share = jnp.mean((b > a).astype(a.dtype))
    return share if axis_name is None else jax.lax.pmean(share, axis_name)
