"""What the tests share: one balancer of every kind, losses, state as values to compare, and what Dynamo says of an error."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from with_state import EMA, EXAMPLES, NAMES
from with_state import assert_same_state as assert_same_state
from with_state import values as values

import loss_balancers.torch
from loss_balancers.spec import registry
from loss_balancers.spec.versions import release

#: By id; each takes `auto_step` and `process_group`.
BALANCERS = {name: partial(registry.make, settings, loss_balancers.torch) for name, settings in EXAMPLES.items()}


@pytest.fixture(autouse=True)
def forget_what_was_compiled():
    """Dynamo counts compilations by the code of a function, which all balancers share, and gives up after eight."""
    yield
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()


@pytest.fixture(params=BALANCERS)
def make(request):
    """Makes a balancer: of every kind in turn."""
    return BALANCERS[request.param]


@pytest.fixture(params=EMA)
def make_ema(request):
    """Makes a balancer that keeps the decayed sums of EMA."""
    return BALANCERS[request.param]


@pytest.fixture
def draw():
    """Draws losses; another seed, other losses."""

    def draw(seed=0, dtype=torch.float32, requires_grad=False, device=None):
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.rand(len(NAMES), generator=generator) * 4 + 0.1
        return {name: x.to(device, dtype).requires_grad_(requires_grad) for name, x in zip(NAMES, drawn, strict=True)}

    return draw


@pytest.fixture(scope="session")
def seen_by_ranks(tmp_path_factory):
    """The folder of what the ranks of `ranks_program.py` saw. None of them is left behind, whatever happens."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-W", "ignore", str(Path(__file__).with_name("ranks_program.py")), str(folder)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        _, errors = process.communicate(timeout=600)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert process.returncode == 0, errors
    return folder


@pytest.fixture
def told_in_a_graph():
    """What Dynamo says of an error that has these words: in PyTorch 2.8 only of which class it is, and where."""
    return lambda error, words: words if release(torch.__version__) >= (2, 9) else re.escape(str(error))
