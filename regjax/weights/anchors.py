"""Penalties on the distance from the weights at initialisation."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from regjax.core import checks, sharding, trees
from regjax.core.types import Array, PyTree, Where


class SortedInit(NamedTuple):
    """Initial weights, each floating leaf flat and in rising order: what `wasserstein_to_init` compares with."""

    values: PyTree


def sorted_init(params: PyTree) -> SortedInit:
    r"""The weights of each leaf in rising order, sorted once for all steps.

    Formula:
      ``sort(flatten(w))`` for every floating leaf; other leaves pass.

    Args:
      params: the parameters at initialisation.

    Returns:
      A `SortedInit`, which `wasserstein_to_init` takes as ``init_params``.

    Raises:
      Nothing of its own.

    Cost:
      One sort for each leaf. Call it outside ``jit``: inside, the compiler sorts the constant itself, very slowly.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> rj.weights.sorted_init({"bias": jnp.array([2.0, 0.0, 1.0])}).values["bias"].tolist()
      [0.0, 1.0, 2.0]

    References:
      See `wasserstein_to_init`.
    """

    def leaf(x: Any) -> Any:
        return jnp.sort(sharding.replicate(jnp.asarray(x)).ravel()) if trees.is_float(x) else x

    return SortedInit(jax.tree.map(leaf, params))


def wasserstein_to_init(
    params: PyTree,
    init_params: PyTree | SortedInit,
    *,
    p: int = 2,
    where: Where = "all",
    reduction: str = "sum",
) -> Array:
    r"""The Wasserstein distance between the distributions of a layer's weights now and at initialisation.

    Formula:
      .. math:: \sum_{leaves} \sum_i |w_{(i)} - w^0_{(i)}|^p

      :math:`w_{(i)}` is the i-th smallest weight of a leaf. Weights may trade places at no cost, unlike with a penalty on
      ``w - w0``. The gradient for p = 2 is ``2 (w - t)``, t the initial weight of the same rank; the ranks and
      ``init_params`` are constant.

    Args:
      params: a parameter tree.
      init_params: the parameters at initialisation, or better ``sorted_init(...)`` of them, sorted already.
        ``partial(wasserstein_to_init, init_params=...)`` is a penalty ``f(params) -> scalar``.
      p: 1 or 2, default 2.
      where: which leaves: "all" (default), None or "kernels", a predicate ``(path, leaf) -> bool``, or a tree of booleans.
      reduction: ``"sum"`` (default) or ``"mean"`` over the entries of a leaf; leaves are summed.

    Returns:
      A scalar in float32 or better.

    Raises:
      ValueError: if the trees differ in structure or shape, or an option is unknown.

    Cost:
      One sort of each leaf and step. On an Explicit mesh, sharded leaves are gathered.

    Example:
      >>> import functools, jax.numpy as jnp, regjax as rj
      >>> start = rj.weights.sorted_init({"bias": jnp.array([0.0, 0.0, 3.0])})
      >>> penalty = functools.partial(rj.weights.wasserstein_to_init, init_params=start)
      >>> float(penalty({"bias": jnp.array([1.0, 3.0, 2.0])}))
      5.0

    References:
      Lewandowski et al., Learning Continually by Spectral Regularization, 2024, arXiv 2406.06811 (its first version). For
      p = 2 the value is the squared distance times the number of weights.
    """
    name = "weights.wasserstein_to_init"
    checks.choice(name, "p", p, (1, 2))
    checks.choice(name, "reduction", reduction, ("sum", "mean"))
    if isinstance(init_params, SortedInit):
        flat = jax.tree.map(lambda x: jax.ShapeDtypeStruct((jnp.size(x),) if trees.is_float(x) else jnp.shape(x), int), params)
        checks.same_structure(name, "init_params", init_params.values, flat, "params, leaves flat")
    else:
        checks.same_structure(name, "init_params", init_params, params, "params")
        init_params = sorted_init(init_params)
    mask = trees.select(name, params, where)

    total = jnp.zeros((), jnp.float32)
    for w, values, use in zip(*map(jax.tree.leaves, (params, init_params.values, mask)), strict=True):
        if not use:
            continue
        if not trees.is_float(w):
            checks.fail(name, "where", "a choice of floating-point leaves", w)
        x = sharding.replicate(jnp.asarray(w)).ravel()
        x = x.astype(trees.accumulator(x))
        # The target of each weight by its rank: unlike a sort, it leaves no gather to differentiate.
        ranks = jnp.argsort(jax.lax.stop_gradient(x))
        target = jnp.zeros_like(x).at[ranks].set(jax.lax.stop_gradient(values).astype(x.dtype), unique_indices=True)
        distance = jnp.abs(x - target) if p == 1 else jnp.square(x - target)
        total = total + (jnp.sum(distance) if reduction == "sum" else jnp.sum(distance) / max(x.size, 1))
    return total
