"""GSAM and LookSAM against loop-written float64 references, the published values and the passes written out."""

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
    linear_gradient,
    linear_loss,
    mlp_loss,
    normalised_loss,
    quadratic,
    same,
    step_flops,
    whole_numbers,
)

gsam, look_sam, sam = rj.objectives.gsam, rj.objectives.look_sam, rj.objectives.sam


def dot(a, b, name=None):
    return sum(float((a[n] * b[n]).sum()) for n in ([name] if name else a))


def perturbed_gradient(w, g, rho, scales=None):
    t = scales or {n: np.ones_like(leaf) for n, leaf in w.items()}
    length = np.sqrt(sum(((t[n] * g[n]) ** 2).sum() for n in w))
    return linear_gradient({n: w[n] + rho * t[n] ** 2 * g[n] / length for n in w}, X, Y)


def gsam_reference(w, rho, alpha, scales=None):
    g0 = linear_gradient(w, X, Y)
    gs = perturbed_gradient(w, g0, rho, scales)
    share = dot(g0, gs) / dot(gs, gs)
    return {n: gs[n] - alpha * (g0[n] - share * gs[n]) for n in w}


def look_sam_reference(w, rho, alpha, period, norm, steps, lr):
    turn, directions = {n: np.zeros_like(leaf) for n, leaf in w.items()}, []
    for step in range(steps):
        g = linear_gradient(w, X, Y)
        d = perturbed_gradient(w, g, rho) if step % period == 0 else {}
        for n in w:
            of = n if norm == "leaf" else None
            if step % period == 0:
                turn[n] = d[n] - dot(d, g, of) / dot(g, g, of) * g[n]
            else:
                d[n] = g[n] + alpha * np.sqrt(dot(g, g, of)) / (np.sqrt(dot(turn, turn, of)) + 1e-8) * turn[n]
        directions.append(d)
        w = {n: w[n] - lr * d[n] for n in w}
    return directions


@pytest.mark.parametrize("adaptive", [False, True, "asam"])
def test_gsam_equals_its_reference(x64, adaptive):
    scales = None
    if adaptive:
        scales = {n: abs(leaf) + (0.01 if adaptive == "asam" else 0) for n, leaf in LINEAR.items()}
        if adaptive == "asam":
            scales["bias"] = np.ones_like(LINEAR["bias"])
    got = jax.jit(jax.grad(gsam(linear_loss, rho=0.3, alpha=0.7, adaptive=adaptive)))(arrays(LINEAR), X, Y)
    close(got, gsam_reference(LINEAR, 0.3, 0.7, scales), rtol=1e-11)


@pytest.mark.parametrize("norm", ["global", "leaf"])
def test_look_sam_equals_its_reference_in_a_scan(x64, norm):
    look = look_sam(linear_loss, rho=0.3, alpha=0.7, period=3, norm=norm)
    step = jax.value_and_grad(look.apply, argnums=1, has_aux=True)

    def train(carry, _):
        w, state = carry
        (_, state), gradient = step(state, w, X, Y)
        return (jax.tree.map(lambda p, g: p - 0.05 * g, w, gradient), state), gradient

    w = arrays(LINEAR)
    (_, state), got = jax.jit(lambda w: jax.lax.scan(train, (w, look.init(w)), None, length=7))(w)
    assert state.step == 7
    for i, want in enumerate(look_sam_reference(LINEAR, 0.3, 0.7, 3, norm, 7, 0.05)):
        close(jax.tree.map(lambda leaf, i=i: leaf[i], got), want, rtol=1e-9)


def test_published_values(x64):
    ones = jnp.array([1.0, 1.0])
    value, gradient = jax.jit(jax.value_and_grad(gsam(quadratic, rho=0.5, alpha=0.4)))(ones)
    assert value == pytest.approx(5.039493989, abs=5e-10)
    np.testing.assert_allclose(gradient, [1.02664948, 5.95814485], atol=5e-9)
    aside = (np.array([1.121267813, 5.940285000]) - gradient) / 0.4
    np.testing.assert_allclose(aside, [0.23654582, -0.04464958], atol=5e-8)

    look = look_sam(quadratic, rho=0.5, alpha=0.7)
    step = jax.jit(jax.value_and_grad(look.apply, argnums=1, has_aux=True))
    (value, state), gradient = step(look.init(ones), ones)
    assert value == pytest.approx(5.039493989, abs=5e-10) and state.step == 1
    np.testing.assert_allclose(gradient, [1.121267813, 5.940285000], atol=5e-9)
    np.testing.assert_allclose(state.turn, [-0.34240324, 0.08560081], atol=5e-9)
    (value, after), gradient = step(state, jnp.array([2.0, 0.0]))
    assert value == 2.0
    np.testing.assert_allclose(gradient, [0.6418005, 0.33954988], atol=5e-8)
    same(after.turn, state.turn)


