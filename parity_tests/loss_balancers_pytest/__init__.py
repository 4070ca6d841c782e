"""The pytest plugin of `loss_balancers.parity`: the fixture ``parity`` and the option ``--parity-lanes``.

pytest imports it at every start, so it loads nothing else until it is used. It is a package of its own because pytest rewrites
the assertions of a distribution that has a plugin: finding no package at the top of ours, which is a namespace, it would take
``loss_balancers.torch`` and ``.jax`` for the packages ``torch`` and ``jax``, and rewrite those.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from loss_balancers.parity import Parity


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds ``--parity-lanes`` and the ini option ``parity_lanes``."""
    parser.getgroup("loss-balancers").addoption(
        "--parity-lanes",
        metavar="LANE,LANE,...",
        help="Lanes of the fixture `parity`, such as torch-cuda-compiled,jax-tpu-jit. One that is absent here fails. "
        "Default: the ini option parity_lanes, else torch-cpu-eager,jax-cpu-jit.",
    )
    parser.addini("parity_lanes", "Lanes of the fixture `parity`, where --parity-lanes names none.", type="args", default=[])


def pytest_configure(config: pytest.Config) -> None:
    """Refuses lanes that do not exist, before any test runs."""
    names = _asked(config)
    if names is None:
        return
    from loss_balancers.parity.twins.lanes import read_lanes

    try:
        read_lanes(names)
    except ValueError as error:
        raise pytest.UsageError(f"--parity-lanes: {error}") from error


def pytest_report_header(config: pytest.Config) -> str | None:
    """Says which lanes were asked for."""
    names = _asked(config)
    return None if names is None else f"parity lanes: {', '.join(names)}"


@pytest.fixture(scope="session")
def parity(pytestconfig: pytest.Config) -> Parity:
    """Holds twins to the same bits: ``parity.assert_twins(torch_balancer, jax_balancer)``, on the lanes of ``--parity-lanes``."""
    from loss_balancers.parity import Parity

    names = _asked(pytestconfig)
    return Parity() if names is None else Parity(names)


def _asked(config: pytest.Config) -> Sequence[str] | None:
    option = config.getoption("parity_lanes")
    if option is not None:
        return [name.strip() for name in option.split(",")]
    return config.getini("parity_lanes") or None
