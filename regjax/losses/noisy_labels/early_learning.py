"""Early-learning regularisation: losses for noisy labels that remember what a network first predicted."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from regjax.core import checks, classes, examples
from regjax.core.strength import resolve
from regjax.core.types import Array, Stateful, Strength


class ELRState(NamedTuple):
    """The memory of `elr` and `elr_plus`: float32 ``[N, K]``, the moving average of each example's predictions, first 0."""

    targets: Array


def elr_targets(targets: Any, logits: Any, *, beta: Strength = 0.7, clip: Any = 1e-4, axis: int = -1, where: Any = None) -> Array:
    r"""The moving average of predictions after one more visit.

    Formula:
      .. math:: t \leftarrow \beta t + (1 - \beta) \frac{p}{\sum_k p_k}, \quad p = clip(softmax(z), \epsilon, 1 - \epsilon)

      Without bias correction: one visit from zeros gives :math:`(1 - \beta) p`. No gradient flows to either argument.

    Args:
      targets: float ``[..., K]``, the averages so far, of the shape of ``logits``.
      logits: float ``[..., K]``, classes on ``axis``.
      beta: the share of the past, in [0, 1], default 0.7.
      clip: :math:`\epsilon`, in [0, 0.5), default 1e-4.
      axis: the class axis.
      where: boolean, broadcasts to ``logits``: the classes that exist; the others have probability 0.

    Returns:
      The new averages, of the shape of ``logits``, in float32 or better.

    Raises:
      ValueError: if a shape or dtype does not fit, or ``beta`` or ``clip`` lies outside its range.

    Cost:
      A softmax, and one pass over it and the averages.
      XLA at [1024, 1000]: at most 3.4 times the FLOPs and 2.7 times the bytes of a softmax, and 0.55 times its memory more.

    Use:
      Part of: `elr`, `elr_plus`.
      When: Call it to keep the averages yourself: on the host, for pixels, or from predictions of several augmentations.
      Badly with: Bias-corrected averages: the penalty is made for targets that start at 0, so that it is weak at first.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> t = rj.losses.elr_targets(jnp.zeros(3), jnp.array([2.0, 1.0, 0.0]), beta=0.7)
      >>> [round(float(x), 4) for x in t]
      [0.1996, 0.0734, 0.027]

    References:
      Liu et al., Early-Learning Regularization Prevents Memorization of Noisy Labels, 2020, arXiv 2007.00151.
    """
    name = "losses.elr_targets"
    checks.number(name, "beta", beta, low=0.0, high=1.0)
    x = classes.class_inputs(name, logits, axis=axis, where=where)
    targets = _class_last(name, targets, logits, axis)
    p = _clipped_softmax(name, x, clip)
    total = jnp.sum(p, axis=-1, keepdims=True)
    p = p / jnp.where(total > 0, total, 1)
    beta = jnp.asarray(beta, p.dtype)
    return jnp.moveaxis(jax.lax.stop_gradient(beta * targets + (1 - beta) * p), -1, axis)


