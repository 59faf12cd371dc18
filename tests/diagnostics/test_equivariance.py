"""The equivariance error against a loop over examples."""

import jax
import jax.numpy as jnp
import numpy as np

import regjax as rj

RNG = np.random.default_rng(0)
X, W = RNG.normal(size=(6, 4)), RNG.normal(size=(4, 4))
error = rj.diagnostics.equivariance_error
flip = lambda x: jnp.flip(x, 1)


def test_equals_a_loop_over_examples(x64):
    where = np.arange(6) != 2
    run = jax.jit(lambda x: error(lambda x: jnp.tanh(x @ W).reshape(-1, 2, 2), x, flip, flip, where=where))
    ratios = []
    for x in X[where]:
        acted = lambda y: y.reshape(2, 2)[::-1]
        before, after = np.tanh(x[::-1] @ W).reshape(2, 2), acted(np.tanh(x @ W))
        ratios.append(np.linalg.norm(before - after) / (np.linalg.norm(before) + np.linalg.norm(after)))
    np.testing.assert_allclose(run(np.where(where[:, None], X, np.inf)), np.mean(ratios), rtol=1e-12)


def test_limits(x64):
    same = lambda x: x
    assert float(error(same, X, flip, flip)) == 0.0
    assert float(error(lambda x: 0 * x, X, flip, flip)) == 0.0
    np.testing.assert_allclose(error(same, X, lambda x: -x, same), 1.0)
    np.testing.assert_allclose(error(lambda x: x.sum(1), X, flip, same), 0.0, atol=1e-15)
    np.testing.assert_allclose(error(same, X, lambda x: 3 * x, same), 0.5)
