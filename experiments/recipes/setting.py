"""What a recipe is given, where it is entered, and what many recipes share."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import optax

import regjax as rj


@dataclasses.dataclass(frozen=True)
class Setting:
    """What a recipe may depend on.

    Attributes:
      num_examples: training examples N.
      num_classes: classes K.
      feature_dim: penultimate features D.
      steps_per_epoch: optimiser steps in an epoch.
      epochs: epochs in the run, the last perhaps cut short.
      total_steps: optimiser steps in the run.
      learning_rate: the learning rate of the plain method.
    """

    num_examples: int
    num_classes: int
    feature_dim: int
    steps_per_epoch: int
    epochs: int
    total_steps: int
    learning_rate: float = 0.02


RecipeFn = Callable[..., rj.Recipe]
RECIPES: dict[str, RecipeFn] = {}
"""The recipes by name, in the order of the pipeline."""
GRIDS: dict[str, dict[str, Sequence[Any]]] = {}
"""The values that `experiments.tune` tries for each recipe that has strengths to choose."""


def named(fn: RecipeFn) -> RecipeFn:
    """Enters a recipe under its function's name."""
    RECIPES[fn.__name__] = fn
    return fn


def tuned(**grid: Sequence[Any]) -> Callable[[RecipeFn], RecipeFn]:
    """Enters a recipe together with the values to try for its hyperparameters."""

    def enter(fn: RecipeFn) -> RecipeFn:
        GRIDS[fn.__name__] = grid
        return named(fn)

    return enter


def sgd(s: Setting, learning_rate: Any = None) -> optax.GradientTransformation:
    """The optimiser of the plain method: SGD with momentum 0.9 at a constant rate."""
    return optax.sgd(s.learning_rate if learning_rate is None else learning_rate, momentum=0.9)


@tuned()
def baseline(s: Setting) -> rj.Recipe:
    """Cross-entropy and SGD with momentum."""
    return rj.Recipe(optimizer=sgd(s))
