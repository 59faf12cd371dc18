"""Strengths: schedules are evaluated where a parameter is annotated as one, and nowhere else."""

import functools

import jax
import numpy as np
import pytest

import regjax as rj
from regjax.core.strength import accepts, positional_count, resolve, strengths
from regjax.core.types import Strength


def technique(x, *, weight: Strength = 1.0, where=None):
    return weight, where


def test_at_step_binds_schedules_of_strengths_alone():
    predicate = lambda path: True
    bound = rj.at_step(functools.partial(technique, weight=lambda step: 2 * step, where=predicate), 3)
    assert bound(0) == (6, predicate)
    plain = functools.partial(technique, weight=0.5)
    assert rj.at_step(plain, 3) is plain and rj.at_step(technique, 3) is technique
    nested = functools.partial(functools.partial(technique, weight=lambda step: step), where=None)
    assert rj.at_step(nested, 4)(0)[0] == 4
    assert strengths(technique) == ("weight",)
    with pytest.raises(ValueError, match="fn must be a function"):
        rj.at_step(3, 0)


def test_resolve_asks_for_a_step():
    assert resolve(0.1, None, "f", "rho") == 0.1 and resolve(lambda s: s + 1, 2, "f", "rho") == 3
    with pytest.raises(ValueError, match=r"regjax\.f: rho must be .*step="):
        resolve(lambda s: s, None, "f", "rho")


def test_accepts_and_positional_count():
    assert accepts(technique, "weight") and not accepts(technique, "step") and accepts(lambda **k: 0, "step")
    assert accepts(functools.partial(technique, 1), "where")
    assert positional_count(lambda path, leaf: True) == 2 and positional_count(lambda params: True) == 1
    assert positional_count(lambda params, extra=0: True) == 1


def test_a_schedule_inside_a_compiled_step_traces_once():
    traces = []

    @jax.jit
    def step(i):
        traces.append(1)
        return rj.at_step(functools.partial(technique, weight=lambda s: 0.1 * s), i)(0)[0]

    np.testing.assert_allclose([step(i) for i in range(3)], [0, 0.1, 0.2], atol=1e-7)
    assert len(traces) == 1
