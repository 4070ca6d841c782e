"""An import brings in what the library needs and no more: counted in modules, since seconds depend on the machine.

Each figure is what comes in besides the framework and this library's own modules. Whoever adds an import at the top of a
module, and needs it only in one function, finds it here.
"""

import subprocess
import sys

import pytest

PROBE = """
import sys
{before}
old = set(sys.modules)
{imported}
print(*sorted(name for name in set(sys.modules) - old if not name.startswith("loss_balancers")))
"""
#: By what is imported: what is there before, and from what packages it may bring in more.
MAY = {
    "loss_balancers.spec": ("import __future__, base64, dataclasses, errno, fractions, hashlib, json, secrets, numpy", ()),
    "loss_balancers.torch": ("import torch, loss_balancers.spec", ("jaxtyping", "numpy")),
    "loss_balancers.jax": ("import jax, flax.nnx, loss_balancers.spec", ("jaxtyping", "jax")),
}


def brought_in(before: str, imported: str) -> list[str]:
    code = PROBE.format(before=before, imported=imported)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=600).stdout.split()


@pytest.mark.parametrize("module", MAY)
def test_an_import_brings_in_no_more_than_it_needs(module: str) -> None:
    before, packages = MAY[module]
    found = brought_in(before, f"import {module}")
    assert [name for name in found if name.partition(".")[0] not in packages] == []
    assert len(found) <= 14, found


def test_the_probe_can_see() -> None:
    assert "tempfile" in brought_in(MAY["loss_balancers.spec"][0], "import loss_balancers.spec, importlib.resources")
