"""Sampling by importance: scores from the gradient at the logits, the probabilities they give, and weights that undo them.

`regjax.inputs.selection.importance_memory` remembers the scores of an epoch.
"""

from typing import Any

import jax
import jax.numpy as jnp

from regjax.core import checks, classes, sharding, trees
from regjax.core.types import Array, Key, Strength


def last_layer_gradient_norm(logits: Any, labels: Any, *, axis: int = -1, where: Any = None) -> Array:
    r"""The norm of the gradient of the cross-entropy by the logits: how much an example has left to teach.

    Formula:
      .. math:: s_i = \lVert softmax(z_i) - y_i \rVert_2

    Args:
      logits: float ``[..., K]``, classes on ``axis``.
      labels: integer class ids ``[...]``, or probabilities of the shape of ``logits``.
      axis: the class axis.
      where: boolean, broadcasts to ``logits``: the classes that exist.

    Returns:
      The score of each example, ``[...]``, in [0, sqrt(2)] for labels that sum to 1, in float32 or better.

    Raises:
      ValueError: if a shape or dtype does not fit.

    Cost:
      The softmax of the logits, which the loss makes too, and its difference from the labels: six passes, and on a CPU the
      memory of the logits twice.
      XLA at [1024, 1000]: at most 9.9 times the FLOPs and 3.4 times the bytes of a copy of its arguments, and 1.1 times its
      memory more.

    Use:
      Part of: `importance_sampling`.
      When: Call it on logits that are at hand, to rank examples by what they have left to teach: for sampling, pruning of a
        data set, or a look at likely wrong labels, which score highest late in training.
      Not when: The gradient by the weights is wanted: the norm of the features, which it leaves out, varies much.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> round(float(rj.inputs.last_layer_gradient_norm(jnp.array([2.0, 0.0, -1.0]), jnp.array(1))), 4)
      1.2241

    References:
      Lu et al., PA&DA: Jointly Sampling PAth and DAta for Consistent NAS, 2023, arXiv 2302.14772.
    """
    x = classes.class_inputs("inputs.last_layer_gradient_norm", logits, labels, axis=axis, where=where)
    p = jnp.exp(classes.log_softmax(x.logits, x.where))
    y = classes.one_hot(x.labels, x.is_ids, x.logits.shape[-1], p.dtype)
    if not x.is_ids:
        p = p * jnp.sum(y, axis=-1, keepdims=True)  # the gradient where the labels do not sum to 1
    if x.where is not None:
        p, y = jnp.where(x.where, p, 0), jnp.where(x.where, y, 0)
    norm = trees.safe_norm(p - y, axis=-1)
    if not x.is_ids:
        return norm
    return jnp.where((x.labels >= 0) & (x.labels < x.logits.shape[-1]), norm, jnp.nan)


def importance_probabilities(scores: Any, *, mix: Strength) -> Array:
    r"""Sampling probabilities in proportion to scores, mixed with the uniform ones.

    Formula:
      .. math:: p_i = m \frac{s_i}{\sum_j s_j} + \frac{1 - m}{N}

      uniform where all scores are 0.

    Args:
      scores: float ``[N]``, at least 0; 0 for an example that was not seen.
      mix: m, in [0, 1]: a number or scalar array; the authors take ``epoch / total_epochs``, which starts at 0 and never
        reaches 1. 0 is uniform. At 1 an example of score 0 is never drawn again.

    Returns:
      ``[N]``, which sums to 1, in float32 or better.

    Raises:
      ValueError: if ``scores`` does not fit or ``mix`` is out of range.

    Cost:
      Two passes over N numbers, once an epoch.
      XLA at [50000]: at most 5.6 times the FLOPs and 1.7 times the bytes of a copy of its arguments, and 0.01 times its memory
      more.

    Use:
      Part of: `importance_sampling`.
      When: Call it at the end of an epoch, with mix rising from 0. Keep it below 1, or what was scored 0 never comes back.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> rj.inputs.importance_probabilities(jnp.array([1.0, 3.0, 0.0, 0.0]), mix=0.5).tolist()
      [0.25, 0.5, 0.125, 0.125]

    References:
      Lu et al., PA&DA: Jointly Sampling PAth and DAta for Consistent NAS, 2023, arXiv 2302.14772.
    """
    name = "inputs.importance_probabilities"
    scores = checks.floating(name, "scores", scores, ndim=1)
    if scores.shape[0] < 1:
        checks.fail(name, "scores", "an array [N] with at least one score", scores)
    checks.number(name, "mix", mix, low=0.0, high=1.0)
    return _mixed(scores.astype(trees.accumulator(scores)), mix)


