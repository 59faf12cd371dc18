"""How far a function is from commuting with a symmetry."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from regjax.core import checks, trees
from regjax.core.types import Array


def equivariance_error(
    f: Callable[[Array], Array],
    x: Any,
    act_in: Callable[[Array], Array],
    act_out: Callable[[Array], Array],
    *,
    where: Any = None,
) -> Array:
    r"""The mean relative difference between acting before and acting after a function.

    Formula:
      .. math:: \frac{1}{B} \sum_b \frac{\lVert f(g x_b) - g f(x_b) \rVert}{\lVert f(g x_b) \rVert + \lVert g f(x_b) \rVert}

      between 0, of an equivariant function, and 1.

    Args:
      f: a function of batches, ``[B, ...] -> [B, ...]``.
      x: float ``[B, ...]``.
      act_in: how an element g of the group acts on a batch of inputs.
      act_out: how it acts on a batch of outputs; the identity asks for invariance.
      where: boolean ``[B]``: which examples count; default all.

    Returns:
      A scalar in float32 or better; two zero outputs count as equal.

    Raises:
      ValueError: if an argument is no function, no floating array or mask, or the outputs are not alike in shape.

    Cost:
      Two forward passes.
      XLA at an MLP [64, 256, 256, 10] with batch 128: at most 2.3 times the FLOPs and 2.3 times the bytes of a forward pass,
      and 0.23 times its memory more.

    Use:
      For: distribution shift.
      When: A soft symmetry is trained or assumed (`soft_equivariance`, `equivariance_penalty`, augmentation): measure it on
        held-out images and, by layer, on features, for each element of the group.
      Not when: The action changes the input itself, as a rotation by 10 degrees that resamples pixels: part of the error is
        then the action's. Predictions are asked, not outputs: compare classes.
      Badly with: Outputs with a large constant part, such as a bias: the norms below the line are then large, and the error
        reads small. Functions of the whole batch (batch statistics) or with dropout.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> turn = lambda x: jnp.stack([-x[:, 1], x[:, 0]], -1)
      >>> error = lambda w: rj.diagnostics.equivariance_error(lambda x: w * x, jnp.array([[3.0, 4.0]]), turn, turn)
      >>> round(float(error(2.0)), 4), round(float(error(jnp.array([1.0, -1.0]))), 4)
      (0.0, 1.0)

    References:
      Kim et al., Regularizing Towards Soft Equivariance Under Mixed Symmetries, 2023, arXiv 2306.00356.
    """
    name = "diagnostics.equivariance_error"
    for argument, fn in (("f", f), ("act_in", act_in), ("act_out", act_out)):
        checks.function(name, argument, fn)
    x = checks.floating(name, "x", x, min_ndim=1)
    where = checks.example_mask(name, "where", where, x.shape[:1])
    before = checks.floating(name, "f", f(act_in(x)), min_ndim=1)
    after = checks.floating(name, "act_out", act_out(f(x)), shape=before.shape)
    if before.shape[0] != x.shape[0]:
        checks.fail(name, "f", f"a function that returns one output for each of {x.shape[0]} examples", before)
    dtype = trees.accumulator(before, after)
    before, after = (y.astype(dtype) for y in (before, after))

    def length(y: Array) -> Array:
        return trees.safe_norm(y, axis=tuple(range(1, y.ndim))) if y.ndim > 1 else trees.absolute(y)

    total = length(before) + length(after)
    some = total > 0
    error = jnp.where(some, length(before - after) / jnp.where(some, total, 1), 0)
    if where is None:
        return jnp.mean(error)
    return jnp.sum(jnp.where(where, error, 0)) / jnp.maximum(jnp.sum(where), 1).astype(dtype)
