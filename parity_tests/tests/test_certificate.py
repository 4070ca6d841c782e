"""Certificates: they hold what the lanes gave, a digest notices every bit, and one that was edited is refused by field."""

import copy
import hashlib
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import pytest
import torch
from certificates import BALANCER, doctored, few_vectors, jax_certificate, torch_certificate
from jsonschema import Draft202012Validator

from loss_balancers.parity.bits import to_bits
from loss_balancers.parity.certificates import reading
from loss_balancers.parity.certificates.certificate import CertificateError, make_certificate
from loss_balancers.parity.certificates.host import device_kind
from loss_balancers.parity.certificates.reading import check, read_certificate
from loss_balancers.parity.files import write_json
from loss_balancers.parity.golden.result import Result
from loss_balancers.parity.golden.vectors import LABELS, Value, cases, column_digest, columns, digest, installed_vectors
from loss_balancers.parity.lanes.known import find_lanes
from loss_balancers.parity.lanes.lane import Lane
from loss_balancers.parity.lanes.switches import flags
from loss_balancers.parity.run import run_lane
from loss_balancers.parity.text import clean
from loss_balancers.spec import Group

ONE, MINUS_ZERO = to_bits(1.0, "f32"), 0x80000000
CELL = f"lanes[0].balancers.{BALANCER}.f32"


def _deviating(change: Callable[[Result], Result]) -> Lane:
    """torch's eager lane, but for what ``change`` makes of each f32 result."""
    eager = next(lane for lane in find_lanes() if lane.name == "torch-cpu-eager")

    def run(groups: Sequence[Group]) -> Iterator[list[Result]]:
        for results in eager.run(groups):
            yield [change(result) if group.label == "f32" else result for group, result in zip(groups, results, strict=True)]

    return eager._replace(mode="deviating", run=run)


def _certify(lane: Lane) -> dict[str, Any]:
    vectors = few_vectors()
    return make_certificate({lane.name: run_lane(lane, vectors[BALANCER].groups)}, [lane], vectors)


def _refusal(data: Any) -> str:
    with pytest.raises(CertificateError) as refused:
        check(data, "some/file.json", few_vectors())
    assert str(refused.value).startswith("some/file.json: ")
    return str(refused.value).removeprefix("some/file.json: ")


def test_it_holds_what_the_lanes_gave_and_reads_back(tmp_path: Path) -> None:
    data = jax_certificate()
    write_json(tmp_path / "a.json", data)
    read = read_certificate(tmp_path / "a.json", few_vectors())
    assert read.data == data
    assert [lane.name for lane in read.lanes] == ["jax-cpu-eager", "jax-cpu-vmap"]
    for lane in read.lanes:
        assert [cell.label for cell in lane.cells] == list(LABELS)
        for cell in lane.cells:
            groups = columns(few_vectors()[BALANCER].groups, LABELS)[BALANCER, cell.label]
            assert cell.digest == column_digest(digest(case.values) for case in cases(groups))
            assert (cell.vectors, cell.identical, cell.differences) == (12, 12, ())
    assert data["frameworks"]["jax"] == jax.__version__
    assert data["frameworks"]["torch"] == torch.__version__
    assert data["vectors"] == {BALANCER: few_vectors()[BALANCER].hash}


def test_a_digest_notices_every_bit() -> None:
    values = [Value("the aggregate", "f32", 0), Value("the gradient to a", "f32", ONE), Value("the gradient to b", "f32", ONE + 7)]
    swapped = [values[0], values[1]._replace(bits=ONE + 7), values[2]._replace(bits=ONE)]
    others = {
        "the same": values,
        "-0 for 0": [values[0]._replace(bits=MINUS_ZERO), *values[1:]],
        "one ulp": [values[0], values[1]._replace(bits=ONE + 1), values[2]],
        "another format, the same number": [values[0], Value("the gradient to a", "f64", to_bits(1.0, "f64")), values[2]],
        "another format, the same bits": [values[0], values[1]._replace(format="f64"), values[2]],
        "gradients swapped": swapped,
        "names swapped": [values[0], values[1]._replace(what=values[2].what), values[2]._replace(what=values[1].what)],
        "another order": [values[0], values[2], values[1]],
        "one missing": values[:2],
        "NaN": [values[0]._replace(bits=0x7FC00000), *values[1:]],
        "infinity": [values[0]._replace(bits=0x7F800000), *values[1:]],
    }
    assert len({digest(chosen) for chosen in others.values()}) == len(others)


