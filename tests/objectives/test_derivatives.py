"""The gradient-norm penalty against the product with the Hessian, and the blockwise gradient against the whole one."""

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
    linear_loss,
    mlp_loss,
    normalised_loss,
    quadratic,
    same,
    step_flops,
    whole_numbers,
)

gradient_penalty, full_batch_gradient = rj.objectives.gradient_penalty, rj.objectives.full_batch_gradient
METHODS = ("forward", "central", "exact")


def written_out(w, x, y, c, extra=None):
    """The penalised loss, and its gradient g + c H (g + v) by a product with the Hessian."""
    value, g = jax.value_and_grad(mlp_loss)(w, x, y)
    v = jax.tree.map(jnp.zeros_like, w) if extra is None else extra
    along = jax.tree.map(jnp.add, g, v)
    _, product = jax.jvp(lambda w: jax.grad(mlp_loss)(w, x, y), (w,), (along,))
    penalty = optax.tree.vdot(g, g) / 2 + optax.tree.vdot(g, v)
    return value + c * penalty, jax.tree.map(lambda g, h: g + c * h, g, product)


def test_published_values(x64):
    w = jnp.array([1.0, 1.0])
    run = jax.jit(lambda w: [jax.value_and_grad(gradient_penalty(quadratic, coefficient=0.1, method=m))(w) for m in METHODS])
    for value, gradient in run(w):
        np.testing.assert_allclose(gradient, [1.1, 5.6], rtol=1e-11)
        assert value == pytest.approx(3.35, rel=1e-14)


def test_methods_agree_with_the_product_with_the_hessian(x64):
    w = arrays(MLP)
    extra = jax.tree.map(jnp.cos, w)

    @jax.jit
    def run(h):
        of = lambda v, **options: jax.value_and_grad(gradient_penalty(mlp_loss, coefficient=0.4, extra_direction=v, **options))(
            w, X, Y
        )
        got = {(method, v is None): of(v, method=method, fd_step=h) for method in METHODS for v in (None, extra)}
        return got, {True: written_out(w, X, Y, 0.4), False: written_out(w, X, Y, 0.4, extra)}

    errors = {}
    for h in (1e-2, 1e-3):
        got, want = run(h)
        for (method, plain), (value, gradient) in got.items():
            close(value, want[plain][0])
            difference = jax.tree.map(jnp.subtract, gradient, want[plain][1])
            errors[method, plain, h] = float(optax.tree.norm(difference))
    for plain in (True, False):
        assert errors["exact", plain, 1e-2] < 1e-13
        # First and second order: a step ten times shorter is ten and a hundred times closer.
        assert errors["forward", plain, 1e-2] < 1e-2
        assert errors["forward", plain, 1e-3] == pytest.approx(errors["forward", plain, 1e-2] / 10, rel=0.05)
        assert errors["central", plain, 1e-3] == pytest.approx(errors["central", plain, 1e-2] / 100, rel=0.05)


def test_other_arguments_get_the_gradient_of_the_penalised_loss(x64):
    w, x = arrays(MLP), jnp.asarray(X)
    of = lambda method: jax.grad(gradient_penalty(mlp_loss, coefficient=0.4, method=method, fd_step=1e-4), argnums=1)
    forward, central, exact, want = jax.jit(
        lambda x: (*(of(method)(w, x, Y) for method in METHODS), jax.grad(lambda x: written_out(w, x, Y, 0.4)[0])(x))
    )(x)
    close(exact, want, rtol=1e-10, atol=1e-14)
    close(central, want, rtol=1e-5, atol=1e-7)
    close(forward, want, rtol=1e-2, atol=1e-5)


def test_coefficient_0_is_the_loss_bit_for_bit():
    arguments = whole_numbers()

    @jax.jit
    def run(c, *arguments):
        of = lambda c, m: jax.value_and_grad(gradient_penalty(linear_loss, coefficient=c, method=m))(*arguments)
        return [of(strength, method) for method in METHODS for strength in (0, c)]

    want = jax.jit(jax.value_and_grad(linear_loss))(*arguments)
    for got in run(0.0, *arguments):
        same(got, want)


def test_schedules_and_traces(x64):
    w = arrays(MLP)
    ramp = lambda step: 0.1 * step

    @jax.jit
    def run(step, c):
        of = lambda c, **given: jax.grad(gradient_penalty(mlp_loss, coefficient=c))(w, X, Y, **given)
        return of(ramp, step=step), of(c), of(0.4)

    scheduled, traced, fixed = run(4, 0.4)
    close(scheduled, fixed, rtol=1e-9)
    close(traced, fixed, rtol=1e-9)
    with pytest.raises(ValueError, match=r"regjax\.objectives\.gradient_penalty: coefficient .*step=step"):
        gradient_penalty(mlp_loss, coefficient=ramp)(w, X, Y)


def test_differences_serve_in_float32():
    w, x, y = arrays((MLP, X, Y), jnp.float32)
    of = lambda method: jax.grad(gradient_penalty(mlp_loss, coefficient=0.4, method=method))(w, x, y)
    forward, central, exact = jax.jit(lambda: [of(method) for method in METHODS])()
    close(central, exact, atol=1e-4, rtol=0)
    close(forward, exact, atol=2e-3, rtol=0)
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(exact)) > 0.5


