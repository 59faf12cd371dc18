"""Techniques on parameter trees accept every kind of tree and keep its structure."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tests.contracts.laws import law
from tests.contracts.running import arrays, assert_close, leaves

KEY = jax.random.key(0)
on_trees = law(lambda e: e.tree is not None)


class Net(NamedTuple):
    """A NamedTuple as a parameter tree."""

    model: Any
    unused: Any


def as_nnx_state(tree):
    """Nested dictionaries as the state of an NNX model."""
    return nnx.State(jax.tree.map(nnx.Param, tree))


KINDS = {
    "nested dict": lambda tree: {"model": tree},
    "Linen params": lambda tree: {"params": {"Dense_0": tree}},
    "list": lambda tree: [tree],
    "NamedTuple with None": lambda tree: Net(tree, None),
    "NNX state": as_nnx_state,
}


@on_trees
def test_every_kind_of_tree_gives_the_same_and_keeps_its_structure(example):
    values = arrays(example)
    # Arguments of the same structure (gradients, initial weights) go along with the parameters.
    structure = jax.tree.structure(values[example.tree])
    companions = [n for n, v in values.items() if jax.tree.structure(v) == structure]
    want = example.call(KEY, **values)
    for kind, make in KINDS.items():
        got = example.call(KEY, **{n: make(v) if n in companions else v for n, v in values.items()})
        assert_close(leaves(got), leaves(want), example.tolerance, kind)
        if jax.tree.structure(want) == structure:
            assert jax.tree.structure(got) == jax.tree.structure(make(values[example.tree])), f"{kind}: structure not kept"
    empty = example.call(KEY, **{n: {} if n in companions else v for n, v in values.items()})
    assert all(np.all(np.isfinite(leaf)) for leaf in leaves(empty) if leaf.dtype.kind == "f"), "the empty tree"


@on_trees
def test_leaves_that_are_no_floats_pass(example):
    values = arrays(example)
    structure = jax.tree.structure(values[example.tree])
    companions = [n for n, v in values.items() if jax.tree.structure(v) == structure]
    counted = {n: {"model": v, "count": jnp.arange(3)} if n in companions else v for n, v in values.items()}
    got, want = example.call(KEY, **counted), example.call(KEY, **values)
    floats = lambda out: [leaf for leaf in leaves(out) if leaf.dtype.kind == "f"]
    assert_close(floats(got), floats(want), example.tolerance, "an integer leaf among the parameters changed the result")
