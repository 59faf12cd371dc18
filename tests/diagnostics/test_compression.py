"""Counts of pruned networks, the bound they enter, and the outputs that pruning changes."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import regjax as rj

d = rj.diagnostics
RNG = np.random.default_rng(0)
count = jax.jit(d.sketched_parameter_count)


def test_counts_equal_the_loop():
    masks = {
        "a": RNG.random((6, 16)) < 0.3,
        "conv": RNG.random((2, 2, 3, 4)) < 0.5,
        "bias": RNG.random(5) < 0.5,
        "n": np.array(True),
    }
    nonzero = sketched = 0.0
    for mask in (masks["a"], masks["conv"].reshape(12, 4)):
        rows, columns = mask.shape
        j = max([sum(mask[r]) for r in range(rows)] + [sum(mask[:, c]) for c in range(columns)])
        size = max(rows, columns)
        sketched += j * size * math.log2(size) ** 2
        nonzero += mask.sum()
    kept = masks["bias"].sum()
    np.testing.assert_allclose(count(masks), [96 + 48 + 5, nonzero + kept, sketched + kept], rtol=1e-6)
    dense = count(jax.tree.map(np.ones_like, masks))
    assert dense.raw == dense.nonzero == 149
    fewer = count({**masks, "a": masks["a"] & (RNG.random((6, 16)) < 0.5)})
    assert fewer.nonzero < count(masks).nonzero and fewer.sketched <= count(masks).sketched


def test_bound_is_the_formula_and_falls_with_the_root_of_the_samples(x64):
    bound = d.compression_bound
    got = bound(0.1, 50, 2000, num_values=16, delta=0.02)
    assert got == pytest.approx(0.1 + math.sqrt((50 * math.log(16) + math.log(50)) / 4000), rel=1e-12)
    excess = [float(jax.jit(lambda m: bound(0.25, 300, m, num_values=4))(m)) - 0.25 for m in (1000.0, 4000.0)]
    assert excess[0] == pytest.approx(2 * excess[1], rel=1e-12)
    assert bound(0.3, 0, 100, num_values=4, delta=1.0) == 0.3
    assert bound(0.0, 10**10, 1000, num_values=2**32) > 1, "not clipped, and larger than an int32"


def test_output_error_equals_the_loop_and_is_zero_without_pruning(x64):
    params = {"w": RNG.normal(size=(4, 3)), "b": RNG.normal(size=3), "steps": np.arange(2)}
    masks = {"w": RNG.random((4, 3)) < 0.6, "b": np.array(True), "steps": np.array(True)}
    x = RNG.normal(size=(5, 4))
    apply = lambda p, x: jnp.tanh(x @ p["w"] + p["b"])
    got = jax.jit(lambda p, m, x: d.pruning_output_error(apply, p, m, x))(params, masks, x)
    errors = []
    for row in x:
        full, less = (np.tanh(row @ w + params["b"]) for w in (params["w"], params["w"] * masks["w"]))
        errors.append(np.linalg.norm(full - less) / np.linalg.norm(full))
    np.testing.assert_allclose(got, [np.mean(errors), np.max(errors)], rtol=1e-10)
    every = jax.tree.map(lambda _: np.array(True), masks)
    assert d.pruning_output_error(apply, params, every, x).max == 0


def test_sketch_grows_slower_than_the_network():
    """With as many connections for each unit, a wider network has quadratically more weights, and a sketch nearly linear."""
    counts = []
    for width in (256, 1024):
        mask = np.zeros((width, width), bool)
        for offset in range(4):
            mask |= np.roll(np.eye(width, dtype=bool), offset, axis=1)
        counts.append(count({"kernel": mask}))
    small, large = counts
    assert large.raw == 16 * small.raw and large.nonzero == 4 * small.nonzero
    assert large.sketched / small.sketched == pytest.approx(4 * (10 / 8) ** 2)