@pytest.mark.parametrize("fmt", ["bf16", "f16", "f32", "f64"])
def test_a_digest_takes_every_nan_for_the_same(fmt: str) -> None:
    nan = to_bits(math.nan, fmt)
    assert digest([Value("a", fmt, nan)]) == digest([Value("a", fmt, nan | 1)]) != digest([Value("a", fmt, to_bits(math.inf, fmt))])


def test_a_digest_is_made_as_documented() -> None:
    """How it is made may not move without the schema's version."""
    of_cases = "0123456789abcdef", "fedcba9876543210"
    assert column_digest(of_cases) == hashlib.sha256(b"0123456789abcdeffedcba9876543210").hexdigest()[:16]
    text = b'[["the aggregate", "f32", "0x3f800000"], ["the gradient to a", "bf16", "0x8000"]]'
    made = digest([Value("the aggregate", "f32", ONE), Value("the gradient to a", "bf16", 0x8000)])
    assert made == hashlib.sha256(text).hexdigest()[:16]


def test_a_deviation_is_recorded_in_full() -> None:
    cell = _certify(_deviating(lambda result: result._replace(aggregate=("f32", result.aggregate[1] ^ 1))))["lanes"][0][
        "balancers"
    ][BALANCER]["f32"]
    by_name = {case.name: case for case in cases(few_vectors()[BALANCER].groups)}
    # Of twelve, the two NaN are NaN still, and each infinity has become one: a difference without a distance.
    assert (cell["vectors"], cell["identical"], len(cell["differences"])) == (12, 2, 10)
    assert "nan" in {entry["values"][0]["actual"] for entry in cell["differences"]}
    for entry in cell["differences"]:
        case = by_name[entry["case"]]
        assert entry["inputs"] == {name: value.hex() for name, value in case.inputs.items()}
        assert entry["cotangent"] == case.cotangent.hex()
        (value,) = entry["values"]
        assert (value["what"], value["format"], value["actual_format"]) == ("the aggregate", "f32", "f32")
        assert int(value["bits"], 16) == case.values[0].bits ^ 1


@pytest.mark.parametrize(
    "change",
    [
        lambda r: r._replace(aggregate=("f32", MINUS_ZERO)),
        lambda r: r._replace(aggregate=("f32", 0x7FC00123)),
        lambda r: r._replace(aggregate=("f64", to_bits(0.1, "f64"))),
        lambda r: r._replace(gradients=dict.fromkeys(r.gradients, ("bf16", 0x3F80))),
        lambda r: r._replace(gradients=dict(zip(r.gradients, reversed(r.gradients.values()), strict=True))),
    ],
    ids=["minus-zero", "nan", "another-format", "gradients-in-another-format", "gradients-swapped"],
)
def test_deviations_of_every_kind_read_back(change: Callable[[Result], Result]) -> None:
    data = _certify(_deviating(change))
    (lane,) = check(json.loads(json.dumps(data)), "a.json", few_vectors()).lanes
    cell = next(cell for cell in lane.cells if cell.label == "f32")
    assert cell.identical < cell.vectors
    assert cell.differences == next(
        cell for cell in run_lane(_deviating(change), few_vectors()[BALANCER].groups) if cell.label == "f32"
    ).differences  # fmt: skip


def test_a_lane_that_gives_other_values_than_asked_is_an_error() -> None:
    lane = _deviating(lambda result: result._replace(gradients={"MSELoss_0": result.aggregate}))
    with pytest.raises(RuntimeError, match=r"gave \['the aggregate', 'the gradient to MSELoss_0'\], not"):
        run_lane(lane, few_vectors()[BALANCER].groups)


def _edit(path: str, change: Callable[[Any], Any]) -> Callable[[dict[str, Any]], None]:
    def edit(data: dict[str, Any]) -> None:
        *parents, last = [int(key) if key.isdigit() else key for key in path.split("/")]
        place: Any = data
        for key in parents:
            place = place[key]
        place[last] = change(place[last])

    return edit


