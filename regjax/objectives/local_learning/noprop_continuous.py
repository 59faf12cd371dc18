"""NoProp in continuous time: one network that denoises the label's embedding at every time, or that flows to it."""

from typing import Any

import jax
import jax.numpy as jnp

from regjax.core import checks, sharding, trees
from regjax.core.types import Array, Key, Strength
from regjax.objectives.local_learning._noprop import (
    Apply,
    NoPropParams,
    check_model,
    embedded,
    head_loss,
    noise_dtype,
    predicted,
    table,
)


def noprop_ct_loss(
    key: Key,
    params: NoPropParams,
    x: Any,
    labels: Any,
    *,
    block_apply: Apply,
    head_apply: Apply,
    gamma_apply: Apply,
    eta: Strength = 1.0,
    learned_embedding: bool = False,
) -> Array:
    r"""NoProp in continuous time: a network that predicts the label's embedding from it under noise of any strength.

    Formula:
      .. math:: \frac{1}{B} \sum_i \left( \frac{\eta}{2} \, SNR'(t_i) \|\hat u(z_{i,t_i}, x_i, t_i) - u_{y_i}\|^2
                - \log p_{out}(y_i | z_{i,1}) + KL(q(z_0 | y_i) \| N(0, 1)) \right)

      with t uniform in [0, 1], :math:`z_t \sim q(z_t | y) = N(\sqrt{\bar \alpha_t} u_y, 1 - \bar \alpha_t)`,
      :math:`\bar \alpha_t = \sigma(-\gamma(t))`, so that :math:`SNR'(t) = -\gamma'(t) e^{-\gamma(t)}`, and
      :math:`\hat u = softmax(logits) \, W`. t = 1 is the clean end.

    Args:
      key: the random key of times and noise.
      params: `NoPropParams`; ``blocks`` are the parameters of the network.
      x: the inputs ``[B, ...]``, an array.
      labels: integer class ids ``[B]``, or probabilities ``[B, K]``.
      block_apply: ``f(params.blocks, z [B, d], x, t [B]) -> logits [B, K]``.
      head_apply: ``f(params.head, z [B, d]) -> logits [B, K]``.
      gamma_apply: ``f(params.gamma, t [B]) -> [B]``, elementwise and falling in t; its parameters learn too. From 7 to -7 is a
        usual range.
      eta: :math:`\eta`, at least 0, default 1.
      learned_embedding: whether W learns too; False (default): a constant.

    Returns:
      A scalar in float32 or better.

    Raises:
      ValueError: if a shape, dtype or option does not fit, or ``eta`` is out of range.

    Cost:
      A forward pass of network and head.
      XLA at [356, 512]: at most 1.5 times the FLOPs and 2.2 times the bytes of the gradient of its network's cross-entropy, and
      0.062 times its memory more.

    Use:
      For: compute budget.
      When: As `noprop_dt_loss`, with one network for all times in place of a stack, and the number of passes chosen at test. It
        learns the noise schedule too.
      Not when: You want blocks of their own to train apart: `noprop_dt_loss`. A test pass must be a single one.
      Badly with: A gamma_apply that rises anywhere, which makes weights negative. Wide ranges of gamma, where the weight at the
        clean end dwarfs the rest. Small batches: each example draws one time, and the loss varies much over times.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> params = rj.objectives.NoPropParams(jnp.zeros((3, 3)), jnp.zeros((3, 3)), jnp.eye(3), jnp.float32(5.0))
      >>> loss = rj.objectives.noprop_ct_loss(
      ...     jax.random.key(0), params, jnp.ones((4, 3)), jnp.array([0, 1, 2, 0]), block_apply=lambda w, z, x, t: z @ w,
      ...     head_apply=lambda w, z: z @ w, gamma_apply=lambda g, t: g * (1 - 2 * t), eta=0.0)
      >>> round(float(loss), 4)
      1.102

    References:
      Li et al., NoProp: Training Neural Networks without Full Back-propagation or Full Forward-propagation, 2025, arXiv
      2503.24322, section on continuous time; sampled by `noprop_sample` over a grid of times. There is no code.
    """
    name = "objectives.noprop_ct_loss"
    checks.key(name, key)
    time, noise = _draw(name, key, params, x, labels)
    return ct_loss(
        time,
        noise,
        params,
        x,
        labels,
        block_apply=block_apply,
        head_apply=head_apply,
        gamma_apply=gamma_apply,
        eta=eta,
        learned_embedding=learned_embedding,
    )


