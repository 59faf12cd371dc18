"""Consolidation by a network that learns the loss of past tasks around the last minimum."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from regjax.core import checks, trees
from regjax.core.types import Array, Key, PyTree, Strength, Where
from regjax.weights.anchors import _memory


class NeuralState(NamedTuple):
    """The memory of `neural_consolidation`.

    Attributes:
      layers: the consolidator, a tuple of ``{"kernel": [in, out], "bias": [out]}``.
      precision: the prior's precision, which counts before the first task is learned.
      tasks: int32, how many tasks it has learned.
    """

    layers: tuple[dict[str, Array], ...]
    precision: Array
    tasks: Array


def neural_consolidation_init(
    key: Key, params: PyTree, *, hidden: Sequence[int] = (256, 256), precision: Strength = 1.0, where: Where = "all"
) -> NeuralState:
    r"""The memory of `neural_consolidation` before the first task: an untrained network, and a normal prior around zero.

    Formula:
      Kernels from a normal distribution of variance 1 / inputs, biases 0. Before the first task is learned the penalty is that
      of the prior, :math:`\frac{\pi}{2} \|\theta\|^2`.

    Args:
      key: a random key.
      params: a parameter tree of P consolidated parameters, of which the shapes are read.
      hidden: the widths of the hidden layers, default (256, 256).
      precision: :math:`\pi`, at least 0, default 1.
      where: which leaves: "all" (default), None or "kernels", a predicate ``(path, leaf) -> bool``, or a tree of booleans. The
        same for all functions of this memory.

    Returns:
      A `NeuralState` in float32 or better.

    Raises:
      ValueError: if ``hidden`` is no sequence of positive integers, ``precision`` is negative or no number, or the choice of
        leaves is none.

    Cost:
      The network, about ``256 P`` numbers.
      XLA at [2570, 256]: at most 110 times the FLOPs and 8.3 times the bytes of a copy of its results, and 1.6 times its memory
      more.

    Use:
      Part of: `neural_consolidation`.
      When: Once before the first task; choose ``where`` here and repeat the same choice in the other two functions.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> state = rj.weights.neural_consolidation_init(jax.random.key(0), {"kernel": jnp.ones((2, 3))}, hidden=(8,))
      >>> [layer["kernel"].shape for layer in state.layers]
      [(6, 8), (8, 1)]

    References:
      See `neural_consolidation`.
    """
    name = "weights.neural_consolidation_init"
    checks.key(name, key)
    checks.number(name, "precision", precision, low=0.0)
    if not isinstance(hidden, Sequence) or isinstance(hidden, str):
        checks.fail(name, "hidden", "a sequence of positive integers", hidden)
    theta, _ = _memory.flat(name, params, where)
    sizes = [theta.size, *(checks.integer(name, "hidden", width, low=1) for width in hidden), 1]
    layers = []
    for draw, (fan_in, fan_out) in zip(jax.random.split(key, len(sizes) - 1), itertools.pairwise(sizes), strict=True):
        kernel = jax.random.normal(draw, (fan_in, fan_out), theta.dtype) / math.sqrt(max(fan_in, 1))
        layers.append({"kernel": kernel, "bias": jnp.zeros((fan_out,), theta.dtype)})
    return NeuralState(tuple(layers), jnp.asarray(precision, theta.dtype), jnp.zeros((), jnp.int32))


def neural_consolidation_update(
    key: Key,
    state: NeuralState,
    params: PyTree,
    objective: Callable[..., Array],
    *args: Any,
    radius: float = 10.0,
    steps: int = 1000,
    num_points: int = 64,
    learning_rate: float = 0.01,
    where: Where = "all",
) -> NeuralState:
    r"""Teaches the network of `neural_consolidation` a finished task: its objective around the minimum.

    Formula:
      In each step, for points :math:`\theta_j` uniform in the ball of radius r around the minimum,

      .. math:: \sum_j huber(c_\phi(\theta_j), f(\theta_j)) + \frac{1}{2} \|\phi\|^2

      is lowered over the weights :math:`\phi` of the network by Adam under a one-cycle learning rate, going on from the weights
      of the last task.

    Args:
      key: a random key.
      state: the `NeuralState` so far.
      params: the parameters at the end of the task, the centre of the ball; points are in float32 or better.
      objective: ``f(params, *args) -> scalar``, what the task minimised, summed over ALL its data: the negative log-likelihood
        plus :math:`\lambda` times the `neural_consolidation` of the state so far, so that the network keeps what it knew.
      *args: such as the task's data, and the state.
      radius: r, above 0, default 10; the paper's range is 1, 10, 100.
      steps: of training, at least 1, default 1000.
      num_points: in each step, at least 1, default 64.
      learning_rate: its peak, above 0, default 0.01.
      where: which leaves, as in `neural_consolidation_init`.

    Returns:
      The `NeuralState` of all tasks.

    Raises:
      ValueError: if ``state`` is not of these parameters, ``objective`` is no function or returns no scalar, or an option is out
        of range.

    Cost:
      ``steps * num_points`` forward passes over all data of the task, compiled as one loop, with ``num_points`` of them in
      memory at a time. Once for each task. XLA counts the body of the loop once.
      XLA at [256, 256]: at most 130 times the FLOPs and 140 times the bytes of the gradient of a batch, and 40 times its memory
      more.

    Use:
      Part of: `neural_consolidation`.
      When: Once at the end of each task, with the objective over all of its data including the penalty so far, or the network
        forgets what it knew. Search ``radius`` first: the published ones span 1 to 100.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> state = rj.weights.neural_consolidation_init(jax.random.key(0), jnp.zeros(2), hidden=(16,))
      >>> objective = lambda w: jnp.sum(w**2) / 2
      >>> state = rj.weights.neural_consolidation_update(jax.random.key(1), state, jnp.zeros(2), objective, radius=1.0, steps=50)
      >>> int(state.tasks)
      1

    References:
      See `neural_consolidation`.
    """
    name = "weights.neural_consolidation_update"
    checks.key(name, key)
    checks.function(name, "objective", objective)
    checks.number(name, "radius", radius, low=0.0, open_low=True)
    checks.number(name, "learning_rate", learning_rate, low=0.0, open_low=True)
    checks.integer(name, "steps", steps, low=1)
    checks.integer(name, "num_points", num_points, low=1)
    theta, rebuild = _memory.flat(name, params, where)
    _check(name, state, theta)
    centre, args, start = jax.lax.stop_gradient((theta, args, state.layers))
    optimiser = optax.adam(optax.cosine_onecycle_schedule(steps, learning_rate))
    value = lambda point: _memory.scalar(name, "objective", objective(rebuild(point), *args))

    def loss(layers: PyTree, points: Array, targets: Array) -> Array:
        errors = optax.losses.huber_loss(_network(layers, points), targets)
        return jnp.sum(errors) + trees.sum_squares(layers).astype(errors.dtype) / 2

    def step(carry: Any, key: Key) -> Any:
        layers, memory = carry
        points = centre + apply_ball(*draw_ball(key, (num_points, centre.size), centre.dtype), radius)
        targets = jax.lax.stop_gradient(jax.vmap(value)(points)).astype(centre.dtype)
        updates, memory = optimiser.update(jax.grad(loss)(layers, points, targets), memory, layers)
        return (optax.apply_updates(layers, updates), memory), None

    (layers, _), _ = jax.lax.scan(step, (start, optimiser.init(start)), jax.random.split(key, steps))
    return state._replace(layers=layers, tasks=state.tasks + 1)


def neural_consolidation(params: PyTree, state: NeuralState, *, weight: Strength = 1.0, where: Where = "all") -> Array:
    r"""Keeps what earlier tasks have taught: a small network that has learned their loss as a function of the parameters.

    Formula:
      .. math:: w \, c_\phi(\theta)

      for a network c with swish activations, constant, that `neural_consolidation_update` trains after every task; before the
      first one :math:`w \frac{\pi}{2} \|\theta\|^2`. Unlike a quadratic it may follow the loss far from the minimum.

    Args:
      params: a parameter tree, :math:`\theta`.
      state: the `NeuralState`. ``partial(neural_consolidation, state=state)`` is a penalty ``f(params) -> scalar``: build it
        inside the compiled step from a state that is an argument of the step, and nothing compiles again when a task ends.
      weight: w, at least 0, default 1. Beside the negative log-likelihood summed over a minibatch it is :math:`\lambda` over the
        number of batches of the task. 0 is fine-tuning.
      where: which leaves, as in `neural_consolidation_init`.

    Returns:
      A scalar in float32 or better.

    Raises:
      ValueError: if ``state`` is not of these parameters, ``weight`` is negative or no number, or the choice of leaves is none.

    Cost:
      A forward and backward pass of the network, about ``1000 P`` FLOPs. Meant for small heads on frozen features, whose
      sharded leaves are gathered.
      XLA at [2570, 256]: at most 4.5 times the FLOPs and 1.2 times the bytes of a copy of its arguments, and 0.006 times its
      memory more.

    Use:
      For: forgetting.
      When: A small head on frozen features, when the loss of past tasks is to be remembered in a wide ball around the minimum,
        where a quadratic is wrong, and one can pay thousands of evaluations of it per task.
      Not when: Almost always before `quadratic_consolidation` or `ewc` were tried: on the continual digits it stayed below
        plain `l2_sp`, at a size smaller than published. It grows with width times parameters.
      Badly with: Backbones or many parameters: 64 points in a ball of thousands of dimensions say little. A strength or batch
        count that differs between penalty and taught ``objective`` counts old tasks wrongly.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> state = rj.weights.neural_consolidation_init(jax.random.key(0), jnp.zeros(2), precision=2.0)
      >>> float(rj.weights.neural_consolidation(jnp.array([1.0, 3.0]), state))
      10.0

    References:
      Zhu and Kuruoglu, On Sequential Loss Approximation for Continual Learning, 2024, arXiv 2405.16498. The authors' code was
      read, not run; that the Huber loss turns linear at 1, that the one-cycle is the cosine one of optax, and that biases count
      in :math:`\|\phi\|^2` is uncertain.
    """
    name = "weights.neural_consolidation"
    checks.number(name, "weight", weight, low=0.0)
    theta, _ = _memory.flat(name, params, where)
    _check(name, state, theta)
    layers, precision = jax.lax.stop_gradient((state.layers, state.precision))
    dtype = trees.accumulator(theta, *jax.tree.leaves(layers))
    prior = precision.astype(dtype) / 2 * jnp.sum(jnp.square(theta.astype(dtype)))
    value = jnp.where(state.tasks > 0, _network(layers, theta).astype(dtype), prior)
    return jnp.asarray(weight, dtype) * value


def draw_ball(key: Key, shape: tuple[int, int], dtype: Any) -> tuple[Array, Array]:
    """The random numbers of `apply_ball`."""
    direction, length = jax.random.split(key)
    return jax.random.normal(direction, shape, dtype), jax.random.uniform(length, (shape[0], 1), dtype)


def apply_ball(normals: Array, uniforms: Array, radius: Any) -> Array:
    """Points uniform in a ball, from normal numbers ``[N, P]`` and uniform ones ``[N, 1]``."""
    return jnp.asarray(radius, normals.dtype) * trees.unit(normals) * uniforms ** (1 / max(normals.shape[-1], 1))


def _network(layers: Sequence[Any], theta: Array) -> Array:
    """The consolidator at ``theta [..., P]``."""
    x = theta
    for i, layer in enumerate(layers):
        x = (jax.nn.swish(x) if i else x) @ layer["kernel"] + layer["bias"]
    return x[..., 0]


def _check(name: str, state: Any, theta: Array) -> None:
    _memory.check_state(name, state, NeuralState, "neural_consolidation_init()")
    checks.floating(name, "state.layers", state.layers[0]["kernel"], shape=(theta.size, None))
