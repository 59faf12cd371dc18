"""Sharpness-aware minimisation for long-tailed classes: only the rare ones are trained at perturbed weights."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal

import jax.numpy as jnp

from regjax.core import checks, sharding, trees
from regjax.core.types import Array, PyTree, Strength
from regjax.objectives._examples import argument, check_place, mean_of_examples
from regjax.objectives.lift import AxisName, BoundLoss, LossFn, freeze, is_zero, lift, shift, strength_at
from regjax.objectives.sharpness._perturbations import AUX_FROM, ascent


def imbsam(
    per_example_loss_fn: LossFn,
    *,
    class_counts: Any,
    tail_threshold: Any,
    rho: Strength = 0.05,
    tail_weight: Strength = 1.0,
    labels_arg: int | str | Callable[..., Any] = -1,
    axis_name: AxisName = None,
    has_aux: bool = False,
    aux_from: Literal["clean", "perturbed"] = "clean",
    norm_eps: float = 1e-16,
) -> LossFn:
    r"""Sharpness-aware minimisation of the rare classes alone: Imbalanced SAM.

    Formula:
      .. math:: \frac{1}{B} \sum_i (1 - t_i) \, l_i(w) + \frac{\lambda}{B} \sum_i t_i \, l_i(w + sg(e)), \quad
                e = \rho \, \frac{h}{\|h\|}, \quad h = \nabla \frac{1}{B} \sum_i t_i \, l_i(w)

      with :math:`t_i = 1` where the class of example i has fewer than ``tail_threshold`` training examples, and the size B of the
      whole batch in all sums. The frequent classes give an ordinary gradient at w.

    Args:
      per_example_loss_fn: ``f(params, *args, **kwargs) -> [B]``, the loss of each example, or ``([B], aux)`` with
        ``has_aux=True``. Only floating leaves of ``params`` are perturbed, best in float32.
      class_counts: ``[K]``, the number of training examples of each class.
      tail_threshold: classes with fewer examples than this are rare; at least 0, or infinity. 0: no class is, which gives the
        mean loss; infinity: all are, which is `sam` of the mean loss.
      rho: the radius, at least 0, default 0.05; a number, or a schedule read at the keyword ``step`` of the call. 0 is the mean
        loss with the weights of the classes.
      tail_weight: :math:`\lambda`, the weight of the rare classes, at least 0, default 1; a number or a schedule. It does not
        change e.
      labels_arg: where the labels are: a position among the arguments after ``params``, default -1, the last one, a keyword, or a
        function of all these arguments, such as ``lambda batch, key: batch["label"]``. Class ids ``[B]``, or probabilities
        ``[B, K]``, whose largest counts; an id outside [0, K) belongs to no rare class.
      axis_name: the mapped axis (or axes) of `jax.shard_map` or ``vmap`` over which h is averaged; None (default): each device
        perturbs by its own examples.
      has_aux: whether ``per_example_loss_fn`` returns ``([B], aux)``.
      aux_from: the pass whose aux is returned: ``"clean"`` (default) or ``"perturbed"``.
      norm_eps: added to the norm, at least 0, default 1e-16. Without a rare example in the batch, e is 0 in any case.

    Returns:
      A loss function of the arguments of ``per_example_loss_fn``, which returns a scalar, in float32 or better, or
      ``(scalar, aux)``, and also accepts ``step``.

    Raises:
      ValueError: if a strength or option does not fit, the losses are not ``[B]``, the labels are not where ``labels_arg``
        says or do not fit, or a schedule is called without ``step``.

    Cost:
      One more forward and two more backward passes, as the rare and the frequent classes share the first forward pass: 2.67
      times the FLOPs, whatever the labels, and one copy of the weights.
      XLA at an MLP [64, 256, 256, 10] with batch 128: at most 3 times the FLOPs and 2.7 times the bytes of a plain training
      step, and 0.18 times its memory more.

    Use:
      For: long tails, sharp minima.
      When: A few rare classes are learnt by heart. On a long tail of digits it raised the worst classes far more than `sam` and
        than weights of classes, at a small loss for the frequent ones. tail_weight=2 added a little.
      Not when: Only the rare classes matter: `logit_adjusted` helped them more, and the two together most. Batches are so small
        that rare classes seldom occur, as then nothing is perturbed.
      Badly with: `mixup` and `cutmix`, of whose mixtures it takes the larger class. Samplers that balance the classes, as the
        threshold is on the counts of the set. `sam` around it. BatchNorm averages from the perturbed pass.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> losses = lambda w, labels: jnp.stack([w[0] ** 2, 4 * w[1] ** 2])
      >>> loss_fn = rj.objectives.imbsam(losses, class_counts=[100, 5], tail_threshold=20, rho=0.5)
      >>> value, gradient = jax.value_and_grad(loss_fn)(jnp.array([1.0, 1.0]), jnp.array([0, 1]))
      >>> float(value), [round(float(g), 4) for g in gradient]
      (5.0, [1.0, 6.0])

    References:
      Zhou et al., ImbSAM: A Closer Look at Sharpness-Aware Minimization in Class-Imbalanced Recognition, 2023, arXiv 2308.07815.
      The objective is the paper's; the authors' code doubles the second sum, ``tail_weight=2``.
    """
    name = "objectives.imbsam"
    mean_loss = mean_of_examples(name, per_example_loss_fn, has_aux)
    counts = checks.array(name, "class_counts", class_counts, ndim=1)
    if counts.dtype == jnp.bool_ or counts.size == 0:
        checks.fail(name, "class_counts", "the numbers of training examples of each class, [K]", class_counts)
    if not (isinstance(tail_threshold, float) and tail_threshold == math.inf):
        checks.number(name, "tail_threshold", tail_threshold, low=0.0)
    checks.strength(name, "rho", rho, low=0.0)
    checks.strength(name, "tail_weight", tail_weight, low=0.0)
    check_place(name, "labels_arg", labels_arg)
    checks.axis_name(name, axis_name)
    checks.choice(name, "aux_from", aux_from, AUX_FROM)
    checks.number(name, "norm_eps", norm_eps, low=0.0)

    def objective(loss: BoundLoss, params: PyTree, step: Any) -> Any:
        radius = strength_at(name, "rho", rho, step, low=0.0)
        weight = strength_at(name, "tail_weight", tail_weight, step, low=0.0)
        labels = argument(name, "labels_arg", labels_arg, loss.args, loss.kwargs, "the array of labels")
        rare = _is_rare(name, labels, sharding.replicate(counts), tail_threshold)

        def tail_loss(params: PyTree, *args: Any, **kwargs: Any) -> tuple[Array, Any]:
            _, aux = mean_loss(params, *args, **kwargs)
            return jnp.mean(jnp.where(rare, aux[0], 0)), aux

        _, (losses, clean_aux) = loss(params)
        if losses.shape != rare.shape:
            checks.fail(name, "labels_arg", f"where the labels of the {losses.size} losses are", labels)
        tail, aux = losses, clean_aux
        if not is_zero(radius):
            inner = dataclasses.replace(loss, loss_fn=tail_loss).gradient(params, axis_name)
            active = jnp.asarray(radius) != 0
            _, (tail, aux) = loss(shift(params, ascent(inner.gradient, radius, norm_eps), active))
            # At strength 0 the two passes are one, with one gradient.
            tail = jnp.where(active, tail, losses)
        value = jnp.mean(jnp.where(rare, jnp.asarray(weight, tail.dtype) * tail, losses))
        aux = clean_aux if aux_from == "clean" else aux
        return (value, freeze(aux)) if has_aux else value

    return lift(name, mean_loss, True, objective)


def _is_rare(name: str, labels: Any, counts: Array, threshold: Any) -> Array:
    """Whether the class of each example has fewer than ``threshold`` examples."""
    labels = checks.array(name, "labels_arg", labels)
    is_ids = jnp.issubdtype(labels.dtype, jnp.integer) and labels.ndim == 1
    if not is_ids and not (trees.is_float(labels) and labels.ndim == 2 and labels.shape[1] == counts.size):
        expected = f"where class ids of shape [B] or probabilities of shape [B, {counts.size}] are"
        checks.fail(name, "labels_arg", expected, labels)
    ids = labels.astype(jnp.int32) if is_ids else jnp.argmax(labels, axis=-1).astype(jnp.int32)
    known = (ids >= 0) & (ids < counts.size)
    return known & sharding.take_rows(counts < threshold, jnp.where(known, ids, 0))
