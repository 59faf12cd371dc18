"""The scaling law of sparsely connected networks: loss from sparsity, non-zero parameters and data."""

import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from regjax.core import checks, trees
from regjax.core.types import Array


class SparseScaling(NamedTuple):
    """The seven coefficients of `sparse_scaling_law`, all positive."""

    a_s: Any
    b_s: Any
    c_s: Any
    b_n: Any
    a_d: Any
    b_d: Any
    c: Any


SPARSE_SCALING_T5 = SparseScaling(16.8, 0.722, 45.0, 0.245, 6.90e8, 0.203, 0.651)
"""T5 on C4; data in tokens."""

SPARSE_SCALING_VIT = SparseScaling(294.0, 0.821, 468.0, 0.392, 2.37e8, 0.890, 4.517)
"""ViT on JFT-4B; data in images."""

# Where the fit starts from: exponents of sparsity, parameters and data, and the share of the loss that no scale removes.
_STARTS = list(itertools.product((0.3, 1.0), (0.15, 0.4), (0.15, 0.6), (0.1, 0.5, 0.9)))
_STEPS, _MOST_MOVE = 100, 2.0


def sparse_scaling_law(sparsity: Any, nonzero_params: Any, data: Any, coeffs: SparseScaling) -> Array:
    r"""The loss that a sparse network reaches, from its sparsity, its non-zero parameters and its training data.

    Formula:
      .. math:: L(S, N, D) = \left( a_S (1 - S)^{b_S} + c_S \right) N^{-b_N} + \left( a_D / D \right)^{b_D} + c

      At S = 0 the law of dense networks; at fixed N a sparser, hence wider, network is better.

    Args:
      sparsity: S, in [0, 1): the share of weights that are zero.
      nonzero_params: N, above 0: the weights that are not.
      data: D, above 0: tokens or images seen in training.
      coeffs: the seven coefficients, a `SparseScaling` such as `fit_sparse_scaling_law` returns, or the published
        ``SPARSE_SCALING_T5`` and ``SPARSE_SCALING_VIT``.

    Returns:
      The loss, in the common shape of the three, which are numbers or arrays that broadcast; in float32 or better.

    Raises:
      ValueError: if a number lies outside its range, the arrays do not broadcast, or ``coeffs`` are not seven.

    Cost:
      Three powers for each value.
      XLA at 3 times [27]: at most 3.3 times the FLOPs and 0.71 times the bytes of a copy of its arguments, and 0 times its
      memory more.

    Use:
      For: compute budget, sparsity budget.
      When: Plans for T5- or ViT-like pretraining: what a sparse network of N kept weights would reach beside a dense one of as
        many. For anything else fit coefficients first.
      Not when: Fine-tuning, small data seen many times, or structured sparsity, none of which it was made from. The stored
        coefficients are unverified.
      Badly with: N as the size of the dense network: it counts non-zero weights. Sparsities far above those of the fit, as it
        has no term for a collapse.

    Example:
      >>> import regjax as rj
      >>> law = rj.diagnostics.sparse_scaling_law([0.0, 0.75], 1e8, 1e10, rj.diagnostics.SPARSE_SCALING_T5)
      >>> [round(float(x), 4) for x in law]
      [1.9098, 1.7933]

    References:
      Frantar et al., Scaling Laws for Sparsely-Connected Foundation Models, 2023, arXiv 2309.08520. The form is confirmed by
      a second source; the two sets of coefficients are unverified.
    """
    name = "diagnostics.sparse_scaling_law"
    s = _values(name, "sparsity", sparsity, share=True)
    n, d = (_values(name, argument, value) for argument, value in (("nonzero_params", nonzero_params), ("data", data)))
    terms = _coefficients(name, coeffs)
    try:
        np.broadcast_shapes(s.shape, n.shape, d.shape)
    except ValueError:
        checks.fail(name, "data", f"of a shape that broadcasts with {list(s.shape)} and {list(n.shape)}", d)
    return _law(s, n, d, terms)


