"""Risk and coverage against loop-written float64 references and published values."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import regjax as rj

RNG = np.random.default_rng(0)
SCORES = RNG.normal(size=30)
CORRECT = RNG.random(30) < 0.7
WHERE = RNG.random(30) < 0.6
METHODS = ("trapezoid", "mean", "normalized_trapezoid")

normalise = jax.jit(rj.diagnostics.normalized_max_logit, static_argnames="center")


@jax.jit
def areas(scores, correct, where=True):
    """The area by each method, and the excess."""
    where = jnp.broadcast_to(where, scores.shape)
    every = [rj.diagnostics.aurc(scores, correct, method=method, where=where) for method in METHODS]
    return jnp.stack([*every, rj.diagnostics.excess_aurc(scores, correct, where=where)])


def curve(scores, correct):
    """Risks 1..N after a stable sort by falling score."""
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    errors, risks = 0, []
    for i, index in enumerate(order, 1):
        errors += not correct[index]
        risks.append(errors / i)
    return risks


def area(scores, correct, method):
    risks = curve(scores, correct)
    n = len(risks)
    if method == "mean":
        return sum(risks) / n
    if method == "trapezoid":
        return sum((a + b) / 2 for a, b in zip([0.0, *risks[:-1]], risks, strict=True)) / n
    return sum((a + b) / 2 for a, b in itertools.pairwise(risks)) / n / (1 - 1 / n)


def normalized(logits, p, center=True, where=None):
    out = []
    for i, z in enumerate(logits):
        present = [v for k, v in enumerate(z) if where is None or where[i][k]]
        mean = sum(present) / len(present) if center else 0.0
        norm = sum(abs(v - mean) ** p for v in present) ** (1 / p)
        out.append((max(present) - mean) / norm)
    return np.array(out)


def test_published_values(x64):
    scores, correct = np.array([0.9, 0.8, 0.7, 0.6]), np.array([1, 0, 1, 0])
    np.testing.assert_allclose(areas(scores, correct), [0.2708333, 0.3333333, 0.3611111, 0.125], atol=5e-8)
    assert areas(scores, np.zeros(4, int))[0] == pytest.approx(0.875, abs=1e-12)
    assert rj.diagnostics.aurc(scores, correct) == pytest.approx(0.2708333, abs=5e-8)
    for p, want in ((1, 0.5), (2, 0.7071068), (5, 0.8705506)):
        assert normalise(np.array([3.0, 1.0, -1.0]), p=p) == pytest.approx(want, abs=5e-8)
    assert normalise(np.array([3.0, 1.0, -1.0]), p=2, center=False) == pytest.approx(0.9045340, abs=5e-8)


def test_curve_and_areas_equal_their_references(x64):
    run = jax.jit(rj.diagnostics.risk_coverage)
    for where in (np.ones(30, bool), WHERE):
        coverage, risk = run(np.where(where, SCORES, np.nan), CORRECT, where=where)
        n = where.sum()
        risks = curve(SCORES[where], CORRECT[where])
        np.testing.assert_allclose(risk, [0.0, *risks, *[risks[-1]] * (30 - n)], rtol=1e-12)
        np.testing.assert_allclose(coverage, np.minimum(np.arange(31), n) / n, rtol=1e-12)
        want = [area(SCORES[where], CORRECT[where], method) for method in METHODS]
        best = area(CORRECT[where].astype(float), CORRECT[where], "mean")
        np.testing.assert_allclose(areas(SCORES, CORRECT, where), [*want, want[1] - best], rtol=1e-12)
        # A score that ranks every error last has no excess.
        assert areas(SCORES + 100 * CORRECT, CORRECT, where)[3] == pytest.approx(0, abs=1e-12)


def test_equal_scores_keep_their_order_and_infinite_ones_their_place(x64):
    correct, every = np.array([0, 1, 1, 0, 1]), np.ones(5, bool)
    for scores in (np.zeros(5), np.array([0.0, -0.0, 0.0, -0.0, 0.0]), np.array([np.inf, 0.0, 0.0, -np.inf, -np.inf])):
        assert areas(scores, correct, every)[1] == pytest.approx(area(scores, correct, "mean"), rel=1e-12)
    # -inf counts before what does not count, and NaN is the least of all.
    where = np.array([True, True, False, True, True])
    scores = np.array([1.0, -np.inf, 5.0, -np.inf, 2.0])
    assert areas(scores, correct, where)[1] == pytest.approx(area(scores[where], correct[where], "mean"))
    last = np.array([np.nan, 1.0, 2.0, 3.0, 4.0])
    assert areas(last, correct, every)[1] == pytest.approx(area([-1.0, 1.0, 2.0, 3.0, 4.0], correct, "mean"))


def test_without_errors_without_examples_and_with_one():
    right, every = np.ones(30, bool), np.ones(30, bool)
    assert not areas(SCORES, right, every).any()
    assert not areas(SCORES, CORRECT, ~every).any()
    np.testing.assert_array_equal(areas(SCORES, ~right, np.arange(30) == 3), [0.5, 1, 1, 0])
    np.testing.assert_array_equal(areas(np.ones(1), np.zeros(1)), [0.5, 1, 1, 0])


def test_areas_of_many_seeds_at_once():
    scores = RNG.normal(size=(4, 30)).astype(np.float32)
    got = jax.jit(jax.vmap(lambda s: rj.diagnostics.aurc(s, CORRECT, where=s > -1)))(scores)
    want = [area(s[s > -1], CORRECT[s > -1], "trapezoid") for s in scores]
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_normalised_logits_equal_their_reference(x64):
    logits = RNG.normal(size=(6, 5))
    where = RNG.random((6, 5)) < 0.5
    where[:, :2] = True

    @jax.jit
    def run(logits, p):
        score = rj.diagnostics.normalized_max_logit
        return score(logits, p=p), score(logits, p=p, center=False), score(logits.T, p=p, axis=0, where=where.T)

    for p in (1.0, 2.0, 3.5, 10.0):
        plain, uncentred, masked = run(logits, p)
        np.testing.assert_allclose(plain, normalized(logits, p), rtol=1e-12)
        np.testing.assert_allclose(uncentred, normalized(logits, p, center=False), rtol=1e-12)
        np.testing.assert_allclose(masked, normalized(logits, p, where=where), rtol=1e-12)
        np.testing.assert_allclose(run(30 * logits + 4, p)[0], plain, rtol=1e-10)


def test_normalised_logits_of_any_size_are_finite():
    @jax.jit
    def run(logits):
        total = lambda z: rj.diagnostics.normalized_max_logit(z, p=10).sum()
        return rj.diagnostics.normalized_max_logit(logits, p=10), jax.grad(total)(logits)

    logits = np.float32([[3, 1, -1], [3e30, 1e30, -1e30], [3e-30, 1e-30, -1e-30], [7, 7, 7], [0, 0, 0]])
    score, gradient = run(logits)
    np.testing.assert_allclose(score[:3], [score[0]] * 3, rtol=1e-5)
    assert not score[3:].any() and not gradient[3:].any() and np.all(np.isfinite(gradient))


def test_search_finds_the_order_of_least_area(x64):
    logits, labels = RNG.normal(size=(30, 5)), RNG.integers(0, 2, size=30)
    search = jax.jit(rj.diagnostics.search_logit_norm, static_argnames=("p_values", "method"))
    correct = logits.argmax(1) == labels
    best_p, aurcs = search(logits, labels, method="mean")
    want = [area(normalized(logits, p), correct, "mean") for p in range(1, 11)]
    np.testing.assert_allclose(aurcs, want, rtol=1e-12)
    assert best_p == 1 + int(np.argmin(want))
    best_p, aurcs = search(logits, labels, p_values=(2.5, 1), where=WHERE)
    want = [area(normalized(logits, p)[WHERE], correct[WHERE], "trapezoid") for p in (2.5, 1)]
    np.testing.assert_allclose(aurcs, want, rtol=1e-12)
    assert best_p == (2.5, 1)[int(np.argmin(want))]
