"""The audit of one target: compile, read, compare; one verdict a case."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from loss_balancers.audit.compilers.targets import Target
from loss_balancers.audit.expressions.comparison import Finding, compare
from loss_balancers.audit.expressions.dag import Dag, NotEstablishedError, walk
from loss_balancers.audit.expressions.steps import STEP
from loss_balancers.audit.prescribed.cases import Case

Status = Literal["as specified", "findings", "not established", "found", "missed"]
PASSED = ("as specified", "found")


class Verdict(NamedTuple):
    """What the audit says of a case on a target.

    Args:
        status: ``found`` and ``missed`` are of planted faults.
        operations: How many multiplications and additions the spec prescribes for the results.
        quotients: How many quotients.
        findings: Where the code departs from the spec.
        reason: Why it is not established.
    """

    status: Status
    operations: int = 0
    quotients: int = 0
    findings: tuple[Finding, ...] = ()
    reason: str = ""

    @property
    def passed(self) -> bool:
        return self.status in PASSED


def audit(target: Target, cases: Sequence[Case]) -> tuple[dict[str, Verdict], dict[str, str]]:
    """A verdict for each case by name, and the versions of what compiled them.

    Raises:
        UnavailableError: The target's compiler is not installed or does not run.
    """
    with tempfile.TemporaryDirectory(prefix="loss-balancers-audit-") as name:
        folder = Path(name)
        versions = target.compile(cases, folder)
        return {case.name: judge(target, case, folder / case.slug) for case in cases}, versions


def judge(target: Target, case: Case, dump: Path) -> Verdict:
    """The verdict on one dump. Whatever goes wrong while it is read, the verdict is "not established"."""
    expected = case.expected(Dag())
    nodes = list(walk(expected))
    counts = (sum(node.op in {"mul", "add"} for node in nodes), sum(node.op == STEP and node.value == "div" for node in nodes))
    try:
        results, more = target.read(case, dump, Dag())
        findings = (*more, *compare(expected, results, case.draws()))
    except NotEstablishedError as error:
        return Verdict("not established", *counts, reason=str(error))
    except Exception as error:  # an undocumented format has moved: no reason to end the audit, nor to say more than this
        return Verdict("not established", *counts, reason=f"{type(error).__name__} while reading the dump: {error}")
    return Verdict(_status(case, findings), *counts, findings)


def _status(case: Case, findings: Sequence[Finding]) -> Status:
    if case.planted:
        return "found" if any(finding.kind in case.planted for finding in findings) else "missed"
    return "findings" if findings else "as specified"
