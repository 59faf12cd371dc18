"""What every technique costs: one case for each, from which the bounds in the cards' Cost sections are written and tested.

A module for each stage holds ``CASES``, functions without arguments that make a `Case`, by the public name without its stage,
and ``UNCOUNTED``, the names of what XLA does not compile as one call or what is no array work, each with the reason.
"""

import importlib
from collections.abc import Callable

from experiments.bench.cards.case import Case
from regjax import catalog


def cases(stage: str) -> dict[str, Callable[[], Case]]:
    """The cases of a stage by full name, in the order of the catalogue."""
    module = importlib.import_module(f"experiments.bench.cards.{stage}")
    names = [name.split(".")[1] for name in catalog.techniques() if name.startswith(f"{stage}.")]
    return {f"{stage}.{name}": module.CASES[name] for name in names if name in module.CASES}


def uncounted(stage: str) -> dict[str, str]:
    """The techniques of a stage without a case, and why."""
    module = importlib.import_module(f"experiments.bench.cards.{stage}")
    return {f"{stage}.{name}": reason for name, reason in module.UNCOUNTED.items()}
