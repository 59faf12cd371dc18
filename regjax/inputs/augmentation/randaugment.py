"""Random image operations of one common magnitude: RandAugment."""

import math
import numbers
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from regjax.core import checks, trees
from regjax.core.types import Array, Key, Strength
from regjax.inputs.augmentation.image_ops import GEOMETRIC, NAMES, check_frame
from regjax.inputs.augmentation.image_plans import apply_plan, make_plan

_ENHANCE = ("color", "contrast", "brightness", "sharpness")
_TIMM = (
    *("auto_contrast", "equalize", "invert", "rotate", "posterize", "solarize", "solarize_add", *_ENHANCE),
    *("shear_x", "shear_y", "translate_x", "translate_y"),
)
_TABLES = {
    "paper": ("identity", *(name for name in _TIMM if name not in ("invert", "solarize_add"))),
    "tpu": (*_TIMM, "cutout"),
    "timm": _TIMM,
}


def randaugment(
    key: Key,
    images: Any,
    labels: Any = None,
    *,
    num_ops: int = 2,
    magnitude: Strength = 9,
    max_magnitude: float = 10,
    table: str = "paper",
    prob: Strength = 1.0,
    magnitude_std: Strength = 0.0,
    value_range: tuple[float, float] = (0.0, 1.0),
    fill: Any = 0.5,
    interpolation: str = "nearest",
) -> tuple[Array, Any]:
    r"""Applies a few random operations to each image, all of one magnitude.

    Formula:
      For each image, ``num_ops`` times: an operation drawn uniformly from the table's list, with replacement, at the
      argument that `randaugment_magnitude` gives for the common magnitude; where an operation has two directions, either
      with probability 1/2. Only images before normalisation, and only in training.

    Args:
      key: a random key.
      images: float ``[B, H, W, C]``, not normalised. C = 3 is red, green and blue; other channels count alike.
      labels: anything; it passes unchanged.
      num_ops: operations in a row, at least 1, default 2.
      magnitude: the strength, at least 0, default 9; at most ``max_magnitude``, but for table ``"tpu"``, whose maps the
        paper follows up to 30. The paper: 2 operations of 9 for ResNet-50 and of 28 for EfficientNet-B7 on ImageNet, 3 of
        5 on CIFAR-10 and 2 of 14 on CIFAR-100. Magnitude 0 of table ``"paper"`` leaves only ``auto_contrast`` and
        ``equalize``.
      max_magnitude: the end of the scale, default 10. torchvision's scale ends at 30: its 9 is 3 here.
      table: the operations and their maps: ``"paper"`` (default; 14 operations, stronger with the magnitude), ``"tpu"``
        (16, as the authors released, where posterize and solarize weaken, and the middle of the scale changes no colour),
        ``"timm"`` (15, timm's increasing variant).
      prob: the probability of each drawn operation to be applied, in [0, 1], default 1; timm: 0.5. 0 changes nothing.
      magnitude_std: 0 (default): one magnitude; above 0: each operation draws its own from a normal distribution around
        ``magnitude``, clipped to [0, ``max_magnitude``]; infinity: uniformly from [0, ``magnitude``].
      value_range: the values of black and white, default (0, 1).
      fill: the value outside the image, in the units of the images, default 0.5; torchvision: 0.
      interpolation: ``"nearest"`` (default) or ``"bilinear"``, of rotations, shears and translations.

    Returns:
      ``(images, labels)``, the images with their shape and dtype.

    Raises:
      ValueError: if images are not floating ``[B, H, W, C]``, or an option is misspelt or out of range.

    Cost:
      On one CPU each image is computed with its own operations alone, in a loop that writes into the batch: on one core 1.3 ms
      for 256 images of 32 x 32, and 10 ms for 64 of 224 x 224 where the caller donates them, as else the copy costs more than
      the operations. Elsewhere ``num_ops`` times one warp, one sharpening, one histogram and one pass of everything else for
      all images, and a select; under ``vmap`` likewise. A batch sharded over devices needs no communication. XLA counts the
      body of the loop once.
      XLA at [256, 32, 32, 3]: at most 0.57 times the FLOPs and 1.3 times the bytes of a copy of its arguments, and 0.011 times
      its memory more.

    Use:
      For: few labels.
      When: Natural images with a model large enough to overfit: two numbers to search, and larger models take larger
        magnitudes. On the digits an intermediate magnitude was best, well below the default.
      Not when: An operation changes the class: orientation, colour or grey level carry meaning (digits, medical images).
        Numbers of a torchvision recipe are taken over: its scale ends at 30, not 10.
      Badly with: Normalised images, as levels must lie in value_range: normalise afterwards. `augmix`, which draws the same
        operations again. `cutout` beside table 'tpu', which has it. `mixup` and `cutmix` before it.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> images, labels = rj.inputs.randaugment(jax.random.key(0), jnp.ones((2, 8, 8, 3)), jnp.array([3, 1]), magnitude=5)
      >>> images.shape, labels.tolist()
      ((2, 8, 8, 3), [3, 1])

    References:
      Cubuk et al., RandAugment: Practical automated data augmentation with a reduced search space, 2019, arXiv 1909.13719.
      The paper gives no maps from magnitudes to arguments: ``"paper"`` are torchvision's. The authors' contrast blends
      with a number of pixels where the mean grey level was meant; this blends with the mean. Operations act on real
      numbers, without rounding to 8 bits: in Pillow results differ by up to 1.4 of 255 levels, and shears by 0.15 pixels.
    """
    name = "inputs.randaugment"
    checks.key(name, key)
    images = checks.images(name, "images", images)
    checks.integer(name, "num_ops", num_ops, low=1)
    checks.choice(name, "table", table, tuple(_TABLES))
    _check_magnitude(name, magnitude, max_magnitude, table)
    checks.number(name, "prob", prob, low=0.0, high=1.0)
    if not (isinstance(magnitude_std, (numbers.Real, np.number)) and magnitude_std == math.inf):
        checks.number(name, "magnitude_std", magnitude_std, low=0.0)
    frame = check_frame(name, value_range, fill, interpolation)
    batch, height, width, _ = images.shape
    names, shape = _TABLES[table], (num_ops, batch)
    op_key, prob_key, sign_key, magnitude_key, centre_key = jax.random.split(key, 5)
    operation = jax.random.randint(op_key, shape, 0, len(names))
    operation = jnp.where(jax.random.uniform(prob_key, shape, jnp.float32) < prob, operation, -1)
    sign = jnp.where(jax.random.bernoulli(sign_key, shape=shape), 1.0, -1.0).astype(jnp.float32)
    magnitudes = _sample_magnitudes(magnitude_key, magnitude, magnitude_std, max_magnitude, shape)
    args = [_signed(n, _argument(n, magnitudes / max_magnitude, table, _side(n, height, width)), sign, table) for n in names]
    row_key, column_key = jax.random.split(centre_key)
    rows, columns = jax.random.randint(row_key, shape, 0, height), jax.random.randint(column_key, shape, 0, width)
    plan = make_plan(names, operation, jnp.stack(args), jnp.stack([rows, columns], axis=-1), height, width)
    return apply_plan(images, plan, names, frame), labels


