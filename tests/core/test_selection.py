"""The largest entries by counting, against a stable sort."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from regjax.core import selection


def _reference(arrays: list[np.ndarray], count: int) -> np.ndarray:
    flat = np.concatenate([a.ravel() for a in arrays])
    mask = np.zeros(flat.size, bool)
    mask[np.argsort(-flat, kind="stable")[: max(count, 0)]] = True
    return mask


def test_the_largest_are_those_of_a_stable_sort_with_exact_counts():
    rng = np.random.default_rng(0)
    largest, kth = jax.jit(selection.largest), jax.jit(selection.kth_largest)
    for _ in range(5):
        # Halves, so that there are ties, and zeros of both signs.
        arrays = [np.round(2 * rng.normal(size=s)).astype(np.float32) / 2 * -1.0 for s in ((3, 4), (5,), (2, 2, 3))]
        flat = np.concatenate([a.ravel() for a in arrays])
        for count in (-1, 0, 1, 7, flat.size - 1, flat.size, flat.size + 3):
            masks = largest([jnp.asarray(a) for a in arrays], count)
            np.testing.assert_array_equal(np.concatenate([np.ravel(m) for m in masks]), _reference(arrays, count))
            if 0 < count <= flat.size:
                assert kth([jnp.asarray(a) for a in arrays], count) == np.sort(flat)[-count]


def test_infinities_single_entries_low_precision_and_vmap():
    scores = jnp.array([[-jnp.inf, 1.0, jnp.inf, -2.0], [0.0, -0.0, 0.0, 0.0]])
    masks = jax.vmap(lambda s: selection.largest([s], 2)[0])(scores)
    np.testing.assert_array_equal(masks, [[False, True, True, False], [True, True, False, False]])
    assert selection.largest([jnp.array(-3.0)], 1)[0]
    low = selection.largest([jnp.array([0.5, 0.25], jnp.bfloat16)], 1)[0]
    np.testing.assert_array_equal(low, [True, False])


@pytest.mark.usefixtures("x64")
def test_float64_is_told_apart_below_float32():
    scores = jnp.array([1.0, 1.0 + 1e-12, 1.0 - 1e-12])
    np.testing.assert_array_equal(selection.largest([scores], 1)[0], [False, True, False])
    assert selection.kth_largest([scores], 3) == scores[2]


def test_gradients_stop_at_the_threshold():
    grad = jax.grad(lambda x: selection.kth_largest([x], 1) * jnp.sum(x))(jnp.array([1.0, 3.0]))
    np.testing.assert_array_equal(grad, [3.0, 3.0])


def test_inside_shard_map_each_device_selects_of_its_own():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    scores = jnp.asarray(np.random.default_rng(1).integers(0, 4, size=(8, 6)), jnp.float32)
    local = lambda x: selection.largest([x[0]], 3)[0][None]
    masks = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=jax.P("data"), out_specs=jax.P("data")))(scores)
    np.testing.assert_array_equal(masks, jnp.stack([selection.largest([row], 3)[0] for row in scores]))
