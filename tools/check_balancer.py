"""`make check BALANCER=ema_normalized`: all that belongs to one balancer, in one process, while it is being written.

First what it lacks, then its golden vectors on every lane, then the rows of the tests that are its own: those whose id has an
example of it, its class or its files. Tests of compiled code are left to the lanes here, and to `make test`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.console import Console

from loss_balancers.parity.cli import app
from loss_balancers.spec.golden import golden_text
from loss_balancers.spec.golden.files import FILES
from loss_balancers.spec.registry import SETTINGS, stem

ROOT = Path(__file__).parent.parent
TESTS = ("spec/tests", "torch_impl/tests", "jax_impl/tests", "parity_tests/tests", "tools/tests")
#: Words in the names of test files that compile, or that run other programs: lanes, minutes, or no balancer of their own.
LEFT_OUT = (
    *("compiled", "certificate", "cuda", "ddp", "golden", "gpu_kit"),
    *("lanes", "ranks", "resume", "schedules", "switches"),
)


class OfBalancer:
    """A pytest plugin that keeps the rows of one balancer."""

    def __init__(self, balancer: str) -> None:
        self._words = {balancer, stem(balancer), *SETTINGS[balancer].examples()}

    def pytest_ignore_collect(self, collection_path: Path) -> bool | None:
        """Leaves a file out."""
        name = collection_path.name
        return True if name.startswith("test_") and any(word in name for word in LEFT_OUT) else None

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Keeps an item one of whose parameters names the balancer."""
        kept = [item for item in items if self._is_own(item)]
        config.hook.pytest_deselected(items=[item for item in items if item not in set(kept)])
        items[:] = kept

    def _is_own(self, item: pytest.Item) -> bool:
        callspec: Any = getattr(item, "callspec", None)
        if callspec is None:
            return False
        values = [value for param in callspec.params.values() for value in (param if isinstance(param, tuple) else (param,))]
        return any(isinstance(value, str) and value in self._words for value in [*values, *callspec.id.split("-"), callspec.id])


def balancer_of(name: str) -> str:
    """The class of a balancer that is named by it, by its class without the ending, or by its files."""
    for balancer in SETTINGS:
        if name in (balancer, balancer.removesuffix("LossBalancer"), stem(balancer)):
            return balancer
    known = ", ".join(map(stem, SETTINGS))
    raise typer.BadParameter(
        f"{name!r} is not a balancer of spec/registry.py, which has {known}. `make new NAME={name}` begins one."
    )


def is_current(balancer: str) -> bool:
    """Whether its file of golden vectors is what the reference gives."""
    return FILES[stem(balancer)]() == golden_text(stem(balancer))


def parity(balancer: str) -> int:
    """`loss-balancers parity` of this balancer's vectors on every lane: its exit status."""
    try:
        return app(["parity", "--balancer", balancer], standalone_mode=False) or 0
    except typer.Exit as ended:
        return ended.exit_code


def main(balancer: str) -> None:
    """Checks one balancer: what it lacks, its golden vectors on every lane, its rows of the tests."""
    sys.path.insert(0, str(ROOT / "parity_tests" / "helpers"))
    from completeness import lacks

    name, console = balancer_of(balancer), Console(highlight=False)
    lacking = lacks(name, SETTINGS[name])
    for what in lacking:
        console.print(f"lacks {what}", style="yellow")
    if not is_current(name):
        console.print(f"spec/golden/{stem(name)}.json is not what the reference gives. Run `make golden`.", style="red")
        raise typer.Exit(1)
    differs = parity(name)
    # What the lanes have imported, pytest cannot rewrite for its assertions, and it need not.
    options = ("-q", "--every-row", "-W", "ignore::pytest.PytestAssertRewriteWarning")
    failed = pytest.main([*options, *(str(ROOT / tests) for tests in TESTS)], plugins=[OfBalancer(name)])
    words = "bits differ" if differs else "no bit differs", "tests failed" if failed else "its tests passed"
    console.print(f"{name}: {', '.join(words)}, it lacks {len(lacking) or 'nothing'}")
    raise typer.Exit(1 if differs or failed or lacking else 0)


if __name__ == "__main__":
    typer.run(main)