def randaugment_op(
    images: Any,
    *,
    name: str,
    arg: Any = 0.0,
    fill: Any = 0.5,
    value_range: tuple[float, float] = (0.0, 1.0),
    interpolation: str = "nearest",
    centre: Any = None,
) -> Array:
    r"""One image operation with a given argument: the core of `randaugment`.

    Formula:
      On levels v from 0 (black) to 255 (white), results clipped: invert ``255 - v``; solarize ``v`` below the threshold,
      else ``255 - v``; solarize_add ``v + arg`` below 128, else ``v``; posterize keeps ``arg`` bits (8 change nothing);
      ``d + arg (v - d)`` where d is black (brightness), the luminance (color), the image's mean luminance, rounded
      (contrast), or a 3 x 3 blur of centre weight 5, but for the border (sharpness); auto_contrast stretches each channel
      to 0..255; equalize maps each channel by its cumulative histogram of 256 levels.
      Geometry reads pixel (x, y) of the result at: translate_x ``(x + arg, y)``; shear_x ``(x + arg y, y)``; the same in y;
      rotate: turned by ``arg`` degrees about the centre. cutout fills a square around ``centre``, of half side ``arg``.

    Args:
      images: float ``[B, H, W, C]``, not normalised.
      name: ``"identity"``, ``"auto_contrast"``, ``"equalize"``, ``"invert"``, ``"solarize"``, ``"solarize_add"``,
        ``"posterize"``, ``"color"``, ``"contrast"``, ``"brightness"``, ``"sharpness"``, ``"rotate"``, ``"shear_x"``,
        ``"shear_y"``, ``"translate_x"``, ``"translate_y"`` or ``"cutout"``.
      arg: degrees, a factor, pixels, bits or levels: a number, or float ``[B]``; unused where the operation has none.
      fill: the value outside the image, in the units of the images, default 0.5.
      value_range: the values of black and white, default (0, 1).
      interpolation: ``"nearest"`` (default) or ``"bilinear"``.
      centre: of cutout alone: ``(row, column)``, or integer ``[B, 2]``.

    Returns:
      The images, with their shape and dtype.

    Raises:
      ValueError: if a shape, dtype or option does not fit, or cutout has no ``centre``.

    Cost:
      One read and one write of the batch. On one CPU this is a loop over images, whose body XLA counts once.
      XLA at [256, 32, 32, 3]: at most 0.04 times the FLOPs and 1.2 times the bytes of a copy of its arguments, and 0.01 times
      its memory more.

    Use:
      Part of: `randaugment`, `augmix`.
      When: Call it for one operation with an argument of your own, such as a fixed rotation or a corruption for a test.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> images = jnp.array([200.0, 100.0]).reshape(1, 1, 2, 1)
      >>> rj.inputs.randaugment_op(images, name="solarize", arg=128, value_range=(0, 255)).ravel().tolist()
      [55.0, 100.0]

    References:
      Cubuk et al., RandAugment: Practical automated data augmentation with a reduced search space, 2019, arXiv 1909.13719.
      Halves of a pixel are rounded up, so that a shift by half a pixel is a shift; blends are not rounded to 8 bits.
    """
    where = "inputs.randaugment_op"
    images = checks.images(where, "images", images)
    batch, height, width, _ = images.shape
    checks.choice(where, "name", name, NAMES)
    dtype = jnp.promote_types(jnp.float32, images.dtype)
    if np.ndim(arg) == 0:
        arg = jnp.broadcast_to(jnp.asarray(checks.number(where, "arg", arg), dtype), (batch,))
    arg = checks.floating(where, "arg", arg, shape=(batch,)).astype(dtype)
    frame = check_frame(where, value_range, fill, interpolation)
    if centre is None:
        if name == "cutout":
            checks.fail(where, "centre", "(row, column) or integers of shape [B, 2] for cutout", centre)
        centre = (0, 0)
    centre = checks.integers(where, "centre", centre)
    if centre.shape not in ((2,), (batch, 2)):
        checks.fail(where, "centre", f"(row, column) or integers of shape [{batch}, 2]", centre)
    centre = jnp.broadcast_to(centre, (1, batch, 2))
    plan = make_plan((name,), jnp.zeros((1, batch), jnp.int32), arg[None, None], centre, height, width)
    return apply_plan(images, plan, (name,), frame)


