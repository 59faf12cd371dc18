"""Dataset distillation: a few synthetic images on which training follows the path that it takes on a whole dataset."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from regjax.core import checks, classes, sharding, trees
from regjax.core.types import Array, Key, PyTree
from regjax.objectives.lift import freeze


def trajectory_matching_loss(
    apply_fn: Callable[[PyTree, Array], Array],
    images: Any,
    labels: Any,
    start_params: PyTree,
    target_params: PyTree,
    learning_rate: Any,
    *,
    num_steps: int,
    key: Key | None = None,
    augment: Callable[[Key, Array], Array] | None = None,
    batch_size: int | None = None,
) -> Array:
    r"""How far training on synthetic images ends from where an expert, from the same start, got to on real data.

    Formula:
      .. math:: \theta_{j+1} = \theta_j - \eta \nabla_\theta \frac{1}{b} \sum_i CE(g(\theta_j, A_j(x_i)), y_i), \quad
        \frac{\|\theta_J - \theta^*\|^2}{\|\theta_0 - \theta^*\|^2}

      from the expert's parameters :math:`\theta_0` at some epoch to its :math:`\theta^*` some epochs later, for the network g
      and augmentations A. It is differentiable by the images, by soft labels and by the learning rate :math:`\eta`. Experts
      trained with a flatness-aware optimiser leave images on which more steps stay on the path: FTD.

    Args:
      apply_fn: ``apply_fn(params, images) -> logits [B, K]``.
      images: float ``[M, ...]``, the synthetic images.
      labels: class ids ``[M]``, or probabilities ``[M, K]``.
      start_params: :math:`\theta_0`, a parameter tree, constant.
      target_params: :math:`\theta^*`, a tree of the same structure and shapes, constant; two or three epochs later.
      learning_rate: :math:`\eta`, at least 0, a number or a scalar array.
      num_steps: J, at least 0; 20 to 30 in the paper.
      key: a random key, for ``augment`` and ``batch_size``.
      augment: ``augment(key, images) -> images``, differentiable by the images; None (default): none. Every step has a key of
        its own.
      batch_size: how many images a step takes, at most M, from one shuffled order of all after another; None (default): all of
        them in every step. What is left at the end of an order is not used.

    Returns:
      A scalar in float32 or better; 1 for 0 steps, 0 where training lands on the target. If the target is the start, the squared
      distance alone. The parameters are kept in float32 or better between steps, and ``apply_fn`` gets them in their own dtypes.

    Raises:
      ValueError: if a shape, dtype or option does not fit, ``apply_fn`` returns no logits for the labels, or ``key`` is missing.

    Cost:
      J training steps, and about four times their cost to differentiate. Each step is computed anew in the backward pass, so that
      the memory is that of one step, and a copy of the parameters for each. Batches of sharded images are gathered. XLA counts
      one step.
      XLA at an MLP [64, 256, 256, 10] with batch 128: at most 4.5 times the FLOPs and 8.1 times the bytes of a forward and
      backward pass, and 5.1 times its memory more.

    Use:
      For: compute budget.
      When: A data set is to be distilled into a few synthetic images for one family of networks. Save experts after each epoch,
        trained by `gsam` in its adaptive form, so that errors of the path add up less.
      Not when: Other architectures are to learn from the images, as they fit the experts'. Many images a class: the unrolled
        steps no longer cover them.
      Badly with: Experts with BatchNorm averages, momentum or decay that the unrolled plain SGD does not have. Augmentations
        without a gradient by the pixels, such as `randaugment` with posterize. Late epochs, whose targets lie next to the
        start.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> images, labels = jnp.array([[1.0, 0.0], [0.0, 1.0]]), jnp.array([0, 1])
      >>> start, target = jnp.zeros((2, 2)), jnp.eye(2) - 0.5
      >>> loss = lambda x, lr: rj.objectives.trajectory_matching_loss(jnp.dot, x, labels, start, target, lr, num_steps=1)
      >>> round(float(loss(images, 0.0)), 4), round(float(loss(images, 1.0)), 4)
      (1.0, 0.25)

    References:
      Du et al., Minimizing the Accumulated Trajectory Error to Improve Dataset Distillation, 2022, arXiv 2211.11004 (FTD), with
      the loss of Cazenavette et al., Dataset Distillation by Matching Training Trajectories, 2022, arXiv 2203.11932. The
      authors' experts are trained with GSAM in its adaptive form, rho 0.01 and alpha 0.4, at learning rate 0.01 without momentum
      or decay; images and learning rate by SGD with momentum 0.5; evaluated is a moving average of the images.
    """
    name = "objectives.trajectory_matching_loss"
    checks.function(name, "apply_fn", apply_fn)
    images = checks.floating(name, "images", images, min_ndim=1)
    labels = checks.array(name, "labels", labels, min_ndim=1)
    if not len(images) or len(labels) != len(images):
        checks.fail(name, "labels", f"an array for each of {len(images)} images, one or more", labels)
    checks.same_structure(name, "target_params", target_params, start_params, "start_params")
    checks.number(name, "learning_rate", learning_rate, low=0.0)
    checks.integer(name, "num_steps", num_steps, low=0)
    if augment is not None:
        checks.function(name, "augment", augment)
    if batch_size is not None:
        checks.integer(name, "batch_size", batch_size, low=1, high=len(images))
    if key is None and (augment is not None or batch_size is not None):
        checks.fail(name, "key", "a random key, as augment or batch_size needs one", key)

    fixed = freeze(start_params)
    narrow = trees.float_leaves(fixed)
    start = [leaf.astype(trees.accumulator(leaf)) for leaf in narrow]
    pairs = zip(jax.tree.leaves(freeze(target_params)), jax.tree.leaves(fixed), strict=True)
    target = [jnp.asarray(t).astype(trees.accumulator(s)) for t, s in pairs if trees.is_float(s)]
    keys, order = _randomness(name, key, num_steps, len(images), augment is not None, batch_size)

    def loss(leaves: list[Array], x: Array, y: Array) -> Array:
        params = trees.with_float_leaves(fixed, [leaf.astype(like.dtype) for leaf, like in zip(leaves, narrow, strict=True)])
        logits = checks.floating(name, "apply_fn", apply_fn(params, x), ndim=2)
        return jnp.mean(classes.cross_entropy(classes.class_inputs(name, logits, y)))

    def step(leaves: list[Array], random: tuple[Any, Any]) -> tuple[list[Array], None]:
        key, rows = random
        x, y = (images, labels) if rows is None else (sharding.take_rows(images, rows), sharding.take_rows(labels, rows))
        gradient = jax.grad(loss)(leaves, x if augment is None else augment(key, x), y)
        return [leaf - jnp.asarray(learning_rate, leaf.dtype) * g for leaf, g in zip(leaves, gradient, strict=True)], None

    # What is kept for the backward pass are the parameters of each step, and no activations.
    end, _ = jax.lax.scan(jax.checkpoint(step, prevent_cse=False), start, (keys, order), length=num_steps)
    distance = trees.sum_squares([a - b for a, b in zip(end, target, strict=True)])
    whole = trees.sum_squares([a - b for a, b in zip(start, target, strict=True)])
    return distance / jnp.where(whole > 0, whole, 1)


def _randomness(
    name: str, key: Key | None, num_steps: int, num_images: int, augments: bool, batch_size: int | None
) -> tuple[Array | None, Array | None]:
    """A key for each step, and the images that it takes, ``[num_steps, batch_size]``."""
    if key is None:
        return None, None
    for_augment, for_order = jax.random.split(checks.key(name, key))
    keys = jax.random.split(for_augment, num_steps) if augments else None
    if batch_size is None:
        return keys, None
    in_each = num_images // batch_size  # batches in one order of all images
    orders = jax.random.split(for_order, -(-num_steps // in_each))
    shuffled = jax.vmap(lambda each: jax.random.permutation(each, num_images)[: in_each * batch_size])(orders)
    return keys, shuffled.reshape(-1, batch_size)[:num_steps]