def elr_penalty(logits: Any, targets: Any, *, clip: Any = 1e-4, axis: int = -1, where: Any = None) -> Array:
    r"""The reward, as a negative penalty, for agreeing with remembered predictions.

    Formula:
      .. math:: \log(1 - \langle t, p \rangle), \quad p = clip(softmax(z), \epsilon, 1 - \epsilon)

      Gradient to the logits alone, and none through clipped entries. It vanishes where t is 0 or the same for all classes.

    Args:
      logits: float ``[..., K]``, classes on ``axis``.
      targets: float ``[..., K]``, the remembered predictions, of the shape of ``logits``; at least 0 with a sum of at most 1.
      clip: :math:`\epsilon`, in [0, 0.5), default 1e-4; it bounds the penalty from below by :math:`\log \epsilon`.
      axis: the class axis.
      where: boolean, broadcasts to ``logits``: the classes that exist.

    Returns:
      The penalty of each example, ``[...]``, at most 0, in float32 or better.

    Raises:
      ValueError: if a shape or dtype does not fit, or ``clip`` lies outside its range.

    Cost:
      A softmax and one pass over the targets, each way.
      XLA at [1024, 1000]: at most 5.5 times the FLOPs and 2.1 times the bytes of cross-entropy, and 0.55 times its memory more.

    Use:
      Part of: `elr`, `elr_plus`.
      When: Call it with targets of another source than a memory: a teacher's or an average network's, also for unlabelled
        examples.
      Badly with: Losses without a pull towards labels: alone it makes any first guess sure. Targets that sum to more than 1.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> z, t = jnp.array([2.0, 1.0, 0.0]), jnp.array([0.199572, 0.073419, 0.027009])
      >>> round(float(rj.losses.elr_penalty(z, t)), 4)
      -0.1662

    References:
      Liu et al., Early-Learning Regularization Prevents Memorization of Noisy Labels, 2020, arXiv 2007.00151.
    """
    name = "losses.elr_penalty"
    x = classes.class_inputs(name, logits, axis=axis, where=where)
    targets = jax.lax.stop_gradient(_class_last(name, targets, logits, axis))
    agreement = jnp.sum(targets * _clipped_softmax(name, x, clip), axis=-1)
    # Only a clip below the rounding error, or targets that sum to more than 1, reach the limit.
    return jnp.log1p(-jnp.minimum(agreement, 1 - jnp.finfo(agreement.dtype).eps))


