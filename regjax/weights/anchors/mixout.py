"""Mixout: dropout towards the pretrained weights instead of towards zero."""

from typing import Any

import jax
import jax.numpy as jnp

from regjax.core import checks, sharding, trees
from regjax.core.types import Array, Key, PyTree, Strength, Where


def apply_mixout(
    params: PyTree, anchor: PyTree, keep: PyTree, *, rate: Strength = 0.9, reference_gradient: bool = False
) -> PyTree:
    r"""Replaces weights by those of an anchor under given masks, with the mean kept.

    Formula:
      .. math:: w' = \frac{m w + (1 - m) a - p a}{1 - p} = a + \frac{m}{1 - p} (w - a)

      for the mask m (1 keeps a weight), the anchor a and the rate p; at p = 1 the anchor. The mean over masks is w.

    Args:
      params: a parameter tree, w.
      anchor: a, a tree of the same structure and shapes, constant: such as the pretrained weights.
      keep: m, a tree as ``params`` of boolean masks, each of the shape of its leaf or with axes of length 1; None for a leaf that
        passes unchanged, as those that are no floats do.
      rate: p, the probability of False in the masks, in [0, 1], default 0.9. At 0 weights that are kept are exact.
      reference_gradient: whether the gradient to w is the authors' g m instead of the derivative g m / (1 - p); default False.

    Returns:
      The parameters, in their own dtypes, computed in float32 or better.

    Raises:
      ValueError: if the trees or masks do not fit, ``rate`` lies outside [0, 1], or ``reference_gradient`` is no bool.

    Cost:
      One pass over the parameters and the anchor, which stays in memory.
      XLA at 24 times [512, 512]: at most 2.6 times the FLOPs and 1.1 times the bytes of a copy of its arguments, and 0 times
      its memory more.

    Use:
      Part of: `mixout`.
      When: With masks of your own: the same mask for several steps or for both passes of `sam`, masks of whole rows, or a test
        that must repeat.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> w, a, m = jnp.array([2.0, 2.0]), jnp.array([1.0, 1.0]), jnp.array([True, False])
      >>> [round(float(x), 4) for x in rj.weights.apply_mixout(w, a, m, rate=0.3)]
      [2.4286, 1.0]

    References:
      See `mixout`.
    """
    name = "weights.apply_mixout"
    checks.same_structure(name, "anchor", anchor, params, "params")
    checks.number(name, "rate", rate, low=0.0, high=1.0)
    checks.boolean(name, "reference_gradient", reference_gradient)
    leaves = jax.tree.leaves(params)
    structure: Any = jax.tree.structure(params)
    try:
        masks = structure.flatten_up_to(keep)
    except (ValueError, TypeError):
        expected = "a tree of masks of the structure of params, with None for leaves that pass"
        checks.fail(name, "keep", expected, jax.tree.structure(keep))
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]]
    for i, (path, a, m) in enumerate(zip(paths, jax.tree.leaves(anchor), masks, strict=True)):
        if m is not None and trees.is_float(leaves[i]):
            leaves[i] = _mix(name, path, leaves[i], a, m, rate, reference_gradient)
    return jax.tree.unflatten(structure, leaves)


