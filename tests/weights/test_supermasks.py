"""Supermasks, signs and soft subnetworks against loops in NumPy, training inside a mask, neighbour votes, and two claims."""

import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import regjax as rj
from regjax.weights.supermasks.scores import dense_count

w = rj.weights
RNG = np.random.default_rng(0)


def largest(magnitudes, count):
    """The flat indices of the largest entries, of equal ones the earlier."""
    return sorted(range(len(magnitudes)), key=lambda i: (-magnitudes[i], i))[:count]


def test_supermask_keeps_the_exact_number_and_passes_the_gradient_of_the_absolute_value(x64):
    scores = RNG.normal(size=(4, 3, 5))
    scores[1] = np.round(scores[1])  # ties, and zeros
    cotangent = RNG.normal(size=scores.shape)
    densities = (0.0, 0.1, 0.37, 0.9, 1.0)

    @jax.jit
    def both(scores, cotangent):
        out = []
        for d in densities:
            mask, pull_back = jax.vjp(lambda s, d=d: w.topk_supermask(s, density=d), scores)
            out.append((mask, pull_back(cotangent)[0]))
        return out

    for d, (mask, gradient) in zip(densities, both(scores, cotangent), strict=True):
        want = np.zeros(scores.size)
        want[largest(list(np.abs(scores).ravel()), 60 - math.floor((1 - Fraction(str(d))) * 60))] = 1
        np.testing.assert_array_equal(mask, want.reshape(scores.shape))
        np.testing.assert_array_equal(gradient, cotangent * np.sign(scores))

    mask, pull_back = jax.vjp(lambda s: w.topk_supermask(s, density=0.5), jnp.array([3, -1, 2, -0.5]))
    assert mask.tolist() == [1, 0, 1, 0]
    assert pull_back(jnp.array([1.0, 2.0, 3.0, 4.0]))[0].tolist() == [1, -2, 3, -4]
    infinite = jax.vjp(lambda s: w.topk_supermask(s, density=0.5), jnp.array([np.inf, -1.0]))
    assert infinite[0].tolist() == [1, 0] and infinite[1](jnp.ones(2))[0].tolist() == [1, -1]


def test_counts_are_those_of_exact_arithmetic_traced_or_not():
    sizes, densities = (1, 7, 10, 100, 1184), [Fraction(i, 20) for i in range(21)]
    traced = jax.jit(lambda d: [jax.vmap(lambda d, n=n: jnp.asarray(dense_count(d, n)))(d) for n in sizes])(
        jnp.array([float(d) for d in densities], jnp.float32)
    )
    for n, counts in zip(sizes, traced, strict=True):
        want = [n - math.floor((1 - d) * n) for d in densities]
        assert [dense_count(float(d), n) for d in densities] == want
        assert counts.tolist() == want
    assert dense_count(1.0, 10**9) == 10**9 and dense_count(0.0, 10**9) == 0
    assert int((1 - 0.9) * 10) == 0 and dense_count(0.9, 10) == 9  # the rounded product would keep all ten


def test_initial_scores_and_weights_have_the_published_distributions():
    scores, weights = jax.jit(lambda k: (w.supermask_init(k, (3, 3, 4, 500)), w.signed_constant_init(k, (8, 2000))))(
        jax.random.key(0)
    )
    assert scores.shape == (3, 3, 4, 500) and scores.dtype == jnp.float32
    uniform = (np.asarray(scores).ravel() * 6 + 1) / 2  # fan-in 36
    assert abs(uniform.mean() - 0.5) < 5 / math.sqrt(12 * uniform.size) and 0 <= uniform.min() < 1e-3 < 0.999 < uniform.max() <= 1
    np.testing.assert_allclose(np.abs(weights), math.sqrt(2 / 8), rtol=1e-6)
    assert abs(float((weights > 0).mean()) - 0.5) < 5 * 0.5 / math.sqrt(16000)


