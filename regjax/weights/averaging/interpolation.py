"""Interpolation between two models: plain, and weighted by Fisher information."""

from typing import Any

import jax
import jax.numpy as jnp

from regjax.core import checks, trees
from regjax.core.types import Array, PyTree, Strength


def interpolate(start: PyTree, end: PyTree, *, alpha: Strength = 0.5) -> PyTree:
    r"""The parameters on the line between two models, as between a pretrained and a fine-tuned one.

    Formula:
      .. math:: \theta = (1 - \alpha) \theta_{start} + \alpha \theta_{end}

      for every floating leaf, the head included: WiSE-FT. BANG is the same with a fine-tuned model that was trained with
      label smoothing or mixup: a model more confident than the pretrained one would dominate the average
      (`regjax.diagnostics.confidence_balance` measures it).

    Args:
      start: a parameter tree, such as the pretrained model. A zero-shot head must be in it in the same form as in ``end``.
      end: a parameter tree of the same structure and shapes, such as the model fine-tuned from ``start``.
      alpha: in [0, 1], default 0.5. 0 is exactly ``start`` and 1 exactly ``end``, where both are finite.

    Returns:
      The parameters, in the dtypes of ``start``, computed in float32 or better. Leaves that are no floats are those of ``end``.
      Running batch statistics are not weights: `recompute_batch_stats` measures them anew.

    Raises:
      ValueError: if the trees differ in structure or shape, or ``alpha`` lies outside [0, 1].

    Cost:
      One pass over both models. No training; inference costs what one model does.
      XLA at 16 times [512, 512]: at most 1.7 times the FLOPs and 0.83 times the bytes of a copy of its arguments, and 0 times
      its memory more.

    Use:
      For: distribution shift, fine-tuning.
      When: A fine-tuned model has gained on its task and lost under shift, and the pretrained weights are at hand: try several
        alphas on shifted data. On shifted digits the midpoint beat the fine-tuned model, more so when that had been tuned with
        `label_smoothing`.
      Not when: The ends do not share a start or the head differs: the loss between them is high. With an over-confident
        fine-tuned end (`confidence_balance`) the average is mostly that end.
      Badly with: Batch normalisation without `recompute_batch_stats`; ends with different masks, permuted units or low-rank
        factors, where the mean of the factors is not the factor of the mean: `merge` adapters first.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> pretrained, tuned = {"kernel": jnp.array([0.0, 4.0])}, {"kernel": jnp.array([2.0, 0.0])}
      >>> rj.weights.interpolate(pretrained, tuned, alpha=0.25)["kernel"].tolist()
      [0.5, 3.0]

    References:
      Wortsman et al., Robust Fine-Tuning of Zero-Shot Models, 2021, arXiv 2109.01903. Lin et al., Spurious Feature
      Diversification Improves Out-of-Distribution Generalization, 2023, arXiv 2309.17230: BANG, of which there is no code; how
      strong its mixup and label smoothing are is uncertain (Beta(0.5) and 0.1 to 0.2 serve).
    """
    name = "weights.interpolate"
    checks.same_structure(name, "end", end, start, "start")
    checks.number(name, "alpha", alpha, low=0.0, high=1.0)
    return jax.tree.map(lambda a, b: _mix(a, b, alpha) if trees.is_float(a) else b, start, end)


