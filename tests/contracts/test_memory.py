"""Techniques with memory: stable states, abstract initialisation, donation, and an Orbax round trip in mid-training."""

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from tests.contracts.laws import law
from tests.contracts.running import arrays, assert_same

KEY = jax.random.key(0)


@law(lambda e: e.memory is not None)
def test_state_keeps_shapes_and_dtypes(example):
    state, apply = example.memory()
    for dtype in (jnp.float32, jnp.bfloat16):
        _, after = jax.eval_shape(lambda s, v: apply(s, KEY, **v), state, arrays(example, dtype))
        assert jax.tree.structure(after) == jax.tree.structure(state)
        for new, old in zip(jax.tree.leaves(after), jax.tree.leaves(state), strict=True):
            assert (new.shape, new.dtype, new.weak_type) == (old.shape, old.dtype, False)


def test_restored_states_continue_bit_for_bit(tmp_path, examples):
    compiled = lambda apply: jax.jit(lambda state, values: apply(state, KEY, **values))
    stateful = [e for e in examples if e.memory is not None]
    named = {f"{i}_{e.name.replace('.', '_')}": e for i, e in enumerate(stateful)}
    steps = {name: (compiled(e.memory()[1]), arrays(e)) for name, e in named.items()}
    # Each after one step from its own initial state, all saved as one tree.
    states = {name: steps[name][0](e.memory()[0], steps[name][1])[1] for name, e in named.items()}
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "states", states)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "states", jax.tree.map(ocp.utils.to_shape_dtype_struct, states))
    for name, (step, values) in steps.items():
        assert_same(step(restored[name], values), step(states[name], values), name)
        donated = jax.jit(step, donate_argnums=0)(jax.tree.map(jnp.copy, states[name]), values)
        assert_same(donated, step(states[name], values), f"{name} with its state donated")
