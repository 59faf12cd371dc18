"""Interpolation of models: exact ends, linear models, and Fisher weights against loops."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import regjax as rj
from regjax.weights import fisher_interpolate, interpolate

RNG = np.random.default_rng(0)
tree = lambda: {"kernel": RNG.normal(size=(3, 2)), "bias": RNG.normal(size=2)}
START, END = tree(), tree()
F0, F1 = (jax.tree.map(np.square, tree()) for _ in range(2))


def test_equals_its_formula_and_the_outputs_of_linear_models(x64):
    alphas = jnp.array([0.0, 0.25, 0.7, 1.0])
    mixed = jax.jit(jax.vmap(lambda alpha: interpolate(START, END, alpha=alpha)))(alphas)
    x = RNG.normal(size=(4, 3))
    logits = lambda p: x @ p["kernel"] + p["bias"]
    for i, alpha in enumerate([0.0, 0.25, 0.7, 1.0]):
        at = {name: np.asarray(leaf[i]) for name, leaf in mixed.items()}
        for name in START:
            np.testing.assert_allclose(at[name], (1 - alpha) * START[name] + alpha * END[name], rtol=1e-14)
        np.testing.assert_allclose(logits(at), (1 - alpha) * logits(START) + alpha * logits(END), rtol=1e-12)


def test_the_ends_are_exact_and_low_precision_is_kept():
    for dtype in (jnp.float32, jnp.bfloat16, jnp.float16):
        one, two = (jax.tree.map(lambda x, d=dtype: jnp.asarray(100 * x, d), t) for t in (START, END))
        both = jax.jit(lambda alpha, a, b: [interpolate(a, b, alpha=alpha), fisher_interpolate(a, b, F0, F1, alpha=alpha)])
        for alpha, want in ((0.0, one), (1.0, two)):
            for mixed in both(alpha, one, two):
                for name, leaf in want.items():
                    np.testing.assert_array_equal(mixed[name], leaf)
                    assert mixed[name].dtype == dtype
    assert interpolate({"count": jnp.int32(1)}, {"count": jnp.int32(5)}, alpha=0.0)["count"] == 5


def test_the_derivative_at_the_ends_is_the_difference(x64):
    derivative = jax.jit(jax.jacfwd(lambda a: interpolate(START, END, alpha=a)))
    for alpha in (0.0, 0.5, 1.0):
        slope = derivative(alpha)
        for name in START:
            np.testing.assert_allclose(slope[name], END[name] - START[name], rtol=1e-14)


def fisher_reference(a, b, f0, f1, alpha, floor):
    out = np.zeros_like(a)
    for i in np.ndindex(a.shape):
        c0, c1 = (1 - alpha) * max(f0[i], floor), alpha * max(f1[i], floor)
        out[i] = (c0 * a[i] + c1 * b[i]) / (c0 + c1)
    return out


def test_fisher_equals_its_reference(x64):
    f0, f1 = (jax.tree.map(np.copy, f) for f in (F0, F1))
    f0["kernel"][0] = 0.0
    f0["kernel"][1] = f1["kernel"][1] = 0.0
    f1["kernel"][1, 1] = -3.0  # an estimate may be negative
    run = jax.jit(lambda alpha, floor: fisher_interpolate(START, END, f0, f1, alpha=alpha, fisher_floor=floor))
    for alpha in (0.3, 0.9):
        for floor in (1e-8, 0.5):
            got = run(alpha, floor)
            for name in START:
                want = fisher_reference(START[name], END[name], f0[name], f1[name], alpha, floor)
                np.testing.assert_allclose(got[name], want, rtol=1e-12)


def test_fisher_limits(x64):
    plain = interpolate(START, END, alpha=0.3)
    zeros = jax.tree.map(np.zeros_like, F0)
    for f0, f1, floor in ((F0, F0, 1e-8), (zeros, zeros, 1e-8), (zeros, zeros, 0.0)):
        got = fisher_interpolate(START, END, f0, f1, alpha=0.3, fisher_floor=floor)
        for name in START:
            np.testing.assert_allclose(got[name], plain[name], rtol=1e-14)
    # Leaves without Fisher information, on either side.
    got = fisher_interpolate(START, END, F0 | {"bias": None}, F1 | {"kernel": None}, alpha=0.3)
    for name in START:
        np.testing.assert_allclose(got[name], plain[name], rtol=1e-14)
    # One model alone has information: it decides.
    got = fisher_interpolate(START, END, zeros, jax.tree.map(lambda f: 1.0 + f, F1), alpha=0.3)
    np.testing.assert_allclose(got["kernel"], END["kernel"], rtol=1e-6, atol=1e-6)


def test_large_fisher_information_does_not_overflow():
    large = {"w": jnp.array([3e38, 1e-30, 3e38], jnp.float32)}
    w = {"w": jnp.zeros(3)}, {"w": jnp.ones(3)}
    got = fisher_interpolate(*w, large, {"w": jnp.array([3e38, 1e-30, 0.0])}, alpha=0.25, fisher_floor=0.0)
    np.testing.assert_allclose(got["w"], [0.25, 0.25, 0.0], rtol=1e-6)


@pytest.mark.slow
def test_on_digits_a_less_confident_fine_tuned_model_averages_better():
    """Pretrained on shifted, inverted and noisy digits, fine-tuned on plain ones with and without label smoothing (BANG)."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    x, y = (x[order] / 16).reshape(-1, 8, 8), y[order]
    noise = 0.4 * np.random.default_rng(1).normal(size=x.shape)
    moved = [np.roll(x, shift, axis) for shift, axis in ((1, 1), (1, 2), (-1, 2))]
    other = np.stack([1 - x, x + noise, 0.5 * x + 0.25, *moved])
    flat = lambda images: jnp.asarray(images.reshape(-1, 64), jnp.float32)
    before = flat(other[:, :600]), jnp.asarray(np.tile(y[:600], 6))
    tune = flat(x[600:1000]), jnp.asarray(y[600:1000])
    test_x, test_y = flat(other[:, 1000:]), jnp.asarray(np.tile(y[1000:], 6))
    logits = lambda params, x: jax.nn.relu(x @ params["in"] + params["bias"]) @ params["out"]

    def train(params, key, x, y, smoothing, steps, rate):
        def step(params, key):
            rows = jax.random.randint(key, (64,), 0, len(x))
            target = (1 - smoothing) * jax.nn.one_hot(y[rows], 10) + smoothing / 10
            loss = lambda params: optax.softmax_cross_entropy(logits(params, x[rows]), target).mean()
            return jax.tree.map(lambda p, g: p - rate * g, params, jax.grad(loss)(params)), None

        return jax.lax.scan(step, params, jax.random.split(key, steps))[0]

    def run(key, smoothing):
        one, two, first, second = jax.random.split(key, 4)
        params = {"in": jax.random.normal(one, (64, 64)) / 8, "out": jax.random.normal(two, (64, 10)) / 8, "bias": jnp.zeros(64)}
        start = train(params, first, *before, 0.2, 500, 0.2)
        end = train(start, second, *tune, smoothing, 800, 0.4)
        balance = rj.diagnostics.confidence_balance(logits(start, tune[0]), logits(end, tune[0]))
        accuracy = lambda params: jnp.mean(jnp.argmax(logits(params, test_x), -1) == test_y)
        return accuracy(interpolate(start, end, alpha=0.5)), accuracy(end), balance.ratio

    keys = jax.random.split(jax.random.key(0), 3)
    (plain, bang), tuned, ratio = jax.jit(jax.vmap(jax.vmap(run, (0, None)), (None, 0)))(keys, jnp.array([0.0, 0.2]))
    assert np.all(plain > tuned[0] + 0.03) and np.all(bang > plain + 0.03)
    assert np.all(abs(ratio[1] - 1) < abs(ratio[0] - 1) - 0.05)
