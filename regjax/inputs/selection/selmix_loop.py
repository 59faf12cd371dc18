"""Selective mixup every so many steps: statistics of a held-out set by class, and from them which pairs to mix."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from regjax.core import checks, classes, sharding
from regjax.core.strength import resolve
from regjax.core.types import Array, Stateful, Strength
from regjax.inputs.selection.selmix import (
    check_coverage_options,
    check_metric,
    check_mixing,
    check_recall_options,
    clipped,
    recall_of,
    selmix_coverage_multipliers,
    selmix_distribution,
    selmix_gain,
    selmix_recall_multipliers,
)


class SelMixState(NamedTuple):
    """The memory of `selmix_refresh`.

    Attributes:
      multipliers: the weights ``[K]`` of the classes' recalls, of sum 1.
    """

    multipliers: Array


def selmix_refresh(
    num_classes: int,
    *,
    metric: str | Callable[[Array], Array] = "mean_recall",
    coverage: bool = False,
    temperature: Strength = 0.1,
    mixing_weight: float = 0.8,
    positive_term: str = "mixed",
    beta: float = 0.0,
    rate: float = 50.0,
    alpha: float = 0.95,
    tau: float = 0.1,
    max_value: float = 100.0,
    floor: float | None = None,
) -> Stateful:
    r"""The refresh of SelMix: from statistics of a held-out set to the distribution over pairs of classes to mix.

    Formula:
      .. math::
         P = distribution(gain(C, z, W, b; \mu, \nu) / T), \quad \mu = multipliers(recall(C), \mu_{old}), \quad
         \nu = multipliers(coverage(C))

      `selmix_recall_multipliers` where the metric is ``"min_recall"``, `selmix_coverage_multipliers` where ``coverage`` is
      asked, `selmix_gain`, then `selmix_distribution`. The loop around it: every 50 to 100 steps, run the held-out set, and
      refresh; at each step draw pairs with `sample_class_pairs` and examples with `sample_class_examples`, mix their
      features with `selmix_mix`, and minimise the cross-entropy of the head on **the label of the first**. The authors
      fine-tune 10 000 steps with SGD (3e-4, cosine, momentum 0.9, weight decay 5e-4), batch 64, BatchNorm frozen.

    Args:
      num_classes: K.
      metric: ``"mean_recall"`` (default), ``"min_recall"``, ``"g_mean"``, ``"h_mean"``, or a function of the confusion matrix,
        as in `selmix_gain`.
      coverage: whether each class is also to be predicted often enough; default False.
      temperature: of the distribution, above 0, default 0.1; a number, or a schedule, which needs ``step`` at the call.
      mixing_weight: as in `selmix_gain`.
      positive_term: as in `selmix_gain`.
      beta: as in `selmix_recall_multipliers`; 0 (default) forgets the past.
      rate: as in `selmix_recall_multipliers`.
      alpha: as in `selmix_coverage_multipliers`.
      tau: as in `selmix_coverage_multipliers`.
      max_value: as in `selmix_coverage_multipliers`.
      floor: as in `selmix_distribution`; None (default) is the authors' 1e-10 for mean recall and 1e-8 for others.

    Returns:
      A `Stateful`: ``init() -> state``, the equal multipliers; ``apply(state, confusion, prototypes, kernel, bias,
      step=None) -> (P, state)`` with P ``[K, K]``, of sum 1.

    Raises:
      ValueError: if an option is misspelt or a number out of range; from ``apply``, if a shape or dtype does not fit.

    Cost:
      O(K^3) a refresh, beside a forward pass over the held-out set. XLA counts the body of the loop once.
      XLA at [100, 512]: at most 310 times the FLOPs and 3.6 times the bytes of a copy of its arguments, and 0.4 times its
      memory more.

    Use:
      For: long tails, fine-tuning.
      When: A trained classifier is to be fine-tuned for a metric of its confusion matrix: worst or mean recall, or coverage.
        Pairs that it chose raised the worst recall of an imbalanced digit network over pairs drawn by frequency.
      Not when: There is no labelled held-out set with every class, or thousands of classes make K^3 too dear. The features are
        still poor: it tunes what has been learnt.
      Badly with: `logit_adjusted` or `adjust_logits`, which correct the same imbalance again. `mixup`, as the label is not
        mixed here. BatchNorm in training mode: freeze it. A held-out set that is also trained on.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> refresh = rj.inputs.selmix_refresh(2, metric="min_recall", rate=1.0)
      >>> confusion = jnp.array([[0.4, 0.1], [0.3, 0.2]])
      >>> pairs, state = refresh.apply(refresh.init(), confusion, jnp.eye(2), jnp.eye(2), jnp.zeros(2))
      >>> [round(float(m), 4) for m in state.multipliers], round(float(pairs.sum()), 4)
      ([0.4013, 0.5987], 1.0)

    References:
      Ramasubramanian et al., Selective Mixup Fine-Tuning for Optimizing Non-Decomposable Objectives, 2024, ICLR, arXiv
      2403.18301. As the authors' code, whose sampler further adds 1 / K^3 to each pair.
    """
    name = "inputs.selmix_refresh"
    num_classes = checks.integer(name, "num_classes", num_classes, low=1)
    check_metric(name, metric)
    checks.boolean(name, "coverage", coverage)
    checks.strength(name, "temperature", temperature, low=0.0, open_low=True)
    check_mixing(name, mixing_weight, positive_term)
    check_recall_options(name, beta, rate)
    check_coverage_options(name, alpha, tau, max_value)
    if floor is None:
        floor = 1e-10 if metric == "mean_recall" else 1e-8
    checks.number(name, "floor", floor, low=0.0, open_low=True)

    def init() -> SelMixState:
        return SelMixState(jnp.full(num_classes, 1 / num_classes, jnp.float32))

    def apply(
        state: SelMixState, confusion: Any, prototypes: Any, kernel: Any, bias: Any, *, step: Any = None
    ) -> tuple[Array, SelMixState]:
        if not isinstance(state, SelMixState):
            checks.fail(name, "state", "the SelMixState that init() makes", state)
        confusion = checks.floating(name, "confusion", confusion, shape=(num_classes, num_classes))
        joint = clipped(confusion)
        multipliers = state.multipliers
        if isinstance(metric, str) and metric == "min_recall":
            new = selmix_recall_multipliers(recall_of(joint), multipliers, beta=beta, rate=rate)
            multipliers = new.astype(state.multipliers.dtype)
        gain = selmix_gain(
            confusion,
            prototypes,
            kernel,
            bias,
            metric=metric,
            multipliers=multipliers if isinstance(metric, str) and metric == "min_recall" else None,
            coverage_multipliers=(
                selmix_coverage_multipliers(jnp.sum(joint, axis=0), alpha=alpha, tau=tau, max_value=max_value)
                if coverage
                else None
            ),
            mixing_weight=mixing_weight,
            positive_term=positive_term,
        )
        pairs = selmix_distribution(gain, temperature=resolve(temperature, step, name, "temperature"), floor=floor)
        return pairs, SelMixState(multipliers)

    return Stateful(init, apply)


def class_balanced_confusion(predictions: Any, labels: Any, *, num_classes: int, where: Any = None) -> Array:
    r"""The joint frequencies of true and predicted class, as if all classes were equally frequent.

    Formula:
      .. math:: C_{kl} = \frac{n_{kl}}{K \sum_j n_{kj}}

      with :math:`n_{kl}` the number of examples of class k that are predicted as l.

    Args:
      predictions: integer ``[N]``: predicted class ids.
      labels: integer ``[N]``: true class ids; those outside [0, K) are left out.
      num_classes: K.
      where: boolean ``[N]``: the examples that count; None (default) is all.

    Returns:
      ``[K, K]`` in float32, rows true, columns predicted; each row sums to 1 / K, that of an absent class evenly.

    Raises:
      ValueError: if a shape or dtype does not fit.

    Cost:
      One matrix product ``[K, N] [N, K]`` of zeros and ones, and the memory of the two.
      XLA at 2 times [10000]: at most 12,000 times the FLOPs and 120 times the bytes of a copy of its arguments, and 55 times
      its memory more.

    Use:
      Part of: `selmix_refresh`.
      When: Call it on the predictions of the held-out set, balanced or not. A class of few held-out examples has noisy recalls.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> predictions, labels = jnp.array([0, 0, 1, 0]), jnp.array([0, 0, 0, 1])
      >>> confusion = rj.inputs.class_balanced_confusion(predictions, labels, num_classes=2)
      >>> [[round(float(c), 4) for c in row] for row in confusion]
      [[0.3333, 0.1667], [0.5, 0.0]]

    References:
      Ramasubramanian et al., Selective Mixup Fine-Tuning for Optimizing Non-Decomposable Objectives, 2024, ICLR, arXiv
      2403.18301, where the held-out set itself is balanced: this equals its confusion matrix then.
    """
    name = "inputs.class_balanced_confusion"
    checks.integer(name, "num_classes", num_classes, low=1)
    predictions = checks.integers(name, "predictions", predictions, ndim=1)
    labels = checks.integers(name, "labels", labels, shape=predictions.shape)
    where = checks.example_mask(name, "where", where, labels.shape)
    true, guess = _one_hot(labels, num_classes, where), _one_hot(predictions, num_classes, None)
    counts = sharding.contract_rows(true, guess)
    total = jnp.sum(counts, axis=1, keepdims=True)
    return jnp.where(total > 0, counts / jnp.maximum(total, 1), 1 / num_classes) / num_classes


def class_prototypes(features: Any, labels: Any, *, num_classes: int, where: Any = None) -> Array:
    r"""The mean feature of each class.

    Formula:
      .. math:: z_k = \frac{1}{n_k} \sum_{i : y_i = k} h_i

    Args:
      features: float ``[N, D]``, the input of the head.
      labels: integer ``[N]``: class ids; those outside [0, K) are left out.
      num_classes: K.
      where: boolean ``[N]``: the examples that count; None (default) is all.

    Returns:
      ``[K, D]`` in float32 or better; 0 for an absent class.

    Raises:
      ValueError: if a shape or dtype does not fit.

    Cost:
      One matrix product ``[K, N] [N, D]``.
      XLA at [4096, 512]: at most 230 times the FLOPs and 0.92 times the bytes of a copy of its arguments, and 0.11 times its
      memory more.

    Use:
      Part of: `selmix_refresh`.
      When: Call it on the head's inputs of the held-out set, in evaluation mode, anew at every refresh.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> features = jnp.array([[1.0, 2.0], [3.0, 4.0], [5.0, 5.0]])
      >>> rj.inputs.class_prototypes(features, jnp.array([0, 0, 1]), num_classes=2).tolist()
      [[2.0, 3.0], [5.0, 5.0]]

    References:
      Ramasubramanian et al., Selective Mixup Fine-Tuning for Optimizing Non-Decomposable Objectives, 2024, ICLR, arXiv
      2403.18301.
    """
    name = "inputs.class_prototypes"
    checks.integer(name, "num_classes", num_classes, low=1)
    features = checks.floating(name, "features", features, ndim=2)
    labels = checks.integers(name, "labels", labels, shape=features.shape[:1])
    where = checks.example_mask(name, "where", where, labels.shape)
    return classes.class_means(features, labels, num_classes, where)


def _one_hot(labels: Array, num_classes: int, where: Array | None) -> Array:
    wide = labels.astype(jnp.promote_types(labels.dtype, jnp.int32))
    here = wide[:, None] == jnp.arange(num_classes, dtype=wide.dtype)
    return (here if where is None else here & where[:, None]).astype(jnp.float32)
