"""SAM and AMP against loop-written float64 references, the published values and the two passes written out."""

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
    dropout_loss,
    linear_gradient,
    linear_loss,
    mlp_loss,
    normalised_loss,
    quadratic,
    same,
    step_flops,
    whole_numbers,
)

sam, amp = rj.objectives.sam, rj.objectives.amp


def norm(tree):
    return np.sqrt(sum((leaf**2).sum() for leaf in tree.values()))


def sam_reference(w, x, y, rho, adaptive=False, eta=0.01, groups=1):
    total = {name: 0.0 for name in w}
    for rows in np.split(np.arange(len(x)), groups):
        g = linear_gradient(w, x[rows], y[rows])
        t = {name: np.ones_like(leaf) for name, leaf in w.items()}
        if adaptive is True:
            t = {name: abs(leaf) for name, leaf in w.items()}
        if adaptive == "asam":
            t = {name: leaf if name == "bias" else abs(w[name]) + eta for name, leaf in t.items()}
        length = norm({name: t[name] * g[name] for name in w})
        moved = {name: w[name] + rho * t[name] ** 2 * g[name] / length for name in w}
        for name, leaf in linear_gradient(moved, x[rows], y[rows]).items():
            total[name] = total[name] + leaf / groups
    return total


def amp_reference(w, x, y, epsilon, inner_lr, steps, ball, clip=None):
    delta = {name: np.zeros_like(leaf) for name, leaf in w.items()}
    for _ in range(steps):
        g = linear_gradient({name: w[name] + delta[name] for name in w}, x, y)
        scale = 1.0 if clip is None else min(1.0, clip / norm(g))
        delta = {name: delta[name] + inner_lr * scale * g[name] for name in w}
        for name in w:
            length = norm(delta) if ball == "global" else np.sqrt((delta[name] ** 2).sum())
            if ball == "leaf":
                delta[name] = delta[name] * min(1.0, epsilon / length)
        if ball == "global":
            factor = min(1.0, epsilon / norm(delta))
            delta = {name: leaf * factor for name, leaf in delta.items()}
    return linear_gradient({name: w[name] + delta[name] for name in w}, x, y)


@pytest.mark.parametrize("options", [{}, {"adaptive": True}, {"adaptive": "asam"}, {"adaptive": "asam", "eta": 0.3}])
def test_sam_equals_its_reference(x64, options):
    w = arrays(LINEAR)
    for groups in (1, 4):
        got = jax.jit(jax.grad(sam(linear_loss, rho=0.3, num_groups=groups, **options)))(w, X, Y)
        close(got, sam_reference(LINEAR, X, Y, 0.3, groups=groups, **options))


@pytest.mark.parametrize("ball", ["leaf", "global"])
@pytest.mark.parametrize("steps, clip", [(1, None), (3, None), (2, 0.7)])
def test_amp_equals_its_reference(x64, ball, steps, clip):
    # The radius lies between the lengths of the leaves, so that some are shortened and some are not.
    loss = amp(linear_loss, epsilon=0.6, inner_lr=0.1, inner_steps=steps, norm=ball, clip_norm=clip)
    got = jax.jit(jax.grad(loss))(arrays(LINEAR), X, Y)
    close(got, amp_reference(LINEAR, X, Y, 0.6, 0.1, steps, ball, clip), rtol=1e-10)


def quadratic_shift(gradient):
    """The perturbation that a gradient of `quadratic` was taken at."""
    return np.asarray(gradient) / [1, 4]