C = f"lanes/0/balancers/{BALANCER}/f32"
D = f"lanes/1/balancers/{BALANCER}/f32"
D_FIELD = f"lanes[1].balancers.{BALANCER}.f32"


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (_edit(f"{C}/digest", lambda d: d[:-1] + ("0" if d[-1] != "0" else "1")), f"{CELL}.digest: "),
        (_edit(f"{C}/identical", lambda n: n - 1), f"{CELL}.identical: is 11, but 0 of 12 vectors are listed as different."),
        (_edit(f"{C}/identical", lambda n: -n), f"{CELL}.identical: -12 is less than the minimum of 0"),
        (_edit(f"{C}/identical", float), f"{CELL}.identical: 12.0 is not of type 'integer'"),
        (_edit(f"{C}/identical", lambda n: 10**200), f"{CELL}.identical: 1000"),
        (_edit(f"{C}/vectors", lambda n: n + 1), f"{CELL}.vectors: is 13, but there are 12 vectors."),
        (_edit(f"{C}/vectors", lambda n: True), f"{CELL}.vectors: True is not of type 'integer'"),
        (_edit(f"{C}/digest", lambda d: d[:-1]), f"{CELL}.digest: "),
        (_edit(f"{C}/digest", lambda d: d + "\n"), f"{CELL}.digest: "),
        (_edit(f"{C}/digest", lambda d: [d] * 12), f"{CELL}.digest: "),
        (_edit(f"{C}/differences", lambda d: None), f"{CELL}.differences: None is not of type 'array'"),
        (_edit("lanes", lambda lanes: [*lanes, lanes[0]]), "lanes[2]: the lane jax-cpu-eager stands twice."),
        (_edit("lanes", lambda lanes: []), "lanes: [] should be non-empty"),
        (_edit("lanes/0/device", lambda d: "c p u"), "lanes[0].device: 'c p u' does not match"),
        (_edit("lanes/0/device", lambda d: "cpu\n"), "lanes[0].device: 'cpu\\n' does not match"),
        (_edit("lanes/0/device_kind", lambda d: "\x1b[31mred"), "lanes[0].device_kind: '\\x1b[31mred' does not match"),
        (_edit("library", lambda d: "\ud800"), "library: "),
        (_edit("library", lambda d: "0.1\n"), "library: "),
        (_edit("created", lambda d: "2026-02-30T00:00:00Z"), "created: 2026-02-30T00:00:00Z is no date and time."),
        (_edit("created", lambda d: "yesterday"), "created: 'yesterday' does not match"),
        (_edit("flags", lambda f: f | {"a": 1}), "flags: 'a' does not match any of the regexes"),
        (_edit("host", lambda h: {"python": "3.11"}), "host: 'machine' is a required property"),
        (
            _edit(f"lanes/0/balancers/{BALANCER}", lambda d: {"f32": d["f32"]}),
            f"lanes[0].balancers.{BALANCER}: must have the columns",
        ),
        (_edit("lanes/0/balancers", lambda d: {}), f"lanes[0].balancers: must have the balancers ['{BALANCER}'], has []."),
        (_edit("lanes/0/balancers", lambda d: d | {"a b": {}}), "lanes[0].balancers: must have the balancers"),
        (_edit("vectors", lambda v: {}), "vectors: {} should be non-empty"),
        (_edit("vectors", lambda v: v | {"Other": "0" * 64}), "vectors: must have the balancers"),
        (_edit(f"vectors/{BALANCER}", lambda v: "0" * 64), f"vectors.{BALANCER}: the certificate is of other vectors"),
        (_edit("schema", lambda v: "loss-balancers-certificate/1"), "schema: is loss-balancers-certificate/1; this library reads"),
        (_edit("schema", lambda v: "loss-balancers-matrix/1"), "schema: 'loss-balancers-certificate/2' was expected"),
        (lambda data: data.pop("created"), "'created' is a required property"),
        (_edit(f"{D}/identical", lambda n: n + 1), f"{D_FIELD}.identical: is 12, but 1 of 12"),
        (_edit(f"{D}/differences", lambda d: []), f"{D_FIELD}.identical: is 11, but 0 of 12"),
        (_edit(f"{D}/differences", lambda d: d * 2), f"{D_FIELD}.differences[1].case: 'sequence-2-dropped-f32[4]' stands twice."),
        (_edit(f"{D}/differences/0/case", lambda d: "x"), f"{D_FIELD}.differences[0].case: 'x' is no case of this column."),
        (_edit(f"{D}/differences/0/cotangent", lambda d: "0x1.0p+0"), f"{D_FIELD}.differences[0].cotangent: is 0x1.0p+0, not"),
        (_edit(f"{D}/differences/0/inputs/MSELoss_0", lambda d: "nan"), f"{D_FIELD}.differences[0].inputs.MSELoss_0: is nan, not"),
        (_edit(f"{D}/differences/0/inputs", lambda d: {}), f"{D_FIELD}.differences[0].inputs: must have the losses"),
        (_edit(f"{D}/differences/0/values/0/what", lambda d: "x"), f"{D_FIELD}.differences[0].values[0].what: 'x' is no value of"),
        (
            _edit(f"{D}/differences/0/values", lambda d: d * 2),
            f"{D_FIELD}.differences[0].values[1].what: 'the aggregate' stands twice.",
        ),
        (_edit(f"{D}/differences/0/values", lambda d: []), f"{D_FIELD}.differences[0].values: [] should be non-empty"),
        (
            _edit(f"{D}/differences/0/values/0/format", lambda d: "f64"),
            f"{D_FIELD}.differences[0].values[0].format: is f64, not f32",
        ),
        (
            _edit(f"{D}/differences/0/values/0/expected", lambda d: "inf"),
            f"{D_FIELD}.differences[0].values[0].expected: is inf, not",
        ),
        (
            _edit(f"{D}/differences/0/values/0/actual", lambda d: "0x1.0p+0"),
            f"{D_FIELD}.differences[0].values[0].actual: is 0x1.0p+0",
        ),
        (_edit(f"{D}/differences/0/values/0/bits", lambda d: "0x40cb"), f"{D_FIELD}.differences[0].values[0].bits: 0x40cb has not"),
        (_edit(f"{D}/differences/0/values/0/actual_format", lambda d: "f64"), f"{D_FIELD}.differences[0].values[0].bits: "),
        (_edit(f"{D}/digest", lambda d: "0" * 16), f"{D_FIELD}.digest: 0000000000000000 is not the digest of this column: "),
    ],
)
def test_an_edit_is_refused_by_field(edit: Callable[[dict[str, Any]], None], words: str) -> None:
    data = doctored(jax_certificate())
    check(data, "a.json", few_vectors())  # before the edit it is a certificate
    edit(data)
    assert _refusal(data).startswith(words)


