"""Adversarial examples and training on them: PGD, the single-step attacks, free adversarial training, and the evaluation."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from regjax.core import checks, classes, sharding, trees
from regjax.core.strength import accepts, resolve
from regjax.core.types import Array, Key, PyTree, Stateful, Strength
from regjax.objectives.adversarial import _inputs
from regjax.objectives.lift import LossFn, freeze, is_zero

Norm: TypeAlias = Literal["linf", "l2"]
SingleStep: TypeAlias = Literal["fgsm", "fgsm_rs", "n_fgsm"]


def pgd_attack(
    loss_fn: LossFn,
    params: PyTree,
    x: Array,
    labels: Any,
    *args: Any,
    epsilon: Strength = 8 / 255,
    step_size: Strength = 2 / 255,
    num_steps: int = 10,
    norm: Norm = "linf",
    delta_init: Any = None,
    key: Key | None = None,
    low: Any = 0.0,
    high: Any = 1.0,
    has_aux: bool = False,
    **kwargs: Any,
) -> Array:
    r"""Adversarial examples by projected gradient ascent on the loss, PGD.

    Formula:
      With :math:`g = \nabla_x f(x + \delta)`, repeated ``num_steps`` times from :math:`\delta_0`, for ``"linf"`` and ``"l2"``:

      .. math:: \delta \leftarrow clip(\delta + s \, sign(g), -\epsilon, \epsilon) \quad or \quad
                \delta \leftarrow P_\epsilon\left(\delta + s \, \frac{g}{\|g\|}\right)

      with the norm of each example, :math:`P_\epsilon(v) = v \min(1, \epsilon / \|v\|)`, and :math:`x + \delta` clipped to
      the box before it. :math:`\delta_0` is 0, or uniform on :math:`[-\epsilon, \epsilon]` with a ``key``, and clipped likewise.

    Args:
      loss_fn: ``loss_fn(params, x, labels, *args, **kwargs) -> scalar``, or ``(scalar, aux)`` with ``has_aux=True``; the aux is
        dropped. The attack sees the mode that it computes in (batch statistics, dropout). Weights on examples above 0, the mean
        or the sum over the batch make no difference.
      params: of the model.
      x: float ``[B, ...]``.
      labels: what ``loss_fn`` takes.
      *args: passed on to ``loss_fn``, as are further keywords: model state, dropout keys. What bears the name of an argument
        of the attack is passed by position.
      epsilon: the radius, at least 0, default 8/255; a number, or an array that broadcasts to ``x``: for standardised
        inputs one for each channel, divided by its standard deviation (the l2 ball is then that of original pixels). 0 is ``x``.
      step_size: s, likewise, default 2/255.
      num_steps: at least 0, default 10.
      norm: ``"linf"`` (default) or ``"l2"``.
      delta_init: the start, of the shape of ``x``; not together with ``key``.
      key: for a random start; None (default): from ``delta_init``, else from 0.
      low: the least value of an input, default 0; a number, an array that broadcasts to ``x``, or None for no limit.
      high: the largest value, default 1, likewise.
      has_aux: whether ``loss_fn`` returns ``(scalar, aux)``.
      **kwargs: passed on to ``loss_fn``.

    Returns:
      The adversarial examples, of the shape and dtype of ``x``, constants: no gradient flows through them. Inputs outside the
      box are only moved inwards.

    Raises:
      ValueError: if an argument has a wrong type, shape or range, or ``loss_fn`` returns no scalar.

    Cost:
      ``num_steps`` forward passes and backward passes to the inputs, about two thirds of as many training steps, in one compiled
      loop; no second derivatives. XLA counts the body of the loop once.
      XLA at an MLP [64, 256, 256, 10] with batch 128: at most 0.79 times the FLOPs and 1.1 times the bytes of a forward and
      backward pass, and 0.011 times its memory more.

    Use:
      For: adversarial inputs.
      When: Inside `adversarial`, to make fixed adversarial examples for fine-tuning, or for a loss of your own. Several steps
        find what single steps miss once a network has learnt to bend its loss.
      Not when: To report robust accuracy: `pgd_evaluate` restarts and keeps the worst. num_steps times step_size is below
        epsilon, so that the border is never reached.
      Badly with: Dropout left on without a fixed key, whose noise misleads the steps. BatchNorm by batch statistics at
        evaluation. Standardised inputs with the default box, or one epsilon for channels of unlike spread.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> loss_fn = lambda w, x, y: jnp.mean(jnp.log1p(jnp.exp(-y * (x @ w))))
      >>> w, x, y = jnp.array([1.0, -2.0]), jnp.array([[0.5, 0.5]]), jnp.array([1.0])
      >>> rj.objectives.pgd_attack(loss_fn, w, x, y, epsilon=0.25, step_size=0.125).tolist()
      [[0.25, 0.75]]

    References:
      Madry et al., Towards Deep Learning Models Resistant to Adversarial Attacks, 2018, arXiv 1706.06083. With one step it is
      FGSM (Goodfellow et al., Explaining and Harnessing Adversarial Examples, 2015, arXiv 1412.6572): see `fgsm_attack`.
      Fine-tuning with it: Jeddi et al., A Simple Fine-tuning Is All You Need: Towards Robust Deep Learning Via Adversarial
      Fine-tuning, 2020, arXiv 2012.13628.
    """
    name = "objectives.pgd_attack"
    checks.integer(name, "num_steps", num_steps, low=0)
    checks.choice(name, "norm", norm, _inputs.NORMS)
    x = _inputs.inputs(name, x)
    ball = _inputs.make_ball(name, x, epsilon, low, high, norm)
    rate = _inputs.size(name, "step_size", step_size, x)
    if key is not None and delta_init is not None:
        checks.fail(name, "delta_init", "None where a key asks for a random start", delta_init)
    delta = _inputs.start(name, ball, key, 0.0 if key is None else 1.0)
    if delta_init is not None:
        delta = checks.floating(name, "delta_init", delta_init, shape=x.shape).astype(delta.dtype)
    loss = _inputs.bound(name, loss_fn, has_aux, args, kwargs)
    return _inputs.ascend(loss, params, labels, ball, rate, num_steps, delta)


def fgsm_attack(
    loss_fn: LossFn,
    params: PyTree,
    x: Array,
    labels: Any,
    *args: Any,
    epsilon: Strength = 8 / 255,
    method: SingleStep = "fgsm",
    key: Key | None = None,
    low: Any = 0.0,
    high: Any = 1.0,
    has_aux: bool = False,
    **kwargs: Any,
) -> Array:
    r"""Adversarial examples by one signed step: FGSM, FGSM-RS ("fast") and N-FGSM.

    Formula:
      .. math:: \delta = P(\delta_0 + s \epsilon \, sign(\nabla_x f(x + \delta_0))), \quad \delta_0 \sim U[-r\epsilon, r\epsilon]

      ``"fgsm"``: r = 0, s = 1; ``"fgsm_rs"``: r = 1, s = 1.25, with P the clip to :math:`[-\epsilon, \epsilon]`; ``"n_fgsm"``:
      r = 2, s = 1, without it. :math:`x + \delta_0` and :math:`x + \delta` are clipped to the box in all.

    Args:
      loss_fn: ``loss_fn(params, x, labels, *args, **kwargs) -> scalar``, or ``(scalar, aux)`` with ``has_aux=True``.
      params: of the model.
      x: float ``[B, ...]``.
      labels: what ``loss_fn`` takes.
      *args: passed on to ``loss_fn``, as are further keywords.
      epsilon: the radius, at least 0, default 8/255; a number, or an array that broadcasts to ``x``. 0 is ``x``.
      method: ``"fgsm"`` (default), ``"fgsm_rs"`` or ``"n_fgsm"``.
      key: for the random start of the latter two.
      low: the least value of an input, default 0; a number, an array that broadcasts to ``x``, or None for no limit.
      high: the largest value, default 1, likewise.
      has_aux: whether ``loss_fn`` returns ``(scalar, aux)``.
      **kwargs: passed on to ``loss_fn``.

    Returns:
      The adversarial examples, of the shape and dtype of ``x``, constants. Those of ``"n_fgsm"`` lie within 3 epsilon.

    Raises:
      ValueError: if an argument has a wrong type, shape or range, or a random start has no key.

    Cost:
      One forward pass and one backward pass to the inputs.
      XLA at an MLP [64, 256, 256, 10] with batch 128: at most 0.79 times the FLOPs and 0.93 times the bytes of a forward and
      backward pass, and 0 times its memory more.

    Use:
      For: adversarial inputs, noisy labels.
      When: Adversarial training at one pass more. 'n_fgsm' resisted collapse at the price of FGSM and was ahead of `elle` and
        `aaer`. As an augmentation of large radius it was among the best on digits with wrong labels.
      Not when: To report robustness: a collapsed network withstands it and nothing else, so use `pgd_evaluate`. 'fgsm' at a
        large radius, where training on it collapses.
      Badly with: Losses so small that their gradient is 0 in float32, where the sign is 0 too. Standardised inputs with the
        default box. The promise of a radius: points of 'n_fgsm' lie up to three radii away.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> loss_fn = lambda w, x, y: jnp.mean(jnp.log1p(jnp.exp(-y * (x @ w))))
      >>> w, x, y = jnp.array([1.0, -2.0]), jnp.array([[0.5, 0.5]]), jnp.array([1.0])
      >>> rj.objectives.fgsm_attack(loss_fn, w, x, y, epsilon=0.25).tolist()
      [[0.25, 0.75]]

    References:
      Goodfellow et al., Explaining and Harnessing Adversarial Examples, 2015, arXiv 1412.6572. Wong et al., Fast is better than
      free: Revisiting adversarial training, 2020, arXiv 2001.03994. De Jorge et al., Make Some Noise: Reliable and Efficient
      Single-Step Adversarial Training, 2022, arXiv 2202.01181.
    """
    name = "objectives.fgsm_attack"
    scale, step, norm = _inputs.SINGLE_STEP[checks.choice(name, "method", method, tuple(_inputs.SINGLE_STEP))]
    x = _inputs.inputs(name, x)
    ball = _inputs.make_ball(name, x, epsilon, low, high, norm)
    loss = _inputs.bound(name, loss_fn, has_aux, args, kwargs)
    return _inputs.ascend(loss, params, labels, ball, step * ball.epsilon, 1, _inputs.start(name, ball, key, scale))


def adversarial(
    loss_fn: LossFn,
    *,
    attack: Literal["pgd", "fgsm", "fgsm_rs", "n_fgsm"] = "pgd",
    epsilon: Strength = 8 / 255,
    step_size: Strength = 2 / 255,
    num_steps: int = 10,
    norm: Norm = "linf",
    random_start: bool = True,
    low: Any = 0.0,
    high: Any = 1.0,
    has_aux: bool = False,
) -> LossFn:
    r"""The loss on adversarial examples of the batch: adversarial training.

    Formula:
      .. math:: f(w, sg(x_{adv}), y), \quad x_{adv} = attack(f, w, x, y)

      ``jax.grad`` of it is the gradient of the loss at the adversarial examples, without a derivative of the attack.

    Args:
      loss_fn: ``loss_fn(params, x, labels, *args, **kwargs) -> scalar``, or ``(scalar, aux)`` with ``has_aux=True``.
      attack: ``"pgd"`` (default), `pgd_attack`; or one of the single steps of `fgsm_attack`: ``"fgsm"``, ``"fgsm_rs"``,
        ``"n_fgsm"``, which have no ``step_size``, ``num_steps``, ``norm`` and ``random_start``.
      epsilon: the radius, at least 0, default 8/255; a number, a schedule read at the keyword ``step`` of the call, or an array
        that broadcasts to ``x``. 0 is ``loss_fn``.
      step_size: of PGD, likewise, default 2/255.
      num_steps: of PGD, default 10.
      norm: of PGD, ``"linf"`` (default) or ``"l2"``.
      random_start: whether PGD starts at random (default) or from ``x``.
      low: the least value of an input, default 0; a number, an array that broadcasts to ``x``, or None for no limit.
      high: the largest value, default 1, likewise.
      has_aux: whether ``loss_fn`` returns ``(scalar, aux)``; the aux is that of the pass at the adversarial examples.

    Returns:
      ``f(params, key, x, labels, *args, step=None, **kwargs)``, which returns what ``loss_fn`` does. The key is the attack's;
      further arguments (model state, dropout keys, the same in all passes) go to ``loss_fn``, and ``step`` too if it takes one.

    Raises:
      ValueError: if an argument has a wrong type, shape or range, or a schedule is called without ``step``.

    Cost:
      ``num_steps`` more forward passes and backward passes to the inputs, two thirds of a step each: about 7.7 times the
      arithmetic of a step for PGD-10, 1.7 for FGSM; no second derivatives. XLA counts the body of the loop once.
      XLA at an MLP [64, 256, 256, 10] with batch 128: at most 1.9 times the FLOPs and 1.9 times the bytes of a plain training
      step, and 0.01 times its memory more.

    Use:
      For: adversarial inputs, noisy labels.
      When: Robustness to small changes of the input is wanted. Ten steps of PGD were far more robust than any single step in
        the adversarial study. On digits with wrong labels large radii also raised accuracy on clean images.
      Not when: Inputs have no meaningful radius (token ids, columns of mixed units). Predictions must be calibrated: strong
        attacks left them underconfident. Time allows only one pass more: the step 'n_fgsm'.
      Badly with: 'fgsm' and 'fgsm_rs' at large radii, which collapsed. Standardised inputs with low and high of raw pixels.
        Memories of predictions such as `saf`. BatchNorm, whose averages are those of attacked images.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> loss_fn = lambda w, x, y: jnp.mean(jnp.log1p(jnp.exp(-y * (x @ w))))
      >>> robust = rj.objectives.adversarial(loss_fn, attack="fgsm", epsilon=0.25)
      >>> w, x, y = jnp.array([1.0, -2.0]), jnp.array([[0.5, 0.5]]), jnp.array([1.0])
      >>> round(float(robust(w, jax.random.key(0), x, y)), 4)  # the margin falls from -0.5 by 0.25 (1 + 2)
      1.5019

    References:
      Madry et al., Towards Deep Learning Models Resistant to Adversarial Attacks, 2018, arXiv 1706.06083; the single steps are
      those of `fgsm_attack`, which at large radii overfit to themselves: `regjax.objectives.elle` and
      `regjax.objectives.aaer` are made against it.
    """
    name = "objectives.adversarial"
    checks.function(name, "loss_fn", loss_fn)
    checks.boolean(name, "has_aux", has_aux)
    checks.choice(name, "attack", attack, ("pgd", *_inputs.SINGLE_STEP))
    _inputs.check_size(name, "epsilon", epsilon)
    _inputs.check_size(name, "step_size", step_size)
    checks.integer(name, "num_steps", num_steps, low=0)
    checks.choice(name, "norm", norm, _inputs.NORMS)
    checks.boolean(name, "random_start", random_start)
    _inputs.check_bounds(name, low, high)
    takes_step = accepts(loss_fn, "step")
    scale, factor, kind = (float(random_start), 0.0, norm) if attack == "pgd" else _inputs.SINGLE_STEP[attack]

    def robust(params: PyTree, key: Key, x: Array, labels: Any, *args: Any, step: Any = None, **kwargs: Any) -> Any:
        x = _inputs.inputs(name, x)
        if takes_step and step is not None:
            kwargs["step"] = step
        loss = _inputs.bound(name, loss_fn, has_aux, args, kwargs)
        radius = resolve(epsilon, step, name, "epsilon")
        if np.ndim(radius) or not is_zero(radius):
            ball = _inputs.make_ball(name, x, radius, low, high, kind)
            rate = factor * ball.epsilon
            if attack == "pgd":
                rate = _inputs.size(name, "step_size", resolve(step_size, step, name, "step_size"), x)
            start = _inputs.start(name, ball, checks.key(name, key), scale)
            x = _inputs.ascend(loss, params, labels, ball, rate, num_steps if attack == "pgd" else 1, start)
        return loss.result(*_inputs.at(loss, x, labels)(params))

    return robust


class FreeAdversarialState(NamedTuple):
    """The memory of `free_adversarial`: the perturbation, of the shape of a batch, in float32 or better."""

    delta: Array


def free_adversarial(
    *, epsilon: Strength = 8 / 255, step_size: Strength | None = None, replays: int = 8, low: Any = 0.0, high: Any = 1.0
) -> Stateful:
    r"""Adversarial training at the cost of plain training: each batch is replayed, and one gradient serves weights and inputs.

    Formula:
      .. math:: (g_w, g_x) = \nabla_{w, x} f(w, x + \delta), \quad w \leftarrow optimiser(w, g_w), \quad
                \delta \leftarrow clip(\delta + s \, sign(g_x), -\epsilon, \epsilon)

      ``replays`` times on each batch; :math:`\delta` is kept from replay to replay and from batch to batch, and clipped so that
      :math:`x + \delta` stays in the box.

    Args:
      epsilon: the radius, at least 0, default 8/255; a number, a schedule read at the keyword ``step`` of the call, or an array
        that broadcasts to ``x``. 0 trains on ``x``, ``replays`` times.
      step_size: s, likewise; None (default): ``epsilon``.
      replays: at least 1, default 8; train for 1 / ``replays`` of the epochs.
      low: the least value of an input, default 0; a number, an array that broadcasts to ``x``, or None for no limit.
      high: the largest value, default 1, likewise.

    Returns:
      ``init(x) -> state``, and ``apply(state, replay, carry, x, *, step=None) -> (carry, state)``, which runs
      ``replay(carry, x_adv) -> (carry, gradient_x)`` the number of times in one compiled loop. ``replay`` is a training step that
      hands back the gradient by the inputs, from the same backward pass as that by the weights; the carry holds whatever a
      step changes (parameters, optimiser state, running statistics, keys, a sum of losses)::

        def replay(carry, x_adv):
            params, opt_state = carry
            grads, gradient_x = jax.grad(loss_fn, argnums=(0, 1))(params, x_adv, labels)
            updates, opt_state = tx.update(grads, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), gradient_x

        (params, opt_state), state = free.apply(state, replay, (params, opt_state), x)

    Raises:
      ValueError: if an argument has a wrong type, shape or range, or the batch has not the shape of the memory: drop the last,
        smaller one.

    Cost:
      Nothing beyond ``replays`` training steps but the gradient of the first layer by its input, and the memory of one batch. XLA
      counts the body of the loop once.
      XLA at an MLP [64, 256, 256, 10] with batch 128: at most 1.2 times the FLOPs and 1.7 times the bytes of a plain training
      step, and 0.4 times its memory more.

    Use:
      For: adversarial inputs, compute budget.
      When: PGD training is too dear and a batch may be replayed: weights and perturbation learn from one backward pass. Divide
        the epochs by the replays.
      Not when: Epochs are few already, so that dividing leaves too little variety. Radii at which single steps collapse: it
        does not look further either. One pass more is affordable: `fgsm_attack` by 'n_fgsm'.
      Badly with: Schedules and averages counted in batches: the optimiser steps at every replay. Augmentation drawn anew for
        each replay, as the perturbation belongs to pixels. BatchNorm averages, which see a batch several times.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> free = rj.objectives.free_adversarial(epsilon=0.25, replays=2)
      >>> def replay(w, x_adv):
      ...     g_w, g_x = jax.grad(lambda w, x: -jnp.mean(x @ w), argnums=(0, 1))(w, x_adv)
      ...     return w - g_w, g_x
      >>> x = jnp.array([[0.5, 0.5]])
      >>> w, state = free.apply(free.init(x), replay, jnp.array([1.0, -2.0]), x)
      >>> w.tolist(), state.delta.tolist()
      ([1.75, -0.75], [[-0.25, 0.25]])

    References:
      Shafahi et al., Adversarial Training for Free!, 2019, arXiv 1904.12843. The code of Wong et al., Fast is better than free:
      Revisiting adversarial training, 2020, arXiv 2001.03994, clips to the box after each step; here the perturbation that
      comes from the last batch is also clipped to the box of the new one.
    """
    name = "objectives.free_adversarial"
    _inputs.check_size(name, "epsilon", epsilon)
    if step_size is not None:
        _inputs.check_size(name, "step_size", step_size)
    checks.integer(name, "replays", replays, low=1)
    _inputs.check_bounds(name, low, high)

    def init(x: Array) -> FreeAdversarialState:
        x = _inputs.inputs(name, x)
        return FreeAdversarialState(jnp.zeros_like(x, trees.accumulator(x)))

    def apply(
        state: FreeAdversarialState, replay: Callable[..., Any], carry: PyTree, x: Array, *, step: Any = None
    ) -> tuple[PyTree, FreeAdversarialState]:
        checks.function(name, "replay", replay)
        x = _inputs.inputs(name, x)
        if not isinstance(state, FreeAdversarialState) or state.delta.shape != x.shape:
            checks.fail(name, "state", f"the FreeAdversarialState that init() makes of a batch {list(x.shape)}", state)
        ball = _inputs.make_ball(name, x, resolve(epsilon, step, name, "epsilon"), low, high, "linf")
        rate = ball.epsilon
        if step_size is not None:
            rate = _inputs.size(name, "step_size", resolve(step_size, step, name, "step_size"), x)

        def once(_: Any, loop: Any) -> Any:
            carry, delta = loop
            carry, g = replay(carry, ball.moved(delta))
            g = checks.floating(name, "replay's gradient", g, shape=x.shape)
            return carry, ball.project(delta + rate * ball.ascent(g)).astype(delta.dtype)

        delta = ball.project(jax.lax.stop_gradient(state.delta)).astype(state.delta.dtype)
        carry, delta = jax.lax.fori_loop(0, replays, once, (carry, delta))
        return carry, FreeAdversarialState(delta)

    return Stateful(init, apply)


class RobustEvaluation(NamedTuple):
    """What `pgd_evaluate` finds of each example: whether it withstood every restart, the largest loss, and where it is."""

    correct: Array
    loss: Array
    x_adv: Array


def pgd_evaluate(
    logits_fn: Callable[..., Array],
    params: PyTree,
    key: Key,
    x: Array,
    labels: Array,
    *args: Any,
    epsilon: Strength = 8 / 255,
    step_size: Strength | None = None,
    num_steps: int = 50,
    num_restarts: int = 10,
    norm: Norm = "linf",
    low: Any = 0.0,
    high: Any = 1.0,
    **kwargs: Any,
) -> RobustEvaluation:
    r"""Robust accuracy under PGD with restarts: an example counts if it is classified rightly at every attack's end.

    Formula:
      .. math:: correct_i = \prod_{r=0}^{R} 1[\arg\max_k z_k(x_i^{(r)}) = y_i]

      with :math:`x^{(0)} = x` and :math:`x^{(r)}` the end of `pgd_attack` on the cross-entropy from a random start of its own.

    Args:
      logits_fn: ``logits_fn(params, x, *args, **kwargs) -> logits [B, K]``, in evaluation mode.
      params: of the model.
      key: for the starts.
      x: float ``[B, ...]``.
      labels: integer class ids ``[B]``.
      *args: passed on to ``logits_fn``, as are further keywords.
      epsilon: the radius, at least 0, default 8/255; a number, or an array that broadcasts to ``x``. 0 is accuracy on ``x``.
      step_size: likewise; None (default): ``epsilon / 4``.
      num_steps: of each attack, default 50.
      num_restarts: R, default 10; at least 0. 0 is accuracy on ``x``.
      norm: ``"linf"`` (default) or ``"l2"``.
      low: the least value of an input, default 0; a number, an array that broadcasts to ``x``, or None for no limit.
      high: the largest value, default 1, likewise.
      **kwargs: passed on to ``logits_fn``.

    Returns:
      A `RobustEvaluation`: ``correct``, boolean ``[B]``, whose mean is the robust accuracy; ``loss [B]``, the cross-entropy in
      float32 or better, and ``x_adv``, where it was found: of the first attack that misled the model, else the worst.

    Raises:
      ValueError: if an argument has a wrong type, shape or range, or the logits are not of shape ``[B, K]``.

    Cost:
      ``num_restarts`` times ``num_steps`` forward passes and backward passes to the inputs, of the whole batch, in one compiled
      loop; the memory of one attack. XLA counts the body of the loop once.
      XLA at an MLP [64, 256, 256, 10] with batch 128: at most 1.6 times the FLOPs and 2.2 times the bytes of a forward and
      backward pass, and 0.16 times its memory more.

    Use:
      For: adversarial inputs.
      When: Robust accuracy is to be reported, or catastrophic overfitting to be caught during single-step training: accuracy
        under FGSM rises while this falls.
      Not when: As the only proof of a defence: add attacks without gradients. In every epoch on the whole test set: a few steps
        on a part of it show a collapse.
      Badly with: Models that are random or quantised at test, or logits so large that cross-entropy is exactly 0: gradients
        vanish and the attack looks weak. Logits in training mode.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> logits_fn = lambda w, x: x @ w
      >>> x, labels = jnp.array([[0.9, 0.1], [0.6, 0.4]]), jnp.array([0, 0])
      >>> found = rj.objectives.pgd_evaluate(logits_fn, jnp.eye(2), jax.random.key(0), x, labels, epsilon=0.2)
      >>> found.correct.tolist()
      [True, False]

    References:
      Wong et al., Fast is better than free: Revisiting adversarial training, 2020, arXiv 2001.03994: PGD-50 with 10 restarts.
    """
    name = "objectives.pgd_evaluate"
    checks.function(name, "logits_fn", logits_fn)
    checks.key(name, key)
    checks.integer(name, "num_steps", num_steps, low=0)
    checks.integer(name, "num_restarts", num_restarts, low=0)
    checks.choice(name, "norm", norm, _inputs.NORMS)
    x = _inputs.inputs(name, x)
    labels = checks.integers(name, "labels", labels, shape=x.shape[:1])
    _inputs.make_ball(name, x, epsilon, low, high, norm)
    rate = epsilon / 4 if step_size is None else _inputs.size(name, "step_size", step_size, x)
    params, args, kwargs = freeze((params, args, kwargs))

    def judge(x: Array) -> tuple[Array, Array]:
        logits = checks.floating(name, "logits_fn's result", logits_fn(params, x, *args, **kwargs), shape=(x.shape[0], None))
        checked = classes.class_inputs(name, logits, labels)
        return jnp.argmax(checked.logits, -1) == labels, classes.cross_entropy(checked)

    def total(_: Any, x: Array, __: Any) -> Array:
        return jnp.sum(judge(x)[1])

    def restart(r: Any, best: RobustEvaluation) -> RobustEvaluation:
        settings: dict[str, Any] = {"epsilon": epsilon, "step_size": rate, "num_steps": num_steps, "norm": norm}
        there = pgd_attack(total, None, x, None, key=jax.random.fold_in(key, r), low=low, high=high, **settings)
        correct, loss = judge(there)
        # Only examples that have withstood so far can change; NaN losses count as misled.
        better = best.correct & (~correct | (loss > best.loss))
        rows = better.reshape(-1, *(1,) * (x.ndim - 1))
        moved = jnp.where(sharding.placed_like(jnp.broadcast_to(rows, x.shape), x), there, best.x_adv)
        return RobustEvaluation(best.correct & correct, jnp.where(better, loss, best.loss), moved)

    return jax.lax.fori_loop(0, num_restarts, restart, RobustEvaluation(*judge(x), x))
