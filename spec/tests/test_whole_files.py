"""Whole files: readers and writers at once, links, modes, and what must not be replaced."""

import os
import pty
import re
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from loss_balancers.spec.whole_files import is_replaced, write_whole

LEFT = re.compile(r"\.loss-balancers-[0-9a-f]{32}\.partial")


IMPORT = "from loss_balancers.spec.whole_files import write_whole"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_written_and_written_again(tmp_path):
    for content in (b"one", b"", b"\r\n\0" * 100_000):
        write_whole(tmp_path / "x", content)
        assert (tmp_path / "x").read_bytes() == content
    write_whole(str(tmp_path / "y"), b"by name")
    assert names(tmp_path) == ["x", "y"]


def test_a_relative_name_is_of_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_whole("x", b"one")
    write_whole(Path("x"), b"two")
    assert (tmp_path / "x").read_bytes() == b"two"


def test_the_longest_name_that_a_folder_takes(tmp_path):
    name = "n" * os.pathconf(tmp_path, "PC_NAME_MAX")
    write_whole(tmp_path / name, b"one")
    write_whole(tmp_path / name, b"two")
    assert names(tmp_path) == [name]


# --- modes and links ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664, 0o400, 0o755])
def test_a_file_keeps_its_mode(tmp_path, mode):
    (tmp_path / "x").touch()
    (tmp_path / "x").chmod(mode)
    write_whole(tmp_path / "x", b"new")
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == mode


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_a_new_file_has_the_mode_that_open_gives(tmp_path, mask):
    program = f"import os; os.umask({mask}); {IMPORT}; write_whole('x', b''); open('y', 'w')"
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True, timeout=120)
    assert (tmp_path / "x").stat().st_mode == (tmp_path / "y").stat().st_mode == stat.S_IFREG | (0o666 & ~mask)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_file_keeps_its_owner(tmp_path):
    (tmp_path / "x").touch()
    os.chown(tmp_path / "x", 65534, 65534)
    write_whole(tmp_path / "x", b"new")
    status = (tmp_path / "x").stat()
    assert (status.st_uid, status.st_gid) == (65534, 65534)


def test_nobody_else_can_read_the_new_content_of_a_private_file_while_it_is_written(tmp_path, monkeypatch):
    (tmp_path / "x").touch()
    (tmp_path / "x").chmod(0o600)
    seen, real = [], os.fsync

    def look(descriptor):
        seen.append(stat.S_IMODE(os.fstat(descriptor).st_mode))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", look)
    write_whole(tmp_path / "x", b"new")
    assert seen == [0o600]


@pytest.mark.parametrize("there", [True, False], ids=["a-file", "dangling"])
def test_links_are_followed(tmp_path, there):
    (tmp_path / "elsewhere").mkdir()
    target = tmp_path / "elsewhere" / "x"
    if there:
        target.write_bytes(b"old")
    (tmp_path / "elsewhere" / "second").symlink_to("x")
    (tmp_path / "folder").symlink_to("elsewhere")
    (tmp_path / "first").symlink_to("folder/second")
    write_whole(tmp_path / "first", b"new")
    assert target.read_bytes() == (tmp_path / "first").read_bytes() == b"new"
    assert not target.is_symlink()
    assert (tmp_path / "first").is_symlink()
    assert (tmp_path / "elsewhere" / "second").is_symlink()
    assert names(tmp_path) == ["elsewhere", "first", "folder"]
    assert names(tmp_path / "elsewhere") == ["second", "x"]


# --- errors ---------------------------------------------------------------------------------------------------------


def test_errors_name_the_file_and_not_the_one_beside_it(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "into-nowhere").symlink_to("absent/x")
    for name, words in {
        "absent/x": "No such file or directory",
        "into-nowhere": "No such file or directory",
        "loop": "Too many levels of symbolic links",
        "file/x": "Not a directory",
        ".": "Is a directory",
    }.items():
        with pytest.raises(OSError, match=words) as raised:
            write_whole(tmp_path / name, b"new")
        assert raised.value.filename in (str(tmp_path / name), tmp_path / name)
    with pytest.raises(FileNotFoundError):
        write_whole(tmp_path / "absent" / "x", b"new")
    assert names(tmp_path) == ["file", "into-nowhere", "loop"]


@pytest.mark.parametrize("end", ["/", "//", "/.", "/.."])
def test_the_path_of_a_folder_is_not_that_of_a_file(tmp_path, end):
    """Whatever is there: as from `open`, no file of another name is written."""
    (tmp_path / "file").write_bytes(b"old")
    (tmp_path / "link").symlink_to(f"absent{end}")
    for name in (f"absent{end}", f"file{end}", "link"):
        with pytest.raises(IsADirectoryError, match="Is a directory") as raised:
            write_whole(f"{tmp_path}/{name}", b"new")
        assert raised.value.filename == f"{tmp_path}/{name}"
        with pytest.raises(IsADirectoryError):
            is_replaced(f"{tmp_path}/{name}")
    assert names(tmp_path) == ["file", "link"]
    assert (tmp_path / "file").read_bytes() == b"old"


def test_a_path_with_a_null_is_the_error_of_open(tmp_path):
    with pytest.raises(ValueError, match="null"):
        write_whole(f"{tmp_path}/a\0b", b"new")
    assert names(tmp_path) == []


