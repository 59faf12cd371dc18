"""Outliers with opposing signals: groups of examples that a step pulls apart, and a small problem that has them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from regjax.core import checks, sharding, trees
from regjax.core.types import Array, Key, PyTree, Stateful
from regjax.diagnostics.curvature.gradient_direction import _directions


class OpposingExamples(NamedTuple):
    """What `opposing_examples` returns: indices of examples, the largest change first."""

    rising: Array
    falling: Array


class GroupLossHistory(NamedTuple):
    """The memory of `track_group_losses`: the last mean losses, newest last, and how many there have been."""

    losses: Array
    num_seen: Array


class OpposingSignals(NamedTuple):
    """What `opposing_signals_toy` returns."""

    inputs: Array
    targets: Array
    groups: Array


def opposing_examples(losses_before: Any, losses_after: Any, *, top_k: int) -> OpposingExamples:
    r"""The examples whose losses one step raised and lowered the most: where clusters among them oppose each other.

    Formula:
      With :math:`\Delta_i = \ell_i(w_{t+1}) - \ell_i(w_t)`: the k largest, and the k smallest.

    Args:
      losses_before: the loss of each training example before the step, ``[N]``, with batch normalisation as in training.
      losses_after: the same after it; a spike of the loss shows the groups best.
      top_k: k, in [1, N].

    Returns:
      ``OpposingExamples(rising [k], falling [k])``: indices into the examples, the largest change first; of equal ones the
      lower index. With 2 k > N some stand in both.

    Raises:
      ValueError: if the losses are no floating vectors of one length, or ``top_k`` does not fit.

    Cost:
      Two selections among N numbers. Losses sharded over devices are gathered. XLA counts a selection as next to nothing.
      XLA at 2 times [50000]: at most 1.1 times the FLOPs and 1.4 times the bytes of a copy of its arguments, and 0.28 times its
      memory more.

    Use:
      For: unstable training, noisy labels.
      When: The loss spikes or oscillates at a large rate: the ends of the list around such a step are the groups that it pulls
        apart. In the toy problem all that rose were of one group, all that fell of the other.
      Not when: Steps are small: changes are then common to all examples. Large changes alone are no opposition: cluster them by
        class or feature, and test with `gradient_opposition`.
      Badly with: Minibatch noise, momentum and dropout, by which losses change for other reasons: evaluate all examples in one
        mode, best around a full-batch step.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> found = rj.diagnostics.opposing_examples(jnp.array([1.0, 1.0, 1.0]), jnp.array([0.2, 3.0, 1.1]), top_k=1)
      >>> found.rising.tolist(), found.falling.tolist()
      ([1], [0])

    References:
      Rosenfeld and Risteski, Outliers with Opposing Signals Have an Outsized Effect on Neural Network Training, 2023,
      arXiv 2311.04163: how they find the groups, from the abstract and public reviews, as no code was found.
    """
    name = "diagnostics.opposing_examples"
    before = checks.floating(name, "losses_before", losses_before, ndim=1)
    after = checks.floating(name, "losses_after", losses_after, shape=before.shape)
    k = checks.integer(name, "top_k", top_k, low=1, high=before.shape[0])
    dtype = trees.accumulator(before, after)
    change = sharding.replicate(after.astype(dtype) - before.astype(dtype))
    return OpposingExamples(jax.lax.top_k(change, k)[1], jax.lax.top_k(-change, k)[1])


def gradient_opposition(grads_a: PyTree, grads_b: PyTree) -> Array:
    r"""The cosine between the gradients of two groups: -1 where what helps one hurts the other.

    Formula:
      .. math:: \frac{\langle g_a, g_b \rangle}{\|g_a\| \, \|g_b\|}

      over all parameters as one vector; 0 if one of them is zero.

    Args:
      grads_a: the gradient of one group's mean loss: a tree, of which the floating leaves count.
      grads_b: that of the other, of the same structure and shapes.

    Returns:
      A scalar in [-1, 1], in float32 or better.

    Raises:
      ValueError: if the trees differ.

    Cost:
      Three passes over both.
      XLA at 16 times [512, 512]: at most 7.8 times the FLOPs and 3.4 times the bytes of a copy of its arguments, and 0.62 times
      its memory more.

    Use:
      For: unstable training, noisy labels.
      When: Two groups, tasks or domains are suspected to work against each other: near -1 a step that helps one hurts the
        other. Log it beside the two losses.
      Not when: Groups of a few examples: gradients of single ones are nearly orthogonal in many dimensions, and a value near 0
        says nothing.
      Badly with: Penalties such as `weights.l2` in both losses, whose common part hides the opposition. Leaves of large
        gradients, such as a last layer, which decide the one cosine: measure by part.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> float(rj.diagnostics.gradient_opposition(jnp.array([1.0, 0.0]), jnp.array([-2.0, 0.0])))
      -1.0

    References:
      Rosenfeld and Risteski, Outliers with Opposing Signals Have an Outsized Effect on Neural Network Training, 2023,
      arXiv 2311.04163.
    """
    name = "diagnostics.gradient_opposition"
    checks.same_structure(name, "grads_b", grads_b, grads_a, "grads_a")
    pairs = zip(jax.tree.leaves(grads_a), jax.tree.leaves(grads_b), strict=True)
    kept = [(jnp.asarray(a)[None], jnp.asarray(b)[None]) for a, b in pairs if trees.is_float(a) and trees.is_float(b)]
    dtype = trees.accumulator(*(leaf for pair in kept for leaf in pair))
    if not kept:
        return jnp.zeros((), dtype)
    (a, _), (b, _) = (_directions(list(side), dtype) for side in zip(*kept, strict=True))
    return trees.vdot(a, b)


def track_group_losses(*, num_groups: int, num_steps: int) -> Stateful:
    r"""The mean losses of groups of examples over the last steps, for groups that oscillate while the total stands still.

    Formula:
      :math:`m_{tg}` is the mean of :math:`\ell_i` over the examples i of group g at step t; 0 for a group without examples.

    Args:
      num_groups: how many groups there are, at least 1.
      num_steps: how many steps are kept, at least 1.

    Returns:
      ``init() -> GroupLossHistory``, and ``apply(state, losses, groups) -> (means [num_groups], state)`` with the losses ``[N]``
      and group ids ``[N]`` of the examples; those with an id outside [0, ``num_groups``) count nowhere. ``state.losses``
      ``[num_steps, num_groups]`` has the newest last, 0 where ``state.num_seen`` says that there is none yet.

    Raises:
      ValueError: if a number is below 1; in ``apply``, if the losses are no floating vector or the ids no integers of its length.

    Cost:
      O(N ``num_groups``) for each call.
      XLA at [1000, 10]: at most 5.7 times the FLOPs and 3.9 times the bytes of a copy of its arguments, and 0.94 times its
      memory more.

    Use:
      For: unstable training, noisy labels, long tails.
      When: A flat total may hide groups that swing against each other, or a rare class that is given up: ids by class, domain
        or those found by `opposing_examples`, with the history in the compiled step.
      Not when: Batches hold few examples of a group: means of one or two are noise, and an absent group reads 0, not its last
        value. Log per-example losses of a fixed set then.
      Badly with: Mixed inputs (`mixup`, `cutmix`), whose examples belong to two groups. ``shard_map``, under which each device
        has means of its own.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> memory = rj.diagnostics.track_group_losses(num_groups=2, num_steps=3)
      >>> means, state = memory.apply(memory.init(), jnp.array([1.0, 2.0, 4.0]), jnp.array([0, 1, 1]))
      >>> means.tolist(), state.losses.tolist(), int(state.num_seen)
      ([1.0, 3.0], [[0.0, 0.0], [0.0, 0.0], [1.0, 3.0]], 1)

    References:
      Rosenfeld and Risteski, Outliers with Opposing Signals Have an Outsized Effect on Neural Network Training, 2023,
      arXiv 2311.04163.
    """
    name = "diagnostics.track_group_losses"
    checks.integer(name, "num_groups", num_groups, low=1)
    checks.integer(name, "num_steps", num_steps, low=1)

    def init() -> GroupLossHistory:
        return GroupLossHistory(jnp.zeros((num_steps, num_groups), jnp.float32), jnp.zeros((), jnp.int32))

    def apply(state: GroupLossHistory, losses: Any, groups: Any) -> tuple[Array, GroupLossHistory]:
        losses = checks.floating(name, "losses", losses, ndim=1)
        groups = checks.integers(name, "groups", groups, shape=losses.shape)
        wide = losses.astype(trees.accumulator(losses))[:, None]
        member = groups[:, None] == jnp.arange(num_groups)
        # A sum of what is selected, not of products with 0: a diverged loss stays in its own group.
        total, size = jnp.sum(jnp.where(member, wide, 0), axis=0), jnp.sum(member, axis=0)
        means = total / jnp.maximum(size, 1).astype(total.dtype)
        newest = jax.lax.stop_gradient(means).astype(state.losses.dtype)
        kept = jnp.concatenate([state.losses[1:], newest[None]])
        return means, GroupLossHistory(kept, state.num_seen + 1)

    return Stateful(init, apply)


def opposing_signals_toy(
    key: Key, n: int, d: int, *, rate: Any = 0.02, scale: Any = 1.0, weak: Any = 0.1, noise: Any = 0.0
) -> OpposingSignals:
    r"""A regression problem with two rare groups whose inputs are opposite and whose targets are not.

    Formula:
      The first d - 1 inputs are standard normal. The last is, with probability p, :math:`s \alpha / \sqrt p` with an even sign s,
      and else 0: of variance :math:`\alpha^2`. The target is

      .. math:: y = \frac{1}{\sqrt{d - 1}} \sum_{j < d} x_j + \omega |x_d| + \tau z

      with standard-normal z. The last input predicts nothing by a linear model, but any weight on it, and any residual of the
      outliers, gives the two groups large gradients of opposite sign.

    Args:
      key: a random key.
      n: how many examples, at least 1.
      d: how many inputs, at least 2.
      rate: p, in (0, 1], default 0.02.
      scale: :math:`\alpha`, at least 0, default 1.
      weak: :math:`\omega`, at least 0, default 0.1.
      noise: :math:`\tau`, at least 0, default 0.

    Returns:
      ``OpposingSignals(inputs [n, d], targets [n], groups [n])`` in float32, the groups 0 and 1 for the outliers with s = 1 and
      -1, and -1 for all others: ids for `track_group_losses`.

    Raises:
      ValueError: if a number is out of range.

    Cost:
      n d random numbers.
      XLA at [10000, 64]: at most 160 times the FLOPs and 16 times the bytes of a copy of its results, and 2.7 times its memory
      more.

    Use:
      Part of: `opposing_examples`, `track_group_losses`.
      When: For a test bench of optimisers at the edge of stability: two-layer linear networks by full-batch gradient descent.
        With small steps, or without the outliers, nothing oscillated.
      Badly with: Minibatches, most of which hold none of the rare examples, and normalised inputs, which undo their size.

    Example:
      >>> import jax, regjax as rj
      >>> toy = rj.diagnostics.opposing_signals_toy(jax.random.key(0), 1000, 5, rate=0.1)
      >>> toy.inputs.shape, 60 < int((toy.groups >= 0).sum()) < 140
      ((1000, 5), True)

    References:
      Rosenfeld and Risteski, Outliers with Opposing Signals Have an Outsized Effect on Neural Network Training, 2023, arXiv
      2311.04163, which describes what it shows; the constants are this library's.
    """
    name = "diagnostics.opposing_signals_toy"
    checks.key(name, key)
    checks.integer(name, "n", n, low=1)
    checks.integer(name, "d", d, low=2)
    checks.number(name, "rate", rate, low=0.0, high=1.0, open_low=True)
    for argument, value in (("scale", scale), ("weak", weak), ("noise", noise)):
        checks.number(name, argument, value, low=0.0)
    p, alpha, omega, tau = (jnp.asarray(value, jnp.float32) for value in (rate, scale, weak, noise))
    of_inputs, of_choice, of_sign, of_noise = jax.random.split(key, 4)
    common = jax.random.normal(of_inputs, (n, d - 1), jnp.float32)
    rare = jax.random.uniform(of_choice, (n,), jnp.float32) < p
    positive = jax.random.bernoulli(of_sign, 0.5, (n,))
    last = jnp.where(rare, jnp.where(positive, 1, -1) * alpha / jnp.sqrt(p), 0)
    signal = jnp.sum(common, axis=1) / jnp.sqrt(jnp.float32(d - 1))
    targets = signal + omega * jnp.abs(last) + tau * jax.random.normal(of_noise, (n,), jnp.float32)
    groups = jnp.where(rare, jnp.where(positive, 0, 1), -1).astype(jnp.int32)
    return OpposingSignals(jnp.concatenate([common, last[:, None]], axis=1), targets, groups)
