"""The memory of importance sampling: the running scores of the examples that an epoch has seen.

At its end `importance_probabilities` makes of them what `sample_indices` draws the next epoch from, and the memory starts again.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from regjax.core import checks, classes, sharding, trees
from regjax.core.types import Array, Stateful
from regjax.inputs.selection.importance import last_layer_gradient_norm


class ImportanceState(NamedTuple):
    """The memory of `importance_sampling`.

    Attributes:
      scores: float32 ``[N]``, the running score of each example; 0 where it was not seen yet.
      counts: int32 ``[N]``, how often it was seen.
    """

    scores: Array
    counts: Array


def importance_update(scores: Any, indices: Any, values: Any, *, seen: Any = None, where: Any = None) -> Array:
    r"""The scores after a batch: the running average of pairs.

    Formula:
      In the order of the batch:

      .. math:: s_i \leftarrow v \ for \ a \ first \ sighting \ of \ i, \ else \ (s_i + v) / 2

      An example that stands in the batch several times is updated several times, and the result is the same on every device.

    Args:
      scores: float ``[N]``; 0 for an example that was not seen.
      indices: integer ``[B]``, positions in [0, N), with repetition; one outside is left out.
      values: float ``[B]``, the new scores, as of `last_layer_gradient_norm`; no gradient.
      seen: boolean ``[N]``: which examples were seen before; default: those whose score is not 0.
      where: boolean ``[B]``: which examples of the batch count; default all.

    Returns:
      ``[N]``, in the dtype of ``scores``.

    Raises:
      ValueError: if a shape or dtype does not fit, or NumPy ``indices`` lie outside [0, N).

    Cost:
      B^2 comparisons of integers and as much memory, and a scatter of B numbers. The indices and values of a sharded batch are
      gathered.
      XLA at [50000]: at most 29 times the FLOPs and 6.7 times the bytes of a copy of its arguments, and 1.5 times its memory
      more.

    Use:
      Part of: `importance_sampling`.
      When: Call it with scores of your own, such as losses or margins, in place of the gradient norm.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> scores, values = jnp.array([0.0, 1.0, 0.0]), jnp.array([0.5, 0.25, 0.75])
      >>> rj.inputs.importance_update(scores, jnp.array([0, 1, 0]), values).tolist()
      [0.625, 0.625, 0.0]

    References:
      Lu et al., PA&DA: Jointly Sampling PAth and DAta for Consistent NAS, 2023, arXiv 2302.14772; the average is that of the
      authors' code.
    """
    name = "inputs.importance_update"
    scores = checks.floating(name, "scores", scores, ndim=1)
    seen = checks.example_mask(name, "seen", seen, scores.shape)
    values = checks.floating(name, "values", values, ndim=1)
    indices, where = _positions(name, indices, where, values.shape[0], scores.shape[0])
    return _update(scores, indices, values, scores != 0 if seen is None else seen, where).scores


def importance_sampling(num_examples: int) -> Stateful:
    r"""The memory of one epoch of importance sampling: the running score of each example.

    Formula:
      `importance_update` with the `last_layer_gradient_norm` of each batch. At the end of an epoch:

      .. math:: p = m \frac{s}{\sum_j s_j} + \frac{1 - m}{N}, \quad m = epoch / epochs

      which is ``importance_probabilities(state.scores, mix=epoch / epochs)``; the next epoch draws N examples from p, and
      starts with a new memory.

    Args:
      num_examples: N, the size of the training set.

    Returns:
      ``init() -> ImportanceState(scores [N], counts [N])``, and ``apply(state, logits, labels, indices, *, where=None,
      mask=None) -> (scores [B], state)``: the scores of the batch, float32 or better, without gradient; ``logits [B, K]``,
      ``labels`` class ids ``[B]`` or probabilities ``[B, K]``, ``indices`` integer ``[B]``, the positions in the training
      set, with repetition; ``where`` the classes that exist and boolean ``mask [B]`` the examples that count.

    Raises:
      ValueError: if ``num_examples`` is below 1; in ``apply``, if the state is not of this N, a shape or dtype does not fit,
        or NumPy ``indices`` lie outside [0, N).

    Cost:
      8 N bytes, and what `last_layer_gradient_norm` and `importance_update` cost; no pass of the model.
      XLA at [256, 1000]: at most 12 times the FLOPs and 3.9 times the bytes of a copy of its arguments, and 1.1 times its
      memory more.

    Use:
      For: compute budget, unstable training.
      When: Most examples are learnt early and waste steps: drawing by gradient norm lowers the variance of the mean gradient,
        as measured on digits of which most are easy. Needs stable indices and a sampler that draws anew each epoch.
      Not when: Labels are wrong: those examples keep the largest norms and are drawn most. Data is a stream, or one epoch is
        all there is.
      Badly with: `elr`, `ps_kd` and `saf`, which take no position twice in a batch. `co_teaching`, which wants small losses
        where this wants large ones. `mixup`, whose scores are those of mixtures. BatchNorm, whose averages drift to hard
        examples.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> memory = rj.inputs.importance_sampling(num_examples=3)
      >>> logits, labels = jnp.array([[2.0, 0.0, -1.0], [2.0, 0.0, -1.0]]), jnp.array([1, 0])
      >>> scores, state = memory.apply(memory.init(), logits, labels, jnp.array([2, 0]))
      >>> [round(float(s), 4) for s in state.scores], state.counts.tolist()
      ([0.198, 0.0, 1.2241], [1, 0, 1])

    References:
      Lu et al., PA&DA: Jointly Sampling PAth and DAta for Consistent NAS, 2023, arXiv 2302.14772.
    """
    name = "inputs.importance_sampling"
    checks.integer(name, "num_examples", num_examples, low=1)

    def init() -> ImportanceState:
        return ImportanceState(jnp.zeros(num_examples, jnp.float32), jnp.zeros(num_examples, jnp.int32))

    def apply(
        state: ImportanceState, logits: Any, labels: Any, indices: Any, *, where: Any = None, mask: Any = None
    ) -> tuple[Array, ImportanceState]:
        if not isinstance(state, ImportanceState):
            checks.fail(name, "state", "the ImportanceState that init() makes", state)
        scores = checks.floating(name, "state.scores", state.scores, shape=(num_examples,))
        counts = checks.integers(name, "state.counts", state.counts, shape=(num_examples,))
        logits = checks.floating(name, "logits", logits, ndim=2)
        classes.class_inputs(name, logits, labels, where=where)  # errors in the name of this function
        values = jax.lax.stop_gradient(last_layer_gradient_norm(logits, labels, where=where))
        indices, mask = _positions(name, indices, mask, values.shape[0], num_examples)
        new = _update(scores, indices, values, counts > 0, mask)
        seen = sharding.take_rows(counts, new.read) + new.sightings.astype(counts.dtype)
        return values, ImportanceState(new.scores, sharding.set_rows(counts, new.write, seen))

    return Stateful(init, apply)


def _positions(name: str, indices: Any, mask: Any, batch: int, num_examples: int) -> tuple[Array, Array]:
    """Positions in a memory, checked by value where they are on the host, and which of them count."""
    checked = checks.integers(name, "indices", indices, shape=(batch,))
    argument = "mask" if name == "inputs.importance_sampling" else "where"
    mask = checks.example_mask(name, argument, mask, (batch,))
    if isinstance(indices, np.ndarray) and mask is None:
        wrong = indices[(indices < 0) | (indices >= num_examples)]
        if wrong.size:
            checks.fail(name, "indices", f"positions in a memory of {num_examples} examples", wrong[0].item())
    checked = sharding.replicate(checked.astype(jnp.promote_types(jnp.int32, checked.dtype)))
    known = (checked >= 0) & (checked < num_examples)
    return checked, known if mask is None else known & sharding.replicate(mask)


class _Updated(NamedTuple):
    """The scores after a batch; where it reads and writes, and how often each of its examples stood in it."""

    scores: Array
    read: Array
    write: Array
    sightings: Array


def _update(scores: Array, indices: Array, values: Array, seen: Array, counts: Array) -> _Updated:
    """The scores after a batch, in the order of the batch."""
    num_examples, batch = scores.shape[0], indices.shape[0]
    dtype = trees.accumulator(scores, values)
    values = jnp.where(counts, sharding.replicate(jax.lax.stop_gradient(values)), 0).astype(dtype)
    order = jnp.arange(batch)
    alike = (indices[:, None] == indices) & counts[:, None] & counts
    earlier = jnp.sum(alike & (order < order[:, None]), axis=1, dtype=jnp.int32)
    later = jnp.sum(alike & (order > order[:, None]), axis=1, dtype=jnp.int32)
    read = jnp.where(counts, indices, 0)
    known = sharding.take_rows(seen, read)
    # Every later sighting halves a value, and so does its own, unless it is the first.
    halvings = later + jnp.where((earlier == 0) & ~known, 0, 1)
    total = jnp.sum(jnp.where(alike, jnp.exp2(-halvings.astype(dtype)) * values, 0), axis=1)
    times = earlier + later + 1
    past = jnp.where(known, sharding.take_rows(scores, read).astype(dtype) * jnp.exp2(-times.astype(dtype)), 0)
    # The last sighting writes for all, so that no two write to one place; N is dropped.
    write = jnp.where(counts & (later == 0), indices, num_examples)
    return _Updated(sharding.set_rows(scores, write, (past + total).astype(scores.dtype)), read, write, times)
