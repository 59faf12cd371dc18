"""Rows of sharded arrays on Auto and Explicit meshes, and without one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from regjax.core import sharding

MEMORY = jnp.arange(64.0).reshape(16, 4)
INDEX = jnp.array([3, 0, 15, 7, 8, 1, 2, 9])
ROWS = -jnp.arange(32.0).reshape(8, 4)


def run(memory, index, rows):
    taken = sharding.take_rows(memory, index)
    written = sharding.set_rows(memory, index, rows)
    return taken, written, sharding.contract_rows(taken, rows)


@pytest.mark.parametrize("kind", [None, AxisType.Auto, AxisType.Explicit])
def test_rows_equal_numpy(kind):
    want = np.array(MEMORY)
    want[np.array(INDEX)] = ROWS
    if kind is None:
        got = jax.jit(run)(MEMORY, INDEX, ROWS)
    else:
        mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
        with jax.set_mesh(mesh):
            placed = [jax.device_put(x, jax.NamedSharding(mesh, jax.P("data"))) for x in (MEMORY, INDEX, ROWS)]
            got = jax.jit(run)(*placed)
            if kind == AxisType.Explicit:
                assert got[1].sharding.spec[0] == "data" and got[0].sharding.spec[0] == "data"
    np.testing.assert_array_equal(got[0], MEMORY[INDEX])
    np.testing.assert_array_equal(got[1], want)
    np.testing.assert_allclose(got[2], np.array(MEMORY[INDEX]).T @ np.array(ROWS), rtol=1e-6)