def path_probabilities(grad_norms: Any, *, mix: Strength, where: Any = None) -> Array:
    r"""Sampling probabilities of the candidate operations of a supernet, by the gradient norms of their weights.

    Formula:
      .. math:: p_o = m \frac{\bar g_o}{\sum_k \bar g_k} + \frac{1 - m}{O}

      with :math:`\bar g_o` the mean of the norms of operation o over the edges that used it; uniform where all are 0.

    Args:
      grad_norms: float ``[O]``, at least 0, the average gradient norm of each operation's weights; or ``[E, O]`` for each
        of E edges.
      mix: m, in [0, 1]: a number or scalar array, as in `importance_probabilities`. 0 is uniform.
      where: boolean, of the shape of ``grad_norms``: which edges used which operation; default all. An operation that no
        edge used has norm 0.

    Returns:
      ``[O]``, which sums to 1, in float32 or better.

    Raises:
      ValueError: if a shape or dtype does not fit or ``mix`` is out of range.

    Cost:
      One pass over the norms.
      XLA at [1024, 32]: at most 1.2 times the FLOPs and 0.56 times the bytes of a copy of its arguments, and 0.01 times its
      memory more.

    Use:
      For: compute budget, unstable training.
      When: One-shot architecture search: operations whose weights still have large gradients are sampled more often, which the
        authors report to lower the variance of the supernet's gradient and to rank paths better.
      Not when: Operations differ much in size: the norm of larger ones is larger for that alone. A single path is trained.
      Badly with: mix at 1, at which an operation without gradient is never drawn again. Path sampling that must be uniform for
        a fair ranking. Gradients that were clipped or normalised before their norms were taken.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> norms = jnp.array([[1.0, 2.0], [3.0, 0.0]])
      >>> used = jnp.array([[True, True], [True, False]])
      >>> rj.inputs.path_probabilities(norms, mix=0.5, where=used).tolist()
      [0.5, 0.5]
      >>> rj.inputs.path_probabilities(jnp.array([3.0, 1.0]), mix=0.5).tolist()
      [0.625, 0.375]

    References:
      Lu et al., PA&DA: Jointly Sampling PAth and DAta for Consistent NAS, 2023, arXiv 2302.14772.
    """
    name = "inputs.path_probabilities"
    norms = checks.floating(name, "grad_norms", grad_norms)
    if norms.ndim not in (1, 2) or norms.shape[-1] < 1:
        checks.fail(name, "grad_norms", "an array [O] or [E, O] with at least one operation", norms)
    checks.number(name, "mix", mix, low=0.0, high=1.0)
    where = checks.example_mask(name, "where", where, norms.shape)
    norms = norms.astype(trees.accumulator(norms))
    used = jnp.ones(norms.shape, norms.dtype) if where is None else where.astype(norms.dtype)
    norms = norms if where is None else jnp.where(where, norms, 0)
    if norms.ndim == 2:
        norms = jnp.sum(norms, axis=0) / jnp.maximum(jnp.sum(used, axis=0), 1)
    return _mixed(norms, mix)