def test_exclusive_masks_are_what_earlier_tasks_leave():
    make = lambda seed: {"kernel": np.random.default_rng(seed).random((5, 4)) < 0.4, "bias": np.True_}
    first, second, third = make(1), make(2), make(3)
    free = w.exclusive_mask(third, [first, second])
    np.testing.assert_array_equal(free["kernel"], third["kernel"] & ~(first["kernel"] | second["kernel"]))
    assert not free["bias"] and w.exclusive_mask(first, [])["bias"]
    used = jax.tree.map(np.logical_or, first, second)
    jax.tree.map(np.testing.assert_array_equal, w.exclusive_mask(third, used), free)
    np.testing.assert_array_equal(w.exclusive_mask(first, first)["kernel"], np.zeros((5, 4), bool))
    disjoint = {"kernel": ~first["kernel"], "bias": np.False_}
    np.testing.assert_array_equal(w.exclusive_mask(first, disjoint)["kernel"], first["kernel"])
    # Masks of numbers, as the supermasks are, and bare arrays.
    assert w.exclusive_mask(jnp.array([1.0, 1.0, 0.0]), [jnp.array([0.0, 1.0, 1.0])]).tolist() == [True, False, False]


def test_saliency_is_that_of_the_worked_network_and_is_conserved_over_layers():
    params = [jnp.array([[1.0], [-2.0]]), jnp.array([[0.5]])]
    got = w.synaptic_saliency(lambda p, x: x @ p[0] @ p[1], params, (1, 2))
    assert got[0].tolist() == [[0.5], [1.0]] and got[1].tolist() == [[1.5]]

    sizes = (6, 9, 7, 4)
    kernels = {f"l{i}": {"kernel": RNG.normal(size=sizes[i : i + 2]).astype(np.float32)} for i in range(3)}
    kernels["steps"] = jnp.arange(2)

    def net(p, x):
        return jax.nn.relu(jax.nn.relu(x @ p["l0"]["kernel"]) @ p["l1"]["kernel"]) @ p["l2"]["kernel"]

    saliency = jax.jit(lambda p: w.synaptic_saliency(net, p, (1, 6)))(kernels)
    a, b, c = (np.abs(kernels[f"l{i}"]["kernel"]).astype(np.float64) for i in range(3))
    total = (a @ b @ c).sum()
    paths = np.zeros_like(b)
    for i in range(9):
        for j in range(7):
            paths[i, j] = a[:, i].sum() * b[i, j] * c[j].sum()
    np.testing.assert_allclose(saliency["l1"]["kernel"], paths, rtol=1e-5)
    for i in range(3):
        assert float(saliency[f"l{i}"]["kernel"].sum()) == pytest.approx(total, rel=1e-5)
    assert saliency["steps"].tolist() == [0, 1]

    mask = w.saliency_mask(saliency, density=0.3)
    scores = np.concatenate([np.asarray(saliency[f"l{i}"]["kernel"]).ravel() for i in range(3)])
    want = np.zeros(scores.size, bool)
    want[largest(list(scores), 145 - math.floor(0.7 * 145))] = True
    np.testing.assert_array_equal(np.concatenate([np.asarray(mask[f"l{i}"]["kernel"]).ravel() for i in range(3)]), want)
    assert mask["steps"].shape == () and bool(mask["steps"])
    assert float(w.density(w.saliency_mask(saliency, density=jnp.float32(0.3)))) == want.mean().astype(np.float32)


def test_signs_turn_weights_and_nothing_else(x64):
    weights = {"kernel": RNG.normal(size=(4, 3)), "bias": RNG.normal(size=3)}
    scores = {"kernel": RNG.normal(size=(4, 3)), "bias": -np.ones(3)}
    scores["kernel"][0] = 0
    mask = {"kernel": RNG.random((4, 3)) < 0.5, "bias": np.True_}
    cotangent = jax.tree.map(np.cos, weights)
    effective, pull_back = jax.vjp(lambda s, v: w.sign_supermask(s, v, mask), scores, weights)
    by_scores, by_weights = pull_back(cotangent)
    for i in range(4):
        for j in range(3):
            sign = -1 if scores["kernel"][i, j] < 0 else 1
            kept = mask["kernel"][i, j]
            assert effective["kernel"][i, j] == (weights["kernel"][i, j] * sign if kept else 0)
            assert by_scores["kernel"][i, j] == (cotangent["kernel"][i, j] * weights["kernel"][i, j] if kept else 0)
            assert by_weights["kernel"][i, j] == (cotangent["kernel"][i, j] * sign if kept else 0)
    np.testing.assert_array_equal(effective["bias"], weights["bias"])
    assert not by_scores["bias"].any()
    positive = w.sign_supermask(jax.tree.map(np.ones_like, weights), weights, mask)
    np.testing.assert_array_equal(positive["kernel"], weights["kernel"] * mask["kernel"])
    everywhere = w.sign_supermask(scores, weights, where="all")
    np.testing.assert_array_equal(everywhere["bias"], -weights["bias"])
    assert w.sign_supermask(jnp.array([1.0, -1.0]), jnp.array([2.0, 2.0])).tolist() == [2.0, -2.0]