def test_limits_are_sam_and_the_turn_lies_at_right_angles(x64):
    w = arrays(MLP)

    @jax.jit
    def all_of_them(w):
        at = lambda loss: jax.value_and_grad(loss)(w, X, Y)
        look = look_sam(mlp_loss, rho=0.2, period=1)
        (value, state), gradient = jax.value_and_grad(look.apply, argnums=1, has_aux=True)(look.init(w), w, X, Y)
        turn = rj.core.trees.vdot(state.turn, jax.grad(mlp_loss)(w, X, Y))
        aside = rj.core.trees.vdot(
            jax.tree.map(jnp.subtract, at(gsam(mlp_loss, rho=0.2, alpha=1.0))[1], at(sam(mlp_loss, rho=0.2))[1]),
            at(sam(mlp_loss, rho=0.2))[1],
        )
        length = rj.core.trees.global_norm(state.turn)
        return at(sam(mlp_loss, rho=0.2)), at(gsam(mlp_loss, rho=0.2, alpha=0.0)), (value, gradient), turn, aside, length

    plain, at_alpha_0, at_period_1, turn, aside, length = all_of_them(w)
    close(at_alpha_0, plain)
    close(at_period_1, plain)
    assert abs(turn) < 1e-14 and abs(aside) < 1e-14 and length > 1e-3


def test_strength_0_is_the_loss_and_needs_no_second_pass():
    calls = []

    def counted(w):
        calls.append(1)
        return quadratic(w)

    w = jnp.array([1.0, 1.0])
    look = look_sam(counted, rho=0.0)
    for plain in (gsam(counted, rho=0.0), lambda w: look.apply(look.init(w), w)[0]):
        calls.clear()
        assert plain(w) == 2.5 and len(calls) == 1
    arguments = whole_numbers()
    want = jax.jit(jax.value_and_grad(linear_loss))(*arguments)
    same(jax.jit(lambda s, *a: jax.value_and_grad(gsam(linear_loss, rho=s))(*a))(0.0, *arguments), want)


def test_a_memory_does_not_act_at_strength_0(x64):
    ones = jnp.array([1.0, 1.0])
    look = look_sam(quadratic, rho=lambda step: jnp.where(step < 1, 0.5, 0.0), alpha=0.7, period=2)
    step = jax.jit(jax.value_and_grad(look.apply, argnums=1, has_aux=True))
    (_, state), first = step(look.init(ones), ones)
    assert first[0] > 1.1
    for _ in range(4):
        (value, after), gradient = step(state, ones)
        assert value == 2.5 and gradient.tolist() == [1.0, 4.0] and after.step == state.step + 1
        same(after.turn, state.turn)
        state = after
    (_, _), given = step(state, ones, step=0)  # the keyword goes before the memory's own count: the turn acts again
    assert given[0] < 1


def test_strengths_follow_schedules_traces_and_the_learning_rate(x64):
    w = arrays(LINEAR)
    rate = optax.linear_schedule(1.0, 0.0, 10)
    rho = rj.schedules.gsam_rho(rate, rho_min=0.1, rho_max=0.5, lr_min=0.0, lr_max=1.0)

    @jax.jit
    def gradients(step, radius, alpha):
        grad = lambda r, a, **given: jax.grad(gsam(linear_loss, rho=r, alpha=a))(w, X, Y, **given)
        return grad(rho, lambda step: 0.1 * step, step=step), grad(radius, alpha)

    scheduled, traced = gradients(4, 0.34, 0.4)
    close(scheduled, traced, rtol=1e-11)
    close(traced, gsam_reference(LINEAR, 0.34, 0.4), rtol=1e-11)
    with pytest.raises(ValueError, match=r"regjax\.objectives\.gsam: rho.*step=step"):
        gsam(linear_loss, rho=rate)(w, X, Y)


def test_aux_and_info_tell_of_the_chosen_pass(x64):
    w, state = arrays(MLP), {"mean": jnp.zeros(7), "count": jnp.int32(3)}
    _, clean = normalised_loss(w, state, X, Y)

    @jax.jit
    def outcomes(w):
        run = lambda **options: gsam(normalised_loss, rho=0.5, has_aux=True, **options)(w, state, X, Y)
        look = look_sam(normalised_loss, rho=0.5, has_aux=True)
        by_aux = jax.grad(lambda w: gsam(normalised_loss, rho=0.5, has_aux=True)(w, state, X, Y)[1]["mean"].sum())(w)
        return run(), run(aux_from="perturbed"), run(with_info=True), look.apply(look.init(w), w, state, X, Y), by_aux

    (value, aux), (other, moved), (_, (_, info)), (looked, (memory, seen)), by_aux = outcomes(w)
    close((aux, seen), (clean, clean))
    close((other, looked), (value, value))
    assert np.abs(moved["mean"] - clean["mean"]).max() > 1e-3 and memory.step == 1
    assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(by_aux))
    plain = normalised_loss(w, state, X, Y)[0]
    close(info["clean_loss"], plain)
    close((info["surrogate_gap"], info["perturbation_norm"]), (value - plain, 0.5), rtol=1e-9)


