"""SAF and MESA against a memory kept by hand, the published values, and what a per-example memory must hold to."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from regjax.objectives import MESAState, SAFState, mesa, saf, trajectory_kl
from tests.references import log_softmax

RNG = np.random.default_rng(0)
N, B, K = 16, 8, 3
LOGITS, PAST = RNG.normal(size=(B, K)), RNG.normal(size=(B, K))
INDICES = RNG.permutation(N)[:B].astype(np.int32)


def divergence(z, past, t):
    """T^2 KL(past || z) of one example."""
    log_p, log_q = log_softmax(z / t), log_softmax(past / t)
    return t**2 * sum(np.exp(log_q[k]) * (log_q[k] - log_p[k]) for k in range(len(z)))


def softmax(z):
    return np.exp([log_softmax(row) for row in z])


def test_kl_published_values_formula_and_gradient(x64):
    @jax.jit
    def run(z, past, t, where):
        value = lambda z, past, where=None: trajectory_kl(z, past, temperature=t, where=where)
        return *jax.value_and_grad(value, (0, 1))(z, past), value(z, past, where), value(z + 7.0, past - past[:, :1])

    where = np.arange(B) % 3 > 0
    for t in (1.0, 5.0):
        value, (gradient, to_past), masked, shifted = run(LOGITS, PAST, t, where)
        each = [divergence(z, past, t) for z, past in zip(LOGITS, PAST, strict=True)]
        assert float(value) == pytest.approx(np.mean(each), rel=1e-12)
        assert float(masked) == pytest.approx(np.mean(np.array(each)[where]), rel=1e-12)
        assert float(shifted) == pytest.approx(np.mean(each), rel=1e-10)
        np.testing.assert_allclose(gradient, t / B * (softmax(LOGITS / t) - softmax(PAST / t)), rtol=1e-10, atol=1e-14)
        assert not np.any(to_past)
    value, (gradient, _), _, _ = run(LOGITS, LOGITS, 5.0, where)
    assert abs(float(value)) < 1e-14 and np.abs(gradient).max() < 1e-15
    one, zero = jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 1.0]])
    assert float(trajectory_kl(one, zero, temperature=1.0)) == pytest.approx(0.462117157, abs=5e-10)
    value, gradient = jax.value_and_grad(trajectory_kl)(one, zero)
    assert float(value) == pytest.approx(0.498339973, abs=5e-10)
    np.testing.assert_allclose(gradient, [[0.498339973, -0.498339973]], atol=5e-10)
    # A large temperature: half the squared distance of the centred logits over K.
    centred = lambda z: z - z.mean(1, keepdims=True)
    want = np.mean(np.sum((centred(LOGITS) - centred(PAST)) ** 2, 1)) / (2 * K)
    assert float(run(LOGITS, PAST, 1e4, where)[0]) == pytest.approx(want, rel=1e-3)


def test_small_probabilities_do_not_underflow():
    z = jnp.array([[0.0, 2000.0], [1e4, -1e4]], jnp.float32)
    value, gradient = jax.value_and_grad(functools.partial(trajectory_kl, temperature=1.0))(z, -z)
    assert np.isfinite(value) and float(value) == pytest.approx((2000 + 20_000) / 2, rel=1e-6)
    assert np.all(np.isfinite(gradient))


class ByHand:
    """SAF by a dictionary: what the network said of an example in an epoch."""

    def __init__(self, weight, temperature, lag, start, end):
        self.weight, self.t, self.lag, self.start, self.end = weight, temperature, lag, start, end
        self.said = {}

    def __call__(self, z, indices, epoch):
        total = 0.0
        for row, i in zip(z, indices, strict=True):
            self.said[epoch, int(i)] = row
            past = self.said.get((epoch - self.lag, int(i)))
            if past is not None and self.start < epoch and (self.end is None or epoch < self.end):
                total += divergence(row, past, self.t)
        return self.weight * total / len(z)


@pytest.mark.parametrize(("lag", "start", "end"), [(1, 0, None), (3, 4, 9)])
def test_saf_equals_its_reference_over_epochs(x64, lag, start, end):
    """Half the batches of an epoch are dropped at random, so that some slots hold older epochs."""
    options = {"weight": 0.7, "temperature": 2.0, "lag": lag, "start_epoch": start, "end_epoch": end}
    method = saf(num_examples=N, num_classes=K, dtype=jnp.float64, **options)
    state, by_hand, traces = method.init(), ByHand(0.7, 2.0, lag, start, end), []
    assert state.logits.shape == (N, lag + 1, K) and not np.any(state.epochs != -1)

    @jax.jit
    def step(state, z, indices, epoch):
        traces.append(1)
        return method.apply(state, z, indices, epoch)

    rng, seen = np.random.default_rng(1), []
    for epoch in range(12):
        order = rng.permutation(N).astype(np.int32).reshape(4, 4)
        for indices in order[: rng.integers(2, 5)]:
            z = rng.normal(size=(4, K))
            penalty, state = step(state, z, indices, epoch)
            want = by_hand(z, indices, epoch)
            assert float(penalty) == pytest.approx(want, rel=1e-10, abs=1e-14)
            seen.append((epoch, want > 0))
    active = {epoch for epoch, positive in seen if positive}
    assert active == {e for e in range(12) if e > start and e >= lag and (end is None or e < end)}
    assert len(traces) == 1


def filled(memory, epoch, *, lag=1, past=PAST):
    """The state after the past logits of the batch in an epoch."""
    return memory.apply(memory.init(), jnp.asarray(past, jnp.float32), INDICES, epoch)[1]


def test_the_gradient_reaches_the_logits_alone(x64):
    memory = saf(num_examples=N, num_classes=K, weight=0.3, lag=2, start_epoch=0, dtype=jnp.float64)
    past = memory.apply(memory.init(), PAST, INDICES, 1)[1]

    @jax.jit
    def gradients(z, buffer):
        def total(z, buffer):
            penalty, new = memory.apply(SAFState(buffer, past.epochs), z, INDICES, 3)
            return penalty + jnp.sum(new.logits)

        return jax.grad(total, (0, 1))(z, buffer)

    to_logits, to_memory = gradients(LOGITS, past.logits)
    np.testing.assert_allclose(to_logits, 0.3 * 5 / B * (softmax(LOGITS / 5) - softmax(PAST / 5)), rtol=1e-9)
    rows = np.zeros((N, 3))
    rows[INDICES, 0] = -1  # slot 3 mod 3 is overwritten by constants
    np.testing.assert_array_equal(to_memory, np.broadcast_to(1 + rows[..., None], (N, 3, K)))


def test_half_precision_memory_holds_large_logits():
    memory = saf(num_examples=N, num_classes=K, lag=1, start_epoch=0, dtype="float16")
    full = saf(num_examples=N, num_classes=K, lag=1, start_epoch=0)
    large = PAST + 1e6 * np.array([1.0, 1.0, -1.0])
    state = filled(memory, 1, past=large)
    assert state.logits.dtype == jnp.float16 and np.all(np.isfinite(state.logits))
    now = jnp.asarray(LOGITS, jnp.float32)
    for got, want, tolerance in ((filled(memory, 1), filled(full, 1), 1e-2), (state, filled(full, 1, past=large), 0.1)):
        a, b = memory.apply(got, now, INDICES, 2)[0], full.apply(want, now, INDICES, 2)[0]
        assert np.isfinite(a) and float(a) == pytest.approx(float(b), rel=tolerance)


def test_padding_and_positions_outside_the_memory():
    memory = saf(num_examples=N, num_classes=K, lag=1, start_epoch=0)
    state = filled(memory, 1)

    @jax.jit
    def run(z, indices, mask):
        value = lambda z: memory.apply(state, z, indices, 2, mask=mask)
        (penalty, new), gradient = jax.value_and_grad(value, has_aux=True)(z)
        return penalty, new, gradient

    mask = np.arange(B) < 5
    z = np.where(mask[:, None], LOGITS, np.nan).astype(np.float32)
    penalty, new, gradient = run(z, np.where(mask, INDICES, [0] * 5 + [INDICES[0], -1, N + 5]), mask)
    each = [divergence(a, b, 5.0) for a, b in zip(LOGITS[:5], PAST[:5], strict=True)]
    assert float(penalty) == pytest.approx(0.3 * np.mean(each), rel=1e-4)
    assert np.all(np.isfinite(gradient)) and not np.any(np.asarray(gradient)[5:])
    changed = np.flatnonzero(np.any(np.asarray(new.epochs) != np.asarray(state.epochs), -1))
    assert set(changed) == set(INDICES[:5])
    wrong = INDICES.copy()
    wrong[2], wrong[5] = N, -1
    penalty, new, _ = run(LOGITS.astype(np.float32), wrong, np.ones(B, bool))
    changed = np.flatnonzero(np.any(np.asarray(new.epochs) != np.asarray(state.epochs), -1))
    assert np.isnan(penalty) and set(changed) == set(np.delete(INDICES, [2, 5]))
    with pytest.raises(ValueError, match=r"regjax\.objectives\.saf: indices must be .*16 rows, got 16"):
        memory.apply(state, LOGITS, wrong, 2)


def test_schedules_are_read_at_the_step():
    ramp = optax.linear_schedule(0.0, 1.0, 10)
    fixed = saf(num_examples=N, num_classes=K, weight=0.5, temperature=2.0, lag=1, start_epoch=0)
    moving = saf(num_examples=N, num_classes=K, weight=ramp, temperature=lambda step: step - 3.0, lag=1, start_epoch=0)
    state, now = filled(fixed, 1), jnp.asarray(LOGITS, jnp.float32)

    @jax.jit
    def both(step):
        return fixed.apply(state, now, INDICES, 2)[0], moving.apply(state, now, INDICES, 2, step=step)[0]

    a, b = both(5)
    assert float(a) == pytest.approx(float(b), rel=1e-5) and a > 0


def mlp(params, x):
    for i, layer in enumerate(params):
        x = x @ layer
        x = x if i == len(params) - 1 else jax.nn.relu(x)
    return x


def training_step(memory):
    """One step of an MLP with 64 inputs and 10 classes, with and without the penalty, and with the memory donated."""

    def step(state, params, x, y, indices, epoch):
        def loss(params):
            logits = mlp(params, x)
            plain = optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
            if memory is None:
                return plain, state
            penalty, new = memory.apply(state, logits, indices, epoch)
            return plain + penalty, new

        (value, new), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        return new, jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient), value

    shape = lambda *n, dtype=jnp.float32: jax.ShapeDtypeStruct(n, dtype)
    params = [shape(64, 256), shape(256, 256), shape(256, 10)]
    state = None if memory is None else jax.eval_shape(memory.init)
    whole = lambda *n: shape(*n, dtype=jnp.int32)
    return jax.jit(step, donate_argnums=0).lower(state, params, shape(128, 64), whole(128), whole(128), whole()).compile()


def test_the_step_costs_what_the_plain_one_does_and_writes_in_place():
    size = 50_000
    memory = saf(num_examples=size, num_classes=10)
    plain, step = training_step(None), training_step(memory)
    assert step.cost_analysis()["flops"] < 1.02 * plain.cost_analysis()["flops"]
    held = size * 4 * (10 + 1) * 4
    report = step.memory_analysis()
    assert report.alias_size_in_bytes >= held
    assert report.temp_size_in_bytes < plain.memory_analysis().temp_size_in_bytes + held / 20


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
def test_sharded_over_examples_equals_one_device(kind):
    memory = saf(num_examples=N, num_classes=K, lag=1, start_epoch=0)
    state = filled(memory, 1)

    @jax.jit
    def run(state, z, indices, epoch):
        (penalty, new), gradient = jax.value_and_grad(lambda z: memory.apply(state, z, indices, epoch), has_aux=True)(z)
        return penalty, gradient, new

    logits = LOGITS.astype(np.float32)
    want = run(state, logits, INDICES, 2)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    with jax.set_mesh(mesh):
        rows, whole = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
        assert jax.jit(memory.init, out_shardings=rows)().logits.sharding.is_equivalent_to(rows, 3)
        placed = jax.tree.map(lambda x: jax.device_put(np.asarray(x), rows), state)
        for z_at, i_at in ((rows, rows), (whole, whole), (rows, whole)):
            got = run(placed, jax.device_put(logits, z_at), jax.device_put(INDICES, i_at), 2)
            assert got[2].logits.sharding.is_equivalent_to(rows, 3)
            for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_mesa_penalty_average_and_activity(x64):
    method = mesa(weight=0.8, temperature=2.0, decay=0.9, start_epoch=5)
    params = {"w": jnp.asarray(RNG.normal(size=3)), "count": jnp.int32(1)}

    @jax.jit
    def run(state, z, past, epoch, params):
        penalty, gradient = jax.value_and_grad(lambda z: method.apply(state, z, past, epoch))(z)
        return penalty, gradient, method.update(state, params)

    state = method.init(params)
    each = [divergence(z, past, 2.0) for z, past in zip(LOGITS, PAST, strict=True)]
    penalty, gradient, new = run(state, LOGITS, PAST, 6, {"w": params["w"] + 1.0, "count": jnp.int32(2)})
    assert float(penalty) == pytest.approx(0.8 * np.mean(each), rel=1e-12)
    np.testing.assert_allclose(gradient, 0.8 * 2 / B * (softmax(LOGITS / 2) - softmax(PAST / 2)), rtol=1e-9)
    np.testing.assert_allclose(new.average["w"], params["w"] + 0.1, rtol=1e-12)
    assert isinstance(new, MESAState) and int(new.average["count"]) == 2
    penalty, gradient, _ = run(state, LOGITS, PAST, 5, params)
    assert penalty == 0 and not np.any(gradient)
    mask = np.arange(B) < 5
    padded = method.apply(state, np.where(mask[:, None], LOGITS, np.nan), PAST, 6, mask=mask)
    assert float(padded) == pytest.approx(0.8 * np.mean(each[:5]), rel=1e-12)


def test_mesa_average_of_low_precision_weights_and_its_limits():
    start, new = {"w": jnp.zeros(1, jnp.bfloat16)}, {"w": jnp.ones(1, jnp.bfloat16)}
    method = mesa()
    state = method.init(start)
    for _ in range(4):
        state = method.update(state, new)
    assert state.average["w"].dtype == jnp.float32
    assert float(state.average["w"][0]) == pytest.approx(1 - 0.9995**4, rel=1e-3)
    now = mesa(decay=0.0)
    broken = MESAState({"w": jnp.full(1, jnp.nan)})
    assert now.update(broken, new).average["w"][0] == 1.0


@pytest.mark.slow
def test_on_digits_saf_is_flatter_at_the_same_training_loss():
    """The largest eigenvalue of the Hessian where the training loss passes 0.06, for three starts."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))[:512]
    x, y = jnp.asarray(x[order] / 16, jnp.float32), jnp.asarray(y[order])
    cross_entropy = lambda z, y: optax.softmax_cross_entropy_with_integer_labels(z, y).mean()
    logits = lambda params, x: jnp.tanh(x @ params[0]) @ params[1]
    whole = lambda params: cross_entropy(logits(params, x), y)

    def sharpness(params):
        def power(v, _):
            product = jax.jvp(jax.grad(whole), (params,), (v,))[1]
            length = optax.tree.norm(product)
            return jax.tree.map(lambda leaf: leaf / length, product), length

        return jax.lax.scan(power, [jnp.ones((64, 32)).at[0].set(-1), jnp.eye(32, 10)], length=15)[1][-1]

    def train(key, weight):
        memory = saf(num_examples=512, num_classes=10, weight=weight, lag=2, start_epoch=3)
        one, two, shuffle = jax.random.split(key, 3)
        params = [jax.random.normal(one, (64, 32)) / 8, jax.random.normal(two, (32, 10)) / 6]

        def epoch(carry, e):
            def step(carry, rows):
                params, state = carry

                def loss(params):
                    z = logits(params, x[rows])
                    penalty, new = memory.apply(state, z, rows, e)
                    return cross_entropy(z, y[rows]) + penalty, new

                gradient, state = jax.grad(loss, has_aux=True)(params)
                return (jax.tree.map(lambda p, g: p - 0.5 * g, params, gradient), state), None

            batches = jax.random.permutation(jax.random.fold_in(shuffle, e), 512).reshape(-1, 64)
            return jax.lax.scan(step, carry, batches)[0], None

        def epochs(carry, several):
            carry, _ = jax.lax.scan(epoch, carry, several)
            return carry, (whole(carry[0]), sharpness(carry[0]))

        return jax.lax.scan(epochs, (params, memory.init()), jnp.arange(75).reshape(-1, 15))[1]

    keys = jax.random.split(jax.random.key(0), 3)
    losses, tops = jax.jit(jax.vmap(jax.vmap(train, (0, None)), (None, 0)))(keys, jnp.array([0.0, 0.6]))
    assert np.all(losses[:, :, 0] > 0.06) and np.all(losses[:, :, -1] < 0.06)
    at = lambda loss, top: np.interp(-np.log(0.06), -np.log(loss), top)
    plain, ours = ([at(loss, top) for loss, top in zip(*pair, strict=True)] for pair in zip(losses, tops, strict=True))
    assert np.all(np.array(ours) < plain) and np.mean(ours) < 0.93 * np.mean(plain)
