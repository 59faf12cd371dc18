"""Spectral regularisation against singular values by NumPy, its gradient, and its memory."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import regjax as rj

RNG = np.random.default_rng(0)
PARAMS = {
    "embed": {"embedding": RNG.normal(size=(7, 4))},
    "conv": {"kernel": RNG.normal(size=(2, 3, 4, 5)), "bias": RNG.normal(size=5)},
    "norm": {"scale": RNG.normal(size=4), "bias": RNG.normal(size=4)},
    "renamed": {"gamma": RNG.normal(size=3), "beta": RNG.normal(size=3)},
    "attention": {"query": {"kernel": RNG.normal(size=(6, 2, 3)), "bias": RNG.normal(size=(2, 3))}},
    "dense": {"kernel": RNG.normal(size=(6, 4)), "bias": RNG.normal(size=4)},
}
KERNELS = {"conv": (24, 5), "attention": (6, 6), "dense": (6, 4)}


def reference(params, k):
    total = 0.0
    for layer, shape in KERNELS.items():
        leaves = params[layer]["query"] if layer == "attention" else params[layer]
        sigma = np.linalg.svd(leaves["kernel"].reshape(shape), compute_uv=False)[0]
        norm = np.sqrt(sum(b * b for b in leaves["bias"].ravel()))
        total += (sigma**k - 1) ** 2 + norm ** (2 * k)
    for layer, scale, shift in (("norm", "scale", "bias"), ("renamed", "gamma", "beta")):
        total += sum((g**k - 1) ** 2 for g in params[layer][scale])
        # A bias of a renamed layer is beside a gamma all the same.
        total += sum(b ** (2 * k) for b in params[layer][shift])
    return total


def test_equals_its_reference_by_every_way_to_the_singular_value(x64):
    carried = rj.weights.stateful_spectral_penalty(k=3, warmup=300)

    @jax.jit
    def values(params):
        exact = [rj.weights.spectral_penalty(params, k=k, exact=True) for k in (1, 2, 3)]
        state = carried.init(jax.random.key(1), params)
        return *exact, rj.weights.spectral_penalty(params, k=3, n_power=300), carried.apply(state, params)[0]

    want = [reference(PARAMS, k) for k in (1, 2, 3, 3, 3)]
    np.testing.assert_allclose(values(PARAMS), want, rtol=1e-9)


def test_by_default_it_is_near_the_singular_value_and_below(x64):
    kernels = RNG.normal(size=(20, 12, 9))
    penalty = jax.jit(jax.vmap(lambda kernel: rj.weights.spectral_penalty({"kernel": kernel}, where="kernels")))
    got = np.sqrt(1 + np.sqrt(penalty(kernels)))
    sigma = np.linalg.svd(kernels, compute_uv=False)[:, 0]
    assert np.all(got <= sigma * (1 + 1e-12)) and np.all(got > 0.95 * sigma)


def test_published_values(x64):
    layer = {"kernel": jnp.diag(jnp.array([2.0, 1.0])), "bias": jnp.array([0.6, 0.8])}
    start = {"norm": {"scale": jnp.ones(3), "bias": jnp.zeros(3)}, "dense": {"kernel": jnp.eye(3)}}

    @jax.jit
    def values(layer, start):
        squares, gradient = jax.value_and_grad(rj.weights.spectral_penalty)(layer)
        return (squares, rj.weights.spectral_penalty(layer, k=1), rj.weights.spectral_penalty(start)), gradient

    got, gradient = values(layer, start)
    np.testing.assert_allclose(got, [10.0, 2.0, 0.0], atol=1e-9)
    np.testing.assert_allclose(gradient["kernel"], np.diag([24.0, 0.0]), atol=1e-4)


def test_gradient_is_the_pair_of_singular_vectors(x64):
    kernel = RNG.normal(size=(6, 4))
    left, sigma, right = np.linalg.svd(kernel)
    for k in (1, 2):
        want = 2 * (sigma[0] ** k - 1) * k * sigma[0] ** (k - 1) * np.outer(left[:, 0], right[0])
        for options in ({"n_power": 300}, {"exact": True}):
            gradient = jax.jit(jax.grad(lambda p, k=k, o=options: rj.weights.spectral_penalty(p, k=k, **o)))({"kernel": kernel})
            np.testing.assert_allclose(gradient["kernel"], want, atol=1e-9)


def test_roles_go_by_name_and_where_narrows_them(x64):
    sigma = np.linalg.svd(PARAMS["dense"]["kernel"], compute_uv=False)[0]
    # The bias of a layer with a kernel is one vector, also where the layer has a scale of its own.
    both = {"kernel": jnp.eye(2), "scale": jnp.ones(2), "bias": jnp.array([1.0, 1.0])}
    penalty = rj.weights.spectral_penalty

    @jax.jit
    def values(params, both):
        kernels = penalty({"dense": params["dense"]}, exact=True, where="kernels")
        shifts = penalty(params, where=lambda path, leaf: path == ("norm", "bias"))
        nothing = penalty({"embed": params["embed"], "count": jnp.arange(3)})
        return kernels, shifts, nothing, penalty(both, exact=True)

    wants = [(sigma**2 - 1) ** 2, sum(PARAMS["norm"]["bias"] ** 4), 0.0, 4.0]
    np.testing.assert_allclose(values(PARAMS, both), wants, rtol=1e-12)


def test_groups_and_stacked_layers_are_matrices_of_their_own(x64):
    depthwise, stacked = {"kernel": RNG.normal(size=(3, 3, 1, 4))}, {"kernel": RNG.normal(size=(3, 5, 4))}
    carried = rj.weights.stateful_spectral_penalty(warmup=500, matrix_of=lambda path, leaf: leaf)

    @jax.jit
    def values(depthwise, stacked):
        grouped = rj.weights.spectral_penalty(depthwise, matrix_of=lambda path, leaf: rj.weights.as_matrix(leaf, groups=4))
        state = carried.init(jax.random.key(0), stacked)
        return state, (grouped, carried.apply(state, stacked)[0])

    norms = np.linalg.norm(depthwise["kernel"].reshape(9, 4), axis=0)
    sigmas = np.linalg.svd(stacked["kernel"], compute_uv=False)[:, 0]
    state, got = values(depthwise, stacked)
    np.testing.assert_allclose(got, [sum((norms**2 - 1) ** 2), sum((sigmas**2 - 1) ** 2)], rtol=1e-6)
    assert state.u["kernel"].shape == (3, 4)


def test_memory_follows_moving_weights_and_has_no_gradient():
    carried = rj.weights.stateful_spectral_penalty()
    start = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), PARAMS)

    def step(carry, _):
        params, state = carry
        (value, state), gradient = jax.value_and_grad(lambda p: carried.apply(state, p), has_aux=True)(params)
        return (jax.tree.map(lambda p, g: p - 1e-3 * g, params, gradient), state), value

    @jax.jit
    def run(start):
        first = carried.init(jax.random.key(0), start)
        to_state = jax.grad(lambda u: carried.apply(first._replace(u=u), start)[0])(first.u)
        return jax.lax.scan(step, (start, first), None, 2000), to_state

    ((params, _), values), to_state = run(start)
    assert values[-1] < 1e-2 * values[0]
    # Every kernel ends with its largest singular value near one.
    for layer, shape in KERNELS.items():
        kernel = np.asarray((params[layer].get("query") or params[layer])["kernel"]).reshape(shape)
        assert np.linalg.svd(kernel, compute_uv=False)[0] == pytest.approx(1.0, abs=0.05)
    assert not any(leaf.any() for leaf in jax.tree.leaves(to_state))


def test_a_kernel_of_zeros_keeps_its_direction_and_its_gradient_finite():
    carried = rj.weights.stateful_spectral_penalty(n_power=10, warmup=1)
    zero, full = {"kernel": jnp.zeros((3, 2))}, {"kernel": jnp.diag(jnp.array([3.0, 1.0, 0.5]))[:, :2]}
    state = carried.init(jax.random.key(0), zero)
    step = jax.jit(jax.value_and_grad(lambda params, state: carried.apply(state, params), has_aux=True))
    (value, after), gradient = step(zero, state)
    assert float(value) == 1.0 and not gradient["kernel"].any()
    np.testing.assert_array_equal(after.u["kernel"], state.u["kernel"])
    for _ in range(4):
        (value, after), _ = step(full, after)
    assert float(value) == pytest.approx(64.0, rel=1e-4)


def test_state_takes_the_form_of_the_parameters():
    carried = rj.weights.stateful_spectral_penalty()
    state = jax.eval_shape(carried.init, jax.random.key(0), nnx.State(jax.tree.map(nnx.Param, PARAMS)))
    assert [u.shape for u in jax.tree.leaves(state.u)] == [(6,), (5,), (4,)]
    assert all(u.dtype == jnp.float32 for u in jax.tree.leaves(state.u))
    tx = rj.gradients.add_penalty(carried, 0.1)
    state = jax.jit(tx.init)(PARAMS)
    doubled = optax.tree.map_params(tx, lambda u: 2 * u, state)
    np.testing.assert_allclose(doubled.memory.u["dense"]["kernel"], 2 * state.memory.u["dense"]["kernel"])
