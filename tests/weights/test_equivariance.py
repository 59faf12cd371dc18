"""Bases of equivariant kernels against means over whole groups, and against the equations themselves."""

import itertools

import numpy as np
import pytest
from scipy.linalg import expm

import regjax as rj

RNG = np.random.default_rng(0)
TURN = np.array([[0.0, -1.0], [1.0, 0.0]])
FLIP = np.diag([1.0, -1.0])
PERMUTATIONS = [np.eye(3)[list(order)] for order in itertools.permutations(range(3))]


def powers(matrix, order):
    return [np.linalg.matrix_power(matrix, k) for k in range(order)]


def as_pairs(matrix):
    """The action on pairs of vectors."""
    return np.kron(np.eye(2), matrix)


GROUPS = {
    "turns by 90 degrees": ([TURN], [as_pairs(TURN)], [(g, as_pairs(g)) for g in powers(TURN, 4)], 4),
    "turns and flips": (
        [TURN, FLIP],
        [TURN, FLIP],
        [(g @ h, g @ h) for g in powers(TURN, 4) for h in (np.eye(2), FLIP)],
        1,
    ),
    "permutations": (
        [PERMUTATIONS[1], PERMUTATIONS[2]],
        [PERMUTATIONS[1], PERMUTATIONS[2]],
        [(g, g) for g in PERMUTATIONS],
        2,
    ),
    "invariance": ([TURN], [np.eye(1)], [(g, np.eye(1)) for g in powers(TURN, 4)], 0),
    "a bias": ([np.eye(1)] * 2, PERMUTATIONS[1:3], [(np.eye(1), g) for g in PERMUTATIONS], 1),
    "a turn by one degree": (
        [expm(np.deg2rad(1) * TURN)],
        [expm(np.deg2rad(1) * TURN)],
        [(expm(np.deg2rad(k) * TURN),) * 2 for k in range(360)],
        2,
    ),
}


@pytest.mark.parametrize("name", GROUPS)
def test_projects_as_the_mean_over_the_group(x64, name):
    inner, outer, group, rank = GROUPS[name]
    basis = np.asarray(rj.weights.group_projector(inner, outer))
    mean = sum(np.kron(a, b) for a, b in group) / len(group)
    assert basis.shape == (len(mean), rank)
    np.testing.assert_allclose(basis @ basis.T, mean, atol=1e-8)
    np.testing.assert_allclose(basis.T @ basis, np.eye(rank), atol=1e-12)
    for kernel in basis.T.reshape(-1, len(inner[0]), len(outer[0])):
        x = RNG.normal(size=len(kernel))
        for a, b in zip(inner, outer, strict=True):
            np.testing.assert_allclose((a @ x) @ kernel, b @ (x @ kernel), atol=1e-7)


def test_lie_algebras_and_matrices_that_are_not_orthogonal(x64):
    # All rotations of the plane commute with what the quarter turn commutes with.
    turning = np.asarray(rj.weights.group_projector([TURN], [TURN]))
    quarter = np.asarray(rj.weights.group_projector([expm(np.pi / 2 * TURN)], [expm(np.pi / 2 * TURN)]))
    np.testing.assert_allclose(turning @ turning.T, quarter @ quarter.T, atol=1e-12)
    # The algebra of rotations beside a flip: only multiples of the identity are left.
    both = np.asarray(rj.weights.group_projector([TURN, FLIP], [TURN, FLIP]))
    np.testing.assert_allclose(abs(both[:, 0]), [np.sqrt(0.5), 0, 0, np.sqrt(0.5)], atol=1e-12)
    # A shear and a boost, whose mean over the group does not exist.
    for generator, rank in ((np.array([[1.0, 1.0], [0.0, 1.0]]), 2), (np.array([[0.0, 1.0], [1.0, 0.0]]), 2)):
        basis = np.asarray(rj.weights.group_projector([generator], [generator]))
        assert basis.shape == (4, rank)
        for kernel in basis.T.reshape(-1, 2, 2):
            np.testing.assert_allclose(kernel.T @ generator, generator @ kernel.T, atol=1e-12)
