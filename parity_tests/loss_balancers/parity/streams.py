"""Standard output and error that may go away: a reader that has read enough, a full disk, or a stream that was never open.

What a command prints is for whoever reads. Whether they go on reading changes neither its files nor its verdict.
"""

from __future__ import annotations

import errno
import os
import sys
from typing import Any, TextIO


class LastingStream:
    """A text stream whose writes never fail: once one does, what follows is dropped, and ``failure`` says why."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.failure: OSError | None = None

    def write(self, text: str) -> int:
        """Writes the text, or drops it."""
        self._attempt(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Flushes what was written, or drops it."""
        self._attempt(self._stream.flush)

    def _attempt(self, action: Any) -> None:
        if self.failure is not None:
            return
        try:
            action()
        except OSError as error:
            self.failure = error
            # What is still buffered would be written, and fail, again when Python ends.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)

    @property
    def lost(self) -> OSError | None:
        """Why output was lost that somebody wanted; None where all was written, or where the reader went away."""
        return None if self.failure is None or self.failure.errno == errno.EPIPE else self.failure

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def make_streams_last() -> LastingStream:
    """Replaces the standard streams of this process by ones that never fail, and returns standard output."""
    _open_what_is_closed()
    for name in ("stdout", "stderr"):
        stream: Any = getattr(sys, name) or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  # lasts as the process does
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without box drawing shows question marks
        setattr(sys, name, LastingStream(stream))
    return sys.stdout  # type: ignore[return-value]


def _open_what_is_closed() -> None:
    """Takes the numbers 0 to 2 where they are free: the next file would get one, and with it what libraries print."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
