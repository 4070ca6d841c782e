"""Certificates of several hosts become one matrix; a single bit that two lanes do not share is found and named."""

import json
import os
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from certificates import BALANCER, doctored, few_vectors, fitting_digest, jax_certificate, torch_certificate
from rich.console import Console
from typer.testing import CliRunner, Result

from loss_balancers.parity.certificates.certificate import CertificateError
from loss_balancers.parity.certificates.merge import merge
from loss_balancers.parity.certificates.reading import check
from loss_balancers.parity.cli import app
from loss_balancers.parity.files import json_text, write_json
from loss_balancers.parity.golden import vectors
from loss_balancers.parity.report.tables import SHOWN, as_markdown, in_words, print_matrix

CASE = "sequence-2-dropped-f32[4]"


@pytest.fixture(autouse=True)
def _few_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "installed_vectors", few_vectors)


def _merged(*data: dict[str, Any]) -> dict[str, Any]:
    return merge([check(one, f"{chr(ord('a') + i)}.json", few_vectors()) for i, one in enumerate(data)])


def _run(tmp_path: Path, *data: Any, options: tuple[str, ...] = ()) -> Result:
    files = []
    for index, one in enumerate(data):
        files.append(tmp_path / f"{chr(ord('a') + index)}.json")
        write_json(files[-1], one)
    return CliRunner().invoke(app, ["merge", *map(str, files), *options], env={"COLUMNS": "200", "TERM": "dumb"})


def _text(matrix: dict[str, Any]) -> str:
    written = StringIO()
    print_matrix(matrix, Console(width=200, file=written))
    return written.getvalue()


def test_certificates_that_agree_are_exit_status_0(tmp_path: Path) -> None:
    result = _run(tmp_path, torch_certificate(), jax_certificate())
    assert result.exit_code == 0, result.output
    assert "2 hosts, 3 lanes, 180/180 bit-identical" in result.output
    assert f"host 1: {tmp_path}/a.json: {torch_certificate()['host']['processor']}; " in result.output
    for lane in ("1:torch-cpu-eager", "2:jax-cpu-eager", "2:jax-cpu-vmap"):
        assert lane in result.output
    assert "odd" not in result.output


@pytest.mark.parametrize(
    ("label", "index", "what", "bit", "case", "ulp"),
    [
        ("f32", 10, "the aggregate", 0, CASE, 1),
        ("f32", 0, "the aggregate", 31, "sequence-2-f32[0]", 1),
        ("bf16", 4, "the gradient to MSELoss_0", 3, "sequence-2-bf16[4]", 8),
        ("mixed", 11, "the gradient to student_loss", 1, "sequence-5-mixed-wide[5]", 2),
        ("f64", 5, "the aggregate", 51, "mapping-student-f64[5]", 2**51),
    ],
    ids=["one-ulp", "minus-zero", "bf16-gradient", "mixed-gradient", "f64"],
)
def test_a_doctored_bit_is_found_and_named(
    label: str, index: int, what: str, bit: int, case: str, ulp: int, tmp_path: Path
) -> None:
    data = [torch_certificate(), jax_certificate(), doctored(jax_certificate(), label, index, bit, what)]
    result = _run(tmp_path, *data)
    assert result.exit_code == 1
    assert "3 hosts, 5 lanes, 299/300 bit-identical" in result.output
    (found,) = _merged(*data)["disagreements"]
    stated = data[2]["lanes"][1]["balancers"][BALANCER][label]["differences"][0]["values"][0]
    assert (found["balancer"], found["case"], found["what"], found["ulp"]) == (BALANCER, case, what, ulp)
    assert found["values"] == [
        {"lane": lane, "value": stated["actual"] if lane == "3:jax-cpu-vmap" else stated["expected"]}
        for lane in ("1:torch-cpu-eager", "2:jax-cpu-eager", "2:jax-cpu-vmap", "3:jax-cpu-eager", "3:jax-cpu-vmap")
    ]
    a, b, c = (tmp_path / name for name in ("a.json", "b.json", "c.json"))
    assert (
        f"{BALANCER}, {case}, {what}: torch-cpu-eager on host 1 ({a}) and jax-cpu-eager on host 2 ({b}) and 2 more have "
        f"{stated['expected']}, jax-cpu-vmap on host 3 ({c}) has {stated['actual']} ({stated['format']}, {ulp} ulp). "
        f"The reference has {stated['expected']}: the odd one out is jax-cpu-vmap on host 3 ({c})."
    ) in result.output


