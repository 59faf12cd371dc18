"""Which layer of an ordered low-rank model a training step truncates, and to which rank."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from regjax.core import checks
from regjax.core.types import Array, Key


class RankSample(NamedTuple):
    """The index of a layer and the number of ranks it keeps, int32 scalars."""

    layer: Array
    rank: Array


def rank_pair(index: Any, ranks: Any) -> RankSample:
    r"""The pair of a layer and a rank at an index of the list of all pairs.

    Formula:
      .. math:: (l, b) \quad with \quad index = \sum_{k < l} R_k + b - 1, \quad 1 \le b \le R_l

    Args:
      index: an integer, or a traced one, from 0 to the sum of the ranks less 1; what is beyond ends at the nearest pair. A
        shuffled list of all indices visits every pair once.
      ranks: integers ``[L]``, the living ranks of every layer; a layer of 0 has no pair.

    Returns:
      ``(layer, rank)``, int32 scalars; (0, 0) where no rank lives at all.

    Raises:
      ValueError: if ``index`` is no integer scalar or negative, or ``ranks`` is no vector of integers.

    Cost:
      A running sum over the layers and a few operations.
      XLA at [64]: at most 32 times the FLOPs and 7.9 times the bytes of a copy of its arguments, and 1.2 times its memory more.

    Use:
      Part of: `sample_rank`.
      When: To visit every pair of layer and rank once, over a shuffled list, as the authors' code does.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> [tuple(map(int, rj.layers.rank_pair(i, jnp.array([1, 0, 2])))) for i in range(3)]
      [(0, 1), (2, 1), (2, 2)]

    References:
      Horvath et al., Maestro: Uncovering Low-Rank Structures via Trainable Decomposition, 2024, arXiv 2308.14929.
    """
    name = "layers.rank_pair"
    if isinstance(index, jax.Array):
        index = checks.integers(name, "index", index, shape=())
    else:
        index = checks.integer(name, "index", index, low=0)
    return _pair(jnp.asarray(index, jnp.int32), _ranks(name, ranks))


def sample_rank(key: Key, ranks: Any) -> RankSample:
    r"""Draws one layer and a rank for it; the step uses all other layers whole.

    Formula:
      .. math:: P(l, b) = \frac{1}{\sum_k R_k}, \quad 1 \le b \le R_l

      uniform over all pairs, so that a layer is drawn in proportion to its ranks.

    Args:
      key: a random key, the same on all devices: inside ``jax.shard_map`` the device's index is not folded in.
      ranks: integers ``[L]``, the living ranks of every layer, as `shrink_ordered` returns them; may be traced.

    Returns:
      ``(layer, rank)``, int32 scalars, for ``truncate_ordered(model, rank, layer=layer)``; (0, 0) where no rank lives.

    Raises:
      ValueError: if ``key`` is no key, or ``ranks`` is no vector of integers.

    Cost:
      A random number, a running sum over the layers and a few operations.
      XLA at [64]: at most 38 times the FLOPs and 13 times the bytes of a copy of its arguments, and 4.3 times its memory more.

    Use:
      Part of: `OrderedDense`.
      When: Each training step, as in the paper: one layer is cut, all others are whole, so the signal stays strong. Layers of
        many ranks come more often.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> layer, rank = rj.layers.sample_rank(jax.random.key(0), jnp.array([0, 1]))
      >>> int(layer), int(rank)
      (1, 1)

    References:
      Horvath et al., Maestro: Uncovering Low-Rank Structures via Trainable Decomposition, 2024, arXiv 2308.14929. The authors'
      code shuffles all pairs and cycles through them without replacement (`rank_pair`), and their option of a second, full pass
      is `regjax.losses.truncated_cross_entropy`; their runs do without it.
    """
    name = "layers.sample_rank"
    key, counts = checks.key(name, key), _ranks(name, ranks)
    return _pair(jax.random.randint(key, (), 0, jnp.maximum(jnp.sum(counts), 1), jnp.int32), counts)


def sample_ranks(key: Key, ranks: Any) -> Array:
    r"""Draws a rank for every layer at once: the variant that truncates across layers.

    Formula:
      .. math:: b_l \sim Uniform\{1, ..., R_l\}

      independently, and 0 where a layer has no living rank.

    Args:
      key: a random key, the same on all devices.
      ranks: integers ``[L]``, the living ranks of every layer; may be traced.

    Returns:
      Integers ``[L]``, int32, for ``truncate_ordered(model, ranks)``.

    Raises:
      ValueError: if ``key`` is no key, or ``ranks`` is no vector of integers.

    Cost:
      A random number for each layer.
      XLA at [64]: at most 130 times the FLOPs and 20 times the bytes of a copy of its arguments, and 5.6 times its memory more.

    Use:
      Part of: `OrderedDense`.
      When: The network will be used with all layers cut at once, and shall have seen that. Early in training of a deep network
        it leaves little signal.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> rj.layers.sample_ranks(jax.random.key(0), jnp.array([0, 1, 1])).tolist()
      [0, 1, 1]

    References:
      Horvath et al., Maestro: Uncovering Low-Rank Structures via Trainable Decomposition, 2024, arXiv 2308.14929.
    """
    name = "layers.sample_ranks"
    key, counts = checks.key(name, key), _ranks(name, ranks)
    drawn = 1 + jax.random.randint(key, counts.shape, 0, jnp.maximum(counts, 1), jnp.int32)
    return jnp.minimum(drawn, counts)


def _ranks(name: str, ranks: Any) -> Array:
    counts = checks.integers(name, "ranks", ranks, ndim=1)
    if not counts.size:
        checks.fail(name, "ranks", "the ranks of at least one layer", counts)
    return counts.astype(jnp.int32)


def _pair(index: Array, counts: Array) -> RankSample:
    ends = jnp.cumsum(counts).astype(jnp.int32)
    index = jnp.clip(index, 0, jnp.maximum(ends[-1] - 1, 0))
    # The last layer where no rank lives would be L: nothing lies beyond it.
    layer = jnp.where(ends[-1] > 0, jnp.sum(index >= ends), 0).astype(jnp.int32)
    here = jnp.arange(counts.size) == layer
    start = jnp.sum(jnp.where(here, ends - counts, 0))
    rank = jnp.minimum(index - start + 1, jnp.sum(jnp.where(here, counts, 0)))
    return RankSample(layer, rank.astype(jnp.int32))