def elr(num_examples: int, num_classes: int, *, beta: Strength = 0.7, weight: Strength = 3.0, clip: float = 1e-4) -> Stateful:
    r"""Early-learning regularisation: cross-entropy, held to the predictions made before wrong labels are memorised.

    Formula:
      .. math:: t_i \leftarrow \beta t_i + (1 - \beta) \frac{p}{\sum_k p_k}, \quad
        CE(z, y) + w \log(1 - \langle t_i, p \rangle), \quad p = clip(softmax(z), \epsilon, 1 - \epsilon)

      The memory is updated first and is a constant for the gradient; cross-entropy uses the logits unclipped. The functions
      behind it are `elr_targets` and `elr_penalty`.

    Args:
      num_examples: N, the size of the training set.
      num_classes: K.
      beta: the share of the past in the memory, in [0, 1], default 0.7; a number or a schedule.
      weight: the weight of the penalty, at least 0, default 3; a number or a schedule. 0 is cross-entropy, with the memory
        kept.
      clip: :math:`\epsilon`, in [0, 0.5), default 1e-4.

    Returns:
      ``init() -> ELRState``, and ``apply(state, logits, labels, indices, *, step=None, where=None, mask=None) -> (loss [B],
      state)`` with float logits ``[B, K]``, class ids ``[B]`` or probabilities ``[B, K]``, and the integer positions ``[B]``
      of the examples in the training set, no two alike (of two rows for one position, either may stay). ``step`` is asked
      for by schedules; ``where`` is a boolean mask of classes; ``mask``, boolean ``[B]``, names the examples that count: the
      others cost 0 and leave the memory alone. A position outside [0, N) gives a NaN loss and writes nothing.

    Raises:
      ValueError: if a size or strength is out of range; in ``apply``, if the state is not of this N and K, a shape or dtype
        does not fit, NumPy positions lie outside [0, N), or a schedule is left without ``step``.

    Cost:
      A memory of 4 N K bytes, B rows of which are read and written; a jit that donates it updates it in place. It may be
      sharded over N: ``jax.jit(memory.init, out_shardings=...)()``. No further forward pass. XLA counts the whole memory, here
      of 50,000 rows, as read and written, of which a step touches B rows.
      XLA at [1024, 1000]: at most 9.1 times the FLOPs and 22 times the bytes of cross-entropy, and 1.7 times its memory more.

    Use:
      For: noisy labels.
      When: Many epochs over a set with wrong labels of any kind, without a clean part or a known noise rate. The best of all
        recipes on the digits comparison, and ahead under symmetric and confused-pair noise alike, at no cost on clean labels.
        Weights of 5 to 7 did far better there than the default.
      Not when: Nothing right is learned first: few passes, or a high learning rate at once. N x K is too large to keep.
        Predictions of rare classes start wrong, and the memory holds to them.
      Badly with: `mixup` and `cutmix`, which store mixtures: take `elr_plus`. Positions dealt anew in each epoch, or repeated
        in a batch. `ps_kd`, a second memory. Labels that are corrected between epochs, which it already outweighs.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> memory = rj.losses.elr(num_examples=100, num_classes=3)
      >>> state = memory.init()
      >>> loss, state = memory.apply(state, jnp.array([[2.0, 1.0, 0.0]]), jnp.array([1]), jnp.array([42]))
      >>> round(float(loss[0]), 4)
      0.9089

    References:
      Liu et al., Early-Learning Regularization Prevents Memorization of Noisy Labels, 2020, arXiv 2007.00151. The authors
      set (beta, weight) to (0.7, 3) on CIFAR-10 with symmetric noise, Clothing1M and WebVision, (0.9, 1) on CIFAR-10 with
      asymmetric noise, (0.9, 7) on CIFAR-100. The clip is in their code alone.
    """
    name = "losses.elr"
    shape = examples.shape(name, num_examples, num_classes)
    _check_strengths(name, beta, weight, clip)

    def apply(
        state: ELRState, logits: Any, labels: Any, indices: Any, *, step: Any = None, where: Any = None, mask: Any = None
    ) -> tuple[Array, ELRState]:
        memory = examples.buffer(name, state, ELRState, *shape)
        logits, counts = examples.logits(name, logits, shape[1], mask)
        x = classes.class_inputs(name, logits, labels, where=where)
        rows = examples.rows(name, "indices", indices, len(logits), shape[0], counts)
        past = examples.read(memory, rows, x.logits.dtype)
        targets = elr_targets(past, logits, beta=resolve(beta, step, name, "beta"), clip=clip, where=where)
        strength = jnp.asarray(resolve(weight, step, name, "weight"), x.logits.dtype)
        loss = classes.cross_entropy(x) + strength * elr_penalty(logits, targets, clip=clip, where=where)
        return examples.per_example(loss, rows), ELRState(examples.write(memory, rows, targets, past))

    return Stateful(lambda: ELRState(jnp.zeros(shape, jnp.float32)), apply)


