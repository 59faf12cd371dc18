"""ESAM and the gradient-norm penalty against loop-written float64 references, SAM, and the statistics of the random leaves."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import regjax as rj
from tests.objectives.problems import (
    LINEAR,
    MLP,
    X,
    Y,
    arrays,
    close,
    hidden,
    linear_gradient,
    linear_loss,
    mlp_loss,
    normalised_loss,
    quadratic,
    same,
    step_flops,
    whole_numbers,
)

esam, gnp, sam = rj.objectives.esam, rj.objectives.gradient_norm_penalty, rj.objectives.sam
KEY = jax.random.key(0)


def linear_losses(w, x, y):
    """The terms of `linear_loss`."""
    return jnp.sum((w["scale"] * (x @ w["kernel"]) + w["bias"] - y) ** 2, -1) / 2


def mlp_losses(w, x, y):
    """The terms of `mlp_loss`."""
    return jnp.mean((hidden(w, x) @ w["out"]["kernel"] + w["out"]["bias"] - y) ** 2, -1)


def losses_reference(w):
    z = [[w["scale"][k] * sum(X[i, d] * w["kernel"][d, k] for d in range(5)) + w["bias"][k] for k in range(3)] for i in range(16)]
    return np.array([sum((z[i][k] - Y[i, k]) ** 2 for k in range(3)) / 2 for i in range(16)])


def norm(tree):
    return np.sqrt(sum((leaf**2).sum() for leaf in tree.values()))


def probed(losses):
    """The losses, with the parameters at which they were taken as the aux."""
    return lambda w, x, y: (losses(w, x, y), w)


@pytest.mark.parametrize("gamma, count", [(0.3, 4), (0.01, 1), (1.0, 16)])
def test_esam_equals_its_reference(x64, gamma, count):
    w = arrays(LINEAR)
    loss = esam(probed(linear_losses), rho=0.3, beta=0.5, gamma=gamma, has_aux=True, aux_from="perturbed")
    run = jax.jit(jax.value_and_grad(loss, has_aux=True))
    g = linear_gradient(LINEAR, X, Y)
    seen = set()
    for seed in range(4):
        (value, at), gradient = run(w, X, Y, key=jax.random.key(seed))
        # Each leaf is where it was, or moved by the perturbation of SAM, enlarged.
        kept = {n: bool(np.any(at[n] != LINEAR[n])) for n in LINEAR}
        moved = {n: LINEAR[n] + kept[n] * 0.3 * g[n] / norm(g) / 0.5 for n in LINEAR}
        close(at, moved, rtol=1e-11)
        after = losses_reference(moved)
        chosen = np.argsort(after - losses_reference(LINEAR))[-count:]
        assert value == pytest.approx(after[chosen].mean(), rel=1e-11)
        close(gradient, linear_gradient(moved, X[chosen], Y[chosen]), rtol=1e-10)
        seen.add(tuple(kept.values()))
    assert len(seen) > 1


def test_published_values_and_their_mixture(x64):
    ones = jnp.array([1.0, 1.0])
    alone = esam(lambda w: quadratic(w)[None], rho=0.5, beta=1.0)
    np.testing.assert_allclose(jax.jit(jax.grad(alone))(ones), [1.121267813, 5.940285000], atol=5e-9)
    value, gradient = jax.jit(jax.value_and_grad(gnp(quadratic, radius=0.5, coefficient=0.25)))(ones)
    np.testing.assert_allclose(gradient, 0.5 * np.array([1, 4]) + 0.5 * np.array([1.121267813, 5.940285]), atol=5e-9)
    assert value == pytest.approx(0.5 * 2.5 + 0.5 * 5.039493989, abs=5e-10)


def test_random_leaves_are_unbiased_and_kept_at_their_rate(x64):
    w = arrays(LINEAR)
    loss = esam(probed(linear_losses), rho=0.3, beta=0.3, has_aux=True, aux_from="perturbed")
    draws = 4000
    at = jax.jit(jax.vmap(lambda key: loss(w, X, Y, key=key)[1]))(jax.random.split(jax.random.key(1), draws))
    g = linear_gradient(LINEAR, X, Y)
    kept = []
    for name, leaf in LINEAR.items():
        offsets = np.asarray(at[name]) - leaf
        want = 0.3 * g[name] / norm(g)
        error = 5 * abs(want) * np.sqrt(0.7 / 0.3 / draws) + 1e-12
        assert np.all(abs(offsets.mean(0) - want) < error)
        kept.append(np.any(offsets.reshape(draws, -1) != 0, -1))
    rate = np.mean(kept, 1)
    assert np.all(abs(rate - 0.3) < 5 * np.sqrt(0.21 / draws))
    pairs = np.corrcoef(kept)[np.triu_indices(3, 1)]
    assert np.all(abs(pairs) < 5 / np.sqrt(draws))


def test_limits_are_sam_and_the_mean(x64):
    w = arrays(MLP)

    @jax.jit
    def all_of_them(w, beta):
        at = lambda loss, **given: jax.value_and_grad(loss)(w, X, Y, **given)
        everything = at(esam(mlp_losses, rho=0.2, beta=1.0, gamma=1.0))
        traced = at(esam(mlp_losses, rho=0.2, beta=beta, gamma=1.0), key=KEY)
        mixed = at(gnp(mlp_loss, radius=0.2, coefficient=0.2))
        scheduled = at(gnp(mlp_loss, radius=lambda step: 0.1 * step, coefficient=lambda step: 0.1 * step), step=2)
        return at(sam(mlp_loss, rho=0.2)), everything, traced, mixed, scheduled

    plain, *others = all_of_them(w, 1.0)
    for other in others:
        close(other, plain, rtol=1e-11)


def test_the_penalty_is_the_difference_of_gradients_and_near_the_norm(x64):
    g = linear_gradient(LINEAR, X, Y)
    w = arrays(LINEAR)
    moved = linear_gradient({n: LINEAR[n] + 0.3 * g[n] / norm(g) for n in g}, X, Y)
    a = 0.5 / 0.3
    got = jax.jit(jax.grad(gnp(linear_loss, radius=0.3, coefficient=0.5)))(w, X, Y)
    close(got, {n: (1 - a) * g[n] + a * moved[n] for n in g}, rtol=1e-10)

    # With a small radius it is the loss with its gradient's norm, in value and gradient.
    explicit = lambda w: linear_loss(w, X, Y) + 0.5 * optax.tree.norm(jax.grad(linear_loss)(w, X, Y))
    near = jax.jit(jax.value_and_grad(gnp(linear_loss, radius=1e-5, coefficient=0.5)))(w, X, Y)
    close(near, jax.jit(jax.value_and_grad(explicit))(w), rtol=1e-3)


def test_strength_0_is_the_mean_and_needs_no_second_pass_and_no_key():
    calls = []

    def counted(w):
        calls.append(1)
        return quadratic(w)

    w = jnp.array([1.0, 1.0])
    for plain in (esam(lambda w: counted(w)[None], rho=0.0), gnp(counted, radius=0.1, coefficient=0)):
        calls.clear()
        assert plain(w) == 2.5 and len(calls) == 1
    w, x, y = whole_numbers()
    want = jax.jit(jax.value_and_grad(linear_loss))(w, x, y)
    strength = jnp.zeros(())
    same(jax.jit(lambda s: jax.value_and_grad(gnp(linear_loss, radius=0.1, coefficient=s))(w, x, y))(strength), want)
    same(jax.jit(lambda s: jax.value_and_grad(esam(linear_losses, rho=s))(w, x, y, key=KEY))(strength), want)


def test_the_key_is_found_and_shared():
    w = arrays(MLP, jnp.float32)
    x, y = X.astype(np.float32), Y.astype(np.float32)

    def noisy(w, x, y, key):
        return mlp_losses(w, x + jax.random.normal(key, x.shape), y), jax.random.normal(key, (3,))

    options = {"rho": 1.0, "beta": 0.5, "has_aux": True}

    @jax.jit
    def found(key):
        by_name = esam(noisy, **options)(w, x, y, key=key)
        by_position = esam(noisy, key_arg=-1, **options)(w, x, y, key)
        by_function = esam(noisy, key_arg=lambda x, y, key: key, **options)(w, x, y, key=key)
        raw = esam(noisy, **options)(w, x, y, key=jax.random.key_data(key))
        # Not an argument of the loss: it is for the leaves alone.
        named = esam(mlp_losses, rho=1.0, beta=0.5, key_arg="leaves")(w, x, y, leaves=key)
        plain = esam(mlp_losses, rho=1.0, beta=0.5)(w, x, y, key=key)
        return by_name, by_position, by_function, raw, named, plain, jax.random.normal(key, (3,))

    (value, aux), position, function, raw, named, plain, want = found(jax.random.key(2))
    np.testing.assert_array_equal(aux, want)
    for other in (position, function, raw):
        close(other, (value, aux), rtol=1e-6)
    assert named == plain
    with pytest.raises(ValueError, match=r"regjax\.objectives\.esam: key_arg must be where a random key is.*got 'key'"):
        esam(mlp_losses)(w, x, y)


def test_ties_count_together(x64):
    losses = lambda w, x: x * w  # the increase is in proportion to x
    x = jnp.array([3.0, 1.0, 2.0, 2.0, 0.0, 2.0, -1.0, -2.0])
    gradient = lambda gamma, w: jax.grad(esam(losses, beta=1.0, gamma=gamma))(w, x)
    got = jax.jit(lambda w: [gradient(count / 8, w) for count in (1, 2, 4, 5, 6)])(jnp.float64(1.0))
    np.testing.assert_allclose(got, [3.0, 2.25, 2.25, 2.0, 10 / 6], rtol=1e-14)


def test_aux_and_other_arguments(x64):
    w, state = arrays(MLP), {"mean": jnp.zeros(7), "count": jnp.int32(3)}
    _, clean = normalised_loss(w, state, X, Y)

    def each(w, state, x, y):
        return mlp_losses(w, x, y), normalised_loss(w, state, x, y)[1]

    @jax.jit
    def outcomes(w, x):
        run = lambda aux_from: (
            esam(each, rho=0.5, beta=1.0, gamma=1.0, has_aux=True, aux_from=aux_from)(w, state, X, Y)[1],
            gnp(normalised_loss, radius=0.5, coefficient=0.1, has_aux=True, aux_from=aux_from)(w, state, X, Y)[1],
        )
        grad = lambda loss: jax.grad(loss, argnums=1)(w, x, Y)
        by_x = grad(gnp(mlp_loss, radius=0.5, coefficient=0.1)), grad(mlp_loss), grad(sam(mlp_loss, rho=0.5))
        return run("clean"), run("perturbed"), by_x

    kept, moved, (mixed, plain, perturbed) = outcomes(w, jnp.asarray(X))
    for got, other in zip(kept, moved, strict=True):
        close(got, clean)
        assert np.abs(other["mean"] - clean["mean"]).max() > 1e-3 and other["count"] == 4
    close(mixed, 0.8 * plain + 0.2 * perturbed, rtol=1e-10)


def test_zero_gradients_keep_everything_finite():
    w = jnp.zeros(2)
    losses = esam(lambda w: quadratic(w) * jnp.ones(4), norm_eps=0.0), gnp(quadratic, radius=0.1, coefficient=0.1, norm_eps=0.0)
    for loss, given in zip(losses, ({"key": KEY}, {}), strict=True):
        value, gradient = jax.jit(jax.value_and_grad(loss))(w, **given)
        assert value == 0 and np.all(gradient == 0)


def test_one_gradient_of_a_batch_over_devices(x64):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    w = arrays(MLP)
    rows = functools.partial(jax.shard_map, mesh=mesh, in_specs=(jax.P(), jax.P("data"), jax.P("data")), out_specs=jax.P())
    esam_all = lambda *a, axis_name=None: esam(mlp_losses, rho=0.2, beta=0.5, gamma=0.3, axis_name=axis_name)(*a, key=KEY)
    gnp_all = lambda *a, axis_name=None: gnp(mlp_loss, radius=0.2, coefficient=0.1, axis_name=axis_name)(*a)
    for loss in (esam_all, gnp_all):
        mapped = rows(lambda w, x, y, loss=loss: jax.lax.pmean(loss(w, x, y, axis_name="data"), "data"))
        got = jax.jit(jax.value_and_grad(mapped))(w, jnp.asarray(X), jnp.asarray(Y))
        close(got, jax.jit(jax.value_and_grad(loss))(w, X, Y), rtol=1e-10, atol=1e-15)


def test_flops_are_those_of_the_passes():
    def per_example(loss_fn):
        rows = jax.vmap(lambda w, x, y: loss_fn(w, x[None], y[None]), in_axes=(None, 0, 0))
        return lambda w, x, y: esam(rows)(w, x, y, key=jax.random.key(0))

    plain, _ = step_flops()
    flops, text = step_flops(per_example)
    assert flops <= 2.03 * plain and "callback" not in text
    assert step_flops(functools.partial(gnp, radius=0.1, coefficient=0.1))[0] <= 2.02 * plain
