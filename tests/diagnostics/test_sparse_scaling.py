"""The scaling law of sparse networks: published values, its laws, and the fit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import regjax as rj
from regjax.diagnostics.sparsity.sparse_scaling import training_cost

d = rj.diagnostics
T5, VIT = d.SPARSE_SCALING_T5, d.SPARSE_SCALING_VIT
law, fit = jax.jit(d.sparse_scaling_law), jax.jit(d.fit_sparse_scaling_law)
S, N, D = (x.ravel() for x in np.meshgrid([0.0, 0.5, 0.75, 0.875], [1e6, 4e6, 2e7, 8e7], [3e8, 1e9, 1e10, 7e10]))


def reference(s, n, d, c):
    return (c.a_s * (1 - s) ** c.b_s + c.c_s) * (1 / n) ** c.b_n + (c.a_d / d) ** c.b_d + c.c


def test_published_values_and_laws(x64):
    got = law(np.array([0.0, 0.5, 0.75]), 1e8, 1e10, T5)
    np.testing.assert_allclose(got, [1.9097710, 1.8372402, 1.7932679], atol=5e-8)
    for coeffs in (T5, VIT):
        np.testing.assert_allclose(law(S, N, D, coeffs), reference(S, N, D, coeffs), rtol=1e-12)
        for arguments in ((S, N * 2, D), (S, N, D * 2), (S / 2 + 0.5, N, D)):
            assert np.all(law(*arguments, coeffs) < law(S, N, D, coeffs))
    dense = (T5.a_s + T5.c_s) * 1e8**-T5.b_n + (T5.a_d / 1e10) ** T5.b_d + T5.c
    assert got[0] == pytest.approx(dense, rel=1e-12)
    assert d.sparse_scaling_law(0.5, 10**8, 10**13, VIT) == pytest.approx(reference(0.5, 1e8, 1e13, VIT), rel=1e-12)


def test_best_sparsity_is_that_of_the_grid_and_grows_with_compute(x64):
    assert training_cost(0.0) == 1 and training_cost(0.5) == pytest.approx((0.25 + 0.5 * 0.625) / 0.5 + 0.25)
    grid = np.array([0.0, 0.5, 0.75, 0.9])
    sizes, compute = np.array([[1e7], [1e8]]), np.array([1e17, 1e19, 1e21])
    got = jax.jit(d.optimal_sparsity)(sizes, compute, T5, grid=grid)
    for place in np.ndindex(2, 3):
        n, c = sizes[place[0], 0], compute[place[1]]
        losses = [reference(s, n, c / (6 * n * training_cost(s)), T5) for s in grid]
        assert got[place] == grid[np.argmin(losses)]
    fine = d.optimal_sparsity(1e8, compute, T5)
    assert np.all(np.diff(fine) > 0) and fine.shape == (3,)


@pytest.mark.parametrize("coeffs", [T5, VIT])
def test_fit_predicts_what_it_has_not_seen(coeffs):
    unseen = (np.array([0.25, 0.6, 0.9]), np.array([3e6, 1e7, 2e8]), np.array([5e8, 3e9, 2e11]))
    got = fit(S, N, D, reference(S, N, D, coeffs))
    assert got.b_n.dtype == jnp.float32
    np.testing.assert_allclose(law(*unseen, got), reference(*unseen, coeffs), rtol=1e-4)
    np.testing.assert_allclose([got.b_s, got.b_n, got.b_d], [coeffs.b_s, coeffs.b_n, coeffs.b_d], rtol=1e-3)


def test_fit_in_float64_shrugs_off_runs_that_failed(x64):
    losses = reference(S, N, D, T5)
    exact = fit(S, N, D, losses)
    np.testing.assert_allclose([float(x) for x in exact], T5, rtol=1e-6)
    losses[[3, 20, 41]] *= 1.3  # Huber's loss counts them linearly: the rest decides
    np.testing.assert_allclose(law(S, N, D, fit(S, N, D, losses)), reference(S, N, D, T5), rtol=2e-3)


def test_runs_at_one_sparsity_still_fit_and_constant_losses_stay_finite():
    flat = S == 0
    s, n, data = np.tile(S[flat], 4), np.tile(N[flat], 4), np.tile(D[flat], 4)
    losses = reference(s, n, data, T5)
    np.testing.assert_allclose(law(s, n, data, fit(s, n, data, losses)), losses, rtol=1e-4)
    same = fit(S, N, D, np.ones(len(S)))
    assert all(np.isfinite(x) for x in same)
    np.testing.assert_allclose(law(S, N, D, same), 1, rtol=1e-3)