def test_published_values_of_sam(x64):
    ones = jnp.array([1.0, 1.0])
    value, gradient = jax.value_and_grad(sam(quadratic, rho=0.5))(ones)
    assert value == pytest.approx(5.039493989, abs=5e-10)
    np.testing.assert_allclose(gradient, [1.121267813, 5.940285000], atol=5e-9)
    np.testing.assert_allclose(quadratic_shift(gradient) - 1, [0.121267813, 0.485071250], atol=5e-10)
    w = jnp.array([1.0, 2.0])
    gradient = jax.grad(sam(quadratic, rho=0.5, adaptive=True))(w)
    np.testing.assert_allclose(gradient, [1.031189140, 11.992210317], atol=5e-9)
    np.testing.assert_allclose(quadratic_shift(gradient) - w, [0.031189140, 0.998052579], atol=5e-10)
    gradient = jax.grad(sam(quadratic, rho=0.5, adaptive="asam", eta=0.01))(w)
    np.testing.assert_allclose(quadratic_shift(gradient) - w, [0.03165714, 1.00302338], atol=5e-9)


def test_published_values_of_amp(x64):
    ones = jnp.array([1.0, 1.0])
    gradient = jax.grad(amp(quadratic, epsilon=0.5))(ones)
    np.testing.assert_allclose(gradient, [1.121267813, 5.940285000], atol=5e-9)
    close(gradient, jax.grad(sam(quadratic, rho=0.5))(ones), rtol=1e-11)
    gradient = jax.grad(amp(quadratic, epsilon=0.5, inner_steps=2))(ones)
    np.testing.assert_allclose(gradient, [1.09493129, 5.96362135], atol=5e-9)
    np.testing.assert_allclose(quadratic_shift(gradient) - 1, [0.09493129, 0.49090534], atol=5e-9)
    np.testing.assert_array_equal(jax.grad(amp(quadratic, epsilon=100.0))(ones), [2.0, 20.0])


def test_sam_is_the_two_passes_written_out(x64):
    w = arrays(MLP)

    @jax.jit
    def two_passes(w):
        g = jax.grad(mlp_loss)(w, X, Y)
        moved = jax.tree.map(lambda p, d: p + 0.2 * d / optax.tree.norm(g), w, g)
        return jax.value_and_grad(mlp_loss)(moved, X, Y)

    close(jax.jit(jax.value_and_grad(sam(mlp_loss, rho=0.2, norm_eps=0.0)))(w, X, Y), two_passes(w), atol=1e-14)


def test_sam_gives_the_step_of_optax_sam(x64):
    w, lr = arrays(MLP), 0.1
    grad = jax.jit(jax.grad(mlp_loss))
    tx = optax.contrib.sam(optax.sgd(lr), optax.chain(optax.contrib.normalize(), optax.sgd(0.05)), opaque_mode=True)
    want, _ = tx.update(grad(w, X, Y), tx.init(w), w, grad_fn=lambda q, _: grad(q, X, Y))
    got = jax.jit(jax.grad(sam(mlp_loss, rho=0.05)))(w, X, Y)
    close(jax.tree.map(lambda g: -lr * g, got), want, rtol=1e-10)


def test_asam_does_not_see_a_rescaling_that_the_model_does_not(x64):
    product = lambda w: (w["u"] * w["v"] - 3) ** 2 + jnp.sin(w["u"] * w["v"])
    rescaled = lambda c: {"u": jnp.float64(1.3) * c, "v": jnp.float64(0.7) / c}
    adaptive = sam(product, rho=0.2, adaptive="asam", eta=0.0)
    close(adaptive(rescaled(7.0)), adaptive(rescaled(1.0)), rtol=1e-13)
    assert abs(sam(product, rho=0.2)(rescaled(7.0)) - sam(product, rho=0.2)(rescaled(1.0))) > 0.1


