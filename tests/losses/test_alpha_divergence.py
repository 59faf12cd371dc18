"""Alpha-divergences: loops, the limits at 0 and 1, the clipped gradient, and which of two sides is the worse."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import regjax as rj
from tests.references import log_softmax

RNG = np.random.default_rng(0)
STUDENT, TEACHER = RNG.normal(size=(6, 5)), 2 * RNG.normal(size=(6, 5))
WHERE = RNG.random((6, 5)) < 0.6
WHERE[:, 1] = True


def one(s, t, alpha, clip):
    """Divergence, surrogate and its gradient of one example, by the definitions."""
    q, p = np.exp(log_softmax(s)), np.exp(log_softmax(t))
    r = p / q
    if abs(alpha - 1) < 1e-3:
        value, c = sum(p * np.log(r)), p
    elif abs(alpha) < 1e-3:
        r = np.minimum(r, clip)
        value, c = -sum(q * np.log(r)), q * (np.log(r) - 1)
    else:
        bounded = np.clip(r**alpha, 0, clip)
        value, c = sum(q * (bounded - 1)) / (alpha * (alpha - 1)), q * (bounded / alpha + 1 / (alpha * (alpha - 1)))
    return value, -sum(c * np.log(q)), q * sum(c) - c


def loop(s, t, alpha, clip, where=None):
    rows = [
        one(a, b, alpha, clip) if where is None else one(a[w], b[w], alpha, clip) for a, b, w in zip(s, t, WHERE, strict=True)
    ]
    return [np.array([row[i] for row in rows]) for i in range(2)] + [[row[2] for row in rows]]


@functools.partial(jax.jit, static_argnames="axis")
def divergence(s, t, alpha, clip, where=True, axis=-1):
    def total(s):
        value = rj.losses.alpha_divergence(s, t, alpha=alpha, clip=clip, where=where, axis=axis)
        return jnp.sum(value), value

    gradient, value = jax.grad(total, has_aux=True)(s)
    return value, gradient


def test_equals_its_definition_for_one_traced_alpha_after_another(x64):
    for clip in (1e3, 2.0):
        for alpha in (-1.0, -0.3, 0.0, 0.5, 1.0, 2.0):
            value, gradient = divergence(STUDENT, TEACHER, alpha, clip)
            want, _, slope = loop(STUDENT, TEACHER, alpha, clip)
            np.testing.assert_allclose(value, want, rtol=1e-10, atol=1e-12, err_msg=f"{alpha}, {clip}")
            np.testing.assert_allclose(gradient, slope, rtol=1e-9, atol=1e-12, err_msg=f"{alpha}, {clip}")
    value, gradient = divergence(STUDENT.T, TEACHER.T, 0.5, 2.0, WHERE.T, axis=0)
    want, _, slope = loop(STUDENT, TEACHER, 0.5, 2.0, WHERE)
    np.testing.assert_allclose(value, want, rtol=1e-10, atol=1e-12)
    for row, kept, expected in zip(gradient.T, WHERE, slope, strict=True):
        np.testing.assert_allclose(row[kept], expected, rtol=1e-9, atol=1e-12)
        assert not row[~kept].any()


def test_published_values(x64):
    s, t = jnp.array([2.0, 1.0, 0.0]), jnp.array([1.0, 3.0, 0.0])
    for alpha, want in {-1.0: 1.569632, 0.0: 0.938024, 0.5: 0.833822, 1.0: 0.811154, 2.0: 0.974255}.items():
        assert divergence(s, t, alpha, 1e3)[0] == pytest.approx(want, abs=5e-7)
    adaptive = rj.losses.adaptive_alpha_divergence
    both = jax.jit(lambda s, t: [jax.value_and_grad(functools.partial(adaptive, surrogate=b))(s, t) for b in (False, True)])
    (value, gradient), (number, same) = both(s, t)
    assert value == pytest.approx(1.295063, abs=5e-7)
    np.testing.assert_allclose(gradient, [0.937906, -0.807627, -0.130279], atol=5e-7)
    assert number == pytest.approx(-1.504022, abs=5e-7)
    np.testing.assert_array_equal(same, gradient)


def test_is_continuous_in_alpha_and_zero_for_equal_predictions(x64):
    kl = jax.jit(lambda s, t: rj.losses.distillation(s, t, temperature=1.0))
    forward, reverse = kl(STUDENT, TEACHER), kl(TEACHER, STUDENT)
    for at, want in ((1.0, forward), (0.0, reverse)):
        np.testing.assert_allclose(divergence(STUDENT, TEACHER, at, 1e9)[0], want, rtol=1e-10)
        exact = divergence(STUDENT, TEACHER, at, 1e9)[1]
        for step in (-2e-3, 2e-3):
            value, gradient = divergence(STUDENT, TEACHER, at + step, 1e9)
            np.testing.assert_allclose(value, want, rtol=2e-2)
            np.testing.assert_allclose(gradient, exact, atol=2e-2 * np.abs(exact).max())
        # The mean of both sides has no first-order error: nearer by far.
        sides = [divergence(STUDENT, TEACHER, at + step, 1e9)[0] for step in (-2e-3, 2e-3)]
        np.testing.assert_allclose((sides[0] + sides[1]) / 2, want, rtol=1e-3)
    p, q = (np.exp([log_softmax(z) for z in zs]) for zs in (TEACHER, STUDENT))
    np.testing.assert_allclose(divergence(STUDENT, TEACHER, 1.0, 1e3)[1], q - p, rtol=1e-9, atol=1e-14)
    for alpha in (-1.0, 0.0, 0.5, 1.0, 2.0):
        value, gradient = divergence(TEACHER + 3.0, TEACHER, alpha, 1e3)
        assert np.abs(value).max() < 1e-13 and np.abs(gradient).max() < 1e-13


def test_unclipped_gradient_is_the_derivative_of_the_value(x64):
    def direct(s, alpha):
        q, p = jax.nn.softmax(s), jax.nn.softmax(TEACHER)
        return jnp.sum(p**alpha * q ** (1 - alpha)) / (alpha * (alpha - 1))

    slope = jax.jit(jax.grad(direct))
    for alpha in (-1.0, 0.5, 2.0):
        got = divergence(STUDENT, TEACHER, alpha, 1e9)[1]
        np.testing.assert_allclose(got, slope(STUDENT, alpha), rtol=1e-8, atol=1e-10)


def test_far_predictions_stay_finite_and_the_bound_bounds_the_gradient():
    s, t = jnp.array([[0.0, -300.0, -1e4], [0.0, 0.0, -jnp.inf]]), jnp.array([[-1e4, 0.0, 0.0], [0.0, 0.0, -jnp.inf]])
    for alpha in (-1.0, 0.0, 0.5, 1.0, 2.0):
        value, gradient = divergence(s, t, alpha, 5.0)
        assert np.isfinite(value).all() and np.isfinite(gradient).all()
        assert value[1] == 0 and not np.asarray(gradient)[1].any()
        if alpha < 0:
            assert np.abs(gradient).max() <= 5 / abs(alpha)
    value, gradient = divergence(jnp.array([0.0, 0.0, -jnp.inf]), jnp.zeros(3), 1.0, 5.0)
    assert value == jnp.inf and np.isfinite(gradient).all()


def test_the_worse_side_teaches_each_example(x64):
    s, t = jnp.array([[0.0, 0.0, 0.0], [4.0, 0.0, 0.0]]), jnp.array([[4.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    (left, first), (right, second) = (divergence(s, t, alpha, 5.0) for alpha in (-1.0, 1.0))
    np.testing.assert_allclose(left, [1.224257, 0.896799], atol=5e-7)
    np.testing.assert_allclose(right, [0.921289, 1.604031], atol=5e-7)
    fn = jax.jit(jax.value_and_grad(lambda s: jnp.sum(rj.losses.adaptive_alpha_divergence(s, t))))
    value, gradient = fn(s)
    assert value == pytest.approx(1.224257 + 1.604031, abs=1e-6)
    np.testing.assert_allclose(gradient, [first[0], second[1]], rtol=1e-12)


def test_descent_reaches_the_teacher_from_every_side(x64):
    teacher = jnp.array([1.0, 3.0, 0.0])
    loss = lambda s: jnp.sum(rj.losses.adaptive_alpha_divergence(s, jnp.broadcast_to(teacher, s.shape)))
    step = lambda s, _: (s - 0.5 * jnp.clip(jax.grad(loss)(s), -1, 1), None)
    start = jnp.array([[6.0, 0.0, 0.0], [0.0, 0.0, 6.0], [0.0, 0.0, 0.0]])
    end = jax.jit(lambda s: jax.lax.scan(step, s, None, 300)[0])(start)
    p, q = np.exp(log_softmax(teacher)), np.exp([log_softmax(z) for z in end])
    assert np.max((p * np.log(p / q)).sum(-1)) < 1e-6 and np.max((q * np.log(q / p)).sum(-1)) < 1e-6
