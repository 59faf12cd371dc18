"""Booster against loop-written float64 references, the published value and its closed form on quadratics."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_digits

import regjax as rj
from tests.objectives.problems import (
    LINEAR,
    MLP,
    X,
    Y,
    arrays,
    close,
    dropout_loss,
    linear_gradient,
    linear_loss,
    mlp_loss,
    normalised_loss,
    same,
    step_flops,
    whole_numbers,
)

booster = rj.objectives.booster


def on_pair(w, batch):
    return linear_loss(w, *batch)


def mlp_on_pair(w, batch):
    return mlp_loss(w, *batch)


def test_equals_its_reference(x64):
    rows, others = np.arange(10), np.arange(10, 16)
    g, h = linear_gradient(LINEAR, X[rows], Y[rows]), linear_gradient(LINEAR, X[others], -Y[others])
    length = np.sqrt(sum((leaf**2).sum() for leaf in h.values())) + 1e-7
    after = linear_gradient({n: LINEAR[n] - 0.2 * h[n] / length for n in h}, X[others], -Y[others])
    want = {n: g[n] + 3.0 * (h[n] - after[n]) for n in g}
    boosted = booster(on_pair, on_pair, weight=3.0, step_size=0.2)
    gradient = jax.jit(jax.grad(boosted))(arrays(LINEAR), (X[rows], Y[rows]), (X[others], -Y[others]))
    close(gradient, want, rtol=1e-10)


def test_published_value_and_quadratics(x64):
    ones = jnp.array([1.0, 1.0])
    square = lambda w, batch: jnp.sum(w**2) / 2
    of_square = booster(square, lambda w, batch: w[0] ** 2, weight=5.0, step_size=0.1)
    value, gradient = jax.jit(jax.value_and_grad(of_square))(ones, None, None)
    assert value == pytest.approx(1.95, abs=1e-7)
    np.testing.assert_allclose(gradient, [2.0, 1.0], atol=1e-7)

    # Of a quadratic with Hessian H the penalty's gradient is weight * step * H u.
    root = np.random.default_rng(5).normal(size=(4, 4))
    hessian, w = root @ root.T, np.random.default_rng(6).normal(size=4)
    unit = hessian @ w / np.linalg.norm(hessian @ w)
    zero, bowl = lambda w, batch: 0.0 * jnp.sum(w), lambda w, batch: w @ hessian @ w / 2
    of_bowl = booster(zero, bowl, weight=2.0, step_size=0.1, norm_eps=0.0)
    value, gradient = jax.jit(jax.value_and_grad(of_bowl))(jnp.asarray(w), None, None)
    np.testing.assert_allclose(gradient, 2.0 * 0.1 * hessian @ unit, rtol=1e-10)
    np.testing.assert_allclose(value, 2.0 * (0.1 * unit @ hessian @ w - 0.005 * unit @ hessian @ unit), rtol=1e-10)
    assert value > 0


def test_strength_0_is_the_loss_and_needs_no_harmful_pass():
    calls = []

    def harmful(w, batch):
        calls.append(1)
        return jnp.sum(w**2)

    plain = lambda w, batch: jnp.sum(w)
    for nothing in ({"weight": 0}, {"step_size": 0.0}):
        assert booster(plain, harmful, **nothing)(jnp.ones(2), None, None) == 2.0 and not calls
    w, x, y = whole_numbers()
    want = jax.jit(jax.value_and_grad(linear_loss))(w, x, y)

    @jax.jit
    def at(strength):
        grad = lambda **options: jax.value_and_grad(booster(on_pair, on_pair, **options))(w, (x, y), (-x, y))
        return grad(weight=strength), grad(step_size=strength)

    for got in at(jnp.zeros(())):
        same(got, want)
    # A harmful loss without a gradient has no step.
    flat = booster(plain, lambda w, batch: 0.0 * jnp.sum(w), norm_eps=0.0)
    assert jax.jit(jax.grad(flat))(jnp.ones(2), None, None).tolist() == [1.0, 1.0]


def test_aux_is_that_of_the_loss_and_all_passes_share_the_key(x64):
    w, state = arrays(MLP), {"mean": jnp.zeros(7), "count": jnp.int32(3)}
    seen = []

    def with_state(w, batch, key, scale=1.0):
        seen.append(key)
        return scale * normalised_loss(w, state, *batch)[0], normalised_loss(w, state, *batch)[1]

    boosted = booster(with_state, with_state, has_aux=True)
    key = jax.random.key(0)
    _, aux = jax.jit(lambda key: boosted(w, (X, Y), (X + 1, Y), key, scale=2.0))(key)
    close(aux, normalised_loss(w, state, X, Y)[1])
    assert len(seen) == 4 and len({id(each) for each in seen}) == 1

    # With one mask in all passes the harmful loss and its value after a step differ by the step alone.
    drop = lambda w, batch, key: dropout_loss(w, key, *batch)[0]
    gain = jax.jit(lambda key: booster(drop, drop, weight=1.0, step_size=1e-4)(w, (X, Y), (X, Y), key) - drop(w, (X, Y), key))
    assert 0 < gain(key) < 1e-3


def test_strengths_follow_schedules_and_the_step_reaches_the_losses(x64):
    w = arrays(MLP)
    ramped = rj.objectives.with_penalty(mlp_on_pair, lambda w: jnp.sum(w["out"]["bias"] ** 2), lambda step: 0.1 * step)

    @jax.jit
    def values(step, weight):
        run = lambda loss, *given, **at: booster(loss, loss, weight=given[0], step_size=given[1])(w, (X, Y), (-X, Y), **at)
        fixed = rj.objectives.with_penalty(mlp_on_pair, lambda w: jnp.sum(w["out"]["bias"] ** 2), 0.3)
        return run(ramped, lambda step: step / 2, lambda step: 0.1 * step, step=step), run(fixed, weight, 0.3)

    close(*values(3, 1.5), rtol=1e-11)
    with pytest.raises(ValueError, match=r"regjax\.objectives\.booster: weight.*step=step"):
        booster(mlp_on_pair, mlp_on_pair, weight=lambda step: 1.0)(w, (X, Y), (X, Y))


def test_batches_get_the_gradient_of_the_value(x64):
    w, step = arrays(MLP), 0.2

    @jax.jit
    def by_batches(x, other):
        got = jax.grad(
            lambda x, other: booster(mlp_on_pair, mlp_on_pair, weight=3.0, step_size=step)(w, (x, Y), (other, Y)), (0, 1)
        )
        h = jax.grad(mlp_on_pair)(w, (other, Y))
        length = rj.core.trees.global_norm(h) + 1e-7
        moved = jax.tree.map(lambda p, g: p - step * g / length, w, h)
        of = lambda w, x: jax.grad(lambda x: mlp_loss(w, x, Y))(x)
        return got(x, other), (of(w, x), 3.0 * (of(w, other) - of(moved, other)))

    close(*by_batches(jnp.asarray(X), jnp.asarray(X[::-1] + 1)), rtol=1e-9, atol=1e-14)


def test_one_gradient_of_a_batch_over_devices(x64):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    w, batches = arrays(MLP), ((jnp.asarray(X), jnp.asarray(Y)), (jnp.asarray(X + 1), jnp.asarray(-Y)))
    specs = (jax.P(), jax.P("data"), jax.P("data"))
    rows = functools.partial(jax.shard_map, mesh=mesh, in_specs=specs, out_specs=jax.P())
    mapped = rows(lambda *a: jax.lax.pmean(booster(mlp_on_pair, mlp_on_pair, axis_name="data")(*a), "data"))
    got = jax.jit(jax.value_and_grad(mapped))(w, *batches)
    close(got, jax.jit(jax.value_and_grad(booster(mlp_on_pair, mlp_on_pair)))(w, *batches), rtol=1e-10, atol=1e-14)


def test_flops_are_those_of_three_passes():
    def transform(loss_fn):
        pair = lambda w, batch: loss_fn(w, *batch)
        return lambda w, x, y: booster(pair, pair)(w, (x, y), (-x, y))

    flops, text = step_flops(transform)
    assert flops <= 3.03 * step_flops()[0] and "callback" not in text


@pytest.mark.slow
def test_harmful_fine_tuning_gains_less():
    digits = load_digits()
    x, y = jnp.asarray(digits.data[:1200], jnp.float32) / 16, jnp.asarray(digits.target[:1200])
    held, held_labels = jnp.asarray(digits.data[1200:], jnp.float32) / 16, digits.target[1200:]

    def logits(w, x):
        return jax.nn.relu(x @ w["in"] + w["b"]) @ w["out"] + w["c"]

    def loss(w, batch):
        return optax.softmax_cross_entropy_with_integer_labels(logits(w, batch[0]), batch[1]).mean()

    @functools.partial(jax.vmap, in_axes=(0, None))
    def train(key, weight):
        keys = jax.random.split(key, 4)
        init = jax.nn.initializers.he_normal()
        w = {"in": init(keys[0], (64, 64)), "b": jnp.zeros(64), "out": init(keys[1], (64, 10)), "c": jnp.zeros(10)}
        shuffled = jax.random.permutation(keys[2], y)
        boosted = booster(loss, loss, weight=weight)

        def step(w, rows):
            batch, harmful = (x[rows[0]], y[rows[0]]), (x[rows[1]], shuffled[rows[1]])
            return jax.tree.map(lambda p, g: p - 0.3 * g, w, jax.grad(boosted)(w, batch, harmful)), None

        def tune(w, _):
            return jax.tree.map(lambda p, g: p - 0.02 * g, w, jax.grad(loss)(w, (x, shuffled))), None

        w, _ = jax.lax.scan(step, w, jax.random.randint(keys[3], (300, 2, 64), 0, 1200))
        tuned, _ = jax.lax.scan(tune, w, None, length=20)
        fall = loss(w, (x, shuffled)) - loss(tuned, (x, shuffled))
        return fall, jnp.mean(jnp.argmax(logits(w, held), -1) == held_labels)

    run = jax.jit(train)
    keys = jax.random.split(jax.random.key(0), 3)
    (plain, accuracy), (boosted, kept) = run(keys, 0.0), run(keys, 1.0)
    assert np.all(boosted < 0.9 * plain), (plain, boosted)
    assert kept.mean() > accuracy.mean() - 0.02, (accuracy, kept)
