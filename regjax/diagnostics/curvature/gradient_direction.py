"""How much the directions of gradients differ: between batches, and from the gradient of the whole training set."""

from typing import Any

import jax
import jax.numpy as jnp

from regjax.core import checks, trees
from regjax.core.types import Array, PyTree


def gradient_direction_variance(grads: PyTree) -> Array:
    r"""The mean distance of direction between the gradients of several batches.

    Formula:
      .. math:: \frac{2}{G (G - 1)} \sum_{i < j} \frac{1 - \cos(g_i, g_j)}{2}

      over all parameters as one vector: 0 if all point the same way, 1/2 for orthogonal ones, 1 for two opposite ones. A
      zero gradient has cosine 0 with every other.

    Args:
      grads: the gradients at the same weights for G >= 2 batches: a list of G trees, or one array ``[G, P]`` or tree with a
        leading axis G, as ``jax.vmap(jax.grad(loss), (None, 0))`` gives it. Leaves that are no floats are left out.

    Returns:
      A scalar in [0, 1], in float32 or better.

    Raises:
      ValueError: if there are fewer than two gradients, none of the leaves is floating, or shapes or structures differ.

    Cost:
      O(G P): the mean over pairs is that of the squared distances to the mean direction, so that no pair is formed.
      XLA at 4 times [16, 256, 256]: at most 12 times the FLOPs and 3.5 times the bytes of a copy of its arguments, and 0.7
      times its memory more.

    Use:
      For: unstable training, compute budget.
      When: To see, with and without it, whether `early_dropout` or a larger batch lines up the gradients of a model that
        underfits: same weights, first epochs, batches of the size in use. No full gradient is needed.
      Not when: The model overfits, where agreement of batches is not what is missing. G gradients of a large model do not fit
        in memory: take a few leaves.
      Badly with: Small batches late in training, whose gradients are all but orthogonal: every method then reads 1/2. Penalties
        in the loss, a common part that makes batches agree.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> grads = jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
      >>> round(float(rj.diagnostics.gradient_direction_variance(grads)), 4)
      0.2643

    References:
      Liu et al., Dropout Reduces Underfitting, 2023, arXiv 2303.01500, from the paper's text. They find on ImageNet that
      dropout lowers it early in training, and explain by that why early dropout helps a model that underfits.
    """
    name = "diagnostics.gradient_direction_variance"
    leaves, count, dtype = _stacked(name, grads, low=2)
    units, present = _directions(leaves, dtype)
    # For unit vectors the sum over pairs of |u_i - u_j|^2 is G times the sum of |u_i - mean|^2, and 1 - cos is half of the
    # former: nothing cancels for gradients that nearly agree. A zero gradient is no unit vector, and adds the rest of 1/2.
    spread = sum(jnp.sum(jnp.square(u - jnp.mean(u, axis=0))) for u in units)
    absent = count - jnp.sum(present, dtype=dtype)
    return spread / (2 * (count - 1)) + absent / (2 * count)


