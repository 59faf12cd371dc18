"""Which blocks of a deep network change their input least: the ones that can be dropped."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from regjax.core import checks, selection, sharding, trees
from regjax.core.types import Array


class DropPlan(NamedTuple):
    """What `drop_plan` returns: which sub-layers stay."""

    attn_mask: Array
    mlp_mask: Array


class RedundantRun(NamedTuple):
    """What `best_gap` returns: the first block of the run, its similarity, and which blocks stay without it."""

    start: Array
    similarity: Array
    mask: Array


def block_importance(hidden_states: Any, *, where: Any = None) -> Array:
    r"""How far each block turns the hidden states that pass through it; a block of little importance can be dropped.

    Formula:
      .. math:: 1 - mean_t \cos(h_{l,t}, h_{l+1,t})

      over the tokens t of a few hundred calibration sequences: 0 for a block that changes lengths alone, 2 for one that
      turns all signs.

    Args:
      hidden_states: float ``[L + 1, ..., D]``: the input of the first block and the output of each of the L blocks.
      where: boolean ``[...]``, the shape of the tokens: which count (no padding); default all.

    Returns:
      ``[L]`` in float32 or better. A vector shorter than 1e-8 has no direction: its cosine is 0. Without tokens: 1.

    Raises:
      ValueError: if a shape or dtype does not fit.

    Cost:
      About seven passes over the hidden states; the model's forward pass is the caller's. Tokens may be sharded.
      XLA at [12, 8, 64, 256]: at most 8.7 times the FLOPs and 3.7 times the bytes of a copy of its arguments, and 1.1 times its
      memory more.

    Use:
      For: compute budget, sparsity budget.
      When: Deep pre-norm residual networks of equal blocks, on a few hundred calibration sequences: on digits the least
        important block was missed less than the most important one.
      Not when: Single weights or units are pruned, or blocks change width. Several blocks go: the similarity of a run
        (`gap_similarity`) is not the sum of theirs, so measure again after each.
      Badly with: Streams of a few huge channels (massive activations), which decide the cosine. Post-norm networks, whose
        stream does not pass a dropped block unchanged. Padding tokens without ``where``.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> states = jnp.array([[[1.0, 0.0]], [[1.0, 1.0]], [[3.0, 3.0]]])
      >>> [round(float(x), 4) for x in rj.diagnostics.block_importance(states)]
      [0.2929, 0.0]

    References:
      Men et al., ShortGPT: Layers in Large Language Models are More Redundant Than You Expect, 2024, arXiv 2403.03853. He et
      al., What Matters in Transformers? Not All Attention is Needed, 2024, arXiv 2406.15786. There the product of the lengths
      is bounded below by 1e-8; here each length, so that short vectors keep their direction.
    """
    name = "diagnostics.block_importance"
    h = _states(name, hidden_states)
    where = checks.example_mask(name, "where", where, h.shape[1:-1])
    u = trees.unit(h)
    return 1 - _token_mean(jnp.sum(u[:-1] * u[1:], axis=-1), where)


def gap_similarity(hidden_states: Any, *, where: Any = None) -> Array:
    r"""How alike the hidden states before and after every run of consecutive blocks are.

    Formula:
      .. math:: S_{i, g-1} = mean_t \cos(h_{i,t}, h_{i+g,t}), \quad i + g \leq L

      `best_gap` chooses from it the run of g blocks whose removal changes least.

    Args:
      hidden_states: float ``[L + 1, ..., D]``: the input of the first block and the output of each of the L blocks.
      where: boolean ``[...]``, the shape of the tokens: which count; default all.

    Returns:
      ``[L, L]`` in float32 or better: the row is the first block of the run, the column its length less 1; ``-inf`` where the
      run would pass the last block. The first column is 1 - `block_importance`.

    Raises:
      ValueError: if a shape or dtype does not fit.

    Cost:
      One product of the states with themselves, 2 (L + 1)^2 D operations for each token. Tokens may be sharded.
      XLA at [12, 8, 64, 256]: at most 34 times the FLOPs and 3.9 times the bytes of a copy of its arguments, and 1.2 times its
      memory more.

    Use:
      Part of: `best_gap`.
      When: To see all runs at once: take more than one ``num`` from it, or plot it against depth. A sudden fall from one length
        to the next says where to stop.
      Badly with: The last block before the head, which often turns the stream much: runs that end there compare badly.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> states = jnp.array([[[1.0, 0.0]], [[1.0, 1.0]], [[0.0, 3.0]]])
      >>> [[round(float(x), 4) for x in row] for row in rj.diagnostics.gap_similarity(states)]
      [[0.7071, 0.0], [0.7071, -inf]]

    References:
      Gromov et al., The Unreasonable Ineffectiveness of the Deeper Layers, 2024, arXiv 2403.17887. He et al., What Matters in
      Transformers? Not All Attention is Needed, 2024, arXiv 2406.15786, whose code reads column g, the gap of g + 1.
    """
    name = "diagnostics.gap_similarity"
    h = _states(name, hidden_states)
    where = checks.example_mask(name, "where", where, h.shape[1:-1])
    u = trees.unit(h)
    if where is not None:
        u = jnp.where(where[None, ..., None], u, 0)
    blocks = h.shape[0] - 1
    tokens = "".join(chr(ord("a") + i) for i in range(h.ndim - 2))
    named = sharding.explicit_sharding(u)
    whole = None if named is None else named.update(spec=jax.P(None, None))
    # Cosines near 1 are compared with each other: no products of reduced precision.
    products = jnp.einsum(f"x{tokens}z,y{tokens}z->xy", u, u, precision=jax.lax.Precision.HIGHEST, out_sharding=whole)
    similarity = products / _token_count(where, h)
    first = jnp.arange(blocks)[:, None]
    last = first + jnp.arange(1, blocks + 1)
    columns = jnp.take_along_axis(similarity[:-1], jnp.minimum(last, blocks), axis=1)
    return jnp.where(last <= blocks, columns, -jnp.inf)


def layer_importance(inputs: Any, outputs: Any, *, residual: bool = True, where: Any = None) -> Array:
    r"""How far each attention or MLP sub-layer turns the residual stream that it adds to.

    Formula:
      .. math:: 1 - mean_t \cos(x_{l,t}, x_{l,t} + y_{l,t}) \quad (residual), \qquad 1 - mean_t \cos(x_{l,t}, y_{l,t})

    Args:
      inputs: float ``[L, ..., D]``, x. With ``residual`` the residual stream before the norm of each sub-layer, without it
        what comes out of the norm.
      outputs: float, of the shape of ``inputs``: y, what each sub-layer returns, before it is added to the stream.
      residual: whether the stream with the output added is compared; default True.
      where: boolean ``[...]``, the shape of the tokens: which count; default all.

    Returns:
      ``[L]`` in float32 or better, for `drop_plan`. A vector shorter than 1e-8 has no direction: its cosine is 0.

    Raises:
      ValueError: if a shape or dtype does not fit, or ``residual`` is not a bool.

    Cost:
      About six passes over the arrays; the model's forward pass is the caller's. Tokens may be sharded.
      XLA at 2 times [12, 8, 64, 256]: at most 6.1 times the FLOPs and 3.1 times the bytes of a copy of its arguments, and 0.56
      times its memory more.

    Use:
      Part of: `drop_plan`.
      When: On calibration data for attention and MLP sub-layers apart: stack those of one kind. The authors report most
        redundancy in attention.
      Badly with: Streams that grow with depth: late sub-layers add little relative to it and read as unimportant. Sub-layers
        with a scale after the output (layer scale), unless it is in ``outputs``.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> x, y = jnp.array([[[1.0, 0.0]]]), jnp.array([[[0.0, 1.0]]])
      >>> [round(float(rj.diagnostics.layer_importance(x, y, residual=r)[0]), 4) for r in (True, False)]
      [0.2929, 1.0]

    References:
      He et al., What Matters in Transformers? Not All Attention is Needed, 2024, arXiv 2406.15786: a sub-layer is dropped with
      its norm, and the residual path stays.
    """
    name = "diagnostics.layer_importance"
    x = checks.floating(name, "inputs", inputs, min_ndim=2)
    y = checks.floating(name, "outputs", outputs, shape=x.shape)
    checks.boolean(name, "residual", residual)
    where = checks.example_mask(name, "where", where, x.shape[1:-1])
    dtype = trees.accumulator(x, y)
    x, y = x.astype(dtype), y.astype(dtype)
    y = x + y if residual else y
    return 1 - _token_mean(jnp.sum(trees.unit(x) * trees.unit(y), axis=-1), where)


def drop_plan(attn_importance: Any, mlp_importance: Any, num: Any) -> DropPlan:
    r"""Chooses the sub-layers to drop: the least important ones of attention and MLP together.

    Formula:
      The ``num`` smallest of both lists laid end to end leave; of equal ones the earlier, attention first.

    Args:
      attn_importance: float ``[L]``, `layer_importance` of the attention sub-layers; ``inf`` for one that must stay.
      mlp_importance: float ``[M]``, that of the MLPs, usually M = L.
      num: how many to drop, from 0 to L + M; an integer, or a traced scalar.

    Returns:
      ``DropPlan(attn_mask [L], mlp_mask [M])``, True for what stays.

    Raises:
      ValueError: if a shape or dtype does not fit, or ``num`` lies outside its range.

    Cost:
      Nothing beside the importances. One-shot, or again after each drop with the importances of the smaller model.
      XLA at 2 times [32]: at most 40 times the FLOPs and 6.3 times the bytes of a copy of its arguments, and 3 times its memory
      more.

    Use:
      For: compute budget, sparsity budget.
      When: A pretrained transformer shall get faster with no training or little of it: whole attention sub-layers save their
        key-value cache too. Measure on data like the use, and again after every few drops.
      Not when: Training for sparsity is possible, where `prune` and `structured_removal_penalty` choose finer. Shallow
        networks, in which every block counts.
      Badly with: Importances of different kinds: with ``residual`` on one side and without on the other they are not on one
        scale.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> plan = rj.diagnostics.drop_plan(jnp.array([0.3, 0.01, 0.02]), jnp.array([0.5, 0.4, 0.015]), 2)
      >>> plan.attn_mask.tolist(), plan.mlp_mask.tolist()
      ([True, False, True], [True, True, False])

    References:
      He et al., What Matters in Transformers? Not All Attention is Needed, 2024, arXiv 2406.15786: with half of the attention
      layers of a model of 70B parameters dropped it runs 48% faster and loses 2.4% of its scores.
    """
    name = "diagnostics.drop_plan"
    attn = checks.floating(name, "attn_importance", attn_importance, ndim=1)
    mlp = checks.floating(name, "mlp_importance", mlp_importance, ndim=1)
    if isinstance(num, jax.Array):
        num = checks.integers(name, "num", num, shape=())
    else:
        checks.integer(name, "num", num, low=0, high=attn.size + mlp.size)
    dtype = trees.accumulator(attn, mlp)
    dropped = selection.largest([-sharding.replicate(x).astype(dtype) for x in (attn, mlp)], num)
    return DropPlan(*(~mask for mask in dropped))


def best_gap(similarity: Any, num: int) -> RedundantRun:
    r"""The most redundant run of consecutive blocks: the one whose input and output are most alike.

    Formula:
      .. math:: i^* = \arg\max_i S_{i, g-1}

      for runs of ``num`` = g blocks, of equal ones the first.

    Args:
      similarity: float ``[L, L]``: what `gap_similarity` returns.
      num: the blocks of the run, from 1 to L.

    Returns:
      ``RedundantRun(start, similarity, mask)``: the first block of the run, its similarity in float32 or better, and the
      blocks that stay, boolean ``[L]``.

    Raises:
      ValueError: if a shape or dtype does not fit, or ``num`` lies outside its range.

    Cost:
      L comparisons.
      XLA at [33, 33]: at most 0.36 times the FLOPs and 0.036 times the bytes of a copy of its arguments, and 0.01 times its
      memory more.

    Use:
      For: compute budget, sparsity budget.
      When: A fixed number of neighbouring blocks is cut in one piece and the rest is tuned a little, as the authors do for deep
        language models with adapters.
      Not when: The least useful blocks lie apart, or attention and MLPs differ: `drop_plan` takes them one by one. Without
        tuning afterwards a long run leaves a mismatch at the seam.
      Badly with: `block_importance` plans on the same model: both suppose the whole model, and two cuts do not add up.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> similarity = jnp.array([[0.7, 0.5], [0.9, -jnp.inf]])
      >>> run = rj.diagnostics.best_gap(similarity, 1)
      >>> int(run.start), round(float(run.similarity), 4), run.mask.tolist()
      (1, 0.9, [True, False])

    References:
      Gromov et al., The Unreasonable Ineffectiveness of the Deeper Layers, 2024, arXiv 2403.17887. He et al., What Matters in
      Transformers? Not All Attention is Needed, 2024, arXiv 2406.15786.
    """
    name = "diagnostics.best_gap"
    similarity = checks.floating(name, "similarity", similarity, ndim=2)
    blocks = similarity.shape[0]
    if similarity.shape != (blocks, blocks) or blocks < 1:
        checks.fail(name, "similarity", "a square array [L, L] of one or more blocks", similarity)
    checks.integer(name, "num", num, low=1, high=blocks)
    column = sharding.replicate(similarity)[: blocks - num + 1, num - 1]
    start = jnp.argmax(column).astype(jnp.int32)
    index = jnp.arange(blocks)
    mask = (index < start) | (index >= start + num)
    return RedundantRun(start, jnp.max(column).astype(trees.accumulator(column)), mask)


def _states(name: str, hidden_states: Any) -> Array:
    h = checks.floating(name, "hidden_states", hidden_states, min_ndim=2)
    if h.shape[0] < 2:
        checks.fail(name, "hidden_states", "an array [L + 1, ..., D] of one or more blocks", h)
    return h.astype(trees.accumulator(h))


def _token_count(where: Array | None, h: Array) -> Any:
    if where is None:
        return max(h[0, ..., 0].size, 1)
    return jnp.maximum(jnp.sum(where), 1).astype(h.dtype)


def _token_mean(values: Array, where: Array | None) -> Array:
    """The mean over all axes but the first."""
    axes = tuple(range(1, values.ndim))
    if where is None:
        return jnp.sum(values, axis=axes) / max(values[0].size, 1)
    return jnp.sum(jnp.where(where[None], values, 0), axis=axes) / jnp.maximum(jnp.sum(where), 1).astype(values.dtype)
