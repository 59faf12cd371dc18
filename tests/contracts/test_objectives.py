"""Loss transforms: the same signature in and out, auxiliary values of the clean pass, nesting, and their cost."""

import itertools

import jax
import jax.numpy as jnp
import optax
import pytest

from tests.contracts.laws import law
from tests.contracts.running import assert_close, assert_finite, assert_same

of_objectives = law(lambda e: e.objective is not None)

SIZES = (8, 16, 3)
X = jax.random.normal(jax.random.key(1), (8, SIZES[0]))
Y = jnp.arange(8) % 3
PARAMS = {
    f"l{i}": {"kernel": 0.3 * jax.random.normal(jax.random.key(i), (a, b)), "bias": jnp.zeros(b)}
    for i, (a, b) in enumerate(itertools.pairwise(SIZES))
}


def forward(params, x):
    for i in range(len(params)):
        x = x @ params[f"l{i}"]["kernel"] + params[f"l{i}"]["bias"]
        x = jax.nn.relu(x) if i < len(params) - 1 else x
    return x


def loss(params, batch, key=None):
    x, y = batch
    if key is not None:
        x = x * jax.random.bernoulli(key, 0.5, x.shape)
    return optax.softmax_cross_entropy_with_integer_labels(forward(params, x), y).mean()


def loss_with_state(params, batch, key=None):
    """The mean logit stands for a running statistic, the counter for an integer one."""
    return loss(params, batch, key), {"mean": forward(params, batch[0]).mean(), "count": jnp.int32(3)}


@of_objectives
def test_signature_aux_and_keys(example):
    plain = jax.jit(jax.value_and_grad(example.objective(loss)))
    value, grad = plain(PARAMS, (X, Y))
    assert value.shape == () and value.dtype == jnp.float32
    assert_finite((value, grad), "value and gradient")
    (with_aux, aux), grad_aux = jax.jit(jax.value_and_grad(example.objective(loss_with_state, has_aux=True), has_aux=True))(
        PARAMS, (X, Y)
    )
    assert_close((with_aux, grad_aux), (value, grad), 1e-6, "has_aux changed the loss")
    assert_close(aux, loss_with_state(PARAMS, (X, Y))[1], 1e-6, "the auxiliary value is not that of the clean pass")
    keyed = jax.jit(example.objective(loss))
    assert_same(keyed(PARAMS, (X, Y), jax.random.key(0)), keyed(PARAMS, (X, Y), jax.random.key(0)), "key")
    assert float(keyed(PARAMS, (X, Y), jax.random.key(0))) != float(keyed(PARAMS, (X, Y), jax.random.key(1)))
    by_name = example.objective(loss)(PARAMS, batch=(X, Y), key=jax.random.key(0))
    assert_close(by_name, keyed(PARAMS, (X, Y), jax.random.key(0)), 1e-6, "keyword arguments")


@pytest.mark.slow
@of_objectives
def test_nests_with_every_other_under_transformations(example, examples):
    others = [e for e in examples if e.objective is not None]

    def all_nested(params, batch):
        values = [jax.value_and_grad(example.objective(other.objective(loss)))(params, batch) for other in others]
        return [v for v, _ in values], [g for _, g in values]

    assert_finite(jax.jit(all_nested)(PARAMS, (X, Y)), "nested")
    one = jax.checkpoint(example.objective(loss))
    seeds = jax.tree.map(lambda p: jnp.stack([p, 0.5 * p]), PARAMS)

    @jax.jit
    def mapped(seeds):
        scanned = jax.lax.scan(lambda carry, p: (carry, jax.value_and_grad(one)(p, (X, Y))), 0, seeds)[1]
        return jax.vmap(jax.value_and_grad(one), in_axes=(0, None))(seeds, (X, Y)), scanned

    batched, scanned = mapped(seeds)
    loop = [jax.value_and_grad(example.objective(loss))(jax.tree.map(lambda p, i=i: p[i], seeds), (X, Y)) for i in range(2)]
    want = jax.tree.map(lambda *v: jnp.stack(v), *loop)
    assert_close(batched, want, 1e-5, "vmap")
    assert_close(scanned, want, 1e-5, "scan")


def test_gradients_accumulate_over_parts_of_a_batch(examples):
    """Two parts through `optax.MultiSteps` move the weights once, by the mean of their gradients, aux and keys included."""
    objectives = [e for e in examples if e.objective is not None]
    tx = optax.MultiSteps(optax.sgd(0.1), 2)
    parts = (X[:4], Y[:4], jax.random.key(1)), (X[4:], Y[4:], jax.random.key(2))

    @jax.jit
    def both(params):
        ends = []
        for example in objectives:
            grad = jax.grad(example.objective(loss_with_state, has_aux=True), has_aux=True)
            grads = [grad(params, (x, y), key)[0] for x, y, key in parts]
            state, moved = tx.init(params), params
            for g in grads:
                updates, state = tx.update(g, state, moved)
                moved = optax.apply_updates(moved, updates)
            ends.append((moved, jax.tree.map(lambda p, a, b: p - 0.05 * (a + b), params, *grads)))
        return ends

    for example, (got, want) in zip(objectives, both(PARAMS), strict=True):
        assert_close(got, want, 1e-6, example.name)


@of_objectives
def test_flops_stay_within_the_declared_ratio(example):
    if example.flops is None:
        pytest.fail("a loss transform declares its FLOPs")
    sizes = (64, 256, 256, 10)
    params = {f"l{i}": {"kernel": jnp.zeros((a, b)), "bias": jnp.zeros(b)} for i, (a, b) in enumerate(itertools.pairwise(sizes))}
    tx = optax.sgd(0.1, momentum=0.9)

    def flops(fn):
        def step(params, state, x, y):
            updates, state = tx.update(jax.grad(fn)(params, (x, y)), state, params)
            return optax.apply_updates(params, updates), state

        compiled = jax.jit(step).lower(params, tx.init(params), jnp.zeros((128, 64)), jnp.zeros(128, int)).compile()
        assert "callback" not in compiled.as_text(), "a host callback"
        return compiled.cost_analysis()["flops"]

    assert flops(example.objective(loss)) <= example.flops * flops(loss)
