"""The spectral norm penalty and spectral normalisation against singular values by NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import regjax as rj

RNG = np.random.default_rng(0)
# Two kernels of one shape among others: they go through one call.
PARAMS = {
    "a": {"kernel": RNG.normal(size=(6, 4)), "bias": RNG.normal(size=4)},
    "b": {"kernel": RNG.normal(size=(6, 4)), "scale": RNG.normal(size=4)},
    "conv": {"kernel": RNG.normal(size=(2, 3, 4, 5))},
    "query": {"kernel": RNG.normal(size=(6, 2, 3))},
}
MATRICES = {"a": (6, 4), "b": (6, 4), "conv": (24, 5), "query": (6, 6)}
START = RNG.bit_generator.state


@pytest.fixture(autouse=True)
def the_same_numbers_in_every_order():
    RNG.bit_generator.state = START


def vectors(name):
    left, sigma, right = np.linalg.svd(PARAMS[name]["kernel"].reshape(MATRICES[name]))
    return sigma[0], np.outer(left[:, 0], right[0])


def test_penalty_and_gradient_by_both_ways(x64):
    carried = rj.weights.stateful_spectral_norm_penalty(warmup=300)

    @jax.jit
    def run(params):
        state = carried.init(jax.random.key(1), params)
        fresh = jax.value_and_grad(lambda p: rj.weights.spectral_norm_penalty(p, n_power=300))(params)
        (value, _), gradient = jax.value_and_grad(lambda p: carried.apply(state, p), has_aux=True)(params)
        part = rj.weights.spectral_norm_penalty(params, n_power=300, where=lambda path, leaf: path == ("a", "kernel"))
        diagonal = rj.weights.spectral_norm_penalty({"kernel": jnp.diag(jnp.array([2.0, 1.0]))})
        return fresh, (value, gradient), (part, diagonal)

    fresh, slow, (part, diagonal) = run(PARAMS)
    for value, gradient in (fresh, slow):
        np.testing.assert_allclose(value, sum(vectors(name)[0] ** 2 / 2 for name in MATRICES), rtol=1e-12)
        for name in MATRICES:
            sigma, outer = vectors(name)
            np.testing.assert_allclose(gradient[name]["kernel"].reshape(outer.shape), sigma * outer, atol=1e-8)
        assert not gradient["a"]["bias"].any() and not gradient["b"]["scale"].any()
    np.testing.assert_allclose([part, diagonal], [vectors("a")[0] ** 2 / 2, 2.0], rtol=1e-9)


def test_by_default_it_is_near_the_singular_value_and_below(x64):
    kernels = RNG.normal(size=(20, 12, 9))
    got = np.sqrt(2 * jax.jit(jax.vmap(lambda kernel: rj.weights.spectral_norm_penalty({"kernel": kernel})))(kernels))
    sigma = np.linalg.svd(kernels, compute_uv=False)[:, 0]
    assert np.all(got <= sigma * (1 + 1e-12)) and np.all(got > 0.95 * sigma)


def test_kernels_of_one_shape_do_not_mix_and_none_depends_on_the_others(x64):
    state = rj.weights.stateful_spectral_norm_penalty().init(jax.random.key(0), PARAMS)
    # One step, far from converged: each kernel's own direction and value, as if it stood alone.
    apply = jax.jit(rj.weights.stateful_spectral_norm_penalty().apply)
    _, after = apply(state, PARAMS)
    alone = [apply(rj.weights.SpectralState({n: state.u[n]}), {n: PARAMS[n]}) for n in ("a", "b")]
    for name, (_, one) in zip("ab", alone, strict=True):
        np.testing.assert_allclose(after.u[name]["kernel"], one.u[name]["kernel"], rtol=1e-12)
    one_step = jax.jit(lambda p: rj.weights.spectral_norm_penalty(p, n_power=1))
    parts = [one_step({n: PARAMS[n]}) for n in ("a", "b")]
    np.testing.assert_allclose(one_step({n: PARAMS[n] for n in "ab"}), sum(parts), rtol=1e-12)


def test_memory_follows_moving_weights_and_zeros_keep_theirs():
    penalty = rj.weights.stateful_spectral_norm_penalty(warmup=1)
    params = {"kernel": jnp.asarray(PARAMS["a"]["kernel"], jnp.float32), "zero": {"kernel": jnp.zeros((3, 2))}}
    tx = optax.chain(rj.gradients.add_penalty(penalty, 1.0), optax.sgd(0.1))

    @jax.jit
    def run(params):
        def step(carry, _):
            params, state = carry
            updates, state = tx.update(jax.tree.map(jnp.zeros_like, params), state, params)
            return (optax.apply_updates(params, updates), state), None

        start = tx.init(params)
        (params, end), _ = jax.lax.scan(step, (params, start), None, 200)
        return params, start, end

    after, start, end = run(params)
    # All singular values sink to the same level, one behind the other.
    assert np.linalg.svd(after["kernel"], compute_uv=False)[0] < 0.05 * np.linalg.svd(params["kernel"], compute_uv=False)[0]
    assert not after["zero"]["kernel"].any()
    memory = lambda state: state[0].memory.u["zero"]["kernel"]
    np.testing.assert_array_equal(memory(start), memory(end))


def test_normalised_kernels_have_norm_one_and_the_full_gradient(x64):
    normalize = rj.weights.spectral_normalize(warmup=300)
    weights = jax.tree.map(lambda x: RNG.normal(size=x.shape), PARAMS)

    @jax.jit
    def run(params):
        state = normalize.init(params)

        def loss(params, update):
            normalised, after = normalize.apply(state, params, update=update)
            return sum(jnp.vdot(w, x) for w, x in zip(*map(jax.tree.leaves, (weights, normalised)), strict=True)), (
                normalised,
                after,
            )

        train, test = (jax.value_and_grad(lambda p, u=update: loss(p, u), has_aux=True)(params) for update in (True, False))
        diagonal = {"kernel": jnp.diag(jnp.array([2.0, 1.0]))}
        return state, train, test, normalize.apply(normalize.init(diagonal), diagonal)[0]["kernel"]

    state, *both, diagonal = run(PARAMS)
    np.testing.assert_allclose(diagonal, np.diag([1.0, 0.5]), atol=1e-12)
    for (_, (normalised, _)), gradient in both:
        for name in MATRICES:
            sigma, outer = vectors(name)
            np.testing.assert_allclose(normalised[name]["kernel"], PARAMS[name]["kernel"] / sigma, rtol=1e-10)
            w, g = (x[name]["kernel"].reshape(outer.shape) for x in (PARAMS, weights))
            np.testing.assert_allclose(
                gradient[name]["kernel"].reshape(outer.shape), g / sigma - np.sum(g * w) / sigma**2 * outer, atol=1e-8
            )
        np.testing.assert_array_equal(normalised["a"]["bias"], PARAMS["a"]["bias"])
        np.testing.assert_array_equal(gradient["b"]["scale"], weights["b"]["scale"])
    # No step at test.
    for before, after in zip(jax.tree.leaves(state), jax.tree.leaves(both[1][0][1][1]), strict=True):
        np.testing.assert_array_equal(before, after)


def test_one_step_per_call_converges_and_a_test_call_uses_what_it_finds(x64):
    normalize = rj.weights.spectral_normalize(warmup=1)
    params = {"kernel": PARAMS["conv"]["kernel"]}
    matrix = params["kernel"].reshape(24, 5)
    apply = jax.jit(normalize.apply, static_argnums=2)
    state, sizes = normalize.init(params), []
    for _ in range(60):
        normalised, _ = apply(state, params, False)
        u = np.asarray(state.u["kernel"])
        np.testing.assert_allclose(normalised["kernel"], params["kernel"] / np.linalg.norm(matrix @ u), rtol=1e-12)
        sizes.append(np.linalg.norm(normalised["kernel"].reshape(24, 5), 2))
        _, state = apply(state, params, True)
    assert np.all(np.diff(sizes) < 1e-12) and sizes[0] > 1.01 and sizes[-1] == pytest.approx(1, abs=1e-4)


def test_groups_are_divided_each_by_its_own_and_zeros_pass():
    depthwise = jnp.asarray(RNG.normal(size=(3, 3, 1, 4)), jnp.bfloat16).at[..., 3].set(0)
    grouped = rj.weights.spectral_normalize(matrix_of=lambda path, leaf: rj.weights.as_matrix(leaf, groups=4))
    params = {"kernel": depthwise}

    @jax.jit
    def run(params):
        state = grouped.init(params)
        loss = lambda p: jnp.sum(grouped.apply(state, p)[0]["kernel"].astype(jnp.float32) ** 3)
        return grouped.apply(state, params)[0]["kernel"], state, jax.grad(loss)(params)["kernel"]

    kernel, state, gradient = run(params)
    assert kernel.dtype == jnp.bfloat16 and state.u["kernel"].shape == (4, 1)
    wide = np.asarray(depthwise, np.float32)
    norms = np.linalg.norm(wide.reshape(9, 4), axis=0)
    np.testing.assert_allclose(np.asarray(kernel, np.float32), wide / np.where(norms > 0, norms, 1), rtol=1e-2)
    assert np.all(np.isfinite(np.asarray(gradient, np.float32)))
