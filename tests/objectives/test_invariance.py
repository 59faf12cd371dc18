"""IRM, V-REx and Fishr against loops, in each of their layouts of domains."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

import regjax as rj
from tests.objectives.problems import close
from tests.references import log_softmax, soft_labels

RNG = np.random.default_rng(0)
LOGITS, LABELS = RNG.normal(size=(12, 3)), RNG.integers(0, 3, size=12)
DOMAINS = RNG.integers(0, 3, size=12)
WHERE = RNG.random(12) > 0.2
irm, vrex, fishr = rj.objectives.irm_penalty, rj.objectives.vrex_penalty, rj.objectives.fishr


def scale_slope(z, y, step=1e-6):
    """The derivative of the cross-entropy by a factor on the logits, by differences."""
    loss = lambda w: -sum(t * v for t, v in zip(y, log_softmax(w * z), strict=True))
    return (loss(1 + step) - loss(1 - step)) / (2 * step)


def irm_reference(z, y, domains, where, split, num_domains=4):
    penalties = []
    for e in range(num_domains):
        g = [scale_slope(a, b) for a, b, d, w in zip(z, y, domains, where, strict=True) if w and d == e]
        if split and len(g) > 1:
            penalties.append(np.mean(g[::2]) * np.mean(g[1::2]))
        elif not split and g:
            penalties.append(np.mean(g) ** 2)
    return np.mean(penalties)


def test_irm_equals_loops_in_every_layout(x64):
    hard, soft = np.eye(3)[LABELS], soft_labels(RNG, 12, 3)
    spoilt, wrong = np.where(WHERE[:, None], LOGITS, np.nan), np.where(WHERE, LABELS, -1)
    alternating, everyone = np.arange(12) % 2, np.ones(12, bool)

    @jax.jit
    def run():
        both = [
            (
                irm(spoilt, wrong, split=split, domains=DOMAINS, num_domains=4, where=WHERE),
                irm(LOGITS, soft, split=split, domains=alternating, num_domains=4),
                irm(LOGITS.reshape(3, 4, 3), LABELS.reshape(3, 4), split=split, where=WHERE.reshape(3, 4)),
                irm(LOGITS, LABELS, split=split),
            )
            for split in (True, False)
        ]
        return both, jax.grad(lambda z: irm(z, wrong, domains=DOMAINS, num_domains=4, where=WHERE))(spoilt)

    got, gradient = run()
    for split, values in zip((True, False), got, strict=True):
        want = [
            irm_reference(LOGITS, hard, DOMAINS, WHERE, split),
            irm_reference(LOGITS, soft, alternating, everyone, split),
            irm_reference(LOGITS, hard, np.repeat(np.arange(3), 4), WHERE, split),
            irm_reference(LOGITS, hard, np.zeros(12), everyone, split),
        ]
        close(np.array(values), np.array(want), rtol=1e-7, atol=1e-12)
    assert np.all(np.isfinite(gradient)) and not np.any(np.asarray(gradient)[~WHERE])


def test_irm_published_value_limits_and_unbiased_halves(x64):
    # All orders of four examples, each as a domain: the mean is that over pairs of different examples.
    orders = np.array(list(itertools.permutations(range(4))))
    slopes = [scale_slope(z, np.eye(3)[y]) for z, y in zip(LOGITS[:4], LABELS[:4], strict=True)]
    absent = np.concatenate([LOGITS, np.full((12, 1), -np.inf)], 1)  # a class that does not exist

    @jax.jit
    def run():
        return (
            irm(jnp.array([[2.0, 0.0], [0.0, 1.0]]), jnp.array([0, 0])),
            irm(LOGITS[orders], LABELS[orders]),
            irm(LOGITS[:1], LABELS[:1]),
            irm(LOGITS, LABELS, where=np.zeros(12, bool)),
            jax.value_and_grad(lambda z: irm(z, LABELS))(absent),
            irm(LOGITS, LABELS),
            irm(LOGITS, LABELS, domains=DOMAINS, num_domains=2),
        )

    published, shuffled, single, none, (value, gradient), plain, wrong = run()
    close(published, -0.1742885, rtol=1e-6)
    close(shuffled, np.mean([a * b for a, b in itertools.permutations(slopes, 2)]), rtol=1e-7)
    assert single == none == 0.0
    close(value, plain)
    assert np.all(np.isfinite(gradient)) and np.isnan(wrong)


def test_vrex_equals_loops_in_every_layout(x64):
    losses = RNG.random(12)
    spoilt = np.where(WHERE, losses, np.nan)
    means = lambda domains: [losses[WHERE & (domains == e)].mean() for e in range(4) if np.any(WHERE & (domains == e))]

    @jax.jit
    def run():
        values = (
            vrex(spoilt, domains=DOMAINS, num_domains=4, where=WHERE),
            vrex(spoilt.reshape(3, 4), where=WHERE.reshape(3, 4)),
            vrex(losses),
            vrex(spoilt, where=WHERE),
            vrex(losses[:1]),
        )
        return jnp.stack(values), jax.grad(vrex)(losses), vrex(losses, domains=DOMAINS - 1, num_domains=3)

    values, gradient, wrong = run()
    want = [means(DOMAINS), means(np.repeat(np.arange(3), 4)), losses, losses[WHERE], [0.0]]
    close(values, [np.var(x) for x in want], atol=1e-16)
    close(gradient, 2 * (losses - losses.mean()) / 12)
    assert np.isnan(wrong)


FEATURES, WEIGHT, BIAS = RNG.normal(size=(12, 2)), RNG.normal(size=(3, 2)), RNG.normal(size=3)


def variances(features, labels, rows):
    """The biased variance of each coordinate of the head's gradients, over some examples."""
    gradients = []
    for i in np.flatnonzero(rows):
        error = np.exp(log_softmax(WEIGHT @ features[i] + BIAS)) - labels[i]
        gradients.append(np.append(np.outer(error, features[i]).ravel(), error))
    return np.var(gradients, 0)


