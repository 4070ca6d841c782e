"""The spec needs the standard library and NumPy alone."""

import subprocess
import sys

import pytest

FRAMEWORKS = ("torch", "jax", "jaxlib", "flax", "ml_dtypes", "tensorflow")


def loaded_by(code: str) -> str:
    """The frameworks that a fresh interpreter has loaded after ``code``."""
    probe = f"{code}\nimport sys\nprint(*[name for name in {FRAMEWORKS} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-W", "error", "-c", probe], capture_output=True, text=True, check=True, timeout=600)
    return result.stdout.strip()


@pytest.mark.parametrize("module", ["loss_balancers.spec", "loss_balancers.spec.golden.static"])
def test_loads_no_framework(module):
    assert not loaded_by(f"import {module}\n{module}.__name__")


@pytest.mark.parametrize("framework", ["torch", "ml_dtypes"])
def test_the_probe_can_fail(framework):
    assert framework in loaded_by(f"import loss_balancers.spec, {framework}").split()
