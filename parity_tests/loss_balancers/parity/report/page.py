"""The matrix as one HTML page: nothing is fetched, and nothing needs a script to be read."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from itertools import count, groupby
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from loss_balancers.parity.certificates.merge import SCHEMA
from loss_balancers.parity.report.absences import absences

Matrix = Mapping[str, Any]
#: A page with thousands of disagreements helps nobody: the worst are shown, all are in the JSON that the page holds.
SHOWN_DISAGREEMENTS = 200


class Cell(NamedTuple):
    """A lane, a balancer and a number format. One that is not all-identical has a number, by which the page links to it."""

    label: str
    vectors: int
    identical: int
    worst: Mapping[str, Any] | None
    number: int | None


class Square(NamedTuple):
    """A lane and a balancer: a cell for each format, None where the lane has none, and their sums."""

    balancer: str
    cells: list[Cell | None]
    vectors: int
    identical: int


class Row(NamedTuple):
    """A lane, which of the matrix's it is, and its squares, one a balancer."""

    number: int
    lane: Mapping[str, Any]
    squares: list[Square]


class Value(NamedTuple):
    """A value that is not the same everywhere, the lanes that gave it, and whether it is they who are wrong."""

    value: str
    lanes: list[str]
    odd: bool


def html_report(matrix: Matrix) -> str:
    """The matrix as one self-contained HTML page.

    It shows every count, the worst case of every cell that is not all-identical, the disagreements between lanes, and where the
    results come from. The same matrix gives the same page. All text of the matrix is escaped.

    Args:
        matrix: What ``merge`` makes of certificates.

    Raises:
        ValueError: The matrix is of another schema.
    """
    if matrix.get("schema") != SCHEMA:
        raise ValueError(
            f"A report needs a matrix of the schema {SCHEMA!r}. Received {matrix.get('schema')!r}. "
            "Make the matrix with `loss-balancers merge` of this version."
        )
    environment = _environment()
    style, script = (_source(environment, name) for name in ("report.css", "report.js"))
    rows = _rows(matrix)
    page = environment.get_template("report.html").render(
        matrix=matrix,
        rows=rows,
        groups=[list(group) for _, group in groupby(rows, _kind)],
        lane_index={lane["id"]: index for index, lane in enumerate(matrix["lanes"])},
        absences=absences(matrix),
        disagreements=_worst_first(matrix["disagreements"])[:SHOWN_DISAGREEMENTS],
        style=Markup(style),
        script=Markup(script),
        style_hash=_csp_hash(style),
        script_hash=_csp_hash(script),
    )
    # JSON can carry half of a surrogate pair, which no file can: it shows as "?".
    return page.encode("utf-8", "replace").decode("utf-8")


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("loss_balancers.parity.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "apart": _apart,
        "breakable": _breakable,
        "by_value": _by_value,
        "decimal": _decimal,
        "distance": _distance,
        "plain": _plain,
    }
    return environment


def _source(environment: Environment, name: str) -> str:
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0]


def _csp_hash(text: str) -> str:
    """How a content security policy names the one style, or script, that may be used."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _rows(matrix: Matrix) -> list[Row]:
    given = {(cell["lane"], cell["balancer"], cell["label"]): cell for cell in matrix["cells"]}
    numbers = count(1)

    def cell(lane: str, balancer: str, label: str) -> Cell | None:
        if (found := given.get((lane, balancer, label))) is None:
            return None
        number = None if found["identical"] == found["vectors"] else next(numbers)
        return Cell(label, found["vectors"], found["identical"], found["worst"], number)

    def square(lane: str, balancer: str) -> Square:
        cells = [cell(lane, balancer, label) for label in matrix["labels"]]
        there = [one for one in cells if one is not None]
        return Square(balancer, cells, sum(one.vectors for one in there), sum(one.identical for one in there))

    return [
        Row(index, lane, [square(lane["id"], balancer) for balancer in matrix["balancers"]])
        for index, lane in enumerate(matrix["lanes"])
    ]


def _kind(row: Row) -> tuple[Any, ...]:
    """What the lanes of one group of rows have in common."""
    return tuple(row.lane[key] for key in ("certificate", "framework", "device", "device_kind"))


def _worst_first(disagreements: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """By distance; what has none (a NaN against a number) comes first."""
    return sorted(disagreements, key=lambda found: (found["ulp"] is not None, -(found["ulp"] or 0)))


def _by_value(disagreement: Mapping[str, Any]) -> list[Value]:
    """Lanes that gave the same value stand together."""
    lanes: dict[str, list[str]] = {}
    for entry in disagreement["values"]:
        lanes.setdefault(entry["value"], []).append(entry["lane"])
    # Where the only value is the reference's, it is its format that differs: then all that are listed are wrong.
    format_differs = set(lanes) == {disagreement["expected"]}
    return [Value(value, names, format_differs or value != disagreement["expected"]) for value, names in lanes.items()]


def _apart(text: str, other: str) -> tuple[str, str, str]:
    """A text cut in three, so that the middle is what the other text does not share."""
    start = _shared(text, other)
    end = _shared(text[start:][::-1], other[start:][::-1])
    return text[:start], text[start : len(text) - end], text[len(text) - end :]


def _shared(text: str, other: str) -> int:
    """How many characters two texts have in common before they part."""
    return next((i for i, (a, b) in enumerate(zip(text, other, strict=False)) if a != b), min(len(text), len(other)))


def _breakable(name: str) -> Markup:
    """A name that may be broken between its words, for narrow screens; its text is unchanged."""
    return Markup("<wbr>").join(re.split(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[._:-])", name))


def _decimal(hexadecimal: str) -> str:
    """What people call the number; nothing for a NaN, an infinity, or a text that is no number."""
    try:
        text = repr(float.fromhex(hexadecimal))
    except (ValueError, OverflowError):
        return ""
    return "" if text.lstrip("-") in {"nan", "inf"} else text


def _distance(ulp: int | None) -> str:
    return "NaN against a number" if ulp is None else f"{ulp:,} ulp"


def _plain(value: Any) -> str:
    """Text as it is, the rest in words or as JSON."""
    if value is None:
        return "not set"
    return value if value and isinstance(value, str) else json.dumps(value, sort_keys=True)
