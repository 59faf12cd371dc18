"""NoProp: each block of a network learns alone to denoise the label's embedding, without a pass through the others."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from regjax.core import checks, sharding, trees
from regjax.core.types import Array, Key, PyTree, Strength
from regjax.objectives.local_learning._noprop import (
    Apply,
    NoPropParams,
    NoPropSchedule,
    check_blocks,
    check_model,
    diffuse,
    embedded,
    head_loss,
    noise_dtype,
    num_steps_of,
    predicted,
    prior,
    table,
)

_MOST = 1 - 1e-4  # alphas above it would make the signal-to-noise ratio infinite


def noprop_schedule(alphas: Any) -> NoPropSchedule:
    r"""The noise schedule of NoProp from the share of the signal that each step keeps.

    Formula:
      .. math:: \bar \alpha_t = \prod_{s=t}^T \alpha_s, \quad
                a_t = \frac{\sqrt{\bar \alpha_t} (1 - \alpha_{t-1})}{1 - \bar \alpha_{t-1}}, \quad
                b_t = \frac{\sqrt{\alpha_{t-1}} (1 - \bar \alpha_t)}{1 - \bar \alpha_{t-1}},

      .. math:: c_t = \frac{(1 - \bar \alpha_t) (1 - \alpha_{t-1})}{1 - \bar \alpha_{t-1}}, \quad
                SNR_t = \frac{\bar \alpha_t}{1 - \bar \alpha_t}

      t = T is the clean end. A block that predicts the embedding u turns
      :math:`N(\sqrt{\bar \alpha_{t-1}} u, 1 - \bar \alpha_{t-1})` into :math:`N(\sqrt{\bar \alpha_t} u, 1 - \bar \alpha_t)`.

    Args:
      alphas: float ``[T + 1]``, :math:`\alpha_0 ... \alpha_T`, in (0, 1), T at least 1; values above 0.9999 count as that.
        From a wanted rising :math:`\bar \alpha`: ``jnp.append(abar[:-1] / abar[1:], abar[-1])``.

    Returns:
      A `NoPropSchedule`, in float32 or better.

    Raises:
      ValueError: if ``alphas`` is no such array, or (where it is on the host) lies outside (0, 1).

    Cost:
      None to speak of.

    Use:
      Part of: `noprop_dt_loss`, `noprop_sample`.
      When: Call it once, with as many steps as blocks, and give the same one to training and sampling.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> schedule = rj.objectives.noprop_schedule([0.5, 0.8, 0.9])
      >>> [round(float(x), 4) for x in schedule.abar], [round(float(x), 4) for x in schedule.snr_delta]
      ([0.36, 0.72, 0.9], [2.0089, 6.4286])

    References:
      Li et al., NoProp: Training Neural Networks without Full Back-propagation or Full Forward-propagation, 2025,
      arXiv 2503.24322, equations 3-8; T = 10 and a cosine for :math:`\bar \alpha`. There is no code.
    """
    name = "objectives.noprop_schedule"
    array = checks.floating(name, "alphas", alphas, ndim=1)
    if array.shape[0] < 2:
        checks.fail(name, "alphas", "an array [T + 1] with T at least 1", array)
    if not isinstance(alphas, jax.Array) and not all(0 < float(x) < 1 for x in np.asarray(alphas)):
        checks.fail(name, "alphas", "within (0, 1)", alphas)
    array = array.astype(trees.accumulator(array))
    log_alpha = jnp.log(jnp.clip(array, jnp.finfo(array.dtype).tiny, _MOST))
    log_abar = jnp.cumsum(log_alpha[::-1])[::-1]
    abar, noise = jnp.exp(log_abar), -jnp.expm1(log_abar)
    lost = -jnp.expm1(log_alpha[:-1])  # 1 - alpha_{t-1}
    before, after = noise[:-1], noise[1:]
    return NoPropSchedule(
        abar=abar,
        a=jnp.exp(log_abar[1:] / 2) * lost / before,
        b=jnp.exp(log_alpha[:-1] / 2) * after / before,
        c=after * lost / before,
        # The difference of the two ratios, without the cancellation.
        snr_delta=abar[1:] * lost / (after * before),
    )


def noprop_block_loss(
    block_apply: Apply, params_t: PyTree, z_prev: Any, x: Any, u_y: Any, *, weight: Strength = 1.0, embedding: Any = None
) -> Array:
    r"""The loss of one NoProp block: how far its prediction from a noisy embedding is from the label's embedding.

    Formula:
      .. math:: \frac{w}{B} \sum_i \| \hat u_t(z_{i,t-1}, x_i) - u_{y_i} \|^2, \quad
                z_{t-1} = \sqrt{\bar \alpha_{t-1}} \, u_y + \sqrt{1 - \bar \alpha_{t-1}} \, \epsilon

      with :math:`w = \frac{T}{2} \eta (SNR_t - SNR_{t-1})`, that is ``T / 2 * 0.1 * schedule.snr_delta[t - 1]``. The input is the
      label with noise, never what another block made, so that one block at a time trains with the memory of one.

    Args:
      block_apply: ``f(params_t, z_prev, x) -> [B, d]``, the prediction, or the logits ``[B, K]`` of classes with ``embedding``.
      params_t: the parameters of block t.
      z_prev: float ``[B, d]``.
      x: the inputs of the network, ``[B, ...]``.
      u_y: float ``[B, d]``, the embeddings of the labels.
      weight: w, at least 0, default 1.
      embedding: float ``[K, d]``; with it the prediction is ``softmax(logits) @ embedding``. None (default): as it comes.

    Returns:
      A scalar in float32 or better.

    Raises:
      ValueError: if a shape or dtype does not fit, or ``weight`` is out of range.

    Cost:
      A forward pass of one block.
      XLA at [356, 512]: at most 1.2 times the FLOPs and 1.2 times the bytes of the gradient of its block's cross-entropy, and
      0.18 times its memory more.

    Use:
      Part of: `noprop_dt_loss`.
      When: Call it to train one block at a time, with the activations of one, or each on its own device.
      Badly with: Inputs made by other blocks: z_prev is the label under noise of the step before.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> block = lambda w, z, x: w * z
      >>> float(rj.objectives.noprop_block_loss(block, 2.0, jnp.ones((1, 2)), None, jnp.zeros((1, 2)), weight=0.5))
      4.0

    References:
      Li et al., NoProp: Training Neural Networks without Full Back-propagation or Full Forward-propagation, 2025, arXiv
      2503.24322, equation 8. The paper's algorithm 1 writes the sample as :math:`z_t`; its equation 8 needs :math:`z_{t-1}` for
      block t, as here. There is no code.
    """
    name = "objectives.noprop_block_loss"
    checks.function(name, "block_apply", block_apply)
    checks.number(name, "weight", weight, low=0.0)
    z_prev = checks.floating(name, "z_prev", z_prev, ndim=2)
    u_y = checks.floating(name, "u_y", u_y, shape=z_prev.shape)
    if embedding is not None:
        embedding = checks.floating(name, "embedding", embedding, shape=(None, z_prev.shape[1]))
    error = predicted(name, block_apply(params_t, z_prev, x), embedding, u_y.shape) - u_y.astype(trees.accumulator(u_y))
    loss = jnp.mean(jnp.sum(jnp.square(error), axis=-1))
    return jnp.asarray(weight, loss.dtype) * loss


def noprop_dt_loss(
    key: Key,
    params: NoPropParams,
    x: Any,
    labels: Any,
    *,
    block_apply: Apply,
    head_apply: Apply,
    schedule: NoPropSchedule,
    eta: Strength = 0.1,
    learned_embedding: bool = False,
    remat: bool = False,
) -> Array:
    r"""The losses of all blocks of a NoProp network in discrete time, each with its own noise, and that of its head.

    Formula:
      .. math:: \sum_{t=1}^T \frac{T \eta}{2} (SNR_t - SNR_{t-1}) \frac{1}{B} \sum_i \|\hat u_t(z_{i,t-1}, x_i) - u_{y_i}\|^2
                - \frac{1}{B} \sum_i \log p_{out}(y_i | z_{i,T}), \quad \hat u = softmax(logits) \, W,

      with :math:`z_t \sim N(\sqrt{\bar \alpha_t} u_y, 1 - \bar \alpha_t)` and :math:`u_y` the row of y in W. A learned W adds
      :math:`KL(N(\sqrt{\bar \alpha_0} u_y, 1 - \bar \alpha_0) \| N(0, 1))`. Each block's gradient is that of its own term: no
      other block stands in it.

    Args:
      key: the random key of the noise.
      params: `NoPropParams` with stacked blocks.
      x: the inputs ``[B, ...]``, an array.
      labels: integer class ids ``[B]``, or probabilities ``[B, K]``.
      block_apply: ``f(params_t, z [B, d], x) -> logits [B, K]``.
      head_apply: ``f(params.head, z [B, d]) -> logits [B, K]``.
      schedule: from `noprop_schedule`, of as many steps as there are blocks.
      eta: :math:`\eta`, at least 0, default 0.1. 0 leaves the head's loss.
      learned_embedding: whether W learns too; False (default): a constant.
      remat: whether the backward pass computes each block anew instead of keeping its activations; default False.

    Returns:
      A scalar in float32 or better.

    Raises:
      ValueError: if a shape, dtype or option does not fit, or ``eta`` is out of range.

    Cost:
      A forward pass of each block and of the head, one after another in one `jax.lax.scan`. To hold one block's activations
      alone, train by `noprop_block_loss`, or set ``remat``. XLA counts the body of the scan once.
      XLA at [4, 356, 512]: at most 0.25 times the FLOPs and 0.75 times the bytes of the gradient of its network's
      cross-entropy, and 0 times its memory more.

    Use:
      For: compute budget.
      When: Blocks are to be trained without any gradient between them, as for memory or parallel devices. Five blocks came near
        one trained by back-propagation on the digits. Short stacks, of the order of ten.
      Not when: Accuracy at large scale is what counts: the authors show small images alone. Several passes at test are too many
        for the task. Targets are no classes with embeddings.
      Badly with: alphas near 1, at which the ratio of signal to noise and so the weights explode. BatchNorm shared between
        blocks, whose inputs have unlike noise. Objectives that take a gradient through the stack, which has none.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> schedule = rj.objectives.noprop_schedule([0.5, 0.8, 0.9])
      >>> params = rj.objectives.NoPropParams(jnp.zeros((2, 3, 3)), jnp.zeros((3, 3)), jnp.eye(3))
      >>> loss = rj.objectives.noprop_dt_loss(
      ...     jax.random.key(0), params, jnp.ones((4, 3)), jnp.array([0, 1, 2, 0]), schedule=schedule,
      ...     block_apply=lambda w, z, x: (z + x) @ w, head_apply=lambda w, z: z @ w)
      >>> round(float(loss), 4)
      1.6611

    References:
      Li et al., NoProp: Training Neural Networks without Full Back-propagation or Full Forward-propagation, 2025, arXiv
      2503.24322, algorithm 1; its learned embeddings are of prototypes or of their own. There the loss of the head is in every
      block's step; here once, which leaves every block's and the head's gradient the same.
    """
    name = "objectives.noprop_dt_loss"
    checks.key(name, key)
    batch, width = check_model(name, params, x, labels)
    draw = jax.random.normal(key, (num_steps_of(name, schedule) + 1, batch, width), noise_dtype(x, params.embedding))
    return dt_loss(
        draw,
        params,
        x,
        labels,
        block_apply=block_apply,
        head_apply=head_apply,
        schedule=schedule,
        eta=eta,
        learned_embedding=learned_embedding,
        remat=remat,
    )


def dt_loss(
    noise: Array,
    params: NoPropParams,
    x: Any,
    labels: Any,
    *,
    block_apply: Apply,
    head_apply: Apply,
    schedule: NoPropSchedule,
    eta: Any,
    learned_embedding: bool = False,
    remat: bool = False,
) -> Array:
    """`noprop_dt_loss` with its noise ``[T + 1, B, d]`` given: for block t at t - 1, for the head last."""
    name = "objectives.noprop_dt_loss"
    checks.function(name, "block_apply", block_apply)
    checks.function(name, "head_apply", head_apply)
    checks.number(name, "eta", eta, low=0.0)
    checks.boolean(name, "learned_embedding", learned_embedding)
    checks.boolean(name, "remat", remat)
    check_model(name, params, x, labels)
    steps = num_steps_of(name, schedule)
    check_blocks(name, params, steps)
    embedding = table(params, learned_embedding)
    u_y = embedded(labels, embedding)

    def block(total: Array, inputs: Any) -> tuple[Array, None]:
        params_t, abar, gain, draw = inputs
        z = diffuse(u_y, abar, draw)
        error = predicted(name, block_apply(params_t, z, x), embedding, u_y.shape) - u_y
        return total + (gain * jnp.mean(jnp.sum(jnp.square(error), axis=-1))).astype(total.dtype), None

    dtype = u_y.dtype
    gains = jnp.asarray(eta, dtype) * steps / 2 * schedule.snr_delta.astype(dtype)
    inputs = (params.blocks, schedule.abar[:-1], gains, noise[:-1])
    total, _ = jax.lax.scan(jax.checkpoint(block) if remat else block, jnp.zeros((), dtype), inputs)
    total = total + head_loss(name, head_apply, params, diffuse(u_y, schedule.abar[-1], noise[-1]), labels)
    return total + prior(u_y, schedule.abar[0]) if learned_embedding else total


def noprop_sample(
    key: Key, params: NoPropParams, x: Any, *, block_apply: Apply, head_apply: Apply, schedule: NoPropSchedule
) -> Array:
    r"""The prediction of a NoProp network: noise, made into the embedding of a class block by block.

    Formula:
      .. math:: z_0 \sim N(0, 1), \quad z_t = a_t \hat u_t(z_{t-1}, x) + b_t z_{t-1} + \sqrt{c_t} \, \epsilon, \quad
                \hat u = softmax(logits) \, W

    Args:
      key: the random key of the noise.
      params: `NoPropParams` with stacked blocks. In continuous time: ``blocks=times [T]`` and
        ``block_apply=lambda t, z, x: network(theta, z, x, t)``, with the schedule of :math:`\bar \alpha` at T + 1 times.
      x: the inputs ``[B, ...]``, an array.
      block_apply: ``f(params_t, z [B, d], x) -> logits [B, K]``.
      head_apply: ``f(params.head, z [B, d]) -> logits [B, K]``.
      schedule: from `noprop_schedule`, of as many steps as there are blocks.

    Returns:
      The head's logits ``[B, K]`` of the last state, as ``head_apply`` gives them.

    Raises:
      ValueError: if a shape or dtype does not fit.

    Cost:
      A forward pass of all blocks, in one `jax.lax.scan`. XLA counts the body of the loop once.
      XLA at [4, 356, 512]: at most 0.33 times the FLOPs and 1.1 times the bytes of a forward pass of its network, and 0 times
      its memory more.

    Use:
      Part of: `noprop_dt_loss`, `noprop_ct_loss`.
      When: Call it for predictions. They are random: average over keys where they should not be.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> schedule = rj.objectives.noprop_schedule([0.5, 0.8, 0.9999])
      >>> params = rj.objectives.NoPropParams(jnp.ones((2, 1)), jnp.eye(3), jnp.eye(3))
      >>> logits = rj.objectives.noprop_sample(
      ...     jax.random.key(0), params, 9 * jnp.eye(3), schedule=schedule,
      ...     block_apply=lambda w, z, x: w * x, head_apply=lambda w, z: z @ w)
      >>> jnp.argmax(logits, -1).tolist()
      [0, 1, 2]

    References:
      Li et al., NoProp: Training Neural Networks without Full Back-propagation or Full Forward-propagation, 2025, arXiv
      2503.24322, equation 3 and algorithm 1.
    """
    name = "objectives.noprop_sample"
    checks.key(name, key)
    batch, width = check_model(name, params, x)
    draw = jax.random.normal(key, (num_steps_of(name, schedule) + 1, batch, width), noise_dtype(x, params.embedding))
    return sample(draw, params, x, block_apply=block_apply, head_apply=head_apply, schedule=schedule)


def sample(
    noise: Array, params: NoPropParams, x: Any, *, block_apply: Apply, head_apply: Apply, schedule: NoPropSchedule
) -> Array:
    """`noprop_sample` with its noise ``[T + 1, B, d]`` given: the start first."""
    name = "objectives.noprop_sample"
    checks.function(name, "block_apply", block_apply)
    checks.function(name, "head_apply", head_apply)
    check_model(name, params, x)
    check_blocks(name, params, num_steps_of(name, schedule))
    embedding = table(params, True)

    def block(z: Array, inputs: Any) -> tuple[Array, None]:
        params_t, a, b, c, draw = inputs
        a, b, spread = (s.astype(z.dtype) for s in (a, b, jnp.sqrt(c)))
        u = predicted(name, block_apply(params_t, z, x), embedding, z.shape).astype(z.dtype)
        return a * u + b * z + spread * sharding.rows_like(draw, x), None

    inputs = (params.blocks, schedule.a, schedule.b, schedule.c, noise[1:])
    z, _ = jax.lax.scan(block, sharding.rows_like(noise[0], x), inputs)
    return head_apply(params.head, z)
