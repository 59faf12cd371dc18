"""Examples of `regjax.schedules`: learning rates for a batch size, and from a spectrum."""

import jax.numpy as jnp
import numpy as np

import regjax as rj
from tests.contracts.example import Example

s = rj.schedules
NAN = float("nan")
W = jnp.ones(2)


def curvature_errors(fn) -> dict:
    """What the two functions of an eigenvalue refuse."""
    call = lambda eigenvalue=1.0, **options: fn(eigenvalue, **{"batch_size": 8, "noise_scale": 1.0, **options})
    return {
        "eigenvalue: NaN": lambda: call(NAN),
        "eigenvalue: a vector": lambda: call(W),
        "batch_size: 0": lambda: call(batch_size=0),
        "batch_size: a text": lambda: call(batch_size="8"),
        "num_examples: fewer than a batch": lambda: call(num_examples=4),
        "noise_scale: negative": lambda: call(noise_scale=-1.0),
        "noise_scale: NaN": lambda: call(noise_scale=NAN),
        "matrix: misspelt": lambda: call(matrix="fisher"),
        "num_parameters: missing": lambda: call(matrix="ggn"),
        "num_parameters: 0": lambda: call(matrix="ggn", num_parameters=0),
    }


def curvature(name) -> Example:
    """The example of a function of an eigenvalue, above and below the edge of both kinds of noise."""
    fn = getattr(s, name)

    def call(key, eigenvalue, noise_scale, batch_size):
        size = dict(batch_size=batch_size, num_examples=1000, noise_scale=noise_scale)
        ggn = dict(size, matrix="ggn", num_parameters=50)
        return [fn(value, **kind) for value in (eigenvalue, eigenvalue / 100) for kind in (size, ggn)]

    return Example(
        name=f"schedules.{name}",
        call=call,
        arrays={"eigenvalue": np.array(3.0), "noise_scale": np.array(4.0), "batch_size": np.array(16.0)},
        result="other",
        wrt=("eigenvalue", "noise_scale", "batch_size"),
        singular=({"eigenvalue": np.array(0.0)}, {"eigenvalue": np.array(-3.0)}, {"eigenvalue": np.array(0.5)}),
        bad=curvature_errors(fn),
    )


def scale(base=0.1, **options):
    return s.scale_learning_rate(base, **{"base_batch": 8, "batch": 16, **options})


EXAMPLES = (
    Example(
        name="schedules.scale_learning_rate",
        call=lambda key, base, batch: [scale(base, batch=batch), scale(base, batch=batch, rule="sqrt")],
        arrays={"base": np.array(0.1), "batch": np.array(32.0)},
        result="other",
        wrt=("base", "batch"),
        identity=lambda key, base, batch: (scale(0 * base, batch=batch), jnp.zeros_like(base)),
        bad={
            "base: negative": lambda: scale(-0.1),
            "base: NaN": lambda: scale(NAN),
            "base: a vector": lambda: scale(W),
            "base_batch: 0": lambda: scale(base_batch=0),
            "batch: negative": lambda: scale(batch=-8),
            "rule: misspelt": lambda: scale(rule="square"),
        },
    ),
    curvature("batch_max_eigenvalue"),
    curvature("max_learning_rate"),
    Example(
        name="schedules.lr_from_spectrum",
        call=lambda key, ritz_values, weights: [
            s.lr_from_spectrum(ritz_values, weights, rule=rule) for rule in ("polyak", "nesterov", "polyak_printed")
        ],
        arrays={"ritz_values": np.array([-1.0, 0.1, 0.5, 2.0]), "weights": np.array([0.1, 0.2, 0.6, 0.1])},
        result="other",
        wrt=("ritz_values",),
        singular=({"ritz_values": np.zeros(4)}, {"ritz_values": np.ones(4)}, {"weights": np.zeros(4)}),
        bad={
            "ritz_values: integers": lambda: s.lr_from_spectrum(jnp.ones(2, int), W),
            "ritz_values: rank": lambda: s.lr_from_spectrum(jnp.ones((2, 2)), W),
            "ritz_values: none": lambda: s.lr_from_spectrum(jnp.ones(0), jnp.ones(0)),
            "weights: another number": lambda: s.lr_from_spectrum(W, jnp.ones(3)),
            "rule: misspelt": lambda: s.lr_from_spectrum(W, W, rule="heavy"),
            "drop_bulk: no boolean": lambda: s.lr_from_spectrum(W, W, drop_bulk=1),
        },
    ),
)
