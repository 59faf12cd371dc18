"""ELR and ELR+ against loop-written float64 references and the published values."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import regjax as rj
from tests.references import log_softmax, soft_labels


def clipped(z, where, clip):
    p = np.exp(log_softmax(z, where))
    return np.array([min(max(v, clip), 1 - clip) if here else 0.0 for v, here in zip(p, where, strict=True)])


def cross_entropy(z, y, where):
    log_p = log_softmax(z, where)
    return -sum(y[k] * log_p[k] for k in range(len(z)) if y[k])


def elr(memory, z, y, indices, beta, weight, clip=1e-4, where=None):
    """One visit of a batch: the losses and the new memory."""
    memory, losses = memory.copy(), []
    for b, i in enumerate(indices):
        here = np.ones(len(z[b]), bool) if where is None else where[b]
        p = clipped(z[b], here, clip)
        memory[i] = beta * memory[i] + (1 - beta) * p / p.sum()
        losses.append(cross_entropy(z[b], y[b], here) + weight * np.log(1 - memory[i] @ p))
    return np.array(losses), memory


def elr_plus(memory, z, ema, y, indices, partners, share, beta, weight, reweight=False):
    memory, losses = memory.copy(), []
    here = np.ones(z.shape[1], bool)
    for b, i in enumerate(indices):
        memory[i] = beta * memory[i] + (1 - beta) * np.exp(log_softmax(ema[b]))
    for b, (i, j) in enumerate(zip(indices, partners, strict=True)):
        q = share[b] * memory[i] + (1 - share[b]) * memory[j]
        target = y[b] * q / (y[b] @ q) if reweight else y[b]
        losses.append(cross_entropy(z[b], target, here) + weight * np.log(1 - q @ clipped(z[b], here, 1e-4)))
    return np.array(losses), memory


RNG = np.random.default_rng(0)
N, B, K = 12, 6, 5
LOGITS, EMA = 2 * RNG.normal(size=(B, K)), RNG.normal(size=(B, K))
LABELS = RNG.integers(0, K, size=B)
SOFT = soft_labels(RNG, B, K)
INDICES = RNG.permutation(N)[:B]
MEMORY = 0.7 * soft_labels(RNG, N, K)
WHERE = RNG.random((B, K)) < 0.6
WHERE[np.arange(B), LABELS] = True


def state(memory=MEMORY, dtype=jnp.float64):
    return rj.losses.ELRState(jnp.asarray(memory, dtype))


@pytest.mark.parametrize("where", [None, WHERE])
def test_elr_equals_its_reference(x64, where):
    memory = rj.losses.elr(N, K, beta=0.9, weight=2.0, clip=0.01)
    apply = jax.jit(memory.apply)
    for labels, y in ((LABELS, np.eye(K)[LABELS]), (SOFT, SOFT)):
        y = y if where is None else y * where
        labels = labels if where is None or labels.ndim == 1 else y
        loss, new = apply(state(), LOGITS, labels, INDICES, where=where)
        want, want_memory = elr(MEMORY, LOGITS, y, INDICES, 0.9, 2.0, 0.01, where)
        np.testing.assert_allclose(loss, want, rtol=1e-12)
        np.testing.assert_allclose(new.targets, want_memory, rtol=1e-12, atol=1e-15)


def test_elr_published_values(x64):
    memory = rj.losses.elr(3, 3, beta=0.7, weight=3.0)
    apply = jax.jit(memory.apply)
    z, y, i = np.array([[2.0, 1.0, 0.0]]), np.array([1]), np.array([1])
    assert memory.init().targets.dtype == jnp.float32
    loss, new = apply(state(np.zeros((3, 3))), z, y, i)
    assert loss[0] == pytest.approx(0.908865, abs=5e-7)
    np.testing.assert_allclose(new.targets[1], [0.199572, 0.073419, 0.027009], atol=5e-7)
    loss, new = apply(new, z, y, i)
    assert loss[0] == pytest.approx(0.502762, abs=5e-7)
    np.testing.assert_allclose(new.targets[1], [0.339273, 0.124812, 0.045916], atol=5e-7)
    # Without bias correction: after n visits with the same prediction t = (1 - beta^n) p.
    for _ in range(3):
        loss, new = apply(new, z, y, i)
    np.testing.assert_allclose(new.targets[1], (1 - 0.7**5) * np.exp(log_softmax(z[0])), rtol=1e-12)
    assert np.all(np.asarray(new.targets)[[0, 2]] == 0)


def test_elr_gradient(x64):
    """The gradient of the penalty is -w p_k (t_k - <t, p>) / (1 - <t, p>), with the new t as a constant."""
    memory = rj.losses.elr(N, K, beta=0.7, weight=3.0)

    @jax.jit
    def gradients(targets, z):
        whole = jax.grad(lambda targets, z: memory.apply(rj.losses.ELRState(targets), z, LABELS, INDICES)[0].sum(), (0, 1))
        penalty = jax.grad(lambda z, t: rj.losses.elr_penalty(z, t).sum(), (0, 1))
        ema = jax.grad(lambda t, z: rj.losses.elr_targets(t, z).sum(), (0, 1))
        return whole(targets, z), penalty(z, targets[:B]), penalty(z, jnp.full((B, K), 0.15))[0], ema(targets[:B], z)

    (to_memory, to_logits), (to_z, to_targets), flat, ema = gradients(MEMORY, LOGITS)
    p = np.exp([log_softmax(z) for z in LOGITS])
    t = elr(MEMORY, LOGITS, SOFT, INDICES, 0.7, 3.0)[1][INDICES]
    inner = (t * p).sum(-1, keepdims=True)
    want = p - np.eye(K)[LABELS] - 3.0 * p * (t - inner) / (1 - inner)
    np.testing.assert_allclose(to_logits, want, rtol=1e-8, atol=1e-12)
    assert np.all(np.asarray(to_memory) == 0) and np.all(np.asarray(to_targets) == 0)
    assert all(np.all(np.asarray(x) == 0) for x in ema)
    np.testing.assert_allclose(flat, 0, atol=1e-15)
    assert np.abs(to_z).max() > 1e-3


def test_elr_limits(x64):
    plain = optax.softmax_cross_entropy_with_integer_labels(jnp.asarray(LOGITS), LABELS)
    loss, new = jax.jit(rj.losses.elr(N, K, weight=0.0).apply)(state(), LOGITS, LABELS, INDICES)
    np.testing.assert_allclose(loss, plain, rtol=1e-12)
    np.testing.assert_allclose(new.targets, elr(MEMORY, LOGITS, SOFT, INDICES, 0.7, 0.0)[1], rtol=1e-12)
    # A frozen and empty memory has nothing to agree with.
    loss, new = jax.jit(rj.losses.elr(N, K, beta=1.0).apply)(state(0 * MEMORY), LOGITS, LABELS, INDICES)
    np.testing.assert_allclose(loss, plain, rtol=1e-12)
    assert np.all(np.asarray(new.targets) == 0)


def test_pure_functions_take_any_axis_and_leading_dimensions(x64):
    z, t = RNG.normal(size=(2, K, 3)), np.moveaxis(0.6 * soft_labels(RNG, 2, 3, K), -1, 1)
    new, penalty = jax.jit(lambda t, z: (rj.losses.elr_targets(t, z, beta=0.9, axis=1), rj.losses.elr_penalty(z, t, axis=1)))(
        t, z
    )
    new, penalty = np.asarray(new), np.asarray(penalty)
    for b in range(2):
        for i in range(3):
            p = clipped(z[b, :, i], np.ones(K, bool), 1e-4)
            np.testing.assert_allclose(new[b, :, i], 0.9 * t[b, :, i] + 0.1 * p / p.sum(), rtol=1e-12)
            assert penalty[b, i] == pytest.approx(np.log(1 - p @ t[b, :, i]), rel=1e-12)


def test_saturated_and_masked_rows_stay_finite():
    memory = rj.losses.elr(8, 3, beta=0.0, weight=3.0)
    z = jnp.array([[1e4, 0, -1e4], [0, 0, 0], [-1e4, -1e4, -1e4], [1e4, 1e4, 0]], jnp.float32)
    where = jnp.array([[True] * 3, [False] * 3, [True] * 3, [True, False, False]])

    @jax.jit
    def run(z, where):
        def total(z):
            loss, new = memory.apply(memory.init(), z, jnp.zeros(4, int), jnp.arange(4), where=where)
            return loss.sum(), (loss, new.targets, rj.losses.elr_penalty(z, jnp.ones((4, 3)), clip=0.0))

        return jax.grad(total, has_aux=True)(z)

    for mask in (where, jnp.ones_like(where)):
        assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(run(z, mask)))
    # Full agreement: log(1 - <t, p>) with p clipped at 1 - 1e-4 and t of sum 1.
    _, (loss, targets, _) = run(z, jnp.ones_like(where))
    assert loss[0] == pytest.approx(3 * np.log(1 - targets[0] @ np.array([1 - 1e-4, 1e-4, 1e-4])), rel=1e-3)
    assert loss[0] > 3 * np.log(1e-4)


@pytest.mark.parametrize("reweight", [False, True])
def test_elr_plus_equals_its_reference(x64, reweight):
    memory = rj.losses.elr_plus(N, K, beta=0.9, weight=2.0, ramp_steps=40, reweight_labels=reweight)
    apply = jax.jit(memory.apply)
    partners = INDICES[::-1]
    for share in (np.full(B, 0.7), RNG.random(B)):
        loss, new = apply(state(), LOGITS, EMA, SOFT, INDICES, partners, share, step=10)
        ramp = np.exp(-5 * (1 - 0.25) ** 2)
        want, want_memory = elr_plus(MEMORY, LOGITS, EMA, SOFT, INDICES, partners, share, 0.9, 2.0 * ramp, reweight)
        np.testing.assert_allclose(loss, want, rtol=1e-12)
        np.testing.assert_allclose(new.targets, want_memory, rtol=1e-12)
    # The scalar weight, class ids, and the end of the ramp.
    loss, _ = apply(state(), LOGITS, EMA, LABELS, INDICES, partners, 0.7, step=100)
    want, _ = elr_plus(MEMORY, LOGITS, EMA, np.eye(K)[LABELS], INDICES, partners, np.full(B, 0.7), 0.9, 2.0)
    np.testing.assert_allclose(loss, want, rtol=1e-12)


def test_elr_plus_without_mixing_or_ramp(x64):
    memory = rj.losses.elr_plus(N, K)
    apply = jax.jit(memory.apply)
    loss, _ = apply(state(), LOGITS, EMA, SOFT, INDICES)
    np.testing.assert_allclose(loss, elr_plus(MEMORY, LOGITS, EMA, SOFT, INDICES, INDICES, np.ones(B), 0.7, 3.0)[0], rtol=1e-12)
    # Labels without any agreement with the targets are kept as they are.
    apply = jax.jit(rj.losses.elr_plus(N, K, beta=1.0, reweight_labels=True).apply)
    loss, _ = apply(state(0 * MEMORY), LOGITS, EMA, SOFT, INDICES)
    np.testing.assert_allclose(loss, optax.softmax_cross_entropy(jnp.asarray(LOGITS), SOFT), rtol=1e-12)


def test_elr_plus_gives_no_gradient_to_memory_and_average(x64):
    memory = rj.losses.elr_plus(N, K, reweight_labels=True)
    partners = np.setdiff1d(np.arange(N), INDICES)

    def total(targets, ema, z):
        return memory.apply(rj.losses.ELRState(targets), z, ema, SOFT, INDICES, partners, 0.7)[0].sum()

    to_memory, to_ema, to_logits = jax.jit(jax.grad(total, (0, 1, 2)))(MEMORY, EMA, LOGITS)
    assert np.all(np.asarray(to_memory) == 0) and np.all(np.asarray(to_ema) == 0)
    assert np.abs(to_logits).max() > 1e-3


def test_schedules_and_traced_strengths(x64):
    ramp = optax.linear_schedule(0.0, 4.0, 8)
    scheduled = rj.losses.elr(N, K, weight=ramp, beta=lambda step: 1 - 0.1 * step)

    @jax.jit
    def both(step, weight):
        z = jnp.asarray(LOGITS)
        fixed = rj.losses.elr(N, K, weight=weight, beta=jnp.asarray(0.6))
        a, b = scheduled.apply(state(), z, LABELS, INDICES, step=step), fixed.apply(state(), z, LABELS, INDICES)
        plus = rj.losses.elr_plus(N, K, weight=ramp, beta=0.6).apply(state(), z, z, LABELS, INDICES, step=step)
        return a, b, plus

    a, b, plus = both(4, 2.0)
    want, memory = elr(MEMORY, LOGITS, np.eye(K)[LABELS], INDICES, 0.6, 2.0)
    for got in (a, b):
        np.testing.assert_allclose(got[0], want, rtol=1e-12)
        np.testing.assert_allclose(got[1].targets, memory, rtol=1e-12)
    want = elr_plus(MEMORY, LOGITS, LOGITS, np.eye(K)[LABELS], INDICES, INDICES, np.ones(B), 0.6, 2.0)[0]
    np.testing.assert_allclose(plus[0], want, rtol=1e-12)
    with pytest.raises(ValueError, match=r"regjax\.losses\.elr: weight .*step"):
        rj.losses.elr(N, K, weight=ramp).apply(state(), LOGITS, LABELS, INDICES)
    with pytest.raises(ValueError, match=r"regjax\.losses\.elr_plus: step"):
        rj.losses.elr_plus(N, K, ramp_steps=3).apply(state(), LOGITS, EMA, LABELS, INDICES)
