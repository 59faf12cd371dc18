"""The proximal operator of the group sparse envelope."""

from typing import Any

import jax
import jax.numpy as jnp

from regjax.core import checks
from regjax.core.selection import largest_float
from regjax.core.types import Array, PyTree, Strength, Where
from regjax.weights import group_tables


def prox_wgsef(
    params: PyTree, step: Strength, k: Strength, *, groups: Any = "out", group_weights: Any = None, where: Where = None
) -> PyTree:
    r"""The proximal operator of `wgsef`: most groups beyond the k largest become zero, the largest shrink in proportion.

    Formula:
      .. math:: w_j \leftarrow w_j \frac{u_j}{u_j + t d_j}, \quad u_j = clip(\alpha \sqrt{d_j} \|w_j\|_2 - t d_j, 0, 1), \quad
                \alpha : \sum_j u_j = k

      and u = 1 where at most k groups are nonzero: then it is the step of `l2`. The groups left need not be exactly k:
      `project_top_groups` after training makes them so.

    Args:
      params: a parameter tree.
      step: t, the step size times the strength of the penalty; a number or traced scalar, at least 0. 0 changes nothing.
      k: how many groups may stay free of the lasso, above 0; an integer or a fraction, a number or traced scalar. In
        ``gradients.proximal_step`` give it by ``functools.partial(prox_wgsef, k=16)``.
      groups: which weights form a group and which groups compete, as in `wgsef`; default ``"out"``.
      group_weights: d, above 0, as in `wgsef`; default 1.
      where: which leaves: None (kernels, default; with groups written out, exactly those), "all", a predicate
        ``(path, leaf) -> bool``, or a tree of booleans.

    Returns:
      The tree with the chosen leaves replaced, in their dtypes; the others are unchanged.

    Raises:
      ValueError: if ``step`` is negative, ``k`` not above 0, one of them not finite, or ``groups``, ``group_weights`` or
        ``where`` is wrong.

    Cost:
      Two passes over the weights, and 31 over the group norms. XLA counts the body of the loop once.
      XLA at 8 times [512, 512]: at most 3.4 times the FLOPs and 1.7 times the bytes of a copy of its arguments, and 0.01 times
      its memory more.

    Use:
      For: sparsity budget, noisy labels.
      When: Units should go while training and about k per layer stay at nearly full size. In `proximal_step` after SGD, then
        `project_top_groups` once. It kept more than a plain cut of 80 % of the units, and helped on noisy digits.
      Not when: You need it to beat `prox_group_lasso`: the difference was within noise on the digits. k per layer is not known:
        then the lasso has one choice less.
      Badly with: Batch normalisation behind the units; biases outside the groups; Adam, which moves by its own scale while the
        step uses the plain rate; `weights.l2` beside it, which it contains.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> kernel = jnp.array([[3.0, 1.0, 0.5, 0.2]])
      >>> [round(float(x), 4) for x in rj.weights.prox_wgsef({"kernel": kernel}, 0.5, 2)["kernel"][0]]
      [2.0, 0.625, 0.125, 0.0]

    References:
      Refael et al., Learning k-Level Structured Sparse Neural Networks Using Group Envelope Regularization, 2022, arXiv
      2212.12921 (proximal gradient steps). No code was found; the formulas are derived, and equal a numerical minimiser.
      Bisection over the bits of a float tells which groups lie between 0 and 1; they then give alpha exactly, and its
      derivative.
    """
    name = "weights.prox_wgsef"
    checks.number(name, "step", step, low=0.0)
    checks.number(name, "k", k, low=0.0, open_low=True)
    found = group_tables.find(name, params, groups, where)
    if found is None:
        return params
    dtype = found.norms.dtype
    d = jnp.where(found.real, group_tables.weights(name, found, params, group_weights), 1)
    shrink = jnp.asarray(step, dtype) * d
    u = _shares(jnp.sqrt(d) * found.norms, shrink, jnp.asarray(k, dtype))
    # Without a step the quotient would be 0 / 0 at groups of zeros.
    factors = jnp.where(shrink > 0, u / jnp.where(shrink > 0, u + shrink, 1), 1)
    return group_tables.scaled(params, found, group_tables.spread(found, factors))


def _shares(t: Array, shrink: Array, k: Array) -> Array:
    """The places ``u [R, M]`` in 0 to 1 that the groups of each row get of k; padding has ``t = 0`` and gets none."""
    shares = lambda alpha: jnp.clip(alpha * t - shrink, 0, 1)
    total = lambda u: jnp.sum(u, axis=-1, keepdims=True)
    some = t > 0
    every = total(some) <= k
    # Not a number at infinite alpha, where a condition has to be False.
    alpha = largest_float(lambda a: (total(jax.lax.stop_gradient(shares(a))) < k) & jnp.isfinite(a), t[:, :1])
    u = jax.lax.stop_gradient(shares(alpha))
    between = (u > 0) & (u < 1)
    slope, level = total(jnp.where(between, t, 0)), k - total(u == 1) + total(jnp.where(between, shrink, 0))
    exact = level / jnp.where(slope > 0, slope, 1)
    middle = jnp.clip(exact * t - shrink, 0, 1)
    return jnp.where(every, some | (t == 0), jnp.where(between, middle, u))
