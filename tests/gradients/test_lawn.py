"""LAWN against a loop in NumPy, its geometry, the switch inside jit and inside optax's wrappers, and its claim."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import regjax as rj

lawn = rj.gradients.lawn
RNG = np.random.default_rng(0)
PARAMS = {"a": {"kernel": RNG.normal(size=(4, 3)), "bias": RNG.normal(size=3)}, "b": {"kernel": RNG.normal(size=(3, 2))}}
GRADS = [jax.tree.map(lambda x: RNG.normal(size=x.shape), PARAMS) for _ in range(8)]
STACKED = jax.tree.map(lambda *xs: np.stack(xs), *GRADS)


def trajectory(tx, grads=STACKED, params=PARAMS):
    """The weights after each step, and the last state."""

    def step(carry, grads):
        params, state = carry
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    as_arrays = jax.tree.map(jnp.asarray, params)
    (_, state), path = jax.lax.scan(step, (as_arrays, tx.init(as_arrays)), jax.tree.map(jnp.asarray, grads))
    return path, state


def reference(free_steps, granularity, first, second, third, lr=0.1, mu=0.9):
    """LAWN over SGD with momentum, on flat vectors: groups of kernels, and the bias alone."""
    flat = lambda tree: {"a": tree["a"]["kernel"].ravel(), "b": tree["b"]["kernel"].ravel(), "bias": tree["a"]["bias"]}
    w, path = flat(PARAMS), []
    m = {k: np.zeros_like(v) for k, v in w.items()}
    groups = [["a"], ["b"]] if granularity == "leaf" else [["a", "b"]]
    norms = [0.0] * len(groups)
    for t, grads in enumerate(map(flat, GRADS)):
        g, u = dict(grads), {}
        for i, group in enumerate(groups):
            dot = lambda x, y, group=group: sum(float(p * q) for k in group for p, q in zip(x[k], y[k], strict=True))
            if t == free_steps:
                norms[i] = math.sqrt(dot(w, w))
            held = t >= free_steps
            if held and first:
                share = dot(w, g) / dot(w, w)
                g.update({k: g[k] - share * w[k] for k in group})
            for k in group:
                m[k] = mu * m[k] + g[k]
                u[k] = -lr * m[k]
            if held and second:
                share = dot(w, u) / dot(w, w)
                u.update({k: u[k] - share * w[k] for k in group})
            new = {k: w[k] + u[k] for k in group}
            if held and third:
                new = {k: norms[i] * x / math.sqrt(dot(new, new)) for k, x in new.items()}
            w = {**w, **new}
        m["bias"] = mu * m["bias"] + g["bias"]
        w = {**w, "bias": w["bias"] - lr * m["bias"]}
        path.append(w)
    return path


def test_equals_its_reference_with_every_flag(x64):
    cases = [(3, "leaf", True, True, True), (3, "global", True, True, True), (0, "leaf", True, False, False)]
    cases += [(2, "global", False, True, False), (2, "leaf", False, False, True)]

    @jax.jit
    def run():
        make = lambda free, granularity, a, b, c: lawn(
            optax.sgd(0.1, momentum=0.9),
            free_steps=free,
            granularity=granularity,
            project_gradient=a,
            project_update=b,
            renormalize=c,
        )
        return [trajectory(make(*case)) for case in cases]

    for (path, state), case in zip(run(), cases, strict=True):
        want = reference(*case)
        got = {"a": path["a"]["kernel"], "b": path["b"]["kernel"], "bias": path["a"]["bias"]}
        for k, values in got.items():
            np.testing.assert_allclose(values.reshape(8, -1), [w[k] for w in want], rtol=1e-10, atol=1e-12)
        assert int(state.step) == 8 and len(state.norms) == 2


def test_published_values_and_limits(x64):
    params, grads = {"w": jnp.array([3.0, 4.0])}, {"w": jnp.array([1.0, 0.0])}

    def first(tx):
        return tx.update(grads, tx.init(params), params)[0]["w"] + params["w"]

    seen = lawn(optax.identity(), free_steps=0, where="all", project_update=False, renormalize=False)
    np.testing.assert_allclose(first(seen) - params["w"], [0.64, -0.48], rtol=1e-12)
    held = first(lawn(optax.sgd(0.1), free_steps=0, where="all"))
    np.testing.assert_allclose(held, [2.935624264, 4.047481957], rtol=1e-9)
    np.testing.assert_allclose(np.linalg.norm(held), 5, rtol=1e-14)
    # With plain SGD the two projections are one.
    for flag in ("project_gradient", "project_update"):
        np.testing.assert_allclose(first(lawn(optax.sgd(0.1), free_steps=0, where="all", **{flag: False})), held, rtol=1e-14)

    @jax.jit
    def run():
        adam = lambda: optax.adam(0.05)
        never, plain = trajectory(lawn(adam(), free_steps=math.inf))[0], trajectory(adam())[0]
        still, mixed = (
            trajectory(lawn(optax.scale(0.0), free_steps=2))[0],
            trajectory(lawn(adam(), free_steps=2, where=lambda path, leaf: path[0] == "b"))[0],
        )
        return never, plain, still, mixed

    never, plain, still, mixed = run()
    jax.tree.map(np.testing.assert_array_equal, never, plain)
    jax.tree.map(lambda x, p: np.testing.assert_allclose(x, np.stack([p] * 8), rtol=1e-14), still, PARAMS)
    jax.tree.map(np.testing.assert_array_equal, mixed["a"], plain["a"])
    norms = np.linalg.norm(mixed["b"]["kernel"].reshape(8, -1), axis=1)
    np.testing.assert_allclose(norms[1:], norms[1], rtol=1e-12)
    assert abs(norms[0] - norms[1]) > 1e-3


def test_norms_stay_for_a_hundred_steps_of_adam_in_float32():
    grads = {"kernel": jnp.asarray(RNG.normal(size=(100, 32, 8)), jnp.float32), "zero": jnp.ones((100, 2, 2))}
    params = {"kernel": jnp.asarray(RNG.normal(size=(32, 8)), jnp.float32), "zero": jnp.zeros((2, 2))}
    path, state = jax.jit(lambda: trajectory(lawn(optax.adam(1e-2), free_steps=10), grads, params))()
    norms = np.linalg.norm(np.asarray(path["kernel"], np.float64).reshape(100, -1), axis=1)
    np.testing.assert_allclose(norms[10:], norms[9], rtol=1e-6)
    np.testing.assert_allclose(state.norms[0], norms[9], rtol=1e-6)
    assert norms[9] != pytest.approx(np.linalg.norm(params["kernel"]), rel=1e-4)


def test_a_scale_free_loss_moves_on_the_sphere(x64):
    """The direction is that of gradient descent on the sphere with retraction, and a leaf of zeros stays free."""
    target = jnp.asarray(RNG.normal(size=6))
    loss = lambda w: 1 - jnp.vdot(w, target) / jnp.linalg.norm(w)
    start = 3 * jnp.asarray(RNG.normal(size=6))
    tx = lawn(optax.sgd(0.5), free_steps=0, where="all")

    @jax.jit
    def run():
        def step(carry, _):
            w, state, v = carry
            updates, state = tx.update(jax.grad(loss)(w), state, w)
            # On the unit sphere the gradient is that at w times its norm, and the step that over the norm again.
            v = v - 0.5 / jnp.vdot(start, start) * jax.grad(loss)(v)
            w, v = optax.apply_updates(w, updates), v / jnp.linalg.norm(v)
            return (w, state, v), (w / jnp.linalg.norm(start), v)

        return jax.lax.scan(step, (start, tx.init(start), start / jnp.linalg.norm(start)), length=20)[1]

    ours, sphere = run()
    np.testing.assert_allclose(ours, sphere, rtol=1e-12)
    zeros = jax.tree.map(jnp.zeros_like, {"kernel": start[None]})
    moved = jax.jit(tx.update)({"kernel": jnp.ones((1, 6))}, tx.init(zeros), zeros)[0]
    np.testing.assert_array_equal(moved["kernel"], -0.5)


def test_inside_optax(x64):
    """The switch counts its own updates, also of injected, accumulated and masked transformations."""
    make = lambda: lawn(optax.adam(0.05), free_steps=2)
    frozen = {"a": True, "b": False}
    tiled = jax.tree.map(lambda x: np.repeat(x, 2, axis=0), STACKED)

    @jax.jit
    def run():
        injected = optax.inject_hyperparams(lawn)(optax.adam(0.05), free_steps=2)
        masked = optax.chain(optax.masked(make(), frozen), optax.masked(optax.set_to_zero(), {"a": False, "b": True}))
        return (
            trajectory(make())[0],
            trajectory(injected)[0],
            trajectory(optax.MultiSteps(make(), 2), tiled)[0],
            trajectory(masked)[0],
        )

    plain, injected, gathered, masked = run()
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6)
    jax.tree.map(close, injected, plain)
    jax.tree.map(lambda a, b: close(a[1::2], b), gathered, plain)
    close(masked["a"]["kernel"], plain["a"]["kernel"])
    np.testing.assert_array_equal(masked["b"]["kernel"][-1], PARAMS["b"]["kernel"])
    params = jax.tree.map(jnp.asarray, PARAMS)
    tx = lawn(optax.sgd(0.1), free_steps=0)
    partial = tx.update({**GRADS[0], "b": {"kernel": None}}, tx.init(params), params)[0]
    assert partial["b"]["kernel"] is None
    whole = tx.update(GRADS[0], tx.init(params), params)[0]
    np.testing.assert_allclose(partial["a"]["kernel"], whole["a"]["kernel"], rtol=1e-12)


def test_low_precision_updates_are_computed_in_float32():
    low = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), (PARAMS, GRADS[0]))
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), low)
    tx = lawn(optax.identity(), free_steps=0)
    got, want = (jax.jit(tx.update)(g, tx.init(p), p)[0] for p, g in (low, wide))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert a.dtype == jnp.bfloat16
        np.testing.assert_allclose(a.astype(jnp.float32), b, rtol=2**-6, atol=2**-6)


@pytest.mark.slow
def test_logits_stay_bounded():
    """Digits, full batches: Adam's logits grow with every step, those on the spheres do not, and the test does not suffer."""
    datasets = pytest.importorskip("sklearn.datasets")
    images, labels = datasets.load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    images, labels = jnp.asarray(images[order] / 16, jnp.float32), jnp.asarray(labels[order])
    train, test = (images[:600], labels[:600]), (images[600:], labels[600:])

    def logits(params, x):
        return jax.nn.relu(x @ params[0]["kernel"] + params[0]["bias"]) @ params[1]["kernel"] + params[1]["bias"]

    def loss(params):
        return optax.softmax_cross_entropy_with_integer_labels(logits(params, train[0]), train[1]).mean()

    def run(tx, key):
        keys = jax.random.split(key)
        params = [
            {"kernel": jax.random.normal(k, s) * (2 / s[0]) ** 0.5, "bias": jnp.zeros(s[1])}
            for k, s in zip(keys, itertools.pairwise((64, 64, 10)), strict=True)
        ]

        def step(carry, _):
            params, state = carry
            updates, state = tx.update(jax.grad(loss)(params), state, params)
            return (optax.apply_updates(params, updates), state), None

        (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), length=300)
        right = jnp.mean(jnp.argmax(logits(params, test[0]), -1) == test[1])
        return jnp.mean(jnp.abs(logits(params, test[0]))), loss(params), right

    keys = jax.random.split(jax.random.key(0), 3)
    adam, held = (
        [np.mean(x) for x in jax.jit(jax.vmap(lambda key, tx=tx: run(tx, key)))(keys)]
        for tx in (optax.adam(1e-2), lawn(optax.adam(1e-2), free_steps=10))
    )
    assert held[0] < 0.7 * adam[0], (adam, held)
    assert held[1] > 5 * adam[1], (adam, held)
    assert held[2] > adam[2] - 0.01, (adam, held)
