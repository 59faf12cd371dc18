"""Examples of the supermasks, of the transformation that trains inside a mask, and of k-nearest-neighbour transfer."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import regjax as rj
from tests.contracts.example import Example, ids, normal
from tests.contracts.table.gradients_rules import rule
from tests.contracts.table.weights import refused

w = rj.weights
KEY, NAN = jax.random.key(0), float("nan")
ONES, INTEGERS = jnp.ones((2, 3)), jnp.ones((2, 3), int)
SCORES = {"scores": normal(8, 3)}
SHAPES = {"dense": {"kernel": (8, 3), "bias": (3,)}, "out": {"kernel": (3, 2)}}
is_shape = lambda node: isinstance(node, tuple)


def tree(seed: int):
    leaves, structure = jax.tree.flatten(SHAPES, is_leaf=is_shape)
    return jax.tree.unflatten(structure, [normal(*shape, seed=seed + i) for i, shape in enumerate(leaves)])


PARAMS, OTHERS = tree(0), tree(10)
MASK, EARLIER = (jax.tree.map(lambda x: x > 0, t) for t in (OTHERS, tree(20)))
SMALL = {"kernel": ONES}


def extremes(name: str, values) -> tuple:
    """The values all alike, and far apart."""
    return tuple({name: jax.tree.map(fn, values)} for fn in (np.zeros_like, np.ones_like, lambda x: 1e4 * np.sign(x)))


def shapes_refused(fn) -> dict:
    return {
        "shape: a vector's": lambda: fn(KEY, (3,)),
        "shape: a list": lambda: fn(KEY, [3, 2]),
        "shape: a zero": lambda: fn(KEY, (0, 2)),
        "key: a number": lambda: fn(0, (3, 2)),
    }


def product_of_sums(params, x):
    """A network of one number for each layer: its saliency is a product over the others."""
    for leaf in jax.tree.leaves(params):
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            x = x * jnp.sum(leaf)
    return x


def initialiser(name: str) -> Example:
    fn = getattr(w, name)
    return Example(
        name=f"weights.{name}",
        call=lambda key: fn(key, (3, 2, 4)),
        arrays={},
        result="other",
        random=True,
        bad=shapes_refused(fn),
    )


def soft(scores=ONES, **given):
    return w.soft_subnetwork_mask(scores, **{"sparsity": 0.5, **given})


def apply_soft(scores=ONES, uniforms=None, **given):
    return w.apply_soft_subnetwork_mask(scores, uniforms, **{"sparsity": 0.5, **given})


def half(params):
    return jax.tree.map(lambda p: (jnp.arange(jnp.size(p)) % 2 == 0).reshape(jnp.shape(p)), params)


def train_only(inner=None, mask=half):
    return rj.gradients.train_only(inner or optax.sgd(0.1, momentum=0.9), mask)


def started(mask, params=SMALL):
    return train_only(mask=mask).init(params)


FOUR = {"features": jnp.ones((4, 2)), "labels": jnp.zeros(4, int)}
THREE = {"test_features": jnp.ones((3, 2)), "test_labels": jnp.zeros(3, int)}


def transfer(**given):
    return rj.diagnostics.knn_transfer(**{**FOUR, **THREE, "k": 2, **given})


EXAMPLES = (
    Example(
        name="weights.topk_supermask",
        call=lambda key, scores: w.topk_supermask(scores, density=0.3),
        arrays=SCORES,
        rows=("scores",),
        result="other",
        dtype="input",
        wrt=("scores",),
        surrogate=True,
        identity=lambda key, scores: (w.topk_supermask(scores, density=1.0), jnp.ones_like(scores)),
        singular=extremes("scores", SCORES["scores"]),
        bad={
            **refused(lambda density: w.topk_supermask(ONES, density=density), "density"),
            "density: above 1": lambda: w.topk_supermask(ONES, density=1.5),
            "scores: integers": lambda: w.topk_supermask(INTEGERS),
        },
    ),
    initialiser("supermask_init"),
    initialiser("signed_constant_init"),
    Example(
        name="weights.exclusive_mask",
        call=lambda key, mask, earlier: w.exclusive_mask(mask, [earlier]),
        arrays={"mask": MASK, "earlier": EARLIER},
        result="other",
        dtype=None,
        tree="mask",
        bad={
            "previous_masks: another structure": lambda: w.exclusive_mask(SMALL, [{"other": ONES}]),
            "previous_masks: shape": lambda: w.exclusive_mask(SMALL, [{"kernel": jnp.ones((3, 2))}]),
            "previous_masks: an array": lambda: w.exclusive_mask(SMALL, ONES),
        },
    ),
    Example(
        name="weights.synaptic_saliency",
        call=lambda key, params: w.synaptic_saliency(product_of_sums, params, (1, 1)),
        arrays={"params": PARAMS},
        result="other",
        tree="params",
        wrt=("params",),
        singular=extremes("params", PARAMS)[:2],
        bad={
            "apply_fn: no function": lambda: w.synaptic_saliency(3, SMALL, (1, 2)),
            "apply_fn: integers": lambda: w.synaptic_saliency(lambda p, x: INTEGERS, SMALL, (1, 2)),
            "apply_fn: a tuple": lambda: w.synaptic_saliency(lambda p, x: (x, x), SMALL, (1, 2)),
            "input_shape: a number": lambda: w.synaptic_saliency(product_of_sums, SMALL, 2),
            "input_shape: zero": lambda: w.synaptic_saliency(product_of_sums, SMALL, (0, 2)),
        },
    ),
    Example(
        name="weights.saliency_mask",
        call=lambda key, saliency: w.saliency_mask(saliency, density=0.4),
        arrays={"saliency": PARAMS},
        result="other",
        dtype=None,
        tree="saliency",
        identity=lambda key, saliency: (
            w.saliency_mask(saliency, density=1.0, where="all"),
            jax.tree.map(lambda x: jnp.ones_like(x, bool), saliency),
        ),
        bad={
            **refused(lambda density: w.saliency_mask(SMALL, density=density), "density"),
            "density: above 1": lambda: w.saliency_mask(SMALL, density=1.5),
            "where: an unknown word": lambda: w.saliency_mask(SMALL, density=0.5, where="biases"),
            "where: an integer leaf": lambda: w.saliency_mask({"kernel": INTEGERS}, density=0.5, where=True),
        },
    ),
    Example(
        name="weights.sign_supermask",
        call=lambda key, scores, weights, mask: w.sign_supermask(scores, weights, mask),
        arrays={"scores": OTHERS, "weights": PARAMS, "mask": MASK},
        result="other",
        dtype="input",
        tree="weights",
        wrt=("scores", "weights"),
        surrogate=True,
        singular=extremes("scores", OTHERS),
        bad={
            "scores: another structure": lambda: w.sign_supermask({"other": ONES}, SMALL),
            "scores: shape": lambda: w.sign_supermask({"kernel": jnp.ones(3)}, SMALL),
            "scores: integers": lambda: w.sign_supermask({"kernel": INTEGERS}, SMALL),
            "weights: integers": lambda: w.sign_supermask(SMALL, {"kernel": INTEGERS}, where=True),
            "mask: another structure": lambda: w.sign_supermask(SMALL, SMALL, [True]),
            "mask: shape": lambda: w.sign_supermask(SMALL, SMALL, {"kernel": jnp.ones(3)}),
            "where: an unknown word": lambda: w.sign_supermask(SMALL, SMALL, where="biases"),
        },
    ),
    Example(
        name="weights.aggregate_signs",
        call=lambda key, first, second, counts: w.aggregate_signs([first, second], counts),
        arrays={"first": PARAMS, "second": OTHERS, "counts": np.array([3.0, 5.0])},
        result="other",
        dtype="input",
        tree="first",
        singular=({"counts": np.zeros(2)}, *extremes("first", PARAMS)),
        bad={
            "sign_list: empty": lambda: w.aggregate_signs([], []),
            "sign_list: an array": lambda: w.aggregate_signs(ONES, [1.0, 1.0]),
            "sign_list: another structure": lambda: w.aggregate_signs([SMALL, [ONES]], [1, 1]),
            "counts: three": lambda: w.aggregate_signs([SMALL, SMALL], [1, 1, 1]),
            "counts: negative": lambda: w.aggregate_signs([SMALL, SMALL], [1, -1]),
            "counts: NaN": lambda: w.aggregate_signs([SMALL, SMALL], [1, NAN]),
        },
    ),
    Example(
        name="weights.apply_soft_subnetwork_mask",
        call=lambda key, scores, uniforms: w.apply_soft_subnetwork_mask(scores, uniforms, sparsity=0.4),
        arrays={**SCORES, "uniforms": np.abs(np.sin(normal(8, 3, seed=1)))},
        rows=("scores", "uniforms"),
        result="other",
        dtype="input",
        wrt=("scores",),
        frozen=("uniforms",),
        surrogate=True,
        identity=lambda key, scores, uniforms: (
            w.apply_soft_subnetwork_mask(scores, uniforms, sparsity=0.0),
            jnp.ones_like(scores),
        ),
        singular=({"uniforms": np.zeros((8, 3))}, {"uniforms": np.ones((8, 3))}, *extremes("scores", SCORES["scores"])),
        bad={
            **refused(lambda sparsity: apply_soft(sparsity=sparsity), "sparsity"),
            "sparsity: above 1": lambda: apply_soft(sparsity=1.5),
            "scores: integers": lambda: apply_soft(INTEGERS),
            "uniforms: integers": lambda: apply_soft(uniforms=INTEGERS),
            "uniforms: shape": lambda: apply_soft(uniforms=jnp.ones(3)),
        },
    ),
    Example(
        name="weights.soft_subnetwork_mask",
        call=lambda key, scores: w.soft_subnetwork_mask(scores, sparsity=0.4, key=key),
        arrays=SCORES,
        rows=("scores",),
        result="other",
        dtype="input",
        wrt=("scores",),
        surrogate=True,
        random=True,
        identity=lambda key, scores: (soft(scores, sparsity=0.0, key=key), soft(scores, sparsity=0.0)),
        singular=extremes("scores", SCORES["scores"]),
        bad={
            **refused(lambda sparsity: soft(sparsity=sparsity), "sparsity"),
            "sparsity: above 1": lambda: soft(sparsity=1.5),
            "scores: integers": lambda: soft(INTEGERS),
            "key: a number": lambda: soft(key=0),
        },
    ),
    rule(
        "train_only",
        lambda: train_only(optax.identity()),
        transform=train_only,
        wrt=("grads",),
        flops=1.2,
        bad={
            "inner: no transformation": lambda: train_only(inner=3),
            "mask: another structure": lambda: started({"other": ONES > 0}),
            "mask: shape": lambda: started({"kernel": jnp.ones((3, 2), bool)}),
            "mask: numbers": lambda: started({"kernel": ONES}),
        },
    ),
    Example(
        name="diagnostics.knn_transfer",
        call=lambda key, features, labels, test_features, test_labels: rj.diagnostics.knn_transfer(
            features, labels, test_features, test_labels, k=3
        ),
        arrays={
            "features": normal(8, 2),
            "labels": ids(8, classes=2),
            "test_features": normal(8, 2, seed=3),
            "test_labels": ids(8, classes=2, seed=4),
        },
        rows=("features", "labels", "test_features", "test_labels"),
        result="scalar",
        singular=({"features": np.zeros((8, 2))}, {"features": 1e4 * normal(8, 2)}),
        bad={
            "features: integers": lambda: transfer(features=jnp.ones((4, 2), int)),
            "features: none": lambda: transfer(features=jnp.ones((0, 2)), labels=jnp.zeros(0, int)),
            "labels: floats": lambda: transfer(labels=jnp.zeros(4)),
            "labels: shape": lambda: transfer(labels=jnp.zeros(3, int)),
            "test_features: shape": lambda: transfer(test_features=jnp.ones((3, 3))),
            "test_labels: shape": lambda: transfer(test_labels=jnp.zeros(4, int)),
            "k: zero": lambda: transfer(k=0),
            "k: above N": lambda: transfer(k=5),
            "k: a fraction": lambda: transfer(k=1.5),
        },
    ),
)