def test_clients_vote_with_the_size_of_their_data():
    clients = [{"kernel": RNG.choice([-1, 1], size=(5, 4)).astype(np.int8)} for _ in range(3)]
    counts = [2.0, 3.0, 5.0]
    got = w.aggregate_signs(clients, counts)["kernel"]
    total = sum(n * c["kernel"].astype(float) for n, c in zip(counts, clients, strict=True))
    assert got.dtype == jnp.int8 and (total == 0).any()
    np.testing.assert_array_equal(got, np.where(total < 0, -1, 1))
    scores = [jnp.array([0.1, -3.0, 0.0]), jnp.array([-9.0, -0.2, -1.0])]
    assert w.aggregate_signs(scores, jnp.array([1.0, 1.0])).tolist() == [1.0, -1.0, 1.0]


def test_soft_masks_are_one_above_the_threshold_and_random_below(x64):
    scores = RNG.normal(size=(6, 5))
    scores[2] = scores[3]  # ties
    uniforms, cotangent = RNG.random((6, 5)), RNG.normal(size=(6, 5))
    shares = (0.0, 0.03, 0.5, 0.85, 1.0)

    @jax.jit
    def run(scores, uniforms, cotangent, traced):
        out = []
        for i, share in enumerate(shares):
            mask, pull_back = jax.vjp(lambda s, p=share: w.apply_soft_subnetwork_mask(s, uniforms, sparsity=p), scores)
            hard = w.apply_soft_subnetwork_mask(scores, sparsity=traced[i])
            out.append((mask, pull_back(cotangent)[0], hard))
        return out

    for share, (mask, gradient, hard) in zip(shares, run(scores, uniforms, cotangent, jnp.array(shares)), strict=True):
        threshold = np.sort(np.abs(scores).ravel())[1 + round(share * 29) - 1]
        major = np.abs(scores) >= threshold
        np.testing.assert_array_equal(mask, np.where(major, 1, uniforms))
        np.testing.assert_array_equal(gradient, cotangent)
        np.testing.assert_array_equal(hard, major)
    assert w.soft_subnetwork_mask(jnp.array([0.1, -0.4, 0.3, 0.2]), sparsity=0.5).tolist() == [0, 1, 1, 0]


def test_the_minor_part_is_uniform_between_zero_and_one_in_any_dtype():
    scores = jnp.asarray(RNG.normal(size=(40, 50)), jnp.bfloat16)
    soft = jax.jit(lambda key, s: w.soft_subnetwork_mask(s, sparsity=0.5, key=key))
    minor = w.soft_subnetwork_mask(scores, sparsity=0.5) == 0
    first, second = soft(jax.random.key(0), scores), soft(jax.random.key(1), scores)
    assert first.dtype == jnp.bfloat16
    assert np.array_equal(first < 1, minor) and np.array_equal(second < 1, minor) and bool((first > 0).all())
    values, others = (np.asarray(x)[np.asarray(minor)].astype(float) for x in (first, second))
    n = values.size
    distance = np.abs(np.sort(values) - (np.arange(n) + 0.5) / n).max()
    assert distance < 2 / math.sqrt(n), "not uniform by the Kolmogorov-Smirnov distance"
    assert abs(np.corrcoef(values, others)[0, 1]) < 5 / math.sqrt(n)
    edges = w.apply_soft_subnetwork_mask(scores, jnp.where(minor, 0.9999, 0.0).at[0].set(0.0), sparsity=0.5)
    assert np.array_equal(edges < 1, minor) and bool((edges > 0).all())


