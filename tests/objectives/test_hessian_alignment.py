"""Hessian alignment against loops over examples and whole Hessians, the published values, and its gradient routing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import regjax as rj
from tests.objectives.problems import close

RNG = np.random.default_rng(0)
HEAD = RNG.normal(size=(4, 3)) / 2  # three features and the bias
X, Y = RNG.normal(size=(2, 5, 3)), RNG.integers(0, 3, size=(2, 5))
alignment = rj.objectives.hessian_alignment


def head_loss(head, x, y):
    z = jax.nn.log_softmax(x @ head["kernel"] + head["bias"])
    return -jnp.mean(jnp.sum(jax.nn.one_hot(y, z.shape[-1], dtype=z.dtype) * z, -1))


def tree(head):
    return {"kernel": jnp.asarray(head[:-1]), "bias": jnp.asarray(head[-1])}


def domain_moments(head, x, y):
    """The loss of a domain, its gradient ``[P]`` and its Hessian ``[P, P]`` by the head, example by example."""
    classes = head.shape[1]
    loss, gradient, hessian = 0.0, np.zeros(head.size), np.zeros((head.size, head.size))
    for row, label in zip(x, y, strict=True):
        h = np.append(row, 1.0)
        z = h @ head
        p = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
        loss -= np.log(p[label]) / len(x)
        gradient += np.outer(h, p - np.eye(classes)[label]).ravel() / len(x)
        hessian += np.kron(np.outer(h, h), np.diag(p) - np.outer(p, p)) / len(x)
    return loss, gradient, hessian


def reference(head, x, y, alpha, beta, *, centre=None, probes=None, reduce="mean"):
    """The total; ``centre`` are the constant means, taken at other arguments; ``probes [E + 1, R, P]``."""
    losses, gradients, hessians = zip(*(domain_moments(head, *domain) for domain in zip(x, y, strict=True)), strict=True)
    means = np.mean(gradients, 0), np.mean(hessians, 0)

    def curvature(gradient, hessian, z):
        return hessian @ gradient if probes is None else np.mean([v * (hessian @ v) for v in z], 0)

    z = [None] * (len(x) + 1) if probes is None else probes
    own = means[0], curvature(*means, z[-1])
    gbar, qbar = own if centre is None else centre
    penalties = [
        alpha * ((curvature(g, h, v) - qbar) ** 2).sum() + beta * ((g - gbar) ** 2).sum()
        for g, h, v in zip(gradients, hessians, z[:-1], strict=True)
    ]
    return np.mean(losses) + (np.mean(penalties) if reduce == "mean" else np.sum(penalties)), own


def slope(fn, point, direction, step=1e-6):
    return (fn(point + step * direction) - fn(point - step * direction)) / (2 * step)


@pytest.mark.parametrize("method", ["hgp", "hutchinson"])
@pytest.mark.parametrize("stop_mean", [True, False])
def test_equals_whole_hessians_and_holds_the_means_constant(x64, method, stop_mean):
    signs = None if method == "hgp" else RNG.choice([-1.0, 1.0], size=(3, 2, HEAD.size))
    given = None
    if signs is not None:
        parts = signs.reshape(3, 2, *HEAD.shape)
        given = {"kernel": jnp.asarray(parts[:, :, :-1]), "bias": jnp.asarray(parts[:, :, -1])}
    reduce = "mean" if stop_mean else "sum"
    objective = alignment(head_loss, method=method, alpha=0.7, beta=0.3, stop_mean=stop_mean, reduce=reduce)
    run = jax.jit(jax.value_and_grad(lambda head, x: objective(head, x, Y, probes=given), argnums=(0, 1), has_aux=True))
    (total, info), (to_head, to_x) = run(tree(HEAD), X)
    want, centre = reference(HEAD, X, Y, 0.7, 0.3, probes=signs, reduce=reduce)
    close(total, want)
    close(info["nll"] + info["penalty"], want)
    value = lambda head, x: reference(head, x, Y, 0.7, 0.3, centre=centre if stop_mean else None, probes=signs, reduce=reduce)[0]
    move, shift = RNG.normal(size=HEAD.shape), RNG.normal(size=X.shape)
    got = (to_head["kernel"] * move[:-1]).sum() + (to_head["bias"] * move[-1]).sum()
    close(got, slope(lambda head: value(head, X), HEAD, move), rtol=1e-6)
    close((to_x * shift).sum(), slope(lambda x: value(HEAD, x), X, shift), rtol=1e-6)


def test_published_values(x64):
    head = {"kernel": jnp.zeros((1, 2)), "bias": jnp.zeros(2)}
    x, y = jnp.array([[[1.0]], [[2.0]]]), jnp.array([[0], [1]])
    # The four unit vectors, twice as long, give the diagonal itself.
    basis = jnp.broadcast_to(2 * jnp.eye(4), (3, 4, 4))
    exact = {"kernel": basis[:, :, :2].reshape(3, 4, 1, 2), "bias": basis[:, :, 2:]}

    @jax.jit
    def run():
        penalty = lambda *probes, **options: alignment(head_loss, **options)(head, x, y, None, *probes)[1]["penalty"]
        return (
            penalty(alpha=1.0, beta=0.0),
            penalty(alpha=0.0, beta=1.0),
            penalty(alpha=1.0, beta=1.0, stop_mean=False, reduce="sum"),
            penalty(exact, method="hutchinson", alpha=1.0, beta=0.0),
            alignment(head_loss)(head, x, y)[0],
        )

    close(np.array(run()), [7.046875, 1.625, 17.34375, 0.28125, 0.701976868], rtol=1e-8)


def test_equal_domains_and_a_single_one_have_no_penalty_and_schedules_are_read(x64):
    @jax.jit
    def run(alpha, step):
        objective = functools.partial(alignment, head_loss, beta=0.5)
        equal = objective(alpha=alpha)(tree(HEAD), X[:1].repeat(3, 0), Y[:1].repeat(3, 0))[1]["penalty"]
        one = objective(alpha=alpha)(tree(HEAD), X[:1], Y[:1])[1]["penalty"]
        scheduled = objective(alpha=lambda step: 0.1 * step)(tree(HEAD), X, Y, step=step)[0]
        masked = alignment(lambda head, x, y: head_loss(head, x, y[0]), alpha=alpha, beta=0.5)(tree(HEAD), X, (Y, Y > 0))[0]
        return equal, one, scheduled, masked

    equal, one, scheduled, masked = run(0.3, 3)
    close([equal, one], [0.0, 0.0], atol=1e-30)
    want = reference(HEAD, X, Y, 0.3, 0.5)[0]
    close([scheduled, masked], [want, want])


def test_random_signs_estimate_the_diagonal(x64):
    rounds = 4000
    objective = alignment(head_loss, method="hutchinson", alpha=1.0, beta=0.0, num_probes=rounds)
    got = np.sqrt(jax.jit(lambda key: objective(tree(HEAD), X, Y, key)[1]["penalty"])(jax.random.key(0)))
    hessians = [domain_moments(HEAD, x, y)[2] for x, y in zip(X, Y, strict=True)]
    diagonals = [np.diag(h) for h in [*hessians, np.mean(hessians, 0)]]
    want = np.sqrt(np.mean([((d - diagonals[-1]) ** 2).sum() for d in diagonals[:-1]]))
    # An estimate of a diagonal is off by the root of the sum of squares beside it, over the rounds.
    deviations = [np.sqrt((h**2).sum() - (np.diag(h) ** 2).sum()) for h in hessians]
    assert abs(got - want) < 2 * 3 * max(deviations) / np.sqrt(rounds)
    assert got != pytest.approx(want, rel=1e-6)


@pytest.mark.slow
def test_a_colour_that_goes_with_the_label_misleads_less():
    """Digits below five or not, a quarter wrong: in training the colour tells more than the shape, in testing the contrary."""
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    images, small = jnp.asarray(digits.data / 16, jnp.float32), jnp.asarray(digits.target < 5)
    start, weight, optimiser = 100, 1e4, optax.adam(3e-3)
    schedule = lambda step: jnp.where(step < start, 1.0, weight)
    aligned = alignment(head_loss, alpha=schedule, beta=schedule, stop_mean=False, reduce="sum")

    def coloured(key, rows, rate):
        keys = jax.random.split(key)
        label = small[rows] ^ jax.random.bernoulli(keys[0], 0.25, rows.shape)
        colour = (label ^ jax.random.bernoulli(keys[1], rate, rows.shape))[:, None]
        return jnp.concatenate([images[rows] * colour, images[rows] * ~colour], 1), label.astype(jnp.int32)

    def run(key, penalised):
        keys = jax.random.split(key, 6)
        order = jax.random.permutation(keys[0], len(images))
        sets = [
            coloured(k, order[400 * i : 400 * (i + 1)], rate)
            for i, (k, rate) in enumerate(zip(keys[1:4], (0.1, 0.2, 0.9), strict=True))
        ]
        x, y = (jnp.stack(parts) for parts in zip(*sets[:2], strict=True))
        params = {"kernel": jax.random.normal(keys[4], (128, 32)) / 8, "bias": jnp.zeros(32)}
        params["head"] = {"kernel": jax.random.normal(keys[5], (32, 2)) / 8, "bias": jnp.zeros(2)}
        features = lambda p, x: jax.nn.relu(x @ p["kernel"] + p["bias"])

        def loss_fn(p, step):
            decay = 1e-3 * sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(p))
            if penalised:
                return aligned(p["head"], features(p, x), y, step=step)[0] / schedule(step) + decay
            return jnp.mean(jax.vmap(head_loss, (None, 0, 0))(p["head"], features(p, x), y)) + decay

        def step(carry, step):
            updates, state = optimiser.update(jax.grad(loss_fn)(carry[0], step), carry[1])
            return (optax.apply_updates(carry[0], updates), state), None

        (params, _), _ = jax.lax.scan(step, (params, optimiser.init(params)), jnp.arange(250))
        new, want = sets[2]
        logits = features(params, new) @ params["head"]["kernel"] + params["head"]["bias"]
        return jnp.mean(jnp.argmax(logits, -1) == want)

    seeds = jax.random.split(jax.random.key(0), 3)
    plain, robust = (np.asarray(jax.jit(jax.vmap(functools.partial(run, penalised=p)))(seeds)) for p in (False, True))
    assert plain.mean() < 0.3
    assert np.all(robust > plain + 0.05)
