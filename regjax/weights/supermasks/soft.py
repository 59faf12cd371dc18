"""Soft subnetworks: a mask of ones for the major weights and of random numbers below one for the minor."""

from typing import Any

import jax
import jax.numpy as jnp

from regjax.core import checks, selection, sharding, trees
from regjax.core.types import Array, Key, Strength
from regjax.weights.supermasks.scores import straight_through


def apply_soft_subnetwork_mask(scores: Any, uniforms: Any = None, *, sparsity: Strength) -> Array:
    r"""The mask of a soft subnetwork with the values of its minor part given.

    Formula:
      .. math:: m_i = 1 \text{ where } |s_i| \ge t, \text{ else } u_i, \quad \frac{\partial m}{\partial s} := 1

      with t the k-th smallest absolute score, :math:`k = 1 + round(sparsity\,(n - 1))`, halves to even. Scores equal to t are
      all major.

    Args:
      scores: s, float, of the shape of a weight, n entries: one array for each layer.
      uniforms: u, float of the same shape in [0, 1), constants; None (default): 0, the hard mask.
      sparsity: the share of the minor part in [0, 1], a number or a traced scalar. 0 is a mask of ones.

    Returns:
      The mask, of the shape and dtype of ``scores``. With ``uniforms`` the minor part is above 0 and below 1 in that dtype too,
      so that ``mask < 1`` names it.

    Raises:
      ValueError: if an array is not floating, the shapes differ, or ``sparsity`` is outside [0, 1] or not finite.

    Cost:
      32 counting passes over the scores instead of a sort. XLA counts the body of the loop once.
      XLA at 2 times [512, 512]: at most 8.9 times the FLOPs and 2.5 times the bytes of a copy of its arguments, and 0.28 times
      its memory more.

    Use:
      Part of: `soft_subnetwork_mask`.
      When: With uniforms of your own: to repeat a forward pass, to freeze the mask after the base stage, or to share it between
        the two passes of `sam`.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> scores, u = jnp.array([0.1, -0.4, 0.3, 0.2]), jnp.array([0.5, 0.5, 0.5, 0.25])
      >>> rj.weights.apply_soft_subnetwork_mask(scores, u, sparsity=0.5).tolist()
      [0.5, 1.0, 1.0, 0.25]

    References:
      Those of `soft_subnetwork_mask`.
    """
    name = "weights.apply_soft_subnetwork_mask"
    scores = checks.floating(name, "scores", scores)
    if uniforms is not None:
        uniforms = checks.floating(name, "uniforms", uniforms, shape=scores.shape)
    checks.number(name, "sparsity", sparsity, low=0.0, high=1.0)
    return _mask(scores, uniforms, sparsity)


def soft_subnetwork_mask(scores: Any, *, sparsity: Strength, key: Key | None = None) -> Array:
    r"""A mask that keeps the weights of the largest scores and weakens each other one at random.

    Formula:
      .. math:: m_i = 1 \text{ where } |s_i| \ge t, \text{ else } u_i \sim U(0, 1), \quad \frac{\partial m}{\partial s} := 1

      with t as in `apply_soft_subnetwork_mask`. A layer computes with ``w * mask``. In the base stage w and s are trained
      together: with the hard mask first, and with a new key in each forward pass in the last epochs (the authors: from epoch 200
      of 240). Then the mask is frozen, and each later stage of few examples trains the minor weights of some layers,
      ``gradients.train_only(optimizer, minor)`` with ``minor = mask < 1``, and classifies by the nearest class mean.

    Args:
      scores: s, float, of the shape of a weight, n entries: one array for each layer.
      sparsity: the share of the minor part in [0, 1], a number or a traced scalar; the authors take 0.03 to 0.5. 0 is a mask
        of ones.
      key: a random key for the minor part; None (default): the hard mask, 0 there.

    Returns:
      The mask, of the shape and dtype of ``scores``; the minor part of a soft one is above 0 and below 1.

    Raises:
      ValueError: if ``scores`` is not floating, ``sparsity`` is outside [0, 1] or not finite, or ``key`` is no key.

    Cost:
      32 counting passes over the scores, and a uniform for each. XLA counts the body of the loop once.
      XLA at [512, 512]: at most 75 times the FLOPs and 13 times the bytes of a copy of its arguments, and 2.3 times its memory
      more.

    Use:
      For: forgetting, few labels, sparsity budget.
      When: Few-shot classes join after a base stage: only the minor weights train then. On digits it ended above the hard mask
        and forgot less than training all weights. As a hard mask it is a fair pruning during training.
      Not when: Later tasks have much data, for which the minor part is small; at 98 % sparsity `prune` and
        `hypersparse_penalty` kept more.
      Badly with: Masked gradients under weight decay or momentum: use `train_only` with ``mask < 1``. A new key in each forward
        pass after the base stage, where the mask must be frozen; soft masks at test.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> scores = jnp.array([0.1, -0.4, 0.3, 0.2])
      >>> rj.weights.soft_subnetwork_mask(scores, sparsity=0.5).tolist()
      [0.0, 1.0, 1.0, 0.0]
      >>> soft = rj.weights.soft_subnetwork_mask(scores, sparsity=0.5, key=jax.random.key(0))
      >>> ((0 < soft) & (soft < 1)).tolist()
      [True, False, False, True]

      In an NNX model, the kernels are multiplied in a functional call, with ``graphdef, params = nnx.split(model, nnx.Param)``:
      ``nnx.merge(graphdef, jax.tree.map(lambda w, s: w * soft_subnetwork_mask(s, sparsity=0.1), params, scores))(x)``.

    References:
      Kang et al., On the Soft-Subnetwork for Few-shot Class Incremental Learning, 2022, arXiv 2209.07529 (the number is
      unverified; the authors' code for the mask). The authors' optimiser for the later stages adds to a copy of the weights,
      which has no effect: ``gradients.train_only`` does what the paper says.
    """
    name = "weights.soft_subnetwork_mask"
    scores = checks.floating(name, "scores", scores)
    checks.number(name, "sparsity", sparsity, low=0.0, high=1.0)
    if key is None:
        return _mask(scores, None, sparsity)
    here = sharding.explicit_sharding(scores)
    return _mask(scores, jax.random.uniform(checks.key(name, key), scores.shape, jnp.float32, out_sharding=here), sparsity)


def _mask(scores: Array, uniforms: Array | None, sparsity: Any) -> Array:
    if not scores.size:
        return scores
    n, dtype = scores.size, scores.dtype
    magnitude = jnp.abs(scores).astype(trees.accumulator(scores))
    below: Any = 0
    if isinstance(sparsity, jax.Array):
        below = jnp.round(sparsity.astype(magnitude.dtype) * (n - 1)).astype(jnp.int32)
    else:
        below = round(float(sparsity) * (n - 1))
    major = magnitude >= selection.kth_largest([magnitude], n - below)
    if uniforms is None:
        value = major.astype(dtype)
    else:
        # A number next to 1 would round to it in bfloat16.
        info = jnp.finfo(dtype)
        minor = jnp.clip(jax.lax.stop_gradient(uniforms).astype(dtype), info.tiny, 1 - info.epsneg)
        value = jnp.where(major, jnp.ones((), dtype), sharding.placed_like(minor, scores))
    return straight_through(value, scores)