def elr_plus(
    num_examples: int,
    num_classes: int,
    *,
    beta: Strength = 0.7,
    weight: Strength = 3.0,
    clip: float = 1e-4,
    ramp_steps: int = 0,
    reweight_labels: bool = False,
) -> Stateful:
    r"""ELR with mixup, and targets from the averaged weights of a second network.

    Formula:
      .. math:: t_i \leftarrow \beta t_i + (1 - \beta) \, softmax(z^{ema}_i), \quad q = m t_i + (1 - m) t_{j},

      .. math:: CE(z, y) + r w \log(1 - \langle q, p \rangle), \quad r = e^{-5 (1 - min(s / S, 1))^2}

      with p as in `elr`, z the logits and y the labels of examples mixed as ``m * x_i + (1 - m) * x_j``, at step s of a ramp
      of S steps (r = 1 without a ramp).

    Args:
      num_examples: N, the size of the training set.
      num_classes: K.
      beta: the share of the past in the memory, in [0, 1], default 0.7; a number or a schedule.
      weight: the weight of the penalty, at least 0, default 3; a number or a schedule. 0 is cross-entropy.
      clip: :math:`\epsilon`, the clip of the probabilities in the penalty, in [0, 0.5), default 1e-4.
      ramp_steps: S, at least 0; default 0, no ramp.
      reweight_labels: multiply probability labels by q and normalise them before the cross-entropy, as the authors' code
        does on 100 classes; default False.

    Returns:
      ``init() -> ELRState``, and ``apply(state, logits, ema_logits, labels, indices, mix_indices=None, mix_weight=None, *,
      step=None, where=None, mask=None) -> (loss [B], state)``: ``logits [B, K]`` of the mixed examples; ``ema_logits
      [B, K]`` of the unmixed ones, by the exponential moving average of the OTHER network's weights, without gradient;
      mixed ``labels [B, K]``, or class ids ``[B]``; the integer positions ``[B]`` in the training set of the examples
      (``indices``, no two alike) and of their partners (``mix_indices``, that is ``indices[partner]``); ``mix_weight``, m,
      in [0, 1], a number or ``[B]``. Without the last two nothing is mixed. ``step`` is asked for by the ramp and by
      schedules; the rest is as in `elr`. Each of the two networks has its own state.

    Raises:
      ValueError: if a size, strength or option is out of range; in ``apply``, if the state is not of this N and K, a shape
        or dtype does not fit, one of ``mix_indices`` and ``mix_weight`` is given without the other, NumPy positions lie
        outside [0, N), or a ramp or schedule is left without ``step``.

    Cost:
      A memory of 4 N K bytes as in `elr`, one for each of two networks, and a forward pass for ``ema_logits``. XLA counts the
      whole memory, here of 50,000 rows, as read and written, of which a step touches 2 B rows.
      XLA at [1024, 1000]: at most 16 times the FLOPs and 29 times the bytes of cross-entropy, and 2.2 times its memory more.

    Use:
      For: noisy labels.
      When: Heavily wrong labels and room for two networks, each with an `ema` of its weights and `mixup`. The other network's
        average makes the targets, so that one network's errors do not confirm themselves.
      Not when: `elr` with one network is enough, or memory for four sets of weights is short. Without partner and mixing weight
        it is that with other targets. 100 classes without ``reweight_labels`` is not the published run.
      Badly with: `cutmix` of several partners or of other weights than ``mix_weight``. One network in both places, whose
        average confirms it. Positions dealt anew in each epoch.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> memory = rj.losses.elr_plus(num_examples=100, num_classes=3)
      >>> z, y = jnp.array([[2.0, 1.0, 0.0], [0.0, 1.0, 0.0]]), jnp.array([[0.0, 0.7, 0.3], [0.3, 0.0, 0.7]])
      >>> i, j = jnp.array([42, 7]), jnp.array([7, 42])
      >>> loss, state = memory.apply(memory.init(), z, z, y, i, j, 0.7)
      >>> [round(float(x), 4) for x in loss]
      [1.2749, 1.1827]

    References:
      Liu et al., Early-Learning Regularization Prevents Memorization of Noisy Labels, 2020, arXiv 2007.00151. The authors
      draw m = max(l, 1 - l) with l uniform, decay the averaged weights by 0.997 after a ramp over 40000 steps on CIFAR, and
      average the logits of the two networks for prediction. The label weighting is in their code alone.
    """
    name = "losses.elr_plus"
    shape = examples.shape(name, num_examples, num_classes)
    _check_strengths(name, beta, weight, clip)
    checks.integer(name, "ramp_steps", ramp_steps, low=0)
    checks.boolean(name, "reweight_labels", reweight_labels)

    def apply(
        state: ELRState,
        logits: Any,
        ema_logits: Any,
        labels: Any,
        indices: Any,
        mix_indices: Any = None,
        mix_weight: Any = None,
        *,
        step: Any = None,
        where: Any = None,
        mask: Any = None,
    ) -> tuple[Array, ELRState]:
        memory = examples.buffer(name, state, ELRState, *shape)
        logits, counts = examples.logits(name, logits, shape[1], mask)
        ema_logits = examples.blank(checks.floating(name, "ema_logits", ema_logits, shape=logits.shape), counts)
        x = classes.class_inputs(name, logits, labels, where=where)
        dtype = x.logits.dtype
        rows = examples.rows(name, "indices", indices, len(logits), shape[0], counts)
        past = examples.read(memory, rows, dtype)
        targets = elr_targets(past, ema_logits, beta=resolve(beta, step, name, "beta"), clip=0.0, where=where).astype(dtype)
        memory, used = examples.write(memory, rows, targets, past), [rows]
        if (mix_indices is None) != (mix_weight is None):
            checks.fail(name, "mix_weight", "given with mix_indices, or neither", mix_weight)
        if mix_indices is not None:
            used.append(examples.rows(name, "mix_indices", mix_indices, len(logits), shape[0], counts))
            share = _mix_share(name, mix_weight, len(logits), dtype)
            targets = jax.lax.stop_gradient(share * targets + (1 - share) * examples.read(memory, used[1], dtype))
        if reweight_labels and not x.is_ids:
            product = x.labels * targets
            total = jnp.sum(product, axis=-1, keepdims=True)
            x = x._replace(labels=jnp.where(total > 0, product / jnp.where(total > 0, total, 1), x.labels))
        strength = jnp.asarray(resolve(weight, step, name, "weight"), dtype)
        if ramp_steps:
            progress = jnp.clip(jnp.asarray(checks.number(name, "step", step, low=0.0), dtype) / ramp_steps, 0, 1)
            strength = strength * jnp.exp(-5 * jnp.square(1 - progress))
        loss = classes.cross_entropy(x) + strength * elr_penalty(logits, targets, clip=clip, where=where)
        return examples.per_example(loss, *used), ELRState(memory)

    return Stateful(lambda: ELRState(jnp.zeros(shape, jnp.float32)), apply)