def gradient_direction_error(grads: PyTree, full_grad: PyTree) -> Array:
    r"""The mean distance of direction from the gradients of batches to the gradient of the whole training set.

    Formula:
      .. math:: \frac{1}{G} \sum_i \frac{1 - \cos(g_i, g_{full})}{2}

      over all parameters as one vector: 0 if all point its way, 1/2 if they are orthogonal to it, 1 if opposite. The cosine
      with a zero gradient is 0.

    Args:
      grads: the gradients at the same weights for G >= 1 batches, as in `gradient_direction_variance`.
      full_grad: the gradient over the whole training set, without dropout: an array ``[P]`` or a tree like one of ``grads``.

    Returns:
      A scalar in [0, 1], in float32 or better.

    Raises:
      ValueError: if there is no gradient, none of the leaves is floating, or shapes or structures differ.

    Cost:
      O(G P).
      XLA at 4 times [16, 256, 256]: at most 9.8 times the FLOPs and 3.5 times the bytes of a copy of its arguments, and 0.69
      times its memory more.

    Use:
      For: unstable training, compute budget.
      When: Noise that biases the gradient is judged: dropout, augmentation, compression or stale gradients against the clean
        gradient of the whole set, which `gradient_direction_variance` cannot see.
      Not when: A pass over the training set at each measurement is too dear. A large sample in its place is no longer the truth
        once its own noise is near the error.
      Badly with: A ``full_grad`` taken in training mode, with dropout or batch statistics, or with penalties that the batches
        lack.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> grads = jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
      >>> round(float(rj.diagnostics.gradient_direction_error(grads, grads.mean(0))), 4)
      0.0976

    References:
      Liu et al., Dropout Reduces Underfitting, 2023, arXiv 2303.01500, from the paper's text.
    """
    name = "diagnostics.gradient_direction_error"
    leaves, _, dtype = _stacked(name, grads, low=1)
    one = lambda g: jax.ShapeDtypeStruct(jnp.shape(g)[1:], jnp.result_type(g))
    example = grads[0] if _is_list(grads) else jax.tree.map(one, grads)
    checks.same_structure(name, "full_grad", full_grad, example, "one of grads")
    full = [jnp.asarray(leaf)[None] for leaf in jax.tree.leaves(full_grad) if trees.is_float(leaf)]
    if len(full) != len(leaves):
        checks.fail(name, "full_grad", "of floats where grads are", full_grad)
    dtype = jnp.promote_types(dtype, trees.accumulator(*full))
    units, present = _directions(leaves, dtype)
    target, whole = _directions(full, dtype)
    # (1 - cos) / 2 is |u - v|^2 / 4 for unit vectors; a zero one adds what is missing to 1/2.
    apart = sum(jnp.sum(jnp.square(u - v).reshape(u.shape[0], -1), axis=1) for u, v in zip(units, target, strict=True))
    absent = 2 - present.astype(dtype) - whole.astype(dtype)
    return jnp.mean((apart + absent) / 4)


def _is_list(grads: Any) -> bool:
    return isinstance(grads, list) or type(grads) is tuple


def _stacked(function: str, grads: PyTree, low: int) -> tuple[list[Array], int, Any]:
    """The floating leaves, each with the gradients on axis 0, how many gradients there are, and the dtype to compute in."""
    expected = f"a list of at least {low} gradients, or a tree of floating arrays with at least {low} on their leading axis"
    if _is_list(grads):
        if len(grads) < low:
            checks.fail(function, "grads", expected, grads)
        for other in grads[1:]:
            checks.same_structure(function, "grads", other, grads[0], "the first gradient")
        columns = zip(*map(jax.tree.leaves, grads), strict=True)
        leaves = [jnp.stack(column) for column in columns if trees.is_float(column[0])]
    else:
        leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(grads) if trees.is_float(leaf)]
    counts = {leaf.shape[:1] for leaf in leaves}
    if len(counts) != 1 or counts == {()} or leaves[0].shape[0] < low:
        checks.fail(function, "grads", expected, grads)
    return leaves, leaves[0].shape[0], trees.accumulator(*leaves)


def _directions(leaves: list[Array], dtype: Any) -> tuple[list[Array], Array]:
    """The gradients divided by their norms, and which are not zero."""

    def rows(values: Array, like: Array) -> Array:
        return values.reshape(values.shape[0], *(1,) * (like.ndim - 1))

    wide = [leaf.astype(dtype) for leaf in leaves]
    # First by the largest entry: the squares of tiny or huge gradients leave float32.
    tops = [jnp.max(jnp.abs(leaf), axis=tuple(range(1, leaf.ndim)), initial=0) for leaf in wide]
    top = jax.lax.stop_gradient(jnp.max(jnp.stack(tops), axis=0))
    present = top != 0
    top = jnp.where(present, top, 1)
    scaled = [leaf / rows(top, leaf) for leaf in wide]
    squares = sum(jnp.sum(jnp.square(leaf), axis=tuple(range(1, leaf.ndim))) for leaf in scaled)
    norm = jnp.where(present, trees.safe_sqrt(jnp.asarray(squares)), 1)
    return [leaf / rows(norm, leaf) for leaf in scaled], present