def ct_loss(
    time: Array,
    noise: Array,
    params: NoPropParams,
    x: Any,
    labels: Any,
    *,
    block_apply: Apply,
    head_apply: Apply,
    gamma_apply: Apply,
    eta: Any,
    learned_embedding: bool = False,
) -> Array:
    """`noprop_ct_loss` with its times ``[B]`` and noise ``[2, B, d]``, of the network and of the head, given."""
    name = "objectives.noprop_ct_loss"
    for argument, fn in (("block_apply", block_apply), ("head_apply", head_apply), ("gamma_apply", gamma_apply)):
        checks.function(name, argument, fn)
    checks.number(name, "eta", eta, low=0.0)
    checks.boolean(name, "learned_embedding", learned_embedding)
    check_model(name, params, x, labels)
    embedding = table(params, learned_embedding)
    u_y = embedded(labels, embedding)
    time = sharding.rows_like(time, u_y)

    def gamma_at(t: Array) -> Array:
        out = gamma_apply(params.gamma, t)
        if not isinstance(out, jax.Array) or out.shape != t.shape or not trees.is_float(out):
            checks.fail(name, "gamma_apply", f"a function that returns floats of shape {list(t.shape)}", out)
        return out.astype(trees.accumulator(out))

    gamma, slope = jax.jvp(gamma_at, (time,), (jnp.ones_like(time),))
    first, last = gamma_at(jnp.zeros_like(time)), gamma_at(jnp.ones_like(time))
    z = _diffuse(u_y, gamma, noise[0])
    error = predicted(name, block_apply(params.blocks, z, x, time), embedding, u_y.shape) - u_y
    growth = -slope * jnp.exp(-gamma)
    loss = jnp.mean(growth * jnp.sum(jnp.square(error), axis=-1))
    abar = jax.nn.sigmoid(-first)
    # log(1 - abar) is log sigmoid(gamma).
    divergence = abar * jnp.sum(jnp.square(u_y), -1) - u_y.shape[-1] * (abar + jax.nn.log_sigmoid(first))
    head = head_loss(name, head_apply, params, _diffuse(u_y, last, noise[1]), labels)
    return jnp.asarray(eta, loss.dtype) / 2 * loss + head + jnp.mean(divergence) / 2


def noprop_flow_loss(
    key: Key,
    params: NoPropParams,
    x: Any,
    labels: Any,
    *,
    block_apply: Apply,
    head_apply: Apply | None = None,
    sigma: Strength = 0.0,
    learned_embedding: bool = False,
) -> Array:
    r"""NoProp by flow matching: a network that points from noise to the label's embedding.

    Formula:
      .. math:: \frac{1}{B} \sum_i \|v(z_{i,t_i}, x_i, t_i) - (u_{y_i} - z_{i,0})\|^2, \quad
                z_t = t u_y + (1 - t) z_0 + \sigma \epsilon, \quad z_0 \sim N(0, 1)

      with t uniform in [0, 1]; a head adds :math:`-\log p_{out}(y | z_t + (1 - t) v)`, which keeps a learned embedding from
      collapsing.

    Args:
      key: the random key of times and noise.
      params: `NoPropParams`; ``blocks`` are the parameters of the network.
      x: the inputs ``[B, ...]``, an array.
      labels: integer class ids ``[B]``, or probabilities ``[B, K]``.
      block_apply: ``f(params.blocks, z [B, d], x, t [B]) -> v [B, d]``.
      head_apply: ``f(params.head, z [B, d]) -> logits [B, K]``; None (default): no head.
      sigma: :math:`\sigma`, the noise around the straight line, at least 0, default 0.
      learned_embedding: whether W learns too, which needs a head; False (default): a constant.

    Returns:
      A scalar in float32 or better.

    Raises:
      ValueError: if a shape, dtype or option does not fit, ``sigma`` is out of range, or a learned embedding has no head.

    Cost:
      A forward pass of the network.
      XLA at [356, 512]: at most 1.1 times the FLOPs and 1.6 times the bytes of the gradient of its network's cross-entropy, and
      0.15 times its memory more.

    Use:
      For: compute budget.
      When: As `noprop_ct_loss`, without a noise schedule or weights by signal and noise: the simplest of the three to set up.
        Fixed embeddings need no head.
      Not when: Test passes are dear: the authors integrate a thousand steps, and few steps leave the path where it bends. The
        embedding is to be learnt without a head, which collapses.
      Badly with: Embeddings much smaller than unit noise, from which they are hard to tell. Choosing num_steps on test images.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> params = rj.objectives.NoPropParams(None, None, jnp.eye(3))
      >>> goal = lambda _, z, x, t: (x - z) / (1 - t[:, None])
      >>> loss = rj.objectives.noprop_flow_loss(jax.random.key(0), params, jnp.eye(3), jnp.arange(3), block_apply=goal)
      >>> round(float(loss), 4)
      0.0

    References:
      Li et al., NoProp: Training Neural Networks without Full Back-propagation or Full Forward-propagation, 2025, arXiv
      2503.24322, the flow-matching variant. There is no code.
    """
    name = "objectives.noprop_flow_loss"
    checks.key(name, key)
    time, noise = _draw(name, key, params, x, labels)
    return flow_loss(
        time,
        noise,
        params,
        x,
        labels,
        block_apply=block_apply,
        head_apply=head_apply,
        sigma=sigma,
        learned_embedding=learned_embedding,
    )


