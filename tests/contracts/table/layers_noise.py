"""Examples of `regjax.layers`: noise on activations and weights, feature maps, frozen masks."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import regjax as rj
from tests.contracts.example import Example, normal
from tests.contracts.table.layers import INTEGERS, KEEP, KEY, NAN, SIZES, X, module_errors, rate_errors

L = rj.layers
NOISE = normal(8, 3, seed=5)
LINEAR = {"x": normal(8, 4), "kernel": normal(4, 3, seed=3), "bias": normal(3, seed=4)}
WEIGHTS = normal(4, 3, seed=5) > -0.5
K, B = jnp.ones((3, 2)), jnp.ones(2)
MAPS = {"x": normal(8, 4, 5, 2)}
MAP_SIZES = ({"x": np.zeros((8, 4, 5, 2))}, {"x": 1e4 * np.sign(normal(8, 4, 5, 2))})
SEEDS = np.random.default_rng(7).random((8, 4, 5, 1)) < 0.1
IMAGES = jnp.ones((4, 4, 5, 2))
ALL = np.ones((8, 4, 5, 1), bool)


def std_errors(call) -> dict:
    """The wrong values of a standard deviation; ``call(std)`` is given each."""
    return {
        "std: negative": lambda: call(-0.1),
        "std: NaN": lambda: call(NAN),
        "std: infinite": lambda: call(float("inf")),
        "std: a string": lambda: call("half"),
        "std: a schedule": lambda: call(lambda step: 0.1),
        "std: a vector": lambda: call(jnp.ones(2)),
    }


def linear_errors(call) -> dict:
    """The wrong values of a linear layer's arrays; ``call(x, kernel, bias)`` is given each."""
    return {
        "x: integers": lambda: call(INTEGERS, K, None),
        "x: a scalar": lambda: call(jnp.ones(()), K, None),
        "kernel: shape": lambda: call(X, K.T, None),
        "kernel: rank": lambda: call(X, jnp.ones(3), None),
        "kernel: integers": lambda: call(X, jnp.ones((3, 2), int), None),
        "bias: shape": lambda: call(X, K, jnp.ones(3)),
        "bias: integers": lambda: call(X, K, jnp.ones(2, int)),
    }


def block_errors(call) -> dict:
    """The wrong options of DropBlock; ``call(**options)`` is given each."""
    return {
        "block_size: zero": lambda: call(block_size=0),
        "block_size: a float": lambda: call(block_size=3.0),
        "scale_by_keep: a number": lambda: call(scale_by_keep=1),
        "axis_name: a number": lambda: call(axis_name=0),
    }


def gaussian(kind):
    return lambda key, x: L.gaussian_noise(key, x, std=0.3, kind=kind)


def drop_connect_layer(kernel, bias, **options):
    layer = L.DropConnect(*kernel.shape, 0.3, rngs=nnx.Rngs(0), **options)
    layer.kernel, layer.bias = nnx.Param(kernel), nnx.Param(bias)
    return layer


def make_drop_connect(**options):
    return L.DropConnect(3, 2, 0.3, **{"rngs": nnx.Rngs(0), **options})


def frozen(key, x, when, resample="episode"):
    """One step, masks anew for some of the environments, and another step."""
    masks = L.frozen_mask_dropout(x.shape, rate=0.5, skip_last=1, resample=resample)
    first, second = jax.random.split(key)
    state = masks.init(first)
    later = masks.refresh(state, second, when=when)
    return masks.apply(state, x), masks.apply(later, x)


def frozen_memory():
    masks = L.frozen_mask_dropout((8, 4), rate=0.5)
    return masks.init(KEY), lambda state, key, x, when: (masks.apply(state, x), masks.refresh(state, key, when=when))


def frozen_identity(key, x, when):
    masks = L.frozen_mask_dropout(x.shape, rate=lambda step: 0.0 * step)
    return masks.apply(masks.init(key, step=3), x), x


FROZEN = L.frozen_mask_dropout((4, 3))
STATE = FROZEN.init(KEY)

