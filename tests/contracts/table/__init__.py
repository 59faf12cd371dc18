"""The table: one example, or more, for each public technique; a file for each group of kin, named after its stage."""

import importlib
import pkgutil

from tests.contracts.example import Example

EXAMPLES: tuple[Example, ...] = tuple(
    example
    for module in sorted(found.name for found in pkgutil.iter_modules(__path__))
    for example in importlib.import_module(f"{__name__}.{module}").EXAMPLES
)
