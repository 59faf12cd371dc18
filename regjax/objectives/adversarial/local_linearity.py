"""ELLE: a penalty on the curvature of the loss between inputs near the data, against catastrophic overfitting, and its weight."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from regjax.core import checks, sharding, trees
from regjax.core.strength import accepts, resolve
from regjax.core.types import Array, Key, PyTree, Stateful, Strength
from regjax.objectives.adversarial import _inputs
from regjax.objectives.adversarial.attacks import SingleStep
from regjax.objectives.lift import is_zero

# ``per_example_loss_fn(params, x, labels, *args, **kwargs) -> [B]``.
PerExampleLossFn: TypeAlias = Callable[..., Any]


def elle_penalty(per_example_loss_fn: PerExampleLossFn, *, epsilon: Strength, has_aux: bool = False) -> Callable[..., Array]:
    r"""How far the loss is from linear between two random points near each example: the ELLE error.

    Formula:
      .. math:: E = \frac1B \sum_i \left( l_i(x_c) - (1 - \alpha_i) l_i(x_a) - \alpha_i l_i(x_b) \right)^2

      with :math:`x_{a,b} = x + \epsilon u_{a,b}`, u uniform on [-1, 1] for each entry,
      :math:`x_c = (1 - \alpha) x_a + \alpha x_b` and :math:`\alpha_i` uniform on [0, 1]. The gradient flows through all
      three losses to the parameters, and none to ``x``.

    Args:
      per_example_loss_fn: ``l(params, x, labels, *args, **kwargs) -> [B]``, the loss of each example, unreduced; or
        ``(losses, aux)`` with ``has_aux=True``, whose aux is dropped.
      epsilon: the radius, at least 0: that of the attack; a number, a schedule read at the keyword ``step`` of the call, or an
        array that broadcasts to ``x``. 0 is no penalty.
      has_aux: whether ``l`` returns ``(losses, aux)``.

    Returns:
      ``f(params, key, x, labels, *args, step=None, noise_a=None, noise_b=None, alpha=None, **kwargs) -> scalar`` in float32 or
      better. The three points go through one call of ``l`` with 3 B examples, those of an example next to each other, in
      float32 or better, as E is of the order of 1e-6; labels are repeated, other arguments passed as they are. All three of
      ``noise_a`` and ``noise_b``, of the shape of ``x``, and ``alpha [B]`` may be given instead of the key.

    Raises:
      ValueError: if an argument has a wrong type, shape or range, ``l`` does not give one loss for each example, or a schedule is
        called without ``step``.

    Cost:
      A forward and backward pass to the parameters on 3 B examples; no second derivatives.
      XLA at an MLP [64, 256, 256, 10] with batch 128: at most 4.5 times the FLOPs and 3.3 times the bytes of a plain training
      step, and 1.1 times its memory more.

    Use:
      Part of: `elle`.
      When: Call it to add local linearity to another attack, or to watch it: a leap of the error comes with a collapse.
      Not when: As a regulariser without an attack: on the digits it did not help, and large weights broke some seeds.
      Badly with: bfloat16, and randomness that is not the same at the three points.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> penalty = rj.objectives.elle_penalty(lambda w, x, labels: jnp.sum((w * x) ** 2, axis=-1), epsilon=0.5)
      >>> x, up = jnp.array([[0.5]]), jnp.array([[1.0]])
      >>> float(penalty(1.0, None, x, None, noise_a=-up, noise_b=up, alpha=jnp.array([0.5])))  # between 0 and 1
      0.0625

    References:
      Abad Rocamora et al., Efficient local linearity regularization to overcome catastrophic overfitting, 2024, arXiv 2401.11618.
      Points are not clipped to the range of images, as in the authors' CIFAR code; that for ImageNet clips them, and has the
      smooth L1 instead of the square.
    """
    name = "objectives.elle_penalty"
    checks.function(name, "per_example_loss_fn", per_example_loss_fn)
    checks.boolean(name, "has_aux", has_aux)
    _inputs.check_size(name, "epsilon", epsilon)
    takes_step = accepts(per_example_loss_fn, "step")

    def penalty(
        params: PyTree,
        key: Key | None,
        x: Array,
        labels: Any,
        *args: Any,
        step: Any = None,
        noise_a: Any = None,
        noise_b: Any = None,
        alpha: Any = None,
        **kwargs: Any,
    ) -> Array:
        x = _inputs.inputs(name, x)
        wide = x.astype(trees.accumulator(x))
        radius = jnp.asarray(_inputs.size(name, "epsilon", resolve(epsilon, step, name, "epsilon"), x), wide.dtype)
        a, b, mix = _draws(name, key, wide, noise_a, noise_b, alpha)
        if takes_step and step is not None:
            kwargs["step"] = step
        start, end = wide + radius * a, wide + radius * b
        share = mix.reshape(-1, *(1,) * (x.ndim - 1))
        points = jax.lax.stop_gradient(jnp.stack([start, end, (1 - share) * start + share * end], axis=1))
        thrice = jax.tree.map(lambda y: _merge(jnp.stack([y] * 3, axis=1)), jax.tree.map(jnp.asarray, labels))
        out = per_example_loss_fn(params, _merge(points), thrice, *args, **kwargs)
        losses, _ = _losses_and_aux(name, out, has_aux, 3 * x.shape[0])
        losses = _split(losses.astype(trees.accumulator(losses)))
        between = losses[:, 2] - (1 - mix) * losses[:, 0] - mix * losses[:, 1]
        # Equal points have equal losses; what rounding leaves of them is no curvature.
        return jnp.mean(jnp.square(jnp.where(jnp.any(radius != 0), between, 0)))

    return penalty


def elle(
    per_example_loss_fn: PerExampleLossFn,
    *,
    epsilon: Strength = 8 / 255,
    weight: Strength = 1000.0,
    method: SingleStep = "fgsm",
    low: Any = 0.0,
    high: Any = 1.0,
    has_aux: bool = False,
    with_info: bool = False,
) -> Callable[..., Any]:
    r"""Single-step adversarial training held locally linear: the loss at the FGSM example plus the ELLE error.

    Formula:
      .. math:: \frac1B \sum_i l_i(sg(x_{adv})) + w E

      with :math:`x_{adv}` from `fgsm_attack` and E from `elle_penalty`, at the same radius.

    Args:
      per_example_loss_fn: ``l(params, x, labels, *args, **kwargs) -> [B]``, the loss of each example, unreduced; or
        ``(losses, aux)`` with ``has_aux=True``.
      epsilon: the radius, at least 0, default 8/255; a number, a schedule read at the keyword ``step`` of the call, or an array
        that broadcasts to ``x``. 0 is the mean of ``l``.
      weight: w, at least 0, default 1000; a number or a schedule. The authors take 1000 up to 8/255, 5000 up to 20/255 and 10000
        above. 0 is adversarial training alone.
      method: ``"fgsm"`` (default), ``"fgsm_rs"`` or ``"n_fgsm"``, as in `fgsm_attack`.
      low: the least value of an adversarial input, default 0; a number, an array that broadcasts to ``x``, or None for no limit.
      high: the largest value, default 1, likewise.
      has_aux: whether ``l`` returns ``(losses, aux)``; the aux kept is that of the pass at the adversarial examples.
      with_info: whether ``info``, ``{"error": E}``, is returned in addition.

    Returns:
      ``f(params, key, x, labels, *args, step=None, weight=None, **kwargs)``, which returns the loss; with ``has_aux`` or
      ``with_info`` ``(loss, aux)``, ``(loss, info)``, or with both ``(loss, (aux, info))``. A ``weight`` at the call stands in
      for the other: ELLE-A takes that of `elle_lambda`.

    Raises:
      ValueError: if an argument has a wrong type, shape or range, or a schedule is called without ``step``.

    Cost:
      Beyond a plain step a forward pass and a backward pass to the inputs, and a forward and backward pass on 3 B examples, about
      4.7 times its FLOPs; no second derivatives.
      XLA at an MLP [64, 256, 256, 10] with batch 128: at most 5.2 times the FLOPs and 3.9 times the bytes of a plain training
      step, and 1.1 times its memory more.

    Use:
      For: adversarial inputs.
      When: FGSM training collapses at your radius. It kept networks from that and from abnormal examples in the adversarial
        study, without second derivatives.
      Not when: Cost or robustness decides: training on 'n_fgsm' was more robust and much cheaper, PGD far more robust. Its
        weight is delicate: too low only delays the collapse, too high costs clean accuracy.
      Badly with: BatchNorm by batch statistics in the pass on 3 B points. Dropout that differs among the three points of an
        example. bfloat16 losses, as the error is about 1e-6. `jacobian_penalty` or `aaer` for the same end.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> loss_fn = rj.objectives.elle(lambda w, x, y: jnp.sum(w * x, axis=-1), epsilon=0.25)
      >>> x = jnp.array([[0.5, 0.5]])  # a linear loss: only the attack counts
      >>> round(float(loss_fn(jnp.array([1.0, -2.0]), jax.random.key(0), x, None)), 4)
      0.25

    References:
      Abad Rocamora et al., Efficient local linearity regularization to overcome catastrophic overfitting, 2024, arXiv 2401.11618.
      The authors' CIFAR trainer steps its optimiser twice on each gradient, which is not part of the method.
    """
    name = "objectives.elle"
    checks.function(name, "per_example_loss_fn", per_example_loss_fn)
    _inputs.check_size(name, "epsilon", epsilon)
    checks.strength(name, "weight", weight, low=0.0)
    checks.choice(name, "method", method, tuple(_inputs.SINGLE_STEP))
    _inputs.check_bounds(name, low, high)
    checks.boolean(name, "has_aux", has_aux)
    checks.boolean(name, "with_info", with_info)
    penalty, default = elle_penalty(per_example_loss_fn, epsilon=epsilon, has_aux=has_aux), weight
    takes_step = accepts(per_example_loss_fn, "step")
    noise, factor, kind = _inputs.SINGLE_STEP[method]

    def objective(
        params: PyTree, key: Key, x: Array, labels: Any, *args: Any, step: Any = None, weight: Any = None, **kwargs: Any
    ) -> Any:
        x = _inputs.inputs(name, x)
        attack_key, points_key = jax.random.split(checks.key(name, key))
        if takes_step and step is not None:
            kwargs["step"] = step
        ball = _inputs.make_ball(name, x, resolve(epsilon, step, name, "epsilon"), low, high, kind)
        scale = default if weight is None else weight
        scale = checks.number(name, "weight", resolve(scale, step, name, "weight"), low=0.0)

        def mean(params: PyTree, x: Array, labels: Any, *args: Any, **kwargs: Any) -> Any:
            losses, aux = _losses_and_aux(name, per_example_loss_fn(params, x, labels, *args, **kwargs), has_aux, x.shape[0])
            return jnp.mean(losses.astype(trees.accumulator(losses))), aux

        loss = _inputs.bound(name, mean, True, args, kwargs)
        start = _inputs.start(name, ball, attack_key, noise)
        moved = _inputs.ascend(loss, params, labels, ball, factor * ball.epsilon, 1, start)
        value, aux = mean(params, moved, labels, *args, **kwargs)
        info = {"error": jnp.zeros((), value.dtype)}
        if with_info or not is_zero(scale):
            error = penalty(params, points_key, x, labels, *args, **kwargs, **({} if takes_step else {"step": step}))
            info = {"error": jax.lax.stop_gradient(error)}
            value = value + jnp.asarray(scale, value.dtype) * error.astype(value.dtype)
        if not (has_aux or with_info):
            return value
        return value, (aux, info) if has_aux and with_info else info if with_info else aux

    return objective


class ErrorMoments(NamedTuple):
    """All errors so far: their number, mean, and sum of squared differences from it."""

    seen: Array
    mean: Array
    spread: Array


class RecentErrors(NamedTuple):
    """The last errors, ``[window]``, and how many there have been; the oldest is overwritten."""

    seen: Array
    errors: Array


class ElleState(NamedTuple):
    """The memory of `elle_lambda`: the weight of the next step, and the errors that it is judged by."""

    weight: Array
    history: ErrorMoments | RecentErrors


def elle_lambda(
    *,
    max_weight: Strength = 4000.0,
    decay: Strength = 0.99,
    sensitivity: Strength = 2.0,
    update: Literal["after", "before"] = "after",
    window: int | None = None,
) -> Stateful:
    r"""The adaptive weight of ELLE-A: it jumps up when the error is unusually large, and decays otherwise.

    Formula:
      .. math:: w \leftarrow \lambda_{max} \;\; if \;\; n > 2 \;\; and \;\; E > mean(h) + s \, std(h), \quad else \;\;
                w \leftarrow \gamma w

      from w = 0, with h the n earlier errors, not E itself, and the population's standard deviation.

    Args:
      max_weight: :math:`\lambda_{max}`, at least 0, default 4000; a number or a schedule. 0 is no penalty.
      decay: :math:`\gamma`, in [0, 1], default 0.99; a number or a schedule.
      sensitivity: s, at least 0, default 2; a number or a schedule.
      update: whether an error changes the weight ``"after"`` the step that it was seen in (default), or ``"before"``: at once.
      window: how many of the last errors count; None (default): all.

    Returns:
      ``init() -> state``, and ``apply(state, error, *, step=None) -> (weight, state)`` with the scalar error of the step, such as
      `elle_penalty` gives, and the weight that the step uses, float32 (float64 under x64), constants. With ``"after"`` that is
      ``state.weight``, known before the error is. An error that is not finite leaves no trace in the history; an infinite one
      still counts as unusual.

    Raises:
      ValueError: if a strength or option does not fit, the state is another's, ``error`` is no scalar, or a schedule is called
        without ``step``.

    Cost:
      None: five numbers, or the last errors.

    Use:
      Part of: `elle`.
      When: Call it where no constant weight serves all radii or phases (ELLE-A). In the adversarial study it did as well as a
        tuned constant.
      Badly with: Errors of microbatches that are each fed to it, as their spread is not that of the batch. Changes of the
        loss's scale in mid-training, which look like outbreaks.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> adaptive = rj.objectives.elle_lambda()
      >>> state, used = adaptive.init(), []
      >>> for error in (0.1, 0.12, 0.09, 0.11, 0.5, 0.1):
      ...     weight, state = adaptive.apply(state, jnp.float32(error))
      ...     used.append(float(weight))
      >>> used, float(state.weight)
      ([0.0, 0.0, 0.0, 0.0, 0.0, 4000.0], 3960.0)

    References:
      Abad Rocamora et al., Efficient local linearity regularization to overcome catastrophic overfitting, 2024, arXiv 2401.11618.
      The authors' CIFAR code is ``"after"`` with all errors, that for ImageNet ``"before"`` with ``window=500``.
    """
    name = "objectives.elle_lambda"
    checks.strength(name, "max_weight", max_weight, low=0.0)
    checks.strength(name, "decay", decay, low=0.0, high=1.0)
    checks.strength(name, "sensitivity", sensitivity, low=0.0)
    checks.choice(name, "update", update, ("after", "before"))
    if window is not None:
        checks.integer(name, "window", window, low=1)

    def init() -> ElleState:
        nothing = jnp.zeros((), float)
        count = jnp.zeros((), jnp.int32)
        history = ErrorMoments(count, nothing, nothing) if window is None else RecentErrors(count, jnp.zeros(window, float))
        return ElleState(nothing, history)

    def apply(state: ElleState, error: Any, *, step: Any = None) -> tuple[Array, ElleState]:
        kind = ErrorMoments if window is None else RecentErrors
        fits = isinstance(state, ElleState) and isinstance(state.history, kind)
        if not fits or (isinstance(state.history, RecentErrors) and state.history.errors.shape != (window,)):
            checks.fail(name, "state", "the ElleState that init() makes", state)
        dtype = state.weight.dtype
        error = jax.lax.stop_gradient(checks.floating(name, "error", error, shape=())).astype(dtype)
        strength = lambda argument, value, **limits: jnp.asarray(
            checks.number(name, argument, resolve(value, step, name, argument), low=0.0, **limits), dtype
        )
        mean, std = _mean_and_std(state.history)
        unusual = (state.history.seen > 2) & (error > mean + strength("sensitivity", sensitivity) * std)
        weight = jnp.where(unusual, strength("max_weight", max_weight), strength("decay", decay, high=1.0) * state.weight)
        used = state.weight if update == "after" else weight
        return used, ElleState(weight, _remembered(state.history, error))

    return Stateful(init, apply)


def _mean_and_std(history: ErrorMoments | RecentErrors) -> tuple[Array, Array]:
    """Of the population; 0 while there is none."""
    if isinstance(history, ErrorMoments):
        return history.mean, jnp.sqrt(history.spread / jnp.maximum(history.seen, 1))
    kept = jnp.arange(history.errors.size) < history.seen
    count = jnp.maximum(jnp.sum(kept), 1)
    mean = jnp.sum(jnp.where(kept, history.errors, 0)) / count
    return mean, jnp.sqrt(jnp.sum(jnp.where(kept, jnp.square(history.errors - mean), 0)) / count)


def _remembered(history: ErrorMoments | RecentErrors, error: Array) -> ErrorMoments | RecentErrors:
    """The history with one more error, if that is finite."""
    if isinstance(history, ErrorMoments):
        count = history.seen + 1
        away = error - history.mean
        mean = history.mean + away / count
        after: Any = ErrorMoments(count, mean, history.spread + away * (error - mean))
    else:
        here = jnp.arange(history.errors.size) == history.seen % history.errors.size
        after = RecentErrors(history.seen + 1, jnp.where(here, error, history.errors))
    return jax.tree.map(lambda new, old: jnp.where(jnp.isfinite(error), new, old).astype(old.dtype), after, history)


def _draws(name: str, key: Any, x: Array, noise_a: Any, noise_b: Any, alpha: Any) -> tuple[Array, Array, Array]:
    """The noise of the two points and the place between them, drawn or given, sharded over examples as the inputs are."""
    given = {"noise_a": noise_a, "noise_b": noise_b, "alpha": alpha}
    if all(value is None for value in given.values()):
        keys = jax.random.split(checks.key(name, key), 3)
        place = jax.random.uniform(keys[2], x.shape[:1], jnp.float32)
        return _inputs.uniform(keys[0], x), _inputs.uniform(keys[1], x), sharding.rows_like(place, x).astype(x.dtype)
    for argument, value in given.items():
        shape = x.shape[:1] if argument == "alpha" else x.shape
        given[argument] = checks.floating(name, argument, value, shape=shape).astype(x.dtype)
    return given["noise_a"], given["noise_b"], given["alpha"]


def _losses_and_aux(name: str, out: Any, has_aux: bool, size: int) -> tuple[Array, Any]:
    """What a loss of each example returned, checked."""
    if has_aux and not (isinstance(out, tuple) and len(out) == 2):
        checks.fail(name, "per_example_loss_fn", "a function that returns (losses, aux) where has_aux=True", out)
    losses, aux = out if has_aux else (out, None)
    return checks.floating(name, "per_example_loss_fn's result", losses, shape=(size,)), aux


def _merge(x: Array) -> Array:
    """``[B, 3, ...]`` as ``[3 B, ...]``: the points of an example stay on its device."""
    shape = (3 * x.shape[0], *x.shape[2:])
    named = sharding.explicit_sharding(x)
    if named is None:
        return x.reshape(shape)
    return jnp.reshape(x, shape, out_sharding=named.update(spec=jax.P(named.spec[0], *named.spec[2:])))


def _split(losses: Array) -> Array:
    """``[3 B]`` as ``[B, 3]``."""
    shape = (losses.shape[0] // 3, 3)
    named = sharding.explicit_sharding(losses)
    if named is None:
        return losses.reshape(shape)
    return jnp.reshape(losses, shape, out_sharding=named.update(spec=jax.P(named.spec[0], None)))
