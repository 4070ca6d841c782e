"""`loss_balancers.jax` brings in JAX and not PyTorch, leaves JAX's flags alone, and says which extra or version it needs."""

import subprocess
import sys

import flax
import pytest

from loss_balancers.spec.versions import release


def run(code):
    return subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False, timeout=600)


@pytest.mark.parametrize(("extra", "loaded"), [("", "False"), ("import torch", "True")], ids=["alone", "the-probe-can-fail"])
def test_does_not_load_torch(extra, loaded):
    result = run(f"import loss_balancers.jax, sys\n{extra}\nprint('torch' in sys.modules)")
    assert result.stderr == ""
    assert result.stdout.strip() == loaded


@pytest.mark.parametrize("framework", ["jax", "flax"])
def test_names_the_extra_without_the_framework(framework):
    result = run(f"import sys\nsys.modules['{framework}'] = None\nimport loss_balancers.spec\nimport loss_balancers.jax")
    assert "ImportError: `loss_balancers.jax` needs JAX and Flax" in result.stderr
    assert "Install loss-balancers with its extra `[jax]`, in a checkout by `pip install '.[jax]'`." in result.stderr


@pytest.mark.parametrize("error", [ImportError, ModuleNotFoundError, AttributeError])
def test_a_jax_that_is_too_old_is_said_before_flax_fails_on_it(error):
    """In its own words: a Flax of today wants names that such a JAX does not have."""
    result = run(
        "import jax, sys\njax.__version__ = '0.5.3'\n"
        "class Flax:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == 'flax': raise {error.__name__}('no such name in JAX')\n"
        "sys.meta_path.insert(0, Flax())\nimport loss_balancers.jax"
    )
    assert "ImportError: `loss_balancers.jax` needs jax 0.6.2 or newer. Found jax 0.5.3." in result.stderr


def test_a_flax_that_is_too_old_to_be_imported_is_said():
    """On a later JAX it fails in its own words; the version of the package is read where it is installed."""
    result = run(
        "import jax, sys, importlib.metadata as metadata\njax.__version__ = '0.8.3'\nmetadata.version = lambda name: '0.10.6'\n"
        "class Flax:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'flax': raise AttributeError('no such name in JAX')\n"
        "sys.meta_path.insert(0, Flax())\nimport loss_balancers.jax"
    )
    assert (
        "ImportError: `loss_balancers.jax` needs flax 0.10.7 or newer. Found flax 0.10.6. "
        "Run `pip install 'flax>=0.10.7' 'jax==0.8.3'`." in result.stderr
    )


@pytest.mark.parametrize("error", ["AttributeError('no such name')", "ModuleNotFoundError('No module named optax', name='optax')"])
def test_what_an_installed_flax_says_is_handed_on(error):
    result = run(
        "import jax, sys\nclass Flax:\n    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == 'flax': raise {error}\n"
        "sys.meta_path.insert(0, Flax())\nimport loss_balancers.jax"
    )
    assert result.stderr.splitlines()[-1].startswith(error.partition("(")[0])
    assert "no such name" in result.stderr or "No module named optax" in result.stderr


@pytest.mark.parametrize(
    ("framework", "version", "oldest"), [("jax", "0.6.1", "0.6.2"), ("jax", "0.5.3", "0.6.2"), ("flax", "0.10.6", "0.10.7")]
)
def test_says_which_version_it_needs(framework, version, oldest):
    result = run(
        f"import {framework}\n{framework}.__version__ = {version!r}\nimport loss_balancers.spec\nimport loss_balancers.jax"
    )
    assert (
        f"ImportError: `loss_balancers.jax` needs {framework} {oldest} or newer. Found {framework} {version}. "
        f"Run `pip install '{framework}>={oldest}'" in result.stderr
    )


@pytest.mark.parametrize(("framework", "version"), [("jax", "0.6.2"), ("jax", "0.12.0.dev20260101"), ("flax", "99.0")])
def test_takes_every_later_version(framework, version):
    result = run(f"import {framework}\n{framework}.__version__ = {version!r}\nimport loss_balancers.jax")
    assert result.stderr == ""


FLAGS = """
import os
import jax, flax
flags = dict(jax.config.values)
environment = dict(os.environ)
import loss_balancers.jax
{extra}
print([name for name, value in jax.config.values.items() if flags[name] != value], dict(os.environ) == environment)
"""


@pytest.mark.parametrize(
    ("extra", "changed"),
    [("", "[] True"), ("jax.config.update('jax_enable_x64', True)", "['jax_enable_x64'] True")],
    ids=["alone", "the-probe-can-fail"],
)
def test_leaves_the_flags_alone(extra, changed):
    result = run(FLAGS.format(extra=extra))
    assert result.stdout.strip() == changed, result.stderr


def test_what_tests_need_of_flax_is_found_where_it_is(needs):
    """Or tests would be skipped without a word."""
    for mark, (there, since, _) in needs.items():
        assert there == (release(flax.__version__) >= release(since)), mark
