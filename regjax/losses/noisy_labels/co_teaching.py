"""Co-teaching: two networks pick for each other the examples whose labels they believe."""

from typing import Any

import jax
import jax.numpy as jnp

from regjax.core import checks, classes, sharding, trees
from regjax.core.types import Array, Strength

# A share of the batch within this of a whole count is that count: 0.8 x 50 is 40 in whatever precision it is computed.
_SLACK = 1e-6


def co_teaching(
    logits1: Any,
    logits2: Any,
    labels: Any,
    *,
    forget_rate: Strength,
    axis: int = -1,
    where: Any = None,
    axis_name: Any = None,
) -> tuple[Array, Array]:
    r"""Trains two networks under label noise: each on the examples of small loss of the other.

    Formula:
      With the cross-entropies :math:`\ell^1_i, \ell^2_i` of the two networks and :math:`S_1, S_2` the examples of the n
      smallest of each:

      .. math:: L_1 = \frac{1}{n} \sum_{i \in S_2} \ell^1_i, \quad L_2 = \frac{1}{n} \sum_{i \in S_1} \ell^2_i, \quad
        n = \lfloor (1 - r) B \rfloor

      :math:`(1 - r) B` within :math:`10^{-6} B` below a whole number counts as that number, so that rounding takes no
      example away. The choice is a constant for the gradient: :math:`L_1` has none to the second network, nor
      :math:`L_2` to the first. Both are 0 for n = 0.

    Args:
      logits1: float ``[B, K]`` of the first network.
      logits2: float ``[B, K]`` of the second, which starts from other weights.
      labels: integer class ids ``[B]``, or probabilities of the shape of the logits.
      forget_rate: r, the share of the batch to leave out, in [0, 1], a number or a traced scalar: `regjax.schedules.forget_rate`
        of the epoch, which ends at the share of wrong labels. 0 is the mean cross-entropy of each.
      axis: the class axis.
      where: boolean ``[B]``: the examples that count; B in the formula is their number. Default all.
      axis_name: the mapped axis, or a tuple of them, over which the batch is split under ``shard_map`` or ``pmap``: losses are
        ranked among those of the whole batch. Not needed under ``jit`` with sharded arrays.

    Returns:
      ``(loss1, loss2)``, scalars in float32 or better. Sum them for one gradient to both networks. NaN where a loss that
      counts is NaN, as by a label that is no class id.

    Raises:
      ValueError: if a shape or dtype does not fit, or ``forget_rate`` lies outside [0, 1].

    Cost:
      Two networks, twice everything; the ranking takes a sort of B numbers for each, which a sharded batch gathers.
      XLA at 2 times [1024, 1000]: at most 2.8 times the FLOPs and 0.86 times the bytes of cross-entropy of each, and 0 times
      its memory more.

    Use:
      For: noisy labels.
      When: The share of wrong labels is known, and two networks fit: batches of 50 and more, each with right examples to
        choose. It gained under every noise on digits, also with confused pairs, where `generalized_cross_entropy` failed.
      Not when: The noise rate is a guess: too low memorises, too high drops what is hard. Rare classes exist, whose losses are
        large and get dropped. `elr` did better on digits with one network and no rate.
      Badly with: `mixup` and `cutmix`, after which a large loss no longer means a wrong label. `importance_sampling`, which
        draws what this drops. Two networks of the same start, which choose alike. Microbatches: ranks are those of a part.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> z1, z2 = jnp.array([[3.0, 0.0], [0.0, 1.0], [0.0, 0.0]]), jnp.array([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0]])
      >>> loss1, loss2 = rj.losses.co_teaching(z1, z2, jnp.zeros(3, int), forget_rate=1 / 3)
      >>> round(float(loss1), 4), round(float(loss2), 4)
      (1.0032, 0.41)

    References:
      Han et al., Co-teaching: Robust Training of Deep Neural Networks with Extremely Noisy Labels, 2018, arXiv 1804.06872.
      The authors' code divides the mean by n once more; this does not. Chen et al., Compressing Features for Learning with
      Noisy Labels, 2022, arXiv 2206.13140, first train with the features behind a nested-dropout mask, then exchange
      examples between the halves of a batch; for prediction they average the two networks' logits.
    """
    name = "losses.co_teaching"
    logits1 = checks.floating(name, "logits1", logits1, ndim=2)
    logits2 = checks.floating(name, "logits2", logits2, shape=logits1.shape)
    checks.number(name, "forget_rate", forget_rate, low=0.0, high=1.0)
    axis = checks.integer(name, "axis", axis, low=-2, high=1) % 2
    if logits1.shape[axis] < 1:
        checks.fail(name, "logits1", "an array with at least one class on its class axis", logits1)
    counts = checks.example_mask(name, "where", where, logits1.shape[1 - axis : 2 - axis])
    checks.axis_name(name, axis_name)
    loss1, loss2 = (_cross_entropy(name, z, labels, axis, counts) for z in (logits1, logits2))

    total = jnp.asarray(loss1.shape[0], jnp.float32) if counts is None else jnp.sum(counts, dtype=jnp.float32)
    total = total if axis_name is None else jax.lax.psum(total, axis_name)
    # In float32 whatever the inputs: the same examples in every precision.
    share = 1 - jnp.asarray(forget_rate, jnp.float32) + _SLACK
    keep = jnp.clip(jnp.floor(share * total), 0, total)

    def mean(losses: Array, others: Array) -> Array:
        chosen = _among_smallest(others, keep, counts, axis_name)
        # A NaN is ranked last, and would pass unseen.
        value = jnp.sum(jnp.where(chosen | jnp.isnan(losses), losses, 0))
        value = value if axis_name is None else jax.lax.psum(value, axis_name)
        return value / jnp.maximum(keep, 1).astype(value.dtype)

    return mean(loss1, loss2), mean(loss2, loss1)


