"""Reading certificates: a file is valid by the schema, of these vectors and without contradiction, or it is refused.

The vectors are here, so what every case that agrees with the reference gave is known, and what another gave follows from the
values stated for it. The digest of the column is over both, so a digit changed in one place contradicts another. Neither torch nor
JAX is needed.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, NoReturn

from loss_balancers.parity.bits import from_bits
from loss_balancers.parity.certificates.certificate import (
    SCHEMA,
    Certificate,
    CertificateError,
    LaneResults,
    hex_bits,
    stated_inputs,
)
from loss_balancers.parity.golden.comparison import Cell, Difference, difference
from loss_balancers.parity.golden.vectors import (
    LABELS,
    Case,
    Value,
    Vectors,
    cases,
    column_digest,
    columns,
    digest,
    installed_vectors,
)
from loss_balancers.parity.text import clean
from loss_balancers.spec.errors import missing_package

#: Bytes that a certificate may have. One of twelve lanes and 1,269 cases has 0.05 million.
SIZE_LIMIT = 32 * 2**20

#: What is expected in each column: by balancer and label, the cases.
Columns = Mapping[tuple[str, str], Sequence[Case]]


class _Refused(Exception):  # noqa: N818  # no error of its own: `check` adds the file and raises CertificateError
    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


def read_certificate(file: Path, vectors: Mapping[str, Vectors] | None = None) -> Certificate:
    """Reads and checks a certificate.

    Args:
        file: The file.
        vectors: The vectors that it must be of, by balancer; those of this library by default.

    Raises:
        CertificateError: It cannot be read, is no certificate, is of other vectors, or contradicts itself.
    """
    try:
        data = _parse(_text(file))
    except _Refused as refused:
        raise CertificateError(str(file), refused.field, str(refused)) from None
    return check(data, str(file), vectors)


def check(data: Any, file: str, vectors: Mapping[str, Vectors] | None = None, *, own: bool = False) -> Certificate:
    """A certificate from data that came from ``file``, checked. Arguments and errors are those of `read_certificate`.

    ``own`` is whether this process made the data: then they need no schema where jsonschema is not installed.
    """
    wanted = installed_vectors() if vectors is None else vectors
    try:
        _check_schema(data, own)
        _check_vectors(data, wanted)
        groups = [group for of_balancer in wanted.values() for group in of_balancer.groups]
        lanes = _lanes(data["lanes"], {column: cases(chosen) for column, chosen in columns(groups, LABELS).items()})
    except _Refused as refused:
        raise CertificateError(file, refused.field, str(refused)) from None
    return Certificate(clean(file), data, lanes)


def _refuse(field: str, message: str) -> NoReturn:
    raise _Refused(field, message)


def at(field: str, *keys: str | int) -> str:
    """The path of a field: ``at("lanes", 2, "mode")`` is ``lanes[2].mode``."""
    for key in keys:
        if isinstance(key, str) and key.isidentifier():
            field = f"{field}.{clean(key)}" if field else clean(key)
        else:
            field += f"[{key}]" if isinstance(key, int) else f"[{clean(json.dumps(key))}]"
    return field


def _text(file: Path) -> str:
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe or a device might never end
            _refuse("", "is no regular file. Name the JSON file that `loss-balancers parity --certificate` wrote.")
        if status.st_size > SIZE_LIMIT:
            _refuse("", f"has {status.st_size} bytes; a certificate has at most {SIZE_LIMIT}.")
        with file.open("rb") as stream:
            content = stream.read(SIZE_LIMIT)
    except OSError as error:
        _refuse("", f"cannot be read: {error.strerror or error}.")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        _refuse("", f"is no UTF-8 text at byte {error.start}; a certificate is JSON.")


def _parse(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_once)
    except json.JSONDecodeError as error:
        _refuse("", f"is no JSON, or was cut off: {error.msg} (line {error.lineno}, column {error.colno}).")
    except ValueError as error:  # an integer of thousands of digits
        _refuse("", f"is no certificate: {clean(error)}.")
    except RecursionError:
        _refuse("", "is nested too deeply for a certificate.")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            _refuse(clean(json.dumps(name)), "stands twice in one object, which readers of JSON would understand differently.")
        found[name] = value
    return found


def _check_schema(data: Any, own: bool) -> None:
    name, _, number = SCHEMA.partition("/")
    stated = data.get("schema") if isinstance(data, dict) else None
    if isinstance(stated, str) and stated != SCHEMA and stated.startswith(f"{name}/"):
        _refuse(
            "schema",
            f"is {clean(stated)}; this library reads version {number} only. Use the version that wrote the file, or run it again.",
        )
    try:
        error = next(_validator().iter_errors(data), None)
    except ImportError:
        if not own:
            raise
        return
    except RecursionError:  # where a message shows a deeply nested value
        _refuse("", "is nested too deeply for a certificate.")
    if error is not None:
        _refuse(at("", *error.absolute_path), f"{clean(error.message)}. Was the file edited, or is it no certificate?")
    try:
        datetime.strptime(data["created"], "%Y-%m-%dT%H:%M:%SZ")
    except ValueError:
        _refuse("created", f"{data['created']} is no date and time.")


@cache
def _validator() -> Any:
    try:
        from jsonschema import Draft202012Validator, validators
    except ImportError:
        raise ImportError(missing_package("Certificates need", "jsonschema", "merge")) from None

    schema = json.loads((files("loss_balancers.parity.certificates") / "certificate.schema.json").read_text("utf-8"))
    # JSON Schema takes 3.0 for an integer; a certificate has no floating-point literal at all.
    strict = Draft202012Validator.TYPE_CHECKER.redefine("integer", lambda _, value: type(value) is int)
    return validators.extend(Draft202012Validator, type_checker=strict)(schema)


def _check_vectors(data: Any, wanted: Mapping[str, Vectors]) -> None:
    stated = data["vectors"]
    _check_names("vectors", stated, wanted, "balancers")
    for balancer, vectors in wanted.items():
        if stated[balancer] != vectors.hash:
            _refuse(
                at("vectors", balancer),
                f"the certificate is of other vectors ({stated[balancer][:16]}…, library {data['library']}) than this library's "
                f"({vectors.hash[:16]}…). Only certificates of the same vectors can be merged: run the same version on every host.",
            )


def _check_names(field: str, stated: Mapping[str, Any], wanted: Mapping[str, Any] | Sequence[str], what: str) -> None:
    if set(stated) != set(wanted):
        _refuse(field, f"must have the {what} {clean(sorted(wanted))}, has {clean(sorted(stated))}.")


def _lanes(stated: Sequence[Any], wanted: Columns) -> tuple[LaneResults, ...]:
    found: dict[str, LaneResults] = {}
    reference = {column: [digest(case.values) for case in chosen] for column, chosen in wanted.items()}
    for index, lane in enumerate(stated):
        field = at("lanes", index)
        results = LaneResults(lane["framework"], lane["device"], lane["device_kind"], lane["mode"], (), lane.get("flags", {}))
        if results.name in found:
            _refuse(field, f"the lane {results.name} stands twice.")
        _check_names(at(field, "balancers"), lane["balancers"], dict.fromkeys(balancer for balancer, _ in wanted), "balancers")
        for balancer, cells in lane["balancers"].items():
            _check_names(at(field, "balancers", balancer), cells, [label for b, label in wanted if b == balancer], "columns")
        found[results.name] = results._replace(
            cells=tuple(
                _cell(
                    at(field, "balancers", *column),
                    lane["balancers"][column[0]][column[1]],
                    (results.name, *column),
                    chosen,
                    reference[column],
                )
                for column, chosen in wanted.items()
            )
        )
    return tuple(found.values())


def _cell(field: str, stated: Any, key: tuple[str, str, str], wanted: Sequence[Case], reference: Sequence[str]) -> Cell:
    if "absent" in stated:
        return Cell(*key, absent=stated["absent"])
    count = len(wanted)
    if stated["vectors"] != count:
        _refuse(at(field, "vectors"), f"is {stated['vectors']}, but there are {count} vectors.")
    found: dict[str, list[Difference]] = {}
    by_name = {case.name: case for case in wanted}
    for index, listed in enumerate(stated["differences"]):
        place, name = at(field, "differences", index), listed["case"]
        if name not in by_name or name in found:
            _refuse(at(place, "case"), f"{clean(repr(name))} {'stands twice' if name in found else 'is no case of this column'}.")
        found[name] = _differences(place, listed, by_name[name])
    if stated["identical"] != count - len(found):
        message = f"is {stated['identical']}, but {len(found)} of {count} vectors are listed as different."
        _refuse(at(field, "identical"), message)
    expected = column_digest(
        digest(_given(case, found[case.name])) if case.name in found else of_reference
        for case, of_reference in zip(wanted, reference, strict=True)
    )
    if stated["digest"] != expected:
        whose = "the values listed as different and the reference" if found else "the reference, and no difference is listed"
        _refuse(at(field, "digest"), f"{stated['digest']} is not the digest of this column: {expected} is that of {whose}.")
    return Cell(*key, count, expected, tuple(d for case in wanted for d in found.get(case.name, ())))


def _given(case: Case, found: Sequence[Difference]) -> list[Value]:
    changed = {d.what: Value(d.what, d.actual_format, d.actual) for d in found}
    return [changed.get(value.what, value) for value in case.values]


def _differences(field: str, stated: Any, case: Case) -> list[Difference]:
    wanted = {value.what: value for value in case.values}
    inputs = stated_inputs(case)
    _check_names(at(field, "inputs"), stated["inputs"], inputs["inputs"], "losses")
    for name, expected in inputs["inputs"].items():
        _check_equal(at(field, "inputs", name), stated["inputs"][name], expected, "what the vector has")
    _check_equal(at(field, "cotangent"), stated["cotangent"], inputs["cotangent"], "what the vector has")
    found: dict[str, Difference] = {}
    for index, value in enumerate(stated["values"]):
        place, what = at(field, "values", index), value["what"]
        if what not in wanted or what in found:
            _refuse(at(place, "what"), f"{clean(repr(what))} {'stands twice' if what in found else f'is no value of {case.name}'}.")
        different = difference(case.name, wanted[what], _value(place, value, wanted[what]))
        if different is None:
            _refuse(place, f"is listed as different, but {value['actual']} is what the reference gives.")
        found[what] = different
    return [found[what] for what in wanted if what in found]


def _value(field: str, stated: Any, wanted: Value) -> Value:
    fmt, bits = stated["actual_format"], int(stated["bits"], 16)
    _check_equal(at(field, "format"), stated["format"], wanted.format, "what the vector has")
    _check_equal(at(field, "expected"), stated["expected"], from_bits(wanted.bits, wanted.format).hex(), "what the reference gives")
    if len(stated["bits"]) != len(hex_bits(0, fmt)):
        _refuse(at(field, "bits"), f"{stated['bits']} has not as many digits as {fmt} has.")
    _check_equal(at(field, "actual"), stated["actual"], from_bits(bits, fmt).hex(), f"what the bits {stated['bits']} stand for")
    return Value(wanted.what, fmt, bits)


def _check_equal(field: str, stated: str, expected: str, whose: str) -> None:
    if stated != expected:
        _refuse(field, f"is {clean(stated)}, not {expected}, which is {whose}.")
