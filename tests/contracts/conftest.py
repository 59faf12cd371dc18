"""The tests of one example stand together, so that they share its compiled program."""

from tests.contracts.table import EXAMPLES

_ORDER = {id(example): position for position, example in enumerate(EXAMPLES)}


def pytest_collection_modifyitems(items):
    """By example, and within it by the order of the files; tests without one stay first."""

    def position(item) -> int:
        example = getattr(item, "callspec", None) and item.callspec.params.get("example")
        return _ORDER.get(id(example), -1)

    contracts = [item for item in items if "tests/contracts/" in item.nodeid]
    where = [i for i, item in enumerate(items) if "tests/contracts/" in item.nodeid]
    for i, item in zip(where, sorted(contracts, key=position), strict=True):
        items[i] = item