def randaugment_magnitude(
    name: str, magnitude: Strength, *, table: str = "paper", max_magnitude: float = 10, side: int | None = None
) -> Array:
    r"""The argument of an operation at a magnitude, in its first direction.

    Formula:
      With ``m = magnitude / max_magnitude``:

      rotate ``30 m`` degrees, shear ``0.3 m``; translate ``0.45 m side`` pixels, in table ``"tpu"`` ``100 m``; factors
      ``1 + 0.9 m``, in ``"tpu"`` ``0.1 + 1.8 m``; posterize ``8 - round(4 m)`` bits, in ``"tpu"`` ``floor(4 m)``, in
      ``"timm"`` ``4 - floor(4 m)``; solarize ``256 (1 - m)``, ``floor(256 m)``, ``256 - floor(256 m)``; solarize_add
      ``floor(110 m)``; cutout ``floor(40 m)``. The other direction of geometry is the negative, and of factors f, but in
      ``"tpu"``, ``2 - f`` and at least 0.1.

    Args:
      name: an operation of the table.
      magnitude: at least 0; at most ``max_magnitude``, but for table ``"tpu"``.
      table: ``"paper"`` (default), ``"tpu"`` or ``"timm"``.
      max_magnitude: the end of the scale, above 0, default 10.
      side: the pixels of the image along a translation, in tables ``"paper"`` and ``"timm"``.

    Returns:
      The argument, of shape ``[]`` in float32 or better; 0 for operations without one.

    Raises:
      ValueError: if the table has no such operation, a number is out of range, or a translation lacks its ``side``.

    Cost:
      None.

    Use:
      Part of: `randaugment`.
      When: Call it to see what a magnitude means for an operation in each table, or to apply one by hand.

    Example:
      >>> import regjax as rj
      >>> [round(float(rj.inputs.randaugment_magnitude(name, 9)), 4) for name in ("rotate", "posterize", "solarize")]
      [27.0, 4.0, 25.6]

    References:
      Cubuk et al., RandAugment: Practical automated data augmentation with a reduced search space, 2019, arXiv 1909.13719.
      The paper has no maps: ``"paper"`` are torchvision's, ``"tpu"`` the authors' released code, ``"timm"`` the increasing
      variant of timm.
    """
    where = "inputs.randaugment_magnitude"
    checks.choice(where, "table", table, tuple(_TABLES))
    checks.choice(where, "name", name, _TABLES[table])
    _check_magnitude(where, magnitude, max_magnitude, table)
    if side is not None:
        checks.integer(where, "side", side, low=1)
    elif name.startswith("translate") and table != "tpu":
        checks.fail(where, "side", "the pixels of the image along the translation", side)
    return _argument(name, jnp.asarray(magnitude, trees.accumulator(magnitude)) / max_magnitude, table, side or 0)