def importance_weights(p: Any, indices: Any) -> Array:
    r"""The weights with which the mean over drawn examples has the expectation of the mean over all.

    Formula:
      .. math:: w_b = \frac{1}{N p_{i_b}}, \quad E[w g_i] = \frac{1}{N} \sum_i g_i

    Args:
      p: float ``[N]``, the probabilities from which the indices were drawn.
      indices: integer ``[B]`` in [0, N); another gives NaN.

    Returns:
      ``[B]``, in float32 or better; 0 for an example of probability 0, which cannot be drawn.

    Raises:
      ValueError: if a shape or dtype does not fit.

    Cost:
      One gather of B numbers.
      XLA at [50000]: at most 0.073 times the FLOPs and 0.56 times the bytes of a copy of its arguments, and 0 times its memory
      more.

    Use:
      Part of: `importance_sampling`.
      When: Multiply the losses by them where the expected gradient must stay that of the whole set. Without them training
        favours hard examples, as the authors' does.
      Badly with: mix near 1, which makes weights of seldom drawn examples huge. Losses that are not a mean over examples.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> rj.inputs.importance_weights(jnp.array([0.25, 0.5, 0.125, 0.125]), jnp.array([1, 3])).tolist()
      [0.5, 2.0]

    References:
      Lu et al., PA&DA: Jointly Sampling PAth and DAta for Consistent NAS, 2023, arXiv 2302.14772. Their theory has the
      weights; their training takes the plain mean, which favours hard examples. Multiply the losses by them to be unbiased.
    """
    name = "inputs.importance_weights"
    p = checks.floating(name, "p", p, ndim=1)
    num_examples = p.shape[0]
    if num_examples < 1:
        checks.fail(name, "p", "an array [N] with at least one probability", p)
    indices = checks.integers(name, "indices", indices, ndim=1)
    indices = indices.astype(jnp.promote_types(jnp.int32, indices.dtype))  # a narrow dtype could not hold N
    known = (indices >= 0) & (indices < num_examples)
    drawn = sharding.take_rows(p.astype(trees.accumulator(p)), jnp.where(known, indices, 0))
    some = drawn > 0
    return jnp.where(known, jnp.where(some, 1 / (num_examples * jnp.where(some, drawn, 1)), 0), jnp.nan)


def sample_indices(key: Key, p: Any, num: int) -> Array:
    r"""Draws positions with replacement from given probabilities.

    Formula:
      .. math:: P(i_b = i) = \frac{\lfloor 2^{31} p_i \rfloor}{\sum_j \lfloor 2^{31} p_j \rfloor}, \quad p_i = p_i / \sum_j p_j

      In whole numbers: a running sum in float32 would round the probabilities of a million examples by several percent, this
      one by less than a thousandth. An example of probability 0 is never drawn; with no probability at all every one may be.

    Args:
      key: a random key.
      p: float ``[N]``, at least 0; need not sum to 1.
      num: how many to draw, for an epoch N.

    Returns:
      int32 ``[num]``, in [0, N), on every device.

    Raises:
      ValueError: if the key is none, ``p`` does not fit, or ``num`` is below 1.

    Cost:
      A running sum of N numbers and a binary search for each draw. XLA counts the body of the loop once.
      XLA at [50000]: at most 28 times the FLOPs and 6 times the bytes of a copy of its arguments, and 1.2 times its memory
      more.

    Use:
      Part of: `importance_sampling`.
      When: Call it once an epoch for its whole order, with a key that is the same on every device.
      Badly with: `elr`, `ps_kd` and `saf`, which take no position twice in a batch: it draws with replacement.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> rj.inputs.sample_indices(jax.random.key(0), jnp.array([0.0, 1.0, 0.0]), 4).tolist()
      [1, 1, 1, 1]

    References:
      Lu et al., PA&DA: Jointly Sampling PAth and DAta for Consistent NAS, 2023, arXiv 2302.14772.
    """
    name = "inputs.sample_indices"
    checks.key(name, key)
    p = checks.floating(name, "p", p, ndim=1)
    if p.shape[0] < 1:
        checks.fail(name, "p", "an array [N] with at least one probability", p)
    checks.integer(name, "num", num, low=1)
    p = sharding.replicate(p).astype(jnp.float32)
    total = jnp.sum(p)
    shares = jnp.floor(p * (2.0**31 / jnp.where(total > 0, total, 1))).astype(jnp.uint32)
    shares = jnp.where(total > 0, shares, 1)
    edges = jnp.cumsum(shares, dtype=jnp.uint32)
    ticket = jax.random.randint(key, (num,), 0, edges[-1], jnp.uint32)
    return jnp.searchsorted(edges, ticket, side="right").astype(jnp.int32)


def _mixed(scores: Array, mix: Any) -> Array:
    """``mix * scores / sum(scores) + (1 - mix) / N``."""
    mix = jnp.asarray(mix, scores.dtype)
    uniform = 1 / scores.shape[0]
    total = jnp.sum(scores)
    some = total > 0
    return mix * jnp.where(some, scores / jnp.where(some, total, 1), uniform) + (1 - mix) * uniform
