"""The spectral start against NumPy's eigenvectors, and its robustness to outliers."""

import jax
import jax.numpy as jnp
import numpy as np

import regjax as rj

RNG = np.random.default_rng(0)


def test_equals_its_reference(x64):
    A, y = RNG.normal(size=(50, 4, 4)), RNG.normal(size=50)
    total = np.zeros((4, 4))
    for matrix, target in zip(A, y, strict=True):
        total += np.sign(target) * (matrix + matrix.T) / 2 / 50
    values, vectors = np.linalg.eigh(total)
    run = jax.jit(rj.weights.spectral_small_init, static_argnames="rank")
    for rank in (1, 4):
        got = run(A, y, rank=rank, scale=1e-15)
        keep = np.argsort(-values)[:rank]
        want = vectors[:, keep] * np.sqrt(np.maximum(values[keep], 0))
        np.testing.assert_allclose(got @ got.T / 1e-30, want @ want.T, rtol=1e-8, atol=1e-10)
        assert got.shape == (4, rank)
        largest = np.take_along_axis(np.asarray(got), np.abs(got).argmax(0)[None], 0)
        assert np.all(largest >= 0)
        np.testing.assert_allclose(np.linalg.norm(got, axis=0) ** 2 / 1e-30, np.maximum(values[keep], 0), atol=1e-10)
    assert np.sum(values < 0) >= 1 and not np.asarray(got)[:, -1].any(), "a negative eigenvalue gives a column of zeros"


def test_outliers_do_not_turn_it():
    factor = RNG.normal(size=(6, 2))
    A = RNG.normal(size=(4000, 6, 6))
    y = np.einsum("mij,ij->m", A, factor @ factor.T)
    y[::10] = 1e6 * RNG.normal(size=400)
    U = np.asarray(rj.weights.spectral_small_init(jnp.asarray(A, jnp.float32), jnp.asarray(y, jnp.float32), rank=2, scale=1.0))
    basis, found = np.linalg.qr(factor)[0], np.linalg.qr(U)[0]
    assert np.linalg.svd(basis.T @ found)[1].min() > 0.95
