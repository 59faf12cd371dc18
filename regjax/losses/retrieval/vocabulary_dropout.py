"""Scoring a vocabulary of candidates: training on a random half of it, and imitation by soft targets."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from regjax.core import checks, classes, sharding
from regjax.core.types import Array, Key, PyTree, Strength


def sample_candidates(key: Key, vocab_size: int, *, fraction: float = 0.5) -> Array:
    r"""Draws a random subset of a vocabulary, without replacement.

    Formula:
      :math:`S = \max(1, \lfloor V f \rfloor)` distinct positions, every subset with the same probability.

    Args:
      key: a random key. One subset serves the batch: every device needs the same key.
      vocab_size: V, at least 1.
      fraction: f in (0, 1], default 0.5; a Python number, as S is the shape of an array. 1 gives all positions in order.

    Returns:
      Integers ``[S]`` in [0, V), in random order.

    Raises:
      ValueError: if ``vocab_size`` is below 1, or ``fraction`` lies outside (0, 1] or is traced.

    Cost:
      Sorts of V numbers: one for up to 1600, two beyond.
      XLA at [4096]: at most 260 times the FLOPs and 45 times the bytes of a copy of its results, and 5.6 times its memory more.

    Use:
      Part of: `vocabulary_dropout`.
      When: Call it to use one subset for several losses, or across several steps.
      Badly with: A fraction from a schedule: it sets a shape, and each new one compiles.

    Example:
      >>> import jax, regjax as rj
      >>> indices = rj.losses.sample_candidates(jax.random.key(0), 8)
      >>> len(set(indices.tolist()))
      4

    References:
      Li et al., Generalized Trajectory Scoring for End-to-end Multimodal Planning, 2025, arXiv 2506.06664.
    """
    name = "losses.sample_candidates"
    checks.key(name, key)
    checks.integer(name, "vocab_size", vocab_size, low=1)
    _check_fraction(name, fraction)
    if fraction == 1:
        return jnp.arange(vocab_size, dtype=jnp.int32)
    size = max(1, math.floor(vocab_size * fraction + 1e-9))  # 100 * 0.29 is 28.999...
    return jax.random.permutation(key, vocab_size)[:size].astype(jnp.int32)


def take_candidates(indices: Any, candidates: PyTree, targets: PyTree) -> tuple[PyTree, PyTree]:
    r"""The candidates at given positions of the vocabulary, and their targets: the core of `vocabulary_dropout`.

    Formula:
      ``candidates[indices], targets[:, indices]``

    Args:
      indices: integer ``[S]``, positions in [0, V).
      candidates: an array ``[V, ...]``, or a tree of them.
      targets: an array ``[B, V, ...]``, a tree of them, or None: what each example has for each candidate.

    Returns:
      ``(candidates [S, ...], targets [B, S, ...])``, in the structure and dtypes of the inputs.

    Raises:
      ValueError: if a shape or dtype does not fit.

    Cost:
      A gather. A vocabulary sharded over devices is exchanged between them.
      XLA at [4096, 128]: at most 0.035 times the FLOPs and 2.1 times the bytes of a copy of its results, and 0.19 times its
      memory more.

    Use:
      Part of: `vocabulary_dropout`.
      When: Call it with positions of your own: the nearest candidates, hard negatives, or a set that always holds the best one.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> candidates, targets = rj.losses.take_candidates(jnp.array([2, 0]), jnp.arange(3.0), jnp.eye(3)[:1])
      >>> candidates.tolist(), targets.tolist()
      ([2.0, 0.0], [[0.0, 1.0]])

    References:
      Li et al., Generalized Trajectory Scoring for End-to-end Multimodal Planning, 2025, arXiv 2506.06664.
    """
    name = "losses.take_candidates"
    indices = checks.integers(name, "indices", indices, ndim=1)
    return _take(name, indices, candidates, targets, _vocabulary(name, candidates))


def vocabulary_dropout(loss_fn: Callable[..., Any], *, fraction: float = 0.5) -> Callable[..., Any]:
    r"""Makes a loss over a vocabulary of candidates see a random part of it: what scores it then learns no fixed set.

    Formula:
      ``loss_fn(candidates[I], targets[:, I], *args)`` with a fresh subset I of S = floor(V f) positions at every call, one
      for the whole batch, drawn without replacement.

    Args:
      loss_fn: ``f(candidates, targets, *args, **kwargs)``: scores the candidates that it is given, and returns a loss or
        anything else.
      fraction: f in (0, 1], default 0.5; a Python number. 1 is the loss over the whole vocabulary.

    Returns:
      ``g(key, candidates, targets, *args, **kwargs)``, which returns what ``loss_fn`` does. ``candidates`` is an array
      ``[V, ...]`` or a tree of them; ``targets`` an array ``[B, V, ...]`` (sub-scores of every candidate), a tree of them,
      or None. Parameters are among ``args``: ``jax.grad(g, argnums=3)``. At test time call ``loss_fn`` or the scorer
      itself, with any vocabulary.

    Raises:
      ValueError: if ``loss_fn`` is no function, ``fraction`` lies outside (0, 1], or, by the call, if a shape does not fit.

    Cost:
      The scorer runs on S of V candidates: half its FLOPs. `sample_candidates` and a gather.
      XLA at [256, 8192]: at most 0.56 times the FLOPs and 0.76 times the bytes of the loss over all candidates, and 0 times its
      memory more.

    Use:
      For: distribution shift, compute budget.
      When: A scorer of given candidates, trajectories or answers, that shall work for sets it never saw: each step shows half
        of them. Saves their share of the scorer's work.
      Not when: Each class has weights of its own, as in a softmax head: nothing carries over to new ones. Few candidates: half
        of them lacks a good one. The set at test is the training set.
      Badly with: Targets that are positions in the vocabulary: give what each candidate has. Another key on each device. Losses
        that need the best candidate present. `soft_candidate_cross_entropy` with a tiny ``sigma``.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> def loss_fn(candidates, targets, params):
      ...     return jnp.mean((params * candidates - targets) ** 2)
      >>> loss = rj.losses.vocabulary_dropout(loss_fn, fraction=0.5)
      >>> round(float(loss(jax.random.key(0), jnp.ones(8), jnp.zeros((4, 8)), 2.0)), 4)
      4.0

    References:
      Li et al., Generalized Trajectory Scoring for End-to-end Multimodal Planning, 2025, arXiv 2506.06664. In the authors' code
      the trajectory that a training step returns is read from the whole set with a subset's index; here nothing but the loss's
      own result is returned.
    """
    name = "losses.vocabulary_dropout"
    checks.function(name, "loss_fn", loss_fn)
    _check_fraction(name, fraction)

    def dropped(key: Key, candidates: PyTree, targets: PyTree, *args: Any, **kwargs: Any) -> Any:
        checks.key(name, key)
        size = _vocabulary(name, candidates)
        indices = sample_candidates(key, size, fraction=fraction)
        return loss_fn(*_take(name, indices, candidates, targets, size), *args, **kwargs)

    return dropped


def soft_candidate_cross_entropy(
    logits: Any, candidates: Any, targets: Any, *, sigma: Strength = 0.5, where: Any = None
) -> Array:
    r"""Cross-entropy of candidates' scores against soft targets by their distance from the truth.

    Formula:
      .. math:: -\sum_s q_s \log softmax(z)_s, \quad
                q = softmax_s\left( -\frac{1}{\sigma} \lVert c_s - y \rVert^2 \right)

      The squared distance is the sum over all coordinates. Only the given candidates share the probability, however far
      they are.

    Args:
      logits: float ``[B, S]``, z.
      candidates: float ``[S, ...]``, c: points of a trajectory and their coordinates, say.
      targets: float ``[B, ...]``, y, of the shape of a candidate. No gradient flows to candidates or targets.
      sigma: :math:`\sigma`, above 0, default 0.5, a number or a traced scalar.
      where: boolean, broadcasts to ``logits``: the candidates that exist. Default all.

    Returns:
      The loss of each example, ``[B]``, in float32 or better.

    Raises:
      ValueError: if a shape or dtype does not fit, or ``sigma`` is not positive and finite.

    Cost:
      3 B S D FLOPs for the distances, which are neither stored by coordinate nor differentiated; a softmax of each.
      XLA at [1024, 1000]: at most 26 times the FLOPs and 2 times the bytes of cross-entropy, and 0.55 times its memory more.

    Use:
      For: few labels.
      When: Imitation over a set of candidates with a distance: near misses share the label. Sigma sets how many: about the
        squared distance of neighbours, summed over coordinates.
      Not when: One candidate is right and others are no better for being near. Coordinates differ in units: scale them first.
        Truth far from all candidates: the nearest still gets the whole label.
      Badly with: `label_smoothing` of the scores, which gives mass to far candidates. Longer trajectories at the same sigma:
        the distance is a sum. Angles, whose difference wraps.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> candidates, logits = jnp.array([0.0, 1.0, 3.0]), jnp.array([[1.0, 0.0, -1.0]])
      >>> round(float(rj.losses.soft_candidate_cross_entropy(logits, candidates, jnp.array([0.5]))[0]), 4)
      0.9076

    References:
      Li et al., Generalized Trajectory Scoring for End-to-end Multimodal Planning, 2025, arXiv 2506.06664: the imitation loss
      of the authors' code. Beside it stand the means of binary cross-entropies of the sub-scores, with weights 3 (collision), 3
      (drivable area), 4 (time to collision), 2 (progress), 1 (direction), 2 (lane) and 3 (lights).
    """
    name = "losses.soft_candidate_cross_entropy"
    logits = checks.floating(name, "logits", logits, ndim=2)
    x = classes.class_inputs(name, logits, where=where)
    batch, size = x.logits.shape
    candidates = checks.floating(name, "candidates", candidates, min_ndim=1)
    if candidates.shape[0] != size:
        checks.fail(name, "candidates", f"an array [{size}, ...], one candidate for each logit", candidates)
    targets = checks.floating(name, "targets", targets, shape=(batch, *candidates.shape[1:]))
    checks.number(name, "sigma", sigma, low=0.0, open_low=True)
    dtype = jnp.promote_types(x.logits.dtype, jnp.result_type(candidates, targets))
    # Differences and not one matrix product: it would lose the small distances, of the candidates that matter, in the
    # squares of the coordinates. The compiler sums over them as it goes.
    c, y = (jax.lax.stop_gradient(v).astype(dtype) for v in (candidates, targets))
    distance = jnp.sum(jnp.square(y[:, None] - c[None]), axis=tuple(range(2, c.ndim + 1)))
    q = jnp.exp(classes.log_softmax(-distance / jnp.asarray(sigma, dtype), x.where))
    q = q if x.where is None else jnp.where(x.where, q, 0)
    return classes.cross_entropy(classes.ClassInputs(x.logits.astype(dtype), q, x.where, False))


def _check_fraction(name: str, fraction: Any) -> None:
    if isinstance(fraction, jax.Array):
        checks.fail(name, "fraction", "a Python number in (0, 1] (it sets the shape of an array)", fraction)
    checks.number(name, "fraction", fraction, low=0.0, high=1.0, open_low=True)


def _vocabulary(name: str, candidates: PyTree) -> int:
    """V, which all the candidates' arrays have in front."""
    leaves = [checks.array(name, "candidates", leaf, min_ndim=1) for leaf in jax.tree.leaves(candidates)]
    if not leaves or len({leaf.shape[0] for leaf in leaves}) != 1:
        checks.fail(name, "candidates", "an array [V, ...] or a tree of them, of one V", [leaf.shape for leaf in leaves])
    return leaves[0].shape[0]


def _take(name: str, indices: Array, candidates: PyTree, targets: PyTree, size: int) -> tuple[PyTree, PyTree]:
    for leaf in jax.tree.leaves(targets):
        if checks.array(name, "targets", leaf, min_ndim=2).shape[1] != size:
            checks.fail(name, "targets", f"an array [B, {size}, ...], one column for each candidate", leaf)
    rows = jax.tree.map(lambda x: sharding.take_rows(jnp.asarray(x), indices), candidates)
    return rows, jax.tree.map(lambda x: _take_columns(jnp.asarray(x), indices), targets)


def _take_columns(x: Array, indices: Array) -> Array:
    """``x[:, indices]``, on an Explicit mesh sharded over examples as ``x`` is."""
    named = sharding.explicit_sharding(x)
    if named is None:
        return x[:, indices]
    return x.at[:, indices].get(out_sharding=named.update(spec=jax.P(named.spec[0], None, *named.spec[2:])))
