"""Gradient dropout: its probabilities against the published ones, its draws, and optax's wrappers with a reference."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_digits

import regjax as rj

G, R = np.array([1.0, -2.0, 0.5, -0.5, 3.0]), np.array([2.0, 1.0, -0.5, 1.5, -1.0])
KEYS = jax.random.split(jax.random.key(0), 4)
GRADS = {"a": jax.random.normal(KEYS[0], (40, 50)), "b": {"c": jax.random.normal(KEYS[1], (40, 50))}}
REFERENCE = {"a": jax.random.normal(KEYS[2], (40, 50)), "b": {"c": jax.random.normal(KEYS[3], (40, 50))}}


def updates(*cases):
    """For each ``(transformation, reference)``, or with gradients too, the updates of three steps; compiled together."""
    cases = [(*case, *(REFERENCE, GRADS)[len(case) - 1 :]) for case in cases]

    @jax.jit
    def run(trees):
        out = []
        for (tx, *_), (reference, grads) in zip(cases, trees, strict=True):
            state, steps = tx.init(grads), []
            for _ in range(3):
                update, state = tx.update(grads, state, grads, reference=reference)
                steps.append(update)
            out.append(steps)
        return out

    return run([case[1:] for case in cases])


def kept(out, grads=GRADS):
    return jax.tree.map(lambda u, g: np.asarray(u == g), out, grads)


def test_probabilities_are_the_published_ones_and_the_loop(x64):
    want = [1, 0.66666667, 0.5, 0.25, 0.75]
    np.testing.assert_allclose(rj.gradients.agreement_keep_prob(G, R, eps=0.0), want, atol=1e-8)
    rng = np.random.default_rng(0)
    g, r = rng.normal(size=50), rng.normal(size=50)
    loop = [1.0 if a * b > 0 else abs(a) / (abs(a) + abs(b)) for a, b in zip(g, r, strict=True)]
    np.testing.assert_allclose(rj.gradients.agreement_keep_prob(g, r), loop, rtol=1e-6)


def test_small_gradients_and_zeros():
    keep = rj.gradients.agreement_keep_prob
    assert keep(jnp.zeros(2), jnp.array([0.0, 3.0])).tolist() == [0.5, 0.5]
    assert keep(jnp.zeros(1), jnp.zeros(1), eps=0.0).tolist() == [0.5]
    tiny = jnp.full(1, 1e-12)
    assert float(keep(tiny, tiny)[0]) == pytest.approx(0.5, abs=1e-3)
    assert float(keep(tiny, tiny, eps=1e-30)[0]) == pytest.approx(1)


def test_limits():
    make, against = rj.gradients.gradient_dropout, jax.tree.map(jnp.negative, GRADS)
    broken = {"a": jnp.array([jnp.nan, 1.0])}
    off, agreed, plain, opposed, diverged = updates(
        (make(strength=0.0),), (make(eps=1e-30), GRADS), (make(),), (make(), against), (make(), {"a": jnp.ones(2)}, broken)
    )
    assert all(np.all(k) for k in jax.tree.leaves([kept(off[0]), kept(agreed[0])]))
    assert not all(np.all(k) for k in jax.tree.leaves(kept(plain[0])))
    assert all(abs(k.mean() - 0.5) < 5 * np.sqrt(0.25 / 2000) for k in jax.tree.leaves(kept(opposed[0])))
    assert np.isnan(diverged[0]["a"][0]), "a diverged gradient is seen"


def test_draws_have_the_probability_and_the_mean_of_the_formula():
    g, r = (jnp.tile(jnp.asarray(x, jnp.float32), (4000, 1)) for x in (G, R))
    p = np.array([1, 2 / 3, 0.5, 0.25, 0.75])
    cases = [(rj.gradients.gradient_dropout(strength=s, seed=7), r, g) for s in (1.0, 0.4)]
    for strength, (out, *_) in zip((1.0, 0.4), updates(*cases), strict=True):
        np.testing.assert_allclose(np.unique(np.round(out / G, 5)), sorted({round(1 - strength, 5), 1.0}), atol=1e-5)
        error = abs(np.mean(out, axis=0) - G * ((1 - strength) + strength * p))
        assert np.all(error <= 5 * abs(G) * strength * np.sqrt(p * (1 - p) / 4000) + 1e-6)


def test_leaves_steps_and_seeds_draw_their_own_and_a_counter_changes_nothing():
    against = jax.tree.map(jnp.negative, GRADS)
    make = rj.gradients.gradient_dropout
    with_counter = lambda tree: {"Z": jnp.arange(3), "model": tree, "none": None}
    plain, seeded, counted = updates(
        (make(), against), (make(seed=1), against), (make(), with_counter(against), with_counter(GRADS))
    )
    first = kept(plain[0])
    for other in (first["b"]["c"], kept(plain[1])["a"], kept(seeded[0])["a"]):
        assert abs(np.corrcoef(first["a"].ravel(), other.ravel())[0, 1]) < 5 / np.sqrt(2000)
    assert np.array_equal(kept(counted[0]["model"])["a"], first["a"])
    assert counted[0]["Z"].tolist() == [0, 1, 2]
    assert counted[0]["none"] is None


def test_optax_wrappers_pass_the_reference():
    make, half = rj.gradients.gradient_dropout, {"a": True, "b": False}
    plain, chained, injected, finite, gathered, masked, both, parted = updates(
        (make(),),
        (optax.chain(optax.clip(1e9), make(), optax.scale(2.0)),),
        (optax.inject_hyperparams(make)(strength=optax.constant_schedule(1.0), seed=0),),
        (optax.apply_if_finite(make(), 2),),
        (optax.MultiSteps(make(), every_k_schedule=2),),
        (optax.masked(make(), half),),
        (optax.masked(make(), half, mask_compatible_extra_args=True),),
        (optax.partition({"gated": make(), "frozen": optax.set_to_zero()}, {"a": "frozen", "b": "gated"}),),
    )
    same = lambda a, b: jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), a, b)
    same(chained, jax.tree.map(lambda x: 2 * x, plain))
    same(injected, plain)
    same(finite, plain)
    # The first of every two small steps gives nothing, the second the gated mean of two equal gradients.
    same(gathered[:2], [jax.tree.map(jnp.zeros_like, plain[0]), plain[0]])
    for out in (masked, both):
        same([u["a"] for u in out], [u["a"] for u in plain])
        same(out[0]["b"], GRADS["b"])
    assert not np.any(parted[0]["a"])
    assert 0 < np.mean(parted[0]["b"]["c"] == 0) < 0.5


def test_strength_follows_its_schedule_and_dtypes_stay():
    low, against = (jax.tree.map(lambda x, f=f: (f * x).astype(jnp.bfloat16), GRADS) for f in (1, -1))
    scheduled, narrow = updates(
        (rj.gradients.gradient_dropout(strength=optax.linear_schedule(0.0, 1.0, 2)), jax.tree.map(jnp.negative, GRADS)),
        (rj.gradients.gradient_dropout(), against, low),
    )
    for out, least in zip(scheduled, (1.0, 0.5, 0.0), strict=True):
        np.testing.assert_allclose(np.unique(np.round(out["a"] / GRADS["a"], 4)), sorted({least, 1.0}), atol=1e-4)
    for u, g in zip(jax.tree.leaves(narrow[0]), jax.tree.leaves(low), strict=True):
        assert u.dtype == jnp.bfloat16
        assert np.all((u == g) | (u == 0))


@pytest.mark.slow
def test_a_network_forgets_less_of_the_digits_that_it_knew():
    """Fine-tuned on 80 rotated digits, gated by what a teacher says of upright ones: the new task is learned as well."""
    digits = load_digits()
    images = (digits.images / 16).astype(np.float32)
    order = np.random.default_rng(0).permutation(len(images))
    upright, turned = (x[order].reshape(-1, 64) for x in (images, np.rot90(images, axes=(1, 2))))
    labels = digits.target[order]
    few = np.concatenate([np.flatnonzero(labels[:1000] == c)[:8] for c in range(10)])
    known, new = ((jnp.asarray(x[at]), jnp.asarray(labels[at])) for x, at in ((upright, np.arange(1000)), (turned, few)))

    def net(params, x):
        return jax.nn.relu(x @ params["w"] + params["b"]) @ params["head"]

    def task(params, x, y):
        return optax.softmax_cross_entropy_with_integer_labels(net(params, x), y).mean()

    def train(params, tx, batch, key, reference):
        def step(carry, key):
            params, state = carry
            at = jax.random.randint(key, (32,), 0, len(batch[0]))
            gradient = jax.grad(task)(params, batch[0][at], batch[1][at])
            updates, state = tx.update(gradient, state, params, reference=reference(params, key))
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, tx.init(params)), jax.random.split(key, 400))[0][0]

    @jax.jit
    def run(key, strength):
        keys = jax.random.split(key, 4)
        w, head = jax.random.normal(keys[0], (64, 64)) / 8, jax.random.normal(keys[1], (64, 10)) / 8
        start = {"w": w, "b": jnp.zeros(64), "head": head}
        adam = optax.with_extra_args_support(optax.adam(3e-3))
        teacher = train(start, adam, known, keys[2], lambda params, key: None)

        def knowledge(params, key):
            x = known[0][jax.random.randint(key, (32,), 0, 1000)]
            return jax.grad(lambda p: jnp.mean(rj.losses.teacher_cross_entropy(net(p, x), net(teacher, x))))(params)

        tx = optax.chain(rj.gradients.gradient_dropout(strength=strength), optax.sgd(0.1))
        tuned = train(teacher, tx, new, keys[3], knowledge)
        return jnp.array([jnp.mean(jnp.argmax(net(tuned, x[1000:]), -1) == labels[1000:]) for x in (upright, turned)])

    for seed in range(2):
        plain, gated = (run(jax.random.key(seed), strength) for strength in (0.0, 1.0))
        assert gated[0] > plain[0] + 0.1
        assert gated[1] > plain[1] - 0.04