def test_scale_mask_names_the_scaled_leaves(x64):
    w = arrays(LINEAR)
    masks = {
        "default": None,
        "all": "all",
        "none": False,
        "kernels": "kernels",
        "predicate": lambda path, leaf: path[-1] in ("kernel", "scale"),
        "tree": {"kernel": True, "scale": False, "bias": False},
    }

    @jax.jit
    def gradients(w):
        grad = lambda **options: jax.grad(sam(linear_loss, rho=0.3, eta=0.0, **options))(w, X, Y)
        got = {name: grad(adaptive="asam", scale_mask=mask) for name, mask in masks.items()}
        return got, grad(), grad(adaptive=True)

    got, plain, everywhere = gradients(w)
    close(got["all"], everywhere)
    close(got["none"], plain)
    close(got["default"], got["predicate"])
    close(got["kernels"], got["tree"])
    assert not np.allclose(got["default"]["kernel"], got["kernels"]["kernel"], rtol=1e-6)


SAM_AND_AMP = [
    lambda f, s, **k: sam(f, rho=s, **k),
    lambda f, s, **k: sam(f, rho=s, adaptive="asam", **k),
    lambda f, s, **k: amp(f, epsilon=s, **k),
    lambda f, s, **k: amp(f, inner_lr=s, inner_steps=2, **k),
]


@pytest.mark.parametrize("transform", SAM_AND_AMP)
def test_strength_0_is_the_loss_bit_for_bit(transform):
    arguments = whole_numbers()
    # 1 / bias sees the sign of a zero; the sign is not differentiated.
    loss = lambda w, x, y: linear_loss(w, x, y) + jnp.sum(jnp.sign(1 / w["bias"]))
    want = jax.jit(jax.value_and_grad(loss))(*arguments)
    same(jax.jit(jax.value_and_grad(transform(loss, 0)))(*arguments), want)
    same(jax.jit(lambda s, *a: jax.value_and_grad(transform(loss, s))(*a))(0.0, *arguments), want)
    # An infinite inner gradient: 0 * inf does not count either.
    cliff = lambda w: jnp.sum(jnp.sqrt(jnp.abs(w)))
    at = jnp.array([0.0, 1.0])
    same(jax.jit(lambda s: transform(cliff, s)(at))(0.0), cliff(at))


def test_strength_0_makes_no_extra_pass():
    calls = []

    def counted(w):
        calls.append(1)
        return quadratic(w)

    w = jnp.array([1.0, 1.0])
    for plain in (sam(counted, rho=0.0), amp(counted, epsilon=0), amp(counted, inner_lr=0.0), amp(counted, inner_steps=0)):
        calls.clear()
        assert plain(w) == 2.5 and len(calls) == 1


def test_strengths_follow_schedules_and_traces(x64):
    w = arrays(MLP)
    ramp = optax.linear_schedule(0.0, 1.0, 10)

    @jax.jit
    def gradients(step, strength):
        of = lambda s, **given: [jax.grad(transform(mlp_loss, s))(w, X, Y, **given) for transform in SAM_AND_AMP]
        return of(ramp, step=step), of(strength), of(0.3), of(0.3, step=step)

    scheduled, traced, *fixed = gradients(3, 0.3)
    for other in (scheduled, traced, fixed[1]):
        close(other, fixed[0], rtol=1e-11)
    for transform in SAM_AND_AMP:
        with pytest.raises(ValueError, match=r"regjax\.objectives\.(sam: rho|amp: (epsilon|inner_lr)).*step=step"):
            transform(mlp_loss, ramp)(w, X, Y)
    with pytest.raises(ValueError, match=r"regjax\.objectives\.sam: rho must be a finite number >= 0, got -1"):
        sam(mlp_loss, rho=lambda step: -1.0)(w, X, Y, step=0)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_zero_gradient_gives_zero_perturbation(dtype):
    w = jnp.zeros(2, dtype)
    losses = sam(quadratic), sam(quadratic, norm_eps=0.0), sam(quadratic, adaptive=True), amp(quadratic, inner_steps=2)
    losses += (sam(lambda w: 0.0 * jnp.sum(w), adaptive="asam"),)
    for value, gradient in jax.jit(lambda w: [jax.value_and_grad(loss)(w) for loss in losses])(w):
        assert value == 0 and np.all(np.asarray(gradient, np.float32) == 0)