def test_train_only_moves_what_is_free_as_the_optimiser_would_and_nothing_else():
    params = {"kernel": jnp.asarray(RNG.normal(size=(6, 4)), jnp.float32), "bias": jnp.asarray(RNG.normal(size=4), jnp.float32)}
    grads = [jax.tree.map(lambda p: jnp.asarray(RNG.normal(size=p.shape), jnp.float32), params) for _ in range(4)]
    first = {"kernel": jnp.asarray(RNG.random((6, 4)) < 0.5), "bias": jnp.ones((), bool)}
    second = w.exclusive_mask(jax.tree.map(jnp.ones_like, first), [first])
    base = optax.adamw(0.1, weight_decay=0.3)
    tx = rj.gradients.train_only(base, first)
    traces = []

    @jax.jit
    def step(params, state, grads):
        traces.append(1)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    plain = jax.jit(lambda p, s, g: (lambda u, s: (optax.apply_updates(p, u), s))(*base.update(g, s, p)))
    state, plain_state, moved, want = tx.init(params), base.init(params), params, params
    for g in grads[:2]:
        moved, state = step(moved, state, g)
        want, plain_state = plain(want, plain_state, g)
    free = np.asarray(first["kernel"])
    np.testing.assert_array_equal(moved["kernel"][~free], params["kernel"][~free])
    np.testing.assert_allclose(moved["kernel"][free], want["kernel"][free], rtol=1e-6)
    np.testing.assert_allclose(moved["bias"], want["bias"], rtol=1e-6)
    # The next task's mask, with the momentum of the first still there.
    whole = jax.tree.map(lambda m, p: jnp.broadcast_to(m, p.shape), second, params)
    state, before = state._replace(mask=whole), moved
    for g in grads[2:]:
        moved, state = step(moved, state, g)
    np.testing.assert_array_equal(moved["kernel"][free], before["kernel"][free])
    np.testing.assert_array_equal(moved["bias"], before["bias"])
    assert (np.asarray(moved["kernel"] != before["kernel"]) == ~free).all() and len(traces) == 1


def test_neighbours_vote_as_in_scikit_learn():
    from sklearn.neighbors import KNeighborsClassifier

    x, z = RNG.normal(size=(60, 5)) + 100, RNG.normal(size=(40, 5)) + 100  # far from 0
    y, t = RNG.integers(-1, 4, size=60), RNG.integers(-1, 4, size=40)
    transfer = jax.jit(rj.diagnostics.knn_transfer, static_argnames="k")
    for k in (1, 4, 60):
        want = KNeighborsClassifier(k).fit(x, y).score(z, t)
        got = transfer(x.astype(np.float32), y, z.astype(np.float32), t, k=k)
        assert float(got) == pytest.approx(want, abs=1e-6)


def digits():
    """Centred digits, 1300 to train on."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))
    x, y = jnp.asarray(x[order] / 16 - 0.3, jnp.float32), jnp.asarray(y[order], jnp.int32)
    return (x[:1300], y[:1300]), (x[1300:], y[1300:])


def network(kernels, x):
    for kernel in kernels[:-1]:
        x = jax.nn.relu(x @ kernel)
    return x @ kernels[-1]


def cross_entropy(kernels, x, y):
    return optax.softmax_cross_entropy_with_integer_labels(network(kernels, x), y).mean()


def descend(loss, params, state, tx, data, key, steps, batch=64):
    """So many steps on batches drawn anew."""

    def step(carry, key):
        params, state = carry
        rows = jax.random.randint(key, (batch,), 0, data[0].shape[0])
        updates, state = tx.update(jax.grad(loss)(params, data[0][rows], data[1][rows]), state, params)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, state), jax.random.split(key, steps))[0]


def accuracy(kernels, data):
    return (network(kernels, data[0]).argmax(-1) == data[1]).mean()


SHAPES = ((64, 96), (96, 10))


def initial(key, init):
    return [init(k, shape) for k, shape in zip(jax.random.split(key, len(SHAPES)), SHAPES, strict=True)]


@pytest.mark.slow
def test_tasks_with_exclusive_masks_forget_nothing_and_beat_masks_alone():
    """Five permutations of the digits' pixels, masks of 10%: old outputs stay bit for bit; training the free weights helps."""
    train, test = digits()
    masked = lambda kernels, mask: [k * m for k, m in zip(kernels, mask, strict=True)]
    tx, inner = optax.adam(0.02), optax.adamw(2e-3, weight_decay=1e-2)

    @jax.jit
    def learn(kernels, used, key, order):
        first, second, third = jax.random.split(key, 3)
        seen = (train[0][:, order], train[1])
        unseen = (test[0][:, order], test[1])
        masks = lambda scores: [w.topk_supermask(s, density=0.1) for s in scores]
        scores = initial(first, w.supermask_init)
        loss = lambda scores, x, y: cross_entropy(masked(kernels, masks(scores)), x, y)
        scores, _ = descend(loss, scores, tx.init(scores), tx, seen, second, 100)
        mask = masks(scores)
        only = accuracy(masked(kernels, mask), unseen)
        free = rj.gradients.train_only(inner, w.exclusive_mask(mask, used))
        loss = lambda kernels, x, y: cross_entropy(masked(kernels, mask), x, y)
        kernels, _ = descend(loss, kernels, free.init(kernels), free, seen, third, 60)
        used = jax.tree.map(lambda u, m: u | (m != 0), used, mask)
        return kernels, used, mask, only, accuracy(masked(kernels, mask), unseen)

    output = jax.jit(lambda kernels, mask, order: network(masked(kernels, mask), test[0][:, order]))
    start = initial(jax.random.key(0), w.signed_constant_init)
    kernels, used = start, [jnp.zeros(shape, bool) for shape in SHAPES]
    nothing, rng = used, np.random.default_rng(1)
    remembered, masks_alone, both = [], [], []
    for task in range(5):
        key, order = jax.random.key(task), jnp.asarray(rng.permutation(64))
        masks_alone.append(float(learn(start, nothing, key, order)[3]))
        kernels, used, mask, _, reached = learn(kernels, used, key, order)
        both.append(float(reached))
        remembered.append((mask, order, np.asarray(output(kernels, mask, order))))
    for mask, order, before in remembered:
        np.testing.assert_array_equal(output(kernels, mask, order), before)
    assert np.mean(both) > np.mean(masks_alone) + 0.01


