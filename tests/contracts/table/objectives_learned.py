"""Examples of `regjax.objectives`: hyperparameters learned in training, variational bounds, and sparse predictors of tasks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import regjax as rj
from tests.contracts.example import Example, ids, normal

obj = rj.objectives
KEY, NAN, INF = jax.random.key(0), float("nan"), float("inf")
RANGES = [(0.0, 0.9), (0.0, INF), (-INF, 1.0), (-INF, INF)]
ONES = jnp.ones(2)


def response_loss(params, hyper, key, batch):
    """A loss that answers to the hyperparameters of each example, and draws a little noise."""
    params, hyper, batch = jax.tree.map(lambda x: x.astype(jnp.promote_types(x.dtype, jnp.float32)), (params, hyper, batch))
    w = params["kernel"] + hyper @ params["response"]
    noise = 0.1 * jax.random.normal(key, (batch.shape[1],))
    out = jnp.sum((batch + noise) * w, -1)
    return jnp.mean((out - 1) ** 2 + 0.1 * jnp.exp(obj.constrain_hyper(hyper, ranges=[(0.0, 1.0)] * 2)[:, 0]))


TUNING = {
    "params": {"kernel": normal(3, seed=1), "response": 0.3 * normal(2, 3, seed=2)},
    "hyper": normal(2, seed=3),
    "raw_scale": 0.5 * normal(2, seed=4),
    "batch": normal(8, 3),
}
TRAIN, VALID = obj.self_tuning(response_loss, response_loss, entropy_weight=0.1)
TUNED = obj.TunedHyper(ONES, ONES)
PLAIN = jax.tree.map(jnp.asarray, TUNING["params"])
SINGULAR_SCALES = ({"raw_scale": np.full(2, -1e4)}, {"raw_scale": np.full(2, 1e2)}, {"hyper": np.zeros(2)})


def tune(loss=response_loss, **options):
    return obj.self_tuning(loss, loss, **options)


PARAMS = {"kernel": normal(8, 2), "bias": normal(2, seed=3)}
SIGMAS = {"kernel": 0.1 + np.abs(normal(8, 2, seed=5)), "bias": 0.1 + np.abs(normal(2, seed=6))}
POSTERIOR = {"params": PARAMS, "prior_mean": jax.tree.map(lambda x: np.cos(3 * x), PARAMS), "sigma": SIGMAS}
AT_PRIOR = {"params": PARAMS, "prior_mean": PARAMS}
kl, strength, elbo = obj.gaussian_kl_profiled, obj.implied_l2_strength, obj.data_emphasized_elbo


def sigma_errors(call, argument: str = "sigma", positive: bool = True) -> dict:
    """The wrong standard deviations; ``call(sigma)`` is given each."""
    low = {f"{argument}: zero": lambda: call(0.0)} if positive else {}
    return {
        **low,
        f"{argument}: NaN": lambda: call(NAN),
        f"{argument}: a string": lambda: call("small"),
        f"{argument}: shape": lambda: call(jnp.ones(3)),
        f"{argument}: another structure": lambda: call([ONES]),
    }


def size_errors(call) -> dict:
    """The wrong numbers of a bound; ``call(**options)`` is given each."""
    return {
        "num_examples: zero": lambda: call(num_examples=0, kappa=1.0),
        "num_examples: a string": lambda: call(num_examples="all", kappa=1.0),
        "kappa: zero": lambda: call(num_examples=10, kappa=0.0),
        "kappa: NaN": lambda: call(num_examples=10, kappa=NAN),
        "kappa: a vector": lambda: call(num_examples=10, kappa=ONES),
    }


lasso = functools.partial(obj.lasso_predictor, relative_strength=0.3)
logistic = functools.partial(obj.group_lasso_predictor, num_classes=3, relative_strength=0.3)
svm = functools.partial(obj.group_svm_predictor, num_classes=3, relative_strength=0.3, ridge=2.0)
Z, Y, LABELS = jnp.ones((4, 3)), jnp.ones(4), jnp.zeros(4, int)
CLASSIFIED = {"features": normal(8, 4), "labels": ids(8, classes=3)}
FEATURES = ({"features": np.zeros((8, 4))}, {"features": np.ones((8, 4))}, {"features": 1e4 * np.sign(normal(8, 4))})


def predictor_errors(call, target: str) -> dict:
    """The wrong arguments of a predictor; ``call(features, targets, **options)`` is given each."""
    good = Y if target == "targets" else LABELS
    return {
        "features: rank": lambda: call(Y, good),
        "features: integers": lambda: call(jnp.ones((4, 3), int), good),
        "features: none": lambda: call(jnp.ones((0, 3)), good[:0]),
        f"{target}: length": lambda: call(Z, good[:3]),
        f"{target}: rank": lambda: call(Z, good[:, None]),
        f"{target}: of the wrong kind": lambda: call(Z, LABELS if target == "targets" else Y),
        "relative_strength: negative": lambda: call(Z, good, relative_strength=-0.1),
        "relative_strength: NaN": lambda: call(Z, good, relative_strength=NAN),
        "relative_strength: a vector": lambda: call(Z, good, relative_strength=ONES),
        "num_steps: zero": lambda: call(Z, good, num_steps=0),
    }


TASKS = {"kernel": normal(5, 2, seed=1), "inputs": normal(8, 6, 5), "targets": normal(8, 6, seed=2)}


def encode(params, x):
    wide = jnp.promote_types(x.dtype, jnp.float32)
    return x.astype(wide) @ params.astype(wide)


def bilevel(encoder=encode, predictor=lasso, **options):
    return obj.sparse_bilevel(encoder, predictor, **options)


GOOD_TASKS = jnp.ones((2, 4, 3)), jnp.ones((2, 4))

EXAMPLES = (
    Example(
        name="objectives.constrain_hyper",
        call=lambda key, hyper: obj.constrain_hyper(hyper, ranges=RANGES, discrete=[False, True, False, False]),
        arrays={"hyper": 2 * normal(8, 4)},
        rows=("hyper",),
        result="rows",
        dtype="input",
        frozen=("hyper",),
        singular=({"hyper": np.full((8, 4), 1e4)}, {"hyper": np.full((8, 4), -1e4)}),
        bad={
            "hyper: integers": lambda: obj.constrain_hyper(jnp.ones(4, int), ranges=RANGES),
            "hyper: a scalar": lambda: obj.constrain_hyper(1.0, ranges=RANGES),
            "ranges: too few": lambda: obj.constrain_hyper(ONES, ranges=RANGES[:1]),
            "ranges: one pair": lambda: obj.constrain_hyper(ONES, ranges=(0.0, 1.0)),
            "ranges: empty": lambda: obj.constrain_hyper(ONES, ranges=[(0.0, 1.0), (1.0, 1.0)]),
            "ranges: NaN": lambda: obj.constrain_hyper(ONES, ranges=[(0.0, 1.0), (NAN, 1.0)]),
            "discrete: too few": lambda: obj.constrain_hyper(ONES, ranges=RANGES[:2], discrete=[True]),
            "discrete: numbers": lambda: obj.constrain_hyper(ONES, ranges=RANGES[:2], discrete=[1, 0]),
        },
    ),
    Example(
        name="objectives.stretched_logit",
        call=lambda key, value: [obj.stretched_logit(value, low=low, high=high) for low, high in ((0, 2), (0, INF), (-INF, 2))],
        arrays={"value": 0.5 + np.abs(np.sin(normal(8)))},
        rows=("value",),
        result="rows",
        dtype="input",
        wrt=("value",),
        singular=({"value": np.full(8, 1e-4)}, {"value": np.full(8, 1.9)}),
        bad={
            "value: at the end": lambda: obj.stretched_logit(0.0, low=0.0, high=1.0),
            "value: outside": lambda: obj.stretched_logit(2.0, low=0.0, high=1.0),
            "value: integers": lambda: obj.stretched_logit(jnp.ones(2, int), low=0.0, high=2.0),
            "low: above high": lambda: obj.stretched_logit(0.5, low=1.0, high=0.0),
            "low: NaN": lambda: obj.stretched_logit(0.5, low=NAN, high=1.0),
            "low: a string for high": lambda: obj.stretched_logit(0.5, low=0.0, high="one"),
        },
    ),
    Example(
        name="objectives.apply_perturb_hyper",
        call=lambda key, hyper, raw_scale, noise: obj.apply_perturb_hyper(hyper, raw_scale, noise),
        arrays={"hyper": normal(2), "raw_scale": normal(2, seed=1), "noise": normal(8, 2, seed=2)},
        rows=("noise",),
        result="rows",
        dtype="input",
        wrt=("hyper", "raw_scale", "noise"),
        singular=SINGULAR_SCALES,
        bad={
            "hyper: rank": lambda: obj.apply_perturb_hyper(jnp.ones((2, 2)), ONES, jnp.ones((3, 2))),
            "raw_scale: shape": lambda: obj.apply_perturb_hyper(ONES, jnp.ones(3), jnp.ones((3, 2))),
            "noise: shape": lambda: obj.apply_perturb_hyper(ONES, ONES, jnp.ones((3, 3))),
        },
    ),
    Example(
        name="objectives.perturb_hyper",
        call=lambda key, hyper, raw_scale: obj.perturb_hyper(key, hyper, raw_scale, 3),
        arrays={"hyper": normal(2), "raw_scale": normal(2, seed=1)},
        result="other",
        random=True,
        dtype="input",
        wrt=("hyper", "raw_scale"),
        singular=SINGULAR_SCALES,
        bad={
            "key: a number": lambda: obj.perturb_hyper(0, ONES, ONES, 2),
            "hyper: integers": lambda: obj.perturb_hyper(KEY, jnp.ones(2, int), ONES, 2),
            "raw_scale: a scalar": lambda: obj.perturb_hyper(KEY, ONES, 1.0, 2),
            "batch_size: zero": lambda: obj.perturb_hyper(KEY, ONES, ONES, 0),
            "batch_size: a float": lambda: obj.perturb_hyper(KEY, ONES, ONES, 2.0),
        },
    ),
    Example(
        name="objectives.perturbation_entropy",
        call=lambda key, raw_scale: obj.perturbation_entropy(raw_scale),
        arrays={"raw_scale": np.array([-40.0, -1.0, 0.0, 2.0])},
        result="scalar",
        wrt=("raw_scale",),
        singular=({"raw_scale": np.full(4, -1e4)}, {"raw_scale": np.full(4, 1e4)}),
        bad={
            "raw_scale: a scalar": lambda: obj.perturbation_entropy(1.0),
            "raw_scale: integers": lambda: obj.perturbation_entropy(jnp.ones(2, int)),
        },
    ),
    Example(
        name="objectives.self_tuning",
        call=lambda key, params, hyper, raw_scale, batch: TRAIN(params, obj.TunedHyper(hyper, raw_scale), key, batch),
        arrays=TUNING,
        rows=("batch",),
        result="other",
        random=True,
        dtype=None,
        wrt=("params",),
        frozen=("hyper", "raw_scale"),
        singular=SINGULAR_SCALES[:2],
        bad={
            "train_loss: no function": lambda: obj.self_tuning(1.0, response_loss),
            "valid_loss: no function": lambda: obj.self_tuning(response_loss, 1.0),
            "loss_fn: returns no scalar": lambda: tune(lambda *args: ONES)[0](PLAIN, TUNED, KEY, ONES),
            "loss_fn: returns no aux": lambda: tune(has_aux=True)[1](TUNED, PLAIN, KEY, jnp.ones((2, 3))),
            "entropy_weight: negative": lambda: tune(entropy_weight=-1.0),
            "entropy_weight: NaN": lambda: tune(entropy_weight=NAN),
            "entropy_weight: a string": lambda: tune(entropy_weight="small"),
            "entropy_weight: a schedule without a step": lambda: tune(entropy_weight=lambda step: 0.1)[1](
                TUNED, PLAIN, KEY, jnp.ones((2, 3))
            ),
            "tune_scales: a number": lambda: tune(tune_scales=1),
            "has_aux: a number": lambda: tune(has_aux=1),
            "tuned: a tuple": lambda: TRAIN(PLAIN, (ONES, ONES), KEY, jnp.ones((2, 3))),
            "tuned: the parameters": lambda: VALID(PLAIN, TUNED, KEY, jnp.ones((2, 3))),
            "raw_scale: shape": lambda: TRAIN(PLAIN, obj.TunedHyper(ONES, jnp.ones(3)), KEY, jnp.ones((2, 3))),
            "key: a number": lambda: TRAIN(PLAIN, TUNED, 0, jnp.ones((2, 3))),
            "batch: none": lambda: TRAIN(PLAIN, TUNED, KEY, ()),
            "batch: of two lengths": lambda: TRAIN(PLAIN, TUNED, KEY, (jnp.ones(2), jnp.ones(3))),
            "params: left out": lambda: VALID(TUNED, key=KEY, batch=jnp.ones((2, 3))),
        },
    ),
    Example(
        name="objectives.self_tuning",
        call=lambda key, params, hyper, raw_scale, batch: VALID(obj.TunedHyper(hyper, raw_scale), params, key, batch),
        arrays=TUNING,
        rows=("batch",),
        result="other",
        random=True,
        dtype=None,
        wrt=("hyper", "raw_scale"),
        frozen=("params",),
        # The path through the constrained values is cut on purpose.
        surrogate=True,
        identity=lambda key, params, hyper, raw_scale, batch: tuple(
            tune(entropy_weight=weight)[1](obj.TunedHyper(hyper, raw_scale), params, key, batch)
            for weight in (0.0, jnp.zeros(()))
        ),
        singular=SINGULAR_SCALES[:1],
    ),
    Example(
        name="objectives.gaussian_kl_profiled",
        call=lambda key, params, prior_mean, sigma: (
            kl(params, sigma, prior_mean=prior_mean),
            kl(params, 0.1, prior_mean=prior_mean),
        ),
        arrays=POSTERIOR,
        result="scalar",
        wrt=("params", "sigma"),
        frozen=("prior_mean",),
        tree="params",
        singular=(AT_PRIOR, {"params": jax.tree.map(lambda x: 1e4 * np.sign(x), PARAMS)}),
        bad={
            **sigma_errors(lambda sigma: kl(ONES, sigma)),
            "prior_mean: shape": lambda: kl(ONES, 1.0, prior_mean=jnp.ones(3)),
            "prior_mean: another structure": lambda: kl(ONES, 1.0, prior_mean=[ONES]),
        },
    ),
    Example(
        name="objectives.implied_l2_strength",
        call=lambda key, params, prior_mean, sigma: strength(params, sigma, prior_mean=prior_mean, num_examples=100, kappa=0.5),
        arrays=POSTERIOR,
        result="scalar",
        wrt=("params", "sigma"),
        tree="params",
        singular=(AT_PRIOR,),
        bad={
            **sigma_errors(lambda sigma: strength(ONES, sigma, num_examples=10, kappa=1.0)),
            **size_errors(lambda **options: strength(ONES, 1.0, **options)),
            "prior_mean: shape": lambda: strength(ONES, 1.0, num_examples=10, kappa=1.0, prior_mean=jnp.ones(3)),
        },
    ),
    Example(
        name="objectives.data_emphasized_elbo",
        call=lambda key, nll, kl, kappa: elbo(nll, kl, num_examples=100, kappa=kappa),
        arrays={"nll": np.array(1.3), "kl": np.array(20.0), "kappa": np.array(0.4)},
        result="scalar",
        dtype="input",
        wrt=("nll", "kl", "kappa"),
        identity=lambda key, nll, kl, kappa: (elbo(nll, 0 * kl, num_examples=100, kappa=kappa), nll),
        singular=({"kl": np.array(0.0)}, {"kappa": np.array(1e4)}),
        bad={
            **size_errors(lambda **options: elbo(1.0, 1.0, **options)),
            "nll: a vector": lambda: elbo(ONES, 1.0, num_examples=10, kappa=1.0),
            "kl: an integer array": lambda: elbo(1.0, jnp.int32(1), num_examples=10, kappa=1.0),
            "kl: a string": lambda: elbo(1.0, "kl", num_examples=10, kappa=1.0),
        },
    ),
    Example(
        name="objectives.apply_sample_posterior",
        call=lambda key, params, raw_sigma, noise: obj.apply_sample_posterior(params, raw_sigma, noise),
        arrays={"params": PARAMS, "raw_sigma": SIGMAS, "noise": jax.tree.map(np.cos, PARAMS)},
        result="other",
        dtype="input",
        wrt=("params", "raw_sigma", "noise"),
        tree="params",
        singular=({"raw_sigma": jax.tree.map(lambda x: np.full_like(x, -1e4), SIGMAS)},),
        bad={
            **sigma_errors(lambda raw: obj.apply_sample_posterior(ONES, raw, ONES), "raw_sigma", positive=False),
            "noise: shape": lambda: obj.apply_sample_posterior(ONES, 1.0, jnp.ones(3)),
        },
    ),
    Example(
        name="objectives.sample_posterior",
        call=lambda key, params, raw_sigma: obj.sample_posterior(key, params, raw_sigma),
        arrays={"params": PARAMS, "raw_sigma": np.array(-1.0)},
        result="other",
        random=True,
        dtype="input",
        wrt=("params", "raw_sigma"),
        tree="params",
        singular=({"raw_sigma": np.array(-1e4)},),
        bad={
            **sigma_errors(lambda raw: obj.sample_posterior(KEY, ONES, raw), "raw_sigma", positive=False),
            "key: a number": lambda: obj.sample_posterior(0, ONES, 1.0),
        },
    ),
    Example(
        name="objectives.lasso_predictor",
        call=lambda key, features, targets: lasso(features, targets),
        arrays={"features": normal(8, 4), "targets": normal(8, seed=1)},
        rows=("features", "targets"),
        result="scalar",
        wrt=("features", "targets"),
        surrogate=True,
        singular=({"targets": np.zeros(8)}, *FEATURES),
        bad=predictor_errors(lambda *args, **options: lasso(*args, **options), "targets"),
    ),
    Example(
        name="objectives.group_lasso_predictor",
        call=lambda key, features, labels: logistic(features, labels),
        arrays=CLASSIFIED,
        rows=("features", "labels"),
        result="scalar",
        wrt=("features",),
        surrogate=True,
        singular=({"labels": np.zeros(8, np.int32)}, *FEATURES[:2]),
        bad={
            **predictor_errors(lambda *args, **options: logistic(*args, **options), "labels"),
            "relative_strength: zero": lambda: logistic(Z, LABELS, relative_strength=0.0),
            "num_classes: one": lambda: logistic(Z, LABELS, num_classes=1),
        },
    ),
    Example(
        name="objectives.group_svm_predictor",
        call=lambda key, features, labels: svm(features, labels),
        arrays=CLASSIFIED,
        rows=("features", "labels"),
        result="scalar",
        wrt=("features",),
        surrogate=True,
        singular=({"labels": np.zeros(8, np.int32)}, *FEATURES),
        bad={
            **predictor_errors(lambda *args, **options: svm(*args, **options), "labels"),
            "num_classes: a float": lambda: svm(Z, LABELS, num_classes=2.0),
            "ridge: zero": lambda: svm(Z, LABELS, ridge=0.0),
            "dual_ridge: NaN": lambda: svm(Z, LABELS, dual_ridge=NAN),
        },
    ),
    Example(
        name="objectives.sparse_bilevel",
        call=lambda key, kernel, inputs, targets: bilevel(l1=0.1, l2=0.2)(kernel, (inputs, targets)),
        arrays=TASKS,
        rows=("inputs", "targets"),
        result="scalar",
        wrt=("kernel", "inputs", "targets"),
        surrogate=True,
        identity=lambda key, kernel, inputs, targets: tuple(
            bilevel(l1=zero, l2=zero)(kernel, (inputs, targets)) for zero in (0.0, jnp.zeros(()))
        ),
        singular=({"inputs": np.zeros((8, 6, 5))}, {"kernel": np.zeros((5, 2))}, {"targets": np.zeros((8, 6))}),
        bad={
            "encoder: no function": lambda: bilevel(encoder=1.0),
            "predictor: no function": lambda: bilevel(predictor=1.0),
            "loss: no function": lambda: bilevel(loss="squared"),
            "l1: negative": lambda: bilevel(l1=-1.0),
            "l1: a schedule without a step": lambda: bilevel(l1=lambda step: 0.1)(jnp.ones((3, 2)), GOOD_TASKS),
            "l2: NaN": lambda: bilevel(l2=NAN),
            "tasks: one array": lambda: bilevel()(jnp.ones((3, 2)), GOOD_TASKS[0]),
            "tasks: three": lambda: bilevel()(jnp.ones((3, 2)), (*GOOD_TASKS, GOOD_TASKS[0])),
            "tasks: other numbers": lambda: bilevel()(jnp.ones((3, 2)), (GOOD_TASKS[0], jnp.ones((3, 4)))),
            "tasks: other examples": lambda: bilevel()(jnp.ones((3, 2)), (GOOD_TASKS[0], jnp.ones((2, 3)))),
        },
    ),
)
