"""Examples of `regjax.diagnostics`: spectra, sharpness, criticality, effective learning rates, opposing signals."""

import jax
import jax.numpy as jnp
import numpy as np

import regjax as rj
from tests.contracts.example import Example, ids, normal
from tests.contracts.table.objectives import ARRAYS, PARAMS, energy, loss, pair

d = rj.diagnostics
NAN = float("nan")
KEY = jax.random.key(0)
W = jnp.ones(2)
P = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
VECTOR = {"kernel": normal(8, 2, seed=5), "bias": normal(2, seed=6)}
ZEROS = {"kernel": np.zeros((8, 2)), "bias": np.zeros(2)}
TREES = ({"params": ZEROS}, {"params": jax.tree.map(lambda x: 1e4 * np.sign(x), PARAMS)})


def is_float(leaf) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.floating)


def operator(v):
    """A symmetric matrix on any tree: a diagonal with distinct entries, and one of rank 1."""
    floats = [leaf for leaf in jax.tree.leaves(v) if is_float(leaf)]
    total = sum((jnp.sum(leaf) for leaf in floats), jnp.zeros(()))
    place = iter(range(len(floats)))

    def leaf(x):
        if not is_float(x):
            return x
        i = next(place)
        return x * (1 + i + jnp.arange(x.size, dtype=x.dtype).reshape(x.shape) / x.size) + total.astype(x.dtype) / 4

    return jax.tree.map(leaf, v)


def model(params, x):
    """Outputs of any tree and a batch."""
    x = x.astype(jnp.promote_types(jnp.float32, x.dtype))
    return jnp.tanh(0.1 * energy(params) + jnp.sum(x, -1)) + 0.3 * energy(params) * jnp.mean(x, -1)


def squared(z, y):
    return jnp.mean((z - y) ** 2) / 2


def ggn(model_fn=model, loss_fn=squared):
    return d.ggn_matvec(model_fn, loss_fn, PARAMS, jnp.ones((4, 3)), jnp.ones(4))


def matvec_errors(call) -> dict:
    """What everything refuses that takes a product; ``call(matvec, **options)``."""
    return {
        "matvec: no function": lambda: call(jnp.eye(2)),
        "matvec: another structure": lambda: call(lambda v: {"v": v}),
        "matvec: another shape": lambda: call(lambda v: v[:1]),
        "num_steps: 0": lambda: call(operator, num_steps=0),
        "num_steps: no integer": lambda: call(operator, num_steps=2.0),
    }


def loss_errors(call) -> dict:
    """What everything refuses that takes a loss of parameters and batches; ``call(loss_fn, *batches)``."""
    return {
        "loss_fn: no function": lambda: call(3.0),
        "loss_fn: no scalar": lambda: call(lambda params, *args: jnp.ones(2)),
        "loss_fn: a dictionary": lambda: call(lambda params, *args: {"loss": jnp.ones(())}),
        "batches: of other numbers": lambda: call(loss, jnp.ones((2, 4, 3)), jnp.ones((3, 4))),
        "batches: a scalar": lambda: call(loss, jnp.ones(())),
        "batches: none": lambda: call(loss, jnp.ones((0, 4, 3))),
    }


def strength_errors(argument, call) -> dict:
    """What every strength refuses; ``call(**{argument: value})``."""
    wrong = {"negative": -0.1, "NaN": NAN, "an array": jnp.ones(2), "a schedule": lambda step: 0.1}
    return {f"{argument}: {what}": lambda value=value: call(**{argument: value}) for what, value in wrong.items()}


def worst(loss_fn=loss, *batches, **options):
    return d.worst_case_sharpness(loss_fn, PARAMS, *(batches or (jnp.ones((1, 4, 3)),)), **options)


def average(loss_fn=loss, *batches, **options):
    return d.average_case_sharpness(KEY, loss_fn, PARAMS, *(batches or (jnp.ones((1, 4, 3)),)), **options)


def criticality(loss_fn=loss, *batches, **options):
    return d.module_robust_criticality(loss_fn, PARAMS, *(batches or (jnp.ones((1, 4, 3)),)), **options)


