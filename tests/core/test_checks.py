"""Argument checks: what passes, what is refused, and that the message names function, argument, expectation and value."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from regjax.core import checks

X = jnp.ones((2, 3))
REFUSED = {
    "a string": (lambda: checks.number("f", "rate", "0.5"), "rate must be a finite number, got '0.5'"),
    "a boolean": (lambda: checks.number("f", "rate", True), "got True"),
    "NaN": (lambda: checks.number("f", "rate", float("nan")), "got nan"),
    "NaN from NumPy": (lambda: checks.number("f", "rate", np.float32("nan")), "got nan"),
    "infinite": (lambda: checks.number("f", "rate", np.inf), "got inf"),
    "too low": (lambda: checks.number("f", "rate", -0.1, low=0.0), "a finite number >= 0, got -0.1"),
    "on an open end": (lambda: checks.number("f", "rate", 1.0, low=0.0, high=1.0, open_high=True), r"in \[0, 1\), got 1.0"),
    "a vector": (lambda: checks.number("f", "rate", X[0]), r"scalar array, got float32\[3\]"),
    "a schedule": (lambda: checks.number("f", "rate", lambda step: 0.1), "at_step"),
    "a bad strength": (lambda: checks.strength("f", "rate", -1, low=0), ">= 0, got -1"),
    "a float for an integer": (lambda: checks.integer("f", "count", 2.0), "an integer, got 2.0"),
    "a low integer": (lambda: checks.integer("f", "count", 0, low=1), "an integer >= 1, got 0"),
    "a number for a flag": (lambda: checks.boolean("f", "flag", 1), "True or False, got 1"),
    "a misspelt option": (lambda: checks.choice("f", "mode", "bacth", ("batch", "pair")), "got 'bacth' .did you mean 'batch'"),
    "another type of option": (lambda: checks.choice("f", "mode", 1, (True, "x")), "one of True, 'x', got 1"),
    "no function": (lambda: checks.function("f", "loss_fn", 3), "a function, got 3"),
    "wrong rank": (lambda: checks.array("f", "x", X, ndim=1), r"of 1 dimensions, got float32\[2,3\]"),
    "wrong shape": (lambda: checks.array("f", "x", X, shape=(None, 2)), r"of shape \[any, 2\], got float32\[2,3\]"),
    "no array": (lambda: checks.array("f", "x", "abc"), "an array"),
    "ragged": (lambda: checks.array("f", "x", [[1], [1, 2]]), "an array"),
    "integers for floats": (lambda: checks.floating("f", "x", X.astype(int), min_ndim=1), "floating-point"),
    "floats for integers": (lambda: checks.integers("f", "x", X), "integer array"),
    "integer images": (lambda: checks.images("f", "images", jnp.ones((1, 2, 2, 3), jnp.uint8)), r"\[B, H, W, C\], got uint8"),
    "no key": (lambda: checks.key("f", 0), "one random key"),
    "many keys": (lambda: checks.key("f", jax.random.split(jax.random.key(0))), "one random key"),
    "a float mask": (lambda: checks.example_mask("f", "where", jnp.ones(2), (2,)), "boolean mask"),
    "another structure": (lambda: checks.same_structure("f", "b", {"x": 1}, {"y": 1}, "a"), "structure of a"),
    "another leaf shape": (
        lambda: checks.same_structure("f", "b", {"x": X}, {"x": X[0]}, "a"),
        r"b\['x'\] must be of shape \[3\]",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused_with_a_message(what):
    thunk, text = REFUSED[what]
    with pytest.raises(ValueError, match=text) as caught:
        thunk()
    assert str(caught.value).startswith("regjax.f: ")


def test_accepted_unchanged_also_traced():
    for value in (0, 0.5, np.float32(0.5), np.array(0.5), jnp.array(0.5)):
        assert checks.number("f", "rate", value, low=0, high=1) is value
    assert checks.strength("f", "rate", abs) is abs
    assert checks.choice("f", "adaptive", True, (False, True, "asam")) is True
    assert checks.integer("f", "count", np.int64(3)) == 3
    assert checks.example_mask("f", "where", None, (2,)) is None

    @jax.jit
    def traced(rate, x, key, raw):
        checks.number("f", "rate", rate, low=0, high=1)
        checks.floating("f", "x", x, shape=(2, None))
        checks.key("f", key), checks.key("f", raw)
        return rate

    assert traced(7.0, X, jax.random.key(0), jax.random.PRNGKey(0)) == 7.0
