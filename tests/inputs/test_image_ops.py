"""The operations of RandAugment and AugMix against loops over pixels, in both implementations."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import regjax as rj
from regjax.inputs.augmentation import image_ops, image_plans

# The tests compile much and run little.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
RNG = np.random.default_rng(0)
HEIGHT, WIDTH = 19, 23
BOTH = pytest.mark.parametrize("implementation", ["vectorised", "per_image"])

# Every operation with several arguments.
CASES = (
    *(("identity", 0), ("auto_contrast", 0), ("equalize", 0), ("equalize", 0), ("invert", 0)),
    *(("solarize", 256), ("solarize", 128), ("solarize", 25.6), ("solarize_add", 0), ("solarize_add", 110)),
    *(("posterize", bits) for bits in (8, 4, 1, 0)),
    *((name, factor) for name in ("color", "contrast", "brightness", "sharpness") for factor in (0, 0.1, 1.9)),
    *(("rotate", degrees) for degrees in (0, 27, -13.3, 90)),
    *((name, s) for name in ("shear_x", "shear_y") for s in (0, 0.27, -0.3)),
    *((name, p) for name in ("translate_x", "translate_y") for p in (4.5, -4.5, 7.2, -40)),
    *(("cutout", 0), ("cutout", 5)),
)
CENTRES = np.stack([np.arange(len(CASES)) % HEIGHT, np.arange(len(CASES)) * 5 % WIDTH], -1)


def grey(pixel):
    return 0.299 * pixel[0] + 0.587 * pixel[1] + 0.114 * pixel[2] if len(pixel) == 3 else sum(pixel) / len(pixel)


def place(name, arg, x, y, height, width):
    """Where pixel (x, y) of the result is read."""
    cx, cy, t = (width - 1) / 2, (height - 1) / 2, math.radians(arg)
    return {
        "translate_x": (x + arg, y),
        "translate_y": (x, y + arg),
        "shear_x": (x + arg * y, y),
        "shear_y": (x, y + arg * x),
        "rotate": (
            math.cos(t) * (x - cx) - math.sin(t) * (y - cy) + cx,
            math.sin(t) * (x - cx) + math.cos(t) * (y - cy) + cy,
        ),
    }[name]


def geometry(name, v, arg, fill, bilinear):
    height, width, _ = v.shape
    out = np.full_like(v, fill)
    for y in range(height):
        for x in range(width):
            x_in, y_in = place(name, arg, x, y, height, width)
            column, row = math.floor(x_in + 0.5), math.floor(y_in + 0.5)
            if not (0 <= column < width and 0 <= row < height):
                continue
            if not bilinear:
                out[y, x] = v[row, column]
                continue
            left, top, out[y, x] = math.floor(x_in), math.floor(y_in), 0
            for r, wr in ((top, 1 - (y_in - top)), (top + 1, y_in - top)):
                for c, wc in ((left, 1 - (x_in - left)), (left + 1, x_in - left)):
                    out[y, x] += wr * wc * v[min(max(r, 0), height - 1), min(max(c, 0), width - 1)]
    return out


def equalize(channel):
    levels = [[math.floor(value + 0.5) for value in row] for row in channel]
    h = [0] * 256
    for row in levels:
        for level in row:
            h[level] += 1
    last = [count for count in h if count][-1]
    step = (channel.size - last) // 255
    if step == 0:
        return channel
    table = [min(max((sum(h[:i]) + step // 2) // step, 0), 255) for i in range(256)]
    return np.array([[table[level] for level in row] for row in levels], float)


def colour(name, v, arg):
    height, width, channels = v.shape
    out = v.copy()
    if name in ("auto_contrast", "equalize"):
        for c in range(channels):
            low, high = v[..., c].min(), v[..., c].max()
            if name == "equalize":
                out[..., c] = equalize(v[..., c])
            elif high > low:
                out[..., c] = (v[..., c] - low) * 255 / (high - low)
        return out
    mean = math.floor(sum(grey(v[y, x]) for y in range(height) for x in range(width)) / (height * width) + 0.5)
    for y in range(height):
        for x in range(width):
            for c in range(channels):
                u = v[y, x, c]
                if name == "sharpness" and 0 < y < height - 1 and 0 < x < width - 1:
                    near = v[y - 1 : y + 2, x - 1 : x + 2, c]
                    d = (near.sum() + 4 * u) / 13
                else:
                    d = {"color": grey(v[y, x]), "contrast": mean, "brightness": 0.0}.get(name, u)
                new = {
                    "identity": u,
                    "invert": 255 - u,
                    "solarize": u if u < arg else 255 - u,
                    "solarize_add": u + arg if u < 128 else u,
                    "posterize": u if arg == 8 else math.floor(u / 2 ** (8 - arg)) * 2 ** (8 - arg),
                }.get(name, d + arg * (u - d))
                out[y, x, c] = min(max(new, 0), 255)
    return out


def reference(name, levels, arg, centre, fill, bilinear):
    if name in image_ops.GEOMETRIC:
        return geometry(name, levels, arg, fill, bilinear)
    if name == "cutout":
        out = levels.copy()
        for y in range(HEIGHT):
            for x in range(WIDTH):
                if centre[0] - arg <= y < centre[0] + arg and centre[1] - arg <= x < centre[1] + arg:
                    out[y, x] = fill
        return out
    return colour(name, levels, arg)


def photographs(count, channels):
    """Levels that a byte could hold, dark ones more often than bright ones; two channels of the third are constant."""
    levels = np.floor(256 * RNG.uniform(size=(count, HEIGHT, WIDTH, channels)) ** 2)
    levels[2, ..., :2] = 77
    return levels


def apply(names, frame, implementation, images, operation, args, centre):
    plan = image_plans.make_plan(names, operation, args, centre, *images.shape[1:3])
    return image_plans.apply_plan(images, plan, names, frame, implementation)


@functools.cache
def applied(*options):
    return jit(functools.partial(apply, *options))


@BOTH
@pytest.mark.parametrize(("channels", "interpolation"), [(3, "nearest"), (1, "bilinear"), (4, "bilinear")])
def test_every_operation_is_the_loop(x64, channels, interpolation, implementation):
    low, high, fill = -1.0, 3.0, 0.25
    levels = photographs(len(CASES), channels)
    # Not only whole levels.
    levels[3::2] = np.clip(levels[3::2] + 0.3 * RNG.uniform(size=levels[3::2].shape), 0, 255)
    images = low + levels * (high - low) / 255
    frame = image_ops.Frame(low, high, fill, interpolation)
    operation = np.array([[image_ops.NAMES.index(name) for name, _ in CASES]])
    args = np.broadcast_to([float(arg) for _, arg in CASES], (len(image_ops.NAMES), 1, len(CASES)))
    got = applied(image_ops.NAMES, frame, implementation)(images, operation, args, CENTRES[None])
    levels_out = (np.asarray(got) - low) * 255 / (high - low)
    fill = (fill - low) * 255 / (high - low)
    for i, (name, arg) in enumerate(CASES):
        want = reference(name, levels[i], arg, CENTRES[i], fill, interpolation == "bilinear")
        np.testing.assert_allclose(levels_out[i], want, atol=1e-9, err_msg=f"{name} {arg}")


@BOTH
def test_operations_run_in_turn_and_none_changes_no_bit(implementation):
    names = ("solarize", "brightness", "translate_x", "identity", "equalize")
    frame = image_ops.Frame(0.0, 1.0, 0.5, "nearest")
    images = (photographs(6, 3) / 255).astype(np.float32)
    operation = np.array([[0, 2, -1, 3, 4, 1], [1, -1, -1, -1, 3, 0], [2, 1, -1, 3, -1, -1]])
    argument = np.array([100.0, 0.5, 3.0, 0.0, 0.0], np.float32)
    args = np.broadcast_to(argument[:, None, None], (5, 3, 6))
    for dtype in (jnp.float32, jnp.bfloat16):
        given = jnp.asarray(images, dtype)
        got = applied(names, frame, implementation)(given, operation, args, np.zeros((3, 6, 2), int))
        assert got.dtype == dtype
        for i in range(6):
            levels = np.asarray(given[i], np.float64) * 255
            for place in operation[:, i]:
                if place >= 0 and names[place] != "identity":
                    levels = reference(names[place], levels, argument[place], None, 127.5, False)
            np.testing.assert_allclose(np.asarray(got[i], float) * 255, levels, atol=1e-3 if dtype == jnp.float32 else 1)
        np.testing.assert_array_equal(got[2:4], given[2:4])


def test_implementations_have_equal_gradients(x64):
    names, frame = ("rotate", "contrast", "sharpness", "equalize"), image_ops.Frame(0.0, 1.0, 0.5, "bilinear")
    images, operation = RNG.uniform(size=(5, 17, 16, 2)), np.array([[0, 1, 2, -1, 3]])
    args, weights = np.full((4, 1, 5), 0.7), RNG.normal(size=images.shape)

    def gradient(implementation):
        fn = functools.partial(apply, names, frame, implementation)
        return jit(jax.grad(lambda images: jnp.sum(weights * fn(images, operation, args, np.zeros((1, 5, 2), int)))))(images)

    one, other = gradient("vectorised"), gradient("per_image")
    np.testing.assert_allclose(one, other, atol=1e-12)
    assert np.all(np.isfinite(one))
    np.testing.assert_array_equal(np.any(one, axis=(1, 2, 3)), [True, True, True, True, False])
    np.testing.assert_array_equal(one[3], weights[3])


def test_batches_of_batches(x64):
    """Both implementations are valid under vmap."""
    names, frame = ("rotate", "equalize", "shear_x"), image_ops.Frame(0.0, 1.0, 0.5, "nearest")
    images = RNG.uniform(size=(2, 3, HEIGHT, WIDTH, 1))
    operation, args = np.array([[[0, 1, 2]], [[2, -1, 1]]]), np.full((2, 3, 1, 3), 0.3)
    centre = np.zeros((2, 1, 3, 2), int)
    run = applied(names, frame, "vectorised")
    want = [run(images[i], operation[i], args[i], centre[i]) for i in range(2)]
    for implementation in ("vectorised", "per_image"):
        mapped = jit(jax.vmap(functools.partial(apply, names, frame, implementation)))
        np.testing.assert_allclose(mapped(images, operation, args, centre), want, atol=1e-12)


def test_one_device_loops_over_the_images(x64, monkeypatch):
    names, frame = ("rotate", "shear_x"), image_ops.Frame(0.0, 1.0, 0.5, "nearest")
    images, operation = RNG.uniform(size=(4, HEIGHT, WIDTH, 1)), np.array([[0, 1, -1, 1]])
    given = (images, operation, np.full((2, 1, 4), 0.3), np.zeros((1, 4, 2), int))
    run = functools.partial(apply, names, frame, "auto")

    def squares(images):
        return jnp.sum(run(images, *given[1:]) ** 2)

    want = jit(run)(*given)
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    looped = jit(functools.partial(apply, names, frame, "auto")).lower(*given)
    assert "stablehlo.while" in looped.as_text() and "stablehlo.case" in looped.as_text()
    np.testing.assert_allclose(looped.compile()(*given), want, atol=1e-12)
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,), devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        placed = jax.device_put(images, jax.NamedSharding(mesh, jax.P("data")))
        np.testing.assert_allclose(jit(functools.partial(apply, names, frame, "auto"))(placed, *given[1:]), want, atol=1e-12)
    # The branches of the platforms are differentiable too: here a gather's transpose counts how often a pixel is read.
    gradient = jit(jax.grad(squares))(images)
    assert np.all(np.isfinite(gradient))
    np.testing.assert_allclose(gradient[2], 2 * images[2], atol=1e-12)


@functools.cache
def compiled(**options):
    return jit(functools.partial(rj.inputs.randaugment_op, **options))


def op(image, name, arg=0.0):
    """The operation on levels of one image, as [H][W] or [H][W][C]."""
    image = jnp.asarray(image, jnp.float32)
    image = image[None, ..., None] if image.ndim == 2 else image[None]
    return np.asarray(compiled(name=name, value_range=(0, 255), fill=128)(image, arg=arg))[0]


def test_published_values():
    row = [[200.0, 100.0, 77.0]]
    assert op(row, "solarize", 128).ravel().tolist() == [55, 100, 77]
    assert op(row, "posterize", 3).ravel().tolist() == [192, 96, 64]
    np.testing.assert_array_equal(op(op(row, "invert")[..., 0], "invert"), np.array(row)[..., None])
    np.testing.assert_allclose(op([[50.0, 100.0, 150.0]], "auto_contrast").ravel(), [0, 127.5, 255], rtol=1e-6)
    assert op([[9.0, 9.0]], "auto_contrast").ravel().tolist() == [9, 9]
    centre = np.zeros((3, 3))
    centre[1, 1] = 13
    assert op(centre, "sharpness", 0).ravel().tolist() == [0, 0, 0, 0, 5, 0, 0, 0, 0]
    np.testing.assert_allclose(op([[[255.0, 0.0, 0.0]]], "color", 0), np.full((1, 1, 3), 76.245), rtol=1e-6)
    square = RNG.uniform(0, 255, size=(8, 8)).astype(np.float32)
    turned = op(square, "rotate", 90)[..., 0]
    np.testing.assert_array_equal(turned, np.rot90(square, 1))
    np.testing.assert_array_equal(op(square, "equalize")[..., 0], square)
    constant = np.full((20, 20), 140.0)
    np.testing.assert_array_equal(op(constant, "equalize")[..., 0], constant)


def test_neutral_arguments_change_no_bit():
    neutral = dict.fromkeys(("color", "contrast", "brightness", "sharpness"), 1.0)
    neutral |= dict.fromkeys(image_ops.GEOMETRIC, 0.0) | {"posterize": 8, "solarize": 256, "solarize_add": 0, "cutout": 0}
    names, count = tuple(neutral), len(neutral)
    images = RNG.uniform(size=(count, 17, 17, 3)).astype(np.float32)
    args = np.broadcast_to(np.array(list(neutral.values()), np.float32)[:, None, None], (count, 1, count))
    for interpolation, implementation in (("nearest", "per_image"), ("bilinear", "vectorised")):
        run = applied(names, image_ops.Frame(0.0, 1.0, 0.5, interpolation), implementation)
        got = run(images, np.arange(count)[None], args, np.ones((1, count, 2), int))
        for i, name in enumerate(names):
            np.testing.assert_array_equal(got[i], images[i], err_msg=name)


def test_levels_of_float32_images_are_whole():
    """A byte over 255 times 255 may miss its integer: thresholds and floors do not."""
    levels = np.arange(256)
    for images in (levels.astype(np.float32) / np.float32(255), levels.astype(np.float32) * np.float32(1 / 255)):
        images = jnp.asarray(images).reshape(1, 16, 16, 1)
        for bits in (1, 4, 7):
            got = np.asarray(compiled(name="posterize")(images, arg=bits)).ravel() * 255
            np.testing.assert_allclose(got, levels >> (8 - bits) << (8 - bits), atol=1e-3)
        for threshold in (0, 51, 128, 230):
            got = np.asarray(compiled(name="solarize")(images, arg=threshold)).ravel() * 255
            np.testing.assert_allclose(got, np.where(levels < threshold, levels, 255 - levels), atol=1e-3)


def test_an_argument_for_each_image():
    images = RNG.uniform(size=(3, 5, 6, 1)).astype(np.float32)
    got = compiled(name="brightness")(images, arg=np.array([0.0, 0.5, 1.0], np.float32))
    np.testing.assert_allclose(got, images * np.array([0.0, 0.5, 1.0]).reshape(3, 1, 1, 1), rtol=1e-6)
    got = compiled(name="cutout", fill=2.0)(images, arg=1.0, centre=np.array([[0, 0], [2, 2], [4, 5]]))
    hidden = [[(0, 0)], [(y, x) for y in (1, 2) for x in (1, 2)], [(y, x) for y in (3, 4) for x in (4, 5)]]
    for i, pixels in enumerate(hidden):
        assert {tuple(p) for p in np.argwhere(got[i, ..., 0] == 2).tolist()} == set(pixels)
