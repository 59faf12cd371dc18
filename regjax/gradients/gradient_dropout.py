"""Gradient dropout by agreement: entries of the gradient pass with the probability that a second gradient lends them."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from regjax.core import checks, trees
from regjax.core.sharding import explicit_sharding, placed_like
from regjax.core.strength import resolve
from regjax.core.types import Array, PyTree, Strength
from regjax.gradients.updates import StepState, first_step, is_absent


def agreement_keep_prob(g: Any, ref: Any, *, eps: Any = 1e-8) -> Array:
    r"""The probability with which each entry of a gradient is kept, by its agreement with a reference gradient.

    Formula:
      .. math:: P = \frac{1}{2} \left( sign(g) \frac{g + r}{|g| + |r| + \epsilon} + 1 \right)

      1 where the signs agree, :math:`|g| / (|g| + |r|)` where they disagree, and 1/2 where g is 0.

    Args:
      g: float ``[...]``, the gradient that moves the weights.
      ref: float ``[...]`` of the same shape, r: the gradient that only gates.
      eps: at least 0, default 1e-8. Gradients of that size and below draw P towards 1/2 even where the signs agree; with
        tiny gradients pass less, down to 1e-30 in float32.

    Returns:
      P in [0, 1], of the shape of ``g``, in float32 or better.

    Raises:
      ValueError: if a shape or dtype does not fit, or ``eps`` is negative or not finite.

    Cost:
      About 13 FLOPs for each entry.
      XLA at 2 times [512, 512]: at most 7.2 times the FLOPs and 0.83 times the bytes of a copy of its arguments, and 0 times
      its memory more.

    Use:
      Part of: `gradient_dropout`.
      When: Call it to see where two tasks disagree, or to weigh a gradient by the probability instead of drawing.
      Badly with: Gradients near ``eps``, as in bfloat16 or after averaging: pass less.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> keep = rj.gradients.agreement_keep_prob(jnp.array([1.0, -2.0, -0.5]), jnp.array([2.0, 1.0, 1.5]))
      >>> [round(float(p), 4) for p in keep]
      [1.0, 0.6667, 0.25]

    References:
      Zheng et al., Regularized Mask Tuning: Uncovering Hidden Knowledge in Pre-trained Vision-Language Models, 2023,
      arXiv 2307.15049. The rule is that of Chen et al., Just Pick a Sign: Optimizing Deep Multitask Models with Gradient
      Sign Dropout, 2020, arXiv 2010.06808, seen from one of the two losses.
    """
    name = "gradients.agreement_keep_prob"
    g = checks.floating(name, "g", g)
    ref = checks.floating(name, "ref", ref, shape=g.shape)
    checks.number(name, "eps", eps, low=0.0)
    return _keep_prob(g, ref, eps)


def gradient_dropout(*, strength: Strength = 1.0, seed: int = 0, eps: float = 1e-8) -> optax.GradientTransformationExtraArgs:
    r"""Drops entries of the gradient that disagree with the gradient of what the network knew before.

    Formula:
      .. math:: g' = \left( (1 - s) + s \, 1[P > u] \right) g, \quad
                P = \frac{1}{2} \left( sign(g) \frac{g + r}{|g| + |r| + \epsilon} + 1 \right), \quad u \sim U(0, 1)

      g is the gradient of the task, r that of the general knowledge by the same parameters (of `teacher_cross_entropy`
      against the pretrained network, say), which gates and does not move. Nothing is rescaled: the mean of g' is
      ``g ((1 - s) + s P)``.

    Args:
      strength: s in [0, 1], default 1, a number or a schedule of the step, which is counted from 0. 0 changes nothing.
      seed: of the random numbers, default 0: they follow from the seed, the step and the place of a leaf among the
        floating ones. Two of these in one optimiser take different seeds.
      eps: as in `agreement_keep_prob`, at least 0, default 1e-8.

    Returns:
      An optax transformation, the first of its chain: ``update(updates, state, params=None, *, reference)``, with r a tree
      of the structure of the updates, whole also where ``optax.masked`` or ``optax.multi_transform`` leaves updates out.
      ``optax.MultiSteps`` gates the mean gradient by the r of the last small step. The state is a `StepState`. Dtypes and
      shardings of the updates stay, updates that are no floats pass, and every device draws the same numbers.

    Raises:
      ValueError: if ``strength`` lies outside [0, 1], ``seed`` is no integer, ``eps`` is negative; in ``update``, if
        ``reference`` is missing or of another structure or shape.

    Cost:
      About 70 integer and floating operations for each weight, most of them for random bits: 1.03x the FLOPs of a step of a
      small network on 512 examples. The reference gradient is the caller's: one more backward pass of the network, and a
      forward pass of the teacher.
      XLA at an MLP [64, 256, 256, 10] with batch 128: at most 1.3 times the FLOPs and 2.1 times the bytes of a plain training
      step, and 0.51 times its memory more.

    Use:
      For: forgetting, fine-tuning.
      When: Few-shot fine-tuning that shall not forget: a second gradient, of `teacher_cross_entropy` on examples that the
        teacher knows, gates the first. On rotated digits it kept the old ones better and learned the new ones as well.
      Not when: No examples of the old kind, as the reference protects nothing elsewhere. A second backward pass is too dear:
        `l2_sp` or `ewc`. The new task contradicts the old: much of it is blocked.
      Badly with: Adam, whose division by the size of gradients gives back part of what was dropped. Weight decay, which moves
        dropped entries. Its place after the optimiser or clipping. ``optax.MultiSteps``, which gates by the last small step's
        reference.

    Example:
      >>> import jax.numpy as jnp, optax, regjax as rj
      >>> tx = optax.chain(rj.gradients.gradient_dropout(), optax.sgd(0.1))
      >>> params = {"kernel": jnp.zeros(3)}
      >>> task, knowledge = {"kernel": jnp.array([1.0, -2.0, 0.0])}, {"kernel": jnp.array([3.0, -1.0, 5.0])}
      >>> updates, _ = tx.update(task, tx.init(params), params, reference=knowledge)
      >>> [round(float(x), 4) for x in updates["kernel"]]
      [-0.1, 0.2, -0.0]

    References:
      Zheng et al., Regularized Mask Tuning: Uncovering Hidden Knowledge in Pre-trained Vision-Language Models, 2023,
      arXiv 2307.15049. As in the authors' code: u for each entry, and strength 1 by default; the paper's strength differs
      between data sets. There both losses see the same examples. Where the teacher knows nothing of these, r protects
      nothing: take it on examples that the teacher knows.
    """
    name = "gradients.gradient_dropout"
    checks.strength(name, "strength", strength, low=0.0, high=1.0)
    if not isinstance(seed, jax.Array):  # optax.inject_hyperparams makes an array of it
        checks.integer(name, "seed", seed)
    checks.number(name, "eps", eps, low=0.0)

    def update(
        updates: PyTree, state: StepState, params: PyTree = None, *, reference: PyTree = None, **extra_args: Any
    ) -> tuple[PyTree, StepState]:
        if reference is None:
            checks.fail(name, "reference", "given: tx.update(updates, state, params, reference=gradient)", reference)
        structure: Any = jax.tree.structure(updates, is_leaf=is_absent)
        leaves = structure.flatten_up_to(updates)
        try:
            others = structure.flatten_up_to(reference)
        except (ValueError, TypeError):
            text = f"a tree of the structure of the updates, of {structure.num_leaves} leaves"
            checks.fail(name, "reference", text, jax.tree.structure(reference))
        scale = resolve(strength, state.step, name, "strength")
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        # Numbered among the leaves with a gradient: a counter beside them changes no random number.
        chosen = [i for i, leaf in enumerate(leaves) if not is_absent(leaf) and trees.is_float(leaf)]
        for number, i in enumerate(chosen):
            ref = checks.floating(name, "reference", others[i], shape=jnp.shape(leaves[i]))
            leaves[i] = _drop(jax.random.fold_in(key, number), jnp.asarray(leaves[i]), ref, scale, eps)
        return jax.tree.unflatten(structure, leaves), StepState(optax.safe_increment(state.step))

    return optax.GradientTransformationExtraArgs(first_step, update)


def _drop(key: Array, g: Array, ref: Array, strength: Any, eps: Any) -> Array:
    u = jax.random.uniform(key, g.shape, jnp.float32, out_sharding=explicit_sharding(g))
    keep = _keep_prob(g, placed_like(ref, g), eps) > u
    dtype = trees.accumulator(g)
    strength = jnp.asarray(strength, dtype)
    return (jnp.where(keep, 1, 1 - strength) * g.astype(dtype)).astype(g.dtype)


def _keep_prob(g: Array, ref: Array, eps: Any) -> Array:
    dtype = trees.accumulator(g, ref)
    g, ref = g.astype(dtype), ref.astype(dtype)
    size = jnp.abs(g) + jnp.abs(ref) + jnp.asarray(eps, dtype)
    none = size <= 0
    return (jnp.where(none, 0, jnp.sign(g) * (g + ref) / jnp.where(none, 1, size)) + 1) / 2