def test_entries_of_weight_0_do_not_move_in_the_adaptive_form(x64):
    gradient = jax.grad(sam(lambda w: quadratic(w + 1), rho=0.5, adaptive=True))(jnp.array([0.0, 2.0]))
    assert gradient[0] == 1.0 and gradient[1] > 12.0


def test_bfloat16_weights_move_by_float32_arithmetic():
    # 40,000 squares of 1 add up to 256 in bfloat16, where the norm is 200 and each weight moves by rho / 200.
    loss = lambda w: jnp.sum(w.astype(jnp.float32))
    value = sam(loss, rho=100.0)(jnp.ones(40_000, jnp.bfloat16))
    assert value == 60_000
    w = jnp.array([1.0, 1.0], jnp.bfloat16)
    gradient = jax.grad(sam(quadratic, rho=0.5))(w)
    assert gradient.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(gradient, np.float32), [1.121, 5.94], rtol=1e-2)


def test_amp_stays_in_its_ball_and_moves_in_proportion_inside(x64):
    w = arrays(LINEAR)

    @jax.jit
    def deltas(w):
        def delta(**options):
            # The parameters of the last pass are its aux.
            probe = lambda p: (linear_loss(p, X, Y), p)
            return jax.tree.map(jnp.subtract, amp(probe, has_aux=True, aux_from="perturbed", **options)(w)[1], w)

        far = {"epsilon": 0.1, "inner_lr": 3.0, "inner_steps": 3}
        near = delta(epsilon=1e3, inner_lr=0.01)
        return delta(**far), delta(norm="global", **far), near, jax.grad(linear_loss)(w, X, Y)

    by_leaf, together, near, gradient = deltas(w)
    np.testing.assert_allclose([norm({"": leaf}) for leaf in by_leaf.values()], 0.1, rtol=1e-10)
    np.testing.assert_allclose(norm(together), 0.1, rtol=1e-10)
    close(near, jax.tree.map(lambda g: 0.01 * g, gradient), rtol=1e-10)


def test_running_statistics_come_from_the_chosen_pass(x64):
    w = arrays(MLP)
    state = {"mean": jnp.zeros(7), "count": jnp.int32(3)}
    _, clean = normalised_loss(w, state, X, Y)

    @jax.jit
    def outcomes(w):
        out = []
        for transform in SAM_AND_AMP:
            run = lambda w, aux_from, t=transform: t(normalised_loss, 0.5, has_aux=True, aux_from=aux_from)(w, state, X, Y)
            grad = jax.value_and_grad(run, has_aux=True)
            by_aux = jax.grad(lambda w, run=run: run(w, "clean")[1]["mean"].sum())(w)
            out.append((grad(w, "clean"), grad(w, "perturbed"), by_aux))
        return out

    for ((value, aux), gradient), ((other_value, other), other_gradient), by_aux in outcomes(w):
        close(aux, clean)
        assert aux["count"] == 4
        close((other_value, other_gradient), (value, gradient))
        assert np.abs(other["mean"] - clean["mean"]).max() > 1e-3
        assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(by_aux))


def test_info_tells_the_clean_loss_and_both_norms(x64):
    w = jnp.array([1.0, 1.0])
    value, info = sam(quadratic, rho=0.5, with_info=True)(w)
    assert value == pytest.approx(5.039493989, abs=5e-10)
    close(info, {"clean_loss": 2.5, "gradient_norm": np.sqrt(17), "perturbation_norm": 0.5})
    noisy = lambda w, key: (quadratic(w), {"seen": key})
    value, (aux, info) = sam(noisy, rho=0.0, has_aux=True, with_info=True)(w, jnp.int32(7))
    assert value == 2.5 and aux == {"seen": 7} and info["perturbation_norm"] == 0
    _, info = jax.jit(sam(linear_loss, rho=0.5, num_groups=4, with_info=True))(arrays(LINEAR), X, Y)
    close(info["clean_loss"], linear_loss(arrays(LINEAR), X, Y))
    want = np.mean([norm(linear_gradient(LINEAR, X[rows], Y[rows])) for rows in np.split(np.arange(16), 4)])
    close((info["gradient_norm"], info["perturbation_norm"]), (want, 0.5))


