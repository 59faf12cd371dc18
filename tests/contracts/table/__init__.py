"""The table: one example, or more, for each public technique; a file for each group of kin, named after its stage."""

import importlib
import pkgutil

from tests.contracts.example import Example


def __getattr__(name: str) -> tuple[Example, ...]:
    """``EXAMPLES``, made when first asked for: one file of the table is imported without all the others."""
    if name != "EXAMPLES":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    modules = sorted(found.name for found in pkgutil.iter_modules(__path__))
    examples = tuple(example for module in modules for example in importlib.import_module(f"{__name__}.{module}").EXAMPLES)
    globals()[name] = examples
    return examples
