"""Correlation alignment: the means and covariances of features, made alike over domains."""

from typing import Any, Literal

import jax
import jax.numpy as jnp

from regjax.core import checks, sharding, trees
from regjax.core.types import Array

_VARIANTS = ("domainbed", "deep")


def coral(
    features_a: Any,
    features_b: Any,
    *,
    variant: Literal["domainbed", "deep"] = "domainbed",
    where_a: Any = None,
    where_b: Any = None,
    axis_name: Any = None,
) -> Array:
    r"""The distance between the means and covariances of the features of two domains.

    Formula:
      With the means :math:`\mu` and the unbiased covariances C of the two batches:

      .. math:: \frac{1}{D} \sum_d (\mu^a_d - \mu^b_d)^2 + \frac{1}{D^2} \sum_{de} (C^a_{de} - C^b_{de})^2

      ``"deep"`` is a quarter of the second term alone.

    Args:
      features_a: float ``[B, D]``.
      features_b: float ``[B', D]``; the numbers of examples may differ.
      variant: ``"domainbed"`` (default) or ``"deep"``.
      where_a: boolean ``[B]``: which examples count; default all.
      where_b: boolean ``[B']``, likewise.
      axis_name: the mapped axis, or a tuple of them, over which the batches are split under ``shard_map`` or ``pmap``. Not
        needed under ``jit`` with sharded arrays.

    Returns:
      A scalar in float32 or better, at least 0, with gradient to both. One example has covariance 0; it is 0 where a domain has
      none.

    Raises:
      ValueError: if a shape, dtype or option does not fit.

    Cost:
      O(B D^2) for the two covariances; with ``axis_name``, sums of D^2 numbers over devices.
      XLA at [1024, 512]: at most 1.5 times the FLOPs and 3 times the bytes of the products of all features, and 0.28 times its
      memory more.

    Use:
      For: distribution shift.
      When: Labelled source and unlabelled target features, or two training domains, that differ in style and have about the
        same classes. Each side needs more examples than a handful, best as many as features.
      Not when: Class shares differ between the domains: matching moments then mixes classes. D is in the thousands, where a
        batch's covariance is noise: take features after a narrow projection.
      Badly with: `mixup` across the two domains, which leaves no domain to align. Batch normalisation with statistics for each
        domain, which matches mean and variance already. Microbatches, as moments are those of a part.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> a, b = jnp.array([[0.0], [2.0]]), jnp.array([[1.0], [5.0]])
      >>> float(rj.features.coral(a, b)), float(rj.features.coral(a, b, variant="deep"))
      (40.0, 9.0)

    References:
      Sun and Saenko, Deep CORAL: Correlation Alignment for Deep Domain Adaptation, 2016, arXiv 1607.01719, which has no means:
      ``"deep"``. Gulrajani and Lopez-Paz, In Search of Lost Domain Generalization, 2021, arXiv 2007.01434, whose code adds
      them and takes means of squares: ``"domainbed"``, with weight 1.
    """
    name = "features.coral"
    features_a = checks.floating(name, "features_a", features_a, ndim=2)
    features_b = checks.floating(name, "features_b", features_b, shape=(None, features_a.shape[1]))
    checks.choice(name, "variant", variant, _VARIANTS)
    where_a = checks.example_mask(name, "where_a", where_a, features_a.shape[:1])
    where_b = checks.example_mask(name, "where_b", where_b, features_b.shape[:1])
    checks.axis_name(name, axis_name)
    dtype = trees.accumulator(features_a, features_b)
    moments = [
        _moments(x.astype(dtype), jnp.ones(x.shape[:1], bool)[:, None] if where is None else where[:, None], axis_name)
        for x, where in ((features_a, where_a), (features_b, where_b))
    ]
    counts, means, covariances = (jnp.concatenate(pair) for pair in zip(*moments, strict=True))
    return _mean_over_pairs(counts, means, covariances, variant)


