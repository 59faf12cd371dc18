"""Weights of a fixed length, for layers in front of a normalisation."""

from typing import Any

import jax
import jax.numpy as jnp

from regjax.core import checks, trees
from regjax.core.types import Array, PyTree, Where


def renormalize(params: PyTree, mask: Where = None, *, norm: Any = 1.0, reference: PyTree = None) -> PyTree:
    r"""Gives each chosen weight a fixed length: where a normalisation follows, the model stays the same.

    Formula:
      .. math:: w \leftarrow c \, \frac{w}{\|w\|}, \quad or \quad c \, \|w_0\| \frac{w}{\|w\|} \ with \ a \ reference \ w_0

      for each leaf by itself. After each step it takes the place of L2 regularisation, whose only effect on such weights is to
      set their length, and with it the effective learning rate.

    Args:
      params: the weights.
      mask: which leaves, as ``where`` elsewhere: None (default): kernels. Choose those that a normalisation follows.
      norm: c, above 0, default 1.
      reference: w_0, a tree like ``params``, such as the initial weights; None (default): c is the length itself.

    Returns:
      The weights in their own dtypes. A weight of length 0 stays.

    Raises:
      ValueError: if ``norm`` is not above 0, a chosen leaf is not floating, or ``reference`` does not match ``params``.

    Cost:
      Three passes over the weights.
      XLA at 8 times [512, 512]: at most 8.8 times the FLOPs and 3.3 times the bytes of a copy of its arguments, and 0.55 times
      its memory more.

    Use:
      For: unstable training.
      When: Kernels that a normalisation follows, in long runs: their norms grow and the effective learning rate falls. Call it
        after each update in place of weight decay; check the choice with `scale_invariance_error`.
      Not when: No normalisation follows, as at the classifier: the default mask takes all kernels, and that changes the model.
        Then `project_l2_ball` only limits the norm.
      Badly with: Weight decay on the same leaves, which it undoes; `lawn`, which fixes the norms already; `proximal_step`,
        which passes a step where the mask stands; low precision weights, where a small rescaling rounds away.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> params = {"kernel": jnp.array([[3.0, 4.0]]), "bias": jnp.ones(2)}
      >>> after = rj.weights.renormalize(params)
      >>> [round(float(w), 4) for w in after["kernel"][0]], after["bias"].tolist()
      ([0.6, 0.8], [1.0, 1.0])

    References:
      van Laarhoven, L2 Regularization versus Batch and Weight Normalization, 2017, arXiv 1706.05350, where normalising the
      weights after each step is named as the way to keep the effective learning rate in hand.
    """
    name = "weights.renormalize"
    checks.number(name, "norm", norm, low=0.0, open_low=True)
    if reference is not None:
        checks.same_structure(name, "reference", reference, params, "params")

    def leaf(w: Any, like: Any) -> Array:
        if not trees.is_float(w):
            checks.fail(name, "mask", "a choice of floating leaves", w)
        w = jnp.asarray(w)
        wide = w.astype(trees.accumulator(w))
        # First by the largest entry: the squares of tiny or huge weights leave float32.
        top = jax.lax.stop_gradient(jnp.max(jnp.abs(wide), initial=0))
        some = top > 0
        scaled = wide / jnp.where(some, top, 1)
        length = jnp.asarray(norm, wide.dtype)
        if reference is not None:
            length = length * trees.global_norm(like).astype(wide.dtype)
        factor = length / jnp.where(some, trees.safe_norm(scaled), 1)
        return jnp.where(some, scaled * factor, wide).astype(w.dtype)

    chosen = trees.select(name, params, mask, "mask")
    return jax.tree.map(
        lambda use, w, like: leaf(w, like) if use else w, chosen, params, params if reference is None else reference
    )
