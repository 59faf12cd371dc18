"""Pruning while training, against a loop in NumPy: exact sparsity at every step, exact zeros, and masks that hold."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import regjax as rj
from regjax.weights.sparsity import masks

RNG = np.random.default_rng(0)
PARAMS = {
    "a": {"kernel": RNG.normal(size=(6, 5)), "bias": RNG.normal(size=5)},
    "b": {"kernel": 3 * RNG.normal(size=(4, 2))},
    "c": {"kernel": RNG.normal(size=(6, 5))},
}
TARGETS = jax.tree.map(lambda x: np.sin(9 * x), PARAMS)
NAMES = "abc"
find = rj.gradients.find_mask


def gradient(params):
    return jax.tree.map(lambda p, t: p - t, params, TARGETS)


def best(score, k):
    order = np.argsort(-score.ravel(), kind="stable")
    mask = np.zeros(score.size, bool)
    mask[order[:k]] = True
    return mask.reshape(score.shape)


def loop(steps, sparsity, distribution, saliency, start, end, every, sparse_gradients):
    """SGD of 0.1 with momentum 0.9 and pruning, as the reference implementation has it, in float64."""
    params = {n: PARAMS[n]["kernel"].copy() for n in NAMES}
    trace = {n: np.zeros_like(params[n]) for n in NAMES}
    mask = {n: np.ones(params[n].shape, bool) for n in NAMES}
    shapes = [params[n].shape for n in NAMES]
    history = []
    for step in range(steps):
        grads = {n: params[n] - TARGETS[n]["kernel"] for n in NAMES}
        if (step % every == 0 and start <= step <= end) or step == end:
            p = 1.0 if end == start else min(max(step + 1 - start, 0), end - start) / (end - start)
            share = 1 - (1 - p) ** 3
            score = {n: np.abs(params[n] * (grads[n] if saliency else 1)) for n in NAMES}
            if distribution == "global":
                whole = np.concatenate([score[n].ravel() for n in NAMES])
                flat = best(whole, max(1, round(whole.size * (1 - share * sparsity))))
                parts = np.split(flat, np.cumsum([score[n].size for n in NAMES])[:-1])
                mask = {n: part.reshape(score[n].shape) for n, part in zip(NAMES, parts, strict=True)}
            else:
                own = masks.erk_sparsities(shapes, sparsity) if distribution == "erk" else [sparsity] * 3
                counts = [max(1, round(score[n].size * (1 - share * s))) for n, s in zip(NAMES, own, strict=True)]
                mask = {n: best(score[n], k) for n, k in zip(NAMES, counts, strict=True)}
        for n in NAMES:
            trace[n] = 0.9 * trace[n] + np.where(mask[n], grads[n], 0 if sparse_gradients else grads[n])
            params[n] = np.where(mask[n], params[n] - 0.1 * trace[n], 0)
        history.append({n: (params[n], mask[n]) for n in NAMES})
    return history


def train(tx, steps, params=PARAMS, grads=gradient):
    """Parameters and masks after each step, of one compiled scan."""

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(grads(params), state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), (params, find(state))

    params = jax.tree.map(jnp.asarray, params)
    return jax.jit(lambda p: jax.lax.scan(step, (p, tx.init(p)), length=steps)[1])(params)


FORMS = (
    ("uniform", "magnitude", 1, 5, 2, False),
    ("global", "saliency", 0, 3, 2, False),  # the last regular refreshing comes before the end
    ("erk", "magnitude", 2, 6, 1, True),
    ("uniform", "magnitude", 3, 3, 5, False),  # at once, at a step that is no regular one
)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form[0] + "-" + form[1])
def test_training_equals_the_loop(x64, form):
    distribution, scores, start, end, every, sparse = form
    options = {"start": start, "end": end, "every": every, "sparse_gradients": sparse}
    tx = rj.gradients.prune(optax.sgd(0.1, momentum=0.9), sparsity=0.6, scores=scores, distribution=distribution, **options)
    params, mask = train(tx, 8)
    want = loop(8, 0.6, distribution, scores == "saliency", **options)
    for step, at in enumerate(want):
        for n in NAMES:
            np.testing.assert_array_equal(mask[n]["kernel"][step], at[n][1], f"mask {n} at {step}")
            np.testing.assert_allclose(params[n]["kernel"][step], at[n][0], rtol=1e-12, err_msg=f"{n} at {step}")
            assert np.all(params[n]["kernel"][step][~at[n][1]] == 0)
    final = sum(m["kernel"][-1].sum() for m in mask.values())
    counts = masks.kept_counts([PARAMS[n]["kernel"].shape for n in NAMES], 0.6, distribution)
    assert int(final) == sum(counts), "the target is reached exactly, and holds"


ONE = {"kernel": PARAMS["a"]["kernel"], "bias": PARAMS["a"]["bias"]}


def towards(params):
    return jax.tree.map(lambda p, t: p - t, params, TARGETS["a"])


def test_own_schedules_scores_and_random_masks():
    falling = rj.gradients.prune(optax.sgd(0.1), sparsity=lambda step: 0.8 - 0.1 * step, every=2)
    _, mask = train(falling, 4, ONE, towards)
    kept = mask["kernel"].sum((1, 2)).tolist()
    assert kept == [6, 6, 12, 12], "a schedule refreshes to the end; a falling one lets weights return"

    def scores(params, grads, key):
        return jax.tree.map(lambda g: jax.random.uniform(key, g.shape) + 10 * (g > 0), grads)

    _, mask = train(rj.gradients.prune(optax.sgd(0.1), sparsity=0.5, scores=scores), 1, ONE, towards)
    rising = towards(ONE)["kernel"] > 0
    assert np.sum(rising & mask["kernel"][0]) == min(np.sum(rising), 15), "the scores see the raw gradient"

    pair = {"x": ONE, "y": ONE}
    still = lambda params: jax.tree.map(jnp.zeros_like, params)
    make = lambda seed: rj.gradients.prune(optax.sgd(0.1), sparsity=0.9, scores="random", end=4, seed=seed)
    params, mask = train(optax.chain(make(0)), 5, pair, still)
    m = np.asarray(mask["x"]["kernel"])
    assert np.all(m[1:] <= m[:-1]), "random masks are nested"
    assert int(m[-1].sum()) == 3 and not np.array_equal(m, mask["y"]["kernel"])
    assert not np.array_equal(m, train(make(1), 5, pair, still)[1]["x"]["kernel"])
    assert np.all(np.asarray(params["x"]["kernel"])[~m] == 0)


def test_zeros_are_exact_inside_optax_and_in_low_precision():
    inner = optax.adam(0.05)
    make = lambda: rj.gradients.prune(inner, sparsity=0.75, end=3)
    plain, mask = train(make(), 6, ONE, towards)
    assert mask["kernel"].sum((1, 2)).tolist()[2:] == [8, 8, 8, 8]
    params, found = train(optax.inject_hyperparams(rj.gradients.prune)(inner, sparsity=0.75, end=3), 6, ONE, towards)
    np.testing.assert_array_equal(found["kernel"], mask["kernel"])
    np.testing.assert_allclose(params["kernel"], plain["kernel"], rtol=1e-5, atol=1e-6)
    params, found = train(optax.MultiSteps(make(), 2), 12, ONE, towards)
    np.testing.assert_array_equal(found["kernel"][-1], mask["kernel"][-1])
    np.testing.assert_array_equal(params["kernel"][-1] == 0, ~mask["kernel"][-1])

    # Subtrees that optax leaves out stand as a single True, for `apply_mask`.
    once = rj.gradients.prune(optax.sgd(0.1), sparsity=0.75)
    tx = optax.masked(once, {"x": True, "y": False})
    pair = {"x": ONE, "y": ONE}
    _, state = jax.jit(tx.update)(pair, tx.init(pair), pair)
    assert find(state)["y"].shape == ()
    kept = rj.weights.apply_mask(pair, find(state))
    assert [int(np.sum(kept[n]["kernel"] != 0)) for n in "xy"] == [8, 30]

    for params_type, grads_type in ((jnp.float32, jnp.bfloat16), (jnp.bfloat16, jnp.float32), (jnp.bfloat16, jnp.bfloat16)):
        low = jax.tree.map(lambda x, t=params_type: jnp.asarray(x, t), ONE)
        grads = jax.tree.map(lambda x, t=grads_type: jnp.asarray(x, t), TARGETS["a"])
        updates, state = jax.jit(once.update)(grads, once.init(low), low)
        out = optax.apply_updates(low, updates)["kernel"]
        assert out.dtype == params_type and int(jnp.sum(out != 0)) == int(find(state)["kernel"].sum()) == 8


def test_weights_without_a_gradient_stay():
    params = {"frozen": {"kernel": jnp.ones((2, 2))}, "free": {"kernel": jnp.array([[1.0, 2.0]])}}
    grads = {"frozen": {"kernel": None}, "free": {"kernel": jnp.ones((1, 2))}}
    tx = rj.gradients.prune(optax.sgd(0.1), sparsity=0.5, scores="saliency")
    updates, state = jax.jit(tx.update)(grads, tx.init(params), params)
    assert updates["frozen"]["kernel"] is None
    assert find(state)["frozen"]["kernel"].all() and find(state)["free"]["kernel"].tolist() == [[False, True]]


def test_a_mask_within_another_is_not_overlooked():
    inner = rj.gradients.nm_pruning(optax.sgd(0.1), n=1, m=2)
    tx = rj.gradients.prune(inner, sparsity=0.5)
    with pytest.raises(ValueError, match=r"regjax\.gradients\.find_mask.*opt_state.*one with 2"):
        find(tx.init({"kernel": jnp.ones((4, 2))}))


def test_fixed_masks_and_n_in_m_hold(x64):
    mask = rj.weights.global_magnitude_mask(ONE, sparsity=0.7)
    params, found = train(rj.gradients.fixed_mask(optax.sgd(0.1, momentum=0.9), mask), 4, ONE, towards)
    w, trace, keep = ONE["kernel"].copy(), 0.0, np.asarray(mask["kernel"])
    for step in range(4):
        trace = 0.9 * trace + keep * (w - TARGETS["a"]["kernel"])
        w = np.where(keep, w - 0.1 * trace, 0)
        np.testing.assert_allclose(params["kernel"][step], w, rtol=1e-12)
        np.testing.assert_array_equal(found["kernel"][step], keep)

    tx = rj.gradients.nm_pruning(optax.sgd(0.1), n=1, m=2, start=1, end=4, every=3)
    params, found = train(tx, 6, ONE, towards)
    kept = found["kernel"].reshape(6, 3, 2, 5).sum(2)
    assert np.all(kept[:3] == 2) and np.all(kept[3:] == 1)
    assert np.all(np.asarray(params["kernel"])[~np.asarray(found["kernel"])] == 0)
    np.testing.assert_array_equal(found["kernel"][3], rj.weights.nm_mask(jnp.abs(params["kernel"][2]), n=1, m=2, axis=0))
