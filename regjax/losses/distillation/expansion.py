"""Representation expansion for learning classes one task after another, without keeping examples of the old ones."""

from typing import Any

import jax
import jax.numpy as jnp

from regjax.core import checks, classes, sharding, trees
from regjax.core.types import Array, Strength


def ssre(
    logits: Any,
    labels: Any,
    features: Any,
    old_features: Any,
    prototypes: Any,
    *,
    temperature: Strength = 0.1,
    stop_gradient_weights: bool = False,
    distill_reduction: str = "sum",
    where: Any = None,
    axis_name: Any = None,
) -> Array:
    r"""Cross-entropy for what is new, distillation for what resembles an old class.

    Formula:
      .. math:: \frac{1}{B} \sum_b (1 - w_b) \, CE(z_b / T, y_b) + \sum_b w_b \| f_b - f_b^{old} \|_2, \quad
                w_b = \max_p \cos(f_b, c_p)

      The norm is not squared, and its sum not divided by B. No gradient flows to the old features and the prototypes; it
      does flow through w.

    Args:
      logits: float ``[B, K]``, z, over all classes so far.
      labels: integer class ids ``[B]``, or probabilities ``[B, K]``.
      features: float ``[B, D]``, f, what the classifier reads.
      old_features: float ``[B, D]``: those of the frozen network of the last task, on the same inputs.
      prototypes: float ``[P, D]``, c: the means of the raw features of each old class, taken at the end of its task.
      temperature: T, above 0, default 0.1, a number or a traced scalar.
      stop_gradient_weights: holds w constant for the gradient, default False. Else a step may lower the loss by moving
        features away from the prototypes.
      distill_reduction: ``"sum"`` (default) over the batch, or ``"mean"``.
      where: boolean ``[B]``: the examples that count, and B counts those alone. Default all.
      axis_name: the mapped axis, or a tuple of them, over which the batch is split under ``shard_map`` or ``pmap``: sums and
        counts are added over it. Not needed under ``jit`` with sharded arrays.

    Returns:
      A scalar in float32 or better; 0 where no example counts. A similarity may be negative, which rewards distance from
      the old features, and a vector shorter than 1e-12 has similarity 0.

    Raises:
      ValueError: if a shape or dtype does not fit, there is no prototype, ``temperature`` is not positive and finite, or
        ``distill_reduction`` is misspelt.

    Cost:
      One forward pass of the old network; a product of B x D by D x P.
      XLA at [1024, 1000]: at most 290 times the FLOPs and 2.9 times the bytes of cross-entropy, and 0.7 times its memory more.

    Use:
      For: forgetting.
      When: Classes come in tasks and no old example may be kept, only class means: what resembles an old class is held, the
        rest learns. On digits old classes kept more, at the price of slow learning of new ones. With replay of prototypes.
      Not when: The learning rate is that of plain training: the sum over the batch was unstable at ten times a small one on
        digits. Take ``"mean"`` then. Old examples may be kept: replay them. First task.
      Badly with: Changing batch sizes, as one part is a sum. Batch normalisation that keeps moving, which shifts the old
        features. Free features with weights in the gradient: ``stop_gradient_weights``. Microbatches, whose averaged sums weigh
        less.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> z, y, f = jnp.array([[0.2, 0.1, 0.0]]), jnp.array([2]), jnp.array([[1.0, 0.0]])
      >>> round(float(rj.losses.ssre(z, y, f, jnp.zeros((1, 2)), jnp.array([[3.0, 4.0]]))), 4)
      1.563

    References:
      Zhu et al., Self-Sustaining Representation Expansion for Non-Exemplar Class-Incremental Learning, 2022,
      arXiv 2203.06359. As in the authors' code; the paper writes the distillation as a mean, ``distill_reduction="mean"``.
      The authors add 10 times the mean of ``CE(z / 0.1, y)`` of B prototypes drawn at random and given to the classifier, and
      train only adapters beside the convolutions, which `weights.fold_parallel_adapter` merges after the task. The first
      task is plain training.
    """
    name = "losses.ssre"
    checks.number(name, "temperature", temperature, low=0.0, open_low=True)
    checks.boolean(name, "stop_gradient_weights", stop_gradient_weights)
    checks.choice(name, "distill_reduction", distill_reduction, ("sum", "mean"))
    checks.axis_name(name, axis_name)
    logits = checks.floating(name, "logits", logits, ndim=2)
    x = classes.class_inputs(name, logits, labels)
    batch = logits.shape[0]
    features = checks.floating(name, "features", features, shape=(batch, None))
    old_features = checks.floating(name, "old_features", old_features, shape=features.shape)
    prototypes = checks.floating(name, "prototypes", prototypes, shape=(None, features.shape[1]))
    if prototypes.shape[0] < 1:
        checks.fail(name, "prototypes", "an array [P, D] of at least one prototype", prototypes)
    counts = checks.example_mask(name, "where", where, (batch,))
    dtype = trees.accumulator(x.logits, features, old_features, prototypes)
    f = features.astype(dtype)
    old, centres = (jax.lax.stop_gradient(v).astype(dtype) for v in (old_features, prototypes))
    z = x.logits.astype(dtype)
    if counts is not None:
        # Before the norms, so that an example that does not count may hold anything.
        f, old, z = (jnp.where(counts[:, None], v, 0) for v in (f, old, z))
    centres = trees.unit(sharding.replicate(centres), 1e-12)
    # In full precision: the temperature multiplies the loss that a rounded weight leaves over.
    w = jnp.max(jnp.einsum("bd,pd->bp", trees.unit(f, 1e-12), centres, precision="highest"), axis=-1)
    w = jax.lax.stop_gradient(w) if stop_gradient_weights else w
    task = (1 - w) * classes.cross_entropy(x._replace(logits=z / jnp.asarray(temperature, dtype)))
    distance = w * trees.safe_norm(f - old, axis=-1)
    if counts is None:
        count = jnp.asarray(batch, dtype)
    else:
        task, distance = (jnp.where(counts, v, 0) for v in (task, distance))
        count = jnp.sum(counts, dtype=dtype)
    sums = (jnp.sum(task), jnp.sum(distance), count)
    task, distance, count = sums if axis_name is None else jax.lax.psum(sums, axis_name)
    count = jnp.maximum(count, 1)
    return task / count + (distance if distill_reduction == "sum" else distance / count)
