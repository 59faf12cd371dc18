"""The laws of every technique as a function of arrays: compilation, batching, precision, gradients, keys, singular points."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.contracts.laws import law
from tests.contracts.running import (
    arrays,
    assert_close,
    assert_finite,
    assert_same,
    compiled,
    is_float,
    leaves,
    on_host,
    variant,
    weighted_sum,
)

KEYS = [jax.random.key(seed) for seed in range(3)]


@law()
def test_compiled_is_eager_with_one_trace_and_keys_are_disciplined(example):
    traced = compiled(example)
    values = arrays(example)
    first = traced(KEYS[0], values)
    traces = traced.traces
    assert_close(first, example.call(KEYS[0], **values), example.tolerance, "compiled and eager differ")
    outputs = jax.tree.leaves(jax.eval_shape(example.call, KEYS[0], **values))
    assert not any(leaf.weak_type for leaf in outputs if is_float(leaf)), "a weakly typed output makes a next step trace again"
    assert_same(traced(KEYS[0], values), first, "the same key gave two results")
    others = [traced(key, values) for key in KEYS[1:]]
    if example.random:
        pairs = [(a, b) for other in others for a, b in zip(leaves(first), leaves(other), strict=True)]
        assert any(not np.array_equal(a, b) for a, b in pairs), "other keys gave the same result"
    else:
        assert_same(others[0], first, "a technique without randomness depends on the key")
    traced(KEYS[0], variant(example, 1))
    assert traced.traces == traces, "a call with other values traced again"

    if example.rows and example.result != "other":
        order = np.random.default_rng(0).permutation(8)
        turned = {n: jax.tree.map(lambda x: x[order], v) if n in example.rows else v for n, v in on_host(example).items()}
        want = [leaf[order] for leaf in leaves(first)] if example.result == "rows" else first
        assert_close(traced(KEYS[0], turned), want, example.tolerance, "the law under a permutation of the batch fails")
    for replacements in example.singular:
        out = traced(KEYS[0], arrays(example, replacements=replacements))
        assert_finite(out, f"singular value {list(replacements)}")


@law(dear=True)
def test_batched_scanned_and_rematerialised_equal_the_loop(example):
    problems = [variant(example, i) for i in range(2)]
    stacked = jax.tree.map(lambda *xs: np.stack(xs), *problems)
    keys = jnp.stack(KEYS[:2])

    @jax.jit
    def mapped(keys, stacked):
        one = jax.checkpoint(lambda key, values: example.call(key, **values))
        scanned = jax.lax.scan(lambda carry, xs: (carry, one(*xs)), 0, (keys, stacked))[1]
        return jax.vmap(one)(keys, stacked), scanned

    batched, scanned = mapped(keys, stacked)
    one = compiled(example)
    loop = [one(key, values) for key, values in zip(keys, problems, strict=True)]
    want = [np.stack(pair) for pair in zip(*map(leaves, loop), strict=True)]
    assert_close(scanned, want, example.tolerance, "scan and the loop differ")
    assert_close(batched, want, example.tolerance, "vmap and the loop differ")


@law(dear=True)
def test_low_precision_in_declared_dtype_out(example):
    for dtype in (jnp.bfloat16, jnp.float16):
        low = arrays(example, dtype)
        out = jax.eval_shape(example.call, KEYS[0], **low)
        if example.dtype is not None:
            want = dtype if example.dtype == "input" else jnp.float32
            for leaf in jax.tree.leaves(out):
                if is_float(leaf):
                    assert leaf.dtype == want, f"{dtype.__name__} in, {leaf.dtype} out, declared {example.dtype}"
    # The same rounded numbers in float32: whatever differs comes from the arithmetic inside, or from rounding the output.
    low = on_host(example, jnp.bfloat16)
    wide = jax.tree.map(lambda x: x.astype(np.float32) if is_float(x) else x, low)
    allowed = max(example.tolerance, 1e-5 if example.dtype == "float32" else 2.0**-6)
    one = compiled(example)
    assert_close(one(KEYS[0], low), one(KEYS[0], wide), allowed, "bfloat16 is not accumulated in float32")


@law(lambda e: e.wrt or e.frozen, dear=True)
def test_gradients_equal_finite_differences_and_stop_where_promised(example):
    names = (*example.wrt, *example.frozen)

    def value(chosen, rest):
        return weighted_sum(example.call(KEYS[0], **rest, **chosen))

    def split(values):
        return {n: values[n] for n in names}, {n: v for n, v in values.items() if n not in names}

    with jax.enable_x64(True):
        chosen, rest = split(arrays(example, jnp.float64))
        both = jax.jit(jax.value_and_grad(value, allow_int=True))
        gradient = both(chosen, rest)[1]
        for name in example.frozen:
            for leaf in leaves({k: v for k, v in gradient[name].items()} if isinstance(gradient[name], dict) else gradient[name]):
                assert leaf.dtype.kind != "f" or not leaf.any(), f"the gradient to {name} is not zero"
        for name in example.wrt:
            assert any(leaf.any() for leaf in leaves(gradient[name]) if leaf.dtype.kind == "f"), (
                f"the gradient to {name} vanishes"
            )
        if not example.surrogate:
            rng = np.random.default_rng(0)
            step = 1e-5
            for _ in range(2):
                move = {
                    n: jax.tree.map(lambda x: rng.normal(size=x.shape) if is_float(x) else None, chosen[n]) for n in example.wrt
                }
                shifted = []
                for sign in (1, -1):
                    at = {
                        n: jax.tree.map(lambda x, d, s=sign: x + s * step * d if is_float(x) else x, chosen[n], move[n])
                        if n in move
                        else chosen[n]
                        for n in chosen
                    }
                    shifted.append(float(both(at, rest)[0]))
                want = (shifted[0] - shifted[1]) / (2 * step)
                got = sum(
                    float(np.vdot(g, d))
                    for n in example.wrt
                    for g, d in zip(jax.tree.leaves(gradient[n]), jax.tree.leaves(move[n]), strict=True)
                )
                message = "gradient and finite differences differ"
                np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-7, err_msg=message)
        for replacements in example.singular:
            chosen, rest = split(arrays(example, jnp.float64, replacements))
            assert_finite(
                jax.tree.map(lambda g: g if is_float(g) else jnp.zeros(()), both(chosen, rest)[1]),
                f"gradient at {list(replacements)}",
            )


@law(lambda e: e.identity is not None)
def test_strength_zero_is_the_plain_method(example):
    got, want = example.identity(KEYS[0], **arrays(example))
    assert_same(got, want, "strength 0 and the plain method differ")


# Of an objective at strength 0 the gradient stands beside the value above.
@pytest.mark.slow
@law(lambda e: e.identity is not None and e.wrt and not e.surrogate and not e.name.startswith("objectives."))
def test_gradient_at_strength_zero_is_that_of_the_plain_method(example):
    values = arrays(example)
    side = lambda i, chosen: weighted_sum(example.identity(KEYS[0], **{**values, **chosen})[i])
    chosen = {name: values[name] for name in example.wrt}
    got, want = (jax.jit(jax.grad(functools.partial(side, i), allow_int=True))(chosen) for i in range(2))
    assert_finite(got, "strength 0")
    assert_close(got, want, max(example.tolerance, 1e-4), "the gradients at strength 0 and of the plain method differ")