def test_both_passes_see_the_same_masks_unless_the_key_is_split():
    w, key = arrays(MLP, jnp.float32), jax.random.key(3)
    x, y = X.astype(np.float32), Y.astype(np.float32)
    per_example = lambda w, keys: (jnp.sum(w**2), jax.vmap(jax.random.uniform)(keys["rows"]))

    @jax.jit
    def drawn(rho, key):
        masks = lambda **options: sam(dropout_loss, has_aux=True, **options)(w, key, x, y)[1]
        split = {"aux_from": "perturbed", "split_key": True}
        keys = jax.random.split(key, 4)
        return {
            "clean": masks(),
            "perturbed": masks(aux_from="perturbed"),
            "clean, split": masks(split_key=True),
            "perturbed, split": masks(**split),
            "strength 0, split": masks(rho=rho, **split),
            "folded": dropout_loss(w, jax.random.fold_in(key, 1), x, y)[1],
            "many keys": sam(per_example, has_aux=True, **split)(jnp.ones(2), {"rows": keys})[1],
            "many folded": jax.vmap(lambda k: jax.random.uniform(jax.random.fold_in(k, 1)))(keys),
        }

    got = drawn(0.0, key)
    for same_masks in ("perturbed", "clean, split", "strength 0, split"):
        np.testing.assert_array_equal(got[same_masks], got["clean"])
    np.testing.assert_array_equal(got["perturbed, split"], got["folded"])
    np.testing.assert_array_equal(got["many keys"], got["many folded"])
    assert np.any(got["folded"] != got["clean"])
    with pytest.raises(ValueError, match=r"regjax\.objectives\.sam: split_key must be False where no argument"):
        sam(quadratic, split_key=True)(jnp.ones(2))


def test_only_floating_leaves_of_the_parameters_are_touched():
    params = {"w": jnp.array([1.0, 1.0]), "steps": jnp.int32(5), "key": jax.random.key(0), "none": None, "wide": 2.0}
    seen = []

    def loss(p):
        seen.append(p)
        return quadratic(p["w"]) * p["wide"] * p["steps"].astype(float)

    for transform in SAM_AND_AMP:
        seen.clear()
        gradient = jax.grad(transform(loss, 0.5), allow_int=True)(params)
        assert gradient["w"][0] > 10.0 and gradient["steps"].dtype == jax.dtypes.float0
        assert all(p["steps"] == 5 and p["none"] is None and p["key"] is params["key"] for p in seen)


def test_groups_split_arrays_and_share_the_rest():
    w = arrays(MLP, jnp.float32)
    x, y = X.astype(np.float32), Y.astype(np.float32)

    def loss(params, batch, key, *, raw, scale, mode, seeds):
        assert batch["x"].shape == (4, 5) and key.shape == () and raw.shape == (2,) and mode == "train" and seeds.shape == (4,)
        return scale * mlp_loss(params, batch["x"], batch["y"]), batch["x"]

    arguments = ({"x": x, "y": y}, jax.random.key(0))
    rest = {"raw": np.zeros(2, np.uint32), "scale": 2.0, "mode": "train", "seeds": jax.random.split(jax.random.key(1), 16)}
    value, aux = jax.jit(lambda w: sam(loss, rho=0.1, num_groups=4, has_aux=True)(w, *arguments, **rest))(w)
    one = jax.jit(sam(mlp_loss, rho=0.1))
    want = np.mean([one(w, x[i : i + 4], y[i : i + 4]) for i in range(0, 16, 4)])
    assert value == pytest.approx(2 * want, rel=1e-6)
    np.testing.assert_array_equal(aux, x.reshape(4, 4, 5))
    # The group size is static: strength 0 is the mean over the groups, too.
    plain = lambda w, x: jnp.max(x)
    assert sam(plain, rho=0, num_groups=2)(jnp.ones(2), jnp.array([1.0, 2.0, 3.0, 6.0])) == 4.0


