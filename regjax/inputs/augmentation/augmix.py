"""Convex combinations of chains of image operations: AugMix."""

from typing import Any

import jax
import jax.numpy as jnp

from regjax.core import checks
from regjax.core.types import Array, Key, Strength
from regjax.inputs.augmentation.image_ops import GEOMETRIC, Plan, check_frame
from regjax.inputs.augmentation.image_plans import apply_plan, make_plan
from regjax.inputs.mixing.pairs import symmetric_beta

_OPS = (
    *("auto_contrast", "equalize", "posterize", "rotate", "solarize"),
    *("shear_x", "shear_y", "translate_x", "translate_y"),
)
_ENHANCE = ("color", "contrast", "brightness", "sharpness")


def augmix(
    key: Key,
    images: Any,
    labels: Any = None,
    *,
    width: int = 3,
    depth: int = -1,
    severity: Strength = 3,
    alpha: Strength = 1.0,
    ops: tuple[str, ...] = _OPS,
    value_range: tuple[float, float] = (0.0, 1.0),
    fill: Any = 0.0,
    interpolation: str = "bilinear",
) -> tuple[Array, Any]:
    r"""Mixes each image with a random mixture of chains of random operations on it.

    Formula:
      .. math:: \tilde x = (1 - m) x + m \sum_{i=1}^{width} w_i\, chain_i(x), \quad
         w \sim Dirichlet(\alpha, \dots, \alpha), \quad m \sim Beta(\alpha, \alpha)

      per image. Each chain is ``depth`` operations (1 to 3 at random where ``depth`` is -1), each drawn uniformly from
      ``ops`` with a level l uniform in [0.1, ``severity``]: rotate ``floor(3 l)`` degrees, shear ``0.03 l``, translate
      ``floor(l / 10 * side / 3)`` pixels, either direction with probability 1/2; posterize ``4 - floor(0.4 l)`` bits;
      solarize from ``256 - floor(25.6 l)``; factors of colour operations ``0.1 + 0.18 l``.

    Args:
      key: a random key.
      images: float ``[B, H, W, C]``, not normalised (normalising afterwards is the same as before the mixture).
      labels: anything; it passes unchanged.
      width: the number of chains, at least 1, default 3.
      depth: operations in each chain, at least 1, or -1 (default): 1, 2 or 3, drawn for each chain.
      severity: the largest level, in [0, 10], default 3; the authors: 3 on CIFAR, 1 on ImageNet. 0 changes nothing.
      alpha: the parameter of both distributions, above 0, default 1.
      ops: the operations, default nine that resemble none of the test set's corruptions; ``"color"``, ``"contrast"``,
        ``"brightness"`` and ``"sharpness"`` can be added, as the authors do for other test sets.
      value_range: the values of black and white, default (0, 1).
      fill: the value outside the image, in the units of the images, default 0, the authors' black.
      interpolation: ``"bilinear"`` (default, as the authors) or ``"nearest"``.

    Returns:
      ``(images, labels)``, the images with their shape and dtype.

    Raises:
      ValueError: if images are not floating ``[B, H, W, C]``, or an option is misspelt or out of range.

    Cost:
      ``width`` chains of at most 3 operations, each as in `randaugment`, and ``width`` batches of memory. With
      `regjax.losses.jensen_shannon_consistency` the network sees three batches: 3 forward and 3 backward passes. On one CPU
      a chain is a loop over images, whose body XLA counts once.
      XLA at [256, 32, 32, 3]: at most 13 times the FLOPs and 7.1 times the bytes of a copy of its arguments, and 1.7 times its
      memory more.

    Use:
      For: distribution shift, poor calibration.
      When: Test images may be corrupted (noise, blur, weather) in ways that training must not see: the authors report large
        gains there, most with `jensen_shannon_consistency` over a clean and two augmented views.
      Not when: Test images are like the training images: on clean digits it gained little. Time is short: the consistency sends
        three batches through the network.
      Badly with: Colour operations in ops where the test has such corruptions. `randaugment`, the same operations twice.
        `mixup` or `cutmix` drawn for each view by itself, which breaks the consistency. Normalised images.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> images, labels = rj.inputs.augmix(jax.random.key(0), jnp.ones((2, 8, 8, 3)), jnp.array([3, 1]), severity=1)
      >>> images.shape, labels.tolist()
      ((2, 8, 8, 3), [3, 1])

    References:
      Hendrycks et al., AugMix: A Simple Data Processing Method to Improve Robustness and Uncertainty, 2019,
      arXiv 1912.02781; levels as the authors' code, operations as `randaugment_op`. Gamma variables behind the weights are
      accepted at the first of 8 trials that the exact sampler accepts, not in a loop: one of 10^11 draws differs.
    """
    name = "inputs.augmix"
    checks.key(name, key)
    images = checks.images(name, "images", images)
    checks.integer(name, "width", width, low=1)
    checks.integer(name, "depth", depth, low=-1)
    if depth == 0:
        checks.fail(name, "depth", "at least 1, or -1 for 1 to 3 at random", depth)
    checks.number(name, "severity", severity, low=0.0, high=10.0)
    checks.number(name, "alpha", alpha, low=0.0, open_low=True)
    if not (isinstance(ops, (tuple, list)) and ops):
        checks.fail(name, "ops", "a tuple of names of operations", ops)
    for op in ops:
        checks.choice(name, "ops", op, (*_OPS, *_ENHANCE))
    frame = check_frame(name, value_range, fill, interpolation)
    batch, height, side, _ = images.shape
    plan_key, weight_key, mix_key = jax.random.split(key, 3)
    severity = jnp.clip(jnp.asarray(severity, jnp.float32), 0, 10)
    plan = _sample_plan(plan_key, (width, depth, batch), severity, tuple(ops), (height, side))
    chains = jax.lax.map(lambda plan: apply_plan(images, plan, tuple(ops), frame), plan)
    alpha = jnp.maximum(jnp.asarray(alpha, jnp.float32), 1e-6)
    m = jnp.where(severity > 0, symmetric_beta(mix_key, alpha, (batch,)), 0)
    return apply_augmix(images, chains, weights=symmetric_dirichlet(weight_key, alpha, (batch, width)), m=m), labels


