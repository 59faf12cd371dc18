"""Pairs against the rest of the batch: InfoNCE."""

from typing import Any

import jax
import jax.numpy as jnp

from regjax.core import checks, sharding, trees
from regjax.core.types import Array, Strength


def info_nce(
    queries: Any,
    keys: Any,
    *,
    temperature: Strength = 0.07,
    symmetric: bool = True,
    where: Any = None,
    axis_name: Any = None,
) -> Array:
    r"""InfoNCE: each query finds its own key among the keys of the batch, by cosine similarity.

    Formula:
      .. math:: \ell_i = -\log \frac{\exp(\cos(q_i, k_i) / \tau)}{\sum_j \exp(\cos(q_i, k_j) / \tau)}

      With ``symmetric`` the mean of this and of the loss of key i among the queries.

    Args:
      queries: float ``[B, D]``, q.
      keys: float ``[B, D]``, k: row i belongs to query i. Gradient flows to both. A vector shorter than 1e-8 has cosine 0
        with all others, and no gradient.
      temperature: :math:`\tau`, above 0, default 0.07, a number or a traced scalar.
      symmetric: whether keys find their queries too, default True.
      where: boolean ``[B]``: the pairs that count; the others cost 0 and are nobody's negatives. Default all.
      axis_name: the mapped axis, or a tuple of them, over which the batch is split under ``shard_map`` or ``pmap``: the
        negatives are then those of the whole batch, and gradients averaged over the axis those of its mean loss. Not needed
        under ``jit`` with sharded arrays.

    Returns:
      The loss of each pair, ``[B]``, at least 0, in float32 or better; 0 for a batch of one.

    Raises:
      ValueError: if a shape or dtype does not fit, or ``temperature`` is not positive and finite.

    Cost:
      One product of B x D by D x B, and B x B numbers of memory. A batch sharded over devices keeps the rows of that matrix
      on their device, and gathers the keys.
      XLA at 2 times [256, 128]: at most 1.2 times the FLOPs and 5.1 times the bytes of the product of both sets, and 0.56 times
      its memory more.

    Use:
      For: few labels, collapsed features.
      When: Pairs without labels: two views, image and text, query and document. The batch supplies the negatives: some hundreds
        and more. Shards need ``axis_name`` to share them. Temperatures 0.05 to 0.2.
      Not when: Batches are small, or hold many of one class, whose pairs are false negatives. Labels are plenty and are the
        aim: cross-entropy.
      Badly with: Microbatches, which cut the negatives. `mixup` of queries without keys. Batch normalisation per device, which
        tells pairs by their statistics.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> loss = rj.losses.info_nce(jnp.eye(2), jnp.array([[0.8, 0.6], [0.6, 0.8]]), temperature=0.1)
      >>> [round(float(x), 4) for x in loss]
      [0.1269, 0.1269]

    References:
      van den Oord et al., Representation Learning with Contrastive Predictive Coding, 2018, arXiv 1807.03748. Radford et
      al., Learning Transferable Visual Models From Natural Language Supervision, 2021, arXiv 2103.00020 (symmetric). Used
      by McKee et al., Language-Guided Music Recommendation for Video via Prompt Analogies, 2023, arXiv 2306.09327, whose
      temperature we could not check.
    """
    name = "losses.info_nce"
    queries = checks.floating(name, "queries", queries, ndim=2)
    keys = checks.floating(name, "keys", keys, shape=queries.shape)
    checks.number(name, "temperature", temperature, low=0.0, open_low=True)
    checks.boolean(name, "symmetric", symmetric)
    counts = checks.example_mask(name, "where", where, queries.shape[:1])
    checks.axis_name(name, axis_name)
    dtype = trees.accumulator(queries, keys)
    q, k = (x.astype(dtype) for x in (queries, keys))
    if counts is not None:
        # Before the norm, so that a pair that does not count may hold anything.
        q, k = (jnp.where(counts[:, None], x, 0) for x in (q, k))
    q, k = trees.unit(q), trees.unit(k)
    rows = sharding.explicit_sharding(q)
    place = lambda x: x if rows is None else jax.sharding.reshard(x, rows.update(spec=jax.P(rows.spec[0])))
    local, everyone = jnp.arange(q.shape[0]), counts
    if axis_name is None:
        k, everyone = sharding.replicate(k), None if counts is None else sharding.replicate(counts)
    else:
        local = local + q.shape[0] * jax.lax.axis_index(axis_name)
        k, everyone = jax.tree.map(lambda x: jax.lax.all_gather(x, axis_name, tiled=True), (k, counts))
    # In full precision: the temperature multiplies the error of a product in TensorFloat-32 by 14.
    similarity = jnp.einsum("id,jd->ij", q, k, precision="highest") / jnp.asarray(temperature, dtype)
    own = place(local)[:, None] == jnp.arange(k.shape[0])
    positive = jnp.sum(jnp.where(own, similarity, 0), axis=-1)
    loss = _log_sum_exp(similarity, None if everyone is None else everyone[None, :], 1) - positive
    if symmetric:
        columns = _log_sum_exp(similarity, None if counts is None else counts[:, None], 0, axis_name)
        if axis_name is not None:
            columns = jax.lax.dynamic_slice_in_dim(columns, local[0], q.shape[0])
        loss = (loss + place(columns) - positive) / 2
    return loss if counts is None else jnp.where(counts, loss, 0)


def _log_sum_exp(x: Array, counts: Array | None, axis: int, axis_name: Any = None) -> Array:
    """Over one axis, and over the devices of a mapped one, of the entries that count; 0 where none does."""
    kept = x if counts is None else jnp.where(counts, x, -jnp.inf)
    top = jax.lax.stop_gradient(jnp.max(kept, axis=axis, keepdims=True))
    top = top if axis_name is None else jax.lax.pmax(top, axis_name)
    top = jnp.where(jnp.isneginf(top), 0, top)
    total = jnp.sum(jnp.exp(kept - top), axis=axis)
    total = total if axis_name is None else jax.lax.psum(total, axis_name)
    return jnp.log(jnp.where(total == 0, 1, total)) + jnp.squeeze(top, axis)
