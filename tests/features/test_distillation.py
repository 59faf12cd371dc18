"""Feature distillation against a loop."""

import jax
import jax.numpy as jnp
import numpy as np

import regjax as rj


def test_feature_distillation_is_the_loop(x64):
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=(4, 3, 2)), rng.normal(size=(4, 3, 2))
    got = rj.features.feature_distillation(student, teacher)
    for i in range(4):
        total = sum((student[i, j, k] - teacher[i, j, k]) ** 2 for j in range(3) for k in range(2))
        np.testing.assert_allclose(got[i], total / 6, rtol=1e-14)
    loss = lambda s, t: rj.features.feature_distillation(s, t).mean()
    to_student, to_teacher = jax.grad(loss, argnums=(0, 1))(jnp.asarray(student), jnp.asarray(teacher))
    np.testing.assert_allclose(to_student, 2 * (student - teacher) / 24, rtol=1e-14)
    assert not np.any(to_teacher)
    # Differences are taken in float32: of bfloat16 features of size 256 they would be multiples of 2.
    low = rj.features.feature_distillation(jnp.full((1, 3), 256, jnp.bfloat16), jnp.full((1, 3), 255, jnp.bfloat16))
    assert low.dtype == jnp.float32
    assert low.tolist() == [1.0]
