"""Class means and the scatter around them, and the measures of collapse as functions of them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from regjax.core import checks, sharding, trees
from regjax.core.types import Array
from regjax.diagnostics import _examples

GLOBAL_MEANS = ("class", "sample")


class Inputs(NamedTuple):
    """Checked arguments: features ``[N, D]`` in float32 or better, 0 where an example does not count."""

    features: Array
    labels: Array
    num_classes: int
    where: Array

    @property
    def weight_shape(self) -> tuple[int, int]:
        """The shape of a classifier's rows."""
        return self.num_classes, self.features.shape[1]

    @property
    def logits_shape(self) -> tuple[int, int]:
        """The shape of a classifier's outputs."""
        return self.features.shape[0], self.num_classes


class Geometry(NamedTuple):
    """Features by class, shifted to mean 0 and scaled to magnitude 1, both of which no measure of collapse sees.

    Attributes:
      features: ``[N, D]``, 0 where an example does not count.
      residuals: ``[N, D]``, features less the mean of their class.
      means: class means ``[K, D]``, 0 for absent classes.
      present: the classes with an example that counts, ``[K]``.
      examples: how many examples count, at least 1; NaN if a label is no class id, so that it is seen in every result.
    """

    features: Array
    residuals: Array
    means: Array
    present: Array
    examples: Array

    @property
    def classes(self) -> Array:
        """How many classes are present, at least 1."""
        return at_least_one(self.present, self.means.dtype)

    def centred(self, global_mean: str) -> Array:
        """Class means less the mean of all classes or of all samples."""
        centre = jnp.sum(self.means, axis=0) / self.classes if global_mean == "class" else 0
        return jnp.where(self.present[:, None], self.means - centre, 0)


def inputs(function: str, features: Any, labels: Any, num_classes: Any, where: Any) -> Inputs:
    """Checks the arguments that all measures share; no gradient flows through them."""
    features = checks.floating(function, "features", features, ndim=2)
    labels = checks.integers(function, "labels", labels, shape=features.shape[:1]).astype(jnp.int32)
    num_classes = checks.integer(function, "num_classes", num_classes, low=2)
    where = _examples.counted(function, where, labels.shape)
    wide = jax.lax.stop_gradient(features).astype(trees.accumulator(features))
    return Inputs(jnp.where(where[:, None], wide, 0), labels, num_classes, where)


def geometry(x: Inputs) -> Geometry:
    """Computes what all measures share."""
    labels, num_classes, rows = x.labels, x.num_classes, x.where[:, None]
    wrong = jnp.any(x.where & ((labels < 0) | (labels >= num_classes)))
    examples = jnp.where(wrong, jnp.nan, at_least_one(x.where, x.features.dtype))
    # A mean far from 0 would cost the differences between classes their digits.
    h = unit(jnp.where(rows, x.features - jnp.sum(x.features, axis=0) / examples, 0))
    member = (labels[:, None] == jnp.arange(num_classes)) & rows
    present = jnp.any(member, axis=0)
    sizes = jnp.maximum(jnp.sum(member, axis=0, dtype=h.dtype), 1)
    means = gram(member.astype(h.dtype), h) / sizes[:, None]
    own = sharding.take_rows(means, jnp.clip(labels, 0, num_classes - 1))
    return Geometry(h, jnp.where(rows, h - own, 0), means, present, examples)


def weights(function: str, argument: str, weight: Any, shape: tuple[int | None, ...]) -> Array:
    """Checked class vectors, one row for each class, in float32 or better and scaled to magnitude 1."""
    weight = checks.floating(function, argument, weight, shape=shape)
    return unit(sharding.replicate(jax.lax.stop_gradient(weight).astype(trees.accumulator(weight))))


def variability(g: Geometry, metric: str, global_mean: str) -> Array:
    """NC1: the scatter within classes relative to that between them."""
    means = g.centred(global_mean)
    if metric == "quotient":
        within = jnp.sum(jnp.square(g.residuals)) / g.examples
        between = jnp.sum(jnp.square(means)) / g.classes
        # The features have magnitude 1, so a scatter below this is the rounding of means that coincide.
        coincide = between <= jnp.square(8 * jnp.finfo(means.dtype).eps)
        return jnp.where(coincide, 0, within / jnp.where(coincide, 1, between))
    # With means = U S V^T, pinv of the scatter between is classes * V S^-2 V^T, and V^T r = S^-1 U^T (means r): the
    # eigenvectors of the K x K products serve, and no D x D matrix is made. The rank is at most K - 1.
    values, vectors = jnp.linalg.eigh(gram(means.T, means.T))
    cutoff = len(means) * jnp.finfo(means.dtype).eps * jnp.max(values)
    kept = values > jnp.maximum(cutoff, 0)
    inverse = jnp.where(kept, 1 / jnp.where(kept, values, 1), 0)
    with jax.default_matmul_precision("highest"):
        projected = (g.residuals @ (means.T @ vectors)) * inverse
    return jnp.sum(jnp.square(projected)) / g.examples


