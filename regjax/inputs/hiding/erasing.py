"""Rectangles of each image replaced by a constant or by noise: random erasing."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from regjax.core import checks, sharding, trees
from regjax.core.types import Array, Key, Strength
from regjax.inputs.mixing.boxes import fill_box


def random_erasing(
    key: Key,
    images: Any,
    labels: Any = None,
    *,
    prob: Strength = 0.5,
    min_area: Any = 0.02,
    max_area: Any = 1 / 3,
    min_aspect: Any = 0.3,
    max_aspect: Any = None,
    mode: str = "const",
    count: int = 1,
    attempts: int = 10,
    aspect: str = "log_uniform",
) -> tuple[Array, Any]:
    r"""Erases random rectangles, of random area and aspect, of randomly chosen images.

    Formula:
      With probability ``prob`` for each image, ``count`` times: draw

      .. math:: s \sim U(s_{min}, s_{max}) \frac{HW}{count}, \quad a = e^t, \quad t \sim U(\log a_{min}, \log a_{max}),
         \quad h = round(\sqrt{s a}), \quad w = round(\sqrt{s / a})

      until ``h < H`` and ``w < W``, at most ``attempts`` times, else erase nothing; then ``top`` uniform in 0..H - h and
      ``left`` in 0..W - w. Rounding is half to even.

    Args:
      key: a random key.
      images: float ``[B, H, W, C]``, normalised, so that 0 is the mean of the data.
      labels: anything; it passes unchanged.
      prob: the probability that an image is touched, in [0, 1], default 0.5; 0 changes nothing.
      min_area: the least area as a fraction of the image, in [0, 1], default 0.02.
      max_area: the largest, in [0, 1], default 1/3; the paper: 0.4.
      min_aspect: the least ratio of height to width, above 0, default 0.3.
      max_aspect: the largest; None (default) is ``1 / min_aspect``.
      mode: what fills: ``"const"`` (default) zeros, ``"rand"`` one normal colour for each rectangle, ``"pixel"`` normal
        noise in every pixel.
      count: rectangles in each touched image, default 1, sharing the area; they may overlap.
      attempts: candidates for each rectangle, default 10, of which the first that fits is taken.
      aspect: ``"log_uniform"`` (default), or ``"uniform"``, the paper's: the ratio itself is uniform in its range.

    Returns:
      ``(images, labels)``, the images with their shape and dtype.

    Raises:
      ValueError: if images are not floating ``[B, H, W, C]``, a number is out of range or its limits crossed, or an option
        is unknown.

    Cost:
      One read and one write of the batch in modes ``"const"`` and ``"rand"``; the draws are ``[B, count, attempts]``.
      ``"pixel"`` draws a normal number for every value of the batch, erased or not: on a CPU some 60 times the rest.
      XLA at [256, 32, 32, 3]: at most 3.1 times the FLOPs and 1.2 times the bytes of a copy of its arguments, and 0.013 times
      its memory more.

    Use:
      For: few labels, noisy labels.
      When: Image classification or re-identification under occlusion. On digits with wrong labels it was ahead of `cutout`,
        `mixup` and `cutmix`, best with prob=1 and an area above the default.
      Not when: A box may hide the whole object, as in text or small-object images. Mode 'pixel' on a processor: it draws a
        number for every pixel.
      Badly with: `cutout`, which does the same. `cutmix` before it, whose pasted part it may hide. Images that are not
        normalised: the noise of 'rand' and 'pixel' has variance 1.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> images, _ = rj.inputs.random_erasing(jax.random.key(0), jnp.ones((4, 16, 16, 3)), prob=1.0)
      >>> images.shape, bool((images.mean((1, 2, 3)) < 1).all())
      ((4, 16, 16, 3), True)

    References:
      Zhong et al., Random Erasing Data Augmentation, 2017, arXiv 1708.04896. Defaults, the logarithmic aspect and the
      rejection of boxes as large as the image are those of timm; there ``count`` is the largest number of rectangles, and
      each image draws its own. The paper draws the aspect uniformly, draws the corner together with the size, so that
      large boxes are rejected more often, and fills with uniform noise.
    """
    name = "inputs.random_erasing"
    checks.key(name, key)
    images = checks.images(name, "images", images)
    checks.number(name, "prob", prob, low=0.0, high=1.0)
    _check_range(name, "min_area", min_area, "max_area", max_area, high=1.0)
    if max_aspect is None:
        checks.number(name, "min_aspect", min_aspect, low=0.0, high=1.0, open_low=True)
        max_aspect = 1 / min_aspect
    _check_range(name, "min_aspect", min_aspect, "max_aspect", max_aspect, open_low=True)
    checks.choice(name, "mode", mode, ("const", "rand", "pixel"))
    checks.integer(name, "count", count, low=1)
    checks.integer(name, "attempts", attempts, low=1)
    checks.choice(name, "aspect", aspect, ("log_uniform", "uniform"))

    batch, height, width, channels = images.shape
    use_key, box_key, fill_key = jax.random.split(key, 3)
    # All uniforms of the boxes in one draw: on small images separate draws would cost as much as the erasing.
    uniforms = jax.random.uniform(box_key, (batch, count, 2 * attempts + 2), jnp.float32)
    area_draw, aspect_draw, place_draw = jnp.split(uniforms, (attempts, 2 * attempts), axis=-1)
    least, most = jnp.asarray(min_area, jnp.float32), jnp.asarray(max_area, jnp.float32)
    fraction = (least + (most - least) * area_draw) / count
    low, high = jnp.asarray(min_aspect, jnp.float32), jnp.asarray(max_aspect, jnp.float32)
    if aspect == "uniform":
        log_aspect = jnp.log(low + (high - low) * aspect_draw)
    else:
        log_aspect = jnp.log(low) + jnp.log(high / low) * aspect_draw
    tall, wide = _sides(fraction, log_aspect, images)
    first = jnp.argmax((tall < height) & (wide < width), axis=-1, keepdims=True)
    fraction, log_aspect = (jnp.take_along_axis(x, first, axis=-1)[..., 0] for x in (fraction, log_aspect))
    # Where no candidate fits the core erases nothing; where the image is not touched the area is 0.
    touched = jax.random.uniform(use_key, (batch, 1), jnp.float32) < prob
    fraction = jnp.where(touched, fraction, 0)
    free = [jnp.maximum(n - side, 0) for n, side in zip((height, width), _sides(fraction, log_aspect, images), strict=True)]
    top, left = (jnp.minimum((place_draw[..., i] * (n + 1)).astype(jnp.int32), n) for i, n in enumerate(free))

    value: Any = 0.0
    if mode == "rand":
        # Box by box: XLA would fuse one draw for all, cut into boxes, with the select, and repeat it for every pixel.
        colours = [jax.random.normal(k, (batch, channels), jnp.float32) for k in jax.random.split(fill_key, count)]
        value = jnp.stack(colours, axis=1)
    elif mode == "pixel":
        named = sharding.explicit_sharding(images)
        value = jax.random.normal(fill_key, images.shape, jnp.float32, out_sharding=named)
    return apply_random_erasing(images, area_fraction=fraction, log_aspect=log_aspect, top=top, left=left, value=value), labels


def apply_random_erasing(images: Any, *, area_fraction: Any, log_aspect: Any, top: Any, left: Any, value: Any = 0.0) -> Array:
    r"""Erases given rectangles: the core of `random_erasing`.

    Formula:
      .. math:: h = round(\sqrt{f H W e^t}), \quad w = round(\sqrt{f H W e^{-t}})

      with f the area fraction and t the logarithm of the aspect; rows ``top..top + h - 1`` and columns
      ``left..left + w - 1`` are set to ``value``, where ``h < H`` and ``w < W``: a box as high or as wide as the image
      erases nothing. Later boxes of an image lie over earlier ones.

    Args:
      images: float ``[B, H, W, C]``.
      area_fraction: the area as a fraction of the image, float ``[B]`` or ``[B, N]`` for N boxes; 0 erases nothing.
      log_aspect: the logarithm of the ratio of height to width, float of the same shape.
      top: the first row, integer of the same shape; a box is cut at the border.
      left: the first column, integer of the same shape.
      value: what fills: a number (default 0), a colour for each box, ``[B, C]`` or ``[B, N, C]``, or an array of the
        shape of ``images``.

    Returns:
      The images, with their shape and dtype.

    Raises:
      ValueError: if a shape or dtype does not fit.

    Cost:
      One read and one write of the batch, and a read of ``value`` where it has the shape of ``images``.
      XLA at [256, 32, 32, 3]: at most 2.4 times the FLOPs and 1.2 times the bytes of a copy of its arguments, and 0.01 times
      its memory more.

    Use:
      Part of: `random_erasing`.
      When: Call it with given rectangles and fillings, such as the background's colour or another image.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> boxes = dict(area_fraction=jnp.array([0.25]), log_aspect=jnp.array([0.3]), top=jnp.array([1]), left=jnp.array([2]))
      >>> float((rj.inputs.apply_random_erasing(jnp.ones((1, 8, 8, 1)), **boxes) == 0).sum())
      15.0

    References:
      Zhong et al., Random Erasing Data Augmentation, 2017, arXiv 1708.04896; sides and their rounding as in timm.
    """
    name = "inputs.apply_random_erasing"
    images = checks.images(name, "images", images)
    batch, height, width, channels = images.shape
    area_fraction = checks.floating(name, "area_fraction", area_fraction)
    shape = area_fraction.shape
    if len(shape) not in (1, 2) or shape[0] != batch:
        checks.fail(name, "area_fraction", f"floats of shape [{batch}] or [{batch}, N]", area_fraction)
    log_aspect = checks.floating(name, "log_aspect", log_aspect, shape=shape)
    top = checks.integers(name, "top", top, shape=shape)
    left = checks.integers(name, "left", left, shape=shape)
    if np.ndim(value) == 0:
        checks.number(name, "value", value)
    else:
        value = checks.floating(name, "value", value)
        if value.shape not in ((*shape, channels), images.shape):
            text = f"a number, colours of shape {[*shape, channels]}, or an array of shape {list(images.shape)}"
            checks.fail(name, "value", text, value)
    value = jnp.asarray(value, images.dtype)

    tall, wide = _sides(area_fraction, log_aspect, images)
    # Sides and boxes stay [B, N]; one select for each box over the batch, which the compiler fuses into one pass.
    tall = jnp.where((tall < height) & (wide < width), tall, 0)
    boxes = [x.reshape(batch, -1) for x in (top, top + tall, left, left + wide)]
    colours = value.reshape(batch, -1, channels) if value.shape == (*shape, channels) else None
    named = sharding.explicit_sharding(images)
    if colours is not None and named is not None:
        colours = jax.sharding.reshard(colours, named.update(spec=jax.P(named.spec[0], None, named.spec[3])))
    elif value.shape == images.shape and named is not None:
        value = jax.sharding.reshard(value, named)
    for i in range(boxes[0].shape[1]):
        y1, y2, x1, x2 = (edge[:, i] for edge in boxes)
        fill = value if colours is None else colours[:, i, None, None, :]
        images = fill_box(images, (y1, y2, x1, x2), fill)
    return images


def _sides(fraction: Array, log_aspect: Array, images: Array) -> tuple[Array, Array]:
    """Heights and widths of boxes, rounded half to even, in float32 or better."""
    dtype = trees.accumulator(fraction, log_aspect)
    area = fraction.astype(dtype) * (images.shape[1] * images.shape[2])
    half = jnp.exp(log_aspect.astype(dtype) / 2)
    side = jnp.sqrt(jnp.maximum(area, 0))
    return jnp.round(side * half).astype(jnp.int32), jnp.round(side / half).astype(jnp.int32)


def _check_range(name: str, low_name: str, least: Any, high_name: str, most: Any, **limits: Any) -> None:
    """Two numbers of which the first is not above the second, as far as they are known at trace time."""
    checks.number(name, low_name, least, low=0.0, **limits)
    checks.number(name, high_name, most, low=0.0, **limits)
    if not isinstance(least, jax.Array) and not isinstance(most, jax.Array) and float(least) > float(most):
        checks.fail(name, high_name, f"at least {low_name} = {float(least):g}", most)
