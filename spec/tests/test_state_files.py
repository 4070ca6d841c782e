"""State files: what is written is what is read; a file is whole at any moment; what is no state is refused by name."""

import builtins
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import safetensors.numpy

from loss_balancers import spec
from loss_balancers.spec import read_state, save_state, schedules, state_files

SETTINGS = spec.EMANormalizedLossBalancerSettings(("student_loss", "MSELoss_0"), {"MSELoss_0": schedules.linear(0.0, 1.0, 3)})


def state(steps: int = 3) -> dict:
    held = {
        "steps": np.array(steps, np.int32),
        "skipped": np.array(0, np.int32),
        "pending": np.array([1.5, 0, 2, 2, 2, 0], np.float32),
        "total": np.array([1 / 3, 1e-38], np.float32),
        "fix": np.array([1, 2], np.float32),
    }
    return spec.exported(SETTINGS.balancer, SETTINGS.as_json(), SETTINGS.names, held)


def checked(exported):
    return spec.checked_state(SETTINGS.balancer, SETTINGS.as_json(), SETTINGS.names, SETTINGS.state, exported)


def test_what_is_written_is_what_is_read(tmp_path):
    file = tmp_path / "balancer.safetensors"
    save_state(file, state())
    read = read_state(str(file))
    assert {**read, "state": None} == {**state(), "state": None}
    arrays, expected = checked(read), state()["state"]
    assert list(arrays) == list(expected)
    for name, array in arrays.items():
        assert (array.dtype, array.shape, array.tobytes()) == (expected[name].dtype, expected[name].shape, expected[name].tobytes())
    assert [path.name for path in tmp_path.iterdir()] == ["balancer.safetensors"]  # nothing beside it


def test_a_path_in_bytes(tmp_path):
    file = tmp_path / "balancer.safetensors"
    save_state(os.fsencode(file), state())
    assert checked(read_state(os.fsencode(file))).keys() == state()["state"].keys()
    file.write_bytes(b"no state")
    with pytest.raises(ValueError, match=re.escape(repr(str(file))[1:-1])):
        read_state(os.fsencode(file))


def test_others_can_read_it(tmp_path):
    save_state(tmp_path / "x", state())
    assert safetensors.numpy.load_file(tmp_path / "x")["total"].tolist() == state()["state"]["total"].tolist()
    with safetensors.safe_open(tmp_path / "x", framework="np") as opened:
        metadata = opened.metadata()
    assert metadata["schema"] == '"loss-balancers-state/2"'
    assert json.loads(metadata["settings"]) == SETTINGS.as_json()


def test_an_array_is_written_as_it_reads_not_as_it_lies(tmp_path):
    exported = state()
    exported["state"]["total"] = np.arange(4, dtype=np.float32)[::2]
    save_state(tmp_path / "x", exported)
    assert read_state(tmp_path / "x")["state"]["total"].tolist() == [0, 2]


def test_what_is_read_can_be_written_to(tmp_path):
    save_state(tmp_path / "x", state())
    read_state(tmp_path / "x")["state"]["total"][...] = 1.0


def test_a_file_cut_short_is_refused_by_name_at_every_length(tmp_path):
    save_state(tmp_path / "whole", state())
    content = (tmp_path / "whole").read_bytes()
    cut = tmp_path / "cut.safetensors"
    for length in range(len(content)):
        cut.write_bytes(content[:length])
        with pytest.raises(
            ValueError, match=rf"^{re.escape(str(cut))} is not a state of a loss balancer: .*`save_state` wrote\. \(docs/spec T8\)$"
        ):
            read_state(cut)