def _check_strengths(name: str, beta: Strength, weight: Strength, clip: float) -> None:
    checks.strength(name, "beta", beta, low=0.0, high=1.0)
    checks.strength(name, "weight", weight, low=0.0)
    checks.number(name, "clip", clip, low=0.0, high=0.5, open_high=True)


def _class_last(name: str, targets: Any, logits: Any, axis: int) -> Array:
    """Targets of the shape of ``logits`` with the class axis last, in float32 or better."""
    targets = checks.floating(name, "targets", targets, shape=jnp.shape(logits))
    return jnp.moveaxis(targets.astype(jnp.promote_types(jnp.float32, targets.dtype)), axis, -1)


def _clipped_softmax(name: str, x: classes.ClassInputs, clip: Any) -> Array:
    checks.number(name, "clip", clip, low=0.0, high=0.5, open_high=True)
    shifted, log_total = classes.normalise(x.logits, x.where)
    p = _clipped_exp(shifted - log_total[..., None], jnp.asarray(clip, shifted.dtype))
    return p if x.where is None else jnp.where(x.where, p, 0)


@jax.custom_jvp
def _clipped_exp(log_p: Array, clip: Any) -> Array:
    """The clipped exponential, without comparisons and with a derivative that computes it anew: it fuses with what reads it."""
    return jnp.minimum(jnp.maximum(jnp.exp(log_p), clip), 1 - clip)


@_clipped_exp.defjvp
def _clipped_exp_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    log_p, clip = primals
    p = jnp.exp(log_p)
    # 1 strictly between the limits, else 0.
    inside = jnp.maximum(jnp.sign(p - clip) * jnp.sign((1 - clip) - p), 0)
    return _clipped_exp(log_p, clip), inside * p * tangents[0]


def _mix_share(name: str, value: Any, batch: int, dtype: Any) -> Array:
    """The weight of each example in its mixture, ``[1, 1]`` or ``[B, 1]``."""
    if jnp.ndim(value) == 0:
        return jnp.asarray(checks.number(name, "mix_weight", value, low=0.0, high=1.0), dtype).reshape(1, 1)
    return checks.floating(name, "mix_weight", value, shape=(batch,)).astype(dtype)[:, None]