def fit_sparse_scaling_law(sparsity: Any, nonzero_params: Any, data: Any, losses: Any, *, delta: Any = 1e-3) -> SparseScaling:
    r"""Fits the scaling law of sparse networks to the losses of a set of runs.

    Formula:
      .. math:: \min \sum_r Huber_\delta \left( \log L(S_r, N_r, D_r) - \log L_r \right)

      over the logarithms of the seven coefficients, so that all are positive.

    Args:
      sparsity: ``[R]``, in [0, 1): S of each run; at least two values are needed to tell its exponent.
      nonzero_params: ``[R]``, above 0: N.
      data: ``[R]``, above 0: D.
      losses: ``[R]``, above 0: what each run reached. At least 7 runs.
      delta: the difference of logarithms from which on an error counts linearly; above 0, default 1e-3.

    Returns:
      The coefficients, a `SparseScaling` of scalars in float32 or better, of the best of 24 starts. No gradient flows.

    Raises:
      ValueError: if a number lies outside its range, shapes differ, or there are fewer than 7 runs.

    Cost:
      100 damped Gauss-Newton steps from each start, all compiled into one program of 7 x 7 systems. XLA counts the body of the
      loop once.
      XLA at 4 times [27]: at most 4,100 times the FLOPs and 320 times the bytes of a copy of its arguments, and 91 times its
      memory more.

    Use:
      Part of: `sparse_scaling_law`, `optimal_sparsity`.
      When: A grid of own runs, at least three values each of sparsity, size and data, each trained to its end by one recipe.
        Hold the largest runs out to judge it.
      Badly with: Runs stopped early or with a schedule for another length. One value of data or sparsity, which leaves its
        terms undetermined.

    Example:
      >>> import numpy as np, regjax as rj
      >>> s, n, d = (x.ravel() for x in np.meshgrid([0.0, 0.5, 0.75], [1e6, 1e7, 1e8], [1e9, 1e10, 1e11]))
      >>> losses = rj.diagnostics.sparse_scaling_law(s, n, d, rj.diagnostics.SPARSE_SCALING_T5)
      >>> coeffs = rj.diagnostics.fit_sparse_scaling_law(s, n, d, losses)
      >>> round(float(coeffs.b_n), 3), round(float(coeffs.b_d), 3)
      (0.245, 0.203)

    References:
      Frantar et al., Scaling Laws for Sparsely-Connected Foundation Models, 2023, arXiv 2309.08520. The paper minimises by BFGS
      from many starts; reweighted Gauss-Newton steps reach the same minimum, in float32 closer to it. Coefficients trade
      against each other: judge a fit by its predictions, beyond the runs it saw.
    """
    name = "diagnostics.fit_sparse_scaling_law"
    loss = _values(name, "losses", losses)
    if loss.ndim != 1 or loss.size < 7:
        checks.fail(name, "losses", "an array [R] of at least 7 runs", loss)
    s = _values(name, "sparsity", sparsity, share=True)
    n, d = (_values(name, argument, value) for argument, value in (("nonzero_params", nonzero_params), ("data", data)))
    for argument, value in (("sparsity", s), ("nonzero_params", n), ("data", d)):
        checks.array(name, argument, value, shape=loss.shape)
    checks.number(name, "delta", delta, low=0.0, open_low=True)
    dtype = trees.accumulator(s, n, d, loss)
    s, n, d, loss = (jax.lax.stop_gradient(x).astype(dtype) for x in (s, n, d, loss))
    # Around the middle of the runs, with the middle loss as the unit, all seven numbers are of the size of 1.
    middle = [jnp.mean(jnp.log(x)) for x in (n, d, loss)]
    features = (jnp.log1p(-s), *(jnp.log(x) - m for x, m in zip((n, d), middle[:2], strict=True)))
    target = jnp.log(loss) - middle[2]
    starts = np.log([[(1 - f) / 6, bs, (1 - f) / 3, bn, (1 - f) / 2, bd, f] for bs, bn, bd, f in _STARTS])
    ends, errors = jax.vmap(lambda start: _descend(start, features, target, jnp.asarray(delta, dtype)))(
        jnp.asarray(starts, dtype)
    )
    best = jnp.sum(jnp.where(jnp.arange(len(starts))[:, None] == jnp.argmin(errors), ends, 0), axis=0)
    a_s, b_s, c_s, b_n, data_term, b_d, c = best
    log_n, log_d, log_loss = middle
    most = jnp.log(jnp.finfo(dtype).max) - 1
    a_d = jnp.clip(log_d + (data_term + log_loss) / jnp.exp(b_d), -most, most)  # a tiny exponent would overflow
    scale = log_n * jnp.exp(b_n) + log_loss
    return SparseScaling(*map(jnp.exp, (a_s + scale, b_s, c_s + scale, b_n, a_d, b_d, c + log_loss)))


