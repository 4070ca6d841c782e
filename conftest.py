"""What holds for every test of this project, in each process that runs them."""

import atexit
import gc
import os
import tempfile

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


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """Leaves what was imported and collected out of the search for garbage: it stays to the end, and was a tenth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 50)
