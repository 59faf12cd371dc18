"""Named recipes: the baseline, one for each technique, and two strong compositions.

Each is a function of the `Setting` whose keyword arguments are its hyperparameters; the defaults were chosen on validation
splits by ``python -m experiments.tune``, which tries the values that stand above each recipe.
"""

import difflib
import importlib
from collections.abc import Sequence
from typing import Any

import regjax as rj
from experiments.recipes.setting import GRIDS, RECIPES, RecipeFn, Setting, named, sgd, tuned

__all__ = ["GRIDS", "RECIPES", "RecipeFn", "Setting", "check_names", "make_recipe", "named", "sgd", "tuned"]

# Each module enters its recipes; reports and tables keep this order, that of the pipeline.
for _stage in ("inputs", "layers", "losses", "local", "training", "weights", "compositions"):
    importlib.import_module(f"{__name__}.{_stage}")


def make_recipe(name: str, setting: Setting, **hyperparameters: Any) -> rj.Recipe:
    """The recipe of a name; a ValueError names the nearest ones to an unknown name."""
    check_names([name])
    return RECIPES[name](setting, **hyperparameters)


def check_names(names: Sequence[str]) -> None:
    """Refuses unknown recipes and names the nearest known ones."""
    for name in names:
        if name not in RECIPES:
            near = difflib.get_close_matches(name, RECIPES, 3)
            hint = f"did you mean {' or '.join(near)}?" if near else f"the recipes are {', '.join(RECIPES)}"
            raise ValueError(f"no recipe {name!r}; {hint}")