def mixout(
    key: Key,
    params: PyTree,
    anchor: PyTree,
    *,
    rate: Strength = 0.9,
    mask: Where = None,
    shared_axis: int | None = None,
    reference_gradient: bool = False,
) -> PyTree:
    r"""Replaces weights at random by the pretrained ones, for fine-tuning large models on little data.

    Formula:
      .. math:: w' = \frac{m w + (1 - m) a - p a}{1 - p}, \quad m \sim Bernoulli(1 - p)

      for the anchor a and the rate p. The mean over masks is w; with an anchor of 0 it is DropConnect.

    Args:
      key: a random key.
      params: a parameter tree, w; call the model with the result in training, with ``params`` themselves in evaluation.
      anchor: a, a tree of the same structure and shapes, constant: the pretrained weights. That of a new head is
        its start, or 0.
      rate: p, the probability that a weight is replaced, in [0, 1], default 0.9; 0 is ``params`` exactly, 1 the anchor.
      mask: which leaves: None (default) or "kernels", "all", a predicate ``(path, leaf) -> bool``, or a tree of booleans.
      shared_axis: an axis along which one draw holds for all, in leaves of two or more dimensions: -1, the outputs of a dense
        kernel, replaces whole inputs as the authors' code does. None (default): every weight has its own.
      reference_gradient: whether the gradient to w is the authors' g m instead of the derivative g m / (1 - p); default False.

    Returns:
      The parameters, in their own dtypes, computed in float32 or better.

    Raises:
      ValueError: if the trees do not fit, ``rate`` lies outside [0, 1], ``mask`` names no leaves of ``params``, ``shared_axis``
        is no axis of a leaf, or an option is of another kind.

    Cost:
      A random number for every weight, or for every row with ``shared_axis``; the anchor stays in memory. No extra pass of the
      model.
      XLA at 16 times [512, 512]: at most 37 times the FLOPs and 5.5 times the bytes of a copy of its arguments, and 0.069 times
      its memory more.

    Use:
      For: fine-tuning, few labels.
      When: A large pretrained network is fine-tuned on some hundreds or thousands of examples and runs differ much by seed. A
        rate of 0.7 to 0.9 keeps it near its start; evaluate with the plain parameters.
      Not when: There is no pretrained start (with an anchor of 0 take `DropConnect`), or most weights are new: their anchor is
        only their random initialisation.
      Badly with: Batch normalisation, whose running statistics belong to the mixed weights; weight decay to 0, which pulls away
        from the anchor; dropout of the same layers, noise twice; adapters such as `LoRALinear`, whose kernels are frozen
        anyway.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> params, anchor = {"kernel": jnp.full((50, 20), 2.0)}, {"kernel": jnp.ones((50, 20))}
      >>> mixed = rj.weights.mixout(jax.random.key(0), params, anchor, rate=0.3)["kernel"]
      >>> sorted({round(float(x), 4) for x in mixed.ravel()})
      [1.0, 2.4286]

    References:
      Lee et al., Mixout: Effective Regularization to Finetune Large-scale Pretrained Language Models, 2020, arXiv 1909.11299.
      The authors' code draws one mask row for all outputs of a dense layer (``shared_axis``), and its hand-written gradient
      leaves out 1 / (1 - p) (``reference_gradient``). The defaults here are the paper's formula and its derivative.
    """
    name = "weights.mixout"
    checks.key(name, key)
    checks.same_structure(name, "anchor", anchor, params, "params")
    checks.number(name, "rate", rate, low=0.0, high=1.0)
    checks.boolean(name, "reference_gradient", reference_gradient)
    if shared_axis is not None:
        checks.integer(name, "shared_axis", shared_axis)
    chosen = trees.select(name, params, mask, "mask")
    leaves, structure = jax.tree.flatten(params)
    used = [i for i, use in enumerate(jax.tree.leaves(chosen)) if use]
    masks: list[Array | None] = [None] * len(leaves)
    threshold = jnp.asarray(rate, jnp.float32)
    for i, each in zip(used, jax.random.split(key, len(used)) if used else (), strict=True):
        if not trees.is_float(leaves[i]):
            checks.fail(name, "mask", "a choice of floating-point leaves", leaves[i])
        shape = _draws(name, jnp.shape(leaves[i]), shared_axis)
        masks[i] = ~(jax.random.uniform(each, shape, jnp.float32) < threshold)
    keep = jax.tree.unflatten(structure, masks)
    return apply_mixout(params, anchor, keep, rate=rate, reference_gradient=reference_gradient)


def _draws(name: str, shape: tuple[int, ...], shared_axis: int | None) -> tuple[int, ...]:
    """The shape of a leaf's mask."""
    if shared_axis is None or len(shape) < 2:
        return shape
    if not -len(shape) <= shared_axis < len(shape):
        checks.fail(name, "shared_axis", f"an axis of every leaf, also of one of {len(shape)} dimensions", shared_axis)
    axis = shared_axis % len(shape)
    return (*shape[:axis], 1, *shape[axis + 1 :])


def _mix(name: str, path: str, w: Any, anchor: Any, keep: Any, rate: Any, reference_gradient: bool) -> Array:
    w = checks.floating(name, "params" + path, w)
    keep = checks.array(name, "keep" + path, keep)
    fits = keep.ndim == w.ndim and all(k in (1, n) for k, n in zip(keep.shape, w.shape, strict=True))
    if keep.dtype != jnp.bool_ or not fits:
        checks.fail(name, "keep" + path, f"a boolean mask of shape {list(w.shape)}, or of length 1 along some axes", keep)
    dtype = trees.accumulator(w)
    wide = w.astype(dtype)
    a = sharding.placed_like(jax.lax.stop_gradient(jnp.asarray(anchor)).astype(dtype), wide)
    keep = sharding.placed_like(jnp.broadcast_to(keep, w.shape), wide)
    p = jnp.asarray(rate, dtype)
    # Written as w + p / (1 - p) (w - a), a weight that is kept is exact at rate 0; at rate 1 none is.
    none = p >= 1
    ratio = jnp.where(none, 0, p / jnp.where(none, 1, 1 - p))
    mixed = jnp.where(keep & ~none, wide + ratio * (wide - a), a)
    if reference_gradient:
        mixed = jax.lax.stop_gradient(mixed) + jnp.where(keep, wide - jax.lax.stop_gradient(wide), 0)
    return mixed.astype(w.dtype)
