"""What a balancer of the registry must have, beside its settings: everything that it lacks, at once."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import drawn

import loss_balancers.jax
import loss_balancers.torch
from loss_balancers import spec
from loss_balancers.audit.prescribed.cases import KINDS, all_cases
from loss_balancers.audit.prescribed.state_cases import state_cases
from loss_balancers.audit.prescribed.torch_cases import torch_cases
from loss_balancers.spec import golden
from loss_balancers.spec.registry import SETTINGS, stem

ROOT = Path(__file__).parents[2]
#: Tests that name balancers themselves: what is wrong in a call, or in a setting, is another thing for each.
TESTS = {
    "errors": ("parity_tests/tests/test_errors.py",),
    "settings": ("spec/tests",),
}
#: Tests of the drawn runs of balancers whose weights do not follow from losses. `drawn.py` runs all others.
DRAWN = tuple(f"parity_tests/tests/test_{name}.py" for name in ("drawn", "schedules"))


def lacks(balancer: str, settings: Any) -> list[str]:
    """What a balancer lacks, in words; empty if nothing."""
    return list(_lacking(balancer, settings))


def _lacking(balancer: str, settings: Any) -> Iterator[str]:
    for twin in (loss_balancers.torch, loss_balancers.jax):
        if balancer not in twin.__all__:
            yield f"a class in {twin.__name__}"
    if f"{balancer}Settings" not in spec.__all__:
        yield "its settings in loss_balancers.spec"
    if find_spec(f"{golden.__name__}.{stem(balancer)}") is None:
        yield f"spec/golden/{stem(balancer)}.py, which draws its vectors"
    if stem(balancer) not in golden.stems():
        yield f"spec/golden/{stem(balancer)}.json, which `make golden` writes"
    examples = settings.examples()
    if not examples:
        yield "examples of its settings"
    yield from _undocumented(balancer)
    for what, paths in TESTS.items():
        if not any(re.search(rf"\b{balancer}(Settings)?\b", _text(path)) for path in paths):
            yield f"tests of its {what} in {' or '.join(paths)}"
    if not drawn.BALANCERS.get(balancer) and not any(re.search(rf"\b{balancer}(Settings)?\b", _text(path)) for path in DRAWN):
        yield f"tests of its drawn runs in {' or '.join(DRAWN)}: its weights do not follow from losses"
    yield from _unaudited(balancer, examples)


def _undocumented(balancer: str) -> Iterator[str]:
    if f"| `{balancer}` |" not in _text("docs/balancers.md"):
        yield "a row in docs/balancers.md"
    plot = ROOT / "docs" / "gallery" / f"{stem(balancer)}.png"
    if not plot.exists() or f"(gallery.md#{balancer.lower()})" not in _text("docs/balancers.md"):
        yield f"a plot of its weights, by `make gallery BALANCER={balancer}`, and a link to it in docs/balancers.md"
    if f"`{balancer}" not in _text("docs/spec"):
        yield "clauses in docs/spec"
    if f"{balancer}" not in _text("README.md"):
        yield "a mention in README.md"


def _unaudited(balancer: str, examples: Mapping[str, Any]) -> Iterator[str]:
    wanted = {f"{balancer} {name} {kind}" for name in examples for kind in KINDS}
    for twin, cases in (("JAX", all_cases()), ("PyTorch", [each.case for each in torch_cases()])):
        if not wanted or not wanted <= {case.name for case in cases}:
            yield f"an audit of its {twin} twin"
    if any(each.state for each in examples.values()) and balancer not in {each.case.name.split(" ")[0] for each in state_cases()}:
        yield "an audit of what its compiled code overwrites"


@cache
def _text(path: str) -> str:
    """A file, or all of a folder."""
    files = sorted(file for file in (ROOT / path).rglob("*") if file.suffix in (".md", ".py")) or [ROOT / path]
    return "\n".join(file.read_text("utf-8") for file in files)


def everything() -> dict[str, list[str]]:
    """What each balancer lacks; those alone that lack something."""
    found = {balancer: lacks(balancer, settings) for balancer, settings in SETTINGS.items()}
    return {balancer: lacking for balancer, lacking in found.items() if lacking}
