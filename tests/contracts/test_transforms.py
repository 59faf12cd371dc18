"""Gradient transformations inside everything that optax wraps around them."""

import itertools

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType

from tests.contracts.laws import law
from tests.contracts.running import assert_close, assert_finite, assert_same

of_transforms = law(lambda e: e.transform is not None)

KEYS = jax.random.split(jax.random.key(0), 4)
PARAMS = {
    "dense": {"kernel": jax.random.normal(KEYS[0], (8, 4)), "bias": jnp.zeros(4)},
    "norm": {"scale": jnp.ones(4)},
}
GRADS = jax.tree.map(
    lambda x, k: jax.random.normal(k, x.shape), PARAMS, jax.tree.unflatten(jax.tree.structure(PARAMS), list(KEYS[1:]))
)


def steps(tx, params=PARAMS, grads=GRADS, count=3, **extra):
    """A few compiled steps; returns the parameters and the last state."""
    state = tx.init(params)

    traces = []

    @jax.jit
    def step(params, state):
        traces.append(1)
        updates, state = tx.update(grads, state, params, **extra)
        return optax.apply_updates(params, updates), state

    for _ in range(count):
        params, state = step(params, state)
    assert len(traces) == 1, "a second step traced again"
    return params, state


@of_transforms
def test_composes_inside_optax(example):
    make = example.transform
    plain, _ = steps(make())
    assert_finite(plain, "steps")
    chained, _ = steps(optax.chain(optax.clip_by_global_norm(1e6), make(), optax.identity()))
    assert_close(chained, plain, 1e-6, "chain")
    extra, _ = steps(optax.with_extra_args_support(make()), value=jnp.zeros(()), unknown=3)
    assert_same(extra, plain, "unknown extra arguments are not ignored")
    everywhere, _ = steps(optax.masked(make(), lambda tree: jax.tree.map(lambda _: True, tree)))
    assert_close(everywhere, plain, 1e-6, "masked")
    steps(optax.masked(make(), {"dense": True, "norm": False}))
    labels = {"dense": "ours", "norm": "sgd"}
    parted, _ = steps(optax.multi_transform({"ours": make(), "sgd": optax.sgd(0.1)}, labels))
    assert_finite(parted, "multi_transform")
    gathered, _ = steps(optax.MultiSteps(make(), every_k_schedule=2), count=6)
    assert_close(gathered, plain, 1e-5, "MultiSteps")
    careful, _ = steps(optax.apply_if_finite(make(), 3))
    assert_close(careful, plain, 1e-6, "apply_if_finite")


@of_transforms
def test_state_is_stable_and_can_be_planned(example):
    tx = example.transform()
    state = tx.init(PARAMS)
    abstract = jax.eval_shape(tx.init, PARAMS)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), abstract) == jax.tree.map(lambda x: (x.shape, x.dtype), state)
    low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), (PARAMS, GRADS))
    for params, grads in ((PARAMS, GRADS), low):
        before = tx.init(params)
        updates, after = jax.eval_shape(tx.update, grads, before, params)
        assert jax.tree.structure(after) == jax.tree.structure(before)
        for new, old in zip(jax.tree.leaves(after), jax.tree.leaves(before), strict=True):
            assert (new.shape, new.dtype) == (old.shape, old.dtype)
        assert [u.dtype for u in jax.tree.leaves(updates)] == [g.dtype for g in jax.tree.leaves(grads)]


@of_transforms
def test_nnx_state_and_zero_gradients(example):
    plain, _ = steps(example.transform())
    wrapped = lambda tree: nnx.State(jax.tree.map(nnx.Param, tree))
    as_state, _ = steps(example.transform(), wrapped(PARAMS), wrapped(GRADS))
    assert_close(as_state, plain, 1e-6, "NNX state")
    zeros = jax.tree.map(jnp.zeros_like, GRADS)
    assert_finite(steps(example.transform(), PARAMS, zeros)[0], "zero gradients")
    assert_finite(steps(example.transform(), zeros, GRADS)[0], "zero parameters")


@of_transforms
@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_sharded_parameters_equal_one_device(example, kind):
    plain, _ = steps(example.transform())
    mesh = jax.make_mesh((8,), ("data",), axis_types=(getattr(AxisType, kind),))
    shard = lambda x: jax.device_put(x, jax.NamedSharding(mesh, jax.P("data") if x.ndim == 2 else jax.P()))
    with jax.set_mesh(mesh):
        sharded, _ = steps(example.transform(), jax.tree.map(shard, PARAMS), jax.tree.map(shard, GRADS), count=1)
        again, _ = steps(example.transform(), jax.tree.map(shard, PARAMS), jax.tree.map(shard, GRADS))
    assert sharded["dense"]["kernel"].sharding.spec[0] == "data", "the parameters lost their sharding"
    assert_close(again, plain, 1e-5, f"{kind} mesh")


@of_transforms
def test_flops_stay_within_the_declared_ratio(example):
    if example.flops is None:
        pytest.fail("a gradient transformation declares its FLOPs")
    sizes = (64, 256, 256, 10)
    shapes = {f"l{i}": {"kernel": (a, b), "bias": (b,)} for i, (a, b) in enumerate(itertools.pairwise(sizes))}
    params = jax.tree.map(lambda s: jnp.zeros(s), shapes, is_leaf=lambda s: isinstance(s, tuple))

    def loss(params, x, y):
        for i in range(3):
            x = x @ params[f"l{i}"]["kernel"] + params[f"l{i}"]["bias"]
            x = jax.nn.relu(x) if i < 2 else x
        return optax.softmax_cross_entropy_with_integer_labels(x, y).mean()

    def flops(tx):
        def step(params, state, x, y):
            updates, state = tx.update(jax.grad(loss)(params, x, y), state, params)
            return optax.apply_updates(params, updates), state

        compiled = jax.jit(step).lower(params, tx.init(params), jnp.zeros((512, 64)), jnp.zeros(512, int)).compile()
        assert "callback" not in compiled.as_text(), "a host callback"
        return compiled.cost_analysis()["flops"]

    base = optax.sgd(0.1)
    assert flops(optax.chain(example.transform(), base)) <= example.flops * flops(base)
