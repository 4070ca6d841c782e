"""Files that are whole at any moment: written under another name in their folder, then renamed."""

from __future__ import annotations

import errno
import os
import re
import secrets
import stat
from contextlib import suppress
from typing import NamedTuple

from loss_balancers.spec import errors

#: A folder whose entries are the open descriptors of a process: `/dev/stdout` is a link into one.
_DESCRIPTORS = re.compile(r"/dev/fd|/proc/(\d+)(?:/task/\d+)?/fd")

#: Linux follows this many links, too.
_MOST_LINKS = 40


class _Target(NamedTuple):
    """What a path leads to: ``folder`` and ``name`` after all links, and its status, None if it is not there."""

    folder: str
    name: str
    status: os.stat_result | None


def write_whole(file: str | bytes | os.PathLike[str] | os.PathLike[bytes], data: bytes) -> None:
    """Writes ``data`` to a file. A reader finds the old content or the new one, whole, at any moment.

    The data goes to a new file in the same folder, ``.loss-balancers-{32 hex digits}.partial``, which is then renamed. Threads,
    processes and containers can write to one file at once: no two use the same name, and the last to rename wins. A process that
    is killed may leave its ``.partial`` file. Nothing reads it, and it can be deleted when no process is writing.

    Links are followed. A file that was there keeps its mode, and its owner where the system allows; a new one has the mode that
    `open` gives. A device, a pipe or ``/dev/stdout`` is not a regular file: it is written into and never replaced.

    Args:
        file: Where to.
        data: All of the content.

    Raises:
        OSError: The file cannot be written, its folder takes no new file, or the path is that of a folder. Then what was there
            before is still there.
    """
    path = os.fsdecode(file)
    target = _followed(path)
    if _is_replaced(target):
        _replace(path, target, data)
        return
    own = _own_descriptor(target)
    # If the path of a descriptor were opened again, writing would start at the beginning of the file behind it.
    with open(path if own is None else os.dup(own), "wb") as stream:
        stream.write(data)


def is_replaced(file: str | bytes | os.PathLike[str] | os.PathLike[bytes]) -> bool:
    """Whether `write_whole` puts a new file in the place of this one. If not, it writes into what is there.

    Raises:
        OSError: The path leads nowhere, or is that of a folder.
    """
    return _is_replaced(_followed(os.fsdecode(file)))


def _is_replaced(target: _Target) -> bool:
    if _DESCRIPTORS.fullmatch(target.folder):
        return False
    return target.status is None or stat.S_ISREG(target.status.st_mode)


def _followed(path: str) -> _Target:
    """The end of a path's links. A descriptor is such an end: the file behind it is its owner's to write."""
    here = path
    for _ in range(_MOST_LINKS):
        folder, name = os.path.split(here)
        if name in ("", os.curdir, os.pardir):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)  # as from `open`
        folder = os.path.realpath(folder)
        here = os.path.join(folder, name)
        if _DESCRIPTORS.fullmatch(folder) or not os.path.islink(here):
            try:
                return _Target(folder, name, os.stat(here))
            except FileNotFoundError:
                return _Target(folder, name, None)
        here = os.path.join(folder, os.readlink(here))
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)


def _own_descriptor(target: _Target) -> int | None:
    """The descriptor of this process that the path names; None if it does not name one."""
    found = _DESCRIPTORS.fullmatch(target.folder)
    own = found is not None and found[1] in (None, os.path.basename(os.path.realpath("/proc/self")))
    return int(target.name) if own and target.name.isdecimal() else None


def _replace(path: str, target: _Target, data: bytes) -> None:
    beside = os.path.join(target.folder, f".loss-balancers-{secrets.token_hex(16)}.partial")
    # A new file gets what the umask leaves of 0666, as from `open`. Else nobody may read it until it has the old one's mode.
    mode = 0o666 if target.status is None else 0o600
    try:
        stream = open(beside, "xb", opener=lambda name, flags: os.open(name, flags, mode))  # noqa: SIM115  closed below
    except OSError as error:
        raise errors.no_file_beside(path, target.folder, error) from error
    try:
        with stream:
            stream.write(data)
            stream.flush()
            if target.status is not None:
                if hasattr(os, "fchown"):
                    with suppress(PermissionError):  # only root can give files away
                        os.fchown(stream.fileno(), target.status.st_uid, target.status.st_gid)
                os.chmod(beside, stat.S_IMODE(target.status.st_mode))
            os.fsync(stream.fileno())  # before the rename: a crash of the system could else leave the new name without its content
        os.replace(beside, os.path.join(target.folder, target.name))
    except BaseException:
        with suppress(OSError):
            os.unlink(beside)
        raise