def test_fishr_remembers_the_variances_of_present_domains(x64):
    memory = fishr(4, ema=lambda step: 0.25 * step)
    state = memory.init(jnp.asarray(WEIGHT))
    step = jax.jit(lambda state, x, y, d, where, t: memory.apply(state, x, WEIGHT, BIAS, y, d, where=where, step=t))
    sums = {}
    for t, labels in enumerate((np.eye(3)[LABELS], soft_labels(RNG, 12, 3), soft_labels(RNG, 12, 3))):
        features, domains, where = RNG.normal(size=(12, 2)), RNG.integers(0, 3, size=12), RNG.random(12) > 0.2
        if t == 1:
            domains = np.minimum(domains, 1)  # the third is absent
        past = dict(sums)
        for e in range(4):
            rows = where & (domains == e)
            if rows.any():
                sums[e] = variances(features, labels, rows) + 0.25 * t * past.get(e, 0.0)
        here = np.stack([sums[e] for e in range(4) if np.any(where & (domains == e))])
        got, state = step(state, np.where(where[:, None], features, np.nan), labels, domains, where, t)
        close(got, np.mean((here - here.mean(0)) ** 2), rtol=1e-6)  # the memory is in float32
        for e in range(4):
            kept = np.append(np.ravel(state.weight[e]), state.bias[e])
            close(kept, sums.get(e, np.zeros(9)), rtol=1e-6)
    assert set(sums) == {0, 1, 2}


def test_fishr_keeps_small_variances_beside_large_means_and_no_gradient_to_the_past():
    features, labels = np.float32(FEATURES), np.int32(LABELS)
    domains = np.arange(12) % 2
    state = fishr(2).init(WEIGHT)._replace(weight=jnp.ones((2, 3, 2)))

    @jax.jit
    def run(offset, state):
        apply = lambda state: fishr(2, ema=0.0).apply(state, features + offset, jnp.zeros((3, 2)), jnp.zeros(3), labels, domains)
        return apply(state)[1].weight, jax.grad(lambda state: fishr(2).apply(state, features, WEIGHT, BIAS, labels, domains)[0])(
            state
        )

    got, gradient = run(np.array([0.0, 300.0], np.float32), state)
    error = 1 / 3 - np.eye(3)[LABELS]
    exact = FEATURES.astype(np.float32).astype(np.float64) + [0, 300]
    exact = np.float64(np.float32(exact))
    for e in range(2):
        rows = domains == e
        want = np.var(error[rows, :, None] * exact[rows, None, :], 0)
        np.testing.assert_allclose(got[e], want, rtol=3e-5, atol=1e-5)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient))
    wrong = np.where(np.arange(12) == 3, 3, labels)
    apply = jax.jit(lambda labels, domains: fishr(2).apply(state, features, WEIGHT, BIAS, labels, domains)[0])
    assert np.isnan(apply(wrong, domains)) and np.isnan(apply(labels, domains + 1))
    assert float(apply(labels, np.zeros(12, int))) == 0.0
