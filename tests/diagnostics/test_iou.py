"""Intersections over unions, batch by batch and point by point."""

import jax
import jax.numpy as jnp
import numpy as np

import regjax as rj


def test_points_equal_the_loop_and_the_rest_is_kept():
    random = np.random.default_rng(0)
    memory = rj.diagnostics.iou_history(3, 2)
    step = jax.jit(lambda state, p, y, close: memory.apply(state, p, y, close=close))
    state = memory.init()._replace(active=jnp.array([False, True, False]))
    points = []
    for _ in range(3):
        predictions, labels = random.integers(0, 3, (2, 4, 5, 5)), random.integers(0, 2, (2, 4, 5, 5))
        labels[random.random(labels.shape) < 0.2] = 255
        for i in range(2):
            iou, state = step(state, predictions[i], labels[i], i == 1)
        valid = labels != 255
        both = [np.sum(valid & (predictions == k) & (labels == k)) for k in range(3)]
        either = [np.sum(valid & ((predictions == k) | (labels == k))) for k in range(3)]
        points.append(np.divide(both, either))
        np.testing.assert_allclose(iou, points[-1], rtol=1e-6)
    np.testing.assert_allclose(state.history, points[:2], rtol=1e-6)
    assert int(state.points) == 2 and state.active.tolist() == [False, True, False] and not np.any(state.overlap)
