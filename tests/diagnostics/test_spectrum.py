"""Lanczos against dense eigensolvers and a loop, products against dense matrices, densities, and the noise between examples."""

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import regjax as rj
from tests.objectives.problems import MLP, X, Y, arrays, hidden, mlp_loss

d = rj.diagnostics
RNG = np.random.default_rng(0)
SIZE = 9
A = (lambda g: (g + g.T) / 2)(RNG.normal(size=(SIZE, SIZE)))
V = RNG.normal(size=SIZE)
lanczos = jax.jit(
    lambda matrix, start, num_steps, reorthogonalize=True: d.lanczos_spectrum(
        lambda v: matrix @ v, start, num_steps=num_steps, reorthogonalize=reorthogonalize
    ),
    static_argnums=(2, 3),
)


def loop(matrix, start, num_steps):
    """Lanczos with one Gram-Schmidt vector at a time."""
    basis, alphas, betas = [start / np.linalg.norm(start)], [], []
    for _ in range(num_steps):
        w = matrix @ basis[-1]
        alphas.append(w @ basis[-1])
        for _ in range(2):
            for q in basis:
                w = w - (w @ q) * q
        betas.append(np.linalg.norm(w))
        basis.append(w / betas[-1])
    t = np.diag(alphas) + np.diag(betas[:-1], 1) + np.diag(betas[:-1], -1)
    values, vectors = np.linalg.eigh(t)
    return values, vectors[0] ** 2


def test_published_values(x64):
    diagonal = jnp.array([1.0, 2.0, 4.0])
    values, weights = lanczos(jnp.diag(diagonal), jnp.ones(3), 2)
    np.testing.assert_allclose(values, [1.301686509, 3.841170633], atol=5e-10)
    np.testing.assert_allclose(weights, [0.593757330, 0.406242670], atol=5e-10)
    assert float(weights @ values**3) == pytest.approx(24.333333333, abs=1e-8)


def test_equals_the_loop_the_eigensolver_and_the_moments(x64):
    tree = {"count": jnp.int32(3), "kernel": jnp.asarray(V[:6]).reshape(2, 3), "rest": [jnp.asarray(V[6:]), None]}

    def matvec(t):
        w = A @ jnp.concatenate([t["kernel"].reshape(-1), t["rest"][0]])
        return {"count": t["count"], "kernel": w[:6].reshape(2, 3), "rest": [w[6:], None]}

    def runs(start, tree):
        flat = lambda num_steps, keep=True: lanczos(A, start, num_steps, keep)
        return flat(5), flat(SIZE), flat(5, False), d.lanczos_spectrum(matvec, tree, num_steps=5)

    five, full, plain, of_tree = jax.jit(runs)(V, tree)
    q = V / np.linalg.norm(V)
    for values, weights in (five, full):
        want = loop(A, V, len(values))
        np.testing.assert_allclose(values, want[0], rtol=1e-10)
        np.testing.assert_allclose(weights, want[1], atol=1e-12)
        for k in range(2 * len(values)):
            moment = float(np.asarray(weights) @ np.asarray(values) ** k)
            assert moment == pytest.approx(q @ np.linalg.matrix_power(A, k) @ q, rel=1e-8)
    exact, vectors = np.linalg.eigh(A)
    np.testing.assert_allclose(full.ritz_values, exact, atol=1e-10)
    np.testing.assert_allclose(full.weights, (vectors.T @ q) ** 2, atol=1e-10)
    # Without re-orthogonalisation the same while few steps are made; and a tree is its flat vector.
    np.testing.assert_allclose(plain.ritz_values, five.ritz_values, rtol=1e-8)
    np.testing.assert_allclose(of_tree.ritz_values, five.ritz_values, rtol=1e-10)


def test_ends_early_with_weights_of_zero():
    """Few eigenvalues along the start, none, or a matrix of zeros: fixed shapes, and the rest repeats the largest."""
    exact, vectors = np.linalg.eigh(A)
    two, one = vectors[:, 2] + 2 * vectors[:, 5], vectors[:, 3]
    starts = jnp.asarray(np.stack([two, one, np.zeros(SIZE), V]), jnp.float32)
    matrices = jnp.asarray(np.stack([A, A, A, 0 * A]), jnp.float32)
    values, weights = jax.vmap(lambda a, v: lanczos(a, v, 6))(matrices, starts)
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-5)
    near = [exact[2], exact[5], exact[3]]
    heavy = weights > 1e-6
    np.testing.assert_allclose(values[:2][heavy[:2]], near, rtol=1e-4)
    np.testing.assert_allclose(weights[0][heavy[0]], [0.2, 0.8], atol=1e-4)
    assert not values[2:].any()
    np.testing.assert_array_equal(weights[2:], np.eye(6)[[0, 0]])
    assert np.all(np.diff(values, axis=1) >= 0)
    # In exact arithmetic: the padding repeats the largest, and nothing has a weight by rounding.
    values, weights = lanczos(jnp.diag(jnp.array([1.0, 3.0])), jnp.ones(2), 4)
    np.testing.assert_allclose(values, [1, 3, 3, 3], rtol=1e-6)
    assert not weights[2:].any()


