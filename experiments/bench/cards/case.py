"""A technique at a size that users have, and the plain call beside which it is measured."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.bench import networks

MLP = (128, 64, 256, 256, 10)
"""Batch and layers of the network of `step`."""


class Case(NamedTuple):
    """Two compiled calls.

    Attributes:
      call: what is measured, a pure function of ``args``.
      args: its arguments, arrays or trees of them.
      plain: the plain counterpart, a pure function of ``plain_args``.
      plain_args: its arguments.
      of: what the counterpart is, as the card names it.
      at: the size, as the card names it.
      donate: the arguments of ``call`` whose memory is overwritten.
    """

    call: Callable[..., Any]
    args: tuple[Any, ...]
    plain: Callable[..., Any]
    plain_args: tuple[Any, ...]
    of: str
    at: str
    donate: tuple[int, ...] = ()


def normal(*shape: int, seed: int = 0) -> jax.Array:
    """Standard-normal numbers."""
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


def uniform(*shape: int, seed: int = 0) -> jax.Array:
    """Numbers between 0 and 1: images, probabilities of a yes."""
    return jnp.asarray(np.random.default_rng(seed).random(shape, np.float32))


def ids(*shape: int, below: int, seed: int = 0) -> jax.Array:
    """Class ids, positions, groups."""
    return jnp.asarray(np.random.default_rng(seed).integers(0, below, shape, np.int32))


def probabilities(*shape: int, seed: int = 0) -> jax.Array:
    """Probability vectors on the last axis."""
    return jax.nn.softmax(normal(*shape, seed=seed))


def key(seed: int = 0) -> jax.Array:
    """A key."""
    return jax.random.key(seed)


def kernels(layers: int = 8, rows: int = 512, columns: int = 512) -> dict[str, Any]:
    """The parameters of dense layers: kernels with variance 1 / rows, and biases."""
    scale = 1 / np.sqrt(rows)
    layer = lambda i: {"kernel": scale * normal(rows, columns, seed=i), "bias": jnp.zeros(columns)}
    return {f"layer_{i}": layer(i) for i in range(layers)}


def case(
    call: Callable[..., Any], *args: Any, wrt: int | tuple[int, ...] = (), like: str = "arguments", donate: Any = ()
) -> Case:
    """A technique beside one pass over its arguments or its results.

    Args:
      call: the technique, a function of ``args`` alone.
      *args: arrays, keys or trees of them.
      wrt: the arguments by which the mean of the result is differentiated, for what stands in a loss.
      like: ``"arguments"``, or ``"results"`` for what draws or makes arrays from next to nothing.
      donate: the arguments whose memory is overwritten.

    Returns:
      A `Case`.
    """
    measured = with_gradient(call, wrt) if wrt != () else call
    if like == "results":
        shapes = jax.eval_shape(measured, *args)
        passed = tuple(jnp.zeros(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(shapes) if _counts(leaf))
    else:
        passed = tuple(leaf for leaf in jax.tree.leaves(args) if _counts(leaf))
    return beside(_copy, (passed,), f"a copy of its {like}", measured, *args, donate=donate)


def beside(
    plain: Callable[..., Any], plain_args: tuple[Any, ...], of: str, call: Callable[..., Any], *args: Any, donate: Any = ()
) -> Case:
    """A technique beside a counterpart of its own: a dense layer, one matrix product, the distance without the technique.

    Args:
      plain: the counterpart; both sides differentiate, or neither does (see `with_gradient`).
      plain_args: its arguments.
      of: its name: "XLA counts at most 2 times the FLOPs of ``of``".
      call: the technique, a function of ``args`` alone.
      *args: arrays, keys or trees of them.
      donate: the arguments whose memory is overwritten.

    Returns:
      A `Case`.
    """
    return Case(call, args, plain, plain_args, of, size(plain_args), _tuple(donate))


def loss(call: Callable[..., Any], logits: jax.Array, *args: Any) -> Case:
    """A loss beside cross-entropy of the same logits, each with the gradient to the logits.

    Args:
      call: ``f(logits, *args) -> [...]``.
      logits: ``[..., K]``.
      *args: labels, teachers and the like.

    Returns:
      A `Case`.
    """
    labels = ids(*logits.shape[:-1], below=logits.shape[-1])
    plain = with_gradient(optax.softmax_cross_entropy_with_integer_labels, 0)
    return Case(with_gradient(call, 0), (logits, *args), plain, (logits, labels), "cross-entropy", size(logits))


def step(
    objective: Callable[..., Any] | None = None,
    *,
    transform: optax.GradientTransformation | None = None,
    base: optax.GradientTransformation | None = None,
) -> Case:
    """A training step of a network with an objective or a gradient transformation, beside the plain step.

    Args:
      objective: ``f(loss_fn) -> loss_fn`` with ``loss_fn(params, x, y) -> scalar``; for others see `against_step`.
      transform: what takes the place of ``base``.
      base: the optimiser of the plain step, SGD with momentum by default.

    Returns:
      A `Case`.
    """
    base = optax.sgd(0.1, momentum=0.9) if base is None else base
    _, mean = network()
    return against_step(mean if objective is None else objective(mean), transform=transform, base=base)


def network() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """``logits(params, x)`` and ``mean cross-entropy(params, x, y)`` of the network of `step`."""
    apply_fn = networks.mlp(*MLP)[0]
    logits = lambda params, x: apply_fn(params, {}, x)[0]
    mean = lambda params, x, y: optax.softmax_cross_entropy_with_integer_labels(logits(params, x), y).mean()
    return logits, mean


def against_step(
    loss_fn: Callable[..., Any],
    *extra: Any,
    transform: optax.GradientTransformation | None = None,
    base: optax.GradientTransformation | None = None,
    has_aux: bool = False,
) -> Case:
    """A training step of ``loss_fn(params, x, y, *extra)`` on the network of `step`, beside the plain step.

    Args:
      loss_fn: the loss; with ``has_aux`` a pair of it and what the step returns besides, such as a new memory.
      *extra: more arguments: memories, keys.
      transform: what takes the place of ``base``.
      base: the optimiser of the plain step, SGD with momentum by default.
      has_aux: whether the loss is a pair.

    Returns:
      A `Case`.
    """
    base = optax.sgd(0.1, momentum=0.9) if base is None else base
    _, params, _, x, y = networks.mlp(*MLP)
    _, mean = network()

    def stepped(tx: Any, fn: Callable[..., Any], aux: bool) -> Callable[..., Any]:
        def run(params: Any, opt_state: Any, x: jax.Array, y: jax.Array, *extra: Any) -> Any:
            out, gradient = jax.value_and_grad(fn, has_aux=aux)(params, x, y, *extra)
            updates, opt_state = tx.update(gradient, opt_state, params)
            return optax.apply_updates(params, updates), opt_state, out

        return run

    tx = base if transform is None else transform
    return Case(
        stepped(tx, loss_fn, has_aux),
        (params, tx.init(params), x, y, *extra),
        stepped(base, mean, False),
        (params, base.init(params), x, y),
        "a plain training step",
        f"an MLP {list(MLP[1:])} with batch {MLP[0]}",
    )


def with_gradient(call: Callable[..., Any], wrt: int | tuple[int, ...]) -> Callable[..., Any]:
    """The results of a call, and the gradient of the sum of their means."""

    def total(*args: Any) -> tuple[jax.Array, Any]:
        out = call(*args)
        floats = [leaf for leaf in jax.tree.leaves(out) if jnp.issubdtype(jnp.result_type(leaf), jnp.floating)]
        return sum((jnp.mean(leaf.astype(jnp.float32)) for leaf in floats), jnp.zeros(())), out

    return jax.grad(total, wrt, has_aux=True)


def size(tree: Any) -> str:
    """The largest array of a tree, and how many of its shape there are."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if _counts(leaf)]
    if not leaves:
        return "a scalar"
    largest = max(leaves, key=lambda leaf: leaf.size).shape
    count = sum(leaf.shape == largest for leaf in leaves)
    return f"{list(largest)}" if count == 1 else f"{count} times {list(largest)}"


def _copy(args: Any) -> Any:
    return jax.tree.map(lambda x: ~x if x.dtype == bool else x + jnp.ones((), x.dtype), args)


def _counts(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _tuple(value: Any) -> tuple[int, ...]:
    return (value,) if isinstance(value, int) else tuple(value)
