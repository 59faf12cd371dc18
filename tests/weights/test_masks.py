"""Masks by score: exact counts, ties, distributions, and what is done with them, against loop-written references."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import regjax as rj
from regjax.weights.sparsity import masks

RNG = np.random.default_rng(0)
# Two leaves alike, which are searched together, and scores with many ties.
SCORES = {
    "a": {"kernel": np.round(RNG.normal(size=(6, 5)), 1), "bias": RNG.normal(size=5)},
    "b": {"kernel": np.round(3 * RNG.normal(size=(6, 5)), 1)},
    "c": {"kernel": RNG.integers(0, 3, size=(2, 2, 3, 4)).astype(float)},
}
KERNELS = [SCORES[name]["kernel"] for name in "abc"]


def count(n, sparsity):
    return max(1, round(n * (1 - sparsity)))


def best(flat, k):
    """The mask of the k largest, of equal ones the earlier, one at a time."""
    mask = np.zeros(len(flat), bool)
    for _ in range(k):
        left = [i for i in range(len(flat)) if not mask[i]]
        mask[max(left, key=lambda i: (flat[i], -i))] = True
    return mask


def erk(shapes, sparsity):
    """The sparsities of ERK, as the reference solves for them: the leaf of the largest density first."""
    dense = set()
    while True:
        rest = [i for i in range(len(shapes)) if i not in dense]
        sizes = [np.prod(shape) for shape in shapes]
        budget = sum(sizes[i] - np.floor(sparsity * sizes[i]) for i in rest) - sum(np.floor(sparsity * sizes[i]) for i in dense)
        raw = {i: sum(shapes[i]) / sizes[i] for i in rest}
        eps = budget / sum(raw[i] * sizes[i] for i in rest) if rest else 0.0
        top = max(raw.values(), default=0.0)
        if eps * top <= 1:
            return [0.0 if i in dense else 1 - eps * raw[i] for i in range(len(shapes))]
        dense |= {i for i in rest if raw[i] == top}


def reference(sparsity, distribution, normalize=False):
    shapes = [s.shape for s in KERNELS]
    if distribution == "global":
        scaled = [s.ravel() / (np.linalg.norm(s) + 1e-8 if normalize else 1) for s in KERNELS]
        flat = np.concatenate(scaled)
        parts = np.split(best(flat, count(len(flat), sparsity)), np.cumsum([s.size for s in KERNELS])[:-1])
    else:
        each = erk(shapes, sparsity) if distribution == "erk" else [sparsity] * 3
        parts = [best(s.ravel(), count(s.size, own)) for s, own in zip(KERNELS, each, strict=True)]
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


FORMS = (("uniform", False), ("global", False), ("global", True), ("erk", False))


def all_forms(sparsity):
    return [rj.weights.topk_mask(SCORES, sparsity=sparsity, distribution=d, normalize=n) for d, n in FORMS]


@pytest.mark.parametrize("traced", [True, False])
def test_masks_equal_the_reference_in_every_distribution(x64, traced):
    compiled = jax.jit(all_forms)
    for sparsity in (0.0, 0.37, 0.5, 0.93, 1.0) if traced else (0.5,):
        got = compiled(sparsity) if traced else jax.jit(lambda: all_forms(0.5))()
        for found, (distribution, normalize) in zip(got, FORMS, strict=True):
            for name, want in zip("abc", reference(sparsity, distribution, normalize), strict=True):
                np.testing.assert_array_equal(found[name]["kernel"], want, f"{distribution} {normalize} {sparsity} {name}")
            assert found["a"]["bias"].shape == () and bool(found["a"]["bias"])
            kept = sum(m["kernel"].sum() for m in found.values())
            np.testing.assert_allclose(rj.weights.density(found), kept / sum(s.size for s in KERNELS), rtol=1e-6)


def test_counts_are_rounded_as_python_rounds():
    for n in (1, 5, 7, 10, 25, 1000):
        for sparsity in (0, 0.0, 0.1, 0.25, 0.5, 0.7, 0.9, 0.95, 1.0):
            assert masks.kept_count(n, sparsity) == count(n, sparsity)
    assert [masks.kept_count(n, 0.5) for n in (5, 7)] == [2, 4]  # halves to even
    assert [int(masks.kept_count(n, jnp.float32(0.5))) for n in (5, 7)] == [2, 4]


def test_erk_equals_the_published_values():
    small, large = [(4, 4), (16, 8)], [(2, 2), (64, 64)]
    np.testing.assert_allclose(masks.erk_sparsities(small, 0.5), [0, 0.5625], rtol=1e-12)
    np.testing.assert_allclose(masks.erk_sparsities(large, 0.9), [0, 0.9006348], atol=1e-7)
    np.testing.assert_allclose(masks.erk_sparsities(large, jnp.float32(0.9)), [0, 0.9006348], atol=1e-6)
    assert masks.erk_sparsities(small, 0.0) == [0, 0] and masks.erk_sparsities([], 0.5) == []
    conv = [(3, 3, 4, 8), (3, 3, 8, 8), (32, 10), (4, 4), (2, 3)]
    for sparsity in (0.3, 0.6, 0.8, 0.95):
        np.testing.assert_allclose(masks.erk_sparsities(conv, sparsity), erk(conv, sparsity), rtol=1e-12)


def test_which_leaves_and_kinds_of_trees():
    scores = jax.tree.map(jnp.float32, SCORES)
    mask = rj.weights.topk_mask(scores, sparsity=0.5, where=lambda path, leaf: path[0] == "b")
    assert mask["a"]["kernel"].shape == () and float(rj.weights.density(mask)) == 0.5
    state = nnx.State(jax.tree.map(nnx.Param, scores))
    of_state = rj.weights.topk_mask(state, sparsity=0.5, where=lambda path, leaf: path[0] == "b")
    assert jax.tree.structure(of_state) == jax.tree.structure(state)
    np.testing.assert_array_equal(*(jax.tree.leaves(m)[2] for m in (mask, of_state)))
    none = rj.weights.topk_mask(scores, sparsity=0.5, where=False)
    assert all(m.shape == () for m in jax.tree.leaves(none)) and float(rj.weights.density(none)) == 1
    both = rj.weights.topk_mask({"kernel": jnp.zeros((2, 2)), "none": None}, sparsity=0.5)
    assert both["none"] is None and both["kernel"].tolist() == [[True, True], [False, False]]


def test_applying_a_mask_stops_values_and_gradients():
    params = {"kernel": jnp.array([[1.0, jnp.nan], [2.0, -3.0]], jnp.bfloat16), "bias": jnp.ones(2), "count": jnp.arange(2)}
    mask = {"kernel": jnp.array([[True, False], [False, True]]), "bias": True, "count": True}
    out = rj.weights.apply_mask(params, mask)
    assert out["kernel"].dtype == jnp.bfloat16 and out["kernel"].tolist() == [[1, 0], [0, -3]]
    assert out["count"] is params["count"]
    gradient = jax.grad(lambda w: jnp.sum(rj.weights.apply_mask({**params, "kernel": w}, mask)["kernel"] ** 2))(jnp.ones((2, 2)))
    assert gradient.tolist() == [[2, 0], [0, 2]]
    # A single value stands for a leaf or a subtree.
    pruned = rj.weights.apply_mask({"block": {"a": jnp.ones(2), "b": jnp.ones(3)}, "c": jnp.ones(1)}, {"block": False, "c": True})
    assert optax.tree_utils.tree_sum(pruned) == 1


def test_magnitude_mask_is_the_top_of_absolute_values():
    params = {"a": {"kernel": jnp.array([[0.1, -5.0]])}, "b": {"kernel": jnp.array([[2.0, -3.0]])}}
    plain = rj.weights.global_magnitude_mask(params, sparsity=0.5)
    assert plain["a"]["kernel"].tolist() == [[False, True]] and plain["b"]["kernel"].tolist() == [[False, True]]
    # Divided by its norm, the large leaf's smaller weight no longer counts for more.
    scaled = {"a": {"kernel": jnp.array([[0.6, 0.8]])}, "b": {"kernel": jnp.array([[10.0, 100.0]])}}
    assert rj.weights.global_magnitude_mask(scaled, sparsity=0.5)["a"]["kernel"].sum() == 0
    normalized = rj.weights.global_magnitude_mask(scaled, sparsity=0.5, normalize=True)
    assert [m["kernel"].tolist() for m in normalized.values()] == [[[False, True]], [[False, True]]]
