"""Class statistics gathered batch by batch."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from regjax.core import checks
from regjax.core.types import Array, Stateful
from regjax.features.calibration import ClassStatistics, robust_class_statistics


class RunningClassStatistics(NamedTuple):
    """The memory of `running_class_statistics`, float32: class means ``[K, D]``, their scatter ``[K, D, D]``, counts ``[K]``."""

    means: Array
    scatter: Array
    counts: Array


def running_class_statistics(num_classes: int, feature_dim: int) -> Stateful:
    r"""The statistics of `robust_class_statistics` over all batches so far, each seen once.

    Formula:
      With n examples of a class so far and m in the batch, :math:`\delta = \bar h - \mu` the distance of the batch's mean:

      .. math:: \mu \leftarrow \mu + \frac{m}{n + m} \delta, \quad
        S \leftarrow S + S_{batch} + \frac{n m}{n + m} \delta \delta^T, \quad \Sigma = \frac{S}{n + m - 1}

      which equals the statistics of all examples at once, and cancels nothing.

    Args:
      num_classes: K, at least 1.
      feature_dim: D, at least 1.

    Returns:
      ``init() -> RunningClassStatistics``, and ``apply(state, features, labels, inlier_mask=None, *, axis_name=None) ->
      (ClassStatistics, state)`` with the arguments of `robust_class_statistics`; the statistics are those including the
      batch. Start anew with ``init()`` when the network has changed. No gradient flows to features or state.

    Raises:
      ValueError: if a size is below 1; in ``apply``, if the state is not of this K and D, or a shape or dtype does not fit.

    Cost:
      O(B K D^2) operations, and 4 K D^2 bytes of memory across steps. With a batch sharded under ``jit``, sums over devices.
      XLA counts one class.
      XLA at [100, 128, 128]: at most 44 times the FLOPs and 3.5 times the bytes of a copy of its arguments, and 0.095 times its
      memory more.

    Use:
      Part of: `calibrate_tail_statistics`, `sample_class_gaussians`.
      When: Features come in batches: one pass over the data with a network that stands still.
      Not when: The network is being trained: all batches weigh alike, also those of older weights, as it forgets nothing.
      Badly with: An epoch that repeats or pads examples, which count again. A memory kept after tuning: start with ``init()``.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> memory = rj.features.running_class_statistics(num_classes=1, feature_dim=1)
      >>> state = memory.init()
      >>> for batch in ([[0.0], [2.0]], [[4.0]]):
      ...     statistics, state = memory.apply(state, jnp.array(batch), jnp.zeros(len(batch), int))
      >>> statistics.means.tolist(), statistics.covariances.tolist(), statistics.counts.tolist()
      ([[2.0]], [[[4.0]]], [3.0])

    References:
      Zhang et al., When Noisy Labels Meet Long Tail Dilemmas: A Representation Calibration Method, 2023, arXiv 2211.10955,
      whose statistics these are. Chan et al., Algorithms for Computing the Sample Variance: Analysis and Recommendations, 1983,
      The American Statistician 37, for the update.
    """
    name = "features.running_class_statistics"
    num_classes = checks.integer(name, "num_classes", num_classes, low=1)
    feature_dim = checks.integer(name, "feature_dim", feature_dim, low=1)
    shapes = {
        "means": (num_classes, feature_dim),
        "scatter": (num_classes, feature_dim, feature_dim),
        "counts": (num_classes,),
    }

    def init() -> RunningClassStatistics:
        return RunningClassStatistics(**{field: jnp.zeros(shape, jnp.float32) for field, shape in shapes.items()})

    def apply(
        state: RunningClassStatistics, features: Any, labels: Any, inlier_mask: Any = None, *, axis_name: Any = None
    ) -> tuple[ClassStatistics, RunningClassStatistics]:
        if not isinstance(state, RunningClassStatistics):
            checks.fail(name, "state", "the RunningClassStatistics that init() makes", state)
        for field, shape in shapes.items():
            checks.floating(name, f"state.{field}", getattr(state, field), shape=shape)
        features = checks.floating(name, "features", features, shape=(None, feature_dim))
        checks.integers(name, "labels", labels, shape=features.shape[:1])
        checks.example_mask(name, "inlier_mask", inlier_mask, features.shape[:1])
        checks.axis_name(name, axis_name)
        batch = robust_class_statistics(features, labels, inlier_mask, num_classes=num_classes, axis_name=axis_name)
        batch, state = jax.tree.map(lambda x: jax.lax.stop_gradient(x).astype(jnp.float32), (batch, state))
        counts = state.counts + batch.counts
        share = batch.counts / jnp.maximum(counts, 1)
        delta = batch.means - state.means
        means = state.means + share[:, None] * delta
        within = batch.covariances * jnp.maximum(batch.counts - 1, 0)[:, None, None]
        between = (state.counts * share)[:, None, None] * delta[:, :, None] * delta[:, None, :]
        scatter = state.scatter + within + between
        covariances = scatter / jnp.maximum(counts - 1, 1)[:, None, None]
        return ClassStatistics(means, covariances, counts), RunningClassStatistics(means, scatter, counts)

    return Stateful(init, apply)