def test_zero_gradient_is_the_loss():
    run = jax.jit(lambda w: [jax.value_and_grad(gradient_penalty(quadratic, coefficient=0.1, method=m))(w) for m in METHODS])
    for value, gradient in run(jnp.zeros(2)):
        assert value == 0 and np.all(gradient == 0)


def test_running_statistics_come_from_the_chosen_pass(x64):
    w, state = arrays(MLP), {"mean": jnp.zeros(7), "count": jnp.int32(3)}
    options = {"coefficient": 0.4, "has_aux": True, "fd_step": 0.5}

    @jax.jit
    def run(w):
        of = lambda **more: gradient_penalty(normalised_loss, **options, **more)(w, state, X, Y)
        clean = [of(method=method) for method in METHODS]
        return clean, [of(method=method, aux_from="perturbed") for method in METHODS[:2]], normalised_loss(w, state, X, Y)[1]

    clean, perturbed, want = run(w)
    for _, aux in clean:
        close(aux, want)
    for (value, aux), (clean_value, _) in zip(perturbed, clean, strict=False):
        assert np.abs(aux["mean"] - want["mean"]).max() > 1e-3 and aux["count"] == 4
        close(value, clean_value)


def test_leaves_that_are_not_floating_are_left_alone():
    params = {"w": jnp.array([1.0, 1.0]), "count": jnp.int32(2), "none": None}
    extra = {"w": jnp.array([1.0, 0.0]), "count": jnp.int32(0), "none": None}
    loss = lambda p: quadratic(p["w"]) * (p["count"] - 1)
    of = lambda method: gradient_penalty(loss, coefficient=0.1, method=method, extra_direction=extra)
    run = jax.jit(lambda p: [jax.grad(of(method), allow_int=True)(p) for method in METHODS])
    for gradient in run(params):
        np.testing.assert_allclose(gradient["w"], [1.2, 5.6], rtol=1e-3)
    with pytest.raises(ValueError, match=r"regjax\.objectives\.gradient_penalty: extra_direction"):
        gradient_penalty(loss, coefficient=0.1, extra_direction=extra["w"])(params)


def test_flops_are_those_of_the_passes_and_nothing_calls_the_host():
    plain, _ = step_flops()
    for method, bound in (("forward", 2.05), ("central", 3.05)):
        flops, text = step_flops(functools.partial(gradient_penalty, coefficient=0.1, method=method))
        assert flops <= bound * plain
        assert "callback" not in text


def blocks(n):
    return X.reshape(n, -1, 5), Y.reshape(n, -1, 3)


def test_full_batch_gradient_is_the_mean_over_blocks(x64):
    w = arrays(MLP)
    penalised = functools.partial(gradient_penalty, coefficient=lambda step: 0.1 * step, method="exact")

    @jax.jit
    def run(w):
        whole = full_batch_gradient(mlp_loss, w, *blocks(4))
        split = full_batch_gradient(mlp_loss, w, *blocks(4), transform=penalised, step=3)
        each = [jax.value_and_grad(penalised(mlp_loss))(w, x, y, step=3) for x, y in zip(*blocks(4), strict=True)]
        return whole, split, jax.tree.map(lambda *v: sum(v) / 4, *each), jax.value_and_grad(mlp_loss)(w, X, Y)

    whole, split, each, want = run(w)
    close(whole, want, atol=1e-15)
    close(split, each, atol=1e-15)
    assert split[0] > whole[0]


def test_full_batch_gradient_takes_aux_keys_and_other_leaves(x64):
    params = {"w": jnp.ones(5), "count": jnp.int32(1), "low": jnp.bfloat16(2.0)}

    def loss(p, batch, key):
        return p["low"].astype(float) * jnp.mean(batch["x"] @ p["w"]), (jnp.sum(batch["x"]), jax.random.uniform(key))

    keys = jax.random.split(jax.random.key(0), 4)
    (value, (sums, drawn)), gradient = full_batch_gradient(loss, params, {"x": blocks(4)[0]}, keys, has_aux=True)
    close(value, 2 * np.mean(X.sum(1)))
    close(sums, blocks(4)[0].sum((1, 2)))
    close(drawn, jax.vmap(jax.random.uniform)(keys))
    close(gradient["w"], 2 * X.mean(0), rtol=1e-11)
    assert gradient["count"].dtype == jax.dtypes.float0 and gradient["low"].dtype == jnp.bfloat16


def test_full_batch_gradient_averages_in_float32():
    # 1 + 1 + ... in bfloat16 stops at 256; the mean of 600 ones and of a last 601 is 2.
    x = jnp.ones((601, 1), jnp.bfloat16).at[-1].set(602)
    _, gradient = full_batch_gradient(lambda w, x: jnp.sum(w * x), jnp.bfloat16(1.0), x)
    assert gradient == 2 and gradient.dtype == jnp.bfloat16


@pytest.mark.parametrize("batches", [(), (np.ones((4, 2)), np.ones((3, 2))), (np.float32(1.0),), (np.ones((0, 2)),)])
def test_full_batch_gradient_needs_one_number_of_blocks(batches):
    with pytest.raises(ValueError, match=r"regjax\.objectives\.full_batch_gradient: batches must be arrays that share"):
        full_batch_gradient(lambda w, *x: jnp.sum(w), arrays(LINEAR)["bias"], *batches)
