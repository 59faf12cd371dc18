"""PS-KD against a loop-written float64 reference and the published values."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import regjax as rj
from tests.references import log_softmax, soft_labels


def ps_kd(memory, z, y, indices, epoch, alpha_final, total_epochs, where=None):
    """One visit of a batch: the losses, their gradients and the new memory."""
    memory, losses, gradients = memory.copy(), [], []
    alpha = alpha_final * min(max(epoch + 1, 0) / total_epochs, 1)
    for b, i in enumerate(indices):
        log_p = log_softmax(z[b], None if where is None else where[b])
        previous = y[b] if epoch == 0 or not memory[i].any() else memory[i]
        target = (1 - alpha) * y[b] + alpha * previous
        losses.append(-sum(target[k] * log_p[k] for k in range(len(target)) if target[k]))
        gradients.append(target.sum() * np.exp(log_p) - target)
        memory[i] = np.exp(log_p)
    return np.array(losses), np.array(gradients), memory


RNG = np.random.default_rng(0)
N, B, K = 12, 6, 5
LOGITS = 2 * RNG.normal(size=(B, K))
LABELS = RNG.integers(0, K, size=B)
SOFT = soft_labels(RNG, B, K)
INDICES = RNG.permutation(N)[:B]
WHERE = RNG.random((B, K)) < 0.6
WHERE[np.arange(B), LABELS] = True
MEMORY = soft_labels(RNG, N, K)
MEMORY[INDICES[0]] = 0


targets_of = jax.jit(rj.losses.ps_kd_targets, static_argnames="axis")


def state(memory=MEMORY):
    return rj.losses.PSKDState(jnp.asarray(memory))


@pytest.mark.parametrize("where", [None, WHERE])
def test_equals_its_reference_in_every_epoch_with_one_trace(x64, where):
    memory = rj.losses.ps_kd(N, K, alpha_final=0.7, total_epochs=4)
    traces = []

    @jax.jit
    def run(start, labels, epoch):
        traces.append(labels.ndim)

        def total(z):
            loss, new = memory.apply(start, z, labels, INDICES, epoch=epoch, where=where)
            return loss.sum(), (loss, new)

        return jax.grad(total, has_aux=True)(jnp.asarray(LOGITS))

    # A memory whose rows respect the mask.
    past = MEMORY.copy()
    if where is not None:
        past[INDICES] *= where
    for labels, y in ((LABELS, np.eye(K)[LABELS]), (SOFT, SOFT)):
        y = y if where is None else y * where
        labels = labels if labels.ndim == 1 else y
        for epoch in (0, 1, 3, 7):
            gradient, (loss, new) = run(state(past), labels, epoch)
            want, want_gradient, want_memory = ps_kd(past, LOGITS, y, INDICES, epoch, 0.7, 4, where)
            np.testing.assert_allclose(loss, want, rtol=1e-12)
            np.testing.assert_allclose(gradient, want_gradient, rtol=1e-10, atol=1e-14)
            np.testing.assert_allclose(new.predictions, want_memory, rtol=1e-12)
    assert traces == [1, 2]


def test_published_values(x64):
    target = targets_of(np.array(0), np.array([0.2, 0.5, 0.3]), 0.4)
    np.testing.assert_allclose(target, [0.68, 0.20, 0.12], rtol=1e-12)
    # alpha_e = 0.8 * (1 + 1) / 4 = 0.4
    memory = rj.losses.ps_kd(2, 3, alpha_final=0.8, total_epochs=4)
    past = state(np.array([[1.0, 0.0, 0.0], [0.2, 0.5, 0.3]]))

    def total(z):
        return memory.apply(past, z, np.array([0]), np.array([1]), epoch=1)[0][0]

    loss, gradient = jax.jit(jax.value_and_grad(total))(np.array([[2.0, 1.0, 0.0]]))
    assert loss == pytest.approx(0.847606, abs=5e-7)
    np.testing.assert_allclose(gradient[0], [-0.014759, 0.044728, -0.029969], atol=5e-7)


def test_limits(x64):
    plain = optax.softmax_cross_entropy_with_integer_labels(jnp.asarray(LOGITS), LABELS)
    for memory, epoch in (
        (rj.losses.ps_kd(N, K, alpha_final=0.0, total_epochs=4), 3),
        (rj.losses.ps_kd(N, K, alpha_final=0.8, total_epochs=4), 0),
    ):
        loss, new = jax.jit(memory.apply)(state(), LOGITS, LABELS, INDICES, epoch=epoch)
        np.testing.assert_allclose(loss, plain, rtol=1e-12)
        np.testing.assert_allclose(np.asarray(new.predictions)[INDICES], np.exp([log_softmax(z) for z in LOGITS]), rtol=1e-12)
    # In the last epoch, and after it, the share is alpha_final: here the memory alone.
    apply = jax.jit(rj.losses.ps_kd(N, K, alpha_final=1.0, total_epochs=4).apply)
    seen = np.where(MEMORY.any(-1, keepdims=True), MEMORY, np.eye(K)[0])
    for epoch in (3, 5):
        loss, _ = apply(state(seen), LOGITS, LABELS, INDICES, epoch=epoch)
        np.testing.assert_allclose(loss, optax.softmax_cross_entropy(jnp.asarray(LOGITS), seen[INDICES]), rtol=1e-12)


def test_targets_are_constants_and_unseen_rows_are_labels(x64):
    to_previous, to_labels = jax.grad(lambda p, y: targets_of(y, p, 0.3)[0, 0], (0, 1))(jnp.asarray(MEMORY[:B]), SOFT)
    assert np.all(np.asarray(to_previous) == 0) and np.all(np.asarray(to_labels) == 0)
    np.testing.assert_allclose(targets_of(SOFT, np.zeros((B, K)), 0.3), SOFT, rtol=1e-12)
    assert np.isnan(targets_of(np.array([K, -1]), MEMORY[1:3], 0.3)).all()
    # Any axis and leading dimensions.
    got = targets_of(LABELS.reshape(2, 3), np.moveaxis(SOFT.reshape(2, 3, K), -1, 1), 0.3, axis=1)
    want = (0.7 * np.eye(K)[LABELS] + 0.3 * SOFT).reshape(2, 3, K)
    np.testing.assert_allclose(got, np.moveaxis(want, -1, 1), rtol=1e-12)


def test_memory_starts_from_labels_and_keeps_its_dtype():
    for dtype in (jnp.bfloat16, "float16"):
        memory = rj.losses.ps_kd(B, K, total_epochs=2, dtype=dtype)
        assert np.array_equal(np.asarray(memory.init(LABELS).predictions, np.float32), np.eye(K)[LABELS])
        np.testing.assert_allclose(np.asarray(memory.init(SOFT).predictions, np.float32), SOFT, rtol=5e-3)
        start = memory.init()
        loss, new = jax.jit(memory.apply)(start, LOGITS.astype(jnp.dtype(dtype)), LABELS, np.arange(B), epoch=1)
        assert new.predictions.dtype == start.predictions.dtype == jnp.dtype(dtype) and loss.dtype == jnp.float32
        np.testing.assert_allclose(np.asarray(new.predictions, np.float32), np.exp([log_softmax(z) for z in LOGITS]), rtol=5e-2)


def test_target_entropy_grows_with_the_epoch(x64):
    """On fixed predictions the targets soften from one-hot as the share of the memory grows."""
    previous = np.broadcast_to(SOFT, (4, B, K))
    targets = jax.vmap(lambda p, alpha: targets_of(LABELS, p, alpha))(previous, 0.8 * np.arange(4) / 3)
    entropy = -np.sum(targets * np.log(np.maximum(targets, 1e-300)), -1).mean(-1)
    assert entropy[0] == 0 and np.all(np.diff(entropy) > 0)


def test_scheduled_share(x64):
    memory = rj.losses.ps_kd(N, K, alpha_final=optax.linear_schedule(0.0, 1.0, 10), total_epochs=4)
    loss, _ = jax.jit(memory.apply)(state(), LOGITS, LABELS, INDICES, epoch=1, step=7)
    np.testing.assert_allclose(loss, ps_kd(MEMORY, LOGITS, np.eye(K)[LABELS], INDICES, 1, 0.7, 4)[0], rtol=1e-6)
    with pytest.raises(ValueError, match=r"regjax\.losses\.ps_kd: alpha_final .*step"):
        memory.apply(state(), LOGITS, LABELS, INDICES, epoch=1)
