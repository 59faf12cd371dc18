"""Penalties on the size of logits: spectral decoupling."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from regjax.core import checks, classes
from regjax.core.types import Array, Strength


def spectral_decoupling(
    logits: Any,
    labels: Any,
    *,
    weight: Strength = 0.1,
    offset: Any = 0.0,
    axis: int = -1,
    where: Any = None,
) -> Array:
    r"""Cross-entropy plus the mean squared logit: strong features no longer starve the weak ones of gradient.

    Formula:
      .. math:: CE(z, y) + w \, \frac{1}{K} \sum_k (z_k - \gamma_k)^2

      To be used instead of weight decay. No stop-gradient.

    Args:
      logits: float ``[..., K]``, classes on ``axis``.
      labels: integer class ids ``[...]``, or probabilities of the shape of ``logits``; the penalty ignores them.
      weight: the penalty's weight, at least 0, default 0.1; 0 is cross-entropy. The mean over classes divides the weight of
        each single logit by K.
      offset: :math:`\gamma`, the value towards which logits are pulled; a number, default 0, or ``[K]``.
      axis: the class axis.
      where: boolean, broadcasts to ``logits``: the classes that exist.

    Returns:
      The loss of each example, ``[...]``, in float32 or better.

    Raises:
      ValueError: if a shape or dtype does not fit, ``weight`` is negative or not finite, or ``offset`` is not finite.

    Cost:
      None beyond cross-entropy: one pass over the logits each way.
      XLA at [1024, 1000]: at most 3.9 times the FLOPs and 0.98 times the bytes of cross-entropy, and 0 times its memory more.

    Use:
      For: distribution shift, exploding logits.
      When: Simple spurious features starve the useful ones of gradient. Instead of weight decay. Its weight has to be tuned on
        examples without the shortcut, and started late: on coloured MNIST only the published switch to a large weight works.
      Not when: Labels are noisy: on the digits comparison it gave no clear gain, and in a noisy coloured version it memorised
        the noise. Many classes: each logit has only 1/K of the weight. Small logits must be calibrated afterwards.
      Badly with: Weight decay, which it replaces. `logit_norm`, whose loss does not see the length that this one shrinks.
        `maxsup`, the same aim twice.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> round(float(rj.losses.spectral_decoupling(jnp.array([2.0, 1.0, 0.0]), jnp.array(0), weight=0.1)), 5)
      0.57427

    References:
      Pezeshki et al., Gradient Starvation: A Learning Proclivity in Neural Networks, 2020, arXiv 2011.09468. The paper
      writes weight / 2 and a sum; this is the mean without the half, as in DomainBed. The result on coloured MNIST needs
      the weight 2e-5 for 450 steps and then the whole loss divided by its scale, with Adam the same as a weight schedule
      from 2e-5 to 1: a constant weight of 2e-5 does not give it.
    """
    name = "losses.spectral_decoupling"
    checks.number(name, "weight", weight, low=0.0)
    x = classes.class_inputs(name, logits, labels, axis=axis, where=where)
    z = x.logits if x.where is None else jnp.where(x.where, x.logits, 0)
    loss = classes.cross_entropy(x)
    penalty = classes.class_mean(jnp.square(z - _offset(name, offset, z.shape[-1], z.dtype)), x.where)
    return loss + jnp.asarray(weight, loss.dtype) * penalty


def binary_spectral_decoupling(
    logits: Any,
    labels: Any,
    *,
    weight: Strength = 0.1,
    offset: Any = 0.0,
    class_balanced: bool = False,
    half: bool = False,
    where: Any = None,
    axis_name: Any = None,
) -> Array:
    r"""Logistic loss plus the squared logit, for two classes and a single logit.

    Formula:
      .. math:: \log(1 + e^{-s f}) + w \, (f - \gamma_y)^2, \quad s = 2 y - 1

      With ``class_balanced`` the penalty of an example of class c is multiplied by :math:`B / n_c`, :math:`n_c` being the
      examples of the class in the batch, so that the batch mean is
      :math:`w \sum_c mean_{i: y_i = c} (f_i - \gamma_c)^2`: each class is averaged by itself. A probability label y counts
      as y of an example of class 1 and 1 - y of class 0.

    Args:
      logits: float ``[...]``, the log-odds of class 1.
      labels: integers 0 or 1, or the probabilities of class 1, of the shape of ``logits``.
      weight: the penalty's weight, at least 0, default 0.1; 0 is the logistic loss.
      offset: :math:`\gamma`, the value towards which logits are pulled; a number, default 0, or one for each class,
        ``(offset_0, offset_1)``.
      class_balanced: average the penalty within each class; default False. A class absent from the batch adds nothing.
      half: multiply the penalty by 1/2, as the paper writes it; default False, as the authors' code.
      where: boolean of the shape of ``logits``: the examples that count; the others cost 0 and enter no class count.
      axis_name: the name of a mapped axis (``shard_map``, ``vmap``) over which the batch is split, for the class counts.

    Returns:
      The loss of each example, ``[...]``, in float32 or better. An integer label other than 0 and 1 gives NaN.

    Raises:
      ValueError: if a shape, dtype or option does not fit, ``weight`` is negative or not finite, or ``offset`` is neither a
        finite number nor a pair.

    Cost:
      None beyond the logistic loss; ``class_balanced`` adds two sums over the batch.
      XLA at 2 times [65536]: at most 1.2 times the FLOPs and 0.87 times the bytes of the logistic loss, and 0 times its memory
      more.

    Use:
      For: distribution shift, long tails.
      When: Two classes and one logit, above all with groups that a shortcut misleads: offsets of the classes and
        ``class_balanced`` for the worst group. Four numbers to tune, which takes validation examples of that group.
      Not when: Batches are small and one class is rare: with ``class_balanced`` its few examples get weights of B / n, and
        batches without one say nothing of it. There is no known shortcut.
      Badly with: Weight decay, which it replaces. Resampling to equal classes together with ``class_balanced``, which balances
        twice. Microbatches, whose class counts are those of a part.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> f, y = jnp.array([2.0, -1.0, 0.5]), jnp.array([1, 0, 0])
      >>> loss = rj.losses.binary_spectral_decoupling(f, y, offset=(0.44, 2.5), class_balanced=True)
      >>> [round(float(x), 4) for x in loss]
      [0.2019, 0.6243, 0.9746]

    References:
      Pezeshki et al., Gradient Starvation: A Learning Proclivity in Neural Networks, 2020, arXiv 2011.09468. The default
      follows the authors' code, the mean of f squared without the half. For the worst group of CelebA they set weight 0.1,
      offset (0.44, 2.5), class_balanced, no weight decay, Adam at 1e-5; their code is NaN on a batch without one class.
    """
    name = "losses.binary_spectral_decoupling"
    checks.number(name, "weight", weight, low=0.0)
    checks.boolean(name, "class_balanced", class_balanced)
    checks.boolean(name, "half", half)
    f = checks.floating(name, "logits", logits)
    f = f.astype(jnp.promote_types(jnp.float32, f.dtype))
    labels = checks.array(name, "labels", labels)
    is_ids = jnp.issubdtype(labels.dtype, jnp.integer)
    if labels.shape != f.shape or labels.dtype == jnp.bool_:
        checks.fail(name, "labels", f"integers 0 or 1 or probabilities of shape {list(f.shape)}", labels)
    where = checks.example_mask(name, "where", where, f.shape)
    gamma = jnp.broadcast_to(_offset(name, offset, 2, f.dtype), (2,))
    y = labels.astype(f.dtype)
    if where is not None:
        f, y = jnp.where(where, f, 0), jnp.where(where, y, 0)
    if is_ids:
        # One softplus where the label chooses the side.
        loss = jax.nn.softplus(jnp.where(y == 1, -f, f))
    else:
        loss = y * jax.nn.softplus(-f) + (1 - y) * jax.nn.softplus(f)
    share_0, share_1 = 1 - y, y
    if class_balanced:
        share_0 *= _inverse_frequency(share_0, where, axis_name)
        share_1 *= _inverse_frequency(share_1, where, axis_name)
    penalty = share_0 * jnp.square(f - gamma[0]) + share_1 * jnp.square(f - gamma[1])
    loss = loss + jnp.asarray(weight, f.dtype) * (0.5 if half else 1) * penalty
    if is_ids:
        loss = jnp.where((y == 0) | (y == 1), loss, jnp.nan)
    return loss if where is None else jnp.where(where, loss, 0)


def _inverse_frequency(share: Array, where: Array | None, axis_name: Any) -> Array:
    """B / n_c, and 0 for a class without examples, where the division would make 0 * inf of its absent penalty."""
    sums = [jnp.sum(x if where is None else jnp.where(where, x, 0)) for x in (share, jnp.ones_like(share))]
    count, batch = sums if axis_name is None else jax.lax.psum(sums, axis_name)
    return jnp.where(count > 0, batch / jnp.where(count > 0, count, 1), 0)


def _offset(function: str, offset: Any, count: int, dtype: Any) -> Array:
    """A number, or one number for each class."""
    if not isinstance(offset, (list, tuple)) and jnp.ndim(offset) == 0:
        return jnp.asarray(checks.number(function, "offset", offset), dtype)
    values = checks.array(function, "offset", offset, shape=(count,))
    if not isinstance(offset, jax.Array):
        for value in np.asarray(offset).tolist() if isinstance(offset, np.ndarray) else offset:
            checks.number(function, "offset", value)
    return values.astype(dtype)
