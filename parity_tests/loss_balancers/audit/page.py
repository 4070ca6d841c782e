"""The page of the docs that shows an audit, written from the audit's JSON and from nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

HEAD = """\
# The audit of compiled code

What compilers emit for the balancers, `div`, `exp`, `log`, `sqrt` and `softmax`, read back operation by operation and compared with
the spec. No TPU and no GPU was present. [The audit](../audit.md) says what this establishes, and what it does not. `cuda-torch` is
PyTorch, the rest JAX.

Obtained on {date}, on {host}, with loss-balancers {library}, by `make audit-evidence`, which wrote this page. In brackets: how
many multiplications and additions the spec prescribes for the results, then how many quotients; the flushes (`keep`), exponentials,
logarithms and roots are compared too. No brackets, of a balancer: only that no launch has a race, and that nothing is computed from
state after it was overwritten; this holds of the other cases on `cuda-torch` too. A planted fault must be *found*. K is the number
of KD losses; the student's comes on top. – was not compiled. What overwrites state is compiled for one GPU.
"""
LEFT_OUT = """\
## What is left out

Cases that are not compiled for a target, since the code that comes of them there is beyond the reader.
"""
FAULTS = """\
## What shows the planted faults

On one target of each kind: the finding, and the line of what the compiler emitted.
"""


def page(audit: Mapping[str, Any]) -> str:
    """The page, as Markdown."""
    matrix = audit["matrix"]
    targets = list(matrix)
    cases = list(dict.fromkeys(case for row in matrix.values() for case in row))
    verdicts = [[case, *(_cell(matrix[target].get(case)) for target in targets)] for case in cases]
    compiled = [[f"`{target}`", versions["device"], _versions(versions)] for target, versions in audit["versions"].items()]
    kinds = {target.partition(":")[0]: target for target in targets}
    faults = [
        [case.removeprefix("planted: "), f"`{target}`", found["kind"], f"`{found['line'].replace('|', '¦')}`"]
        for case in cases
        for target in kinds.values()
        for found in matrix[target].get(case, {"findings": []})["findings"][:1]
    ]
    left_out = [[case, f"`{target}`", why] for target in targets for case, why in audit["left_out"][target].items()]
    return "\n".join(
        [
            HEAD.format(**{name: audit[name] for name in ("date", "host", "library")}),
            _table(["case", *(f"`{target}`" for target in targets)], verdicts),
            _table(["target", "compiled for", "by"], compiled),
            *([LEFT_OUT, _table(["case", "target", "why"], left_out)] if left_out else []),
            FAULTS,
            _table(["fault", "target", "finding", "the line that shows it"], faults),
        ]
    )


def _cell(verdict: Mapping[str, Any] | None) -> str:
    if verdict is None:
        return "–"
    if verdict["status"] not in {"as specified", "found"}:
        return f"**{verdict['status']}**"
    if not (verdict["operations"] or verdict["quotients"]):
        return verdict["status"]
    quotients = f", {verdict['quotients']}" if verdict["quotients"] else ""
    return f"{verdict['status']} ({verdict['operations']}{quotients})"


def _versions(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items() if name != "device")


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
