"""Checkered regression: classes as sums, modulo their number, of several softmax variables; of two binary ones, a smooth XOR."""

from typing import Any

import jax
import jax.numpy as jnp

from regjax.core import checks, classes, sharding
from regjax.core.types import Array


def checkered(logits: Any, labels: Any, *, axis: int = -1) -> Array:
    r"""Cross-entropy of a sum, modulo the number of classes, of independent softmax variables.

    Formula:
      .. math:: -\log \Xi_y, \quad \Xi = softmax(Z_1) * ... * softmax(Z_m), \quad
                (a * b)_k = \sum_j a_j b_{k - j}

      with indices modulo K, all in logarithms. m = 1 is softmax cross-entropy; of m = 2 with two classes, `binary_checkered`,
      a smooth XOR. The gradient is :math:`softmax(Z_h)` minus the distribution of the h-th variable given the class.

    Args:
      logits: float ``[..., m, K]``: m heads, classes on ``axis``; without the class axis, the heads are on the last one.
      labels: integer class ids ``[...]``, or probabilities ``[..., K]``.
      axis: the class axis of ``logits``, default -1. The classes of probabilities are on the last axis. There is no mask of
        classes: the sum modulo K needs all of them.

    Returns:
      The loss of each example, ``[...]``, in float32 or better.

    Raises:
      ValueError: if a shape or dtype does not fit.

    Cost:
      (m - 1) K^2 exponentials for each example, and as much memory: for few classes.
      XLA at [1024, 8, 10]: at most 19 times the FLOPs and 12 times the bytes of cross-entropy, and 3.6 times its memory more.

    Use:
      For: few labels.
      When: Classes that are a sum, modulo their number, of hidden choices: parities, cyclic codes, who beats whom in a circle.
        A linear model with a few heads then learns what a softmax cannot, as in rock, paper, scissors.
      Not when: No such structure is known. Classes are many: cost grows as their square. All heads start alike: that is a
        saddle.
      Badly with: Zero or equal initial heads, unless `cross_gradient` leads the descent. Strong `weights.l2` at the start,
        which holds it at the saddle. Classes masked out, as the sum needs all.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> z = jnp.array([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0]])
      >>> loss = jax.vmap(rj.losses.checkered, (None, 0))(z, jnp.arange(3))
      >>> [round(float(p), 4) for p in jnp.exp(-loss)]
      [0.2507, 0.4985, 0.2507]

    References:
      Achab, Sum-log-concave optimisation, cross-gradient descent and checkered regression, 2023, arXiv 2309.15298, definitions
      5.1 and 5.7. It is not convex; `regjax.objectives.cross_gradient` has a descent for it. There is no code.
    """
    name = "losses.checkered"
    logits = checks.floating(name, "logits", logits, min_ndim=2)
    x = classes.class_inputs(name, logits, axis=axis)
    heads, num_classes = x.logits.shape[-2:]
    if heads < 1:
        checks.fail(name, "logits", "an array with at least one head before its class axis", logits)
    labels = checks.array(name, "labels", labels)
    is_ids = bool(jnp.issubdtype(labels.dtype, jnp.integer))
    shape = x.logits.shape[:-2]
    if labels.dtype == jnp.bool_ or labels.shape != (shape if is_ids else (*shape, num_classes)):
        text = f"integer class ids of shape {list(shape)} or probabilities of shape {[*shape, num_classes]}"
        checks.fail(name, "labels", text, labels)
    labels = labels.astype(jnp.promote_types(jnp.int32 if is_ids else jnp.float32, labels.dtype))
    log_p = classes.log_softmax(x.logits)
    total = log_p[..., 0, :]
    for head in range(1, heads):
        total = _convolve(total, log_p[..., head, :])
    return -classes.expected_under(total, labels, is_ids)


def binary_checkoid(logits: Any, *, axis: int = -1) -> Array:
    r"""The probability that an even number of independent binary variables is 1: the smooth XOR, or XNOR, of m scores.

    Formula:
      .. math:: \Xi_m(z) = \frac{1}{2} \left( 1 + \prod_{k=1}^m \tanh(z_k / 2) \right), \quad
                \Xi_2(z) = \frac{\sigma(z_1) \sigma(z_2)}{\sigma(z_1 + z_2)}

      :math:`P(y = 0)` of the model of `binary_checkered`; m = 1 is the sigmoid.

    Args:
      logits: float ``[..., m]``, the scores z, on ``axis``.
      axis: the axis of the scores, default -1.

    Returns:
      The probability, ``[...]``, in float32 or better.

    Raises:
      ValueError: if a shape or dtype does not fit.

    Cost:
      2 m logarithms of sums of two.
      XLA at [8192, 8]: at most 330 times the FLOPs and 44 times the bytes of a copy of its arguments, and 3.6 times its memory
      more.

    Use:
      Part of: `binary_checkered`.
      When: Call it for the probability of label 0 at test time, or as a smooth XOR gate inside a model.
      Badly with: A logarithm of its result in a loss: sure mistakes lose their gradient, which `binary_checkered` keeps.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> round(float(rj.losses.binary_checkoid(jnp.array([1.0, 2.0]))), 6)
      0.675973

    References:
      Achab, Sum-log-concave optimisation, cross-gradient descent and checkered regression, 2023, arXiv 2309.15298.
    """
    return jnp.exp(_log_parities("losses.binary_checkoid", logits, axis)[0])


