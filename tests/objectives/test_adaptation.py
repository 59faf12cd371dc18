"""Tent and EATA against loops over examples, the published values, and a stream of shifted digits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import regjax as rj
from tests.objectives.problems import close
from tests.references import log_softmax

eata, eata_loss, tent_loss = rj.objectives.eata, rj.objectives.eata_loss, rj.objectives.tent_loss
fisher_importance, norm_affine_mask = rj.objectives.fisher_importance, rj.objectives.norm_affine_mask
FisherAnchor = rj.objectives.FisherAnchor
RNG = np.random.default_rng(0)
Z = 3 * RNG.normal(size=(12, 4))
HERE = np.array([True, True, False, True])


def entropies(z, where=None):
    """Entropies, and their gradients by the logits, example by example."""
    present = np.ones(z.shape[-1], bool) if where is None else where
    values, slopes, shares = [], [], []
    for row in z:
        log_p = np.where(present, log_softmax(row, where), 0)
        p = np.where(present, np.exp(log_p), 0)
        values.append(-np.sum(p * log_p))
        slopes.append(-p * (log_p + values[-1]))
        shares.append(p)
    return np.array(values), np.array(slopes), np.array(shares)


def reference(z, mean, margin, diversity, where=None, momentum=0.9):
    values, slopes, shares = entropies(z, where)
    chosen = []
    for i, p in enumerate(shares):
        alike = 0.0 if mean is None else p @ mean / np.linalg.norm(p) / np.linalg.norm(mean)
        if values[i] < margin and (mean is None or alike < diversity):
            chosen.append(i)
    if not chosen:
        return 0.0, np.zeros_like(z), chosen, mean
    factors = np.exp(margin - values)
    slope = np.zeros_like(z)
    for i in chosen:
        slope[i] = factors[i] * slopes[i] / len(chosen)
    fresh = shares[chosen].mean(0)
    fresh = fresh if mean is None else momentum * mean + (1 - momentum) * fresh
    return sum(factors[i] * values[i] for i in chosen) / len(chosen), slope, chosen, fresh


def test_losses_are_those_of_the_loops(x64):
    @functools.partial(jax.jit, static_argnames="first")
    def both(z, mean, first, where, mask):
        fn = lambda z: eata_loss(z, None if first else mean, diversity_margin=0.6, where=where, mask=mask)
        tent = jax.value_and_grad(functools.partial(tent_loss, where=where, mask=mask))(z)
        return jax.value_and_grad(fn, has_aux=True)(z), tent

    mean, all_of = np.array([0.1, 0.2, 0.3, 0.4]), np.ones(12, bool)
    counts = RNG.random(12) < 0.7
    for first, where, mask in ((True, None, all_of), (False, None, all_of), (False, HERE, counts)):
        present = np.ones(4, bool) if where is None else where
        ((value, info), slope), (tent, tent_slope) = both(Z, mean, first, present, mask)
        margin = 0.4 * np.log(present.sum())
        want, want_slope, chosen, fresh = reference(Z[mask], None if first else mean, margin, 0.6, where)
        assert 0 < len(chosen) < mask.sum()
        np.testing.assert_allclose(value, want, rtol=1e-12)
        np.testing.assert_allclose(slope[mask], want_slope, atol=1e-13)
        np.testing.assert_array_equal(np.flatnonzero(np.asarray(info.selected)[mask]), chosen)
        np.testing.assert_allclose(info.mean_probs, fresh, rtol=1e-12)
        values, slopes, _ = entropies(Z[mask], where)
        np.testing.assert_allclose(tent, values.mean(), rtol=1e-12)
        np.testing.assert_allclose(tent_slope[mask], slopes / mask.sum(), atol=1e-13)
        assert not np.any(slope[~mask]) and not np.any(tent_slope[~mask])
        assert info.num_selected == len(chosen)
    # The class axis anywhere; further leading axes are examples too.
    np.testing.assert_allclose(tent_loss(Z.T.reshape(4, 3, 4), axis=0), entropies(Z)[0].mean(), rtol=1e-12)


def test_published_values(x64):
    z = np.array([[4.0, 0, 0], [1.0, 0, 0]])
    (value, info), slope = jax.value_and_grad(eata_loss, has_aux=True)(z)
    np.testing.assert_allclose(info.entropy, [0.177323676, 0.975327829], rtol=1e-8)
    np.testing.assert_allclose(value, 0.230464763, rtol=1e-8)
    np.testing.assert_allclose(slope, [[-0.17721531, 0.08860766, 0.08860766], [0, 0, 0]], atol=1e-8)
    np.testing.assert_allclose(tent_loss(z), (0.177323676 + 0.975327829) / 2, rtol=1e-8)
    # The cosine to uniform predictions lies between these margins; uniform predictions are never reliable.
    at = lambda z, d: eata_loss(z, np.full(3, 1 / 3), diversity_margin=d)[1].num_selected
    assert at(z, 0.598298673) == 0 and at(z, 0.598298675) == 1
    assert at(np.zeros((2, 3)), 2.0) == 0


def test_the_anchor_holds_only_where_something_is_selected(x64):
    params = {"a": jnp.array([1.0, 2.0]), "b": jnp.array(3.0), "c": jnp.array([4.0])}
    fisher = FisherAnchor(
        {"a": jnp.array([0.5, 1.0]), "b": None, "c": jnp.array([2.0])}, {"a": jnp.zeros(2), "b": None, "c": jnp.ones(1)}
    )

    @jax.jit
    def slopes(params, z, weight, fisher):
        fn = lambda p, f: eata_loss(z * p["c"], params=p, fisher=f, fisher_weight=weight)[0]
        return fn(params, fisher), *jax.grad(fn, (0, 1))(params, fisher)

    z = np.array([[4.0, 0, 0], [1.0, 0, 0]]) / 4
    plain, by_entropy, _ = slopes(params, z, 0.0, fisher)
    np.testing.assert_allclose(plain, 0.230464763, rtol=1e-8)
    value, by_params, by_fisher = slopes(params, z, 10.0, fisher)
    np.testing.assert_allclose(value - plain, 10 * (0.5 + 4 + 2 * 9), rtol=1e-12)
    want = {"a": [10.0, 40.0], "b": 0.0, "c": by_entropy["c"] + 10 * 2 * 2 * 3}
    close(by_params, want, rtol=1e-12)
    assert not any(leaf.any() for leaf in jax.tree.leaves(by_fisher))
    value, by_params, _ = slopes(params, 0 * z, 10.0, fisher)
    assert value == 0 and not any(np.any(leaf) for leaf in jax.tree.leaves(by_params))


def test_the_memory_of_a_stream(x64):
    memory = eata(4, diversity_margin=0.9, fisher_weight=lambda step: step, momentum=0.8)
    anchor = FisherAnchor(jnp.ones(4), jnp.zeros(4))
    state, mean = memory.init(anchor), None
    apply = jax.jit(lambda state, z, p, step: memory.apply(state, z + 0 * p, p, step=step))
    state = state._replace(mean_probs=state.mean_probs.astype(jnp.float64))
    for step, z in enumerate((np.zeros((4, 4)), Z[:4], Z[4:8], np.zeros((4, 4)), Z[8:])):
        (value, info), state = apply(state, z, np.ones(4), step)
        want, _, chosen, mean = reference(z, mean, 0.4 * np.log(4), 0.9, momentum=0.8)
        np.testing.assert_allclose(value, want + (4.0 * step if chosen else 0.0), rtol=1e-12)
        np.testing.assert_allclose(state.mean_probs, np.zeros(4) if mean is None else mean, rtol=1e-12)
        assert info.num_selected == len(chosen)
    assert state.mean_probs.any()


def test_importance_is_the_mean_squared_gradient_of_batches(x64):
    w = {"bn": {"scale": RNG.normal(size=3), "bias": RNG.normal(size=2)}, "dense": {"kernel": RNG.normal(size=(3, 2))}}
    x = RNG.normal(size=(4, 5, 3))

    def loss_fn(w, x):
        z = (x * w["bn"]["scale"]) @ w["dense"]["kernel"] + w["bn"]["bias"]
        labels = jnp.argmax(z, -1)
        return optax.softmax_cross_entropy_with_integer_labels(z, labels).mean()

    got = jax.jit(lambda w, x: fisher_importance(loss_fn, w, x))(w, x)
    want = {"scale": np.zeros(3), "bias": np.zeros(2), "kernel": np.zeros((3, 2))}
    for batch in x:
        slope = {name: np.zeros_like(leaf) for name, leaf in want.items()}
        for row in batch:
            z = (row * w["bn"]["scale"]) @ w["dense"]["kernel"] + w["bn"]["bias"]
            error = (np.exp(log_softmax(z)) - np.eye(2)[z.argmax()]) / 5
            slope["bias"] += error
            slope["scale"] += row * (w["dense"]["kernel"] @ error)
            slope["kernel"] += np.outer(row * w["bn"]["scale"], error)
        for name in want:
            want[name] += slope[name] ** 2 / 4
    close(got.importance, {"bn": {"bias": want["bias"], "scale": want["scale"]}, "dense": {"kernel": want["kernel"]}}, rtol=1e-10)
    close(got.anchor, w, rtol=0)
    part = jax.jit(lambda w, x: fisher_importance(loss_fn, w, x, where=norm_affine_mask))(w, x)
    assert part.importance["dense"]["kernel"] is None and part.anchor["dense"]["kernel"] is None
    close(part.importance["bn"], got.importance["bn"], rtol=1e-12)
    aux = fisher_importance(lambda w, x: (loss_fn(w, x), x), w, x, has_aux=True)
    close(aux.importance, got.importance, rtol=1e-12)
    assert not any(
        np.any(g) for g in jax.tree.leaves(jax.grad(lambda w: fisher_importance(loss_fn, w, x).importance["bn"]["bias"].sum())(w))
    )


def test_normalisation_parameters_are_found_by_their_names():
    one, two = jnp.ones(2), jnp.ones((2, 2))
    params = {
        "BatchNorm_0": {"scale": one, "bias": one},
        "encoder": [{"ln_1": {"weight": one, "bias": one}, "dense": {"kernel": two, "bias": one}}],
        "norms": [{"gamma": one, "beta": one}],
        "anonymous": {"scale": one, "bias": one},
        "rms": {"scale": one},
        "normalising_flow": {"kernel": two, "bias": one},
        "layer_scale": {"gamma": one},
        "embed": {"embedding": two, "scale": one},
        "counted_norm": {"scale": jnp.ones(2, int), "bias": one, "mean": one},
        "logit_scale": one,
    }
    want = {
        "BatchNorm_0": {"scale": True, "bias": True},
        "encoder": [{"ln_1": {"weight": True, "bias": True}, "dense": {"kernel": False, "bias": False}}],
        "norms": [{"gamma": True, "beta": True}],
        "anonymous": {"scale": True, "bias": True},
        "rms": {"scale": True},
        "normalising_flow": {"kernel": False, "bias": False},
        "layer_scale": {"gamma": False},
        "embed": {"embedding": False, "scale": False},
        "counted_norm": {"scale": False, "bias": True, "mean": False},
        "logit_scale": False,
    }
    assert norm_affine_mask(params) == want

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.first = nnx.Linear(2, 3, rngs=rngs)
            self.n1 = nnx.BatchNorm(3, rngs=rngs)
            self.group = nnx.GroupNorm(3, num_groups=1, rngs=rngs)
            self.layer = nnx.LayerNorm(3, rngs=rngs)
            self.last = nnx.RMSNorm(3, rngs=rngs)

    state = nnx.state(Net(nnx.Rngs(0)))
    mask = norm_affine_mask(state)
    assert jax.tree.structure(mask) == jax.tree.structure(state)
    found = {(path[0].key, path[1].key) for path, use in jax.tree_util.tree_flatten_with_path(mask)[0] if use}
    assert found == {(name, "scale") for name in ("n1", "group", "layer", "last")} | {
        (name, "bias") for name in ("n1", "group", "layer")
    }


@pytest.mark.slow
def test_a_stream_of_noisy_digits():
    """Accuracy under noise, in the mean of three networks: source < Tent < EATA."""
    images, labels = pytest.importorskip("sklearn.datasets").load_digits(return_X_y=True)
    images, labels = jnp.asarray(images / 16, jnp.float32), jnp.asarray(labels)
    clean, truth = images[1000:1768], labels[1000:1768]
    shifted = clean + 0.25 * jax.random.normal(jax.random.key(2), clean.shape)
    # The stream meets the same digits four times.
    stream = (jnp.tile(shifted, (4, 1)).reshape(-1, 64, 64), jnp.tile(truth, 4).reshape(-1, 64))
    adam, memory = optax.adam(3e-3), eata(10, diversity_margin=0.4, fisher_weight=300.0)
    sgd = optax.sgd(0.3, momentum=0.9)
    cross = lambda z, y: optax.softmax_cross_entropy_with_integer_labels(z, y).mean()
    accuracy = lambda z, y: jnp.mean(jnp.argmax(z, -1) == y)

    def logits(params, x, statistics=None):
        """By the batch's statistics, or by given ones; and the statistics."""
        found = []
        for i, layer in enumerate(params):
            x = x @ layer["kernel"]
            mean, var = (x.mean(0), x.var(0)) if statistics is None else statistics[i]
            found.append((mean, var))
            x = (x - mean) / jnp.sqrt(var + 1e-5) * layer["bn"]["scale"] + layer["bn"]["bias"]
            x = jax.nn.relu(x) if i < 2 else x
        return x, found

    def train(key):
        keys = jax.random.split(key, 4)
        params = [
            {"kernel": jax.random.normal(k, (64, n)) / 32**0.5, "bn": {"scale": jnp.ones(n), "bias": jnp.zeros(n)}}
            for k, n in zip(keys, (64, 64, 10), strict=False)
        ]

        def step(carry, rows):
            params, state = carry
            grads = jax.grad(lambda p: cross(logits(p, images[rows])[0], labels[rows]))(params)
            updates, state = adam.update(grads, state)
            return (optax.apply_updates(params, updates), state), None

        epochs = jax.vmap(lambda k: jax.random.permutation(k, 1000)[:960])(jax.random.split(keys[3], 30))
        return jax.lax.scan(step, (params, adam.init(params)), epochs.reshape(-1, 64))[0][0]

    def adapt(source, fisher):
        """The accuracy of the predictions before each update; Tent without an anchor."""

        def step(carry, batch):
            params, state, seen = carry
            x, y = batch

            def loss_fn(params):
                z = logits(params, x)[0]
                if fisher is None:
                    return tent_loss(z), (z, seen, 64)
                (loss, info), after = memory.apply(seen, z, params)
                return loss, (z, after, info.num_selected)

            grads, (z, after, some) = jax.grad(loss_fn, has_aux=True)(params)
            grads = jax.tree.map(lambda g, use: g if use else jnp.zeros_like(g), grads, norm_affine_mask(params))
            updates, new = sgd.update(grads, state)
            moved = (optax.apply_updates(params, updates), new)
            kept = jax.tree.map(lambda a, b: jnp.where(some > 0, a, b), moved, (params, state))
            return (*kept, after), accuracy(z, y)

        start = (source, sgd.init(source), memory.init(fisher))
        return jax.lax.scan(step, start, stream)[1].mean()

    def run(key):
        source = train(key)
        pseudo = lambda p, x: (lambda z: cross(z, jnp.argmax(z, -1)))(logits(p, x)[0])
        fisher = fisher_importance(pseudo, source, images[:960].reshape(15, 64, 64), where=norm_affine_mask)
        still = accuracy(logits(source, shifted, logits(source, images[:1000])[1])[0], truth)
        return still, adapt(source, None), adapt(source, fisher)

    source, tent, ours = np.mean(jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(0), 3)), 1)
    assert source < tent < ours, (source, tent, ours)
