"""Monte Carlo dropout's measures, the scores of STAR and the choice by them, against loops and published values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import regjax as rj

d = rj.diagnostics
RNG = np.random.default_rng(0)
KEY = jax.random.key(0)


def softmax(z):
    p = np.exp(z - z.max())
    return p / p.sum()


def entropy(p):
    return -sum(v * np.log(v) for v in p if v > 0)


def test_statistics_equal_a_loop(x64):
    logits = 2 * RNG.normal(size=(5, 3, 2, 4))
    logits[1, 0, 0, 2] = logits[:, 1, 0, 3] = -np.inf
    got = jax.jit(d.mc_dropout_statistics)(logits)
    assert got.mean_prob.shape == (3, 2, 4)
    for i in np.ndindex(3, 2):
        p = np.array([softmax(logits[t][i]) for t in range(5)])
        mean = p.mean(0)
        expected = np.mean([entropy(row) for row in p])
        votes = np.bincount(p.argmax(1), minlength=4)
        variance = np.mean([np.mean((p[:, k] - mean[k]) ** 2) for k in range(4)])
        want = (mean, entropy(mean), expected, entropy(mean) - expected, 1 - votes.max() / 5, variance)
        for a, b, name in zip(got, want, got._fields, strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-11, atol=1e-14, err_msg=name)
    total = lambda z: jnp.stack([jnp.sum(jnp.sin(value)) for value in d.mc_dropout_statistics(z)])
    assert np.all(np.isfinite(jax.jit(jax.jacrev(total))(logits)))


def test_published_values(x64):
    s = d.mc_dropout_statistics(np.log([[[0.9, 0.1]], [[0.5, 0.5]]]))
    np.testing.assert_allclose(s.predictive_entropy, 0.61086430, atol=1e-8)
    np.testing.assert_allclose(s.expected_entropy, 0.50911508, atol=1e-8)
    np.testing.assert_allclose(s.mutual_information, 0.10174923, atol=1e-8)


def test_equal_passes_have_no_mutual_information():
    logits = jnp.asarray(RNG.normal(size=(1, 50, 7)) * 5, jnp.float32)
    statistics = jax.jit(d.mc_dropout_statistics)
    for passes in (1, 3, 10):
        s = statistics(jnp.repeat(logits, passes, axis=0))
        assert not np.any(s.mutual_information) and not np.any(s.variation_ratio)
        np.testing.assert_allclose(s.predictive_entropy, s.expected_entropy, rtol=1e-6)
        np.testing.assert_allclose(s.variance, 0, atol=1e-12)


def test_small_differences_and_extreme_logits_keep_their_digits():
    # The difference of two entropies would be lost in float32: here it is of order 1e-8.
    logits = jnp.array([[[1.0, 0.0]], [[1.0005, 0.0]]])
    p = np.array([1 / (1 + np.exp(-np.float64(z))) for z in np.asarray(logits[:, 0, 0], np.float64)])
    h = lambda q: -q * np.log(q) - (1 - q) * np.log(1 - q)
    s = d.mc_dropout_statistics(logits)
    np.testing.assert_allclose(s.mutual_information, h(p.mean()) - h(p).mean(), rtol=0.05, atol=2e-9)
    s = d.mc_dropout_statistics(jnp.array([[[1e4, -1e4]], [[-1e4, 1e4]]]))
    np.testing.assert_allclose([s.predictive_entropy[0], s.mutual_information[0]], np.log(2), rtol=1e-6)
    assert s.expected_entropy[0] == 0 and s.variation_ratio[0] == 0.5 and s.variance[0] == 0.25


def test_passes_have_keys_of_their_own_however_they_run():
    x, kernel = jnp.ones((4, 30)), jnp.ones((30, 2))
    model = lambda key, x: {"logits": rj.layers.dropout(key, x, rate=0.5) @ kernel, "input": x}
    predict = jax.jit(d.mc_predict, static_argnums=1, static_argnames=("passes", "batch_size"))
    got = predict(KEY, model, x, passes=6)
    assert got["logits"].shape == (6, 4, 2) and len(np.unique(got["logits"][:, 0, 0])) > 2
    want = jnp.stack([model(k, x)["logits"] for k in jax.random.split(KEY, 6)])
    for size in (None, 1, 4):
        np.testing.assert_allclose(predict(KEY, model, x, passes=6, batch_size=size)["logits"], want, rtol=1e-6)
    assert not np.any(d.mc_dropout_statistics(d.mc_predict(KEY, lambda k, x: x @ kernel, x, passes=3)).mutual_information)
    # Dropout before a linear layer: the mean is the plain output, the variance the textbook one.
    draws = np.asarray(predict(KEY, model, x, passes=2000)["logits"])[..., 0]
    assert abs(draws.mean() - 30) < 5 * np.sqrt(30 / 8000) and abs(draws.var() - 30) < 5 * 30 * np.sqrt(2 / 8000)


@pytest.mark.parametrize("kind", ["likelihood", "entropy"])
def test_sequences_equal_a_loop(x64, kind):
    logits = 4 * RNG.normal(size=(3, 2, 5, 6))
    logits[0, 0, 0, 1] = -40.0
    tokens = RNG.integers(0, 6, (2, 5))
    where = RNG.random((2, 5)) < 0.7
    want = np.zeros(2)
    for t, b, i in np.ndindex(3, 2, 5):
        if where[b, i]:
            p = softmax(logits[t, b, i])
            want[b] += -np.log(p[tokens[b, i]]) / 3 if kind == "likelihood" else -np.sum(p * np.log(np.maximum(p, 1e-6))) / 3
    masked = np.where(where, tokens, -100)
    got = jax.jit(lambda z: d.sequence_uncertainty(z, masked, kind=kind, where=where))(logits)
    np.testing.assert_allclose(got, want, rtol=1e-12)
    one = d.sequence_uncertainty(logits[:, 0], tokens[0], kind=kind, where=where[0])
    assert one.shape == () and float(one) == pytest.approx(want[0], rel=1e-12)
    if kind == "likelihood":
        assert np.isnan(d.sequence_uncertainty(logits[:, 0], tokens[0] + 6))


def test_star_moves_from_the_untuned_to_the_tuned_model(x64):
    full, base = RNG.normal(size=8) * 30, RNG.random(8)
    scaled = (full - full.min()) / (full.max() - full.min())
    star = jax.jit(d.star_uncertainty, static_argnames="normalize_full")
    for iteration in range(12):
        w = min(0.1 * (iteration + 1), 1)
        np.testing.assert_allclose(star(full, base, iteration=iteration), w * scaled + (1 - w) * base, rtol=1e-12)
        np.testing.assert_allclose(
            star(full, base, iteration=iteration, normalize_full=False), w * full + (1 - w) * base, rtol=1e-12
        )
    np.testing.assert_array_equal(star(full, base, iteration=3, rate=0.0), base)


def test_in_the_tenth_round_the_tuned_model_counts_alone():
    full, base = jnp.asarray(RNG.normal(size=8), jnp.float32), jnp.asarray(RNG.random(8), jnp.float32)
    np.testing.assert_array_equal(d.star_uncertainty(full, base, iteration=9, normalize_full=False), full)
    np.testing.assert_array_equal(d.star_uncertainty(full, base, iteration=9), d.normalize_scores(full))


def test_normalised_scores():
    scores = jnp.array([3.0, 1.0, 2.0, 100.0])
    pool = jnp.array([True, True, True, False])
    assert d.normalize_scores(scores, where=pool).tolist() == [1.0, 0.0, 0.5, 0.0]
    assert d.normalize_scores(scores, where=~pool).tolist() == [0.0] * 4
    assert d.normalize_scores(jnp.full(3, 7.0)).tolist() == [0.0] * 3
    assert np.all(np.isfinite(jax.grad(lambda s: jnp.sum(jnp.sin(d.normalize_scores(s))))(jnp.full(3, 7.0))))
    got = d.normalize_scores(jnp.array([0.0, 3.0], jnp.bfloat16))
    assert got.dtype == jnp.float32 and got.tolist() == [0.0, 1.0]


def test_the_top_is_chosen_from_what_is_left():
    scores = jnp.asarray(RNG.normal(size=40), jnp.float32)
    labelled = jnp.asarray(RNG.random(40) < 0.4)
    order = [i for i in np.argsort(-np.asarray(scores), kind="stable") if not labelled[i]]
    select = jax.jit(lambda s, e: d.select_top(s, num=20, exclude=e))
    np.testing.assert_array_equal(select(scores, labelled), order[:20])
    np.testing.assert_array_equal(d.select_top(scores, num=40), np.argsort(-np.asarray(scores), kind="stable"))
    few = jnp.arange(40) > 2
    np.testing.assert_array_equal(np.sort(select(scores, few)[:3]), [0, 1, 2])
    assert np.all(select(scores, few)[3:] == -1)
    # Equal ones in their order; a candidate of -inf comes before none, NaN last.
    odd = jnp.array([jnp.nan, -jnp.inf, 1.0, 1.0, 5.0])
    assert d.select_top(odd, num=5, exclude=jnp.arange(5) == 4).tolist() == [2, 3, 1, 0, -1]
