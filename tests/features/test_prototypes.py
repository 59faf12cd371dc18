"""Class prototypes, the distance to them, and the bound on what is forgotten."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import regjax as rj

prototypes, loss = rj.features.class_prototypes, rj.features.prototype_loss


def test_prototypes_are_means_of_those_that_count(x64):
    rng = np.random.default_rng(0)
    h, y, where = rng.normal(size=(20, 3)), rng.integers(-1, 5, 20), rng.random(20) < 0.7
    h[~where] = np.nan
    got = jax.jit(lambda h, y, where: prototypes(h, y, 6, where=where))(h, y, where)
    for k in range(6):
        rows = [h[i] for i in range(20) if y[i] == k and where[i]]
        np.testing.assert_allclose(got[k], np.mean(rows, 0) if rows else np.zeros(3), atol=1e-12)
    assert prototypes(jnp.ones((2, 3)), jnp.array([0, 200], jnp.uint8), 300).shape == (300, 3)


def looped(h, y, p, distance, where):
    total, count = 0.0, 0
    for i in range(len(h)):
        if not where[i] or not 0 <= y[i] < len(p) or not p[y[i]].any():
            continue
        count += 1
        if distance == "l2":
            total += np.mean((h[i] - p[y[i]]) ** 2)
        else:
            q, r = (np.exp(v) / np.exp(v).sum() for v in (p[y[i]], h[i]))
            total += sum(a * np.log(a / b) for a, b in zip(q, r, strict=True))
    return total / max(count, 1)


@pytest.mark.parametrize("distance", ["kl", "l2"])
def test_the_distance_to_the_prototypes(x64, distance):
    rng = np.random.default_rng(1)
    h, y, p, where = rng.normal(size=(12, 4)), rng.integers(-1, 5, 12), rng.normal(size=(4, 4)), np.arange(12) != 3
    p[2] = 0
    assert {-1, 2, 4} <= set(y.tolist()), "an unknown class on each side, and one without examples"
    both = jax.jit(jax.value_and_grad(lambda h, y, p, where: loss(h, y, p, distance=distance, where=where)))
    value, grad = both(h, y, p, where)
    assert float(value) == pytest.approx(looped(h, y, p, distance, where), rel=1e-10)
    left_out = ~where | (y < 0) | (y > 3) | (y == 2)
    assert not np.asarray(grad)[left_out].any() and np.asarray(grad)[~left_out].any(-1).all()
    # At the prototypes, for the divergence up to a constant, it is 0.
    known = np.clip(y, 0, 3)
    assert float(both(p[known] + (5.0 if distance == "kl" else 0.0), known, p, where)[0]) == pytest.approx(0, abs=1e-12)
    # All left out, whatever the features hold.
    value, grad = both(np.full(h.shape, np.nan), np.where(y == 9, 9, 2), p, where)
    assert float(value) == 0 and not grad.any()


def test_a_divergence_by_hand():
    assert float(loss(jnp.array([[0.0, 0]]), jnp.array([0]), jnp.array([[1.0, 0]]))) == pytest.approx(0.1109441, abs=1e-6)


def test_forgetting_is_bounded():
    forget = rj.objectives.bounded_forgetting
    for given, want, slope in ((12.0, 0.0, 0.0), (3.0, 7.0, -1.0)):
        value, grad = jax.jit(jax.value_and_grad(lambda x, bound: forget(x, bound=bound)))(given, 10.0)
        assert (float(value), float(grad)) == (want, slope)
    loss_fn = forget(lambda w, x: (jnp.sum(w * x), {"x": x}), bound=optax.linear_schedule(10.0, 0.0, 10), has_aux=True)
    (value, aux), grad = jax.value_and_grad(loss_fn, has_aux=True)(jnp.array([1.0, 2.0]), jnp.array([1.0, 0.5]), step=5)
    assert float(value) == 3.0 and grad.tolist() == [-1.0, -0.5] and aux["x"].tolist() == [1.0, 0.5]


def test_the_score_of_forgetting():
    score = rj.diagnostics.forgetting_score
    assert float(score(60.0, 80.0)) == pytest.approx(68.5714286)
    got = score(jnp.array([0.5, 0.0, -0.5, 0.5]), jnp.array([0.5, 0.9, 0.5, 0.0]))
    np.testing.assert_allclose(got, [0.5, 0, 0, 0])