def test_orthogonality_in_float32():
    """A lone large eigenvalue appears several times unless the basis is kept orthogonal."""
    diagonal = jnp.asarray(np.append(np.linspace(0, 1, 199), 100.0), jnp.float32)
    start = jnp.asarray(RNG.normal(size=200), jnp.float32)
    run = jax.jit(
        lambda keep: d.lanczos_spectrum(lambda v: diagonal * v, start, num_steps=40, reorthogonalize=keep), static_argnums=0
    )
    copies = [int(np.sum(np.abs(run(keep).ritz_values - 100) < 1e-2)) for keep in (True, False)]
    assert copies[0] == 1 and copies[1] > 1


def test_products_equal_the_dense_matrices(x64):
    params, x, y = arrays((MLP, X, Y))
    flat, back = jax.flatten_util.ravel_pytree(params)
    vector = jnp.asarray(RNG.normal(size=flat.size))
    outputs = lambda p, x: hidden(p, x) @ p["out"]["kernel"] + p["out"]["bias"]
    cubed = lambda z, y: jnp.mean(jnp.abs(z - y) ** 3)

    @jax.jit
    def products_and_matrices(flat, vector):
        p = back(flat)
        products = d.hessian_matvec(mlp_loss, p, x, y)(back(vector)), d.ggn_matvec(outputs, cubed, p, x, y)(back(vector))
        hessian = jax.hessian(lambda w: mlp_loss(back(w), x, y))(flat)
        jacobian = jax.jacfwd(lambda w: outputs(back(w), x).reshape(-1))(flat)
        curvature = jax.hessian(lambda z: cubed(z.reshape(16, 3), y))(outputs(p, x).reshape(-1))
        return products, (hessian @ vector, jacobian.T @ (curvature @ (jacobian @ vector)))

    for got, want in zip(*products_and_matrices(flat, vector), strict=True):
        np.testing.assert_allclose(jax.flatten_util.ravel_pytree(got)[0], want, rtol=1e-10, atol=1e-12)
    # Low-precision weights are widened, counters are no directions.
    low = {"w": jnp.ones(2, jnp.bfloat16), "step": jnp.int32(7)}
    image = d.hessian_matvec(lambda p: jnp.sum(p["w"] ** 3) * p["step"], low)(
        {"w": jnp.ones(2, jnp.bfloat16), "step": jnp.int32(0)}
    )
    assert image["w"].dtype == jnp.float32 and image["w"].tolist() == [42.0, 42.0] and image["step"] == 0


def test_top_eigenvalue(x64):
    exact, vectors = np.linalg.eigh(A)
    run = jax.jit(
        lambda start, which, num_steps, tolerance: d.top_eigenvalue(
            lambda v: A @ v, start, which=which, num_steps=num_steps, tolerance=tolerance
        ),
        static_argnums=(1, 2),
    )
    for which, at in (("largest", -1), ("smallest", 0), ("magnitude", np.argmax(np.abs(exact)))):
        value, vector, residual = run(V, which, 12, 0.0)
        assert float(value) == pytest.approx(exact[at], rel=1e-10) and residual < 1e-9
        assert abs(float(vector @ vectors[:, at])) == pytest.approx(1, abs=1e-9) and float(vector @ V) >= 0
    # Stopped at once, it is the Rayleigh quotient, and an eigenvalue lies within the residual.
    value, vector, residual = run(V, "largest", 12, 1e3)
    assert float(value) == pytest.approx(V @ A @ V / (V @ V))
    assert np.min(np.abs(exact - value)) <= residual and float(residual) == pytest.approx(
        np.linalg.norm(A @ vector - value * vector)
    )
    zero = run(0 * V, "largest", 12, 0.0)
    assert zero.value == 0 and not zero.vector.any()


