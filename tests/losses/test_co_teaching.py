"""Co-teaching against a loop, the published values, the flow of gradients, and the rounding of the share that stays."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType

import regjax as rj
from tests.references import log_softmax, soft_labels

RNG = np.random.default_rng(0)
Z1, Z2 = RNG.normal(size=(2, 12, 4))
LABELS = RNG.integers(0, 4, size=12)
WHERE = RNG.random(12) < 0.7
co_teaching, small_loss_weights = rj.losses.co_teaching, rj.losses.small_loss_weights


def chosen(losses, keep, where=None):
    """The indices of the smallest losses, the earlier of equal ones first."""
    count = [i for i in range(len(losses)) if where is None or where[i]]
    return sorted(count, key=lambda i: losses[i])[:keep]


def reference(z1, z2, labels, keep, where=None):
    one_hot = np.eye(4)[labels] if labels.ndim == 1 else labels
    l1, l2 = ([-sum(y[k] * log_softmax(row)[k] for k in range(4)) for row, y in zip(z, one_hot, strict=True)] for z in (z1, z2))
    loss1 = sum(l1[i] for i in chosen(l2, keep, where)) / max(keep, 1)
    return loss1, sum(l2[i] for i in chosen(l1, keep, where)) / max(keep, 1)


def test_equal_their_reference(x64):
    run = jax.jit(lambda z1, rate, labels, where: co_teaching(z1, Z2, labels, forget_rate=rate, where=where))
    for keep in (0, 1, 5, 9, 12):
        got = run(Z1, 1 - keep / 12, LABELS, np.ones(12, bool))
        np.testing.assert_allclose(got, reference(Z1, Z2, LABELS, keep), rtol=1e-12)
    spoilt = np.where(WHERE[:, None], Z1, np.nan)
    got = run(spoilt, 0.3, np.where(WHERE, LABELS, -1), WHERE)
    np.testing.assert_allclose(got, reference(Z1, Z2, LABELS, int(0.7 * WHERE.sum()), WHERE), rtol=1e-12)
    # A label that is no class id, or a loss of NaN, is seen, though it would rank last.
    third = np.arange(12) == 3
    assert np.isnan(run(Z1, 0.5, np.where(third, 4, LABELS), np.ones(12, bool))).all()
    assert np.isnan(run(np.where(third[:, None], np.nan, Z1), 0.5, LABELS, np.ones(12, bool))[0])
    soft = soft_labels(RNG, 12, 4)
    got = jax.jit(lambda *z: co_teaching(*z, forget_rate=0.5, axis=0))(Z1.T, Z2.T, soft.T)
    np.testing.assert_allclose(got, reference(Z1, Z2, soft, 6), rtol=1e-12)


def test_published_values(x64):
    z1, z2 = jnp.array([[3.0, 0.0], [0.0, 1.0], [0.0, 0.0]]), jnp.array([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0]])
    loss1, loss2 = jax.jit(jax.vmap(lambda r: co_teaching(z1, z2, jnp.zeros(3, int), forget_rate=r)))(jnp.array([1 / 3, 0, 1]))
    np.testing.assert_allclose(loss1, [1.003204, np.mean([0.048587, 1.313262, 0.693147]), 0], atol=1e-6)
    np.testing.assert_allclose(loss2, [0.410038, np.mean([0.693147, 0.313262, 0.126928]), 0], atol=1e-6)


def test_each_learns_from_the_others_choice_alone():
    run = jax.jit(jax.jacrev(lambda z: co_teaching(*z, LABELS, forget_rate=0.5)))
    (g11, g12), (g21, g22) = jax.tree.map(np.asarray, run((Z1, Z2)))
    assert not np.any(g12) and not np.any(g21)
    l1, l2 = ([-log_softmax(row)[y] for row, y in zip(z, LABELS, strict=True)] for z in (Z1, Z2))
    for gradient, others in ((g11, l2), (g22, l1)):
        assert set(np.flatnonzero(np.any(gradient != 0, axis=1))) == set(chosen(others, 6))


def test_rounding_takes_no_example_away():
    """A traced rate of k / B leaves out k examples, in float32, where the plain formula often leaves out one more."""
    z = jnp.asarray(np.random.default_rng(0).normal(size=(2, 128, 2)), jnp.float32)

    @jax.jit
    @jax.vmap
    def left(rate, batch):
        loss = lambda z1: co_teaching(z1, z[1], jnp.zeros(128, int), forget_rate=rate, where=jnp.arange(128) < batch)[0]
        return jnp.sum(jnp.any(jax.grad(loss)(z[0]) != 0, axis=1))

    dropped, batch = (
        np.concatenate(x) for x in zip(*((np.arange(b + 1), np.full(b + 1, b)) for b in (3, 10, 50, 128)), strict=True)
    )
    rates = (dropped / batch).astype(np.float32)
    np.testing.assert_array_equal(left(rates, batch), batch - dropped)
    plain = np.floor((np.float32(1) - rates) * batch.astype(np.float32))
    assert np.sum(plain != batch - dropped) > 10
    # What lies truly below a whole number is rounded down.
    assert left(jnp.array([0.2, 0.2 + 1e-4]), jnp.array([50, 50])).tolist() == [40, 39]


def test_weights_equal_a_stable_sort():
    losses = RNG.integers(0, 4, size=20) / 4
    losses[[2, 5, 7, 11]] = [np.nan, np.inf, -0.0, 0.0]
    where = RNG.random(20) < 0.7
    where[[2, 5, 7, 11]] = True
    run = jax.jit(lambda keep, where: small_loss_weights(jnp.asarray(losses, jnp.float32), keep, where=where))
    ranked = np.where(np.isnan(losses), np.inf, losses)
    for mask in (where, np.ones(20, bool)):
        for keep in (0, 1, 4, 7, 13, 20, 100):
            want = np.zeros(20)
            want[chosen(ranked, keep, mask)] = 1
            np.testing.assert_array_equal(run(keep, mask), want)
    np.testing.assert_array_equal(run(np.float32(4.9), where), run(4, where))


def test_ranks_are_those_of_a_batch_split_over_two_axes():
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    losses = jnp.asarray(RNG.integers(0, 5, size=16), jnp.float32)
    spec = jax.P(("a", "b"))
    split = jax.shard_map(lambda x: small_loss_weights(x, 7, axis_name=("a", "b")), mesh=mesh, in_specs=spec, out_specs=spec)
    want = np.zeros(16)
    want[chosen(losses, 7)] = 1
    np.testing.assert_array_equal(jax.jit(split)(losses), want)


@pytest.mark.slow
def test_two_networks_learn_digits_of_wrong_labels_better_than_one():
    from sklearn.datasets import load_digits

    images, true = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32)
    rng = np.random.default_rng(0)
    order = rng.permutation(len(true))
    train, test = order[:1080], order[1080:]
    noisy = np.where(rng.random(1080) < 0.4, rng.integers(0, 10, size=1080), true[train])
    x, y = jnp.asarray(images[train]), jnp.asarray(noisy)
    tx = optax.sgd(0.05, momentum=0.9)

    def net(params, x):
        for w, b in params[:-1]:
            x = jax.nn.relu(x @ w + b)
        return x @ params[-1][0] + params[-1][1]

    def init(seed):
        r, sizes = np.random.default_rng(seed), (64, 64, 10)
        return [
            (jnp.asarray(np.sqrt(2 / m) * r.normal(size=(m, n)), jnp.float32), jnp.zeros(n)) for m, n in itertools.pairwise(sizes)
        ]

    epochs, batch = 60, 54

    def loss_fn(params, rows, epoch, last):
        share = rj.schedules.forget_rate(epoch, forget_rate=last)
        return sum(co_teaching(net(params[0], x[rows]), net(params[1], x[rows]), y[rows], forget_rate=share))

    def step(carry, inputs, last):
        params, state = carry
        updates, state = tx.update(jax.grad(loss_fn)(params, *inputs, last), state)
        return (optax.apply_updates(params, updates), state), None

    @jax.jit
    def fit(params, rows, last):
        at = jnp.arange(len(rows)) // (1080 // batch)
        return jax.lax.scan(lambda c, i: step(c, i, last), (params, tx.init(params)), (rows, at))[0][0]

    rows = jnp.asarray(np.concatenate([rng.permutation(1080).reshape(-1, batch) for _ in range(epochs)]))
    accuracy = lambda params: float(jnp.mean(jnp.argmax(net(params, images[test]), 1) == true[test]))
    # A rate of 0 trains each network by itself.
    alone = [accuracy(p) for p in fit([init(1), init(2)], rows, 0.0)]
    together = [accuracy(p) for p in fit([init(1), init(2)], rows, 0.36)]
    assert min(together) > max(alone) + 0.05, (alone, together)
