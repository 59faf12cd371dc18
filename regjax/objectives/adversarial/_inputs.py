"""What attacks on inputs share: where a perturbation may lie, how large it is, random starts, and gradients by the input."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from regjax.core import checks, sharding, trees
from regjax.core.types import Array, Key, PyTree
from regjax.objectives.lift import BoundLoss, LossFn, freeze

NORMS = ("linf", "l2")

# The random start and the step of the single-step attacks, as multiples of epsilon, and whether the step ends in the ball.
SINGLE_STEP = {"fgsm": (0.0, 1.0, "linf"), "fgsm_rs": (1.0, 1.25, "linf"), "n_fgsm": (2.0, 1.0, "box")}


@dataclasses.dataclass(frozen=True)
class Ball:
    """Where the perturbation of a batch may lie: within epsilon in a norm, and where the sum stays in the box.

    An input outside the box is left where it is, or moved inwards by at most epsilon: no clip moves an input by itself.
    """

    x: Array
    epsilon: Array
    low: Array
    high: Array
    norm: str

    @property
    def wide(self) -> Array:
        """The inputs in float32 or better: a small perturbation is below the resolution of bfloat16."""
        return self.x.astype(trees.accumulator(self.x))

    def in_box(self, delta: Array) -> Array:
        """The perturbation clipped to where the sum stays in the box."""
        return jnp.clip(delta, *self._room())

    def project(self, delta: Array) -> Array:
        """The perturbation clipped to the box and shortened to the ball; ``"box"`` knows no ball."""
        if self.norm == "linf":
            lower, upper = self._room()
            return jnp.clip(delta, jnp.maximum(-self.epsilon, lower), jnp.minimum(self.epsilon, upper))
        delta = self.in_box(delta)
        if self.norm == "box":
            return delta
        # With an epsilon for each channel the ball is an ellipsoid; with one for all, `relative` is 1.
        relative, largest = self._relative()
        unit = delta * jnp.where(relative == 0, 0, 1 / jnp.where(relative == 0, 1, relative))
        length = trees.safe_norm(unit, _features(delta), keepdims=True)
        return relative * unit * jnp.minimum(1, largest / jnp.where(length > 0, length, 1))

    def ascent(self, gradient: Array) -> Array:
        """The direction of steepest ascent: the signs, or each example's gradient divided by its norm."""
        gradient = gradient.astype(self.wide.dtype)
        return normalised(self._relative()[0] * gradient) if self.norm == "l2" else jnp.sign(gradient)

    def moved(self, delta: Array) -> Array:
        """The perturbed inputs, in the dtype of the inputs."""
        wide = self.wide
        return jnp.clip(wide + delta, jnp.minimum(self.low, wide), jnp.maximum(self.high, wide)).astype(self.x.dtype)

    def start(self, key: Key, scale: float = 1.0) -> Array:
        """Uniform in the cube of ``scale`` epsilon around 0."""
        return jnp.asarray(scale, self.epsilon.dtype) * self.epsilon * uniform(key, self.wide)

    def _room(self) -> tuple[Array, Array]:
        return jnp.minimum(self.low - self.wide, 0), jnp.maximum(self.high - self.wide, 0)

    def _relative(self) -> tuple[Array, Array]:
        largest = jnp.max(self.epsilon)
        return jnp.where(largest == 0, 1, self.epsilon / jnp.where(largest == 0, 1, largest)), largest


def make_ball(name: str, x: Array, epsilon: Any, low: Any, high: Any, norm: str) -> Ball:
    """The ball of checked arguments."""
    check_bounds(name, low, high)
    dtype = trees.accumulator(x)
    bounds = [
        jnp.asarray(default if value is None else size(name, argument, value, x, low=-math.inf), dtype)
        for argument, value, default in (("low", low, -jnp.inf), ("high", high, jnp.inf))
    ]
    return Ball(x, jnp.asarray(size(name, "epsilon", epsilon, x), dtype), bounds[0], bounds[1], norm)


def check_bounds(name: str, low: Any, high: Any) -> None:
    """Checks what can be seen of a box before there are inputs."""
    for argument, value in (("low", low), ("high", high)):
        if value is not None and not _is_array(value):
            checks.number(name, argument, value)
    if all(isinstance(value, (int, float)) for value in (low, high)) and not low < high:
        checks.fail(name, "high", f"above low = {low:g}", high)