def fisher_interpolate(
    start: PyTree,
    end: PyTree,
    fisher_start: PyTree,
    fisher_end: PyTree,
    *,
    alpha: Strength = 0.5,
    fisher_floor: float = 1e-8,
) -> PyTree:
    r"""Interpolates two models with each parameter weighted by how much either model depends on it.

    Formula:
      .. math:: \theta = \frac{c_0 \theta_{start} + c_1 \theta_{end}}{c_0 + c_1}, \quad c_0 = (1 - \alpha) \max(F_0, \epsilon),
        \quad c_1 = \alpha \max(F_1, \epsilon)

      With equal Fisher information, or with none on both sides, it is `interpolate`.

    Args:
      start: a parameter tree.
      end: a parameter tree of the same structure and shapes.
      fisher_start: :math:`F_0`, the diagonal Fisher information of each parameter of ``start``, at least 0: the mean square of
        the gradient of the log-likelihood. A tree as ``start``; leaves may be None.
      fisher_end: :math:`F_1`, the same of ``end``. A leaf without both is interpolated plainly.
      alpha: in [0, 1], default 0.5. 0 is exactly ``start`` and 1 exactly ``end``, where both are finite.
      fisher_floor: :math:`\epsilon`, at least 0, default 1e-8. A parameter with 0 for both is interpolated plainly.

    Returns:
      The parameters, in the dtypes of ``start``, computed in float32 or better. Leaves that are no floats are those of ``end``.

    Raises:
      ValueError: if the trees differ in structure or shape, or a number lies outside its range.

    Cost:
      One pass over four trees; the Fisher information costs a backward pass for each example it is measured on.
      XLA at 32 times [512, 512]: at most 5.5 times the FLOPs and 0.69 times the bytes of a copy of its arguments, and 0 times
      its memory more.

    Use:
      For: fine-tuning, distribution shift.
      When: Two models fine-tuned from one start on different data are to become one, and each has data for `diagonal_fisher`:
        parameters that only one of them needs are then taken from that one.
      Not when: The Fisher information of one side is missing or estimated on few examples: most entries then lie at the floor
        and it is `interpolate`. Or the models come from different initialisations.
      Badly with: Fisher information of different ``reduction`` or data sizes on the two sides: the larger scale takes all.
        Batch normalisation needs `recompute_batch_stats` afterwards.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> one, two = {"kernel": jnp.array([0.0, 4.0])}, {"kernel": jnp.array([2.0, 0.0])}
      >>> f_one, f_two = {"kernel": jnp.array([1.0, 1.0])}, {"kernel": jnp.array([3.0, 1.0])}
      >>> rj.weights.fisher_interpolate(one, two, f_one, f_two)["kernel"].tolist()
      [1.5, 2.0]

    References:
      Matena and Raffel, Merging Models with Fisher-Weighted Averaging, 2021, arXiv 2111.09832; in the form of the code of
      Wortsman et al., Robust Fine-Tuning of Zero-Shot Models, 2021, arXiv 2109.01903.
    """
    name = "weights.fisher_interpolate"
    checks.same_structure(name, "end", end, start, "start")
    checks.number(name, "alpha", alpha, low=0.0, high=1.0)
    checks.number(name, "fisher_floor", fisher_floor, low=0.0)
    leaves, structure = jax.tree.flatten(start)
    weights = [_fisher(name, argument, f, start) for argument, f in (("fisher_start", fisher_start), ("fisher_end", fisher_end))]
    mixed = []
    for a, b, f0, f1 in zip(leaves, jax.tree.leaves(end), *weights, strict=True):
        if not trees.is_float(a):
            mixed.append(b)
        elif f0 is None or f1 is None:
            mixed.append(_mix(a, b, alpha))
        else:
            mixed.append(_mix(a, b, _share(f0, f1, alpha, fisher_floor)))
    return jax.tree.unflatten(structure, mixed)


def _mix(a: Any, b: Any, share: Any) -> Array:
    """``(1 - share) a + share b``: this form, unlike ``a + share (b - a)``, is exact at both ends."""
    a, b = jnp.asarray(a), jnp.asarray(b)
    dtype = trees.accumulator(a, b)
    share = jnp.asarray(share, dtype)
    return ((1 - share) * a.astype(dtype) + share * b.astype(dtype)).astype(a.dtype)


def _fisher(name: str, argument: str, fisher: PyTree, params: PyTree) -> list[Any]:
    """The Fisher information of each leaf of ``params``, or None."""
    structure: Any = jax.tree.structure(params)
    try:
        found = structure.flatten_up_to(fisher)
    except (ValueError, TypeError):
        expected = "a tree of the structure of start, with None where a leaf has none"
        checks.fail(name, argument, expected, jax.tree.structure(fisher))
    for (path, leaf), f in zip(jax.tree_util.tree_flatten_with_path(params)[0], found, strict=True):
        if f is not None and trees.is_float(leaf):
            checks.array(name, argument + jax.tree_util.keystr(path), f, shape=jnp.shape(leaf))
    return found


def _share(f0: Any, f1: Any, alpha: Any, floor: Any) -> Array:
    """The weight of the second model for every parameter; ``alpha`` where neither has information."""
    dtype = trees.accumulator(f0, f1)
    f0, f1 = (jnp.maximum(jnp.asarray(f).astype(dtype), jnp.asarray(floor, dtype)) for f in (f0, f1))
    # Relative to the larger of the two: sums of large numbers would overflow.
    top = jnp.maximum(f0, f1)
    some = top > 0
    f0, f1 = (jnp.where(some, f / jnp.where(some, top, 1), 1) for f in (f0, f1))
    alpha = jnp.asarray(alpha, dtype)
    # One of the two is 1, so the sum is 0 only if the other is 0 and its partner has no weight.
    c0, c1 = (1 - alpha) * f0, alpha * f1
    total = c0 + c1
    return jnp.where(total > 0, c1 / jnp.where(total > 0, total, 1), alpha)
