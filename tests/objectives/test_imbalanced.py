"""ImbSAM against loop-written float64 references, the published values, and SAM where all classes are rare."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_digits

import regjax as rj
from tests.objectives.problems import (
    LINEAR,
    MLP,
    X,
    Y,
    arrays,
    close,
    hidden,
    linear_gradient,
    linear_loss,
    mlp_loss,
    normalised_loss,
    same,
    step_flops,
    whole_numbers,
)

imbsam, sam = rj.objectives.imbsam, rj.objectives.sam
COUNTS = (500, 20, 19, 3)
LABELS = np.random.default_rng(3).integers(0, 4, 16)
RARE = np.array([COUNTS[label] < 20 for label in LABELS])


def linear_losses(w, x, y, labels):
    """The terms of `linear_loss`."""
    return jnp.sum((w["scale"] * (x @ w["kernel"]) + w["bias"] - y) ** 2, -1) / 2


def mlp_losses(w, x, y, labels):
    """The terms of `mlp_loss`."""
    return jnp.mean((hidden(w, x) @ w["out"]["kernel"] + w["out"]["bias"] - y) ** 2, -1)


def transformed(losses, **options):
    return imbsam(losses, **{"class_counts": COUNTS, "tail_threshold": 20, "rho": 0.3, **options})


def partial_gradient(w, rows):
    """The gradient of a sum over some examples, divided by the whole batch size."""
    if not len(rows):
        return {n: np.zeros_like(leaf) for n, leaf in w.items()}
    return {n: leaf * len(rows) / 16 for n, leaf in linear_gradient(w, X[rows], Y[rows]).items()}


def reference(w, rare, tail_weight):
    head, tail = np.flatnonzero(~rare), np.flatnonzero(rare)
    h = partial_gradient(w, tail)
    length = np.sqrt(sum((leaf**2).sum() for leaf in h.values()))
    moved = {n: w[n] + (0.3 * h[n] / length if length else 0) for n in w}
    at_head, at_tail = partial_gradient(w, head), partial_gradient(moved, tail)
    return {n: at_head[n] + tail_weight * at_tail[n] for n in w}


def test_equals_its_reference_for_every_kind_of_batch(x64):
    w = arrays(LINEAR)
    run = jax.jit(lambda labels, s: jax.grad(transformed(linear_losses, tail_weight=s))(w, X, Y, labels))
    for labels in (LABELS, np.full(16, 3), np.zeros(16, int), np.full(16, -1), np.full(16, 7)):
        rare = np.array([0 <= label < 4 and COUNTS[label] < 20 for label in labels])
        for tail_weight in (1.0, 2.0):
            close(run(jnp.asarray(labels), tail_weight), reference(LINEAR, rare, tail_weight), rtol=1e-10, atol=1e-15)
    assert 0 < RARE.sum() < 16


def test_published_value(x64):
    losses = lambda w, labels: jnp.stack([w[0] ** 2, 4 * w[1] ** 2])  # halved by the mean over the two
    loss = imbsam(losses, class_counts=[100, 5], tail_threshold=20, rho=0.5)
    value, gradient = jax.jit(jax.value_and_grad(loss))(jnp.ones(2), jnp.array([0, 1]))
    assert value == pytest.approx(5.0, rel=1e-12)
    np.testing.assert_allclose(gradient, [1.0, 6.0], rtol=1e-12)


def test_limits_places_of_the_labels_and_permutations(x64):
    w = arrays(MLP)
    ids = jnp.asarray(LABELS)
    soft = 0.6 * jax.nn.one_hot(ids, 4) + 0.1
    order = np.random.default_rng(0).permutation(16)
    by_batch = lambda w, batch, key: mlp_losses(w, *batch["data"], None)

    @jax.jit
    def all_of_them(w):
        at = lambda loss, *args, **given: jax.value_and_grad(loss)(w, *args, **given)
        plain = at(transformed(mlp_losses), X, Y, ids)
        of_batch = transformed(by_batch, labels_arg=lambda batch, key: batch["label"])
        same_as_plain = [
            at(transformed(mlp_losses), X, Y, soft),
            at(transformed(mlp_losses, labels_arg=2), X, Y, ids),
            at(transformed(mlp_losses, labels_arg="labels"), X, Y, labels=ids),
            at(of_batch, {"data": (X, Y), "label": ids}, None),
            at(transformed(mlp_losses), X[order], Y[order], ids[order]),
            at(transformed(mlp_losses, rho=lambda step: 0.1 * step, tail_weight=lambda step: step / 3), X, Y, ids, step=3),
        ]
        none = at(transformed(mlp_losses, tail_threshold=0), X, Y, ids)
        everyone = at(transformed(mlp_losses, tail_threshold=math.inf), X, Y, ids)
        return plain, same_as_plain, none, everyone, at(mlp_loss, X, Y), at(sam(mlp_loss, rho=0.3), X, Y)

    plain, others, none, everyone, mean, perturbed = all_of_them(w)
    for other in others:
        close(other, plain, rtol=1e-11, atol=1e-15)
    close(none, mean)
    close(everyone, perturbed, rtol=1e-11)
    assert not np.allclose(plain[0], mean[0], rtol=1e-3)


def test_strength_0_is_the_mean_loss_and_needs_no_second_pass():
    calls = []

    def counted(w, labels):
        calls.append(1)
        return jnp.stack([w[0] ** 2, 4 * w[1] ** 2])

    value = imbsam(counted, class_counts=COUNTS, tail_threshold=20, rho=0)(jnp.ones(2), np.array([0, 3]))
    assert value == 2.5 and len(calls) == 1
    w, x, y = whole_numbers()
    want = jax.jit(jax.value_and_grad(linear_loss))(w, x, y)
    same(jax.jit(lambda s: jax.value_and_grad(transformed(linear_losses, rho=s))(w, x, y, LABELS))(jnp.zeros(())), want)


def test_aux_and_perturbation_do_not_depend_on_the_weight(x64):
    w, state = arrays(MLP), {"mean": jnp.zeros(7), "count": jnp.int32(3)}
    clean = normalised_loss(w, state, X, Y)[1]

    def each(w, x, y, labels):
        return mlp_losses(w, x, y, labels), (normalised_loss(w, state, x, y)[1], w)

    @jax.jit
    def outcomes(w):
        run = lambda **options: transformed(each, has_aux=True, **options)(w, X, Y, LABELS)
        at = {"aux_from": "perturbed"}
        by_aux = jax.grad(lambda w: transformed(each, has_aux=True)(w, X, Y, LABELS)[1][0]["mean"].sum())(w)
        return run(), run(**at), run(tail_weight=2.0, **at), by_aux

    (value, (stats, at)), (other, (seen, moved)), (heavier, (_, moved_too)), by_aux = outcomes(w)
    close((stats, at, other), (clean, w, value))
    close(moved_too, moved)
    assert np.abs(seen["mean"] - clean["mean"]).max() > 1e-3 and heavier > value
    assert math.isclose(np.sqrt(sum(((a - b) ** 2).sum() for a, b in zip(*map(jax.tree.leaves, (at, moved)), strict=True))), 0.3)
    assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(by_aux))


def test_one_gradient_of_a_batch_over_devices(x64):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    w = arrays(MLP)
    specs = (jax.P(), jax.P("data"), jax.P("data"), jax.P("data"))
    rows = functools.partial(jax.shard_map, mesh=mesh, in_specs=specs, out_specs=jax.P())
    mapped = rows(lambda *a: jax.lax.pmean(transformed(mlp_losses, axis_name="data")(*a), "data"))
    got = jax.jit(jax.value_and_grad(mapped))(w, *map(jnp.asarray, (X, Y, LABELS)))
    close(got, jax.jit(jax.value_and_grad(transformed(mlp_losses)))(w, X, Y, LABELS), rtol=1e-10, atol=1e-15)


def test_flops_are_one_forward_and_two_backward_passes_more():
    def per_example(loss_fn):
        rows = jax.vmap(lambda w, x, y: loss_fn(w, x[None], y[None]), in_axes=(None, 0, 0))
        return imbsam(rows, class_counts=COUNTS, tail_threshold=20)

    flops, text = step_flops(per_example)
    assert flops <= 2.68 * step_flops()[0] and "callback" not in text


@pytest.mark.slow
def test_raises_the_recall_of_the_worst_classes():
    digits = load_digits()
    images, labels = digits.data.astype(np.float32) / 16, digits.target
    held, held_labels = images[1000:], labels[1000:]
    # A long tail: 90 examples of digit 0, 2 of digit 9.
    counts = [max(2, round(90 * 50 ** (-k / 9))) for k in range(10)]

    def long_tail(rng):
        rows = [rng.permutation(np.flatnonzero(labels[:1000] == k))[: counts[k]] for k in range(10)]
        return rng.choice(np.concatenate(rows), (400, 64))

    batches = jnp.asarray([long_tail(np.random.default_rng(seed)) for seed in range(5)])
    keys = jax.random.split(jax.random.key(0), 5)

    def logits(w, x):
        return jax.nn.relu(x @ w["in"] + w["b"]) @ w["out"] + w["c"]

    def losses(w, x, y):
        return optax.softmax_cross_entropy_with_integer_labels(logits(w, x), y)

    def train(transformed, key, batches):
        init = jax.nn.initializers.he_normal()
        k1, k2 = jax.random.split(key)
        w = {"in": init(k1, (64, 64)), "b": jnp.zeros(64), "out": init(k2, (64, 10)), "c": jnp.zeros(10)}
        tx = optax.sgd(0.1, momentum=0.9)
        x, y = jnp.asarray(images), jnp.asarray(labels)

        def step(carry, rows):
            w, state = carry
            updates, state = tx.update(jax.grad(transformed)(w, x[rows], y[rows]), state, w)
            return (optax.apply_updates(w, updates), state), None

        (w, _), _ = jax.lax.scan(step, (w, tx.init(w)), batches)
        return jnp.argmax(logits(w, held), -1)

    def worst(transformed):
        predictions = jax.jit(jax.vmap(functools.partial(train, transformed)))(keys, batches)
        recalls = [[np.mean(p[held_labels == k] == k) for k in range(10)] for p in np.asarray(predictions)]
        return np.sort(recalls)[:, :3].mean(1)

    plain = worst(sam(lambda *a: losses(*a).mean(), rho=0.2))
    tail = worst(imbsam(losses, class_counts=counts, tail_threshold=20, rho=0.2))
    assert (tail - plain).mean() > 0.01 and np.sum(tail > plain) >= 4, (plain, tail)
