"""The Jacobian penalty against loops over examples and logits, and its projections."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import regjax as rj
from tests.objectives.problems import close

RNG = np.random.default_rng(0)
PARAMS = {"w": RNG.normal(size=(6, 4)), "v": RNG.normal(size=(4, 3))}
X = RNG.normal(size=(5, 2, 3))


def network(params, x):
    return jnp.tanh(x.reshape(len(x), -1) @ params["w"]) @ params["v"]


def jacobians(params):
    """``[B, K, D]``, example by example."""
    found = []
    for x in X.reshape(5, 6):
        slope = 1 - np.tanh(x @ params["w"]) ** 2
        found.append([[sum(params["w"][d] * slope * params["v"][:, k]) for d in range(6)] for k in range(3)])
    return np.array(found)


def test_exact_and_projected_equal_loops(x64):
    v = RNG.normal(size=(2, 5, 3))
    exact = rj.objectives.jacobian_penalty(network, num_projections=-1)
    got, gradient = jax.jit(jax.value_and_grad(exact))(PARAMS, None, X)
    close(got, (jacobians(PARAMS) ** 2).sum() / 10, rtol=1e-10)
    move = {name: RNG.normal(size=leaf.shape) for name, leaf in PARAMS.items()}
    moved = [{name: leaf + step * move[name] for name, leaf in PARAMS.items()} for step in (1e-6, -1e-6)]
    want = np.subtract(*[(jacobians(params) ** 2).sum() / 10 for params in moved]) / 2e-6
    close(sum((gradient[name] * move[name]).sum() for name in PARAMS), want, rtol=1e-6)
    projected = sum(((v[j, b] @ jacobians(PARAMS)[b]) ** 2).sum() for j in range(2) for b in range(5))
    close(jax.jit(rj.objectives.jacobian_penalty(network))(PARAMS, None, X, projections=v), 3 / (2 * 5) * projected / 2)


@pytest.mark.parametrize("num_projections", [1, 3])
def test_random_projections_are_unbiased(x64, num_projections):
    penalty = rj.objectives.jacobian_penalty(network, num_projections=num_projections)
    draws = jax.jit(jax.vmap(lambda key: penalty(PARAMS, key, X)))(jax.random.split(jax.random.key(0), 2000))
    want = (jacobians(PARAMS) ** 2).sum() / 10
    assert np.std(draws) > 0.01 * want
    assert abs(np.mean(draws) - want) < 5 * np.std(draws) / np.sqrt(2000)


def test_a_linear_model_has_its_own_norm_and_one_logit_needs_no_luck(x64):
    linear = lambda w, x: x.reshape(len(x), -1) @ w
    penalty = rj.objectives.jacobian_penalty(linear, num_projections=-1)
    close([penalty(PARAMS["w"], None, X), penalty(PARAMS["w"], None, 7 * X)], [(PARAMS["w"] ** 2).sum() / 2] * 2)
    one = PARAMS["w"][:, :1]
    close(rj.objectives.jacobian_penalty(linear)(one, jax.random.key(3), X), (one**2).sum() / 2)
