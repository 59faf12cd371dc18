"""Functional entropy against loops over noisy rows, the published values, and its noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import regjax as rj
from regjax.objectives.derivatives.functional_entropy import fisher_information
from tests.objectives.problems import close
from tests.references import log_softmax

RNG = np.random.default_rng(0)
BATCH, SAMPLES = 3, 2
A, B = RNG.normal(size=(BATCH, 2)), RNG.normal(size=(BATCH, 2, 2))
PARAMS = {"a": RNG.normal(size=(2, 3)), "b": RNG.normal(size=(4, 3))}
NOISE = RNG.normal(size=(BATCH * SAMPLES, 2)), RNG.normal(size=(BATCH * SAMPLES, 2, 2))


def model(params, a, b):
    return jnp.tanh(a) @ params["a"] + b.reshape(len(b), -1) @ params["b"]


def reference(params, p, estimation, method, scaling, target_params=None):
    """The regulariser of `model`, row by row; the target at ``target_params``."""
    flat = B.reshape(BATCH, 4)
    rows = [np.repeat(x, SAMPLES, 0) for x in (A, flat)]
    noisy = [x + x.std(0, ddof=1) * n.reshape(x.shape) for x, n in zip(rows, NOISE, strict=True)]
    losses, squares = [], []
    for i in range(BATCH * SAMPLES):
        example = i // SAMPLES
        known = params if target_params is None else target_params
        target = np.exp(log_softmax(np.tanh(A[example]) @ known["a"] + flat[example] @ known["b"]))
        z = np.tanh(noisy[0][i]) @ params["a"] + noisy[1][i] @ params["b"]
        losses.append(np.mean([np.log1p(np.exp(v)) - v * t for v, t in zip(z, target, strict=True)]))
        error = (1 / (1 + np.exp(-z)) - target) / 3
        to_a = (1 - np.tanh(noisy[0][i]) ** 2) * (params["a"] @ error)
        squares.append([(to_a**2).sum(), ((params["b"] @ error) ** 2).sum()])
    losses, squares = np.array(losses), np.array(squares)
    if scaling == "reference":
        squares, losses = squares / len(losses) ** 2, np.full(len(losses), losses.mean())
    information = np.mean(squares / losses[:, None] if estimation == "ent" else squares, 0)
    if method == "max_ent":
        return (((1 / (information + 1e-12)) ** p).sum()) ** (1 / p)
    length = (information**p).sum() ** (1 / p)
    return length if method == "min_ent" else 0.1 - length


VARIANTS = [
    (2.0, "ent", "max_ent", "per_example"),
    (3.0, "var", "min_ent", "per_example"),
    (1.0, "ent", "max_ent_minus", "reference"),
    (2.0, "var", "max_ent", "reference"),
]


def test_equals_loops_over_noisy_rows(x64):
    @jax.jit
    def run(params):
        regularisers = [
            rj.objectives.functional_entropy(
                model, num_samples=SAMPLES, norm=p, estimation=estimation, method=method, scaling=scaling
            )
            for p, estimation, method, scaling in VARIANTS
        ]
        return [f(params, None, (A, B), noise=NOISE) for f in regularisers]

    for got, variant in zip(run(PARAMS), VARIANTS, strict=True):
        close(got, reference(PARAMS, *variant), rtol=1e-9)


@pytest.mark.parametrize("detached", [True, False])
def test_the_gradient_is_second_order_and_the_target_a_constant_if_asked(x64, detached):
    regulariser = rj.objectives.functional_entropy(model, num_samples=SAMPLES, detach_target=detached)
    gradient = jax.jit(jax.grad(regulariser))(PARAMS, None, (A, B), noise=NOISE)
    move = {name: RNG.normal(size=leaf.shape) for name, leaf in PARAMS.items()}
    values = []
    for step in (1e-5, -1e-5):
        moved = {name: leaf + step * move[name] for name, leaf in PARAMS.items()}
        values.append(reference(moved, *VARIANTS[0], target_params=PARAMS if detached else moved))
    got = sum((gradient[name] * move[name]).sum() for name in PARAMS)
    close(got, (values[0] - values[1]) / 2e-5, rtol=1e-6)


def test_published_values(x64):
    losses = lambda z: z[0][:, 0] ** 2 + 4 * z[1][:, 0] ** 2
    z = [jnp.array([[1.0], [2.0]]), jnp.array([[1.0], [1.0]])]
    for scaling, want, length in (
        ("per_example", [1.4, 10.4], 0.720728551),
        ("reference", [0.384615385, 2.461538462], 2.631546895),
    ):
        information = fisher_information(losses, z, estimation="ent", scaling=scaling)
        close(information, want, rtol=1e-8)
        close(jnp.linalg.norm(1 / information), length, rtol=1e-8)


def test_an_ignored_modality_costs_most_and_units_count_squared(x64):
    """A modality in other units, with weights to match, has the same predictions and its information in the units squared."""
    narrow = {**PARAMS, "b": 10 * PARAMS["b"]}
    regulariser = rj.objectives.functional_entropy(model, num_samples=4, method="min_ent", estimation="var")
    alone = lambda params, b: regulariser(params, jax.random.key(0), (jnp.zeros((BATCH, 2)), b))
    zero_a = lambda params: {**params, "a": jnp.zeros((2, 3))}
    small, large = jax.jit(lambda: (alone(zero_a(PARAMS), B), alone(zero_a(narrow), B / 10)))()
    close(large, 100 * small, rtol=1e-9)
    ignoring = rj.objectives.functional_entropy(model, num_samples=4)
    value, gradient = jax.jit(jax.value_and_grad(ignoring))(zero_a(PARAMS), jax.random.key(0), (A, B))
    close(value, 1e12, rtol=1e-6)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))


def test_noise_is_as_large_as_the_spread_of_each_feature(x64):
    x, samples = jnp.array([[1.0, 0.0], [1.0, 4.0], [1.0, -1.0]]), 4000
    z = np.asarray(rj.objectives.repeat_with_noise(jax.random.key(0), x, samples)).reshape(3, samples, 2)
    np.testing.assert_array_equal(z[:, :, 0], 1.0)
    noise = z[:, :, 1] - np.array([[0.0], [4.0], [-1.0]])
    spread = np.repeat([0.0, 4.0, -1.0], samples).std(ddof=1)
    assert np.all(abs(noise.mean(1)) < 5 * spread / np.sqrt(samples))
    assert np.all(abs(noise.std(1) / spread - 1) < 5 / np.sqrt(2 * samples))
    assert abs(np.corrcoef(noise)[0, 1]) < 5 / np.sqrt(samples)
