"""What holds for every test of this project, in each process that runs them."""

import gc
import os

import pytest

# Dynamo looks for garbage after each compilation, through all that two frameworks and seven thousand tests have allocated.
os.environ.setdefault("TORCH_DYNAMO_RUN_GC_AFTER_COMPILE", "0")


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """Leaves what was imported and collected out of the search for garbage: it stays to the end, and was a tenth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 50)
