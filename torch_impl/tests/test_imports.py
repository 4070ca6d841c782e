"""`loss_balancers.torch` brings in PyTorch and not JAX, and says which extra is missing without it, or which version it needs."""

import subprocess
import sys

import pytest
import torch

from loss_balancers.torch.host import traced_as_constant


def run(code):
    return subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False, timeout=600)


@pytest.mark.parametrize(("extra", "loaded"), [("", "False"), ("import jax", "True")], ids=["alone", "the-probe-can-fail"])
def test_does_not_load_jax(extra, loaded):
    result = run(f"import loss_balancers.torch, sys\n{extra}\nprint('jax' in sys.modules or 'flax' in sys.modules)")
    assert result.stderr == ""
    assert result.stdout.strip() == loaded


@pytest.mark.parametrize(
    ("extra", "loaded"), [("", "False"), ("import torch._dynamo", "True")], ids=["alone", "the-probe-can-fail"]
)
def test_does_not_load_the_compiler(extra, loaded):
    """It would take as long as all of PyTorch."""
    result = run(f"import loss_balancers.torch, sys\n{extra}\nprint('torch._dynamo' in sys.modules)")
    assert result.stderr == ""
    assert result.stdout.strip() == loaded


def test_marks_a_constant_as_pytorch_does():
    ours, theirs = (lambda: 1), (lambda: 1)
    assert vars(traced_as_constant(ours)) == vars(torch.compiler.assume_constant_result(theirs)) != {}


def test_names_the_extra_without_pytorch():
    result = run("import sys\nsys.modules['torch'] = None\nimport loss_balancers.spec\nimport loss_balancers.torch")
    assert "ImportError: `loss_balancers.torch` needs PyTorch" in result.stderr
    assert "Install loss-balancers with its extra `[torch]`, in a checkout by `pip install '.[torch]'`." in result.stderr


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ("ImportError('libcudart.so.13: cannot open shared object file')", "ImportError: libcudart.so.13: cannot open"),
        ("ModuleNotFoundError('No module named sympy', name='sympy')", "ModuleNotFoundError: No module named sympy"),
    ],
)
def test_what_an_installed_pytorch_says_is_handed_on(error, words):
    """It is there and does not import: that it is not installed would be wrong."""
    result = run(
        "import sys\nclass Torch:\n    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == 'torch': raise {error}\n"
        "sys.meta_path.insert(0, Torch())\nimport loss_balancers.torch"
    )
    assert result.stderr.splitlines()[-1].startswith(words)


@pytest.mark.parametrize("version", ["2.7.1", "2.7.1+cu126", "1.13.1"])
def test_says_which_version_it_needs(version):
    result = run(f"import torch\ntorch.__version__ = {version!r}\nimport loss_balancers.spec\nimport loss_balancers.torch")
    assert (
        f"ImportError: `loss_balancers.torch` needs torch 2.8 or newer. Found torch {version}. Run `pip install 'torch>=2.8'`."
        in result.stderr
    )


@pytest.mark.parametrize("version", ["2.8.0", "2.9.1+cu128", "2.10.0.dev20260101+cu130", "99.0"])
def test_takes_every_later_version(version):
    result = run(f"import torch\ntorch.__version__ = {version!r}\nimport loss_balancers.torch")
    assert result.stderr == ""
