"""Self-tuning networks: oracles, the routes of gradients, and exactness for ridge regression."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import regjax as rj
from regjax.layers import HyperParams, hyper_dense
from regjax.objectives import TunedHyper

RNG = np.random.default_rng(0)
INF = float("inf")


def test_published_values(x64):
    assert float(rj.objectives.perturbation_entropy(jnp.zeros(1))) == pytest.approx(1.052425613, abs=5e-10)
    assert float(rj.objectives.stretched_logit(0.05, low=0.0, high=0.9)) == pytest.approx(-2.833213344, abs=5e-10)
    assert float(rj.objectives.stretched_logit(0.5, low=0.0, high=INF)) == pytest.approx(-0.432752130, abs=5e-10)


def test_constrained_values_and_their_inverse(x64):
    h = RNG.normal(size=(5, 4)) * 2
    ranges = [(0.1, 0.9), (-1.0, INF), (-INF, 2.0), (-INF, INF)]
    got = np.asarray(rj.objectives.constrain_hyper(h, ranges=ranges))
    for i, row in enumerate(h):
        sigmoid, soft = 1 / (1 + np.exp(-row[0])), lambda x: np.log1p(np.exp(x))
        want = [0.1 + 0.8 * sigmoid, -1 + soft(row[1]), 2 - soft(row[2]), row[3]]
        np.testing.assert_allclose(got[i], want, rtol=1e-13)
    for j, (low, high) in enumerate(ranges):
        np.testing.assert_allclose(rj.objectives.stretched_logit(got[:, j], low=low, high=high), h[:, j], rtol=1e-11)
    whole = rj.objectives.constrain_hyper(3 * h, ranges=[(0, 4), (0, INF), (-INF, 0), (-INF, INF)], discrete=[True] * 4)
    smooth = rj.objectives.constrain_hyper(3 * h, ranges=[(0, 4), (0, INF), (-INF, 0), (-INF, INF)])
    np.testing.assert_array_equal(whole, np.floor(smooth))


def test_perturbations_have_the_moments_of_their_scale():
    hyper, raw = jnp.array([1.0, -2.0]), jnp.array([0.3, -1.0])
    h = np.asarray(rj.objectives.perturb_hyper(jax.random.key(0), hyper, raw, 20_000))
    scale = np.log1p(np.exp(raw))
    np.testing.assert_allclose(h.mean(0), hyper, atol=5 * scale.max() / 20_000**0.5)
    np.testing.assert_allclose(h.std(0), scale, rtol=5 / (2 * 20_000) ** 0.5)
    assert abs(np.corrcoef(h.T)[0, 1]) < 5 / 20_000**0.5


def test_entropy_of_a_small_scale_has_the_gradient_of_its_logarithm(x64):
    raw = np.array([-100.0, -31.0, -29.0, 0.0, 5.0])
    value, gradient = jax.value_and_grad(lambda r: rj.objectives.perturbation_entropy(r))(raw)
    soft = np.log1p(np.exp(raw))
    np.testing.assert_allclose(value, np.sum(np.log(soft)) + 2.5 * np.log(2 * np.pi * np.e), rtol=1e-13)
    np.testing.assert_allclose(gradient, 1 / (1 + np.exp(-raw)) / soft, rtol=1e-12)


BATCH = {"x": RNG.normal(size=(6, 4)), "y": RNG.normal(size=(6, 1))}
PARAMS = HyperParams(*(RNG.normal(size=shape) for shape in ((4, 1), (4, 1), (2, 1), (1,), (1,), (2, 1), ())))
TUNED = TunedHyper(RNG.normal(size=2), RNG.normal(size=2))
RANGES = [(0.0, 0.9), (0.0, INF)]


def regularised(params, hyper, key, batch):
    """Dropout on inputs and decay, each example at its own strength."""
    rate, decay = jnp.moveaxis(rj.objectives.constrain_hyper(hyper, ranges=RANGES), -1, 0)
    kept = jax.random.uniform(key, batch["x"].shape) >= rate[:, None]
    x = batch["x"] * kept / (1 - rate[:, None])
    out = hyper_dense(params, x, hyper)
    return jnp.mean((out - batch["y"]) ** 2) + jnp.mean(decay) * sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))


def plain(params, hyper, key, batch):
    return jnp.mean((hyper_dense(params, batch["x"], hyper) - batch["y"]) ** 2)


def test_gradients_take_the_promised_routes(x64):
    """Written out: training reaches the parameters alone; validation reaches h through the gates alone."""
    params, tuned, batch = jax.tree.map(jnp.asarray, (PARAMS, TUNED, BATCH))
    train, valid = rj.objectives.self_tuning(regularised, plain, entropy_weight=0.3)
    key = jax.random.key(3)

    @jax.jit
    def run(params, tuned):
        noise_key, loss_key = jax.random.split(key)
        noise = jax.random.normal(noise_key, (6, 2))

        def examples(tuned):
            return tuned.hyper + jax.nn.softplus(tuned.raw_scale) * noise

        trained = jax.value_and_grad(train, argnums=(0, 1))(params, tuned, key, batch)
        judged = jax.value_and_grad(valid, argnums=(0, 1))(tuned, params, key, batch)
        h = examples(tuned)
        want_train = jax.value_and_grad(lambda p: regularised(p, h, loss_key, batch))(params)

        def by_gates(tuned):
            h = examples(tuned)
            out = params.scale * (batch["x"] @ params.kernel + params.bias)
            out += (h @ params.gate_kernel) * (batch["x"] @ params.response_kernel) + (
                h @ params.gate_bias
            ) * params.response_bias
            entropy = jnp.sum(jnp.log(jax.nn.softplus(tuned.raw_scale) * jnp.sqrt(2 * jnp.pi * jnp.e)))
            return jnp.mean((out - batch["y"]) ** 2) - 0.3 * entropy

        # A validation loss that also regularises: its own use of the constrained values moves nothing.
        mixed = rj.objectives.self_tuning(regularised, regularised, tune_scales=False)[1]
        own = jax.grad(mixed)(tuned, params, key, batch)
        rates = rj.objectives.constrain_hyper(jnp.broadcast_to(tuned.hyper, (6, 2)), ranges=RANGES)

        def frozen_strengths(h):
            kept = jax.random.uniform(loss_key, batch["x"].shape) >= rates[:, :1]
            out = hyper_dense(params, batch["x"] * kept / (1 - rates[:, :1]), jnp.broadcast_to(h, (6, 2)))
            return jnp.mean((out - batch["y"]) ** 2)

        wanted = want_train, jax.value_and_grad(by_gates)(tuned), jax.grad(frozen_strengths)(tuned.hyper)
        return (trained, judged, own), wanted

    (trained, judged, own), (want_train, want_valid, want_own) = run(params, tuned)
    close = lambda a, b: jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-11, atol=1e-14), a, b)
    close((trained[0], trained[1][0]), want_train)
    close((judged[0], judged[1][0]), want_valid)
    close(own.hyper, want_own)
    nothing = jax.tree.leaves((trained[1][1], judged[1][1], own.raw_scale))
    assert not any(np.any(leaf) for leaf in nothing), "a gradient takes a route that is closed"


def test_schedules_aux_and_silence_where_scales_are_not_tuned(x64):
    params, tuned, batch = jax.tree.map(jnp.asarray, (PARAMS, TUNED, BATCH))
    with_aux = lambda *arguments: (plain(*arguments), arguments[1])
    valid = rj.objectives.self_tuning(with_aux, with_aux, entropy_weight=lambda step: 0.1 * step, has_aux=True)[1]
    silent = rj.objectives.self_tuning(with_aux, with_aux, tune_scales=False, has_aux=True)[1]

    @jax.jit
    def run(step):
        key = jax.random.key(0)
        return [valid(tuned, params, key, batch, step=s) for s in (step, 0)], silent(tuned, params, key, batch)

    ((late, hyper), (early, _)), (value, rows) = run(3)
    np.testing.assert_allclose(early - late, 0.3 * rj.objectives.perturbation_entropy(tuned.raw_scale), rtol=1e-11)
    assert hyper.shape == (6, 2) and len(np.unique(hyper[:, 0])) == 6
    np.testing.assert_array_equal(rows, np.tile(tuned.hyper, (6, 1)))
    np.testing.assert_allclose(value, plain(params, rows, None, batch), rtol=1e-12)


def test_ridge_regression_is_tuned_exactly(x64):
    """A hyper layer fitted by the training loss near h has the validation gradient of the closed-form solution."""
    rng = np.random.default_rng(2)
    x, xv = rng.normal(size=(12, 4)), rng.normal(size=(40, 4))
    y, yv = (z @ np.full((4, 1), 0.7) + rng.normal(size=(len(z), 1)) for z in (x, xv))
    nodes, weights = np.polynomial.hermite_e.hermegauss(5)

    def layer(flat):
        """The kernel and its response, the gate fixed at 1: the answer to one hyperparameter is any vector."""
        kernel, response = flat[:4, None], flat[4:, None]
        return HyperParams(kernel, response, jnp.ones((1, 1)))

    def ridge(params, hyper, key, batch):
        out = hyper_dense(params, batch[0], hyper)
        kernels = params.kernel[:, 0] + hyper * params.response_kernel[:, 0]
        decay = rj.objectives.constrain_hyper(hyper, ranges=[(0.0, INF)])[:, 0]
        return jnp.mean((out - batch[1]) ** 2) + jnp.mean(decay * jnp.sum(kernels**2, -1))

    def validation(params, hyper, key, batch):
        return jnp.mean((hyper_dense(params, batch[0], hyper) - batch[1]) ** 2)

    valid = rj.objectives.self_tuning(ridge, validation, tune_scales=False)[1]

    def expected(flat, h):
        """The training loss over the perturbation: a quadrature of its normal noise, at scale 1e-3."""
        at = lambda node: ridge(layer(flat), jnp.full((12, 1), h + 1e-3 * node), None, (x, y))
        return jnp.sum(weights * jax.vmap(at)(nodes)) / weights.sum()

    def closed_form(h):
        decay = jax.nn.softplus(h)
        w = jnp.linalg.solve(x.T @ x / 12 + decay * jnp.eye(4), x.T @ y / 12)
        return jnp.mean((xv @ w - yv) ** 2)

    @jax.jit
    def gradients(h):
        zero = jnp.zeros(8)
        fitted = -jnp.linalg.solve(jax.hessian(expected)(zero, h), jax.grad(expected)(zero, h))
        tuned = TunedHyper(h[None], jnp.zeros(1))
        return jax.grad(valid)(tuned, layer(fitted), jax.random.key(0), (xv, yv)).hyper[0], jax.grad(closed_form)(h)

    low, high = -6.0, 4.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if gradients(jnp.float64(middle))[1] > 0 else (middle, high)
    for h in (low - 2.0, low + 1.0):
        got, want = gradients(jnp.float64(h))
        assert np.sign(want) == np.sign(h - low) and got == pytest.approx(float(want), rel=1e-4)
    scale = abs(float(gradients(jnp.float64(low + 1.0))[1]))
    assert abs(float(gradients(jnp.float64(low))[0])) < 1e-4 * scale, "the gradient does not vanish at the best decay"
