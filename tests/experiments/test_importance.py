"""Epochs drawn by importance: their distribution, restarts, processes, and the names of the examples."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.data import Split, train_batches, train_iterator
from experiments.data.importance import draw_epoch, importance_epoch, resample

N = 50
RNG = np.random.default_rng(0)
P = RNG.dirichlet(np.ones(N))
SPLIT = Split(
    images=RNG.normal(size=(N, 2, 2, 1)).astype(np.float32),
    labels=np.arange(N, dtype=np.int32) % 10,
    clean_labels=np.arange(N, dtype=np.int32) % 7,
    index=np.arange(N, dtype=np.int32),
)


def test_draws_follow_the_probabilities_and_seed_and_epoch_alone():
    p = P.copy()
    p[[0, 7, N - 1]] = 0
    drawn = draw_epoch(3 * p, seed=1, epoch=2, num=40000)
    counts, want = np.bincount(drawn, minlength=N), p / p.sum()
    assert not counts[[0, 7, N - 1]].any()
    assert np.all(np.abs(counts - 40000 * want) <= 5 * np.sqrt(40000 * want * (1 - want)))
    np.testing.assert_array_equal(drawn[:100], draw_epoch(p, seed=1, epoch=2, num=100))
    for other in ({"seed": 1, "epoch": 3}, {"seed": 2, "epoch": 2}):
        assert not np.array_equal(drawn[:100], draw_epoch(p, num=100, **other))
    assert draw_epoch(np.float32([0, 1, 0]), seed=0, epoch=0).tolist() == [1, 1, 1]


def test_an_epoch_has_the_drawn_examples_and_their_names():
    drawn = resample(SPLIT, P, seed=0, epoch=4)
    batches = list(train_iterator(drawn, batch_size=8, seed=0, epochs=1, threads=0))
    assert len(batches) == N // 8
    seen = np.concatenate([b["index"] for b in batches])
    left = np.bincount(draw_epoch(P, seed=0, epoch=4), minlength=N) - np.bincount(seen, minlength=N)
    assert left.min() == 0 and left.sum() == N % 8  # the same multiset, but for what fills no batch
    for batch in batches:
        np.testing.assert_array_equal(batch["image"], SPLIT.images[batch["index"]])
        np.testing.assert_array_equal(batch["label"], SPLIT.labels[batch["index"]])


def test_an_epoch_resumes_and_its_parts_are_those_of_one_process():
    make = lambda: resample(SPLIT, P, seed=3, epoch=1)
    iterator = train_iterator(make(), batch_size=8, seed=3, epochs=1, threads=0)
    for _ in range(2):
        next(iterator)
    state = iterator.get_state()
    again = train_iterator(make(), batch_size=8, seed=3, epochs=1, threads=0)
    again.set_state(state)
    np.testing.assert_array_equal(next(iterator)["index"], next(again)["index"])
    parts = [train_batches(make(), batch_size=8, seed=3, epochs=1, process_index=i, process_count=2) for i in range(2)]
    whole = train_batches(make(), batch_size=8, seed=3, epochs=1, process_index=0, process_count=1)
    for step in range(len(whole)):
        both = np.concatenate([part[step]["index"] for part in parts])
        np.testing.assert_array_equal(np.sort(both), np.sort(whole[step]["index"]))


def test_the_epoch_inside_jit():
    compiled = jax.jit(functools.partial(importance_epoch, batch_size=8))
    batches = compiled(jax.random.key(0), jnp.asarray(P, jnp.float32))
    assert batches.shape == (N // 8, 8) and batches.dtype == jnp.int32
    assert int(batches.min()) >= 0 and int(batches.max()) < N
    assert len(np.unique(batches)) < batches.size  # with repetition
    taken = jax.tree.map(jnp.asarray, SPLIT).take(batches[0])
    np.testing.assert_array_equal(taken["index"], batches[0])


@pytest.mark.parametrize(
    ("argument", "call"),
    [
        ("p", lambda: draw_epoch(np.ones((2, 2)), seed=0, epoch=0)),
        ("p", lambda: draw_epoch(np.ones(3, int), seed=0, epoch=0)),
        ("p", lambda: draw_epoch(np.array([0.5, -0.5]), seed=0, epoch=0)),
        ("p", lambda: draw_epoch(np.array([0.5, np.nan]), seed=0, epoch=0)),
        ("p", lambda: draw_epoch(np.zeros(3), seed=0, epoch=0)),
        ("seed", lambda: draw_epoch(P, seed=-1, epoch=0)),
        ("epoch", lambda: draw_epoch(P, seed=0, epoch=0.5)),
        ("num", lambda: draw_epoch(P, seed=0, epoch=0, num=0)),
        ("p", lambda: resample(SPLIT, P[:-1], seed=0, epoch=0)),
        ("batch_size", lambda: importance_epoch(jax.random.key(0), P, N + 1)),
    ],
)
def test_bad_arguments_are_named(argument, call):
    with pytest.raises(ValueError, match=rf": {argument} must be .*got "):
        call()