def small_loss_weights(losses: Any, keep: Any, *, where: Any = None, axis_name: Any = None) -> Array:
    r"""Weight 1 for the examples of smallest loss and 0 for the others, at fixed shapes.

    Formula:
      .. math:: w_i = 1[rank(\ell_i) < n]

      with ranks from 0 in ascending order. Of equal losses the earlier one ranks first, and NaN ranks as infinity.

    Args:
      losses: float ``[B]``; no gradient flows to them.
      keep: n, at least 0, a number or a traced scalar; a fraction is rounded down.
      where: boolean ``[B]``: the examples that count; the others are not ranked and get weight 0. Default all.
      axis_name: the mapped axis, or a tuple of them, over which the batch is split under ``shard_map`` or ``pmap``: ranks are
        those in the whole batch. Not needed under ``jit`` with sharded arrays.

    Returns:
      The weights ``[B]``, in float32 or better. Where fewer than n examples count, all of them have weight 1.

    Raises:
      ValueError: if ``losses`` is no floating vector, ``keep`` is negative or not finite, or the mask does not fit.

    Cost:
      A sort of B numbers, which a sharded batch gathers on every device.
      XLA at [8192]: at most 27 times the FLOPs and 7.5 times the bytes of a copy of its arguments, and 1.4 times its memory
      more.

    Use:
      Part of: `co_teaching`.
      When: Call it to choose by other losses: with one network, by the mean of two, per class so that rare ones stay, or among
        pixels.
      Not when: One network chooses for itself over many epochs: its choice confirms its own errors.
      Badly with: A plain mean of weighted losses, which shrinks the learning rate by the share that is kept: divide by
        ``keep``.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> rj.losses.small_loss_weights(jnp.array([0.7, 0.3, 0.1, 0.3]), 2).tolist()
      [0.0, 1.0, 1.0, 0.0]

    References:
      Han et al., Co-teaching: Robust Training of Deep Neural Networks with Extremely Noisy Labels, 2018, arXiv 1804.06872.
    """
    name = "losses.small_loss_weights"
    losses = checks.floating(name, "losses", losses, ndim=1)
    checks.number(name, "keep", keep, low=0.0)
    counts = checks.example_mask(name, "where", where, losses.shape)
    checks.axis_name(name, axis_name)
    return _among_smallest(losses, keep, counts, axis_name).astype(trees.accumulator(losses))


def _cross_entropy(name: str, logits: Array, labels: Any, axis: int, counts: Array | None) -> Array:
    x = classes.class_inputs(name, logits, labels, axis=axis)
    if counts is not None:
        # Before the softmax, so that an example that does not count may hold anything.
        rows = counts[:, None]
        x = x._replace(logits=jnp.where(rows, x.logits, 0), labels=jnp.where(counts if x.is_ids else rows, x.labels, 0))
    return classes.cross_entropy(x)


def _among_smallest(losses: Array, keep: Any, counts: Array | None, axis_name: Any) -> Array:
    """Which examples have the ``keep`` smallest losses of those that count."""
    everyone = jax.lax.stop_gradient(losses)
    everyone = jnp.where(jnp.isnan(everyone), jnp.inf, everyone)
    if counts is not None:
        everyone = jnp.where(counts, everyone, jnp.nan)  # a sort has NaN last
    everyone = sharding.replicate(everyone) if axis_name is None else jax.lax.all_gather(everyone, axis_name, tiled=True)
    # A stable sort: equal losses stand in the order of the batch.
    order, places = jnp.argsort(everyone), jnp.arange(everyone.shape[0])
    chosen = jnp.zeros(everyone.shape, bool).at[order].set(places + 1 <= jnp.asarray(keep), unique_indices=True)
    chosen &= ~jnp.isnan(everyone)
    if axis_name is None:
        return sharding.placed_like(chosen, losses)
    start = jax.lax.axis_index(axis_name) * losses.shape[0]
    return jax.lax.dynamic_slice_in_dim(chosen, start, losses.shape[0])