def apply_augmix(images: Any, chains: Any, *, weights: Any, m: Any) -> Array:
    r"""Mixes images with given chains of operations on them: the core of `augmix`.

    Formula:
      .. math:: \tilde x_b = (1 - m_b)\, x_b + m_b \sum_i w_{bi}\, chain_{ib}

    Args:
      images: float ``[B, H, W, C]``.
      chains: float ``[width, B, H, W, C]``: the results of the chains.
      weights: float ``[B, width]``, rows of probabilities.
      m: the part of the mixture, in [0, 1]: float ``[B]``, or a number.

    Returns:
      The images, with their shape and dtype; mixed in float32 or better.

    Raises:
      ValueError: if a shape or dtype does not fit, or a number ``m`` is out of range.

    Cost:
      One read of images and chains and one write of the batch.
      XLA at [3, 256, 32, 32, 3]: at most 2.2 times the FLOPs and 0.69 times the bytes of a copy of its arguments, and 0 times
      its memory more.

    Use:
      Part of: `augmix`.
      When: Call it with chains of your own operations, such as those of another modality.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> chains = jnp.stack([jnp.ones((1, 1, 1, 1)), 3 * jnp.ones((1, 1, 1, 1))])
      >>> float(rj.inputs.apply_augmix(jnp.zeros((1, 1, 1, 1)), chains, weights=jnp.array([[0.5, 0.5]]), m=0.25)[0, 0, 0, 0])
      0.5

    References:
      Hendrycks et al., AugMix: A Simple Data Processing Method to Improve Robustness and Uncertainty, 2019,
      arXiv 1912.02781.
    """
    name = "inputs.apply_augmix"
    images = checks.images(name, "images", images)
    batch = images.shape[0]
    chains = checks.floating(name, "chains", chains, shape=(None, *images.shape))
    if not chains.shape[0]:
        checks.fail(name, "chains", "at least one chain", chains)
    weights = checks.floating(name, "weights", weights, shape=(batch, chains.shape[0]))
    if jnp.ndim(m) == 0:
        m = jnp.asarray(checks.number(name, "m", m, low=0.0, high=1.0), float)
    else:
        m = checks.floating(name, "m", m, shape=(batch,))
    dtype = jnp.promote_types(jnp.float32, images.dtype)
    weights = weights.astype(dtype).reshape(batch, -1, 1, 1, 1)
    m = m.astype(dtype).reshape(-1, 1, 1, 1)
    # Few terms, one by one: a sum over the leading axis takes XLA twenty times as long.
    mixture = sum(weights[:, i] * chain.astype(dtype) for i, chain in enumerate(chains))
    return ((1 - m) * images.astype(dtype) + m * mixture).astype(images.dtype)