EXAMPLES = (
    Example(
        name="layers.drop_path",
        call=lambda key, x: jnp.concatenate(
            [L.drop_path(jax.random.fold_in(key, i), x, rate=0.5, per="batch") for i in range(6)], axis=-1
        ),
        arrays={"x": normal(8, 3)},
        rows=("x",),
        result="rows",
        dtype="input",
        wrt=("x",),
        random=True,
        identity=lambda key, x: (L.drop_path(key, x, rate=jnp.zeros(()), per="batch"), x),
        singular=SIZES,
        bad={
            "per: misspelt": lambda: L.drop_path(KEY, X, rate=0.3, per="exmaple"),
            "rate: above 1": lambda: L.drop_path(KEY, X, rate=1.5, per="batch"),
        },
    ),
    Example(
        name="layers.apply_drop_path",
        call=lambda key, x, keep: L.apply_drop_path(x, keep, rate=0.3),
        arrays={"x": normal(8, 3), "keep": np.array(True)},
        rows=("x",),
        result="rows",
        dtype="input",
        wrt=("x",),
        singular=({"keep": np.array(False)},),
        bad={
            "keep: one number": lambda: L.apply_drop_path(X, jnp.ones(()), rate=0.3),
            "rate: NaN": lambda: L.apply_drop_path(X, True, rate=NAN),
        },
    ),
    Example(
        name="layers.DropPath",
        call=lambda key, x: L.DropPath(0.5, per="batch", deterministic=True)(x, rngs=key),
        arrays={"x": normal(8, 3)},
        rows=("x",),
        result="rows",
        dtype="input",
        wrt=("x",),
        bad={"per: misspelt": lambda: L.DropPath(0.3, per="batches"), "rate: NaN": lambda: L.DropPath(NAN, per="batch")},
    ),
    Example(
        name="layers.gaussian_noise",
        call=lambda key, x: [gaussian(kind)(key, x) for kind in ("additive", "multiplicative")],
        arrays={"x": normal(8, 3)},
        rows=("x",),
        result="other",
        dtype="input",
        wrt=("x",),
        random=True,
        identity=lambda key, x: (
            [L.gaussian_noise(key, x, std=jnp.zeros(()), kind=kind) for kind in ("additive", "multiplicative")],
            [L.gaussian_noise(None, x, std=0.3, deterministic=True)] * 2,
        ),
        singular=SIZES,
        bad={
            **std_errors(lambda std: L.gaussian_noise(KEY, X, std=std)),
            "x: integers": lambda: L.gaussian_noise(KEY, INTEGERS, std=0.3),
            "key: a number": lambda: L.gaussian_noise(0, X, std=0.3),
            "key: several": lambda: L.gaussian_noise(jax.random.split(KEY, 2), X, std=0.3),
            "kind: misspelt": lambda: L.gaussian_noise(KEY, X, std=0.3, kind="additiv"),
            "deterministic: a string": lambda: L.gaussian_noise(KEY, X, std=0.3, deterministic="no"),
        },
    ),
    Example(
        name="layers.apply_gaussian_noise",
        call=lambda key, x, noise, std: [
            L.apply_gaussian_noise(x, noise, std=std, kind=kind) for kind in ("additive", "multiplicative")
        ],
        arrays={"x": normal(8, 3), "noise": NOISE, "std": np.array(0.3)},
        rows=("x", "noise"),
        result="rows",
        dtype="input",
        wrt=("x", "noise", "std"),
        identity=lambda key, x, noise, std: (L.apply_gaussian_noise(x, noise, std=0 * std), x),
        singular=(*SIZES, {"std": np.array(0.0)}, {"noise": np.zeros((8, 3))}),
        bad={
            **std_errors(lambda std: L.apply_gaussian_noise(X, X, std=std)),
            "x: integers": lambda: L.apply_gaussian_noise(INTEGERS, X, std=0.3),
            "noise: shape": lambda: L.apply_gaussian_noise(X, X[:1], std=0.3),
            "noise: integers": lambda: L.apply_gaussian_noise(X, INTEGERS, std=0.3),
            "kind: misspelt": lambda: L.apply_gaussian_noise(X, X, std=0.3, kind="multiply"),
        },
    ),
    Example(
        name="layers.GaussianNoise",
        call=lambda key, x: L.GaussianNoise(0.3, kind="multiplicative")(x, rngs=key),
        arrays={"x": normal(8, 3)},
        rows=("x",),
        result="other",
        dtype="input",
        wrt=("x",),
        random=True,
        identity=lambda key, x: (L.GaussianNoise(0.3)(x, rngs=key, std=jnp.zeros(())), L.GaussianNoise(0.0)(x)),
        singular=SIZES,
        bad={
            **std_errors(L.GaussianNoise),
            **module_errors(lambda **options: L.GaussianNoise(0.3, **options)),
            "std: negative at the call": lambda: L.GaussianNoise(0.3)(X, std=-1.0, rngs=KEY),
            "kind: misspelt": lambda: L.GaussianNoise(0.3, kind="additve"),
            "x: integers": lambda: L.GaussianNoise(0.3)(INTEGERS, rngs=KEY),
        },
    ),
    Example(
        name="layers.drop_connect",
        call=lambda key, x, kernel, bias: [
            L.drop_connect(key, x, kernel, bias, rate=0.3, per_example=per_example) for per_example in (False, True)
        ],
        arrays=LINEAR,
        rows=("x",),
        result="other",
        dtype="input",
        wrt=("x", "kernel", "bias"),
        random=True,
        identity=lambda key, x, kernel, bias: (
            L.drop_connect(key, x, kernel, bias, rate=jnp.zeros(())),
            L.drop_connect(None, x, kernel, bias, rate=0.3, deterministic=True),
        ),
        singular=({"x": np.zeros((8, 4))}, {"kernel": np.zeros((4, 3))}),
        bad={
            **rate_errors(lambda rate: L.drop_connect(KEY, X, K, rate=rate)),
            **linear_errors(lambda x, kernel, bias: L.drop_connect(KEY, x, kernel, bias, rate=0.3)),
            "x: no examples": lambda: L.drop_connect(KEY, jnp.ones(3), K, rate=0.3, per_example=True),
            "key: a number": lambda: L.drop_connect(0, X, K, rate=0.3),
            "per_example: a number": lambda: L.drop_connect(KEY, X, K, rate=0.3, per_example=1),
            "deterministic: a string": lambda: L.drop_connect(KEY, X, K, rate=0.3, deterministic="no"),
        },
    ),
    Example(
        name="layers.apply_drop_connect",
        call=lambda key, x, kernel, keep, bias, rate: L.apply_drop_connect(x, kernel, keep, bias, rate=rate),
        arrays={**LINEAR, "keep": WEIGHTS, "rate": np.array(0.3)},
        rows=("x",),
        result="rows",
        dtype="input",
        wrt=("x", "kernel", "bias", "rate"),
        identity=lambda key, x, kernel, keep, bias, rate: (
            L.apply_drop_connect(x, kernel, jnp.ones(kernel.shape, bool), bias, rate=0 * rate),
            x @ kernel + bias,
        ),
        singular=({"x": np.zeros((8, 4))}, {"rate": np.array(1.0)}, {"keep": np.zeros((4, 3), bool)}),
        bad={
            **rate_errors(lambda rate: L.apply_drop_connect(X, K, jnp.ones((3, 2), bool), rate=rate)),
            **linear_errors(lambda x, kernel, bias: L.apply_drop_connect(x, kernel, jnp.ones((3, 2), bool), bias, rate=0.3)),
            "keep: shape": lambda: L.apply_drop_connect(X, K, jnp.ones((1, 2), bool), rate=0.3),
            "keep: other examples": lambda: L.apply_drop_connect(X, K, jnp.ones((2, 3, 2), bool), rate=0.3),
            "keep: no examples": lambda: L.apply_drop_connect(X[0], K, jnp.ones((3, 3, 2), bool), rate=0.3),
            "keep: floats": lambda: L.apply_drop_connect(X, K, K, rate=0.3),
        },
    ),
    Example(
        name="layers.drop_connect_moments",
        call=lambda key, x, kernel, bias, rate: [
            L.drop_connect_moments(x, kernel, bias, rate=rate, inverted=inverted) for inverted in (True, False)
        ],
        arrays={**LINEAR, "rate": np.array(0.3)},
        rows=("x",),
        result="rows",
        wrt=("x", "kernel", "bias", "rate"),
        identity=lambda key, x, kernel, bias, rate: (
            L.drop_connect_moments(x, kernel, bias, rate=0 * rate),
            (x @ kernel + bias, jnp.zeros((8, 3), x.dtype)),
        ),
        singular=({"x": np.zeros((8, 4))}, {"rate": np.array(1.0)}, {"rate": np.array(0.0)}),
        bad={
            **rate_errors(lambda rate: L.drop_connect_moments(X, K, rate=rate)),
            **linear_errors(lambda x, kernel, bias: L.drop_connect_moments(x, kernel, bias, rate=0.3)),
            "inverted: a number": lambda: L.drop_connect_moments(X, K, rate=0.3, inverted=1),
        },
    ),
    Example(
        name="layers.drop_connect_samples",
        call=lambda key, x, kernel, bias: L.drop_connect_samples(key, x, kernel, bias, rate=0.3, num_samples=3),
        arrays=LINEAR,
        rows=("x",),
        result="other",
        wrt=("x", "kernel", "bias"),
        random=True,
        identity=lambda key, x, kernel, bias: (
            L.drop_connect_samples(key, x, kernel, bias, rate=jnp.zeros(()), num_samples=2),
            jnp.stack([x @ kernel + bias] * 2),
        ),
        singular=({"x": np.zeros((8, 4))}, {"kernel": np.zeros((4, 3))}),
        bad={
            **rate_errors(lambda rate: L.drop_connect_samples(KEY, X, K, rate=rate)),
            **linear_errors(lambda x, kernel, bias: L.drop_connect_samples(KEY, x, kernel, bias, rate=0.3)),
            "key: a number": lambda: L.drop_connect_samples(0, X, K, rate=0.3),
            "num_samples: zero": lambda: L.drop_connect_samples(KEY, X, K, rate=0.3, num_samples=0),
            "num_samples: a float": lambda: L.drop_connect_samples(KEY, X, K, rate=0.3, num_samples=2.0),
            "inverted: a number": lambda: L.drop_connect_samples(KEY, X, K, rate=0.3, inverted=1),
        },
    ),
    Example(
        name="layers.DropConnect",
        call=lambda key, x, kernel, bias: drop_connect_layer(kernel, bias)(x, rngs=key),
        arrays=LINEAR,
        rows=("x",),
        result="other",
        dtype="input",
        wrt=("x", "kernel", "bias"),
        random=True,
        identity=lambda key, x, kernel, bias: (
            drop_connect_layer(kernel, bias)(x, rngs=key, rate=jnp.zeros(())),
            drop_connect_layer(kernel, bias, deterministic=True)(x),
        ),
        singular=({"x": np.zeros((8, 4))},),
        bad={
            **rate_errors(lambda rate: L.DropConnect(3, 2, rate, rngs=nnx.Rngs(0))),
            **{what: thunk for what, thunk in module_errors(make_drop_connect).items() if what != "rngs: missing"},
            "rngs: missing": lambda: L.DropConnect(3, 2, rngs=None),
            "rngs: no parameters": lambda: L.DropConnect(3, 2, rngs=nnx.Rngs(dropout=0)),
            "rngs: a stream alone": lambda: L.DropConnect(3, 2, rngs=nnx.Rngs(0)["default"]),
            "rate: above 1 at the call": lambda: make_drop_connect()(X, rate=1.5),
            "in_features: zero": lambda: L.DropConnect(0, 2, rngs=nnx.Rngs(0)),
            "out_features: a float": lambda: L.DropConnect(3, 2.0, rngs=nnx.Rngs(0)),
            "use_bias: a number": lambda: make_drop_connect(use_bias=1),
            "per_example: a number": lambda: make_drop_connect(per_example=1),
            "kernel_init: a string": lambda: make_drop_connect(kernel_init="zeros"),
            "bias_init: a string": lambda: make_drop_connect(bias_init="zeros"),
            "param_dtype: integers": lambda: make_drop_connect(param_dtype=int),
            "x: features": lambda: make_drop_connect()(jnp.ones((4, 2))),
            "x: integers": lambda: make_drop_connect()(INTEGERS),
            "x: no examples": lambda: make_drop_connect(per_example=True)(jnp.ones(3)),
        },
    ),
    Example(
        name="layers.spatial_dropout",
        call=lambda key, x: L.spatial_dropout(key, x, rate=0.3),
        arrays=MAPS,
        rows=("x",),
        result="other",
        dtype="input",
        wrt=("x",),
        random=True,
        identity=lambda key, x: (
            L.spatial_dropout(key, x, rate=jnp.zeros(())),
            L.spatial_dropout(None, x, rate=0.3, deterministic=True),
        ),
        singular=MAP_SIZES,
        bad={
            **rate_errors(lambda rate: L.spatial_dropout(KEY, X, rate=rate)),
            "x: integers": lambda: L.spatial_dropout(KEY, INTEGERS, rate=0.3),
            "x: a vector": lambda: L.spatial_dropout(KEY, jnp.ones(3), rate=0.3),
            "key: a number": lambda: L.spatial_dropout(0, X, rate=0.3),
            "deterministic: a string": lambda: L.spatial_dropout(KEY, X, rate=0.3, deterministic="no"),
        },
    ),
    Example(
        name="layers.apply_spatial_dropout",
        call=lambda key, x, keep, rate: L.apply_spatial_dropout(x, keep, rate=rate),
        arrays={**MAPS, "keep": np.stack([KEEP, ~KEEP], -1), "rate": np.array(0.3)},
        rows=("x", "keep"),
        result="rows",
        dtype="input",
        wrt=("x", "rate"),
        identity=lambda key, x, keep, rate: (L.apply_spatial_dropout(x, jnp.ones((8, 2), bool), rate=0 * rate), x),
        singular=(*MAP_SIZES, {"rate": np.array(1.0)}, {"keep": np.zeros((8, 2), bool)}),
        bad={
            **rate_errors(lambda rate: L.apply_spatial_dropout(IMAGES, jnp.ones((4, 2), bool), rate=rate)),
            "x: integers": lambda: L.apply_spatial_dropout(INTEGERS, jnp.ones((4, 3), bool), rate=0.3),
            "keep: shape": lambda: L.apply_spatial_dropout(IMAGES, jnp.ones((1, 2), bool), rate=0.3),
            "keep: floats": lambda: L.apply_spatial_dropout(IMAGES, jnp.ones((4, 2)), rate=0.3),
        },
    ),
    Example(
        name="layers.SpatialDropout",
        call=lambda key, x: L.SpatialDropout(0.3)(x, rngs=key),
        arrays=MAPS,
        rows=("x",),
        result="other",
        dtype="input",
        wrt=("x",),
        random=True,
        identity=lambda key, x: (L.SpatialDropout(0.3)(x, rngs=key, rate=jnp.zeros(())), L.SpatialDropout(0.0)(x)),
        singular=MAP_SIZES,
        bad={
            **rate_errors(L.SpatialDropout),
            **module_errors(lambda **options: L.SpatialDropout(0.3, **options)),
            "rate: above 1 at the call": lambda: L.SpatialDropout(0.3)(X, rate=1.5, rngs=KEY),
            "x: a vector": lambda: L.SpatialDropout(0.3)(jnp.ones(3), rngs=KEY),
        },
    ),
    Example(
        name="layers.drop_block",
        call=lambda key, x: L.drop_block(key, x, rate=0.3, block_size=2),
        arrays=MAPS,
        rows=("x",),
        result="other",
        dtype="input",
        wrt=("x",),
        random=True,
        identity=lambda key, x: (
            L.drop_block(key, x, rate=jnp.zeros(())),
            L.drop_block(None, x, rate=0.3, deterministic=True),
        ),
        singular=MAP_SIZES,
        bad={
            **rate_errors(lambda rate: L.drop_block(KEY, IMAGES, rate=rate)),
            **block_errors(lambda **options: L.drop_block(KEY, IMAGES, **options)),
            "x: integers": lambda: L.drop_block(KEY, IMAGES.astype(int)),
            "x: rank": lambda: L.drop_block(KEY, X),
            "key: a number": lambda: L.drop_block(0, IMAGES),
            "shared_channels: a number": lambda: L.drop_block(KEY, IMAGES, shared_channels=1),
            "inside: a number": lambda: L.drop_block(KEY, IMAGES, inside=1),
            "deterministic: a string": lambda: L.drop_block(KEY, IMAGES, deterministic="no"),
        },
    ),
    Example(
        name="layers.apply_drop_block",
        call=lambda key, x, seeds: L.apply_drop_block(x, seeds, block_size=2),
        arrays={**MAPS, "seeds": SEEDS},
        rows=("x", "seeds"),
        result="rows",
        dtype="input",
        wrt=("x",),
        identity=lambda key, x, seeds: (L.apply_drop_block(x, jnp.zeros_like(seeds), block_size=2), x),
        singular=(*MAP_SIZES, {"seeds": ALL}),
        mapped=lambda axis_name, key, x, seeds: L.apply_drop_block(x, seeds, block_size=2, axis_name=axis_name),
        bad={
            **block_errors(lambda **options: L.apply_drop_block(IMAGES, ALL[:4], **options)),
            "x: rank": lambda: L.apply_drop_block(X, ALL[:4]),
            "seeds: examples": lambda: L.apply_drop_block(IMAGES, ALL[:1]),
            "seeds: channels": lambda: L.apply_drop_block(IMAGES, jnp.ones((4, 4, 5, 3), bool)),
            "seeds: rank": lambda: L.apply_drop_block(IMAGES, ALL[:4, ..., 0]),
            "seeds: floats": lambda: L.apply_drop_block(IMAGES, IMAGES),
        },
    ),
    Example(
        name="layers.DropBlock",
        call=lambda key, x: L.DropBlock(0.3, 2, shared_channels=False, inside=True)(x, rngs=key),
        arrays=MAPS,
        rows=("x",),
        result="other",
        dtype="input",
        wrt=("x",),
        random=True,
        identity=lambda key, x: (L.DropBlock(0.3)(x, rngs=key, rate=jnp.zeros(())), L.DropBlock(0.0)(x)),
        singular=MAP_SIZES,
        bad={
            **rate_errors(L.DropBlock),
            **module_errors(lambda **options: L.DropBlock(0.3, **options), IMAGES),
            **block_errors(L.DropBlock),
            "shared_channels: a number": lambda: L.DropBlock(shared_channels=1),
            "inside: a string": lambda: L.DropBlock(inside="yes"),
            "rate: above 1 at the call": lambda: L.DropBlock(0.3)(IMAGES, rate=1.5, rngs=KEY),
            "x: rank": lambda: L.DropBlock(0.3)(X, rngs=KEY),
        },
    ),
    Example(
        name="layers.frozen_mask_dropout",
        call=frozen,
        arrays={"x": normal(8, 4), "when": KEEP},
        rows=("x", "when"),
        result="other",
        dtype="input",
        wrt=("x",),
        random=True,
        identity=frozen_identity,
        singular=({"x": np.zeros((8, 4))}, {"x": 1e4 * np.sign(normal(8, 4))}, {"when": np.zeros(8, bool)}),
        memory=frozen_memory,
        bad={
            "shape: a list": lambda: L.frozen_mask_dropout([4, 3]),
            "shape: empty": lambda: L.frozen_mask_dropout(()),
            "shape: of floats": lambda: L.frozen_mask_dropout((4, 3.0)),
            "rate: above 1": lambda: L.frozen_mask_dropout((4, 3), rate=1.5),
            "rate: NaN": lambda: L.frozen_mask_dropout((4, 3), rate=NAN),
            "rate: a vector": lambda: L.frozen_mask_dropout((4, 3), rate=jnp.ones(2)),
            "skip_last: negative": lambda: L.frozen_mask_dropout((4, 3), skip_last=-1),
            "skip_last: more than there are": lambda: L.frozen_mask_dropout((4, 3), skip_last=4),
            "resample: misspelt": lambda: L.frozen_mask_dropout((4, 3), resample="episodes"),
            "step: missing": lambda: L.frozen_mask_dropout((4, 3), rate=lambda step: 0.1).init(KEY),
            "key: a number": lambda: FROZEN.init(0),
            "key: a number at the refresh": lambda: FROZEN.refresh(STATE, 0, when=True),
            "x: shape": lambda: FROZEN.apply(STATE, jnp.ones((3, 3))),
            "x: rank": lambda: FROZEN.apply(STATE, jnp.ones(3)),
            "x: integers": lambda: FROZEN.apply(STATE, INTEGERS),
            "state: another": lambda: FROZEN.apply(jnp.ones((4, 3)), X),
            "state: of other masks": lambda: FROZEN.apply(L.FrozenMaskState(jnp.ones((2, 3))), X),
            "when: floats": lambda: FROZEN.refresh(STATE, KEY, when=jnp.ones(4)),
            "when: examples": lambda: FROZEN.refresh(STATE, KEY, when=jnp.ones(3, bool)),
            "deterministic: a number": lambda: FROZEN.apply(STATE, X, deterministic=1),
        },
    ),
)