def test_a_value_edited_with_its_bits_contradicts_its_digest() -> None:
    data = doctored(jax_certificate())
    _edit(f"{D}/differences/0/values/0", lambda value: value | {"actual": "0x1.0000000000000p+0", "bits": "0x3f800000"})(data)
    assert _refusal(data).startswith(f"{D_FIELD}.digest: ")


def test_a_value_that_does_not_differ_is_no_difference() -> None:
    data = doctored(jax_certificate(), what="the gradient to MSELoss_0")
    value = data["lanes"][1]["balancers"][BALANCER]["f32"]["differences"][0]["values"][0]
    expected = value["expected"]
    value |= {"actual": expected, "bits": f"{to_bits(float.fromhex(expected), 'f32'):#010x}"}
    field = f"{D_FIELD}.differences[0].values[0]"
    assert _refusal(data) == f"{field}: is listed as different, but {expected} is what the reference gives."


@pytest.mark.parametrize("data", [None, [], {}, "text", 1, [[]], {"schema": None}, {"schema": []}], ids=repr)
def test_what_is_no_certificate_is_refused(data: Any) -> None:
    assert "Was the file edited, or is it no certificate?" in _refusal(data)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is no JSON, or was cut off: Expecting value (line 1, column 1)."),
        (b"\x00\xff\xfe junk", "is no UTF-8 text at byte 1"),
        (b"\xef\xbb\xbf{}", "is no JSON, or was cut off"),
        (b"\x1f\x8b\x08\x00", "is no UTF-8 text"),
        (b"[" * 100_000, "is nested too deeply"),
        (b'{"schema":' * 100_000, "is nested too deeply"),
        (b"[" * 900 + b"]" * 900, "Was the file edited"),
        (b'{"vectors": ' + b"1" * 5000 + b"}", "is no certificate: Exceeds the limit"),
        (b'{"a": 1, "b": 2, "a": 3}', '"a": stands twice in one object'),
        (b"NaN", "nan is not of type 'object'"),
        (b"Infinity", "Was the file edited"),
    ],
    ids=["empty", "binary", "bom", "gzip", "deep", "deep-objects", "less-deep", "huge-int", "duplicate-keys", "nan", "infinity"],
)
def test_a_file_that_is_no_certificate_is_refused(content: bytes, words: str, tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_bytes(content)
    with pytest.raises(CertificateError) as refused:
        read_certificate(file, few_vectors())
    assert str(refused.value).startswith(f"{file}: ")
    assert words in str(refused.value)


def _loop(file: Path) -> None:
    file.symlink_to(file)


def _large(file: Path) -> None:
    with file.open("wb") as stream:
        stream.truncate(500 * 2**20)  # sparse: nothing is written


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda file: None, "cannot be read: No such file or directory."),
        (Path.mkdir, "is no regular file"),
        (os.mkfifo, "is no regular file"),
        (_loop, "cannot be read: Too many levels of symbolic links."),
        (lambda file: file.symlink_to("/dev/zero"), "is no regular file"),
        (_large, "has 524288000 bytes; a certificate has at most 33554432."),
    ],
    ids=["missing", "folder", "pipe", "loop", "device", "large"],
)
def test_what_is_no_file_to_read_is_refused(make: Callable[[Path], Any], words: str, tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    make(file)
    with pytest.raises(CertificateError) as refused:
        read_certificate(file, few_vectors())
    assert str(refused.value).startswith(f"{file}: {words}")


def test_a_file_without_permission_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*arguments: Any) -> None:
        raise PermissionError(13, "Permission denied")

    write_json(tmp_path / "a.json", torch_certificate())
    monkeypatch.setattr(Path, "open", refuse)  # root may read what it likes, so chmod would test nothing
    with pytest.raises(CertificateError, match=r"a\.json: cannot be read: Permission denied\."):
        read_certificate(tmp_path / "a.json", few_vectors())