@pytest.mark.parametrize("batch", [(X[:15], Y[:15]), (X, Y[:8]), (), (jnp.float32(1.0),), (X[:0], Y[:0])])
def test_groups_need_a_batch_that_they_divide(batch):
    with pytest.raises(ValueError, match=r"regjax\.objectives\.sam: num_groups must be a divisor of the batch size.*got 4"):
        sam(lambda w, *batch: jnp.sum(w), num_groups=4)(jnp.ones(2), *batch)


def test_the_perturbation_is_a_constant_and_other_arguments_keep_their_gradient(x64):
    w = arrays(MLP)

    @jax.jit
    def both(x):
        g = jax.grad(mlp_loss)(w, x, Y)
        moved = jax.tree.map(lambda p, d: p + 0.2 * d / optax.tree.norm(g), w, g)
        by_x = lambda loss, w: jax.grad(loss, argnums=1)(w, x, Y)
        return by_x(sam(mlp_loss, rho=0.2, norm_eps=0.0), w), by_x(mlp_loss, moved)

    close(*both(jnp.asarray(X)), atol=1e-14)
    assert jax.jit(jax.grad(lambda rho: sam(quadratic, rho=rho)(jnp.ones(2))))(0.2) == 0
    # What is differentiated once more is the plain loss at the moved weights: its own second derivative, and no other.
    hessian = jax.jit(jax.hessian(sam(quadratic, rho=0.5)))(jnp.array([1.0, 1.0]))
    np.testing.assert_array_equal(hessian, [[1.0, 0.0], [0.0, 4.0]])


def test_flops_are_those_of_the_passes_and_nothing_calls_the_host():
    plain, _ = step_flops()
    for transform, bound in (
        (functools.partial(sam, adaptive="asam"), 2.02),
        (functools.partial(amp, inner_steps=2), 3.03),
    ):
        flops, text = step_flops(transform)
        assert flops <= bound * plain
        assert "callback" not in text


def test_runs_under_vmap_scan_remat_and_accumulation(x64):
    ws = jax.tree.map(lambda leaf: jnp.stack([jnp.asarray(leaf), 2 * leaf, -leaf]), MLP)
    grad = jax.jit(jax.grad(sam(mlp_loss, rho=lambda step: 0.1 * step)))
    over_seeds = jax.jit(jax.vmap(lambda w, step: grad(w, X, Y, step=step), (0, None)))(ws, 2)
    one = jax.tree.map(lambda leaf: leaf[1], ws)
    close(jax.tree.map(lambda leaf: leaf[1], over_seeds), grad(one, X, Y, step=2))
    rematerialised = jax.jit(jax.grad(jax.checkpoint(sam(jax.checkpoint(mlp_loss), rho=0.2))))
    close(rematerialised(one, X, Y), grad(one, X, Y, step=2))

    tx = optax.MultiSteps(optax.sgd(0.1), 2, accumulator_dtype=jnp.float64)

    def step(carry, i):
        w, state = carry
        updates, state = tx.update(grad(w, X, Y, step=i), state, w)
        return (optax.apply_updates(w, updates), state), None

    (got, _), _ = jax.jit(lambda w: jax.lax.scan(step, (w, tx.init(w)), jnp.arange(4)))(one)
    want = one
    for first in (0, 2):
        g = [grad(want, X, Y, step=i) for i in (first, first + 1)]
        want = jax.tree.map(lambda p, a, b: p - 0.1 * (a + b) / 2, want, *g)
    close(got, want, rtol=1e-10)
