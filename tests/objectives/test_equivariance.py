"""Penalties towards symmetry: published values, gradients as residuals, and the adjustment of strengths."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import regjax as rj
from tests.objectives.problems import close

RNG = np.random.default_rng(0)
TURN = np.array([[[0.0, -1.0], [1.0, 0.0]]])
FLIP = np.array([[[1.0, 0.0], [0.0, -1.0]]])
PARAMS = {"hidden": {"kernel": RNG.normal(size=(2, 2)), "bias": RNG.normal(size=2)}}
penalty, soft = rj.objectives.equivariance_penalty, rj.objectives.soft_equivariance


def projectors():
    basis = rj.weights.group_projector
    one = np.ones((1, 1, 1))
    return {
        "turn": {"hidden/kernel": basis(TURN, TURN), "hidden/bias": basis(one, TURN)},
        "flip": {"hidden/kernel": basis(FLIP, FLIP)},
    }


def residual(weight, matrix):
    """The distance from the mean over the powers of a matrix of order 4, by loops."""
    powers = [np.linalg.matrix_power(matrix, k) for k in range(4)]
    mean = sum(g @ weight @ g.T for g in powers) / 4 if weight.ndim == 2 else sum(g @ weight for g in powers) / 4
    return weight - mean


def test_published_value_gradient_and_projected_weights(x64):
    swap = np.array([[[0.0, 1.0], [1.0, 0.0]]])
    basis = rj.weights.group_projector(swap, swap)
    weight = jnp.array([[1.0, 2.0], [3.0, 4.0]])
    value, gradient = jax.jit(jax.value_and_grad(penalty))(weight, basis)
    close(value, 2.5)
    close(gradient, weight - 2.5, rtol=1e-9)
    assert float(penalty(jnp.full((2, 2), 2.5), basis)) < 1e-28
    close(penalty(weight, basis[:, :0]), 15.0)


def test_terms_are_sums_over_layers_in_the_order_of_names(x64):
    turn = sum((residual(PARAMS["hidden"][name], TURN[0]) ** 2).sum() / 2 for name in ("kernel", "bias"))
    flip = (residual(PARAMS["hidden"]["kernel"], FLIP[0]) ** 2).sum() / 2
    got = jax.jit(rj.objectives.equivariance_penalties)(PARAMS, projectors())
    close(got, [flip, turn], rtol=1e-9)
    run = jax.jit(jax.value_and_grad(soft))
    total, gradient = run(PARAMS, projectors(), jnp.array([0.5, 3.0]))
    close(total, 0.5 * flip + 3 * turn, rtol=1e-9)
    want = 0.5 * residual(PARAMS["hidden"]["kernel"], FLIP[0]) + 3 * residual(PARAMS["hidden"]["kernel"], TURN[0])
    close(gradient["hidden"]["kernel"], want, rtol=1e-9)
    close(gradient["hidden"]["bias"], 3 * residual(PARAMS["hidden"]["bias"], TURN[0]), rtol=1e-9)
    # As a penalty of a loss it adds that gradient.
    loss_fn = lambda params: jnp.sum(params["hidden"]["bias"])
    whole = rj.objectives.with_penalty(loss_fn, functools.partial(soft, projectors=projectors(), strengths=[0.5, 3.0]), 2.0)
    close(jax.jit(jax.grad(whole))(PARAMS)["hidden"]["kernel"], 2 * want, rtol=1e-9)


def test_strengths_follow_the_smallest_penalty_that_counts(x64):
    adjust = jax.jit(rj.objectives.adjust_strengths)
    close(adjust(jnp.array([100.0, 100.0, 100.0]), jnp.array([0.5, 0.1, 2.0])), [4.0, 100.0, 0.25])
    close(adjust(jnp.array([1.0, 0.0, 3.0]), jnp.array([0.2, 0.01, 0.1])), [0.25, 0.0, 3.0])
    close(rj.objectives.adjust_strengths([8.0, 8.0], [1.0, 0.5], power=3.0), [1.0, 8.0])
    close(rj.objectives.adjust_strengths([8.0, 8.0], [1.0, 0.5], power=0.0), [8.0, 8.0])
    # An exact symmetry keeps its strength, and leaves next to none to the others.
    exact = rj.objectives.adjust_strengths([1.0, 1.0], [0.0, 1.0], power=5.0)
    assert float(exact[0]) == 1.0 and 0 <= float(exact[1]) < 1e-50
    assert not np.any(rj.objectives.adjust_strengths([0.0, 0.0], [0.0, 1.0]))


@pytest.mark.slow
def test_the_symmetry_that_the_data_have_stays_the_strongest_and_helps():
    """A map that commutes with rotations and not with reflections, from 24 noisy points."""
    copies, steps, optimiser = 8, 800, optax.adam(1e-2)
    on = lambda matrix, n: np.kron(np.eye(n), matrix)

    def projectors_of(matrix):
        layers = {"w1": (1, copies), "w2": (copies, copies), "w3": (copies, 1)}
        return {name: rj.weights.group_projector([on(matrix, a)], [on(matrix, b)]) for name, (a, b) in layers.items()}

    bases = {"reflection": projectors_of(FLIP[0]), "rotation": projectors_of(TURN[0])}

    def gated(h):
        v = h.reshape(len(h), -1, 2)  # vectors, whose length alone is changed
        return (v * jax.nn.sigmoid(jnp.sum(v**2, -1, keepdims=True) - 1)).reshape(h.shape)

    def target(x):
        angle = 1 + jnp.linalg.norm(x, axis=-1)
        c, s = jnp.cos(angle), jnp.sin(angle)
        return jnp.stack([c * x[:, 0] - s * x[:, 1], s * x[:, 0] + c * x[:, 1]], -1)

    model = lambda p, x: gated(gated(x @ p["w1"]) @ p["w2"]) @ p["w3"]

    def run(key, strength):
        keys = jax.random.split(key, 6)
        x, new = jax.random.normal(keys[0], (24, 2)), jax.random.normal(keys[2], (500, 2))
        y = target(x) + 0.1 * jax.random.normal(keys[1], (24, 2))
        sizes = ((2, 2 * copies), (2 * copies, 2 * copies), (2 * copies, 2))
        params = {f"w{i + 1}": jax.random.normal(keys[3 + i], size) / np.sqrt(size[0]) for i, size in enumerate(sizes)}

        def train(carry, strengths, steps):
            loss_fn = lambda p: jnp.mean((model(p, x) - y) ** 2) + soft(p, bases, strengths)

            def step(carry, _):
                updates, state = optimiser.update(jax.grad(loss_fn)(carry[0]), carry[1])
                return (optax.apply_updates(carry[0], updates), state), None

            return jax.lax.scan(step, carry, length=steps)[0]

        strengths = jnp.full(2, strength)
        carry = train((params, optimiser.init(params)), strengths, steps // 4)
        strengths = rj.objectives.adjust_strengths(strengths, rj.objectives.equivariance_penalties(carry[0], bases))
        params = train(carry, strengths, steps - steps // 4)[0]
        return jnp.mean((model(params, new) - target(new)) ** 2), strengths

    seeds = jax.random.split(jax.random.key(0), 4)
    errors, strengths = jax.jit(jax.vmap(jax.vmap(run, (0, None)), (None, 0)))(seeds, jnp.array([0.0, 0.2]))
    assert np.all(strengths[1, :, 1] > strengths[1, :, 0])
    assert np.all(errors[1] < errors[0])
