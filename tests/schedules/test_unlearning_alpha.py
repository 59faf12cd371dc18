"""The strength of unlearning against a loop over epochs."""

import jax
import numpy as np
import pytest

import regjax as rj


@pytest.mark.parametrize(("epochs", "without"), [(10, 0), (10, 2), (7, 3), (5, 5), (1, 0)])
def test_it_falls_epoch_by_epoch(x64, epochs, without):
    want = []
    for epoch in range(epochs + 3):
        for _ in range(4):
            if epochs == without:
                want.append(0.3)
            elif epoch < epochs - without:
                want.append(0.3 * (1 - epoch / (epochs - without)))
            else:
                want.append(0.0)
    steps = np.arange(len(want))
    make = lambda alpha: rj.schedules.unlearning_alpha(alpha=alpha, epochs=epochs, no_l1_epochs=without, steps_per_epoch=4)
    np.testing.assert_allclose(make(0.3)(steps), want, rtol=1e-12)
    if without == 2:
        np.testing.assert_allclose(jax.jit(lambda alpha: make(alpha)(steps))(0.3), want, rtol=1e-12)
    assert float(make(0.3)(-1)) == pytest.approx(0.3)
    by_epoch = rj.schedules.unlearning_alpha(alpha=0.3, epochs=epochs, no_l1_epochs=without)
    np.testing.assert_allclose(by_epoch(steps[: epochs + 3]), want[::4], rtol=1e-12)
