"""What holds for every test of this project, in each process that runs them."""

import atexit
import gc
import os
import signal
import tempfile
import zlib
from collections.abc import Iterator, Sequence
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
    config.addinivalue_line("markers", "in_turn(n): about one row in n is run, unless with --every-row, -k or the id of a row")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out the rows whose turn it is not."""
    asked_for = config.option.keyword or any("::" in arg and "[" in arg for arg in config.args)
    if config.getoption("--every-row") or asked_for:
        return
    tests: dict[str, list[Any]] = {}
    for item in items:
        if item.get_closest_marker("in_turn") and hasattr(item, "callspec"):
            tests.setdefault(item.nodeid.partition("[")[0], []).append(item)
    left_out = {row for rows in tests.values() for row in rows} - {row for rows in tests.values() for row in in_turn(rows)}
    config.hook.pytest_deselected(items=[item for item in items if item in left_out])
    items[:] = [item for item in items if item not in left_out]


def in_turn(rows: Sequence[Any]) -> list[Any]:
    """The rows of a test that are run: one in n, and as many more as it takes that each value of a parameter with few is run."""
    (n,) = rows[0].get_closest_marker("in_turn").args
    places: dict[str, dict[int, int]] = {name: {} for name in rows[0].callspec.params}  # of a value, by its identity

    def place(row: Any) -> int:
        return sum(of.setdefault(id(row.callspec.params[name]), len(of)) for name, of in places.items())

    start = zlib.crc32(rows[0].originalname.encode())  # so that another test begins with another row
    run = [row for row in rows if (start + place(row)) % n == 0]
    few = [name for name, of in places.items() if len(of) * n <= len(rows)]

    def values(row: Any) -> set[tuple[str, int]]:
        return {(name, id(row.callspec.params[name])) for name in few}

    seen = {value for row in run for value in values(row)}
    for row in rows:
        if not run or not values(row) <= seen:
            run.append(row)
            seen |= values(row)
    return run


@pytest.fixture
def signals_of_a_terminal() -> Iterator[None]:
    """What the test starts can be asked to end. Under `nohup`, or in the background of a shell, it would inherit that it cannot."""
    ignored = [each for each in (signal.SIGINT, signal.SIGHUP) if signal.getsignal(each) is signal.SIG_IGN]
    for each in ignored:
        signal.signal(each, signal.SIG_DFL)
    yield
    for each in ignored:
        signal.signal(each, signal.SIG_IGN)


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """Leaves what was imported and collected out of the search for garbage: it stays to the end, and was a tenth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 50)
