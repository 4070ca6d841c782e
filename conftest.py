"""What holds for every test of this project, in each process that runs them."""

import atexit
import gc
import os
import tempfile
import zlib
from typing import Any

import pytest

# Dynamo looks for garbage after each compilation, through all that two frameworks and seven thousand tests have allocated.
os.environ.setdefault("TORCH_DYNAMO_RUN_GC_AFTER_COMPILE", "0")

# JAX keeps what XLA compiled in a folder of this run: many tests compile the same program, and so do the programs that they start.
# JAX reads this when it is imported. A worker has a folder of its own, since JAX writes a file while another process may read it.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _compiled = tempfile.TemporaryDirectory(prefix="loss-balancers-", ignore_cleanup_errors=True)
    atexit.register(_compiled.cleanup)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _compiled.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
elif "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] += f"/{os.environ['PYTEST_XDIST_WORKER']}"


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--every-row`, as `make test-all` has it."""
    parser.addoption("--every-row", action="store_true", help="also the rows whose turn it is not (`pytest.mark.in_turn`)")


def pytest_configure(config: pytest.Config) -> None:
    """The mark of a test that is expensive, and has a row for each balancer, mode, format or so."""
    config.addinivalue_line("markers", "in_turn(n): one row in n is run, unless with --every-row, or asked for by its id")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out the rows whose turn it is not."""
    if config.getoption("--every-row") or any("[" in arg for arg in config.args):
        return
    places: dict[tuple[str, str], dict[int, int]] = {}
    left_out = {item for item in items if not has_its_turn(item, places)}
    config.hook.pytest_deselected(items=[item for item in items if item in left_out])
    items[:] = [item for item in items if item not in left_out]


def has_its_turn(item: Any, places: dict[tuple[str, str], dict[int, int]]) -> bool:
    """Whether a row is run: each value of a parameter has one row in n, with others of the others, and each test begins elsewhere.

    ``places`` are those of the values of each parameter of each test, by their identity, in order of appearance.
    """
    if (mark := item.get_closest_marker("in_turn")) is None:
        return True
    test, _, _ = item.nodeid.partition("[")
    turn = zlib.crc32(item.originalname.encode())
    for name, value in item.callspec.params.items():
        of_values = places.setdefault((test, name), {})
        turn += of_values.setdefault(id(value), len(of_values))
    return turn % mark.args[0] == 0


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """Leaves what was imported and collected out of the search for garbage: it stays to the end, and was a tenth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 50)