def check_size(name: str, argument: str, value: Any) -> None:
    """Checks what can be seen of a size before there are inputs: a strength, or an array for the channels."""
    if not callable(value) and _is_array(value):
        checks.floating(name, argument, value)
    else:
        checks.strength(name, argument, value, low=0.0)


def size(name: str, argument: str, value: Any, x: Array, *, low: float = 0.0) -> Any:
    """A number, or a floating array that broadcasts to the inputs."""
    if not _is_array(value):
        return checks.number(name, argument, value, low=low)
    value = checks.floating(name, argument, value)
    fits = value.ndim <= x.ndim and all(n in (1, m) for n, m in zip(value.shape[::-1], x.shape[::-1], strict=False))
    if not fits:
        checks.fail(name, argument, f"a number, or an array that broadcasts to the inputs {list(x.shape)}", value)
    return value


def inputs(name: str, x: Any) -> Array:
    """The checked inputs ``[B, ...]``, constants."""
    return jax.lax.stop_gradient(checks.floating(name, "x", x, min_ndim=2))


def uniform(key: Key, like: Array) -> Array:
    """Uniform on [-1, 1], in the shape, placement and dtype of an array, from float32 bits."""
    drawn = jax.random.uniform(key, like.shape, jnp.float32, -1, 1)
    return sharding.placed_like(drawn, like).astype(like.dtype)


def normal(key: Key, like: Array) -> Array:
    """Standard normal, likewise."""
    return sharding.placed_like(jax.random.normal(key, like.shape, jnp.float32), like).astype(like.dtype)


def bound(name: str, loss_fn: LossFn, has_aux: bool, args: tuple[Any, ...], kwargs: dict[str, Any]) -> BoundLoss:
    """A loss with what follows its parameters, inputs and labels."""
    return BoundLoss(name, checks.function(name, "loss_fn", loss_fn), checks.boolean(name, "has_aux", has_aux), args, kwargs)


def at(loss: BoundLoss, x: Array, labels: Any) -> BoundLoss:
    """The bound loss with its inputs and labels: a function of the parameters."""
    return dataclasses.replace(loss, args=(x, labels, *loss.args))


def gradient(loss: BoundLoss, params: PyTree, x: Array, labels: Any) -> Array:
    """The gradient of a loss by the inputs; its other arguments must be constants already."""
    return jax.grad(lambda x: at(loss, x, labels)(params)[0])(x)


def start(name: str, ball: Ball, key: Any, scale: float) -> Array:
    """Zero, or a random start, which lies in the box."""
    return ball.in_box(ball.start(checks.key(name, key), scale)) if scale else jnp.zeros_like(ball.wide)


def ascend(loss: BoundLoss, params: PyTree, labels: Any, ball: Ball, rate: Any, num_steps: int, delta: Array) -> Array:
    """The inputs after the steps of an attack; constants, as are the inputs of its gradients: no second derivative is traced."""
    params, labels, args, kwargs, delta = freeze((params, labels, loss.args, loss.kwargs, delta))
    loss = dataclasses.replace(loss, args=args, kwargs=kwargs)
    rate = jnp.asarray(rate, delta.dtype)

    def once(_: Any, delta: Array) -> Array:
        g = gradient(loss, params, ball.moved(delta), labels)
        return ball.project(delta + rate * ball.ascent(g))

    delta = ball.project(delta)
    delta = once(0, delta) if num_steps == 1 else jax.lax.fori_loop(0, num_steps, once, delta)
    return jax.lax.stop_gradient(ball.moved(delta))


def normalised(v: Array) -> Array:
    """Each example divided by its Euclidean norm, 0 where that is 0; first by its largest entry, so that no square vanishes."""
    largest = jnp.max(jnp.abs(v), axis=_features(v), keepdims=True)
    v = v / jnp.where(largest > 0, largest, 1)
    norm = jnp.sqrt(jnp.sum(jnp.square(v), axis=_features(v), keepdims=True))
    return v / jnp.where(norm > 0, norm, 1)


def _features(v: Array) -> tuple[int, ...]:
    return tuple(range(1, v.ndim))


def _is_array(value: Any) -> bool:
    return isinstance(value, (jax.Array, np.ndarray)) and value.ndim > 0
