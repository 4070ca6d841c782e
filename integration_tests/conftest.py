"""What the tests of all hosts share: losses whose sums are exact, and how states are compared."""

import numpy as np
import pytest
from hosts import NAMES, ROOT


@pytest.fixture
def exact_losses():
    """Draws the losses of single items, float32 ``(items,)`` by name: small multiples of 2**-6, so that no sum of them is rounded.

    With a number of items that is a power of two, neither is a mean. So the weights must be the same bits, however the items
    are parted into micro-batches.
    """

    def drawn(items: int, seed: int = 0) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(seed)
        return {name: (rng.integers(1, 64 << 3 * i, items) / 64).astype(np.float32) for i, name in enumerate(NAMES)}

    return drawn


@pytest.fixture
def state_of():
    """The state of a balancer of either framework, as bytes by name; of one without state, none."""

    def state(balancer) -> dict[str, bytes]:
        if not hasattr(balancer, "export_state"):
            return {}
        return {name: value.tobytes() for name, value in balancer.export_state()["state"].items()}

    return state


@pytest.fixture
def run_example(tmp_path):
    """Runs an example as `make host` does, in a folder of its own, and returns what it printed."""
    import subprocess
    import sys

    def run(host: str, *words: str, timeout: int = 600) -> str:
        command = [sys.executable, str(ROOT / f"examples/hosts/{host}.py"), *words]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=timeout, check=False)
        assert done.returncode == 0, done.stderr[-4000:]
        return done.stdout

    return run


@pytest.fixture
def run_page():
    """Runs the Python blocks of a host's page, each by itself."""
    import re

    def run(host: str) -> None:
        blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / f"docs/hosts/{host}.md").read_text("utf-8"), re.DOTALL | re.MULTILINE)
        assert blocks, f"docs/hosts/{host}.md has no Python block"
        for block in blocks:
            exec(compile(block, f"<docs/hosts/{host}.md>", "exec"), {"__name__": "__document__"})

    return run


@pytest.fixture(scope="module")
def one_thread():
    """One thread for PyTorch, whose models are tiny here: more would cost more than they do."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