def test_other_arguments_get_the_gradient_of_the_value(x64):
    w = arrays(MLP)

    @jax.jit
    def by_x(x):
        look = look_sam(mlp_loss, rho=0.2)
        state = look.init(w)
        between = state._replace(step=jnp.int32(1))
        grad = lambda loss: jax.grad(loss)(x)
        return (
            grad(lambda x: sam(mlp_loss, rho=0.2)(w, x, Y)),
            grad(lambda x: gsam(mlp_loss, rho=0.2)(w, x, Y)),
            grad(lambda x: look.apply(state, w, x, Y)[0]),
            grad(lambda x: look.apply(between, w, x, Y)[0]),
            grad(lambda x: mlp_loss(w, x, Y)),
        )

    perturbed, gap, looked, between, plain = by_x(jnp.asarray(X))
    close((gap, looked, between), (perturbed, perturbed, plain))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_zero_gradients_and_low_precision(dtype):
    @jax.jit
    def steps(w):
        look = look_sam(quadratic, period=2)
        (first, state), g1 = jax.value_and_grad(look.apply, argnums=1, has_aux=True)(look.init(w), w)
        (second, state), g2 = jax.value_and_grad(look.apply, argnums=1, has_aux=True)(state, w)
        value, g3 = jax.value_and_grad(gsam(quadratic, rho=0.1, norm_eps=0.0))(w)
        return [first, second, value], [g1, g2, g3], state

    values, gradients, state = steps(jnp.zeros(2, dtype))
    assert all(value == 0 for value in values) and all(np.all(np.asarray(g, np.float32) == 0) for g in gradients)
    assert all(g.dtype == dtype for g in gradients) and state.turn.dtype == jnp.float32


def test_only_floating_leaves_are_touched():
    params = {"w": jnp.array([1.0, 1.0]), "steps": jnp.int32(5), "key": jax.random.key(0), "none": None}
    loss = lambda p: quadratic(p["w"]) * p["steps"].astype(float)
    look = look_sam(loss, rho=0.5)
    state = look.init(params)
    both = jax.jit(lambda p: [jax.grad(f, allow_int=True)(p) for f in (gsam(loss, rho=0.5), lambda p: look.apply(state, p)[0])])
    for gradient in both(params):
        assert gradient["w"][1] > 20 and gradient["steps"].dtype == jax.dtypes.float0
    assert [leaf.shape for leaf in jax.tree.leaves(state.turn)] == [(2,)]


def test_one_gradient_of_a_batch_over_devices(x64):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    w = arrays(MLP)
    rows = functools.partial(jax.shard_map, mesh=mesh, in_specs=(jax.P(), jax.P("data"), jax.P("data")), out_specs=jax.P())

    def looked(w, x, y, axis_name=None):
        look = look_sam(mlp_loss, rho=0.2, period=2, axis_name=axis_name)
        first, state = look.apply(look.init(w), w, x, y)
        return first + look.apply(state, w, x, y)[0]

    def gap(w, x, y, axis_name=None):
        return gsam(mlp_loss, rho=0.2, axis_name=axis_name)(w, x, y)

    @jax.jit
    def gradients(w, x, y):
        at = lambda loss: jax.value_and_grad(loss)(w, x, y)
        mapped = lambda loss, **given: rows(lambda *a: jax.lax.pmean(loss(*a, **given), "data"))
        # Without the axis each device keeps a memory of its own examples.
        groups = lambda w, x, y: jnp.mean(jax.vmap(looked, (None, 0, 0))(w, x.reshape(8, 2, 5), y.reshape(8, 2, 3)))
        got = at(mapped(gap, axis_name="data")), at(mapped(looked, axis_name="data")), at(mapped(looked))
        return got, (at(gap), at(looked), at(groups))

    close(*gradients(w, jnp.asarray(X), jnp.asarray(Y)), rtol=1e-10, atol=1e-15)


def test_flops_are_those_of_the_passes():
    plain, _ = step_flops()

    def look_at(step):
        def transform(loss_fn):
            look = look_sam(loss_fn, period=10)
            # A constant step: the compiler drops the branch that is not taken, which it otherwise counts.
            return lambda w, *batch: look.apply(look.init(w)._replace(step=np.int32(step)), w, *batch)[0]

        return transform

    assert step_flops(functools.partial(gsam, rho=0.1))[0] <= 2.03 * plain
    assert step_flops(look_at(0))[0] <= 2.03 * plain
    assert step_flops(look_at(1))[0] <= 1.02 * plain
