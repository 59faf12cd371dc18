"""The table: one example, or more, for each public technique."""

import importlib

from regjax.catalog import STAGES
from tests.contracts.example import Example

EXAMPLES: tuple[Example, ...] = tuple(
    example for stage in STAGES for example in importlib.import_module(f"tests.contracts.table.{stage}").EXAMPLES
)