def flow_loss(
    time: Array,
    noise: Array,
    params: NoPropParams,
    x: Any,
    labels: Any,
    *,
    block_apply: Apply,
    head_apply: Apply | None = None,
    sigma: Any = 0.0,
    learned_embedding: bool = False,
) -> Array:
    """`noprop_flow_loss` with its times ``[B]`` and noise ``[2, B, d]``, the start and that around the line, given."""
    name = "objectives.noprop_flow_loss"
    checks.function(name, "block_apply", block_apply)
    if head_apply is not None:
        checks.function(name, "head_apply", head_apply)
    checks.number(name, "sigma", sigma, low=0.0)
    if checks.boolean(name, "learned_embedding", learned_embedding) and head_apply is None:
        checks.fail(name, "head_apply", "given where the embedding learns", head_apply)
    check_model(name, params, x, labels)
    u_y = embedded(labels, table(params, learned_embedding))
    time = sharding.rows_like(time, u_y)
    start, around = (sharding.rows_like(draw, u_y).astype(u_y.dtype) for draw in noise)
    t = time[:, None].astype(u_y.dtype)
    z = t * u_y + (1 - t) * start + jnp.asarray(sigma, u_y.dtype) * around
    v = predicted(name, block_apply(params.blocks, z, x, time), None, u_y.shape)
    loss = jnp.mean(jnp.sum(jnp.square(v - (u_y - start)), axis=-1))
    return loss if head_apply is None else loss + head_loss(name, head_apply, params, z + (1 - t) * v, labels)


def noprop_flow_sample(
    key: Key, params: NoPropParams, x: Any, *, block_apply: Apply, head_apply: Apply | None = None, num_steps: int = 1000
) -> Array:
    r"""The prediction of a network trained by `noprop_flow_loss`: Euler steps from noise to the embedding of a class.

    Formula:
      .. math:: z \leftarrow z + \frac{1}{N} v(z, x, \frac{n}{N}), \quad n = 0 ... N - 1, \quad z \sim N(0, 1) \; at \; first

    Args:
      key: the random key of the noise.
      params: `NoPropParams`.
      x: the inputs ``[B, ...]``, an array.
      block_apply: ``f(params.blocks, z [B, d], x, t [B]) -> v [B, d]``.
      head_apply: ``f(params.head, z [B, d]) -> logits [B, K]``; None (default): minus the squared distances from the
        embeddings stand for logits.
      num_steps: N, at least 1, default 1000.

    Returns:
      Logits ``[B, K]``.

    Raises:
      ValueError: if a shape, dtype or size does not fit.

    Cost:
      N forward passes, in one `jax.lax.scan`. XLA counts the body of the loop once.
      XLA at [356, 512]: at most 1.1 times the FLOPs and 3.4 times the bytes of a forward pass of its network, and 0.67 times
      its memory more.

    Use:
      Part of: `noprop_flow_loss`.
      When: Call it for predictions, with as few steps as lose nothing on validation data. Average over keys for stable ones.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> params = rj.objectives.NoPropParams(None, None, jnp.eye(3))
      >>> goal = lambda _, z, x, t: (x - z) / (1 - t[:, None])
      >>> logits = rj.objectives.noprop_flow_sample(jax.random.key(0), params, jnp.eye(3), block_apply=goal, num_steps=4)
      >>> jnp.argmax(logits, -1).tolist()
      [0, 1, 2]

    References:
      Li et al., NoProp: Training Neural Networks without Full Back-propagation or Full Forward-propagation, 2025, arXiv
      2503.24322: 1000 Euler steps.
    """
    name = "objectives.noprop_flow_sample"
    checks.key(name, key)
    checks.function(name, "block_apply", block_apply)
    if head_apply is not None:
        checks.function(name, "head_apply", head_apply)
    num_steps = checks.integer(name, "num_steps", num_steps, low=1)
    batch, width = check_model(name, params, x)
    embedding = table(params, True)
    x = jnp.asarray(x)

    def euler(z: Array, n: Array) -> tuple[Array, None]:
        t = sharding.rows_like(jnp.full(batch, n / num_steps, z.dtype), x)
        v = predicted(name, block_apply(params.blocks, z, x, t), None, z.shape)
        return z + v.astype(z.dtype) / num_steps, None

    start = sharding.rows_like(jax.random.normal(key, (batch, width), noise_dtype(x, params.embedding)), x)
    z, _ = jax.lax.scan(euler, start, jnp.arange(num_steps))
    if head_apply is not None:
        return head_apply(params.head, z)
    return -jnp.sum(jnp.square(z[:, None, :] - embedding), axis=-1)


def _diffuse(u: Array, gamma: Array, noise: Array) -> Array:
    """A sample of ``N(sqrt(abar) u, 1 - abar)`` with ``abar = sigmoid(-gamma)``."""
    signal, spread = jnp.sqrt(jax.nn.sigmoid(-gamma))[:, None], jnp.sqrt(jax.nn.sigmoid(gamma))[:, None]
    return signal * u + spread * sharding.rows_like(noise, u).astype(u.dtype)


def _draw(name: str, key: Key, params: NoPropParams, x: Any, labels: Any) -> tuple[Array, Array]:
    """Times ``[B]`` and noise ``[2, B, d]``."""
    batch, width = check_model(name, params, x, labels)
    at, around = jax.random.split(key)
    dtype = noise_dtype(x, params.embedding)
    return jax.random.uniform(at, (batch,), dtype), jax.random.normal(around, (2, batch, width), dtype)