def test_two_lanes_alone_are_both_named() -> None:
    matrix = _merged(torch_certificate(), doctored(torch_certificate()))
    assert in_words(matrix, matrix["disagreements"][0]) == (
        f"{BALANCER}, {CASE}, the aggregate: torch-cpu-eager on host 1 (a.json) has 0x1.89afc40000000p+1, "
        "torch-cpu-eager on host 2 (b.json) has 0x1.89afc60000000p+1 (f32, 1 ulp). "
        "The reference has 0x1.89afc40000000p+1: the odd one out is torch-cpu-eager on host 2 (b.json)."
    )


def test_lanes_that_agree_on_a_wrong_bit_are_odd_all_the_same(tmp_path: Path) -> None:
    other = doctored(torch_certificate()) | {"created": "2026-01-01T00:00:00Z"}
    assert _run(tmp_path, doctored(torch_certificate()), other).exit_code == 1
    matrix = _merged(doctored(torch_certificate()), other)
    assert matrix["disagreements"][0]["ulp"] == 1
    assert "the odd ones out are torch-cpu-eager on host 1 (a.json) and torch-cpu-eager on host 2" in _text(matrix)


def test_one_host_alone_can_differ_from_the_reference(tmp_path: Path) -> None:
    result = _run(tmp_path, doctored(torch_certificate()))
    assert result.exit_code == 1
    assert "1 lanes, 59/60 bit-identical" in result.output
    assert f"torch-cpu-eager, f32: worst {BALANCER}, {CASE}, the aggregate: 0x1.89afc60000000p+1 is not" in result.output
    assert "the odd one out is torch-cpu-eager." in result.output


def test_the_matrix_has_the_documented_form(tmp_path: Path) -> None:
    file = tmp_path / "matrix.json"
    data = [torch_certificate(), doctored(jax_certificate())]
    assert _run(tmp_path, *data, options=("--json", str(file))).exit_code == 1
    matrix = json.loads(file.read_text())
    assert list(matrix) == [
        "schema", "vectors", "certificates", "lanes", "balancers", "labels", "cells", "absent", "disagreements", "results",
        "identical",
    ]  # fmt: skip
    assert matrix["schema"] == "loss-balancers-matrix/1"
    assert matrix["vectors"] == {BALANCER: few_vectors()[BALANCER].hash}
    assert [c["file"] for c in matrix["certificates"]] == [str(tmp_path / "a.json"), str(tmp_path / "b.json")]
    for stated, given in zip(matrix["certificates"], data, strict=True):
        assert stated == {"file": stated["file"]} | {
            key: given[key] for key in ("library", "created", "host", "frameworks", "flags")
        }
    assert matrix["lanes"][1] == {
        "id": "2:jax-cpu-eager", "certificate": 1, "framework": "jax", "device": "cpu",
        "device_kind": data[1]["host"]["processor"], "mode": "eager", "flags": {},
    }  # fmt: skip
    assert matrix["balancers"] == [BALANCER]
    assert matrix["labels"] == ["bf16", "f16", "f32", "f64", "mixed"]
    assert (matrix["results"], matrix["identical"], matrix["absent"]) == (180, 179, [])
    assert len(matrix["cells"]) == 15
    (cell,) = (cell for cell in matrix["cells"] if cell["worst"] is not None)
    entry = data[1]["lanes"][1]["balancers"][BALANCER]["f32"]["differences"][0]
    assert cell == {
        "balancer": BALANCER, "lane": "2:jax-cpu-vmap", "label": "f32", "vectors": 12, "identical": 11,
        "worst": {
            "case": CASE, "what": "the aggregate", "format": "f32", "inputs": entry["inputs"], "cotangent": entry["cotangent"],
            "expected": entry["values"][0]["expected"], "actual": entry["values"][0]["actual"], "ulp": 1,
        },
    }  # fmt: skip


