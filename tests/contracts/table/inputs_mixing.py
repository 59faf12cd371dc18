"""Examples of `regjax.inputs`: batches mixed by timm's recipe, manifold mixup, selective mixup."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import regjax as rj
from tests.contracts.example import Example, ids, normal, probabilities

KEY, NAN = jax.random.key(0), float("nan")
X, Y = jnp.ones((4, 4, 3, 1)), jnp.eye(4)
BATCH = {"images": normal(8, 4, 3, 1), "labels": probabilities(8, 3)}
ROWS = {"x": normal(8, 3), "labels": probabilities(8, 3)}
LAM = np.array([0.0, 0.1, 0.3, 0.42, 0.5, 0.7, 0.9, 1.0])
CENTRES = np.stack([np.arange(8) % 4, np.arange(8) % 3], -1).astype(np.int32)
CUTS = np.arange(8) % 2 == 0
CONFUSION = probabilities(3, 3, seed=4) / 3
HEAD = {"confusion": CONFUSION, "prototypes": normal(3, 4), "kernel": normal(4, 3, seed=5), "bias": normal(3, seed=6)}
C3, Z3, W3, B3 = jnp.full((3, 3), 1 / 9), jnp.ones((3, 4)), jnp.ones((4, 3)), jnp.zeros(3)
SETS = {"features": normal(8, 4), "labels": ids(8, classes=3)}
INDEX = functools.partial(rj.inputs.class_index, num_classes=3)


def wrong(argument: str, call, **limits) -> dict:
    """Wrong values of a strength that ``call(argument=value)`` is given."""
    values = {"NaN": NAN, "a text": "strong", "a vector": jnp.ones(4), "a schedule": lambda step: 0.5, **limits}
    return {f"{argument}: {what}": functools.partial(call, **{argument: value}) for what, value in values.items()}


def stages(kernel):
    return [jnp.tanh, lambda h: h @ kernel, lambda h: h + 1]


class Net(nnx.Module):
    def __init__(self, kernel):
        self.blocks = nnx.List([nnx.Linear(3, 3, rngs=nnx.Rngs(i)) for i in range(2)])
        self.blocks[0].kernel[...] = kernel.astype(jnp.float32)

    def __call__(self, x):
        for block in self.blocks:
            x = jnp.tanh(block(x))
        return x


def model_mix(key, x, labels, kernel, **options):
    layers = ("", "blocks.0", "blocks.1")
    return rj.inputs.manifold_mixup_model(key, Net(kernel), x, labels, layers=layers, **options)


def mixed_errors(fn, first) -> dict:
    """The errors of images, labels and key: ``fn(key, *first, x, labels)``."""
    return {
        "key: a number": lambda: fn(0, *first, jnp.ones((4, 3)), Y),
        "x: integers": lambda: fn(KEY, *first, jnp.ones((4, 3), int), Y),
        "labels: class ids": lambda: fn(KEY, *first, jnp.ones((4, 3)), jnp.arange(4)),
        "labels: of other examples": lambda: fn(KEY, *first, jnp.ones((4, 3)), jnp.eye(3)),
        "alpha: negative": lambda: fn(KEY, *first, jnp.ones((4, 3)), Y, alpha=-1.0),
        "alpha: NaN": lambda: fn(KEY, *first, jnp.ones((4, 3)), Y, alpha=NAN),
        "within_shard: does not divide": lambda: fn(KEY, *first, jnp.ones((4, 3)), Y, within_shard=3),
    }


mix = functools.partial(rj.inputs.batch_mix, KEY, X, Y)
apply = functools.partial(rj.inputs.apply_batch_mix, X, Y)
given = functools.partial(apply, use_cutmix=True)
gain = functools.partial(rj.inputs.selmix_gain, C3, Z3, W3, B3)
recalls = functools.partial(rj.inputs.selmix_recall_multipliers, jnp.ones(3), jnp.ones(3))
coverages = functools.partial(rj.inputs.selmix_coverage_multipliers, jnp.ones(3))
make = functools.partial(rj.inputs.selmix_refresh, 3)
MODEL = Net(jnp.eye(3))
SELMIX = make(metric="min_recall", coverage=True, beta=0.5, rate=2.0, max_value=2.0)


def head_errors(call) -> dict:
    """Wrong statistics: ``call(confusion, prototypes, kernel, bias)``."""
    return {
        "confusion: not square": lambda: call(jnp.ones((3, 2)), Z3, W3, B3),
        "confusion: counts": lambda: call(jnp.ones((3, 3), int), Z3, W3, B3),
    }


EXAMPLES = (
    Example(
        name="inputs.batch_mix",
        call=lambda key, images, labels: rj.inputs.batch_mix(
            key, images, labels, mixup_alpha=0.8, cutmix_alpha=1.0, prob=0.9, mode="elem", within_shard=4
        ),
        arrays=BATCH,
        rows=("images", "labels"),
        result="other",
        dtype="input",
        wrt=("images", "labels"),
        random=True,
        identity=lambda key, images, labels: (
            rj.inputs.batch_mix(key, images, labels, mixup_alpha=0.0, label_smoothing=0.0, mode="pair"),
            (images, labels),
        ),
        singular=(
            {"images": np.zeros((8, 4, 3, 1)), "labels": np.zeros((8, 3))},
            {"images": 1e4 * np.sign(BATCH["images"]), "labels": np.eye(3)[np.arange(8) % 3]},
        ),
        bad={
            **wrong("mixup_alpha", mix, negative=-1.0),
            **wrong("cutmix_alpha", mix, negative=-1.0),
            **wrong("prob", mix, large=1.5),
            **wrong("switch_prob", mix, large=1.5),
            **wrong("label_smoothing", mix, large=1.5),
            "key: a number": lambda: rj.inputs.batch_mix(0, X, Y),
            "images: integers": lambda: rj.inputs.batch_mix(KEY, X.astype(int), Y),
            "images: rank": lambda: rj.inputs.batch_mix(KEY, X[0], Y),
            "labels: of other examples": lambda: rj.inputs.batch_mix(KEY, X, jnp.eye(3)),
            "labels: booleans": lambda: rj.inputs.batch_mix(KEY, X, jnp.eye(4, dtype=bool)),
            "labels: ids of rank 2": lambda: rj.inputs.batch_mix(KEY, X, jnp.ones((4, 1), int), num_classes=3),
            "labels: other classes": lambda: mix(num_classes=3),
            "num_classes: missing": lambda: rj.inputs.batch_mix(KEY, X, jnp.arange(4)),
            "num_classes: zero": lambda: rj.inputs.batch_mix(KEY, X, jnp.arange(4), num_classes=0),
            "cutmix_minmax: no box": lambda: mix(cutmix_minmax=(0.5, 0.5)),
            "cutmix_minmax: one number": lambda: mix(cutmix_minmax=0.5),
            "mode: misspelt": lambda: mix(mode="elm"),
            "correct_lam: a text": lambda: mix(correct_lam="yes"),
            "within_shard: does not divide": lambda: mix(within_shard=3),
        },
    ),
    Example(
        name="inputs.batch_mix",
        call=lambda key, images, labels: rj.inputs.batch_mix(
            key, images, labels, num_classes=3, cutmix_minmax=(0.3, 1.0), mode="pair"
        ),
        arrays={"images": BATCH["images"], "labels": ids(8, classes=3)},
        rows=("images", "labels"),
        result="other",
        dtype=None,
        wrt=("images",),
        random=True,
    ),
    Example(
        name="inputs.apply_batch_mix",
        call=lambda key, images, labels, lam, use_cutmix, centres: rj.inputs.apply_batch_mix(
            images, labels, mode="elem", lam=lam, use_cutmix=use_cutmix, centres=centres, label_smoothing=0.1
        ),
        arrays={**BATCH, "lam": LAM, "use_cutmix": CUTS, "centres": CENTRES},
        rows=("images", "labels", "lam", "use_cutmix", "centres"),
        result="other",
        dtype="input",
        wrt=("images", "labels"),
        identity=lambda key, images, labels, lam, use_cutmix, centres: (
            rj.inputs.apply_batch_mix(images, labels, mode="elem", lam=1.0, use_cutmix=use_cutmix, centres=centres),
            (images, labels),
        ),
        singular=({"images": 1e4 * np.sign(BATCH["images"])}, {"lam": np.zeros(8)}, {"lam": np.ones(8)}),
        bad={
            **wrong("label_smoothing", functools.partial(given, lam=0.5, centres=(1, 1)), negative=-0.1),
            "images: integers": lambda: rj.inputs.apply_batch_mix(X.astype(int), Y, lam=0.5, use_cutmix=True, centres=(1, 1)),
            "labels: of other examples": lambda: rj.inputs.apply_batch_mix(
                X, jnp.eye(3), lam=0.5, use_cutmix=True, centres=(1, 1)
            ),
            "num_classes: missing": lambda: rj.inputs.apply_batch_mix(X, jnp.arange(4), lam=0.5, use_cutmix=True, centres=(1, 1)),
            "lam: above 1": lambda: given(lam=1.5, centres=(1, 1)),
            "lam: one for each pair in mode batch": lambda: given(lam=jnp.ones(2), centres=(1, 1)),
            "lam: one for each example in mode pair": lambda: given(lam=jnp.ones(4), centres=(1, 1), mode="pair"),
            "use_cutmix: a number": lambda: apply(lam=0.5, use_cutmix=1.0, centres=(1, 1)),
            "use_cutmix: of other draws": lambda: apply(lam=0.5, use_cutmix=jnp.ones(4, bool), centres=(1, 1), mode="pair"),
            "centres: missing": lambda: given(lam=0.5),
            "centres: beside a box": lambda: given(lam=0.5, centres=(1, 1), box=(0, 1, 0, 1)),
            "centres: floats": lambda: given(lam=0.5, centres=(1.0, 1.0)),
            "centres: of other draws": lambda: given(lam=0.5, centres=jnp.ones((4, 2), int)),
            "box: three edges": lambda: given(lam=0.5, box=(0, 1, 0)),
            "box: floats": lambda: given(lam=0.5, box=(0.0, 1.0, 0.0, 1.0)),
            "box: of other draws": lambda: given(lam=0.5, box=(0, 1, 0, jnp.ones(4, int))),
            "mode: misspelt": lambda: given(lam=0.5, centres=(1, 1), mode="pairs"),
            "correct_lam: a number": lambda: given(lam=0.5, centres=(1, 1), correct_lam=1.0),
            "within_shard: zero": lambda: given(lam=0.5, centres=(1, 1), within_shard=0),
        },
    ),
    Example(
        name="inputs.manifold_mixup",
        call=lambda key, x, labels, kernel: rj.inputs.manifold_mixup(key, stages(kernel), x, labels),
        arrays={**ROWS, "kernel": normal(3, 4, seed=3)},
        rows=("x", "labels"),
        result="other",
        dtype="input",
        wrt=("x", "labels", "kernel"),
        random=True,
        identity=lambda key, x, labels, kernel: (
            rj.inputs.manifold_mixup(key, stages(kernel), x, labels, alpha=0.0),
            (stages(kernel)[2](stages(kernel)[1](jnp.tanh(x))), labels),
        ),
        singular=({"x": np.zeros((8, 3))}, {"x": 1e4 * np.sign(ROWS["x"])}),
        bad={
            **mixed_errors(rj.inputs.manifold_mixup, (stages(jnp.eye(3)),)),
            "stages: one function": lambda: rj.inputs.manifold_mixup(KEY, jnp.tanh, Y, Y),
            "stages: no functions": lambda: rj.inputs.manifold_mixup(KEY, [1, 2, 3], Y, Y),
            "stages: loses the batch": lambda: rj.inputs.manifold_mixup(KEY, [jnp.sum, jnp.tanh], Y, Y, layers=(1,)),
            "layers: not there": lambda: rj.inputs.manifold_mixup(KEY, [jnp.tanh], Y, Y),
            "layers: negative": lambda: rj.inputs.manifold_mixup(KEY, [jnp.tanh], Y, Y, layers=(-1,)),
            "layers: a name": lambda: rj.inputs.manifold_mixup(KEY, [jnp.tanh], Y, Y, layers=("input",)),
            "layers: none": lambda: rj.inputs.manifold_mixup(KEY, [jnp.tanh], Y, Y, layers=()),
            "layers: twice": lambda: rj.inputs.manifold_mixup(KEY, [jnp.tanh], Y, Y, layers=(0, 0)),
        },
    ),
    Example(
        name="inputs.manifold_mixup_model",
        call=model_mix,
        arrays={**ROWS, "kernel": normal(3, 3, seed=3)},
        rows=("x", "labels"),
        result="other",
        dtype=None,
        wrt=("x", "labels"),
        random=True,
        identity=lambda key, x, labels, kernel: (
            model_mix(key, x, labels, kernel, alpha=0.0),
            (Net(kernel)(x), labels),
        ),
        singular=({"x": np.zeros((8, 3))}, {"x": 1e4 * np.sign(ROWS["x"])}),
        bad={
            **mixed_errors(functools.partial(rj.inputs.manifold_mixup_model, layers=("",)), (MODEL,)),
            "model: a function": lambda: rj.inputs.manifold_mixup_model(KEY, jnp.tanh, Y, Y, layers=("",)),
            "call: a text": lambda: rj.inputs.manifold_mixup_model(KEY, MODEL, X[:, 0, :, 0], Y, layers=("",), call="train"),
            "layers: not there": lambda: rj.inputs.manifold_mixup_model(KEY, MODEL, X[:, 0, :, 0], Y, layers=("blocks.2",)),
            "layers: a list": lambda: rj.inputs.manifold_mixup_model(KEY, MODEL, X[:, 0, :, 0], Y, layers=("blocks",)),
            "layers: a number": lambda: rj.inputs.manifold_mixup_model(KEY, MODEL, X[:, 0, :, 0], Y, layers=(0, 1)),
            "layers: one text": lambda: rj.inputs.manifold_mixup_model(KEY, MODEL, X[:, 0, :, 0], Y, layers="blocks.0"),
            "layers: the input twice": lambda: rj.inputs.manifold_mixup_model(KEY, MODEL, X[:, 0, :, 0], Y, layers=("", "input")),
            "layers: gets no batch": lambda: rj.inputs.manifold_mixup_model(
                KEY, MODEL, X[:, 0, :, 0], Y, layers=("blocks.0",), call=lambda model, x: model(x[0])
            ),
        },
    ),
    Example(
        name="inputs.manifold_mixup_weights",
        call=lambda key: rj.inputs.manifold_mixup_weights(key, 6, layers=("", "stem")),
        arrays={},
        result="other",
        dtype=None,
        random=True,
        identity=lambda key: (
            rj.inputs.manifold_mixup_weights(key, 6, alpha=0.0)[:2],
            (jnp.ones(3), jnp.ones(())),
        ),
        bad={
            **wrong("alpha", functools.partial(rj.inputs.manifold_mixup_weights, KEY, 4), negative=-1.0),
            "key: a number": lambda: rj.inputs.manifold_mixup_weights(0, 4),
            "batch: zero": lambda: rj.inputs.manifold_mixup_weights(KEY, 0),
            "layers: twice": lambda: rj.inputs.manifold_mixup_weights(KEY, 4, layers=(1, 1)),
            "layers: a number": lambda: rj.inputs.manifold_mixup_weights(KEY, 4, layers=3),
            "within_shard: does not divide": lambda: rj.inputs.manifold_mixup_weights(KEY, 4, within_shard=3),
        },
    ),
    Example(
        name="inputs.selmix_gain",
        call=lambda key, multipliers, **head: rj.inputs.selmix_gain(
            **head, metric="min_recall", multipliers=multipliers, coverage_multipliers=multipliers * jnp.array([0.0, 2.0, 1.0])
        ),
        arrays={**HEAD, "multipliers": probabilities(3)},
        result="other",
        wrt=tuple(HEAD),
        singular=(
            {"confusion": np.eye(3) / 3},
            {"confusion": (1 - np.eye(3)) / 6},
            {"confusion": np.zeros((3, 3))},
            {"prototypes": np.zeros((3, 4))},
            {"bias": 1e4 * np.eye(3)[0]},
        ),
        bad={
            **head_errors(rj.inputs.selmix_gain),
            **wrong("mixing_weight", gain, large=1.5),
            "prototypes: of other classes": lambda: rj.inputs.selmix_gain(C3, jnp.ones((2, 4)), W3, B3),
            "kernel: transposed": lambda: rj.inputs.selmix_gain(C3, Z3, W3.T, B3),
            "bias: length": lambda: rj.inputs.selmix_gain(C3, Z3, W3, jnp.ones(2)),
            "metric: misspelt": lambda: gain(metric="min_recal"),
            "metric: no scalar": lambda: gain(metric=jnp.diagonal),
            "multipliers: missing": lambda: gain(metric="min_recall"),
            "multipliers: not asked for": lambda: gain(multipliers=jnp.ones(3)),
            "multipliers: length": lambda: gain(metric="min_recall", multipliers=jnp.ones(2)),
            "coverage_multipliers: length": lambda: gain(coverage_multipliers=jnp.ones(2)),
            "positive_term: misspelt": lambda: gain(positive_term="anchors"),
        },
    ),
    Example(
        name="inputs.selmix_distribution",
        call=lambda key, gain: rj.inputs.selmix_distribution(gain),
        arrays={"gain": np.abs(normal(3, 3)) * (1 - 2 * np.eye(3))},
        result="other",
        wrt=("gain",),
        singular=({"gain": np.zeros((3, 3))}, {"gain": -np.ones((3, 3))}, {"gain": 1e4 * np.sign(normal(3, 3))}),
        bad={
            **wrong("temperature", functools.partial(rj.inputs.selmix_distribution, Y), zero=0.0),
            "floor: zero": lambda: rj.inputs.selmix_distribution(Y, floor=0.0),
            "gain: a vector": lambda: rj.inputs.selmix_distribution(jnp.ones(3)),
            "gain: integers": lambda: rj.inputs.selmix_distribution(jnp.ones((3, 3), int)),
        },
    ),
    Example(
        name="inputs.selmix_recall_multipliers",
        call=lambda key, recall, previous: rj.inputs.selmix_recall_multipliers(recall, previous, beta=0.5, rate=3.0),
        arrays={"recall": np.array([0.9, 0.5, 0.1]), "previous": np.array([0.3, 0.2, 0.5])},
        result="other",
        wrt=("recall", "previous"),
        identity=lambda key, recall, previous: (
            rj.inputs.selmix_recall_multipliers(recall, jnp.eye(3)[0], rate=0.0),
            jnp.full(3, 1 / 3),
        ),
        singular=({"previous": np.eye(3)[0]}, {"recall": np.zeros(3)}),
        bad={
            **wrong("beta", recalls, negative=-1.0),
            **wrong("rate", recalls, negative=-1.0),
            "recall: integers": lambda: rj.inputs.selmix_recall_multipliers(jnp.arange(3), jnp.ones(3)),
            "previous: length": lambda: rj.inputs.selmix_recall_multipliers(jnp.ones(3), jnp.ones(2)),
        },
    ),
    Example(
        name="inputs.selmix_coverage_multipliers",
        call=lambda key, coverage: rj.inputs.selmix_coverage_multipliers(coverage, max_value=2.0),
        arrays={"coverage": np.array([0.6, 0.1, 0.3])},
        result="other",
        wrt=("coverage",),
        identity=lambda key, coverage: (rj.inputs.selmix_coverage_multipliers(coverage, max_value=0.0), jnp.zeros(3)),
        singular=({"coverage": np.zeros(3)}, {"coverage": np.array([1.0, 0, 0])}),
        bad={
            **wrong("alpha", coverages, negative=-1.0),
            **wrong("tau", coverages, zero=0.0),
            **wrong("max_value", coverages, negative=-1.0),
            "coverage: a matrix": lambda: rj.inputs.selmix_coverage_multipliers(jnp.ones((3, 3))),
        },
    ),
    Example(
        name="inputs.selmix_refresh",
        call=lambda key, past, **head: SELMIX.apply(rj.inputs.SelMixState(past), **head),
        arrays={**HEAD, "past": probabilities(3)},
        result="other",
        dtype=None,
        wrt=("prototypes", "kernel", "bias"),
        singular=({"confusion": (1 - np.eye(3)) / 6}, {"prototypes": np.zeros((3, 4))}),
        memory=lambda: (SELMIX.init(), lambda state, key, past, **head: SELMIX.apply(state, **head)),
        bad={
            **{k: v for k, v in wrong("temperature", make, zero=0.0).items() if "schedule" not in k},
            "temperature: a schedule without step": lambda: make(temperature=lambda step: 0.1).apply(
                SELMIX.init(), C3, Z3, W3, B3
            ),
            "num_classes: zero": lambda: rj.inputs.selmix_refresh(0),
            "metric: misspelt": lambda: make(metric="recall"),
            "coverage: a number": lambda: make(coverage=0.9),
            "mixing_weight: above 1": lambda: make(mixing_weight=1.5),
            "positive_term: misspelt": lambda: make(positive_term="anchors"),
            "beta: negative": lambda: make(beta=-1.0),
            "rate: NaN": lambda: make(rate=NAN),
            "alpha: negative": lambda: make(alpha=-1.0),
            "tau: zero": lambda: make(tau=0.0),
            "max_value: negative": lambda: make(max_value=-1.0),
            "floor: zero": lambda: make(floor=0.0),
            "state: another": lambda: SELMIX.apply(jnp.ones(3), C3, Z3, W3, B3),
            "confusion: of other classes": lambda: SELMIX.apply(SELMIX.init(), jnp.eye(2), Z3, W3, B3),
        },
    ),
    Example(
        name="inputs.class_balanced_confusion",
        call=lambda key, predictions, labels: rj.inputs.class_balanced_confusion(predictions, labels, num_classes=3),
        arrays={"predictions": ids(8, classes=3, seed=7), "labels": ids(8, classes=3)},
        rows=("predictions", "labels"),
        result="scalar",
        singular=({"labels": np.full(8, 1, np.int32)}, {"labels": np.full(8, -1, np.int32)}),
        bad={
            "predictions: probabilities": lambda: rj.inputs.class_balanced_confusion(Y, jnp.arange(4), num_classes=4),
            "labels: probabilities": lambda: rj.inputs.class_balanced_confusion(jnp.arange(4), Y, num_classes=4),
            "num_classes: zero": lambda: rj.inputs.class_balanced_confusion(jnp.arange(4), jnp.arange(4), num_classes=0),
            "where: weights": lambda: rj.inputs.class_balanced_confusion(
                jnp.arange(4), jnp.arange(4), num_classes=4, where=jnp.ones(4)
            ),
        },
    ),
    Example(
        name="inputs.class_prototypes",
        call=lambda key, features, labels: rj.inputs.class_prototypes(features, labels, num_classes=3),
        arrays=SETS,
        rows=("features", "labels"),
        result="scalar",
        wrt=("features",),
        singular=({"labels": np.full(8, 1, np.int32)}, {"features": np.zeros((8, 4))}),
        bad={
            "features: a vector": lambda: rj.inputs.class_prototypes(jnp.ones(4), jnp.arange(4), num_classes=4),
            "labels: probabilities": lambda: rj.inputs.class_prototypes(Y, Y, num_classes=4),
            "num_classes: zero": lambda: rj.inputs.class_prototypes(Y, jnp.arange(4), num_classes=0),
            "where: length": lambda: rj.inputs.class_prototypes(Y, jnp.arange(4), num_classes=4, where=jnp.ones(3, bool)),
        },
    ),
    Example(
        name="inputs.class_index",
        call=lambda key, labels: INDEX(labels),
        arrays={"labels": ids(8, classes=3)},
        rows=("labels",),
        result="other",
        dtype=None,
        singular=({"labels": np.full(8, -1, np.int32)},),
        bad={
            "labels: probabilities": lambda: INDEX(Y),
            "labels: none": lambda: INDEX(jnp.ones(0, int)),
            "num_classes: zero": lambda: rj.inputs.class_index(jnp.arange(4), num_classes=0),
            "where: weights": lambda: INDEX(jnp.arange(4), where=jnp.ones(4)),
        },
    ),
    Example(
        name="inputs.sample_class_examples",
        call=lambda key, labels, classes: rj.inputs.sample_class_examples(key, INDEX(labels), classes),
        arrays={"labels": np.array([1, 0, 0, 1, 1, 0, 0, 1], np.int32), "classes": ids(8, classes=3)},
        rows=("labels", "classes"),
        result="other",
        dtype=None,
        random=True,
        singular=({"labels": np.full(8, -1, np.int32)},),
        bad={
            "key: a number": lambda: rj.inputs.sample_class_examples(0, INDEX(jnp.arange(4)), jnp.arange(3)),
            "index: labels": lambda: rj.inputs.sample_class_examples(KEY, jnp.arange(4), jnp.arange(3)),
            "classes: floats": lambda: rj.inputs.sample_class_examples(KEY, INDEX(jnp.arange(4)), jnp.ones(3)),
        },
    ),
    Example(
        name="inputs.sample_class_pairs",
        call=lambda key, pairs: rj.inputs.sample_class_pairs(key, pairs, 16),
        arrays={"pairs": probabilities(3, 3)},
        result="other",
        dtype=None,
        random=True,
        singular=({"pairs": np.eye(3)},),
        bad={
            "key: a number": lambda: rj.inputs.sample_class_pairs(0, Y, 3),
            "pairs: not square": lambda: rj.inputs.sample_class_pairs(KEY, jnp.ones((3, 2)), 3),
            "pairs: counts": lambda: rj.inputs.sample_class_pairs(KEY, jnp.ones((3, 3), int), 3),
            "num: zero": lambda: rj.inputs.sample_class_pairs(KEY, Y, 0),
        },
    ),
    Example(
        name="inputs.selmix_mix",
        call=lambda key, h1, h2: rj.inputs.selmix_mix(key, h1, h2),
        arrays={"h1": normal(8, 3), "h2": normal(8, 3, seed=1)},
        rows=("h1", "h2"),
        result="other",
        dtype="input",
        wrt=("h1", "h2"),
        random=True,
        identity=lambda key, h1, h2: (rj.inputs.selmix_mix(key, h1, h2, min_weight=1.0), h1),
        singular=({"h1": np.zeros((8, 3))},),
        bad={
            **wrong("min_weight", functools.partial(rj.inputs.selmix_mix, KEY, Y, Y), large=1.5),
            "key: a number": lambda: rj.inputs.selmix_mix(0, Y, Y),
            "h1: integers": lambda: rj.inputs.selmix_mix(KEY, Y.astype(int), Y),
            "h2: shape": lambda: rj.inputs.selmix_mix(KEY, Y, Y[:1]),
        },
    ),
    Example(
        name="inputs.apply_selmix",
        call=lambda key, h1, h2, lam: rj.inputs.apply_selmix(h1, h2, lam=lam),
        arrays={"h1": normal(8, 3), "h2": normal(8, 3, seed=1), "lam": LAM},
        rows=("h1", "h2", "lam"),
        result="rows",
        dtype="input",
        wrt=("h1", "h2", "lam"),
        identity=lambda key, h1, h2, lam: (rj.inputs.apply_selmix(h1, h2, lam=jnp.ones(8)), h1),
        singular=({"h1": np.zeros((8, 3))},),
        bad={
            "h1: integers": lambda: rj.inputs.apply_selmix(Y.astype(int), Y, lam=jnp.ones(4)),
            "h2: shape": lambda: rj.inputs.apply_selmix(Y, Y[:, :1], lam=jnp.ones(4)),
            "lam: a number": lambda: rj.inputs.apply_selmix(Y, Y, lam=0.5),
        },
    ),
)
