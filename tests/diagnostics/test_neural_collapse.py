"""The measures of neural collapse against float64 references that build every matrix, and published values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import regjax as rj

RNG = np.random.default_rng(0)
K, D, N = 4, 6, 24
LABELS = RNG.integers(0, K, size=N)
FEATURES = RNG.normal(size=(K, D))[LABELS] + 0.3 * RNG.normal(size=(N, D)) + 2
WEIGHT = RNG.normal(size=(K, D))
LOGITS = FEATURES @ WEIGHT.T
metrics = jax.jit(rj.diagnostics.nc_metrics, static_argnames="num_classes")


def single(features, labels=LABELS, weight=WEIGHT, logits=LOGITS, where=True):
    """All measures in float32, always by the one compiled function."""
    features, weight, logits = (np.asarray(x, np.float32) for x in (features, weight, logits))
    return metrics(features, labels, K, weight=weight, logits=logits, where=np.broadcast_to(where, N))


def simplex(products):
    k = len(products)
    target = (np.eye(k) - np.ones((k, k)) / k) / np.sqrt(k - 1)
    return np.linalg.norm(products / np.linalg.norm(products) - target)


def variation(rows):
    norms = [np.sqrt(sum(v * v for v in row)) for row in rows]
    return np.std(norms, ddof=1) / np.mean(norms)


def reference(features, labels, weight, logits, global_mean):
    """Every measure in float64, over the classes that occur."""
    present = sorted(set(labels))
    n, k, d = len(features), len(present), features.shape[1]
    means = np.array([np.mean([h for h, y in zip(features, labels, strict=True) if y == c], axis=0) for c in present])
    m = means - (means.mean(0) if global_mean == "class" else features.mean(0))
    within, between = np.zeros((d, d)), np.zeros((d, d))
    for h, y in zip(features, labels, strict=True):
        within += np.outer(h - means[present.index(y)], h - means[present.index(y)]) / n
    for row in m:
        between += np.outer(row, row) / k
    cosines = [m[i] @ m[j] / np.linalg.norm(m[i]) / np.linalg.norm(m[j]) for i in range(k) for j in range(k) if i != j]
    w = weight[present]
    mismatches = 0
    for h, z in zip(features, logits, strict=True):
        nearest = present[int(np.argmin([np.linalg.norm(h - mean) for mean in means]))]
        mismatches += int(np.argmax(z)) != nearest
    return {
        "nc1": np.trace(within @ np.linalg.pinv(between, rcond=1e-10)) / k,
        "nc1_quotient": np.trace(within) / np.trace(between),
        "nc2_norm_cv": variation(m),
        "nc2_equiangularity": np.mean([abs(c + 1 / (k - 1)) for c in cosines]),
        "nc2_etf": simplex(m @ m.T),
        "nc2_weight_norm_cv": variation(w),
        "nc2_weight_etf": simplex(w @ w.T),
        "nc3_alignment": np.linalg.norm(m / np.linalg.norm(m) - w / np.linalg.norm(w)) ** 2,
        "nc3_duality": simplex(w @ m.T),
        "nc4_mismatch": mismatches / n,
    }


def each(features, labels, num_classes, weight, logits, global_mean, where):
    """Every measure through its own function."""
    one = dict(global_mean=global_mean, where=where)
    args = (features, labels, num_classes)
    d = rj.diagnostics
    return {
        "nc1": d.nc1(*args, **one),
        "nc1_quotient": d.nc1(*args, metric="quotient", **one),
        "nc2_norm_cv": d.nc2_norm_cv(*args, **one),
        "nc2_equiangularity": d.nc2_equiangularity(*args, **one),
        "nc3_alignment": d.nc3_alignment(*args, weight, **one),
        "nc3_duality": d.nc3_duality(*args, weight, **one),
        "nc4_mismatch": d.nc4_mismatch(*args, logits, where=where),
    }


@pytest.mark.parametrize("global_mean", ["class", "sample"])
def test_equal_their_references_with_an_absent_class_and_a_mask(x64, global_mean):
    # Class 4 of 5 is absent, and class 2 occurs only among the examples that do not count.
    where = (LABELS != 2) & (np.arange(N) % 5 > 0)
    weight, logits = np.vstack([WEIGHT, np.ones((1, D))]), np.hstack([LOGITS, np.full((N, 1), -9.0)])

    @jax.jit
    def run(features, where):
        args = (features, jnp.where(where, LABELS, -1), 5)
        report = rj.diagnostics.nc_metrics(*args, weight=weight, logits=logits, where=where)
        return each(*args, weight, logits, global_mean, where), report

    for mask in (where, np.ones(N, bool)):
        got, report = run(np.where(mask[:, None], FEATURES, np.nan), mask)
        kept = (FEATURES[mask], LABELS[mask], weight, logits[mask])
        want = reference(*kept, global_mean)
        for name, value in got.items():
            assert value == pytest.approx(want[name], rel=1e-8), name
        defaults = {**reference(*kept, "class"), "nc3_duality": reference(*kept, "sample")["nc3_duality"]}
        for name, value in report._asdict().items():
            assert value == pytest.approx(defaults[name], rel=1e-8), name


def test_published_values(x64):
    features, labels = np.concatenate([1.2 * np.eye(3), 0.8 * np.eye(3)]), np.tile(np.arange(3), 2)
    report = metrics(features, labels, 3, weight=np.eye(3) - 1 / 3)
    assert report.nc1 == pytest.approx(0.0266667, abs=5e-8)
    assert report.nc1_quotient == pytest.approx(0.06, abs=1e-12)
    np.testing.assert_allclose(report[2:9], 0, atol=1e-12)
    assert report.nc4_mismatch is None
    etf = jax.jit(rj.diagnostics.nc2_etf)
    first = np.arange(4) < 3
    assert etf(np.eye(4, D), where=first) == pytest.approx(0.6058109, abs=5e-8)
    assert etf(np.eye(4, D) - np.pad(np.full((4, 3), 1 / 3), ((0, 0), (0, D - 3))), where=first) == pytest.approx(0, abs=1e-12)
    kept = WEIGHT[[0, 2, 3]]
    assert etf(WEIGHT, where=np.array([True, False, True, True])) == pytest.approx(simplex(kept @ kept.T))


def test_alignment_at_its_ends(x64):
    means = np.array([FEATURES[c == LABELS].mean(0) for c in range(K)])
    centred = means - means.mean(0)
    run = jax.jit(lambda w: rj.diagnostics.nc3_alignment(FEATURES, LABELS, K, w))
    assert run(7 * centred) == pytest.approx(0, abs=1e-12)
    assert run(-0.1 * centred) == pytest.approx(4, rel=1e-12)


def test_shift_scale_and_rotation_change_nothing(x64):
    rotation = np.linalg.qr(RNG.normal(size=(D, D)))[0]
    one = metrics(FEATURES, LABELS, K, weight=WEIGHT, logits=LOGITS)
    for scale in (1e-40, 3.0, 1e40):
        moved = scale * (FEATURES @ rotation + 5)
        np.testing.assert_allclose(metrics(moved, LABELS, K, weight=WEIGHT @ rotation, logits=LOGITS), one, rtol=1e-9)


def test_float32_keeps_a_small_scatter_far_from_the_origin():
    # Multiples of 2^-9 around 64: the features are exact in float32, and a naive sum of squares would lose their scatter.
    spread = np.round(FEATURES * 512) / 512
    tight = np.round(512 * (10 * WEIGHT[LABELS] + 0.02 * RNG.normal(size=(N, D)))) / 512
    for features in (spread, tight):
        want = reference(features, LABELS, WEIGHT, LOGITS, "class")
        got = single(features + 64)
        for name in ("nc1", "nc1_quotient", "nc2_norm_cv", "nc2_equiangularity", "nc2_etf", "nc3_alignment"):
            assert getattr(got, name) == pytest.approx(want[name], rel=2e-3, abs=1e-6), name


def test_more_classes_than_dimensions(x64):
    labels = np.arange(N) % 8
    features = FEATURES[:, :3] + RNG.normal(size=(8, 3))[labels]
    want = reference(features, labels, RNG.normal(size=(8, 3)), np.ones((N, 8)), "class")
    assert metrics(features, labels, 8).nc1 == pytest.approx(want["nc1"], rel=1e-9)


def test_collapsed_features_and_lack_of_examples():
    report = single(WEIGHT[LABELS], logits=LABELS[:, None] == np.arange(K))
    assert abs(report.nc1) < 1e-10 and abs(report.nc1_quotient) < 1e-10 and report.nc4_mismatch == 0
    for where in (False, np.arange(N) == 3):
        report = single(FEATURES, where=where)
        assert np.all(np.isfinite(report)) and report.nc1 == report.nc1_quotient == report.nc2_etf == 0
    assert np.all(np.isfinite(single(np.ones((N, D)), weight=np.zeros((K, D)))))
    # Scatter, but equal means of the only two classes.
    apart, labels = np.zeros((N, D)), np.array([0, 0, 1, 1] + [3] * (N - 4))
    apart[:4, :2] = [[1, 0], [-1, 0], [0, 1], [0, -1]]
    report = single(apart, labels, where=np.arange(N) < 4)
    assert report.nc1 == 0 == report.nc1_quotient


def test_a_wrong_label_is_seen_in_every_measure():
    for wrong in (-1, K):
        labels = LABELS.copy()
        labels[3] = wrong
        of_features = single(FEATURES, labels)._replace(nc2_weight_norm_cv=np.nan, nc2_weight_etf=np.nan)
        assert np.all(np.isnan(of_features))
        assert np.all(np.isfinite(single(FEATURES, labels, where=np.arange(N) != 3)))