def test_certificates_of_other_vectors_than_the_library_s_are_refused(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", torch_certificate())
    with pytest.raises(CertificateError, match=r"a\.json: vectors: must have the balancers"):
        read_certificate(tmp_path / "a.json")
    with pytest.raises(CertificateError, match=rf"a\.json: vectors\.{BALANCER}: the certificate is of other vectors"):
        read_certificate(tmp_path / "a.json", {BALANCER: installed_vectors()[BALANCER]})


def test_the_schema_is_one_and_closed() -> None:
    schema = json.loads((Path(reading.__file__).parent / "certificate.schema.json").read_text("utf-8"))
    Draft202012Validator.check_schema(schema)

    def objects(node: Any) -> Iterator[dict[str, Any]]:
        if isinstance(node, dict):
            if node.get("type") == "object":
                yield node
            for child in node.values():
                yield from objects(child)

    found = list(objects(schema))
    assert len(found) >= 8
    assert all("additionalProperties" in node for node in found)


def test_flags_are_read_and_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true")
    monkeypatch.setenv("TORCHINDUCTOR_EMULATE_PRECISION_CASTS", "1")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/home/someone")
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "a\tb")
    before = (dict(os.environ), torch.are_deterministic_algorithms_enabled(), jax.config.read("jax_enable_x64"))
    found = flags()
    assert before == (dict(os.environ), torch.are_deterministic_algorithms_enabled(), jax.config.read("jax_enable_x64"))
    assert found["env.XLA_FLAGS"] == "--xla_cpu_enable_fast_math=true"
    assert found["env.TORCHINDUCTOR_EMULATE_PRECISION_CASTS"] == "1"
    assert found["env.LIBTPU_INIT_ARGS"] == "a?b"
    assert "env.TORCHINDUCTOR_CACHE_DIR" not in found
    assert found["torch.flush_denormal"] is False
    check(torch_certificate() | {"flags": found}, "a.json", few_vectors())


def test_flush_denormal_is_observed() -> None:
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush subnormal numbers")
    try:
        assert flags()["torch.flush_denormal"] is True
    finally:
        torch.set_flush_denormal(False)


def test_devices_have_the_names_that_frameworks_give_them() -> None:
    assert device_kind("torch", "cpu") == device_kind("jax", "cpu") == torch_certificate()["host"]["processor"] != ""
    assert device_kind("jax", "abacus") == "abacus"
    assert device_kind("torch", "abacus") == "abacus"


def test_text_is_cleaned() -> None:
    assert clean("a\x1b[31m\n\ud800b") == "a?[31m??b"
    assert clean("x" * 500) == "x" * 199 + "…"


def test_reading_and_merging_need_neither_framework(tmp_path: Path) -> None:
    """On a laptop: torch, JAX and what comes with them cannot be imported, and the command line merges all the same."""
    write_json(tmp_path / "a.json", torch_certificate())
    code = """
import importlib.abc, sys
class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "jax", "jaxlib", "flax", "optax", "ml_dtypes", "scipy"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
import loss_balancers.parity.certificates.certificate, loss_balancers.parity.certificates.merge
from loss_balancers.parity.cli import main
sys.argv = ["loss-balancers", "merge", sys.argv[1]]
try:
    main()
finally:
    print(sorted({"torch", "jax"} & set(sys.modules)))
"""
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.json")], capture_output=True, text=True, check=False)
    assert run.returncode == 2  # of other vectors than the installed ones: it got as far as that
    assert "vectors: must have the balancers" in run.stderr
    assert "Traceback" not in run.stderr
    assert run.stdout.strip() == "[]"


def test_the_helper_that_doctors_leaves_its_input_alone() -> None:
    data = jax_certificate()
    before = copy.deepcopy(data)
    assert doctored(data) != before == data
