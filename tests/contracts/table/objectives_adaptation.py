"""Examples of objectives that adapt at test time, and of the cross-gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import regjax as rj
from tests.contracts.example import Example, normal, probabilities
from tests.contracts.table.losses import logit_errors, refusals
from tests.contracts.table.objectives import ARRAYS, PARAMS, SINGULAR, loss

objectives = rj.objectives
X = jnp.ones((4, 3))
HALF = jnp.ones(2) / 2
# Examples 2 and 5 are sure, the others not.
LOGITS = normal(8, 4) + np.where(np.isin(np.arange(8), (2, 5)), 6.0, 0.0)[:, None] * np.eye(4)[0]
EXTREME = ({"logits": np.zeros((8, 4))}, {"logits": 1e4 * np.sign(LOGITS)}, {"mask": np.zeros(8, bool)})
MASK = np.arange(8) != 3
IMPORTANCE = jax.tree.map(np.square, PARAMS)
MEMORY = objectives.eata(4, diversity_margin=2.0)
WHOLE = objectives.FisherAnchor(X, X)


def adapted(logits, mean_probs, mask, params, importance, anchor, weight=1.0, **options):
    """EATA's loss of some examples, with an anchor for the parameters."""
    fisher = objectives.FisherAnchor(importance, anchor)
    return objectives.eata_loss(
        logits, mean_probs, diversity_margin=0.95, params=params, fisher=fisher, fisher_weight=weight, mask=mask, **options
    )


def without(logits, mean_probs, mask):
    return objectives.eata_loss(logits, mean_probs, diversity_margin=0.95, mask=mask)


def streamed(logits=X, **options):
    return objectives.eata(3).apply(objectives.eata(3).init(), logits, **options)


