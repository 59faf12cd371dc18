"""Feature gradients: gates that choose features by how well a polynomial of them tells the labels apart."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from regjax.core import checks, sharding, trees
from regjax.core.types import Array, Key, Strength

# The authors' table: for each order the coefficients of the mean products along paths of one edge, two, three ...
_COEFFICIENTS: dict[int, tuple[float, ...]] = {
    1: (0.60355337,),
    2: (1.52705001, -0.34841729),
    3: (2.90254224, -1.87216745, 0.0),
    4: (4.63445685, -5.19936195, 0.0, 1.50391676),
    5: (6.92948049, -14.12216211, 9.4475009, 0.0, -1.21093546),
    6: (9.54431082, -28.09414643, 31.84703652, -11.18763791, -1.14175281, 0.0),
}
_POWER_STEPS = 50


def learnability_loss(
    scores: Any,
    features: Any,
    labels: Any,
    *,
    order: int = 4,
    classification: bool = True,
    where: Any = None,
    axis_name: Any = None,
) -> Array:
    r"""How badly gated features tell the labels, estimated from products along paths of examples without fitting a model.

    Formula:
      .. math:: L = \frac{1}{2} \left( 1 - \sqrt{\min(\max(z, 0), 1)} \right), \quad
                z = \sum_{k=1}^{K} c_k \frac{y^T U^k y}{n_k}, \quad
                U_{ij} = [i < j] \sum_d s_d x_{id} x_{jd}, \quad s = \sigma(2 \, scores)

      and 1 - z for a regression. :math:`n_k` counts the choices of k + 1 of the N examples, so that each term is a mean over
      the paths of k steps from an example to later ones; :math:`c_k` is the authors' table for each K. For a
      classification the gradient beyond the ends of [0, 1] is constant and leads back: -0.01 by z below 0, and 0.01 above 1.

    Args:
      scores: float ``[D]``, what is trained, first 0; a feature's gate s opens as its score grows.
      features: float ``[N, D]``, x, standardised and divided by the largest singular value over the root of N, as
        `feature_gradient_scores` does.
      labels: numbers ``[N]``, y: -1 and 1, or standardised targets of a regression; or ``[N, C]``, whose columns are
        problems of their own (one class against the rest), of which the mean loss is taken. No gradient flows to them.
      order: K, from 1 to 6, default 4. From 2 on the result depends on the order of the rows: shuffle them.
      classification: whether labels are classes (default).
      where: boolean ``[N]``: the examples that count, and N counts those alone. Default all.
      axis_name: the mapped axis, or a tuple of them, over which the rows are split under ``shard_map`` or ``pmap``: the
        paths are those of the whole batch, in the order of the devices. Not needed under ``jit`` with sharded arrays.

    Returns:
      A scalar in float32 or better.

    Raises:
      ValueError: if a shape or dtype does not fit, or ``order`` is not from 1 to 6.

    Cost:
      O(K N D) for each column of labels, and K arrays of N x D numbers for the gradient; U is never built. An Explicit mesh
      gathers the rows; with ``axis_name`` K vectors of D numbers from each device are exchanged instead.
      XLA at [1024, 512]: at most 190 times the FLOPs and 47 times the bytes of a copy of its arguments, and 5.6 times its
      memory more.

    Use:
      Part of: `feature_gradient_scores`.
      When: Call it to train gates along with a model, with your own optimiser, or on features that change.
      Badly with: Unscaled features, for which the series does not hold. Sorted rows at order 2 and up: shuffle. Microbatches,
        as paths run within a batch. Penalties of other scale than its range of about [0, 0.5].

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> x, y = jnp.array([[1.0, 0.0], [-1.0, 1.0], [1.0, -1.0], [-1.0, 0.0]]), jnp.array([1.0, -1.0, 1.0, -1.0])
      >>> round(float(rj.losses.learnability_loss(jnp.zeros(2), x, y, order=2)), 4)
      0.0641

    References:
      Sheth and Fusi, Feature Gradients: Scalable Feature Selection via Discrete Relaxation, 2019, arXiv 1908.10382. The
      coefficients and the gradient beyond [0, 1] are those of the authors' code, which adds 1e-8 to the root in the
      gradient's denominator.
    """
    name = "losses.learnability_loss"
    scores = checks.floating(name, "scores", scores, ndim=1)
    features = checks.floating(name, "features", features, shape=(None, scores.shape[0]))
    labels = checks.array(name, "labels", labels)
    rows = features.shape[0]
    if labels.ndim not in (1, 2) or labels.shape[0] != rows or labels.dtype == jnp.bool_ or 0 in labels.shape[1:]:
        checks.fail(name, "labels", f"numbers of shape [{rows}] or [{rows}, C]", labels)
    checks.integer(name, "order", order, low=1, high=len(_COEFFICIENTS))
    checks.boolean(name, "classification", classification)
    counts = checks.example_mask(name, "where", where, (rows,))
    checks.axis_name(name, axis_name)
    dtype = trees.accumulator(scores, features)
    x, y = (sharding.replicate(v).astype(dtype) for v in (features, jax.lax.stop_gradient(labels)))
    count = jnp.asarray(rows, dtype)
    if counts is not None:
        counts = sharding.replicate(counts)
        x, y = jnp.where(counts[:, None], x, 0), jnp.where(counts.reshape((rows,) + (1,) * (y.ndim - 1)), y, 0)
        count = jnp.sum(counts, dtype=dtype)
    count = count if axis_name is None else jax.lax.psum(count, axis_name)
    gated = x * jax.nn.sigmoid(2 * scores.astype(dtype))
    polynomial = lambda y: _polynomial(x, gated, y, count, _COEFFICIENTS[order], axis_name)
    z = polynomial(y) if y.ndim == 1 else jax.vmap(polynomial, in_axes=1)(y)
    return jnp.mean(_classification_error(z) if classification else 1 - z)


def feature_gradient_scores(
    features: Any,
    labels: Any,
    *,
    key: Key,
    order: int = 4,
    learning_rate: Any = 0.1,
    epochs: int = 1,
    batch_size: int = 1000,
    penalty: Strength = 1.0,
    num_features: int | None = None,
    classification: bool = True,
    num_classes: int = 2,
) -> tuple[Array, Array]:
    r"""Scores features by gradient descent on their gates, and selects some.

    Formula:
      .. math:: \min_{scores} \; (1 - w) \, L(scores) + w \, \frac{1}{D} \sum_d \sigma(2 \, scores_d), \quad w = \frac{C}{C + 1}

      with L of `learnability_loss`, by Adam from scores of 0, on shuffled batches of standardised features, with gradients
      of norm 1 at most.

    Args:
      features: float ``[N, D]``, of any scale; a constant feature counts as 0.
      labels: numbers ``[N]``. Of two classes the positive numbers are one class, the others the other: ids 0 and 1, or -1
        and 1. Of more, integer class ids. Of a regression, targets of any scale.
      key: a random key: the shuffling.
      order: that of `learnability_loss`, from 1 to 6, default 4.
      learning_rate: of Adam, above 0, default 0.1, a number or a traced scalar.
      epochs: passes over the data, at least 1, default 1.
      batch_size: rows of a batch, at least 1, default 1000 or all there are; a last batch that is not full is left out.
      penalty: C, at least 0, default 1, a number or a traced scalar: more of it closes more gates. 0 is the loss alone.
      num_features: how many to select: those of the largest scores; default all whose score is not negative.
      classification: whether labels are classes (default).
      num_classes: how many, at least 2, default 2; of more than 2, each against the rest.

    Returns:
      ``(scores [D], selected [D])``: floats in float32 or better, and booleans. Where the relevant features' scores
      hover about 0, as with many irrelevant ones, better say ``num_features``.

    Raises:
      ValueError: if a shape or dtype does not fit, or a number is out of range.

    Cost:
      ``epochs`` passes of `learnability_loss`, value and gradient, and 50 products with the features for their largest singular
      value. It runs once, before training, compiles as a whole, and gathers rows that are sharded. XLA counts the body of each
      loop once.
      XLA at [4000, 512]: at most 65 times the FLOPs and 19 times the bytes of a copy of its arguments, and 2.1 times its memory
      more.

    Use:
      For: few labels, sparsity budget.
      When: Tables of many columns, most of them irrelevant, before any model is chosen: one pass ranks them. In a test on
        Gaussian data the relevant ones came first. Say ``num_features``, as scores hover about 0.
      Not when: Rows are few, some hundreds: a lasso is steadier. Columns matter only in interaction of more than low order.
        Columns are copies of each other: it has no reason to keep just one.
      Badly with: Very unequal classes, which dominate the mean products. Rows in an order of time: batches are shuffled.
        Features scaled by hand: it standardises. Choosing on all rows before a cross-validation.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> x = jax.random.normal(jax.random.key(0), (400, 4))
      >>> _, selected = rj.losses.feature_gradient_scores(
      ...     x, jnp.sign(x[:, 2]), key=jax.random.key(1), batch_size=50, num_features=1
      ... )
      >>> selected.tolist()
      [False, False, True, False]

    References:
      Sheth and Fusi, Feature Gradients: Scalable Feature Selection via Discrete Relaxation, 2019, arXiv 1908.10382; the
      settings are those of the authors' code, but for the largest singular value, here from power iteration.
    """
    name = "losses.feature_gradient_scores"
    features = checks.floating(name, "features", features, ndim=2)
    rows, dims = features.shape
    if rows < 1 or dims < 1:
        checks.fail(name, "features", "an array [N, D] of at least one row and feature", features)
    labels = checks.array(name, "labels", labels, shape=(rows,))
    checks.key(name, key)
    checks.integer(name, "order", order, low=1, high=len(_COEFFICIENTS))
    checks.number(name, "learning_rate", learning_rate, low=0.0, open_low=True)
    checks.integer(name, "epochs", epochs, low=1)
    batch = min(rows, checks.integer(name, "batch_size", batch_size, low=1))
    checks.number(name, "penalty", penalty, low=0.0)
    if num_features is not None:
        checks.integer(name, "num_features", num_features, low=0, high=dims)
    checks.boolean(name, "classification", classification)
    checks.integer(name, "num_classes", num_classes, low=2)
    if classification and num_classes > 2 and not jnp.issubdtype(labels.dtype, jnp.integer):
        checks.fail(name, "labels", f"integer class ids for {num_classes} classes", labels)
    dtype = trees.accumulator(features)
    labels = jax.lax.stop_gradient(sharding.replicate(labels))
    start_key, shuffle_key = jax.random.split(key)
    x = _prepared(start_key, jax.lax.stop_gradient(sharding.replicate(features)).astype(dtype))
    if not classification:
        y = _standardised(labels.astype(dtype)[:, None])[:, 0]
    elif num_classes == 2:
        y = jnp.where(labels > 0, 1, -1).astype(dtype)
    else:
        y = jnp.where(labels[:, None] == jnp.arange(num_classes), 1, -1).astype(dtype)
    cost = jnp.asarray(penalty, dtype)
    share = cost / (cost + 1)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(learning_rate))

    def objective(scores: Array, chosen: Array) -> Array:
        loss = learnability_loss(scores, x[chosen], y[chosen], order=order, classification=classification)
        return (1 - share) * loss + share * jnp.mean(jax.nn.sigmoid(2 * scores))

    def step(carry: Any, chosen: Array) -> tuple[Any, None]:
        scores, state = carry
        updates, state = optimizer.update(jax.grad(objective)(scores, chosen), state)
        return (optax.apply_updates(scores, updates), state), None

    def epoch(carry: Any, key: Key) -> tuple[Any, None]:
        batches = rows // batch
        shuffled = jax.random.permutation(key, rows)[: batches * batch].reshape(batches, batch)
        return jax.lax.scan(step, carry, shuffled)[0], None

    start = jnp.zeros(dims, dtype)
    (scores, _), _ = jax.lax.scan(epoch, (start, optimizer.init(start)), jax.random.split(shuffle_key, epochs))
    if num_features is None:
        return scores, scores >= 0
    return scores, jnp.zeros(dims, bool).at[jax.lax.top_k(scores, num_features)[1]].set(True)


def _polynomial(x: Array, gated: Array, y: Array, count: Array, coefficients: tuple[float, ...], axis_name: Any) -> Array:
    left = right = y
    z = jnp.zeros((), x.dtype)
    # The binomials, of the order of 1e17 for a thousand rows, are divided out factor by factor, so that nothing overflows.
    right = right / jnp.maximum(count, 1)
    for i, coefficient in enumerate(coefficients):
        if not any(coefficients[i:]):
            break
        factor = (i + 2) / jnp.maximum(count - i - 1, 1)
        # (U r)_i = s x_i . sum_{j > i} x_j r_j, and likewise for the transpose.
        if i % 2 == 0:
            right = factor * jnp.sum(gated * _sum_of_others(x * right[:, None], True, axis_name), axis=1)
        else:
            left = factor * jnp.sum(x * _sum_of_others(gated * left[:, None], False, axis_name), axis=1)
        product = jnp.sum(left * right)
        z = z + coefficient * (product if axis_name is None else jax.lax.psum(product, axis_name))
    return z


def _sum_of_others(x: Array, later: bool, axis_name: Any) -> Array:
    """For each row the sum of the later rows, or of the earlier ones."""
    within = jax.lax.cumsum(x, axis=0, reverse=later) - x
    if axis_name is None:
        return within
    totals = jax.lax.all_gather(jnp.sum(x, axis=0), axis_name)
    devices, here = jnp.arange(totals.shape[0]), jax.lax.axis_index(axis_name)
    others = devices > here if later else devices < here
    return within + jnp.sum(jnp.where(others[:, None], totals, 0), axis=0)


@jax.custom_jvp
def _classification_error(z: Array) -> Array:
    return 0.5 * (1 - jnp.sqrt(jnp.clip(z, 0, 1)))


@_classification_error.defjvp
def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (z,), (dz,) = primals, tangents
    inside = -0.25 / (trees.safe_sqrt(jnp.clip(z, 0, 1)) + 1e-8)
    slope = jnp.where(z < 0, -1e-2, jnp.where(z > 1, 1e-2, inside))
    return _classification_error(z), slope * dz


def _standardised(x: Array) -> Array:
    """Columns of mean 0 and unbiased deviation 1; a constant one is 0."""
    x = x - jnp.mean(x, axis=0)
    variance = jnp.sum(jnp.square(x), axis=0) / max(x.shape[0] - 1, 1)
    return x / jnp.sqrt(jnp.where(variance > 0, variance, 1))


def _prepared(key: Key, x: Array) -> Array:
    """Standardised features over their largest singular value, and times the root of N."""
    x = _standardised(x)
    start = jax.random.normal(key, x.shape[1:], x.dtype)
    unit = lambda v: v / jnp.maximum(jnp.linalg.norm(v), 1e-30)
    product = lambda v: jnp.einsum("nd,d->n", x, v, precision="highest")
    step = lambda _, v: unit(jnp.einsum("nd,n->d", x, product(v), precision="highest"))
    largest = jnp.linalg.norm(product(jax.lax.fori_loop(0, _POWER_STEPS, step, unit(start))))
    return x * (x.shape[0] ** 0.5 / jnp.where(largest > 0, largest, 1))
