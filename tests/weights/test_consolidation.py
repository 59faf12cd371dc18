"""Consolidation against loop-written references, joint training, and each other."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.flatten_util import ravel_pytree
from jax.sharding import AxisType

import regjax as rj

W = rj.weights
RNG = np.random.default_rng(0)


def residuals(params, batch):
    """The summed negative log-likelihood of a linear regression."""
    x, y = batch
    return jnp.sum((x @ params["kernel"] + params["bias"] - y) ** 2) / 2


def classify(params, x):
    return x @ params["kernel"] + params["bias"]


def softmax_loss(params, batch):
    return optax.softmax_cross_entropy_with_integer_labels(classify(params, batch[0]), batch[1]).sum()


def test_sequential_tasks_equal_joint_ridge_regression(x64):
    precision, truth = 0.7, RNG.normal(size=(4, 1))
    xs = [RNG.normal(size=(n, 4)) + t for t, n in enumerate((12, 11, 9))]
    ys = [x @ truth + t + 0.3 * RNG.normal(size=(len(x), 1)) for t, x in enumerate(xs)]
    # A scanned tree, a list, and an iterator whose last batch is smaller.
    given = [
        (xs[0].reshape(3, 4, 4), ys[0].reshape(3, 4, 1)),
        [(xs[1][:6], ys[1][:6]), (xs[1][6:], ys[1][6:])],
        iter([(xs[2][:6], ys[2][:6]), (xs[2][6:], ys[2][6:])]),
    ]
    params = {"kernel": jnp.zeros((4, 1)), "bias": jnp.zeros(1)}
    state = W.aqc_init(params, precision=precision)

    @jax.jit
    def newton(params, state, x, y):
        """The minimum of a quadratic objective, in one step."""
        flat, rebuild = ravel_pytree(params)
        objective = lambda v: residuals(rebuild(v), (x, y)) + W.quadratic_consolidation(rebuild(v), state)
        return rebuild(flat - jnp.linalg.solve(jax.hessian(objective)(flat), jax.grad(objective)(flat)))

    for t, batches in enumerate(given):
        params = newton(params, state, xs[t], ys[t])
        state = W.aqc_update(state, params, residuals, batches, chunk_size=None if t else 2)
        x, y = np.concatenate(xs[: t + 1]), np.concatenate(ys[: t + 1])
        x = np.concatenate([np.ones((len(x), 1)), x], axis=1)  # the bias comes first
        hessian = precision * np.eye(5) + x.T @ x
        np.testing.assert_allclose(state.hessian, hessian, rtol=1e-10)
        np.testing.assert_allclose(state.minimum, np.linalg.solve(hessian, x.T @ y)[:, 0], rtol=1e-9)
    np.testing.assert_array_equal(state.minimum[0], params["bias"][0])


def test_published_values():
    w, x = jnp.zeros((1, 2)), jnp.ones((1, 1, 1))
    nll = lambda w, x: -jax.nn.log_softmax(x @ w)[0, 0]
    state = W.aqc_update(W.aqc_init(w, precision=0.0), w, nll, x)
    np.testing.assert_allclose(state.hessian, [[0.25, -0.25], [-0.25, 0.25]], atol=1e-7)
    for fisher, labels in (("true", None), ("empirical", jnp.zeros((1, 1), int))):
        state = W.ewc_update(W.ewc_init(w, precision=0.0), w, lambda w, x: x @ w, (x, labels), fisher=fisher)
        np.testing.assert_allclose(state.fisher, [[0.25, 0.25]], atol=1e-7)


def test_penalties_equal_their_loops_and_a_diagonal_hessian_is_ewc(x64):
    params = {"b": RNG.normal(size=2), "a": RNG.normal(size=(2, 3))}
    anchor = {"b": RNG.normal(size=2), "a": RNG.normal(size=(2, 3))}
    square = {"b": RNG.uniform(size=2), "a": RNG.uniform(size=(2, 3))}
    vector = lambda tree: np.concatenate([tree["a"].ravel(), tree["b"]])
    apart, minimum = vector(params) - vector(anchor), vector(anchor)
    factor = RNG.normal(size=(8, 8))
    hessian = factor @ factor.T

    @jax.jit
    def values(params, hessian, weight):
        full = lambda p: W.quadratic_consolidation(p, W.AQCState(minimum, hessian), weight=weight)
        thin = lambda p: W.ewc(p, W.EWCState(anchor, square), weight=weight)
        fast = lambda p: W.si(p, W.SIState(anchor, square, anchor, anchor), weight=weight)
        second = jax.hessian(lambda v: full({"a": v[:6].reshape(2, 3), "b": v[6:]}))
        return [jax.value_and_grad(f)(params) for f in (full, thin, fast)], second(jnp.zeros(8))

    (full, thin, fast), second = values(params, hessian, 0.3)
    want = sum(apart[i] * hessian[i, j] * apart[j] for i in range(8) for j in range(8)) * 0.3 / 2
    assert float(full[0]) == pytest.approx(want, rel=1e-12)
    np.testing.assert_allclose(vector(full[1]), 0.3 * hessian @ apart, rtol=1e-10)
    np.testing.assert_allclose(second, 0.3 * hessian, rtol=1e-10)
    importance = vector(square)
    assert float(thin[0]) == pytest.approx(sum(importance[i] * apart[i] ** 2 for i in range(8)) * 0.3 / 2, rel=1e-12)
    np.testing.assert_allclose(vector(thin[1]), 0.3 * importance * apart, rtol=1e-10)
    (full, thin, fast), _ = values(params, np.diag(importance), 0.3)
    for a, b in ((full, thin), (full, fast)):
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-12), a, b)
    for value, gradient in values(anchor, hessian, 1.0)[0]:
        assert value == 0 and not vector(gradient).any()


def numpy_fisher(params, x, y, kind):
    """The sum over examples of squared gradients, by loops; y ids or probabilities."""
    kernel, bias = np.zeros_like(params["kernel"]), np.zeros_like(params["bias"])
    for n in range(len(x)):
        z = x[n] @ params["kernel"] + params["bias"]
        p = np.exp(z - z.max())
        p = p / p.sum()
        if kind == "true":
            rows = [(p[k], np.eye(3)[k] - p) for k in range(3)]
        else:
            rows = [(1.0, (np.eye(3)[y[n]] if y.ndim == 1 else y[n]) - p)]
        for share, error in rows:
            bias += share * error**2
            for d in range(x.shape[1]):
                kernel[d] += share * (x[n, d] * error) ** 2
    return {"kernel": kernel, "bias": bias}


def test_fisher_information_equals_its_loops(x64):
    params = {"kernel": RNG.normal(size=(4, 3)), "bias": RNG.normal(size=3)}
    x, ids = RNG.normal(size=(7, 4)), RNG.integers(0, 3, size=7)
    soft = RNG.dirichlet(np.ones(3), size=7)
    close = partial(jax.tree.map, partial(np.testing.assert_allclose, rtol=1e-10))
    # Batches of 5 and 2 weigh by their examples; 6 examples as a scanned [2, 3].
    cut = lambda y: [(x[:5], y[:5]), (x[5:], y[5:])]
    stack = lambda y: (x[:6].reshape(2, 3, 4), y[:6].reshape(2, 3, *y.shape[1:]))
    for kind, y in (("true", ids), ("empirical", ids), ("empirical", soft)):
        want = numpy_fisher(params, x, y, kind)
        close(W.diagonal_fisher(params, classify, cut(y), fisher=kind), jax.tree.map(lambda f: f / 7, want))
        want = numpy_fisher(params, x[:6], y[:6], kind)
        got = W.diagonal_fisher(params, classify, stack(y), fisher=kind, reduction="sum")
        close(got, want)
    # For a softmax of a linear model the sum is the diagonal of the Hessian.
    state = W.aqc_update(W.aqc_init(params, precision=0.0), params, softmax_loss, stack(ids))
    true = numpy_fisher(params, x[:6], ids, "true")
    np.testing.assert_allclose(np.diag(state.hessian), np.concatenate([true["bias"], true["kernel"].ravel()]), rtol=1e-9)


def test_the_memory_keeps_the_choice_of_leaves_on_any_tree():
    state = nnx.state(nnx.Linear(3, 2, rngs=nnx.Rngs(0)))
    logits = lambda params, x: x @ params["kernel"][...] + params["bias"][...]
    data = [(jnp.ones((4, 3)), None)]
    memory = W.ewc_update(W.ewc_init(state, where="kernels", precision=0.5), state, logits, data)
    assert [leaf.shape for leaf in jax.tree.leaves(memory.fisher)] == [(3, 2)]
    moved = jax.tree.map(lambda x: x + 1, state)
    total = jnp.sum(jax.tree.leaves(memory.fisher)[0])
    donated = jax.tree.map(jnp.copy, state)
    kept = W.ewc_update(memory, donated, logits, data), W.si_update(W.si_init(donated), donated)
    for leaf in jax.tree.leaves(donated):
        leaf.delete()
    for each in kept:
        np.testing.assert_array_equal(each.minimum["kernel"][...], state["kernel"][...])
    np.testing.assert_allclose(W.ewc(moved, memory), total / 2, rtol=1e-6)
    gradient = jax.grad(lambda p: W.ewc(p, memory))(moved)
    assert not gradient["bias"][...].any() and gradient["kernel"][...].all()

    # Averages of models take it as it is.
    fisher = W.diagonal_fisher(state, logits, data, where=None)
    between = W.fisher_interpolate(state, moved, fisher, fisher, alpha=0.25)
    np.testing.assert_allclose(between["bias"][...], state["bias"][...] + 0.25, rtol=1e-6)

    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2), "steps": jnp.arange(2)}
    quadratic = W.aqc_init(params, where="kernels", precision=3.0)
    assert quadratic.minimum.shape == (4,)
    np.testing.assert_allclose(W.quadratic_consolidation(params, quadratic, where="kernels"), 6.0)


def test_between_tasks_nothing_compiles_again_and_the_loss_and_the_optimiser_agree():
    traces = []
    x, y = RNG.normal(size=(2, 6, 3)).astype(np.float32), RNG.integers(0, 2, size=(2, 6))
    # A head without other weights than these: zeros with a prior of precision 1.
    params = {"kernel": jnp.zeros((3, 2)), "bias": jnp.zeros(2)}

    @partial(jax.jit, static_argnums=4)
    def run(params, memory, x, y, in_loss):
        traces.append(in_loss)
        penalty = partial(W.ewc, state=memory)
        loss = lambda p: softmax_loss(p, (x, y)) / 6
        tx = optax.sgd(0.2)
        if in_loss:
            loss = rj.objectives.with_penalty(loss, penalty, 0.5)
        else:
            tx = optax.chain(rj.gradients.add_penalty(penalty, 0.5), tx)

        def step(carry, _):
            params, state = carry
            updates, state = tx.update(jax.grad(loss)(params), state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, tx.init(params)), length=20)[0][0]

    update = jax.jit(lambda memory, params, x, y: W.ewc_update(memory, params, classify, (x[None], y[None]), reduction="sum"))
    memory = W.ewc_init(params)
    for task in range(2):
        both = [run(params, memory, x[task], y[task], in_loss) for in_loss in (True, False)]
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), *both)
        params = both[0]
        memory = update(memory, params, x[task], y[task])
    assert traces == [True, False]


def test_negative_curvature_is_clipped_if_asked_for():
    f = lambda w, x: jnp.sum(x) * (w[0] ** 2 - 2 * w[0] * w[1] - w[1] ** 2)
    w, x = jnp.ones(2), jnp.ones((2, 1))
    plain = W.aqc_update(W.aqc_init(w), w, f, x).hessian
    np.testing.assert_allclose(plain, np.eye(2) + [[4, -4], [-4, -4]], rtol=1e-6)
    values, vectors = np.linalg.eigh(np.array([[4.0, -4.0], [-4.0, -4.0]]))
    want = np.eye(2) + (vectors * np.maximum(values, 0)) @ vectors.T
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        shared = jax.device_put(jnp.ones((2, 2)) / 2, jax.NamedSharding(mesh, jax.P(None, "data")))
        update = jax.jit(lambda w, x: W.aqc_update(W.aqc_init(w), w, f, x, psd=True, chunk_size=1))
        np.testing.assert_allclose(update(w, shared).hessian, want, rtol=1e-5)


def test_synaptic_intelligence_equals_its_loop_and_sums_to_the_fall_of_the_loss(x64):
    curvature, start = RNG.uniform(0.5, 2.0, size=5), RNG.normal(size=5)
    loss = lambda w, target: jnp.sum(curvature * (w - target) ** 2) / 2
    rate, xi, steps = 2e-3, 0.1, 400

    @jax.jit
    def train(state, w, target):
        def step(carry, _):
            state, w = carry
            gradient = jax.grad(loss)(w, target)
            return (W.si_step(state, gradient, -rate * gradient), w - rate * gradient), None

        return jax.lax.scan(step, (state, w), length=steps)[0]

    w, state = jnp.asarray(start), W.si_init(jnp.asarray(start), precision=0.5)
    want, place = np.full(5, 0.5), start.copy()
    for target in (np.zeros(5), np.ones(5)):
        before, at, path = float(loss(w, target)), place.copy(), np.zeros(5)
        for _ in range(steps):
            gradient = curvature * (place - target)
            path += -gradient * (-rate * gradient)
            place = place - rate * gradient
        want += path / ((place - at) ** 2 + xi)
        state, w = train(state, w, target)
        assert float(jnp.sum(state.path)) == pytest.approx(before - float(loss(w, target)), rel=5e-3)
        assert np.all(state.path > 0)
        state = W.si_update(state, w, xi=xi)
        np.testing.assert_allclose(state.importance, want, rtol=1e-9)
        np.testing.assert_allclose(state.minimum, place, rtol=1e-9)
        np.testing.assert_array_equal(state.start, w)
        assert not state.path.any()
    uphill = W.si_step(state, jnp.ones(5), jnp.ones(5))
    assert np.all(W.si_update(uphill, w).importance < state.importance)
    np.testing.assert_array_equal(W.si_update(uphill, w, nonnegative=True).importance, state.importance)
