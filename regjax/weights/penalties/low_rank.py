"""Low-rank factors whose ranks are ordered by importance: the lasso that orders them, their importance, and their removal.

A kernel is a product ``u v``; rank i is the column ``u[..., i]`` with the row ``v[i]``. `regjax.layers.OrderedDense` and its
kin hold such pairs and train them.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from regjax.core import checks, sharding, trees
from regjax.core.types import Array, PyTree, Strength, Where


def low_rank_group_lasso(params: PyTree, *, hierarchical: bool = True, where: Where = None) -> Array:
    r"""Draws the last ranks of factored kernels to zero first, so that the ranks come out ordered by importance.

    Formula:
      .. math:: \sum_{pairs} \sum_{i = 1}^{R} \left( \|u_{:, i:}\|_F + \|v_{i:, :}\|_F \right)

      the norm of the whole tail from rank i on; without ``hierarchical`` those of the column :math:`u_{:, i}` and of the row
      :math:`v_{i, :}` alone. The gradient of a tail that is zero is 0.

    Args:
      params: a parameter tree, in which leaves named ``u`` and ``v`` side by side are a pair, as those of
        `regjax.layers.OrderedDense`: ``u [..., R]``, whose axes before the last are inputs, and ``v [R, outputs]``; where
        layers are stacked, both have the same leading axes. Or a tuple ``(u, v)``, or a list of such tuples.
      hierarchical: whether the norms are of tails (default) or of single ranks, which orders nothing by itself.
      where: narrows the choice, by a predicate ``(path, leaf) -> bool`` or a tree of booleans: a pair counts where both of
        its leaves are chosen.

    Returns:
      A scalar in float32 or better; 0 where there is no pair. The strength is the caller's: 1e-6 to 1e-4.

    Raises:
      ValueError: if a pair's shapes do not fit, ``hierarchical`` is no bool, or ``where`` is wrong.

    Cost:
      One pass over the factors each way; no forward pass. The axis of ranks is gathered where it is sharded.
      XLA at 8 times [512, 64]: at most 3.4 times the FLOPs and 1.7 times the bytes of a copy of its arguments, and 0.01 times
      its memory more.

    Use:
      For: sparsity budget, compute budget.
      When: Layers are factored (`OrderedDense`, `OrderedConv`) and their ranks should be found in training: with sampled ranks
        (`sample_rank`) the order comes from the loss, this then empties the tails. Start near 1e-6.
      Not when: Kernels are not factored: use `nuclear_norm` or `prox_nuclear`. At the 5e-3 that the authors' option defaults to
        it is too strong.
      Badly with: Weight decay on both factors, which is itself a penalty on the rank; factors initialised at 0, which never
        move; ``hierarchical=False`` where ranks have to come out ordered.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> u, v = jnp.array([[3.0, 0.0], [4.0, 1.0]]), jnp.array([[1.0, 2.0], [2.0, 0.0]])
      >>> round(float(rj.weights.low_rank_group_lasso((u, v))), 4)
      11.099
      >>> round(float(rj.weights.low_rank_group_lasso({"layer": {"u": u, "v": v}}, hierarchical=False)), 4)
      10.2361

    References:
      Horvath et al., Maestro: Uncovering Low-Rank Structures via Trainable Decomposition, 2024, arXiv 2308.14929. The authors'
      script takes strength 1e-6; their option's default of 5e-3 is too strong.
    """
    name = "weights.low_rank_group_lasso"
    checks.boolean(name, "hierarchical", hierarchical)
    total = jnp.zeros((), jnp.float32)
    for u, v in _pairs(name, params, where):
        total = total + jnp.sum(_norm_u(u, v, hierarchical)) + jnp.sum(_norm_v(v, hierarchical))
    return total


def rank_importance(u: Any, v: Any, *, hierarchical: bool = True) -> Array:
    r"""How much every rank of a factored kernel matters.

    Formula:
      .. math:: \|u_{:, i:}\|_F \, \|v_{i:, :}\|_F

      of the tails from rank i on, which never grows with i; without ``hierarchical`` of column and row i alone: right after
      `regjax.layers.svd_factorize` the singular values.

    Args:
      u: float ``[..., R]``; the axes before the last are inputs, but for the leading ones that ``v`` has too.
      v: float ``[R, outputs]``, or with leading axes of stacked layers.
      hierarchical: whether of tails (default) or of single ranks; the choice of the lasso in training.

    Returns:
      ``[R]``, or ``[..., R]`` for stacked layers, in float32 or better.

    Raises:
      ValueError: if shapes or dtypes do not fit, or ``hierarchical`` is no bool.

    Cost:
      One pass over the factors.
      XLA at [512, 64]: at most 2.3 times the FLOPs and 0.56 times the bytes of a copy of its arguments, and 0.01 times its
      memory more.

    Use:
      Part of: `low_rank_group_lasso`, `shrink_ranks`.
      When: To look at the ranks before choosing a threshold, or right after `svd_factorize` with ``hierarchical=False`` for the
        singular values.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> u, v = jnp.array([[3.0, 0.0], [4.0, 1.0]]), jnp.array([[1.0, 2.0], [2.0, 0.0]])
      >>> [round(float(x), 4) for x in rj.weights.rank_importance(u, v)]
      [15.2971, 2.0]

    References:
      Horvath et al., Maestro: Uncovering Low-Rank Structures via Trainable Decomposition, 2024, arXiv 2308.14929.
    """
    name = "weights.rank_importance"
    checks.boolean(name, "hierarchical", hierarchical)
    u, v = _factors(name, u, v)
    return _norm_u(u, v, hierarchical) * _norm_v(v, hierarchical)


def shrink_ranks(u: Any, v: Any, *, threshold: Strength = 1e-5, hierarchical: bool = True) -> Array:
    r"""Which ranks of a factored kernel still live: progressive shrinking, once an epoch say.

    Formula:
      .. math:: alive_i = [importance_i \ge threshold]

      with `rank_importance` of all weights, also of ranks that were dead before: the lasso goes on shrinking those.

    Args:
      u: float ``[..., R]``, as in `rank_importance`.
      v: float ``[R, outputs]``.
      threshold: at least 0, default 1e-5; 0 keeps every rank.
      hierarchical: as in `rank_importance`; then the living ranks are the first ones.

    Returns:
      Boolean ``[R]``, or ``[..., R]`` for stacked layers: the mask ``alive`` of `regjax.layers.ordered_dense`.

    Raises:
      ValueError: if shapes or dtypes do not fit, or ``threshold`` is negative or not finite.

    Cost:
      That of `rank_importance`.
      XLA at [512, 64]: at most 2.3 times the FLOPs and 0.56 times the bytes of a copy of its arguments, and 0.01 times its
      memory more.

    Use:
      Part of: `low_rank_group_lasso`, `OrderedDense`.
      When: Once an epoch, to set the mask ``alive`` of the layer; with the ``hierarchical`` of the lasso in training. The
        default threshold presumes that the lasso has driven tails close to 0.
      Badly with: Training without the lasso: weights of the tails then stay above any small threshold. Batch statistics belong
        to the ranks they were gathered at.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> u, v = jnp.array([[3.0, 0.0], [4.0, 1e-9]]), jnp.array([[1.0, 2.0], [2.0, 0.0]])
      >>> rj.weights.shrink_ranks(u, v).tolist()
      [True, False]

    References:
      Horvath et al., Maestro: Uncovering Low-Rank Structures via Trainable Decomposition, 2024, arXiv 2308.14929.
    """
    name = "weights.shrink_ranks"
    checks.boolean(name, "hierarchical", hierarchical)
    u, v = _factors(name, u, v)
    checks.number(name, "threshold", threshold, low=0.0)
    importance = _norm_u(u, v, hierarchical) * _norm_v(v, hierarchical)
    return importance >= jnp.asarray(threshold, importance.dtype)


def fold_ranks(u: Any, v: Any, alive: Any = None) -> tuple[Array, ...]:
    r"""Drops dead ranks for good: smaller factors, or one dense kernel where that is no larger.

    Formula:
      .. math:: (u_{:, alive}, v_{alive, :}) \quad or \quad u_{:, alive} v_{alive, :}
                \quad where \quad (inputs + outputs) R_{alive} \ge inputs \cdot outputs

    Args:
      u: float ``[..., R]``: a dense factor ``[inputs, R]`` or the kernel of a convolution ``[kh, kw, channels, R]``, whose
        inputs are kh kw channels.
      v: float ``[R, outputs]``.
      alive: boolean ``[R]``, concrete since it decides shapes; None (default) keeps all.

    Returns:
      The kernels to apply in turn: ``(u, v)`` with the living ranks, or ``(kernel,)`` of shape ``[..., outputs]``, in the
      dtype of the factors. Where no rank lives one of zeros stays, so that no array is empty.

    Raises:
      ValueError: if shapes or dtypes do not fit, or ``alive`` is traced.

    Cost:
      One matrix product at most, outside of training: the shapes depend on the values, so it does not compile.
      XLA at [512, 384]: at most 0.86 times the FLOPs and 2.2 times the bytes of the product of the matrices, and 0.52 times its
      memory more.

    Use:
      Part of: `low_rank_group_lasso`, `OrderedDense`.
      When: Once after training, outside ``jit``, with the mask of `shrink_ranks`; it gives one dense kernel back where two
        factors would be no smaller.
      Badly with: Optimiser states and batch statistics of the old shapes.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> u, v = jnp.ones((8, 4)), jnp.ones((4, 8))
      >>> [kernel.shape for kernel in rj.weights.fold_ranks(u, v, jnp.arange(4) < 2)]
      [(8, 2), (2, 8)]
      >>> [kernel.shape for kernel in rj.weights.fold_ranks(u, v)]
      [(8, 8)]

    References:
      Horvath et al., Maestro: Uncovering Low-Rank Structures via Trainable Decomposition, 2024, arXiv 2308.14929.
    """
    name = "weights.fold_ranks"
    u = checks.floating(name, "u", u, min_ndim=2)
    v = checks.floating(name, "v", v, shape=(u.shape[-1], None))
    ranks = np.ones(u.shape[-1], bool)
    if alive is not None:
        with jax.ensure_compile_time_eval():
            mask = checks.example_mask(name, "alive", alive, ranks.shape)
        ranks = checks.concrete(name, "alive", mask, "since it decides the shapes of the result")
    indices = np.flatnonzero(ranks)
    if not indices.size:
        return jnp.zeros_like(u[..., :1]), jnp.zeros_like(v[:1])
    u, v = u[..., indices], v[indices]
    inputs, outputs = u.size // indices.size, v.shape[-1]
    if (inputs + outputs) * indices.size < inputs * outputs:
        return u, v
    dtype = trees.accumulator(u, v)
    kernel = jnp.matmul(u.astype(dtype), v.astype(dtype), precision=jax.lax.Precision.HIGHEST)
    return (kernel.astype(jnp.result_type(u, v)),)


def _pairs(name: str, params: PyTree, where: Where) -> list[tuple[Array, Array]]:
    """The factor pairs of a tree, or those given as tuples."""
    chosen = jax.tree.leaves(trees.select(name, params, where))
    given = [params] if _is_pair(params) else params
    if isinstance(given, list | tuple) and given and all(_is_pair(pair) for pair in given):
        return [_factors(name, *pair) for i, pair in enumerate(given) if chosen[2 * i] and chosen[2 * i + 1]]
    sides: dict[tuple[str, ...], dict[str, Any]] = {}
    for (path, leaf), use in zip(jax.tree_util.tree_flatten_with_path(params)[0], chosen, strict=True):
        *parent, last = trees.path_names(path) or ("",)
        if use and last in ("u", "v"):
            sides.setdefault(tuple(parent), {})[last] = leaf
    return [_factors(name, pair["u"], pair["v"], parent) for parent, pair in sides.items() if len(pair) == 2]


def _is_pair(pair: Any) -> bool:
    """A tuple of two arrays of two or more dimensions; two kernels in a list are a tree like any other."""
    return (
        isinstance(pair, tuple)
        and not hasattr(pair, "_fields")
        and len(pair) == 2
        and all(isinstance(x, jax.Array | np.ndarray) and x.ndim >= 2 for x in pair)
    )


def _factors(name: str, u: Any, v: Any, parent: tuple[str, ...] = ()) -> tuple[Array, Array]:
    """Checked factors in float32 or better."""
    at = f" at {'/'.join(parent)}" if parent else ""
    u = checks.floating(name, f"u{at}", u, min_ndim=2)
    v = checks.floating(name, f"v{at}", v, min_ndim=2)
    stacked = v.ndim - 2
    if u.shape[-1] != v.shape[-2] or u.shape[:stacked] != v.shape[:stacked] or u.ndim < stacked + 2:
        shape = [*u.shape[:stacked], u.shape[-1], "outputs"]
        checks.fail(name, f"v{at}", f"of shape {shape}, a factor beside u of shape {list(u.shape)}", v)
    return u.astype(trees.accumulator(u)), v.astype(trees.accumulator(v))


def _norm_u(u: Array, v: Array, hierarchical: bool) -> Array:
    return _norms(jnp.sum(jnp.square(u), axis=tuple(range(v.ndim - 2, u.ndim - 1))), hierarchical)


def _norm_v(v: Array, hierarchical: bool) -> Array:
    return _norms(jnp.sum(jnp.square(v), axis=-1), hierarchical)


def _norms(squares: Array, hierarchical: bool) -> Array:
    """The norm of every rank, or of the tail that starts at it, from the sums of squares ``[..., R]``."""
    if hierarchical:
        # Sums of what follows, not the total less what precedes: a small tail must not drown in rounding.
        squares = jax.lax.cumsum(sharding.replicate(squares), axis=squares.ndim - 1, reverse=True)
    return trees.safe_sqrt(squares)
