"""Eight devices equal one: batches and parameters sharded on Auto and Explicit meshes, ``shard_map`` and ``pmap``."""

import functools

import jax
import pytest
from jax.sharding import AxisType

from tests.contracts.laws import law
from tests.contracts.running import KEY, assert_close, compiled, leaves, on_host

MESHES = {kind: jax.make_mesh((8,), ("data",), axis_types=(getattr(AxisType, kind),)) for kind in ("Auto", "Explicit")}


def spec(example, name, leaf) -> jax.P:
    """Batches over their examples, parameters over their first axis where it divides, the rest on every device."""
    divides = leaf.ndim > 0 and leaf.shape[0] % 8 == 0
    return jax.P("data") if divides and (name in example.rows or name == example.tree) else jax.P()


def place(example, values, mesh):
    return {
        name: jax.tree.map(lambda x, n=name: jax.device_put(x, jax.NamedSharding(mesh, spec(example, n, x))), tree)
        for name, tree in values.items()
    }


# An Explicit mesh refuses what an Auto one gathers in silence: it is tried first.
@pytest.mark.parametrize("kind", ["Explicit", pytest.param("Auto", marks=pytest.mark.slow)])
@law(lambda e: e.mesh and (e.rows or e.tree), dear=True)
def test_sharded_over_a_mesh_equals_one_device(example, kind):
    values = on_host(example)
    want = compiled(example).on_one_device
    with jax.set_mesh(MESHES[kind]):
        got = jax.jit(lambda key, values: example.call(key, **values))(KEY, place(example, values, MESHES[kind]))
    assert_close(got, want, example.tolerance, f"{kind} mesh and one device differ")
    if example.result == "rows" and kind == "Explicit":
        assert all(leaf.sharding.spec[0] == "data" for leaf in jax.tree.leaves(got)), "the result lost the batch's sharding"


@pytest.mark.slow
@law(lambda e: e.mapped is not None or (e.rows and e.result == "rows" and not e.random and e.mesh))
def test_shard_map_and_pmap_equal_one_device(example):
    values = on_host(example)
    want = compiled(example).on_one_device
    fn = functools.partial(example.mapped, "data") if example.mapped else example.call
    out = jax.P("data") if example.result == "rows" else jax.P()
    specs = {n: jax.P("data") if n in example.rows else jax.P() for n in values}
    mapped = jax.shard_map(
        lambda key, values: fn(key, **values), mesh=MESHES["Auto"], in_specs=(jax.P(), specs), out_specs=out, check_vma=False
    )
    assert_close(jax.jit(mapped)(KEY, values), want, example.tolerance, "shard_map and one device differ")

    split = {n: jax.tree.map(lambda x: x.reshape(8, -1, *x.shape[1:]), v) if n in example.rows else v for n, v in values.items()}
    axes = {n: 0 if n in example.rows else None for n in values}
    old = jax.pmap(lambda key, values: fn(key, **values), axis_name="data", in_axes=(None, axes))(KEY, split)
    join = (lambda x: x.reshape(-1, *x.shape[2:])) if example.result == "rows" else (lambda x: x[0])
    assert_close([join(leaf) for leaf in leaves(old)], want, example.tolerance, "pmap and one device differ")
