"""On which versions of the frameworks the golden vectors were run: what `make versions` has found."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

from loss_balancers.parity.certificates.host import frameworks
from loss_balancers.spec.versions import release

#: The file that `make versions` writes, and the page that it makes of it.
FILE, PAGE = "versions.json", "docs/evidence/versions.md"


def measurements() -> list[dict[str, Any]]:
    """What came out of each pair of versions: `tools/versions.py` says what is in it."""
    return json.loads((files("loss_balancers.parity.certificates") / FILE).read_text("utf-8"))


def versions_of(framework: str, measured: list[dict[str, Any]]) -> list[str]:
    """The versions of a framework on which every result was bit-identical, ascending, without what a build adds to them."""
    found = {pair["versions"][framework].partition("+")[0] for pair in measured if pair["identical"] == pair["results"] > 0}
    return sorted(found, key=release)


def lines_here() -> list[str]:
    """Of each framework that is installed whether its version is one of those measured."""
    here = frameworks()
    return [said_of(name, here[name], measurements()) for name in ("torch", "jax") if here[name] != "absent"]


def said_of(framework: str, version: str, measured: list[dict[str, Any]]) -> str:
    """Whether a version is one of those measured, in a line."""
    found = versions_of(framework, measured)
    if (release_here := version.partition("+")[0]) in found:
        pairs = [pair for pair in measured if release_here in versions_of(framework, [pair])]
        beside = ", ".join(
            f"{other} {pair['versions'][other]}" for pair in pairs for other in ("torch", "jax") if other != framework
        )
        when = max(pair["created"] for pair in pairs)[:10]
        which = f"on a CPU all golden vectors of {when} were bit-identical on this version"
        return f"{framework} {version}: {which}, beside {beside} ({PAGE})"
    others = f"but on {', '.join(found)} ({PAGE})" if found else "nor on any other"
    return f"{framework} {version}: golden vectors were not measured on this version, {others}; `loss-balancers parity` measures it"