def optimal_sparsity(nonzero_params: Any, compute: Any, coeffs: SparseScaling, *, grid: Any = None) -> Array:
    r"""The sparsity at which a given number of non-zero parameters and a given training compute reach the lowest loss.

    Formula:
      .. math:: \arg\min_S L\left( S, N, \frac{C}{6 N c(S)} \right), \quad
                c(S) = \frac{0.25 + 0.5 (1 - 0.75 S)}{1 - S} + 0.25

      c is the training cost of each non-zero parameter relative to dense training, where a quarter of the steps is dense, half
      of them prune along a cubic ramp, and the last quarter is at sparsity S.

    Args:
      nonzero_params: N, above 0.
      compute: C, above 0: the training's operations, in units in which a dense step on one unit of data takes 6 N.
      coeffs: the coefficients of `sparse_scaling_law`.
      grid: ``[M]``, the sparsities to try, in [0, 1); default 0, 0.01, ..., 0.99.

    Returns:
      The best S of the grid, the first of equal ones, in the common shape of N and C; in float32 or better.

    Raises:
      ValueError: if a number lies outside its range, the arrays do not broadcast, or ``coeffs`` are not seven.

    Cost:
      M evaluations of the law.
      XLA at 2 times [100]: at most 830 times the FLOPs and 3.9 times the bytes of a copy of its arguments, and 0.93 times its
      memory more.

    Use:
      For: compute budget, sparsity budget.
      When: Inference size is fixed and training compute is to be spent: the authors report that sparser is better the longer
        one trains. Use it with a law fitted to the task.
      Not when: Hardware does not profit from sparse weights: the count of kept weights is then no cost. Training is not gradual
        pruning, whose cost model is built in.
      Badly with: A mask fixed from the start, which costs less than the model says. Compute in other units than 6 operations
        for a weight and token.

    Example:
      >>> import regjax as rj
      >>> best = rj.diagnostics.optimal_sparsity(1e8, [1e17, 1e19, 1e21], rj.diagnostics.SPARSE_SCALING_T5)
      >>> [round(float(s), 2) for s in best]
      [0.17, 0.59, 0.82]

    References:
      Frantar et al., Scaling Laws for Sparsely-Connected Foundation Models, 2023, arXiv 2309.08520: the best sparsity grows
      with the data for each parameter. The cost model is unverified.
    """
    name = "diagnostics.optimal_sparsity"
    n = _values(name, "nonzero_params", nonzero_params)
    compute = _values(name, "compute", compute)
    terms = _coefficients(name, coeffs)
    s = _values(name, "grid", np.arange(100) / 100 if grid is None else grid, share=True)
    if s.ndim != 1 or s.size < 1:
        checks.fail(name, "grid", "an array [M] of one or more sparsities", s)
    try:
        np.broadcast_shapes(n.shape, compute.shape)
    except ValueError:
        checks.fail(name, "compute", f"of a shape that broadcasts with {list(n.shape)}", compute)
    n, compute = jnp.broadcast_arrays(n, compute)
    n, compute = n[..., None], compute[..., None]
    best = jnp.argmin(_law(s, n, compute / (6 * n) / training_cost(s), terms), axis=-1)
    return s[best]


def training_cost(sparsity: Array) -> Array:
    """The cost of gradual pruning for each non-zero parameter, relative to dense training."""
    return (0.25 + 0.5 * (1 - 0.75 * sparsity)) / (1 - sparsity) + 0.25


def _law(s: Array, n: Array, d: Array, coeffs: SparseScaling) -> Array:
    # By logarithms: the ratio of data to its coefficient may be beyond float16, and a power of it beyond float32.
    dtype = trees.accumulator(s, n, d, *coeffs)
    s, n, d = (x.astype(dtype) for x in (s, n, d))
    t = SparseScaling(*(x.astype(dtype) for x in coeffs))
    size = (t.a_s * (1 - s) ** t.b_s + t.c_s) * jnp.exp(-t.b_n * jnp.log(n))
    return size + jnp.exp(t.b_d * (jnp.log(t.a_d) - jnp.log(d))) + t.c


