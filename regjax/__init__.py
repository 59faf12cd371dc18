"""regjax: regularisation for JAX.

A training step is a pipeline, and every technique acts at one place of it; the subpackages are the places, in order:
``inputs``, ``layers``, ``features``, ``losses``, ``objectives``, ``gradients``, ``weights``; beside them ``schedules``
and ``diagnostics``.
"""

from regjax import diagnostics, features, gradients, inputs, layers, losses, objectives, schedules, weights
from regjax._version import __version__
from regjax.core.strength import at_step
from regjax.core.types import Learned, Stateful
from regjax.recipe import ApplyFn, Hooks, Outputs, Recipe, TrainState, TrainStep, make_train_step

__all__ = [
    "ApplyFn",
    "Hooks",
    "Learned",
    "Outputs",
    "Recipe",
    "Stateful",
    "TrainState",
    "TrainStep",
    "__version__",
    "at_step",
    "diagnostics",
    "features",
    "gradients",
    "inputs",
    "layers",
    "losses",
    "make_train_step",
    "objectives",
    "schedules",
    "weights",
]
