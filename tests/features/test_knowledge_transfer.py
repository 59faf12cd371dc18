"""Probabilistic knowledge transfer against loops and the published values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import regjax as rj

RNG = np.random.default_rng(0)
FEATURES, TARGET = RNG.normal(size=(7, 4)), RNG.normal(size=(7, 3))
WHERE = np.array([True, True, False, True, False, True, True])
transfer = jax.jit(rj.features.probabilistic_knowledge_transfer, static_argnames="eps")


def neighbours(x, eps):
    rows = [v / (np.sqrt(sum(v**2)) + eps) for v in x]
    similarity = [[(sum(a * b) + 1) / 2 for b in rows] for a in rows]
    return [[s / sum(row) for s in row] for row in similarity]


def reference(features, target, eps=1e-7):
    p, q = neighbours(features, eps), neighbours(target, eps)
    n = len(features)
    return sum(q[i][j] * np.log((q[i][j] + eps) / (p[i][j] + eps)) for i in range(n) for j in range(n)) / n**2


def test_equals_the_loop_and_the_published_values(x64):
    assert transfer(FEATURES, TARGET) == pytest.approx(reference(FEATURES, TARGET), rel=1e-10)
    assert transfer(FEATURES, TARGET, eps=1e-2) == pytest.approx(reference(FEATURES, TARGET, 1e-2), rel=1e-10)
    assert transfer(FEATURES, TARGET, where=WHERE) == pytest.approx(reference(FEATURES[WHERE], TARGET[WHERE]), rel=1e-10)
    assert transfer(np.eye(2), np.ones((2, 2))) == pytest.approx(0.02944574, abs=5e-9)
    assert transfer(np.ones((2, 2)), np.eye(2)) == pytest.approx(0.02831650, abs=5e-9)
    assert transfer(FEATURES, FEATURES) == 0
    assert transfer(FEATURES[:1], TARGET[:1]) == pytest.approx(0, abs=1e-12)
    assert transfer(FEATURES, TARGET, where=np.zeros(7, bool)) == 0


def test_lengths_and_rotations_do_not_matter(x64):
    want = float(transfer(FEATURES, TARGET))
    lengths, rotation = RNG.uniform(1, 9, (7, 1)), np.linalg.qr(RNG.normal(size=(4, 4)))[0]
    assert transfer(lengths * FEATURES @ rotation, TARGET / lengths) == pytest.approx(want, rel=1e-5)
    wide = np.pad(FEATURES, ((0, 0), (0, 3)))
    assert transfer(wide, TARGET) == pytest.approx(want, rel=1e-12)


def test_gradient_goes_along_the_sphere_and_not_to_the_target(x64):
    hidden = np.where(WHERE[:, None], FEATURES, np.nan)

    @jax.jit
    def gradients(features, hidden):
        gradient = jax.grad(rj.features.probabilistic_knowledge_transfer, argnums=(0, 1))
        masked = jax.grad(lambda f: rj.features.probabilistic_knowledge_transfer(f, TARGET, where=WHERE))(hidden)
        return *jax.vmap(lambda f: gradient(f, jnp.asarray(TARGET)))(jnp.stack([features, features.at[2].set(0)])), masked

    (by_features, at_zero), by_target, masked = map(np.asarray, gradients(jnp.asarray(FEATURES), hidden))
    assert not by_target.any() and by_features.any()
    np.testing.assert_allclose(np.sum(by_features * FEATURES, 1), 0, atol=1e-8)
    assert np.all(np.isfinite(at_zero)) and not at_zero[2].any() and at_zero[0].any()
    assert np.all(np.isfinite(masked)) and not masked[~WHERE].any() and masked[WHERE].any()


def test_descent_recovers_the_neighbourhoods(x64):
    """Features in fewer dimensions are moved until their similarities are the target's."""
    target = jnp.asarray(RNG.normal(size=(7, 2)))

    def descend(features, _):
        value, gradient = jax.value_and_grad(rj.features.probabilistic_knowledge_transfer)(features, target)
        return features - 20 * gradient, value

    end, values = jax.jit(lambda f: jax.lax.scan(descend, f, length=600))(jnp.asarray(FEATURES))
    assert values[-1] < 0.02 * values[0]
    cosines = lambda x: (x / np.linalg.norm(x, axis=1, keepdims=True)) @ (x / np.linalg.norm(x, axis=1, keepdims=True)).T
    assert np.abs(cosines(np.asarray(end)) - cosines(np.asarray(target))).max() < 0.5


def test_the_whole_batch_counts_over_devices_and_gradients_average():
    features, target = (jnp.asarray(RNG.normal(size=(8, d)), jnp.float32) for d in (4, 3))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

    def step(w, features, target):
        loss = lambda w: rj.features.probabilistic_knowledge_transfer(jnp.tanh(features @ w), target, axis_name="data")
        value, gradient = jax.value_and_grad(loss)(w)
        return value, jax.lax.pmean(gradient, "data")

    w = jnp.asarray(RNG.normal(size=(4, 4)), jnp.float32)
    rows = jax.P("data")
    mapped = jax.shard_map(step, mesh=mesh, in_specs=(jax.P(), rows, rows), out_specs=(jax.P(), jax.P()), check_vma=False)
    got = jax.jit(mapped)(w, features, target)
    want = jax.value_and_grad(lambda w: rj.features.probabilistic_knowledge_transfer(jnp.tanh(features @ w), target))(w)
    np.testing.assert_allclose(got[0], want[0], rtol=1e-5)
    np.testing.assert_allclose(got[1], want[1], rtol=1e-4, atol=1e-6)