def _descend(start: Array, features: tuple[Array, ...], target: Array, delta: Array) -> tuple[Array, Array]:
    """The end of damped, reweighted Gauss-Newton steps, and its error."""

    def residuals(t: Array) -> Array:
        e = jnp.exp(t)
        left, n, d = features
        law = (e[0] * jnp.exp(e[1] * left) + e[2]) * jnp.exp(-e[3] * n) + e[4] * jnp.exp(-e[5] * d) + e[6]
        return jnp.log(law) - target

    def error(t: Array) -> Array:
        size = jnp.abs(residuals(t))
        # In units of delta, so that the sum is no number whose square is lost in float32.
        near = jnp.minimum(size, delta) / delta
        return jnp.sum(0.5 * near**2 + jnp.maximum(size / delta - 1, 0))

    def step(carry: Any, _: None) -> tuple[Any, None]:
        t, damping, now = carry
        r, jacobian = residuals(t), jax.jacfwd(residuals)(t)
        weights = 1 / jnp.maximum(1, jnp.abs(r) / delta)
        curvature = (jacobian * weights[:, None]).T @ jacobian
        diagonal = jnp.diag(curvature)
        # A share of the mean keeps directions that the runs say nothing of (one sparsity only) from running away.
        ridge = damping * (diagonal + 1e-6 * jnp.mean(diagonal) + jnp.finfo(t.dtype).tiny)
        move = jnp.linalg.solve(curvature + jnp.diag(ridge), -jacobian.T @ (weights * r))
        tried = t + jnp.clip(move, -_MOST_MOVE, _MOST_MOVE)
        then = error(tried)
        better = then < now  # false where the step left the finite numbers
        damping = jnp.clip(jnp.where(better, damping / 3, damping * 4), 1e-7, 1e7)
        return (jnp.where(better, tried, t), damping, jnp.where(better, then, now)), None

    first = (start, jnp.asarray(1e-2, start.dtype), error(start))
    (end, _, last), _ = jax.lax.scan(step, first, None, length=_STEPS)
    return end, jnp.where(jnp.isnan(last), jnp.inf, last)


def _values(name: str, argument: str, value: Any, *, share: bool = False) -> Array:
    """Numbers or an array in float32 or better; those on the host are checked by value: above 0, or in [0, 1) for a share."""
    expected = "in [0, 1)" if share else "above 0"
    if isinstance(value, jax.Array):
        if not (jnp.issubdtype(value.dtype, jnp.floating) or jnp.issubdtype(value.dtype, jnp.integer)):
            checks.fail(name, argument, f"numbers {expected}", value)
        return value.astype(trees.accumulator(value))
    try:
        known = np.asarray(value)
        wide = known.astype(np.float64) if known.dtype.kind in "iuf" or known.dtype == jnp.bfloat16 else None
    except (TypeError, ValueError):
        wide = None
    if wide is None:
        checks.fail(name, argument, f"numbers {expected}", value)
    inside = np.isfinite(wide) & ((wide >= 0) & (wide < 1) if share else wide > 0)
    if not np.all(inside):
        checks.fail(name, argument, f"finite numbers {expected}", wide[~inside].flat[0].item())
    return jnp.asarray(wide, jnp.result_type(float) if known.dtype == np.float64 or known.dtype.kind in "iu" else jnp.float32)


def _coefficients(name: str, coeffs: Any) -> SparseScaling:
    if not isinstance(coeffs, tuple | list) or len(coeffs) != 7:
        checks.fail(name, "coeffs", "the seven coefficients of a SparseScaling", coeffs)
    for field, value in zip(SparseScaling._fields, coeffs, strict=True):
        checks.number(name, f"coeffs.{field}", value, low=0.0)
    # Coefficients on the device keep their dtype; numbers take the default one, float64 where JAX has it.
    return SparseScaling(*(x if isinstance(x, jax.Array) else jnp.asarray(x, jnp.result_type(float)) for x in coeffs))
