"""Malformed certificates, by the hundred: each is refused with a clean error, or is the certificate that it was."""

import copy
import json
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from certificates import doctored, few_sequences, few_vectors, jax_certificate, sequences_certificate
from typer.testing import CliRunner

from loss_balancers.parity.certificates.certificate import CertificateError
from loss_balancers.parity.certificates.reading import at, read_certificate
from loss_balancers.parity.cli import app
from loss_balancers.parity.files import json_text
from loss_balancers.parity.golden import vectors

SEED = 20261
Path_ = tuple[str | int, ...]

#: What stands in for a value of another type, or is too much of one.
STRANGERS: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    3.5,
    12.0,
    10**18,
    10**400,
    "",
    "0",
    "x" * 5000,
    "\ud800",
    "\n",
    [],
    {},
    [[[]]],
    {"": {}},
]


def _places(node: Any, here: Path_ = ()) -> Iterator[Path_]:
    """The path of every value in the document."""
    for key, value in list(node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()):
        yield (*here, key)
        yield from _places(value, (*here, key))


def _parent(data: Any, place: Path_) -> Any:
    for key in place[:-1]:
        data = data[key]
    return data


def _structured(rng: random.Random, original: dict[str, Any]) -> Iterator[tuple[str, Path_, str]]:
    """At every path: another type; nothing; a neighbour's value; and at every object and array: one thing more."""
    places = list(_places(original))
    for place in places:
        for kind in ("swap", "delete", "neighbour", "insert"):
            data = copy.deepcopy(original)
            parent = _parent(data, place)
            value = parent[place[-1]]
            if kind == "swap":
                parent[place[-1]] = rng.choice([other for other in STRANGERS if type(other) is not type(value) or other != value])
            elif kind == "delete":
                del parent[place[-1]]
            elif kind == "neighbour":
                other = rng.choice(places)
                parent[place[-1]] = copy.deepcopy(_parent(original, other)[other[-1]])
            elif isinstance(value, dict):
                value[rng.choice(["", "extra", "x" * 300, "a.b", "\u202e"])] = rng.choice(STRANGERS)
            elif isinstance(value, list):
                value.insert(rng.randrange(len(value) + 1), copy.deepcopy(rng.choice(value)) if value else rng.choice(STRANGERS))
            else:
                continue
            yield kind, place, json.dumps(data)


def _textual(rng: random.Random, original: str) -> Iterator[tuple[str, bytes]]:
    """Cut off, flipped, shuffled and doubled bytes."""
    content = original.rstrip().encode()
    for _ in range(120):
        yield "truncate", content[: rng.randrange(len(content))]
    for _ in range(300):
        place = rng.randrange(len(content))
        yield "flip", content[:place] + bytes([content[place] ^ (1 << rng.randrange(8))]) + content[place + 1 :]
    for _ in range(60):
        a, b = sorted(rng.randrange(len(content)) for _ in range(2))
        yield "cut out", content[:a] + content[b:]
        yield "repeat", content[:b] + content[a:]
        yield "junk", content[:a] + rng.randbytes(rng.randrange(1, 40)) + content[a:]
    lines = original.splitlines()
    for _ in range(60):
        index = rng.randrange(len(lines))
        yield "line twice", "\n".join([*lines[: index + 1], lines[index], *lines[index + 1 :]]).encode()
        digits = original.replace(rng.choice(["12", "11"]), rng.choice(["1e400", "NaN", "-Infinity", "9" * 6000, "0x1", "1.0"]), 1)
        yield "number", digits.encode()


def _meaning(data: dict[str, Any]) -> dict[str, Any]:
    """A certificate without the words that say nothing about results, and that nobody could check."""
    lanes = [{key: value for key, value in lane.items() if key == "balancers"} for lane in data["lanes"]]
    return {"schema": data["schema"], "vectors": data["vectors"], "lanes": lanes}


def _near(named: str, place: Path_) -> bool:
    """Whether the field that a refusal names is the one that was changed, holds it, or belongs to the same cell."""
    cell = at("", *place[:5])
    return named.startswith(cell) or cell.startswith(named)


@pytest.mark.parametrize("base", ["agrees", "differs", "changes"])
def test_malformed_certificates_are_refused(base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    rng = random.Random(SEED)
    few = few_sequences if base == "changes" else few_vectors
    original = sequences_certificate() if base == "changes" else jax_certificate()
    del original["lanes"][:-1]
    if base == "differs":
        original = doctored(doctored(original), "mixed", 5, 2, "the gradient to KLDivLoss_1")
    monkeypatch.setattr(vectors, "installed_vectors", few)
    file = tmp_path / "fuzzed.json"
    tried: Counter[str] = Counter()
    attempts = [(kind, place, text.encode()) for kind, place, text in _structured(rng, original)]
    attempts += [(kind, None, content) for kind, content in _textual(rng, json_text(original))]
    for kind, place, content in attempts:
        file.write_bytes(content)
        try:
            read = read_certificate(file, few())
        except CertificateError as error:
            refusal = str(error)
        else:  # a word about the host, a space, or a value that was swapped with its equal
            assert _meaning(read.data) == _meaning(original), (kind, place)
            tried["harmless"] += 1
            continue
        tried[f"{kind}"] += 1
        assert refusal.startswith(f"{file}: ")
        assert refusal.isprintable()
        assert len(refusal) < 2000
        if place is not None and len(place) > 1:
            # Of a document that can be read, the field is named (a missing one by the object that lacks it).
            named = refusal.removeprefix(f"{file}: ").partition(": ")[0]
            assert _near(named, place), (place, refusal)
        if sum(tried.values()) % 25 == 0:
            result = CliRunner().invoke(app, ["merge", str(file), "--json", str(tmp_path / "m.json")], env={"COLUMNS": "9999"})
            assert result.exit_code == 2
            assert isinstance(result.exception, SystemExit)
            assert "Traceback" not in result.output
            assert [path.name for path in tmp_path.iterdir()] == ["fuzzed.json"]
            tried["on the command line"] += 1
    refused = sum(count for kind, count in tried.items() if kind not in {"harmless", "on the command line"})
    with capsys.disabled():
        print(f"\n{base}: {len(attempts)} certificates tried, {refused} refused cleanly: {dict(tried)}")
    assert refused >= 500
    assert tried["on the command line"] >= 20
    assert tried["harmless"] < len(attempts) / 4
