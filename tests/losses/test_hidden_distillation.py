"""Hidden-state distillation against its formula, and the published law of its rounds in a linear model."""

import jax
import jax.numpy as jnp
import numpy as np

import regjax as rj

RNG = np.random.default_rng(0)
distance = rj.losses.hidden_distillation


def test_equals_the_loop_and_its_gradients(x64):
    student, teacher = RNG.normal(size=(2, 4, 3))
    want = [sum((s - t) ** 2 for s, t in zip(*rows, strict=True)) for rows in zip(student, teacher, strict=True)]
    np.testing.assert_allclose(distance(student, teacher), want, rtol=1e-12)
    np.testing.assert_allclose(distance(student.T, teacher.T, axis=0), want, rtol=1e-12)
    got = jax.grad(lambda s, t: distance(s, t).mean(), argnums=(0, 1))(jnp.asarray(student), jnp.asarray(teacher))
    np.testing.assert_allclose(got[0], 2 * (student - teacher) / 4, rtol=1e-12)
    assert not np.any(got[1]) and not np.any(distance(student, student))
    assert distance(np.array([1.0, 2.0]), np.zeros(2)) == 5


def test_each_round_stays_closer_to_the_start(x64):
    # The linear model of the paper: every round starts anew and fits the hidden states of the model before it.
    inputs, start, first = RNG.normal(size=(30, 6)), RNG.normal(size=(6, 4)), RNG.normal(size=(6, 4))

    @jax.jit
    def fit(teacher):
        objective = lambda w: distance(inputs @ w, inputs @ teacher).mean()
        return jax.lax.fori_loop(0, 20, lambda _, w: w - 0.05 * jax.grad(objective)(w), jnp.asarray(start))

    models = [jnp.asarray(first)]
    for _ in range(3):
        models.append(fit(models[-1]))
    moved = [float(jnp.linalg.norm(w - start)) for w in models]
    assert moved[0] > moved[1] > moved[2] > moved[3] > 0.5 * moved[0]
