"""Measures of unlearning against counts, the attack on confidences, and l1-sparse unlearning on digits."""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import regjax as rj

d = rj.diagnostics


def test_metrics_are_counts_and_gaps_are_distances():
    rng = np.random.default_rng(0)
    pairs = [(rng.normal(size=(n, 4)).astype(np.float32), rng.integers(0, 4, n)) for n in (7, 12, 9)]
    shares = [np.mean([int(np.argmax(row)) == label for row, label in zip(*pair, strict=True)]) for pair in pairs]
    got = jax.jit(d.unlearning_metrics)(*pairs)
    np.testing.assert_allclose(got[:3], [1 - shares[0], *shares[1:]], rtol=1e-6)
    assert got.ua_gap is got.ra_gap is got.ta_gap is None
    retrained = d.UnlearningMetrics(0.9, 0.1, float(got.ta))
    gaps = d.unlearning_metrics(*pairs, retrained=retrained)
    np.testing.assert_allclose(gaps[3:], [abs(got.ua - 0.9), abs(got.ra - 0.1), 0], atol=1e-6)
    itself = d.unlearning_metrics(*pairs, retrained=got)
    np.testing.assert_array_equal(itself[3:], 0)
    assert itself.ua.dtype == jnp.float32


def test_the_attack():
    rng = np.random.default_rng(0)
    attack = d.membership_inference_efficacy
    kept, unseen = rng.uniform(0.8, 1.0, 60), rng.uniform(0.0, 0.5, 60)
    assert attack(kept, unseen, rng.uniform(0.85, 1.0, 30)) == 0.0
    assert attack(kept, unseen, rng.uniform(0.0, 0.4, 30)) == 1.0
    alike = [attack(*(rng.uniform(size=(3, 100)))) for _ in range(40)]
    assert abs(np.mean(alike) - 0.5) < 5 * np.std(alike) / np.sqrt(40) and np.std(alike) > 0
    # With one point of each kind the boundary lies in the middle.
    assert attack(np.array([0.9]), np.array([0.1]), np.array([0.45, 0.49, 0.51, 0.6, 0.7])) == pytest.approx(0.4)


def test_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.svm", None)
    one = np.array([0.5])
    with pytest.raises(ImportError, match=r"membership_inference_efficacy needs scikit-learn: pip install 'regjax\[exp"):
        d.membership_inference_efficacy(one, one, one)


@pytest.mark.slow
def test_sparse_unlearning_is_closer_to_retraining():
    x, y = pytest.importorskip("sklearn.datasets").load_digits(return_X_y=True)
    x, y = jnp.asarray(x / 16, jnp.float32), np.asarray(y)
    order = np.random.default_rng(0).permutation(len(y))
    test, train = order[:500], order[500:]
    # What is to be forgotten was learned by heart: wrong labels, which a network without them would never give.
    forget, retain = train[:60], train[60:]
    y = jnp.asarray(y).at[forget].add(1 + np.arange(60) % 9) % 10
    keys = jax.random.split(jax.random.key(0), 2)
    start = [
        {"kernel": jax.random.normal(k, (a, b)) * (2 / a) ** 0.5, "bias": jnp.zeros(b)}
        for k, a, b in zip(keys, (64, 128), (128, 10), strict=True)
    ]
    logits = lambda p, x: jax.nn.relu(x @ p[0]["kernel"] + p[0]["bias"]) @ p[1]["kernel"] + p[1]["bias"]

    @functools.partial(jax.jit, static_argnames=("epochs", "rate"))
    def fit(params, data, epochs, rate, alpha=0.0):
        tx = optax.sgd(rate, momentum=0.9)
        per_epoch = 20
        strength = rj.schedules.unlearning_alpha(alpha=alpha, epochs=epochs, steps_per_epoch=per_epoch)

        def step(carry, at):
            params, opt = carry
            number, index = at

            def loss(p):
                ce = optax.softmax_cross_entropy_with_integer_labels(logits(p, x[index]), y[index]).mean()
                return ce + strength(number) * rj.weights.l1(p, where="all")

            updates, opt = tx.update(jax.grad(loss)(params), opt, params)
            return (optax.apply_updates(params, updates), opt), None

        index = data[jax.random.randint(jax.random.key(1), (epochs * per_epoch, 64), 0, len(data))]
        return jax.lax.scan(step, (params, tx.init(params)), (jnp.arange(len(index)), index))[0][0]

    def measure(params, **given):
        pair = lambda index: (logits(params, x[index]), y[index])
        confidence = lambda index: jnp.take_along_axis(jax.nn.softmax(pair(index)[0]), y[index][:, None], 1)[:, 0]
        some = retain[: len(test)]
        mia = d.membership_inference_efficacy(confidence(some), confidence(test), confidence(forget))
        return d.unlearning_metrics(pair(forget), pair(retain), pair(test), **given), mia

    original = fit(start, jnp.asarray(train), 60, 0.1)
    retrained, mia = measure(fit(start, jnp.asarray(retain), 60, 0.1))
    plain, plain_mia = measure(fit(original, jnp.asarray(retain), 10, 0.05), retrained=retrained)
    sparse, sparse_mia = measure(fit(original, jnp.asarray(retain), 10, 0.05, 5e-4), retrained=retrained)

    assert sparse.ua_gap < plain.ua_gap and abs(sparse_mia - mia) < abs(plain_mia - mia)
    assert sparse.ta > retrained.ta - 0.02
