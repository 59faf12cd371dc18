"""Whole models of ordered low-rank layers: factored, truncated in one compiled step, shrunk, and folded."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import regjax as rj


class Net(nnx.Module):
    """A convolution with BatchNorm, a list of dense layers, one of them shared, and a head."""

    def __init__(self, rngs):
        self.conv = nnx.Conv(2, 6, (3, 3), strides=2, padding=1, use_bias=False, rngs=rngs)
        self.grouped = nnx.Conv(6, 6, (1, 1), feature_group_count=2, rngs=rngs)
        self.norm = nnx.BatchNorm(6, use_running_average=True, rngs=rngs)
        shared = nnx.Linear(6, 6, rngs=rngs)
        self.blocks = nnx.List([shared, shared, nnx.Linear(6, 8, rngs=rngs)])
        self.head = nnx.Sequential(nnx.relu, nnx.Linear(8, 3, rngs=rngs))

    def __call__(self, x):
        x = nnx.relu(self.norm(self.grouped(self.conv(x)))).mean((1, 2))
        for block in self.blocks:
            x = jnp.tanh(block(x))
        return self.head(x)


NET = Net(nnx.Rngs(0))
ORDERED = rj.layers.order_layers(NET)
X = jax.random.normal(jax.random.key(1), (4, 6, 6, 2))
PATHS = ["blocks/0", "blocks/2", "conv", "head/layers/1"]
SIZES = [6, 6, 6, 3]


def test_factoring_keeps_the_function_and_shares_nothing():
    assert list(rj.layers.ordered_layers(ORDERED)) == PATHS
    assert [layer.v.shape[0] for layer in rj.layers.ordered_layers(ORDERED).values()] == SIZES
    np.testing.assert_allclose(ORDERED(X), NET(X), atol=1e-5)
    assert ORDERED.blocks[0] is ORDERED.blocks[1] and type(ORDERED.grouped) is nnx.Conv
    assert ORDERED.norm.scale is not NET.norm.scale and type(NET.conv) is nnx.Conv
    dense = rj.layers.order_layers(NET, where=lambda path, layer: isinstance(layer, nnx.Linear) and "head" not in path)
    assert list(rj.layers.ordered_layers(dense)) == ["blocks/0", "blocks/2"]
    causal = nnx.Sequential(nnx.Conv(2, 2, 3, padding="CAUSAL", rngs=nnx.Rngs(0)), nnx.Linear(2, 2, rngs=nnx.Rngs(0)))
    assert list(rj.layers.ordered_layers(rj.layers.order_layers(causal))) == ["layers/1"]
    assert isinstance(rj.layers.order_layers(nnx.Linear(2, 2, rngs=nnx.Rngs(0))), rj.layers.OrderedDense)


def test_one_compiled_step_serves_every_layer_and_rank():
    traces = []
    graph, params, rest = nnx.split(ORDERED, nnx.Param, ...)

    @jax.jit
    def step(params, layer, rank):
        traces.append(1)
        loss = lambda p: jnp.sum(jnp.sin(rj.layers.truncate_ordered(nnx.merge(graph, p, rest), rank, layer=layer)(X)))
        return jax.value_and_grad(loss)(params)

    for layer, size in enumerate(SIZES):
        for rank in (1, size):
            value, gradient = step(params, jnp.asarray(layer), jnp.asarray(rank))
            model = nnx.clone(ORDERED)
            list(rj.layers.ordered_layers(model).values())[layer].set_view(rank=rank)
            assert float(value) == pytest.approx(float(jnp.sum(jnp.sin(model(X)))), rel=1e-4)
            for i, path in enumerate(PATHS):
                u = nnx.to_pure_dict(gradient)
                for name in path.split("/"):
                    u = u[int(name) if name.isdigit() else name]
                used = np.any(np.asarray(u["u"]).reshape(-1, SIZES[i]) != 0, axis=0)
                assert used.sum() == (rank if i == layer else SIZES[i]) and used[: used.sum()].all()
    assert len(traces) == 1


def test_ranks_for_every_layer_and_a_view_over_the_same_variables():
    ranks = jnp.array([1, 2, 3, 0])
    view = rj.layers.truncate_ordered(ORDERED, ranks)
    assert [int(layer.rank) for layer in rj.layers.ordered_layers(view).values()] == ranks.tolist()
    assert view.conv.u is ORDERED.conv.u and ORDERED.conv.rank is None
    np.testing.assert_allclose(view(X), jnp.broadcast_to(ORDERED.head.layers[1].bias[...], (4, 3)), atol=1e-6)
    half = nnx.view(ORDERED, fraction=0.5)
    assert all(layer.fraction == 0.5 for layer in rj.layers.ordered_layers(half).values())


@pytest.mark.parametrize("fraction", [None, 0.5, 0.2, 0.0])
def test_folding_gives_ordinary_layers_with_the_same_outputs(fraction):
    model = nnx.clone(ORDERED)
    model.conv.alive.set_value(jnp.arange(6) % 2 == 0)
    view = model if fraction is None else nnx.view(model, fraction=fraction)
    small = rj.layers.fold_ordered(view)
    np.testing.assert_allclose(small(X), view(X), atol=1e-5)
    assert not rj.layers.ordered_layers(small) and small.blocks[0] is small.blocks[1]
    assert small.norm.scale is not model.norm.scale
    count = lambda m: sum(x.size for x in jax.tree.leaves(nnx.state(m, nnx.Param)))
    assert count(small) <= count(NET)
    if fraction == 0.2:
        assert [layer.kernel.shape for layer in small.conv.layers] == [(3, 3, 2, 1), (1, 6)]
        assert count(small) < count(NET)
        gradient = nnx.jit(nnx.grad(lambda m: jnp.sum(m(X))))(small)
        assert float(jnp.max(jnp.abs(gradient.conv.layers[0].kernel[...]))) > 0


def test_shrinking_in_a_compiled_function_counts_the_living_ranks():
    model = nnx.clone(ORDERED)
    model.conv.u.set_value(model.conv.u[...].at[..., 4:].set(0))
    counts = nnx.jit(rj.layers.shrink_ordered)(model)
    assert counts.tolist() == [6, 6, 4, 3] and model.conv.alive[...].tolist() == [True] * 4 + [False] * 2
    np.testing.assert_allclose(model(X), nnx.view(model, fraction=1.0)(X), atol=1e-6)
    # A dead rank whose weights have grown again is alive again: importance is that of all weights.
    model.conv.u.set_value(ORDERED.conv.u[...])
    assert rj.layers.shrink_ordered(model).tolist() == SIZES


def test_the_penalty_finds_the_factors_of_a_model():
    params = nnx.state(ORDERED, nnx.Param)
    layers = rj.layers.ordered_layers(ORDERED).values()
    pairs = [(layer.u[...], layer.v[...]) for layer in layers]
    # The shared layer stands in the state once.
    got, want = rj.weights.low_rank_group_lasso(params), rj.weights.low_rank_group_lasso(pairs)
    assert float(got) == pytest.approx(float(want), rel=1e-5)
    assert float(rj.weights.low_rank_group_lasso(nnx.state(rj.layers.fold_ordered(ORDERED), nnx.Param))) == 0


@pytest.mark.slow
def test_rank_sampling_orders_a_linear_map_by_its_singular_values():
    """The published claim in small: with sampled ranks every truncation nears the best one, without it does not."""
    target = jax.random.normal(jax.random.key(0), (8, 6)) @ jnp.diag(jnp.array([3.0, 2.0, 1.3, 0.9, 0.6, 0.4])) / 3
    singular = np.linalg.svd(np.asarray(target), compute_uv=False)
    start = rj.layers.OrderedDense(8, 6, use_bias=False, rngs=nnx.Rngs(0))
    graph, params, rest = nnx.split(start, nnx.Param, ...)
    tx = optax.adam(optax.cosine_decay_schedule(0.01, 6000))

    def train(ordered, key):
        def step(carry, key):
            params, state = carry
            data, draw = jax.random.split(key)
            x = jax.random.normal(data, (64, 8))
            rank = rj.layers.sample_rank(draw, jnp.array([6])).rank if ordered else 6

            def loss(p):
                model = rj.layers.truncate_ordered(nnx.merge(graph, p, rest), rank, layer=0)
                return jnp.mean(jnp.sum(jnp.square(model(x) - x @ target), -1))

            updates, state = tx.update(jax.grad(loss)(params), state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, tx.init(params)), jax.random.split(key, 6000))[0][0]

    def excess(params):
        """How much larger the error of each truncation is than the best possible, relative to the whole map."""
        u, v = np.asarray(params["u"][...]), np.asarray(params["v"][...])
        errors = [np.sum((u[:, :r] @ v[:r] - target) ** 2) for r in range(1, 7)]
        best = [np.sum(singular[r:] ** 2) for r in range(1, 7)]
        return (np.array(errors) - best) / np.sum(singular**2)

    ordered, plain = (excess(jax.jit(train, static_argnums=0)(flag, jax.random.key(1))) for flag in (True, False))
    assert np.all(ordered < 0.02)
    assert np.max(plain) > 0.2
