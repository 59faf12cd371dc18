"""What the suites train: small networks, and steps whose state is carried and donated."""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import regjax as rj
from experiments.bench.timing import Subject, cost
from experiments.models import ModelConfig, make_model, split

RATE, MOMENTUM = 0.1, 0.9


def mlp(batch: int, *sizes: int) -> Any:
    """A network of dense layers, and a batch."""
    random = np.random.default_rng(0)
    params = [
        {"kernel": jnp.asarray(random.normal(size=(a, b)) * np.sqrt(2 / a), jnp.float32), "bias": jnp.zeros(b)}
        for a, b in itertools.pairwise(sizes)
    ]

    def apply_fn(params: Any, state: Any, x: jax.Array) -> tuple[jax.Array, Any]:
        for layer in params[:-1]:
            x = jax.nn.relu(x @ layer["kernel"] + layer["bias"])
        return x @ params[-1]["kernel"] + params[-1]["bias"], state

    x = jnp.asarray(random.normal(size=(batch, sizes[0])), jnp.float32)
    return apply_fn, params, {}, x, jnp.arange(batch) % sizes[-1]


def resnet(batch: int, side: int, width: int) -> Any:
    """A residual network, and a batch."""
    model = make_model(ModelConfig("resnet", width=width, depth=1), (side, side, 3), 10, rngs=nnx.Rngs(0))
    whole, params, state = split(model)

    def apply_fn(params: Any, state: Any, x: jax.Array) -> tuple[jax.Array, Any]:
        out = whole(params, state, x, key=jax.random.key(0), hooks=rj.Hooks(), training=True)
        return out.logits, out.state

    x = jnp.asarray(np.random.default_rng(0).normal(size=(batch, side, side, 3)), jnp.float32)
    return apply_fn, params, state, x, jnp.arange(batch) % 10


def step_of(loss_fn: Callable[..., Any], params: Any, *batch: jax.Array) -> Subject:
    """A training step of a loss with aux: SGD with momentum, the state donated."""
    tx = optax.sgd(RATE, momentum=MOMENTUM)

    def step(carried: Any, *batch: jax.Array) -> Any:
        params, opt_state = carried
        gradient, aux = jax.grad(loss_fn, has_aux=True)(params, *batch)
        updates, opt_state = tx.update(gradient, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), aux

    return looped(step, (params, tx.init(params)), *batch)


def looped(step: Callable[..., Any], carried: Any, *batch: Any) -> Subject:
    """A step ``(carried, *batch) -> (carried, aux)``, all of the carried memory donated, also what is only overwritten."""
    counted = cost(step, carried, *batch, donate_argnums=0)
    compiled = jax.jit(step, donate_argnums=0, keep_unused=True)
    carried = jax.tree.map(jnp.array, carried)  # subjects share their first parameters: each donates its own copy

    def run() -> None:
        nonlocal carried
        carried, _ = jax.block_until_ready(compiled(carried, *batch))

    return Subject(run, counted)