def _change_value(actual_format: str, actual: str, bits: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A certificate whose doctored value is another one, its digest made to fit."""

    def change(data: dict[str, Any]) -> dict[str, Any]:
        data = doctored(data)
        cell = data["lanes"][-1]["balancers"][BALANCER]["f32"]
        cell["differences"][0]["values"][0] |= {"actual_format": actual_format, "actual": actual, "bits": bits}
        cell["digest"] = fitting_digest(cell, "f32")
        return data

    return change


def test_a_nan_has_no_distance_and_is_the_worst() -> None:
    data = _change_value("f32", "nan", "0x7fc00000")(torch_certificate())
    matrix = _merged(jax_certificate(), data)
    (found,) = matrix["disagreements"]
    assert found["ulp"] is None
    assert "has nan (f32, NaN against a number)." in in_words(matrix, found)


def test_another_format_is_a_disagreement_though_the_number_is_the_same() -> None:
    data = _change_value("f64", "0x1.89afc40000000p+1", "0x40089afc40000000")(torch_certificate())
    matrix = _merged(jax_certificate(), data)
    (found,) = matrix["disagreements"]
    assert (found["what"], found["format"], found["ulp"]) == ("the aggregate (f64, not f32)", "f64", 0)
    assert found["values"] == [{"lane": "2:torch-cpu-eager", "value": "0x1.89afc40000000p+1"}]
    assert "the odd one out is torch-cpu-eager on host 2 (b.json)." in in_words(matrix, found)


def test_a_column_that_a_device_lacks_is_said_to_be_absent(tmp_path: Path) -> None:
    data = torch_certificate()
    data["lanes"][0]["balancers"][BALANCER]["f64"] = {"absent": "abacus has no float64"}
    result = _run(tmp_path, data, jax_certificate())
    assert result.exit_code == 0
    assert "3 lanes, 168/168 bit-identical" in result.output
    assert f"absent: torch-cpu-eager on host 1 ({tmp_path}/a.json), f64: {BALANCER} (abacus has no float64)" in result.output
    matrix = _merged(data, doctored(jax_certificate(), "f64"))
    assert matrix["absent"] == [
        {"balancer": BALANCER, "lane": "1:torch-cpu-eager", "label": "f64", "reason": "abacus has no float64"}
    ]
    assert [value["lane"] for value in matrix["disagreements"][0]["values"]] == ["2:jax-cpu-eager", "2:jax-cpu-vmap"]
    assert "abacus has no float64" in as_markdown(matrix)


def test_markdown_has_the_counts_and_the_worst_case_of_each_cell(tmp_path: Path) -> None:
    file = tmp_path / "matrix.md"
    assert _run(tmp_path, torch_certificate(), doctored(jax_certificate()), options=("--markdown", str(file))).exit_code == 1
    lines = file.read_text("utf-8").splitlines()
    assert lines[0] == "# Parity: 2 hosts, 3 lanes, 179/180 bit-identical"
    kind = torch_certificate()["host"]["processor"]
    assert f"| `1:torch-cpu-eager` | `{kind}` | 60/60 |" in lines
    assert f"| `2:jax-cpu-vmap` | `{kind}` | **59/60** |" in lines
    worst = next(line for line in lines if line.startswith(f"| `2:jax-cpu-vmap` | `{BALANCER}` | f32 | 11/12 |"))
    for words in (
        CASE,
        "the aggregate",
        "0x1.89afc40000000p+1",
        "0x1.89afc60000000p+1",
        "1 ulp, f32",
        "MSELoss_0 = 0x",
        "cotangent = 0x",
    ):
        assert words in worst
    assert any("the odd one out is jax-cpu-vmap on host 2" in line for line in lines)
    agreeing = as_markdown(_merged(torch_certificate(), jax_certificate()))
    assert "## " not in agreeing


def test_the_html_page_is_of_this_matrix(tmp_path: Path) -> None:
    file = tmp_path / "matrix.html"
    assert _run(tmp_path, torch_certificate(), doctored(jax_certificate()), options=("--html", str(file))).exit_code == 1
    page = file.read_text("utf-8")
    assert "0x1.89afc60000000p+1" in page
    assert CASE in page


def test_words_of_a_certificate_are_no_markup(tmp_path: Path) -> None:
    data = torch_certificate()
    data["lanes"][0]["device_kind"] = "[red]a|b`<script>[/nothing]"
    result = _run(tmp_path, data, jax_certificate(), options=("--markdown", str(tmp_path / "matrix.md")))
    assert result.exit_code == 0, result.output
    assert "[red]a|b`<script>[/nothing]" in result.output
    assert "| `1:torch-cpu-eager` | `[red]a\\|b'<script>[/nothing]` | 60/60 |" in (tmp_path / "matrix.md").read_text("utf-8")


def test_a_text_lists_some_disagreements_and_says_how_many_more() -> None:
    data = torch_certificate()
    for label in ("bf16", "f32", "mixed"):
        for index in (4, 5, 10, 11):
            data = doctored(data, label, index)
    matrix = _merged(data)
    assert len(matrix["disagreements"]) == 12
    matrix["disagreements"] *= 3
    text = _text(matrix)
    assert text.count("the odd one out is") == SHOWN == 20
    assert "and 16 more values that differ; the JSON has them all" in text


def test_refused_certificates_are_exit_status_2_and_nothing_is_written(tmp_path: Path) -> None:
    bad = torch_certificate()
    bad["lanes"][0]["balancers"][BALANCER]["f32"]["digest"] = "0" * 16
    options = [word for kind in ("json", "markdown", "html") for word in (f"--{kind}", str(tmp_path / f"matrix.{kind}"))]
    result = _run(tmp_path, jax_certificate(), bad, options=tuple(options))
    assert result.exit_code == 2
    assert isinstance(result.exception, SystemExit)
    assert f"{tmp_path}/b.json: lanes[0].balancers.{BALANCER}.f32.digest: 0000000000000000 is not the digest of" in result.output
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.json", "b.json"]


def test_one_certificate_twice_is_refused(tmp_path: Path) -> None:
    result = _run(tmp_path, torch_certificate(), jax_certificate(), torch_certificate())
    assert result.exit_code == 2
    assert f"{tmp_path}/c.json: is the certificate {tmp_path}/a.json again. Give each once." in result.output
    with pytest.raises(CertificateError):
        _merged(torch_certificate(), torch_certificate())
    with pytest.raises(ValueError, match="at least one certificate"):
        merge([])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--json", "{}/a.json"], "--json: {}/a.json is one of the certificates already."),
        (["--json", "{}/m", "--html", "{}/m"], "--html: {}/m is the file of --json already."),
        (["--markdown", "{}/no/m.md"], "--markdown: the folder {}/no does not exist."),
        (["--markdown", "{}"], "is a directory"),
        ([], "Missing argument"),
    ],
    ids=["over-a-certificate", "twice-the-same", "no-folder", "a-folder", "nothing"],
)
def test_wrong_usage_is_exit_status_2_and_nothing_is_written(options: list[str], words: str, tmp_path: Path) -> None:
    options = [option.format(tmp_path) for option in options]
    before = json_text(torch_certificate())
    result = _run(tmp_path, torch_certificate(), options=tuple(options)) if options else CliRunner().invoke(app, ["merge"])
    assert result.exit_code == 2
    assert words.format(tmp_path) in " ".join(result.output.split())
    assert {file.name for file in tmp_path.iterdir()} <= {"a.json"}
    if options:
        assert (tmp_path / "a.json").read_text() == before


def test_a_file_that_cannot_be_written_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    write_json(tmp_path / "a.json", torch_certificate())
    monkeypatch.setattr(os, "fsync", full)
    result = CliRunner().invoke(app, ["merge", str(tmp_path / "a.json"), "--json", str(tmp_path / "m.json")])
    assert result.exit_code == 74
    assert "m.json cannot be written: No space left on device." in " ".join(result.output.split())
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]