FOLDER_THAT_TAKES_NO_FILE = """
import os, pathlib, shutil, tempfile
from loss_balancers.spec.whole_files import write_whole
folder = pathlib.Path(tempfile.mkdtemp())
file = folder / "x"
file.write_bytes(b"old")
file.chmod(0o666)
folder.chmod(0o555)
if os.geteuid() == 0:
    os.seteuid(65534)  # root may do all
try:
    write_whole(file, b"new")
except PermissionError as error:
    print(str(error).replace(str(folder), "FOLDER"))
print(file.read_bytes(), os.listdir(folder))
os.seteuid(os.getuid())
folder.chmod(0o755)
shutil.rmtree(folder)
"""


def test_a_folder_that_takes_no_file_is_an_error_and_the_file_is_as_it_was():
    done = subprocess.run(
        [sys.executable, "-c", FOLDER_THAT_TAKES_NO_FILE], capture_output=True, text=True, check=True, timeout=120
    )
    words, left = done.stdout.splitlines()
    assert words == (
        "[Errno 13] A file is written under another name in its folder and then renamed, but FOLDER takes no new file (Permission "
        "denied). Make the folder writable, or name a file in another one: 'FOLDER/x'"
    )
    assert left == "b'old' ['x']"


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["full", "interrupted"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_beside_it(tmp_path, monkeypatch, step, error):
    (tmp_path / "x").write_bytes(b"old")

    def fail(*arguments):
        raise error

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(type(error)):
        write_whole(tmp_path / "x", b"new")
    assert (tmp_path / "x").read_bytes() == b"old"
    assert names(tmp_path) == ["x"]


def test_the_file_of_another_writer_is_left_alone(tmp_path):
    other = tmp_path / f".loss-balancers-{'0' * 32}.partial"
    other.write_bytes(b"half of")
    write_whole(tmp_path / "x", b"new")
    assert other.read_bytes() == b"half of"
    assert LEFT.fullmatch(other.name)  # what the documents say a killed writer may leave


# --- what is no regular file ----------------------------------------------------------------------------------------


@pytest.fixture
def _never_replaced(monkeypatch):
    """Nothing is renamed, so that no device of this machine can be lost."""

    def refuse(*arguments):
        raise AssertionError(arguments)

    monkeypatch.setattr(os, "replace", refuse)


@pytest.mark.usefixtures("_never_replaced")
@pytest.mark.parametrize("name", ["/dev/null", "a-link"])
def test_a_device_stays_one(tmp_path, name):
    (tmp_path / "a-link").symlink_to("/dev/null")
    write_whole(tmp_path / name, b"new")
    assert not is_replaced(tmp_path / name)
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    assert names(tmp_path) == ["a-link"]


@pytest.mark.usefixtures("_never_replaced")
def test_a_terminal_is_written_to():
    ours, theirs = pty.openpty()
    try:
        write_whole(os.ttyname(theirs), b"new")
        assert os.read(ours, 100) == b"new"
    finally:
        os.close(ours)
        os.close(theirs)


@pytest.mark.usefixtures("_never_replaced")
def test_a_named_pipe_is_written_to(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    read = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_bytes()))
    reader.start()
    write_whole(tmp_path / "pipe", b"new" * 100_000)
    reader.join(timeout=60)
    assert read == [b"new" * 100_000]
    assert names(tmp_path) == ["pipe"]


WRITES_TO = f"import sys; {IMPORT}; write_whole(sys.argv[1], b'new ')"


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "/proc/thread-self/fd/1", "link"])
@pytest.mark.parametrize("to", ["pipe", "file", "end-of-file"])
def test_standard_output_is_written_to_and_what_it_leads_to_is_not_replaced(tmp_path, name, to):
    """Where it is a file, as after `>`, other programs write to it too: what is there stays, and what follows comes after."""
    (tmp_path / "link").symlink_to("/dev/stdout")
    (tmp_path / "out").write_bytes(b"old ")
    inode = (tmp_path / "out").stat().st_ino
    sign = {"pipe": "| cat >>", "file": ">", "end-of-file": ">>"}[to]
    script = f'(printf "first "; "$0" -c "$1" {name}; printf last) {sign} out'
    subprocess.run(["sh", "-c", script, sys.executable, WRITES_TO], cwd=tmp_path, check=True, timeout=120)
    assert (tmp_path / "out").read_bytes() == (b"" if to == "file" else b"old ") + b"first new last"
    assert (tmp_path / "out").stat().st_ino == inode
    assert names(tmp_path) == ["link", "out"]


def test_another_descriptor_is_written_to_and_a_closed_one_is_an_error(tmp_path):
    script = '"$0" -c "$1" /proc/self/fd/7 7>out && "$0" -c "$1" /dev/stdout >&-'
    done = subprocess.run(
        ["sh", "-c", script, sys.executable, WRITES_TO], cwd=tmp_path, check=False, timeout=120, capture_output=True, text=True
    )
    assert (tmp_path / "out").read_bytes() == b"new "
    assert done.returncode == 1
    assert "OSError: [Errno 9] Bad file descriptor" in done.stderr


def test_what_is_replaced(tmp_path):
    (tmp_path / "x").touch()
    assert is_replaced(tmp_path / "x")
    assert is_replaced(tmp_path / "absent")
    assert not is_replaced("/dev/stdout")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="Too many levels"):
        is_replaced(tmp_path / "loop")
