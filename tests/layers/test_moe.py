"""The mixture of experts against a loop over tokens, its regularisers in place, and its shardings."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType

import regjax as rj

KEY = jax.random.key(0)
G, S, D, H, E = 2, 6, 3, 5, 4
RNG = np.random.default_rng(0)


def make_params(seed=1):
    rng = np.random.default_rng(seed)
    normal = lambda *shape: rng.normal(size=shape)
    shared = rj.layers.SharedFFN(normal(D, H), normal(H), normal(H, D), normal(D), normal(D, 1), normal(1))
    return rj.layers.MoEParams(normal(D, E), normal(E, D, H), normal(E, H), normal(E, H, D), normal(E, D), shared)


STATIC = ("capacity_factor", "rescale", "gating_mode")
apply = jax.jit(rj.layers.apply_mixture_of_experts, static_argnames=STATIC)
gating = jax.jit(rj.layers.top2_gating, static_argnames="capacity")
PARAMS = make_params()
PLAIN = PARAMS._replace(shared=None)
X = RNG.normal(size=(G, S, D))


def softmax(z):
    if np.all(np.isneginf(z)):
        return np.zeros_like(z)
    p = np.exp(z - z.max())
    return p / p.sum()


def route(logits, capacity, padding):
    """``[(token, expert, slot, weight)]`` of one group, and the first choices."""
    tokens, choices = [], []
    for t, row in enumerate(logits):
        p = softmax(row)
        order = sorted(range(len(p)), key=lambda e: (-p[e], e))
        picked = [] if padding[t] else [e for e in order[:2] if p[e] > 0]
        total = sum(p[e] for e in picked)
        tokens.append([(e, p[e] / total) for e in picked])
    used = [0] * logits.shape[1]
    for rank in range(2):
        for t, picked in enumerate(tokens):
            if len(picked) > rank:
                e, weight = picked[rank]
                if used[e] < capacity:
                    choices.append((t, e, used[e], weight))
                used[e] += 1
    return choices, [picked[0][0] if picked else None for picked in tokens]


def expert(p, e, v):
    return np.maximum(v @ p.kernel_in[e] + p.bias_in[e], 0) @ p.kernel_out[e] + p.bias_out[e]


def reference(x, p, capacity, *, eom=None, fom=None, gate=None, banned=None, padding=None, scales=(1, 1)):
    """The layer token by token; ``scales`` multiply expert outputs and final outputs."""
    y = np.zeros_like(x)
    padding = np.zeros(x.shape[:2], bool) if padding is None else padding
    for g in range(x.shape[0]):
        logits = x[g] @ p.router
        if banned is not None:
            logits = np.where(banned[g], -np.inf, logits)
        for t, e, c, weight in route(logits, capacity, padding[g])[0]:
            if eom is None or eom[e, g, c]:
                y[g, t] += weight * scales[0] * expert(p, e, x[g, t])
        for t in range(x.shape[1]):
            if p.shared is not None:
                s = p.shared
                value = 1 / (1 + np.exp(-(x[g, t] @ s.gate_kernel + s.gate_bias)[0]))
                value *= (gate is None or gate[g, t]) and not padding[g, t]
                ffn = np.maximum(x[g, t] @ s.kernel_in + s.bias_in, 0) @ s.kernel_out + s.bias_out
                y[g, t] = (1 - value) * ffn + value * y[g, t]
            y[g, t] *= scales[1] * (fom is None or fom[g, t])
    return y


def test_with_room_for_all_it_is_the_loop_over_tokens(x64):
    out = apply(X, PLAIN, capacity_factor=E)
    np.testing.assert_allclose(out.y, reference(X, PLAIN, S), rtol=1e-12)
    assert out.gates is None
    single = apply(X[0], PLAIN, capacity_factor=E)
    np.testing.assert_allclose(single.y, out.y[0], rtol=1e-12)


def test_full_experts_and_padding(x64):
    padding = np.zeros((G, S), bool)
    padding[:, 2] = padding[1, 4] = True
    for factor in (0.5, 1.0, 2.0):
        capacity = min(S, math.ceil(factor * S / E))
        got = apply(X, PARAMS, capacity_factor=factor, padding=padding)
        np.testing.assert_allclose(got.y, reference(X, PARAMS, capacity, padding=padding), rtol=1e-11)
    # What stands on padding changes nothing else.
    other = apply(np.where(padding[..., None], 7.0, X), PARAMS, capacity_factor=factor, padding=padding)
    np.testing.assert_array_equal(np.asarray(other.y)[~padding], np.asarray(got.y)[~padding])
    np.testing.assert_array_equal(other.load_balancing, got.load_balancing)


def test_slots_of_the_gating_equal_the_loop(x64):
    logits = RNG.normal(size=(G, S, E))
    logits[0, 1], logits[1, 2, 1:], logits[0, 3] = -np.inf, -np.inf, 0.0
    padding = RNG.random((G, S)) < 0.2
    for capacity in (1, 2, S):
        got = gating(logits, capacity=capacity, padding=padding)
        combine = np.zeros((G, S, E, capacity))
        probs, load = np.zeros((G * S, E)), np.zeros(E)
        for g in range(G):
            choices, first = route(logits[g], capacity, padding[g])
            for t, e, c, weight in choices:
                combine[g, t, e, c] = weight
            for t in range(S):
                if not padding[g, t]:
                    probs[g * S + t] = softmax(logits[g, t])
                    load += np.arange(E) == first[t] if first[t] is not None else 0
        np.testing.assert_allclose(got.combine, combine, rtol=1e-13)
        np.testing.assert_array_equal(got.dispatch, combine > 0)
        # No slot holds two tokens.
        assert np.all(np.sum(got.dispatch, axis=1) <= 1)
        count = np.sum(~padding)
        want = E * np.sum(probs.sum(0) / count * load / count)
        np.testing.assert_allclose(got.load_balancing, want, rtol=1e-13)
        np.testing.assert_allclose(rj.layers.load_balancing_loss(logits, padding=padding), want, rtol=1e-13)
    gradient = jax.jit(jax.grad(lambda z: jnp.sum(jnp.sin(rj.layers.top2_gating(z, capacity=2).combine))))
    for extreme in (np.where(np.isneginf(logits), -1e4, logits), logits):
        assert np.all(np.isfinite(gradient(extreme)))


def test_load_balancing_is_1_for_even_loads_and_the_number_of_experts_for_one():
    loss = jax.jit(rj.layers.load_balancing_loss)
    np.testing.assert_allclose(loss(1e-3 * jnp.tile(jnp.eye(E), (3, 1))), 1, rtol=1e-3)
    np.testing.assert_allclose(loss(jnp.tile(100.0 * jnp.eye(E)[:1], (8, 1))), E, rtol=1e-6)
    np.testing.assert_allclose(gating(jnp.zeros((3, 1)), capacity=3).combine[..., 0, :], np.eye(3))
    # The gradient pushes the crowded expert's probability down.
    gradient = jax.jit(jax.grad(loss))(jnp.tile(jnp.eye(E)[:1], (8, 1)))
    assert np.all(gradient[:, 0] > 0) and np.all(gradient[:, 1:] < 0)


def test_masks_act_in_their_places(x64):
    factor, capacity = 1.0, 2
    eom, fom, gate = RNG.random((E, G, capacity)) < 0.6, RNG.random((G, S)) < 0.7, RNG.random((G, S)) < 0.5
    local = np.broadcast_to(np.arange(E) < 2, (G, S, E))
    call = functools.partial(apply, X, capacity_factor=factor, eom_rate=0.3, fom_rate=0.4)
    masks = rj.layers.MoEMasks
    got = call(PLAIN, masks(expert=eom))
    np.testing.assert_allclose(got.y, reference(X, PLAIN, capacity, eom=eom), rtol=1e-11)
    got = call(PARAMS, masks(eom, fom, gate, True), local_experts=local)
    np.testing.assert_allclose(got.y, reference(X, PARAMS, capacity, eom=eom, fom=fom, gate=gate, banned=~local), rtol=1e-11)
    got = call(PLAIN, masks(eom, fom), rescale="train")
    np.testing.assert_allclose(got.y, reference(X, PLAIN, capacity, eom=eom, fom=fom, scales=(1 / 0.7, 1 / 0.6)), rtol=1e-11)
    # Test mode scales where training does not.
    np.testing.assert_allclose(call(PARAMS).y, reference(X, PARAMS, capacity, scales=(0.7, 0.6)), rtol=1e-11)
    np.testing.assert_allclose(call(PARAMS, rescale="train").y, reference(X, PARAMS, capacity), rtol=1e-11)
    # Without experts nothing is added to the residual; with the coin the other way nothing happens.
    assert not np.any(call(PLAIN, masks(dropped=True), gating_mode="expert").y)
    plain = reference(X, PLAIN, capacity)
    np.testing.assert_allclose(call(PLAIN, masks(dropped=False), local_experts=local).y, plain, rtol=1e-11)
    np.testing.assert_array_equal(call(PLAIN, masks(final=np.zeros((G, S), bool))).y, 0)


def test_draws_follow_the_rates_and_equal_the_plain_layer_at_0():
    x = jnp.asarray(RNG.normal(size=(4, 500, D)), jnp.float32)
    local = jnp.ones((4, 500, E), bool)

    @jax.jit
    def draw(key, rates):
        return rj.layers.mixture_of_experts(key, x, PARAMS, local_experts=local, capacity_factor=1.0, **rates)

    names = ("eom_rate", "fom_rate", "gate_rate", "gating_rate")
    plain = apply(x, PARAMS, capacity_factor=1.0)
    out = draw(KEY, {n: jnp.zeros(()) for n in names})
    np.testing.assert_allclose(out.y, plain.y, atol=1e-5)
    np.testing.assert_allclose(out.gates, plain.gates, atol=1e-6)
    out = draw(KEY, {n: jnp.float32(r) for n, r in zip(names, (0.1, 0.3, 0.2, 0.5), strict=True)})
    gone, closed = np.all(np.asarray(out.y) == 0, axis=-1), np.asarray(out.gates) == 0
    assert abs(gone.mean() - 0.3) < 5 * np.sqrt(0.21 / 2000) and abs(closed.mean() - 0.2) < 5 * np.sqrt(0.16 / 2000)
    # Masks are drawn from keys of their own.
    assert abs((gone & closed).mean() - 0.06) < 5 * np.sqrt(0.06 / 2000)
    other = draw(jax.random.key(1), {n: jnp.float32(0.3) for n in names})
    assert not np.array_equal(np.asarray(other.gates) == 0, closed)


LAYOUTS = {
    "groups and experts on one axis": (("data",), ("data",)),
    "tokens of one group, sharded experts": ((None, "data"), ("expert",)),
}


@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_shardings_equal_one_device_with_gradients(kind):
    params = jax.tree.map(lambda v: jnp.asarray(v, jnp.float32), PARAMS)
    x = jnp.asarray(RNG.normal(size=(4, 8, D)), jnp.float32)
    masks = rj.layers.MoEMasks(RNG.random((E, 4, 4)) < 0.7, RNG.random((4, 8)) < 0.7, RNG.random((4, 8)) < 0.7, False)

    @jax.jit
    def step(x, params):
        def loss(x, params):
            out = rj.layers.apply_mixture_of_experts(x, params, masks, gating_mode="expert")
            return jnp.sum(jnp.sin(out.y)) + out.load_balancing + rj.layers.cmr_budget_loss(out.gates), out.y

        (value, y), gradients = jax.value_and_grad(loss, (0, 1), has_aux=True)(x, params)
        return value, y, gradients

    want = step(x, params)
    mesh = jax.make_mesh((4, 2), ("data", "expert"), axis_types=(getattr(AxisType, kind),) * 2)
    put = lambda v, *spec: jax.device_put(v, jax.NamedSharding(mesh, jax.P(*spec)))
    for name, (tokens, experts) in LAYOUTS.items():
        placed = jax.tree.map(put, params)
        for field in ("kernel_in", "bias_in", "kernel_out", "bias_out"):
            placed = placed._replace(**{field: put(getattr(params, field), *experts)})
        with jax.set_mesh(mesh):
            got = step(put(x, *tokens), placed)
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5, err_msg=name)
        assert got[1].sharding.is_equivalent_to(put(x, *tokens).sharding, 3), name


def test_module_is_the_function_and_takes_rates_by_view():
    layer = rj.layers.MixtureOfExperts(D, H, E, eom_rate=0.2, fom_rate=0.2, gate_rate=0.2, shared=True, rngs=nnx.Rngs(0))
    x = jnp.asarray(X, jnp.float32)
    rates = {"eom_rate": 0.2, "fom_rate": 0.2, "gate_rate": 0.2}
    function = jax.jit(functools.partial(rj.layers.mixture_of_experts, **rates), static_argnames="deterministic")
    call = jax.jit(lambda key: layer(x, rngs=key))
    for a, b in zip(call(KEY), function(KEY, x, layer.params()), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    # Its own stream counts on; test mode needs none.
    own = nnx.jit(lambda layer: layer(x).y)
    assert not np.array_equal(own(layer), own(layer))
    still = function(None, x, layer.params(), deterministic=True)
    np.testing.assert_allclose(own(nnx.view(layer, deterministic=True)), still.y, rtol=1e-5, atol=1e-6)

    @jax.jit
    def with_rate(rate):
        return nnx.view(layer, eom_rate=rate, fom_rate=rate, gate_rate=rate)(x, rngs=KEY).y

    plain = apply(x, layer.params()).y
    np.testing.assert_allclose(with_rate(0.0), plain, atol=1e-6)
    np.testing.assert_array_equal(with_rate(1.0), 0)
    # A stream for parameters alone will do where every call gives its key.
    quiet = rj.layers.MixtureOfExperts(D, H, E, fom_rate=0.2, rngs=nnx.Rngs(params=0))
    assert jax.eval_shape(lambda key: quiet(x, rngs=key), KEY).y.shape == x.shape
    assert quiet.kernel_in.shape == (E, D, H) and quiet.params().shared is None
    # Experts start out different from one another, at the scale of a dense layer of their size.
    wide = rj.layers.MixtureOfExperts(64, 64, 3, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(np.std(wide.kernel_in[...], axis=(1, 2)), 1 / 8, rtol=0.05)


def test_module_trains_under_jit():
    layer = rj.layers.MixtureOfExperts(D, 8, E, capacity_factor=E, eom_rate=0.1, shared=True, gate_rate=0.1, rngs=nnx.Rngs(0))
    graph, params, rest = nnx.split(layer, nnx.Param, ...)
    x = jax.random.normal(jax.random.key(1), (64, D))
    target = jnp.where(x[:, :1] > 0, x, -2 * x)
    tx = optax.adam(1e-2)

    def loss(params, key, **mode):
        out = nnx.merge(graph, params, rest)(x, rngs=key, **mode)
        return jnp.mean((out.y - target) ** 2) + 0.01 * out.load_balancing + 0.1 * rj.layers.cmr_budget_loss(out.gates)

    @jax.jit
    def train(params):
        def step(carry, key):
            params, state = carry
            updates, state = tx.update(jax.grad(loss)(params, key), state)
            return (optax.apply_updates(params, updates), state), 0

        return jax.lax.scan(step, (params, tx.init(params)), jax.random.split(KEY, 150))[0][0]

    test_loss = jax.jit(lambda params: loss(params, None, deterministic=True))
    assert test_loss(train(params)) < 0.5 * test_loss(params)
