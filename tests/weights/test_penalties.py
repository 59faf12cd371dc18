"""Norm penalties against loop-written references, on every kind of tree and choice of leaves."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import regjax as rj

RNG = np.random.default_rng(0)
PARAMS = {
    "conv": {"kernel": RNG.normal(size=(2, 3, 4, 5)), "bias": RNG.normal(size=5)},
    "dense": {"kernel": RNG.normal(size=(6, 4)), "bias": RNG.normal(size=4)},
    "norm": {"scale": RNG.normal(size=4)},
}
KERNELS = [PARAMS["conv"]["kernel"], PARAMS["dense"]["kernel"]]


def groups_of(kernel, kind):
    """The groups of one kernel, written as loops over its axes."""
    if kind == "out":
        return [kernel[..., j].ravel() for j in range(kernel.shape[-1])]
    if kind == "in":
        return [kernel[..., j, :].ravel() for j in range(kernel.shape[-2])]
    if kind == "leaf" or kernel.ndim == 2:
        return [kernel.ravel()]
    return [kernel[a, b].ravel() for a in range(kernel.shape[0]) for b in range(kernel.shape[1])]


def group_lasso(groups, size_weighted=False):
    total = 0.0
    for group in groups:
        norm = 0.0
        for w in group:
            norm += w * w
        total += np.sqrt(norm) * (np.sqrt(len(group)) if size_weighted else 1)
    return total


def test_entrywise_penalties_equal_their_references(x64):
    entries = np.concatenate([k.ravel() for k in KERNELS])
    l1, l2 = sum(abs(w) for w in entries), 0.5 * sum(w * w for w in entries)

    @jax.jit
    def values(params):
        both, gradient = jax.value_and_grad(lambda p: rj.weights.elastic_net(p, l1=0.3, l2=0.7))(params)
        return (rj.weights.l1(params), rj.weights.l2(params), both), gradient

    got, gradient = values(PARAMS)
    np.testing.assert_allclose(got, [l1, l2, 0.3 * l1 + 0.7 * l2], rtol=1e-12)
    np.testing.assert_allclose(gradient["dense"]["kernel"], 0.3 * np.sign(KERNELS[1]) + 0.7 * KERNELS[1], rtol=1e-12)
    assert not gradient["dense"]["bias"].any()


@pytest.mark.parametrize("kind", ["out", "in", "kernel_position", "leaf"])
def test_group_penalties_equal_their_references(x64, kind):
    @jax.jit
    def values(params):
        plain, gradient = jax.value_and_grad(lambda p: rj.weights.group_lasso(p, groups=kind))(params)
        weighted = rj.weights.group_lasso(params, groups=kind, size_weighted=True)
        sparse = rj.weights.sparse_group_lasso(params, l1=0.3, group=0.7, groups=kind, size_weighted=True)
        return (plain, weighted, sparse), gradient["dense"]["kernel"]

    groups = [group for kernel in KERNELS for group in groups_of(kernel, kind)]
    plain, weighted = group_lasso(groups), group_lasso(groups, size_weighted=True)
    l1 = sum(np.abs(kernel).sum() for kernel in KERNELS)
    got, gradient = values(PARAMS)
    np.testing.assert_allclose(got, [plain, weighted, 0.3 * l1 + 0.7 * weighted], rtol=1e-12)
    # w / ||w|| in each group.
    axes = {"out": 0, "in": 1}.get(kind)
    np.testing.assert_allclose(gradient, KERNELS[1] / np.linalg.norm(KERNELS[1], axis=axes, keepdims=True), rtol=1e-12)


def test_groups_written_out_span_leaves(x64):
    conv, dense = (PARAMS[layer] for layer in ("conv", "dense"))
    scale = PARAMS["norm"]["scale"]
    lasso = rj.weights.group_lasso

    @jax.jit
    def values(params):
        as_text = lasso(params, groups=[["conv"], ["dense/bias", "norm/scale"]])
        as_names = lasso(params, groups=[(("conv", "kernel"), ("conv", "bias")), ("dense/bias", "norm")])
        narrowed = lasso(params, groups=[["conv"], ["dense/bias"]], where="kernels")
        only_l1 = rj.weights.sparse_group_lasso(params, l1=1.0, group=0.0, groups=[["dense/bias"]])
        return as_text, as_names, narrowed, only_l1

    want = group_lasso([[*conv["kernel"].ravel(), *conv["bias"]], [*dense["bias"], *scale]])
    wants = [want, want, np.linalg.norm(conv["kernel"]), abs(dense["bias"]).sum()]
    np.testing.assert_allclose(values(PARAMS), wants, rtol=1e-12)


def test_published_values():
    spanning = {"a": jnp.array([3.0, 4.0]), "b": jnp.array([1.0])}
    assert float(rj.weights.group_lasso(spanning, groups=[["a"], ["b"]])) == 6.0
    weighted = rj.weights.group_lasso(spanning, groups="leaf", size_weighted=True, where="all")
    assert float(weighted) == pytest.approx(8.0710678, abs=1e-6)
    assert float(rj.weights.elastic_net({"kernel": jnp.array([[3.0]])}, l1=1.0, l2=1.0)) == 7.5
    # Half the sum of squares: the gradient is the weight itself.
    assert float(jax.grad(rj.weights.l2)({"kernel": jnp.array([[3.0]])})["kernel"][0, 0]) == 3.0


TREES = {
    "dict": lambda tree: tree,
    "Linen params": lambda tree: {"params": tree},
    "NNX state": lambda tree: nnx.State(jax.tree.map(nnx.Param, tree)),
}
CHOICES = {
    "default": (None, ["conv/kernel", "dense/kernel"]),
    "kernels": ("kernels", ["conv/kernel", "dense/kernel"]),
    "all": ("all", ["conv/kernel", "conv/bias", "dense/kernel", "dense/bias", "norm/scale"]),
    "predicate": (lambda path, leaf: path[-2] == "dense", ["dense/kernel", "dense/bias"]),
    "function of the tree": (lambda tree: jax.tree.map(lambda x: x.ndim == 1, tree), ["conv/bias", "dense/bias", "norm/scale"]),
    "none": (False, []),
}


@pytest.mark.parametrize("kind", TREES)
def test_where_chooses_leaves_alike_on_every_kind_of_tree(x64, kind):
    tree = TREES[kind](PARAMS)
    l1 = jax.jit(rj.weights.l1, static_argnames="where")
    for what, (where, names) in CHOICES.items():
        chosen = [PARAMS[layer][name] for layer, name in (path.split("/") for path in names)]
        want = sum(np.abs(leaf).sum() for leaf in chosen)
        assert float(l1(tree, where=where)) == pytest.approx(want, rel=1e-12), what
    by_path = lambda path, leaf: path[-2:] in (("conv", "kernel"), ("norm", "scale"))
    mask = jax.tree_util.tree_map_with_path(lambda path, leaf: by_path(rj.core.trees.path_names(path), leaf), tree)
    want = np.abs(PARAMS["conv"]["kernel"]).sum() + np.abs(PARAMS["norm"]["scale"]).sum()
    assert float(rj.weights.l1(tree, where=mask)) == pytest.approx(want, rel=1e-12)


def test_a_mask_may_be_a_prefix_of_the_tree():
    want = np.abs(PARAMS["conv"]["kernel"]).sum() + np.abs(PARAMS["conv"]["bias"]).sum()
    got = rj.weights.l1(PARAMS, where={"conv": True, "dense": False, "norm": False})
    assert float(got) == pytest.approx(want, rel=1e-6)


def test_leaves_masked_by_optax_are_not_there():
    masked = {"a": {"kernel": jnp.ones((2, 2))}, "b": optax.MaskedNode(), "c": None}
    assert float(rj.weights.l1(masked)) == 4.0
    assert float(rj.weights.spectral_penalty(masked)) == pytest.approx((2.0**2 - 1) ** 2, rel=1e-5)


def test_traced_strengths_low_precision_and_gradients_of_zero_groups():
    value = jax.jit(lambda s: rj.weights.sparse_group_lasso(PARAMS, l1=s, group=2 * s, groups="in"))
    groups = [group for kernel in KERNELS for group in groups_of(kernel, "in")]
    want = 0.5 * sum(np.abs(kernel).sum() for kernel in KERNELS) + group_lasso(groups)
    assert float(value(0.5)) == pytest.approx(want, rel=1e-6)
    # 4096 entries of 1 + 1/128: summed in bfloat16 they would stop at 256.
    low = {"kernel": jnp.full((64, 64), 1 + 1 / 128, jnp.bfloat16)}
    assert float(rj.weights.l1(low)) == pytest.approx(4096 * (1 + 1 / 128), rel=1e-6)
    zero = {"kernel": jnp.zeros((3, 2)).at[0, 0].set(2.0)}
    gradient = jax.jit(jax.grad(rj.weights.group_lasso))(zero)["kernel"]
    np.testing.assert_array_equal(gradient, [[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]])


def test_the_subgradient_at_zero_weights_is_zero():
    zeros = {"kernel": jnp.zeros((2, 3))}
    penalties = (rj.weights.l1, functools.partial(rj.weights.elastic_net, l1=1.0, l2=1.0))
    for penalty in (*penalties, functools.partial(rj.weights.sparse_group_lasso, l1=1.0, group=1.0)):
        assert not jax.grad(penalty)(zeros)["kernel"].any()