def _argument(name: str, m: Array, table: str, side: int) -> Array:
    """The argument at ``m = magnitude / max_magnitude``, an array of any shape."""
    tpu, timm = table == "tpu", table == "timm"
    m = jnp.maximum(m, 0) if tpu else jnp.clip(m, 0, 1)
    # A product that is an integer but for rounding is one.
    floor = lambda x: jnp.floor(x + 1e-4)
    if name == "rotate":
        return 30 * m
    if name in ("shear_x", "shear_y"):
        return 0.3 * m
    if name in ("translate_x", "translate_y"):
        return 100 * m if tpu else 0.45 * side * m
    if name in _ENHANCE:
        return 0.1 + 1.8 * m if tpu else 1 + 0.9 * m
    if name == "posterize":
        return jnp.minimum(floor(4 * m), 8) if tpu else 4 - floor(4 * m) if timm else 8 - jnp.round(4 * m)
    if name == "solarize":
        return jnp.minimum(floor(256 * m), 256) if tpu else 256 - floor(256 * m) if timm else 256 * (1 - m)
    if name == "solarize_add":
        return jnp.minimum(floor(110 * m), 128) if timm else floor(110 * m)
    return floor(40 * m) if name == "cutout" else jnp.zeros_like(m)


def _signed(name: str, arg: Array, sign: Array, table: str) -> Array:
    """The argument in a drawn direction."""
    if name in GEOMETRIC:
        return sign * arg
    if name in _ENHANCE and table != "tpu":
        return jnp.maximum(1 + sign * (arg - 1), 0.1)
    return arg


def _side(name: str, height: int, width: int) -> int:
    return height if name == "translate_y" else width


def _sample_magnitudes(key: Key, magnitude: Any, std: Any, most: float, shape: tuple[int, ...]) -> Array:
    """Magnitudes of every draw: all equal, normal and clipped, or uniform where the deviation is infinite."""
    magnitude, std = jnp.asarray(magnitude, jnp.float32), jnp.asarray(std, jnp.float32)
    normal_key, uniform_key = jax.random.split(key)
    noise = jax.random.normal(normal_key, shape, jnp.float32)
    normal = jnp.clip(magnitude + jnp.where(jnp.isinf(std), 0, std) * noise, 0, most)
    drawn = jnp.where(jnp.isinf(std), magnitude * jax.random.uniform(uniform_key, shape, jnp.float32), normal)
    # Without deviation nothing is clipped: table "tpu" goes beyond the end of the scale.
    return jnp.where(std > 0, drawn, magnitude)


def _check_magnitude(name: str, magnitude: Any, max_magnitude: Any, table: str) -> None:
    if isinstance(max_magnitude, jax.Array):
        checks.fail(name, "max_magnitude", "a Python number > 0", max_magnitude)
    checks.number(name, "max_magnitude", max_magnitude, low=0.0, open_low=True)
    checks.number(name, "magnitude", magnitude, low=0.0, high=math.inf if table == "tpu" else float(max_magnitude))
