"""A law has a test for every example of the table to which it applies; those of one example share its compiled program."""

import pytest

from regjax import catalog
from tests.contracts.table import EXAMPLES

_ORDER = {id(example): position for position, example in enumerate(EXAMPLES)}


@pytest.fixture(scope="session")
def examples():
    """The whole table, for what holds of several examples together."""
    return EXAMPLES


def pytest_generate_tests(metafunc):
    """Laws get their examples."""
    if applies := getattr(metafunc.function, "applies", None):
        slow = lambda e: [pytest.mark.slow] if metafunc.function.dear and catalog.card(e.name).use.part_of else []
        found = [pytest.param(e, id=e.name, marks=slow(e)) for e in EXAMPLES if applies(e)]
        metafunc.parametrize("example", found)


def pytest_collection_modifyitems(items):
    """By example, and within it by the order of the files; tests without one stay first."""

    def position(item) -> int:
        example = getattr(item, "callspec", None) and item.callspec.params.get("example")
        return _ORDER.get(id(example), -1)

    contracts = [item for item in items if "tests/contracts/" in item.nodeid]
    where = [i for i, item in enumerate(items) if "tests/contracts/" in item.nodeid]
    for i, item in zip(where, sorted(contracts, key=position), strict=True):
        items[i] = item
