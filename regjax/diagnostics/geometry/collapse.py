"""What a loss does to its logits: softmax collapse, losses of exactly zero, and the two parts of label smoothing."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from regjax.core import checks, classes, trees
from regjax.core.types import Array, Strength
from regjax.diagnostics import _examples

_DTYPES = ("bfloat16", "float16", "float32", "float64")


class LabelSmoothingParts(NamedTuple):
    """The two parts of what label smoothing adds to cross-entropy, per example: at least 0, and at most 0."""

    regularization: Array
    error_enhancement: Array


def softmax_collapse(logits: Any, *, axis: int = -1, dtype: Any = None, where: Any = None) -> Array:
    r"""The share of examples whose top logit absorbs all others in the softmax, which stops their gradient.

    Formula:
      .. math:: \frac{1}{N} \sum_i \left[ 1 + \sum_{k \ne top} e^{z_{ik} - \max_j z_{ij}} = 1 \right]

      in the arithmetic of ``dtype``. For such an example that is classified rightly, loss and gradient are exactly 0.

    Args:
      logits: float ``[..., K]``, classes on ``axis``.
      axis: the class axis.
      dtype: the dtype in which the softmax is computed in training: bfloat16, float16, float32 or float64 (with x64
        enabled); default that of ``logits``.
      where: boolean, of the shape of ``logits`` without ``axis``: which examples count; default all.

    Returns:
      A scalar in [0, 1], in float32 or better; 0 if no example counts. No gradient flows to the logits.

    Raises:
      ValueError: if a shape or dtype does not fit, or float64 is asked for while JAX runs without it.

    Cost:
      One exponential for each logit.
      XLA at [1024, 1000]: at most 19 times the FLOPs and 2.3 times the bytes of a copy of its arguments, and 0.56 times its
      memory more.

    Use:
      For: delayed generalisation, exploding logits.
      When: Small tasks trained far beyond a perfect fit, as modular addition without decay, or half-precision losses: a rising
        share says that rounding has stopped learning. Give ``dtype`` of the loss, then try `stablemax_cross_entropy` or
        `orthogonal_gradient`.
      Not when: Training ends soon after the fit, or generalisation is delayed for another reason: without collapse a stabler
        softmax mends nothing.
      Badly with: Losses that bound logits (`logit_norm`, `label_smoothing`, `stablemax_cross_entropy`), where it measures a
        softmax that is not trained. Logits cast to float32 after a bfloat16 loss.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> logits = jnp.array([[30.0, 0.0, 0.0], [9.0, 0.0, 0.0]])
      >>> float(rj.diagnostics.softmax_collapse(logits)), float(rj.diagnostics.softmax_collapse(logits, dtype="float16"))
      (0.5, 1.0)

    References:
      Prieto et al., Grokking at the Edge of Numerical Stability, 2025, arXiv 2501.04697. Their sum runs over all classes in an
      order that the device chooses; here the top is added last, so that the result depends on no order.
    """
    name = "diagnostics.softmax_collapse"
    logits = checks.floating(name, "logits", logits, min_ndim=1)
    kind = _precision(name, logits.dtype if dtype is None else dtype)
    z = classes.class_inputs(name, logits, axis=axis).logits
    where = checks.example_mask(name, "where", where, z.shape[:-1])
    z = jax.lax.stop_gradient(z).astype(jnp.promote_types(z.dtype, kind))
    info = jnp.finfo(kind)

    def rounded(x: Array) -> Array:
        # Compilers may skip a cast to a narrow dtype and back, or do narrow sums in float32; this rounding is kept.
        return jax.lax.reduce_precision(x, info.nexp, info.nmant)

    z = rounded(z)
    top = jnp.argmax(z, axis=-1, keepdims=True)
    apart = rounded(z - jnp.max(z, axis=-1, keepdims=True))
    others = jnp.where(jnp.arange(z.shape[-1]) == top, 0, rounded(jnp.exp(apart)))
    collapsed = rounded(1 + jnp.sum(others, axis=-1)) == 1
    return _examples.mean(collapsed, where, trees.accumulator(logits))


def zero_loss_fraction(losses: Any, *, where: Any = None) -> Array:
    r"""The share of examples whose loss is exactly 0, and which therefore train nothing.

    Formula:
      .. math:: \frac{1}{N} \sum_i \left[ \ell_i = 0 \right]

    Args:
      losses: float, any shape, as the training loss returns them: take them before any cast.
      where: boolean of the shape of ``losses``: which examples count; default all.

    Returns:
      A scalar in [0, 1], in float32 or better; 0 if no example counts.

    Raises:
      ValueError: if a shape or dtype does not fit.

    Cost:
      One pass over the losses.
      XLA at [50000]: at most 4.4 times the FLOPs and 1.7 times the bytes of a copy of its arguments, and 0.55 times its memory
      more.

    Use:
      For: delayed generalisation, exploding logits.
      When: As a cheap log of any per-example loss: how much of a batch still teaches. With cross-entropy it follows
        `softmax_collapse`, with hinge losses it is the share beyond the margin.
      Not when: Losses are small but not 0, which is no loss of gradient. Penalties are added per example, so that no value is
        0.
      Badly with: Losses already multiplied by example weights (`small_loss_weights`, `truncated_cross_entropy`): what was left
        out by choice counts as done.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> float(rj.diagnostics.zero_loss_fraction(jnp.array([0.0, 0.5, 0.0, 1e-30])))
      0.5

    References:
      Prieto et al., Grokking at the Edge of Numerical Stability, 2025, arXiv 2501.04697.
    """
    name = "diagnostics.zero_loss_fraction"
    losses = checks.floating(name, "losses", losses)
    where = checks.example_mask(name, "where", where, losses.shape)
    return _examples.mean(losses == 0, where, trees.accumulator(losses))


def label_smoothing_decomposition(
    logits: Any, labels: Any, *, alpha: Strength = 0.1, axis: int = -1, where: Any = None
) -> LabelSmoothingParts:
    r"""Splits what label smoothing adds to cross-entropy into its wanted part and the one that enhances errors.

    Formula:
      .. math:: \alpha \left( z_y - \frac{1}{K} \sum_k z_k \right)
        = \frac{\alpha}{K} \sum_{z_m < z_y} (z_y - z_m) + \frac{\alpha}{K} \sum_{z_m > z_y} (z_y - z_m)

      The first part draws the logits below the label up to it. The second, below 0 only where the prediction is wrong,
      rewards pushing wrong logits further above the label; MaxSup has none of it.

    Args:
      logits: float ``[..., K]``, classes on ``axis``.
      labels: integer class ids ``[...]``.
      alpha: the smoothing, default 0.1, at most 1; 0 gives zeros.
      axis: the class axis.
      where: boolean, broadcasts to ``logits``: the classes that exist.

    Returns:
      ``LabelSmoothingParts(regularization [...], error_enhancement [...])`` in float32 or better.

    Raises:
      ValueError: if a shape or dtype does not fit, or ``alpha`` is not finite or above 1.

    Cost:
      A few passes over the logits.
      XLA at [1024, 1000]: at most 12 times the FLOPs and 5 times the bytes of a copy of its arguments, and 1.1 times its memory
      more.

    Use:
      For: collapsed features, noisy labels.
      When: To see on training logits how much of what `label_smoothing` adds works on wrong predictions, which `maxsup` leaves
        out: it matters where many examples are misfitted, as early or with many classes.
      Not when: Nearly all training examples are right: the second part is then about 0, and in the calibration study, which is
        such a case, both losses ended alike.
      Badly with: Mixed or soft labels: it needs one class. Wrong labels: a network that sees through one counts as enhancing an
        error. In the label-noise study `label_smoothing` withstood them far better than `maxsup`.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> parts = rj.diagnostics.label_smoothing_decomposition(jnp.array([2.0, 1.0, 0.0]), jnp.array(1), alpha=0.3)
      >>> [round(float(part), 4) for part in parts]
      [0.1, -0.1]

    References:
      Zhou et al., MaxSup: Overcoming Representation Collapse in Label Smoothing, 2025, arXiv 2502.15798. This is the paper's
      formula; the authors' code also counts the classes that a part leaves out.
    """
    name = "diagnostics.label_smoothing_decomposition"
    checks.number(name, "alpha", alpha, high=1.0)
    checks.integers(name, "labels", labels)
    x = classes.class_inputs(name, logits, labels, axis=axis, where=where)
    lead = classes.pick(x.logits, x.labels)[..., None] - x.logits
    alpha = jnp.asarray(alpha, lead.dtype)
    above, below = (classes.class_mean(jnp.where(part, lead, 0), x.where) for part in (lead > 0, lead < 0))
    wrong = jnp.where(jnp.isnan(lead[..., 0]), jnp.nan, 0)
    return LabelSmoothingParts(alpha * above + wrong, alpha * below + wrong)


def _precision(function: str, dtype: Any) -> Any:
    try:
        name = jnp.dtype(dtype).name
    except TypeError:
        name = None
    if name not in _DTYPES:
        checks.fail(function, "dtype", "None, " + ", ".join(_DTYPES[:-1]) + " or " + _DTYPES[-1], dtype)
    if name == "float64" and jnp.result_type(float) != jnp.float64:
        checks.fail(function, "dtype", "float32 or narrower unless jax_enable_x64 is set", dtype)
    return jnp.dtype(name)
