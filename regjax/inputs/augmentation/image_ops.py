"""The operations of RandAugment and AugMix, on one image; `regjax.inputs.augmentation.image_plans` applies them to batches.

An operation maps float ``[H, W, C]`` in the units of the caller, with black at ``low`` and white at ``high``; in comments
and arguments a level is ``255 (x - low) / (high - low)``.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from regjax.core import checks
from regjax.core.types import Array
from regjax.inputs.mixing.boxes import clipped_box

GEOMETRIC = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
SLIDING = ("shear_x", "translate_x", "translate_y")

# A level computed from a float32 image misses its integer by up to 3e-5: thresholds and floors allow for it.
_SLACK = 2.0**-10


class Frame(NamedTuple):
    """What all operations on a batch share: the values of black and white, the fill, and the interpolation of warps."""

    low: float
    high: float
    fill: Any
    interpolation: str


class Plan(NamedTuple):
    """What is done to one image, or to arrays of them: the operation's place in the list (-1: none) and its argument.

    ``affine`` is ``(a, b, c, d, e, f)`` of the geometric operations, and ``centre`` the (row, column) of a cutout.
    """

    operation: Array
    arg: Array
    affine: Array
    centre: Array


def check_frame(name: str, value_range: Any, fill: Any, interpolation: Any) -> Frame:
    """The checked options of an augmentation."""
    if not (isinstance(value_range, (tuple, list)) and len(value_range) == 2):
        checks.fail(name, "value_range", "two numbers (black, white)", value_range)
    for end in value_range:
        if isinstance(end, jax.Array):
            checks.fail(name, "value_range", "two Python numbers (black, white)", value_range)
        checks.number(name, "value_range", end)
    low, high = map(float, value_range)
    if not low < high:
        checks.fail(name, "value_range", "two numbers black < white", value_range)
    checks.number(name, "fill", fill)
    checks.choice(name, "interpolation", interpolation, ("nearest", "bilinear"))
    return Frame(low, high, fill, interpolation)


def affine_coefficients(name: str, arg: Any, height: int, width: int) -> Array:
    """``[..., 6]`` with ``x_in = a x + b y + c`` and ``y_in = d x + e y + f``; the identity for what is not geometric."""
    arg = jnp.asarray(arg)
    one, zero = jnp.ones_like(arg), jnp.zeros_like(arg)
    rows = {
        "shear_x": (one, arg, zero, zero, one, zero),
        "shear_y": (one, zero, zero, arg, one, zero),
        "translate_x": (one, zero, arg, zero, one, zero),
        "translate_y": (one, zero, zero, zero, one, arg),
    }
    if name == "rotate":
        cos, sin = jnp.cos(jnp.deg2rad(arg)), jnp.sin(jnp.deg2rad(arg))
        cx, cy = (width - 1) / 2, (height - 1) / 2
        rows[name] = (cos, -sin, cx - cos * cx + sin * cy, sin, cos, cy - sin * cx - cos * cy)
    return jnp.stack(rows.get(name, (one, zero, zero, zero, one, zero)), axis=-1)


def warp(image: Array, affine: Array, frame: Frame) -> Array:
    """Reads each pixel at its place under the inverse map; a place whose nearest pixel does not exist gets the fill."""
    height, width, channels = image.shape
    y, x = jnp.arange(height, dtype=affine.dtype)[:, None], jnp.arange(width, dtype=affine.dtype)
    x_in = affine[0] * x + affine[1] * y + affine[2]
    y_in = affine[3] * x + affine[4] * y + affine[5]
    # floor(x + 1/2), not round(x): half to even would double every other column of a shift by half a pixel.
    column, row = jnp.floor(x_in + 0.5), jnp.floor(y_in + 0.5)
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    pixels = image.reshape(height * width, channels)

    def read(row: Array, column: Array, here: Array) -> Array:
        # Whole pixels, in one dimension: several times faster than an index for each channel, or for row and column.
        if height * width <= 2**23:  # exact in float32, whose arithmetic is faster here
            place = jnp.where(here, row * width + column, 0).astype(jnp.int32)
        else:
            place = jnp.where(here, row.astype(jnp.int32) * width + column.astype(jnp.int32), 0)
        return pixels.at[place.reshape(-1)].get(mode="promise_in_bounds").reshape(image.shape)

    if frame.interpolation == "nearest":
        out = read(row, column, inside)
    else:
        left, top = jnp.floor(x_in), jnp.floor(y_in)
        right_part, lower_part = ((z - jnp.floor(z))[..., None].astype(image.dtype) for z in (x_in, y_in))
        columns = [jnp.clip(z, 0, width - 1) for z in (left, left + 1)]
        rows = [jnp.clip(z, 0, height - 1) for z in (top, top + 1)]
        upper, lower = (read(z, columns[0], inside) * (1 - right_part) + read(z, columns[1], inside) * right_part for z in rows)
        out = upper * (1 - lower_part) + lower * lower_part
    return jnp.where(inside[..., None], out, jnp.asarray(frame.fill, image.dtype))


def slide(image: Array, affine: Array, frame: Frame) -> Array:
    """The nearest-pixel warp of `SLIDING` operations: each row is a stretch of one row, which halves the time."""
    height, width, channels = image.shape
    y = jnp.arange(height, dtype=affine.dtype)
    shift = jnp.clip(jnp.floor(affine[1] * y + affine[2] + 0.5), -width, width).astype(jnp.int32)[:, None]
    row = jnp.floor(y + affine[5] + 0.5)
    exists = ((row >= 0) & (row < height))[:, None]
    start = jnp.where(exists, row[:, None].astype(jnp.int32) * width + shift, 0) * channels
    place = jnp.arange(width * channels, dtype=jnp.int32)
    inside = exists & (place >= -shift * channels) & (place < (width - shift) * channels)
    flat = jnp.clip(start + place, 0, image.size - 1).reshape(-1)
    out = image.reshape(-1).at[flat].get(mode="promise_in_bounds").reshape(inside.shape)
    return jnp.where(inside, out, jnp.asarray(frame.fill, image.dtype)).reshape(image.shape)


def operate(kind: str, image: Array, plan: Plan, frame: Frame) -> Array:
    """An operation on one image ``[H, W, C]``: ``"warp"`` or ``"slide"`` for a geometric one, else by its name."""
    if kind in ("warp", "slide"):
        return (warp if kind == "warp" else slide)(image, plan.affine, frame)
    if kind == "cutout":
        height, width, _ = image.shape
        side = 2 * plan.arg.astype(jnp.int32)
        y1, y2, x1, x2 = clipped_box(plan.centre, side, side, (height, width))
        row, column = jnp.arange(height)[:, None, None], jnp.arange(width)[:, None]
        hidden = (row >= y1) & (row < y2) & (column >= x1) & (column < x2)
        return jnp.where(hidden, jnp.asarray(frame.fill, image.dtype), image)
    return _COLOUR[kind](image, plan.arg.astype(image.dtype), frame)


def _invert(image: Array, arg: Array, frame: Frame) -> Array:
    return jnp.clip(frame.low + frame.high - image, frame.low, frame.high)


def _levels(image: Array, frame: Frame) -> Array:
    return (image - frame.low) * (255 / (frame.high - frame.low))


def _from_levels(levels: Array, frame: Frame) -> Array:
    return frame.low + levels * ((frame.high - frame.low) / 255)


def _solarize(image: Array, arg: Array, frame: Frame) -> Array:
    return jnp.where(_levels(image, frame) + _SLACK < arg, image, _invert(image, arg, frame))


def _solarize_add(image: Array, arg: Array, frame: Frame) -> Array:
    added = jnp.clip(image + arg * ((frame.high - frame.low) / 255), frame.low, frame.high)
    return jnp.where(_levels(image, frame) + _SLACK < 128, added, image)


def _posterize(image: Array, arg: Array, frame: Frame) -> Array:
    step = jnp.exp2(8 - jnp.clip(arg, 0, 8))
    kept = jnp.floor((_levels(image, frame) + _SLACK) / step) * step
    return jnp.where(arg >= 8, image, _from_levels(jnp.clip(kept, 0, 255), frame))


def _blend(image: Array, other: Any, factor: Array, frame: Frame) -> Array:
    """``other + factor (image - other)``, written so that factor 1 changes no bit."""
    return jnp.clip(image + (1 - factor) * (other - image), frame.low, frame.high)


def _grey(image: Array) -> Array:
    """The luminance ``[H, W]`` of red, green and blue, and the mean of any other channels."""
    if image.shape[-1] == 3:
        return 0.299 * image[..., 0] + 0.587 * image[..., 1] + 0.114 * image[..., 2]
    return image[..., 0] if image.shape[-1] == 1 else jnp.mean(image, axis=-1)


def _brightness(image: Array, arg: Array, frame: Frame) -> Array:
    return _blend(image, frame.low, arg, frame)


def _color(image: Array, arg: Array, frame: Frame) -> Array:
    return _blend(image, _grey(image)[..., None], arg, frame)


def _contrast(image: Array, arg: Array, frame: Frame) -> Array:
    height, width, channels = image.shape
    # Along the rows first, in long vectors; the grey level is linear, so that its mean is that of the channels' means.
    rows = image.reshape(height, width * channels)
    columns = jnp.dot(jnp.ones(height, image.dtype), rows, precision=jax.lax.Precision.HIGHEST)
    means = jnp.sum(columns.reshape(width, channels), axis=0) / (height * width)
    mean = jnp.floor(_levels(_grey(means), frame) + 0.5)
    return _blend(image, _from_levels(mean, frame), arg, frame)


def _sharpness(image: Array, arg: Array, frame: Frame) -> Array:
    height, width, channels = image.shape
    if height < 3 or width < 3:
        return image
    # Rows as vectors: a neighbour is a shift by a row, or by the number of channels.
    rows = image.reshape(height, width * channels)
    three = rows[:-2] + rows[1:-1] + rows[2:]
    nine = three[:, : -2 * channels] + three[:, channels:-channels] + three[:, 2 * channels :]
    inner = rows[1:-1, channels:-channels]
    blended = _blend(inner, (nine + 4 * inner) / 13, arg, frame)
    # The clip holds for the border too, whatever the factor.
    border = jnp.clip(rows, frame.low, frame.high)
    return jax.lax.dynamic_update_slice(border, blended, (1, channels)).reshape(image.shape)


def _auto_contrast(image: Array, arg: Array, frame: Frame) -> Array:
    height, width, channels = image.shape
    # Along the rows first, in long vectors.
    rows = image.reshape(height, width * channels)
    least = jnp.min(jnp.min(rows, axis=0).reshape(width, channels), axis=0)
    most = jnp.max(jnp.max(rows, axis=0).reshape(width, channels), axis=0)
    flat = most <= least
    scale = (frame.high - frame.low) / jnp.where(flat, 1, most - least)
    return jnp.where(flat, image, jnp.clip(frame.low + (image - least) * scale, frame.low, frame.high))


def _equalize(image: Array, arg: Array, frame: Frame) -> Array:
    height, width, channels = image.shape
    if height * width < 256:
        return image
    levels = jnp.clip(jnp.floor(_levels(image, frame) + 0.5), 0, 255).astype(jnp.int32)
    # The histograms of the channels side by side in one vector; then each as 16 tiles of 16 levels.
    place = (levels + 256 * jnp.arange(channels, dtype=jnp.int32)).reshape(-1)
    counts = jnp.zeros(256 * channels, jnp.int32).at[place].add(1, mode="promise_in_bounds").reshape(channels, 16, 16)
    level = jnp.arange(256).reshape(16, 16)
    highest = jnp.max(jnp.where(counts > 0, level, 0), axis=(1, 2), keepdims=True)
    last = jnp.sum(jnp.where(level == highest, counts, 0), axis=(1, 2), keepdims=True)
    step = (height * width - last) // 255
    # The running sum inside tiles and over them: XLA would compute each of 256 sums by itself.
    totals = jnp.sum(counts, axis=2)
    below = jnp.cumsum(counts, axis=2) - counts + (jnp.cumsum(totals, axis=1) - totals)[..., None]
    table = jnp.clip((below + step // 2) // jnp.maximum(step, 1), 0, 255).astype(image.dtype)
    # A product with the identity, exact for integers up to 255 at any precision: it ends the fusion with the look-up,
    # which would divide for each pixel instead of for each level.
    table = table @ jnp.eye(16, dtype=image.dtype)
    out = table.reshape(-1).at[place].get(mode="promise_in_bounds").reshape(image.shape)
    return jnp.where(step[:, 0, 0] == 0, image, _from_levels(out, frame))


_COLOUR: dict[str, Callable[[Array, Array, Frame], Array]] = {
    "identity": lambda image, arg, frame: image,
    "auto_contrast": _auto_contrast,
    "equalize": _equalize,
    "invert": _invert,
    "solarize": _solarize,
    "solarize_add": _solarize_add,
    "posterize": _posterize,
    "color": _color,
    "contrast": _contrast,
    "brightness": _brightness,
    "sharpness": _sharpness,
}

NAMES = (*_COLOUR, *GEOMETRIC, "cutout")