def test_a_file_with_a_byte_changed_is_read_or_refused_in_words(tmp_path):
    save_state(tmp_path / "whole", state())
    content = (tmp_path / "whole").read_bytes()
    rng = np.random.default_rng(0)
    refused = []
    for _ in range(600):
        changed = bytearray(content)
        changed[rng.integers(len(content))] = rng.integers(256)
        (tmp_path / "changed").write_bytes(changed)
        try:
            checked(read_state(tmp_path / "changed"))
        except (TypeError, ValueError) as error:
            refused.append(str(error))
    assert len(refused) > 300
    assert [
        words for words in refused if not re.search(r"[Rr]eceived |; the state is of |is not a state of a loss balancer", words)
    ] == []


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        pytest.param(None, "its metadata lacks one of ['schema', 'balancer', 'settings', 'names']", id="of-something-else"),
        pytest.param({"format": "pt"}, "its metadata lacks one of", id="of-torch"),
        pytest.param(dict.fromkeys(["schema", "balancer", "settings", "names"], "{"), "Expecting property name", id="no-json"),
        pytest.param(dict.fromkeys(["schema", "balancer", "settings", "names"], "[" * 100_000), "recursion", id="deep-json"),
        pytest.param(dict.fromkeys(["schema", "balancer", "settings", "names"], "1" * 5000), "digits", id="long-number"),
    ],
)
def test_a_foreign_safetensors_file_is_refused_by_name(tmp_path, metadata, words):
    file = tmp_path / "model.safetensors"
    safetensors.numpy.save_file({"weight": np.zeros(3, np.float32)}, file, metadata)
    with pytest.raises(ValueError, match=rf"^{re.escape(str(file))} is not a state of a loss balancer: .*{re.escape(words)}"):
        read_state(file)


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"\x89PNG\r\n\x1a\n" + bytes(100), b"\xff" * 64], ids=["empty", "json", "png", "ff"]
)
def test_another_file_is_refused_by_name(tmp_path, content):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(ValueError, match=r"x is not a state of a loss balancer: "):
        read_state(tmp_path / "x")