def components(params, x):
    """Three log-components of each example, smooth in everything."""
    wide = x.astype(jnp.promote_types(jnp.float32, x.dtype))
    leaves = [leaf for leaf in jax.tree.leaves(params) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    total = sum((jnp.sum(jnp.sin(leaf.astype(wide.dtype))) for leaf in leaves), jnp.zeros((), wide.dtype))
    return jnp.tanh(wide) * (1 + total)


def crossed(params, x, weights):
    return objectives.cross_gradient(components, weights=weights)(params, x)


EXAMPLES = (
    Example(
        name="objectives.tent_loss",
        call=lambda key, logits, mask: objectives.tent_loss(logits, mask=mask),
        mapped=lambda axis, key, logits, mask: objectives.tent_loss(logits, mask=mask, axis_name=axis),
        arrays={"logits": LOGITS, "mask": MASK},
        rows=("logits", "mask"),
        result="scalar",
        wrt=("logits",),
        singular=EXTREME,
        bad=logit_errors(objectives.tent_loss)
        | {
            "mask: weights": lambda: objectives.tent_loss(X, mask=jnp.ones(4)),
            "mask: shape": lambda: objectives.tent_loss(X, mask=jnp.ones(3, bool)),
            "axis_name: a number": lambda: objectives.tent_loss(X, axis_name=0),
        },
    ),
    Example(
        name="objectives.eata_loss",
        call=lambda key, **arrays: (lambda out: (out[0], out[1].num_selected, out[1].mean_probs))(adapted(**arrays)),
        mapped=lambda axis, key, **arrays: (lambda out: (out[0], out[1].num_selected, out[1].mean_probs))(
            adapted(**arrays, axis_name=axis)
        ),
        arrays={
            "logits": LOGITS,
            "mean_probs": probabilities(4),
            "mask": MASK,
            "params": PARAMS,
            "importance": IMPORTANCE,
            "anchor": jax.tree.map(np.cos, PARAMS),
        },
        rows=("logits", "mask"),
        result="scalar",
        wrt=("logits", "params"),
        frozen=("mean_probs", "importance", "anchor"),
        # The exponential of the surrogate is a constant for the gradient.
        surrogate=True,
        tree="params",
        singular=(*EXTREME, {"mean_probs": np.zeros(4)}, {"params": SINGULAR[0]["params"]}),
        identity=lambda key, params, importance, anchor, **arrays: (
            adapted(params=params, importance=importance, anchor=anchor, weight=0.0, **arrays),
            without(**arrays),
        ),
        bad=logit_errors(objectives.eata_loss)
        | refusals(functools.partial(objectives.eata_loss, X), "fisher_weight", negative=-1.0)
        | refusals(functools.partial(objectives.eata_loss, X), "momentum", negative=-0.1, more=1.1)
        | refusals(functools.partial(objectives.eata_loss, X), "entropy_margin", zero=0.0)
        | refusals(functools.partial(objectives.eata_loss, X), "diversity_margin", negative=-0.1)
        | {
            "mean_probs: of other classes": lambda: objectives.eata_loss(X, jnp.ones(4)),
            "mean_probs: integers": lambda: objectives.eata_loss(X, jnp.ones(3, int)),
            "mask: weights": lambda: objectives.eata_loss(X, mask=jnp.ones(4)),
            "axis_name: a number": lambda: objectives.eata_loss(X, axis_name=0),
            "fisher: a tree": lambda: objectives.eata_loss(X, params=X, fisher=(X, X)),
            "fisher: without parameters": lambda: objectives.eata_loss(X, fisher=WHOLE),
            "fisher: of another structure": lambda: objectives.eata_loss(X, params={"w": X}, fisher=WHOLE),
            "fisher: of another shape": lambda: objectives.eata_loss(X, params=jnp.ones(3), fisher=WHOLE),
        },
    ),
    Example(
        name="objectives.eata",
        call=lambda key, logits, mask: (lambda out: (out[0][0], out[1].mean_probs))(
            MEMORY.apply(MEMORY.init(), logits, mask=mask)
        ),
        mapped=lambda axis, key, logits, mask: (lambda out: (out[0][0], out[1].mean_probs))(
            MEMORY.apply(MEMORY.init(), logits, mask=mask, axis_name=axis)
        ),
        arrays={"logits": LOGITS, "mask": MASK},
        rows=("logits", "mask"),
        result="scalar",
        wrt=("logits",),
        surrogate=True,
        singular=EXTREME,
        memory=lambda: (MEMORY.init(), lambda state, key, logits, mask: MEMORY.apply(state, logits, mask=mask)),
        bad=refusals(functools.partial(objectives.eata, 3), "fisher_weight", negative=-1.0)
        | refusals(functools.partial(objectives.eata, 3), "momentum", more=1.1)
        | refusals(functools.partial(objectives.eata, 3), "entropy_margin", zero=0.0)
        | refusals(functools.partial(objectives.eata, 3), "diversity_margin", negative=-0.1)
        | {
            "num_classes: none": lambda: objectives.eata(0),
            "num_classes: a float": lambda: objectives.eata(3.0),
            "fisher: a tree": lambda: objectives.eata(3).init({"w": X}),
            "state: a dictionary": lambda: objectives.eata(3).apply({"mean_probs": X}, X),
            "state.mean_probs: of other classes": lambda: objectives.eata(3).apply(objectives.eata(4).init(), X),
            "logits: of other classes": lambda: streamed(jnp.ones((4, 2))),
            "logits: integers": lambda: streamed(jnp.ones((4, 3), int)),
            "fisher_weight: a schedule without a step": lambda: objectives.eata(3, fisher_weight=lambda step: 1.0).apply(
                objectives.eata(3).init(), X
            ),
        },
    ),
    Example(
        name="objectives.fisher_importance",
        # Two batches: the one, and it once more at half the size.
        call=lambda key, params, x: objectives.fisher_importance(loss, params, jnp.stack([x, x / 2])),
        mapped=lambda axis, key, params, x: objectives.fisher_importance(loss, params, jnp.stack([x, x / 2]), axis_name=axis),
        arrays=ARRAYS,
        rows=("x",),
        result="scalar",
        # The gradients of low-precision parameters come in their dtype.
        dtype=None,
        frozen=("params", "x"),
        tree="params",
        singular=SINGULAR,
        bad={
            "loss_fn: no function": lambda: objectives.fisher_importance(3.0, X, X),
            "loss_fn: returns no scalar": lambda: objectives.fisher_importance(lambda w, x: w, X, X),
            "loss_fn: returns no aux": lambda: objectives.fisher_importance(lambda w, x: w.sum(), X, X, has_aux=True),
            "has_aux: no boolean": lambda: objectives.fisher_importance(loss, X, X, has_aux=1),
            "batches: none": lambda: objectives.fisher_importance(loss, X),
            "batches: different numbers": lambda: objectives.fisher_importance(loss, X, X, jnp.ones(3)),
            "where: an unknown word": lambda: objectives.fisher_importance(loss, X, X, where="biases"),
            "axis_name: a number": lambda: objectives.fisher_importance(loss, X, X, axis_name=0),
        },
    ),
    Example(
        name="objectives.norm_affine_mask",
        call=lambda key, params: jax.tree.map(jnp.asarray, objectives.norm_affine_mask(params)),
        arrays={"params": {"norm": {"scale": normal(8), "bias": normal(8)}, "dense": {"kernel": normal(8, 2)}}},
        tree="params",
        result="other",
    ),
    Example(
        name="objectives.cross_gradient",
        call=lambda key, params, x, weights: crossed(params, x, weights),
        arrays={**ARRAYS, "weights": probabilities(8, 3)},
        rows=("x", "weights"),
        result="scalar",
        wrt=("params", "x"),
        frozen=("weights",),
        surrogate=True,
        tree="params",
        singular=({"weights": np.eye(3)[np.zeros(8, int)]}, {"x": np.zeros((8, 3))}),
        bad={
            "log_components_fn: no function": lambda: objectives.cross_gradient(3.0, weights=HALF),
            "log_components_fn: returns a scalar": lambda: objectives.cross_gradient(jnp.sum, weights=HALF)(X),
            "log_components_fn: returns integers": lambda: objectives.cross_gradient(
                lambda w: jnp.ones(2, int), weights=jnp.ones(2) / 2
            )(X),
            "log_components_fn: returns no aux": lambda: objectives.cross_gradient(
                lambda w: w, weights=jnp.ones(3) / 3, has_aux=True
            )(X),
            "has_aux: no boolean": lambda: objectives.cross_gradient(components, weights=jnp.ones(3), has_aux=1),
            "weights: neither": lambda: objectives.cross_gradient(components),
            "weights: both": lambda: objectives.cross_gradient(components, weights=jnp.ones(3), reference=X),
            "weights: negative": lambda: objectives.cross_gradient(components, weights=[1.5, -0.5]),
            "weights: a sum of 2": lambda: objectives.cross_gradient(components, weights=np.ones(2)),
            "weights: NaN": lambda: objectives.cross_gradient(components, weights=[float("nan"), 1.0]),
            "weights: integers": lambda: objectives.cross_gradient(components, weights=[1, 0]),
            "weights: of another length": lambda: crossed(PARAMS, X, jnp.ones(2) / 2),
            "weights: of other examples": lambda: crossed(PARAMS, X, jnp.ones((5, 3)) / 3),
            "reference: of another structure": lambda: objectives.cross_gradient(components, reference={"w": X})(X, X),
        },
    ),
    Example(
        name="objectives.cross_gradient",
        call=lambda key, params, reference, x: objectives.cross_gradient(components, reference=reference)(params, x),
        arrays={**ARRAYS, "reference": jax.tree.map(np.cos, PARAMS)},
        rows=("x",),
        result="scalar",
        wrt=("params", "x"),
        frozen=("reference",),
        surrogate=True,
        tree="params",
    ),
)
