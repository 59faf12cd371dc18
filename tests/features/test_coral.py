"""Correlation alignment against loops over entries and pairs."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import regjax as rj

RNG = np.random.default_rng(0)
A, B = RNG.normal(size=(7, 3)), 1 + 2 * RNG.normal(size=(5, 3))
coral, domain_coral = rj.features.coral, rj.features.domain_coral


def reference(a, b, variant="domainbed"):
    moments = []
    for x in (a, b):
        mean = sum(x) / len(x)
        covariance = np.zeros((3, 3))
        for row in x:
            for d, e in itertools.product(range(3), repeat=2):
                covariance[d, e] += (row[d] - mean[d]) * (row[e] - mean[e]) / max(len(x) - 1, 1)
        moments.append((mean, covariance))
    (m, c), (n, k) = moments
    spread = ((c - k) ** 2).sum() / 9
    return spread / 4 if variant == "deep" else ((m - n) ** 2).sum() / 3 + spread


@pytest.mark.parametrize("variant", ["domainbed", "deep"])
def test_equals_loops_over_entries_and_pairs(x64, variant):
    features, domains, where = RNG.normal(size=(12, 3)), RNG.integers(0, 3, size=12), RNG.random(12) > 0.2
    domains[np.argmax(where)] = 4  # a domain with one example, beside one with none
    spoilt = np.where(where[:, None], features, np.nan)

    @jax.jit
    def run(spoilt):
        loss = lambda x: domain_coral(x, domains, num_domains=5, variant=variant, where=where)
        masked = coral(spoilt, B, variant=variant, where_a=where, where_b=np.arange(5) > 0)
        return coral(A, B, variant=variant), masked, jax.value_and_grad(loss)(spoilt)

    plain, masked, (value, gradient) = run(spoilt)
    np.testing.assert_allclose(plain, reference(A, B, variant), rtol=1e-12)
    np.testing.assert_allclose(masked, reference(features[where], B[1:], variant), rtol=1e-12)
    groups = [features[where & (domains == e)] for e in range(5) if np.any(where & (domains == e))]
    pairs = [reference(a, b, variant) for a, b in itertools.combinations(groups, 2)]
    np.testing.assert_allclose(value, np.mean(pairs), rtol=1e-12)
    assert np.all(np.isfinite(gradient)) and not np.any(np.asarray(gradient)[~where])


def test_shifts_large_means_and_unknown_domains():
    a = np.float32(A)
    # A shift is seen by the means alone, and does not spoil the covariances in float32.
    near, far = jax.jit(lambda: (jax.vmap(coral, (None, 0))(a, jnp.stack([a, a + 1])), coral(a, a + 300, variant="deep")))()
    np.testing.assert_allclose(near, [0.0, 1.0], rtol=1e-5, atol=0)
    assert float(far) < 1e-8
    by_domain = jax.jit(lambda domains, where: domain_coral(a, domains, num_domains=6, where=where))
    everyone = np.ones(7, bool)
    assert float(by_domain(np.zeros(7, int), everyone)) == 0.0
    assert np.isnan(by_domain(np.arange(7), everyone)) and np.isnan(by_domain(np.arange(7) % 6 - 1, everyone))
    assert np.isfinite(by_domain(np.arange(7), np.arange(7) < 6))
