"""Multiplicative noise masks whose distribution a policy network learns by REINFORCE."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from regjax.core import checks, sharding, trees
from regjax.core.types import Array, Key, Strength

# Beta parameters between exp(-5) and exp(5): densities and their gradients stay moderate.
_LIMIT = 5.0
_EDGE = 1e-6
# Each round of the gamma sampler accepts at least 95%: fewer than one draw in 10^5 is left to the fallback.
_ROUNDS = 4


def sample_noise_mask(
    key: Key,
    log_alpha: Any,
    log_beta: Any,
    *,
    image_size: int | tuple[int, int],
    grid: int = 64,
    kernel_size: int = 13,
    sigma: float = 6.0,
) -> tuple[Array, Array]:
    r"""Draws a mask for each image from the policy's Beta distributions, and blurs it to the size of the image.

    Formula:
      .. math:: m_{bj} \sim Beta(e^{\alpha_{bj}}, e^{\beta_{bj}})

      then `noise_mask_image`. The parameters are clipped to [-5, 5], and no gradient flows through the draw: the policy
      learns by `noise_mask_policy_loss`.

    Args:
      key: a random key.
      log_alpha: float ``[B, grid * grid]``, as of `smooth_policy`.
      log_beta: float of the same shape.
      image_size: the images' height and width, or a number for both.
      grid: the cells of a mask in each direction, default 64.
      kernel_size: see `noise_mask_image`.
      sigma: see `noise_mask_image`.

    Returns:
      ``(mask_image, mask)``: float ``[B, H, W, 1]``, to be multiplied with the images, and the draws ``[B, grid * grid]``
      for the policy's loss; both in float32 or better, with no gradient.

    Raises:
      ValueError: if a shape or dtype does not fit, or an option is out of range.

    Cost:
      Some twenty random numbers for each cell and the memory of twice as many, and two small matrix products for each image. A
      draw is accepted within four rounds of a rejection sampler but for one in 10^5, which takes a central value: there is no
      loop to wait for.
      XLA at 2 times [64, 4096]: at most 920 times the FLOPs and 73 times the bytes of a copy of its arguments, and 10 times its
      memory more.

    Use:
      For: few labels, distribution shift.
      When: Pretraining ('heating') of an image classifier under masks that a `NoiseMaskPolicy` learns by
        `noise_mask_policy_loss`, before ordinary fine-tuning. With constant parameters and no policy it gained little on the
        digits.
      Not when: Images are small and grid, kernel_size and sigma are left at defaults made for 224 pixels. Training ends with
        the masks on: the classifier is to be tuned on without them.
      Badly with: `cutout`, `random_erasing` or `dropout` in the same pass, whose noise enters the policy's reward. Images that
        are not normalised, which the mask darkens in place of fading to the mean.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> sure = jnp.full((2, 16), 5.0)  # Beta(148, 0.007): almost 1
      >>> image, mask = rj.inputs.sample_noise_mask(
      ...     jax.random.key(0), sure, -sure, image_size=8, grid=4, kernel_size=3)
      >>> image.shape, mask.shape, bool((image > 0.99).all())
      ((2, 8, 8, 1), (2, 16), True)

    References:
      Yavuz and Yang, Policy Gradient-Driven Noise Mask, 2024, arXiv 2406.14568. At test and validation the authors' code
      draws from the running base alone, ``exp(base)`` of `smooth_policy`; after training with masks ("heating") the policy
      is dropped and the classifier tuned on without masks.
    """
    name = "inputs.sample_noise_mask"
    checks.key(name, key)
    checks.integer(name, "grid", grid, low=1)
    log_alpha, log_beta = _check_policy(name, log_alpha, log_beta)
    if log_alpha.shape[1] != grid**2:
        checks.fail(name, "log_alpha", f"floats of shape [B, {grid**2}] with grid = {grid}", log_alpha)
    size = _check_blur(name, image_size, kernel_size, sigma)
    alpha_key, beta_key = jax.random.split(key)
    difference = _log_gamma(alpha_key, jnp.exp(log_alpha)) - _log_gamma(beta_key, jnp.exp(log_beta))
    mask = jax.lax.stop_gradient(jax.nn.sigmoid(difference))
    return _blur(mask, grid, size, kernel_size, sigma), mask


def noise_mask_image(mask: Any, *, image_size: int | tuple[int, int], kernel_size: int = 13, sigma: float = 6.0) -> Array:
    r"""Enlarges masks to the size of the images and blurs them: the core of `sample_noise_mask`.

    Formula:
      Nearest neighbour from G x G to H x W, pixel ``(y, x)`` from cell ``(floor(y G / H), floor(x G / W))``; then a Gaussian
      blur with ``kernel_size`` taps in each direction, the image reflected at its border without repeating the edge. Both
      are linear and separate, so that the whole is :math:`R M C^T` with two constant matrices whose rows sum to 1.

    Args:
      mask: float ``[B, G * G]``.
      image_size: the images' height and width, or a number for both.
      kernel_size: the taps of the blur, odd, at most twice the smaller side less 1, default 13 (for images of 224).
      sigma: its standard deviation in pixels, above 0, default 6.

    Returns:
      Float ``[B, H, W, 1]`` in float32 or better.

    Raises:
      ValueError: if the mask is no float ``[B, G * G]``, or an option is out of range.

    Cost:
      Two matrix products, ``H G^2 + H W G`` multiplications for each image.
      XLA at [64, 4096]: at most 290 times the FLOPs and 5.6 times the bytes of a copy of its arguments, and 0.55 times its
      memory more.

    Use:
      Part of: `sample_noise_mask`.
      When: Call it for a mask that was not drawn: the policy's mean at validation, or a picture of it.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> image = rj.inputs.noise_mask_image(jnp.array([[1.0, 0.0, 1.0, 0.0]]), image_size=4, kernel_size=1)
      >>> image[0, :, :, 0].tolist()[0]
      [1.0, 1.0, 0.0, 0.0]

    References:
      Yavuz and Yang, Policy Gradient-Driven Noise Mask, 2024, arXiv 2406.14568.
    """
    name = "inputs.noise_mask_image"
    mask = checks.floating(name, "mask", mask, ndim=2)
    grid = round(mask.shape[1] ** 0.5)
    if grid < 1 or grid**2 != mask.shape[1]:
        checks.fail(name, "mask", "floats of shape [B, G * G], masks of G x G cells", mask)
    size = _check_blur(name, image_size, kernel_size, sigma)
    return _blur(mask.astype(trees.accumulator(mask)), grid, size, kernel_size, sigma)


def noise_mask_policy_loss(log_alpha: Any, log_beta: Any, mask: Any, task_loss: Any, *, score: str = "sum_log") -> Array:
    r"""REINFORCE for the policy of noise masks, with the loss of the task as the cost, and that loss itself.

    Formula:
      With :math:`p_{bj}` the density of the mask's cell under its Beta distribution and :math:`L_b` the task's loss:

      .. math:: \frac{1}{B} \sum_b \left( sg(L_b) \sum_j \log p_{bj} + L_b \right)

      or, with ``"log_sum"``, :math:`\frac{1}{B} \sum_b \log(\sum_j p_{bj}) \bar L`, where :math:`\bar L` is the batch's mean
      and nothing is stopped, so that the policy scales the classifier's gradient too.

    Args:
      log_alpha: float ``[B, J]``, the parameters that the mask was drawn with; clipped to [-5, 5].
      log_beta: float of the same shape.
      mask: float of the same shape: the draws of `sample_noise_mask`; clipped to [1e-6, 1 - 1e-6]. No gradient reaches it.
      task_loss: float ``[B]``: the loss of each masked image. One backward pass serves the policy and the classifier.
      score: ``"sum_log"`` (default), or ``"log_sum"`` as released by the authors.

    Returns:
      A scalar in float32 or better. With ``"sum_log"`` the value is no measure of progress; its gradient is what counts.

    Raises:
      ValueError: if a shape or dtype does not fit, or the score is unknown.

    Cost:
      A few special functions for each cell, for whose parts a CPU takes some forty numbers of memory a cell.
      XLA at 3 times [64, 4096]: at most 200 times the FLOPs and 31 times the bytes of a copy of its arguments, and 6.6 times
      its memory more.

    Use:
      Part of: `sample_noise_mask`.
      When: Call it with the draws and the losses of the same pass. It holds the task's loss too, so it is the whole loss.
      Badly with: Small batches, as there is no baseline and the variance is that of the raw losses. Adding the task's loss once
        more. Its value as a measure of progress.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> parameters = jnp.log(jnp.full((1, 2), 2.0)), jnp.log(jnp.full((1, 2), 3.0))
      >>> loss = rj.inputs.noise_mask_policy_loss(*parameters, jnp.array([[0.2, 0.5]]), jnp.ones(1), score="log_sum")
      >>> round(float(loss), 5)
      1.11054

    References:
      Yavuz and Yang, Policy Gradient-Driven Noise Mask, 2024, arXiv 2406.14568. ``"log_sum"`` is the authors' code: the
      logarithm of the sum of the cells' densities, which is no likelihood of the mask; the default is REINFORCE proper,
      with the cost of each example and no baseline.
    """
    name = "inputs.noise_mask_policy_loss"
    log_alpha, log_beta = _check_policy(name, log_alpha, log_beta)
    mask = checks.floating(name, "mask", mask, shape=log_alpha.shape)
    task_loss = checks.floating(name, "task_loss", task_loss, shape=log_alpha.shape[:1])
    checks.choice(name, "score", score, ("sum_log", "log_sum"))
    dtype = trees.accumulator(log_alpha, log_beta, mask, task_loss)
    alpha, beta = jnp.exp(log_alpha.astype(dtype)), jnp.exp(log_beta.astype(dtype))
    x = jnp.clip(jax.lax.stop_gradient(mask).astype(dtype), _EDGE, 1 - _EDGE)
    # `betaln` has twice the operations; its mean error is smaller, its largest is not, and both drown in the draw's noise.
    log_gamma = jax.scipy.special.gammaln
    log_constant = log_gamma(alpha + beta) - log_gamma(alpha) - log_gamma(beta)
    log_density = (alpha - 1) * jnp.log(x) + (beta - 1) * jnp.log1p(-x) + log_constant
    cost = task_loss.astype(dtype)
    if score == "log_sum":
        return jnp.mean(jax.nn.logsumexp(log_density, axis=1)) * jnp.mean(cost)
    return jnp.mean(jnp.sum(log_density, axis=1) * jax.lax.stop_gradient(cost) + cost)


def smooth_policy(raw: Any, base: Any, *, decay: Strength = 0.9, base_decay: Strength = 0.99) -> tuple[Array, Array]:
    r"""Smooths a policy's output by a running base, which is common to all images.

    Formula:
      .. math:: \alpha_b = d \, base + (1 - d) \, raw_b, \quad
        base \leftarrow d' \, base + (1 - d') \frac{1}{B} \sum_b sg(raw_b)

      the first with the base as it was, the same for alpha and beta.

    Args:
      raw: float ``[B, J]``: an output of ``layers.NoiseMaskPolicy``.
      base: float ``[1, J]``: the memory, ``jax.random.uniform(key, (1, J))`` at the start. No gradient reaches it.
      decay: the weight d of the base, in [0, 1], default 0.9; 0 leaves the output as it is.
      base_decay: the decay d' of the base, in [0, 1], default 0.99.

    Returns:
      ``(log_param, base)``: float ``[B, J]``, and the next step's base ``[1, J]`` in its own dtype.

    Raises:
      ValueError: if a shape or dtype does not fit, or a decay is out of range.

    Cost:
      Two reads of the output and one write.
      XLA at [64, 4096]: at most 3.3 times the FLOPs and 1.7 times the bytes of a copy of its arguments, and 0 times its memory
      more.

    Use:
      Part of: `sample_noise_mask`.
      When: Call it once for alpha and once for beta, between the policy and the draw, and keep both bases. At validation draw
        from the base alone.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> log_alpha, base = rj.inputs.smooth_policy(jnp.array([[1.0], [3.0]]), jnp.zeros((1, 1)), decay=0.5)
      >>> log_alpha.ravel().tolist(), round(float(base[0, 0]), 4)
      ([0.5, 1.5], 0.02)

    References:
      Yavuz and Yang, Policy Gradient-Driven Noise Mask, 2024, arXiv 2406.14568; as the authors' code.
    """
    name = "inputs.smooth_policy"
    raw = checks.floating(name, "raw", raw, ndim=2)
    base = checks.floating(name, "base", base, shape=(1, raw.shape[1]))
    checks.number(name, "decay", decay, low=0.0, high=1.0)
    checks.number(name, "base_decay", base_decay, low=0.0, high=1.0)
    dtype = trees.accumulator(raw, base)
    wide, old = raw.astype(dtype), jax.lax.stop_gradient(base).astype(dtype)
    decay, base_decay = jnp.asarray(decay, dtype), jnp.asarray(base_decay, dtype)
    mean = jnp.mean(jax.lax.stop_gradient(wide), axis=0, keepdims=True)
    smooth = decay * old + (1 - decay) * wide
    return smooth.astype(raw.dtype), (base_decay * old + (1 - base_decay) * mean).astype(base.dtype)


def _check_policy(name: str, log_alpha: Any, log_beta: Any) -> tuple[Array, Array]:
    """The two parameters in float32 or better, clipped."""
    log_alpha = checks.floating(name, "log_alpha", log_alpha, ndim=2)
    log_beta = checks.floating(name, "log_beta", log_beta, shape=log_alpha.shape)
    dtype = trees.accumulator(log_alpha, log_beta)
    return jnp.clip(log_alpha.astype(dtype), -_LIMIT, _LIMIT), jnp.clip(log_beta.astype(dtype), -_LIMIT, _LIMIT)


def _check_blur(name: str, image_size: Any, kernel_size: Any, sigma: Any) -> tuple[int, int]:
    sides = image_size if isinstance(image_size, tuple) else (image_size, image_size)
    if len(sides) != 2:
        checks.fail(name, "image_size", "a side or (H, W)", image_size)
    height, width = (checks.integer(name, "image_size", n, low=1) for n in sides)
    most = 2 * min(height, width) - 1  # a reflected border is shorter than the side
    if checks.integer(name, "kernel_size", kernel_size, low=1, high=most) % 2 == 0:
        checks.fail(name, "kernel_size", "odd", kernel_size)
    if isinstance(sigma, jax.Array):
        checks.fail(name, "sigma", "a static number", sigma)
    checks.number(name, "sigma", sigma, low=0.0, open_low=True)
    return height, width


def _blur(mask: Array, grid: int, size: tuple[int, int], kernel_size: int, sigma: float) -> Array:
    rows, columns = (jnp.asarray(_enlarge_and_blur(grid, n, kernel_size, sigma), mask.dtype) for n in size)
    cells = mask.reshape(-1, grid, grid)
    image = jnp.einsum("hi,bij,wj->bhw", rows, cells, columns, precision=jax.lax.Precision.HIGHEST)
    return image[..., None]


def _enlarge_and_blur(grid: int, size: int, kernel_size: int, sigma: float) -> np.ndarray:
    """The matrix ``[size, grid]`` of nearest-neighbour enlargement, reflection and a Gaussian blur along one axis."""
    half = kernel_size // 2
    taps = np.exp(-0.5 * (np.arange(-half, half + 1) / sigma) ** 2)
    blurred = np.zeros((size, size))
    reflected = np.pad(np.arange(size), half, mode="reflect") if half else np.arange(size)
    for i in range(size):
        np.add.at(blurred[i], reflected[i : i + kernel_size], taps / taps.sum())
    return blurred @ np.eye(grid)[np.arange(size) * grid // size]


def _log_gamma(key: Key, shape: Array) -> Array:
    """Logarithms of gamma variables: those of ``shape + 1`` by Marsaglia and Tsang (2000), moved down by a uniform.

    `jax.random.beta` and `gamma` loop until every element is accepted: a host round trip for each turn on a GPU, and they
    refuse parameters that are sharded over an Explicit mesh.
    """
    named = sharding.explicit_sharding(shape)
    tiny = jnp.finfo(jnp.float32).tiny
    draw = lambda k, fn, **limits: fn(k, shape.shape, jnp.float32, out_sharding=named, **limits).astype(shape.dtype)
    d = shape + 2 / 3
    c = 1 / jnp.sqrt(9 * d)
    keys = jax.random.split(key, 2 * _ROUNDS + 1)
    found, value = jnp.zeros_like(shape, dtype=bool), jnp.zeros_like(shape)
    for normal_key, uniform_key in zip(keys[1::2], keys[2::2], strict=True):
        z = draw(normal_key, jax.random.normal)
        log_u = jnp.log(draw(uniform_key, jax.random.uniform, minval=tiny))
        root = 1 + c * z
        log_v = 3 * jnp.log(jnp.where(root > 0, root, 1))
        good = (root > 0) & (log_u < z**2 / 2 + d - d * jnp.exp(log_v) + d * log_v)
        value = jnp.where(good & ~found, log_v, value)
        found |= good
    return jnp.log(d) + value + jnp.log(draw(keys[0], jax.random.uniform, minval=tiny)) / shape