@pytest.mark.slow
def test_signs_of_a_salient_subnetwork_beat_a_mask_of_equal_density():
    """Digits at density 0.3 after equal steps, from the same frozen normal weights, over four seeds."""
    train, test = digits()
    tx = optax.adam(0.01)

    @jax.jit
    @jax.vmap
    def both(key):
        frozen, first, second = jax.random.split(key, 3)
        kernels = initial(frozen, jax.nn.initializers.he_normal())
        mask = w.saliency_mask(w.synaptic_saliency(network, kernels, (1, 64)), density=0.3)

        def trained(effective, scores):
            loss = lambda scores, x, y: cross_entropy(effective(scores), x, y)
            scores, _ = descend(loss, scores, tx.init(scores), tx, train, second, 120, batch=128)
            return accuracy(effective(scores), test)

        signs = lambda scores: w.sign_supermask(scores, kernels, mask)
        zero_one = lambda scores: [k * w.topk_supermask(s, density=0.3) for k, s in zip(kernels, scores, strict=True)]
        small = [0.05 * jnp.ones(shape) for shape in SHAPES]
        return trained(signs, small), trained(zero_one, initial(first, w.supermask_init))

    signs, zero_one = both(jax.random.split(jax.random.key(0), 4))
    assert float(signs.mean()) > float(zero_one.mean())


