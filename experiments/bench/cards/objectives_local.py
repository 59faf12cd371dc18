"""The objectives that train blocks alone, beside the training of the same blocks together."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

import regjax as rj
from experiments.bench.cards import case as c

o = rj.objectives
BATCH, WIDTH, INPUTS, CLASSES, STEPS = 256, 512, 256, 100, 4
GRADIENT, FORWARD = "the gradient of its network's cross-entropy", "a forward pass of its network"
MAN = o.momentum_auxiliary()

entropy = lambda logits, labels: optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
head = lambda kernel, z: z @ kernel


def block(params: Any, z: jax.Array, x: jax.Array, t: Any = None) -> jax.Array:
    """Logits of a noisy embedding and the input, by one hidden layer."""
    seen = jnp.concatenate([z, x], -1)
    return jax.nn.relu(seen @ params["in"] + (0 if t is None else t[:, None])) @ params["out"]


def _model(steps: int | None) -> tuple[o.NoPropParams, jax.Array, jax.Array]:
    """Parameters of a block for each step, or of one network; inputs and labels."""
    shape = () if steps is None else (steps,)
    blocks = {"in": 0.04 * c.normal(*shape, CLASSES + INPUTS, WIDTH), "out": 0.04 * c.normal(*shape, WIDTH, CLASSES)}
    params = o.NoPropParams(blocks, 0.1 * c.normal(CLASSES, CLASSES), jnp.eye(CLASSES), jnp.float32(5.0))
    return params, c.normal(BATCH, INPUTS), c.ids(BATCH, below=CLASSES)


def _schedule() -> o.NoPropSchedule:
    return o.noprop_schedule(jnp.linspace(0.5, 0.9, STEPS + 1))


def _forward(params: o.NoPropParams, x: jax.Array) -> jax.Array:
    """The logits after each block on the embedding that the one before predicts."""
    z = jnp.zeros((len(x), CLASSES))
    single = params.blocks["in"].ndim == 2
    for step in range(1 if single else STEPS):
        chosen = params.blocks if single else jax.tree.map(lambda leaf, i=step: leaf[i], params.blocks)
        z = jax.nn.softmax(block(chosen, z, x)) @ params.embedding
    return head(params.head, z)


def _trained(loss: Any, steps: int | None) -> c.Case:
    """``loss(key, params, x, y)`` and its gradient beside the cross-entropy of the network as a whole."""
    params, x, y = _model(steps)
    plain = jax.grad(lambda params, x, y: entropy(_forward(params, x), y), allow_int=True)
    call = jax.grad(lambda params, key, x, y: loss(key, params, x, y))
    return c.beside(plain, (params, x, y), GRADIENT, call, params, c.key(), x, y)


def _sampled(sample: Any, steps: int | None) -> c.Case:
    """``sample(key, params, x)`` beside a forward pass of the network."""
    params, x, _ = _model(steps)
    return c.beside(_forward, (params, x), FORWARD, sample, c.key(), params, x)


def _block_loss() -> c.Case:
    params, x, y = _model(None)
    u, z = params.embedding[y], c.normal(BATCH, CLASSES)
    call = jax.grad(lambda w, z, x, u: o.noprop_block_loss(block, w, z, x, u, embedding=jnp.eye(CLASSES)))
    plain = jax.grad(lambda w, z, x, y: entropy(block(w, z, x), y))
    return c.beside(plain, (params.blocks, z, x, y), "the gradient of its block's cross-entropy", call, params.blocks, z, x, u)


def _momentum_auxiliary() -> c.Case:
    layer = lambda kernel, x: jax.nn.relu(x @ kernel)
    kernel, auxiliary, x, y = c.normal(512, 512), c.normal(512, 10), c.normal(1024, 512), c.ids(1024, below=10)
    plain = jax.grad(lambda kernel, auxiliary, x, y: entropy(layer(kernel, x) @ auxiliary, y), argnums=(0, 1))

    def call(learned: Any, auxiliary: Any, x: jax.Array, y: jax.Array, ema: Any) -> Any:
        state = MAN.init(ema)
        loss = lambda learned, auxiliary: MAN.apply(state._replace(learned=learned), layer, lambda h: h @ auxiliary, x, y)
        return jax.grad(loss, argnums=(0, 1))(learned, auxiliary), MAN.update(state, learned)

    of = "the gradient of a layer's local loss"
    return c.beside(plain, (kernel, auxiliary, x, y), of, call, kernel, auxiliary, x, y, kernel)


CASES = {
    "noprop_block_loss": _block_loss,
    "noprop_dt_loss": lambda: _trained(
        lambda *args: o.noprop_dt_loss(*args, block_apply=block, head_apply=head, schedule=_schedule()), STEPS
    ),
    "noprop_ct_loss": lambda: _trained(
        lambda *args: o.noprop_ct_loss(*args, block_apply=block, head_apply=head, gamma_apply=lambda g, t: g * (1 - 2 * t)), None
    ),
    "noprop_flow_loss": lambda: _trained(lambda *args: o.noprop_flow_loss(*args, block_apply=block, head_apply=head), None),
    "noprop_sample": lambda: _sampled(
        lambda *args: o.noprop_sample(*args, block_apply=block, head_apply=head, schedule=_schedule()), STEPS
    ),
    "noprop_flow_sample": lambda: _sampled(
        lambda *args: o.noprop_flow_sample(*args, block_apply=block, head_apply=head, num_steps=STEPS), None
    ),
    "momentum_auxiliary": _momentum_auxiliary,
}
