"""A privacy probe: how well can inputs be reconstructed from the gradients that they gave, dropout or not?"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from regjax.core import checks, trees
from regjax.core.types import Array, Key, PyTree, Strength


class DropoutInversion(NamedTuple):
    """The best reconstruction ``[B, H, W, C]``, its masks, and the loss of each step ``[steps]``, NaN after the stop."""

    inputs: Array
    masks: PyTree
    history: Array


def dropout_inversion_attack(
    key: Key,
    grad_fn: Callable[[Array, PyTree, Any], PyTree],
    target_grads: PyTree,
    labels: Any,
    *,
    input_shape: tuple[int, ...],
    mask_shapes: PyTree,
    rate: Strength,
    steps: int = 20_000,
    learning_rate: Any = 0.1,
    tv_weight: Strength = 1e-5,
    mask_weight: Strength = 1e-4,
    sign_gradient: bool = True,
    joint_masks: bool = True,
    bounds: Any = None,
    patience: int = 800,
    stop_after: int = 4000,
    target_loss: Any = 1e-5,
) -> DropoutInversion:
    r"""Reconstructs inputs from their gradients, together with the dropout masks under which these were taken.

    Formula:
      .. math:: \min_{x, m}\ 1 - \frac{\langle G(x, m), G^* \rangle}{\lVert G(x, m) \rVert \lVert G^* \rVert + 10^{-8}}
        + \alpha\, TV(x) + \beta \sum_l | (1 - mean(m_l)) - rate |

      by Adam from Gaussian inputs and Bernoulli masks, with :math:`\alpha` = ``tv_weight``, :math:`\beta` =
      ``mask_weight``. The inputs move along the sign of their gradient and are clipped to ``bounds``, the masks are clipped
      to [0, 1]. The learning rate falls tenfold after each ``patience`` steps without a better loss.

    Args:
      key: a random key for the start.
      grad_fn: ``grad_fn(inputs, masks, labels) -> gradients``: the gradients of the model's loss by its parameters, a
        tree, with the given masks in its dropout layers, ``h * mask / (1 - rate)``. It is differentiated itself.
      target_grads: the observed gradients, a tree as ``grad_fn`` returns it.
      labels: the labels of the inputs, known to the attacker; given to ``grad_fn`` as they are.
      input_shape: the shape of the inputs, ``(B, H, W, C)``.
      mask_shapes: the shapes of the masks, a tuple of integers each, in a tuple, list or dictionary: ``masks`` in the call
        of ``grad_fn`` is of the same structure.
      rate: the dropout rate in [0, 1].
      steps: the most steps, default 20,000.
      learning_rate: that of Adam, above 0, default 0.1.
      tv_weight: the weight of `total_variation`, at least 0, default 1e-5.
      mask_weight: the weight of the masks' distance from the rate, at least 0, default 1e-4.
      sign_gradient: whether Adam is given the sign of the inputs' gradient in place of the gradient; default True.
      joint_masks: whether the masks are sought too, default True; else they are ones, the attacker who knows of no dropout.
        For one who knows the true masks, let ``grad_fn`` put these in the place of those that it is given.
      bounds: ``(low, high)``, numbers or arrays that broadcast to the inputs: the range of valid images; default none.
      patience: steps without a better loss before the learning rate falls, default 800.
      stop_after: steps without a better loss before the end, default 4000.
      target_loss: a loss below which the attack ends, default 1e-5.

    Returns:
      ``DropoutInversion(inputs, masks, history)`` in float32 or better: the reconstruction of the least loss, its masks, and
      the losses of all steps ``[steps]``, NaN for those not taken. No gradient flows through the search.

    Raises:
      ValueError: if a shape, dtype or structure does not fit, or an option is not as stated.

    Cost:
      For each step a gradient of ``grad_fn``, itself a gradient: about 6 forward passes. One compiled loop. XLA counts one step.
      XLA at [256, 256]: at most 6.8 times the FLOPs and 16 times the bytes of a forward pass, and 1.6 times its memory more.

    Use:
      For: unlearning.
      When: Gradients are shared, as in federated training, and dropout is held for protection: a probe of tiny models and
        single images. In our test the search over masks came about as near as one that knew them, and without masks it failed.
      Not when: Batches, deep networks or gradients summed over local steps: a failed attack there proves no privacy. Labels
        unknown to the attacker are not sought.
      Badly with: Batch normalisation, whose statistics the attacker does not have. Gradients that were changed on the way, by
        noise or compression: the images are then no minimum. Pixels without ``bounds``.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> def loss(kernel, x, masks, y):
      ...     return jnp.sum((x.reshape(1, -1) * masks[0] / 0.75 @ kernel - y) ** 2)
      >>> grad_fn = lambda x, masks, y: jax.grad(loss)(jnp.eye(4), x, masks, y)
      >>> secret, mask, y = jnp.arange(4.0).reshape(1, 2, 2, 1), (jnp.array([[1.0, 1.0, 0.0, 1.0]]),), jnp.ones((1, 4))
      >>> found = rj.diagnostics.dropout_inversion_attack(
      ...     jax.random.key(0), grad_fn, grad_fn(secret, mask, y), y,
      ...     input_shape=secret.shape, mask_shapes=((1, 4),), rate=0.25, steps=100)
      >>> bool(jnp.nanmin(found.history) < 0.2 * found.history[0])
      True

    References:
      Scheliga, Maeder and Seeland, Dropout is NOT All You Need to Prevent Gradient Leakage, 2022, arXiv 2208.06163, with the
      schedule of the authors' code. Geiping et al., Inverting Gradients: How easy is it to break privacy in federated
      learning?, 2020, arXiv 2003.14053 (cosine distance, signs).
    """
    name = "diagnostics.dropout_inversion_attack"
    key = checks.key(name, key)
    checks.function(name, "grad_fn", grad_fn)
    shape = _shape(name, "input_shape", input_shape)
    if len(shape) != 4:
        checks.fail(name, "input_shape", "the shape (B, H, W, C) of images", input_shape)
    shapes = jax.tree.map(lambda s: _Leaf(_shape(name, "mask_shapes", s)), mask_shapes, is_leaf=_is_shape)
    checks.number(name, "rate", rate, low=0.0, high=1.0)
    steps = checks.integer(name, "steps", steps, low=1)
    checks.number(name, "learning_rate", learning_rate, low=0.0, open_low=True)
    checks.number(name, "tv_weight", tv_weight, low=0.0)
    checks.number(name, "mask_weight", mask_weight, low=0.0)
    checks.boolean(name, "sign_gradient", sign_gradient)
    joint = checks.boolean(name, "joint_masks", joint_masks)
    patience = checks.integer(name, "patience", patience, low=1)
    stop_after = checks.integer(name, "stop_after", stop_after, low=1)
    checks.number(name, "target_loss", target_loss)
    target = jax.tree.map(lambda g: checks.floating(name, "target_grads", g), target_grads)
    dtype = trees.accumulator(*jax.tree.leaves(target))
    low, high = _bounds(name, bounds, shape, dtype)

    x_key, mask_key = jax.random.split(key)
    leaves, structure = jax.tree.flatten(shapes)
    keep = 1 - jnp.asarray(rate, dtype)
    drawn = [
        (jax.random.uniform(k, leaf.shape, jnp.float32) < keep).astype(dtype) if joint else jnp.ones(leaf.shape, dtype)
        for k, leaf in zip(jax.random.split(mask_key, max(len(leaves), 1)), leaves, strict=False)
    ]
    start = jax.random.normal(x_key, shape, dtype), jax.tree.unflatten(structure, drawn)
    given = jax.eval_shape(grad_fn, *start, labels)
    checks.same_structure(name, "target_grads", target, given, "the gradients of grad_fn")

    def objective(x: Array, masks: PyTree) -> Array:
        loss = _cosine_distance(grad_fn(x, masks, labels), target, dtype)
        loss = loss + jnp.asarray(tv_weight, dtype) * _variation(x)
        if joint:
            off = [trees.absolute(1 - jnp.mean(m) - jnp.asarray(rate, dtype)) for m in jax.tree.leaves(masks)]
            loss = loss + jnp.asarray(mask_weight, dtype) * sum(off, jnp.zeros((), dtype))
        return loss.astype(dtype)

    adam = optax.scale_by_adam()

    def unfinished(state: _Search) -> Array:
        return (state.step < steps) & (state.waited < stop_after) & ~(state.best_loss < jnp.asarray(target_loss, dtype))

    def step(state: _Search) -> _Search:
        loss, (by_x, by_masks) = jax.value_and_grad(objective, (0, 1))(state.x, state.masks)
        better = loss < state.best_loss
        keep_better = lambda new, old: jnp.where(better, new, old)
        waited = jnp.where(better, 0, state.waited + 1)
        stuck = jnp.where(better, 0, state.stuck + 1)
        falls = stuck >= patience
        rate_now = jnp.where(falls, 0.1 * state.learning_rate, state.learning_rate)
        by_x = jnp.sign(by_x) if sign_gradient else by_x
        (dx, dm), adam_state = adam.update((by_x, by_masks), state.adam)
        x = jnp.clip(state.x - rate_now * dx, low, high)
        masks = state.masks
        if joint:
            masks = jax.tree.map(lambda m, d: jnp.clip(m - rate_now * d, 0, 1), masks, dm)
        return _Search(
            step=state.step + 1,
            x=x,
            masks=masks,
            adam=adam_state,
            learning_rate=rate_now,
            stuck=jnp.where(falls, 0, stuck),
            waited=waited,
            best_loss=keep_better(loss, state.best_loss),
            best=jax.tree.map(keep_better, (state.x, state.masks), state.best),
            history=state.history.at[state.step].set(loss),
        )

    zero = jnp.zeros((), jnp.int32)
    first = _Search(
        step=zero,
        x=start[0],
        masks=start[1],
        adam=adam.init(start),
        learning_rate=jnp.asarray(learning_rate, dtype),
        stuck=zero,
        waited=zero,
        best_loss=jnp.asarray(jnp.inf, dtype),
        best=start,
        history=jnp.full(steps, jnp.nan, dtype),
    )
    last = jax.lax.while_loop(unfinished, step, first)
    return DropoutInversion(last.best[0], last.best[1], last.history)


def gradient_cosine_distance(a: PyTree, b: PyTree) -> Array:
    r"""One less the cosine between two gradients, all parameters taken as one vector.

    Formula:
      .. math:: 1 - \frac{\langle a, b \rangle}{\lVert a \rVert \lVert b \rVert + 10^{-8}}

    Args:
      a: a tree of arrays; leaves that are no floats are left out.
      b: another of the same structure.

    Returns:
      A scalar in [0, 2] in float32 or better; 1 where either is 0, and near it where the product of the norms is not large
      against 1e-8.

    Raises:
      ValueError: if the trees differ in structure or shapes.

    Cost:
      Two passes over the trees.
      XLA at 16 times [512, 512]: at most 3.4 times the FLOPs and 1.2 times the bytes of a copy of its arguments, and 0.01 times
      its memory more.

    Use:
      Part of: `dropout_inversion_attack`.
      When: For a matching loss of one's own, or to compare two gradients by direction: scale does not count.
      Badly with: Tiny gradients, such as those of fitted examples: the 1e-8 below the line draws the value to 1.
        `gradient_opposition` has no such term.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> round(float(rj.diagnostics.gradient_cosine_distance(jnp.array([1.0, 2.0]), jnp.array([2.0, 1.0]))), 4)
      0.2

    References:
      Geiping et al., Inverting Gradients: How easy is it to break privacy in federated learning?, 2020, arXiv 2003.14053.
      Scheliga, Maeder and Seeland, Dropout is NOT All You Need to Prevent Gradient Leakage, 2022, arXiv 2208.06163.
    """
    name = "diagnostics.gradient_cosine_distance"
    a, b = (jax.tree.map(lambda x, n=n: checks.array(name, n, x), tree) for n, tree in (("a", a), ("b", b)))
    checks.same_structure(name, "b", b, a, "a")
    a, b = trees.selected(name, a, "all"), trees.selected(name, b, "all")
    return _cosine_distance(a, b, trees.accumulator(*a, *b))


def total_variation(images: Any) -> Array:
    r"""The total variation of images: how far neighbouring pixels are apart.

    Formula:
      .. math:: mean | x_{i,j+1} - x_{i,j} | + mean | x_{i+1,j} - x_{i,j} |

      each a mean over all pairs of neighbours, channels and images.

    Args:
      images: float ``[B, H, W, C]``.

    Returns:
      A scalar in float32 or better; equal neighbours have gradient 0.

    Raises:
      ValueError: if ``images`` is no floating ``[B, H, W, C]``.

    Cost:
      A difference and a sum in each direction, some ten passes over the images.
      XLA at [256, 32, 32, 3]: at most 8.6 times the FLOPs and 6.4 times the bytes of a copy of its arguments, and 2.2 times its
      memory more.

    Use:
      Part of: `dropout_inversion_attack`.
      When: As a prior of smooth images in any reconstruction, at a small weight, or to measure how rough an image is.
      Badly with: Images of sharp structure such as text at large weights, which it smears. Other code's form, a sum or
        isotropic, whose weights differ by the number of pixels.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> float(rj.diagnostics.total_variation(jnp.array([[0.0, 1.0], [3.0, 2.0]]).reshape(1, 2, 2, 1)))
      3.0

    References:
      Rudin, Osher and Fatemi, Nonlinear Total Variation Based Noise Removal Algorithms, 1992, Physica D 60. The anisotropic
      form with a mean in each direction, as in Scheliga, Maeder and Seeland, Dropout is NOT All You Need to Prevent Gradient
      Leakage, 2022, arXiv 2208.06163.
    """
    images = checks.images("diagnostics.total_variation", "images", images)
    return _variation(images.astype(trees.accumulator(images)))


def reconstruction_mse(images: Any, reference: Any) -> Array:
    r"""How far reconstructed images are from the true ones.

    Formula:
      .. math:: \frac{1}{HWC} \sum_i (x_i - r_i)^2

    Args:
      images: float ``[B, H, W, C]``, the reconstructions.
      reference: float, the shape of ``images``.

    Returns:
      One number for each image, ``[B]``, in float32 or better.

    Raises:
      ValueError: if a shape or dtype does not fit.

    Cost:
      One pass over the images.
      XLA at 2 times [256, 32, 32, 3]: at most 1.7 times the FLOPs and 0.56 times the bytes of a copy of its arguments, and 0
      times its memory more.

    Use:
      Part of: `dropout_inversion_attack`.
      When: To judge a probe against the true images, in the units of their pixels, beside that of the mean image: a guess
        without any leak.
      Badly with: Batches, whose reconstructions come in any order: match them first. Recognisable images that are shifted,
        which it calls failures.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> rj.diagnostics.reconstruction_mse(jnp.ones((2, 2, 2, 1)), jnp.zeros((2, 2, 2, 1))).tolist()
      [1.0, 1.0]

    References:
      Scheliga, Maeder and Seeland, Dropout is NOT All You Need to Prevent Gradient Leakage, 2022, arXiv 2208.06163.
    """
    name = "diagnostics.reconstruction_mse"
    images = checks.images(name, "images", images)
    reference = checks.floating(name, "reference", reference, shape=images.shape)
    dtype = trees.accumulator(images, reference)
    return jnp.mean(jnp.square(images.astype(dtype) - reference.astype(dtype)), axis=(1, 2, 3))


class _Search(NamedTuple):
    step: Array
    x: Array
    masks: PyTree
    adam: Any
    learning_rate: Array
    stuck: Array
    waited: Array
    best_loss: Array
    best: Any
    history: Array


class _Leaf:
    """A shape that is a leaf of a tree."""

    def __init__(self, shape: tuple[int, ...]):
        self.shape = shape


def _is_shape(value: Any) -> bool:
    return isinstance(value, tuple) and bool(value) and not any(isinstance(n, (tuple, list, dict)) for n in value)


def _shape(name: str, argument: str, value: Any) -> tuple[int, ...]:
    if not isinstance(value, (tuple, list)) or not value:
        checks.fail(name, argument, "a shape, a tuple of integers", value)
    return tuple(checks.integer(name, argument, n, low=1) for n in value)


def _bounds(name: str, bounds: Any, shape: tuple[int, ...], dtype: Any) -> tuple[Any, Any]:
    if bounds is None:
        return None, None
    if not isinstance(bounds, (tuple, list)) or len(bounds) != 2:
        checks.fail(name, "bounds", "a pair (low, high) or None", bounds)
    pair = [checks.array(name, "bounds", bound) for bound in bounds]
    for bound in pair:
        if bound.ndim > 4 or any(n not in (1, want) for n, want in zip(bound.shape[::-1], shape[::-1], strict=False)):
            checks.fail(name, "bounds", f"numbers or arrays that broadcast to {list(shape)}", bound)
    return pair[0].astype(dtype), pair[1].astype(dtype)


def _cosine_distance(a: PyTree, b: PyTree, dtype: Any) -> Array:
    cosine = trees.vdot(a, b) / (trees.global_norm(a) * trees.global_norm(b) + 1e-8)
    return (1 - cosine).astype(dtype)


def _variation(x: Array) -> Array:
    parts = [jnp.diff(x, axis=axis) for axis in (1, 2)]
    return sum((jnp.mean(trees.absolute(part)) for part in parts if part.size), jnp.zeros((), x.dtype))
