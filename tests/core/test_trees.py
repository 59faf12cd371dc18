"""The one rule for leaves on NNX states, Linen parameters and plain dictionaries; norms with safe gradients."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from regjax.core import trees


class LinenNet(nn.Module):
    """Every kind of leaf: convolution, norm scales, attention with two-dimensional biases, dense."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (3, 3), name="conv")(x)
        x = nn.LayerNorm(name="norm")(x).reshape(len(x), -1, 4)
        x = nn.MultiHeadDotProductAttention(num_heads=2, name="attention")(x)
        return nn.Dense(3, name="head")(x.mean(1))


class NnxNet(nnx.Module):
    """The same with NNX."""

    def __init__(self, rngs):
        self.conv = nnx.Conv(1, 4, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 4, decode=False, rngs=rngs)
        self.head = nnx.Linear(4, 3, rngs=rngs)


PLAIN = {"w": jnp.ones((2, 3)), "bias": jnp.ones((2, 3)), "gain": jnp.ones(3), "steps": jnp.arange(6).reshape(2, 3), "none": None}
TREES = {
    "plain": PLAIN,
    "linen": LinenNet().init(jax.random.key(0), jnp.ones((1, 4, 4, 1)))["params"],
    "nnx": nnx.state(NnxNet(nnx.Rngs(0)), nnx.Param),
}


def chosen(tree, where=None):
    mask = trees.select("test", tree, where)
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {"/".join(trees.path_names(path)) for (path, _), use in zip(flat, jax.tree.leaves(mask), strict=True) if use}


def test_the_default_is_kernels_never_biases_or_norm_scales():
    kernels = {"conv/kernel", "head/kernel", *(f"attention/{n}/kernel" for n in ("query", "key", "value", "out"))}
    assert chosen(TREES["linen"]) == kernels == chosen(TREES["nnx"])
    assert TREES["linen"]["attention"]["query"]["bias"].ndim == 2
    assert chosen(PLAIN) == {"w"} == chosen(PLAIN, "kernels")


@pytest.mark.parametrize("name", TREES)
def test_every_form_of_where(name):
    tree = TREES[name]
    everything = chosen(tree, "all")
    assert "steps" not in everything and everything > chosen(tree)
    assert chosen(tree, lambda path, leaf: path[-1] == "bias") == {path for path in everything if path.endswith("bias")}
    mask = jax.tree.map(lambda leaf: leaf.ndim == 1, tree)
    assert chosen(tree, mask) == chosen(tree, lambda path, leaf: leaf.ndim == 1) == chosen(tree, lambda params: mask)
    assert chosen(tree, True) == chosen(tree, lambda path, leaf: True)


def test_a_prefix_of_the_tree_and_what_is_refused():
    params = {"frozen": {"a": jnp.ones(2), "b": jnp.ones((2, 2))}, "free": jnp.ones(3)}
    assert chosen(params, {"frozen": False, "free": True}) == {"free"}
    for wrong in ("kernel", 3, {"frozen": False}, {"frozen": False, "free": 1.0}):
        with pytest.raises(ValueError, match=r"regjax\.test: where must be"):
            trees.select("test", params, wrong)


def test_map_selected_passes_the_others_unchanged():
    doubled = trees.map_selected(lambda leaf: 2 * leaf, "test", PLAIN)
    np.testing.assert_array_equal(doubled["w"], 2.0)
    assert all(doubled[name] is PLAIN[name] for name in ("bias", "gain", "steps", "none"))


def test_norms_accumulate_in_float32_and_are_flat_at_zero():
    tree = {"a": jnp.full(4096, 0.01, jnp.bfloat16), "b": [jnp.zeros(3), None]}
    want = np.sqrt(4096) * float(jnp.bfloat16(0.01))
    assert float(trees.global_norm(tree)) == pytest.approx(want, rel=1e-6)
    assert trees.global_norm(tree).dtype == jnp.float32 and float(trees.global_norm({})) == 0
    for fn in (trees.global_norm, trees.safe_norm, lambda x: trees.safe_norm(x, axis=0).sum()):
        gradient = jax.grad(fn)(jnp.zeros(3))
        np.testing.assert_array_equal(gradient, 0)
    np.testing.assert_allclose(jax.grad(trees.safe_norm)(jnp.array([3.0, 4.0])), [0.6, 0.8], rtol=1e-6)
    assert float(trees.vdot({"a": jnp.arange(3.0)}, {"a": jnp.ones(3)})) == 3
    assert np.isnan(trees.global_norm({"a": jnp.array([1.0, jnp.nan])}))
    moved = trees.add_scaled({"a": jnp.ones(2, jnp.bfloat16)}, 1e-4, {"a": jnp.ones(2)})
    assert moved["a"].dtype == jnp.bfloat16
