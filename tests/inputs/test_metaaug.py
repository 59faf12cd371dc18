"""MetaAug: its terms against loops, the derivative through the student's step, and a two-bit network as an example."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import regjax as rj
from tests.references import log_softmax

RNG = np.random.default_rng(0)
X, X_VAL = RNG.normal(size=(6, 5)), RNG.normal(size=(6, 5))
TEACHER, STUDENT = RNG.normal(size=(5, 4)), RNG.normal(size=(5, 4))
MOVE = 0.1 * RNG.normal(size=5)


def teacher(x):
    features = jnp.tanh(x @ TEACHER)
    return features @ TEACHER.T[:, :3], features.reshape(len(x), 2, 2)


def student(w, x):
    return jnp.tanh(x @ w) @ TEACHER.T[:, :3]


def calibrate(x, w):
    return w - 0.05 * jax.grad(lambda w: jnp.mean((jnp.tanh(x @ w) - jnp.tanh(x @ TEACHER)) ** 2))(w)


def make(transform=lambda t, x: x + t, **options):
    return rj.inputs.meta_augment_objective(transform, calibrate, student, options.pop("teacher", teacher), **options)


def test_terms_equal_the_loop(x64):
    """The teacher writes down what it is shown: the other images, and the two mixtures."""
    options = {"kl_weight": 2.0, "distance_weight": 3.0, "pkt_weight": 50.0, "margin": 0.5, "temperature": 3.0}

    @jax.jit
    def run(key):
        """The value, the terms, what the teacher was shown, and its features; for both ways to mix."""
        results = []
        for share in (True, False):
            shown = []
            writing = lambda x, shown=shown: shown.append(x) or teacher(x)
            loss = make(teacher=writing, has_aux=True, share_mixup=share, **options)
            value, terms = loss(MOVE, X, X_VAL, key, jnp.asarray(STUDENT))
            features = [teacher(images)[1].reshape(6, 4) for images in shown[1:]]
            results.append((value, terms, shown, rj.features.probabilistic_knowledge_transfer(*features)))
        updated = calibrate(jnp.asarray(X + MOVE), jnp.asarray(STUDENT))
        return results, teacher(X_VAL)[0], student(updated, X_VAL)

    results, of_teacher, of_student = jax.tree.map(np.asarray, run(jax.random.key(1)))
    kl = 0.0
    for t, s in zip(of_teacher, of_student, strict=True):
        log_t, log_s = log_softmax(t / 3), log_softmax(s / 3)
        kl += sum(np.exp(a) * (a - b) for a, b in zip(log_t, log_s, strict=True)) / 6
    for share, (value, terms, shown, pkt) in zip((True, False), results, strict=True):
        assert terms["kl"] == pytest.approx(kl, rel=1e-6)
        assert terms["distance"] == pytest.approx(0.5 - np.mean(MOVE**2), rel=1e-6)
        np.testing.assert_array_equal(shown[0], X_VAL)
        drawn = [mixture(shown[1], X + MOVE), mixture(shown[2], X)]
        assert (drawn[0] == drawn[1]) is share
        assert all(0.5 <= lam <= 1 for lam, _ in drawn)
        assert terms["pkt"] == pytest.approx(pkt, rel=1e-9)
        assert value == pytest.approx(2 * terms["kl"] + 3 * terms["distance"] + 50 * terms["pkt"], rel=1e-12)


def mixture(mixed, images):
    """The weight (rounded) and the partners of a mixture of rows."""
    others = images[None] - images[:, None]  # [i, j]: from i to j
    gap = mixed - images
    for j in range(1, len(images)):
        share = gap[0] @ others[0, j] / (others[0, j] @ others[0, j])
        if np.allclose(gap[0], share * others[0, j], atol=1e-7) and share > 1e-6:
            break
    else:  # the first row is its own partner: read the weight off another
        return mixture(mixed[1:], images[1:]) if len(images) > 2 else (1.0, ())
    fits = lambda i, k: np.allclose(gap[i], share * others[i, k], atol=1e-7)
    return round(1 - share, 6), tuple(next(k for k in range(len(images)) if fits(i, k)) for i in range(len(images)))


def test_the_identity_costs_the_margin_alone_in_the_terms_of_the_images(x64):
    @jax.jit
    def run(near, far):
        arguments = (X, X_VAL, jax.random.key(0), jnp.asarray(STUDENT))
        identity = jax.value_and_grad(make(kl_weight=0.0, distance_weight=1.0, eps=1e-12))(jnp.zeros(5), *arguments)
        apart = make(kl_weight=0.0, distance_weight=0.0, share_mixup=False)(jnp.zeros(5), *arguments)
        alone = jax.grad(make(kl_weight=0.0, pkt_weight=0.0, distance_weight=1.0))
        return identity, apart, jax.vmap(lambda t: alone(t, *arguments))(jnp.stack([near, far]))

    (value, gradient), apart, (near, far) = run(jnp.full(5, 0.1), jnp.full(5, 0.4))
    assert value == pytest.approx(0.1, abs=1e-9)  # PKT of equal mixtures is 0
    np.testing.assert_allclose(gradient, 0, atol=1e-6)
    assert apart > 1  # unlike mixtures are compared
    np.testing.assert_allclose(near, -2 * 0.1 / 5, rtol=1e-9)  # descent moves the images further from themselves
    assert not far.any()  # but not past the margin


def test_strengths_may_be_schedules_and_traced(x64):
    arguments = (jnp.asarray(MOVE), X, X_VAL, jax.random.key(0), jnp.asarray(STUDENT))
    scheduled = make(kl_weight=lambda step: 2.0 * step, temperature=optax.linear_schedule(1.0, 5.0, 4))

    @jax.jit
    def run(step, weight, margin):
        fixed = make(kl_weight=6.0, temperature=4.0)(*arguments)
        return scheduled(*arguments, step=step), fixed, make(pkt_weight=weight, margin=margin, has_aux=True)(*arguments)

    at_step, fixed, (value, terms) = run(3, 70.0, 0.3)
    assert at_step == pytest.approx(float(fixed), rel=1e-6)
    assert terms["distance"] == pytest.approx(0.3 - np.mean(MOVE**2), rel=1e-9)
    assert value == pytest.approx(float(5 * terms["kl"] + 0.5 * terms["distance"] + 70 * terms["pkt"]), rel=1e-9)


def adam(w, gradients, rate, b1=0.9, b2=0.999, eps=1e-8):
    m = v = np.zeros_like(w)
    for t, g in enumerate(gradients, 1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        w = w - rate * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)
    return w


def test_the_inner_step_is_adam_and_has_a_derivative_everywhere(x64):
    loss = lambda w, x: jnp.sum(jnp.tanh(w) * x)
    step = rj.inputs.adam_student_step(loss, learning_rate=0.1)
    w, state, seen = jnp.asarray(MOVE), None, []
    state = step.init(w)
    for x in X[:3]:
        seen.append(np.asarray(jax.grad(loss)(w, x)))
        w, state = step.apply(state, w, x)
    np.testing.assert_allclose(w, adam(MOVE, seen, 0.1), rtol=1e-7)
    # At x = 0 the gradient is 0: plain Adam has no derivative there.
    through = lambda x, optimizer: jnp.sum(optimizer(x))
    ours = jax.grad(through)(jnp.zeros(5), lambda x: step.apply(step.init(MOVE), jnp.asarray(MOVE), x)[0])
    plain = optax.adam(0.1)
    theirs = jax.grad(through)(jnp.zeros(5), lambda x: plain.update(jax.grad(loss)(MOVE, x), plain.init(MOVE))[0])
    assert np.all(np.isfinite(ours)) and not np.all(np.isfinite(theirs))


@pytest.mark.slow
def test_a_transform_learns_to_calibrate_a_network_of_two_bits():
    """The entry whole, small: digits, 32 of them for calibration, weights of two bits with learned rounding.

    The transform starts as the identity, its last layer being 0. Each turn takes one step of the transform through the
    student's Adam step, then that step on the transformed images. What it has learned is seen from where the student began:
    one step on its images leaves the student closer to the teacher on other images than one step on the images themselves.
    """
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    x = jnp.asarray(x / 16, jnp.float32)
    keys = jax.random.split(jax.random.key(0), 8)
    dense = lambda key, a, b: jax.random.normal(key, (a, b)) / a**0.5
    full = {"first": dense(keys[0], 64, 32), "second": dense(keys[1], 32, 10)}
    hidden = lambda first, x: jax.nn.relu(x @ first)
    forward = lambda p, x: hidden(p["first"], x) @ p["second"]

    def descend(loss, start, rate, steps):
        """Adam inside one compiled loop."""
        optimizer = optax.adam(rate)

        def step(carry, _):
            p, state = carry
            updates, state = optimizer.update(jax.grad(loss)(p), state, p)
            return (optax.apply_updates(p, updates), state), None

        return jax.lax.scan(step, (start, optimizer.init(start)), length=steps)[0][0]

    def rounded(v, first):
        """Two bits: whole multiples from -2 to 1 of a scale, rounded up or down as learned."""
        scale = jnp.abs(first).max(0) / 1.5
        up = jnp.clip(1.2 * jax.nn.sigmoid(v) - 0.1, 0, 1)
        return scale * jnp.clip(jnp.floor(first / scale) + up, -2, 1)

    @jax.jit
    def run(key, calibration, others):
        p = descend(lambda p: rj.losses.label_smoothing(forward(p, x[:1200]), y[:1200], alpha=0.0).mean(), full, 1e-2, 150)
        first = p["first"]
        teacher = lambda x: (forward(p, x), hidden(first, x))
        scale = jnp.abs(first).max(0) / 1.5
        rest = jnp.clip((first / scale - jnp.floor(first / scale) + 0.1) / 1.2, 0.01, 0.99)
        v0 = jnp.log(rest / (1 - rest))  # the soft weights start as those of the teacher

        def reconstruction(v, x):
            up = jnp.clip(1.2 * jax.nn.sigmoid(v) - 0.1, 0, 1)
            binary = jnp.mean(1 - jnp.abs(2 * up - 1) ** 4)
            return jnp.mean(jnp.sum((hidden(rounded(v, first), x) - hidden(first, x)) ** 2, 1)) + 0.5 * binary

        inner = rj.inputs.adam_student_step(reconstruction, learning_rate=1e-2)
        transform = lambda t, x: x + jnp.tanh(x @ t["in"] + t["shift"]) @ t["out"]
        loss = rj.inputs.meta_augment_objective(
            transform,
            lambda x, v, state: inner.apply(state, v, x)[0],
            lambda v, x: forward({**p, "first": rounded(v, first)}, x),
            teacher,
            pkt_weight=1e3,
            margin=0.01,
            has_aux=True,
        )
        t = {"in": dense(keys[2], 64, 16), "shift": jnp.zeros(16), "out": jnp.zeros((16, 64))}
        optimizer = optax.chain(optax.clip_by_global_norm(0.1), optax.adam(3e-3))

        def turn(carry, key):
            t, outer, v, state = carry
            one, two = jax.random.split(key)
            x_val = others[jax.random.randint(one, (32,), 0, len(others))]
            gradient, _ = jax.grad(loss, has_aux=True)(t, calibration, x_val, two, v, state)
            updates, outer = optimizer.update(gradient, outer, t)
            t = optax.apply_updates(t, updates)
            v, state = inner.apply(state, v, transform(t, calibration))
            return (t, outer, v, state), None

        start = (t, optimizer.init(t), v0, inner.init(v0))
        (t, *_), _ = jax.lax.scan(turn, start, jax.random.split(key, 200))
        # The first and the last transform, for the student at its start and the same other images.
        ends = [loss(each, calibration, others, key, v0, inner.init(v0)) for each in (start[0], t)]
        return ends, jnp.mean((transform(t, calibration) - calibration) ** 2)

    for i in (0, 192):
        ends, moved = run(jax.random.key(5), x[i : i + 32], x[i + 32 : i + 64])
        (before, first), (after, last) = ends
        assert first["distance"] == pytest.approx(0.01) and first["pkt"] == pytest.approx(0, abs=1e-12)
        assert moved > 0.01 and last["distance"] == 0  # away from the images, past the margin
        assert last["pkt"] < 1e-7  # yet to the teacher they are neighbours as before
        assert last["kl"] < 0.99 * first["kl"] and after < before, ends
