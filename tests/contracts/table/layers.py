"""Examples of `regjax.layers`."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import regjax as rj
from tests.contracts.example import Example, ids, normal

KEY, X = jax.random.key(0), jnp.ones((4, 3))
INTEGERS = jnp.ones((4, 3), int)
NAN = float("nan")
PROBS = np.full(4, 0.25)
MASK = normal(8, 3, seed=5) > -0.5
KEEP = np.arange(8) % 3 > 0
MASKS = normal(3, 8, 4, seed=6) > -0.5
FEATURES = {"features": normal(8, 4), "kernel": normal(4, 3, seed=3)}
SIZES = ({"x": np.zeros((8, 3))}, {"x": 1e4 * np.sign(normal(8, 3))})


def rate_errors(call) -> dict:
    """The wrong values of a rate; ``call(rate)`` is given each."""
    return {
        "rate: above 1": lambda: call(1.5),
        "rate: negative": lambda: call(-0.1),
        "rate: NaN": lambda: call(NAN),
        "rate: a string": lambda: call("half"),
        "rate: a schedule": lambda: call(lambda step: 0.1),
        "rate: a vector": lambda: call(jnp.ones(2)),
    }


def module_errors(make, x=X) -> dict:
    """What every module refuses; ``make(**options)`` builds one."""
    return {
        "rngs: a number at construction": lambda: make(rngs=0),
        "rngs: no such stream": lambda: make(rngs=nnx.Rngs(params=0)),
        "rngs: missing": lambda: make()(x),
        "rngs: a number at the call": lambda: make()(x, rngs=0),
        "rngs: several keys": lambda: make()(x, rngs=jax.random.split(KEY, 2)),
        "deterministic: missing": lambda: make(deterministic=None)(x, rngs=KEY),
        "deterministic: a string": lambda: make(deterministic="no"),
        "deterministic: a number at the call": lambda: make()(x, rngs=KEY, deterministic=1),
        "rng_collection: a number": lambda: make(rng_collection=0),
    }


def head(kernel):
    return lambda h: jnp.tanh(h) @ kernel


def nested_several(layer, key, x):
    """Several draws side by side: one alone is often the same under another key."""
    return jnp.concatenate([layer(jax.random.fold_in(key, i), x) for i in range(6)], axis=-1)


dropout, drop_path, samples = rj.layers.dropout, rj.layers.drop_path, rj.layers.multi_sample_dropout

EXAMPLES = (
    Example(
        name="layers.dropout",
        call=lambda key, x: dropout(key, x, rate=0.3),
        arrays={"x": normal(8, 3)},
        rows=("x",),
        result="other",
        dtype="input",
        wrt=("x",),
        random=True,
        identity=lambda key, x: (dropout(key, x, rate=jnp.zeros(())), dropout(None, x, rate=0.3, deterministic=True)),
        singular=SIZES,
        bad={
            **rate_errors(lambda rate: dropout(KEY, X, rate=rate)),
            "x: integers": lambda: dropout(KEY, INTEGERS, rate=0.3),
            "key: a number": lambda: dropout(0, X, rate=0.3),
            "key: several": lambda: dropout(jax.random.split(KEY, 2), X, rate=0.3),
            "deterministic: a string": lambda: dropout(KEY, X, rate=0.3, deterministic="no"),
        },
    ),
    Example(
        name="layers.apply_dropout",
        call=lambda key, x, keep_mask, rate: rj.layers.apply_dropout(x, keep_mask, rate=rate),
        arrays={"x": normal(8, 3), "keep_mask": MASK, "rate": np.array(0.3)},
        rows=("x", "keep_mask"),
        result="rows",
        dtype="input",
        wrt=("x", "rate"),
        identity=lambda key, x, keep_mask, rate: (rj.layers.apply_dropout(x, jnp.ones(x.shape, bool), rate=0 * rate), x),
        singular=(*SIZES, {"rate": np.array(1.0)}),
        bad={
            **rate_errors(lambda rate: rj.layers.apply_dropout(X, MASK[:4], rate=rate)),
            "x: integers": lambda: rj.layers.apply_dropout(INTEGERS, MASK[:4], rate=0.3),
            "keep_mask: shape": lambda: rj.layers.apply_dropout(X, MASK[:1], rate=0.3),
            "keep_mask: floats": lambda: rj.layers.apply_dropout(X, X, rate=0.3),
            "keep_mask: None": lambda: rj.layers.apply_dropout(X, None, rate=0.3),
        },
    ),
    Example(
        name="layers.Dropout",
        call=lambda key, x: rj.layers.Dropout(0.3)(x, rngs=key),
        arrays={"x": normal(8, 3)},
        rows=("x",),
        result="other",
        dtype="input",
        wrt=("x",),
        random=True,
        identity=lambda key, x: (rj.layers.Dropout(0.3)(x, rngs=key, rate=jnp.zeros(())), rj.layers.Dropout(0.0)(x)),
        singular=SIZES,
        bad={
            **rate_errors(rj.layers.Dropout),
            **module_errors(lambda **options: rj.layers.Dropout(0.3, **options)),
            "rate: above 1 at the call": lambda: rj.layers.Dropout(0.3)(X, rate=1.5, rngs=KEY),
            "x: integers": lambda: rj.layers.Dropout(0.3)(INTEGERS, rngs=KEY),
        },
    ),
    Example(
        name="layers.drop_path",
        call=lambda key, x: drop_path(key, x, rate=0.5),
        arrays={"x": normal(8, 3)},
        rows=("x",),
        result="other",
        dtype="input",
        wrt=("x",),
        random=True,
        identity=lambda key, x: (drop_path(key, x, rate=jnp.zeros(())), drop_path(None, x, rate=0.3, deterministic=True)),
        singular=SIZES,
        bad={
            **rate_errors(lambda rate: drop_path(KEY, X, rate=rate)),
            "x: integers": lambda: drop_path(KEY, INTEGERS, rate=0.3),
            "x: a scalar": lambda: drop_path(KEY, jnp.ones(()), rate=0.3),
            "key: a number": lambda: drop_path(0, X, rate=0.3),
            "scale_by_keep: a number": lambda: drop_path(KEY, X, rate=0.3, scale_by_keep=1),
            "deterministic: a string": lambda: drop_path(KEY, X, rate=0.3, deterministic="no"),
        },
    ),
    Example(
        name="layers.apply_drop_path",
        call=lambda key, x, keep, rate: rj.layers.apply_drop_path(x, keep, rate=rate),
        arrays={"x": normal(8, 3), "keep": KEEP, "rate": np.array(0.3)},
        rows=("x", "keep"),
        result="rows",
        dtype="input",
        wrt=("x", "rate"),
        identity=lambda key, x, keep, rate: (rj.layers.apply_drop_path(x, jnp.ones(x.shape[0], bool), rate=0 * rate), x),
        singular=(*SIZES, {"rate": np.array(1.0)}, {"keep": np.zeros(8, bool)}),
        bad={
            **rate_errors(lambda rate: rj.layers.apply_drop_path(X, KEEP[:4], rate=rate)),
            "x: integers": lambda: rj.layers.apply_drop_path(INTEGERS, KEEP[:4], rate=0.3),
            "keep: shape": lambda: rj.layers.apply_drop_path(X, KEEP[:1], rate=0.3),
            "keep: floats": lambda: rj.layers.apply_drop_path(X, jnp.ones(4), rate=0.3),
            "keep: None": lambda: rj.layers.apply_drop_path(X, None, rate=0.3),
            "scale_by_keep: a number": lambda: rj.layers.apply_drop_path(X, KEEP[:4], rate=0.3, scale_by_keep=1),
        },
    ),
    Example(
        name="layers.drop_path_rates",
        call=lambda key, rate: rj.layers.drop_path_rates(rate, 5),
        arrays={"rate": np.array(0.3)},
        result="other",
        wrt=("rate",),
        identity=lambda key, rate: (rj.layers.drop_path_rates(0 * rate, 5), jnp.zeros(5, rate.dtype)),
        singular=({"rate": np.array(1.0)},),
        bad={
            **rate_errors(lambda rate: rj.layers.drop_path_rates(rate, 5)),
            "depth: zero": lambda: rj.layers.drop_path_rates(0.3, 0),
            "depth: a float": lambda: rj.layers.drop_path_rates(0.3, 5.0),
        },
    ),
    Example(
        name="layers.DropPath",
        call=lambda key, x: rj.layers.DropPath(0.5)(x, rngs=key),
        arrays={"x": normal(8, 3)},
        rows=("x",),
        result="other",
        dtype="input",
        wrt=("x",),
        random=True,
        identity=lambda key, x: (rj.layers.DropPath(0.5)(x, rngs=key, rate=jnp.zeros(())), rj.layers.DropPath(0.0)(x)),
        singular=SIZES,
        bad={
            **rate_errors(rj.layers.DropPath),
            **module_errors(lambda **options: rj.layers.DropPath(0.3, **options)),
            "rate: above 1 at the call": lambda: rj.layers.DropPath(0.3)(X, rate=1.5, rngs=KEY),
            "scale_by_keep: a number": lambda: rj.layers.DropPath(0.3, scale_by_keep=1),
            "x: a scalar": lambda: rj.layers.DropPath(0.3)(jnp.ones(()), rngs=KEY),
        },
    ),
    Example(
        name="layers.multi_sample_dropout",
        call=lambda key, features, kernel: samples(key, head(kernel), features, num_samples=3, rate=0.3),
        arrays=FEATURES,
        rows=("features",),
        result="other",
        dtype="input",
        wrt=("features", "kernel"),
        random=True,
        identity=lambda key, features, kernel: (
            samples(key, jnp.tanh, features, num_samples=3, rate=jnp.zeros(()))[2],
            samples(None, jnp.tanh, features, deterministic=True)[0],
        ),
        singular=({"features": np.zeros((8, 4))},),
        bad={
            **rate_errors(lambda rate: samples(KEY, jnp.tanh, X, rate=rate)),
            "head_fn: a string": lambda: samples(KEY, "head", X),
            "head_fn: loses the rows": lambda: samples(KEY, jnp.sum, X),
            "features: integers": lambda: samples(KEY, jnp.tanh, INTEGERS),
            "features: no images to flip": lambda: samples(KEY, jnp.tanh, X, flip=True),
            "num_samples: zero": lambda: samples(KEY, jnp.tanh, X, num_samples=0),
            "num_samples: a float": lambda: samples(KEY, jnp.tanh, X, num_samples=2.0),
            "flip: a string": lambda: samples(KEY, jnp.tanh, X, flip="yes"),
            "reduce: misspelt": lambda: samples(KEY, jnp.tanh, X, reduce="logit"),
            "key: a number": lambda: samples(0, jnp.tanh, X),
            "deterministic: a string": lambda: samples(KEY, jnp.tanh, X, deterministic="no"),
        },
    ),
    Example(
        name="layers.apply_multi_sample_dropout",
        call=lambda key, features, kernel, keep_masks, rate: rj.layers.apply_multi_sample_dropout(
            head(kernel), features, keep_masks, rate=rate
        ),
        arrays={**FEATURES, "keep_masks": MASKS, "rate": np.array(0.3)},
        rows=("features",),
        result="other",
        dtype="input",
        wrt=("features", "kernel", "rate"),
        singular=({"features": np.zeros((8, 4))}, {"keep_masks": np.zeros((3, 8, 4), bool)}, {"rate": np.array(1.0)}),
        bad={
            **rate_errors(lambda rate: rj.layers.apply_multi_sample_dropout(jnp.tanh, X, MASKS[:, :4, :3], rate=rate)),
            "head_fn: a string": lambda: rj.layers.apply_multi_sample_dropout("head", X, MASKS[:, :4, :3], rate=0.3),
            "head_fn: loses the rows": lambda: rj.layers.apply_multi_sample_dropout(jnp.sum, X, MASKS[:, :4, :3], rate=0.3),
            "features: integers": lambda: rj.layers.apply_multi_sample_dropout(jnp.tanh, INTEGERS, MASKS[:, :4, :3], rate=0.3),
            "keep_masks: shape": lambda: rj.layers.apply_multi_sample_dropout(jnp.tanh, X, MASKS, rate=0.3),
            "keep_masks: no samples": lambda: rj.layers.apply_multi_sample_dropout(jnp.tanh, X, MASKS[:0, :4, :3], rate=0.3),
            "keep_masks: floats": lambda: rj.layers.apply_multi_sample_dropout(jnp.tanh, X, jnp.ones((2, 4, 3)), rate=0.3),
            "flip: a string": lambda: rj.layers.apply_multi_sample_dropout(jnp.tanh, X, MASKS[:, :4, :3], rate=0.3, flip="yes"),
            "reduce: misspelt": lambda: rj.layers.apply_multi_sample_dropout(
                jnp.tanh, X, MASKS[:, :4, :3], rate=0.3, reduce="mean"
            ),
        },
    ),
    Example(
        name="layers.multi_sample_loss",
        call=lambda key, outputs, labels: rj.layers.multi_sample_loss(rj.losses.label_smoothing)(outputs, labels, alpha=0.1),
        arrays={"outputs": normal(3, 8, 5), "labels": ids(8, classes=5)},
        result="other",
        wrt=("outputs",),
        singular=({"outputs": np.zeros((3, 8, 5))}, {"outputs": 1e4 * np.sign(normal(3, 8, 5))}),
        bad={
            "loss_fn: a string": lambda: rj.layers.multi_sample_loss("cross_entropy"),
            "outputs: no axis of samples": lambda: rj.layers.multi_sample_loss(jnp.tanh)(jnp.ones(())),
        },
    ),
    Example(
        name="layers.MultiSampleDropout",
        call=lambda key, features, kernel: rj.layers.MultiSampleDropout(head(kernel), 3, 0.3)(features, rngs=key),
        arrays=FEATURES,
        rows=("features",),
        result="other",
        dtype="input",
        wrt=("features", "kernel"),
        random=True,
        identity=lambda key, features, kernel: (
            rj.layers.MultiSampleDropout(jnp.tanh, 3)(features, rngs=key, rate=jnp.zeros(()))[2],
            rj.layers.MultiSampleDropout(jnp.tanh, 3)(features, deterministic=True)[0],
        ),
        singular=({"features": np.zeros((8, 4))},),
        bad={
            **rate_errors(lambda rate: rj.layers.MultiSampleDropout(jnp.tanh, 3, rate)),
            **module_errors(lambda **options: rj.layers.MultiSampleDropout(jnp.tanh, **options)),
            "rate: above 1 at the call": lambda: rj.layers.MultiSampleDropout(jnp.tanh)(X, rate=1.5, rngs=KEY),
            "head: a string": lambda: rj.layers.MultiSampleDropout("head"),
            "num_samples: zero": lambda: rj.layers.MultiSampleDropout(jnp.tanh, 0),
            "flip: a string": lambda: rj.layers.MultiSampleDropout(jnp.tanh, flip="yes"),
            "reduce: misspelt": lambda: rj.layers.MultiSampleDropout(jnp.tanh, reduce="logit"),
            "features: integers": lambda: rj.layers.MultiSampleDropout(jnp.tanh)(INTEGERS, rngs=KEY),
        },
    ),
    Example(
        name="layers.nested_dropout_probs",
        call=lambda key, scale, mean: rj.layers.nested_dropout_probs(5, scale=scale, mean=mean),
        arrays={"scale": np.array(2.0), "mean": np.array(0.3)},
        result="other",
        wrt=("scale", "mean"),
        singular=({"scale": np.array(1e-20)}, {"scale": np.array(1e4)}),
        bad={
            "num_features: zero": lambda: rj.layers.nested_dropout_probs(0, scale=1.0),
            "num_features: a float": lambda: rj.layers.nested_dropout_probs(5.0, scale=1.0),
            "scale: missing": lambda: rj.layers.nested_dropout_probs(5),
            "scale: zero": lambda: rj.layers.nested_dropout_probs(5, scale=0.0),
            "scale: NaN": lambda: rj.layers.nested_dropout_probs(5, scale=NAN),
            "scale: of the uniform": lambda: rj.layers.nested_dropout_probs(5, scale=1.0, distribution="uniform"),
            "mean: infinite": lambda: rj.layers.nested_dropout_probs(5, scale=1.0, mean=float("inf")),
            "mean: of the geometric": lambda: rj.layers.nested_dropout_probs(5, scale=1.0, mean=2.0, distribution="geometric"),
            "distribution: misspelt": lambda: rj.layers.nested_dropout_probs(5, scale=1.0, distribution="gauss"),
        },
    ),
    Example(
        name="layers.nested_dropout",
        call=lambda key, x, probs: nested_several(lambda k, x: rj.layers.nested_dropout(k, x, probs=probs), key, x),
        arrays={"x": normal(8, 4), "probs": PROBS},
        rows=("x",),
        result="rows",
        dtype="input",
        wrt=("x",),
        random=True,
        identity=lambda key, x, probs: (
            rj.layers.nested_dropout(key, x, probs=jnp.array([0.0, 0.0, 0.0, 1.0])),
            rj.layers.nested_dropout(None, x, probs=probs, deterministic=True),
        ),
        singular=({"x": np.zeros((8, 4))}, {"probs": np.eye(4)[1]}),
        bad={
            "x: integers": lambda: rj.layers.nested_dropout(KEY, INTEGERS, probs=jnp.ones(3) / 3),
            "probs: length": lambda: rj.layers.nested_dropout(KEY, X, probs=jnp.ones(4) / 4),
            "probs: integers": lambda: rj.layers.nested_dropout(KEY, X, probs=jnp.array([0, 1, 0])),
            "key: a number": lambda: rj.layers.nested_dropout(0, X, probs=jnp.ones(3) / 3),
            "deterministic: a string": lambda: rj.layers.nested_dropout(KEY, X, probs=jnp.ones(3) / 3, deterministic="no"),
        },
    ),
    Example(
        name="layers.truncate_features",
        call=lambda key, x, k: rj.layers.truncate_features(x, k),
        arrays={"x": normal(8, 4), "k": np.array(2, np.int32)},
        rows=("x",),
        result="rows",
        dtype="input",
        wrt=("x",),
        identity=lambda key, x, k: (rj.layers.truncate_features(x, 4), x),
        singular=({"x": np.zeros((8, 4))}, {"k": np.array(4, np.int32)}),
        bad={
            "x: integers": lambda: rj.layers.truncate_features(INTEGERS, 2),
            "x: a scalar": lambda: rj.layers.truncate_features(jnp.ones(()), 1),
            "k: zero": lambda: rj.layers.truncate_features(X, 0),
            "k: above N": lambda: rj.layers.truncate_features(X, 4),
            "k: a float": lambda: rj.layers.truncate_features(X, 2.0),
            "k: a float array": lambda: rj.layers.truncate_features(X, jnp.ones(())),
            "k: one per example": lambda: rj.layers.truncate_features(X, jnp.ones(4, int)),
        },
    ),
    Example(
        name="layers.sample_truncations",
        call=lambda key, probs, others: rj.layers.sample_truncations(key, probs, others, probs, others),
        arrays={"probs": np.full(32, 1 / 32), "others": np.full(24, 1 / 24)},
        result="other",
        dtype=None,
        random=True,
        singular=({"probs": np.eye(32)[1]},),
        bad={
            "probs: none": lambda: rj.layers.sample_truncations(KEY),
            "probs: a matrix": lambda: rj.layers.sample_truncations(KEY, jnp.ones((2, 2))),
            "probs: integers": lambda: rj.layers.sample_truncations(KEY, jnp.ones(2, int)),
            "alternate: a number": lambda: rj.layers.sample_truncations(KEY, jnp.ones(2), alternate=1),
            "key: a number": lambda: rj.layers.sample_truncations(0, jnp.ones(2)),
        },
    ),
    Example(
        name="layers.truncated_logits",
        call=lambda key, features, kernel, bias: rj.layers.truncated_logits(features, kernel, bias),
        arrays={**FEATURES, "bias": normal(3, seed=4)},
        rows=("features",),
        result="other",
        wrt=("features", "kernel", "bias"),
        singular=({"features": np.zeros((8, 4))},),
        bad={
            "features: rank": lambda: rj.layers.truncated_logits(jnp.ones(3), jnp.ones((3, 2))),
            "features: integers": lambda: rj.layers.truncated_logits(INTEGERS, jnp.ones((3, 2))),
            "kernel: shape": lambda: rj.layers.truncated_logits(X, jnp.ones((4, 2))),
            "bias: shape": lambda: rj.layers.truncated_logits(X, jnp.ones((3, 2)), jnp.ones(3)),
        },
    ),
    Example(
        name="layers.select_truncation",
        call=lambda key, accuracy: rj.layers.select_truncation(accuracy),
        arrays={"accuracy": np.array([0.2, 0.5, 0.875, 0.75])},
        result="other",
        dtype=None,
        identity=lambda key, accuracy: (
            rj.layers.select_truncation(accuracy, penalty=0.0),
            1 + jnp.argmax(accuracy).astype(jnp.int32),
        ),
        singular=({"accuracy": np.zeros(4)},),
        bad={
            "accuracy_per_k: a matrix": lambda: rj.layers.select_truncation(X),
            "accuracy_per_k: integers": lambda: rj.layers.select_truncation(jnp.ones(3, int)),
            "accuracy_per_k: empty": lambda: rj.layers.select_truncation(jnp.ones(0)),
            "penalty: negative": lambda: rj.layers.select_truncation(jnp.ones(3), penalty=-1.0),
            "penalty: NaN": lambda: rj.layers.select_truncation(jnp.ones(3), penalty=NAN),
        },
    ),
    Example(
        name="layers.NestedDropout",
        call=lambda key, x: nested_several(lambda k, x: rj.layers.NestedDropout(4, distribution="uniform")(x, rngs=k), key, x),
        arrays={"x": normal(8, 4)},
        rows=("x",),
        result="rows",
        dtype="input",
        wrt=("x",),
        random=True,
        identity=lambda key, x: (
            rj.layers.NestedDropout(4, scale=2.0)(x, k=4),
            rj.layers.NestedDropout(4, scale=2.0)(x, deterministic=True),
        ),
        singular=({"x": np.zeros((8, 4))},),
        bad={
            **module_errors(lambda **options: rj.layers.NestedDropout(3, scale=2.0, **options)),
            "num_features: zero": lambda: rj.layers.NestedDropout(0, scale=2.0),
            "scale: missing": lambda: rj.layers.NestedDropout(3),
            "scale: negative": lambda: rj.layers.NestedDropout(3, scale=-1.0),
            "scale: zero at the call": lambda: rj.layers.NestedDropout(3, scale=1.0)(X, scale=0.0, rngs=KEY),
            "mean: NaN": lambda: rj.layers.NestedDropout(3, scale=1.0, mean=NAN),
            "distribution: misspelt": lambda: rj.layers.NestedDropout(3, scale=1.0, distribution="normal"),
            "x: length": lambda: rj.layers.NestedDropout(4, scale=1.0)(X, rngs=KEY),
            "x: integers": lambda: rj.layers.NestedDropout(3, scale=1.0)(INTEGERS, rngs=KEY),
            "k: zero": lambda: rj.layers.NestedDropout(3, scale=1.0)(X, k=0),
        },
    ),
)