def symmetric_dirichlet(key: Key, alpha: Array, shape: tuple[int, ...]) -> Array:
    """Draws of Dirichlet(alpha, ..., alpha) on the last axis, in float32, without a rejection loop (see `symmetric_beta`).

    Gamma variables of a = alpha + 1 by the sampler of Marsaglia and Tsang (2000), which accepts at least 95% of its
    proposals: of 8 at once the first that it accepts. Times ``u^(1/alpha)`` they are gamma variables of alpha.
    """
    normal_key, accept_key, boost_key = jax.random.split(key, 3)
    d = alpha + 2 / 3
    x = jax.random.normal(normal_key, (8, *shape), jnp.float32)
    u = jax.random.uniform(accept_key, (8, *shape), jnp.float32, minval=jnp.finfo(jnp.float32).tiny)
    root = 1 + x / jnp.sqrt(9 * d)
    log_v = 3 * jnp.log(jnp.maximum(root, 1e-6))
    accepted = (root > 0) & (jnp.log(u) < 0.5 * x**2 + d * (1 - jnp.exp(log_v) + log_v))
    first = jnp.argmax(accepted, axis=0)[None]
    log_gamma = jnp.log(d) + jnp.take_along_axis(log_v, first, axis=0)[0]
    boost = jax.random.uniform(boost_key, shape, jnp.float32, minval=jnp.finfo(jnp.float32).tiny)
    return jax.nn.softmax(log_gamma + jnp.log(boost) / alpha, axis=-1)


def _sample_plan(key: Key, shape: tuple[int, int, int], severity: Array, ops: tuple[str, ...], sides: tuple[int, int]) -> Plan:
    """The operations ``[width, slots, batch]`` of chains of the given (width, depth, batch)."""
    width, depth, batch = shape
    slots = 3 if depth == -1 else depth
    op_key, depth_key, level_key, sign_key = jax.random.split(key, 4)
    shape = (width, slots, batch)
    operation = jax.random.randint(op_key, shape, 0, len(ops))
    if depth == -1:
        used = jax.random.randint(depth_key, (width, 1, batch), 1, slots + 1)
        operation = jnp.where(jnp.arange(slots)[:, None] < used, operation, -1)
    level = 0.1 + (severity - 0.1) * jax.random.uniform(level_key, shape, jnp.float32)
    sign = jnp.where(jax.random.bernoulli(sign_key, shape=shape), 1.0, -1.0).astype(jnp.float32)
    args = [_argument(op, level, sides[0] if op == "translate_y" else sides[1]) for op in ops]
    args = [sign * arg if op in GEOMETRIC else arg for op, arg in zip(ops, args, strict=True)]
    return make_plan(ops, operation, jnp.stack(args), jnp.zeros((*shape, 2), jnp.int32), *sides)


def _argument(name: str, level: Array, side: int) -> Array:
    """The argument of an operation at levels from 0 to 10."""
    if name == "rotate":
        return jnp.floor(3 * level)
    if name in ("shear_x", "shear_y"):
        return 0.03 * level
    if name in ("translate_x", "translate_y"):
        return jnp.floor(level * (side / 30))
    if name == "posterize":
        return 4 - jnp.floor(0.4 * level)
    if name == "solarize":
        return 256 - jnp.floor(25.6 * level)
    return 0.1 + 0.18 * level if name in _ENHANCE else jnp.zeros_like(level)