def norm_variation(rows: Array, present: Array, classes: Array) -> Array:
    """The unbiased standard deviation of the rows' norms over their mean."""
    norms = _norm(rows, axis=1)
    mean = jnp.sum(jnp.where(present, norms, 0)) / classes
    variance = jnp.sum(jnp.where(present, jnp.square(norms - mean), 0)) / jnp.maximum(classes - 1, 1)
    return jnp.sqrt(variance) / jnp.where(mean == 0, 1, mean)


def angle_deviation(rows: Array, present: Array, classes: Array) -> Array:
    """The mean over pairs of the distance of their cosine from that of the simplex."""
    norms = _norm(rows, axis=1, keepdims=True)
    directions = rows / jnp.where(norms == 0, 1, norms)
    pairs = present[:, None] & present & ~jnp.eye(len(rows), dtype=bool)
    deviation = jnp.abs(gram(directions.T, directions.T) + 1 / jnp.maximum(classes - 1, 1))
    return jnp.sum(jnp.where(pairs, deviation, 0)) / jnp.maximum(classes * (classes - 1), 1)


def simplex_distance(products: Array, present: Array, classes: Array) -> Array:
    """The Frobenius distance of products of class vectors, scaled to norm 1, from those of the simplex."""
    pairs = present[:, None] & present
    products = jnp.where(pairs, products, 0)
    norm = _norm(products)
    simplex = jnp.where(pairs, jnp.eye(len(present), dtype=norm.dtype) - 1 / classes, 0) / jnp.sqrt(jnp.maximum(classes - 1, 1))
    # One class alone has no simplex: 0. A NaN norm stays, so that a wrong label is seen.
    return jnp.where((classes > 1) | jnp.isnan(norm), _norm(products / jnp.where(norm == 0, 1, norm) - simplex), 0)


def etf_distance(rows: Array, present: Array, classes: Array) -> Array:
    """NC2 in one number: `simplex_distance` of the rows' products with each other."""
    return simplex_distance(gram(rows.T, rows.T), present, classes)


def duality(g: Geometry, weight: Array, global_mean: str) -> Array:
    """NC3 through products: `simplex_distance` of the products of weight and centred means."""
    return simplex_distance(gram(weight.T, g.centred(global_mean).T), g.present, g.classes)


def alignment(means: Array, weight: Array, present: Array) -> Array:
    """The squared Frobenius distance of two sets of class vectors, each scaled to norm 1."""
    means, weight = (_normalised(jnp.where(present[:, None], x, 0)) for x in (means, weight))
    return jnp.sum(jnp.square(means - weight))


def nearest_mean(g: Geometry) -> Array:
    """The present class whose mean is nearest to each example, ``[N]``."""
    with jax.default_matmul_precision("highest"):
        products = jnp.einsum("nd,kd->nk", g.features, g.means)
    distances = jnp.sum(jnp.square(g.means), axis=1) - 2 * products
    return jnp.argmin(jnp.where(g.present, distances, jnp.inf), axis=1)


def gram(a: Array, b: Array) -> Array:
    """``a.T @ b``, summed over rows at full precision: a device's reduced one would hide a small scatter."""
    with jax.default_matmul_precision("highest"):
        return sharding.contract_rows(a, b)


def at_least_one(flags: Array, dtype: Any) -> Array:
    """How many are set, at least 1."""
    return jnp.maximum(jnp.sum(flags, dtype=dtype), 1)


def unit(x: Array) -> Array:
    """Scaled to largest magnitude 1, so that squares of squares neither overflow nor vanish."""
    largest = jnp.max(jnp.abs(x), initial=0)
    return x / jnp.where(largest > 0, largest, 1)


def _normalised(x: Array) -> Array:
    norm = _norm(x)
    return x / jnp.where(norm == 0, 1, norm)


def _norm(x: Array, **axes: Any) -> Array:
    # No gradient flows here, so the root needs no care at 0, and NaN stays to be seen.
    return jnp.sqrt(jnp.sum(jnp.square(x), **axes))
