"""The laws of every per-example memory: positions, padding, donation, meshes and checkpoints."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import regjax as rj

N, B, K = 24, 8, 5
RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(B, K)).astype(np.float32)
LABELS = RNG.integers(0, K, size=B).astype(np.int32)
INDICES = RNG.permutation(N)[:B].astype(np.int32)
PAST = RNG.dirichlet(np.ones(K), size=N).astype(np.float32) * np.float32(0.7)


class Case(NamedTuple):
    """A memory and one call of it."""

    make: Callable[[int], rj.Stateful]
    state: Any
    call: Callable[..., Any]


CASES = {
    "elr": Case(lambda n: rj.losses.elr(n, K), rj.losses.ELRState, lambda m, s, z, y, i, **kw: m.apply(s, z, y, i, **kw)),
    "elr_plus": Case(
        lambda n: rj.losses.elr_plus(n, K),
        rj.losses.ELRState,
        lambda m, s, z, y, i, **kw: m.apply(s, z, 0.5 * z, y, i, i, 0.7, **kw),
    ),
    "ps_kd": Case(
        lambda n: rj.losses.ps_kd(n, K, total_epochs=4),
        rj.losses.PSKDState,
        lambda m, s, z, y, i, **kw: m.apply(s, z, y, i, epoch=1, **kw),
    ),
}
each = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def step(case: Case, num_examples: int = N) -> Callable[..., Any]:
    """``(state, z, y, i) -> (state, loss, gradient)``."""
    memory = case.make(num_examples)

    def run(state, z, y, i, mask=None):
        def total(z):
            loss, new = case.call(memory, state, z, y, i, mask=mask)
            return loss.sum(), (new, loss)

        gradient, (new, loss) = jax.grad(total, has_aux=True)(z)
        return new, loss, gradient

    return run


# One compilation for all tests of a case.
STEPS = {name: jax.jit(step(case)) for name, case in CASES.items()}
compiled = lambda case: STEPS[next(name for name in CASES if CASES[name] is case)]


@each
def test_only_the_rows_of_the_batch_change(case):
    new, loss, _ = compiled(case)(case.state(PAST), LOGITS, LABELS, INDICES)
    others = np.setdiff1d(np.arange(N), INDICES)
    assert np.array_equal(np.asarray(new[0])[others], PAST[others])
    assert np.all(np.abs(np.asarray(new[0])[INDICES] - PAST[INDICES]).max(-1) > 1e-4)
    assert loss.shape == (B,) and loss.dtype == jnp.float32 and type(new) is case.state


@each
def test_padding_neither_costs_nor_writes(case):
    """The first five examples count; the rest is garbage, with positions that belong to others or to nobody."""
    run = compiled(case)
    mask = np.arange(B) < 5
    z = np.where(mask[:, None], LOGITS, np.nan)
    y, i = np.where(mask, LABELS, -1), np.where(mask, INDICES, [0] * 5 + [INDICES[0], -1, N + 5])
    new, loss, gradient = run(case.state(PAST), z, y, i, mask)
    want, want_loss, want_gradient = run(case.state(PAST), LOGITS, LABELS, INDICES, np.ones(B, bool))
    np.testing.assert_allclose(loss[:5], want_loss[:5], rtol=1e-6)
    np.testing.assert_allclose(gradient[:5], want_gradient[:5], rtol=1e-5, atol=1e-7)
    assert np.all(np.asarray(loss[5:]) == 0) and np.all(np.asarray(gradient[5:]) == 0)
    changed = np.flatnonzero(np.any(np.asarray(new[0]) != PAST, -1))
    assert set(changed) == set(INDICES[:5])
    np.testing.assert_allclose(np.asarray(new[0])[INDICES[:5]], np.asarray(want[0])[INDICES[:5]], rtol=1e-6)


@each
def test_positions_outside_the_memory(case):
    bad = INDICES.copy()
    bad[2], bad[5] = N, -1
    new, loss, _ = compiled(case)(case.state(PAST), LOGITS, LABELS, bad)
    assert set(np.flatnonzero(np.isnan(loss))) == {2, 5}
    assert set(np.flatnonzero(np.any(np.asarray(new[0]) != PAST, -1))) == set(np.delete(INDICES, [2, 5]))
    memory = case.make(N)
    for wrong, text in ((bad, "24 rows, got 24"), (INDICES[:3], r"shape \[8\], got int32\[3\]"), (LOGITS[:, 0], "integer")):
        with pytest.raises(ValueError, match=rf"regjax\.losses\.\w+: indices must be .*{text}"):
            case.call(memory, case.state(jnp.asarray(PAST)), LOGITS, LABELS, wrong)


@each
def test_donated_memory_is_updated_in_place(case):
    """The step's scratch space is far below the memory's size, and its output is the donated buffer."""
    num_examples = 20_000
    state = jax.eval_shape(case.make(num_examples).init)
    size = num_examples * K * 4
    lowered = jax.jit(step(case, num_examples), donate_argnums=0).lower(state, LOGITS, LABELS, INDICES)
    memory = lowered.compile().memory_analysis()
    assert memory.alias_size_in_bytes >= size
    assert memory.temp_size_in_bytes < size / 20


@each
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
def test_sharded_over_examples_equals_one_device(case, kind):
    run = compiled(case)
    want = run(case.state(PAST), LOGITS, LABELS, INDICES)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    with jax.set_mesh(mesh):
        rows = NamedSharding(mesh, P("data"))
        state = jax.jit(case.make(N).init, out_shardings=rows)()
        assert state[0].sharding.is_equivalent_to(rows, 2)
        for batch in (rows, NamedSharding(mesh, P())):
            arguments = [jax.device_put(x, batch) for x in (LOGITS, LABELS, INDICES)]
            got = run(case.state(jax.device_put(PAST, rows)), *arguments)
            assert got[0][0].sharding.is_equivalent_to(rows, 2)
            for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)


@each
def test_checkpoint_and_continue(case, tmp_path):
    run = compiled(case)
    state, _, _ = run(case.state(PAST), LOGITS, LABELS, INDICES)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "state", jax.eval_shape(case.make(N).init))
    assert type(restored) is case.state
    for a, b in zip(
        jax.tree.leaves(run(state, LOGITS, LABELS, INDICES)),
        jax.tree.leaves(run(restored, LOGITS, LABELS, INDICES)),
        strict=True,
    ):
        assert np.array_equal(a, b)
    with pytest.raises(ValueError, match=r"state must be the \w+State that init\(\) makes"):
        run({"targets": PAST}, LOGITS, LABELS, INDICES)
    with pytest.raises(ValueError, match=r"state\.\w+ must be .* \[24, 5\], got float32\[25,5\]"):
        run(case.make(N + 1).init(), LOGITS, LABELS, INDICES)
