"""Adaptive regularised training: the strength of a sparsity penalty grows until pruning no longer costs accuracy."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from regjax.core import checks
from regjax.core.types import Array, PyTree, Where
from regjax.weights.sparsity.hypersparse import strict_mask
from regjax.weights.sparsity.masks import apply_mask


class ARTState(NamedTuple):
    """The memory of `art`.

    Attributes:
      epoch: int32, the epochs so far.
      done: bool, whether the search is over.
      best_epoch: int32, the epoch of the remembered weights, -1 before there are any.
      best_accuracy: float32, the mean accuracy of the window around it, -inf before there is any.
      best: the remembered pruned weights, and ``best_mask`` their mask; before there are any, those of ``init``.
      best_mask: a mask tree.
      accuracies: float32 ``[2 * window + 1]``, those of the last pruned copies, the latest first.
      recent: the last ``window + 1`` pruned copies on a new leading axis, the latest first.
      recent_masks: their masks.
    """

    epoch: Array
    done: Array
    best_epoch: Array
    best_accuracy: Array
    best: PyTree
    best_mask: PyTree
    accuracies: Array
    recent: PyTree
    recent_masks: PyTree


class ART(NamedTuple):
    """The functions of `art`, all pure and fit for ``jax.jit``."""

    init: Callable[[PyTree], ARTState]
    coefficient: Callable[[ARTState], Array]
    prune: Callable[[PyTree], tuple[PyTree, PyTree]]
    update: Callable[..., ARTState]


def art(
    prune_rate: float,
    *,
    warmup_epochs: int = 60,
    init: float = 5e-6,
    growth: float = 1.05,
    window: int = 1,
    where: Where = None,
) -> ART:
    r"""Adaptive regularised training: raises the strength of a penalty from epoch to epoch until a pruned copy is as good.

    Formula:
      .. math:: \lambda_e = \lambda_0 \, g^{e - W} \;\; (e \ge W), \qquad \lambda_e = 0 \;\; (e < W)

      for epochs e from 0, after W epochs without penalty. At the end of each epoch from W on, a copy is pruned by
      `magnitude_mask_strict`, and its training accuracy measured. When the mean of the last ``2 * window + 1`` accuracies is a
      new best, the pruned weights of the middle epoch are remembered. The search is done when the best mean exceeds the
      epoch's accuracy of the dense network; then train the remembered weights on, under their mask.

    Args:
      prune_rate: the share of weights to be pruned, in [0, 1]; fixed.
      warmup_epochs: W, at least 0, default 60.
      init: :math:`\lambda_0`, the strength of the first penalised epoch, at least 0, default 5e-6.
      growth: g, the factor from epoch to epoch, above 0, default 1.05.
      window: the epochs on each side of the one that an accuracy is averaged for, at least 0, default 1.
      where: which leaves are pruned: None (kernels, default), "all", a predicate ``(path, leaf) -> bool``, or a tree of
        booleans.

    Returns:
      ``ART(init, coefficient, prune, update)``. ``init(params) -> state`` before training; ``coefficient(state)`` is the
      strength of the epoch to come, for ``objectives.with_penalty``, constant within it; ``prune(params) -> (pruned, mask)``
      makes the copy to be measured in evaluation mode; ``update(state, params, dense_accuracy, pruned_accuracy) -> state`` ends
      an epoch, with the dense weights and the two training accuracies (that of the dense network as it ran during the epoch;
      before epoch W neither counts). The state has ``done``, ``best_epoch``, and with ``best`` and ``best_mask`` the pruned
      weights to go on with; once done, it stays as it is. No gradient flows through it.

    Raises:
      ValueError: if a number is out of range, or ``where`` is wrong; in ``update``, if the parameters are not those of the
        state, or an accuracy is no number in [0, 1].

    Cost:
      ``window + 2`` copies of the parameters and their masks in the state; once an epoch a pass over the training data for the
      pruned accuracy, and the 32 passes over the weights of a mask. XLA counts the body of the loop once.
      XLA at 16 times [2, 512, 512]: at most 3.8 times the FLOPs and 2.9 times the bytes of a copy of its arguments, and 0.39
      times its memory more.

    Use:
      For: sparsity budget.
      When: A level of sparsity is given but not the strength that leads there: it raises that of `hypersparse_penalty` (or l1)
        until a pruned copy is as good as the dense net. At 98 % on the digits far above a plain cut.
      Not when: The strength is known, or the budget is short: a fixed rise of `hypersparse_penalty` did as well in the sparsity
        study, without a pass over the training data per epoch.
      Badly with: Training accuracies measured with augmentation or dropout for one net and not for the other; label noise, at
        which the dense net's accuracy is that of memorising; going on with the old optimiser state.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> search = rj.weights.art(0.5, warmup_epochs=1, init=0.1, growth=2.0, window=0)
      >>> params = {"kernel": jnp.array([[3.0, -4.0], [0.1, 0.2]])}
      >>> state, strengths = search.init(params), []
      >>> for dense, pruned in [(0.9, 0.1), (0.9, 0.2), (0.9, 0.95)]:
      ...     strengths.append(round(float(search.coefficient(state)), 4))
      ...     state = search.update(state, params, dense, pruned)
      >>> strengths, bool(state.done), int(state.best_epoch), state.best["kernel"].tolist()
      ([0.0, 0.1, 0.2], True, 2, [[0.0, -4.0], [0.0, 0.0]])

    References:
      Glandorf, Kaiser and Rosenhahn, HyperSparse Neural Networks: Shifting Exploration to Exploitation through Adaptive
      Regularization, 2023, arXiv 2308.07163; as the authors' code, whose parser has 5e-6 for the first strength where its
      README once lists 5e-4. They then train 160 epochs with SGD at 0.1, divided by 10 at epochs 80 and 120.
    """
    name = "weights.art"
    # A fixed share: the masks of one search are compared with each other.
    checks.number(name, "prune_rate", prune_rate, low=0.0, high=1.0)
    checks.integer(name, "warmup_epochs", warmup_epochs, low=0)
    checks.number(name, "init", init, low=0.0)
    checks.number(name, "growth", growth, low=0.0, open_low=True)
    window = checks.integer(name, "window", window, low=0)

    def prune(params: PyTree) -> tuple[PyTree, PyTree]:
        params = jax.tree.map(lambda x: jax.lax.stop_gradient(jnp.asarray(x)), params)
        mask = strict_mask(name, params, prune_rate, where)
        return apply_mask(params, mask), mask

    def start(params: PyTree) -> ARTState:
        best, mask = prune(params)
        stack = lambda tree: jax.tree.map(lambda x: jnp.stack([x] * (window + 1)), tree)
        return ARTState(
            epoch=jnp.zeros((), jnp.int32),
            done=jnp.zeros((), bool),
            best_epoch=jnp.full((), -1, jnp.int32),
            best_accuracy=jnp.full((), -jnp.inf, jnp.float32),
            best=best,
            best_mask=mask,
            accuracies=jnp.zeros(2 * window + 1, jnp.float32),
            recent=stack(best),
            recent_masks=stack(mask),
        )

    def coefficient(state: ARTState) -> Array:
        since = state.epoch - warmup_epochs
        grown = jnp.asarray(init, jnp.float32) * jnp.asarray(growth, jnp.float32) ** jnp.maximum(since, 0)
        return jnp.where(since < 0, 0, grown)

    def update(state: ARTState, params: PyTree, dense_accuracy: Any, pruned_accuracy: Any) -> ARTState:
        if not isinstance(state, ARTState):
            checks.fail(name, "state", "the ARTState that init() makes", state)
        checks.same_structure(name, "params", params, state.best, "the state")
        dense = checks.number(name, "dense_accuracy", dense_accuracy, low=0.0, high=1.0)
        pruned_accuracy = checks.number(name, "pruned_accuracy", pruned_accuracy, low=0.0, high=1.0)
        dense, latest = (jax.lax.stop_gradient(jnp.asarray(x, jnp.float32)) for x in (dense, pruned_accuracy))

        counted = state.epoch >= warmup_epochs
        pruned, mask = prune(params)
        push = lambda new, old: jax.tree.map(lambda x, past: jnp.concatenate([x[None], past[:-1]]), new, old)
        accuracies, recent, recent_masks = (
            push(latest, state.accuracies),
            push(pruned, state.recent),
            push(mask, state.recent_masks),
        )
        mean = jnp.mean(accuracies)
        whole = state.epoch - warmup_epochs >= 2 * window
        better = counted & whole & (mean > state.best_accuracy)
        middle = lambda new, old: jax.tree.map(lambda x, past: jnp.where(better, x[window], past), new, old)
        best_accuracy = jnp.where(better, mean, state.best_accuracy)
        after = ARTState(
            epoch=state.epoch + 1,
            done=counted & (best_accuracy > dense),
            best_epoch=jnp.where(better, state.epoch - window, state.best_epoch),
            best_accuracy=best_accuracy,
            best=middle(recent, state.best),
            best_mask=middle(recent_masks, state.best_mask),
            accuracies=accuracies,
            recent=recent,
            recent_masks=recent_masks,
        )
        return jax.tree.map(lambda new, old: jnp.where(state.done, old, new), after, state)

    return ART(start, coefficient, prune, update)
