"""Self-distillation across epochs: targets made of a network's own earlier predictions."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from regjax.core import checks, classes, examples
from regjax.core.strength import resolve
from regjax.core.types import Array, Stateful, Strength


class PSKDState(NamedTuple):
    """The memory of `ps_kd`.

    Attributes:
      predictions: float ``[N, K]``, the probabilities of each example at its last visit; zeros before the first.
    """

    predictions: Array


def ps_kd_targets(labels: Any, previous: Any, alpha: Strength, *, axis: int = -1) -> Array:
    r"""Labels mixed with earlier predictions.

    Formula:
      .. math:: (1 - \alpha) \, y + \alpha P

      A row of zeros in ``previous``, an example never seen before, stands for its label. No gradient flows to an argument.

    Args:
      labels: integer class ids ``[...]``, or probabilities of the shape of ``previous``.
      previous: float ``[..., K]``, the earlier probabilities, classes on ``axis``.
      alpha: the share of the earlier prediction, in [0, 1]. 0 gives the labels.
      axis: the class axis.

    Returns:
      Target probabilities of the shape of ``previous``, in float32 or better; NaN for a class id outside [0, K).

    Raises:
      ValueError: if a shape or dtype does not fit, or ``alpha`` lies outside [0, 1].

    Cost:
      One pass over the predictions.
      XLA at [1024, 1000]: at most 10 times the FLOPs and 2 times the bytes of a copy of its arguments, and 0.01 times its
      memory more.

    Use:
      Part of: `ps_kd`.
      When: Call it with predictions that you keep yourself, such as those of an `ema` of the weights, or of a memory on the
        host, with `ps_kd_alpha` for the share.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> targets = rj.losses.ps_kd_targets(jnp.array(0), jnp.array([0.2, 0.5, 0.3]), 0.4)
      >>> [round(float(x), 4) for x in targets]
      [0.68, 0.2, 0.12]

    References:
      Kim et al., Self-Knowledge Distillation with Progressive Refinement of Targets, 2020, arXiv 2006.12000.
    """
    name = "losses.ps_kd_targets"
    checks.number(name, "alpha", alpha, low=0.0, high=1.0)
    previous = checks.floating(name, "previous", previous, min_ndim=1)
    x = classes.class_inputs(name, previous, labels, axis=axis)
    p, num_classes = x.logits, x.logits.shape[-1]
    y = classes.one_hot(x.labels, x.is_ids, num_classes, p.dtype)
    if x.is_ids:
        y = jnp.where(((x.labels >= 0) & (x.labels < num_classes))[..., None], y, jnp.nan)
    p = jnp.where(jnp.any(p != 0, axis=-1, keepdims=True), p, y)
    alpha = jnp.asarray(alpha, p.dtype)
    return jnp.moveaxis(jax.lax.stop_gradient((1 - alpha) * y + alpha * p), -1, axis)


def ps_kd(
    num_examples: int, num_classes: int, *, alpha_final: Strength = 0.8, total_epochs: int, dtype: Any = jnp.float32
) -> Stateful:
    r"""Progressive self-knowledge distillation: cross-entropy against labels softened by the last epoch's predictions.

    Formula:
      .. math:: CE\left(z, (1 - \alpha_e) \, y + \alpha_e P_i\right), \quad \alpha_e = \alpha \frac{e + 1}{E}, \quad
        P_i \leftarrow softmax(z)

      The target is a constant for the gradient, :math:`p - t`. The memory is written after the loss, from the same training
      forward pass. In epoch 0, and at the first visit of an example, :math:`P_i` is the label: plain cross-entropy. The
      function behind it is `ps_kd_targets`.

    Args:
      num_examples: N, the size of the training set.
      num_classes: K.
      alpha_final: :math:`\alpha`, the share of the earlier prediction in the last epoch, in [0, 1], default 0.8; a number or
        a schedule. 0 is cross-entropy, with the memory kept.
      total_epochs: E, at least 1; beyond it the share stays at its final value.
      dtype: the floating dtype of the memory, default float32; float16 and bfloat16 halve it.

    Returns:
      ``init(labels=None) -> PSKDState``, whose rows are zeros, or the labels (ids ``[N]`` or probabilities ``[N, K]``); and
      ``apply(state, logits, labels, indices, *, epoch, step=None, where=None, mask=None) -> (loss [B], state)`` with float
      logits ``[B, K]``, class ids ``[B]`` or probabilities ``[B, K]``, the integer positions ``[B]`` of the examples in the
      training set, no two alike (of two rows for one position, either may stay), and the epoch counted from 0, a number or a
      traced scalar. ``step`` is asked for by a schedule; ``where`` is a boolean mask of classes; ``mask``, boolean ``[B]``,
      names the examples that count: the others cost 0 and leave the memory alone. A position outside [0, N) gives a NaN loss
      and writes nothing.

    Raises:
      ValueError: if a size, strength or dtype is out of range; in ``apply``, if the state is not of this N and K, a shape or
        dtype does not fit, NumPy positions lie outside [0, N), ``epoch`` is negative, or a schedule is left without
        ``step``.

    Cost:
      A memory of N K numbers (5 GB for ImageNet in float32), B rows of which are read and written; a jit that donates it
      updates it in place (bfloat16 on CPU alone takes a float32 copy for the time of the step). It may be sharded over N:
      ``jax.jit(memory.init, out_shardings=...)()``. No further forward pass. XLA counts the whole memory, here of 50,000
      rows, as read and written, of which a step touches B rows.
      XLA at [1024, 1000]: at most 9.4 times the FLOPs and 21 times the bytes of cross-entropy, and 1.7 times its memory more.

    Use:
      For: few labels, noisy labels.
      When: Many epochs over one set of fixed indices, when a teacher's second forward pass is too dear: it costs memory alone.
        Gains come late, as the share of old predictions grows: give ``total_epochs`` the true length.
      Not when: Few passes over the data, or streams. Calibration is the aim: on clean digits it changed nothing. Under wrong
        labels it gained little, since by the end it teaches what was memorised: `elr` holds to what was learned early.
      Badly with: `mixup` and `cutmix`, which store the prediction for a mixture as that of one example. Positions dealt anew in
        each epoch, repeated positions in a batch. `label_smoothing`, which softens the same targets. `elr`, a second memory.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> memory = rj.losses.ps_kd(num_examples=100, num_classes=3, total_epochs=2)
      >>> z, y, i = jnp.array([[2.0, 1.0, 0.0]]), jnp.array([0]), jnp.array([42])
      >>> _, state = memory.apply(memory.init(), z, y, i, epoch=0)
      >>> loss, state = memory.apply(state, z, y, i, epoch=1)
      >>> round(float(loss[0]), 4)
      0.7474

    References:
      Kim et al., Self-Knowledge Distillation with Progressive Refinement of Targets, 2020, arXiv 2006.12000. Paper and code
      agree; an example first seen after epoch 0 has a row of zeros in the code, and its label here.
    """
    name = "losses.ps_kd"
    checks.strength(name, "alpha_final", alpha_final, low=0.0, high=1.0)
    checks.integer(name, "total_epochs", total_epochs, low=1)
    shape = examples.shape(name, num_examples, num_classes)
    dtype = _floating_dtype(name, dtype)

    def init(labels: Any = None) -> PSKDState:
        if labels is None:
            return PSKDState(jnp.zeros(shape, dtype))
        labels = checks.array(name, "labels", labels)
        is_ids = bool(jnp.issubdtype(labels.dtype, jnp.integer))
        if labels.dtype == jnp.bool_ or labels.shape != (shape[:1] if is_ids else shape):
            text = f"integer class ids of shape {list(shape[:1])} or probabilities of shape {list(shape)}"
            checks.fail(name, "labels", text, labels)
        return PSKDState(classes.one_hot(labels, is_ids, shape[1], dtype))

    def apply(
        state: PSKDState,
        logits: Any,
        labels: Any,
        indices: Any,
        *,
        epoch: Any,
        step: Any = None,
        where: Any = None,
        mask: Any = None,
    ) -> tuple[Array, PSKDState]:
        memory = examples.buffer(name, state, PSKDState, *shape)
        logits, counts = examples.logits(name, logits, shape[1], mask)
        x = classes.class_inputs(name, logits, labels, where=where)
        rows = examples.rows(name, "indices", indices, len(logits), shape[0], counts)
        epoch = jnp.asarray(checks.number(name, "epoch", epoch, low=0.0), x.logits.dtype)
        alpha = resolve(alpha_final, step, name, "alpha_final") * jnp.clip((epoch + 1) / total_epochs, 0, 1)
        previous = examples.read(memory, rows, x.logits.dtype)
        targets = ps_kd_targets(x.labels, jnp.where(epoch == 0, 0, previous), alpha)
        log_p = classes.log_softmax(x.logits, x.where)
        loss = -classes.expected_under(log_p, targets, False)
        p = jax.lax.stop_gradient(jnp.exp(log_p))
        p = p if x.where is None else jnp.where(x.where, p, 0)
        return examples.per_example(loss, rows), PSKDState(examples.write(memory, rows, p, previous))

    return Stateful(init, apply)


def _floating_dtype(name: str, dtype: Any) -> Any:
    try:
        dtype = jnp.dtype(dtype)
    except TypeError:
        checks.fail(name, "dtype", "a floating-point dtype", dtype)
    if not jnp.issubdtype(dtype, jnp.floating):
        checks.fail(name, "dtype", "a floating-point dtype", dtype)
    return dtype