def test_traces_and_densities(x64):
    params = {"a": jnp.zeros((2, 3)), "b": jnp.zeros(3)}
    _, back = jax.flatten_util.ravel_pytree(params)
    matvec = lambda t: back(A @ jax.flatten_util.ravel_pytree(t)[0])
    run = jax.jit(lambda key: d.stochastic_lanczos(key, matvec, params, num_probes=400, num_steps=SIZE))(jax.random.key(0))
    assert run.ritz_values.shape == run.weights.shape == (400, SIZE)
    for power in (1, 2):
        estimates = SIZE * np.sum(run.weights * run.ritz_values**power, axis=1)
        error = estimates.std() / np.sqrt(400)
        assert abs(estimates.mean() - np.trace(np.linalg.matrix_power(A, power))) < 4 * error

    few = run.ritz_values[:3], run.weights[:3]
    grid = np.linspace(-3, 3, 7)
    bell = lambda t: np.exp(-(t**2) / 0.08) / np.sqrt(0.08 * np.pi)
    probes = [list(zip(*map(np.asarray, probe), strict=True)) for probe in zip(*few, strict=True)]
    want = [np.mean([sum(w * bell(t - v) for v, w in probe) for probe in probes]) for t in grid]
    np.testing.assert_allclose(d.spectral_density(*few, grid=grid, bandwidth=0.2).density, want, rtol=1e-10)
    made = d.spectral_density(*few)
    assert jnp.trapezoid(made.density, made.grid) == pytest.approx(1, abs=1e-6) and made.grid.shape == (512,)
    assert made.grid[0] < few[0].min() and made.grid[-1] > few[0].max()
    lone = d.spectral_density(jnp.zeros(3), jnp.array([1.0, 0.0, 0.0]))
    assert jnp.trapezoid(lone.density, lone.grid) == pytest.approx(1, abs=1e-6)


def test_noise_between_hessians(x64):
    """Equal to the loop for any chunks; what the paper subtracts leaves the spread of the mean's own eigenvalues."""
    count, sigma = 32, 0.3
    noise = RNG.normal(size=(count, SIZE, SIZE)) * sigma
    hessians = jnp.asarray(5 * A + (noise + noise.transpose(0, 2, 1)) / np.sqrt(2))
    key, params = jax.random.key(1), jnp.zeros(SIZE)
    run = jax.jit(
        lambda key, probes, chunk: d.hessian_variance(
            key, lambda v, h: h @ v, params, hessians, num_probes=probes, chunk_size=chunk
        ),
        static_argnums=(1, 2),
    )
    whole = [float(run(key, 300, chunk)) for chunk in (None, 8, 1)]
    np.testing.assert_allclose(whole[1:], whole[0], rtol=1e-10)
    # The mean over directions is the sum of the variances of all entries over P.
    want = float(jnp.sum(jnp.var(hessians, axis=0, ddof=1))) / SIZE
    assert whole[0] == pytest.approx(want, rel=0.03)
    # Off the diagonal the variance of an entry is sigma^2, on it twice that.
    assert want == pytest.approx((SIZE + 1) * sigma**2, rel=0.15)
    v = RNG.normal(size=(2000, SIZE))
    v /= np.linalg.norm(v, axis=1, keepdims=True)
    images = np.einsum("nij,pj->npi", hessians, v)
    printed = np.mean(np.sum(images**2, -1).mean(0) - np.einsum("pi,pi->p", v, images.mean(0)) ** 2)
    assert printed > 20 * want


@pytest.mark.slow
def test_sharpness_aware_training_lowers_the_top_eigenvalue():
    """Digits with a fifth of the labels wrong: the Hessian of the same loss, after the same steps."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    x = jnp.asarray(images[:512] / 16, jnp.float32)

    def loss_fn(params, x, y):
        hidden = jnp.tanh(x @ params[0] + params[1])
        logits = hidden @ params[2] + params[3]
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    @jax.jit
    def run(rho, params, y, batches):
        objective = rj.objectives.sam(loss_fn, rho=rho)
        tx = optax.sgd(0.1, momentum=0.9)

        def step(carry, rows):
            params, state = carry
            updates, state = tx.update(jax.grad(objective)(params, x[rows], y[rows]), state)
            return (optax.apply_updates(params, updates), state), None

        (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), batches)
        start = jax.tree.map(jnp.ones_like, params)
        return d.top_eigenvalue(d.hessian_matvec(loss_fn, params, x, y), start, num_steps=15).value

    values = np.empty((2, 3))
    for seed in range(3):
        rng = np.random.default_rng(seed)
        y = np.where(rng.random(512) < 0.2, rng.integers(0, 10, 512), labels[:512])
        params = [jnp.asarray(rng.normal(size=s) / 8, jnp.float32) for s in ((64, 64), (64,), (64, 10), (10,))]
        batches = np.concatenate([rng.permutation(512).reshape(-1, 64) for _ in range(20)])
        values[:, seed] = [run(rho, params, y, batches) for rho in (0.0, 0.3)]
    assert (values[1] < 0.6 * values[0]).all(), values