def test_no_file_and_a_folder_are_the_systems_errors(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_state(tmp_path / "absent")
    with pytest.raises(OSError, match="directory"):
        read_state(tmp_path)
    with pytest.raises(FileNotFoundError):
        save_state(tmp_path / "absent" / "x", state())
    save_state(tmp_path / "x", state())
    for call in (read_state, lambda path: save_state(path, state())):
        with pytest.raises(OSError, match=r"(?i)(is|not) a directory"):
            call(f"{tmp_path}/x/")


@pytest.mark.parametrize(
    ("exported", "words"),
    [
        pytest.param(None, "Received NoneType", id="none"),
        pytest.param({"schema": 1}, "Received ['schema']", id="missing"),
        pytest.param({**state(), "settings": {"beta": np.zeros(2)}}, "Received one that no file can hold (Object of type ndarray", id="settings"),
        pytest.param({**state(), "state": {"total": np.array([None])}}, "no file can hold", id="objects"),
        pytest.param({**state(), "state": {"total": [[1.0], [1.0, 2.0]]}}, "no file can hold", id="ragged"),
        pytest.param({**state(), "state": {3: np.zeros(2)}}, "no file can hold", id="key"),
        pytest.param({**state(), "state": [1]}, "no file can hold", id="list"),
    ],
)  # fmt: skip
def test_what_is_no_state_is_not_written(tmp_path, exported, words):
    save_state(tmp_path / "x", state())
    before = (tmp_path / "x").read_bytes()
    with pytest.raises(TypeError, match=re.escape(words)):
        save_state(tmp_path / "x", exported)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x").read_bytes() == before


def entry(**arrays):
    return {**state(), "state": {**state()["state"], **arrays}}


def without(name, **parts):
    return {**state(), **parts, "state": {key: array for key, array in state()["state"].items() if key != name}}


#: What `load_state` refuses whatever the balancer, and the words.
UNLOADABLE = {
    "nan": (entry(total=np.array([1, np.nan], np.float32)), "The entry 'total' of the state must hold finite numbers"),
    "inf-pending": (entry(pending=np.full(6, np.inf, np.float32)), "The entry 'pending' of the state must hold finite numbers"),
    "negative": (entry(steps=np.int32(-1)), "The entry 'steps' of the state must hold finite numbers, and counts of at least 0"),
    "negative-amount": (entry(pending=np.array([0, 0, -1, 0, 0, 0], np.float32)), "counts of at least 0"),
    "float64": (entry(total=np.zeros(2)), "float32 of shape (2,). Received float64 of shape (2,)"),
    "int64": (entry(steps=np.array(3)), "int32 of shape (). Received int64 of shape ()"),
    "shape": (entry(total=np.zeros(5, np.float32)), "float32 of shape (2,). Received float32 of shape (5,)"),
    "shape-pending": (entry(pending=np.zeros(5, np.float32)), "float32 of shape (6,). Received float32 of shape (5,)"),
    "list": (entry(total=[1.0, 2.0]), "Received one of type list"),
    "int": (entry(steps=3), "Received one of type int"),
    "missing": (without("fix"), "Expected ['steps', 'skipped', 'pending', 'total', 'fix']; received ['steps', 'skipped', 'pending', 'total']"),
    "more": (entry(gamma=np.zeros(2, np.float32)), "'fix', 'gamma']"),
    "schema": ({**state(), "schema": "loss-balancers-state/3"}, "another schema than this balancer. Expected 'loss-balancers-state/2'"),
    "schema-type": ({**state(), "schema": 2}, "another schema than this balancer"),
    "balancer-type": ({**state(), "balancer": None}, "another balancer than this balancer"),
    "names-type": ({**state(), "names": 3}, "The names in a state must be a list of distinct strings. Received 3"),
    "names-ints": ({**state(), "names": [1, 2]}, "must be a list of distinct strings. Received [1, 2]"),
    "names-twice": ({**state(), "names": ["A", "A"]}, "must be a list of distinct strings. Received ['A', 'A']"),
    "names-more": ({**state(), "names": ["A", "B", "C"]}, "float32 of shape (8,). Received float32 of shape (6,)"),
    "unknown-balancer-nan": ({**entry(total=np.full(3, np.nan, np.float32)), "balancer": "Mine"}, "'total' of the state must hold finite"),
    "unknown-balancer-float64": ({**entry(mine=np.zeros(2)), "balancer": "Mine"}, "'mine' of the state must be an array, float32 of shape (2,)"),
    "unknown-balancer-shape": ({**entry(pending=np.zeros(5, np.float32)), "balancer": "Mine"}, "float32 of shape (6,)"),
    "unknown-balancer-missing": (without("skipped", balancer="Mine"), "Expected ['steps', 'skipped', 'pending', 'total', 'fix']; received ['steps', 'pending'"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNLOADABLE)
def test_what_no_balancer_could_load_is_not_written(tmp_path, name):
    exported, words = UNLOADABLE[name]
    save_state(tmp_path / "x", state())
    before = (tmp_path / "x").read_bytes()
    with pytest.raises(ValueError, match=re.escape(words)):
        save_state(tmp_path / "x", exported)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x").read_bytes() == before


@pytest.mark.parametrize(
    "exported",
    [
        {**state(), "settings": {}},  # which `renamed={}` lets pass
        {**entry(mine=np.zeros((2, 3), np.float32)), "balancer": "Mine"},
        {**entry(pending=np.zeros(2, np.float32)), "balancer": "Mine"},  # one that observes nothing
        {**entry(pending=np.zeros(4, np.float32)), "schema": "loss-balancers-state/1"},
    ],
    ids=["other-settings", "another-balancer", "counters-alone", "schema-before"],
)
def test_what_some_balancer_can_load_is_written(tmp_path, exported):
    save_state(tmp_path / "x", exported)
    assert read_state(tmp_path / "x")["state"].keys() == exported["state"].keys()


def test_settings_that_could_not_be_read_again_are_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(state_files, "_LARGEST_HEADER", 100)
    with pytest.raises(ValueError, match=r"must take at most 100 bytes. Those for .*x take \d+: they hold long tables"):
        save_state(tmp_path / "x", state())
    assert not list(tmp_path.iterdir())


def test_a_table_of_a_million_steps_fits(tmp_path):
    settings = spec.WeightedSumLossBalancerSettings({"A": schedules.tabulate(lambda step: step * 1e-6, 1_000_000)})
    held = {"steps": np.int32(0), "skipped": np.int32(0), "pending": np.zeros(2, np.float32)}
    save_state(tmp_path / "x", spec.exported(settings.balancer, settings.as_json(), settings.names, held))
    assert type(settings).from_json(read_state(tmp_path / "x")["settings"]) == settings


def test_a_write_that_fails_leaves_the_old_file_and_nothing_beside_it(tmp_path, monkeypatch):
    save_state(tmp_path / "x", state(1))

    def full(fileno: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_state(tmp_path / "x", state(2))
    assert int(read_state(tmp_path / "x")["state"]["steps"]) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


WRITER = """
import sys
import numpy as np
from loss_balancers import spec
step = 0
while True:
    step += 1
    held = {"steps": np.int32(step), "skipped": np.int32(0), "pending": np.zeros(2, np.float32), "own": np.full(100_000, step, np.float32)}
    spec.save_state(sys.argv[1], spec.exported("X", {}, [], held))
    print(step, flush=True)
"""


def test_a_writer_that_is_killed_leaves_a_whole_file(tmp_path):
    file = tmp_path / "x"
    with subprocess.Popen([sys.executable, "-c", WRITER, file], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        said = [int(writer.stdout.readline()) for _ in range(3)]
        time.sleep(0.05)
        writer.send_signal(signal.SIGKILL)
        said += map(int, writer.stdout.read().split())
    read = read_state(file)["state"]
    assert int(read["steps"]) in (said[-1], said[-1] + 1)  # of which it had not yet told
    assert (read["own"] == int(read["steps"])).all()

    left = [path.name for path in tmp_path.iterdir() if path != file]
    assert all(re.fullmatch(r"\.loss-balancers-[0-9a-f]{32}\.partial", name) for name in left)  # as docs/state.md has it


#: Two threads in a process that has the number of all others, as the first process of a container has.
MANY_WRITERS = """
import os, sys, threading
import numpy as np
from loss_balancers import spec
os.getpid = lambda: 1
file, writer, times = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
failed, begin = [], {"skipped": np.int32(0), "pending": np.zeros(2, np.float32)}
def write(thread):
    for step in range(times):
        number = 1000 * (2 * writer + thread) + step
        held = {**begin, "steps": np.int32(number), "own": np.full(1000 * (1 + number % 90), number, np.float32)}
        try:
            spec.save_state(file, spec.exported("X", {}, [], held))
        except Exception as error:
            failed.append(repr(error))
threads = [threading.Thread(target=write, args=(thread,)) for thread in range(2)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(*failed, sep="\\n")
"""


def test_many_writers_at_once_make_no_error_and_no_reader_sees_a_part(tmp_path):
    """600 writes by eight threads in four processes with one number, and two readers beside them."""
    file = tmp_path / "x"
    counts = {"steps": np.int32(7), "skipped": np.int32(0), "pending": np.zeros(2, np.float32)}
    save_state(file, spec.exported("X", {}, [], {**counts, "own": np.full(8000, 7, np.float32)}))
    command = [sys.executable, "-c", MANY_WRITERS, str(file)]
    writers = [subprocess.Popen([*command, str(i), "75"], stdout=subprocess.PIPE, text=True) for i in range(4)]
    torn, seen, done = [], set(), threading.Event()

    def read():
        while not done.is_set():
            try:
                held = read_state(file)["state"]
            except (OSError, ValueError) as error:
                torn.append(repr(error))
                continue
            number = int(held["steps"])
            seen.add(number)
            if len(held["own"]) != 1000 * (1 + number % 90) or (held["own"] != number).any():
                torn.append(number)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    failed = [writer.communicate(timeout=120)[0].split("\n") for writer in writers]
    done.set()
    for reader in readers:
        reader.join()
    assert [words for of_writer in failed for words in of_writer if words] == []
    assert torn == []
    assert len(seen) > 20  # the readers were there meanwhile
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert [writer.returncode for writer in writers] == [0] * 4


#: Formats that a state does not have, as safetensors names them, and the bytes of 8 elements.
FOREIGN = {"F4": 4, "F6_E2M3": 6, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "BF16": 16, "BOOL": 8, "C64": 64}
OURS = dict.fromkeys(["schema", "balancer", "settings", "names"], "{}")


def written(file, dtype, shape, size, metadata):
    header = json.dumps({"__metadata__": metadata, "x": {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}}).encode()
    file.write_bytes(len(header).to_bytes(8, "little") + header + bytes(size))


@pytest.mark.parametrize("metadata", [{}, {"format": "pt"}, OURS], ids=["none", "of-torch", "ours"])
@pytest.mark.parametrize("dtype", FOREIGN)
def test_a_file_of_any_format_is_read_or_refused_by_name(tmp_path, dtype, metadata):
    file = tmp_path / "model.safetensors"
    written(file, dtype, [8], FOREIGN[dtype], metadata)
    if metadata is OURS and dtype in ("BOOL", "C64"):  # arrays that NumPy has, and no balancer
        with pytest.raises(ValueError, match=r"received"):
            checked({**state(), **{"state": read_state(file)["state"]}})
        return
    with pytest.raises(
        ValueError, match=rf"^{re.escape(str(file))} is not a state of a loss balancer: .*`save_state` wrote\. \(docs/spec T8\)$"
    ):
        read_state(file)


def test_what_is_refused_does_not_depend_on_the_formats_that_another_package_adds(tmp_path):
    """NumPy has bfloat16 once ml_dtypes is loaded, which JAX does."""
    written(tmp_path / "x", "BF16", [8], 16, OURS)
    read = "import sys, loss_balancers.spec as s; s.read_state(sys.argv[1])"
    for before in ("", "import ml_dtypes; "):
        done = subprocess.run([sys.executable, "-c", before + read, tmp_path / "x"], capture_output=True, text=True, check=False)
        assert re.search(r"^ValueError: .*x is not a state of a loss balancer: ", done.stderr, re.MULTILINE)


@pytest.mark.parametrize("shape", [[0, 2**63], [1] * 100, [2**62, 2**62]], ids=["too-long", "too-deep", "too-large"])
@pytest.mark.parametrize("metadata", [{}, OURS], ids=["foreign", "ours"])
def test_a_shape_that_no_array_has_is_refused_by_name(tmp_path, shape, metadata):
    written(tmp_path / "x", "F32", shape, 0 if 0 in shape else 4, metadata)
    with pytest.raises(ValueError, match=r"x is not a state of a loss balancer: "):
        read_state(tmp_path / "x")


def test_an_empty_array_is_read(tmp_path):
    written(tmp_path / "x", "F32", [0], 0, OURS)
    assert read_state(tmp_path / "x")["state"]["x"].shape == (0,)


@pytest.mark.parametrize("size", [100_000_001, 2**63, 2**64 - 1])
def test_a_huge_header_is_refused_by_name(tmp_path, size):
    (tmp_path / "x").write_bytes(size.to_bytes(8, "little") + b"{}")
    with pytest.raises(ValueError, match=r"x is not a state of a loss balancer: "):
        read_state(tmp_path / "x")


def test_a_device_is_no_state_and_stays_a_device(monkeypatch):
    monkeypatch.setattr(os, "replace", None)  # a mistake here must not cost this machine its device
    save_state("/dev/null", state())
    with pytest.raises(ValueError, match=r"^/dev/null is not a state of a loss balancer: "):
        read_state("/dev/null")


def test_a_private_file_stays_one_and_links_are_followed(tmp_path):
    save_state(tmp_path / "x", state(1))
    (tmp_path / "x").chmod(0o600)
    (tmp_path / "latest").symlink_to("x")
    save_state(tmp_path / "latest", state(2))
    assert (tmp_path / "latest").is_symlink()
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o600
    assert int(read_state(tmp_path / "x")["state"]["steps"]) == 2


def test_without_safetensors_the_error_names_the_extra(tmp_path, monkeypatch):
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.startswith("safetensors"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    words = r"State files need safetensors, which is not installed. Install .* with its extra `\[torch\]`"
    with pytest.raises(ImportError, match=words):
        save_state(tmp_path / "x", state())
    with pytest.raises(ImportError, match=words):
        read_state(tmp_path / "x")


def test_safetensors_is_not_loaded_until_it_is_needed():
    probe = "import sys, loss_balancers.spec; print('safetensors' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True, timeout=600)
    assert result.stdout.strip() == "False"