def binary_checkered(logits: Any, labels: Any, *, axis: int = -1) -> Array:
    r"""The log-loss of checkered regression with two classes: a smooth XOR of m linear scores.

    Formula:
      .. math:: -\log \Xi_m(z) \;\; (y = 0), \quad -\log(1 - \Xi_m(z)) \;\; (y = 1)

      with :math:`\Xi_m` of `binary_checkoid`, in logarithms, so that sure mistakes keep a gradient:
      :math:`\sigma(z_k) (1 - \Xi_{m-1}(z_{-k}) / \Xi_m(z))` at y = 0.

    Args:
      logits: float ``[..., m]``, the scores z, on ``axis``.
      labels: integer ``[...]``, 0 or 1; another label gives NaN.
      axis: the axis of the scores, default -1.

    Returns:
      The loss of each example, ``[...]``, in float32 or better. At equal scores 0 its gradient vanishes for m > 1, a saddle:
      start from random weights, or descend along `regjax.objectives.cross_gradient`.

    Raises:
      ValueError: if a shape or dtype does not fit.

    Cost:
      2 m logarithms of sums of two.
      XLA at [8192, 8]: at most 340 times the FLOPs and 45 times the bytes of a copy of its arguments, and 3.3 times its memory
      more.

    Use:
      For: few labels.
      When: Two outcomes that hinge on the parity of a few linear scores, such as duels without an order of strength: two scores
        learn rock, paper, scissors, where Bradley-Terry stays at chance.
      Not when: Strengths are ordered: one score, m = 1, is logistic regression and convex. Many scores: the product of small
        tanh has hardly a gradient at the start.
      Badly with: Zero weights at the start, a saddle, unless `cross_gradient` leads. Soft labels of `mixup` or
        `label_smoothing`: it takes 0 and 1. Strong `weights.l2` before it has left the saddle.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> loss, gradient = jax.value_and_grad(rj.losses.binary_checkered)(jnp.array([1.0, 2.0]), 0)
      >>> round(float(loss), 4), [round(float(g), 4) for g in gradient]
      (0.3916, [-0.2215, -0.0718])

    References:
      Achab, Sum-log-concave optimisation, cross-gradient descent and checkered regression, 2023, arXiv 2309.15298.
    """
    name = "losses.binary_checkered"
    even, odd = _log_parities(name, logits, axis)
    labels = checks.integers(name, "labels", labels, shape=even.shape)
    return -classes.pick(jnp.stack([even, odd], -1), labels.astype(jnp.promote_types(jnp.int32, labels.dtype)))


def _convolve(a: Array, b: Array) -> Array:
    """The logarithm of the circular convolution of two distributions given by their logarithms, on the last axis."""
    size, named = b.shape[-1], sharding.explicit_sharding(b)
    # Rows of b, each turned by one more: a row of K + 1 entries read from copies of b starts one later than the row before.
    # That is reshapes alone: a gather would not know how an Explicit mesh shards its result.
    spread = jnp.broadcast_to(b[..., None, :], (*b.shape[:-1], size + 1, size))
    for shape in ((size * (size + 1),), (size, size + 1)):
        kept = () if named is None else named.spec[: b.ndim - 1]
        where = None if named is None else named.update(spec=jax.P(*kept, *(None,) * len(shape)))
        spread = jnp.reshape(spread, (*b.shape[:-1], *shape), out_sharding=where)
    turned = jnp.concatenate([a[..., :1], jnp.flip(a[..., 1:], -1)], -1)  # a_{-j}, beside b_{k + j}
    return jax.nn.logsumexp(turned[..., None, :] + spread[..., :size], axis=-1)


def _log_parities(name: str, logits: Any, axis: int) -> tuple[Array, Array]:
    """The log-probabilities of an even and of an odd number of ones."""
    logits = checks.floating(name, "logits", logits, min_ndim=1)
    z = classes.class_inputs(name, logits, axis=axis).logits
    even, odd = jax.nn.log_sigmoid(z), jax.nn.log_sigmoid(-z)
    # The first half with the second, and so on; the middle one of an odd number waits.
    while (size := even.shape[-1]) > 1:
        half = size // 2
        p, q = even[..., half : 2 * half], odd[..., half : 2 * half]
        a, b = even[..., :half], odd[..., :half]
        joined = jnp.logaddexp(a + p, b + q), jnp.logaddexp(a + q, b + p)
        even, odd = (
            jnp.concatenate([new, old[..., 2 * half :]], -1) if size % 2 else new
            for new, old in zip(joined, (even, odd), strict=True)
        )
    return even[..., 0], odd[..., 0]