def two_batches(x):
    """Each device keeps its examples: every other one is in the second batch."""
    return jnp.stack([x, 0.5 * x])


def variance(hvp=lambda v, x: v, examples=(W,), params=W, **options):
    return d.hessian_variance(KEY, hvp, params, *examples, **options)


def invariance(loss_fn=lambda p: p["bias"], mask=None, **options):
    return d.scale_invariance_error(loss_fn, P, mask, **options)


def tracked(losses, groups, **options):
    memory = d.track_group_losses(**{"num_groups": 3, "num_steps": 2, **options})
    return memory.apply(memory.init(), losses, groups)


def memory():
    tracker = d.track_group_losses(num_groups=3, num_steps=2)
    return tracker.init(), lambda state, key, losses, groups: tracker.apply(state, losses, groups)


def toy(n=8, d_=3, key=KEY, **options):
    return d.opposing_signals_toy(key, n, d_, **options)


EXAMPLES = (
    Example(
        name="diagnostics.hessian_matvec",
        call=lambda key, params, vector, x: d.hessian_matvec(loss, params, x)(vector),
        arrays={**ARRAYS, "vector": VECTOR},
        rows=("x",),
        result="scalar",
        wrt=("vector",),
        tree="params",
        singular=TREES,
        tolerance=1e-4,
        bad={
            "loss_fn: no function": lambda: d.hessian_matvec(3.0, W),
            "loss_fn: no scalar": lambda: d.hessian_matvec(lambda w: w, W),
            "loss_fn: a dictionary": lambda: d.hessian_matvec(pair, W, jnp.ones((2, 3))),
            "vector: another structure": lambda: d.hessian_matvec(jnp.sum, W)({"w": W}),
            "vector: another shape": lambda: d.hessian_matvec(jnp.sum, W)(jnp.ones(3)),
        },
    ),
    Example(
        name="diagnostics.ggn_matvec",
        call=lambda key, params, vector, x, y: d.ggn_matvec(model, squared, params, x, y)(vector),
        arrays={**ARRAYS, "vector": VECTOR, "y": normal(8, seed=7)},
        rows=("x", "y"),
        result="scalar",
        wrt=("vector",),
        tree="params",
        singular=TREES,
        tolerance=1e-4,
        bad={
            "model_fn: no function": lambda: ggn(3.0),
            "model_fn: integers": lambda: ggn(lambda params, x: jnp.ones(4, int)),
            "loss_fn: no function": lambda: ggn(loss_fn=3.0),
            "loss_fn: no scalar": lambda: ggn(loss_fn=lambda z, y: z - y),
            "vector: another structure": lambda: ggn()(W),
        },
    ),
    Example(
        name="diagnostics.lanczos_spectrum",
        call=lambda key, start: d.lanczos_spectrum(operator, start, num_steps=4),
        arrays={"start": VECTOR},
        result="other",
        tree="start",
        singular=({"start": ZEROS}, {"start": {**ZEROS, "bias": np.ones(2)}}),
        tolerance=1e-4,
        bad={
            **matvec_errors(lambda matvec, **options: d.lanczos_spectrum(matvec, W, **options)),
            "reorthogonalize: no boolean": lambda: d.lanczos_spectrum(operator, W, reorthogonalize=2),
        },
    ),
    Example(
        name="diagnostics.stochastic_lanczos",
        call=lambda key, params: d.stochastic_lanczos(key, operator, params, num_probes=2, num_steps=4),
        arrays={"params": VECTOR},
        result="other",
        random=True,
        tree="params",
        tolerance=1e-4,
        bad={
            **matvec_errors(lambda matvec, **options: d.stochastic_lanczos(KEY, matvec, W, **options)),
            "key: a number": lambda: d.stochastic_lanczos(0, operator, W),
            "num_probes: 0": lambda: d.stochastic_lanczos(KEY, operator, W, num_probes=0),
            "reorthogonalize: no boolean": lambda: d.stochastic_lanczos(KEY, operator, W, reorthogonalize=None),
        },
    ),
    Example(
        name="diagnostics.spectral_density",
        call=lambda key, ritz_values, weights, grid: [
            d.spectral_density(ritz_values, weights, num_points=5),
            d.spectral_density(ritz_values, weights, grid=grid, bandwidth=0.5),
        ],
        arrays={"ritz_values": normal(2, 4), "weights": np.abs(normal(2, 4, seed=1)), "grid": np.linspace(-2, 2, 5)},
        result="other",
        wrt=("ritz_values", "weights"),
        singular=({"ritz_values": np.zeros((2, 4))}, {"ritz_values": 1e4 * np.ones((2, 4))}, {"weights": np.zeros((2, 4))}),
        bad={
            "ritz_values: integers": lambda: d.spectral_density(jnp.ones(3, int), jnp.ones(3)),
            "ritz_values: a scalar": lambda: d.spectral_density(jnp.ones(()), jnp.ones(())),
            "ritz_values: none": lambda: d.spectral_density(jnp.ones(0), jnp.ones(0)),
            "weights: shape": lambda: d.spectral_density(jnp.ones(3), jnp.ones(4)),
            "grid: rank": lambda: d.spectral_density(W, W, grid=jnp.ones((2, 2))),
            "num_points: 1": lambda: d.spectral_density(W, W, num_points=1),
            "bandwidth: 0": lambda: d.spectral_density(W, W, bandwidth=0.0),
            "bandwidth: NaN": lambda: d.spectral_density(W, W, bandwidth=NAN),
        },
    ),
    Example(
        name="diagnostics.top_eigenvalue",
        call=lambda key, start: d.top_eigenvalue(operator, start, num_steps=6)[::2],
        arrays={"start": VECTOR},
        result="other",
        tree="start",
        singular=({"start": ZEROS},),
        tolerance=1e-4,
        bad={
            **matvec_errors(lambda matvec, **options: d.top_eigenvalue(matvec, W, **options)),
            "which: misspelt": lambda: d.top_eigenvalue(operator, W, which="large"),
            "tolerance: negative": lambda: d.top_eigenvalue(operator, W, tolerance=-1e-3),
            "tolerance: NaN": lambda: d.top_eigenvalue(operator, W, tolerance=NAN),
        },
    ),
    Example(
        name="diagnostics.hessian_variance",
        call=lambda key, params, x: d.hessian_variance(
            key, lambda v, row: d.hessian_matvec(loss, params, row[None])(v), params, x, chunk_size=8
        ),
        arrays=ARRAYS,
        rows=("x",),
        result="scalar",
        random=True,
        tree="params",
        singular=({"params": ZEROS}, {"x": np.zeros((8, 3))}),
        tolerance=1e-4,
        bad={
            "key: a number": lambda: d.hessian_variance(0, operator, W, W),
            "per_example_hvp: no function": lambda: variance(W),
            "per_example_hvp: another shape": lambda: variance(lambda v, x: v[:1]),
            "examples: none": lambda: variance(examples=()),
            "examples: one": lambda: variance(examples=(np.ones(1),)),
            "examples: of other numbers": lambda: variance(examples=(np.ones(4), np.ones(3))),
            "num_probes: 0": lambda: variance(num_probes=0),
            "chunk_size: no divisor": lambda: variance(chunk_size=3),
            "chunk_size: 0": lambda: variance(chunk_size=0),
        },
    ),
    Example(
        name="diagnostics.worst_case_sharpness",
        call=lambda key, params, x: d.worst_case_sharpness(loss, params, two_batches(x), rho=0.1, num_steps=2),
        arrays=ARRAYS,
        rows=("x",),
        result="scalar",
        tree="params",
        singular=(*TREES, {"x": np.zeros((8, 3))}),
        identity=lambda key, params, x: (
            d.worst_case_sharpness(loss, params, x[None], rho=jnp.zeros(()), num_steps=1, adaptive=True),
            jnp.zeros(()),
        ),
        tolerance=1e-4,
        bad={
            **loss_errors(worst),
            **strength_errors("rho", worst),
            "num_steps: 0": lambda: worst(num_steps=0),
            "step_size: 0": lambda: worst(step_size=0.0),
            "step_size: NaN": lambda: worst(step_size=NAN),
            "adaptive: no boolean": lambda: worst(adaptive="asam"),
            "where: misspelt": lambda: worst(where="kernel"),
            "start: another structure": lambda: worst(start=W),
        },
    ),
    Example(
        name="diagnostics.average_case_sharpness",
        call=lambda key, params, x: d.average_case_sharpness(
            key, loss, params, two_batches(x), rho=0.1, num_samples=2, adaptive=True
        ),
        arrays=ARRAYS,
        rows=("x",),
        result="scalar",
        random=True,
        tree="params",
        singular=({"params": ZEROS}, {"x": np.zeros((8, 3))}),
        identity=lambda key, params, x: (
            d.average_case_sharpness(key, loss, params, x[None], rho=jnp.zeros(()), num_samples=1),
            jnp.zeros(()),
        ),
        tolerance=1e-4,
        bad={
            **loss_errors(average),
            **strength_errors("rho", average),
            "key: a number": lambda: d.average_case_sharpness(0, jnp.sum, W),
            "num_samples: 0": lambda: average(num_samples=0),
            "adaptive: no boolean": lambda: average(adaptive=1),
            "where: misspelt": lambda: average(where="kernel"),
        },
    ),
    Example(
        name="diagnostics.module_robust_criticality",
        call=lambda key, params, x: list(
            d.module_robust_criticality(loss, params, two_batches(x), modules="all", num_epochs=2, learning_rate=0.1).values()
        ),
        arrays=ARRAYS,
        rows=("x",),
        result="scalar",
        tree="params",
        singular=(*TREES, {"x": np.zeros((8, 3))}),
        identity=lambda key, params, x: (
            d.module_robust_criticality(loss, params, x[None], modules="all", epsilon=jnp.zeros(()), num_epochs=1),
            {name: jnp.zeros(()) for name in params},
        ),
        tolerance=1e-4,
        bad={
            **loss_errors(criticality),
            **strength_errors("epsilon", criticality),
            "modules: misspelt": lambda: criticality(modules="kernel"),
            "modules: an integer leaf": lambda: d.module_robust_criticality(loss, {"n": jnp.arange(3)}, modules={"n": True}),
            "num_epochs: 0": lambda: criticality(num_epochs=0),
            "learning_rate: 0": lambda: criticality(learning_rate=0.0),
            "learning_rate: NaN": lambda: criticality(learning_rate=NAN),
        },
    ),
    Example(
        name="diagnostics.effective_learning_rate",
        call=lambda key, weight: d.effective_learning_rate(0.1, weight, optimizer="adam"),
        arrays={"weight": VECTOR},
        result="other",
        wrt=("weight",),
        tree="weight",
        singular=({"weight": ZEROS},),
        identity=lambda key, weight: (
            d.effective_learning_rate(jnp.zeros(()), weight),
            jax.tree.map(lambda w: jnp.zeros((), jnp.float32), weight),
        ),
        bad={
            **strength_errors("learning_rate", lambda learning_rate: d.effective_learning_rate(learning_rate, W)),
            "optimizer: misspelt": lambda: d.effective_learning_rate(0.1, W, optimizer="adma"),
        },
    ),
    Example(
        name="diagnostics.scale_invariance_error",
        call=lambda key, params, x: d.scale_invariance_error(loss, params, None, x, factor=1.5),
        arrays=ARRAYS,
        rows=("x",),
        result="scalar",
        wrt=("params",),
        tree="params",
        singular=({"params": ZEROS}, {"x": np.zeros((8, 3))}),
        tolerance=1e-4,
        bad={
            "loss_fn: no function": lambda: invariance(3.0),
            "loss_fn: nothing": lambda: invariance(lambda p: ()),
            "loss_fn: integers": lambda: invariance(lambda p: jnp.ones(3, int)),
            "mask: misspelt": lambda: invariance(mask="kernel"),
            "mask: another structure": lambda: invariance(mask={"other": True}),
            "factor: 0": lambda: invariance(factor=0.0),
            "factor: NaN": lambda: invariance(factor=NAN),
        },
    ),
    Example(
        name="diagnostics.predicted_equilibrium_norm",
        call=lambda key, learning_rate, l2, grad_norm: d.predicted_equilibrium_norm(learning_rate, l2, grad_norm),
        arrays={"learning_rate": np.array(0.1), "l2": np.array(0.05), "grad_norm": np.array(2.0)},
        result="other",
        wrt=("learning_rate", "l2", "grad_norm"),
        singular=({"grad_norm": np.array(0.0)}, {"learning_rate": np.array(0.0)}),
        identity=lambda key, learning_rate, l2, grad_norm: (
            d.predicted_equilibrium_norm(learning_rate, 0 * l2, grad_norm),
            jnp.array(jnp.inf, jnp.float32),
        ),
        bad={
            **strength_errors("learning_rate", lambda learning_rate: d.predicted_equilibrium_norm(learning_rate, 0.1, 1.0)),
            **strength_errors("l2", lambda l2: d.predicted_equilibrium_norm(0.1, l2, 1.0)),
            **strength_errors("grad_norm", lambda grad_norm: d.predicted_equilibrium_norm(0.1, 0.1, grad_norm)),
        },
    ),
    Example(
        name="diagnostics.opposing_examples",
        call=lambda key, before, after: d.opposing_examples(before, after, top_k=2),
        arrays={"before": normal(8), "after": normal(8, seed=1)},
        rows=("before", "after"),
        result="other",
        bad={
            "losses_before: rank": lambda: d.opposing_examples(jnp.ones((2, 2)), W, top_k=1),
            "losses_before: integers": lambda: d.opposing_examples(jnp.ones(2, int), W, top_k=1),
            "losses_after: another number": lambda: d.opposing_examples(W, jnp.ones(3), top_k=1),
            "top_k: 0": lambda: d.opposing_examples(W, W, top_k=0),
            "top_k: too many": lambda: d.opposing_examples(W, W, top_k=3),
        },
    ),
    Example(
        name="diagnostics.gradient_opposition",
        call=lambda key, grads_a, grads_b: d.gradient_opposition(grads_a, grads_b),
        arrays={"grads_a": VECTOR, "grads_b": PARAMS},
        result="other",
        wrt=("grads_a", "grads_b"),
        tree="grads_a",
        singular=({"grads_a": ZEROS}, {"grads_a": jax.tree.map(lambda x: 1e30 * x, VECTOR)}, {"grads_b": VECTOR}),
        bad={
            "grads_b: another structure": lambda: d.gradient_opposition(P, W),
            "grads_b: another shape": lambda: d.gradient_opposition(W, jnp.ones(3)),
        },
    ),
    Example(
        name="diagnostics.track_group_losses",
        call=lambda key, losses, groups: tracked(losses, groups)[0],
        arrays={"losses": normal(8), "groups": ids(8, classes=4) - 1},
        rows=("losses", "groups"),
        result="scalar",
        wrt=("losses",),
        singular=({"groups": np.full(8, -1, np.int32)}, {"groups": np.full(8, 1, np.int32)}),
        memory=memory,
        bad={
            "num_groups: 0": lambda: d.track_group_losses(num_groups=0, num_steps=1),
            "num_steps: no integer": lambda: d.track_group_losses(num_groups=1, num_steps=1.0),
            "losses: rank": lambda: tracked(jnp.ones((2, 2)), jnp.ones(2, int)),
            "losses: integers": lambda: tracked(jnp.ones(2, int), jnp.ones(2, int)),
            "groups: floats": lambda: tracked(W, W),
            "groups: another number": lambda: tracked(W, jnp.ones(3, int)),
        },
    ),
    Example(
        name="diagnostics.opposing_signals_toy",
        call=lambda key, rate, scale: toy(key=key, rate=rate, scale=scale),
        arrays={"rate": np.array(0.5), "scale": np.array(2.0)},
        result="other",
        random=True,
        singular=({"rate": np.array(1.0), "scale": np.array(0.0)},),
        bad={
            "key: a number": lambda: toy(key=0),
            "n: 0": lambda: toy(0),
            "d: 1": lambda: toy(8, 1),
            "rate: 0": lambda: toy(rate=0.0),
            "rate: above 1": lambda: toy(rate=1.5),
            "scale: negative": lambda: toy(scale=-1.0),
            "weak: NaN": lambda: toy(weak=NAN),
            "noise: negative": lambda: toy(noise=-0.1),
        },
    ),
)
