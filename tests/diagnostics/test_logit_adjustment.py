"""Post-hoc logit adjustment against a loop; its other half is tested with `losses.logit_adjusted`."""

import jax
import jax.numpy as jnp
import numpy as np

import regjax as rj

adjust = rj.diagnostics.adjust_logits


def test_equals_its_reference_on_any_axis_and_at_a_traced_strength(x64):
    rng = np.random.default_rng(0)
    z, counts = rng.normal(size=(2, 4, 3)), [5, 0, 3, 12]
    got = jax.jit(lambda z, tau: adjust(z, counts, tau=tau, axis=1))(z, 0.7)
    want = np.empty_like(z)
    for i in range(2):
        for k in range(4):
            for j in range(3):
                want[i, k, j] = z[i, k, j] - 0.7 * np.log(counts[k] / 20 + 1e-12)
    np.testing.assert_allclose(got, want, rtol=1e-12)


def test_the_rare_class_wins_where_it_is_likelier_than_its_frequency():
    # Calibrated under the priors .9 and .1, a prediction of .3 for the rare class is evidence for it.
    z = jnp.log(jnp.array([[0.7, 0.3], [0.95, 0.05]]))
    adjusted = adjust(z, [90, 10])
    np.testing.assert_array_equal(adjusted.argmax(-1), [1, 0])
    balanced = np.array([[0.7 / 0.9, 0.3 / 0.1], [0.95 / 0.9, 0.05 / 0.1]])
    np.testing.assert_allclose(jax.nn.softmax(adjusted), balanced / balanced.sum(-1, keepdims=True), rtol=1e-5)
    np.testing.assert_array_equal(adjust(z, [0, 0]).argmax(-1), z.argmax(-1))