def domain_coral(
    features: Any,
    domains: Any,
    *,
    num_domains: int,
    variant: Literal["domainbed", "deep"] = "domainbed",
    where: Any = None,
    axis_name: Any = None,
) -> Array:
    r"""The mean of `coral` over all pairs of the domains of one batch.

    Formula:
      .. math:: \frac{2}{E (E - 1)} \sum_{a < b} coral(h_a, h_b)

      over the E domains that have examples in the batch, computed without the pairs, from the distances of the domains'
      moments to their mean.

    Args:
      features: float ``[B, D]``.
      domains: integer ids ``[B]`` in [0, num_domains); another id among the counted examples makes the result NaN.
      num_domains: how many domains there are, at least 1.
      variant: ``"domainbed"`` (default) or ``"deep"``, as in `coral`.
      where: boolean ``[B]``: which examples count; default all.
      axis_name: the mapped axis, or a tuple of them, over which the batch is split under ``shard_map`` or ``pmap``. Not
        needed under ``jit`` with sharded arrays.

    Returns:
      A scalar in float32 or better, at least 0; 0 where fewer than two domains have examples.

    Raises:
      ValueError: if a shape, dtype or option does not fit.

    Cost:
      O(B E D^2) for the covariances, whatever the number of pairs, and E copies of the features.
      XLA at [1024, 512]: at most 4.5 times the FLOPs and 8.2 times the bytes of the products of all features, and 4.2 times its
      memory more.

    Use:
      For: distribution shift.
      When: Several training domains in one batch and an unseen one at test, with domain ids for each example and batches
        balanced over domains. Weight 1 is usual.
      Not when: There are many domains of few examples each, whose covariances are noise, or domains differ in their classes:
        `irm_penalty` and `vrex_penalty` look at losses instead.
      Badly with: Mixing between domains (`mixup`, `cutmix`), after which ids are false. Microbatches and shards without
        ``axis_name``, where moments are those of a part.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> features, domains = jnp.array([[0.0], [2.0], [1.0], [5.0]]), jnp.array([0, 0, 1, 1])
      >>> float(rj.features.domain_coral(features, domains, num_domains=3))
      40.0

    References:
      Sun and Saenko, Deep CORAL: Correlation Alignment for Deep Domain Adaptation, 2016, arXiv 1607.01719, and Gulrajani and
      Lopez-Paz, In Search of Lost Domain Generalization, 2021, arXiv 2007.01434, whose code averages over the pairs of domains.
    """
    name = "features.domain_coral"
    features = checks.floating(name, "features", features, ndim=2)
    domains = checks.integers(name, "domains", domains, shape=features.shape[:1]).astype(jnp.int32)
    checks.integer(name, "num_domains", num_domains, low=1)
    checks.choice(name, "variant", variant, _VARIANTS)
    where = checks.example_mask(name, "where", where, features.shape[:1])
    checks.axis_name(name, axis_name)
    member = domains[:, None] == jnp.arange(num_domains)
    wrong = (domains < 0) | (domains >= num_domains)
    if where is not None:
        member, wrong = member & where[:, None], wrong & where
    wrong = jnp.sum(wrong)
    if axis_name is not None:
        wrong = jax.lax.psum(wrong, axis_name)
    distance = _mean_over_pairs(*_moments(features.astype(trees.accumulator(features)), member, axis_name), variant)
    return jnp.where(wrong > 0, jnp.nan, distance)


def _moments(x: Array, member: Array, axis_name: Any) -> tuple[Array, Array, Array]:
    """Counts ``[E]``, means ``[E, D]`` and unbiased covariances ``[E, D, D]`` of the rows ``x [B, D]`` by ``member [B, E]``."""
    total = lambda t: t if axis_name is None else jax.lax.psum(t, axis_name)
    domains, dim = member.shape[1], x.shape[1]
    used = jnp.any(member, axis=1)
    x = jnp.where(used[:, None], x, 0)  # so that an example that does not count may hold anything
    weight = sharding.rows_like(member.astype(x.dtype), x)
    with jax.default_matmul_precision("highest"):  # a rounded covariance would be a difference between equal domains
        counts = total(jnp.sum(weight, axis=0))
        means = total(sharding.contract_rows(weight, x)) / jnp.maximum(counts, 1)[:, None]
        # Centred before the product, as the difference of two large moments would cancel.
        centred = x - jnp.dot(weight, means)
        split = sharding.reshape_rows(weight[:, :, None] * centred[:, None, :], (domains * dim,))
        scatter = total(sharding.contract_rows(split, centred)).reshape(domains, dim, dim)
    return counts, means, scatter / jnp.maximum(counts - 1, 1)[:, None, None]


def _mean_over_pairs(counts: Array, means: Array, covariances: Array, variant: str) -> Array:
    """The mean over pairs of present domains; ``sum_{a<b} |x_a - x_b|^2 = E sum_a |x_a - mean|^2`` saves the pairs."""
    present = counts > 0
    number = jnp.sum(present)

    def spread(x: Array) -> Array:
        here = present.reshape(-1, *(1,) * (x.ndim - 1))
        mean = jnp.sum(jnp.where(here, x, 0), axis=0) / jnp.maximum(number, 1)
        squares = jnp.mean(jnp.square(jnp.where(here, x - mean, 0)).reshape(x.shape[0], -1), axis=1)
        return 2 * jnp.sum(squares) / jnp.maximum(number - 1, 1)

    return spread(covariances) / 4 if variant == "deep" else spread(means) + spread(covariances)
