"""What every objective shares: signature, aux, attached gradients, penalties, nesting, and devices."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType

import regjax as rj
from tests.objectives.problems import LINEAR, MLP, X, Y, arrays, close, linear_loss, mlp_loss, normalised_loss, quadratic, same

sam, amp = rj.objectives.sam, rj.objectives.amp
with_penalty, gradient_penalty = rj.objectives.with_penalty, rj.objectives.gradient_penalty

TRANSFORMS = {
    "sam": sam,
    "amp": amp,
    "gradient_penalty": functools.partial(gradient_penalty, coefficient=0.1),
    "with_penalty": functools.partial(with_penalty, penalty=lambda w: jnp.sum(w**2), strength=0.1),
}


def penalty(w):
    return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(w))


def test_attach_gradient_has_the_value_and_the_gradient(x64):
    w, d = arrays(LINEAR), jax.tree.map(np.cos, LINEAR)
    attached = lambda value, d, w: rj.objectives.attach_gradient(value, d, w)
    value, gradients = jax.value_and_grad(attached, argnums=(0, 1, 2))(7.0, arrays(d), w)
    assert value == 7.0
    by_value, by_direction, by_params = gradients
    same(by_params, arrays(d))
    assert by_value == 0 and all(np.all(leaf == 0) for leaf in jax.tree.leaves(by_direction))
    # Whatever is built on it sees the direction.
    close(jax.grad(lambda w: attached(7.0, d, w) ** 2)(w), jax.tree.map(lambda leaf: 14 * leaf, d))


def test_attach_gradient_passes_over_leaves_that_are_not_floating():
    params = {"w": jnp.ones(2, jnp.bfloat16), "count": jnp.int32(3), "none": None, "key": jax.random.key(0)}
    direction = {"w": jnp.array([1.0, -2.0]), "count": np.zeros((), jax.dtypes.float0), "none": None, "key": jax.random.key(1)}
    attached = lambda p: rj.objectives.attach_gradient(jnp.float16(1.5), direction, p)
    value, gradient = jax.value_and_grad(attached, allow_int=True)(params)
    assert value == 1.5 and value.dtype == jnp.float16
    assert gradient["w"].dtype == jnp.bfloat16 and gradient["w"].tolist() == [1.0, -2.0]


def test_a_penalty_adds_its_gradient(x64):
    w = arrays(MLP)
    value, gradient = jax.jit(jax.value_and_grad(with_penalty(mlp_loss, penalty, 0.3)))(w, X, Y)
    close(value, mlp_loss(w, X, Y) + 0.3 * penalty(w))
    g, p = jax.jit(lambda w: (jax.grad(mlp_loss)(w, X, Y), jax.grad(penalty)(w)))(w)
    close(gradient, jax.tree.map(lambda g, p: g + 0.3 * p, g, p))
    # By a traced strength the derivative is the penalty.
    close(jax.grad(lambda s: with_penalty(mlp_loss, penalty, s)(w, X, Y))(0.3), penalty(w))


def test_a_penalty_in_the_loss_is_a_penalty_before_the_optimiser(x64):
    w = arrays(MLP)
    schedule = lambda step: 0.1 + 0.1 * step
    scaled = functools.partial(lambda w, alpha: alpha * penalty(w), alpha=2.0)
    tx = optax.chain(rj.gradients.add_penalty(scaled, schedule), optax.sgd(0.1, momentum=0.9))
    plain = optax.sgd(0.1, momentum=0.9)

    @jax.jit
    def two_steps(w):
        a, b, state, other = w, w, tx.init(w), plain.init(w)
        for step in range(2):
            updates, state = tx.update(jax.grad(mlp_loss)(a, X, Y), state, a)
            a = optax.apply_updates(a, updates)
            grad = jax.grad(with_penalty(mlp_loss, scaled, schedule))(b, X, Y, step=step)
            updates, other = plain.update(grad, other, b)
            b = optax.apply_updates(b, updates)
        return a, b

    close(*two_steps(w), rtol=1e-11)


def test_a_penalty_keeps_aux_dtype_and_its_own_schedules():
    def bfloat16_loss(w, x):
        return jnp.sum(w * x), {"seen": x}

    ramp = lambda step: 0.5 * step

    def l2(w, *, alpha: rj.core.types.Strength):
        return alpha * jnp.sum(jnp.square(w.astype(jnp.float32)))

    w, x = jnp.ones(2, jnp.bfloat16), jnp.array([1.0, 2.0], jnp.bfloat16)
    for strength in (0.0, 0.25, ramp):
        loss = with_penalty(bfloat16_loss, functools.partial(l2, alpha=ramp), strength, has_aux=True)
        value, aux = loss(w, x, step=2)
        assert value.dtype == jnp.bfloat16 and aux["seen"] is x
        assert value == 3 + {0.0: 0, 0.25: 0.5, ramp: 2}[strength]
    plain = jax.jit(jax.value_and_grad(lambda w, x: bfloat16_loss(w, x)[0]))(w, x)
    traced = jax.jit(jax.value_and_grad(lambda w, x, s: with_penalty(bfloat16_loss, penalty, s, has_aux=True)(w, x)[0]))
    same(traced(w, x, 0.0), plain)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_the_signature_is_that_of_the_loss_and_a_step(name):
    def named(w, x, *, scale=1.0):
        """Says what it does."""
        return scale * jnp.sum(w * x)

    loss = TRANSFORMS[name](named)
    assert loss.__name__ == "named" and loss.__doc__ == "Says what it does."
    assert "step" in inspect.signature(loss).parameters
    w, x = jnp.ones(2), jnp.array([1.0, 2.0])
    assert loss(w, x, scale=2.0, step=3) == loss(w, x=x, scale=2.0)

    # The step goes on to a loss that knows it, and to no other.
    def stepped(w, x, step=0):
        return (1 + step) * jnp.sum(w * x)

    assert jax.grad(TRANSFORMS[name](stepped))(jnp.zeros(2), x, step=4).tolist() == [5.0, 10.0]
    assert jax.grad(TRANSFORMS[name](TRANSFORMS[name](stepped)))(jnp.zeros(2), x, step=4).tolist() == [5.0, 10.0]
    assert TRANSFORMS[name](functools.partial(named, scale=3.0))(w, x) > 8


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_transform_made_inside_a_compiled_step_keeps_nothing_of_it(name):
    with jax.checking_leaks():
        step = jax.jit(lambda w, x: jax.grad(TRANSFORMS[name](lambda w: jnp.sum(w * x) ** 2))(w))
        assert np.all(step(jnp.ones(2), jnp.ones(2)) != 0)


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize(
    "loss_fn, has_aux, message",
    [
        (lambda w: w, False, r"loss_fn must be a function that returns a floating-point scalar.*got float32\[2\]"),
        (lambda w: jnp.sum(w).astype(int), False, r"loss_fn must be .* floating-point scalar.*got int32\[\]"),
        (lambda w: (jnp.sum(w), 1), False, r"loss_fn must be .*\(loss, aux\) needs has_aux=True"),
        (lambda w: jnp.sum(w), True, r"loss_fn must be a function that returns \(loss, aux\) where has_aux=True"),
        (3.0, False, r"loss_fn must be a function, got 3.0"),
        (quadratic, "yes", r"has_aux must be True or False, got 'yes'"),
    ],
)
def test_a_wrong_loss_is_named(name, loss_fn, has_aux, message):
    with pytest.raises(ValueError, match=rf"regjax\.objectives\.{name}: {message}"):
        jax.grad(lambda w: TRANSFORMS[name](loss_fn, has_aux=has_aux)(w))(jnp.ones(2))


def test_transforms_nest(x64):
    w, state = arrays(MLP), {"mean": jnp.zeros(7), "count": jnp.int32(0)}
    inner = amp(normalised_loss, epsilon=0.2, inner_lr=0.1, has_aux=True)
    nested = sam(with_penalty(inner, penalty, lambda step: 0.1 * step, has_aux=True), rho=0.3, has_aux=True, norm_eps=0.0)
    (value, aux), gradient = jax.jit(jax.value_and_grad(nested, has_aux=True))(w, state, X, Y, step=2)

    @jax.jit
    def written_out(w):
        f = lambda w: normalised_loss(w, state, X, Y)[0]

        def moved_by_amp(w):
            def leaf(p, g):
                delta = 0.1 * g
                return p + delta * jnp.minimum(1, 0.2 / (jnp.linalg.norm(delta) + 1e-12))

            return jax.tree.map(leaf, w, jax.grad(f)(w))

        def gradient(w):
            return jax.tree.map(lambda g, p: g + 0.2 * p, jax.grad(f)(moved_by_amp(w)), jax.grad(penalty)(w))

        g = gradient(w)
        moved = jax.tree.map(lambda p, d: p + 0.3 * d / optax.tree.norm(g), w, g)
        return f(moved_by_amp(moved)) + 0.2 * penalty(moved), gradient(moved)

    close((value, gradient), written_out(w), rtol=1e-10, atol=1e-14)
    close(aux, normalised_loss(w, state, X, Y)[1])
    with pytest.raises(ValueError, match=r"regjax\.objectives\.with_penalty: strength .*step=step"):
        nested(w, state, X, Y)


OVER_DEVICES = (
    lambda axis: sam(linear_loss, rho=0.3, axis_name=axis),
    lambda axis: amp(linear_loss, epsilon=1.0, inner_lr=0.5, axis_name=axis),
    lambda axis: gradient_penalty(linear_loss, coefficient=0.5, axis_name=axis),
    lambda axis: gradient_penalty(linear_loss, coefficient=0.5, method="exact", axis_name=axis),
)
IN_GROUPS = tuple(sam(linear_loss, rho=0.3, num_groups=groups) for groups in (8, 4, 2))


@jax.jit
def on_whole_batch(w, x, y):
    """Values and gradients of all of the above, over whatever devices the arrays lie on."""
    return [jax.value_and_grad(loss)(w, x, y) for loss in (*(make(None) for make in OVER_DEVICES), *IN_GROUPS)]


@pytest.mark.parametrize("check_vma", [True, False])
def test_devices_share_one_perturbation_or_have_their_own(x64, check_vma):
    w = arrays(LINEAR)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    mean = lambda loss: lambda *arguments: jax.lax.pmean(loss(*arguments), "data")

    def gradients(w, x, y):
        own = sam(linear_loss, rho=0.3)
        # A loss that is already the mean over the devices needs no axis_name.
        losses = [make("data") for make in OVER_DEVICES] + [own, sam(mean(linear_loss), rho=0.3, axis_name=None)]
        if check_vma:  # here the gradient of replicated parameters is the sum over the devices
            return [jax.value_and_grad(mean(loss))(w, x, y) for loss in losses]
        return [jax.lax.pmean(jax.value_and_grad(loss)(w, x, y), "data") for loss in losses[:-1]]

    spec = jax.P("data")
    over = jax.jit(jax.shard_map(gradients, mesh=mesh, in_specs=(jax.P(), spec, spec), out_specs=jax.P(), check_vma=check_vma))
    whole = on_whole_batch(w, X, Y)
    # Each device by itself is m-sharpness with as many groups as devices.
    want = [*whole[:4], whole[4], whole[0]]
    for got, single in zip(over(w, X, Y), want[: 6 if check_vma else 5], strict=True):
        close(got, single, rtol=1e-9, atol=1e-13)
    assert np.abs(whole[0][1]["kernel"] - whole[4][1]["kernel"]).max() > 1e-3


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_a_sharded_batch_gives_what_one_device_gives(x64, axis_type):
    w = arrays(LINEAR)
    want = jax.device_get(on_whole_batch(w, X, Y))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(axis_type,))
    with jax.set_mesh(mesh):
        x, y = (jax.device_put(v, jax.NamedSharding(mesh, jax.P("data"))) for v in (X, Y))
        got = on_whole_batch(jax.device_put(w, jax.NamedSharding(mesh, jax.P())), x, y)
        close(jax.device_get(got), want, rtol=1e-9, atol=1e-13)