@pytest.mark.slow
def test_soft_subnetworks_learn_new_classes_with_less_forgetting_than_all_weights():
    """Digits 0-5 first, then twice two classes of five examples each, at nearest class means; four seeds."""
    train, test = digits()
    ids, shapes = np.asarray(train[1]), ((64, 96), (96, 48))
    shots = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        shots.append([rng.choice(np.flatnonzero(ids == c), 5, replace=False) for c in range(6, 10)])
    old = tuple(a[ids < 6] for a in train)
    features = lambda kernels, mask, x: network([k * m for k, m in zip(kernels, mask, strict=True)], x)
    unit = lambda z: z / (jnp.linalg.norm(z, axis=-1, keepdims=True) + 1e-8)
    loss_to = lambda z, means, y: optax.softmax_cross_entropy_with_integer_labels(16 * unit(z) @ unit(means).T, y).mean()

    def masks(scores, key):
        keys = [None] * 2 if key is None else jax.random.split(key)
        return [w.soft_subnetwork_mask(s, sparsity=0.5, key=k) for s, k in zip(scores, keys, strict=True)]

    def base_stage(key, soft):
        init, draw, batches = jax.random.split(key, 3)
        he, tx = jax.nn.initializers.he_normal(), optax.adam(5e-3)
        kernels = [he(jax.random.fold_in(init, i), s) for i, s in enumerate(shapes)]
        scores = [w.supermask_init(jax.random.fold_in(draw, i), s) for i, s in enumerate(shapes)]
        params = kernels, scores, he(draw, (6, 48))

        def step(carry, now):
            params, state = carry
            key, late = now
            rows = jax.random.randint(key, (64,), 0, old[0].shape[0])

            def loss(params):
                kernels, scores, means = params
                mask = masks(scores, None)
                mask = jax.tree.map(lambda h, m: jnp.where(late & soft, m, h), mask, masks(scores, key))
                return loss_to(features(kernels, mask, old[0][rows]), means, old[1][rows])

            updates, state = tx.update(jax.grad(loss)(params), state)
            return (optax.apply_updates(params, updates), state), None

        now = jax.random.split(batches, 150), jnp.arange(150) >= 110
        (kernels, scores, _), _ = jax.lax.scan(step, (params, tx.init(params)), now)[0]
        return kernels, jax.tree.map(lambda h, m: jnp.where(soft, m, h), masks(scores, None), masks(scores, draw))

    @jax.jit
    @jax.vmap
    def run(key, shots, soft, everything):
        kernels, mask = base_stage(key, soft)
        means = jnp.stack([features(kernels, mask, old[0][np.asarray(old[1]) == c]).mean(0) for c in range(6)])
        is_old = test[1] < 6
        right = lambda kernels, means: (unit(features(kernels, mask, test[0])) @ unit(means).T).argmax(-1) == test[1]
        before = jnp.sum(right(kernels, means) & is_old) / jnp.sum(is_old)
        tx = rj.gradients.train_only(optax.sgd(0.1), [(m < 1) | everything for m in mask])
        for rows in (shots[:2].reshape(-1), shots[2:].reshape(-1)):
            x, y = train[0][rows], train[1][rows]
            known = lambda k, x=x, means=means: jnp.concatenate([means, features(k, mask, x).reshape(2, 5, 48).mean(1)])

            def step(carry, _, x=x, y=y, known=known):
                kernels, state = carry
                fixed = known(kernels)
                grads = jax.grad(lambda k: loss_to(features(k, mask, x), fixed, y))(kernels)
                updates, state = tx.update(grads, state, kernels)
                return (optax.apply_updates(kernels, updates), state), None

            (kernels, _), _ = jax.lax.scan(step, (kernels, tx.init(kernels)), None, 20)
            means = known(kernels)
        end = right(kernels, means)
        return end.mean(), before - jnp.sum(end & is_old) / jnp.sum(is_old)

    modes = {"soft": (True, False), "hard": (False, False), "all": (False, True)}
    keys = jnp.tile(jax.random.split(jax.random.key(0), 4), 3)
    flags = [jnp.repeat(jnp.array(flag), 4) for flag in zip(*modes.values(), strict=True)]
    accuracy, dropped = run(keys, jnp.tile(jnp.asarray(np.array(shots)), (3, 1, 1)), *flags)
    accuracy, dropped = (dict(zip(modes, np.asarray(v).reshape(3, 4).mean(1), strict=True)) for v in (accuracy, dropped))
    assert accuracy["soft"] > accuracy["hard"] and dropped["soft"] < dropped["all"]


def test_masks_multiply_the_kernels_of_an_nnx_model():
    model = nnx.Sequential(nnx.Linear(4, 3, rngs=nnx.Rngs(0)), jax.nn.relu, nnx.Linear(3, 2, rngs=nnx.Rngs(1)))
    graphdef, params = nnx.split(model, nnx.Param)
    saliency = w.synaptic_saliency(lambda p, x: nnx.merge(graphdef, p)(x), params, (1, 4))
    mask = w.saliency_mask(saliency, density=0.5)
    scores = jax.tree.map(lambda p: -jnp.ones_like(p), params)
    x = jnp.ones((2, 4))
    y = nnx.merge(graphdef, w.sign_supermask(scores, params, mask))(x)
    a, b = (model.layers[i].kernel[...] * mask["layers"][i]["kernel"][...] for i in (0, 2))
    np.testing.assert_allclose(y, jax.nn.relu(x @ -a) @ -b, rtol=1e-6)
